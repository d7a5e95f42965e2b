//! inotify, as hints to look: what lies in a volume is decided by looking, never by an event.
//!
//! Events can be lost (the kernel's queue overflows, a directory is made and filled before it is
//! watched), may never come (NFS, writes through a mapping) or not be had (the limit of watches).
//! So the schedule's scans go on whatever happens here.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{Config, RecommendedWatcher, RecursiveMode, Watcher};

use crate::hints::{Due, Hint};

/// What is heard of one volume, and when it is to be looked at.
#[derive(Default)]
pub(crate) struct Hints {
    due: Mutex<Due>,
    heard: tokio::sync::Notify,
}

impl Hints {
    fn change(&self, change: impl FnOnce(&mut Due)) {
        change(&mut self.due.lock().unwrap_or_else(PoisonError::into_inner));
        self.heard.notify_one();
    }

    pub(crate) fn hear(&self, hint: Hint) {
        self.change(|due| due.hear(hint, Instant::now()));
    }

    pub(crate) fn look_again_in(&self, wait: Duration) {
        self.change(|due| due.by(Instant::now() + wait));
    }

    /// True if it is not known what has happened since the last look.
    pub(crate) fn begin_look(&self) -> bool {
        let mut lost = false;
        self.change(|due| lost = due.begin());
        lost
    }

    pub(crate) fn end_look(&self, took: Duration) {
        self.change(|due| due.end(Instant::now(), took));
    }

    /// Until it is time to look.
    pub(crate) async fn due(&self) {
        loop {
            let at = self.due.lock().unwrap_or_else(PoisonError::into_inner).at();
            match at {
                Some(at) if at <= Instant::now() => return,
                Some(at) => {
                    // An earlier moment may have been set meanwhile.
                    let _ = tokio::time::timeout_at(at.into(), self.heard.notified()).await;
                }
                None => self.heard.notified().await,
            }
        }
    }
}

/// How much of a directory is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// With all below it.
    All,
    /// What is made in it, and no more.
    Itself,
}

/// A directory being watched.
pub(crate) struct Watch {
    dir: PathBuf,
    reach: Reach,
    /// The directory itself: another one of its name has to be watched anew.
    inode: u64,
    _watcher: RecommendedWatcher,
}

impl Watch {
    /// Watches a directory. Walks all of it that is watched, so it may wait for the disk.
    ///
    /// # Errors
    /// Why changes will not be heard of, in words.
    pub(crate) fn begin(
        dir: &Path,
        inode: u64,
        reach: Reach,
        hear: impl Fn(Hint) + Send + 'static,
    ) -> Result<Self, String> {
        let handler = move |event: notify::Result<notify::Event>| {
            if let Some(hint) = hint(&event) {
                hear(hint);
            }
        };
        let config = Config::default().with_follow_symlinks(false);
        let mut watcher = RecommendedWatcher::new(handler, config).map_err(|it| why(&it))?;
        let mode = match reach {
            Reach::All => RecursiveMode::Recursive,
            Reach::Itself => RecursiveMode::NonRecursive,
        };
        watcher.watch(dir, mode).map_err(|error| why(&error))?;
        Ok(Self { dir: dir.to_owned(), reach, inode, _watcher: watcher })
    }

    pub(crate) fn is_of(&self, dir: &Path, inode: u64, reach: Reach) -> bool {
        self.dir == dir && self.inode == inode && self.reach == reach
    }
}

fn why(error: &notify::Error) -> String {
    match &error.kind {
        notify::ErrorKind::MaxFilesWatch => "the system's limit of watches is reached; raise \
             fs.inotify.max_user_watches (sysctl)"
            .to_owned(),
        _ => error.to_string(),
    }
}

/// What an event says, if anything.
fn hint(event: &notify::Result<notify::Event>) -> Option<Hint> {
    let Ok(event) = event else { return Some(Hint::Lost) };
    if event.need_rescan() {
        return Some(Hint::Lost);
    }
    match event.kind {
        // Hashing and serving open and close files all the time.
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => Some(Hint::Settled),
        EventKind::Access(_) => None,
        EventKind::Modify(ModifyKind::Data(_)) => Some(Hint::Written),
        EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) => Some(Hint::Settled),
        EventKind::Any | EventKind::Other => Some(Hint::Lost),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::mpsc;

    use super::*;

    /// What is heard while something is done, the last of it first to be asked for.
    fn heard(act: impl FnOnce(&Path)) -> Vec<Hint> {
        let dir = tempfile::tempdir().expect("a directory");
        let at = dir.path();
        fs::create_dir(at.join("sub")).expect("made");
        fs::write(at.join("sub/known.iso"), "bytes").expect("written");
        let (hear, hints) = mpsc::channel();
        let tell = move |hint| {
            // Nobody listens any more once all was heard.
            let _ = hear.send(hint);
        };
        let watch = Watch::begin(at, 1, Reach::All, tell).expect("watched");
        act(at);
        let mut all = Vec::new();
        while let Ok(hint) = hints.recv_timeout(Duration::from_millis(300)) {
            all.push(hint);
        }
        drop(watch);
        all
    }

    #[test]
    fn changes_are_heard_and_reading_is_not() {
        type Act = fn(&Path);
        let cases: [(&str, Act, Option<Hint>); 6] = [
            (
                "written",
                |at| fs::write(at.join("sub/a.iso"), "x").expect("done"),
                Some(Hint::Settled),
            ),
            ("read", |at| drop(fs::read(at.join("sub/known.iso")).expect("done")), None),
            (
                "moved",
                |at| fs::rename(at.join("sub/known.iso"), at.join("b.iso")).expect("done"),
                Some(Hint::Settled),
            ),
            (
                "removed",
                |at| fs::remove_file(at.join("sub/known.iso")).expect("done"),
                Some(Hint::Settled),
            ),
            (
                // The kernel says of a new mtime alone what it says of a write.
                "touched",
                |at| {
                    let file = fs::File::open(at.join("sub/known.iso")).expect("opened");
                    file.set_modified(std::time::UNIX_EPOCH).expect("done");
                },
                Some(Hint::Written),
            ),
            ("made", |at| fs::create_dir(at.join("new")).expect("done"), Some(Hint::Settled)),
        ];
        for (what, act, expected) in cases {
            let all = heard(act);
            match expected {
                Some(hint) => assert!(all.contains(&hint), "{what}: {all:?}"),
                None => assert!(all.is_empty(), "{what}: {all:?}"),
            }
        }
    }

    #[test]
    fn what_is_put_into_a_new_directory_is_heard() {
        let all = heard(|at| {
            fs::create_dir(at.join("new")).expect("made");
            std::thread::sleep(Duration::from_millis(100));
            fs::write(at.join("new/a.iso"), "x").expect("written");
        });
        assert!(all.len() > 2, "{all:?}");
    }

    #[test]
    fn losses_are_a_reason_to_look() {
        let overflow = notify::Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan);
        assert_eq!(hint(&Ok(overflow)), Some(Hint::Lost));
        assert_eq!(hint(&Err(notify::Error::generic("?"))), Some(Hint::Lost));
        let limit = notify::Error::new(notify::ErrorKind::MaxFilesWatch);
        assert!(why(&limit).contains("max_user_watches"));
    }
}
