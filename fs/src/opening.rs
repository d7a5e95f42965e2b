//! Opening an image: answered at once where memory has the answer, else in a task that asks this
//! host's agent. Which way an image is read is `passthrough.rs`'s to say; here it becomes a reply.

use std::sync::Arc;

use fuser::{FileHandle, FopenFlags, ReplyOpen};
use isotope_proto::id::Ino;

use crate::adapter::Adapter;
use crate::errno;
use crate::error::FsError;
use crate::files::Files;
use crate::modes::Slot;
use crate::passthrough::{Free, Mode};
use crate::reader::Reader;
use crate::reply::or_reply;

/// What a file is opened for that is not opened for reading alone.
#[derive(Debug, Clone, Copy)]
pub(crate) enum For {
    Writing,
    /// Many that ask for both can do without writing.
    Both,
}

impl Adapter {
    /// For reading.
    pub(crate) fn open_to_read(&self, ino: Ino, reply: ReplyOpen) {
        let reader = or_reply!(reply, self.files.handles.reader(ino));
        let passthrough = &self.files.passthrough;
        let slot = passthrough.join(ino);
        let local = passthrough.local(&self.files.mirror.tree(), reader.image());
        let decided = match (slot.decided(), &local) {
            (Some(mode), _) => Some(mode),
            (None, Err(why)) => slot.decide_now(Mode::Ordinary(*why)),
            (None, Ok(_)) => None,
        };
        if let Some(mode) = decided
            && !lacks_hosts(mode, &reader)
        {
            return opened(&self.files, reader, &slot, mode, reply);
        }
        let (files, size_bytes) = (self.files.clone(), reader.image().size_bytes);
        self.runtime.spawn(async move {
            let give = |file: &_| reply.open_backing(file);
            let decide = || files.passthrough.decide(local, size_bytes, give);
            let mode = slot.decide(decide).await;
            if lacks_hosts(mode, &reader)
                && let Some(header) = reader.header_alone().await
            {
                files.mirror.notifications().give(ino, header).await;
            }
            opened(&files, reader, &slot, mode, reply);
        });
    }

    /// For writing, or to be truncated. Writers go round the page cache, and so are in the way of no
    /// ordinary reader.
    pub(crate) fn open_to_write(&self, ino: Ino, what_for: For, task: u32, reply: ReplyOpen) {
        let open = move |files: &Files, reply: ReplyOpen| {
            let handle = or_reply!(reply, files.open_for_writing(ino, task));
            reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO);
        };
        if self.files.passthrough.is_free(ino) {
            return open(&self.files, reply);
        }
        let files = self.files.clone();
        self.runtime.spawn(async move {
            match (files.passthrough.until_free(ino).await, what_for) {
                (Free::Yes, _) => open(&files, reply),
                (Free::No, For::Writing) => reply.error(errno::of(&FsError::OpenForReading)),
                (Free::No, For::Both) => reply.error(errno::of(&FsError::PassedThrough)),
            }
        });
    }
}

/// Whether all that is to be reckoned with is the beginning of an image, as it is kept. The kernel is
/// given that before it hears that the file is open: then its read-ahead, which would ask for more
/// than that at once, does not begin before the end of it.
fn lacks_hosts(mode: &Mode, reader: &Reader) -> bool {
    matches!(mode, Mode::Ordinary(_)) && reader.has_header_alone()
}

fn opened(
    files: &Files,
    reader: Arc<Reader>,
    slot: &Arc<Slot<Mode>>,
    mode: &Mode,
    reply: ReplyOpen,
) {
    let open = |reader| {
        let counted = files.passthrough.tally.opened(mode.way());
        FileHandle(files.handles.open(reader, (Arc::clone(slot), counted)))
    };
    match mode {
        // Another content would show under this inode.
        Mode::Passed(backing) if !backing.is_unchanged() => {
            reply.error(errno::of(&FsError::Replaced));
        }
        Mode::Passed(backing) => {
            // What is read past this process is not seen; it is kept for when the agent is away.
            reader.keep_beginning(|len| backing.beginning(len));
            let flags = FopenFlags::FOPEN_NOFLUSH;
            reply.opened_passthrough(open(reader), flags, backing.id());
        }
        Mode::Ordinary(_) => {
            let flags = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
            reply.opened(open(reader), flags);
        }
    }
}
