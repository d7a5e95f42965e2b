//! The agent: one host's pools. It scans their volumes, reports what changed, and serves the
//! bytes. It knows files and ids; of folders and names in the library it keeps a copy, and makes
//! nothing of it.
//!
//! [`Config`] → [`Agent::build`] (opens the volumes, binds the port) → [`Agent::serve`].

mod bytes;
mod channel;
mod clock;
mod content;
pub mod digest;
mod follow;
mod hasher;
mod hints;
mod host;
mod http;
/// For fuzz targets and tests; no part of the agent's interface.
#[doc(hidden)]
pub mod identify;
mod identity;
mod index;
mod index_log;
mod kept_log;
mod layout;
mod library;
mod library_log;
mod listener;
mod lookout;
mod marker;
mod outboards;
mod passing;
mod plan;
mod published;
mod recognise;
mod reconcile;
mod refresh;
mod roll;
mod scan;
mod service;
mod session;
mod stage;
mod tasks;
mod tell;
mod volume;
mod volumes;
mod walk;
mod watch;
mod worker;
mod writable;
mod writeback;
mod writers;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use isotope_proto::cluster::Node;
use isotope_proto::id::BootId;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Endpoint, Uri};
use tracing::{info, warn};

pub use crate::hasher::Hashing;
use crate::host::Host;
pub use crate::identity::IdentityError;
use crate::identity::State;
use crate::passing::Passing;
pub use crate::recognise::VolumeError;
use crate::recognise::{Checked, Remembered};
use crate::volume::Volume;
use crate::volumes::Volumes;

/// A directory given as a pool, and the pool's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolDir {
    pub dir: PathBuf,
    pub name: String,
}

/// What an agent is started with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where bytes are served; port 0 chooses a free one.
    pub listen: SocketAddr,
    /// `host:port` at which others reach it, if not the listening address.
    pub advertise: Option<String>,
    /// The node's name.
    pub name: String,
    pub pools: Vec<PoolDir>,
    pub catalog: Uri,
    /// Directory of the agent's identity and memory; made when missing.
    pub state: PathBuf,
    pub hashing: Hashing,
}

/// Why an agent could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("cannot listen on {address}: {error}")]
    Bind { address: SocketAddr, error: std::io::Error },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error("{first} and {second} are the same volume; name it once")]
    Twice { first: PathBuf, second: PathBuf },
    #[error("the agent's server failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// An agent that has its volumes open and its port bound.
pub struct Agent {
    listener: TcpListener,
    address: SocketAddr,
    node: Node,
    boot: BootId,
    host: Host,
    catalog: Endpoint,
    hashing: Hashing,
}

/// Whether an agent could use these pools, with nothing made, marked or locked: for whoever starts
/// other parts beside it.
///
/// # Errors
/// As [`Agent::build`] would fail for a pool.
pub fn check_pools(pools: &[PoolDir], state: &Path) -> Result<(), AgentError> {
    let remembered = State::peek(state)?;
    check(pools, |dir| remembered.get(dir).cloned()).map(drop)
}

impl Agent {
    /// Binds the port and opens the volumes, marking those used for the first time. Nothing is
    /// marked if anything is wrong with the port or with one of them.
    pub async fn build(config: Config) -> Result<Self, AgentError> {
        let now = clock::now();
        let bind_error = |error| AgentError::Bind { address: config.listen, error };
        let listener = TcpListener::bind(config.listen).await.map_err(bind_error)?;
        let address = listener.local_addr().map_err(bind_error)?;
        let mut state = State::open(&config.state, now)?;
        let checked = check(&config.pools, |dir| state.remembered(dir))?;
        let given: Vec<PathBuf> = config.pools.iter().map(|pool| pool.dir.clone()).collect();
        let volumes = Volumes::default();
        for (pool, checked) in config.pools.iter().zip(checked) {
            let recognised = checked.settle(&pool.name, now)?;
            state.remember(&pool.dir, &recognised.remembered)?;
            volumes.add(Volume::new(recognised, &pool.name, &state.sidecars()));
        }
        for (dir, pool, remembered) in host::attached(&state, &given) {
            let recognised = Checked::look(&dir, Some(&remembered), None)?.settle(&pool, now)?;
            volumes.add(Volume::new(recognised, &pool, &state.sidecars()));
        }
        let reached_at = config.advertise.unwrap_or_else(|| advertised(address, &config.name));
        let host = config.name.clone();
        let node = Node { id: state.node(), name: config.name, address: reached_at, host };
        Ok(Self {
            listener,
            address,
            node,
            boot: BootId::mint(now),
            host: Host::new(state.node(), volumes, state, Arc::default()),
            catalog: Endpoint::from(config.catalog),
            hashing: config.hashing,
        })
    }

    /// Where it listens; the port is real even if 0 was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves bytes and follows the catalogue until `stop` is cancelled.
    pub async fn serve(self, stop: CancellationToken) -> Result<(), AgentError> {
        info!(address = %self.address, node = %self.node.name, volumes = self.host.volumes.all().len(), "agent serves");
        let address = self.node.address.clone();
        let follower =
            follow::Follower { volumes: self.host.volumes.clone(), catalog: self.catalog.clone() };
        let follower = tokio::spawn(follower.run());
        let url_key = Arc::<http::ToldKey>::default();
        let session = session::Session {
            node: self.node,
            boot: self.boot,
            volumes: self.host.volumes.clone(),
            catalog: self.catalog,
            hashing: self.hashing,
            shown: Arc::clone(&self.host.catalog),
            wake: Arc::clone(&self.host.wake),
            url_key: Arc::clone(&url_key),
            stop: stop.clone(),
        };
        let session = tokio::spawn(session.run());
        let passing = Arc::new(Passing::new(self.host.volumes.clone(), self.host.node));
        let passed = match Passing::listen(&address) {
            Ok(listener) => Some(tokio::spawn(Arc::clone(&passing).serve(listener))),
            Err(error) => {
                warn!(%error, "programs of this host read and store over the network, too");
                None
            }
        };
        let stopped = stop.clone();
        let incoming = listener::listen(self.listener, self.host.clone(), stop.clone());
        let server = service::server(self.host, passing, url_key).serve_with_incoming_shutdown(
            incoming,
            async move {
                stopped.cancelled().await;
            },
        );
        tokio::pin!(server);
        tokio::select! {
            served = &mut server => served?,
            () = async { stop.cancelled().await; tokio::time::sleep(service::DRAIN_MAX).await } => {}
        }
        session.abort();
        follower.abort();
        passed.iter().for_each(tokio::task::JoinHandle::abort);
        info!("agent stopped");
        Ok(())
    }
}

/// Each pool's directory, found fit and named once.
fn check(
    pools: &[PoolDir],
    remembered: impl Fn(&Path) -> Option<Remembered>,
) -> Result<Vec<Checked>, AgentError> {
    let mut all: Vec<Checked> = Vec::with_capacity(pools.len());
    for pool in pools {
        let checked = Checked::look(&pool.dir, remembered(&pool.dir).as_ref(), None)?;
        if let Some(other) = all.iter().find(|other| checked.is(other)) {
            let (first, second) = (other.path().to_owned(), pool.dir.clone());
            return Err(AgentError::Twice { first, second });
        }
        all.push(checked);
    }
    Ok(all)
}

/// Others cannot reach "any address"; they can try the name.
fn advertised(address: SocketAddr, name: &str) -> String {
    if address.ip().is_unspecified() {
        format!("{name}:{}", address.port())
    } else {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(dir: &Path, listen: SocketAddr, pools: &[&str]) -> Config {
        let pool = |name: &&str| PoolDir { dir: dir.join(name), name: "isos".to_owned() };
        Config {
            listen,
            advertise: None,
            name: "host".to_owned(),
            pools: pools.iter().map(pool).collect(),
            catalog: Uri::from_static("http://127.0.0.1:1"),
            state: dir.join("state"),
            hashing: Hashing { rate: None, scrub_rate: None, scrub_every: None },
        }
    }

    #[tokio::test]
    async fn bad_input_marks_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["good", "theirs/.isotope"] {
            std::fs::create_dir_all(dir.path().join(name)).expect("made");
        }
        std::fs::write(dir.path().join("file"), "").expect("written");
        std::fs::write(dir.path().join("theirs/.isotope/volume.json"), "?").expect("written");
        std::os::unix::fs::symlink("good", dir.path().join("alias")).expect("linked");
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        let busy = TcpListener::bind(free).await.expect("bound");
        let taken = busy.local_addr().expect("an address");
        for (listen, pools, expected) in [
            (free, &["good", "missing"][..], "does not exist"),
            (free, &["good", "file"], "is not a directory"),
            (free, &["good", "theirs"], "is not ours"),
            (free, &["good", "alias"], "are the same volume"),
            (free, &["good", "good"], "are the same volume"),
            (taken, &["good"], "cannot listen"),
        ] {
            let built = Agent::build(config(dir.path(), listen, pools)).await;
            let error = built.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(expected), "{pools:?}: {error}");
            assert!(!dir.path().join("good/.isotope").exists(), "{pools:?} marked it");
        }
        Agent::build(config(dir.path(), free, &["good"])).await.expect("built");
        assert!(dir.path().join("good/.isotope/volume.json").exists());
        // Known now, it is still found under its other name.
        let built = Agent::build(config(dir.path(), free, &["good", "alias"])).await;
        assert!(matches!(built.err(), Some(AgentError::Twice { .. })));
    }
}
