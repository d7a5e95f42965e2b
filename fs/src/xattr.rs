//! Extended attributes: one table of what a mount tells about its files, and what it answers to
//! whoever asks for others. Pure, over the tree; all of them are read-only.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use isotope_proto::cluster::VolumeState;
use isotope_proto::id::Ino;

use crate::error::FsError;
use crate::health::FEED_ATTRIBUTE;
use crate::tree::{ImageNode, Inode, Tree};

/// The name under which desktops and web servers look for it (freedesktop.org, shared MIME-info
/// database, "Storing the MIME type using Extended Attributes").
const MIME_TYPE: &str = "user.mime_type";
const OURS: &str = "user.isotope.";

/// Makes an attribute's value; none where the image has none.
type Value = fn(&Tree, Ino, &ImageNode) -> Option<String>;

/// The attributes of an image, in the order in which they are listed.
const OF_IMAGES: &[(&str, Value)] = &[
    ("user.isotope.id", |_, _, image| Some(image.id.to_string())),
    ("user.isotope.nodes", |tree, _, image| Some(nodes(tree, image))),
    ("user.isotope.state", |tree, _, image| Some(state(tree, image).to_owned())),
    ("user.isotope.volumes", |_, _, image| Some(volumes(image))),
    (MIME_TYPE, |tree, ino, _| {
        let (_, name) = tree.name_of(ino)?;
        Some(mime_type(name.as_str()).to_owned())
    }),
];

/// The value of an attribute; `feed` is what the root tells of the feed. A file that is being
/// written is not in the tree, and has none.
///
/// # Errors
/// [`FsError::NoAttribute`] for what could be there and is not, [`FsError::NotSupported`] for what
/// never is.
pub(crate) fn get(
    tree: &Tree,
    ino: Ino,
    name: &OsStr,
    feed: impl FnOnce() -> String,
) -> Result<String, FsError> {
    let name = user(name)?;
    let value = match tree.get(ino) {
        Some(Inode::Folder(_)) if ino == Ino::ROOT && name == FEED_ATTRIBUTE => Some(feed()),
        Some(Inode::Folder(_)) | None => None,
        Some(Inode::Image(image)) => {
            let known = OF_IMAGES.iter().find(|(known, _)| *known == name);
            known.and_then(|(_, value)| value(tree, ino, image))
        }
    };
    value.ok_or(FsError::NoAttribute)
}

/// The names of all attributes, each ended by a NUL as listxattr(2) has them.
pub(crate) fn list(tree: &Tree, ino: Ino) -> Vec<u8> {
    let names: Vec<&str> = match tree.get(ino) {
        Some(Inode::Folder(_)) if ino == Ino::ROOT => vec![FEED_ATTRIBUTE],
        Some(Inode::Folder(_)) | None => Vec::new(),
        Some(Inode::Image(_)) => OF_IMAGES.iter().map(|(name, _)| *name).collect(),
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

/// Whether it can be read now, as far as the catalogue knows.
fn state(tree: &Tree, image: &ImageNode) -> &'static str {
    let online = |volume| matches!(tree.live().volume(volume), Some(VolumeState::Online(_)));
    if image.volumes.iter().any(|volume| online(*volume)) { "ready" } else { "missing" }
}

/// By the name's extension. ISO and OVA have registered or customary types (freedesktop.org's
/// database has them); sectors as a disk has them are "raw".
fn mime_type(name: &str) -> &'static str {
    let extension = name.rsplit_once('.').map(|(_, it)| it.to_ascii_lowercase());
    match extension.as_deref() {
        Some("iso") => "application/x-iso9660-image",
        Some("img" | "raw") => "application/x-raw-disk-image",
        Some("ova") => "application/ovf",
        Some("qcow2") => "application/x-qemu-disk",
        Some("vmdk") => "application/x-vmdk-disk",
        Some("vhd") => "application/x-vhd-disk",
        Some("vhdx") => "application/x-vhdx-disk",
        Some("vdi") => "application/x-vdi-disk",
        Some(_) | None => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_go_by_the_name() {
        for (name, expected) in [
            ("a.iso", "application/x-iso9660-image"),
            ("A.ISO", "application/x-iso9660-image"),
            ("disk.img", "application/x-raw-disk-image"),
            ("machine.ova", "application/ovf"),
            ("disk.qcow2", "application/x-qemu-disk"),
            ("iso", "application/octet-stream"),
            ("notes.txt", "application/octet-stream"),
        ] {
            assert_eq!(mime_type(name), expected, "{name}");
        }
    }

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
        names.push(FEED_ATTRIBUTE);
        for name in &names {
            assert_eq!(refused(OsStr::new(name)), FsError::NotPermitted, "{name}");
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), OF_IMAGES.len() + 1);
    }
}
