//! Whether a file's bytes still are what they were, and where they are not. It decides nothing
//! about a file that is not.

use std::fs::File;
use std::io::{self, Read};

use blake3::hazmat::{Mode, merge_subtrees_non_root, merge_subtrees_root};
use isotope_proto::image::Stamp;

use super::checkpoint::Seen;
use super::pass::{Begin, Ended, Event, Sha, run};
use super::tree::{GROUP_BYTES, Pair, Value};
use super::{DigestError, Manner};

/// What a file ought to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// As it was when it was hashed.
    pub stamp: Stamp,
    pub blake3: [u8; 32],
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Ok,
    /// The file says that it is unchanged, and its bytes are others: rot.
    Mismatch(Mismatch),
    /// It is another file, or was written to meanwhile: to be hashed anew, not judged.
    Changed,
    Stopped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The root that the bytes have now.
    pub blake3: [u8; 32],
    /// None without an outboard, or with one that does not belong to what was expected.
    pub damage: Option<Damage>,
}

/// Which groups of [`GROUP_BYTES`] differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where the first of them begins.
    pub first_offset: u64,
    /// From there to the end of the last of them, which may be beyond the end of the file.
    pub end_offset: u64,
    pub groups: u64,
}

/// Reads a whole file and compares it. Only BLAKE3 is computed: SHA-256 would prove no more and
/// take three times as long. With the outboard that [`super::hash`] told of the file, the groups
/// that differ are found; the outboard is not believed before it proves to be that of the root.
/// `on_progress` hears how many bytes are done.
///
/// # Errors
/// As [`DigestError`] has them; an outboard that ends early or is another's is none.
pub fn verify(
    file: &File,
    expected: &Expected,
    outboard: Option<&mut dyn Read>,
    manner: &Manner,
    mut on_progress: impl FnMut(u64),
) -> Result<Verdict, DigestError> {
    let seen = Seen::of(file).map_err(DigestError::Stat)?;
    if seen.stamp() != expected.stamp {
        return Ok(Verdict::Changed);
    }
    let groups = seen.size_bytes.div_ceil(GROUP_BYTES);
    let mut comparison = outboard.map(|outboard| Comparison::new(outboard, groups));
    let begin = Begin::new(Sha::Skip);
    let ended = run(file, seen, begin, manner, &mut |event| {
        match (event, &mut comparison) {
            (Event::Progress(done_bytes), _) => on_progress(done_bytes),
            (Event::Pairs(pairs), Some(comparison)) => {
                for pair in pairs {
                    comparison.take(pair)?;
                }
            }
            (Event::Pairs(_), None) | (Event::Checkpoint(_), _) => {}
        }
        Ok(())
    });
    let blake3 = match ended {
        Ok(Ended::Done { blake3, .. }) => blake3,
        Ok(Ended::Changed) => return Ok(Verdict::Changed),
        Ok(Ended::Stopped) => return Ok(Verdict::Stopped),
        // Nothing is kept here; only the outboard is read.
        Err(DigestError::Keep { error, .. }) => return Err(DigestError::Outboard(error)),
        Err(error) => return Err(error),
    };
    if blake3 == expected.blake3 {
        return Ok(Verdict::Ok);
    }
    let damage = comparison.and_then(|comparison| comparison.damage(expected.blake3));
    Ok(Verdict::Mismatch(Mismatch { blake3, damage }))
}

/// The tree that was expected beside the one that is found, node by node as both are told.
struct Comparison<'a> {
    outboard: &'a mut dyn Read,
    groups: u64,
    /// Chaining values of the expected subtrees that no node has claimed yet.
    subtrees: Vec<Value>,
    root: Option<Value>,
    /// Whether each node had in it the values of those below it, so far.
    consistent: bool,
    damage: Option<Damage>,
}

impl<'a> Comparison<'a> {
    fn new(outboard: &'a mut dyn Read, groups: u64) -> Self {
        let subtrees = Vec::with_capacity(64);
        Self { outboard, groups, subtrees, root: None, consistent: true, damage: None }
    }

    fn take(&mut self, found: &Pair) -> io::Result<()> {
        if !self.consistent {
            return Ok(());
        }
        let (mut left, mut right) = (Value::default(), Value::default());
        let read = self.outboard.read_exact(&mut left);
        match read.and_then(|()| self.outboard.read_exact(&mut right)) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => self.consistent = false,
            read => read?,
        }
        // What was told later lies on top: the right one.
        self.check(right, found.right, found.right_groups, found.first_group + found.left_groups);
        self.check(left, found.left, found.left_groups, found.first_group);
        if found.left_groups + found.right_groups == self.groups {
            self.root = Some(*merge_subtrees_root(&left, &right, Mode::Hash).as_bytes());
        }
        self.subtrees.push(merge_subtrees_non_root(&left, &right, Mode::Hash));
        Ok(())
    }

    fn check(&mut self, expected: Value, found: Value, groups: u64, first_group: u64) {
        if groups > 1 {
            self.consistent &= self.subtrees.pop() == Some(expected);
        } else if expected != found {
            self.add(first_group);
        }
    }

    fn add(&mut self, group: u64) {
        let (offset, end_offset) = (group * GROUP_BYTES, (group + 1) * GROUP_BYTES);
        let damage =
            self.damage.get_or_insert(Damage { first_offset: offset, end_offset, groups: 0 });
        // They come in the order of their nodes, of which the right half was looked at first.
        damage.first_offset = damage.first_offset.min(offset);
        damage.end_offset = damage.end_offset.max(end_offset);
        damage.groups += 1;
    }

    fn damage(mut self, root: Value) -> Option<Damage> {
        if self.groups <= 1 {
            // The only group is the whole file; there is nothing that could be another's.
            self.add(0);
            return self.damage;
        }
        self.damage.filter(|_| self.consistent && self.root == Some(root))
    }
}
