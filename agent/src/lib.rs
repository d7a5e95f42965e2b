//! The agent: one host's pools. It scans their volumes, reports what changed, and serves the
//! bytes. It knows files and ids; of folders and names in the library it knows nothing.
//!
//! [`Config`] → [`Agent::build`] (opens the volumes, binds the port) → [`Agent::serve`].

mod clock;
mod content;
mod identify;
mod identity;
mod index;
mod marker;
mod reconcile;
mod scan;
mod service;
mod session;
mod volume;
mod walk;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use isotope_proto::cluster::Node;
use isotope_proto::id::{BootId, VolumeId};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Endpoint, Uri};
use tracing::info;

pub use crate::identity::IdentityError;
use crate::identity::State;
use crate::volume::Volume;
pub use crate::volume::VolumeError;

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

/// The volumes of this host, by id.
type Volumes = Arc<HashMap<VolumeId, Arc<Volume>>>;

/// An agent that has its volumes open and its port bound.
pub struct Agent {
    listener: TcpListener,
    address: SocketAddr,
    node: Node,
    boot: BootId,
    volumes: Volumes,
    catalog: Endpoint,
    _state: State,
}

impl Agent {
    /// Opens the volumes (marking those used for the first time) and binds the port.
    pub async fn build(config: Config) -> Result<Self, AgentError> {
        let now = clock::now();
        let mut state = State::open(&config.state, now)?;
        let mut volumes: HashMap<VolumeId, Arc<Volume>> = HashMap::new();
        for pool in &config.pools {
            let volume = Volume::open(&pool.dir, &pool.name, state.remembered(&pool.dir), now)?;
            if let Some(other) = volumes.get(&volume.id) {
                let (first, second) = (other.path.clone(), volume.path);
                return Err(AgentError::Twice { first, second });
            }
            state.remember(&pool.dir, volume.id)?;
            volumes.insert(volume.id, Arc::new(volume));
        }
        let bind_error = |error| AgentError::Bind { address: config.listen, error };
        let listener = TcpListener::bind(config.listen).await.map_err(bind_error)?;
        let address = listener.local_addr().map_err(bind_error)?;
        let reached_at = config.advertise.unwrap_or_else(|| advertised(address, &config.name));
        let node = Node { id: state.node(), name: config.name, address: reached_at };
        Ok(Self {
            listener,
            address,
            node,
            boot: BootId::mint(now),
            volumes: Arc::new(volumes),
            catalog: Endpoint::from(config.catalog),
            _state: state,
        })
    }

    /// Where it listens; the port is real even if 0 was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves bytes and follows the catalogue until `stop` is cancelled.
    pub async fn serve(self, stop: CancellationToken) -> Result<(), AgentError> {
        info!(address = %self.address, node = %self.node.name, volumes = self.volumes.len(), "agent serves");
        let session = session::Session {
            node: self.node,
            boot: self.boot,
            volumes: Arc::clone(&self.volumes),
            catalog: self.catalog,
            stop: stop.clone(),
        };
        let session = tokio::spawn(session.run());
        let stopped = stop.clone();
        let server = service::server(self.volumes).serve_with_incoming_shutdown(
            TcpListenerStream::new(self.listener),
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
        info!("agent stopped");
        Ok(())
    }
}

/// Others cannot reach "any address"; they can try the name.
fn advertised(address: SocketAddr, name: &str) -> String {
    if address.ip().is_unspecified() {
        format!("{name}:{}", address.port())
    } else {
        address.to_string()
    }
}
