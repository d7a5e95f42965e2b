//! The one choice of a node, for everything that needs one. Pure over what is known.

use std::collections::BTreeSet;

use isotope_proto::cluster::{Access, Live, Node, Pool, Volume, VolumeState};
use isotope_proto::id::{NodeId, PoolId, VolumeId};
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::upload::UploadRequest;

use crate::library::pool_called;

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

/// What is known of the cluster.
pub(crate) struct Known<'a> {
    pub(crate) nodes: &'a [Node],
    pub(crate) pools: &'a [Pool],
    pub(crate) volumes: &'a [Volume],
    pub(crate) live: &'a Live,
}

/// The volume for an upload: of the pool that was asked for and of no other; else of the folder's
/// default pool; else one of the writer's own host; else any. Of several the one with most room,
/// of those that can take it.
pub(crate) fn choose_volume(
    request: &UploadRequest,
    folder_default: Option<PoolId>,
    known: &Known<'_>,
    offering: impl Fn(VolumeId) -> BTreeSet<NodeId>,
) -> Result<Target, Refusal> {
    let asked = match &request.pool {
        Some(name) => Some(pool_called(known.pools, name)?.id),
        None => None,
    };
    let mut candidates: Vec<(Rank, Target)> = Vec::new();
    let mut full: Option<Reason> = None;
    for volume in known.volumes {
        let Some(pool) = known.pools.iter().find(|pool| pool.id == volume.pool) else { continue };
        if asked.is_some_and(|asked| pool.id != asked) {
            continue;
        }
        let Some(VolumeState::Online(space)) = known.live.volume(volume.id) else { continue };
        if space.access == Access::ReadOnly {
            full = full.or(Some(Reason::ReadOnly));
            continue;
        }
        if space.available_bytes <= request.size_bytes {
            full = Some(Reason::NoSpace);
            continue;
        }
        let Choice::Node { node, .. } = choose(pool, &offering(volume.id)) else { continue };
        let Some(node) = known.nodes.iter().find(|it| it.id == node) else { continue };
        let rank = Rank {
            of_default_pool: folder_default == Some(pool.id),
            of_own_host: node.host == request.host,
            available_bytes: space.available_bytes,
        };
        let reason = rank.reason(asked, folder_default);
        let pool = pool.name.clone();
        candidates.push((rank, Target { volume: volume.id, node: node.clone(), pool, reason }));
    }
    let best = candidates.into_iter().max_by_key(|(rank, _)| *rank);
    best.map(|(_, target)| target).ok_or_else(|| match full {
        Some(Reason::ReadOnly) => {
            Refusal::new(Reason::ReadOnly, "every volume that could take it is read-only")
        }
        Some(_) => Refusal::new(Reason::NoSpace, "no volume has room for it"),
        None => Refusal::new(Reason::Unavailable, "no volume to store it is online"),
    })
}

/// What speaks for a volume; the first field in which two differ decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    of_default_pool: bool,
    of_own_host: bool,
    available_bytes: u64,
}

impl Rank {
    /// Why a volume of this rank is the best one, for the log.
    fn reason(&self, asked: Option<PoolId>, folder_default: Option<PoolId>) -> &'static str {
        match (asked, folder_default) {
            (Some(_), _) => "the pool was asked for",
            (None, Some(_)) if self.of_default_pool => "the folder's default pool",
            (None, Some(_)) if self.of_own_host => {
                "the folder's default pool cannot take it; of the writer's own host"
            }
            (None, Some(_)) => "the folder's default pool cannot take it; the one with most room",
            (None, None) if self.of_own_host => "of the writer's own host",
            (None, None) => "the one with most room",
        }
    }
}

#[cfg(test)]
mod tests {
    use isotope_proto::cluster::Space;
    use isotope_proto::id::{Ino, UploadId};
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
    fn uploads_go_where_asked_to_then_to_the_default_then_home_then_where_there_is_room() {
        let volume = |n: u8| VolumeId::from_bytes([n; 16]);
        let pool = |n: u8, name: &str| Pool {
            id: PoolId::from_bytes([n; 16]),
            name: name.to_owned(),
            assigned: vec![node(n)],
        };
        let names = ["fast", "slow", "full", "archive", "away"];
        let pools: Vec<Pool> = (1..=5).zip(names).map(|(n, name)| pool(n, name)).collect();
        let volumes: Vec<Volume> = (1..=5)
            .map(|n| Volume { id: volume(n), pool: PoolId::from_bytes([n; 16]), sights: vec![] })
            .collect();
        let nodes: Vec<Node> = (1..=5)
            .map(|n| Node {
                id: node(n),
                name: format!("node-{n}"),
                address: String::new(),
                host: format!("host-{n}"),
            })
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
                (volume(5), VolumeState::Offline(String::new())),
            ],
        };
        let known = Known { nodes: &nodes, pools: &pools, volumes: &volumes, live: &live };
        let check = |pool: Option<&str>,
                     default: Option<u8>,
                     host: &str,
                     size_bytes,
                     expected: Result<(&str, &str), Reason>| {
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
            let default = default.map(|n| PoolId::from_bytes([n; 16]));
            let offering = |id: VolumeId| BTreeSet::from([node(id.as_bytes()[0])]);
            let found = choose_volume(&request, default, &known, offering);
            let found = found.as_ref().map(|target| (&*target.pool, target.reason));
            assert_eq!(found.map_err(|refusal| refusal.reason), expected);
        };
        let (asked, default) = ("the pool was asked for", "the folder's default pool");
        let (home, room) = ("of the writer's own host", "the one with most room");
        let not_default_but_home =
            "the folder's default pool cannot take it; of the writer's own host";
        let not_default_but_room =
            "the folder's default pool cannot take it; the one with most room";
        check(None, None, "elsewhere", 0, Ok(("slow", room)));
        check(None, None, "host-1", 0, Ok(("fast", home)));
        check(None, None, "host-1", 60, Ok(("slow", room)));
        check(None, None, "host-1", 200, Err(Reason::NoSpace));
        check(Some("slow"), None, "host-1", 0, Ok(("slow", asked)));
        check(Some("full"), None, "host-1", 1, Err(Reason::NoSpace));
        check(Some("archive"), None, "host-1", 1, Err(Reason::ReadOnly));
        check(Some("away"), None, "host-1", 1, Err(Reason::Unavailable));
        check(Some("none"), None, "host-1", 1, Err(Reason::NotFound));
        // The folder's default: fast, slow, full, archive, away.
        check(None, Some(1), "host-2", 0, Ok(("fast", default)));
        check(None, Some(2), "host-1", 0, Ok(("slow", default)));
        check(Some("fast"), Some(2), "host-2", 0, Ok(("fast", asked)));
        check(Some("full"), Some(2), "host-2", 0, Err(Reason::NoSpace));
        check(None, Some(1), "host-1", 60, Ok(("slow", not_default_but_room)));
        check(None, Some(3), "host-1", 0, Ok(("fast", not_default_but_home)));
        check(None, Some(4), "host-1", 0, Ok(("fast", not_default_but_home)));
        check(None, Some(5), "elsewhere", 0, Ok(("slow", not_default_but_room)));
        check(None, Some(2), "host-1", 200, Err(Reason::NoSpace));
    }

    #[test]
    fn within_the_default_pool_the_writers_own_host_comes_first() {
        let rank = |of_default_pool, of_own_host, available_bytes| Rank {
            of_default_pool,
            of_own_host,
            available_bytes,
        };
        let ranks = [
            rank(false, false, 9),
            rank(false, true, 8),
            rank(true, false, 1),
            rank(true, false, 2),
            rank(true, true, 1),
        ];
        assert!(ranks.is_sorted());
    }
}
