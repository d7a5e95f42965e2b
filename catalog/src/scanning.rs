//! One run of scans over all pools or one: for each volume its keeper is asked, and where nobody
//! can be, the reason is told. Begun by people, by the schedule, and by nothing else; what agents
//! scan by themselves goes by their own ears.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use isotope_proto::cluster::{Live, Node, Pool, Volume};
use isotope_proto::id::{NodeId, ScanId, VolumeId};
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::report::{ScanCounts, ScanOutcome};
use tokio::sync::{mpsc, watch};
use tracing::{debug, info};

use crate::hosts::Host;
use crate::nodes::Command;
use crate::placement::{Choice, choose};
use crate::scans::{Update, summary};
use crate::{Core, clock};

/// Nodes that are not connected are asked to connect, and waited for, so long.
const WAKE_MAX: Duration = Duration::from_secs(2);
/// A volume that has just come has a keeper within this time.
const KEEPER_MAX: Duration = Duration::from_secs(2);
/// How often is looked whether what is waited for is there.
const POLL: Duration = Duration::from_millis(50);
/// Events that wait for a slow listener; then the run waits.
const EVENTS_MAX: usize = 32;

/// What a run tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Who scans a volume, or why nobody does. Without a volume, of a whole pool.
    Choice {
        pool: String,
        volume: Option<VolumeId>,
        node: Option<String>,
        reason: String,
    },
    Progress {
        at: Place,
        counts: ScanCounts,
    },
    Result {
        at: Place,
        outcome: ScanOutcome,
    },
    /// The last.
    Summary(Summary),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) pool: String,
    pub(crate) volume: VolumeId,
    pub(crate) node: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Summary {
    pub(crate) discovered: u64,
    pub(crate) message: String,
    pub(crate) scanned: u64,
    pub(crate) skipped: u64,
    pub(crate) failed: u64,
}

/// Begins to scan the volumes of all pools, or of one; what happens comes through the channel.
pub(crate) async fn begin(
    core: &Core,
    wanted: Option<&str>,
) -> Result<mpsc::Receiver<Event>, Refusal> {
    let (pools, volumes, nodes) =
        core.store.read(|rows| Ok((rows.pools()?, rows.volumes()?, rows.nodes()?))).await?;
    if let Some(name) = wanted
        && !pools.iter().any(|pool| pool.name == name)
    {
        return Err(Refusal::new(Reason::NotFound, format!("no pool is called {name}")));
    }
    let pools = pools.into_iter().filter(|pool| wanted.is_none_or(|name| pool.name == name));
    let targets = pools.map(|pool| {
        let of_pool = volumes.iter().filter(|volume| volume.pool == pool.id).cloned().collect();
        (pool, of_pool)
    });
    let (events, stream) = mpsc::channel(EVENTS_MAX);
    let run = Run { core: core.clone(), nodes, events };
    tokio::spawn(run.all(targets.collect()));
    Ok(stream)
}

struct Run {
    core: Core,
    nodes: Vec<Node>,
    events: mpsc::Sender<Event>,
}

impl Run {
    /// The volumes are scanned at the same time, for their disks are different ones.
    async fn all(self, targets: Vec<(Pool, Vec<Volume>)>) {
        self.wake(&targets).await;
        let mut summary_of = Summary::default();
        let mut running = tokio::task::JoinSet::new();
        for (pool, volumes) in targets {
            let mut skipped = Vec::new();
            for volume in &volumes {
                match self.start(&pool, volume).await {
                    Ok((node, updates)) => {
                        let at = Place { pool: pool.name.clone(), volume: volume.id, node };
                        running.spawn(follow(at, updates, self.events.clone()));
                    }
                    Err(reason) => {
                        summary_of.skipped += 1;
                        skipped.push((Some(volume.id), reason));
                    }
                }
            }
            if volumes.is_empty() {
                skipped.push((None, "it has no volume yet".to_owned()));
            }
            self.tell_skipped(&pool, &volumes, skipped).await;
        }
        while let Some(ended) = running.join_next().await {
            match ended {
                Ok(outcome) if outcome.failure.is_none() => {
                    summary_of.scanned += 1;
                    summary_of.discovered += outcome.counts.created;
                }
                Ok(_) | Err(_) => summary_of.failed += 1,
            }
        }
        summary_of.message = summary(summary_of.discovered);
        info!(discovered = summary_of.discovered, "scan ended");
        let _ = self.events.send(Event::Summary(summary_of)).await;
    }

    /// Nodes that would be asked and are not connected are asked to connect, and those that have
    /// just done so are waited for until they have said what they offer.
    async fn wake(&self, targets: &[(Pool, Vec<Volume>)]) {
        let nobody_offers = |volumes: &[Volume]| {
            volumes.iter().all(|it| self.core.nodes.offering(it.id).is_empty())
        };
        let without: Vec<_> =
            targets.iter().filter(|(_, volumes)| nobody_offers(volumes)).collect();
        let assigned = without.iter().flat_map(|(pool, _)| pool.assigned.iter().copied());
        let assigned: BTreeSet<NodeId> = assigned.collect();
        let mut coming = self.core.nodes.live().borrow().connected.clone();
        let mut calls = tokio::task::JoinSet::new();
        let asleep = |it: &&Node| assigned.contains(&it.id) && !coming.contains(&it.id);
        for node in self.nodes.iter().filter(asleep).cloned() {
            calls.spawn(async move {
                let woken = async { Host::connect(&node).await?.reconnect().await };
                let woken = woken.await;
                debug!(node = node.name, answered = woken.is_ok(), "asked a node to connect");
                woken.is_ok().then_some(node.id)
            });
        }
        let wait = async {
            while let Some(woken) = calls.join_next().await {
                coming.extend(woken.ok().flatten());
            }
            let comes = |it: &&Volume| it.sights.iter().any(|sight| coming.contains(&sight.node));
            let expected: Vec<VolumeId> = without
                .iter()
                .flat_map(|(_, volumes)| volumes.iter().filter(comes).map(|it| it.id))
                .collect();
            let mut live = self.core.nodes.live();
            let all_told = |live: &Live| expected.iter().all(|it| live.volume(*it).is_some());
            let _ = live.wait_for(all_told).await;
        };
        let _ = tokio::time::timeout(WAKE_MAX, wait).await;
    }

    /// Asks the volume's keeper; the node's name, and what it reports. Or why nobody is asked.
    async fn start(
        &self,
        pool: &Pool,
        volume: &Volume,
    ) -> Result<(String, watch::Receiver<Update>), String> {
        let best = choose(pool, &self.core.nodes.offering(volume.id));
        if let Choice::Skip { reason } = best {
            return Err(self.why_skipped(volume, reason));
        }
        let lease = self.keeper(volume.id).await.ok_or("no node keeps the volume yet")?;
        let scan = ScanId::mint(clock::now());
        let updates = self.core.scans.begin(scan, lease.node, volume.id);
        let command = Command::Scan { scan, volume: volume.id };
        if let Err(refusal) = self.core.nodes.command(lease.node, command) {
            self.core.scans.forget(scan);
            return Err(refusal.text);
        }
        let reason = match best {
            Choice::Node { node, reason } if node == lease.node => reason,
            // Assignment drives nobody away who is at work.
            Choice::Node { .. } | Choice::Skip { .. } => "it keeps the volume already",
        };
        let node = self.node_name(lease.node);
        debug!(pool = pool.name, volume = %volume.id, node, reason, "volume is scanned");
        let choice = Event::Choice {
            pool: pool.name.clone(),
            volume: Some(volume.id),
            node: Some(node.clone()),
            reason: reason.to_owned(),
        };
        let _ = self.events.send(choice).await;
        Ok((node, updates))
    }

    async fn keeper(&self, volume: VolumeId) -> Option<crate::keepers::Lease> {
        let deadline = tokio::time::Instant::now() + KEEPER_MAX;
        loop {
            let keeper = self.core.keepers.of(volume);
            if keeper.is_some() || tokio::time::Instant::now() >= deadline {
                return keeper;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The nodes that see it say why they cannot use it; the others are not connected.
    fn why_skipped(&self, volume: &Volume, reason: &str) -> String {
        let live = self.core.nodes.live().borrow().clone();
        if let Some(isotope_proto::cluster::VolumeState::Offline(why)) = live.volume(volume.id) {
            return format!("the volume is offline: {why}");
        }
        let names: Vec<String> = volume.sights.iter().map(|it| self.node_name(it.node)).collect();
        match names.is_empty() {
            true => reason.to_owned(),
            false => format!("{reason}: {} not connected", names.join(", ")),
        }
    }

    /// Tells what was passed over. Where a connected node has a directory of the pool's name that is
    /// no volume yet, that is said with the command that makes it one.
    async fn tell_skipped(
        &self,
        pool: &Pool,
        volumes: &[Volume],
        skipped: Vec<(Option<VolumeId>, String)>,
    ) {
        if skipped.is_empty() {
            return;
        }
        let found = self.unattached(pool, volumes).await;
        for (volume, mut reason) in skipped {
            for (node, dir) in &found {
                let command = format!("isotope pool attach {} {dir} --node {node}", pool.name);
                reason = format!("{reason}; {node} has a {dir} that is no volume: {command}");
            }
            debug!(pool = pool.name, ?volume, reason, "pool or volume skipped");
            let pool = pool.name.clone();
            let choice = Event::Choice { pool, volume, node: None, reason };
            let _ = self.events.send(choice).await;
        }
    }

    /// Directories on connected nodes at the paths of the pool's volumes elsewhere.
    async fn unattached(&self, pool: &Pool, volumes: &[Volume]) -> Vec<(String, String)> {
        let dirs: BTreeSet<&String> =
            volumes.iter().flat_map(|it| &it.sights).map(|sight| &sight.path).collect();
        let seeing: BTreeSet<NodeId> =
            volumes.iter().flat_map(|it| &it.sights).map(|sight| sight.node).collect();
        let connected = self.core.nodes.live().borrow().connected.clone();
        let mut found = BTreeMap::new();
        let mut calls = tokio::task::JoinSet::new();
        for node in self.nodes.iter().filter(|it| connected.contains(&it.id)) {
            if seeing.contains(&node.id) {
                continue;
            }
            for dir in &dirs {
                let (node, dir) = (node.clone(), (*dir).clone());
                calls.spawn(async move {
                    let inspected = Host::connect(&node).await?.inspect(&dir, None, false).await?;
                    let fit = inspected.problem.is_none() && inspected.volume_id.is_empty();
                    Ok::<_, Refusal>(fit.then_some((node.name, dir)))
                });
            }
        }
        let all = async {
            while let Some(Ok(inspected)) = calls.join_next().await {
                found.extend(inspected.ok().flatten());
            }
        };
        if tokio::time::timeout(WAKE_MAX, all).await.is_err() {
            debug!(pool = pool.name, "not every node could be asked for a directory of the pool");
        }
        found.into_iter().collect()
    }

    fn node_name(&self, id: NodeId) -> String {
        let known = self.nodes.iter().find(|node| node.id == id);
        known.map_or_else(|| id.to_string(), |node| node.name.clone())
    }
}

/// One volume's scan, as told to whoever asked.
async fn follow(
    at: Place,
    mut updates: watch::Receiver<Update>,
    events: mpsc::Sender<Event>,
) -> ScanOutcome {
    let outcome = loop {
        let changed = updates.changed().await;
        let update = updates.borrow_and_update().clone();
        match (changed, update) {
            (Ok(()), Update::Counts(counts)) => {
                let _ = events.send(Event::Progress { at: at.clone(), counts }).await;
            }
            (_, Update::Ended(outcome)) => break outcome,
            (Err(_), Update::Counts(counts)) => {
                let failure = Some(format!("{} went away during the scan", at.node));
                break ScanOutcome { counts, failure, ..ScanOutcome::default() };
            }
        }
    };
    let _ = events.send(Event::Result { at, outcome: outcome.clone() }).await;
    outcome
}

/// After a start, for agents to connect.
const FIRST_AFTER: Duration = Duration::from_secs(5);
/// Catalogues, and pools on one server, are not to scan in step: a tenth to either side.
const JITTER_SHARE: u32 = 10;

/// Scans everything soon after the start and then again and again.
pub(crate) async fn on_schedule(core: Core, every: Duration) {
    let mut wait = FIRST_AFTER;
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = core.shutdown.cancelled() => return,
        }
        match begin(&core, None).await {
            Ok(mut events) => while events.recv().await.is_some() {},
            Err(error) => tracing::warn!(%error, "the scheduled scan could not begin"),
        }
        wait = jittered(every, uuid::Uuid::new_v4().as_u128());
    }
}

/// Between nine and eleven tenths of a time.
fn jittered(every: Duration, random: u128) -> Duration {
    let spread = every / JITTER_SHARE * 2;
    let part = u32::try_from(random % 1000).unwrap_or(0);
    every - every / JITTER_SHARE + spread * part / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_varies_by_a_tenth() {
        let every = Duration::from_secs(300);
        for (random, seconds) in [(0, 270), (500, 300), (1999, 329)] {
            assert_eq!(jittered(every, random).as_secs(), seconds, "{random}");
        }
    }
}
