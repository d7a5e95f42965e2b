//! UDF (OSTA UDF 1.02–2.01 on ECMA-167): the label, and directories as far as they lead to a few
//! wanted files. Media of Windows have their files here alone, beside an ISO 9660 that says so.
//! Partitions of later revisions, that are themselves files, are left alone; labels are not.

use super::iso9660::SECTOR;
use super::markers::{Extent, Item};
use super::source::{Reader, has, u16_le, u32_le, u64_le};

/// Where the recognition sequence is looked for (ECMA-167 2/8.3): behind ISO 9660's descriptors,
/// and within the reader's head.
const RECOGNITION: std::ops::Range<u64> = 16..32;
/// The anchor (3/8.4.2.1), of which there are more at the end.
const ANCHOR: u64 = 256;
/// Descriptors of a volume looked at; a sequence has at least 16 sectors, of which six are used.
const DESCRIPTORS_MAX: u64 = 16;
/// Extents followed of one directory or file.
const EXTENTS_MAX: usize = 8;
/// Bytes of one directory, as of ISO 9660's.
const DIRECTORY_BYTES_MAX: u64 = 256 << 10;

/// Tags of descriptors (3/7.2.1, 4/7.2.1).
mod tag {
    pub(super) const ANCHOR: u16 = 2;
    pub(super) const PARTITION: u16 = 5;
    pub(super) const LOGICAL_VOLUME: u16 = 6;
    pub(super) const TERMINATOR: u16 = 8;
    pub(super) const FILE_SET: u16 = 256;
    pub(super) const FILE_IDENTIFIER: u16 = 257;
    pub(super) const FILE_ENTRY: u16 = 261;
    pub(super) const EXTENDED_FILE_ENTRY: u16 = 266;
}

/// What the descriptors say.
#[derive(Debug, Default)]
pub(super) struct Udf {
    pub(super) label: String,
    /// Bytes up to the end of its partition; 0 if it has none that is known here.
    pub(super) size_bytes: u64,
    /// Where its partition begins.
    partition: u64,
    /// The root's entry.
    root: Extent,
}

impl Udf {
    /// None where the sequence that announces it is missing.
    pub(super) fn read(reader: &Reader<'_>) -> Option<Self> {
        let announced = |sector: u64| {
            let it = reader.read(sector * SECTOR, 6);
            has(&it, 1, b"NSR02") || has(&it, 1, b"NSR03")
        };
        RECOGNITION.into_iter().any(announced).then(|| Self::of_anchor(reader).unwrap_or_default())
    }

    fn of_anchor(reader: &Reader<'_>) -> Option<Self> {
        let anchor = reader.read(ANCHOR * SECTOR, SECTOR);
        if u16_le(&anchor, 0)? != tag::ANCHOR {
            return None;
        }
        let (length, first) = (u32_le(&anchor, 16)?, u64::from(u32_le(&anchor, 20)?));
        let sectors = (u64::from(length) / SECTOR).min(DESCRIPTORS_MAX);
        let mut udf = Self::default();
        let mut file_set = None;
        for sector in first..first + sectors {
            let it = reader.read(sector * SECTOR, SECTOR);
            match u16_le(&it, 0)? {
                tag::PARTITION if udf.partition == 0 => {
                    let (start, blocks) = (u32_le(&it, 188)?, u32_le(&it, 192)?);
                    udf.partition = u64::from(start) * SECTOR;
                    udf.size_bytes = udf.partition + u64::from(blocks) * SECTOR;
                }
                tag::LOGICAL_VOLUME => {
                    udf.label = it.get(84..212).map(dstring)?;
                    // One partition of the plain kind (3/10.7.2), in blocks of a sector.
                    let is_plain = u32_le(&it, 268)? == 1 && has(&it, 440, b"\x01");
                    if is_plain && u64::from(u32_le(&it, 212)?) == SECTOR {
                        file_set = u32_le(&it, 252);
                    }
                }
                tag::TERMINATOR => break,
                _ => {}
            }
        }
        if let Some(block) = file_set {
            let it = reader.read(udf.at(block), SECTOR);
            if u16_le(&it, 0) == Some(tag::FILE_SET) {
                udf.root = udf.long_extent(&it, 400).unwrap_or_default();
            }
        }
        Some(udf)
    }

    pub(super) fn root(&self) -> Extent {
        self.root
    }

    /// What a directory holds, as far as it can be read; it is given by its entry.
    pub(super) fn list(&self, reader: &Reader<'_>, entry: Extent) -> Vec<Item> {
        let bytes = self.contents(reader, entry, DIRECTORY_BYTES_MAX);
        let mut items = Vec::new();
        let mut at = 0;
        while let Some((item, length)) = bytes.get(at..).and_then(|rest| self.item(rest)) {
            items.extend(item);
            at += length;
        }
        items
    }

    /// A file identifier descriptor (4/14.4) and its length; without an item for the directory
    /// above, and for what is deleted.
    fn item(&self, bytes: &[u8]) -> Option<(Option<Item>, usize)> {
        const DIRECTORY: u8 = 2;
        const DELETED_OR_PARENT: u8 = 4 | 8;
        if u16_le(bytes, 0)? != tag::FILE_IDENTIFIER {
            return None;
        }
        let (traits, name_bytes) = (*bytes.get(18)?, usize::from(*bytes.get(19)?));
        let name_at = 38 + usize::from(u16_le(bytes, 36)?);
        let length = (name_at + name_bytes).next_multiple_of(4);
        let name = bytes.get(name_at..name_at + name_bytes)?;
        let item = Item {
            name: compressed_unicode(name),
            is_directory: traits & DIRECTORY != 0,
            extent: self.long_extent(bytes, 20)?,
        };
        Some(((traits & DELETED_OR_PARENT == 0).then_some(item), length))
    }

    /// The first bytes of a file or directory, by its entry (4/14.9, 4/14.17).
    pub(super) fn contents(&self, reader: &Reader<'_>, entry: Extent, bytes_max: u64) -> Vec<u8> {
        self.try_contents(reader, entry, bytes_max).unwrap_or_default()
    }

    fn try_contents(&self, reader: &Reader<'_>, entry: Extent, bytes_max: u64) -> Option<Vec<u8>> {
        let it = reader.read(entry.offset, SECTOR);
        let (attributes, run_bytes, at) = match u16_le(&it, 0)? {
            tag::FILE_ENTRY => (u32_le(&it, 168)?, u32_le(&it, 172)?, 176),
            tag::EXTENDED_FILE_ENTRY => (u32_le(&it, 208)?, u32_le(&it, 212)?, 216),
            _ => return None,
        };
        let at = usize::try_from(attributes).ok()?.checked_add(at)?;
        let end = usize::try_from(run_bytes).ok()?.checked_add(at)?;
        let runs = it.get(at..end)?;
        let mut left = u64_le(&it, 56)?.min(bytes_max);
        // How its bytes are described (4/14.6.8).
        let run_length = match u16_le(&it, 34)? & 7 {
            0 => 8,
            1 => 16,
            3 => {
                let length = runs.len().min(usize::try_from(left).ok()?);
                return Some(runs[..length].to_vec());
            }
            _ => return None,
        };
        let mut bytes = Vec::new();
        for run in runs.chunks_exact(run_length).take(EXTENTS_MAX) {
            // The two bits above say whether it was written; nothing of ours is so long.
            let length = u64::from(u32_le(run, 0)? & 0x3fff_ffff).min(left);
            let piece = reader.read(self.at(u32_le(run, 4)?), length);
            left -= length;
            bytes.extend_from_slice(&piece);
            if left == 0 || piece.len() as u64 != length {
                break;
            }
        }
        Some(bytes)
    }

    /// Where a block of the partition lies.
    fn at(&self, block: u32) -> u64 {
        self.partition + u64::from(block) * SECTOR
    }

    /// A long allocation descriptor (4/14.14.2).
    fn long_extent(&self, bytes: &[u8], at: usize) -> Option<Extent> {
        let length = u64::from(u32_le(bytes, at)? & 0x3fff_ffff);
        Some(Extent { offset: self.at(u32_le(bytes, at + 4)?), length })
    }
}

/// A text in a field whose last byte counts it (1/7.2.12).
fn dstring(field: &[u8]) -> String {
    let length = field.last().map_or(0, |&it| usize::from(it));
    compressed_unicode(field.get(..length.min(field.len().saturating_sub(1))).unwrap_or_default())
}

/// OSTA compressed unicode (UDF 2.01 §2.1.1): a byte of the number of bits, then characters.
fn compressed_unicode(bytes: &[u8]) -> String {
    let text: String = match bytes.split_first() {
        Some((8, latin)) => latin.iter().copied().map(char::from).collect(),
        Some((16, wide)) => super::iso9660::utf16_be(wide),
        _ => return String::new(),
    };
    text.trim_end_matches(['\0', ' ']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_in_their_fields() {
        let check = |field: &[u8], expected: &str| assert_eq!(dstring(field), expected);
        check(b"\x08LABEL\0\0\x06", "LABEL");
        check(b"\x10\0L\x04\x16\0\0\x05", "LЖ");
        check(b"\x08LABEL\xff", "LABEL");
        check(b"\x07LABEL\0\0\x06", "");
        check(b"\0", "");
        check(b"", "");
    }
}
