//! ISO 9660 (ECMA-119) with Joliet and Rock Ridge names, and the El Torito boot catalogue. Reads
//! descriptors, and directories as far as they lead to a few wanted files; trusts no number.

use isotope_proto::facts::{Boot, Extensions};

use super::markers::{Extent, Item};
use super::source::{Reader, has, padded_text, u16_le, u32_be, u32_le};

/// Sectors of a descriptor and of a directory (ECMA-119 §6.1.2).
pub(super) const SECTOR: u64 = 2048;
/// The first descriptor (§6.2.1).
const FIRST: u64 = 16;
/// Descriptors looked at; a set has some five, and all of these lie in the reader's head.
const DESCRIPTORS_MAX: u64 = 16;
/// Bytes of one directory: some 5,000 names. What is wanted stands in small ones.
const DIRECTORY_BYTES_MAX: u64 = 256 << 10;

/// What the descriptors say.
#[derive(Debug, Default)]
pub(super) struct Disc {
    pub(super) label: String,
    pub(super) system_id: String,
    pub(super) publisher_id: String,
    pub(super) application_id: String,
    /// Bytes that the volume claims.
    pub(super) size_bytes: u64,
    pub(super) extensions: Extensions,
    pub(super) boot: Boot,
    root: Extent,
    names: Names,
    block_bytes: u64,
}

/// Where the names of the tree that is looked through are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Names {
    #[default]
    Plain,
    Joliet,
    RockRidge,
}

impl Disc {
    /// None where there is no primary volume descriptor.
    pub(super) fn read(reader: &Reader<'_>) -> Option<Self> {
        let mut disc: Option<Self> = None;
        let (mut joliet, mut catalog) = (None, None);
        for sector in FIRST..FIRST + DESCRIPTORS_MAX {
            let it = reader.read(sector * SECTOR, SECTOR);
            if !has(&it, 1, b"CD001") {
                break;
            }
            match it[0] {
                0 if has(&it, 7, b"EL TORITO SPECIFICATION") => catalog = u32_le(&it, 0x47),
                1 if disc.is_none() => disc = Self::primary(&it),
                2 if joliet.is_none() && is_joliet(&it) => joliet = Some(it),
                255 => break,
                _ => {}
            }
        }
        let mut disc = disc?;
        if has_rock_ridge(&reader.read(disc.root.offset, SECTOR)) {
            disc.extensions.rock_ridge = true;
            disc.names = Names::RockRidge;
        }
        if let Some(joliet) = joliet {
            disc.extensions.joliet = true;
            if let Some(root) = root(&joliet, disc.block_bytes)
                && disc.names == Names::Plain
            {
                disc.root = root;
                disc.names = Names::Joliet;
            }
        }
        if let Some(sector) = catalog {
            disc.boot = boot(&reader.read(u64::from(sector) * SECTOR, SECTOR));
        }
        Some(disc)
    }

    /// §8.4.
    fn primary(it: &[u8]) -> Option<Self> {
        let text = |from, to| it.get(from..to).map(padded_text);
        // Everybody writes 2048; what is no size at all is taken for that.
        let block_bytes = match u16_le(it, 128)? {
            size @ (512 | 1024) => u64::from(size),
            _ => SECTOR,
        };
        Some(Self {
            system_id: text(8, 40)?,
            label: text(40, 72)?,
            size_bytes: u64::from(u32_le(it, 80)?) * block_bytes,
            publisher_id: text(318, 446)?,
            application_id: text(574, 702)?,
            root: root(it, block_bytes)?,
            block_bytes,
            ..Self::default()
        })
    }

    /// What a directory holds, as far as it can be read.
    pub(super) fn list(&self, reader: &Reader<'_>, directory: Extent) -> Vec<Item> {
        let bytes = reader.read(directory.offset, directory.length.min(DIRECTORY_BYTES_MAX));
        let mut items = Vec::new();
        let mut at = 0;
        while let Some(&length) = bytes.get(at) {
            let length = usize::from(length);
            if length == 0 {
                // Records do not cross sectors (§6.8.1.1); the rest of this one is padding.
                at = (at / 2048 + 1) * 2048;
                continue;
            }
            let Some(record) = bytes.get(at..at + length) else { break };
            items.extend(self.item(record));
            at += length;
        }
        items
    }

    pub(super) fn root(&self) -> Extent {
        self.root
    }

    /// A directory record (§9.1); none for `.` and `..`.
    fn item(&self, record: &[u8]) -> Option<Item> {
        let length = usize::from(*record.get(32)?);
        let identifier = record.get(33..33 + length)?;
        if matches!(identifier, [] | [0] | [1]) {
            return None;
        }
        let name = match self.names {
            Names::Joliet => utf16_be(identifier),
            Names::Plain => String::from_utf8_lossy(identifier).into_owned(),
            Names::RockRidge => rock_ridge_name(record.get(33 + length + (1 - length % 2)..)?)
                .unwrap_or_else(|| String::from_utf8_lossy(identifier).into_owned()),
        };
        // The version, and the dot of a name without extension.
        let name = name.split_once(';').map_or(&*name, |(name, _)| name).trim_end_matches('.');
        Some(Item {
            name: name.to_owned(),
            is_directory: record.get(25)? & 2 != 0,
            extent: extent(record, self.block_bytes)?,
        })
    }
}

/// The root's directory record in a descriptor.
fn root(descriptor: &[u8], block_bytes: u64) -> Option<Extent> {
    extent(descriptor.get(156..190)?, block_bytes)
}

fn extent(record: &[u8], block_bytes: u64) -> Option<Extent> {
    let (block, length) = (u32_le(record, 2)?, u32_le(record, 10)?);
    // The same numbers stand beside them big-endian; where one is 0, its writer kept the other.
    let block = if block == 0 { u32_be(record, 6)? } else { block };
    let length = if length == 0 { u32_be(record, 14)? } else { length };
    Some(Extent { offset: u64::from(block) * block_bytes, length: u64::from(length) })
}

/// A supplementary descriptor with one of the escape sequences of UCS-2 (Joliet specification).
fn is_joliet(descriptor: &[u8]) -> bool {
    [b"%/@", b"%/C", b"%/E"].into_iter().any(|escape| has(descriptor, 88, escape))
}

pub(super) fn utf16_be(bytes: &[u8]) -> String {
    let units = bytes.as_chunks::<2>().0.iter().map(|&unit| u16::from_be_bytes(unit));
    char::decode_utf16(units).map(|it| it.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

/// Entries of a system use area: signature and data (IEEE P1281 §4). Continuation areas are left
/// alone: names so long are none that we look for.
fn system_use(area: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut rest = area;
    std::iter::from_fn(move || {
        let length = usize::from(*rest.get(2)?);
        let (entry, after) = rest.split_at_checked(length)?;
        rest = after;
        Some((entry.get(..2)?, entry.get(4..)?))
    })
}

/// Whether the first record of the root says that names are kept so (IEEE P1282): `SP` opens the
/// protocol, and one of Rock Ridge's own entries follows.
fn has_rock_ridge(root: &[u8]) -> bool {
    let length = root.first().copied().map_or(0, usize::from);
    let area = root.get(34..length).unwrap_or_default();
    let mut entries = system_use(area).map(|(signature, _)| signature);
    entries.next() == Some(b"SP") && entries.any(|it| matches!(it, b"RR" | b"PX" | b"TF" | b"NM"))
}

/// The `NM` entries of a record, joined.
fn rock_ridge_name(area: &[u8]) -> Option<String> {
    let mut name = Vec::new();
    for (_, data) in system_use(area).filter(|(signature, _)| *signature == b"NM") {
        name.extend_from_slice(data.get(1..)?);
    }
    (!name.is_empty()).then(|| String::from_utf8_lossy(&name).into_owned())
}

/// The boot catalogue (El Torito 1.0 §2; UEFI specification §13.3.2.1 for its platform).
fn boot(catalog: &[u8]) -> Boot {
    const BOOTABLE: u8 = 0x88;
    const UEFI: u8 = 0xef;
    let mut boot = Boot::default();
    if !(has(catalog, 0, b"\x01") && has(catalog, 30, b"\x55\xaa")) {
        return boot;
    }
    let mut platform = catalog[1];
    for entry in catalog.as_chunks::<32>().0.iter().skip(1) {
        match entry[0] {
            BOOTABLE if platform == UEFI => boot.uefi = true,
            BOOTABLE if platform == 0 => boot.bios = true,
            // Headers of a section; 0x91 is the last one.
            0x90 | 0x91 => platform = entry[1],
            _ => {}
        }
    }
    boot
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_catalogues() {
        let catalog = |entries: &[[u8; 2]]| {
            let mut catalog = vec![0; 2048];
            (catalog[0], catalog[30], catalog[31]) = (1, 0x55, 0xaa);
            for (at, entry) in entries.iter().enumerate() {
                catalog[32 * (at + 1)..][..2].copy_from_slice(entry);
            }
            boot(&catalog)
        };
        let (bios, uefi) = (true, true);
        assert_eq!(catalog(&[]), Boot::default());
        assert_eq!(catalog(&[[0x88, 0]]), Boot { bios, uefi: false });
        assert_eq!(catalog(&[[0, 0], [0x91, 0xef], [0x88, 0]]), Boot { bios: false, uefi });
        assert_eq!(catalog(&[[0x88, 0], [0x91, 0xef], [0x88, 0]]), Boot { bios, uefi });
        assert_eq!(catalog(&[[0x88, 0], [0x91, 0xef], [0x00, 0]]), Boot { bios, uefi: false });
        assert_eq!(boot(&[1; 40]), Boot::default());
        assert_eq!(boot(&[]), Boot::default());
    }

    #[test]
    fn system_use_entries_end_with_their_area() {
        let check = |area: &[u8], expected: Option<&str>| {
            assert_eq!(rock_ridge_name(area).as_deref(), expected, "{}", area.escape_ascii());
        };
        check(b"NM\x08\x01\0abc", Some("abc"));
        check(b"NM\x06\x01\x01aNM\x06\x01\0b", Some("ab"));
        check(b"TF\x05\x01\0NM\x06\x01\0b", Some("b"));
        check(b"NM\x09\x01\0abc", None);
        check(b"NM\0\x01\0abc", None);
        check(b"NM\x04\x01", None);
        check(b"NM", None);
        check(b"", None);
    }
}
