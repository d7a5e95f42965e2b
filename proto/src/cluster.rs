//! Hosts, pools and volumes: what is recorded of them, and what is true of them now.

use crate::id::{NodeId, PoolId, VolumeId};

/// A host running an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub id: NodeId,
    pub name: String,
    /// Where its content service listens, `host:port`.
    pub address: String,
    /// The name that its agent gives the host; `name` unless somebody renamed the node.
    pub host: String,
}

/// A named place for images, assigned to nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    pub id: PoolId,
    pub name: String,
    /// Best first. Assignment ranks; it excludes nobody.
    pub assigned: Vec<NodeId>,
}

/// One physical directory of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    pub id: VolumeId,
    pub pool: PoolId,
    pub sights: Vec<Sight>,
}

/// A node that sees a volume, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sight {
    pub node: NodeId,
    pub path: String,
}

/// Room on the file system beneath a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space {
    /// Volumes with the same value share one file system.
    pub filesystem: String,
    pub capacity_bytes: u64,
    pub free_bytes: u64,
    /// Of these, what others than root may use.
    pub available_bytes: u64,
    pub access: Access,
}

/// What can be done with a volume's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    ReadWrite,
    ReadOnly,
}

/// Whether a volume can be used now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeState {
    Online(Space),
    /// With the reason, for people.
    Offline(String),
}

/// What is true of hosts and volumes now; replaced whole, never part of a revision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Live {
    pub connected: Vec<NodeId>,
    pub volumes: Vec<(VolumeId, VolumeState)>,
}

impl Live {
    #[must_use]
    pub fn volume(&self, id: VolumeId) -> Option<&VolumeState> {
        self.volumes.iter().find(|(volume, _)| *volume == id).map(|(_, state)| state)
    }
}

/// What follows the feed, for `isotope status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watcher {
    pub host: String,
    pub purpose: String,
}
