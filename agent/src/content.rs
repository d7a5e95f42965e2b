//! A range of one image as a stream of pieces: the catalogued bytes, or an error. The file is
//! compared with its stamp when it is opened and after each piece, so that a file changed or cut
//! short meanwhile is noticed before its bytes are sent.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use isotope_proto::id::{ImageId, NodeId};
use isotope_proto::image::Stamp;
use isotope_proto::range::ByteRange;
use isotope_proto::refusal::{Reason, Refusal};
use tokio::sync::mpsc;

use crate::marker::SIDECAR_DIR;
use crate::volume::{Volume, open_file, stamp_of};
use crate::{stage, tasks};

/// Bytes in one piece. Larger ones gained nothing over gRPC, smaller ones cost processor time.
const PIECE_BYTES: u64 = 256 << 10;
/// Pieces read ahead of the network.
const PIECES_AHEAD: usize = 4;

/// Between a rename of ours and the index there are some system calls.
const RELOCATE_PAUSE: Duration = Duration::from_millis(20);
/// So long what lies where only we move files is looked for: on a busy host the thread that moves
/// them may have to wait between the two. A mount passes over a host that is silent for twice that.
const RELOCATE_MAX: Duration = Duration::from_secs(1);

pub(crate) type Pieces = mpsc::Receiver<Result<Bytes, Refusal>>;

/// Opens an image and begins to read. Errors found at once are answered at once; later ones come
/// in the stream.
pub(crate) async fn read(
    volume: Arc<Volume>,
    node: NodeId,
    image: ImageId,
    range: ByteRange,
) -> Result<Pieces, Refusal> {
    let open = tokio::task::spawn_blocking(move || open(&volume, node, image));
    let (file, stamp) = open.await.map_err(|error| failed(&error))??;
    if range.end() > stamp.size_bytes {
        let text =
            format!("{image} has {} bytes; {} were asked for", stamp.size_bytes, range.end());
        return Err(Refusal::new(Reason::OutOfRange, text));
    }
    let (pieces, receiver) = mpsc::channel(PIECES_AHEAD);
    tokio::task::spawn_blocking(move || {
        let mut at = range.start();
        while at < range.end() {
            let piece = read_piece(&file, stamp, at, PIECE_BYTES.min(range.end() - at));
            at += piece.as_ref().map_or(0, |piece| u64::try_from(piece.len()).unwrap_or(0));
            let done = piece.is_err();
            if pieces.blocking_send(piece).is_err() || done {
                return;
            }
        }
    });
    Ok(receiver)
}

pub(crate) fn open(
    volume: &Volume,
    node: NodeId,
    image: ImageId,
) -> Result<(File, Stamp), Refusal> {
    let offline = |reason| Refusal::new(Reason::Unavailable, reason);
    let root = volume.root().map_err(offline)?;
    open_known(volume, &root, image).or_else(|refusal| {
        // A killed agent may not have come to write down where it had brought it.
        let stamp = volume.index().locate(image).map(|(_, stamp)| stamp);
        let is_it = |found: &(File, Stamp)| stamp.is_none_or(|stamp| found.1 == stamp);
        open_named(&root, node, image).filter(is_it).ok_or(refusal)
    })
}

/// Where the index says that it is.
fn open_known(volume: &Volume, root: &OwnedFd, image: ImageId) -> Result<(File, Stamp), Refusal> {
    let gone = || match volume.is_settled() {
        true => Refusal::new(Reason::NotFound, format!("{image} is not on this volume")),
        // It may be there: asked again, there is an answer.
        false => Refusal::new(Reason::Unavailable, "the volume is still being looked through"),
    };
    let locate = || {
        let index = volume.index();
        index.locate(image).map(|(path, stamp)| (path.clone(), stamp)).ok_or_else(gone)
    };
    let (mut path, mut stamp) = locate()?;
    let began = Instant::now();
    loop {
        match open_file(root, path.as_str()) {
            Ok((file, found)) if found == stamp => return Ok((file, stamp)),
            Ok(_) => return Err(replaced()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                // It may just have been brought to another place, of which the index hears last.
                std::thread::sleep(RELOCATE_PAUSE);
                let now = locate()?;
                let by_us = path.as_str().starts_with(SIDECAR_DIR);
                if now.0 == path && !(by_us && began.elapsed() < RELOCATE_MAX) {
                    return Err(gone());
                }
                (path, stamp) = now;
            }
            Err(error) => {
                let text = format!("cannot open {path}: {error}");
                return Err(Refusal::new(Reason::Storage, text));
            }
        }
    }
}

/// Where files are named by their image. Their stamps are their own: nobody else writes there.
fn open_named(root: &OwnedFd, node: NodeId, image: ImageId) -> Option<(File, Stamp)> {
    let in_trash = open_file(root, &tasks::trash_path(image)).ok();
    in_trash.or_else(|| stage::open_sealed(root, node, image).ok())
}

fn read_piece(file: &File, stamp: Stamp, at: u64, len: u64) -> Result<Bytes, Refusal> {
    let mut piece = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut piece, at).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => replaced(),
        _ => failed(&error),
    })?;
    let now = rustix::fs::fstat(file).map_err(|error| failed(&error))?;
    if stamp_of(&now) == stamp { Ok(piece.into()) } else { Err(replaced()) }
}

fn replaced() -> Refusal {
    Refusal::new(Reason::Replaced, "the file is no longer the one that was catalogued")
}

fn failed(error: &dyn std::error::Error) -> Refusal {
    Refusal::new(Reason::Storage, format!("reading failed: {error}"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::SystemTime;

    use isotope_proto::name::VolumePath;
    use isotope_proto::time::Timestamp;

    use super::*;
    use crate::index::Known;

    const NODE: NodeId = NodeId::from_bytes([1; 16]);
    const IMAGE: ImageId = ImageId::from_bytes([7; 16]);

    fn volume(dir: &std::path::Path, bytes: &[u8]) -> Arc<Volume> {
        fs::create_dir(dir.join("iso")).expect("made");
        fs::write(dir.join("iso/a.iso"), bytes).expect("written");
        let volume = Volume::open(dir, "isos", None, Timestamp(1)).expect("a volume");
        let root = volume.root().expect("online");
        let (_, stamp) = open_file(&root, "iso/a.iso").expect("opened");
        let path = VolumePath::parse("iso/a.iso").expect("a path");
        volume.index_mut().insert(path, Known { image: IMAGE, stamp });
        volume.settle();
        Arc::new(volume)
    }

    async fn collect(volume: &Arc<Volume>, start: u64, len: u64) -> Result<Vec<u8>, Reason> {
        let range = ByteRange::new(start, len).expect("a range");
        let mut pieces =
            read(Arc::clone(volume), NODE, IMAGE, range).await.map_err(|refusal| refusal.reason)?;
        let mut all = Vec::new();
        while let Some(piece) = pieces.recv().await {
            all.extend_from_slice(&piece.map_err(|refusal| refusal.reason)?);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn a_range_is_whole_or_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        let bytes: Vec<u8> = (0..700_000_u32).map(|n| (n % 251) as u8).collect();
        let volume = volume(dir.path(), &bytes);
        assert_eq!(collect(&volume, 0, 700_000).await.as_deref(), Ok(&*bytes));
        assert_eq!(collect(&volume, 262_143, 2).await.as_deref(), Ok(&bytes[262_143..262_145]));
        assert_eq!(collect(&volume, 5, 0).await.as_deref(), Ok(&[][..]));
        assert_eq!(collect(&volume, 699_999, 2).await, Err(Reason::OutOfRange));
    }

    #[tokio::test]
    async fn a_changed_file_is_not_served_as_the_old_image() {
        let dir = tempfile::tempdir().expect("a directory");
        let volume = volume(dir.path(), b"before");
        let path = dir.path().join("iso/a.iso");
        fs::write(&path, b"after!").expect("changed");
        let file = File::options().write(true).open(&path).expect("opened");
        file.set_modified(SystemTime::now() + Duration::from_secs(5)).expect("touched");
        assert_eq!(collect(&volume, 0, 6).await, Err(Reason::Replaced));
        fs::remove_file(&path).expect("removed");
        assert_eq!(collect(&volume, 0, 6).await, Err(Reason::NotFound));
    }

    #[tokio::test]
    async fn a_file_of_which_the_index_hears_late_is_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let volume = volume(dir.path(), b"bytes");
        let place = VolumePath::parse("iso/a.iso").expect("a path");
        let stamp = volume.index().locate(IMAGE).expect("known").1;
        let staged = VolumePath::parse(".isotope/staging/a").expect("a path");
        volume.index_mut().remove(&place);
        volume.index_mut().put_aside(IMAGE, staged, stamp);
        let late = Arc::clone(&volume);
        let mover = std::thread::spawn(move || {
            std::thread::sleep(RELOCATE_PAUSE * 10);
            late.index_mut().insert(place, Known { image: IMAGE, stamp });
        });
        assert_eq!(collect(&volume, 0, 5).await.as_deref(), Ok(&b"bytes"[..]));
        mover.join().expect("moved");
    }

    #[tokio::test]
    async fn what_the_index_forgot_is_found_by_its_id() {
        let dir = tempfile::tempdir().expect("a directory");
        let volume = volume(dir.path(), b"bytes");
        let place = dir.path().join("iso/a.iso");
        let staged = dir.path().join(stage::staging_dir(NODE)).join(IMAGE.to_string());
        let trashed = dir.path().join(tasks::trash_path(IMAGE));
        for path in [&staged, &trashed] {
            fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        }
        // It was killed before it wrote down that it moved the file: the old place is known,
        fs::rename(&place, &trashed).expect("moved");
        assert_eq!(collect(&volume, 0, 5).await.as_deref(), Ok(&b"bytes"[..]));
        fs::write(&place, "another").expect("the place is taken");
        assert_eq!(collect(&volume, 0, 5).await.as_deref(), Ok(&b"bytes"[..]));
        // or none.
        volume.index_mut().remove(&VolumePath::parse("iso/a.iso").expect("a path"));
        assert_eq!(collect(&volume, 0, 5).await.as_deref(), Ok(&b"bytes"[..]));
        fs::rename(&trashed, &staged).expect("moved");
        assert_eq!(collect(&volume, 0, 5).await, Err(Reason::NotFound), "not known to be whole");
        fs::write(staged.with_extension("intent"), "a.iso").expect("sealed");
        assert_eq!(collect(&volume, 0, 5).await.as_deref(), Ok(&b"bytes"[..]));
    }
}
