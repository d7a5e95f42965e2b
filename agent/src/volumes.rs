//! The volumes of this host, by id. They come and go while the agent runs.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use isotope_proto::id::VolumeId;
use tokio::sync::watch;

use crate::volume::Volume;

#[derive(Clone)]
pub(crate) struct Volumes {
    all: Arc<RwLock<BTreeMap<VolumeId, Arc<Volume>>>>,
    /// Counts additions and removals.
    changed: Arc<watch::Sender<u64>>,
}

impl Default for Volumes {
    fn default() -> Self {
        Self { all: Arc::default(), changed: Arc::new(watch::Sender::new(0)) }
    }
}

impl Volumes {
    /// False if there is one of that id.
    pub(crate) fn add(&self, volume: Volume) -> bool {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        let new = !all.contains_key(&volume.id);
        all.entry(volume.id).or_insert_with(|| Arc::new(volume));
        drop(all);
        self.changed.send_modify(|count| *count += 1);
        new
    }

    /// The volume is no longer this agent's; what works on it ends.
    pub(crate) fn remove(&self, id: VolumeId) -> Option<Arc<Volume>> {
        let removed = self.all.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
        removed.iter().for_each(|volume| volume.left.cancel());
        self.changed.send_modify(|count| *count += 1);
        removed
    }

    pub(crate) fn get(&self, id: VolumeId) -> Option<Arc<Volume>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Volume>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Moves whenever a volume comes or goes.
    pub(crate) fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
