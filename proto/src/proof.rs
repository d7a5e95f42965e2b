//! Proofs that bytes belong to a content: the inner nodes of its BLAKE3 tree between the root and
//! those bytes (the BLAKE3 paper, §2.1 and §6.4; the idea is Bao's). It knows where a node lies in
//! an outboard, and not where that lies or how anything travels.

use blake3::Hasher;
use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

use crate::digest::Blake3;
use crate::range::ByteRange;

/// Bytes of a group, the smallest range that can be proved by itself: 16 chunks, which is also as
/// many as the widest instructions take at once. A power of two, as the tree needs.
pub const GROUP_BYTES: u64 = 16 << 10;
/// Bytes of one inner node: the chaining values of its halves.
pub const PAIR_BYTES: usize = 64;

/// A chaining value.
type Value = [u8; 32];

/// The bytes are not those of the content, or the proof is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes from {from} on are not those of the content")]
pub struct WrongBytes {
    /// Of what could not be proved, the first byte.
    pub from: u64,
}

/// What of a content of `size_bytes` must be read to prove a range: whole groups.
#[must_use]
pub fn widened(range: ByteRange, size_bytes: u64) -> ByteRange {
    let start = range.start() - range.start() % GROUP_BYTES;
    let end = range.end().checked_next_multiple_of(GROUP_BYTES).unwrap_or(u64::MAX);
    ByteRange::clamped(start, end - start, size_bytes)
}

/// The inner nodes that prove a widened range, from the root down and from left to right, by their
/// places in the outboard: post-order, [`PAIR_BYTES`] each, nothing before them.
#[must_use]
pub fn nodes(range: ByteRange, size_bytes: u64) -> Vec<u64> {
    let mut places = Vec::new();
    let mut ahead = vec![Subtree::whole(size_bytes)];
    while let Some(subtree) = ahead.pop() {
        if !subtree.is_within(range, size_bytes) {
            places.push(subtree.place());
            let halves = subtree.halves();
            ahead.extend(halves.into_iter().rev().filter(|it| it.meets(range, size_bytes)));
        }
    }
    places
}

/// Checks that `bytes` are the widened `range` of the content with this root; `proof` holds
/// [`nodes`], one after the other.
///
/// # Errors
/// [`WrongBytes`] with where they differ, as far as the proof can tell.
pub fn verify(
    root: &Blake3,
    size_bytes: u64,
    range: ByteRange,
    proof: &[u8],
    bytes: &[u8],
) -> Result<(), WrongBytes> {
    let (mut pairs, rest) = (proof.as_chunks::<PAIR_BYTES>().0.iter(), proof.len() % PAIR_BYTES);
    if u64::try_from(bytes.len()) != Ok(range.len()) {
        return Err(WrongBytes { from: range.start() });
    }
    let whole = Subtree::whole(size_bytes);
    let mut ahead = vec![(whole, *root.as_bytes())];
    while let Some((subtree, expected)) = ahead.pop() {
        let below = subtree.bytes(size_bytes);
        let wrong = WrongBytes { from: below.start().max(range.start()) };
        let mode = if subtree == whole { Top::Root } else { Top::Inner };
        if subtree.is_within(range, size_bytes) {
            let at = |place: u64| usize::try_from(place - range.start()).unwrap_or(usize::MAX);
            let bytes = bytes.get(at(below.start())..at(below.end())).ok_or(wrong)?;
            if mode.of_bytes(bytes, below.start()) != expected {
                return Err(wrong);
            }
            continue;
        }
        let (left, right) = pairs.next().ok_or(wrong)?.split_at(PAIR_BYTES / 2);
        let [left, right] = [left, right].map(|it| Value::try_from(it).expect("half a pair"));
        if mode.of_pair(&left, &right) != expected {
            return Err(wrong);
        }
        let halves = subtree.halves().into_iter().zip([left, right]);
        ahead.extend(halves.rev().filter(|(it, _)| it.meets(range, size_bytes)));
    }
    let all_used = pairs.next().is_none() && rest == 0;
    all_used.then_some(()).ok_or(WrongBytes { from: range.start() })
}

/// Groups that lie below one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Subtree {
    first: u64,
    groups: u64,
}

impl Subtree {
    fn whole(size_bytes: u64) -> Self {
        Self { first: 0, groups: size_bytes.div_ceil(GROUP_BYTES).max(1) }
    }

    /// Of two groups or more: the left half is the largest whole subtree that leaves something to
    /// the right one.
    fn halves(self) -> [Self; 2] {
        let left = 1 << (self.groups - 1).ilog2();
        let right = Self { first: self.first + left, groups: self.groups - left };
        [Self { first: self.first, groups: left }, right]
    }

    /// What comes before it are whole subtrees, one for each bit of their number of groups, and
    /// each group but one of a subtree is joined by a node; its own node is its last.
    fn place(self) -> u64 {
        self.first - u64::from(self.first.count_ones()) + self.groups - 2
    }

    fn bytes(self, size_bytes: u64) -> ByteRange {
        let (start, len) = (self.first * GROUP_BYTES, self.groups.saturating_mul(GROUP_BYTES));
        ByteRange::clamped(start, len, size_bytes)
    }

    fn is_within(self, range: ByteRange, size_bytes: u64) -> bool {
        let own = self.bytes(size_bytes);
        range.start() <= own.start() && own.end() <= range.end() || self.groups == 1
    }

    fn meets(self, range: ByteRange, size_bytes: u64) -> bool {
        let own = self.bytes(size_bytes);
        own.start() < range.end() && range.start() < own.end()
    }
}

/// The root is hashed in another way than what lies below it.
#[derive(Clone, Copy)]
enum Top {
    Root,
    Inner,
}

impl Top {
    fn of_bytes(self, bytes: &[u8], start: u64) -> Value {
        match self {
            Self::Root => *blake3::hash(bytes).as_bytes(),
            Self::Inner => Hasher::new().set_input_offset(start).update(bytes).finalize_non_root(),
        }
    }

    fn of_pair(self, left: &Value, right: &Value) -> Value {
        match self {
            Self::Root => *merge_subtrees_root(left, right, Mode::Hash).as_bytes(),
            Self::Inner => merge_subtrees_non_root(left, right, Mode::Hash),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A tree as the definition has it: left, right, then the node itself.
    fn outboard(bytes: &[u8], subtree: Subtree, top: Top, all: &mut Vec<u8>) -> Value {
        let size_bytes = bytes.len() as u64;
        let own = subtree.bytes(size_bytes);
        if subtree.groups == 1 {
            return top.of_bytes(&bytes[own.start() as usize..own.end() as usize], own.start());
        }
        let [left, right] = subtree.halves().map(|it| outboard(bytes, it, Top::Inner, all));
        all.extend([left, right].concat());
        top.of_pair(&left, &right)
    }

    struct Content {
        bytes: Vec<u8>,
        tree: Vec<u8>,
        root: Blake3,
    }

    impl Content {
        fn new(size: usize) -> Self {
            let bytes: Vec<u8> = (0..size).map(|n| (n % 251) as u8 ^ (n / 9973) as u8).collect();
            let mut tree = Vec::new();
            let root = outboard(&bytes, Subtree::whole(size as u64), Top::Root, &mut tree);
            assert_eq!(root, *blake3::hash(&bytes).as_bytes());
            Self { bytes, tree, root: Blake3::from_bytes(root) }
        }

        fn size(&self) -> u64 {
            self.bytes.len() as u64
        }

        fn part(&self, start: u64, len: u64) -> (ByteRange, Vec<u8>, Vec<u8>) {
            let range = widened(ByteRange::clamped(start, len, self.size()), self.size());
            let pair = |place: u64| &self.tree[place as usize * PAIR_BYTES..][..PAIR_BYTES];
            let proof = nodes(range, self.size()).into_iter().flat_map(pair).copied().collect();
            let bytes = self.bytes[range.start() as usize..range.end() as usize].to_vec();
            (range, proof, bytes)
        }

        fn verify(&self, (range, proof, bytes): &(ByteRange, Vec<u8>, Vec<u8>)) -> bool {
            verify(&self.root, self.size(), *range, proof, bytes).is_ok()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn any_range_is_proved_and_no_other_bytes_are(
            size in 1..900_000_usize,
            start in 0..900_000_u64,
            len in 1..300_000_u64,
            flip in any::<prop::sample::Index>(),
        ) {
            let content = Content::new(size);
            let part = content.part(start % content.size(), len);
            prop_assert!(content.verify(&part));
            let (range, proof, bytes) = part;
            // One bit in the bytes or in the proof, and what is cut short or too long.
            let mut wrong = [proof.clone(), bytes.clone()].concat();
            let at = flip.index(wrong.len());
            wrong[at] ^= 1;
            let (wrong_proof, wrong_bytes) = wrong.split_at(proof.len());
            prop_assert!(!content.verify(&(range, wrong_proof.to_vec(), wrong_bytes.to_vec())));
            for len in [bytes.len() - 1, bytes.len() + 1] {
                let mut other = bytes.clone();
                other.resize(len, 0);
                prop_assert!(!content.verify(&(range, proof.clone(), other)));
            }
            prop_assert!(!content.verify(&(range, [&proof[..], &[0; 64]].concat(), bytes)));
        }
    }

    #[test]
    fn bytes_of_another_place_prove_nothing() {
        let content = Content::new(40 * GROUP_BYTES as usize);
        let (range, _, _) = content.part(0, 1);
        let (_, proof, bytes) = content.part(GROUP_BYTES, 1);
        assert!(!content.verify(&(range, proof, bytes)));
    }

    #[test]
    fn a_proof_is_as_long_as_the_tree_is_deep() {
        for (size_groups, start_group, groups, expected) in [
            (1, 0, 1, 0),
            (2, 0, 1, 1),
            (2, 0, 2, 0),
            // 4 GiB: a group, and a block of 1 MiB.
            (1 << 18, 77, 1, 18),
            (1 << 18, 64, 64, 12),
            ((1 << 18) - 1, (1 << 18) - 64, 63, 12),
            // Across the middle both sides are needed.
            (1 << 18, (1 << 17) - 1, 2, 35),
        ] {
            let size_bytes = size_groups * GROUP_BYTES;
            let range =
                ByteRange::clamped(start_group * GROUP_BYTES, groups * GROUP_BYTES, size_bytes);
            assert_eq!(nodes(range, size_bytes).len(), expected, "{size_groups} {start_group}");
        }
    }

    #[test]
    fn a_range_is_widened_to_groups_and_not_past_the_end() {
        for (start, len, expected) in
            [(0, 1, (0, 16384)), (16383, 2, (0, 32768)), (32768, 9, (32768, 7232))]
        {
            let range = widened(ByteRange::clamped(start, len, 40_000), 40_000);
            assert_eq!((range.start(), range.len()), expected);
        }
    }
}
