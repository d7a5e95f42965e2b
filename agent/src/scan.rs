//! One scan of one volume: look at the marker, walk, compare, report, remember. The disk decides;
//! a volume without its marker is never scanned, so that an unmounted disk deletes nothing.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isotope_proto::cluster::VolumeState;
use isotope_proto::id::{ImageId, Incarnation, NodeId};
use isotope_proto::name::{EntryName, FOLDER_DEPTH_MAX, FolderPath, VolumePath};
use isotope_proto::pb;
use isotope_proto::pb::agent_service_client::AgentServiceClient;
use isotope_proto::refusal::Refusal;
use isotope_proto::report::{FILE_CHANGES_MAX, FileChange, FileEvent, FoundFile, ScanOutcome};
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tracing::{info, warn};

use crate::clock;
use crate::identify::{Databases, Identity, by_name, identify};
use crate::index::{Index, Known};
use crate::plan::{Doubt, Ending, Plan, plan};
use crate::reconcile::Difference;
use crate::volume::{IMAGE_DIR, Volume, open_file};
use crate::walk::{Seen, walk};

/// The catalogue gets so long for one report; it may be syncing a slow disk.
const REPORT_DEADLINE: Duration = Duration::from_secs(30);
/// A directory that lost all images at once is looked at again after so long: a disk being
/// unmounted, or a copy being replaced, is done by then.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(2);
/// How often a walk that takes long is checked for waiting on a disk that does not answer.
const SILENT_EVERY: Duration = Duration::from_secs(1);
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
    progress: impl Fn(u64) + Send + Sync + 'static,
) -> ScanOutcome {
    let mut outcome = ScanOutcome::default();
    if let Err(failure) = run(&volume, &mut link, progress, &mut outcome).await {
        warn!(volume = %volume.id, pool = volume.pool_name, failure, "scan failed");
        outcome.failure = Some(failure);
    } else {
        volume.settle();
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
    progress: impl Fn(u64) + Send + Sync + 'static,
    outcome: &mut ScanOutcome,
) -> Result<(), String> {
    let progress = Arc::new(progress);
    let mut seen = look_aside(volume, &progress).await?;
    let mut made = plan(&volume.index(), &seen, link.incarnation);
    if made.doubt == Some(Doubt::LookAgain) {
        tokio::time::sleep(LOOK_AGAIN_AFTER).await;
        seen = look_aside(volume, &progress).await?;
        made = plan(&volume.index(), &seen, link.incarnation);
    }
    outcome.files_seen = u64::try_from(seen.files.len()).unwrap_or(u64::MAX);
    outcome.problems = seen.problems;
    if let Some(Doubt::Refused(reason)) = made.doubt {
        return Err(reason);
    }
    let told = tell(volume, link, made, outcome).await;
    if told.is_ok() && !seen.files.is_empty() {
        volume.index_mut().images_lie(seen.image_dir);
    }
    // What was confirmed is kept even if a later report failed.
    let keeper = Arc::clone(volume);
    let kept = tokio::task::spawn_blocking(move || keeper.save_index()).await;
    told?;
    let kept = kept.map_err(|error| error.to_string())?;
    kept.map_err(|error| format!("cannot write the volume's index: {error}"))
}

async fn look_aside<P>(volume: &Arc<Volume>, progress: &Arc<P>) -> Result<Seen, String>
where
    P: Fn(u64) + Send + Sync + 'static,
{
    let (at, progress) = (Arc::clone(volume), Arc::clone(progress));
    let walking = tokio::task::spawn_blocking(move || look(&at, &*progress));
    unless_silent(volume, walking).await
}

/// The end of a walk, unless its directory does not answer. It is then left to itself; what it sees
/// once the disk answers is of no use.
async fn unless_silent<T>(
    volume: &Volume,
    mut walking: JoinHandle<Result<T, String>>,
) -> Result<T, String> {
    loop {
        match tokio::time::timeout(SILENT_EVERY, &mut walking).await {
            Ok(walked) => return walked.map_err(|error| format!("the walk failed: {error}"))?,
            Err(_) if volume.is_silent() => {
                return Err("the volume's directory does not answer".to_owned());
            }
            Err(_) => {}
        }
    }
}

/// Tells the catalogue, batch by batch, and takes what it made of each into the index.
async fn tell(
    volume: &Arc<Volume>,
    link: &mut Link,
    plan: Plan,
    outcome: &mut ScanOutcome,
) -> Result<(), String> {
    if plan.introduction.is_some() && !plan.differences.is_empty() {
        volume.index_mut().begin_introduction();
    }
    for batch in plan.differences.chunks(FILE_CHANGES_MAX) {
        let (root, files) = (volume.root()?, batch.to_vec());
        let telling = tokio::task::spawn_blocking(move || {
            Ok(files.iter().map(|it| told(it, look_into(&root, it)).into()).collect())
        });
        let events = unless_silent(volume, telling).await?;
        let ids = report(volume, link, events, None).await?;
        confirm(&mut volume.index_mut(), batch, &ids)?;
        count(outcome, batch);
    }
    match plan.introduction {
        None | Some(Ending::Open) => return Ok(()),
        Some(Ending::Everything(paths)) => {
            let everything = Some(paths.into_iter().collect());
            report(volume, link, Vec::new(), everything).await?;
        }
        Some(Ending::TooMany) => warn!(
            volume = %volume.id,
            "too many files to tell the catalogue all at once; it may keep some that are gone"
        ),
    }
    volume.index_mut().end_introduction(link.incarnation);
    Ok(())
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
            // Introduced anew, not found: it was known all along.
            FileEvent::Created if difference.image.is_some() => {}
            FileEvent::Created => outcome.created += 1,
            FileEvent::Updated | FileEvent::Moved => outcome.updated += 1,
            FileEvent::Deleted => outcome.deleted += 1,
        }
    }
}

/// Reports to the catalogue; returns the image of each event's file.
async fn report(
    volume: &Volume,
    link: &mut Link,
    events: Vec<pb::ImageEvent>,
    everything: Option<pb::VolumePaths>,
) -> Result<Vec<ImageId>, String> {
    let mut request = tonic::Request::new(pb::NotifyImageChangesRequest {
        node_id: link.node.into(),
        volume_id: volume.id.into(),
        events,
        everything,
    });
    request.set_timeout(REPORT_DEADLINE);
    let reply = link
        .client
        .notify_image_changes(request)
        .await
        .map_err(|status| format!("the catalogue refused the report: {}", Refusal::from(status)))?
        .into_inner();
    let ids = reply.image_ids.iter().map(|id| ImageId::try_from(&**id));
    ids.collect::<Result<_, _>>().map_err(|error| format!("the catalogue's answer: {error}"))
}

/// Takes a batch that the catalogue confirmed into the index.
fn confirm(index: &mut Index, batch: &[Difference], ids: &[ImageId]) -> Result<(), String> {
    if batch.len() != ids.len() {
        let (asked, got) = (batch.len(), ids.len());
        return Err(format!("the catalogue answered for {got} files when told of {asked}"));
    }
    for (difference, image) in batch.iter().zip(ids) {
        if let Some(from) = &difference.from {
            index.remove(from);
        }
        if difference.event == FileEvent::Deleted {
            index.remove(&difference.path);
        } else {
            let known = Known { image: *image, stamp: difference.stamp };
            index.insert(difference.path.clone(), known);
        }
    }
    Ok(())
}

/// What a file is by its bytes, if it is still the file that was seen.
fn look_into(root: &OwnedFd, difference: &Difference) -> Option<Identity> {
    let (file, stamp) = open_file(root, difference.path.as_str()).ok()?;
    let name = difference.path.file_name();
    let databases = Databases::of_this_machine();
    (stamp == difference.stamp).then(|| identify(&file, stamp.size_bytes, name, &databases))
}

/// A difference in the words of a report.
fn told(difference: &Difference, identity: Option<Identity>) -> FileChange {
    let facts = identity.as_ref().map(|it| Box::new(it.facts.clone()));
    let identity = identity.unwrap_or_else(|| by_name(difference.path.file_name()));
    let file = FoundFile {
        image: difference.image.unwrap_or_else(|| ImageId::mint(clock::now())),
        path: difference.path.clone(),
        stamp: difference.stamp,
        format: identity.format,
        os: identity.os,
        facts,
        folder: folder_hint(&difference.path),
    };
    FileChange { event: difference.event, file }
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
    use isotope_proto::image::{ImageFormat, Stamp};

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

    fn difference(event: FileEvent, path: &str, n: u8) -> Difference {
        Difference {
            event,
            path: VolumePath::parse(path).expect("a path"),
            stamp: Stamp { inode: n.into(), size_bytes: 1, mtime_ns: 1 },
            image: None,
            from: None,
        }
    }

    #[test]
    fn every_difference_is_told_and_confirmed_under_its_own_id() {
        // An upload's name need not be an image's; left out, it would shift the ids behind it.
        let batch = [
            difference(FileEvent::Created, "iso/noext", 1),
            difference(FileEvent::Created, "iso/a.iso", 2),
        ];
        let told: Vec<_> = batch.iter().map(|it| told(it, None)).collect();
        assert_eq!(told.len(), 2);
        assert_eq!(told[0].file.format, ImageFormat::Img);
        let ids: Vec<_> = told.iter().map(|change| change.file.image).collect();
        let mut index = Index::default();
        confirm(&mut index, &batch, &ids).expect("confirmed");
        let at = |id| index.locate(id).map(|(path, _)| path.as_str());
        assert_eq!(
            ids.iter().map(|id| at(*id)).collect::<Vec<_>>(),
            [Some("iso/noext"), Some("iso/a.iso")]
        );
        assert!(confirm(&mut index, &batch, &ids[1..]).is_err(), "one answer for two");
    }

    #[test]
    fn what_is_only_told_again_is_no_discovery() {
        let new = difference(FileEvent::Created, "iso/new.iso", 1);
        let known = Difference { image: Some(ImageId::from_bytes([7; 16])), ..new.clone() };
        let mut outcome = ScanOutcome::default();
        count(&mut outcome, &[new, known]);
        assert_eq!(outcome.created, 1);
    }

    #[test]
    fn an_interrupted_introduction_keeps_ids_and_bytes() {
        let (old, new) = (Incarnation::from_bytes([1; 16]), Incarnation::from_bytes([2; 16]));
        let mut index = Index::default();
        let files = ["iso/a.iso", "iso/b.iso"].map(|it| difference(FileEvent::Created, it, 1));
        let files = [
            files[0].clone(),
            Difference { stamp: Stamp { inode: 2, ..files[1].stamp }, ..files[1].clone() },
        ];
        let ids = [ImageId::from_bytes([7; 16]), ImageId::from_bytes([8; 16])];
        confirm(&mut index, &files, &ids).expect("confirmed");
        index.end_introduction(old);
        let seen = Seen {
            files: files.iter().map(|it| (it.path.clone(), it.stamp)).collect(),
            ..Seen::default()
        };
        // One of two files was confirmed when the connection broke.
        let made = plan(&index, &seen, new);
        index.begin_introduction();
        confirm(&mut index, &made.differences[..1], &ids[..1]).expect("confirmed");
        assert!(ids.iter().all(|id| index.locate(*id).is_some()), "both are served");
        for catalog in [old, new] {
            let again = plan(&index, &seen, catalog);
            let proposed: Vec<_> = again.differences.iter().filter_map(|it| it.image).collect();
            assert_eq!(proposed, ids, "told anew, under the same ids");
            assert!(again.introduction.is_some());
        }
    }

    #[tokio::test]
    async fn a_walk_of_a_silent_directory_is_given_up() {
        let dir = tempfile::tempdir().expect("a directory");
        let now = isotope_proto::time::Timestamp(1);
        let volume = Volume::open(dir.path(), "isos", None, now).expect("a volume");
        let (release, held) = std::sync::mpsc::channel::<()>();
        let walking = tokio::task::spawn_blocking(move || {
            let _ = held.recv();
            Ok(())
        });
        volume.fall_silent();
        let waited =
            tokio::time::timeout(Duration::from_secs(10), unless_silent(&volume, walking)).await;
        let reason = waited.expect("not waited for").expect_err("given up");
        assert!(reason.contains("does not answer"), "{reason}");
        drop(release);
    }
}
