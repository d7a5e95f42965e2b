//! Images whose bytes the kernel reads from this host's own files, past this process: which may be,
//! and what is kept for each while it is open. The agent finds and checks the file; replies to the
//! kernel are `opening.rs`'s.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fuser::BackingId;
use isotope_proto::id::Ino;
use isotope_proto::image::Stamp;
use isotope_proto::passing::{Ask, Kind, Withheld};
use rustix::fs::{AtFlags, StatxFlags, statx};
use tokio::time::timeout_at;
use tracing::{debug, info};

use crate::local::{self, Missed};
use crate::modes::{Modes, Slot};
use crate::tally::{Tally, Way, Why};
use crate::tree::{ImageNode, Tree};

/// Files of this host that are asked for, of one image: it may lie in several pools, and so may its
/// twins; that none of the first few can be had, and a later one can, is not worth the time.
const ASKED_MAX: usize = 4;
/// An agent that did not answer in time is not asked for so long: each open would wait for it.
const SILENT_FOR: Duration = Duration::from_secs(5);
/// So long an open for writing waits for what was just closed, and for what is being decided, which
/// takes `ANSWER_MAX` at most: the kernel tells of a release after the close has returned.
const RELEASE_MAX: Duration = Duration::from_millis(600);

/// How an image is read that is open for reading.
pub(crate) enum Mode {
    Passed(Backing),
    Ordinary(Why),
}

impl Mode {
    pub(crate) fn way(&self) -> Way {
        match self {
            Self::Passed(_) => Way::PassedThrough,
            Self::Ordinary(why) => Way::Ordinary(*why),
        }
    }
}

/// A file that the kernel reads in the place of an image.
pub(crate) struct Backing {
    /// Taken when it is dropped.
    open: Option<(BackingId, File)>,
    /// As the agent found it to be the catalogued one.
    stamp: Stamp,
    closing: Closing,
}

/// Closing the last descriptor of a deleted file frees its blocks, which may take seconds, and a
/// disk may hang; so one thread closes them all. As many wait for it at most as there are files open.
type Closing = mpsc::Sender<(BackingId, File)>;

impl Drop for Backing {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            // Where that thread has gone it is closed here.
            let _ = self.closing.send(open);
        }
    }
}

impl Backing {
    pub(crate) fn id(&self) -> &BackingId {
        &self.open.as_ref().expect("it is there until it is dropped").0
    }

    /// Reads the first bytes of the file where a disk may be waited for; none where it changed.
    pub(crate) fn beginning(&self, len: usize) -> impl FnOnce() -> Option<Bytes> + Send + 'static {
        let file = self.open.as_ref().and_then(|(_, file)| file.try_clone().ok());
        let stamp = self.stamp;
        move || {
            let file = file?;
            let mut bytes = vec![0; len];
            file.read_exact_at(&mut bytes, 0).ok()?;
            (stamp_now(&file) == Some(stamp)).then(|| bytes.into())
        }
    }

    /// Whether it is still the file that the agent checked. Of a file system on a network that is as
    /// far as this host has heard: nobody is asked, and nothing waits.
    pub(crate) fn is_unchanged(&self) -> bool {
        self.open.as_ref().and_then(|(_, file)| stamp_now(file)) == Some(self.stamp)
    }
}

fn stamp_now(file: &File) -> Option<Stamp> {
    let wanted = StatxFlags::INO | StatxFlags::SIZE | StatxFlags::MTIME;
    let stat = statx(file, "", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, wanted).ok()?;
    let seconds = stat.stx_mtime.tv_sec.saturating_mul(1_000_000_000);
    Some(Stamp {
        inode: stat.stx_ino,
        size_bytes: stat.stx_size,
        mtime_ns: seconds.saturating_add(i64::from(stat.stx_mtime.tv_nsec)),
    })
}

/// Whether an inode can be opened for writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Free {
    Yes,
    /// Somebody goes on reading it.
    No,
}

/// A file of this host that should hold an image's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LocalFile {
    /// `host:port` of the agent that sees it.
    address: String,
    ask: Ask,
}

/// The files of an image on a host, best first: its own, then those of images with its bytes.
fn local_files(tree: &Tree, image: &ImageNode, host: &str) -> Vec<LocalFile> {
    let all = std::iter::once(image).chain(tree.twins(image));
    let files = all.flat_map(|image| {
        let nodes =
            image.volumes.iter().flat_map(|it| tree.holders(*it).map(move |node| (*it, node)));
        let here = nodes.filter(|(_, node)| node.host == host);
        here.map(|(volume, node)| LocalFile {
            address: node.address.clone(),
            ask: Ask { kind: Kind::Stored, image: image.id, volume },
        })
    });
    files.take(ASKED_MAX).collect()
}

/// What it means for an image's readers that a file was not passed.
fn why(missed: Missed) -> Why {
    match missed {
        Missed::Away | Missed::Silent => Why::AgentSilent,
        Missed::Withheld(Withheld::NotHere) => Why::NotLocal,
        Missed::Withheld(Withheld::Touched) => Why::Touched,
        Missed::Withheld(_) => Why::Withheld,
    }
}

/// The same where the kernel does not take it.
fn refused(error: &io::Error) -> Why {
    match error.raw_os_error() {
        // Anything else is about the file: ELOOP where its file system is stacked too high.
        Some(libc::EPERM) => Why::Unprivileged,
        _ => Why::Refused,
    }
}

pub(crate) struct Passthrough {
    modes: Arc<Modes<Mode>>,
    /// This host's name.
    host: String,
    /// Why nothing is passed through, where nothing is.
    off: OnceLock<Why>,
    /// Agents that did not answer, by address, and when.
    silent: Mutex<HashMap<String, Instant>>,
    closing: Closing,
    pub(crate) tally: Tally,
}

impl Passthrough {
    pub(crate) fn new(host: String, off: Option<Why>, tally: Tally) -> Self {
        let (closing, closed) = mpsc::channel();
        // Ends with the last that could be sent.
        std::thread::spawn(move || closed.into_iter().for_each(drop));
        let off = off.map(OnceLock::from).unwrap_or_default();
        Self { modes: Arc::default(), host, off, silent: Mutex::default(), closing, tally }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.off.get().is_none()
    }

    /// Nothing more is passed through; what is, goes on.
    pub(crate) fn turn_off(&self, why: Why) {
        if self.off.set(why).is_ok() {
            info!(?why, "images are read through this process");
        }
    }

    /// The mode of an inode that is being opened for reading, which may have yet to be decided.
    pub(crate) fn join(&self, ino: Ino) -> Arc<Slot<Mode>> {
        self.modes.join(ino)
    }

    /// The files that may be passed, or why there are none; asks nobody.
    pub(crate) fn local(&self, tree: &Tree, image: &ImageNode) -> Result<Vec<LocalFile>, Why> {
        if let Some(why) = self.off.get() {
            return Err(*why);
        }
        let mut files = local_files(tree, image, &self.host);
        if files.is_empty() {
            return Err(Why::NotLocal);
        }
        let silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        files.retain(|it| silent.get(&it.address).is_none_or(|at| at.elapsed() > SILENT_FOR));
        if files.is_empty() { Err(Why::AgentSilent) } else { Ok(files) }
    }

    /// Asks for the files in turn, and gives the first that is passed to the kernel. Never fails, and
    /// takes no longer than one silent agent.
    pub(crate) async fn decide(
        &self,
        files: Result<Vec<LocalFile>, Why>,
        size_bytes: u64,
        give: impl Fn(&File) -> io::Result<BackingId>,
    ) -> Mode {
        let files = match files {
            Ok(files) => files,
            Err(why) => return Mode::Ordinary(why),
        };
        let mut first = None;
        for LocalFile { address, ask } in files {
            let missed = match local::descriptor(&address, ask).await {
                Ok((file, stamp)) if stamp.size_bytes == size_bytes => {
                    return self.give(file, stamp, give);
                }
                // Not what the catalogue says.
                Ok(_) => Missed::Withheld(Withheld::Changed),
                Err(missed) => missed,
            };
            debug!(address, image = %ask.image, ?missed, "not passed through");
            first.get_or_insert(why(missed));
            if missed == Missed::Silent {
                let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
                silent.retain(|_, at| at.elapsed() < SILENT_FOR);
                silent.insert(address, Instant::now());
                // The time is over.
                break;
            }
        }
        Mode::Ordinary(first.unwrap_or(Why::NotLocal))
    }

    fn give(
        &self,
        file: File,
        stamp: Stamp,
        give: impl Fn(&File) -> io::Result<BackingId>,
    ) -> Mode {
        match give(&file) {
            Ok(id) => {
                let closing = self.closing.clone();
                Mode::Passed(Backing { open: Some((id, file)), stamp, closing })
            }
            Err(error) => {
                debug!(%error, "the kernel takes no such file");
                let why = refused(&error);
                if why == Why::Unprivileged {
                    self.turn_off(why);
                }
                Mode::Ordinary(why)
            }
        }
    }

    /// Whether an inode may be opened for writing now. While it is passed through the kernel fails
    /// whatever is not, and passed through with it a writer could change the pool's file.
    pub(crate) fn is_free(&self, ino: Ino) -> bool {
        self.modes.of(ino).is_none_or(|slot| matches!(slot.decided(), Some(Mode::Ordinary(_))))
    }

    /// Waits a little for that.
    pub(crate) async fn until_free(&self, ino: Ino) -> Free {
        let deadline = tokio::time::Instant::now() + RELEASE_MAX;
        loop {
            let mut ended = std::pin::pin!(self.modes.ended());
            ended.as_mut().enable();
            if self.is_free(ino) {
                return Free::Yes;
            }
            if timeout_at(deadline, ended).await.is_err() {
                return if self.is_free(ino) { Free::Yes } else { Free::No };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use isotope_proto::change::Record;
    use isotope_proto::cluster::{Node, Sight, Volume};
    use isotope_proto::id::{ContentId, ImageId, Incarnation, NodeId, PoolId, Revision, VolumeId};
    use isotope_proto::image::{Image, ImageFormat, Os, Replica};
    use isotope_proto::name::VolumePath;
    use isotope_proto::time::Timestamp;

    use super::*;
    use crate::tree::Position;

    const STAMP: Stamp = Stamp { inode: 1, size_bytes: 1, mtime_ns: 0 };

    fn image(n: u8, content: u8, volumes: &[u8]) -> Image {
        let replica = |n: &u8| Replica {
            volume: VolumeId::from_bytes([*n; 16]),
            path: VolumePath::parse("iso/x.iso").expect("a path"),
            stamp: STAMP,
            checked: None,
        };
        Image {
            id: ImageId::from_bytes([n; 16]),
            ino: Ino(n.into()),
            content: ContentId::from_bytes([content; 16]),
            hashes: None,
            filename: "x.iso".to_owned(),
            size_bytes: 1,
            format: ImageFormat::Iso,
            os: Os::unknown(),
            flat_names: Vec::new(),
            facts: None,
            mode: 0,
            created: Timestamp(0),
            modified: Timestamp(0),
            changed: Timestamp(0),
            replicas: volumes.iter().map(replica).collect(),
        }
    }

    /// Volumes 1, 2 and 3, each seen by the node of its number on the host `h1`, `h2`, `h1`.
    fn tree(images: &[Image]) -> Tree {
        let incarnation = Incarnation::from_bytes([1; 16]);
        let mut tree = Tree::new(Position { incarnation, revision: Revision(1) });
        for (n, host) in [(1_u8, "h1"), (2, "h2"), (3, "h1")] {
            let (id, address) = (NodeId::from_bytes([n; 16]), format!("a:{n}"));
            let (name, host) = (format!("node-{n}"), host.to_owned());
            tree.load(Record::Node(Node { id, name, address, host }));
            let sights = vec![Sight { node: id, path: String::new() }];
            let (id, pool) = (VolumeId::from_bytes([n; 16]), PoolId::from_bytes([0; 16]));
            tree.load(Record::Volume(Volume { id, pool, sights }));
        }
        for image in images {
            tree.load(Record::Image(image.clone()));
        }
        tree.end_list();
        tree
    }

    #[test]
    fn this_hosts_own_files_are_asked_for_and_then_those_of_twins() {
        let tree = tree(&[image(9, 7, &[2, 3]), image(8, 7, &[1]), image(6, 5, &[2])]);
        let check = |ino: u64, host: &str, expected: &[&str]| {
            let files = local_files(&tree, tree.image(Ino(ino)).expect("an image"), host);
            let told = |it: &LocalFile| format!("{} of {}", it.address, it.ask.image.as_bytes()[0]);
            assert_eq!(files.iter().map(told).collect::<Vec<_>>(), expected, "{ino} on {host}");
        };
        check(9, "h1", &["a:3 of 9", "a:1 of 8"]);
        check(8, "h1", &["a:1 of 8", "a:3 of 9"]);
        check(9, "h2", &["a:2 of 9"]);
        check(6, "h1", &[]);
        check(6, "elsewhere", &[]);
    }

    #[tokio::test]
    async fn what_cannot_be_passed_is_read_the_ordinary_way() {
        let tree = tree(&[image(9, 7, &[1]), image(6, 5, &[2])]);
        let [here, there] = [9, 6].map(|ino| tree.image(Ino(ino)).expect("an image"));
        let passthrough = |off| Passthrough::new("h1".to_owned(), off, Tally::default());
        let off = passthrough(Some(Why::TurnedOff));
        assert_eq!(off.local(&tree, here), Err(Why::TurnedOff));
        let on = passthrough(None);
        assert_eq!(on.local(&tree, there), Err(Why::NotLocal));
        let files = on.local(&tree, here);
        assert_eq!(files.as_ref().map(Vec::len), Ok(1));
        // Nobody listens there.
        let mode = on.decide(files, 1, |_| Err(libc_error(libc::ELOOP))).await;
        assert_eq!(mode.way(), Way::Ordinary(Why::AgentSilent));
        on.silent.lock().expect("a lock").insert("a:1".to_owned(), Instant::now());
        assert_eq!(on.local(&tree, here), Err(Why::AgentSilent), "it is not asked again at once");
    }

    fn libc_error(errno: i32) -> io::Error {
        io::Error::from_raw_os_error(errno)
    }

    #[test]
    fn a_file_that_the_kernel_refuses_has_its_reason() {
        let passthrough = Passthrough::new("h1".to_owned(), None, Tally::default());
        let give = |errno: i32| {
            let file = tempfile::tempfile().expect("a file");
            passthrough.give(file, STAMP, |_| Err(libc_error(errno))).way()
        };
        assert_eq!(give(libc::ELOOP), Way::Ordinary(Why::Refused));
        assert_eq!(give(libc::EOPNOTSUPP), Way::Ordinary(Why::Refused));
        assert!(passthrough.is_on(), "others may be taken");
        assert_eq!(give(libc::EPERM), Way::Ordinary(Why::Unprivileged));
        assert!(!passthrough.is_on());
    }

    #[test]
    fn each_miss_has_its_reason() {
        for (missed, expected) in [
            (Missed::Away, Why::AgentSilent),
            (Missed::Silent, Why::AgentSilent),
            (Missed::Withheld(Withheld::NotHere), Why::NotLocal),
            (Missed::Withheld(Withheld::Touched), Why::Touched),
            (Missed::Withheld(Withheld::Changed), Why::Withheld),
            (Missed::Withheld(Withheld::Rotten), Why::Withheld),
            (Missed::Withheld(Withheld::Offline), Why::Withheld),
            (Missed::Withheld(Withheld::Busy), Why::Withheld),
        ] {
            assert_eq!(why(missed), expected, "{missed:?}");
        }
    }

    #[tokio::test]
    async fn a_writer_waits_for_the_release_and_not_for_a_reader() {
        let passthrough = Arc::new(Passthrough::new("h1".to_owned(), None, Tally::default()));
        let slot = passthrough.join(Ino(9));
        assert!(!passthrough.is_free(Ino(9)), "it may yet be passed through");
        assert!(passthrough.is_free(Ino(8)));
        assert_eq!(passthrough.until_free(Ino(9)).await, Free::No);
        let waits = tokio::spawn({
            let passthrough = Arc::clone(&passthrough);
            async move { passthrough.until_free(Ino(9)).await }
        });
        tokio::task::yield_now().await;
        drop(slot);
        assert_eq!(waits.await.expect("ended"), Free::Yes);
        let slot = passthrough.join(Ino(9));
        assert!(slot.decide_now(Mode::Ordinary(Why::NotLocal)).is_some());
        assert!(passthrough.is_free(Ino(9)), "ordinary readers are in nobody's way");
    }

    #[test]
    fn a_file_that_changed_is_told_by_its_stamp() {
        let file = tempfile::tempfile().expect("a file");
        let before = stamp_now(&file).expect("a stamp");
        assert_eq!(stamp_now(&file), Some(before));
        file.set_len(1).expect("changed");
        assert_ne!(stamp_now(&file), Some(before));
    }
}
