//! Recording the feed for the next start of the mount. The follower hands over frames and never
//! waits; a thread brings them to the disk. What cannot be kept up with, or does not fit, is given
//! up whole: a recording is of use for a fast start, and for nothing else. What is in a frame is
//! `recording.rs`'s.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use isotope_proto::pb::watch_event::Event;
use rustix::fs::{FlockOperation, flock};
use tracing::{debug, info, warn};

use crate::recording::{Replayed, Unusable, Whose, encode, replay, strip};

/// Frames on their way to the disk. A disk is faster than a list comes; one that is not for so much
/// is in trouble.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// A frame in the queue costs more than its bytes.
const FRAME_COST_BYTES: usize = 128;
/// Changes may grow as large as the list, and in a small library so large, before a new list is
/// asked for.
const CHANGES_BYTES_MIN: u64 = 16 << 20;
/// What is true of hosts changes all the time: free space. For the next start so fresh will do.
const LIVE_EVERY: Duration = Duration::from_secs(30);
/// A recording that was given up is tried again, with a new list, after so long.
const RETRY_AFTER: Duration = Duration::from_secs(3600);
/// A mount that was killed a moment ago may hold its lock until it has ended; its guard cuts it off
/// by then.
const LOCK_MAX: Duration = Duration::from_secs(3);
const LOCK_RETRY: Duration = Duration::from_millis(50);
/// Reads of a recording: its frames are some 100 KiB.
const READ_BYTES: usize = 1 << 20;

/// Why nothing is recorded from the start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CannotRecord {
    #[error("another process records to {0}")]
    Locked(PathBuf),
    #[error("cannot write below {path}: {error}", path = .path.display())]
    Io { path: PathBuf, error: io::Error },
}

/// Where the recording lies.
#[derive(Debug, Clone)]
struct Place {
    dir: PathBuf,
    whose: Whose,
    file: PathBuf,
    /// A new list, until it is whole.
    new: PathBuf,
}

/// What the follower holds: it hands over, and keeps count.
pub(crate) struct Recorder {
    frames: Sender<Frame>,
    shared: Arc<Shared>,
    /// Counts lists: what failed is one of them, and the next may do better.
    list: u64,
    listing: bool,
    list_bytes: u64,
    changes_bytes: u64,
    begun: Instant,
    /// The newest state of the hosts, until its turn comes; and when the last one was handed over.
    live: Option<Vec<u8>>,
    live_told: Option<Instant>,
}

#[derive(Default)]
struct Shared {
    queued_bytes: AtomicUsize,
    /// The list, counted as by the recorder, with which recording was given up.
    failed: AtomicU64,
}

struct Frame {
    list: u64,
    kind: Kind,
    bytes: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Reset,
    Records,
    Listed,
    /// What happened since.
    News,
}

/// Takes the recording of a mount below `dir`, and plays back what is there.
///
/// # Errors
/// Nothing can be recorded there; then nothing is played back either.
pub(crate) fn open(
    dir: &Path,
    whose: Whose,
    now: Instant,
) -> Result<(Recorder, Option<Replayed>), CannotRecord> {
    let io = |error| CannotRecord::Io { path: dir.to_owned(), error };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io)?;
    let name = whose.file_name();
    let path = |end: &str| dir.join(format!("{name}.{end}"));
    let place = Place { dir: dir.to_owned(), file: path("feed"), new: path("new"), whose };
    let lock = private().create(true).truncate(false).open(path("lock")).map_err(io)?;
    if !locked(&lock).map_err(io)? {
        return Err(CannotRecord::Locked(place.file));
    }
    let (file, replayed) = match play_back(&place) {
        Ok(Some((file, replayed))) => (Some(file), Some(replayed)),
        Ok(None) => (None, None),
        Err(error) => {
            warn!(path = %place.file.display(), %error, "the snapshot is of no use and was removed");
            remove(&place.file).map_err(io)?;
            (None, None)
        }
    };
    let (frames, queue) = mpsc::channel();
    let shared = Arc::new(Shared::default());
    let recorder = Recorder {
        frames,
        shared: Arc::clone(&shared),
        list: 1,
        listing: false,
        list_bytes: replayed.as_ref().map_or(0, |it| it.list_bytes),
        changes_bytes: replayed.as_ref().map_or(0, |it| it.bytes - it.list_bytes),
        begun: now,
        live: None,
        live_told: None,
    };
    let keeper = Keeper { place, shared, file, listing: None, _lock: lock };
    std::thread::Builder::new()
        .name("recorder".to_owned())
        .spawn(move || keeper.run(&queue))
        .map_err(io)?;
    Ok((recorder, replayed))
}

/// False: somebody else keeps it locked.
fn locked(lock: &File) -> io::Result<bool> {
    let deadline = Instant::now() + LOCK_MAX;
    loop {
        match flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(LOCK_RETRY);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

fn private() -> OpenOptions {
    let mut options = File::options();
    options.read(true).write(true).mode(0o600);
    options
}

/// The recording that is there, to be gone on with behind its last good frame.
fn play_back(place: &Place) -> Result<Option<(File, Replayed)>, Unusable> {
    let mut file = match private().open(&place.file) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let replayed = replay(BufReader::with_capacity(READ_BYTES, &file), &place.whose)?;
    file.set_len(replayed.bytes)?;
    file.seek(SeekFrom::End(0))?;
    Ok(Some((file, replayed)))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

impl Recorder {
    /// Hands an event over, and gives it back without what a mount makes nothing of.
    pub(crate) fn record(&mut self, mut event: Event, now: Instant) -> Event {
        strip(&mut event);
        let kind = match &event {
            Event::Reset(_) => Kind::Reset,
            Event::Records(_) => Kind::Records,
            Event::Listed(_) => Kind::Listed,
            Event::Change(_) | Event::Live(_) => Kind::News,
            Event::Heartbeat(_) => {
                self.tell_live(now);
                return event;
            }
        };
        if kind == Kind::Reset {
            self.list += 1;
            self.begun = now;
            self.live_told = None;
        }
        if self.has_failed() {
            return event;
        }
        let is_live = matches!(event, Event::Live(_));
        let (bytes, event) = encode(event);
        if is_live {
            self.live = Some(bytes);
            self.tell_live(now);
        } else {
            self.hand_over(kind, bytes);
        }
        event
    }

    fn tell_live(&mut self, now: Instant) {
        if self.live_told.is_none_or(|at| now.duration_since(at) >= LIVE_EVERY)
            && let Some(bytes) = self.live.take()
        {
            self.live_told = Some(now);
            self.hand_over(Kind::News, bytes);
        }
    }

    fn hand_over(&mut self, kind: Kind, bytes: Vec<u8>) {
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        match kind {
            Kind::Reset => (self.listing, self.list_bytes, self.changes_bytes) = (true, len, 0),
            Kind::Records => self.list_bytes += len,
            Kind::Listed => (self.listing, self.list_bytes) = (false, self.list_bytes + len),
            Kind::News => self.changes_bytes += len,
        }
        let cost = bytes.len() + FRAME_COST_BYTES;
        let queued = self.shared.queued_bytes.fetch_add(cost, Ordering::Relaxed);
        if queued > QUEUE_BYTES_MAX {
            self.shared.failed.store(self.list, Ordering::Relaxed);
        }
        // Handed over even so: the thread sees that it is given up, and removes what it has.
        // Without a thread there is nothing to be recorded.
        let _ = self.frames.send(Frame { list: self.list, kind, bytes });
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.shared.failed.load(Ordering::Relaxed) == self.list
    }

    /// A new list would make the recording shorter, or possible again.
    pub(crate) fn wants_list(&self, now: Instant) -> bool {
        if self.has_failed() {
            return now.duration_since(self.begun) > RETRY_AFTER;
        }
        !self.listing && self.changes_bytes > self.list_bytes.max(CHANGES_BYTES_MIN)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if let Some(bytes) = self.live.take()
            && !self.has_failed()
        {
            self.hand_over(Kind::News, bytes);
        }
    }
}

/// The thread's side: the files.
struct Keeper {
    place: Place,
    shared: Arc<Shared>,
    /// The recording, if there is one, written to its end.
    file: Option<File>,
    /// The one that will take its place.
    listing: Option<File>,
    _lock: File,
}

impl Keeper {
    fn run(mut self, queue: &Receiver<Frame>) {
        let mut said = false;
        for frame in queue {
            let list = frame.list;
            let cost = frame.bytes.len() + FRAME_COST_BYTES;
            self.shared.queued_bytes.fetch_sub(cost, Ordering::Relaxed);
            let done = if self.shared.failed.load(Ordering::Relaxed) == list {
                Err(io::Error::other("the disk is too slow for it"))
            } else {
                self.take(&frame)
            };
            let Err(error) = done else { continue };
            self.give_up(list);
            let path = self.place.file.display();
            if said {
                debug!(%path, %error, "the feed is not recorded");
            } else {
                warn!(%path, %error, "the feed is not recorded; the next start needs the catalogue");
                said = true;
            }
        }
    }

    fn take(&mut self, frame: &Frame) -> io::Result<()> {
        let to = match frame.kind {
            Kind::Reset => {
                // Left by one that did not become whole.
                remove(&self.place.new)?;
                let mut file = private().create_new(true).open(&self.place.new)?;
                file.write_all(&self.place.whose.frame())?;
                self.listing.insert(file)
            }
            Kind::Listed => return self.listed(&frame.bytes),
            Kind::Records => match &mut self.listing {
                Some(file) => file,
                None => return Ok(()),
            },
            Kind::News => match &mut self.file {
                Some(file) => file,
                None => return Ok(()),
            },
        };
        to.write_all(&frame.bytes)
    }

    /// The new list is whole, and takes the place of all that there was.
    fn listed(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(mut file) = self.listing.take() else { return Ok(()) };
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&self.place.new, &self.place.file)?;
        File::open(&self.place.dir)?.sync_all()?;
        self.file = Some(file);
        info!(path = %self.place.file.display(), "the library is recorded for the next start");
        Ok(())
    }

    /// Half a recording is none: what came after it is missing.
    fn give_up(&mut self, list: u64) {
        self.shared.failed.fetch_max(list, Ordering::Relaxed);
        (self.file, self.listing) = (None, None);
        for path in [&self.place.file, &self.place.new] {
            if let Err(error) = remove(path) {
                debug!(path = %path.display(), %error, "cannot be removed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use isotope_proto::pb;

    use super::*;
    use crate::recording::tests::{events, whose};

    fn opened(dir: &Path) -> (Recorder, Option<Replayed>) {
        open(dir, whose(), Instant::now()).expect("a place to record to")
    }

    /// Records events, and what is played back when the recorder has ended.
    fn recorded(dir: &Path, events: Vec<Event>) -> Option<Replayed> {
        let (mut recorder, _) = opened(dir);
        for event in events {
            recorder.record(event, Instant::now());
        }
        drop(recorder);
        // Waits for the lock, which the thread has until it has written all.
        opened(dir).1
    }

    #[test]
    fn what_is_recorded_is_played_back_and_gone_on_with() {
        let dir = tempfile::tempdir().expect("a directory");
        let all = events(3);
        let first = recorded(dir.path(), all[..4].to_vec()).expect("a recording");
        assert_eq!(first.tree.position.revision.0, 11);
        let more = recorded(dir.path(), all[4..].to_vec()).expect("a recording");
        assert_eq!(more.tree.position.revision.0, 13);
        assert_eq!(more.list_bytes, first.list_bytes);
        let once = tempfile::tempdir().expect("a directory");
        assert_eq!(recorded(once.path(), all).expect("a recording").tree, more.tree);
    }

    #[test]
    fn a_list_that_does_not_become_whole_leaves_the_last_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let all = events(2);
        let whole = recorded(dir.path(), all.clone()).expect("a recording");
        let kept = recorded(dir.path(), all[..2].to_vec()).expect("the same");
        assert_eq!(kept.tree, whole.tree);
        // What changes before the next try goes on the last one.
        let began = [&all[..2], &events(3)[5..]].concat();
        let kept = recorded(dir.path(), began).expect("one more");
        assert_eq!(kept.tree.position.revision, whole.tree.position.revision.next());
    }

    #[test]
    fn one_process_at_a_time_records() {
        let dir = tempfile::tempdir().expect("a directory");
        let (first, _) = opened(dir.path());
        let second = open(dir.path(), whose(), Instant::now());
        assert!(matches!(second, Err(CannotRecord::Locked(_))));
        drop(first);
        opened(dir.path());
    }

    #[test]
    fn a_new_list_is_wanted_when_the_changes_have_outgrown_the_last() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut recorder, _) = opened(dir.path());
        let now = Instant::now();
        for event in events(1) {
            recorder.record(event, now);
        }
        assert!(!recorder.wants_list(now));
        let entry = pb::Entry { name: "x".repeat(1 << 20), ..pb::Entry::default() };
        let record = pb::Record { record: Some(pb::record::Record::Entry(entry)) };
        let deltas = vec![pb::Delta { before: None, after: Some(record) }];
        let change = Event::Change(pb::Change { deltas, ..pb::Change::default() });
        for _ in 0..=CHANGES_BYTES_MIN >> 20 {
            recorder.record(change.clone(), now);
        }
        assert!(recorder.wants_list(now));
        let mut list = events(0).into_iter();
        recorder.record(list.next().expect("a reset"), now);
        assert!(!recorder.wants_list(now), "it is being told");
        list.for_each(|event| drop(recorder.record(event, now)));
        assert!(!recorder.wants_list(now) && !recorder.has_failed());
    }

    #[test]
    fn what_cannot_be_written_is_given_up_and_tried_again_later() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut recorder, _) = opened(dir.path());
        let now = Instant::now();
        // In the way of the new file.
        let new = dir.path().join(format!("{}.new", whose().file_name()));
        fs::create_dir(&new).expect("made");
        recorder.record(events(0).remove(0), now);
        let deadline = now + Duration::from_secs(20);
        while !recorder.has_failed() {
            assert!(Instant::now() < deadline, "it fails");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!recorder.wants_list(now));
        let later = now + RETRY_AFTER + Duration::from_secs(1);
        assert!(recorder.wants_list(later));
        fs::remove_dir(&new).expect("removed");
        events(1).into_iter().for_each(|event| drop(recorder.record(event, later)));
        assert!(!recorder.wants_list(later));
        drop(recorder);
        assert!(opened(dir.path()).1.is_some());
    }

    #[test]
    fn of_hosts_the_newest_state_is_kept_and_not_each() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut recorder, _) = opened(dir.path());
        let now = Instant::now();
        events(0).into_iter().for_each(|event| drop(recorder.record(event, now)));
        let live = |n: u8| {
            Event::Live(pb::Live { connected_node_ids: vec![vec![n; 16]], volumes: Vec::new() })
        };
        for n in 1..=100 {
            recorder.record(live(n), now);
        }
        drop(recorder);
        let replayed = opened(dir.path()).1.expect("a recording");
        let connected = &replayed.tree.live().connected;
        assert_eq!(connected[0].as_bytes(), &[100; 16]);
        // Two of them: the first, and the last when it ended.
        assert!(replayed.bytes - replayed.list_bytes < 100);
    }
}
