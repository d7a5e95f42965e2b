//! The mount: the library as a FUSE file system. It holds the whole namespace in memory, follows
//! the catalogue's feed, and reads bytes from whichever host has them. It knows nothing of pools'
//! directories, nor how the catalogue decides.
//!
//! [`Config`] → [`Mount::build`] (checks the mount point) → [`Mount::serve`].

mod adapter;
mod attr;
mod catalog;
mod clock;
mod contents;
mod errno;
mod error;
mod extents;
mod feed;
mod files;
mod follow;
mod guard;
mod handle;
mod health;
mod holders;
mod local;
mod mirror;
mod mountpoint;
mod notify;
mod process;
mod read_ahead;
mod recorder;
mod recording;
mod remote;
mod replicas;
mod session;
mod stage;
mod storing;
pub mod tree;
mod upload;
mod uploads;
mod writer;
mod writing;
mod xattr;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isotope_proto::cluster::Watcher;
use isotope_proto::id::SessionId;
use isotope_proto::pb::feed_service_client::FeedServiceClient;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};
use tracing::{info, warn};

use crate::adapter::Adapter;
pub use crate::attr::Owner;
use crate::catalog::Catalog;
use crate::files::Files;
use crate::follow::Follower;
pub use crate::guard::guard;
use crate::handle::Handles;
use crate::health::Health;
pub use crate::health::{Contact, FEED_ATTRIBUTE, FeedHealth};
use crate::mirror::Mirror;
pub use crate::mountpoint::{MountPointError, our_mounts, resolved};
use crate::notify::Notifications;
use crate::recorder::Recorder;
use crate::recording::Whose;
pub use crate::remote::Hosts;
pub use crate::replicas::Route;
pub use crate::storing::{Aborted, Storing};
use crate::tree::Tree;
use crate::uploads::Uploads;

/// All replicas together have so long to deliver one read; then the reader gets EIO.
const READ_DEADLINE: Duration = Duration::from_secs(10);
/// What is held open is told this often.
const HOLD_EVERY: Duration = Duration::from_secs(5);
/// A mount that has a snapshot waits so long for its catalogue: time for an answer, and from its own
/// start on for one that is being started with it. Then it shows what it has.
const ANSWER_MAX: Duration = Duration::from_millis(500);
/// The largest read asked of us: what the kernel's read-ahead is widened to.
const READ_REQUEST_BYTES: u32 = 1 << 20;

/// What a mount is started with.
#[derive(Debug, Clone)]
pub struct Config {
    pub mountpoint: PathBuf,
    pub catalog: Uri,
    /// This host's name, shown by `isotope status`.
    pub host: String,
    pub owner: Owner,
    /// The command that runs [`guard`], with the process id and the mount point appended to it;
    /// empty for none.
    pub guard: Vec<PathBuf>,
    /// The directory in which the mount keeps a recording of the library, to start from when the
    /// catalogue is away; none to keep nothing.
    pub snapshots: Option<PathBuf>,
}

/// Why a mount could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error(transparent)]
    MountPoint(#[from] MountPointError),
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
}

impl Mount {
    /// Checks the mount point, and clears a stale mount a killed process left there.
    ///
    /// # Errors
    /// When it is missing, in use or not empty, or FUSE cannot be used here.
    pub fn build(config: Config) -> Result<Self, MountError> {
        mountpoint::prepare(&config.mountpoint)?;
        Ok(Self { config })
    }

    /// Waits for the catalogue, but not long where there is a snapshot; mounts, says so on `ready`,
    /// and serves until `stop` is cancelled or somebody unmounts it.
    ///
    /// # Errors
    /// When mounting fails, or the kernel ends the session.
    pub async fn serve(
        self,
        stop: CancellationToken,
        ready: oneshot::Sender<()>,
    ) -> Result<(), MountError> {
        let channel = catalog::connect(Endpoint::from(self.config.catalog.clone()));
        let notifications = Notifications::default();
        let (following, first) = follow(&self.config, &channel, &notifications).await;
        let Following { mut follower, health } = following;
        let Config { mountpoint, catalog, host, owner, guard, .. } = self.config;
        let mirror = tokio::select! {
            mirror = first.tree(&health) => mirror?,
            () = stop.cancelled() => {
                follower.abort();
                return Ok(());
            }
        };
        let hosts = Arc::<Hosts>::default();
        let handles = Arc::new(Handles::new(Arc::clone(&mirror), Arc::clone(&hosts)));
        let uploads = Arc::<Uploads>::default();
        let client = Catalog::new(channel);
        let keeping = [
            tokio::spawn(Arc::clone(&uploads).keep(client.clone())),
            tokio::spawn(hold(Arc::clone(&handles), client.clone())),
        ];
        let files = Files { mirror, handles, uploads, hosts, catalog: client, host, owner, health };
        let adapter = Adapter { files, runtime: tokio::runtime::Handle::current() };
        let source = format!("isotope:{}", catalog.authority().map_or("", |it| it.as_str()));
        let mounted = session::mount(&mountpoint, &source, adapter, notifications);
        let mut mounted =
            mounted.map_err(|error| MountError::Mount { path: mountpoint.clone(), error })?;
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

/// The task that follows the feed, and what it knows of it.
struct Following {
    follower: JoinHandle<()>,
    health: Arc<Health>,
}

/// The tree to begin with.
struct First {
    begun: Instant,
    recorded: Option<Arc<Mirror>>,
    listed: oneshot::Receiver<Arc<Mirror>>,
}

/// Follows the feed, from where the recording ends if there is one.
async fn follow(
    config: &Config,
    channel: &Channel,
    notifications: &Notifications,
) -> (Following, First) {
    let begun = Instant::now();
    let health = Arc::new(Health::new(config.catalog.to_string(), begun));
    let (recorder, recorded) = match recorded(config).await {
        Ok(recorded) => recorded,
        Err(error) => {
            warn!(%error, "the next start needs the catalogue");
            health.set_unrecorded(Some(error));
            (None, None)
        }
    };
    let told = recorded.as_ref().map(|tree| tree.position);
    let recorded = recorded.map(|tree| Arc::new(Mirror::new(*tree, notifications.clone())));
    let (first, listed) = oneshot::channel();
    let follower = Follower {
        client: FeedServiceClient::new(channel.clone()),
        catalog: config.catalog.to_string(),
        watcher: Watcher {
            host: config.host.clone(),
            purpose: format!("mount {}", config.mountpoint.display()),
        },
        health: Arc::clone(&health),
        notifications: notifications.clone(),
        recorder,
        told,
        mirror: recorded.clone(),
        first: Some(first),
    };
    let follower = tokio::spawn(follower.run());
    (Following { follower, health }, First { begun, recorded, listed })
}

/// Where to record to, and what was recorded; or why nothing can be.
async fn recorded(config: &Config) -> Result<(Option<Recorder>, Option<Box<Tree>>), String> {
    let Some(dir) = config.snapshots.clone() else { return Ok((None, None)) };
    let whose = Whose {
        catalog: config.catalog.to_string(),
        mountpoint: config.mountpoint.display().to_string(),
    };
    let opened = tokio::task::spawn_blocking(move || recorder::open(&dir, whose, Instant::now()));
    let opened = opened.await.map_err(|error| error.to_string())?;
    let (recorder, replayed) = opened.map_err(|error| error.to_string())?;
    Ok((Some(recorder), replayed.map(|it| it.tree)))
}

impl First {
    /// Returns once there is something to show.
    async fn tree(self, health: &Health) -> Result<Arc<Mirror>, MountError> {
        let Some(mirror) = self.recorded else {
            return self.listed.await.map_err(|_| MountError::Follower);
        };
        let being_started = async {
            health.until_refused().await;
            tokio::time::sleep_until((self.begun + ANSWER_MAX).into()).await;
        };
        tokio::select! {
            biased;
            () = health.until(&[Contact::Following, Contact::CatchingUp]) => {
                // One that falls silent again is lost.
                health.until(&[Contact::Following, Contact::Lost]).await;
            }
            () = being_started => {}
            () = tokio::time::sleep(ANSWER_MAX) => {}
        }
        if !health.ever_followed() {
            let revision = mirror.position().revision;
            warn!(%revision, "the catalogue does not answer; the library is shown as it was recorded, read-only until it does");
        }
        Ok(mirror)
    }
}

/// Says which images are open here, so that their bytes are not deleted.
async fn hold(handles: Arc<Handles>, catalog: Catalog) {
    let session = SessionId::mint(clock::now());
    let mut told = false;
    loop {
        tokio::time::sleep(HOLD_EVERY).await;
        handles.rest();
        let images = handles.images();
        // Nothing is told once, to take back what was.
        if !images.is_empty() || told {
            told = !images.is_empty();
            // Told again in time; the lease is three times as long.
            drop(catalog.hold(session, images).await);
        }
    }
}
