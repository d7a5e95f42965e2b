//! Formats that their first bytes tell apart, and what their headers say without further reading.
//! File systems and archives are looked into elsewhere.

use isotope_proto::facts::PartitionTable;
use isotope_proto::image::ImageFormat;

use super::source::{Reader, has, u32_be, u32_le, u64_be, u64_le};

/// A sector of every disk format here.
const SECTOR: u64 = 512;

/// A format known by its magic number, and the size of the disk that it holds, or 0.
pub(super) fn disk_or_archive(reader: &Reader<'_>) -> Option<(ImageFormat, u64)> {
    let head = reader.head();
    let begins = |magic: &[u8]| head.starts_with(magic);
    let found = if begins(b"QFI\xfb") && matches!(u32_be(head, 4), Some(2 | 3)) {
        (ImageFormat::Qcow2, u64_be(head, 24).unwrap_or(0))
    } else if begins(b"KDMV") {
        (ImageFormat::Vmdk, u64_le(head, 12).unwrap_or(0).saturating_mul(SECTOR))
    } else if begins(b"# Disk DescriptorFile") {
        (ImageFormat::Vmdk, vmdk_extents(head))
    } else if begins(b"vhdxfile") {
        (ImageFormat::Vhdx, vhdx_size(reader).unwrap_or(0))
    } else if begins(b"conectix") {
        (ImageFormat::Vhd, vhd_size(head))
    } else if u32_le(head, 64) == Some(0xbeda_107f) {
        // VirtualBox writes a text before its signature, which is not part of the format.
        (ImageFormat::Vdi, u64_le(head, 0x170).unwrap_or(0))
    } else if begins(b"\x1f\x8b\x08") {
        (ImageFormat::Gzip, 0)
    } else if begins(b"BZh") && head.get(3).is_some_and(|level| (b'1'..=b'9').contains(level)) {
        (ImageFormat::Bzip2, 0)
    } else if begins(b"\xfd7zXZ\0") {
        (ImageFormat::Xz, 0)
    } else if begins(b"\x28\xb5\x2f\xfd") {
        (ImageFormat::Zstd, 0)
    } else if begins(b"7z\xbc\xaf\x27\x1c") {
        (ImageFormat::SevenZip, 0)
    } else if begins(b"PK\x03\x04") {
        (ImageFormat::Zip, 0)
    } else {
        return None;
    };
    Some(found)
}

/// A fixed VHD is a raw disk with a footer; that it begins like one must not hide it.
pub(super) fn fixed_vhd(reader: &Reader<'_>) -> Option<(ImageFormat, u64)> {
    let footer = reader.read(reader.size_bytes().checked_sub(SECTOR)?, SECTOR);
    footer.starts_with(b"conectix").then(|| (ImageFormat::Vhd, vhd_size(&footer)))
}

/// "Current Size" of the footer (Virtual Hard Disk Image Format Specification 1.0).
fn vhd_size(footer: &[u8]) -> u64 {
    u64_be(footer, 48).unwrap_or(0)
}

/// The extents that a descriptor lists, `RW 4192256 SPARSE "a-s001.vmdk"`, in sectors.
fn vmdk_extents(head: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(head);
    let sectors = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let access = words.next()?;
        let sectors: u64 = words.next()?.parse().ok()?;
        matches!(access, "RW" | "RDONLY" | "NOACCESS").then_some(sectors)
    });
    sectors.fold(0, u64::saturating_add).saturating_mul(SECTOR)
}

/// The virtual disk size of a VHDX: region table → metadata region → item (MS-VHDX §2.2.3, §2.6).
fn vhdx_size(reader: &Reader<'_>) -> Option<u64> {
    const REGION_TABLE: u64 = 192 << 10;
    const TABLE_BYTES: u64 = 64 << 10;
    const METADATA: [u8; 16] = guid(0x8b7c_a206, 0x4790, 0x4b9a, 0xb8fe_575f_050f_886e);
    const DISK_SIZE: [u8; 16] = guid(0x2fa5_4224, 0xcd1b, 0x4876, 0xb211_5dbe_d83b_f4b8);
    let regions = reader.read(REGION_TABLE, TABLE_BYTES);
    if !regions.starts_with(b"regi") {
        return None;
    }
    let entry = |table: &[u8], first: usize, id: &[u8; 16]| {
        (first..table.len()).step_by(32).find(|&at| has(table, at, id))
    };
    let region = u64_le(&regions, entry(&regions, 16, &METADATA)? + 16)?;
    let items = reader.read(region, TABLE_BYTES);
    if !items.starts_with(b"metadata") {
        return None;
    }
    let item = u64::from(u32_le(&items, entry(&items, 32, &DISK_SIZE)? + 16)?);
    u64_le(&reader.read(region.checked_add(item)?, 8), 0)
}

/// As Microsoft stores them: the first three fields little-endian, the rest as written.
const fn guid(first: u32, second: u16, third: u16, rest: u64) -> [u8; 16] {
    let (a, b, c) = (first.to_le_bytes(), second.to_le_bytes(), third.to_le_bytes());
    let d = rest.to_be_bytes();
    [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]]
}

/// The partition table in the first sectors (UEFI specification §5).
pub(super) fn partitions(head: &[u8]) -> Option<PartitionTable> {
    if !has(head, 510, b"\x55\xaa") {
        return None;
    }
    if has(head, 512, b"EFI PART") {
        return Some(PartitionTable::Gpt);
    }
    // A boot sector without partitions ends in the same two bytes, and has code in their place.
    let entries = || (446..510).step_by(16).filter_map(|at| head.get(at..at + 16));
    let plausible = entries().all(|entry| matches!(entry[0], 0 | 0x80));
    (plausible && entries().any(|entry| entry[4] != 0)).then_some(PartitionTable::Mbr)
}

/// In words, what the bytes are if they are a well-known something that is no image.
pub(super) fn something_else(head: &[u8]) -> Option<&'static str> {
    /// Bytes of a page that are looked at for its first tag.
    const TAG_WITHIN: usize = 256;
    // The synchronisation field of a CD sector (ECMA-130 §14.1).
    if head.starts_with(b"\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\0") {
        return Some("a CD with raw sectors of 2352 bytes: convert it to an ISO");
    }
    let start = String::from_utf8_lossy(&head[..head.len().min(TAG_WITHIN)]).to_ascii_lowercase();
    let start = start.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
    if start.starts_with("<!doctype html") || start.starts_with("<html") {
        return Some("a web page: its download went wrong; fetch it again");
    }
    (!head.is_empty() && head.iter().all(|&byte| byte == 0))
        .then_some("zeros at its beginning: it was not written yet, or not to its end")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> Option<(ImageFormat, u64)> {
        disk_or_archive(&Reader::new(&bytes, bytes.len() as u64))
    }

    #[test]
    fn magic_numbers() {
        let check = |bytes: &[u8], expected: Option<(ImageFormat, u64)>| {
            assert_eq!(of(bytes), expected, "{}", bytes.escape_ascii());
        };
        let mut qcow2 = b"QFI\xfb\0\0\0\x03".to_vec();
        qcow2.resize(24, 0);
        qcow2.extend(5_u64.to_be_bytes());
        check(&qcow2, Some((ImageFormat::Qcow2, 5)));
        check(b"QFI\xfb\0\0\0\x03", Some((ImageFormat::Qcow2, 0)));
        check(b"QFI\xfb\0\0\0\x09", None);
        let vmdk = b"# Disk DescriptorFile\nCID=1\nRW 3 FLAT \"a\" 0\r\nRW 4 FLAT \"b\" 0\nRW x\n";
        check(vmdk, Some((ImageFormat::Vmdk, 7 * 512)));
        check(
            b"# Disk DescriptorFile\nRW 18446744073709551615 F",
            Some((ImageFormat::Vmdk, u64::MAX)),
        );
        check(b"\xfd7zXZ\0", Some((ImageFormat::Xz, 0)));
        check(b"\x1f\x8b\x08", Some((ImageFormat::Gzip, 0)));
        check(b"\x28\xb5\x2f\xfd", Some((ImageFormat::Zstd, 0)));
        check(b"BZh9", Some((ImageFormat::Bzip2, 0)));
        check(b"BZhx", None);
        check(b"PK\x03\x04", Some((ImageFormat::Zip, 0)));
        check(b"7z\xbc\xaf\x27\x1c", Some((ImageFormat::SevenZip, 0)));
        check(b"", None);
        check(b"vhdxfile", Some((ImageFormat::Vhdx, 0)));
    }

    #[test]
    fn partition_tables_and_plain_boot_sectors() {
        let sector = |edit: &[(usize, u8)]| {
            let mut sector = vec![0; 1024];
            sector[510..512].copy_from_slice(b"\x55\xaa");
            edit.iter().for_each(|&(at, byte)| sector[at] = byte);
            partitions(&sector)
        };
        assert_eq!(sector(&[]), None);
        assert_eq!(sector(&[(450, 0x83)]), Some(PartitionTable::Mbr));
        assert_eq!(sector(&[(450, 0x83), (462, 0x13)]), None);
        assert_eq!(sector(&[(510, 0), (450, 0x83)]), None);
        let mut gpt = vec![0; 520];
        gpt[510..].copy_from_slice(b"\x55\xaaEFI PART");
        assert_eq!(partitions(&gpt), Some(PartitionTable::Gpt));
    }

    #[test]
    fn what_is_no_image_is_named() {
        let check = |bytes: &[u8], expected: &str| {
            let said = something_else(bytes).unwrap_or_default();
            assert!(said.contains(expected) && said.is_empty() == expected.is_empty(), "{said}");
        };
        check(b"\n<!DOCTYPE HTML><title>404", "web page");
        check(b"\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\x02\0\x01", "raw sectors");
        check(&[0; 4096], "zeros");
        check(b"anything", "");
        check(b"", "");
    }
}
