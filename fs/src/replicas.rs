//! Which replica to read, and which next. Pure over what is known of the hosts.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use isotope_proto::cluster::VolumeState;
use isotope_proto::id::{ImageId, VolumeId};

use crate::tree::{ImageNode, Tree};

/// A copy that sent wrong bytes is asked last for so long; by then its agent has read it whole.
const LIAR_LAST: Duration = Duration::from_secs(600);
/// A measured speed is believed for so long: networks and disks recover.
const SPEED_KEPT: Duration = Duration::from_secs(60);
/// Hosts of this speed and above are as good as one another.
const FAST_BYTES_PER_S: u64 = 1 << 30;

/// A host that answered is taken to be well for so long, even if the catalogue is not connected to it.
const ANSWER_KEPT: Duration = Duration::from_secs(60);

/// One way to an image's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// As the agent knows the file: the image itself, or another with the same bytes.
    pub image: ImageId,
    pub volume: VolumeId,
    /// `host:port` of the agent.
    pub address: String,
}

/// What reading from the hosts has shown of them.
#[derive(Debug, Default)]
pub(crate) struct Health {
    hosts: HashMap<String, Host>,
    liars: HashMap<(String, ImageId), Instant>,
}

#[derive(Debug, Default)]
struct Host {
    /// It did not answer, and has not since.
    bad_since: Option<Instant>,
    /// When it was last noted that it answered; none since it failed.
    answered: Option<Instant>,
    /// Bytes per second, when they were last measured.
    speed: Option<(u64, Instant)>,
}

impl Health {
    fn host(&mut self, address: &str) -> &mut Host {
        if !self.hosts.contains_key(address) {
            self.hosts.insert(address.to_owned(), Host::default());
        }
        self.hosts.get_mut(address).expect("there now")
    }

    /// True if it was thought to be well until now.
    pub(crate) fn failed(&mut self, address: &str, now: Instant) -> bool {
        let host = self.host(address);
        let newly = host.bad_since.is_none();
        host.bad_since.get_or_insert(now);
        host.answered = None;
        newly
    }

    pub(crate) fn succeeded(&mut self, address: &str, now: Instant) {
        let host = self.host(address);
        host.bad_since = None;
        host.answered = Some(now);
    }

    /// It answered somebody on a short cut, which looks only for hosts that are well.
    pub(crate) fn went_on(&mut self, address: &str, now: Instant) {
        let host = self.host(address);
        if host.bad_since.is_none() {
            host.answered = Some(now);
        }
    }

    fn answers(&self, address: &str, now: Instant) -> bool {
        let answered = self.hosts.get(address).and_then(|host| host.answered);
        answered.is_some_and(|at| now.saturating_duration_since(at) < ANSWER_KEPT)
    }

    /// It delivered `bytes` in that time, or that many had come when somebody else was faster.
    pub(crate) fn measured(&mut self, address: &str, bytes: u64, took: Duration, now: Instant) {
        let nanos = took.as_nanos().max(1);
        let found = u64::try_from(u128::from(bytes) * 1_000_000_000 / nanos).unwrap_or(u64::MAX);
        let speed = &mut self.host(address).speed;
        // The newest counts half.
        let kept = speed.filter(|(_, at)| now.saturating_duration_since(*at) < SPEED_KEPT);
        *speed = Some((kept.map_or(found, |(before, _)| before.midpoint(found)), now));
    }

    /// It sent bytes that are not the image's. True if that was not known.
    pub(crate) fn lied(&mut self, route: &Route, now: Instant) -> bool {
        let newly = !self.has_lied(&route.address, route.image, now);
        if newly {
            self.liars.retain(|_, at| now.saturating_duration_since(*at) < LIAR_LAST);
            self.liars.insert((route.address.clone(), route.image), now);
        }
        newly
    }

    pub(crate) fn has_lied(&self, address: &str, image: ImageId, now: Instant) -> bool {
        // Most often there are none.
        let lied = || self.liars.get(&(address.to_owned(), image));
        !self.liars.is_empty()
            && lied().is_some_and(|at| now.saturating_duration_since(*at) < LIAR_LAST)
    }

    pub(crate) fn bad_since(&self, address: &str) -> Option<Instant> {
        self.hosts.get(address)?.bad_since
    }

    /// Bytes per second, as measured lately.
    pub(crate) fn speed(&self, address: &str, now: Instant) -> Option<u64> {
        let (speed, at) = self.hosts.get(address)?.speed?;
        (now.saturating_duration_since(at) < SPEED_KEPT).then_some(speed)
    }

    /// In steps of four times, for a difference that is worth going elsewhere.
    pub(crate) fn slowness(&self, address: &str, now: Instant) -> u32 {
        let steps = |speed: u64| (FAST_BYTES_PER_S / speed.max(1)).max(1).ilog2() / 2;
        self.speed(address, now).map_or(0, steps)
    }

    /// Whether going from one host to another, because it is slow, makes sense.
    pub(crate) fn is_slower(&self, address: &str, than: &str, now: Instant) -> bool {
        self.slowness(address, now) > self.slowness(than, now)
    }
}

/// All ways to an image, best first: copies that sent no wrong bytes, hosts that did not fail, then
/// those the catalogue is connected to, then this host (`here` is its name), then those that were
/// fast. The others come last, not never: the mount may see a host that the catalogue does not. Among
/// equals, the image's own files come before those of others with its bytes.
pub(crate) fn routes(
    tree: &Tree,
    image: &ImageNode,
    health: &Health,
    here: &str,
    now: Instant,
) -> Vec<Route> {
    let connected = &tree.live().connected;
    let own = std::iter::once((Kin::Own, image));
    let all = own.chain(tree.twins(image).map(|twin| (Kin::Twin, twin)));
    let mut ranked = Vec::new();
    for (kin, image) in all {
        for &volume in image.volumes.iter() {
            for node in tree.holders(volume) {
                let lied = health.has_lied(&node.address, image.id, now);
                let bad = health.bad_since(&node.address).is_some();
                let slowness = health.slowness(&node.address, now);
                let away = !connected.contains(&node.id);
                let rank = (lied, bad, away, node.host != here, slowness, kin);
                let address = node.address.clone();
                ranked.push((rank, Route { image: image.id, volume, address }));
            }
        }
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, route)| route).collect()
}

/// Whether any host with a file of the image is known to be well: it has not failed, the catalogue is
/// connected to it or it answered lately, and the file's volume is not offline. The others may yet
/// deliver; it is just not to be reckoned with.
pub(crate) fn any_well(tree: &Tree, image: &ImageNode, health: &Health, now: Instant) -> bool {
    let live = tree.live();
    let offline = |volume| matches!(live.volume(volume), Some(VolumeState::Offline(_)));
    let mut all = std::iter::once(image).chain(tree.twins(image));
    all.any(|image| {
        let mut volumes = image.volumes.iter().filter(|volume| !offline(**volume));
        volumes.any(|volume| {
            tree.holders(*volume).any(|node| {
                let there =
                    || live.connected.contains(&node.id) || health.answers(&node.address, now);
                health.bad_since(&node.address).is_none() && there()
            })
        })
    })
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
            let routes = routes(tree, image, health, "host-9", now);
            let told = routes.into_iter().map(|it| (it.address, it.image.as_bytes()[0]));
            told.map(|(address, image)| format!("{image} on {address}")).collect::<Vec<_>>()
        };
        // A host is asked for each file by the image that it knows it as.
        let expected = ["9 on host-2:1", "8 on host-1:1", "8 on host-2:1", "9 on host-3:1"];
        assert_eq!(order(&tree, &health, 9), expected);
        assert!(health.failed("host-2:1", now));
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
    fn healthy_connected_near_and_fast_hosts_come_first_and_none_is_left_out() {
        let mut tree = hosts(3, &[2, 3]);
        let record = image(9, 7, &[1, 2, 3]);
        tree.load(Record::Image(record.clone()));
        let Some(Inode::Image(image)) = tree.get(record.ino) else { panic!("an image") };
        let mut health = Health::default();
        let now = Instant::now();
        let order = |health: &Health, here: &str, now| {
            let routes = routes(&tree, image, health, here, now);
            routes.into_iter().map(|it| it.address[5..6].to_owned()).collect::<String>()
        };
        assert_eq!(order(&health, "away", now), "231");
        assert_eq!(order(&health, "host-3", now), "321");
        // 100 MB/s are slower than what is not known yet, and than 10 Gbit/s.
        health.measured("host-2:1", 100_000_000, Duration::from_secs(1), now);
        assert_eq!(order(&health, "away", now), "321");
        assert_eq!(order(&health, "host-2", now), "231", "nearer is better than faster");
        health.measured("host-3:1", 90_000_000, Duration::from_secs(1), now);
        assert_eq!(order(&health, "away", now), "231", "about as fast");
        assert_eq!(order(&health, "away", now + SPEED_KEPT), "231");
        assert!(health.failed("host-2:1", now));
        assert!(!health.failed("host-2:1", now + SPEED_KEPT), "known already");
        assert_eq!(order(&health, "host-2", now), "312");
        assert_eq!(health.bad_since("host-2:1"), Some(now));
        health.succeeded("host-2:1", now);
        assert_eq!(order(&health, "host-2", now), "231");
    }

    #[test]
    fn a_host_is_well_while_it_answers_or_the_catalogue_is_connected_to_it() {
        let now = Instant::now();
        let (later, much_later) = (now + ANSWER_KEPT / 2, now + ANSWER_KEPT * 2);
        let mut tree = hosts(3, &[1]);
        for it in [image(1, 1, &[1]), image(2, 2, &[2]), image(3, 2, &[3]), image(4, 4, &[])] {
            tree.load(Record::Image(it));
        }
        tree.end_list();
        let mut health = Health::default();
        let well = |tree: &Tree, health: &Health, now| {
            let image = |n| tree.image(Ino(n)).expect("an image");
            (1..=4).filter(|n| any_well(tree, image(*n), health, now)).collect::<Vec<_>>()
        };
        assert_eq!(well(&tree, &health, now), [1]);
        // It answers, though the catalogue does not reach it: that goes for the twin's readers, too.
        health.succeeded("host-2:1", now);
        assert_eq!(well(&tree, &health, later), [1, 2, 3]);
        assert_eq!(well(&tree, &health, much_later), [1]);
        health.went_on("host-2:1", later);
        assert_eq!(well(&tree, &health, later + ANSWER_KEPT / 2), [1, 2, 3]);
        health.failed("host-2:1", now);
        health.went_on("host-2:1", later);
        assert_eq!(well(&tree, &health, now), [1]);
        health.failed("host-1:1", now);
        assert!(well(&tree, &health, now).is_empty());
        health.succeeded("host-1:1", now);
        // A host that is well, and a disk that is not.
        let connected = tree.live().connected.clone();
        let volumes = vec![(volume(1), VolumeState::Offline("no marker".to_owned()))];
        tree.set_live(Live { connected, volumes });
        assert!(well(&tree, &health, now).is_empty());
    }

    #[test]
    fn a_copy_that_sent_wrong_bytes_is_asked_last_for_a_while() {
        let mut tree = hosts(2, &[1]);
        let record = image(9, 7, &[1, 2]);
        tree.load(Record::Image(record.clone()));
        let Some(Inode::Image(image)) = tree.get(record.ino) else { panic!("an image") };
        let (mut health, now) = (Health::default(), Instant::now());
        let first = |health: &Health, now| routes(&tree, image, health, "", now).remove(0);
        let liar = first(&health, now);
        assert!(health.lied(&liar, now));
        assert!(!health.lied(&liar, now), "known already");
        assert_ne!(first(&health, now), liar, "even one that is not connected comes before it");
        assert_eq!(first(&health, now + LIAR_LAST), liar);
    }
}
