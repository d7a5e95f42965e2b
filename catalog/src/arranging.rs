//! Arranging pools on hosts: which agents are asked to look at a directory, to use it, to leave it,
//! in which order, and what is undone when that fails. The rules of the records are `pools.rs`'s.

use std::time::Duration;

use isotope_proto::cluster::{Node, VolumeState};
use isotope_proto::id::{NodeId, VolumeId};
use isotope_proto::pb;
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::wire::Malformed;
use tracing::warn;

use crate::Core;
use crate::hosts::Host;
use crate::library::pool_called;
use crate::pools::{check_free, node_called};
use crate::store::Verb;

/// An attached volume is offered by its agent within this time.
const OFFERED_MAX: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

/// What somebody wants to use as a pool.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) pool: String,
    pub(crate) dir: String,
    pub(crate) layout: Option<pb::Layout>,
    /// Names or ids; none: the asker's own host.
    pub(crate) nodes: Vec<String>,
    pub(crate) host: String,
    pub(crate) what: What,
    pub(crate) dry_run: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// A pool that is not there yet, with its first directories.
    NewPool,
    /// A directory of a pool that is there.
    Directory,
}

/// What was found on a node, and the volume that it is now.
#[derive(Debug, Clone)]
pub(crate) struct Arranged {
    pub(crate) node: String,
    pub(crate) found: pb::InspectReply,
    pub(crate) volume: Option<VolumeId>,
}

/// Uses a directory on some nodes. Nothing is done anywhere unless it can be done on all.
pub(crate) async fn add(core: &Core, request: Request) -> Result<Vec<Arranged>, Refusal> {
    let (name, what) = (request.pool.clone(), request.what);
    let nodes = core
        .store
        .read(move |rows| {
            match what {
                What::NewPool => check_free(rows, &name)?,
                What::Directory => drop(pool_called(&rows.pools()?, &name)?.clone()),
            }
            rows.nodes()
        })
        .await?;
    let targets = targets(core, &nodes, &request)?;
    let mut hosts = Vec::new();
    let mut arranged = Vec::new();
    for node in &targets {
        let mut host = Host::connect(node).await?;
        let found = host.inspect(&request.dir, request.layout.clone(), request.dry_run).await?;
        if let Some(problem) = &found.problem {
            let text = format!("{}: {problem}", node.name);
            return Err(Refusal::new(Reason::Malformed, text));
        }
        if !found.volume_id.is_empty() {
            let id = VolumeId::try_from(&*found.volume_id).map_err(Malformed::from)?;
            check_pool(core, id, &request).await?;
        }
        hosts.push(host);
        arranged.push(Arranged { node: node.name.clone(), found, volume: None });
    }
    if request.dry_run {
        return Ok(arranged);
    }
    if request.what == What::NewPool {
        let assigned = targets.iter().map(|node| node.id).collect();
        let verb = Verb::MakePool { name: request.pool.clone(), assigned };
        core.store.commit(None, verb).await?;
    }
    for (host, it) in hosts.iter_mut().zip(&mut arranged) {
        match host.attach(&request.dir, &request.pool, request.layout.clone()).await {
            Ok(volume) => it.volume = Some(volume),
            Err(refusal) => {
                undo(core, &request).await;
                return Err(refusal);
            }
        }
    }
    for (at, (host, it)) in hosts.iter_mut().zip(&arranged).enumerate() {
        let Some(volume) = it.volume else { continue };
        if let Err(refusal) = offered(core, targets[at].id, volume).await {
            // What was given to the agent at its start cannot be detached, and says why itself.
            if let Err(error) = host.detach(volume).await {
                warn!(node = it.node, %volume, %error, "a refused directory stays attached");
            }
            undo(core, &request).await;
            return Err(refusal);
        }
    }
    Ok(arranged)
}

/// A pool that was made for what then failed, unless something could be attached to it.
async fn undo(core: &Core, request: &Request) {
    if request.what == What::NewPool {
        let name = request.pool.clone();
        if let Err(error) = core.store.commit(None, Verb::RemovePool { name }).await {
            warn!(pool = request.pool, %error, "a pool that could not be set up could not be removed");
        }
    }
}

/// A volume that is known here already stays in its pool.
async fn check_pool(core: &Core, id: VolumeId, request: &Request) -> Result<(), Refusal> {
    let (pool, dir) = (request.pool.clone(), request.dir.clone());
    let check = core.store.read(move |rows| {
        let Some(volume) = rows.volume(id)? else { return Ok(()) };
        let pools = rows.pools()?;
        match pools.iter().find(|it| it.id == volume.pool) {
            Some(actual) if actual.name != pool => {
                let text = format!(
                    "{dir} is a volume of the pool {} already; if it is a copy of one, remove \
                     .isotope/ from the copy",
                    actual.name
                );
                Err(Refusal::new(Reason::Exists, text))
            }
            _ => Ok(()),
        }
    });
    check.await
}

/// The nodes that are meant; all of them have to be connected.
fn targets(core: &Core, nodes: &[Node], request: &Request) -> Result<Vec<Node>, Refusal> {
    let connected = core.nodes.live().borrow().connected.clone();
    let there: Vec<&Node> = nodes.iter().filter(|it| connected.contains(&it.id)).collect();
    if request.nodes.is_empty() {
        let own = there.iter().find(|node| node.host == request.host);
        return match (own, &there[..]) {
            (Some(node), _) => Ok(vec![(*node).clone()]),
            (None, [node]) => Ok(vec![(*node).clone()]),
            (None, []) => {
                let text = "no node is connected; start an agent: isotope serve agent";
                Err(Refusal::new(Reason::Unavailable, text))
            }
            (None, _) => {
                let names: Vec<&str> = there.iter().map(|node| node.name.as_str()).collect();
                let text = format!("say on which node, with --node: {}", names.join(", "));
                Err(Refusal::new(Reason::Malformed, text))
            }
        };
    }
    let mut targets: Vec<Node> = Vec::new();
    for name in &request.nodes {
        let node = node_called(nodes, name)?;
        if !connected.contains(&node.id) {
            let text = format!("{} is not connected; is its agent running?", node.name);
            return Err(Refusal::new(Reason::Unavailable, text));
        }
        if targets.iter().all(|it| it.id != node.id) {
            targets.push(node.clone());
        }
    }
    Ok(targets)
}

/// Waits until a volume is known here, and its node may offer it: it may be a copy of another.
async fn offered(core: &Core, node: NodeId, volume: VolumeId) -> Result<(), Refusal> {
    let wait = async {
        loop {
            let recorded = core.store.read(move |rows| rows.volume(volume)).await?.is_some();
            match core.nodes.state_of(node, volume) {
                Some(VolumeState::Offline(why)) => return Err(Refusal::new(Reason::Exists, why)),
                Some(VolumeState::Online(_)) if recorded => return Ok(()),
                Some(VolumeState::Online(_)) | None => tokio::time::sleep(POLL).await,
            }
        }
    };
    tokio::time::timeout(OFFERED_MAX, wait).await.unwrap_or_else(|_| {
        let text = "the directory was attached, but its agent has not offered it yet; see isotope \
                    pool ls";
        Err(Refusal::new(Reason::TimedOut, text))
    })
}

/// Takes a pool out of the library and has its nodes leave its volumes. Nodes that are not
/// connected would bring it back, so there may be none, unless that is accepted.
pub(crate) async fn remove(core: &Core, name: &str, force: bool) -> Result<(), Refusal> {
    let asked = name.to_owned();
    let (volumes, nodes) = core
        .store
        .read(move |rows| {
            let pool = pool_called(&rows.pools()?, &asked)?.clone();
            let volumes = rows.volumes()?.into_iter().filter(|it| it.pool == pool.id);
            Ok((volumes.collect::<Vec<_>>(), rows.nodes()?))
        })
        .await?;
    let connected = core.nodes.live().borrow().connected.clone();
    let is_there = |node: &NodeId| connected.contains(node);
    let name_of = |id: NodeId| {
        nodes.iter().find(|node| node.id == id).map_or(id.to_string(), |node| node.name.clone())
    };
    let sights = volumes.iter().flat_map(|volume| volume.sights.iter().map(|it| (volume.id, it)));
    let sights: Vec<_> = sights.collect();
    let mut away: Vec<String> =
        sights.iter().map(|(_, it)| it.node).filter(|it| !is_there(it)).map(name_of).collect();
    away.dedup();
    if !away.is_empty() && !force {
        let text = format!(
            "{} not connected, and would bring the pool back; start the agent, or say --force",
            away.join(", ")
        );
        return Err(Refusal::new(Reason::Unavailable, text));
    }
    for (volume, sight) in sights.iter().filter(|(_, sight)| is_there(&sight.node)) {
        let Some(node) = nodes.iter().find(|node| node.id == sight.node) else { continue };
        Host::connect(node).await?.detach(*volume).await?;
    }
    core.commit(None, Verb::RemovePool { name: name.to_owned() }).await.map(drop)
}
