//! What is this file? Its bytes are asked first, then databases of operating systems, then its
//! name. Bounded in time and memory for any bytes, and never fails: what is wrong with a file is
//! part of what is told of it. Opens no file, knows no volume.

mod databases;
mod fallback;
mod iso9660;
mod magic;
mod markers;
mod osinfo;
mod ova;
mod own_table;
mod pattern;
mod source;
pub mod sums;
mod udf;
mod verdict;
mod xml;

use std::fs::File;

use isotope_proto::facts::{FACTS_BYTES_MAX, Facts};
use isotope_proto::image::{ImageFormat, Os};
use isotope_proto::wire::encode_facts;

pub use self::databases::{Databases, directories};
pub use self::source::Source;
pub use self::verdict::rematch;

use self::fallback::identify_by_name;
use self::iso9660::Disc;
use self::markers::Tree;
use self::source::Reader;
use self::udf::Udf;

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub format: ImageFormat,
    /// The likeliest of the candidates.
    pub os: Os,
    pub facts: Facts,
}

/// Identifies an open file. It may be of any name: an upload is an image however it is called.
pub(crate) fn identify(
    file: &File,
    size_bytes: u64,
    name: &str,
    databases: &Databases,
) -> Identity {
    identify_source(file, size_bytes, name, databases)
}

/// What a file that cannot be opened is taken for.
pub(crate) fn by_name(name: &str) -> Identity {
    // An upload may have any name.
    let format = ImageFormat::of_name(name).unwrap_or(ImageFormat::Img);
    Identity { format, os: identify_by_name(name), facts: Facts::default() }
}

/// Identifies bytes, wherever they are.
#[must_use]
pub fn identify_source(
    source: &dyn Source,
    size_bytes: u64,
    name: &str,
    databases: &Databases,
) -> Identity {
    let reader = Reader::new(source, size_bytes);
    let mut facts = Facts::default();
    let by_bytes = look(&reader, &mut facts);
    let format = by_bytes.or_else(|| ImageFormat::of_name(name)).unwrap_or(ImageFormat::Img);
    if let Some(failure) = reader.failure() {
        facts.problem = Some(format!("it cannot be read: {failure}"));
    } else if facts.problem.is_none() {
        facts.problem = contradiction(&reader, by_bytes, ImageFormat::of_name(name));
    }
    let (os, mut facts) = rematch(facts, name, databases);
    fit(&mut facts);
    Identity { format, os, facts }
}

/// What the bytes are; none where they are nothing that is known here.
fn look(reader: &Reader<'_>, facts: &mut Facts) -> Option<ImageFormat> {
    if let Some((format, virtual_size_bytes)) = magic::disk_or_archive(reader) {
        facts.virtual_size_bytes = virtual_size_bytes;
        return Some(format);
    }
    facts.partitions = magic::partitions(reader.head());
    let (disc, udf) = (Disc::read(reader), Udf::read(reader));
    if disc.is_some() || udf.is_some() {
        look_at_disc(reader, disc, udf, facts);
        return Some(ImageFormat::Iso);
    }
    if let Some(archive) = ova::read(reader) {
        let missing = archive.missing.map(|file| format!("it lacks {file}, of which it speaks"));
        let cut_off = archive.ends_at.and_then(|end| truncated(end, reader.size_bytes()));
        facts.problem = cut_off.or(missing);
        facts.appliance = archive.appliance;
        return facts.appliance.is_some().then_some(ImageFormat::Ova);
    }
    if let Some((format, virtual_size_bytes)) = magic::fixed_vhd(reader) {
        facts.virtual_size_bytes = virtual_size_bytes;
        return Some(format);
    }
    facts.partitions.map(|_| ImageFormat::Img)
}

/// A disc may have both formats at once; its identifiers are then ISO 9660's, and its files where
/// Windows looks for them first, in UDF.
fn look_at_disc(reader: &Reader<'_>, disc: Option<Disc>, udf: Option<Udf>, facts: &mut Facts) {
    if let Some(udf) = &udf {
        facts.markers = markers::find(reader, &Tree::Udf(udf));
    }
    if let Some(disc) = &disc
        && facts.markers.is_empty()
    {
        facts.markers = markers::find(reader, &Tree::Iso9660(disc));
    }
    if let Some(disc) = disc {
        facts.volume_label = disc.label;
        facts.system_id = disc.system_id;
        facts.publisher_id = disc.publisher_id;
        facts.application_id = disc.application_id;
        facts.volume_size_bytes = disc.size_bytes;
        facts.extensions = disc.extensions;
        facts.boot = disc.boot;
    }
    if let Some(udf) = udf {
        facts.extensions.udf = true;
        if facts.volume_label.is_empty() {
            facts.volume_label = udf.label;
        }
        facts.volume_size_bytes = facts.volume_size_bytes.max(udf.size_bytes);
    }
    facts.problem = truncated(facts.volume_size_bytes, reader.size_bytes());
}

fn truncated(declared: u64, there: u64) -> Option<String> {
    (there < declared)
        .then(|| format!("truncated: {declared} bytes are declared, {there} are there"))
}

/// What a hypervisor would stumble over: bytes that are not what the name says.
fn contradiction(
    reader: &Reader<'_>,
    by_bytes: Option<ImageFormat>,
    by_name: Option<ImageFormat>,
) -> Option<String> {
    use ImageFormat::{Bzip2, Gzip, Img, Iso, Ova, SevenZip, Xz, Zip, Zstd};
    if reader.size_bytes() == 0 {
        return Some("it is empty".to_owned());
    }
    let called = by_name?;
    let text = match (by_bytes, called) {
        (Some(found), called) if found == called => return None,
        (Some(packed @ (Gzip | Bzip2 | Xz | Zstd | SevenZip | Zip)), _) => {
            format!("called .{called}, but is compressed ({packed}): unpack it before use")
        }
        // Any disk is called so; virtual machine monitors look at the bytes.
        (Some(_), Img) => return None,
        (Some(Img), _) => format!("called .{called}, but is a raw disk image"),
        (Some(Iso), _) => format!("called .{called}, but is an ISO image"),
        (Some(Ova), _) => format!("called .{called}, but is an OVA"),
        (Some(found), _) => format!("called .{called}, but is a {found} disk image"),
        (None, _) => match (magic::something_else(reader.head()), called) {
            (Some(something), _) => format!("called .{called}, but is {something}"),
            // A file system without a partition table is a raw image all the same.
            (None, Img) => return None,
            (None, Ova) => "called .ova, but no virtual machine is described in it".to_owned(),
            (None, _) => format!("called .{called}, but no file system of a disc is in it"),
        },
    };
    Some(text)
}

/// Leaves out what matters least, until the facts are no larger than they may be.
fn fit(facts: &mut Facts) {
    /// A text longer than this tells nobody more.
    const TEXT_BYTES_MAX: usize = 160;
    let cut = |text: &mut String| text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
    let ids = [
        &mut facts.volume_label,
        &mut facts.system_id,
        &mut facts.publisher_id,
        &mut facts.application_id,
        &mut facts.database,
    ];
    ids.into_iter().for_each(cut);
    facts.problem.iter_mut().for_each(cut);
    facts.markers.iter_mut().for_each(|it| cut(&mut it.text));
    facts.candidates.iter_mut().for_each(|it| cut(&mut it.name));
    if let Some(appliance) = &mut facts.appliance {
        cut(&mut appliance.name);
        cut(&mut appliance.os);
        appliance.disks.iter_mut().for_each(|it| cut(&mut it.name));
    }
    while encode_facts(facts).len() > FACTS_BYTES_MAX {
        let disks = facts.appliance.as_mut().map(|it| &mut it.disks);
        let left_out = match disks {
            Some(disks) if disks.len() > 1 => disks.pop().is_some(),
            _ if facts.candidates.len() > 1 => facts.candidates.pop().is_some(),
            _ => facts.markers.pop().is_some(),
        };
        if !left_out {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use isotope_proto::facts::{Appliance, Candidate, Disk, Marker, Source as From};

    use super::*;

    #[test]
    fn facts_are_cut_to_their_size_and_what_matters_most_stays() {
        let long = || "é".repeat(1000);
        let marker = || Marker { path: "x".to_owned(), text: long() };
        let candidate = |at: u8| Candidate {
            name: format!("{at}{}", long()),
            os: Os::unknown(),
            source: From::Osinfo,
        };
        let mut facts = Facts {
            volume_label: long(),
            system_id: long(),
            publisher_id: long(),
            application_id: long(),
            appliance: Some(Appliance {
                name: long(),
                os: long(),
                memory_bytes: u64::MAX,
                disks: vec![Disk { name: long(), capacity_bytes: u64::MAX }; 16],
            }),
            markers: (0..4).map(|_| marker()).collect(),
            candidates: (0..8).map(candidate).collect(),
            problem: Some(long()),
            ..Facts::default()
        };
        fit(&mut facts);
        assert!(encode_facts(&facts).len() <= FACTS_BYTES_MAX);
        assert!(facts.candidates[0].name.starts_with('0') && facts.problem.is_some());
        let mut small = Facts { volume_label: "a".to_owned(), ..Facts::default() };
        fit(&mut small);
        assert_eq!(small.volume_label, "a");
    }

    #[test]
    fn names_and_bytes_that_contradict_each_other() {
        let check = |bytes: &[u8], name: &str, format: ImageFormat, problem: &str| {
            let found = identify_source(&bytes, bytes.len() as u64, name, &Databases::none());
            let said = found.facts.problem.unwrap_or_default();
            assert_eq!((found.format, &*said), (format, problem), "{name}");
        };
        check(b"", "a.iso", ImageFormat::Iso, "it is empty");
        check(b"", "a", ImageFormat::Img, "it is empty");
        check(b"x", "a", ImageFormat::Img, "");
        check(b"x", "a.img", ImageFormat::Img, "");
        check(
            b"x",
            "a.iso",
            ImageFormat::Iso,
            "called .iso, but no file system of a disc is in it",
        );
        let no_machine = "called .ova, but no virtual machine is described in it";
        check(b"x", "a.ova", ImageFormat::Ova, no_machine);
        let packed = "called .iso, but is compressed (xz): unpack it before use";
        check(b"\xfd7zXZ\0", "a.iso", ImageFormat::Xz, packed);
        check(b"\xfd7zXZ\0", "a.iso.xz", ImageFormat::Xz, "");
        let page = "called .iso, but is a web page: its download went wrong; fetch it again";
        check(b"<html>", "a.iso", ImageFormat::Iso, page);
        let disk = "called .ova, but is a qcow2 disk image";
        check(b"QFI\xfb\0\0\0\x03", "a.ova", ImageFormat::Qcow2, disk);
        check(b"QFI\xfb\0\0\0\x03", "a.img", ImageFormat::Qcow2, "");
    }

    /// Its size is known, its bytes are not.
    struct BadSectors;

    impl Source for BadSectors {
        fn read_at(&self, _: &mut [u8], _: u64) -> std::io::Result<usize> {
            Err(std::io::Error::other("a bad sector"))
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_told_of() {
        let found = identify_source(&BadSectors, 9, "debian-12.iso", &Databases::none());
        assert_eq!(found.facts.problem.as_deref(), Some("it cannot be read: a bad sector"));
        assert_eq!((found.format, &*found.os.distribution), (ImageFormat::Iso, "debian"));
    }
}
