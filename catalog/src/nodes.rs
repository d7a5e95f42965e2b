//! Who is connected: one session an agent, alive while its stream is. What agents offer becomes
//! nodes, pools and volumes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use isotope_proto::change::{Delta, Edit};
use isotope_proto::cluster::{Live, Node, Pool, Sight, Volume, VolumeState};
use isotope_proto::id::{BootId, LeaseId, NodeId, PoolId, ScanId, VolumeId};
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::report::{Hello, OfferedVolume};
use isotope_proto::time::Timestamp;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::store::Edits;

/// An agent that says nothing for so long is taken for gone. Agents ping every second.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Commands waiting for one agent.
const COMMANDS_MAX: usize = 64;

/// What the catalogue asks of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Scan {
        scan: ScanId,
        volume: VolumeId,
    },
    /// It is the volume's keeper from now on.
    Keep {
        volume: VolumeId,
        lease: LeaseId,
        /// So many images on it are in the library.
        images: u64,
    },
    /// It no longer is.
    Release {
        volume: VolumeId,
    },
}

struct Session {
    /// Tells it from an earlier session of the same agent whose end is noticed only later.
    number: u64,
    node: Node,
    boot: BootId,
    volumes: Vec<OfferedVolume>,
    commands: mpsc::Sender<Command>,
}

/// The sessions of connected agents.
pub(crate) struct Nodes {
    next: AtomicU64,
    sessions: Mutex<HashMap<NodeId, Session>>,
    live: watch::Sender<Live>,
    /// Counts what may change who can do what.
    offered: watch::Sender<u64>,
}

impl Default for Nodes {
    fn default() -> Self {
        Self {
            next: AtomicU64::new(1),
            sessions: Mutex::default(),
            live: watch::Sender::new(Live::default()),
            offered: watch::Sender::new(0),
        }
    }
}

impl Nodes {
    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a session. A second agent with the identity of a connected one is refused: two
    /// hosts that share a state directory's copy would each undo the other's reports.
    /// The session's number, and its commands; these end when a later session takes its place.
    pub(crate) fn connect(&self, hello: Hello) -> Result<(u64, mpsc::Receiver<Command>), Refusal> {
        let mut sessions = self.lock();
        let Hello { node, boot, volumes, version } = hello;
        if let Some(other) = sessions.get(&node.id).filter(|other| other.boot != boot) {
            warn!(node = %node.id, name = %node.name, other = %other.node.address, "second agent with one identity refused");
            return Err(Refusal::new(
                Reason::Exists,
                format!(
                    "an agent with this node's identity ({}) is connected from {}; if its state \
                     directory was copied, remove agent/node.json from the copy",
                    node.id, other.node.address
                ),
            ));
        }
        info!(node = %node.name, address = %node.address, version, "agent connected");
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        sessions.insert(node.id, Session { number, node, boot, volumes, commands });
        self.publish(&sessions);
        Ok((number, receiver))
    }

    /// What a connected agent offers now.
    pub(crate) fn offer(&self, node: NodeId, number: u64, volumes: Vec<OfferedVolume>) {
        let mut sessions = self.lock();
        if let Some(session) = sessions.get_mut(&node).filter(|it| it.number == number) {
            session.volumes = volumes;
        }
        self.publish(&sessions);
    }

    /// True if the node is gone with it, and no later session has taken its place.
    pub(crate) fn disconnect(&self, node: NodeId, number: u64) -> bool {
        let mut sessions = self.lock();
        if sessions.get(&node).is_none_or(|session| session.number != number) {
            return false;
        }
        if let Some(session) = sessions.remove(&node) {
            info!(node = %session.node.name, "agent disconnected");
        }
        self.publish(&sessions);
        true
    }

    fn publish(&self, sessions: &HashMap<NodeId, Session>) {
        self.recorded();
        let mut live = Live { connected: sessions.keys().copied().collect(), volumes: Vec::new() };
        live.connected.sort_unstable();
        // A volume that several nodes see is online if one of them can use it.
        let mut states: HashMap<VolumeId, VolumeState> = HashMap::new();
        for volume in sessions.values().flat_map(|session| &session.volumes) {
            let state = states.entry(volume.id).or_insert_with(|| volume.state.clone());
            if matches!(state, VolumeState::Offline(_)) {
                state.clone_from(&volume.state);
            }
        }
        live.volumes = states.into_iter().collect();
        live.volumes.sort_unstable_by_key(|(id, _)| *id);
        self.live.send_if_modified(|standing| {
            let changed = *standing != live;
            *standing = live;
            changed
        });
    }

    /// What an agent offers has been recorded.
    pub(crate) fn recorded(&self) {
        self.offered.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Moves whenever it may have changed which node can do what.
    pub(crate) fn offered(&self) -> watch::Receiver<u64> {
        self.offered.subscribe()
    }

    pub(crate) fn live(&self) -> watch::Receiver<Live> {
        self.live.subscribe()
    }

    /// Connected nodes that see a volume and can use it.
    pub(crate) fn offering(&self, volume: VolumeId) -> BTreeSet<NodeId> {
        let usable =
            |v: &OfferedVolume| v.id == volume && matches!(v.state, VolumeState::Online(_));
        let sessions = self.lock();
        let offering = sessions.values().filter(|session| session.volumes.iter().any(usable));
        offering.map(|session| session.node.id).collect()
    }

    /// Where a connected node has a volume.
    pub(crate) fn path_of(&self, node: NodeId, volume: VolumeId) -> Option<String> {
        let sessions = self.lock();
        let offered = sessions.get(&node)?.volumes.iter().find(|it| it.id == volume)?;
        Some(offered.path.clone())
    }

    /// What a connected node says of a volume, or what is said of its volume here.
    pub(crate) fn state_of(&self, node: NodeId, volume: VolumeId) -> Option<VolumeState> {
        let sessions = self.lock();
        let offered = sessions.get(&node)?.volumes.iter().find(|it| it.id == volume)?;
        Some(offered.state.clone())
    }

    /// Volumes that can be used, and the connected nodes that see them.
    pub(crate) fn offers(&self) -> BTreeMap<VolumeId, BTreeSet<NodeId>> {
        let mut offers = BTreeMap::<_, BTreeSet<_>>::new();
        for session in self.lock().values() {
            for volume in &session.volumes {
                if matches!(volume.state, VolumeState::Online(_)) {
                    offers.entry(volume.id).or_default().insert(session.node.id);
                }
            }
        }
        offers
    }

    pub(crate) fn command(&self, node: NodeId, command: Command) -> Result<(), Refusal> {
        let sessions = self.lock();
        let Some(session) = sessions.get(&node) else {
            return Err(Refusal::new(Reason::Unavailable, "the node has disconnected"));
        };
        session.commands.try_send(command).map_err(|_| {
            Refusal::new(
                Reason::Busy,
                format!("{} has too many commands waiting", session.node.name),
            )
        })
    }
}

/// Records what an agent says of itself and its volumes. A volume seen for the first time joins
/// the pool of its marker's name, and the node is assigned to that pool.
pub(crate) fn register(
    edits: &mut Edits<'_>,
    hello: &Hello,
    now: Timestamp,
) -> Result<(), Refusal> {
    match edits.node(hello.node.id)? {
        None => edits.write(Delta::Node(Edit::Made(hello.node.clone())))?,
        Some(before) => {
            // Whoever renamed the node meant it, until the host itself is called otherwise.
            let renamed = before.name != before.host && before.host == hello.node.host;
            let name = if renamed { &before.name } else { &hello.node.name };
            let after = Node { name: name.clone(), ..hello.node.clone() };
            if after != before {
                edits.write(Delta::Node(Edit::Changed { before, after }))?;
            }
        }
    }
    for offered in &hello.volumes {
        register_volume(edits, hello.node.id, offered, now)?;
    }
    Ok(())
}

fn register_volume(
    edits: &mut Edits<'_>,
    node: NodeId,
    offered: &OfferedVolume,
    now: Timestamp,
) -> Result<(), Refusal> {
    let sight = Sight { node, path: offered.path.clone() };
    let Some(before) = edits.volume(offered.id)? else {
        let pool = pool_named(edits, &offered.pool_name, now)?;
        let volume = Volume { id: offered.id, pool: pool.id, sights: vec![sight] };
        edits.write(Delta::Volume(Edit::Made(volume)))?;
        return assign(edits, pool, node);
    };
    if let Some(actual) = other_pool(edits.pools()?, before.pool, &offered.pool_name)
        && said_for_the_first_time(offered.id, &offered.pool_name)
    {
        warn!(
            volume = %offered.id,
            path = offered.path,
            asked = offered.pool_name,
            actual,
            "the volume belongs to another pool than its agent was started with; it stays there"
        );
    }
    if before.sights.contains(&sight) {
        return Ok(());
    }
    let new_here = before.sights.iter().all(|sight| sight.node != node);
    let mut after = before.clone();
    after.sights.retain(|sight| sight.node != node);
    after.sights.push(sight);
    let pool = after.pool;
    edits.write(Delta::Volume(Edit::Changed { before, after }))?;
    match edits.pools()?.into_iter().find(|it| it.id == pool) {
        Some(pool) if new_here => assign(edits, pool, node),
        _ => Ok(()),
    }
}

/// The name of a volume's pool, if it is not the one asked for.
fn other_pool(pools: Vec<Pool>, actual: PoolId, asked: &str) -> Option<String> {
    let actual = pools.into_iter().find(|pool| pool.id == actual)?;
    (actual.name != asked).then_some(actual.name)
}

/// Agents say what they offer whenever the free space changes; a warning is needed once.
fn said_for_the_first_time(volume: VolumeId, asked: &str) -> bool {
    /// Agents make these names up; beyond so many nothing is remembered, and nothing said.
    const SAID_MAX: usize = 1000;
    static SAID: Mutex<BTreeSet<(VolumeId, String)>> = Mutex::new(BTreeSet::new());
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    said.len() < SAID_MAX && said.insert((volume, asked.to_owned()))
}

fn pool_named(edits: &mut Edits<'_>, name: &str, now: Timestamp) -> Result<Pool, Refusal> {
    if let Some(pool) = edits.pools()?.into_iter().find(|pool| pool.name == name) {
        return Ok(pool);
    }
    let pool = Pool { id: PoolId::mint(now), name: name.to_owned(), assigned: Vec::new() };
    edits.write(Delta::Pool(Edit::Made(pool.clone())))?;
    Ok(pool)
}

fn assign(edits: &mut Edits<'_>, before: Pool, node: NodeId) -> Result<(), Refusal> {
    if before.assigned.contains(&node) {
        return Ok(());
    }
    let mut after = before.clone();
    after.assigned.push(node);
    edits.write(Delta::Pool(Edit::Changed { before, after }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(boot: u8) -> Hello {
        let id = NodeId::from_bytes([1; 16]);
        Hello {
            node: Node {
                id,
                name: "host".to_owned(),
                address: "host:1".to_owned(),
                host: "host".to_owned(),
            },
            boot: BootId::from_bytes([boot; 16]),
            version: String::new(),
            volumes: Vec::new(),
        }
    }

    #[test]
    fn the_end_of_an_old_session_leaves_its_successor_connected() {
        let nodes = Nodes::default();
        let node = hello(1).node.id;
        let (old, mut commands) = nodes.connect(hello(1)).expect("connected");
        let (new, _commands) = nodes.connect(hello(1)).expect("connected again");
        assert!(commands.try_recv().is_err(), "the old one hears nothing more");
        assert!(!nodes.disconnect(node, old));
        assert_eq!(nodes.live().borrow().connected, [node]);
        assert!(nodes.disconnect(node, new));
        assert!(nodes.live().borrow().connected.is_empty());
    }

    #[test]
    fn a_second_agent_of_one_identity_is_refused_while_the_first_lives() {
        let nodes = Nodes::default();
        let (number, _commands) = nodes.connect(hello(1)).expect("connected");
        assert_eq!(nodes.connect(hello(2)).map(drop).map_err(|it| it.reason), Err(Reason::Exists));
        nodes.disconnect(hello(1).node.id, number);
        assert!(nodes.connect(hello(2)).is_ok());
    }

    #[test]
    fn a_volume_asked_into_another_pool_is_remarked_once() {
        let id = |n| PoolId::from_bytes([n; 16]);
        let pool =
            |(n, name): (u8, &str)| Pool { id: id(n), name: name.to_owned(), assigned: Vec::new() };
        let pools = || [(1, "fast"), (2, "slow")].map(pool).to_vec();
        assert_eq!(other_pool(pools(), id(1), "fast"), None);
        assert_eq!(other_pool(pools(), id(1), "slow").as_deref(), Some("fast"));
        assert_eq!(other_pool(pools(), id(1), "never made").as_deref(), Some("fast"));
        let volume = VolumeId::from_bytes([77; 16]);
        assert!(said_for_the_first_time(volume, "slow"));
        assert!(!said_for_the_first_time(volume, "slow"));
        assert!(said_for_the_first_time(volume, "other"));
    }
}
