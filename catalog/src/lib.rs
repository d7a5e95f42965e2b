//! The catalogue: who has what, under which name. It knows every image and gives it a virtual
//! folder; it never sees a byte of one, nor a directory of a pool.
//!
//! [`Config`] → [`Catalog::build`] (binds, so the address is known) → [`Catalog::serve`].

mod clock;
mod feed;
mod library;
mod nodes;
mod placement;
mod reconcile;
mod scans;
mod service;
mod store;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::feed::Feed;
use crate::nodes::Nodes;
use crate::scans::Scans;
pub use crate::store::OpenError;
use crate::store::Store;

/// How long open streams get to end after a stop was asked for.
const DRAIN_MAX: Duration = Duration::from_secs(3);

/// What a catalogue is started with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Port 0 chooses a free one.
    pub listen: SocketAddr,
    /// Directory of the database; made when missing.
    pub state: PathBuf,
}

/// Why a catalogue could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error("cannot listen on {address}: {error}")]
    Bind { address: SocketAddr, error: std::io::Error },
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the catalogue's server failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// The parts that every service of the catalogue shares.
#[derive(Clone)]
struct Core {
    store: Store,
    feed: Feed,
    nodes: Arc<Nodes>,
    scans: Arc<Scans>,
    shutdown: CancellationToken,
}

/// A catalogue that has its database open and its port bound.
pub struct Catalog {
    listener: TcpListener,
    address: SocketAddr,
    core: Core,
}

impl Catalog {
    /// Opens the database (making it on first use) and binds the port.
    pub async fn build(config: Config) -> Result<Self, CatalogError> {
        let (store, feed) = Store::open(&config.state, clock::now())?;
        let bind_error = |error| CatalogError::Bind { address: config.listen, error };
        let listener = TcpListener::bind(config.listen).await.map_err(bind_error)?;
        let address = listener.local_addr().map_err(bind_error)?;
        let nodes = Arc::new(Nodes::default());
        let scans = Arc::new(Scans::default());
        let shutdown = CancellationToken::new();
        Ok(Self { listener, address, core: Core { store, feed, nodes, scans, shutdown } })
    }

    /// Where it listens; the port is real even if 0 was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is cancelled, then lets open requests end.
    pub async fn serve(self, stop: CancellationToken) -> Result<(), CatalogError> {
        info!(address = %self.address, "catalogue serves");
        let Core { shutdown, .. } = &self.core;
        let stopping = shutdown.clone();
        let server = service::server(&self.core).serve_with_incoming_shutdown(
            TcpListenerStream::new(self.listener),
            async move {
                stop.cancelled().await;
                stopping.cancel();
            },
        );
        tokio::pin!(server);
        tokio::select! {
            served = &mut server => served?,
            () = async { shutdown.cancelled().await; tokio::time::sleep(DRAIN_MAX).await } => {}
        }
        info!("catalogue stopped");
        Ok(())
    }
}
