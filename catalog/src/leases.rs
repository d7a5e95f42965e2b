//! What lives only while somebody says so: uploads, and images that mounts hold open. Kept in
//! memory; after a start everything is taken to be wanted until its keepers had time to speak. No
//! wall clock has a say in it.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use isotope_proto::id::{ImageId, SessionId, UploadId};

/// Writers keep their uploads every five seconds.
pub(crate) const UPLOAD_LEASE: Duration = Duration::from_secs(20);
/// Mounts say every five seconds what they hold.
const HOLD_LEASE: Duration = Duration::from_secs(15);

pub(crate) struct Leases {
    born: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    uploads: HashMap<UploadId, Instant>,
    holds: HashMap<SessionId, (Instant, HashSet<ImageId>)>,
    /// Images that were deleted less than a lease ago.
    deleted: HashMap<ImageId, Instant>,
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

    /// Images have left the library; mounts may have yet to say that they have them open.
    pub(crate) fn deleted(&self, images: impl IntoIterator<Item = ImageId>, now: Instant) {
        let mut state = self.lock();
        state.deleted.retain(|_, at| now.duration_since(*at) < HOLD_LEASE);
        state.deleted.extend(images.into_iter().map(|id| (id, now)));
    }

    /// Of deleted images, those that nobody can hold; `None` while not everybody can have spoken
    /// yet. What was deleted before this start has been so for long enough by then.
    pub(crate) fn unheld(&self, images: Vec<ImageId>, now: Instant) -> Option<Vec<ImageId>> {
        if now.duration_since(self.born) < HOLD_LEASE {
            return None;
        }
        let mut state = self.lock();
        state.holds.retain(|_, (at, _)| now.duration_since(*at) < HOLD_LEASE);
        state.deleted.retain(|_, at| now.duration_since(*at) < HOLD_LEASE);
        let is_held = |id: &ImageId| state.holds.values().any(|(_, images)| images.contains(id));
        let is_free = |id: &ImageId| !state.deleted.contains_key(id) && !is_held(id);
        Some(images.into_iter().filter(is_free).collect())
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
        let unheld = |seconds| leases.unheld(vec![image], at(seconds));
        assert_eq!(unheld(14), None);
        leases.hold(SessionId::from_bytes([1; 16]), HashSet::from([image]), at(14));
        assert_eq!(unheld(20), Some(Vec::new()));
        assert_eq!(unheld(30), Some(vec![image]));
        leases.deleted([image], at(40));
        assert_eq!(unheld(54), Some(Vec::new()), "who has it open may not have spoken");
        assert_eq!(unheld(55), Some(vec![image]));
    }
}
