//! The feed: what was committed, in order, to whoever watches. A watcher that falls behind reads
//! the log; one that missed too much gets the whole library again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use isotope_proto::change::Change;
use isotope_proto::cluster::Watcher;
use isotope_proto::id::{Incarnation, Revision};
use tokio::sync::{broadcast, watch};

/// Changes a watcher may lag before it reads them from the log instead.
const LAG_MAX: usize = 1024;

/// Clones share the feed.
#[derive(Clone)]
pub(crate) struct Feed {
    life: Arc<watch::Sender<Incarnation>>,
    changes: broadcast::Sender<Arc<Change>>,
    newest: Arc<watch::Sender<Revision>>,
    watchers: Arc<Watchers>,
}

#[derive(Default)]
struct Watchers {
    next: AtomicU64,
    present: Mutex<BTreeMap<u64, Watcher>>,
}

/// Present in `isotope status` for as long as it lives.
pub(crate) struct Presence {
    id: u64,
    watchers: Arc<Watchers>,
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut present = self.watchers.present.lock().unwrap_or_else(PoisonError::into_inner);
        present.remove(&self.id);
    }
}

impl Feed {
    pub(crate) fn new(incarnation: Incarnation, revision: Revision) -> Self {
        Self {
            life: Arc::new(watch::Sender::new(incarnation)),
            changes: broadcast::Sender::new(LAG_MAX),
            newest: Arc::new(watch::Sender::new(revision)),
            watchers: Arc::default(),
        }
    }

    /// Called by the writer, in commit order, once a change is durable.
    pub(crate) fn publish(&self, change: &Arc<Change>) {
        self.newest.send_replace(change.revision);
        // Without watchers there is nobody to tell.
        let _ = self.changes.send(Arc::clone(change));
    }

    pub(crate) fn incarnation(&self) -> Incarnation {
        *self.life.borrow()
    }

    /// The catalogue goes on with another library, which is durable: whoever followed the last one
    /// begins anew.
    pub(crate) fn begin_life(&self, incarnation: Incarnation, revision: Revision) {
        self.newest.send_replace(revision);
        self.life.send_replace(incarnation);
    }

    /// Moves when another life begins: who was told of the one before has to be told so.
    pub(crate) fn life(&self) -> watch::Receiver<Incarnation> {
        self.life.subscribe()
    }

    pub(crate) fn newest(&self) -> Revision {
        *self.newest.borrow()
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Arc<Change>> {
        self.changes.subscribe()
    }

    pub(crate) fn arrive(&self, watcher: Watcher) -> Presence {
        let id = self.watchers.next.fetch_add(1, Ordering::Relaxed);
        let mut present = self.watchers.present.lock().unwrap_or_else(PoisonError::into_inner);
        present.insert(id, watcher);
        Presence { id, watchers: Arc::clone(&self.watchers) }
    }

    pub(crate) fn watchers(&self) -> Vec<Watcher> {
        let present = self.watchers.present.lock().unwrap_or_else(PoisonError::into_inner);
        present.values().cloned().collect()
    }
}
