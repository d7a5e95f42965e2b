//! Reading a file once from one end to the other without a trace in the page cache. It knows
//! nothing of what is done with the bytes.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;

use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

/// `RWF_DONTCACHE` of preadv2(2), since Linux 6.14: pages that this read brings in are dropped
/// again, those that others had are kept.
const DONT_CACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// Hashing terabytes must not push out what guests are reading. Where the kernel and the file
/// system can do it, each read drops what it brought in, and only that. Elsewhere the pages behind
/// us are given up, among them those that others had read before; while a program has them mapped
/// they stay. `O_DIRECT` would do as well, but reads what is cached from the disk again, has no
/// read-ahead, and is refused by some file systems.
pub(super) struct Reader<'a> {
    file: &'a File,
    uncached: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a File) -> Self {
        // Advice only: twice the read-ahead.
        let _ = fadvise(file, 0, None, Advice::Sequential);
        Self { file, uncached: true }
    }

    /// Fills the buffer from `offset`. False: the file ends before.
    ///
    /// # Errors
    /// With the offset at which it failed.
    pub(super) fn fill(&mut self, into: &mut [u8], offset: u64) -> Result<bool, (u64, io::Error)> {
        let (mut at, mut rest) = (offset, &mut *into);
        while !rest.is_empty() {
            match self.read_at(rest, at) {
                Ok(0) => return Ok(false),
                Ok(count) => {
                    at += count as u64;
                    rest = &mut rest[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err((at, error)),
            }
        }
        if let (false, Some(len)) = (self.uncached, NonZeroU64::new(at - offset)) {
            let _ = fadvise(self.file, offset, Some(len), Advice::DontNeed);
        }
        Ok(true)
    }

    fn read_at(&mut self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        if self.uncached {
            match preadv2(self.file, &mut [IoSliceMut::new(into)], offset, DONT_CACHE) {
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => self.uncached = false,
                read => return Ok(read?),
            }
        }
        self.file.read_at(into, offset)
    }
}
