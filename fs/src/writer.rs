//! One open file that is being written, and the rule of when a close means it. A program that is
//! killed closes its files, too; a shell closes what its children go on writing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use isotope_proto::id::Ino;

use crate::error::FsError;
use crate::process::{dies_badly, thread_group};
use crate::reader::Reader;
use crate::upload::Upload;

/// What a close, or the last one, means for the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Nothing,
    Commit,
    Discard,
    /// Made and never written: it may be opened again, and is published if it is not.
    KeepDraft,
}

/// What was done with a file since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Made {
    Opened,
    /// Its time was set, and nothing written: `touch` means an empty file.
    Touched,
    /// Bytes, or its size.
    Written,
}

/// Who sent a flush, and how that program is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sender {
    is_opener: bool,
    dies_badly: bool,
}

fn on_flush(made: Made, sender: Sender) -> Verdict {
    match (made, sender) {
        (_, Sender { is_opener: true, dies_badly: true }) => Verdict::Discard,
        // `cat >f` and `dd of=f` close once before they write.
        (Made::Opened, _) | (_, Sender { is_opener: false, .. }) => Verdict::Nothing,
        (Made::Touched | Made::Written, Sender { .. }) => Verdict::Commit,
    }
}

fn on_release(made: Made, opener_closed: bool, a_writer_died: bool) -> Verdict {
    match (made, opener_closed, a_writer_died) {
        (_, _, true) | (Made::Written, false, false) => Verdict::Discard,
        // Written after its opener's last close, by a child that inherited the descriptor.
        (Made::Written, true, false) => Verdict::Commit,
        (Made::Opened | Made::Touched, _, false) => Verdict::KeepDraft,
    }
}

pub(crate) struct Writer {
    pub(crate) ino: Ino,
    /// Thread group of the program that opened it; 0 in a pid namespace that we cannot see into.
    pub(crate) opener: u32,
    /// None for a finished image, until what is written begins to replace it.
    upload: Mutex<Option<Arc<Upload>>>,
    /// Held by the one who begins it.
    pub(crate) beginning: tokio::sync::Mutex<()>,
    /// Reads the finished image.
    pub(crate) reader: OnceLock<Arc<Reader>>,
    /// The kernel's name for the table of open files of whoever wrote last; 0 before.
    lock_owner: AtomicU64,
    opener_closed: AtomicBool,
    a_writer_died: AtomicBool,
}

impl Writer {
    /// Opened by `opener`, a thread group as the mount sees it.
    ///
    /// # Errors
    /// `InUse` when another program writes it.
    pub(crate) fn open(
        ino: Ino,
        opener: u32,
        upload: Option<Arc<Upload>>,
    ) -> Result<Self, FsError> {
        let writer = Self {
            ino,
            opener,
            upload: Mutex::new(None),
            beginning: tokio::sync::Mutex::default(),
            reader: OnceLock::new(),
            lock_owner: AtomicU64::new(0),
            opener_closed: AtomicBool::new(false),
            a_writer_died: AtomicBool::new(false),
        };
        if let Some(upload) = upload {
            writer.attach(upload)?;
        }
        Ok(writer)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Upload>>> {
        self.upload.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn upload(&self) -> Option<Arc<Upload>> {
        self.lock().clone()
    }

    /// What is written from here on goes there.
    ///
    /// # Errors
    /// `InUse` when another program writes it.
    pub(crate) fn attach(&self, upload: Arc<Upload>) -> Result<(), FsError> {
        upload.holders.add(self.opener)?;
        *self.lock() = Some(upload);
        Ok(())
    }

    pub(crate) fn wrote(&self, lock_owner: u64) {
        self.lock_owner.store(lock_owner, Ordering::Relaxed);
    }

    /// A close by `task`, still waiting in it. Reads `/proc`.
    pub(crate) fn flushed_by(&self, task: u32, lock_owner: u64) -> Verdict {
        let Some(upload) = self.upload().filter(|upload| !upload.is_over()) else {
            return Verdict::Nothing;
        };
        let sender = Sender {
            is_opener: match task {
                // From a pid namespace that we cannot see into nothing can be told of a process,
                // but that a child has a table of open files of its own.
                0 => [0, lock_owner].contains(&self.lock_owner.load(Ordering::Relaxed)),
                task => thread_group(task) == self.opener,
            },
            dies_badly: task != 0 && dies_badly(task),
        };
        if sender.dies_badly {
            self.a_writer_died.store(true, Ordering::Relaxed);
        } else if sender.is_opener {
            self.opener_closed.store(true, Ordering::Relaxed);
        }
        on_flush(upload.made(), sender)
    }

    /// The last reference to this open file is gone; the upload, if this was its last writer, and
    /// what becomes of it.
    pub(crate) fn released(&self) -> Option<(Arc<Upload>, Verdict)> {
        let upload = self.lock().take()?;
        if !upload.holders.remove(self.opener) || upload.is_over() {
            return None;
        }
        let verdict = on_release(
            upload.made(),
            self.opener_closed.load(Ordering::Relaxed),
            self.a_writer_died.load(Ordering::Relaxed),
        );
        Some((upload, verdict))
    }
}

#[cfg(test)]
mod tests {
    use super::Made::{Opened, Touched, Written};
    use super::*;

    #[test]
    fn a_flush_commits_when_its_opener_means_it() {
        for (made, is_opener, dies_badly, expected) in [
            (Written, true, false, Verdict::Commit),
            (Touched, true, false, Verdict::Commit),
            (Opened, true, false, Verdict::Nothing),
            (Written, false, false, Verdict::Nothing),
            (Touched, false, false, Verdict::Nothing),
            (Written, true, true, Verdict::Discard),
            (Touched, true, true, Verdict::Discard),
            (Written, false, true, Verdict::Nothing),
        ] {
            assert_eq!(on_flush(made, Sender { is_opener, dies_badly }), expected);
        }
    }

    #[test]
    fn the_last_release_settles_what_no_flush_did() {
        for (made, opener_closed, a_writer_died, expected) in [
            (Written, true, false, Verdict::Commit),
            (Written, false, false, Verdict::Discard),
            (Written, true, true, Verdict::Discard),
            (Opened, true, false, Verdict::KeepDraft),
            (Opened, false, false, Verdict::KeepDraft),
            (Touched, false, false, Verdict::KeepDraft),
            (Opened, true, true, Verdict::Discard),
        ] {
            assert_eq!(on_release(made, opener_closed, a_writer_died), expected);
        }
    }
}
