//! Telling the kernel what to forget, from threads of its own that hold no lock a handler takes.
//! A notification about a name waits for its folder's lock, which a change in that folder holds
//! from its request to its reply; so each folder has its own queue, and one that waits holds up no
//! other. A thread that waits there cannot be killed, and while it waits neither can the mount: so
//! a folder is left alone while a change in it is under way.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fuser::{INodeNo, Notifier};
use isotope_proto::id::Ino;
use isotope_proto::name::EntryName;
use tracing::debug;

use crate::tree::Stale;

/// Folders that may wait at once without holding up the others; changes in a folder end within
/// their deadline of two seconds.
const THREADS: usize = 8;

/// As long as a change of the namespace may take.
const TELL_MAX: Duration = Duration::from_secs(2);
/// A folder in which one change follows another is told after so long all the same: others wait to
/// see what changed.
const HELD_BACK_MAX: Duration = Duration::from_millis(100);

/// An offset below zero leaves an inode's pages alone (`fuse_lowlevel.h`, inval_inode).
const ATTRIBUTES_ONLY: i64 = -1;

/// What of one inode is to be forgotten.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Name(EntryName),
    Listing,
    Attributes,
}

impl What {
    /// Whether telling it waits for the folder's lock.
    fn is_a_name(&self) -> bool {
        matches!(self, Self::Name(_))
    }
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

#[derive(Default)]
struct Queues {
    waiting: BTreeMap<Ino, Waiting>,
    busy: HashSet<Ino>,
    /// Folders whose lock the kernel holds for requests that we have not answered yet.
    changing: HashMap<Ino, usize>,
    closed: bool,
}

/// A set, not a list: what is told twice before it is sent is sent once, so each queue is bounded
/// by the folder's names.
struct Waiting {
    since: Instant,
    what: BTreeSet<What>,
}

/// A change in a folder, from its request to its reply.
pub(crate) struct Changing {
    folder: Ino,
    notifications: Notifications,
}

impl Drop for Changing {
    fn drop(&mut self) {
        let mut queues = self.notifications.lock();
        if let Some(count) = queues.changing.get_mut(&self.folder) {
            *count -= 1;
            if *count == 0 {
                queues.changing.remove(&self.folder);
                self.notifications.shared.changed.notify_all();
            }
        }
    }
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
            let new = || Waiting { since: Instant::now(), what: BTreeSet::new() };
            queues.waiting.entry(queue).or_insert_with(new).what.insert(what);
        }
        self.shared.changed.notify_all();
    }

    /// To be held until a change in a folder has been answered.
    pub(crate) fn changing(&self, folder: Ino) -> Changing {
        *self.lock().changing.entry(folder).or_default() += 1;
        Changing { folder, notifications: self.clone() }
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

    /// The next folder with something to tell and nobody telling it. Its names wait while it changes.
    fn take(&self) -> Option<(Ino, BTreeSet<What>)> {
        let mut queues = self.lock();
        while !queues.closed {
            if let Some((ino, batch)) = queues.take(Instant::now()) {
                queues.busy.insert(ino);
                return Some((ino, batch));
            }
            // The end of a change wakes us, and so does something new to tell.
            let changed = &self.shared.changed;
            queues = if queues.waiting.is_empty() {
                changed.wait(queues).unwrap_or_else(PoisonError::into_inner)
            } else {
                let waited = changed.wait_timeout(queues, HELD_BACK_MAX);
                waited.unwrap_or_else(PoisonError::into_inner).0
            };
        }
        None
    }
}

impl Queues {
    fn take(&mut self, now: Instant) -> Option<(Ino, BTreeSet<What>)> {
        let Self { waiting, busy, changing, .. } = self;
        let free = waiting.iter_mut().filter(|(ino, _)| !busy.contains(ino));
        let (ino, batch) = free
            .filter_map(|(&ino, waiting)| {
                let holds_back = changing.contains_key(&ino)
                    && now.saturating_duration_since(waiting.since) < HELD_BACK_MAX;
                let batch = waiting.what.extract_if(.., |what| !(holds_back && what.is_a_name()));
                Some((ino, batch.collect::<BTreeSet<_>>())).filter(|(_, batch)| !batch.is_empty())
            })
            .next()?;
        waiting.retain(|_, waiting| !waiting.what.is_empty());
        Some((ino, batch))
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

    #[test]
    fn names_wait_while_their_folder_changes_but_not_for_ever() {
        let notifications = Notifications::default();
        let next = || notifications.take().expect("something");
        let [first, second, third] = [1, 1, 2].map(|folder| notifications.changing(Ino(folder)));
        notifications.send(vec![name(1, "a"), name(2, "b"), Stale::Listing(Ino(2))]);
        // What needs no lock does not wait.
        assert_eq!(next(), (Ino(2), BTreeSet::from([What::Listing])));
        notifications.lock().busy.clear();
        assert_eq!(notifications.lock().take(Instant::now()), None);
        drop(third);
        assert_eq!(next().0, Ino(2));
        drop(first);
        assert_eq!(notifications.lock().take(Instant::now()), None);
        // One change is left, and the folder is told in time all the same.
        assert_eq!(next().0, Ino(1));
        drop(second);
        let queues = notifications.lock();
        assert!(queues.changing.is_empty() && queues.waiting.is_empty());
    }
}
