//! One keeper a volume: of the nodes that see it, the one that scans it, hashes it and writes its
//! index. The choice is a lease that lasts while the node stays connected and offers the volume;
//! what comes under an earlier lease is refused, so a host that was stopped for a while and goes on
//! changes nothing. Kept in memory: after a start everybody connects anew.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use isotope_proto::cluster::Pool;
use isotope_proto::id::{LeaseId, NodeId, VolumeId};
use isotope_proto::refusal::{Reason, Refusal};
use tracing::{info, warn};

use crate::nodes::Command;
use crate::placement::{Choice, choose};
use crate::{Core, clock};

/// What could not be told to a busy agent is tried again so soon.
const SETTLE_AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) node: NodeId,
    pub(crate) id: LeaseId,
}

#[derive(Default)]
pub(crate) struct Keepers {
    leases: Mutex<HashMap<VolumeId, Lease>>,
}

impl Keepers {
    fn lock(&self) -> MutexGuard<'_, HashMap<VolumeId, Lease>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn of(&self, volume: VolumeId) -> Option<Lease> {
        self.lock().get(&volume).copied()
    }

    /// Refuses what comes from somebody who is not the volume's keeper, or no longer.
    pub(crate) fn check(
        &self,
        volume: VolumeId,
        node: NodeId,
        lease: LeaseId,
    ) -> Result<(), Refusal> {
        if self.of(volume).is_some_and(|it| it.node == node && it.id == lease) {
            return Ok(());
        }
        let text = format!("node {node} does not keep volume {volume}, or no longer");
        Err(Refusal::new(Reason::NotPermitted, text))
    }
}

/// Keeps the choice true while nodes come and go.
pub(crate) async fn run(core: Core) {
    let mut offered = core.nodes.offered();
    loop {
        offered.mark_unchanged();
        let wait = match settle(&core).await {
            Ok(true) => Duration::MAX,
            Ok(false) => SETTLE_AGAIN,
            Err(error) => {
                warn!(%error, "no keepers could be chosen; it is tried again");
                SETTLE_AGAIN
            }
        };
        tokio::select! {
            _ = offered.changed() => {}
            () = tokio::time::sleep(wait) => {}
            () = core.shutdown.cancelled() => return,
        }
    }
}

/// True if every choice could be told.
async fn settle(core: &Core) -> Result<bool, Refusal> {
    let offers = core.nodes.offers();
    let (pools, volumes) = core.store.read(|rows| Ok((rows.pools()?, rows.volumes()?))).await?;
    let of_pool = |volume: VolumeId| {
        let pool = volumes.iter().find(|it| it.id == volume)?.pool;
        pools.iter().find(|it| it.id == pool)
    };
    let mut all_told = true;
    let standing = core.keepers.lock().clone();
    for (volume, lease) in changes(&standing, &offers, of_pool) {
        let before = core.keepers.lock().remove(&volume);
        if let Some(before) = before {
            // Gone, or told by its next report.
            let _ = core.nodes.command(before.node, Command::Release { volume });
        }
        let Some((node, reason)) = lease else { continue };
        let id = LeaseId::mint(clock::now());
        let images = core.store.read(move |rows| rows.image_count_on(volume)).await?;
        // It may report as soon as it is told.
        core.keepers.lock().insert(volume, Lease { node, id });
        match core.nodes.command(node, Command::Keep { volume, lease: id, images }) {
            Ok(()) => info!(%volume, %node, reason, "a node keeps the volume"),
            Err(_) => {
                core.keepers.lock().remove(&volume);
                all_told = false;
            }
        }
    }
    Ok(all_told)
}

/// What has to change: volumes whose keeper has gone, and what takes its place. Volumes that are
/// not recorded yet have to wait until they are.
fn changes<'a>(
    standing: &HashMap<VolumeId, Lease>,
    offers: &BTreeMap<VolumeId, BTreeSet<NodeId>>,
    of_pool: impl Fn(VolumeId) -> Option<&'a Pool>,
) -> Vec<(VolumeId, Option<(NodeId, &'static str)>)> {
    let nobody = BTreeSet::new();
    let all: BTreeSet<VolumeId> = standing.keys().chain(offers.keys()).copied().collect();
    let change = |volume: VolumeId| {
        let offering = offers.get(&volume).unwrap_or(&nobody);
        let keeper = standing.get(&volume).map(|lease| lease.node);
        if keeper.is_some_and(|node| offering.contains(&node)) {
            return None;
        }
        let chosen = of_pool(volume).map(|pool| choose(pool, offering));
        match chosen {
            Some(Choice::Node { node, reason }) => Some((volume, Some((node, reason)))),
            Some(Choice::Skip { .. }) | None => keeper.map(|_| (volume, None)),
        }
    };
    all.into_iter().filter_map(change).collect()
}

#[cfg(test)]
mod tests {
    use isotope_proto::id::PoolId;

    use super::*;

    #[test]
    fn a_keeper_stays_while_it_can_and_another_follows_it() {
        let node = |n: u8| NodeId::from_bytes([n; 16]);
        let volume = VolumeId::from_bytes([9; 16]);
        let assigned = vec![node(2), node(1)];
        let pool = Pool { id: PoolId::from_bytes([0; 16]), name: "isos".to_owned(), assigned };
        for (standing, offering, expected) in [
            (None, &[][..], None),
            (None, &[1, 3], Some(Some(1))),
            (None, &[1, 2, 3], Some(Some(2))),
            // Assignment ranks; it drives nobody away who is at work.
            (Some(1), &[1, 2], None),
            (Some(1), &[3], Some(Some(3))),
            (Some(1), &[], Some(None)),
        ] {
            let lease = |n| Lease { node: node(n), id: LeaseId::from_bytes([n; 16]) };
            let leases = standing.map(|n| (volume, lease(n))).into_iter().collect();
            let offers = BTreeMap::from([(volume, offering.iter().copied().map(node).collect())]);
            let changed = changes(&leases, &offers, |_| Some(&pool));
            let found = changed.first().map(|(_, lease)| lease.map(|(node, _)| node));
            assert_eq!(found, expected.map(|it| it.map(node)), "{standing:?} {offering:?}");
        }
        let offers = BTreeMap::from([(volume, BTreeSet::from([node(1)]))]);
        assert!(changes(&HashMap::new(), &offers, |_| None).is_empty(), "not recorded yet");
    }

    #[test]
    fn reports_under_an_earlier_lease_are_refused() {
        let keepers = Keepers::default();
        let (volume, node) = (VolumeId::from_bytes([9; 16]), NodeId::from_bytes([1; 16]));
        let [old, new] = [1, 2].map(|n| LeaseId::from_bytes([n; 16]));
        keepers.lock().insert(volume, Lease { node, id: new });
        assert!(keepers.check(volume, node, new).is_ok());
        let other = NodeId::from_bytes([2; 16]);
        for (node, lease) in [(node, old), (other, new)] {
            let refused = keepers.check(volume, node, lease).expect_err("not the keeper");
            assert_eq!(refused.reason, Reason::NotPermitted);
        }
    }
}
