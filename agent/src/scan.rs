//! One scan of one volume: look at the marker, walk, compare, report, remember. The disk decides;
//! a volume without its marker is never scanned, so that an unmounted disk deletes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use isotope_proto::cluster::VolumeState;
use isotope_proto::image::Stamp;
use isotope_proto::name::VolumePath;
use isotope_proto::report::{FileEvent, ScanCounts, ScanOutcome};
use rustix::fs::fstat;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::plan::{Doubt, Plan, plan};
use crate::reconcile::Difference;
use crate::tell::{Link, tell};
use crate::volume::{Volume, open_file};
use crate::walk::{Seen, walk};
use crate::writers::{self, Writers};

/// What seems gone is looked for again after so long: a disk being unmounted, or a copy being
/// replaced, is done by then.
pub(crate) const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(2);
/// Looks that each see more gone than the one before; then somebody is at work there.
const LOOKS_MAX: usize = 5;
/// Where nothing is known of a file's writers, it is taken once it has not changed for so long.
const UNCHANGED_FOR: Duration = Duration::from_millis(1500);
/// How often a walk that takes long is checked for waiting on a disk that does not answer.
const SILENT_EVERY: Duration = Duration::from_secs(1);
/// Progress is told at most so often.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// Files that were met and not taken, for they may still be written.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    /// Open for writing on this host: their close will be heard.
    pub(crate) open: BTreeSet<VolumePath>,
    /// Those of whose writers nothing is known: as they were first seen so, and when.
    pub(crate) unsure: BTreeMap<VolumePath, (Stamp, i64, Instant)>,
}

/// Scans a volume and brings the catalogue up to date. `progress` hears what was found so far. With
/// the outcome comes how long it walked: what is told and waited for needs no rest.
pub(crate) async fn scan(
    volume: Arc<Volume>,
    mut link: Link,
    waiting: Arc<Mutex<Waiting>>,
    progress: impl Fn(ScanCounts) + Send + Sync + 'static,
) -> (ScanOutcome, Duration) {
    let mut outcome = ScanOutcome::default();
    let mut walked = Duration::ZERO;
    let progress = Arc::new(progress);
    let ran = run(&volume, &mut link, &waiting, &progress, (&mut outcome, &mut walked)).await;
    if let Err(failure) = ran {
        warn!(volume = %volume.id, pool = volume.pool_name, failure, "scan failed");
        outcome.failure = Some(failure);
    } else {
        volume.settle();
        let ScanCounts { files_seen, created, updated, deleted, .. } = outcome.counts;
        info!(
            pool = volume.pool_name,
            files = files_seen,
            created,
            updated,
            deleted,
            problems = outcome.problems.len(),
            "volume scanned"
        );
    }
    (outcome, walked)
}

async fn run<P>(
    volume: &Arc<Volume>,
    link: &mut Link,
    waiting: &Arc<Mutex<Waiting>>,
    progress: &Arc<P>,
    (outcome, walked): (&mut ScanOutcome, &mut Duration),
) -> Result<(), String>
where
    P: Fn(ScanCounts) + Send + Sync + 'static,
{
    let (seen, made) = believed_look(volume, link, progress, walked).await?;
    outcome.counts.files_seen = u64::try_from(seen.files.len()).unwrap_or(u64::MAX);
    outcome.problems = seen.problems;
    let (at, still) = (Arc::clone(volume), Arc::clone(waiting));
    let sorted = tokio::task::spawn_blocking(move || {
        let mut waiting = still.lock().unwrap_or_else(PoisonError::into_inner);
        let made = leave_unfinished(&at, made, &mut waiting, Instant::now());
        let open = waiting
            .open
            .iter()
            .map(|path| (path, "is open for writing; it is taken up when it is closed"));
        let unsure = waiting.unsure.keys().map(|path| {
            (path, "may still be written; it is taken up when it has stopped changing")
        });
        let problems: Vec<_> =
            open.chain(unsure).map(|(path, why)| (path.to_string(), why.to_owned())).collect();
        (made, problems)
    });
    let (made, unfinished) = sorted.await.map_err(|error| format!("the scan failed: {error}"))?;
    outcome.problems.extend(unfinished);
    let told = tell(volume, link, made, &mut outcome.counts, &**progress).await;
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

/// A look, and what follows from it. Where so much seems gone that it is suspect, a later look at
/// the same disk must have seen no more of it gone.
async fn believed_look<P>(
    volume: &Arc<Volume>,
    link: &Link,
    progress: &Arc<P>,
    walked: &mut Duration,
) -> Result<(Seen, Plan), String>
where
    P: Fn(ScanCounts) + Send + Sync + 'static,
{
    let mut before: Option<(BTreeSet<VolumePath>, u64)> = None;
    for _ in 0..LOOKS_MAX {
        let began = Instant::now();
        let seen = look_aside(volume, progress).await?;
        *walked += began.elapsed();
        let made = plan(&volume.index(), &seen, &volume.layout(), link.incarnation);
        let gone = match &made.doubt {
            Some(Doubt::Refused(reason)) => return Err(reason.clone()),
            None => return Ok((seen, made)),
            Some(Doubt::LookAgain(gone)) => gone.clone(),
        };
        if before.is_some_and(|(known, device)| gone.is_subset(&known) && device == seen.device) {
            return Ok((seen, made));
        }
        let suspect = u64::try_from(gone.len()).unwrap_or(u64::MAX);
        info!(volume = %volume.id, suspect, "many images seem gone; looking again");
        let files_seen = u64::try_from(seen.files.len()).unwrap_or(u64::MAX);
        progress(ScanCounts { files_seen, suspect, ..ScanCounts::default() });
        before = Some((gone, seen.device));
        tokio::time::sleep(LOOK_AGAIN_AFTER).await;
    }
    Err("more and more of its images seem gone; nothing is taken for deleted until that ends"
        .to_owned())
}

/// Leaves out what may still be written: half of a file is not taken up, nor is the disk of a
/// running machine.
fn leave_unfinished(volume: &Volume, made: Plan, waiting: &mut Waiting, now: Instant) -> Plan {
    let before = std::mem::take(waiting);
    let mut finished = |difference: &Difference| {
        let new = matches!(difference.event, FileEvent::Created | FileEvent::Updated);
        // Told again to a catalogue that does not know it.
        if !new || difference.image.is_some() {
            return true;
        }
        let path = &difference.path;
        let Some((writers, ctime_ns)) = look_for_writers(volume, path, difference.stamp) else {
            // It changes at this moment.
            waiting.open.insert(path.clone());
            return false;
        };
        match writers {
            Writers::None => true,
            Writers::Some => {
                waiting.open.insert(path.clone());
                false
            }
            Writers::Unknown => {
                let known = before.unsure.get(path).copied();
                let same = known.filter(|it| (it.0, it.1) == (difference.stamp, ctime_ns));
                let since = same.map_or(now, |(_, _, since)| since);
                if now.duration_since(since) >= UNCHANGED_FOR {
                    return true;
                }
                waiting.unsure.insert(path.clone(), (difference.stamp, ctime_ns, since));
                false
            }
        }
    };
    let differences = made.differences.into_iter().filter(|it| finished(it)).collect();
    Plan { differences, ..made }
}

/// `None` if the file is no longer as it was seen.
fn look_for_writers(volume: &Volume, path: &VolumePath, seen: Stamp) -> Option<(Writers, i64)> {
    let root = volume.root().ok()?;
    let (file, stamp) = open_file(&root, path.as_str()).ok()?;
    let stat = fstat(&file).ok()?;
    let nanos = i64::try_from(stat.st_ctime_nsec).unwrap_or(0);
    let ctime_ns = stat.st_ctime.saturating_mul(1_000_000_000).saturating_add(nanos);
    (stamp == seen).then(|| (writers::of(&file), ctime_ns))
}

async fn look_aside<P>(volume: &Arc<Volume>, progress: &Arc<P>) -> Result<Seen, String>
where
    P: Fn(ScanCounts) + Send + Sync + 'static,
{
    let (at, progress) = (Arc::clone(volume), Arc::clone(progress));
    let walking = tokio::task::spawn_blocking(move || look(&at, &*progress));
    unless_silent(volume, walking).await
}

/// The end of a walk, unless its directory does not answer. It is then left to itself; what it sees
/// once the disk answers is of no use.
pub(crate) async fn unless_silent<T>(
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

/// Walks between two looks at the marker: a disk unmounted meanwhile invalidates what was seen.
fn look(volume: &Volume, progress: &impl Fn(ScanCounts)) -> Result<Seen, String> {
    let online = || match volume.look().state {
        VolumeState::Online(_) => Ok(()),
        VolumeState::Offline(reason) => Err(format!("the volume is offline: {reason}")),
    };
    online()?;
    let root = volume.root()?;
    let mut told = Instant::now();
    let seen = walk(&root, &volume.layout(), |files_seen| {
        if told.elapsed() >= PROGRESS_EVERY {
            progress(ScanCounts { files_seen, ..ScanCounts::default() });
            told = Instant::now();
        }
    });
    let seen = seen.map_err(|error| format!("cannot read {}: {error}", volume.path.display()))?;
    online()?;
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

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
