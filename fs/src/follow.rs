//! The feed → the tree: list, then watch. A feed that falls silent is lost; it is taken up again
//! where the tree stands, and the catalogue lists anew where it has to.

use std::sync::Arc;
use std::time::{Duration, Instant};

use isotope_proto::change::Change;
use isotope_proto::cluster::Watcher;
use isotope_proto::pb;
use isotope_proto::pb::feed_service_client::FeedServiceClient;
use isotope_proto::pb::watch_event::Event;
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::wire::Malformed;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tonic::transport::Channel;
use tracing::{info, warn};

use crate::feed::{Feed, Taken};
use crate::health::{Contact, Health};
use crate::mirror::{Mirror, Source};
use crate::notify::Notifications;
use crate::recorder::Recorder;
use crate::tree::{Position, Tree};

/// Heartbeats come every 250 ms; without any for so long the feed is lost.
const SILENCE_MAX: Duration = Duration::from_secs(2);
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// A piece of a list holds a thousand records of some 300 bytes; names may be long.
pub(crate) const MESSAGE_BYTES_MAX: usize = 16 << 20;

pub(crate) struct Follower {
    pub(crate) client: FeedServiceClient<Channel>,
    pub(crate) catalog: String,
    pub(crate) watcher: Watcher,
    pub(crate) health: Arc<Health>,
    pub(crate) notifications: Notifications,
    /// None: nothing is kept for the next start.
    pub(crate) recorder: Option<Recorder>,
    /// Up to where the feed itself has told. The tree may be further, by changes of our own; these
    /// are asked for again, for the recording has yet to get them.
    pub(crate) told: Option<Position>,
    /// Made with the first whole list, or from a recording.
    pub(crate) mirror: Option<Arc<Mirror>>,
    pub(crate) first: Option<oneshot::Sender<Arc<Mirror>>>,
}

impl Follower {
    /// For as long as the mount lives.
    pub(crate) async fn run(mut self) {
        let mut wait = RETRY_MIN;
        let mut reported = None;
        loop {
            let Err(ended) = self.follow(&mut wait).await else { continue };
            self.health.set(Contact::Lost, Some(ended.to_string()), Instant::now());
            // Said once, not with every try.
            if reported.as_ref() != Some(&ended.text) {
                if self.mirror.is_none() {
                    warn!(catalog = self.catalog, reason = %ended, "waiting for the catalogue");
                } else {
                    warn!(catalog = self.catalog, reason = %ended, "the feed is lost; reading and listing go on from memory");
                }
                reported = Some(ended.text);
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    /// Follows one stream until it ends, and says why it did; well only if another is wanted at
    /// once.
    async fn follow(&mut self, wait: &mut Duration) -> Result<(), Refusal> {
        let request = pb::WatchRequest {
            incarnation: self.told.map(|it| it.incarnation.into()).unwrap_or_default(),
            after_revision: self.told.map_or(0, |it| it.revision.0),
            watcher: Some(self.watcher.clone().into()),
        };
        let silent = |_| {
            let text = format!("no word from it for {} s", SILENCE_MAX.as_secs());
            Refusal::new(Reason::TimedOut, text)
        };
        let mut client = self.client.clone().max_decoding_message_size(MESSAGE_BYTES_MAX);
        let mut events =
            timeout(SILENCE_MAX, client.watch(request)).await.map_err(silent)??.into_inner();
        let mut feed = Feed::default();
        while let Some(event) = timeout(SILENCE_MAX, events.message()).await.map_err(silent)?? {
            let Some(event) = event.event else { continue };
            let up_to_date = self.take(event, &mut feed)?;
            if up_to_date && self.health.contact() != Contact::Following {
                let revision = self.told.map_or(0, |it| it.revision.0);
                info!(catalog = self.catalog, revision, "following the catalogue");
                self.health.set(Contact::Following, None, Instant::now());
                *wait = RETRY_MIN;
            } else if self.health.contact() == Contact::Lost {
                self.health.set(Contact::CatchingUp, None, Instant::now());
            }
            if up_to_date && self.wants_list() {
                info!(catalog = self.catalog, "listing anew, for the recording has grown long");
                self.told = None;
                return Ok(());
            }
        }
        Err(Refusal::new(Reason::Unavailable, "the catalogue closed the feed"))
    }

    fn wants_list(&self) -> bool {
        self.recorder.as_ref().is_some_and(|recorder| recorder.wants_list(Instant::now()))
    }

    /// Takes in an event. True if the catalogue has told all there is.
    fn take(&mut self, event: Event, feed: &mut Feed) -> Result<bool, Refusal> {
        let event = match &mut self.recorder {
            Some(recorder) => {
                let event = recorder.record(event, Instant::now());
                let failed = recorder.has_failed();
                let why = failed.then(|| "the disk is full, failing, or too slow".to_owned());
                self.health.set_unrecorded(why);
                event
            }
            None => event,
        };
        match (feed.take(event.try_into()?)?, &self.mirror) {
            (Taken::Part, _) => return Ok(false),
            (Taken::Listed(tree), _) => {
                self.told = Some(tree.position);
                self.listed(*tree);
                return Ok(false);
            }
            (Taken::Change(change), Some(mirror)) => {
                if !mirror.apply(&change, Source::Feed) {
                    // Cannot happen while the catalogue keeps its word; listing anew mends it.
                    self.told = None;
                    return Err(Refusal::new(Reason::Storage, "the feed has a gap"));
                }
                let Change { incarnation, revision, .. } = change;
                self.told = Some(Position { incarnation, revision });
                return Ok(false);
            }
            (Taken::Live(live), Some(mirror)) => mirror.set_live(live),
            (Taken::Change(_) | Taken::Live(_), None) => {
                return Err(Malformed::Missing("list").into());
            }
            (Taken::Heartbeat, _) => {}
        }
        Ok(self.mirror.is_some())
    }

    fn listed(&mut self, tree: Tree) {
        if let Some(mirror) = &self.mirror {
            mirror.replace(tree);
            return;
        }
        let mirror = Arc::new(Mirror::new(tree, self.notifications.clone()));
        self.mirror = Some(Arc::clone(&mirror));
        if let Some(first) = self.first.take() {
            // Nobody waits any more if the mount was stopped meanwhile.
            let _ = first.send(mirror);
        }
    }
}
