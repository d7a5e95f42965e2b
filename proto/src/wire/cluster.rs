//! Nodes, pools, volumes; what agents say.

use super::facts::{facts_in, facts_out};
use super::tree::format_in;
use super::{Malformed, each, ids, required, time_in, time_out};
use crate::cluster::{Access, Live, Node, Pool, Sight, Space, Volume, VolumeState, Watcher};
use crate::id::{BootId, ImageId, NodeId, PoolId, VolumeId};
use crate::name::VolumePath;
use crate::pb;
use crate::report::{
    Backlog, Description, FileChange, FileEvent, FormerFile, FoundFile, Hello, OfferedVolume,
    ScanCounts, ScanOutcome,
};

impl From<Node> for pb::Node {
    fn from(node: Node) -> Self {
        Self { id: node.id.into(), name: node.name, address: node.address, host: node.host }
    }
}

impl TryFrom<pb::Node> for Node {
    type Error = Malformed;
    fn try_from(node: pb::Node) -> Result<Self, Malformed> {
        Ok(Self {
            id: NodeId::try_from(&*node.id)?,
            name: node.name,
            address: node.address,
            host: node.host,
        })
    }
}

impl From<Pool> for pb::Pool {
    fn from(pool: Pool) -> Self {
        Self {
            id: pool.id.into(),
            name: pool.name,
            assigned_node_ids: pool.assigned.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::Pool> for Pool {
    type Error = Malformed;
    fn try_from(pool: pb::Pool) -> Result<Self, Malformed> {
        Ok(Self {
            id: PoolId::try_from(&*pool.id)?,
            name: pool.name,
            assigned: ids(&pool.assigned_node_ids)?,
        })
    }
}

impl From<Volume> for pb::Volume {
    fn from(volume: Volume) -> Self {
        let sight = |sight: Sight| pb::Sight { node_id: sight.node.into(), path: sight.path };
        Self {
            id: volume.id.into(),
            pool_id: volume.pool.into(),
            sights: volume.sights.into_iter().map(sight).collect(),
        }
    }
}

impl TryFrom<pb::Sight> for Sight {
    type Error = Malformed;
    fn try_from(sight: pb::Sight) -> Result<Self, Malformed> {
        Ok(Self { node: NodeId::try_from(&*sight.node_id)?, path: sight.path })
    }
}

impl TryFrom<pb::Volume> for Volume {
    type Error = Malformed;
    fn try_from(volume: pb::Volume) -> Result<Self, Malformed> {
        Ok(Self {
            id: VolumeId::try_from(&*volume.id)?,
            pool: PoolId::try_from(&*volume.pool_id)?,
            sights: each(volume.sights)?,
        })
    }
}

impl From<Space> for pb::Space {
    fn from(space: Space) -> Self {
        Self {
            filesystem: space.filesystem,
            capacity_bytes: space.capacity_bytes,
            free_bytes: space.free_bytes,
            available_bytes: space.available_bytes,
            read_only: space.access == Access::ReadOnly,
        }
    }
}

impl From<pb::Space> for Space {
    fn from(space: pb::Space) -> Self {
        Self {
            filesystem: space.filesystem,
            capacity_bytes: space.capacity_bytes,
            free_bytes: space.free_bytes,
            available_bytes: space.available_bytes,
            access: if space.read_only { Access::ReadOnly } else { Access::ReadWrite },
        }
    }
}

/// (offline_reason, space) on the wire.
fn state_out(state: VolumeState) -> (Option<String>, Option<pb::Space>) {
    match state {
        VolumeState::Online(space) => (None, Some(space.into())),
        VolumeState::Offline(reason) => (Some(reason), None),
    }
}

fn state_in(
    offline_reason: Option<String>,
    space: Option<pb::Space>,
) -> Result<VolumeState, Malformed> {
    match offline_reason {
        Some(reason) => Ok(VolumeState::Offline(reason)),
        None => Ok(VolumeState::Online(required("volume.space", space)?.into())),
    }
}

impl From<Live> for pb::Live {
    fn from(live: Live) -> Self {
        let volume = |(id, state): (VolumeId, VolumeState)| {
            let (offline_reason, space) = state_out(state);
            pb::VolumeLive { volume_id: id.into(), offline_reason, space }
        };
        Self {
            connected_node_ids: live.connected.into_iter().map(Into::into).collect(),
            volumes: live.volumes.into_iter().map(volume).collect(),
        }
    }
}

impl TryFrom<pb::Live> for Live {
    type Error = Malformed;
    fn try_from(live: pb::Live) -> Result<Self, Malformed> {
        let volume = |it: pb::VolumeLive| {
            Ok((VolumeId::try_from(&*it.volume_id)?, state_in(it.offline_reason, it.space)?))
        };
        Ok(Self {
            connected: ids(&live.connected_node_ids)?,
            volumes: live.volumes.into_iter().map(volume).collect::<Result<_, Malformed>>()?,
        })
    }
}

impl From<Watcher> for pb::Watcher {
    fn from(watcher: Watcher) -> Self {
        Self { host: watcher.host, purpose: watcher.purpose }
    }
}

impl From<pb::Watcher> for Watcher {
    fn from(watcher: pb::Watcher) -> Self {
        Self { host: watcher.host, purpose: watcher.purpose }
    }
}

impl From<OfferedVolume> for pb::OfferedVolume {
    fn from(volume: OfferedVolume) -> Self {
        let (offline_reason, space) = state_out(volume.state);
        Self {
            volume_id: volume.id.into(),
            pool_name: volume.pool_name,
            path: volume.path,
            offline_reason,
            space,
        }
    }
}

impl TryFrom<pb::OfferedVolume> for OfferedVolume {
    type Error = Malformed;
    fn try_from(volume: pb::OfferedVolume) -> Result<Self, Malformed> {
        Ok(Self {
            id: VolumeId::try_from(&*volume.volume_id)?,
            pool_name: volume.pool_name,
            path: volume.path,
            state: state_in(volume.offline_reason, volume.space)?,
        })
    }
}

impl From<Hello> for pb::Hello {
    fn from(hello: Hello) -> Self {
        Self {
            node_id: hello.node.id.into(),
            node_name: hello.node.host,
            address: hello.node.address,
            boot_id: hello.boot.into(),
            version: hello.version,
            volumes: hello.volumes.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::Hello> for Hello {
    type Error = Malformed;
    fn try_from(hello: pb::Hello) -> Result<Self, Malformed> {
        Ok(Self {
            node: Node {
                id: NodeId::try_from(&*hello.node_id)?,
                name: hello.node_name.clone(),
                address: hello.address,
                host: hello.node_name,
            },
            boot: BootId::try_from(&*hello.boot_id)?,
            version: hello.version,
            volumes: each(hello.volumes)?,
        })
    }
}

impl TryFrom<pb::VolumesReport> for Vec<OfferedVolume> {
    type Error = Malformed;
    fn try_from(report: pb::VolumesReport) -> Result<Self, Malformed> {
        each(report.volumes)
    }
}

impl From<FoundFile> for pb::FoundImage {
    fn from(file: FoundFile) -> Self {
        Self {
            image_id: file.image.into(),
            path: file.path.to_string(),
            stamp: Some(file.stamp.into()),
            format: pb::ImageFormat::from(file.format).into(),
            os: Some(file.os.into()),
            facts: facts_out(file.facts),
            folder_hint: file.folder.map(|folder| folder.to_string()),
        }
    }
}

impl TryFrom<pb::FoundImage> for FoundFile {
    type Error = Malformed;
    fn try_from(file: pb::FoundImage) -> Result<Self, Malformed> {
        Ok(Self {
            image: ImageId::try_from(&*file.image_id)?,
            path: VolumePath::parse(&file.path)?,
            stamp: required("image.stamp", file.stamp)?.into(),
            format: format_in(file.format)?,
            os: required("image.os", file.os)?.into(),
            facts: facts_in(file.facts),
            folder: file.folder_hint.map(|hint| hint.parse()).transpose()?,
        })
    }
}

impl From<FileEvent> for pb::ImageEventType {
    fn from(event: FileEvent) -> Self {
        match event {
            FileEvent::Created => Self::Created,
            FileEvent::Updated => Self::Updated,
            FileEvent::Deleted => Self::Deleted,
            FileEvent::Moved => Self::Moved,
        }
    }
}

impl From<FileChange> for pb::ImageEvent {
    fn from(change: FileChange) -> Self {
        Self {
            r#type: pb::ImageEventType::from(change.event).into(),
            image: Some(change.file.into()),
            time: time_out(change.found),
            previous: change.previous.map(Into::into),
        }
    }
}

impl TryFrom<pb::ImageEvent> for FileChange {
    type Error = Malformed;
    fn try_from(event: pb::ImageEvent) -> Result<Self, Malformed> {
        let kind = match event.r#type() {
            pb::ImageEventType::Created => FileEvent::Created,
            pb::ImageEventType::Updated => FileEvent::Updated,
            pb::ImageEventType::Deleted => FileEvent::Deleted,
            pb::ImageEventType::Moved => FileEvent::Moved,
            pb::ImageEventType::Unspecified => {
                return Err(Malformed::Unknown { field: "type", value: event.r#type.into() });
            }
        };
        Ok(Self {
            event: kind,
            file: required("image", event.image)?.try_into()?,
            previous: event.previous.map(FormerFile::try_from).transpose()?,
            found: time_in("time", event.time)?,
        })
    }
}

impl From<FormerFile> for pb::FormerFile {
    fn from(file: FormerFile) -> Self {
        Self {
            image_id: file.image.into(),
            path: file.path.to_string(),
            stamp: Some(file.stamp.into()),
        }
    }
}

impl TryFrom<pb::FormerFile> for FormerFile {
    type Error = Malformed;
    fn try_from(file: pb::FormerFile) -> Result<Self, Malformed> {
        Ok(Self {
            image: ImageId::try_from(&*file.image_id)?,
            path: VolumePath::parse(&file.path)?,
            stamp: required("previous.stamp", file.stamp)?.into(),
        })
    }
}

/// Without the volume, which the sender of the message fills in.
impl From<Backlog> for pb::Backlog {
    fn from(backlog: Backlog) -> Self {
        let Backlog { files, size_bytes, bytes_per_second } = backlog;
        Self { volume_id: Vec::new(), files, size_bytes, bytes_per_second }
    }
}

impl From<pb::Backlog> for Backlog {
    fn from(backlog: pb::Backlog) -> Self {
        let pb::Backlog { files, size_bytes, bytes_per_second, .. } = backlog;
        Self { files, size_bytes, bytes_per_second }
    }
}

impl From<ScanCounts> for pb::ScanCounts {
    fn from(counts: ScanCounts) -> Self {
        let ScanCounts { files_seen, created, updated, deleted, suspect } = counts;
        Self { files_seen, created, updated, deleted, suspect }
    }
}

impl From<pb::ScanCounts> for ScanCounts {
    fn from(counts: pb::ScanCounts) -> Self {
        let pb::ScanCounts { files_seen, created, updated, deleted, suspect } = counts;
        Self { files_seen, created, updated, deleted, suspect }
    }
}

impl From<Description> for pb::Description {
    fn from(it: Description) -> Self {
        Self {
            image_id: it.image.into(),
            format: it.format.map_or(pb::ImageFormat::Unspecified, Into::into).into(),
            os: Some(it.os.into()),
            facts: Some((*it.facts).into()),
        }
    }
}

impl TryFrom<pb::Description> for Description {
    type Error = Malformed;
    fn try_from(it: pb::Description) -> Result<Self, Malformed> {
        Ok(Self {
            image: ImageId::try_from(&*it.image_id)?,
            format: match it.format() {
                pb::ImageFormat::Unspecified => None,
                _ => Some(format_in(it.format)?),
            },
            os: required("description.os", it.os)?.into(),
            facts: Box::new(required("description.facts", it.facts)?.into()),
        })
    }
}

/// Without pool, volume and node, which the sender of the message fills in.
impl From<ScanOutcome> for pb::ScanResult {
    fn from(outcome: ScanOutcome) -> Self {
        let problem = |(path, reason)| pb::ScanProblem { path, reason };
        Self {
            pool: String::new(),
            volume_id: Vec::new(),
            node: String::new(),
            counts: Some(outcome.counts.into()),
            problems: outcome.problems.into_iter().map(problem).collect(),
            failure: outcome.failure,
        }
    }
}

impl From<pb::ScanResult> for ScanOutcome {
    fn from(result: pb::ScanResult) -> Self {
        Self {
            counts: result.counts.map(Into::into).unwrap_or_default(),
            problems: result.problems.into_iter().map(|p| (p.path, p.reason)).collect(),
            failure: result.failure,
        }
    }
}
