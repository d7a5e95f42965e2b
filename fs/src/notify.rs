//! Telling the kernel what to forget, from threads of its own that hold no lock a handler takes.
//! A notification about a name waits for its folder's lock, which a slow change in that folder
//! holds; so each folder has its own queue, and one that waits holds up no other.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsStr;
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fuser::{INodeNo, Notifier};
use isotope_proto::crash_point;
use isotope_proto::id::Ino;
use isotope_proto::name::EntryName;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::debug;

use crate::sync::{Condvar, Mutex, MutexGuard};
use crate::tree::Stale;

/// Folders that may wait at once without holding up the others; changes in a folder end within
/// their deadline of two seconds.
const THREADS: usize = 8;

/// As long as a change of the namespace may take.
const TELL_MAX: Duration = Duration::from_secs(2);

/// Beginnings of images that are being given to the kernel at once. It puts them into pages that a
/// read under way may have locked; that ends within the read's deadline.
const GIVING_MAX: usize = 8;
/// It is the matter of some microseconds, unless such a read is under way.
const GIVE_MAX: Duration = Duration::from_millis(200);

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

struct Shared {
    queues: Mutex<Queues>,
    changed: Condvar,
    /// Once there is a kernel to tell.
    notifier: OnceLock<Notifier>,
    giving: Arc<Semaphore>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            queues: Mutex::default(),
            changed: Condvar::default(),
            notifier: OnceLock::new(),
            giving: Arc::new(Semaphore::new(GIVING_MAX)),
        }
    }
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
        // A session is started once.
        let _ = self.shared.notifier.set(notifier.clone());
        for n in 0..THREADS {
            let (queues, notifier) = (self.clone(), notifier.clone());
            std::thread::Builder::new()
                .name(format!("notify-{n}"))
                .spawn(move || queues.work(|ino, what| tell(&notifier, ino, &what)))
                .expect("a thread at start-up");
        }
    }

    /// Puts the beginning of an inode into the kernel's page cache, from a thread that holds nothing
    /// else; returns when it is there, or after a moment. Never for what is passed through.
    pub(crate) async fn give(&self, ino: Ino, beginning: Bytes) {
        let (Some(notifier), Ok(permit)) = (
            self.shared.notifier.get().cloned(),
            Arc::clone(&self.shared.giving).try_acquire_owned(),
        ) else {
            return;
        };
        let given = tokio::task::spawn_blocking(move || {
            // One that waits keeps it.
            let _permit = permit;
            if let Err(error) = notifier.store(INodeNo(ino.0), 0, &beginning) {
                debug!(%ino, %error, "the kernel did not take an image's beginning");
            }
        });
        // What comes late does no harm: the bytes are the image's.
        let _ = timeout(GIVE_MAX, given).await;
    }

    /// Ends the threads once they have nothing at hand.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.shared.changed.notify_all();
    }

    /// Tells what is left here, until it is closed.
    fn work(&self, tell: impl Fn(Ino, What)) {
        while let Some((ino, batch)) = self.take() {
            batch.into_iter().for_each(|what| tell(ino, what));
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

fn tell(notifier: &Notifier, ino: Ino, what: &What) {
    crash_point!("mount.notify.begun");
    let inode = INodeNo(ino.0);
    let sent = match what {
        What::Name(name) => notifier.inval_entry(inode, OsStr::new(name.as_str())),
        What::Listing => notifier.inval_inode(inode, 0, 0),
        What::Attributes => notifier.inval_inode(inode, ATTRIBUTES_ONLY, 0),
    };
    if let Err(error) = sent {
        debug!(%ino, ?what, %error, "the kernel did not take a notification");
    }
}

#[cfg(test)]
mod tests {
    use shuttle::thread;

    use super::*;

    /// Orders of the threads that are tried; all together take about a second.
    const ORDERS: usize = 2_000;

    fn name(folder: u64, name: &str) -> Stale {
        Stale::Name { folder: Ino(folder), name: EntryName::parse(name).expect("a name") }
    }

    #[test]
    fn a_folder_that_is_told_holds_up_no_other() {
        shuttle::check_random(one_folder_after_the_other, 1);
    }

    fn one_folder_after_the_other() {
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

    /// What the threads told, and which folders they are telling.
    #[derive(Default)]
    struct Kernel {
        told: BTreeSet<(Ino, What)>,
        telling: BTreeSet<Ino>,
    }

    fn told(kernel: &Mutex<Kernel>, ino: Ino, what: What) {
        assert!(kernel.lock().expect("not poisoned").telling.insert(ino), "one thread a folder");
        thread::yield_now();
        let mut kernel = kernel.lock().expect("not poisoned");
        kernel.telling.remove(&ino);
        kernel.told.insert((ino, what));
    }

    /// Two threads tell what three others leave; each of those, once it has waited, must find that
    /// told which it left.
    fn everybody_waits() {
        let (notifications, kernel) = (Notifications::default(), Arc::new(Mutex::default()));
        let workers: Vec<_> = (0..2)
            .map(|_| {
                let (queues, kernel) = (notifications.clone(), Arc::clone(&kernel));
                thread::spawn(move || queues.work(|ino, what| told(&kernel, ino, what)))
            })
            .collect();
        let senders: Vec<_> = [(1, "a"), (1, "b"), (2, "a")]
            .into_iter()
            .map(|(folder, text)| {
                let (queues, kernel) = (notifications.clone(), Arc::clone(&kernel));
                thread::spawn(move || {
                    queues.send(vec![name(folder, text), Stale::Listing(Ino(folder))]);
                    queues.wait_until_told(Ino(folder));
                    let mine = (Ino(folder), What::Name(EntryName::parse(text).expect("a name")));
                    assert!(kernel.lock().expect("not poisoned").told.contains(&mine));
                })
            })
            .collect();
        senders.into_iter().for_each(|it| it.join().expect("told in time"));
        notifications.close();
        // Neither sleeps on.
        workers.into_iter().for_each(|it| it.join().expect("it ends"));
    }

    #[test]
    fn whoever_waits_has_told_the_kernel_in_any_order_of_threads() {
        shuttle::check_random(everybody_waits, ORDERS);
        shuttle::check_pct(everybody_waits, ORDERS, 3);
    }

    /// Closed while somebody waits: everybody goes.
    fn closed_while_waiting() {
        let notifications = Notifications::default();
        let (queues, other) = (notifications.clone(), notifications.clone());
        let worker = thread::spawn(move || queues.work(|_, _| thread::yield_now()));
        let waiting = thread::spawn(move || {
            other.send(vec![name(1, "a"), name(2, "b")]);
            other.wait_until_told(Ino(2));
        });
        notifications.close();
        worker.join().expect("it ends");
        waiting.join().expect("it does, too");
    }

    #[test]
    fn a_close_lets_go_of_everybody_in_any_order_of_threads() {
        shuttle::check_random(closed_while_waiting, ORDERS);
    }
}
