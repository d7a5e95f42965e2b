//! What lives only while somebody says so: uploads, and images that mounts hold open. Kept in
//! memory; after a start everything is taken to be wanted until its keepers had time to speak.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use isotope_proto::id::{ImageId, SessionId, UploadId};

/// Writers keep their uploads every five seconds.
pub(crate) const UPLOAD_LEASE: Duration = Duration::from_secs(20);
/// Mounts say every five seconds what they hold.
const HOLD_LEASE: Duration = Duration::from_secs(15);
pub(crate) const HOLD_LEASE_NS: i64 = 15_000_000_000;

pub(crate) struct Leases {
    born: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    uploads: HashMap<UploadId, Instant>,
    holds: HashMap<SessionId, (Instant, HashSet<ImageId>)>,
}

impl Leases {
    pub(crate) fn new(now: Instant) -> Self {
        Self { born: now, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn keep(&self, uploads: impl IntoIterator<Item = UploadId>, now: Instant) {
        self.lock().uploads.extend(uploads.into_iter().map(|id| (id, now)));
    }

    /// Of all uploads, those that nobody has kept; the others' leases are all that is remembered.
    pub(crate) fn lapsed(&self, all: &[UploadId], now: Instant) -> Vec<UploadId> {
        let mut state = self.lock();
        // One that has just begun is kept before it is recorded.
        state.uploads.retain(|id, at| all.contains(id) || now.duration_since(*at) <= UPLOAD_LEASE);
        let kept_at = |id: &UploadId| state.uploads.get(id).copied().unwrap_or(self.born);
        let lapsed = |id: &&UploadId| now.duration_since(kept_at(id)) > UPLOAD_LEASE;
        all.iter().filter(lapsed).copied().collect()
    }

    pub(crate) fn hold(&self, session: SessionId, images: HashSet<ImageId>, now: Instant) {
        self.lock().holds.insert(session, (now, images));
    }

    /// The images that somebody holds; `None` while not everybody can have spoken yet.
    pub(crate) fn held(&self, now: Instant) -> Option<HashSet<ImageId>> {
        if now.duration_since(self.born) < HOLD_LEASE {
            return None;
        }
        let mut state = self.lock();
        state.holds.retain(|_, (at, _)| now.duration_since(*at) < HOLD_LEASE);
        Some(state.holds.values().flat_map(|(_, images)| images).copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_keeps_lapses_and_what_is_not_heard_of_yet_does_not() {
        let born = Instant::now();
        let leases = Leases::new(born);
        let ids = [UploadId::from_bytes([1; 16]), UploadId::from_bytes([2; 16])];
        let at = |seconds| born + Duration::from_secs(seconds);
        assert!(leases.lapsed(&ids, at(19)).is_empty(), "after a start");
        leases.keep([ids[0]], at(15));
        assert_eq!(leases.lapsed(&ids, at(30)), [ids[1]]);
        assert_eq!(leases.lapsed(&ids[..1], at(36)), [ids[0]]);
        leases.keep([ids[1]], at(40));
        assert!(leases.lapsed(&ids[..1], at(41)).contains(&ids[0]));
        assert!(!leases.lapsed(&ids, at(42)).contains(&ids[1]), "kept before it was recorded");
    }

    #[test]
    fn nothing_is_purged_before_every_holder_could_speak() {
        let born = Instant::now();
        let leases = Leases::new(born);
        let image = ImageId::from_bytes([1; 16]);
        let at = |seconds| born + Duration::from_secs(seconds);
        assert_eq!(leases.held(at(14)), None);
        leases.hold(SessionId::from_bytes([1; 16]), HashSet::from([image]), at(14));
        assert_eq!(leases.held(at(20)), Some(HashSet::from([image])));
        assert_eq!(leases.held(at(30)), Some(HashSet::new()));
    }
}
