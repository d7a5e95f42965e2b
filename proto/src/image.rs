//! Images and where their bytes lie.

use std::fmt;

use crate::digest::{Blake3, Sha256};
use crate::facts::Facts;
use crate::id::{ContentId, ImageId, Ino, VolumeId};
use crate::name::{EntryName, VolumePath};
use crate::time::Timestamp;

/// What "unchanged" means for a file in a volume. The ctime is left out: renames of our own,
/// libvirt's `chown` and SELinux relabels move it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stamp {
    pub inode: u64,
    pub size_bytes: u64,
    /// Nanoseconds since the epoch, as the volume's file system keeps them.
    pub mtime_ns: i64,
}

/// One file on one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    pub volume: VolumeId,
    pub path: VolumePath,
    pub stamp: Stamp,
    /// What reading it whole found, once it was.
    pub checked: Option<Checked>,
}

impl Replica {
    /// Its bytes are known not to be the image's: nobody reads them.
    #[must_use]
    pub fn is_rotten(&self) -> bool {
        self.checked.as_ref().is_some_and(|checked| checked.rotten)
    }
}

/// What reading a file whole found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// When, by the clock of its host.
    pub read: Timestamp,
    /// The stamp is as it was, and the bytes are others.
    pub rotten: bool,
    /// What a file of published checksums beside it says.
    pub published: Option<Published>,
}

/// A published checksum, compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The file that holds it: `SHA256SUMS`, for instance.
    pub file: String,
    pub agrees: bool,
}

/// The hashes of a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hashes {
    pub sha256: Sha256,
    pub blake3: Blake3,
}

/// What a file is by its bytes, whatever it is called; where they say nothing, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageFormat {
    /// ISO 9660 or UDF.
    Iso,
    /// Raw: sectors as a disk has them.
    Img,
    Ova,
    Qcow2,
    Vmdk,
    Vhd,
    Vhdx,
    Vdi,
    Gzip,
    Bzip2,
    Xz,
    Zstd,
    SevenZip,
    Zip,
}

impl ImageFormat {
    /// Which names are images', by extension, whatever its case; `None` for what is no image.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        let (stem, extension) = name.rsplit_once('.')?;
        if stem.is_empty() {
            return None;
        }
        match extension.to_ascii_lowercase().as_str() {
            "iso" => Some(Self::Iso),
            "img" => Some(Self::Img),
            "ova" => Some(Self::Ova),
            _ => None,
        }
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Iso => "iso",
            Self::Img => "img",
            Self::Ova => "ova",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
            Self::Vdi => "vdi",
            Self::Gzip => "gz",
            Self::Bzip2 => "bz2",
            Self::Xz => "xz",
            Self::Zstd => "zst",
            Self::SevenZip => "7z",
            Self::Zip => "zip",
        })
    }
}

/// Decides the default folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OsFamily {
    Windows,
    Linux,
    Other,
}

impl fmt::Display for OsFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Windows => "windows",
            Self::Linux => "linux",
            Self::Other => "other",
        })
    }
}

/// The operating system on an image, as far as known; empty texts where it is not.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Os {
    pub family: OsFamily,
    pub distribution: String,
    pub version: String,
    pub arch: String,
}

impl Os {
    /// Nothing is known.
    #[must_use]
    pub fn unknown() -> Self {
        Self {
            family: OsFamily::Other,
            distribution: String::new(),
            version: String::new(),
            arch: String::new(),
        }
    }
}

/// An immutable content with an id, one inode number and metadata. Its bytes never change: a file
/// found changed becomes a new image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    pub id: ImageId,
    pub ino: Ino,
    pub content: ContentId,
    /// Once its bytes have been read.
    pub hashes: Option<Hashes>,
    /// The name of its file when it was found.
    pub filename: String,
    pub size_bytes: u64,
    pub format: ImageFormat,
    pub os: Os,
    /// Under these it is found in the flat views, for as long as it is in the library: its own,
    /// then those of images that became one with it.
    pub flat_names: Vec<EntryName>,
    /// What its bytes say; none where they have not been looked at.
    pub facts: Option<Box<Facts>>,
    /// Permission bits, `0o7777` at most.
    pub mode: u32,
    pub created: Timestamp,
    pub modified: Timestamp,
    pub changed: Timestamp,
    pub replicas: Vec<Replica>,
}
