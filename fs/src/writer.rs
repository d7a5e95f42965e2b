//! One open file that is being written, and the rule of when a close means it. A program that is
//! killed closes its files, too; a shell closes what its children go on writing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use isotope_proto::id::Ino;

use crate::process::{dies_badly, thread_group};
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
    /// Thread group of the program that opened it; 0 if it lives in another pid namespace.
    pub(crate) opener: u32,
    /// None for a finished image, until it is truncated to be replaced.
    upload: Mutex<Option<Arc<Upload>>>,
    opener_closed: AtomicBool,
    a_writer_died: AtomicBool,
}

impl Writer {
    pub(crate) fn new(ino: Ino, task: u32, upload: Option<Arc<Upload>>) -> Self {
        let writer = Self {
            ino,
            opener: if task == 0 { 0 } else { thread_group(task) },
            upload: Mutex::new(None),
            opener_closed: AtomicBool::new(false),
            a_writer_died: AtomicBool::new(false),
        };
        if let Some(upload) = upload {
            writer.attach(upload);
        }
        writer
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Upload>>> {
        self.upload.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn upload(&self) -> Option<Arc<Upload>> {
        self.lock().clone()
    }

    pub(crate) fn attach(&self, upload: Arc<Upload>) {
        upload.handles.fetch_add(1, Ordering::Relaxed);
        *self.lock() = Some(upload);
    }

    /// A close by `task`, still waiting in it. Reads `/proc`.
    pub(crate) fn flushed_by(&self, task: u32) -> Verdict {
        let Some(upload) = self.upload().filter(|upload| !upload.is_over()) else {
            return Verdict::Nothing;
        };
        // From another pid namespace nothing can be told: a close is a close.
        let sender = Sender {
            is_opener: task == 0 || thread_group(task) == self.opener,
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
        let last = upload.handles.fetch_sub(1, Ordering::Relaxed) == 1;
        if !last || upload.is_over() {
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
