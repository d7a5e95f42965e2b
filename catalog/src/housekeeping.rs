//! What happens by itself: uploads whose writers fell silent are given up, what has been in the
//! trash for long enough is deleted.

use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::store::Verb;
use crate::{Core, clock};

const UPLOADS_EVERY: Duration = Duration::from_secs(2);
const TRASH_EVERY: Duration = Duration::from_secs(60);

pub(crate) async fn run(core: Core) {
    let (mut uploads, mut trash) = (interval(UPLOADS_EVERY), interval(TRASH_EVERY));
    uploads.set_missed_tick_behavior(MissedTickBehavior::Delay);
    trash.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let done = tokio::select! {
            _ = uploads.tick() => give_up_uploads(&core).await,
            _ = trash.tick() => purge_trash(&core).await,
            () = core.shutdown.cancelled() => return,
        };
        if let Err(refusal) = done {
            warn!(error = %refusal, "housekeeping failed; it is tried again");
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

async fn purge_trash(core: &Core) -> Result<(), isotope_proto::refusal::Refusal> {
    let now = clock::now();
    let expired = core.store.read(move |rows| rows.trash_expired(now)).await?;
    let Some(images) = core.leases.unheld(expired, Instant::now()) else { return Ok(()) };
    if !images.is_empty() {
        info!(images = images.len(), "deleted from the trash for good");
        core.commit(None, Verb::Purge { images }).await?;
    }
    Ok(())
}
