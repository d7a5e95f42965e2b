//! The files being written on this mount: listed and found here alone, kept alive in the
//! catalogue, and published or given up when their writers have left.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use isotope_proto::id::Ino;

use crate::catalog::Catalog;
use crate::error::FsError;
use crate::holders::UNSEEN;
use crate::upload::{Stored, Upload};
use crate::writer::Made;

/// The catalogue gives up what it has not heard of for 20 seconds.
pub(crate) const KEEP_EVERY: Duration = Duration::from_secs(5);
/// A file made and closed without a write may be opened again to write it (`qemu-img convert`
/// does) for so long; then it is published empty.
const DRAFT_KEPT: Duration = Duration::from_secs(5);

/// A program may go on with what it has stored for so long.
const STORED_KEPT: Duration = Duration::from_secs(60);
/// Files stored lately that are remembered for that.
const STORED_MAX: usize = 256;

#[derive(Default)]
pub(crate) struct Uploads {
    by_ino: Mutex<HashMap<Ino, Arc<Upload>>>,
    stored: Mutex<HashMap<Ino, (Instant, Stored)>>,
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

    /// What is to replace the image that an inode shows.
    pub(crate) fn replacing(&self, ino: Ino) -> Option<Arc<Upload>> {
        let all = self.lock();
        let is_it = |it: &&Arc<Upload>| it.draft.replaces == Some(ino) && !it.is_over();
        all.values().find(is_it).cloned()
    }

    pub(crate) fn named(&self, parent: Ino, name: &str) -> Option<Arc<Upload>> {
        let all = self.lock();
        let is_it = |it: &&Arc<Upload>| {
            let (folder, its_name) = it.place();
            (folder, its_name.as_str()) == (parent, name) && !it.is_unlinked()
        };
        all.values().find(is_it).cloned()
    }

    /// Those in a folder, in the order of their inode numbers.
    pub(crate) fn in_folder(&self, folder: Ino) -> Vec<Arc<Upload>> {
        let all = self.lock();
        let here = all.values().filter(|it| it.place().0 == folder && !it.is_unlinked());
        let mut here: Vec<_> = here.cloned().collect();
        here.sort_unstable_by_key(|it| it.draft.ino);
        here
    }

    fn remove(&self, upload: &Upload) {
        self.lock().remove(&upload.draft.ino);
        upload.left();
    }

    /// Publishes, and then the tree has it. `by` may go on with it.
    pub(crate) async fn commit(&self, upload: &Arc<Upload>, by: u32) -> Result<(), FsError> {
        let ended = upload.commit().await;
        if ended.is_ok() && !upload.is_unlinked() {
            self.remember(upload.draft.ino, upload.stored(by));
        }
        self.remove(upload);
        ended
    }

    pub(crate) async fn give_up(&self, upload: &Arc<Upload>) {
        upload.give_up().await;
        self.remove(upload);
    }

    /// Publishes a file that nobody has open, as it is.
    pub(crate) async fn commit_if_idle(&self, upload: &Arc<Upload>) -> Result<(), FsError> {
        if !upload.is_over() && upload.holders.close_if_idle() {
            self.commit(upload, UNSEEN).await?;
        }
        Ok(())
    }

    /// After the last close of a file that was never written.
    pub(crate) async fn publish_draft_later(&self, upload: &Arc<Upload>) {
        tokio::time::sleep(DRAFT_KEPT).await;
        if upload.made() != Made::Written {
            // Nobody is left to hear how it ends.
            drop(self.commit_if_idle(upload).await);
        }
    }

    fn remember(&self, ino: Ino, it: Stored) {
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        stored.retain(|_, (at, _)| at.elapsed() < STORED_KEPT);
        if stored.len() < STORED_MAX {
            stored.insert(ino, (Instant::now(), it));
        }
    }

    /// What a program stored lately under that inode.
    pub(crate) fn stored_by(&self, ino: Ino, by: u32) -> Option<Stored> {
        let stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        let lately = stored.get(&ino).filter(|(at, _)| at.elapsed() < STORED_KEPT);
        lately.map(|(_, it)| it.clone()).filter(|it| it.by == by && by != UNSEEN)
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
