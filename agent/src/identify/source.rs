//! Bytes to be identified, read within a budget: whatever they say, so much is read of them and no
//! more. Knows no format.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes at positions: a file, or a slice in tests and fuzz targets.
pub trait Source {
    /// As pread(2): fewer bytes than asked for at the end, or for no reason.
    ///
    /// # Errors
    /// Whatever reading fails with.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl Source for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }
}

impl Source for &[u8] {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let from = usize::try_from(offset).ok().and_then(|offset| self.get(offset..));
        let from = from.unwrap_or_default();
        let len = from.len().min(buffer.len());
        buffer[..len].copy_from_slice(&from[..len]);
        Ok(len)
    }
}

/// Read once: boot sectors, all volume descriptors, the headers of most formats.
const HEAD_BYTES: u64 = 64 << 10;
/// Most bytes of one piece: bounds the memory for what an image claims to be one thing.
pub(super) const PIECE_BYTES_MAX: u64 = 1 << 20;
/// Most bytes of one image. An ordinary one takes some 100 KiB.
const BYTES_MAX: u64 = 4 << 20;
/// Most reads of one image, for a disk whose head moves for each: about 2 s of it.
const READS_MAX: u32 = 200;

/// Reads a source, until its budget is spent.
pub(super) struct Reader<'a> {
    source: &'a dyn Source,
    size_bytes: u64,
    head: Vec<u8>,
    bytes_left: Cell<u64>,
    reads_left: Cell<u32>,
    failure: RefCell<Option<io::Error>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(source: &'a dyn Source, size_bytes: u64) -> Self {
        let mut reader = Self {
            source,
            size_bytes,
            head: Vec::new(),
            bytes_left: Cell::new(BYTES_MAX),
            reads_left: Cell::new(READS_MAX),
            failure: RefCell::new(None),
        };
        reader.head = reader.read(0, HEAD_BYTES);
        reader
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The first bytes, 64 KiB of them if the source has so many.
    pub(super) fn head(&self) -> &[u8] {
        &self.head
    }

    /// The first failure, if a read failed.
    pub(super) fn failure(&self) -> Option<String> {
        self.failure.borrow().as_ref().map(ToString::to_string)
    }

    /// The bytes at an offset; fewer than asked for behind the end, where reading fails, and once
    /// the budget is spent.
    pub(super) fn read(&self, offset: u64, length: u64) -> Vec<u8> {
        let length = length.min(PIECE_BYTES_MAX).min(self.size_bytes.saturating_sub(offset));
        let from_head = |end| self.head.get(usize::try_from(offset).ok()?..end);
        let end = offset.checked_add(length).and_then(|end| usize::try_from(end).ok());
        if let Some(bytes) = end.and_then(from_head) {
            return bytes.to_vec();
        }
        let length = length.min(self.bytes_left.get());
        self.bytes_left.set(self.bytes_left.get() - length);
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        let mut filled = 0;
        while filled < bytes.len() && self.reads_left.get() > 0 {
            self.reads_left.set(self.reads_left.get() - 1);
            // No overflow: offset + length lies within the size.
            match self.source.read_at(&mut bytes[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.failure.borrow_mut().get_or_insert(error);
                    break;
                }
            }
        }
        bytes.truncate(filled);
        bytes
    }
}

/// A little-endian number at a place of a piece; none where the piece is too short.
pub(super) fn u16_le(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

pub(super) fn u32_le(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

pub(super) fn u64_le(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

pub(super) fn u32_be(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}

pub(super) fn u64_be(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_be_bytes)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// Whether a piece has these bytes at a place.
pub(super) fn has(bytes: &[u8], at: usize, expected: &[u8]) -> bool {
    bytes.get(at..).is_some_and(|bytes| bytes.starts_with(expected))
}

/// A padded text: up to its first NUL, without the spaces around it.
pub(super) fn padded_text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claims any size, and counts what is read of it.
    struct Endless(Cell<u64>);

    impl Source for Endless {
        fn read_at(&self, buffer: &mut [u8], _: u64) -> io::Result<usize> {
            self.0.set(self.0.get() + buffer.len() as u64);
            buffer.fill(7);
            Ok(buffer.len())
        }
    }

    #[test]
    fn no_more_than_the_budget_is_read() {
        let source = Endless(Cell::new(0));
        let reader = Reader::new(&source, u64::MAX);
        for at in 1..1000 {
            assert!(reader.read(at << 32, u64::MAX).len() as u64 <= PIECE_BYTES_MAX);
        }
        assert!(reader.read(u64::MAX, 1).is_empty());
        assert_eq!(source.0.get(), BYTES_MAX);
    }

    /// One byte a read, then an error.
    struct Grudging(Cell<u32>);

    impl Source for Grudging {
        fn read_at(&self, buffer: &mut [u8], _: u64) -> io::Result<usize> {
            self.0.set(self.0.get() + 1);
            if self.0.get() == 5 {
                return Err(io::Error::other("a bad sector"));
            }
            buffer[0] = 7;
            Ok(1)
        }
    }

    #[test]
    fn a_failure_ends_a_piece_and_is_remembered() {
        let source = Grudging(Cell::new(0));
        let reader = Reader::new(&source, 1 << 30);
        assert_eq!(reader.head(), [7; 4]);
        assert_eq!(reader.failure().as_deref(), Some("a bad sector"));
        let _ = reader.read(1 << 20, 1 << 20);
        assert!(source.0.get() <= READS_MAX);
    }

    #[test]
    fn pieces_end_where_the_source_does() {
        let bytes: Vec<u8> = (0..=255).collect();
        let slice = &bytes[..];
        let reader = Reader::new(&slice, 256);
        let check = |offset, length, expected: &[u8]| {
            assert_eq!(reader.read(offset, length), expected, "{length} at {offset}");
        };
        check(0, 2, &[0, 1]);
        check(254, 10, &[254, 255]);
        check(256, 1, &[]);
        check(u64::MAX, u64::MAX, &[]);
        assert_eq!(u32_le(&bytes, 1), Some(0x0403_0201));
        assert_eq!(u32_be(&bytes, 253), None);
        assert_eq!(padded_text(b" A B  \0junk"), "A B");
    }
}
