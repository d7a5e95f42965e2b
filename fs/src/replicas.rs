//! Which replica to read, and which next. Pure over what is known of the hosts.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use isotope_proto::id::{ImageId, VolumeId};

use crate::tree::{ImageNode, Tree};

/// A host that failed is asked last for so long.
const DISTRUST: Duration = Duration::from_secs(5);

/// One way to an image's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub image: ImageId,
    pub volume: VolumeId,
    /// `host:port` of the agent.
    pub address: String,
}

/// When each host last failed.
#[derive(Debug, Default)]
pub(crate) struct Health {
    failed: HashMap<String, Instant>,
}

impl Health {
    pub(crate) fn failed(&mut self, address: &str, now: Instant) {
        self.failed.insert(address.to_owned(), now);
    }

    pub(crate) fn succeeded(&mut self, address: &str) {
        self.failed.remove(address);
    }

    fn distrusted(&self, address: &str, now: Instant) -> bool {
        self.failed.get(address).is_some_and(|at| now.duration_since(*at) < DISTRUST)
    }
}

/// All ways to an image, best first: hosts that did not just fail, then those the catalogue is
/// connected to. The others come last, not never: the mount may see a host that the catalogue
/// does not.
pub(crate) fn routes(tree: &Tree, image: &ImageNode, health: &Health, now: Instant) -> Vec<Route> {
    let connected = &tree.live().connected;
    let mut ranked: Vec<_> = image
        .volumes
        .iter()
        .flat_map(|volume| tree.holders(*volume).map(move |node| (*volume, node)))
        .map(|(volume, node)| {
            let rank = (health.distrusted(&node.address, now), !connected.contains(&node.id));
            let address = node.address.clone();
            (rank, Route { image: image.id, volume, address })
        })
        .collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, route)| route).collect()
}

#[cfg(test)]
mod tests {
    use isotope_proto::change::Record;
    use isotope_proto::cluster::{Live, Node, Sight, Volume};
    use isotope_proto::id::{Incarnation, NodeId, PoolId, Revision};
    use isotope_proto::time::Timestamp;

    use super::*;
    use crate::tree::Position;

    fn node(n: u8) -> NodeId {
        NodeId::from_bytes([n; 16])
    }

    #[test]
    fn healthy_and_connected_hosts_come_first_and_none_is_left_out() {
        let incarnation = Incarnation::from_bytes([1; 16]);
        let mut tree = Tree::new(Position { incarnation, revision: Revision(1) });
        let volume = |n: u8| VolumeId::from_bytes([n; 16]);
        for n in 1..=3 {
            let (id, name, address) = (node(n), format!("host-{n}"), format!("host-{n}:1"));
            let host = name.clone();
            tree.load(Record::Node(Node { id, name, address, host }));
            let sights = vec![Sight { node: id, path: String::new() }];
            let pool = PoolId::from_bytes([0; 16]);
            tree.load(Record::Volume(Volume { id: volume(n), pool, sights }));
        }
        tree.set_live(Live { connected: vec![node(2), node(3)], volumes: Vec::new() });
        let image = ImageNode {
            id: ImageId::from_bytes([9; 16]),
            size_bytes: 1,
            mode: 0,
            links: 1,
            created: Timestamp(0),
            modified: Timestamp(0),
            changed: Timestamp(0),
            volumes: (1..=3).map(volume).collect(),
        };
        let mut health = Health::default();
        let now = Instant::now();
        let order = |health: &Health, now| {
            let routes = routes(&tree, &image, health, now);
            routes.into_iter().map(|route| route.address).collect::<Vec<_>>()
        };
        assert_eq!(order(&health, now), ["host-2:1", "host-3:1", "host-1:1"]);
        health.failed("host-2:1", now);
        assert_eq!(order(&health, now), ["host-3:1", "host-1:1", "host-2:1"]);
        assert_eq!(order(&health, now + DISTRUST)[0], "host-2:1");
        health.succeeded("host-2:1");
        assert_eq!(order(&health, now)[0], "host-2:1");
    }
}
