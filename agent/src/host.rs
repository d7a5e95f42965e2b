//! What is done with a host's directories when somebody asks: looking at one, using it as a volume,
//! leaving it, and proving that another host sees the same one.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use isotope_proto::id::{ImageId, NodeId, VolumeId};
use isotope_proto::image::Stamp;
use isotope_proto::name::VolumePath;
use isotope_proto::pb;
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::sidecar::LibraryCopy;
use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use tokio::sync::{Notify, watch};

use crate::clock;
use crate::identity::State;
use crate::index::Known;
use crate::layout::Layout;
use crate::library::Library;
use crate::library_log;
use crate::recognise::{Checked, Remembered, VolumeError};
use crate::volume::{Volume, open_beneath, open_file};
use crate::volumes::Volumes;
use crate::walk::{Seen, walk};
use crate::worker::Catalog;
use crate::writers::{self, Writers};

/// A mount passes over a host that is silent for longer.
const LOCATE_MAX: Duration = Duration::from_secs(1);
/// A nonce is a few bytes; more is none.
const NONCE_BYTES_MAX: u64 = 64;

/// What the agent's services share.
#[derive(Clone)]
pub(crate) struct Host {
    pub(crate) node: NodeId,
    pub(crate) volumes: Volumes,
    state: Arc<Mutex<State>>,
    /// Asks the session to connect now.
    pub(crate) wake: Arc<Notify>,
    /// The catalogue, while there is a session with it.
    pub(crate) catalog: Arc<watch::Sender<Option<Catalog>>>,
}

/// What a directory is, and would be as a volume.
#[derive(Debug, Default)]
pub(crate) struct Inspection {
    pub(crate) problem: Option<String>,
    pub(crate) volume: Option<VolumeId>,
    pub(crate) images: u64,
    pub(crate) size_bytes: u64,
    pub(crate) not_taken: Vec<(String, String)>,
}

impl Host {
    pub(crate) fn new(node: NodeId, volumes: Volumes, state: State, wake: Arc<Notify>) -> Self {
        let catalog = Arc::new(watch::Sender::new(None));
        Self { node, volumes, state: Arc::new(Mutex::new(state)), wake, catalog }
    }

    fn lock_state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at a directory; with `count`, at the files in it, too. Changes nothing.
    pub(crate) fn inspect(&self, dir: &Path, asked: Option<&Layout>, count: bool) -> Inspection {
        let looked = self.check(dir, asked).map_err(|error| error.to_string());
        let (checked, (root, layout)) =
            match looked.and_then(|checked| checked.opened().map(|opened| (checked, opened))) {
                Ok(found) => found,
                Err(problem) => return Inspection { problem: Some(problem), ..Default::default() },
            };
        let mut inspection = Inspection { volume: checked.id(), ..Default::default() };
        if count {
            match walk(&root, &layout, |_| {}) {
                Ok(seen) => inspection.count(&root, seen),
                Err(error) => inspection.problem = Some(format!("cannot be read: {error}")),
            }
        }
        inspection
    }

    fn check(&self, dir: &Path, asked: Option<&Layout>) -> Result<Checked, VolumeError> {
        let real = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        let overlaps =
            |other: &Path| real != other && (real.starts_with(other) || other.starts_with(&real));
        if let Some(other) = self.volumes.all().into_iter().find(|it| overlaps(&it.path)) {
            return Err(VolumeError::Overlaps(real, other.path.clone()));
        }
        let remembered = self.lock_state().remembered(dir);
        Checked::look(dir, remembered.as_ref(), asked)
    }

    /// Uses a directory as a volume from now on, after restarts, too. One that is used already
    /// stays as it is.
    pub(crate) fn attach(
        &self,
        dir: &Path,
        pool: &str,
        asked: Option<&Layout>,
    ) -> Result<VolumeId, Refusal> {
        let dir = real(dir)?;
        let unfit = |error: VolumeError| Refusal::new(Reason::Malformed, error.to_string());
        let checked = self.check(&dir, asked).map_err(unfit)?;
        if let Some(volume) = checked.id().and_then(|id| self.volumes.get(id)) {
            if volume.path == dir {
                return Ok(volume.id);
            }
            let text = format!(
                "{} is the same volume; if this is a copy of it, remove .isotope/ from the copy",
                volume.path.display()
            );
            return Err(Refusal::new(Reason::Exists, text));
        }
        let recognised = checked.settle(pool, clock::now()).map_err(unfit)?;
        let id = recognised.remembered.volume;
        let mut state = self.lock_state();
        let failed = |error: crate::IdentityError| Refusal::new(Reason::Storage, error.to_string());
        state.attach(&dir, &recognised.remembered, pool).map_err(failed)?;
        self.volumes.add(Volume::new(recognised, pool, &state.sidecars()));
        Ok(id)
    }

    /// Uses a volume no more. Its files, marker and index stay.
    pub(crate) fn detach(&self, id: VolumeId) -> Result<(), Refusal> {
        let Some(volume) = self.volumes.get(id) else { return Ok(()) };
        let mut state = self.lock_state();
        if !state.is_attached(&volume.path) {
            let text = format!(
                "{} is given by --pool or agent.pools; take it out there and restart the agent",
                volume.path.display()
            );
            return Err(Refusal::new(Reason::NotPermitted, text));
        }
        state
            .detach(&volume.path)
            .map_err(|error| Refusal::new(Reason::Storage, error.to_string()))?;
        self.volumes.remove(id);
        Ok(())
    }

    /// Asks the catalogue where an image's file lies that is not known here: another agent keeps the
    /// volume, or the image became another. True if it is known now.
    pub(crate) async fn relocate(&self, volume: &Arc<Volume>, image: ImageId) -> bool {
        let Some(mut catalog) = self.catalog.borrow().clone() else { return false };
        let (volume_id, image_id) = (volume.id.into(), image.into());
        let mut request = tonic::Request::new(pb::LocateRequest { volume_id, image_id });
        request.set_timeout(LOCATE_MAX);
        let Ok(reply) = catalog.locate(request).await else { return false };
        let pb::LocateReply { path: Some(path), stamp: Some(stamp) } = reply.into_inner() else {
            return false;
        };
        let (volume, stamp) = (Arc::clone(volume), Stamp::from(stamp));
        let found = tokio::task::spawn_blocking(move || {
            let path = VolumePath::parse(&path).ok()?;
            let (_, there) = open_file(&*volume.root().ok()?, path.as_str()).ok()?;
            (there == stamp).then(|| volume.index_mut().learn(path, Known { image, stamp }))
        });
        matches!(found.await, Ok(Some(())))
    }

    /// Writes down something that only who sees the same directory can read.
    pub(crate) fn write_nonce(&self, id: VolumeId, nonce: &[u8]) -> Result<(), Refusal> {
        let sidecar = self.sidecar(id)?;
        let name = nonce_name(self.node);
        let written = (|| {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
            let mode = Mode::from_raw_mode(0o644);
            let mut file = File::from(openat(&sidecar, &name, flags | OFlags::NOFOLLOW, mode)?);
            file.write_all(nonce)?;
            // Of NFS another host reads what has been closed and synced.
            file.sync_all()
        })();
        written.map_err(|error| Refusal::new(Reason::Storage, format!("writing a nonce: {error}")))
    }

    /// What another node wrote, and nothing if it wrote nothing here.
    pub(crate) fn read_nonce(&self, id: VolumeId, writer: NodeId) -> Result<Vec<u8>, Refusal> {
        let sidecar = self.sidecar(id)?;
        let name = nonce_name(writer);
        let read = (|| {
            let file = File::from(open_beneath(&sidecar, &*name, OFlags::RDONLY)?);
            let mut nonce = Vec::new();
            file.take(NONCE_BYTES_MAX).read_to_end(&mut nonce)?;
            // Its work is done, if we may remove it.
            let _ = unlinkat(&sidecar, &name, AtFlags::empty());
            Ok(nonce)
        })();
        match read {
            Err(error) if io::Error::kind(&error) == io::ErrorKind::NotFound => Ok(Vec::new()),
            read => read.map_err(|error| {
                Refusal::new(Reason::Storage, format!("reading a nonce: {error}"))
            }),
        }
    }

    /// Each copy of the library that a volume's sidecar has, or why one cannot be read; ends when
    /// `tell` says that nobody wants more.
    pub(crate) fn read_library(
        &self,
        id: VolumeId,
        mut tell: impl FnMut(Result<LibraryCopy, String>) -> bool,
    ) -> Result<(), Refusal> {
        let sidecar = self.sidecar(id)?;
        let present = library_log::read(&sidecar).map(|it| it.map(Library::into_copy)).transpose();
        if present.is_some_and(|copy| !tell(copy)) {
            return Ok(());
        }
        for (name, kept) in library_log::read_kept(&sidecar) {
            let kept = kept.map(Library::into_copy).map_err(|reason| format!("{name}: {reason}"));
            if !tell(kept) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn sidecar(&self, id: VolumeId) -> Result<OwnedFd, Refusal> {
        let volume = self.volumes.get(id).ok_or_else(|| {
            Refusal::new(Reason::NotFound, format!("volume {id} is not on this node"))
        })?;
        let unavailable = |error: io::Error| Refusal::new(Reason::Unavailable, error.to_string());
        volume.sidecar().map_err(unavailable)
    }
}

fn nonce_name(node: NodeId) -> String {
    format!("nonce.{node}")
}

impl Inspection {
    fn count(&mut self, root: &OwnedFd, seen: Seen) {
        self.not_taken = seen.problems;
        for (path, stamp) in seen.files {
            let opened = open_file(root, path.as_str());
            if opened.is_ok_and(|(file, _)| writers::of(&file) == Writers::Some) {
                self.not_taken.push((path.to_string(), "is open for writing".to_owned()));
                continue;
            }
            self.images += 1;
            self.size_bytes += stamp.size_bytes;
        }
    }
}

/// The directory's own path: under another name it would be taken for another.
fn real(dir: &Path) -> Result<PathBuf, Refusal> {
    std::fs::canonicalize(dir).map_err(|error| {
        Refusal::new(Reason::NotFound, format!("cannot use {}: {error}", dir.display()))
    })
}

/// Directories that were attached, beside those that an agent is started with.
pub(crate) fn attached(state: &State, given: &[PathBuf]) -> Vec<(PathBuf, String, Remembered)> {
    let all = state.attached().filter(|(dir, _)| !given.contains(dir));
    all.filter_map(|(dir, pool)| Some((dir.to_owned(), pool.to_owned(), state.remembered(dir)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn host(dir: &Path, n: u8) -> Host {
        let state = State::open(&dir.join(format!("state-{n}")), clock::now()).expect("a state");
        Host::new(NodeId::from_bytes([n; 16]), Volumes::default(), state, Arc::default())
    }

    fn pool(dir: &Path) -> PathBuf {
        let pool = dir.join("pool");
        fs::create_dir_all(pool.join("iso")).expect("made");
        for name in ["a.iso", "b.iso", "notes.txt"] {
            fs::write(pool.join("iso").join(name), "bytes").expect("written");
        }
        pool
    }

    #[test]
    fn looking_changes_nothing_and_tells_what_would_be_taken() {
        let dir = tempfile::tempdir().expect("a directory");
        let (host, pool) = (host(dir.path(), 1), pool(dir.path()));
        let _open = File::options().append(true).open(pool.join("iso/b.iso")).expect("opened");
        let found = host.inspect(&pool, None, true);
        assert_eq!((found.problem, found.volume), (None, None));
        assert_eq!((found.images, found.size_bytes), (1, 5));
        assert_eq!(found.not_taken, [("iso/b.iso".to_owned(), "is open for writing".to_owned())]);
        assert!(!pool.join(".isotope").exists());
        let missing = host.inspect(&dir.path().join("no"), None, true);
        assert!(missing.problem.is_some_and(|why| why.contains("does not exist")));
    }

    #[test]
    fn volumes_do_not_lie_in_one_another() {
        let dir = tempfile::tempdir().expect("a directory");
        let (host, pool) = (host(dir.path(), 1), pool(dir.path()));
        host.attach(&pool, "isos", None).expect("attached");
        for other in [pool.join("iso"), dir.path().to_owned()] {
            let refused = host.attach(&other, "other", None).expect_err("it overlaps");
            assert!(refused.text.contains("lie in one another"), "{}", refused.text);
            assert!(host.inspect(&other, None, false).problem.is_some());
        }
        assert!(!pool.join("iso/.isotope").exists());
    }

    #[test]
    fn what_is_attached_is_remembered_until_it_is_detached() {
        let dir = tempfile::tempdir().expect("a directory");
        let (first, pool) = (host(dir.path(), 1), pool(dir.path()));
        let id = first.attach(&pool, "isos", None).expect("attached");
        assert_eq!(first.attach(&pool, "isos", None).expect("already"), id);
        drop(first);
        let state = State::open(&dir.path().join("state-1"), clock::now()).expect("a state");
        let known = attached(&state, &[]);
        assert_eq!(known.len(), 1);
        assert_eq!((&*known[0].1, known[0].2.volume), ("isos", id));
        assert!(attached(&state, &[pool.canonicalize().expect("real")]).is_empty());
        drop(state);
        let again = host(dir.path(), 1);
        assert_eq!(again.attach(&pool, "isos", None).expect("attached"), id);
        again.detach(id).expect("detached");
        assert!(again.volumes.get(id).is_none());
        assert!(attached(&again.lock_state(), &[]).is_empty());
        assert!(pool.join(".isotope/volume.json").exists(), "its marker stays");
    }

    #[test]
    fn a_nonce_is_read_where_it_was_written_and_nowhere_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let pool = pool(dir.path());
        let [writer, reader] = [1, 2].map(|n| host(dir.path(), n));
        let id = writer.attach(&pool, "isos", None).expect("attached");
        // Two hosts, one directory; and a copy of it, marker and all.
        reader.attach(&pool, "isos", None).expect("attached");
        writer.write_nonce(id, b"nonce").expect("written");
        assert_eq!(reader.read_nonce(id, writer.node).expect("read"), b"nonce");
        assert_eq!(reader.read_nonce(id, writer.node).expect("read"), b"");
        let copy = dir.path().join("copy");
        fs::create_dir_all(copy.join(".isotope")).expect("made");
        fs::copy(pool.join(".isotope/volume.json"), copy.join(".isotope/volume.json"))
            .expect("copied");
        let other = host(dir.path(), 3);
        assert_eq!(other.attach(&copy, "isos", None).expect("attached"), id);
        writer.write_nonce(id, b"nonce").expect("written");
        assert_eq!(other.read_nonce(id, writer.node).expect("read"), b"");
    }
}
