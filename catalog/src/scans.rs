//! Scans under way and the last of each volume: which is asked for, what it reports, how it ended.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use isotope_proto::id::{NodeId, ScanId, VolumeId};
use isotope_proto::report::{Backlog, ScanCounts, ScanOutcome};
use isotope_proto::time::Timestamp;
use tokio::sync::watch;

/// The newest news of a scan; its end is the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Update {
    Counts(ScanCounts),
    Ended(ScanOutcome),
}

/// A volume's scan that runs, or its last one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VolumeScan {
    pub(crate) node: NodeId,
    pub(crate) begun: Timestamp,
    pub(crate) ended: Option<Timestamp>,
    /// By somebody or the schedule; else the agent began it for what it heard.
    pub(crate) asked: bool,
    pub(crate) outcome: ScanOutcome,
}

#[derive(Default)]
pub(crate) struct Scans {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    asked: HashMap<ScanId, (NodeId, VolumeId, watch::Sender<Update>)>,
    volumes: HashMap<VolumeId, VolumeScan>,
    backlogs: HashMap<VolumeId, Backlog>,
}

impl Scans {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A scan that `node` is about to be asked for. Its channel closes without an end if the node
    /// goes away.
    pub(crate) fn begin(
        &self,
        scan: ScanId,
        node: NodeId,
        volume: VolumeId,
    ) -> watch::Receiver<Update> {
        let (updates, receiver) = watch::channel(Update::Counts(ScanCounts::default()));
        self.lock().asked.insert(scan, (node, volume, updates));
        receiver
    }

    /// The node could not be asked after all.
    pub(crate) fn forget(&self, scan: ScanId) {
        self.lock().asked.remove(&scan);
    }

    /// What a node says of a volume's scan, asked for or not.
    pub(crate) fn update(
        &self,
        scan: ScanId,
        (node, volume): (NodeId, VolumeId),
        update: Update,
        now: Timestamp,
    ) {
        let mut state = self.lock();
        let asked = state.asked.contains_key(&scan);
        let standing = state.volumes.get(&volume).filter(|it| it.ended.is_none());
        let begun = standing.map_or(now, |scan| scan.begun);
        let (ended, outcome) = match &update {
            Update::Counts(counts) => (None, ScanOutcome { counts: *counts, ..Default::default() }),
            Update::Ended(outcome) => (Some(now), outcome.clone()),
        };
        state.volumes.insert(volume, VolumeScan { node, begun, ended, asked, outcome });
        let ends = matches!(update, Update::Ended(_));
        if let Some((_, _, updates)) = state.asked.get(&scan) {
            updates.send_replace(update);
        }
        if ends {
            state.asked.remove(&scan);
        }
    }

    /// The node has gone, and its scans with it.
    pub(crate) fn node_gone(&self, node: NodeId, now: Timestamp) {
        let mut state = self.lock();
        state.asked.retain(|_, (at, ..)| *at != node);
        for scan in state.volumes.values_mut().filter(|it| it.node == node && it.ended.is_none()) {
            scan.ended = Some(now);
            scan.outcome.failure = Some("its node went away".to_owned());
        }
    }

    pub(crate) fn set_backlog(&self, volume: VolumeId, backlog: Backlog) {
        self.lock().backlogs.insert(volume, backlog);
    }

    pub(crate) fn backlog(&self, volume: VolumeId) -> Backlog {
        self.lock().backlogs.get(&volume).copied().unwrap_or_default()
    }

    /// Of each volume, the scan that runs or the last one.
    pub(crate) fn last(&self, volume: VolumeId) -> Option<VolumeScan> {
        self.lock().volumes.get(&volume).cloned()
    }
}

/// What the asker is told at the end, in the words of the user interface.
pub(crate) fn summary(discovered: u64) -> String {
    match discovered {
        0 => "No new ISOs found".to_owned(),
        1 => "Discovered 1 new ISO".to_owned(),
        n => format!("Discovered {n} new ISOs"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts_like_a_person() {
        for (count, text) in
            [(0, "No new ISOs found"), (1, "Discovered 1 new ISO"), (12, "Discovered 12 new ISOs")]
        {
            assert_eq!(summary(count), text);
        }
    }

    #[test]
    fn the_last_scan_of_a_volume_stays_readable() {
        let scans = Scans::default();
        let (node, volume) = (NodeId::from_bytes([1; 16]), VolumeId::from_bytes([2; 16]));
        let scan = ScanId::from_bytes([3; 16]);
        let counts = |created| ScanCounts { created, ..ScanCounts::default() };
        let outcome = |created| ScanOutcome { counts: counts(created), ..Default::default() };
        let updates = scans.begin(scan, node, volume);
        scans.update(scan, (node, volume), Update::Counts(counts(1)), Timestamp(5));
        assert_eq!(*updates.borrow(), Update::Counts(counts(1)));
        assert_eq!(scans.last(volume).map(|it| (it.asked, it.ended)), Some((true, None)));
        scans.update(scan, (node, volume), Update::Ended(outcome(2)), Timestamp(9));
        assert_eq!(*updates.borrow(), Update::Ended(outcome(2)));
        let last = scans.last(volume).expect("kept");
        assert_eq!((last.begun, last.ended), (Timestamp(5), Some(Timestamp(9))));
        assert_eq!(last.outcome.counts.created, 2);
        // One that the agent began by itself, and whose end is never heard.
        let own = ScanId::from_bytes([4; 16]);
        scans.update(own, (node, volume), Update::Counts(counts(0)), Timestamp(20));
        assert_eq!(scans.last(volume).map(|it| it.asked), Some(false));
        scans.node_gone(node, Timestamp(30));
        let failure = scans.last(volume).and_then(|it| it.outcome.failure);
        assert_eq!(failure.as_deref(), Some("its node went away"));
    }
}
