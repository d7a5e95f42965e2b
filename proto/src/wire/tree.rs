//! Entries, folders, images, places.

use prost::Message as _;

use super::facts::{facts_in, facts_out};
use super::hashes::hashes_in;
use super::{Malformed, each, required, time_in, time_out};
use crate::id::{ContentId, EntryId, ImageId, Ino, PoolId, VolumeId};
use crate::image::{Checked, Image, ImageFormat, Os, OsFamily, Replica, Stamp};
use crate::name::{EntryName, VolumePath};
use crate::pb;
use crate::tree::{Entry, Folder, FolderRef, Place, RenameMode};

impl From<Entry> for pb::Entry {
    fn from(entry: Entry) -> Self {
        Self {
            id: entry.id.0,
            parent_ino: entry.parent.0,
            name: entry.name.to_string(),
            ino: entry.ino.0,
        }
    }
}

impl TryFrom<pb::Entry> for Entry {
    type Error = Malformed;
    fn try_from(entry: pb::Entry) -> Result<Self, Malformed> {
        Ok(Self {
            id: EntryId(entry.id),
            parent: Ino(entry.parent_ino),
            name: EntryName::parse(&entry.name)?,
            ino: Ino(entry.ino),
        })
    }
}

impl From<Folder> for pb::Folder {
    fn from(folder: Folder) -> Self {
        Self {
            ino: folder.ino.0,
            mode: folder.mode,
            create_time: time_out(folder.created),
            modify_time: time_out(folder.modified),
            change_time: time_out(folder.changed),
            default_pool_id: folder.default_pool.map(Into::into),
        }
    }
}

impl TryFrom<pb::Folder> for Folder {
    type Error = Malformed;
    fn try_from(folder: pb::Folder) -> Result<Self, Malformed> {
        Ok(Self {
            ino: Ino(folder.ino),
            mode: folder.mode & 0o7777,
            created: time_in("folder.create_time", folder.create_time)?,
            modified: time_in("folder.modify_time", folder.modify_time)?,
            changed: time_in("folder.change_time", folder.change_time)?,
            default_pool: folder.default_pool_id.map(|id| PoolId::try_from(&*id)).transpose()?,
        })
    }
}

impl From<Stamp> for pb::Stamp {
    fn from(stamp: Stamp) -> Self {
        Self { inode: stamp.inode, size_bytes: stamp.size_bytes, mtime_ns: stamp.mtime_ns }
    }
}

impl From<pb::Stamp> for Stamp {
    fn from(stamp: pb::Stamp) -> Self {
        Self { inode: stamp.inode, size_bytes: stamp.size_bytes, mtime_ns: stamp.mtime_ns }
    }
}

impl From<Replica> for pb::Replica {
    fn from(replica: Replica) -> Self {
        Self {
            volume_id: replica.volume.into(),
            path: replica.path.to_string(),
            stamp: Some(replica.stamp.into()),
            checked: replica.checked.map(Into::into),
        }
    }
}

impl TryFrom<pb::Replica> for Replica {
    type Error = Malformed;
    fn try_from(replica: pb::Replica) -> Result<Self, Malformed> {
        Ok(Self {
            volume: VolumeId::try_from(&*replica.volume_id)?,
            path: VolumePath::parse(&replica.path)?,
            stamp: required("replica.stamp", replica.stamp)?.into(),
            checked: replica.checked.map(Checked::try_from).transpose()?,
        })
    }
}

impl From<ImageFormat> for pb::ImageFormat {
    fn from(format: ImageFormat) -> Self {
        match format {
            ImageFormat::Iso => Self::Iso,
            ImageFormat::Img => Self::Img,
            ImageFormat::Ova => Self::Ova,
            ImageFormat::Qcow2 => Self::Qcow2,
            ImageFormat::Vmdk => Self::Vmdk,
            ImageFormat::Vhd => Self::Vhd,
            ImageFormat::Vhdx => Self::Vhdx,
            ImageFormat::Vdi => Self::Vdi,
            ImageFormat::Gzip => Self::Gzip,
            ImageFormat::Bzip2 => Self::Bzip2,
            ImageFormat::Xz => Self::Xz,
            ImageFormat::Zstd => Self::Zstd,
            ImageFormat::SevenZip => Self::SevenZip,
            ImageFormat::Zip => Self::Zip,
        }
    }
}

pub(super) fn format_in(value: i32) -> Result<ImageFormat, Malformed> {
    match pb::ImageFormat::try_from(value) {
        Ok(pb::ImageFormat::Iso) => Ok(ImageFormat::Iso),
        Ok(pb::ImageFormat::Img) => Ok(ImageFormat::Img),
        Ok(pb::ImageFormat::Ova) => Ok(ImageFormat::Ova),
        Ok(pb::ImageFormat::Qcow2) => Ok(ImageFormat::Qcow2),
        Ok(pb::ImageFormat::Vmdk) => Ok(ImageFormat::Vmdk),
        Ok(pb::ImageFormat::Vhd) => Ok(ImageFormat::Vhd),
        Ok(pb::ImageFormat::Vhdx) => Ok(ImageFormat::Vhdx),
        Ok(pb::ImageFormat::Vdi) => Ok(ImageFormat::Vdi),
        Ok(pb::ImageFormat::Gzip) => Ok(ImageFormat::Gzip),
        Ok(pb::ImageFormat::Bzip2) => Ok(ImageFormat::Bzip2),
        Ok(pb::ImageFormat::Xz) => Ok(ImageFormat::Xz),
        Ok(pb::ImageFormat::Zstd) => Ok(ImageFormat::Zstd),
        Ok(pb::ImageFormat::SevenZip) => Ok(ImageFormat::SevenZip),
        Ok(pb::ImageFormat::Zip) => Ok(ImageFormat::Zip),
        Ok(pb::ImageFormat::Unspecified) | Err(_) => {
            Err(Malformed::Unknown { field: "format", value: value.into() })
        }
    }
}

impl From<Os> for pb::Os {
    fn from(os: Os) -> Self {
        let family = match os.family {
            OsFamily::Windows => pb::OsFamily::Windows,
            OsFamily::Linux => pb::OsFamily::Linux,
            OsFamily::Other => pb::OsFamily::Other,
        };
        Self {
            family: family.into(),
            distribution: os.distribution,
            version: os.version,
            arch: os.arch,
        }
    }
}

/// A family that a newer peer knows and we do not is `Other`: it only chooses a default folder.
impl From<pb::Os> for Os {
    fn from(os: pb::Os) -> Self {
        let family = match pb::OsFamily::try_from(os.family) {
            Ok(pb::OsFamily::Windows) => OsFamily::Windows,
            Ok(pb::OsFamily::Linux) => OsFamily::Linux,
            Ok(pb::OsFamily::Other | pb::OsFamily::Unspecified) | Err(_) => OsFamily::Other,
        };
        Self { family, distribution: os.distribution, version: os.version, arch: os.arch }
    }
}

impl From<Image> for pb::Image {
    fn from(image: Image) -> Self {
        Self {
            id: image.id.into(),
            ino: image.ino.0,
            content_id: image.content.into(),
            filename: image.filename,
            size_bytes: image.size_bytes,
            format: pb::ImageFormat::from(image.format).into(),
            os: Some(image.os.into()),
            flat_names: image.flat_names.iter().map(ToString::to_string).collect(),
            facts: facts_out(image.facts),
            sha256: image.hashes.map(|it| it.sha256.as_bytes().to_vec()).unwrap_or_default(),
            blake3: image.hashes.map(|it| it.blake3.as_bytes().to_vec()).unwrap_or_default(),
            mode: image.mode,
            create_time: time_out(image.created),
            modify_time: time_out(image.modified),
            change_time: time_out(image.changed),
            replicas: image.replicas.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::Image> for Image {
    type Error = Malformed;
    fn try_from(image: pb::Image) -> Result<Self, Malformed> {
        Ok(Self {
            id: ImageId::try_from(&*image.id)?,
            ino: Ino(image.ino),
            hashes: hashes_in(&image.sha256, &image.blake3)?,
            content: ContentId::try_from(&*image.content_id)?,
            filename: image.filename,
            size_bytes: image.size_bytes,
            format: format_in(image.format)?,
            os: required("image.os", image.os)?.into(),
            flat_names: image
                .flat_names
                .iter()
                .map(|name| EntryName::parse(name))
                .collect::<Result<_, _>>()?,
            facts: facts_in(image.facts),
            mode: image.mode & 0o7777,
            created: time_in("image.create_time", image.create_time)?,
            modified: time_in("image.modify_time", image.modify_time)?,
            changed: time_in("image.change_time", image.change_time)?,
            replicas: each(image.replicas)?,
        })
    }
}

/// An image as bytes, for a store that keeps the record whole.
#[must_use]
pub fn encode_image(image: &Image) -> Vec<u8> {
    pb::Image::from(image.clone()).encode_to_vec()
}

/// The inverse of [`encode_image`].
pub fn decode_image(bytes: &[u8]) -> Result<Image, Malformed> {
    let image =
        pb::Image::decode(bytes).map_err(|error| Malformed::Undecodable(error.to_string()))?;
    Image::try_from(image)
}

impl From<FolderRef> for pb::FolderRef {
    fn from(folder: FolderRef) -> Self {
        use pb::folder_ref::Folder as F;
        let folder = match folder {
            FolderRef::Ino(ino) => F::Ino(ino.0),
            FolderRef::Path(path) => F::Path(path.to_string()),
        };
        Self { folder: Some(folder) }
    }
}

impl TryFrom<pb::FolderRef> for FolderRef {
    type Error = Malformed;
    fn try_from(folder: pb::FolderRef) -> Result<Self, Malformed> {
        use pb::folder_ref::Folder as F;
        Ok(match required("folder", folder.folder)? {
            F::Ino(ino) => Self::Ino(Ino(ino)),
            F::Path(path) => Self::Path(path.parse()?),
        })
    }
}

impl TryFrom<Option<pb::FolderRef>> for FolderRef {
    type Error = Malformed;
    fn try_from(folder: Option<pb::FolderRef>) -> Result<Self, Malformed> {
        required("folder", folder)?.try_into()
    }
}

impl From<Place> for pb::Place {
    fn from(place: Place) -> Self {
        Self { folder: Some(place.folder.into()), name: place.name.to_string() }
    }
}

impl TryFrom<pb::Place> for Place {
    type Error = Malformed;
    fn try_from(place: pb::Place) -> Result<Self, Malformed> {
        Ok(Self { folder: place.folder.try_into()?, name: EntryName::parse(&place.name)? })
    }
}

impl TryFrom<Option<pb::Place>> for Place {
    type Error = Malformed;
    fn try_from(place: Option<pb::Place>) -> Result<Self, Malformed> {
        required("place", place)?.try_into()
    }
}

impl From<RenameMode> for pb::RenameMode {
    fn from(mode: RenameMode) -> Self {
        match mode {
            RenameMode::Replace => Self::Unspecified,
            RenameMode::NoReplace => Self::NoReplace,
            RenameMode::Exchange => Self::Exchange,
        }
    }
}

impl From<pb::RenameMode> for RenameMode {
    fn from(mode: pb::RenameMode) -> Self {
        match mode {
            pb::RenameMode::Unspecified => Self::Replace,
            pb::RenameMode::NoReplace => Self::NoReplace,
            pb::RenameMode::Exchange => Self::Exchange,
        }
    }
}
