//! What is done with a volume's bytes in the background: files are hashed once they have settled,
//! read again when something touched them, and read again slowly, from time to time, to find rot.
//! What was found is kept in the index until the catalogue has confirmed it.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use isotope_proto::id::ImageId;
use isotope_proto::image::Stamp;
use isotope_proto::name::VolumePath;
use isotope_proto::pb;
use isotope_proto::pb::agent_message::Message;
use isotope_proto::report::Backlog;
use isotope_proto::time::Timestamp;
use rustix::fs::{AtFlags, statat};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::bytes::{self, Read};
use crate::clock;
use crate::digest::{Manner, Pace};
use crate::index::Hashed;
use crate::published;
use crate::refresh::refresh;
use crate::session::message;
use crate::tell::tell_hashes;
use crate::volume::Volume;
use crate::worker::Keeping;

/// A file that has just been taken up may change again without its stamp showing it, where a file
/// system counts time coarsely.
const SETTLED_AFTER: Duration = Duration::from_secs(2);
/// How often is looked for something to do, when nobody says that there is.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A file that cannot be read is left alone for so long.
const FAILED_AGAIN: Duration = Duration::from_secs(600);
/// What was found is told at least so often while more is being read.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// Files read at once by one agent: one a disk is best, and more than a processor core each is not
/// to be had.
pub(crate) const READS_MAX: usize = 2;

/// How much of the disks hashing may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hashing {
    /// Bytes per second for files that were not hashed yet; `None` for as fast as it goes.
    pub rate: Option<u64>,
    /// The same for reading again what is known.
    pub scrub_rate: Option<u64>,
    /// Each file is read again after so long; `None` for never by itself.
    pub scrub_every: Option<Duration>,
}

/// Something to read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Job {
    image: ImageId,
    path: VolumePath,
    stamp: Stamp,
    why: Why,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// Its bytes are not known.
    New,
    /// Known, and touched since.
    Touched,
    /// Not read for long.
    Scrub,
}

struct Hasher {
    volume: Arc<Volume>,
    keeping: watch::Receiver<Option<Keeping>>,
    hashing: Hashing,
    permits: Arc<Semaphore>,
    /// Files without hashes, as they were first met, and when.
    fresh: HashMap<ImageId, (Stamp, Instant)>,
    failed: HashMap<ImageId, Instant>,
    /// Looks at the volume that were followed by a look at what was touched.
    looks: u64,
    /// Files hashed so far.
    hashed: u64,
    /// As much as there was when published checksums were last compared.
    compared: (u64, u64),
    told: Option<Backlog>,
    bytes_per_second: u64,
}

/// Begins to hash a volume, until it is left.
pub(crate) fn begin(
    volume: Arc<Volume>,
    keeping: watch::Receiver<Option<Keeping>>,
    hashing: Hashing,
    permits: Arc<Semaphore>,
) {
    let hasher = Hasher {
        volume,
        keeping,
        hashing,
        permits,
        fresh: HashMap::new(),
        failed: HashMap::new(),
        looks: 0,
        hashed: 0,
        compared: (0, 0),
        told: None,
        bytes_per_second: 0,
    };
    tokio::spawn(hasher.run());
}

impl Hasher {
    async fn run(mut self) {
        let left = self.volume.left.clone();
        loop {
            let worked = tokio::select! {
                worked = self.work() => worked,
                () = left.cancelled() => return,
            };
            if worked {
                continue;
            }
            let hashing = Arc::clone(&self.volume.hashing);
            tokio::select! {
                () = hashing.notified() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
                _ = self.keeping.changed() => self.told = None,
                () = left.cancelled() => return,
            }
        }
    }

    /// Reads what there is to be read; false if there was nothing.
    async fn work(&mut self) -> bool {
        let Some(keeping) = self.keeping.borrow().clone() else { return false };
        self.tell(&keeping).await;
        let jobs = self.collect().await;
        let mut left_bytes: u64 = jobs.iter().map(|job| job.stamp.size_bytes).sum();
        let mut left_files = u64::try_from(jobs.len()).unwrap_or(u64::MAX);
        self.tell_backlog(&keeping, left_files, left_bytes);
        let mut told_at = Instant::now();
        let worked = !jobs.is_empty();
        if !worked {
            self.look_beside(&keeping).await;
        }
        for job in jobs {
            if self.keeping.borrow().as_ref().is_none_or(|it| it.link.lease != keeping.link.lease) {
                break;
            }
            let began = Instant::now();
            let (size_bytes, why) = (job.stamp.size_bytes, job.why);
            self.read(job).await;
            self.note_rate(size_bytes, began.elapsed());
            left_bytes -= size_bytes;
            left_files -= 1;
            if told_at.elapsed() >= TELL_EVERY || left_files == 0 {
                self.tell(&keeping).await;
                self.tell_backlog(&keeping, left_files, left_bytes);
                told_at = Instant::now();
            }
            if why == Why::Scrub {
                break;
            }
        }
        worked
    }

    /// What else may be known of the images: by checksums beside them, by new databases.
    async fn look_beside(&mut self, keeping: &Keeping) {
        if let Err(reason) = refresh(&self.volume, &mut keeping.link.clone()).await {
            info!(volume = %self.volume.id, reason, "images could not be matched anew; it is tried again");
        }
        let looks = self.volume.looks();
        // After each look, and once more when all that it found is hashed.
        if self.compared != (looks, self.hashed) {
            self.compared = (looks, self.hashed);
            let volume = Arc::clone(&self.volume);
            let compared = tokio::task::spawn_blocking(move || {
                if let Err(error) = bytes::tidy(&volume) {
                    warn!(volume = %volume.id, %error, "old hashes could not be removed");
                }
                published::compare(&volume)
            });
            let news = compared.await;
            if news.unwrap_or(false) {
                self.tell(keeping).await;
            }
        }
    }

    /// What there is to be read, small files first: they are many, and soon done.
    async fn collect(&mut self) -> Vec<Job> {
        let volume = Arc::clone(&self.volume);
        let looks = volume.looks();
        let after_a_look = std::mem::replace(&mut self.looks, looks) != looks;
        let scrub_every = self.hashing.scrub_every;
        let found = tokio::task::spawn_blocking(move || {
            let mut jobs = unhashed(&volume);
            jobs.extend(treeless(&volume));
            if after_a_look {
                jobs.extend(touched(&volume));
            }
            let scrub = scrub_every.and_then(|every| long_unread(&volume, every, clock::now()));
            (jobs, scrub)
        });
        let (mut jobs, scrub) = found.await.unwrap_or_default();
        let now = Instant::now();
        self.failed.retain(|_, at| now.duration_since(*at) < FAILED_AGAIN);
        jobs.retain(|job| !self.failed.contains_key(&job.image));
        let fresh = std::mem::take(&mut self.fresh);
        jobs.retain(|job| {
            if job.why != Why::New {
                return true;
            }
            let known = fresh.get(&job.image).filter(|(stamp, _)| *stamp == job.stamp);
            let since = known.map_or(now, |(_, since)| *since);
            self.fresh.insert(job.image, (job.stamp, since));
            now.duration_since(since) >= SETTLED_AFTER
        });
        jobs.sort_by_key(|job| job.stamp.size_bytes);
        if jobs.is_empty() {
            jobs.extend(scrub.filter(|job| !self.failed.contains_key(&job.image)));
        }
        jobs
    }

    async fn read(&mut self, job: Job) {
        let Ok(_permit) = Arc::clone(&self.permits).acquire_owned().await else { return };
        let rate = match job.why {
            Why::New => self.hashing.rate,
            Why::Touched | Why::Scrub => self.hashing.scrub_rate,
        };
        let stop = CancellationToken::new();
        let manner = Manner { pace: Pace::new(rate), stop: stop.clone(), ..Manner::default() };
        // Dropped when the volume is left: the thread ends soon after.
        let _guard = stop.drop_guard();
        let (volume, image) = (Arc::clone(&self.volume), job.image);
        let why = job.why;
        let reading = tokio::task::spawn_blocking(move || match why {
            Why::New => bytes::hash(&volume, image, &manner),
            Why::Touched | Why::Scrub => bytes::check(&volume, image, &manner, |_| {}),
        });
        let read = reading.await;
        self.volume.treeless.lock().unwrap_or_else(PoisonError::into_inner).remove(&job.image);
        match read {
            Ok(Ok(Read::Sound | Read::Rotten(_) | Read::Stopped)) => self.hashed += 1,
            // A scan will see to it; until then there is no hurry.
            Ok(Ok(Read::Changed)) => {
                self.failed.insert(job.image, Instant::now() + SETTLED_AFTER - FAILED_AGAIN);
            }
            Ok(Err(reason)) => {
                warn!(path = %job.path, volume = %self.volume.id, reason, "a file could not be read whole; it is tried again in ten minutes");
                self.failed.insert(job.image, Instant::now());
            }
            Err(error) => warn!(%error, "hashing failed"),
        }
    }

    fn note_rate(&mut self, size_bytes: u64, took: Duration) {
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
        let rate = size_bytes.saturating_mul(1000) / millis;
        // The newest counts half: enough for a guess of the time left.
        self.bytes_per_second = match self.bytes_per_second {
            0 => rate,
            standing => standing.midpoint(rate),
        };
    }

    /// Tells what the catalogue has not confirmed yet, and what the volume's index gained.
    async fn tell(&self, keeping: &Keeping) {
        if let Err(reason) = tell_hashes(&self.volume, &mut keeping.link.clone()).await {
            info!(volume = %self.volume.id, reason, "hashes could not be told; they are told again");
        }
        let volume = Arc::clone(&self.volume);
        let saved = tokio::task::spawn_blocking(move || volume.save_index()).await;
        if let Ok(Err(error)) = saved {
            warn!(volume = %self.volume.id, %error, "the volume's index could not be written");
        }
    }

    fn tell_backlog(&mut self, keeping: &Keeping, files: u64, size_bytes: u64) {
        let backlog = Backlog { files, size_bytes, bytes_per_second: self.bytes_per_second };
        if self.told != Some(backlog) {
            let told = keeping.messages.try_send(backlog_message(&self.volume, backlog));
            self.told = told.is_ok().then_some(backlog);
        }
    }
}

pub(crate) fn backlog_message(volume: &Volume, backlog: Backlog) -> pb::AgentMessage {
    message(Message::Backlog(pb::Backlog { volume_id: volume.id.into(), ..backlog.into() }))
}

/// What has yet to be hashed, in numbers.
pub(crate) fn backlog(volume: &Volume) -> Backlog {
    let index = volume.index();
    let waiting = index.files().values().filter(|known| index.hashed(known.image).is_none());
    waiting.fold(Backlog::default(), |sum, known| Backlog {
        files: sum.files + 1,
        size_bytes: sum.size_bytes + known.stamp.size_bytes,
        ..sum
    })
}

fn unhashed(volume: &Volume) -> Vec<Job> {
    let index = volume.index();
    let waiting = index.files().iter().filter(|(_, known)| index.hashed(known.image).is_none());
    let job = |(path, known): (&VolumePath, &crate::index::Known)| Job {
        image: known.image,
        path: path.clone(),
        stamp: known.stamp,
        why: Why::New,
    };
    waiting.map(job).collect()
}

/// The tree of an image's file is missing: it is hashed once more to make it.
pub(crate) fn hash_anew(volume: &Volume, image: ImageId) {
    let mut treeless = volume.treeless.lock().unwrap_or_else(PoisonError::into_inner);
    if treeless.insert(image) {
        warn!(%image, volume = %volume.id, "a file's hash tree is missing; it is made anew");
        volume.hashing.notify_one();
    }
}

fn treeless(volume: &Volume) -> Vec<Job> {
    // They stay there until they are read: whoever asks meanwhile asks for nothing new.
    let images = volume.treeless.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let index = volume.index();
    let job = |image| {
        let (path, stamp) = index.locate(image)?;
        Some(Job { image, path: path.clone(), stamp, why: Why::New })
    };
    images.into_iter().filter_map(job).collect()
}

/// Hashed files whose ctime is another than it was: their bytes may be, too.
fn touched(volume: &Volume) -> Vec<Job> {
    let Ok(root) = volume.root() else { return Vec::new() };
    let hashed: Vec<(VolumePath, ImageId, Hashed)> = {
        let index = volume.index();
        let known = index.files().iter();
        known
            .filter_map(|(path, known)| {
                Some((path.clone(), known.image, index.hashed(known.image)?.clone()))
            })
            .collect()
    };
    let is_touched = |(path, image, hashed): (VolumePath, ImageId, Hashed)| {
        let stat = statat(&root, path.as_str(), AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let touched = bytes::ctime_ns(&stat) != hashed.ctime_ns;
        touched.then_some(Job { image, path, stamp: hashed.stamp, why: Why::Touched })
    };
    hashed.into_iter().filter_map(is_touched).collect()
}

/// The file that was not read for longest, if that is too long.
fn long_unread(volume: &Volume, every: Duration, now: Timestamp) -> Option<Job> {
    let index = volume.index();
    let read = index
        .files()
        .iter()
        .filter_map(|(path, known)| Some((index.hashed(known.image)?.read_ns, path, known)));
    let (read_ns, path, known) = read.min_by_key(|(read_ns, ..)| *read_ns)?;
    let every_ns = i64::try_from(every.as_nanos()).unwrap_or(i64::MAX);
    let (image, path, stamp) = (known.image, path.clone(), known.stamp);
    (now.0.saturating_sub(read_ns) > every_ns).then_some(Job {
        image,
        path,
        stamp,
        why: Why::Scrub,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use isotope_proto::digest::{Blake3, Sha256};
    use isotope_proto::image::Hashes;

    use super::*;
    use crate::index::{Known, Verdict};
    use crate::volume::open_file;

    /// A volume with two files, read at the given times.
    fn volume(dir: &std::path::Path, read_ns: [i64; 2]) -> Volume {
        fs::create_dir(dir.join("iso")).expect("made");
        let volume = Volume::open(dir, "isos", None, Timestamp(1)).expect("a volume");
        for (n, read_ns) in (1..).zip(read_ns) {
            let path = VolumePath::parse(&format!("iso/{n}.iso")).expect("a path");
            fs::write(dir.join(path.as_str()), "bytes").expect("written");
            let root = volume.root().expect("open");
            let (file, stamp) = open_file(&root, path.as_str()).expect("opened");
            let ctime_ns = bytes::ctime_ns(&rustix::fs::fstat(&file).expect("looked at"));
            let (image, mut index) = (ImageId::from_bytes([n; 16]), volume.index_mut());
            index.insert(path, Known { image, stamp });
            let (sha256, blake3) = (Sha256::from_bytes([n; 32]), Blake3::from_bytes([n; 32]));
            let (verdict, published, told) = (Verdict::Sound, None, true);
            let hashes = Hashes { sha256, blake3 };
            index.set_hashed(
                image,
                Hashed { stamp, ctime_ns, hashes, read_ns, verdict, published, told },
            );
        }
        volume
    }

    #[test]
    fn what_was_not_read_for_longest_is_read_again_when_it_is_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let volume = volume(dir.path(), [50, 10]);
        let due = |now| {
            let job = long_unread(&volume, Duration::from_nanos(100), Timestamp(now));
            job.map(|job| job.path.to_string())
        };
        for (now, expected) in [(110, None), (111, Some("iso/2.iso")), (1000, Some("iso/2.iso"))] {
            assert_eq!(due(now).as_deref(), expected, "{now}");
        }
        // A clock that was put back reads nothing.
        assert_eq!(due(-1_000_000), None);
    }

    #[test]
    fn what_was_touched_is_read_again_and_what_is_new_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let volume = volume(dir.path(), [0, 0]);
        assert!(touched(&volume).is_empty() && unhashed(&volume).is_empty());
        assert_eq!(backlog(&volume), Backlog::default());
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        // The file system counts time in steps of some milliseconds.
        std::thread::sleep(Duration::from_millis(50));
        fs::set_permissions(dir.path().join("iso/1.iso"), mode).expect("touched");
        let jobs: Vec<_> = touched(&volume).iter().map(|job| job.path.to_string()).collect();
        assert_eq!(jobs, ["iso/1.iso"]);
        let path = VolumePath::parse("iso/new.iso").expect("a path");
        let stamp = Stamp { inode: 1, size_bytes: 9, mtime_ns: 1 };
        let image = ImageId::from_bytes([9; 16]);
        volume.index_mut().insert(path, Known { image, stamp });
        assert_eq!(unhashed(&volume).len(), 1);
        assert_eq!(backlog(&volume), Backlog { files: 1, size_bytes: 9, bytes_per_second: 0 });
    }
}
