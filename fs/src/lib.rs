//! The mount: the library as a FUSE file system. It holds the whole namespace in memory, follows
//! the catalogue's feed, and reads bytes from whichever host has them. It knows nothing of pools'
//! directories, nor how the catalogue decides.
//!
//! [`Config`] → [`Mount::build`] (checks the mount point) → [`Mount::serve`].

mod adapter;
mod attr;
mod beginning;
mod buffers;
mod catalog;
mod channel;
mod clock;
mod contents;
mod errno;
mod error;
mod extents;
mod feed;
mod fetch;
mod files;
mod follow;
mod guard;
mod handle;
mod headers;
mod health;
mod holders;
mod local;
mod mirror;
mod modes;
mod mountpoint;
mod names;
mod notify;
mod opening;
pub mod options;
mod passthrough;
mod prefetch;
mod process;
mod quick;
mod read_ahead;
mod reader;
mod recorder;
mod recording;
mod remote;
mod replicas;
mod reply;
mod session;
mod stage;
mod storing;
mod sync;
mod tally;
pub mod tree;
mod upload;
mod uploads;
mod viewing;
pub mod views;
mod writer;
mod writing;
mod xattr;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use isotope_proto::id::SessionId;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Endpoint, Uri};
use tracing::{info, warn};

use crate::adapter::Adapter;
pub use crate::attr::Owner;
use crate::catalog::{Access, Catalog};
pub use crate::fetch::Content;
use crate::files::Files;
pub use crate::guard::guard;
use crate::handle::Handles;
use crate::headers::Headers;
pub use crate::health::{Contact, FEED_ATTRIBUTE, FeedHealth};
use crate::mirror::Source;
pub use crate::mountpoint::{MountPointError, our_mounts, resolved};
use crate::notify::Notifications;
use crate::options::{Beneath, Local, Others, Wait};
use crate::passthrough::Passthrough;
pub use crate::remote::Hosts;
use crate::remote::WrongCopy;
pub use crate::replicas::Route;
use crate::session::Manner;
pub use crate::storing::{Aborted, Storing};
use crate::tally::Why;
pub use crate::tally::{Ordinary, READS_ATTRIBUTE, Reads, Tally};
use crate::uploads::Uploads;
use crate::viewing::Views;
use crate::views::View;

/// Unless told otherwise, all replicas together have so long to deliver one read; then the reader
/// gets EIO.
pub const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// What is held open is told this often.
const HOLD_EVERY: Duration = Duration::from_secs(5);
/// The largest read asked of us: what the kernel's read-ahead is widened to.
const READ_REQUEST_BYTES: u32 = 1 << 20;

/// What a mount is started with.
#[derive(Debug, Clone)]
pub struct Config {
    pub mountpoint: PathBuf,
    pub catalog: Uri,
    /// What the kernel's table shows as the mount's source; the catalogue's address where empty.
    pub source: String,
    /// This host's name, shown by `isotope status`.
    pub host: String,
    pub owner: Owner,
    pub read_only: bool,
    /// Nothing in the mount may be run as a program.
    pub no_exec: bool,
    pub others: Others,
    /// The view to show in place of the library's own tree.
    pub view: Option<String>,
    pub wait: Wait,
    /// All replicas together have so long to deliver one read; then the reader gets EIO.
    pub read_timeout: Duration,
    pub beneath: Beneath,
    pub local: Local,
    /// The command that runs [`guard`], with the process id and the mount point appended to it;
    /// empty for none.
    pub guard: Vec<PathBuf>,
    /// The directory in which the mount keeps a recording of the library, to start from when the
    /// catalogue is away; none to keep nothing.
    pub snapshots: Option<PathBuf>,
}

impl Config {
    /// Why nothing can be passed through, where that is known beforehand.
    fn unpassed(&self) -> Option<Why> {
        match self.local {
            Local::Verified => Some(Why::TurnedOff),
            Local::PassedThrough if !rustix::process::geteuid().is_root() => {
                Some(Why::Unprivileged)
            }
            Local::PassedThrough => None,
        }
    }

    fn manner(&self) -> Manner {
        let address = self.catalog.authority().map_or("", |it| it.as_str());
        let source = Some(self.source.clone()).filter(|it| !it.is_empty());
        Manner {
            source: source.unwrap_or_else(|| format!("isotope:{address}")),
            read_only: self.read_only,
            no_exec: self.no_exec,
            others: self.others,
        }
    }
}

/// Why a mount could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error(transparent)]
    MountPoint(#[from] MountPointError),
    #[error("no view is called {0}; isotope views lists them")]
    NoView(String),
    #[error(
        "the catalogue {catalog} could not be reached within {} s; does it run, and is that its \
         address?", .waited.as_secs()
    )]
    CatalogAway { catalog: Uri, waited: Duration },
    #[error(
        "users may let others in only where /etc/fuse.conf has the line user_allow_other; ask \
         whoever keeps this host, or leave allow_other out"
    )]
    OthersRefused,
    #[error("cannot mount on {path}: {error}")]
    Mount { path: PathBuf, error: io::Error },
    #[error("the mount on {path} failed: {error}")]
    Session { path: PathBuf, error: io::Error },
    #[error("the mount has lost its feed by a fault of its own; please report the log before this")]
    Follower,
}

/// A mount that may be mounted.
pub struct Mount {
    config: Config,
    view: Option<View>,
    tally: Tally,
}

impl Mount {
    /// Checks the mount point, and clears a stale mount a killed process left there.
    ///
    /// # Errors
    /// When it is missing, in use or not empty, or FUSE cannot be used here; when there is no such
    /// view.
    pub fn build(config: Config) -> Result<Self, MountError> {
        let view = match &config.view {
            None => None,
            Some(name) => Some(View::named(name).ok_or_else(|| MountError::NoView(name.clone()))?),
        };
        mountpoint::prepare(&config.mountpoint)?;
        Ok(Self { config, view, tally: Tally::default() })
    }

    /// How it will be read, in numbers.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.tally.clone()
    }

    /// Waits for the catalogue, but not long where there is a snapshot; mounts, says so on `ready`,
    /// and serves until `stop` is cancelled or somebody unmounts it. From the start on, nothing is
    /// written into the directory beneath, if that is what the configuration says.
    ///
    /// # Errors
    /// When the catalogue does not come in time, mounting fails, or the kernel ends the session.
    pub async fn serve(
        self,
        stop: CancellationToken,
        ready: oneshot::Sender<()>,
    ) -> Result<(), MountError> {
        let (manner, unpassed) = (self.config.manner(), self.config.unpassed());
        let headers = beginning::headers_dir(&self.config);
        if self.config.beneath == Beneath::Immutable {
            mountpoint::refuse_writes(&self.config.mountpoint);
        }
        let channel = catalog::connect(Endpoint::from(self.config.catalog.clone()));
        let notifications = Notifications::default();
        let (following, first) = beginning::follow(&self.config, &channel, &notifications).await;
        let beginning::Following { mut follower, health } = following;
        let Config { mountpoint, catalog, host, owner, guard, wait, read_timeout, .. } =
            self.config;
        let mirror = tokio::select! {
            mirror = first.tree(&health) => mirror?,
            waited = over(wait) => {
                follower.abort();
                return Err(MountError::CatalogAway { catalog, waited });
            }
            () = stop.cancelled() => {
                follower.abort();
                return Ok(());
            }
        };
        let (hosts, wrong) = Hosts::reporting(self.tally.clone());
        let hosts = Arc::new(hosts);
        let source = reader::Source::new(
            Arc::clone(&mirror),
            Arc::clone(&hosts),
            host.clone(),
            read_timeout,
            Headers::of(headers).await,
            self.tally.clone(),
        );
        let handles = Arc::new(Handles::new(source));
        let uploads = Arc::<Uploads>::default();
        let access = if manner.read_only { Access::ReadOnly } else { Access::Changes };
        let client = Catalog::new(channel, access);
        let keeping = [
            tokio::spawn(Arc::clone(&uploads).keep(client.clone())),
            tokio::spawn(hold(Arc::clone(&handles), Arc::clone(&hosts), client.clone())),
            tokio::spawn(report(wrong, client.clone())),
        ];
        let views = Arc::new(Views::new(self.view));
        let passthrough = Arc::new(Passthrough::new(host.clone(), unpassed, self.tally));
        let source = Source::Own;
        let files = Files {
            mirror,
            handles,
            uploads,
            hosts,
            catalog: client,
            host,
            owner,
            views,
            source,
            health,
            passthrough,
        };
        let adapter = Adapter { files, runtime: tokio::runtime::Handle::current() };
        let mut mounted = session::mount(&mountpoint, &manner, adapter, notifications)?;
        let _guard = guard::start(&guard, &mountpoint).unwrap_or_else(|error| {
            warn!(%error, "the mount goes unguarded");
            None
        });
        info!(mountpoint = %mountpoint.display(), "mounted");
        // Whoever started us may not want to know.
        let _ = ready.send(());
        let ended = tokio::select! {
            ended = mounted.ended() => {
                info!(mountpoint = %mountpoint.display(), "unmounted from outside");
                ended.map_err(|error| MountError::Session { path: mountpoint, error })
            }
            _ = &mut follower => {
                // Never silently stale: without the feed nothing shown can be relied on.
                mounted.unmount().await;
                Err(MountError::Follower)
            }
            () = stop.cancelled() => {
                mounted.unmount().await;
                info!(mountpoint = %mountpoint.display(), "unmounted");
                Ok(())
            }
        };
        follower.abort();
        keeping.iter().for_each(JoinHandle::abort);
        ended
    }
}

/// Ends when the time for waiting is over, and says how long that was.
async fn over(wait: Wait) -> Duration {
    match wait {
        Wait::ForEver => std::future::pending().await,
        Wait::AtMost(time) => {
            tokio::time::sleep(time).await;
            time
        }
    }
}

/// Tells the catalogue of copies that sent wrong bytes.
async fn report(mut wrong: mpsc::Receiver<WrongCopy>, catalog: Catalog) {
    while let Some(copy) = wrong.recv().await {
        let image = copy.image;
        if let Err(error) = catalog.report(copy).await {
            // Whoever reads it again meets it again.
            warn!(%image, %error, "the catalogue could not be told of wrong bytes");
        }
    }
}

/// Says which images are open here, so that their bytes are not deleted; and lets go of what nobody
/// has used for a while.
async fn hold(handles: Arc<Handles>, hosts: Arc<Hosts>, catalog: Catalog) {
    let session = SessionId::mint(clock::now());
    let mut told = false;
    loop {
        tokio::time::sleep(HOLD_EVERY).await;
        handles.rest();
        hosts.rest();
        let images = handles.images();
        // Nothing is told once, to take back what was.
        if !images.is_empty() || told {
            told = !images.is_empty();
            // Told again in time; the lease is three times as long.
            drop(catalog.hold(session, images).await);
        }
    }
}
