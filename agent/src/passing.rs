//! Descriptors of this host's files for programs of this host, so that their bytes need not go
//! through the network: of a file being written, to write through, and of a stored one, to read.
//! Asked for over a Unix socket whose name no other host sees; given to root and to whoever runs the
//! agent. It knows nothing of what they do with them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdUnixListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use isotope_proto::id::{ImageId, NodeId, VolumeId};
use isotope_proto::image::Stamp;
use isotope_proto::passing::{self, ANSWER_MAX, Answer, Ask, Kind, Withheld};
use isotope_proto::refusal::{Reason, Refusal};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::debug;

use crate::bytes::ctime_ns;
use crate::content;
use crate::index::{Hashed, Verdict};
use crate::volume::Volume;
use crate::volumes::Volumes;

/// Whoever connects asks at once.
const ASK_MAX: Duration = Duration::from_secs(2);
/// Programs answered at once; more wait in the socket's queue, and take the ordinary way if that
/// takes too long.
const ASKING_MAX: usize = 256;
/// Of these, programs that ask for files of one volume: where its disk hangs, the places of the
/// others stay free.
const ASKING_OF_VOLUME_MAX: usize = 64;
/// Files of one volume being opened at once. Each has a thread, which a disk that hangs keeps.
const OPENING_OF_VOLUME_MAX: usize = 16;

pub(crate) struct Passing {
    volumes: Volumes,
    node: NodeId,
    offered: Mutex<HashMap<ImageId, OwnedFd>>,
    /// One for each volume that was ever asked for.
    lanes: Mutex<HashMap<VolumeId, Arc<Lane>>>,
}

/// Where those queue who ask for a volume's files.
struct Lane {
    asking: Arc<Semaphore>,
    opening: Arc<Semaphore>,
}

impl Default for Lane {
    fn default() -> Self {
        Self {
            asking: Arc::new(Semaphore::new(ASKING_OF_VOLUME_MAX)),
            opening: Arc::new(Semaphore::new(OPENING_OF_VOLUME_MAX)),
        }
    }
}

/// A descriptor that may be asked for; no more when dropped.
pub(crate) struct Offer {
    image: ImageId,
    passing: Arc<Passing>,
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.passing.lock().remove(&self.image);
    }
}

impl Passing {
    pub(crate) fn new(volumes: Volumes, node: NodeId) -> Self {
        Self { volumes, node, offered: Mutex::default(), lanes: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ImageId, OwnedFd>> {
        self.offered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn offer(self: &Arc<Self>, image: ImageId, file: OwnedFd) -> Offer {
        self.lock().insert(image, file);
        Offer { image, passing: Arc::clone(self) }
    }

    /// The socket of the agent that others reach at `address`.
    pub(crate) fn listen(address: &str) -> io::Result<UnixListener> {
        let name = SocketAddr::from_abstract_name(passing::socket(address))?;
        let listener = StdUnixListener::bind_addr(&name)?;
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener)
    }

    /// Answers for as long as the agent lives.
    pub(crate) async fn serve(self: Arc<Self>, listener: UnixListener) {
        let asking = Arc::new(Semaphore::new(ASKING_MAX));
        while let Ok(permit) = Arc::clone(&asking).acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let this = Arc::clone(&self);
                    tokio::spawn(async move {
                        let _permit = permit;
                        let answered = timeout(ASK_MAX, this.answer(stream)).await;
                        if let Ok(Err(error)) = answered {
                            debug!(%error, "a descriptor was not passed");
                        }
                    });
                }
                // Of descriptors there are none left; there will be.
                Err(_) => tokio::time::sleep(ASK_MAX).await,
            }
        }
    }

    async fn answer(&self, mut stream: UnixStream) -> io::Result<()> {
        let peer = stream.peer_cred()?.uid();
        if peer != 0 && peer != rustix::process::geteuid().as_raw() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut ask = [0; Ask::BYTES];
        stream.read_exact(&mut ask).await?;
        let found = match Ask::decode(&ask) {
            Some(Ask { kind: Kind::Staged, image, .. }) => self.staged(image),
            Some(Ask { kind: Kind::Stored, image, volume }) => self.stored(image, volume).await,
            None => Err(Withheld::Failed),
        };
        let (answer, file) = match found {
            Ok((file, stamp)) => (Answer::Passed(stamp), Some(file)),
            Err(why) => {
                debug!(?ask, %why, "a descriptor is withheld");
                (Answer::Withheld(why), None)
            }
        };
        stream.async_io(Interest::WRITABLE, || send(&stream, answer, file.as_ref())).await
    }

    /// Of a file that is being written nothing is known yet.
    fn staged(&self, image: ImageId) -> Result<(OwnedFd, Stamp), Withheld> {
        let offered = self.lock();
        let file = offered.get(&image).ok_or(Withheld::NotHere)?;
        let unknown = Stamp { inode: 0, size_bytes: 0, mtime_ns: 0 };
        Ok((file.try_clone().map_err(|_| Withheld::Failed)?, unknown))
    }

    /// The file of an image as the catalogue knows it, open for reading alone.
    async fn stored(&self, image: ImageId, volume: VolumeId) -> Result<(OwnedFd, Stamp), Withheld> {
        let volume = self.volumes.get(volume).ok_or(Withheld::NotHere)?;
        let lane = self.lane(volume.id);
        let _place = lane.asking.try_acquire().map_err(|_| Withheld::Busy)?;
        let node = self.node;
        let opened = timeout(ANSWER_MAX, async {
            let permit = Arc::clone(&lane.opening).acquire_owned().await.ok();
            let open = tokio::task::spawn_blocking(move || {
                // Given back when the disk answers, not when somebody has waited long enough.
                let _permit = permit;
                open(&volume, node, image)
            });
            open.await.unwrap_or(Err(Withheld::Failed))
        });
        opened.await.unwrap_or(Err(Withheld::Busy))
    }

    fn lane(&self, volume: VolumeId) -> Arc<Lane> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(lanes.entry(volume).or_default())
    }
}

/// Opens an image's file, as it is opened to be sent; and looks whether its bytes may be trusted
/// unread.
fn open(volume: &Volume, node: NodeId, image: ImageId) -> Result<(OwnedFd, Stamp), Withheld> {
    let refused = |refusal: Refusal| match refusal.reason {
        Reason::NotFound => Withheld::NotHere,
        Reason::Unavailable => Withheld::Offline,
        Reason::Replaced => Withheld::Changed,
        _ => Withheld::Failed,
    };
    let (file, stamp): (File, Stamp) = content::open(volume, node, image).map_err(refused)?;
    let stat = rustix::fs::fstat(&file).map_err(|_| Withheld::Failed)?;
    may_pass(volume.index().hashed(image), ctime_ns(&stat))?;
    Ok((file.into(), stamp))
}

/// Of a file that was read whole it is known whether anything touched it since; whatever did may
/// have changed its bytes and put back its time.
fn may_pass(hashed: Option<&Hashed>, ctime_ns: i64) -> Result<(), Withheld> {
    match hashed {
        Some(it) if it.verdict == Verdict::Rotten => Err(Withheld::Rotten),
        Some(it) if it.ctime_ns != ctime_ns => Err(Withheld::Touched),
        Some(_) | None => Ok(()),
    }
}

/// Sends an answer, and with it the descriptor (unix(7), SCM_RIGHTS).
fn send(stream: &UnixStream, answer: Answer, file: Option<&OwnedFd>) -> io::Result<()> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    let files: Vec<_> = file.iter().map(|it| it.as_fd()).collect();
    if !files.is_empty() {
        message.push(SendAncillaryMessage::ScmRights(&files));
    }
    // So few bytes go as one.
    sendmsg(stream, &[IoSlice::new(&answer.encode())], &mut message, SendFlags::NOSIGNAL)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use isotope_proto::digest::{Blake3, Sha256};
    use isotope_proto::image::Hashes;
    use isotope_proto::name::VolumePath;
    use isotope_proto::time::Timestamp;
    use rustix::fs::OFlags;

    use super::*;
    use crate::index::Known;
    use crate::volume::open_file;

    const NODE: NodeId = NodeId::from_bytes([1; 16]);
    const IMAGE: ImageId = ImageId::from_bytes([7; 16]);

    fn volume(dir: &std::path::Path) -> Volume {
        fs::create_dir(dir.join("iso")).expect("made");
        fs::write(dir.join("iso/a.iso"), b"bytes").expect("written");
        let volume = Volume::open(dir, "isos", None, Timestamp(1)).expect("a volume");
        let root = volume.root().expect("online");
        let (_, stamp) = open_file(&root, "iso/a.iso").expect("opened");
        let path = VolumePath::parse("iso/a.iso").expect("a path");
        volume.index_mut().insert(path, Known { image: IMAGE, stamp });
        volume.settle();
        volume
    }

    fn hash(volume: &Volume, verdict: Verdict) {
        let root = volume.root().expect("online");
        let (file, stamp) = open_file(&root, "iso/a.iso").expect("opened");
        let ctime_ns = ctime_ns(&rustix::fs::fstat(&file).expect("looked at"));
        let sha256 = Sha256::from_bytes([1; 32]);
        let hashes = Hashes { sha256, blake3: Blake3::from_bytes([2; 32]) };
        let (read_ns, published, told) = (0, None, false);
        let hashed = Hashed { stamp, ctime_ns, hashes, read_ns, verdict, published, told };
        volume.index_mut().set_hashed(IMAGE, hashed);
    }

    #[test]
    fn a_file_is_passed_for_reading_until_something_touches_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let volume = volume(dir.path());
        let opened = || open(&volume, NODE, IMAGE);
        let (file, stamp) = opened().expect("not hashed yet, it is trusted as it is listed");
        let flags = rustix::fs::fcntl_getfl(&file).expect("flags");
        assert_eq!(flags & OFlags::RWMODE, OFlags::RDONLY);
        assert_eq!(stamp.size_bytes, 5);
        hash(&volume, Verdict::Sound);
        assert!(opened().is_ok());
        let path = dir.path().join("iso/a.iso");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("touched");
        assert_eq!(opened().expect_err("touched"), Withheld::Touched);
        hash(&volume, Verdict::Sound);
        assert!(opened().is_ok(), "read again, it is known anew");
        hash(&volume, Verdict::Rotten);
        assert_eq!(opened().expect_err("rotten"), Withheld::Rotten);
        fs::write(&path, b"longer bytes").expect("changed");
        assert_eq!(opened().expect_err("changed"), Withheld::Changed);
        fs::remove_file(&path).expect("removed");
        assert_eq!(opened().expect_err("gone"), Withheld::NotHere);
        volume.fall_silent();
        assert_eq!(opened().expect_err("silent"), Withheld::Offline);
    }

    #[tokio::test]
    async fn a_disk_that_hangs_keeps_no_places_of_others() {
        let dirs = [0, 1].map(|_| tempfile::tempdir().expect("a directory"));
        let all = Volumes::default();
        let ids = dirs.each_ref().map(|dir| {
            let volume = volume(dir.path());
            let id = volume.id;
            all.add(volume);
            id
        });
        let passing = Passing::new(all, NODE);
        let lane = passing.lane(ids[0]);
        // As many threads as the volume may have wait for its disk.
        let _hang = lane.opening.acquire_many(16).await.expect("free");
        assert_eq!(passing.stored(IMAGE, ids[0]).await.expect_err("late"), Withheld::Busy);
        let _queue = lane.asking.acquire_many(64).await.expect("free");
        assert_eq!(passing.stored(IMAGE, ids[0]).await.expect_err("no place"), Withheld::Busy);
        assert!(passing.stored(IMAGE, ids[1]).await.is_ok());
    }
}
