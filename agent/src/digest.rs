//! What a file's bytes are: SHA-256, BLAKE3 and its tree in one pass that can be slowed, stopped
//! and taken up again; and whether they still are. It knows nothing of volumes, images or indexes.

mod checkpoint;
mod pace;
mod pass;
mod read;
mod tree;
mod verify;

use std::fs::File;
use std::io;
use std::time::Duration;

use isotope_proto::image::Stamp;
use tokio_util::sync::CancellationToken;

pub use checkpoint::Checkpoint;
pub use pace::Pace;
pub use tree::GROUP_BYTES;
pub use verify::{Damage, Expected, Mismatch, Verdict, verify};

use checkpoint::Seen;
use pass::{Begin, Ended, Event, Sha, run};

/// So much work is repeated, at most, after a restart. Writing a checkpoint costs a sync of the
/// outboard, which twice a minute nobody notices.
pub const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);

/// The hashes of a whole file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    pub size_bytes: u64,
    /// FIPS 180-4; what vendors publish.
    pub sha256: [u8; 32],
    /// The root of the tree whose inner nodes the outboard holds.
    pub blake3: [u8; 32],
}

/// How a pass ended that met no error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done(Digest),
    /// The file is not the expected one, or was written to, cut or renamed meanwhile. Nothing that
    /// was told of it holds.
    Changed,
    /// It was told to stop; a checkpoint of where has been given, unless nothing was read yet.
    Stopped,
}

/// What a pass tells while it runs, in the order in which it becomes true.
#[derive(Debug)]
pub enum Step<'a> {
    /// The next bytes of the outboard, to be appended: pairs of chaining values (2 × 32 bytes) in
    /// post-order, for groups of [`GROUP_BYTES`] and no size before or after them; what bao-tree
    /// calls a post-order outboard. A file of one group has none. They are 1/256 of the file, so
    /// they are told piece by piece and not kept.
    Outboard(&'a [u8]),
    /// So many bytes from the file's beginning are hashed.
    Progress(u64),
    /// From here a later pass can go on. Whoever keeps it syncs the outboard first, for it counts
    /// on [`Checkpoint::outboard_bytes`] of that.
    Checkpoint(&'a Checkpoint),
}

/// How a pass is to go about it.
#[derive(Debug, Clone)]
pub struct Manner {
    pub pace: Pace,
    /// Looked at between blocks of 1 MiB, and ten times a second while the pace has it wait.
    pub stop: CancellationToken,
    /// Between two checkpoints; zero gives one after each block.
    pub checkpoint_every: Duration,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            pace: Pace::unlimited(),
            stop: CancellationToken::new(),
            checkpoint_every: CHECKPOINT_EVERY,
        }
    }
}

/// Why a file could not be hashed.
#[derive(Debug, thiserror::Error)]
pub enum DigestError {
    #[error("reading at byte {offset} failed: {error}; look at the disk's health")]
    Read { offset: u64, error: io::Error },
    #[error("the file's stamp cannot be read: {0}; look whether its volume is still mounted")]
    Stat(io::Error),
    /// The caller's own error, of a [`Step`] that it could not keep.
    #[error("what was hashed up to byte {offset} cannot be kept: {error}; make room for it")]
    Keep { offset: u64, error: io::Error },
    #[error("the outboard cannot be read: {0}; hash the file anew to replace it")]
    Outboard(io::Error),
    #[error("no thread could be started for hashing: {0}; raise the limit of tasks")]
    Thread(io::Error),
}

/// Hashes a whole file, or what follows a checkpoint of it. `stamp` is what the file is expected
/// to be; the same before and after, together with its ctime, or the outcome is
/// [`Outcome::Changed`]. So it is for a checkpoint of another state of the file: begin anew then,
/// with an empty outboard. With a checkpoint, the outboard must have been cut to
/// [`Checkpoint::outboard_bytes`], to which the new bytes are appended.
///
/// It reads at the given pace on this thread, which also computes BLAKE3, and computes SHA-256 on
/// another; it is to be called where blocking is allowed.
///
/// # Errors
/// As [`DigestError`] has them; an error that `on_step` returns ends the pass.
pub fn hash(
    file: &File,
    stamp: Stamp,
    from: Option<&Checkpoint>,
    manner: &Manner,
    mut on_step: impl FnMut(Step<'_>) -> io::Result<()>,
) -> Result<Outcome, DigestError> {
    let seen = Seen::of(file).map_err(DigestError::Stat)?;
    let begin = match from {
        None => Some(Begin::new(Sha::Compute)),
        Some(checkpoint) => checkpoint.resume(&seen),
    };
    let Some(begin) = begin.filter(|_| seen.stamp() == stamp) else {
        return Ok(Outcome::Changed);
    };
    let mut bytes = Vec::new();
    let ended = run(file, seen, begin, manner, &mut |event| match event {
        Event::Pairs(pairs) => {
            bytes.clear();
            for pair in pairs {
                bytes.extend_from_slice(&pair.left);
                bytes.extend_from_slice(&pair.right);
            }
            on_step(Step::Outboard(&bytes))
        }
        Event::Progress(done_bytes) => on_step(Step::Progress(done_bytes)),
        Event::Checkpoint(checkpoint) => on_step(Step::Checkpoint(checkpoint)),
    })?;
    Ok(match ended {
        Ended::Done { sha256, blake3 } => {
            Outcome::Done(Digest { size_bytes: stamp.size_bytes, sha256, blake3 })
        }
        Ended::Changed => Outcome::Changed,
        Ended::Stopped => Outcome::Stopped,
    })
}

#[cfg(test)]
mod tests;
