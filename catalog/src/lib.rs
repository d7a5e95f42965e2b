//! The catalogue: who has what, under which name. It knows every image and gives it a virtual
//! folder; it never sees a byte of one, nor a directory of a pool.
//!
//! [`Config`] → [`Catalog::build`] (binds, so the address is known) → [`Catalog::serve`].

mod arranging;
mod clock;
mod contents;
mod feed;
mod hosts;
mod housekeeping;
mod keepers;
mod leases;
mod library;
mod naming;
mod nodes;
mod placement;
mod pools;
mod rebuild;
mod reconcile;
mod recovery;
mod scanning;
mod scans;
mod service;
mod sharing;
mod store;
mod uploads;
mod urls;
mod verifying;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use isotope_proto::change::{Delta, Edit};
use isotope_proto::id::RequestId;
use isotope_proto::refusal::Refusal;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tracing::info;

use crate::feed::Feed;
use crate::keepers::Keepers;
use crate::leases::Leases;
use crate::nodes::Nodes;
use crate::scans::Scans;
pub use crate::store::{BackupInfo, OpenError, RestoreError, Restored, check_backup};
use crate::store::{Committed, Store, Verb};
use crate::verifying::Suspects;

/// How long open streams get to end after a stop was asked for.
const DRAIN_MAX: Duration = Duration::from_secs(3);

/// What a catalogue is started with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Port 0 chooses a free one.
    pub listen: SocketAddr,
    /// Directory of the database; made when missing.
    pub state: PathBuf,
    /// Between two scans of everything, more or less.
    pub scan_every: Duration,
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
    keepers: Arc<Keepers>,
    scans: Arc<Scans>,
    leases: Arc<Leases>,
    suspects: Arc<Suspects>,
    /// Moves whenever agents may have something to do with files.
    tasks: Arc<watch::Sender<u64>>,
    shutdown: CancellationToken,
}

impl Core {
    /// Makes a change of which agents may have to hear.
    async fn commit(&self, request: Option<RequestId>, verb: Verb) -> Result<Committed, Refusal> {
        let committed = self.store.commit(request, verb).await?;
        let gone = |delta: &Delta| match delta {
            Delta::Image(Edit::Removed(image)) => Some(image.id),
            _ => None,
        };
        self.leases.deleted(committed.change.deltas.iter().filter_map(gone), Instant::now());
        self.tasks.send_modify(|count| *count = count.wrapping_add(1));
        Ok(committed)
    }
}

/// Puts a backup in the place of a catalogue's database, while no catalogue runs on it. The one
/// that was there is kept beside it. What was changed since the backup is forgotten, except that
/// hosts tell anew which files there are.
///
/// # Errors
/// As [`RestoreError`] has them; then nothing has changed.
pub fn restore(backup: &Path, state: &Path) -> Result<Restored, RestoreError> {
    store::restore(backup, state, clock::now(), uploads::TRASH_KEPT_NS)
}

/// A catalogue that has its database open and its port bound.
pub struct Catalog {
    listener: TcpListener,
    address: SocketAddr,
    core: Core,
    scan_every: Duration,
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
        let leases = Arc::new(Leases::new(Instant::now()));
        let tasks = Arc::new(watch::Sender::new(0));
        let keepers = Arc::new(Keepers::default());
        let suspects = Arc::default();
        let core = Core { store, feed, nodes, keepers, scans, leases, suspects, tasks, shutdown };
        Ok(Self { listener, address, core, scan_every: config.scan_every })
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
        tokio::spawn(housekeeping::run(self.core.clone()));
        tokio::spawn(keepers::run(self.core.clone()));
        tokio::spawn(scanning::on_schedule(self.core.clone(), self.scan_every));
        let stopping = shutdown.clone();
        let server = service::server(&self.core).serve_with_incoming_shutdown(
            // Set here, for the server's own setting is for listeners it makes itself.
            TcpIncoming::from(self.listener).with_nodelay(Some(true)),
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
