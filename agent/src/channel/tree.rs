//! Inner nodes of a kept hash tree, in few calls: a small range's proof would else be a dozen reads
//! of 64 bytes, which take longer than the range itself. It knows places in a file, in post-order:
//! what lies low in the tree lies together, and the nodes above are the same for many ranges.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use isotope_proto::proof::PAIR_BYTES;

/// Nodes that lie closer together are read with one call: those of the lowest six levels do.
const RUN_NODES: u64 = 64;
/// Nodes remembered: those of the upper ten levels, in some 100 KiB.
const REMEMBERED_MAX: usize = 1024;

/// The chaining values of a node's halves.
type Pair = [u8; PAIR_BYTES];

/// The tree of one content.
pub(super) struct Tree {
    file: File,
    /// Those that were read alone: the upper ones, but for some.
    alone: HashMap<u64, Pair>,
}

impl Tree {
    pub(super) fn new(file: File) -> Self {
        Self { file, alone: HashMap::new() }
    }

    /// The nodes at these places, one after the other.
    ///
    /// # Errors
    /// As reading the file fails, or because it is too short.
    pub(super) fn nodes(&mut self, places: &[u64]) -> io::Result<Vec<u8>> {
        if self.alone.len() >= REMEMBERED_MAX {
            self.alone.clear();
        }
        let is_missing = |place: &u64| !self.alone.contains_key(place);
        let mut missing: Vec<u64> = places.iter().copied().filter(is_missing).collect();
        missing.sort_unstable();
        let mut together = HashMap::new();
        for run in missing.chunk_by(|one, next| next - one < RUN_NODES) {
            let into = if run.len() > 1 { &mut together } else { &mut self.alone };
            read(&self.file, run, into)?;
        }
        let known = |place| together.get(place).or_else(|| self.alone.get(place));
        Ok(places.iter().filter_map(known).flatten().copied().collect())
    }
}

/// Nodes in order of their places, with one call.
fn read(file: &File, run: &[u64], into: &mut HashMap<u64, Pair>) -> io::Result<()> {
    let [Some(&first), Some(&last)] = [run.first(), run.last()] else { return Ok(()) };
    let index = |place: u64| usize::try_from(place - first).unwrap_or(usize::MAX);
    let mut pairs = vec![[0; PAIR_BYTES]; index(last) + 1];
    let start = first.saturating_mul(u64::try_from(PAIR_BYTES).unwrap_or(u64::MAX));
    file.read_exact_at(pairs.as_flattened_mut(), start)?;
    into.extend(run.iter().map(|&place| (place, pairs[index(place)])));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use isotope_proto::proof;
    use isotope_proto::range::ByteRange;

    use super::*;

    /// A file of so many nodes, each of which tells its place.
    fn tree(nodes: u64) -> Tree {
        let mut file = tempfile::tempfile().expect("a file");
        for place in 0..nodes {
            file.write_all(&node(place)).expect("written");
        }
        Tree::new(file)
    }

    fn node(place: u64) -> Pair {
        let mut pair = [7; PAIR_BYTES];
        pair[..8].copy_from_slice(&place.to_le_bytes());
        pair
    }

    #[test]
    fn every_proof_has_its_nodes_and_no_more_are_remembered_than_may_be() {
        let groups = 5000;
        let size_bytes = groups * proof::GROUP_BYTES - 1;
        let mut tree = tree(groups - 1);
        let ranges = (0..4000).map(|n| (n * 7919 % groups, 1 + n % 3 * 40));
        for (group, len) in ranges.chain([(0, 64), (64, 64), (4999, 1), (0, groups)]) {
            let (start, len) = (group * proof::GROUP_BYTES, len * proof::GROUP_BYTES);
            let places = proof::nodes(ByteRange::clamped(start, len, size_bytes), size_bytes);
            let expected: Vec<u8> = places.iter().copied().flat_map(node).collect();
            assert_eq!(tree.nodes(&places).expect("read"), expected);
            assert!(tree.alone.len() <= REMEMBERED_MAX + places.len());
        }
        // Some levels lie far apart, and are not read again.
        let places = proof::nodes(ByteRange::clamped(0, 1, size_bytes), size_bytes);
        tree.nodes(&places).expect("read");
        assert!(tree.alone.contains_key(&places[0]));
        assert!(!tree.alone.contains_key(places.last().expect("some")));
    }

    #[test]
    fn a_tree_that_is_too_short_is_an_error() {
        let error = tree(10).nodes(&[3, 10]).expect_err("there is no tenth");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
