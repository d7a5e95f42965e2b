//! Reading one image's file whole: to learn its hashes, or to compare them. What is found goes into
//! the volume's index; who is told, and when, is others' business.

use std::fs::File;

use isotope_proto::digest::{Blake3, Sha256};
use isotope_proto::id::ImageId;
use isotope_proto::image::{Hashes, Stamp};
use rustix::fs::{Stat, fstat};
use tracing::{debug, error};

use crate::clock;
use crate::digest::{
    Damage, Expected, GROUP_BYTES, Manner, Outcome, Step, Verdict as Compared, hash as digest,
    verify,
};
use crate::index::{Hashed, Verdict};
use crate::outboards::{Of, Outboards};
use crate::volume::{Volume, open_file};

/// What reading a file whole found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    Sound,
    /// The stamp is as catalogued and the bytes are others; where, if that could be found out.
    Rotten(Option<Damage>),
    /// The file is another now, or was touched meanwhile.
    Changed,
    Stopped,
}

pub(crate) fn ctime_ns(stat: &Stat) -> i64 {
    let nanos = i64::try_from(stat.st_ctime_nsec).unwrap_or(0);
    stat.st_ctime.saturating_mul(1_000_000_000).saturating_add(nanos)
}

/// Removes the trees of contents that no file of the volume has any more, and what was left of
/// hashing files that are gone.
pub(crate) fn tidy(volume: &Volume) -> std::io::Result<()> {
    let outboards = Outboards::open(&volume.sidecar()?)?;
    let (images, roots) = volume.index().hashed_of();
    outboards.keep_only(|of| match of {
        Of::Image(image) => images.contains(image),
        Of::Content(root) => roots.contains(root),
    })
}

/// The image's file, if it is still the one that is known.
fn open(volume: &Volume, image: ImageId) -> Result<Option<(File, Stamp, i64)>, String> {
    let root = volume.root()?;
    let Some((path, stamp)) = volume.index().locate(image).map(|(path, it)| (path.clone(), it))
    else {
        return Ok(None);
    };
    let (file, found) = match open_file(&root, path.as_str()) {
        Ok(opened) => opened,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("cannot open {path}: {error}")),
    };
    let stat = fstat(&file).map_err(|error| error.to_string())?;
    Ok((found == stamp).then(|| (file, stamp, ctime_ns(&stat))))
}

/// Learns the hashes of an image, from where an interrupted reading left off.
pub(crate) fn hash(volume: &Volume, image: ImageId, manner: &Manner) -> Result<Read, String> {
    let Some((file, stamp, ctime_ns)) = open(volume, image)? else { return Ok(Read::Changed) };
    let ended = match stamp.size_bytes {
        // Of one group there is no tree.
        0..=GROUP_BYTES => {
            digest(&file, stamp, None, manner, |_| Ok(())).map_err(|it| it.to_string())
        }
        _ => hash_with_tree(volume, image, &file, stamp, manner),
    };
    let done = match ended? {
        Outcome::Done(done) => done,
        Outcome::Stopped => return Ok(Read::Stopped),
        Outcome::Changed => return Ok(Read::Changed),
    };
    let hashed = Hashed {
        stamp,
        ctime_ns,
        hashes: Hashes {
            sha256: Sha256::from_bytes(done.sha256),
            blake3: Blake3::from_bytes(done.blake3),
        },
        read_ns: clock::now().0,
        verdict: Verdict::Sound,
        published: None,
        told: false,
    };
    Ok(note(volume, image, hashed))
}

/// The same with its tree, which is kept.
fn hash_with_tree(
    volume: &Volume,
    image: ImageId,
    file: &File,
    stamp: Stamp,
    manner: &Manner,
) -> Result<Outcome, String> {
    let failed = |error: std::io::Error| format!("its tree cannot be kept: {error}");
    let sidecar = volume.sidecar().map_err(failed)?;
    let outboards = Outboards::open(&sidecar).map_err(failed)?;
    let (from, mut part) = match outboards.resume(image) {
        Some((checkpoint, part)) => (Some(checkpoint), part),
        None => (None, outboards.begin(image).map_err(failed)?),
    };
    let mut ended = run(&outboards, file, stamp, from.as_ref(), manner, &mut part)?;
    if ended == Outcome::Changed && from.is_some() {
        // It may be the checkpoint that does not fit.
        part = outboards.begin(image).map_err(failed)?;
        ended = run(&outboards, file, stamp, None, manner, &mut part)?;
    }
    match ended {
        Outcome::Done(done) => outboards.finish(part, &done.blake3).map_err(failed)?,
        Outcome::Changed => outboards.drop_part(image).map_err(failed)?,
        Outcome::Stopped => {}
    }
    Ok(ended)
}

fn run(
    outboards: &Outboards,
    file: &File,
    stamp: Stamp,
    from: Option<&crate::digest::Checkpoint>,
    manner: &Manner,
    part: &mut crate::outboards::Part,
) -> Result<Outcome, String> {
    let ended = digest(file, stamp, from, manner, |step| match step {
        Step::Outboard(bytes) => part.append(bytes),
        Step::Checkpoint(checkpoint) => outboards.keep(part, checkpoint),
        Step::Progress(_) => Ok(()),
    });
    ended.map_err(|error| error.to_string())
}

/// Compares an image's bytes with its hashes; where there are none yet, they are learnt. `progress`
/// hears how many bytes were read.
pub(crate) fn check(
    volume: &Volume,
    image: ImageId,
    manner: &Manner,
    progress: impl FnMut(u64),
) -> Result<Read, String> {
    let known = volume.index().hashed(image).cloned();
    let Some(known) = known else {
        return hash(volume, image, manner);
    };
    let Some((file, stamp, ctime_ns)) = open(volume, image)? else { return Ok(Read::Changed) };
    let outboards = volume.sidecar().and_then(|sidecar| Outboards::open(&sidecar));
    let mut tree =
        outboards.ok().and_then(|outboards| outboards.tree(known.hashes.blake3.as_bytes()));
    let tree = tree.as_mut().map(|tree| tree as &mut dyn std::io::Read);
    let expected = Expected { stamp, blake3: *known.hashes.blake3.as_bytes() };
    let compared = verify(&file, &expected, tree, manner, progress).map_err(|it| it.to_string())?;
    let (verdict, damage) = match compared {
        Compared::Ok => (Verdict::Sound, None),
        Compared::Mismatch(mismatch) => (Verdict::Rotten, mismatch.damage),
        Compared::Changed => return Ok(Read::Changed),
        Compared::Stopped => return Ok(Read::Stopped),
    };
    let read_ns = clock::now().0;
    let found = note(volume, image, Hashed { ctime_ns, read_ns, verdict, told: false, ..known });
    Ok(match (found, verdict) {
        (Read::Sound, Verdict::Rotten) => {
            error!(%image, volume = %volume.id, ?damage, "a file's bytes have rotted; it is served no more");
            Read::Rotten(damage)
        }
        (found, _) => found,
    })
}

/// Takes into the index what was read, if it still is about the image's file.
fn note(volume: &Volume, image: ImageId, hashed: Hashed) -> Read {
    let mut index = volume.index_mut();
    if index.locate(image).is_none_or(|(_, stamp)| stamp != hashed.stamp) {
        return Read::Changed;
    }
    if hashed.verdict == Verdict::Sound {
        debug!(%image, size_bytes = hashed.stamp.size_bytes, "a file was read whole");
    }
    index.set_hashed(image, hashed);
    drop(index);
    volume.hashing.notify_one();
    Read::Sound
}
