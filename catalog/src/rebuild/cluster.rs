//! Nodes, pools and volumes as several copies tell of them. It knows nothing of the tree.

use std::collections::{BTreeMap, BTreeSet};

use isotope_proto::change::Record;
use isotope_proto::cluster::{Node, Pool, Volume};
use isotope_proto::id::{NodeId, PoolId, VolumeId};

use super::{Kinship, Layer};

/// The newest record of each, and of what kind of copy it is.
#[derive(Default)]
pub(super) struct Cluster {
    nodes: BTreeMap<NodeId, (Node, Kinship)>,
    pools: BTreeMap<PoolId, (Pool, Kinship)>,
    volumes: BTreeMap<VolumeId, (Volume, Kinship)>,
}

impl Cluster {
    pub(super) fn add(&mut self, layer: &Layer, kinship: Kinship) {
        for node in &layer.nodes {
            let known = self.nodes.entry(node.id).or_insert_with(|| (node.clone(), kinship));
            // A name that somebody gave, where the other is only its host's.
            if known.0.name == known.0.host && kinship == Kinship::Stranger {
                known.0.name.clone_from(&node.name);
            }
        }
        for pool in &layer.pools {
            self.pools.entry(pool.id).or_insert_with(|| (pool.clone(), kinship));
        }
        for volume in &layer.volumes {
            let known = self.volumes.entry(volume.id).or_insert_with(|| (volume.clone(), kinship));
            if kinship == Kinship::Stranger {
                known.0.pool = known.0.pool.min(volume.pool);
            }
        }
    }

    pub(super) fn pool_name(&self, volume: VolumeId) -> Option<&str> {
        let (volume, _) = self.volumes.get(&volume)?;
        Some(&self.pools.get(&volume.pool)?.0.name)
    }

    /// Nodes, pools and volumes; returns under which id each pool goes on. Pools of one name are
    /// one. What an earlier copy alone has stays where something needs it.
    pub(super) fn finish(
        &self,
        used: &BTreeSet<VolumeId>,
        records: &mut Vec<Record>,
    ) -> BTreeMap<PoolId, PoolId> {
        let present = |kinship: &Kinship| *kinship == Kinship::Stranger;
        let volumes: Vec<&Volume> = self
            .volumes
            .values()
            .filter(|(volume, kinship)| present(kinship) || used.contains(&volume.id))
            .map(|(volume, _)| volume)
            .collect();
        let in_use: BTreeSet<PoolId> = volumes.iter().map(|volume| volume.pool).collect();
        let (mut first, mut goes_on) = (BTreeMap::<&str, Pool>::new(), BTreeMap::new());
        for (pool, kinship) in self.pools.values() {
            if !present(kinship) && !in_use.contains(&pool.id) {
                continue;
            }
            let one = first.entry(&pool.name).or_insert_with(|| pool.clone());
            goes_on.insert(pool.id, one.id);
            let new = pool.assigned.iter().filter(|node| !one.assigned.contains(node)).copied();
            let new: Vec<NodeId> = new.collect();
            one.assigned.extend(new);
        }
        let sights = volumes.iter().flat_map(|volume| &volume.sights).map(|sight| sight.node);
        let seeing: BTreeSet<NodeId> = sights.collect();
        let nodes = self.nodes.values();
        let nodes = nodes.filter(|(node, kinship)| present(kinship) || seeing.contains(&node.id));
        let nodes: BTreeMap<NodeId, Node> = nodes.map(|(it, _)| (it.id, it.clone())).collect();
        records.extend(nodes.values().cloned().map(Record::Node));
        for mut pool in first.into_values() {
            pool.assigned.retain(|node| nodes.contains_key(node));
            records.push(Record::Pool(pool));
        }
        for volume in volumes {
            let Some(pool) = goes_on.get(&volume.pool).copied() else { continue };
            let mut volume = Volume { pool, ..volume.clone() };
            volume.sights.retain(|sight| nodes.contains_key(&sight.node));
            records.push(Record::Volume(volume));
        }
        goes_on
    }
}
