//! An OVA: a tar archive (POSIX.1-1988 ustar) whose first member describes a virtual machine in OVF
//! (DMTF DSP0243). Reads headers and that one member; unpacks nothing.

use isotope_proto::facts::{Appliance, Disk};

use super::source::{PIECE_BYTES_MAX, Reader, has, padded_text};
use super::xml::{self, Element, is_at};

/// Headers and sizes count in these.
const BLOCK: u64 = 512;
/// Members looked at: a description, its manifest and certificate, and the disks.
const MEMBERS_MAX: usize = 32;
/// Disks kept of one machine.
const DISKS_MAX: usize = 16;
/// Bytes of the longest name kept; what is longer says no more.
const NAME_BYTES_MAX: usize = 160;

/// What an archive holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Archive {
    /// None where no description was found.
    pub(super) appliance: Option<Appliance>,
    /// Set where a member goes on behind the end: where it would end.
    pub(super) ends_at: Option<u64>,
    /// A file that the description speaks of and that is not there.
    pub(super) missing: Option<String>,
}

/// None where the bytes are no tar archive.
pub(super) fn read(reader: &Reader<'_>) -> Option<Archive> {
    if !has(reader.head(), 257, b"ustar") {
        return None;
    }
    let mut archive = Archive::default();
    let (mut wanted, mut names) = (Vec::new(), Vec::new());
    let mut at = 0;
    for _ in 0..MEMBERS_MAX {
        let header = reader.read(at, BLOCK);
        let Some(member) = Member::of(&header) else { break };
        let data = at.saturating_add(BLOCK);
        let Some(end) = data.checked_add(member.size_bytes) else { break };
        if end > reader.size_bytes() {
            archive.ends_at = Some(end);
            break;
        }
        if archive.appliance.is_none() && member.is_description() {
            let bytes = reader.read(data, member.size_bytes.min(PIECE_BYTES_MAX));
            let (appliance, files) = describe(&String::from_utf8_lossy(&bytes));
            archive.appliance = Some(appliance);
            wanted = files;
        }
        names.push(member.name);
        let Some(next) = end.checked_next_multiple_of(BLOCK) else { break };
        at = next;
    }
    if archive.ends_at.is_none() && names.len() < MEMBERS_MAX {
        // A large file may be there in pieces, a number behind the name of each.
        let there = |file: &String| names.iter().any(|name| name.starts_with(&**file));
        archive.missing = wanted.into_iter().find(|file| !there(file));
    }
    Some(archive)
}

struct Member {
    name: String,
    size_bytes: u64,
    is_file: bool,
}

impl Member {
    /// None for the zeros that end an archive, and for what is no header by its checksum.
    fn of(header: &[u8]) -> Option<Self> {
        let header: &[u8; 512] = header.try_into().ok()?;
        let field = |byte: usize| if (148..156).contains(&byte) { b' ' } else { header[byte] };
        let sum: u64 = (0..512).map(|at| u64::from(field(at))).sum();
        if number(&header[148..156])? != sum {
            return None;
        }
        Some(Self {
            name: padded_text(&header[..100]),
            size_bytes: number(&header[124..136])?,
            is_file: matches!(header[156], 0 | b'0' | b'7'),
        })
    }

    fn is_description(&self) -> bool {
        let (is_file, name) = (self.is_file, self.name.as_bytes());
        let extension = name.len().checked_sub(4).map(|at| &name[at..]);
        is_file && extension.is_some_and(|it| it.eq_ignore_ascii_case(b".ovf"))
    }
}

/// Octal digits, or with the first bit set a binary number, as GNU tar has it for 8 GiB and more.
fn number(field: &[u8]) -> Option<u64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        let (high, low) = rest.split_at(rest.len().checked_sub(8)?);
        let fits = first == 0x80 && high.iter().all(|&byte| byte == 0);
        return fits.then(|| low.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)));
    }
    let text = std::str::from_utf8(field).ok()?;
    u64::from_str_radix(text.trim_matches([' ', '\0']), 8).ok()
}

/// What an OVF envelope says of its first machine, and the names of the files beside it.
fn describe(ovf: &str) -> (Appliance, Vec<String>) {
    const SYSTEM: [&str; 2] = ["Envelope", "VirtualSystem"];
    let mut it = Appliance::default();
    // Of what may stand there several times, the first counts.
    let set = |field: &mut String, text: &str| {
        if field.is_empty() {
            *field = text[..text.floor_char_boundary(NAME_BYTES_MAX)].to_owned();
        }
    };
    let (mut id, mut files, mut hardware) = (String::new(), Vec::new(), Hardware::default());
    xml::walk(ovf, |path| {
        let Some(last) = path.last() else { return };
        let (outer, inner) = path.split_at(path.len().min(SYSTEM.len()));
        let within = |names: &[&str]| is_at(outer, &SYSTEM) && is_at(inner, names);
        let number = |name| last.attribute(name).and_then(|it| it.parse::<u64>().ok());
        if is_at(path, &["Envelope", "References", "File"]) && files.len() < DISKS_MAX {
            let attribute = |name| last.attribute(name).unwrap_or_default().to_owned();
            files.push((attribute("id"), attribute("href")));
        } else if is_at(path, &["Envelope", "DiskSection", "Disk"]) && it.disks.len() < DISKS_MAX {
            let capacity = number("capacity").unwrap_or(0);
            let unit = last.attribute("capacityAllocationUnits").map_or(Some(1), unit);
            let file = last.attribute("fileRef").or(last.attribute("diskId")).unwrap_or_default();
            let mut disk = Disk { name: String::new(), ..Disk::default() };
            set(&mut disk.name, file);
            disk.capacity_bytes = capacity.saturating_mul(unit.unwrap_or(1));
            it.disks.push(disk);
        } else if within(&[]) {
            set(&mut id, last.attribute("id").unwrap_or_default());
        } else if within(&["Name"]) {
            set(&mut it.name, last.text());
        } else if within(&["OperatingSystemSection", "Description"]) {
            set(&mut it.os, last.text());
        } else if within(&["VirtualHardwareSection", "Item"]) {
            hardware.end_item(&mut it.memory_bytes);
        } else if within(&["VirtualHardwareSection", "Item", &last.name]) {
            hardware.take(last);
        }
    });
    set(&mut it.name, &id);
    for disk in &mut it.disks {
        if let Some((_, href)) = files.iter().find(|(id, _)| *id == disk.name) {
            disk.name = href[..href.floor_char_boundary(NAME_BYTES_MAX)].to_owned();
        }
    }
    let files = files.into_iter().map(|(_, href)| href);
    (it, files.filter(|href| !href.is_empty() && !href.contains("://")).collect())
}

/// One `Item` of virtual hardware (CIM_ResourceAllocationSettingData), while it is read.
#[derive(Default)]
struct Hardware {
    kind: String,
    quantity: u64,
    unit: Option<u64>,
}

impl Hardware {
    fn take(&mut self, element: &Element) {
        match &*element.name {
            "ResourceType" => element.text().clone_into(&mut self.kind),
            "VirtualQuantity" => self.quantity = element.text().parse().unwrap_or(0),
            "AllocationUnits" => self.unit = unit(element.text()),
            _ => {}
        }
    }

    fn end_item(&mut self, memory_bytes: &mut u64) {
        /// "Memory" among the resource types.
        const MEMORY: &str = "4";
        let it = std::mem::take(self);
        if it.kind == MEMORY && *memory_bytes == 0 {
            *memory_bytes = it.quantity.saturating_mul(it.unit.unwrap_or(1 << 20));
        }
    }
}

/// Bytes of a unit as DSP0004 writes it, `byte * 2^20`, or as everybody did before it.
fn unit(text: &str) -> Option<u64> {
    let text = text.to_ascii_lowercase().replace(' ', "");
    match &*text {
        "byte" | "bytes" => Some(1),
        "kilobytes" | "kb" => Some(1 << 10),
        "megabytes" | "mb" => Some(1 << 20),
        "gigabytes" | "gb" => Some(1 << 30),
        _ => {
            let (base, exponent) = text.strip_prefix("byte*")?.split_once('^')?;
            let (base, exponent) = (base.parse::<u64>().ok()?, exponent.parse().ok()?);
            base.checked_pow(exponent)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OVF: &str = r#"<?xml version="1.0"?>
        <Envelope xmlns:ovf="o" xmlns:rasd="r">
         <References><File ovf:id="file1" ovf:href="web-disk1.vmdk" ovf:size="9"/></References>
         <DiskSection><Info/>
          <Disk ovf:capacity="10" ovf:capacityAllocationUnits="byte * 2^30" ovf:diskId="d1"
                ovf:fileRef="file1"/>
          <Disk ovf:capacity="512" ovf:diskId="d2"/>
         </DiskSection>
         <VirtualSystem ovf:id="web-id">
          <Name>web &amp; more</Name>
          <OperatingSystemSection><Description>Debian GNU/Linux 11 (64-bit)</Description>
          </OperatingSystemSection>
          <VirtualHardwareSection>
           <Item><rasd:ResourceType>3</rasd:ResourceType>
                 <rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
           <Item><rasd:AllocationUnits>MegaBytes</rasd:AllocationUnits>
                 <rasd:ResourceType>4</rasd:ResourceType>
                 <rasd:VirtualQuantity>2048</rasd:VirtualQuantity></Item>
          </VirtualHardwareSection>
         </VirtualSystem></Envelope>"#;

    #[test]
    fn a_description_names_its_machine() {
        let (it, files) = describe(OVF);
        assert_eq!(files, ["web-disk1.vmdk"]);
        assert_eq!([&*it.name, &it.os], ["web & more", "Debian GNU/Linux 11 (64-bit)"]);
        assert_eq!(it.memory_bytes, 2 << 30);
        let disk = |name: &str, capacity_bytes| Disk { name: name.to_owned(), capacity_bytes };
        assert_eq!(it.disks, [disk("web-disk1.vmdk", 10 << 30), disk("d2", 512)]);
        assert_eq!(describe(&OVF.replace("Name", "Other")).0.name, "web-id");
        assert_eq!(describe("nothing").0, Appliance::default());
    }

    #[test]
    fn units_of_memory_and_disks() {
        let check = |text: &str, expected| assert_eq!(unit(text), expected, "{text}");
        check("byte * 2^20", Some(1 << 20));
        check("byte*10^3", Some(1000));
        check("MegaBytes", Some(1 << 20));
        check("byte * 2^64", None);
        check("byte * x^2", None);
        check("", None);
    }

    #[test]
    fn sizes_of_members() {
        let check = |field: &[u8], expected| assert_eq!(number(field), expected);
        check(b"00000000017\0", Some(15));
        check(b"         17 ", Some(15));
        check(b"\x80\0\0\0\0\0\0\x02\0\0\0\0", Some(2 << 32));
        check(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None);
        check(b"000000000x7\0", None);
        check(b"            ", None);
        check(b"", None);
    }
}
