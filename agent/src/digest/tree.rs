//! The BLAKE3 tree of a file, group by group: the root, and the inner nodes in the order in which
//! they become known. The tree is that of the BLAKE3 paper, §2.1, without what lies below a group.
//! It knows no file and computes on one thread.

use blake3::Hasher;
use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
pub use isotope_proto::proof::GROUP_BYTES;

/// Bytes of one inner node in the outboard.
pub(super) const PAIR_BYTES: u64 = isotope_proto::proof::PAIR_BYTES as u64;

/// A chaining value, or the root.
pub(super) type Value = [u8; 32];

/// An inner node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) left: Value,
    pub(super) right: Value,
    /// Groups below each half, and the first group of them all.
    pub(super) left_groups: u64,
    pub(super) right_groups: u64,
    pub(super) first_group: u64,
}

/// A tree of which the groups so far are known.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    /// Whole subtrees from the left, each with its number of groups. The newest group stands for
    /// itself until the next one comes: if none does, what it is joined to is the root.
    stack: Vec<(Value, u64)>,
    groups: u64,
}

impl Tree {
    pub(super) fn new() -> Self {
        // One for each bit of a number of groups, and the newest.
        Self { stack: Vec::with_capacity(64), groups: 0 }
    }

    /// The chaining values that are held, from the left: all that is needed to go on.
    pub(super) fn values(&self) -> impl Iterator<Item = Value> {
        self.stack.iter().map(|(value, _)| *value)
    }

    /// As it was after so many groups; None if these cannot be its values.
    pub(super) fn restore(groups: u64, values: &[Value]) -> Option<Self> {
        let mut sizes = Vec::with_capacity(64);
        if let Some(joined) = groups.checked_sub(1) {
            sizes.extend((0..64).rev().map(|bit| joined & (1 << bit)).filter(|size| *size > 0));
            sizes.push(1);
        }
        let fits = sizes.len() == values.len();
        fits.then(|| Self { stack: values.iter().copied().zip(sizes).collect(), groups })
    }

    pub(super) fn groups(&self) -> u64 {
        self.groups
    }

    /// How many inner nodes have been told after so many groups.
    pub(super) fn pairs(groups: u64) -> u64 {
        // Each node leaves one subtree fewer on the stack.
        groups.checked_sub(1).map_or(0, |joined| joined - u64::from(joined.count_ones()))
    }

    /// Takes in the next group, which is not the only one of its file. Only the last may be short.
    pub(super) fn push(&mut self, group: &[u8], on_pair: &mut impl FnMut(Pair)) {
        while let [.., (_, left), (_, right)] = self.stack[..]
            && left == right
        {
            self.join(on_pair, |pair| merge_subtrees_non_root(&pair.left, &pair.right, Mode::Hash));
        }
        let mut hasher = Hasher::new();
        hasher.set_input_offset(self.groups * GROUP_BYTES).update(group);
        self.stack.push((hasher.finalize_non_root(), 1));
        self.groups += 1;
    }

    /// The root, once all groups are in. None if there were fewer than two: then the hash of the
    /// bytes is the root.
    pub(super) fn finish(mut self, on_pair: &mut impl FnMut(Pair)) -> Option<Value> {
        while self.stack.len() > 2 {
            self.join(on_pair, |pair| merge_subtrees_non_root(&pair.left, &pair.right, Mode::Hash));
        }
        self.join(on_pair, |pair| {
            *merge_subtrees_root(&pair.left, &pair.right, Mode::Hash).as_bytes()
        })
    }

    /// Joins the two newest subtrees into one.
    fn join(
        &mut self,
        on_pair: &mut impl FnMut(Pair),
        merged: impl FnOnce(&Pair) -> Value,
    ) -> Option<Value> {
        let [.., (left, left_groups), (right, right_groups)] = self.stack[..] else { return None };
        let both = left_groups + right_groups;
        let first_group = self.groups - both;
        let pair = Pair { left, right, left_groups, right_groups, first_group };
        let value = merged(&pair);
        self.stack.truncate(self.stack.len() - 2);
        self.stack.push((value, both));
        on_pair(pair);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn root(bytes: &[u8], stop_after: u64) -> (Value, Vec<Pair>) {
        let mut pairs = Vec::new();
        let mut tree = Tree::new();
        for group in bytes.chunks(GROUP_BYTES as usize) {
            if tree.groups() == stop_after {
                assert_eq!(Tree::pairs(tree.groups()), pairs.len() as u64);
                let values: Vec<Value> = tree.values().collect();
                assert!(Tree::restore(tree.groups() + 1, &[]).is_none(), "too few");
                tree = Tree::restore(tree.groups(), &values).expect("its values");
            }
            tree.push(group, &mut |pair| pairs.push(pair));
        }
        let root = tree.finish(&mut |pair| pairs.push(pair));
        (root.unwrap_or_else(|| *blake3::hash(bytes).as_bytes()), pairs)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_root_is_the_hash_of_the_bytes(len in 0..700_000_usize, stop_after in 0..43_u64) {
            let bytes: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
            let (root, pairs) = root(&bytes, stop_after);
            prop_assert_eq!(root, *blake3::hash(&bytes).as_bytes());
            let groups = len.div_ceil(GROUP_BYTES as usize);
            prop_assert_eq!(pairs.len(), groups.saturating_sub(1));
        }
    }

    #[test]
    fn each_node_says_which_groups_lie_below_it() {
        let (_, pairs) = root(&[7; 5 * GROUP_BYTES as usize], 0);
        let below = |pair: &Pair| (pair.first_group, pair.left_groups, pair.right_groups);
        let found: Vec<_> = pairs.iter().map(below).collect();
        assert_eq!(found, [(0, 1, 1), (2, 1, 1), (0, 2, 2), (0, 4, 1)]);
    }
}
