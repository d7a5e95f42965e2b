//! What the bytes of an image say about it. Texts are as the image has them, without padding: they
//! come from strangers and are escaped where they are shown.

use std::fmt;

use crate::image::Os;

/// Most bytes of [`Facts`] as they travel and are stored: a report has 500 files and each may be
/// told twice in one change, which has to fit into one message.
pub const FACTS_BYTES_MAX: usize = 2048;

/// What is known of an image from its bytes, and what was concluded. Empty, 0 or false where
/// nothing is said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Facts {
    /// The volume identifier (ECMA-119 §8.4.7), or UDF's logical volume identifier.
    pub volume_label: String,
    pub system_id: String,
    pub publisher_id: String,
    pub application_id: String,
    /// Bytes that the file system on it claims to have.
    pub volume_size_bytes: u64,
    pub extensions: Extensions,
    pub boot: Boot,
    /// What a disk's firmware sees in the same bytes: set on hybrid ISOs and raw images.
    pub partitions: Option<PartitionTable>,
    /// Size of the disk that a virtual machine sees, of an image in a disk format.
    pub virtual_size_bytes: u64,
    pub appliance: Option<Appliance>,
    /// Files found on it that say what it is.
    pub markers: Vec<Marker>,
    /// Operating systems it may be, the likeliest first.
    pub candidates: Vec<Candidate>,
    /// Version of the databases that the candidates are from.
    pub database: String,
    /// Why this image may be of no use, in words for people.
    pub problem: Option<String>,
}

/// How file names are kept beside ISO 9660's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Extensions {
    pub joliet: bool,
    pub rock_ridge: bool,
    pub udf: bool,
}

/// Which firmware an optical disc boots from, by its El Torito catalogue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Boot {
    pub bios: bool,
    pub uefi: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PartitionTable {
    Mbr,
    Gpt,
}

impl fmt::Display for PartitionTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mbr => "mbr",
            Self::Gpt => "gpt",
        })
    }
}

/// What an OVA says of its virtual machine (OVF, DSP0243).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Appliance {
    pub name: String,
    pub os: String,
    pub memory_bytes: u64,
    pub disks: Vec<Disk>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Disk {
    pub name: String,
    pub capacity_bytes: u64,
}

/// A file that is there on certain systems' media only, or whose text names the system.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Marker {
    pub path: String,
    /// What of its text matters; empty where its presence says it.
    pub text: String,
}

/// An operating system that an image may be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Candidate {
    /// In the words of its source: `Debian 11`.
    pub name: String,
    pub os: Os,
    pub source: Source,
}

/// Where a candidate is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// The machine's osinfo-db.
    Osinfo,
    /// Isotope's own table.
    OwnTable,
    MarkerFile,
    /// The description of an appliance.
    Appliance,
    FileName,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Osinfo => "osinfo",
            Self::OwnTable => "own-table",
            Self::MarkerFile => "marker-file",
            Self::Appliance => "appliance",
            Self::FileName => "file-name",
        })
    }
}
