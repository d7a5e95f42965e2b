//! The files being written on this mount: listed and found here alone, kept alive in the
//! catalogue, and published or given up when their writers have left.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use isotope_proto::id::Ino;

use crate::catalog::Catalog;
use crate::upload::Upload;
use crate::writer::Made;

/// The catalogue gives up what it has not heard of for 20 seconds.
pub(crate) const KEEP_EVERY: Duration = Duration::from_secs(5);
/// A file made and closed without a write may be opened again to write it (`qemu-img convert`
/// does) for so long; then it is published empty.
const DRAFT_KEPT: Duration = Duration::from_secs(5);

#[derive(Default)]
pub(crate) struct Uploads {
    by_ino: Mutex<HashMap<Ino, Arc<Upload>>>,
}

impl Uploads {
    fn lock(&self) -> MutexGuard<'_, HashMap<Ino, Arc<Upload>>> {
        self.by_ino.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, upload: Arc<Upload>) {
        self.lock().insert(upload.draft.ino, upload);
    }

    pub(crate) fn get(&self, ino: Ino) -> Option<Arc<Upload>> {
        self.lock().get(&ino).cloned()
    }

    pub(crate) fn named(&self, parent: Ino, name: &str) -> Option<Arc<Upload>> {
        let all = self.lock();
        let is_it = |it: &&Arc<Upload>| it.draft.parent == parent && it.draft.name.as_str() == name;
        all.values().find(is_it).cloned()
    }

    /// Those in a folder, in the order of their inode numbers.
    pub(crate) fn in_folder(&self, folder: Ino) -> Vec<Arc<Upload>> {
        let all = self.lock();
        let here = all.values().filter(|it| it.draft.parent == folder);
        let mut here: Vec<_> = here.cloned().collect();
        here.sort_unstable_by_key(|it| it.draft.ino);
        here
    }

    fn remove(&self, upload: &Upload) {
        self.lock().remove(&upload.draft.ino);
        upload.left();
    }

    /// Publishes, and then the tree has it.
    pub(crate) async fn commit(&self, upload: &Arc<Upload>) -> Result<(), crate::error::FsError> {
        let ended = upload.commit().await;
        self.remove(upload);
        ended
    }

    pub(crate) async fn give_up(&self, upload: &Arc<Upload>) {
        upload.give_up().await;
        self.remove(upload);
    }

    /// After the last close of a file that was never written.
    pub(crate) async fn publish_draft_later(&self, upload: &Arc<Upload>) {
        tokio::time::sleep(DRAFT_KEPT).await;
        let left = upload.handles.load(Ordering::Relaxed) == 0 && upload.made() != Made::Written;
        if left && !upload.is_over() {
            // Nobody is left to hear how it ends.
            drop(self.commit(upload).await);
        }
    }

    /// For as long as the mount lives.
    pub(crate) async fn keep(self: Arc<Self>, catalog: Catalog) {
        loop {
            tokio::time::sleep(KEEP_EVERY).await;
            let ids: Vec<_> = self.lock().values().map(|upload| upload.id()).collect();
            if !ids.is_empty() {
                // Told again in time; the lease is four times as long.
                drop(catalog.keep(ids).await);
            }
        }
    }
}
