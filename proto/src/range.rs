//! Ranges of bytes that cannot overflow.

/// `len` bytes from `start`; the end always fits 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ByteRange {
    start: u64,
    len: u64,
}

impl ByteRange {
    /// `None` when the end would not fit 64 bits.
    #[must_use]
    pub fn new(start: u64, len: u64) -> Option<Self> {
        start.checked_add(len)?;
        Some(Self { start, len })
    }

    /// What of `[start, start + len)` lies within a file of `size` bytes.
    #[must_use]
    pub fn clamped(start: u64, len: u64, size: u64) -> Self {
        let start = start.min(size);
        Self { start, len: len.min(size - start) }
    }

    #[must_use]
    pub fn start(&self) -> u64 {
        self.start
    }

    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// One past the last byte.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start + self.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_never_overflow_nor_pass_the_end() {
        assert_eq!(ByteRange::new(u64::MAX, 1), None);
        assert_eq!(ByteRange::new(u64::MAX, 0).map(|r| r.end()), Some(u64::MAX));
        for (start, len, size, expected) in [
            (0, 10, 4, (0, 4)),
            (3, 10, 4, (3, 1)),
            (4, 10, 4, (4, 0)),
            (u64::MAX, u64::MAX, 4, (4, 0)),
            (0, u64::MAX, u64::MAX, (0, u64::MAX)),
        ] {
            let range = ByteRange::clamped(start, len, size);
            assert_eq!((range.start(), range.len()), expected);
        }
    }
}
