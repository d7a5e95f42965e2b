//! What happens by itself: uploads whose writers fell silent are given up, what has been in the
//! trash for long enough is deleted.

use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::Core;
use crate::store::{Outcome, Verb};

const UPLOADS_EVERY: Duration = Duration::from_secs(2);
const TRASH_EVERY: Duration = Duration::from_secs(60);

pub(crate) async fn run(core: Core) {
    let (mut uploads, mut trash) = (interval(UPLOADS_EVERY), interval(TRASH_EVERY));
    uploads.set_missed_tick_behavior(MissedTickBehavior::Delay);
    trash.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut aged = Instant::now();
    if let Err(refusal) = name_images(&core).await {
        warn!(error = %refusal, "some images have no flat name; they are named at the next start");
    }
    loop {
        let done = tokio::select! {
            _ = uploads.tick() => give_up_uploads(&core).await,
            _ = trash.tick() => {
                let by = std::mem::replace(&mut aged, Instant::now()).elapsed();
                purge_trash(&core, by).await
            }
            () = core.shutdown.cancelled() => return,
        };
        if let Err(refusal) = done {
            warn!(error = %refusal, "housekeeping failed; it is tried again");
        }
    }
}

/// A database of an earlier version has no flat names.
async fn name_images(core: &Core) -> Result<(), isotope_proto::refusal::Refusal> {
    let mut after = None;
    loop {
        match core.commit(None, Verb::NameImages { after }).await?.outcome {
            Outcome::NamedTo(Some(last)) => after = Some(last),
            _ => return Ok(()),
        }
    }
}

async fn give_up_uploads(core: &Core) -> Result<(), isotope_proto::refusal::Refusal> {
    let all = core.store.read(|rows| rows.upload_ids()).await?;
    for upload in core.leases.lapsed(&all, Instant::now()) {
        info!(%upload, "nobody keeps this upload; it is given up");
        core.store.commit(None, Verb::Abort { upload }).await?;
    }
    Ok(())
}

/// The trash ages while the catalogue runs; no clock that people set has a say in it.
async fn purge_trash(core: &Core, by: Duration) -> Result<(), isotope_proto::refusal::Refusal> {
    core.store.commit(None, Verb::AgeTrash { by }).await?;
    let expired = core.store.read(|rows| rows.trash_expired()).await?;
    let Some(images) = core.leases.unheld(expired, Instant::now()) else { return Ok(()) };
    if !images.is_empty() {
        info!(images = images.len(), "deleted from the trash for good");
        core.commit(None, Verb::Purge { images }).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use isotope_proto::id::ImageId;
    use isotope_proto::image::{ImageFormat, Os, Stamp};
    use isotope_proto::name::{EntryName, VolumePath};
    use isotope_proto::report::{FileChange, FileEvent, FoundFile};
    use isotope_proto::time::Timestamp;
    use isotope_proto::tree::{FolderRef, Place};

    use super::*;
    use crate::store::tests::{VOLUMES, store};

    #[tokio::test]
    async fn the_trash_ages_while_the_catalogue_runs_whatever_its_clock_says() {
        let (store, _dir) = store().await;
        let file = FoundFile {
            image: ImageId::from_bytes([1; 16]),
            path: VolumePath::parse("iso/a.iso").expect("a path"),
            stamp: Stamp { inode: 1, size_bytes: 1, mtime_ns: 1 },
            format: ImageFormat::Iso,
            os: Os::unknown(),
            facts: None,
            folder: None,
        };
        let (event, previous, found) = (FileEvent::Created, None, Timestamp(1));
        let changes = vec![FileChange { event, file, previous, found }];
        let applied = Verb::ApplyFiles { volume: VOLUMES[0], changes };
        store.commit(None, applied).await.expect("applied");
        let folder = FolderRef::Path("/other".parse().expect("a path"));
        let place = Place { folder, name: EntryName::parse("a.iso").expect("a name") };
        store.commit(None, Verb::Remove { place }).await.expect("removed");
        let day = Duration::from_secs(24 * 3600);
        for (days, expired) in [(0, 0), (6, 0), (1, 1)] {
            store.commit(None, Verb::AgeTrash { by: day * days }).await.expect("aged");
            let found = store.read(|rows| rows.trash_expired()).await.expect("read");
            assert_eq!(found.len(), expired, "{days} days more");
        }
    }
}
