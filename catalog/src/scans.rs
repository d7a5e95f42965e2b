//! Scans under way: which is asked for, what it reports, how it ends.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use isotope_proto::id::{NodeId, ScanId};
use isotope_proto::report::ScanOutcome;
use tokio::sync::watch;

/// The newest news of a scan; its end is the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Update {
    FilesSeen(u64),
    Ended(ScanOutcome),
}

type Running = HashMap<ScanId, (NodeId, watch::Sender<Update>)>;

#[derive(Default)]
pub(crate) struct Scans {
    running: Mutex<Running>,
}

impl Scans {
    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A scan that `node` is about to be asked for. Its channel closes without an end if the node
    /// goes away.
    pub(crate) fn begin(&self, scan: ScanId, node: NodeId) -> watch::Receiver<Update> {
        let (updates, receiver) = watch::channel(Update::FilesSeen(0));
        self.lock().insert(scan, (node, updates));
        receiver
    }

    pub(crate) fn update(&self, scan: ScanId, update: Update) {
        let mut running = self.lock();
        let Some((_, updates)) = running.get(&scan) else { return };
        let ended = matches!(update, Update::Ended(_));
        updates.send_replace(update);
        if ended {
            running.remove(&scan);
        }
    }

    /// The node has gone, and its scans with it.
    pub(crate) fn node_gone(&self, node: NodeId) {
        self.lock().retain(|_, (at, _)| *at != node);
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
}
