//! Extended attributes: one table of what a mount tells about its files, and what it answers to
//! whoever asks for others. Pure, over the tree; all of them are read-only.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, UNIX_EPOCH};

use isotope_proto::cluster::VolumeState;
use isotope_proto::id::Ino;
use isotope_proto::image::ImageFormat;

use crate::error::FsError;
use crate::health::FEED_ATTRIBUTE;
use crate::tally::READS_ATTRIBUTE;
use crate::tree::{ImageNode, Inode, Tree};

/// The name under which desktops and web servers look for it (freedesktop.org, shared MIME-info
/// database, "Storing the MIME type using Extended Attributes").
const MIME_TYPE: &str = "user.mime_type";
const OURS: &str = "user.isotope.";

/// Makes an attribute's value; none where the image has none.
type Value = fn(&Tree, &ImageNode) -> Option<String>;

/// The attributes of an image, in the order in which they are listed.
const OF_IMAGES: &[(&str, Value)] = &[
    ("user.isotope.arch", |_, image| known(&image.os.arch)),
    ("user.isotope.blake3", |_, image| Some(image.hashes?.blake3.to_string())),
    ("user.isotope.distribution", |_, image| known(&image.os.distribution)),
    ("user.isotope.family", |_, image| Some(image.os.family.to_string())),
    ("user.isotope.flat_name", |_, image| Some(image.flat_name.as_ref()?.to_string())),
    ("user.isotope.format", |_, image| Some(image.format.to_string())),
    ("user.isotope.id", |_, image| Some(image.id.to_string())),
    ("user.isotope.nodes", |tree, image| known(&nodes(tree, image))),
    ("user.isotope.pools", |tree, image| known(&pools(tree, image))),
    ("user.isotope.sha256", |_, image| Some(image.hashes?.sha256.to_string())),
    ("user.isotope.state", |tree, image| Some(state(tree, image).to_owned())),
    ("user.isotope.verified_at", |_, image| verified_at(image)),
    ("user.isotope.version", |_, image| known(&image.os.version)),
    ("user.isotope.volumes", |_, image| known(&volumes(image))),
    (MIME_TYPE, |_, image| Some(mime_type(image.format).to_owned())),
];

/// What the root directory tells of the mount, as JSON.
#[derive(Debug, Clone, Copy)]
pub(crate) enum OfRoot {
    Feed,
    Reads,
}

/// The attributes of the root directory, in the order in which they are listed.
const OF_ROOT: &[(&str, OfRoot)] =
    &[(FEED_ATTRIBUTE, OfRoot::Feed), (READS_ATTRIBUTE, OfRoot::Reads)];

/// The value of an attribute; `tell` makes what the root tells. A file that is being written is not
/// in the tree, and has none.
///
/// # Errors
/// [`FsError::NoAttribute`] for what could be there and is not, [`FsError::NotSupported`] for what
/// never is.
pub(crate) fn get(
    tree: &Tree,
    ino: Ino,
    name: &OsStr,
    tell: impl FnOnce(OfRoot) -> String,
) -> Result<String, FsError> {
    let name = user(name)?;
    let value = match tree.get(ino) {
        Some(Inode::Folder(_)) if ino == Ino::ROOT => {
            OF_ROOT.iter().find(|(known, _)| *known == name).map(|(_, it)| tell(*it))
        }
        Some(Inode::Folder(_)) | None => None,
        Some(Inode::Image(image)) => {
            let known = OF_IMAGES.iter().find(|(known, _)| *known == name);
            known.and_then(|(_, value)| value(tree, image))
        }
    };
    value.ok_or(FsError::NoAttribute)
}

/// The names of all attributes, each ended by a NUL as listxattr(2) has them.
pub(crate) fn list(tree: &Tree, ino: Ino) -> Vec<u8> {
    let names: Vec<&str> = match tree.get(ino) {
        Some(Inode::Folder(_)) if ino == Ino::ROOT => {
            OF_ROOT.iter().map(|(name, _)| *name).collect()
        }
        Some(Inode::Folder(_)) | None => Vec::new(),
        Some(Inode::Image(image)) => {
            let told = OF_IMAGES.iter().filter(|(_, value)| value(tree, image).is_some());
            told.map(|(name, _)| *name).collect()
        }
    };
    names.iter().flat_map(|name| name.bytes().chain([0])).collect()
}

/// Why an attribute cannot be set or removed: ours are read-only, and no others are kept.
pub(crate) fn refused(name: &OsStr) -> FsError {
    match user(name) {
        Ok(name) if name.starts_with(OURS) || name == MIME_TYPE => FsError::NotPermitted,
        Ok(_) | Err(_) => FsError::NotSupported,
    }
}

/// Of the other name spaces there is nothing: labels and ACLs are not kept here. libvirt goes on
/// without its label after EOPNOTSUPP, and after nothing else.
fn user(name: &OsStr) -> Result<&str, FsError> {
    let name = std::str::from_utf8(name.as_bytes()).ok();
    name.filter(|name| name.starts_with("user.")).ok_or(FsError::NotSupported)
}

/// What is not known is not there.
fn known(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// Of the pools with a file of it, the names.
fn pools(tree: &Tree, image: &ImageNode) -> String {
    let pools = image.volumes.iter().filter_map(|volume| tree.pool_of(*volume));
    let names: BTreeSet<&str> = pools.map(|pool| pool.name.as_str()).collect();
    names.into_iter().collect::<Vec<_>>().join(",")
}

/// Of the nodes that see a volume with a file of it, the names.
fn nodes(tree: &Tree, image: &ImageNode) -> String {
    let holders = image.volumes.iter().flat_map(|volume| tree.holders(*volume));
    let names: BTreeSet<&str> = holders.map(|node| node.name.as_str()).collect();
    names.into_iter().collect::<Vec<_>>().join(",")
}

fn volumes(image: &ImageNode) -> String {
    let ids: BTreeSet<String> = image.volumes.iter().map(ToString::to_string).collect();
    ids.into_iter().collect::<Vec<_>>().join(",")
}

/// As RFC 3339 has it, in UTC.
fn verified_at(image: &ImageNode) -> Option<String> {
    let since = Duration::from_secs(image.verified?.get().into());
    Some(humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string())
}

/// Whether it can be read now, as far as the catalogue knows.
fn state(tree: &Tree, image: &ImageNode) -> &'static str {
    let online = |volume| matches!(tree.live().volume(volume), Some(VolumeState::Online(_)));
    if image.volumes.iter().any(|volume| online(*volume)) { "ready" } else { "missing" }
}

/// ISO and OVA have registered or customary types (freedesktop.org's database has them, and those of
/// archives); sectors as a disk has them are "raw".
fn mime_type(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Iso => "application/x-iso9660-image",
        ImageFormat::Img => "application/x-raw-disk-image",
        ImageFormat::Ova => "application/ovf",
        ImageFormat::Qcow2 => "application/x-qemu-disk",
        ImageFormat::Vmdk => "application/x-vmdk-disk",
        ImageFormat::Vhd => "application/x-vhd-disk",
        ImageFormat::Vhdx => "application/x-vhdx-disk",
        ImageFormat::Vdi => "application/x-vdi-disk",
        ImageFormat::Gzip => "application/gzip",
        ImageFormat::Bzip2 => "application/x-bzip2",
        ImageFormat::Xz => "application/x-xz",
        ImageFormat::Zstd => "application/zstd",
        ImageFormat::SevenZip => "application/x-7z-compressed",
        ImageFormat::Zip => "application/zip",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_ours_is_told_from_what_is_read_only() {
        for (name, expected) in [
            ("user.isotope.id", FsError::NotPermitted),
            ("user.isotope.anything", FsError::NotPermitted),
            ("user.mime_type", FsError::NotPermitted),
            ("user.comment", FsError::NotSupported),
            ("security.selinux", FsError::NotSupported),
            ("trusted.overlay.opaque", FsError::NotSupported),
            ("system.posix_acl_access", FsError::NotSupported),
        ] {
            assert_eq!(refused(OsStr::new(name)), expected, "{name}");
        }
    }

    #[test]
    fn names_are_ended_by_a_nul_and_each_is_answered() {
        let mut names: Vec<_> = OF_IMAGES.iter().map(|(name, _)| *name).collect();
        names.extend(OF_ROOT.iter().map(|(name, _)| *name));
        for name in &names {
            assert_eq!(refused(OsStr::new(name)), FsError::NotPermitted, "{name}");
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), OF_IMAGES.len() + OF_ROOT.len());
    }
}
