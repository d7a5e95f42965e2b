//! Who this agent is, and which directories it has used before. Both outlive the process: an
//! identity must not change, and a directory once used must not be taken for new.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use isotope_proto::id::{NodeId, VolumeId};
use isotope_proto::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::index::write_whole;

/// Why the agent's memory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("cannot use the state directory {path}: {error}")]
    State { path: PathBuf, error: io::Error },
    #[error(
        "another agent is using {0}; stop it, or give this one a directory of its own (--state)"
    )]
    InUse(PathBuf),
    #[error("{path} is damaged ({reason}); restore it, or remove it to begin as a new node")]
    Damaged { path: PathBuf, reason: String },
}

/// What `agent/node.json` holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeFile {
    node: String,
    /// Directory → volume.
    volumes: BTreeMap<PathBuf, String>,
}

pub(crate) struct State {
    path: PathBuf,
    node: NodeId,
    volumes: BTreeMap<PathBuf, VolumeId>,
    /// Two agents of one identity would undo each other's reports.
    _lock: File,
}

impl State {
    pub(crate) fn open(state: &Path, now: Timestamp) -> Result<Self, IdentityError> {
        let dir = state.join("agent");
        let failed = |error| IdentityError::State { path: dir.clone(), error };
        fs::create_dir_all(&dir).map_err(failed)?;
        let lock = File::create(dir.join("agent.lock")).map_err(failed)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => IdentityError::InUse(dir.clone()),
            TryLockError::Error(error) => failed(error),
        })?;
        let path = dir.join("node.json");
        let state = match fs::read(&path) {
            Ok(bytes) => {
                let (node, volumes) = parse(&bytes)
                    .map_err(|reason| IdentityError::Damaged { path: path.clone(), reason })?;
                Self { path, node, volumes, _lock: lock }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let node = NodeId::mint(now);
                let state = Self { path, node, volumes: BTreeMap::new(), _lock: lock };
                state.save()?;
                state
            }
            Err(error) => return Err(failed(error)),
        };
        Ok(state)
    }

    /// What a directory of state remembers, with nothing made or locked.
    pub(crate) fn peek(state: &Path) -> Result<BTreeMap<PathBuf, VolumeId>, IdentityError> {
        let path = state.join("agent/node.json");
        match fs::read(&path) {
            Ok(bytes) => {
                let known = parse(&bytes);
                Ok(known.map_err(|reason| IdentityError::Damaged { path, reason })?.1)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(IdentityError::State { path, error }),
        }
    }

    pub(crate) fn node(&self) -> NodeId {
        self.node
    }

    /// The volume that a directory was used as before.
    pub(crate) fn remembered(&self, dir: &Path) -> Option<VolumeId> {
        self.volumes.get(dir).copied()
    }

    pub(crate) fn remember(&mut self, dir: &Path, volume: VolumeId) -> Result<(), IdentityError> {
        if self.volumes.insert(dir.to_owned(), volume) == Some(volume) {
            return Ok(());
        }
        self.save()
    }

    fn save(&self) -> Result<(), IdentityError> {
        let volumes = self.volumes.iter().map(|(dir, id)| (dir.clone(), id.to_string())).collect();
        let file = NodeFile { node: self.node.to_string(), volumes };
        write_whole(&self.path, &file)
            .map_err(|error| IdentityError::State { path: self.path.clone(), error })
    }
}

fn parse(bytes: &[u8]) -> Result<(NodeId, BTreeMap<PathBuf, VolumeId>), String> {
    let file: NodeFile = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let node = file.node.parse::<NodeId>().map_err(|error| error.to_string())?;
    let volume = |(dir, id): (PathBuf, String)| {
        Ok((dir, id.parse::<VolumeId>().map_err(|error| error.to_string())?))
    };
    Ok((node, file.volumes.into_iter().map(volume).collect::<Result<_, String>>()?))
}
