//! How a mount begins: with the library that was recorded when it last ran, at once, or else with the
//! catalogue's list. Whichever it is, the feed is followed from there on.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isotope_proto::cluster::Watcher;
use isotope_proto::pb::feed_service_client::FeedServiceClient;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tracing::warn;

use crate::follow::Follower;
use crate::health::{Contact, Health};
use crate::mirror::Mirror;
use crate::notify::Notifications;
use crate::recorder::{self, Recorder};
use crate::recording::Whose;
use crate::tree::Tree;
use crate::{Config, MountError};

/// A mount that has a snapshot waits so long for its catalogue: time for an answer, and from its own
/// start on for one that is being started with it. Then it shows what it has.
const ANSWER_MAX: Duration = Duration::from_millis(500);

/// The task that follows the feed, and what it knows of it.
pub(crate) struct Following {
    pub(crate) follower: JoinHandle<()>,
    pub(crate) health: Arc<Health>,
}

/// The tree to begin with.
pub(crate) struct First {
    begun: Instant,
    recorded: Option<Arc<Mirror>>,
    listed: oneshot::Receiver<Arc<Mirror>>,
}

/// Follows the feed, from where the recording ends if there is one.
pub(crate) async fn follow(
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

fn whose(config: &Config) -> Whose {
    Whose {
        catalog: config.catalog.to_string(),
        mountpoint: config.mountpoint.display().to_string(),
    }
}

/// Where headers of images are kept: beside the recording, by the same name.
pub(crate) fn headers_dir(config: &Config) -> Option<PathBuf> {
    Some(config.snapshots.as_ref()?.join(format!("{}.headers", whose(config).file_name())))
}

/// Where to record to, and what was recorded; or why nothing can be.
async fn recorded(config: &Config) -> Result<(Option<Recorder>, Option<Box<Tree>>), String> {
    let Some(dir) = config.snapshots.clone() else { return Ok((None, None)) };
    let whose = whose(config);
    let opened = tokio::task::spawn_blocking(move || recorder::open(&dir, whose, Instant::now()));
    let opened = opened.await.map_err(|error| error.to_string())?;
    let (recorder, replayed) = opened.map_err(|error| error.to_string())?;
    Ok((Some(recorder), replayed.map(|it| it.tree)))
}

impl First {
    /// Returns once there is something to show.
    pub(crate) async fn tree(self, health: &Health) -> Result<Arc<Mirror>, MountError> {
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
