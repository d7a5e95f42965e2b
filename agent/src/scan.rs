//! One scan of one volume: look at the marker, walk, compare, report, remember. The disk decides;
//! a volume without its marker is never scanned, so that an unmounted disk deletes nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use isotope_proto::cluster::VolumeState;
use isotope_proto::id::{ImageId, Incarnation, NodeId};
use isotope_proto::image::ImageFormat;
use isotope_proto::name::{EntryName, FOLDER_DEPTH_MAX, FolderPath, VolumePath};
use isotope_proto::pb;
use isotope_proto::pb::agent_service_client::AgentServiceClient;
use isotope_proto::refusal::Refusal;
use isotope_proto::report::{FILE_CHANGES_MAX, FileChange, FileEvent, FoundFile, ScanOutcome};
use tonic::transport::Channel;
use tracing::{info, warn};

use crate::clock;
use crate::identify::identify_by_name;
use crate::index::Known;
use crate::reconcile::{Difference, introduce, reconcile};
use crate::volume::{IMAGE_DIR, Volume};
use crate::walk::{Seen, walk};

/// The catalogue gets so long for one report; it may be syncing a slow disk.
const REPORT_DEADLINE: Duration = Duration::from_secs(30);
/// Progress is told at most so often.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// The catalogue that this agent is connected to now.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) client: AgentServiceClient<Channel>,
    pub(crate) incarnation: Incarnation,
    pub(crate) node: NodeId,
}

/// Scans a volume and brings the catalogue up to date. `progress` is told the files seen so far.
pub(crate) async fn scan(
    volume: Arc<Volume>,
    mut link: Link,
    progress: impl Fn(u64) + Send + 'static,
) -> ScanOutcome {
    let mut outcome = ScanOutcome::default();
    if let Err(failure) = run(&volume, &mut link, progress, &mut outcome).await {
        warn!(volume = %volume.id, pool = volume.pool_name, failure, "scan failed");
        outcome.failure = Some(failure);
    } else {
        info!(
            pool = volume.pool_name,
            files = outcome.files_seen,
            created = outcome.created,
            updated = outcome.updated,
            deleted = outcome.deleted,
            problems = outcome.problems.len(),
            "volume scanned"
        );
    }
    outcome
}

async fn run(
    volume: &Arc<Volume>,
    link: &mut Link,
    progress: impl Fn(u64) + Send + 'static,
    outcome: &mut ScanOutcome,
) -> Result<(), String> {
    let walker = Arc::clone(volume);
    let seen = tokio::task::spawn_blocking(move || look(&walker, &progress))
        .await
        .map_err(|error| format!("the walk failed: {error}"))??;
    outcome.files_seen = u64::try_from(seen.files.len()).unwrap_or(u64::MAX);
    outcome.problems = seen.problems;

    let differences = {
        let index = volume.index();
        if index.incarnation == Some(link.incarnation) {
            reconcile(index.files(), &seen.files)
        } else {
            introduce(index.files(), &seen.files)
        }
    };
    if volume.index().incarnation != Some(link.incarnation) {
        let mut index = volume.index_mut();
        *index = crate::index::Index::default();
        index.incarnation = Some(link.incarnation);
    } else if differences.is_empty() {
        return Ok(());
    }
    let mut reported = Ok(());
    for batch in differences.chunks(FILE_CHANGES_MAX) {
        reported = report(volume, link, batch).await;
        if reported.is_err() {
            break;
        }
        count(outcome, batch);
    }
    // What was confirmed is kept even if a later report failed.
    let keeper = Arc::clone(volume);
    let kept = tokio::task::spawn_blocking(move || {
        let root = keeper.root()?;
        let index = keeper.index();
        index.write(&root).map_err(|error| format!("cannot write the volume's index: {error}"))
    });
    reported?;
    kept.await.map_err(|error| error.to_string())?
}

/// Walks between two looks at the marker: a disk unmounted meanwhile invalidates what was seen.
fn look(volume: &Volume, progress: &impl Fn(u64)) -> Result<Seen, String> {
    let online = || match volume.look().state {
        VolumeState::Online(_) => Ok(()),
        VolumeState::Offline(reason) => Err(format!("the volume is offline: {reason}")),
    };
    online()?;
    let root = volume.root()?;
    let mut told = Instant::now();
    let seen = walk(&root, |count| {
        if told.elapsed() >= PROGRESS_EVERY {
            progress(count);
            told = Instant::now();
        }
    });
    let seen = seen.map_err(|error| format!("cannot read {}: {error}", volume.path.display()))?;
    online()?;
    Ok(seen)
}

fn count(outcome: &mut ScanOutcome, batch: &[Difference]) {
    for difference in batch {
        match difference.event {
            FileEvent::Created => outcome.created += 1,
            FileEvent::Updated | FileEvent::Moved => outcome.updated += 1,
            FileEvent::Deleted => outcome.deleted += 1,
        }
    }
}

/// Reports a batch, and takes what the catalogue made of it into the index.
async fn report(volume: &Volume, link: &mut Link, batch: &[Difference]) -> Result<(), String> {
    let changes: Vec<FileChange> = batch.iter().filter_map(told).collect();
    let mut request = tonic::Request::new(pb::NotifyImageChangesRequest {
        node_id: link.node.into(),
        volume_id: volume.id.into(),
        events: changes.iter().cloned().map(Into::into).collect(),
    });
    request.set_timeout(REPORT_DEADLINE);
    let reply = link
        .client
        .notify_image_changes(request)
        .await
        .map_err(|status| format!("the catalogue refused the report: {}", Refusal::from(status)))?
        .into_inner();
    let mut index = volume.index_mut();
    for (difference, id) in batch.iter().zip(&reply.image_ids) {
        if let Some(from) = &difference.from {
            index.remove(from);
        }
        if difference.event == FileEvent::Deleted {
            index.remove(&difference.path);
        } else if let Ok(image) = ImageId::try_from(&**id) {
            index.insert(difference.path.clone(), Known { image, stamp: difference.stamp });
        }
    }
    Ok(())
}

/// A difference in the words of a report.
fn told(difference: &Difference) -> Option<FileChange> {
    let name = difference.path.file_name();
    let file = FoundFile {
        image: difference.image.unwrap_or_else(|| ImageId::mint(clock::now())),
        path: difference.path.clone(),
        stamp: difference.stamp,
        format: ImageFormat::of_name(name)?,
        os: identify_by_name(name),
        folder: folder_hint(&difference.path),
    };
    Some(FileChange { event: difference.event, file })
}

/// The folder that a file's sub-directory asks for; below the fifth level the rest joins it.
fn folder_hint(path: &VolumePath) -> Option<FolderPath> {
    let below = path.as_str().strip_prefix(IMAGE_DIR)?.strip_prefix('/')?;
    let (dirs, _) = below.rsplit_once('/')?;
    let names = dirs.split('/').take(FOLDER_DEPTH_MAX).map(EntryName::parse);
    FolderPath::from_names(names.collect::<Result<_, _>>().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sub_directories_become_folders() {
        for (path, folder) in [
            ("iso/a.iso", None),
            ("iso/linux/a.iso", Some("/linux")),
            ("iso/1/2/3/4/5/a.iso", Some("/1/2/3/4/5")),
            ("iso/1/2/3/4/5/6/7/a.iso", Some("/1/2/3/4/5")),
        ] {
            let path = VolumePath::parse(path).expect("a path");
            assert_eq!(folder_hint(&path).map(|it| it.to_string()).as_deref(), folder, "{path}");
        }
    }
}
