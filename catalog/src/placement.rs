//! The one choice of a node, for everything that needs one. Pure over what is known.

use std::collections::BTreeSet;

use isotope_proto::cluster::{Access, Live, Node, Pool, Volume, VolumeState};
use isotope_proto::id::{NodeId, VolumeId};
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::upload::UploadRequest;

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

/// Where an upload goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) volume: VolumeId,
    pub(crate) node: Node,
    pub(crate) pool: String,
    pub(crate) reason: &'static str,
}

/// The volume for an upload: of the pool that was asked for, else one of the writer's own host,
/// else any; among those the one with most room, of those that it fits into.
pub(crate) fn choose_volume(
    request: &UploadRequest,
    pools: &[Pool],
    volumes: &[Volume],
    nodes: &[Node],
    live: &Live,
    offering: impl Fn(VolumeId) -> BTreeSet<NodeId>,
) -> Result<Target, Refusal> {
    let pool_of = |volume: &Volume| pools.iter().find(|pool| pool.id == volume.pool);
    if let Some(name) = &request.pool
        && !pools.iter().any(|pool| pool.name == *name)
    {
        return Err(Refusal::new(Reason::NotFound, format!("no pool is called {name}")));
    }
    let mut candidates: Vec<(u64, Target)> = Vec::new();
    let mut full: Option<Reason> = None;
    for volume in volumes {
        let Some(pool) = pool_of(volume) else { continue };
        if request.pool.as_ref().is_some_and(|name| pool.name != *name) {
            continue;
        }
        let Some(VolumeState::Online(space)) = live.volume(volume.id) else { continue };
        if space.access == Access::ReadOnly {
            full = full.or(Some(Reason::ReadOnly));
            continue;
        }
        if space.available_bytes <= request.size_bytes {
            full = Some(Reason::NoSpace);
            continue;
        }
        let Choice::Node { node, .. } = choose(pool, &offering(volume.id)) else { continue };
        let Some(node) = nodes.iter().find(|it| it.id == node) else { continue };
        let reason = match &request.pool {
            Some(_) => "the pool was asked for",
            None if node.name == request.host => "of the writer's own host",
            None => "the one with most room",
        };
        let pool = pool.name.clone();
        let target = Target { volume: volume.id, node: node.clone(), pool, reason };
        candidates.push((space.available_bytes, target));
    }
    let own = |target: &Target| target.node.name == request.host;
    let best = candidates.into_iter().max_by_key(|(room, target)| (own(target), *room));
    best.map(|(_, target)| target).ok_or_else(|| match full {
        Some(Reason::ReadOnly) => {
            Refusal::new(Reason::ReadOnly, "every volume that could take it is read-only")
        }
        Some(_) => Refusal::new(Reason::NoSpace, "no volume has room for it"),
        None => Refusal::new(Reason::Unavailable, "no volume to store it is online"),
    })
}

#[cfg(test)]
mod tests {
    use isotope_proto::cluster::Space;
    use isotope_proto::id::{Ino, PoolId, UploadId};
    use isotope_proto::name::EntryName;
    use isotope_proto::tree::{FolderRef, Place};
    use isotope_proto::upload::Existing;

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

    #[test]
    fn uploads_go_where_they_are_asked_to_then_home_then_where_there_is_room() {
        let volume = |n: u8| VolumeId::from_bytes([n; 16]);
        let pool = |n: u8, name: &str| Pool {
            id: PoolId::from_bytes([n; 16]),
            name: name.to_owned(),
            assigned: vec![node(n)],
        };
        let pools = [pool(1, "fast"), pool(2, "slow"), pool(3, "full"), pool(4, "archive")];
        let volumes: Vec<Volume> = (1..=4)
            .map(|n| Volume { id: volume(n), pool: PoolId::from_bytes([n; 16]), sights: vec![] })
            .collect();
        let nodes: Vec<Node> = (1..=4)
            .map(|n| Node { id: node(n), name: format!("host-{n}"), address: String::new() })
            .collect();
        let space = |available_bytes, access| {
            VolumeState::Online(Space {
                filesystem: String::new(),
                capacity_bytes: 100,
                free_bytes: available_bytes,
                available_bytes,
                access,
            })
        };
        let live = Live {
            connected: (1..=4).map(node).collect(),
            volumes: vec![
                (volume(1), space(50, Access::ReadWrite)),
                (volume(2), space(80, Access::ReadWrite)),
                (volume(3), space(0, Access::ReadWrite)),
                (volume(4), space(90, Access::ReadOnly)),
            ],
        };
        let check = |pool: Option<&str>, host: &str, size_bytes, expected: Result<&str, Reason>| {
            let request = UploadRequest {
                id: UploadId::from_bytes([1; 16]),
                place: Place {
                    folder: FolderRef::Ino(Ino::ROOT),
                    name: EntryName::parse("a.iso").expect("a name"),
                },
                mode: 0,
                pool: pool.map(str::to_owned),
                host: host.to_owned(),
                existing: Existing::Refuse,
                size_bytes,
            };
            let offering = |id: VolumeId| BTreeSet::from([node(id.as_bytes()[0])]);
            let found = choose_volume(&request, &pools, &volumes, &nodes, &live, offering);
            let found = found.map(|target| target.pool).map_err(|refusal| refusal.reason);
            assert_eq!(found.as_deref().map_err(|reason| *reason), expected);
        };
        check(None, "elsewhere", 0, Ok("slow"));
        check(None, "host-1", 0, Ok("fast"));
        check(Some("slow"), "host-1", 0, Ok("slow"));
        check(None, "host-1", 60, Ok("slow"));
        check(None, "host-1", 200, Err(Reason::NoSpace));
        check(Some("full"), "host-1", 1, Err(Reason::NoSpace));
        check(Some("archive"), "host-1", 1, Err(Reason::ReadOnly));
        check(Some("none"), "host-1", 1, Err(Reason::NotFound));
    }
}
