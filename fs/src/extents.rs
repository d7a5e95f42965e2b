//! Which parts of a file have been written, as long as they are few. Pure.

use isotope_proto::range::ByteRange;

/// More parts, or more bytes, are not remembered: what is asked for is what a program wrote first.
const PARTS_MAX: usize = 64;
pub(crate) const BYTES_MAX: u64 = 64 << 20;

/// In the order in which they were written; they may overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Extents {
    Few(Vec<ByteRange>),
    TooMany,
}

impl Default for Extents {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Extents {
    pub(crate) fn wrote(&mut self, offset: u64, len: u64) {
        let (Self::Few(parts), Some(range)) = (&mut *self, ByteRange::new(offset, len)) else {
            *self = Self::TooMany;
            return;
        };
        match parts.last_mut() {
            Some(last) if last.end() == offset => {
                *last = ByteRange::clamped(last.start(), last.len().saturating_add(len), u64::MAX);
            }
            _ => parts.push(range),
        }
        let bytes = parts.iter().fold(0, |sum: u64, part| sum.saturating_add(part.len()));
        if parts.len() > PARTS_MAX || bytes > BYTES_MAX {
            *self = Self::TooMany;
        }
    }

    /// The parts within a file of that size; what lies between them reads as zeros.
    pub(crate) fn within(&self, size_bytes: u64) -> Option<Vec<ByteRange>> {
        let Self::Few(parts) = self else { return None };
        let clamp = |part: &ByteRange| ByteRange::clamped(part.start(), part.len(), size_bytes);
        Some(parts.iter().map(clamp).filter(|part| !part.is_empty()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_parts_are_remembered_and_many_are_not() {
        let mut extents = Extents::default();
        for (offset, len) in [(0, 10), (10, 5), (100, 1), (50, 100)] {
            extents.wrote(offset, len);
        }
        let within = |size| extents.within(size).expect("few").len();
        assert_eq!((within(1000), within(60), within(12)), (3, 2, 1));
        let range = |start, len| ByteRange::new(start, len).expect("a range");
        assert_eq!(extents.within(12), Some(vec![range(0, 12)]));
        extents.wrote(200, BYTES_MAX);
        assert_eq!(extents.within(1), None);
        let mut scattered = Extents::default();
        (0..=64).for_each(|n| scattered.wrote(n * 2, 1));
        assert_eq!(scattered, Extents::TooMany);
    }
}
