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
    /// As the agent knows the file: the image itself, or another with the same bytes.
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
/// does not. Among equals, the image's own files come before those of others with its bytes.
pub(crate) fn routes(tree: &Tree, image: &ImageNode, health: &Health, now: Instant) -> Vec<Route> {
    let connected = &tree.live().connected;
    let own = std::iter::once((Kin::Own, image));
    let all = own.chain(tree.twins(image).map(|twin| (Kin::Twin, twin)));
    let mut ranked = Vec::new();
    for (kin, image) in all {
        for &volume in image.volumes.iter() {
            for node in tree.holders(volume) {
                let distrusted = health.distrusted(&node.address, now);
                let rank = (distrusted, !connected.contains(&node.id), kin);
                let address = node.address.clone();
                ranked.push((rank, Route { image: image.id, volume, address }));
            }
        }
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, route)| route).collect()
}

/// Whose file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kin {
    Own,
    Twin,
}

#[cfg(test)]
mod tests {
    use isotope_proto::change::{Change, Delta, Edit, Record};
    use isotope_proto::cluster::{Live, Node, Sight, Volume};
    use isotope_proto::id::{ContentId, Incarnation, Ino, NodeId, PoolId, Revision};
    use isotope_proto::image::{Image, ImageFormat, Os, Replica, Stamp};
    use isotope_proto::name::VolumePath;
    use isotope_proto::time::Timestamp;

    use super::*;
    use crate::tree::{Inode, Position};

    fn node(n: u8) -> NodeId {
        NodeId::from_bytes([n; 16])
    }

    fn volume(n: u8) -> VolumeId {
        VolumeId::from_bytes([n; 16])
    }

    /// `host-1`, `host-2`… with a volume each; some are connected.
    fn hosts(count: u8, connected: &[u8]) -> Tree {
        let incarnation = Incarnation::from_bytes([1; 16]);
        let mut tree = Tree::new(Position { incarnation, revision: Revision(1) });
        for n in 1..=count {
            let (id, name, address) = (node(n), format!("host-{n}"), format!("host-{n}:1"));
            let host = name.clone();
            tree.load(Record::Node(Node { id, name, address, host }));
            let sights = vec![Sight { node: id, path: String::new() }];
            let pool = PoolId::from_bytes([0; 16]);
            tree.load(Record::Volume(Volume { id: volume(n), pool, sights }));
        }
        let connected = connected.iter().copied().map(node).collect();
        tree.set_live(Live { connected, volumes: Vec::new() });
        tree
    }

    /// An image with a content, and a file on each of some volumes.
    fn image(n: u8, content: u8, volumes: &[u8]) -> Image {
        let replica = |n: &u8| Replica {
            volume: volume(*n),
            path: VolumePath::parse("iso/x.iso").expect("a path"),
            stamp: Stamp { inode: 1, size_bytes: 1, mtime_ns: 0 },
            checked: None,
        };
        Image {
            id: ImageId::from_bytes([n; 16]),
            ino: Ino(n.into()),
            content: ContentId::from_bytes([content; 16]),
            hashes: None,
            filename: "x.iso".to_owned(),
            size_bytes: 1,
            format: ImageFormat::Iso,
            os: Os::unknown(),
            flat_names: Vec::new(),
            facts: None,
            mode: 0,
            created: Timestamp(0),
            modified: Timestamp(0),
            changed: Timestamp(0),
            replicas: volumes.iter().map(replica).collect(),
        }
    }

    #[test]
    fn an_image_is_read_from_the_files_of_its_twins_too() {
        let mut tree = hosts(4, &[1, 2, 4]);
        for it in [image(9, 7, &[3, 2]), image(8, 7, &[1, 2]), image(6, 5, &[4])] {
            tree.load(Record::Image(it));
        }
        tree.end_list();
        let mut health = Health::default();
        let now = Instant::now();
        let order = |tree: &Tree, health: &Health, of: u8| {
            let Some(Inode::Image(image)) = tree.get(Ino(of.into())) else { panic!("an image") };
            let routes = routes(tree, image, health, now);
            let told = routes.into_iter().map(|it| (it.address, it.image.as_bytes()[0]));
            told.map(|(address, image)| format!("{image} on {address}")).collect::<Vec<_>>()
        };
        // A host is asked for each file by the image that it knows it as.
        let expected = ["9 on host-2:1", "8 on host-1:1", "8 on host-2:1", "9 on host-3:1"];
        assert_eq!(order(&tree, &health, 9), expected);
        health.failed("host-2:1", now);
        let expected = ["8 on host-1:1", "9 on host-3:1", "9 on host-2:1", "8 on host-2:1"];
        assert_eq!(order(&tree, &health, 9), expected);
        assert_eq!(order(&tree, &health, 6), ["6 on host-4:1"]);
        // Hashed, and found the same: a reader's next try may go there.
        let edit = Edit::Changed { before: image(6, 5, &[4]), after: image(6, 7, &[4]) };
        let Position { incarnation, revision } = tree.position;
        let deltas = vec![Delta::Image(edit)];
        let change = Change { incarnation, revision: revision.next(), time: Timestamp(0), deltas };
        tree.apply(&change);
        assert!(order(&tree, &health, 9).contains(&"6 on host-4:1".to_owned()));
    }

    #[test]
    fn healthy_and_connected_hosts_come_first_and_none_is_left_out() {
        let mut tree = hosts(3, &[2, 3]);
        let record = image(9, 7, &[1, 2, 3]);
        tree.load(Record::Image(record.clone()));
        let Some(Inode::Image(image)) = tree.get(record.ino) else { panic!("an image") };
        let mut health = Health::default();
        let now = Instant::now();
        let order = |health: &Health, now| {
            let routes = routes(&tree, image, health, now);
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
