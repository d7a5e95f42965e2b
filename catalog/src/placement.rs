//! The one choice of a node, for everything that needs one. Pure over what is known.

use std::collections::BTreeSet;

use isotope_proto::cluster::Pool;
use isotope_proto::id::NodeId;

/// Which node does the work, and why; or why none can.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Choice {
    Node { node: NodeId, reason: &'static str },
    Skip { reason: &'static str },
}

/// Chooses among the connected nodes that can use a volume: an assigned one, best first, else any
/// of them. Assignment ranks; it excludes nobody.
pub(crate) fn choose(pool: &Pool, offering: &BTreeSet<NodeId>) -> Choice {
    if let Some(&node) = pool.assigned.iter().find(|node| offering.contains(node)) {
        return Choice::Node { node, reason: "assigned and connected" };
    }
    match (offering.first(), pool.assigned.is_empty()) {
        (Some(&node), true) => {
            Choice::Node { node, reason: "the pool has no assignment; this node offers it" }
        }
        (Some(&node), false) => {
            Choice::Node { node, reason: "no assigned node can do it; this one offers the pool" }
        }
        (None, _) => Choice::Skip { reason: "no connected node offers the volume" },
    }
}

#[cfg(test)]
mod tests {
    use isotope_proto::id::PoolId;

    use super::*;

    fn node(n: u8) -> NodeId {
        NodeId::from_bytes([n; 16])
    }

    #[test]
    fn assignment_ranks_and_excludes_nobody() {
        for (assigned, offering, expected) in [
            (vec![1, 2], vec![1, 2, 3], Some(1)),
            (vec![2, 1], vec![1, 2], Some(2)),
            (vec![1, 2], vec![2], Some(2)),
            (vec![1, 2], vec![3], Some(3)),
            (vec![], vec![3], Some(3)),
            (vec![1], vec![], None),
            (vec![], vec![], None),
        ] {
            let pool = Pool {
                id: PoolId::from_bytes([0; 16]),
                name: "isos".to_owned(),
                assigned: assigned.iter().copied().map(node).collect(),
            };
            let chosen = match choose(&pool, &offering.iter().copied().map(node).collect()) {
                Choice::Node { node, .. } => Some(node),
                Choice::Skip { .. } => None,
            };
            assert_eq!(chosen, expected.map(node), "{assigned:?} {offering:?}");
        }
    }
}
