//! Brings what is written to a file to the disk while more is being written, a batch at a time: a
//! seal has little left to wait for, memory does not fill, and a writer is held to the disk's pace.
//! It knows nothing of what the file is.

use std::fs::File;
use std::io;
use std::thread::{self, JoinHandle};

use rustix::fs::{fdatasync, fsync};
use rustix::io::Errno;

/// Written between the beginnings of two syncs, so that twice this much may wait for the disk. A
/// hard disk takes it in a third of a second, beside which the seeks of a sync are little; one of
/// 2 MB/s in a quarter of the minute for which a mount waits for an answer.
const BATCH_BYTES: u64 = 32 << 20;

type Outcome = rustix::io::Result<()>;

pub(crate) struct Writeback {
    /// Since the last sync began.
    unsynced_bytes: u64,
    /// One at a time.
    under_way: Option<JoinHandle<Outcome>>,
    /// Linux tells a failure to write back once per open file: whoever hears of it keeps it.
    failed: Option<Errno>,
    sync_data: fn(&File) -> Outcome,
}

impl Default for Writeback {
    fn default() -> Self {
        let (unsynced_bytes, under_way, failed) = (0, None, None);
        Self { unsynced_bytes, under_way, failed, sync_data: |file| fdatasync(file) }
    }
}

impl Writeback {
    /// Bytes have been written. Waits for the batch before the last one.
    ///
    /// # Errors
    /// Of any sync before, once and for all.
    pub(crate) fn wrote(&mut self, file: &File, bytes: u64) -> io::Result<()> {
        self.unsynced_bytes = self.unsynced_bytes.saturating_add(bytes);
        if self.unsynced_bytes >= BATCH_BYTES {
            self.wait();
            self.begin(file);
        } else if self.under_way.as_ref().is_some_and(JoinHandle::is_finished) {
            self.wait();
        }
        self.check()
    }

    /// All that was written is on the disk, and the file's size with it.
    pub(crate) fn sync_data(&mut self, file: &File) -> io::Result<()> {
        self.wait();
        self.keep((self.sync_data)(file));
        self.check()
    }

    /// As [`Self::sync_data`], and the file's times, too.
    pub(crate) fn sync_all(&mut self, file: &File) -> io::Result<()> {
        self.wait();
        self.keep(fsync(file));
        self.check()
    }

    fn begin(&mut self, file: &File) {
        self.unsynced_bytes = 0;
        let sync_data = self.sync_data;
        let thread = thread::Builder::new().name("writeback".to_owned());
        let begun = file.try_clone().and_then(|file| thread.spawn(move || sync_data(&file)));
        match begun {
            Ok(under_way) => self.under_way = Some(under_way),
            // No descriptor or no thread is left: then the writer waits.
            Err(_) => self.keep(sync_data(file)),
        }
    }

    fn wait(&mut self) {
        if let Some(under_way) = self.under_way.take() {
            self.keep(under_way.join().unwrap_or(Err(Errno::IO)));
        }
    }

    fn keep(&mut self, outcome: Outcome) {
        self.failed = self.failed.or(outcome.err());
    }

    fn check(&self) -> io::Result<()> {
        self.failed.map_or(Ok(()), |error| Err(error.into()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::time::Duration;

    use super::*;

    const BATCH: u64 = BATCH_BYTES;
    static BEGUN: AtomicUsize = AtomicUsize::new(0);
    static ENDED: AtomicUsize = AtomicUsize::new(0);

    fn slow(_: &File) -> Outcome {
        assert_eq!(BEGUN.fetch_add(1, SeqCst), ENDED.load(SeqCst), "one at a time");
        thread::sleep(Duration::from_millis(20));
        ENDED.fetch_add(1, SeqCst);
        Ok(())
    }

    #[test]
    fn at_most_two_batches_wait_for_the_disk() {
        let file = tempfile::tempfile().expect("a file");
        let mut writeback = Writeback { sync_data: slow, ..Writeback::default() };
        writeback.wrote(&file, BATCH - 1).expect("no sync yet");
        assert!(writeback.under_way.is_none());
        for batch in 1..=4 {
            writeback.wrote(&file, BATCH).expect("written");
            assert!(ENDED.load(SeqCst) >= batch - 1, "the one before has ended");
        }
        writeback.sync_data(&file).expect("synced");
        assert_eq!((BEGUN.load(SeqCst), ENDED.load(SeqCst)), (5, 5));
    }

    #[test]
    fn a_failure_is_told_to_all_that_follow() {
        let file = tempfile::tempfile().expect("a file");
        let fails_once: fn(&File) -> Outcome = |_| {
            static TOLD: AtomicUsize = AtomicUsize::new(0);
            if TOLD.fetch_add(1, SeqCst) == 0 { Err(Errno::IO) } else { Ok(()) }
        };
        let mut writeback = Writeback { sync_data: fails_once, ..Writeback::default() };
        writeback.wrote(&file, BATCH).expect("it is not known yet");
        let errno = |result: io::Result<()>| result.map_err(|error| error.raw_os_error());
        let expected = Err(Some(Errno::IO.raw_os_error()));
        assert_eq!(errno(writeback.wrote(&file, BATCH)), expected);
        assert_eq!(errno(writeback.wrote(&file, 1)), expected);
        assert_eq!(errno(writeback.sync_data(&file)), expected);
        assert_eq!(errno(writeback.sync_all(&file)), expected);
    }
}
