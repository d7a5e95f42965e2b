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
use crate::recognise::{Remembered, Unmarked};

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
    volumes: BTreeMap<PathBuf, Known>,
    /// Directories attached while the agent ran → pool.
    #[serde(default)]
    attached: BTreeMap<PathBuf, String>,
}

/// What is remembered of a directory.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Known {
    /// Its volume, known by its marker.
    Marked(String),
    Unmarked {
        volume: String,
        unmarked: Unmarked,
    },
}

impl Known {
    fn of(remembered: &Remembered) -> Self {
        let volume = remembered.volume.to_string();
        match &remembered.unmarked {
            None => Self::Marked(volume),
            Some(unmarked) => Self::Unmarked { volume, unmarked: unmarked.clone() },
        }
    }

    fn parse(self) -> Result<Remembered, String> {
        let (volume, unmarked) = match self {
            Self::Marked(volume) => (volume, None),
            Self::Unmarked { volume, unmarked } => (volume, Some(unmarked)),
        };
        let volume = volume.parse::<VolumeId>().map_err(|error| error.to_string())?;
        Ok(Remembered { volume, unmarked })
    }
}

pub(crate) struct State {
    path: PathBuf,
    node: NodeId,
    volumes: BTreeMap<PathBuf, Remembered>,
    attached: BTreeMap<PathBuf, String>,
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
                let Parsed { node, volumes, attached } = parse(&bytes)
                    .map_err(|reason| IdentityError::Damaged { path: path.clone(), reason })?;
                Self { path, node, volumes, attached, _lock: lock }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let node = NodeId::mint(now);
                let (volumes, attached) = (BTreeMap::new(), BTreeMap::new());
                let state = Self { path, node, volumes, attached, _lock: lock };
                state.save()?;
                state
            }
            Err(error) => return Err(failed(error)),
        };
        Ok(state)
    }

    /// What a directory of state remembers, with nothing made or locked.
    pub(crate) fn peek(state: &Path) -> Result<BTreeMap<PathBuf, Remembered>, IdentityError> {
        let path = state.join("agent/node.json");
        match fs::read(&path) {
            Ok(bytes) => {
                let known = parse(&bytes);
                Ok(known.map_err(|reason| IdentityError::Damaged { path, reason })?.volumes)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(IdentityError::State { path, error }),
        }
    }

    pub(crate) fn node(&self) -> NodeId {
        self.node
    }

    /// The volume that a directory was used as before.
    pub(crate) fn remembered(&self, dir: &Path) -> Option<Remembered> {
        self.volumes.get(dir).cloned()
    }

    pub(crate) fn remember(
        &mut self,
        dir: &Path,
        volume: &Remembered,
    ) -> Result<(), IdentityError> {
        if self.volumes.insert(dir.to_owned(), volume.clone()).as_ref() == Some(volume) {
            return Ok(());
        }
        self.save()
    }

    /// Remembers a directory that is used from now on, after restarts, too.
    pub(crate) fn attach(
        &mut self,
        dir: &Path,
        volume: &Remembered,
        pool: &str,
    ) -> Result<(), IdentityError> {
        self.volumes.insert(dir.to_owned(), volume.clone());
        self.attached.insert(dir.to_owned(), pool.to_owned());
        self.save()
    }

    /// Forgets a directory: used again, it is met anew.
    pub(crate) fn detach(&mut self, dir: &Path) -> Result<(), IdentityError> {
        self.volumes.remove(dir);
        self.attached.remove(dir);
        self.save()
    }

    pub(crate) fn is_attached(&self, dir: &Path) -> bool {
        self.attached.contains_key(dir)
    }

    /// Directories attached while the agent ran, and their pools.
    pub(crate) fn attached(&self) -> impl Iterator<Item = (&PathBuf, &String)> {
        self.attached.iter()
    }

    /// Where the sidecars of volumes lie that nothing is written to.
    pub(crate) fn sidecars(&self) -> PathBuf {
        self.path.with_file_name("volumes")
    }

    fn save(&self) -> Result<(), IdentityError> {
        let volumes = self.volumes.iter().map(|(dir, it)| (dir.clone(), Known::of(it))).collect();
        let attached = self.attached.clone();
        let file = NodeFile { node: self.node.to_string(), volumes, attached };
        write_whole(&self.path, &file)
            .map_err(|error| IdentityError::State { path: self.path.clone(), error })
    }
}

struct Parsed {
    node: NodeId,
    volumes: BTreeMap<PathBuf, Remembered>,
    attached: BTreeMap<PathBuf, String>,
}

fn parse(bytes: &[u8]) -> Result<Parsed, String> {
    let file: NodeFile = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let node = file.node.parse::<NodeId>().map_err(|error| error.to_string())?;
    let volume = |(dir, known): (PathBuf, Known)| Ok((dir, known.parse()?));
    let volumes = file.volumes.into_iter().map(volume).collect::<Result<_, String>>()?;
    Ok(Parsed { node, volumes, attached: file.attached })
}
