//! Telling the kernel what to forget, from threads of its own that hold no lock a handler takes.
//! A notification about a name waits for its folder's lock, which a slow change in that folder
//! holds; so each folder has its own queue, and one that waits holds up no other.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsStr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fuser::{INodeNo, Notifier};
use isotope_proto::crash_point;
use isotope_proto::id::Ino;
use isotope_proto::name::EntryName;
use tracing::debug;

use crate::tree::Stale;

/// Folders that may wait at once without holding up the others; changes in a folder end within
/// their deadline of two seconds.
const THREADS: usize = 8;

/// As long as a change of the namespace may take.
const TELL_MAX: Duration = Duration::from_secs(2);

/// An offset below zero leaves an inode's pages alone (`fuse_lowlevel.h`, inval_inode).
const ATTRIBUTES_ONLY: i64 = -1;

/// What of one inode is to be forgotten.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Name(EntryName),
    Listing,
    Attributes,
}

/// Where notifications are left; clones share the queues.
#[derive(Clone, Default)]
pub(crate) struct Notifications {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    queues: Mutex<Queues>,
    changed: Condvar,
}

/// Sets, not lists: what is told twice before it is sent is sent once, so each queue is bounded by
/// the folder's names.
#[derive(Default)]
struct Queues {
    waiting: BTreeMap<Ino, BTreeSet<What>>,
    busy: HashSet<Ino>,
    closed: bool,
}

impl Notifications {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.shared.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn send(&self, stale: Vec<Stale>) {
        if stale.is_empty() {
            return;
        }
        let mut queues = self.lock();
        for it in stale {
            let (queue, what) = match it {
                Stale::Name { folder, name } => (folder, What::Name(name)),
                Stale::Listing(ino) => (ino, What::Listing),
                Stale::Attributes(ino) => (ino, What::Attributes),
            };
            queues.waiting.entry(queue).or_default().insert(what);
        }
        self.shared.changed.notify_all();
    }

    /// Returns once the kernel has been told what was waiting about a folder, or after a while: a
    /// slow change in that folder holds the kernel's lock on it.
    pub(crate) fn wait_until_told(&self, folder: Ino) {
        let deadline = Instant::now() + TELL_MAX;
        let mut queues = self.lock();
        while !queues.closed
            && (queues.waiting.contains_key(&folder) || queues.busy.contains(&folder))
        {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.shared.changed.wait_timeout(queues, left);
            queues = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Starts the threads; before that nothing is cached and what was left is dropped.
    pub(crate) fn start(&self, notifier: &Notifier) {
        self.lock().waiting.clear();
        for n in 0..THREADS {
            let (queues, notifier) = (self.clone(), notifier.clone());
            std::thread::Builder::new()
                .name(format!("notify-{n}"))
                .spawn(move || queues.work(&notifier))
                .expect("a thread at start-up");
        }
    }

    /// Ends the threads once they have nothing at hand.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.shared.changed.notify_all();
    }

    fn work(&self, notifier: &Notifier) {
        while let Some((ino, batch)) = self.take() {
            for what in batch {
                crash_point!("mount.notify.begun");
                let inode = INodeNo(ino.0);
                let sent = match &what {
                    What::Name(name) => notifier.inval_entry(inode, OsStr::new(name.as_str())),
                    What::Listing => notifier.inval_inode(inode, 0, 0),
                    What::Attributes => notifier.inval_inode(inode, ATTRIBUTES_ONLY, 0),
                };
                if let Err(error) = sent {
                    debug!(%ino, ?what, %error, "the kernel did not take a notification");
                }
            }
            self.lock().busy.remove(&ino);
            self.shared.changed.notify_all();
        }
    }

    /// The next folder with something to tell and nobody telling it.
    fn take(&self) -> Option<(Ino, BTreeSet<What>)> {
        let mut queues = self.lock();
        loop {
            if queues.closed {
                return None;
            }
            let free = queues.waiting.keys().find(|ino| !queues.busy.contains(ino)).copied();
            if let Some(ino) = free {
                let batch = queues.waiting.remove(&ino).unwrap_or_default();
                queues.busy.insert(ino);
                return Some((ino, batch));
            }
            queues = self.shared.changed.wait(queues).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(folder: u64, name: &str) -> Stale {
        Stale::Name { folder: Ino(folder), name: EntryName::parse(name).expect("a name") }
    }

    #[test]
    fn a_folder_that_is_told_holds_up_no_other() {
        let notifications = Notifications::default();
        notifications.send(vec![name(1, "a"), name(2, "b"), Stale::Listing(Ino(2))]);
        let (first, _) = notifications.take().expect("something");
        assert_eq!(first, Ino(1));
        // Still at it; what comes meanwhile waits, and the other folder does not.
        notifications.send(vec![name(1, "c"), name(1, "c")]);
        let (second, batch) = notifications.take().expect("something");
        assert_eq!((second, batch.len()), (Ino(2), 2));
        notifications.lock().busy.remove(&first);
        let (third, batch) = notifications.take().expect("something");
        assert_eq!((third, batch.len()), (Ino(1), 1));
        notifications.close();
        assert!(notifications.take().is_none());
    }
}
