//! The feed → the tree: list, then watch. A feed that falls silent is lost; it is taken up again
//! where the tree stands, and the catalogue lists anew where it has to.

use std::sync::Arc;
use std::time::Duration;

use isotope_proto::change::{Change, Record};
use isotope_proto::cluster::{Live, Watcher};
use isotope_proto::id::{Incarnation, Revision};
use isotope_proto::pb;
use isotope_proto::pb::feed_service_client::FeedServiceClient;
use isotope_proto::pb::watch_event::Event;
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::wire::Malformed;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tonic::transport::Channel;
use tracing::{info, warn};

use crate::mirror::{Mirror, Source};
use crate::notify::Notifications;
use crate::tree::{Position, Tree};

/// Heartbeats come every 250 ms; without any for so long the feed is lost.
const SILENCE_MAX: Duration = Duration::from_secs(2);
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// A piece of a list holds a thousand records of some 300 bytes; names may be long.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Whether the mount hears the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contact {
    Following,
    Lost,
}

pub(crate) struct Follower {
    pub(crate) client: FeedServiceClient<Channel>,
    pub(crate) catalog: String,
    pub(crate) watcher: Watcher,
    pub(crate) contact: Contact,
    pub(crate) notifications: Notifications,
    /// Made with the first whole list.
    pub(crate) mirror: Option<Arc<Mirror>>,
    pub(crate) first: Option<oneshot::Sender<Arc<Mirror>>>,
}

impl Follower {
    /// For as long as the mount lives.
    pub(crate) async fn run(mut self) {
        let mut wait = RETRY_MIN;
        let mut reported = None;
        loop {
            let ended = self.follow(&mut wait).await;
            self.contact = Contact::Lost;
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

    /// Follows one stream until it ends, and says why it did.
    async fn follow(&mut self, wait: &mut Duration) -> Refusal {
        match self.stream(wait).await {
            Ok(()) => Refusal::new(Reason::Unavailable, "the catalogue closed the feed"),
            Err(refusal) => refusal,
        }
    }

    async fn stream(&mut self, wait: &mut Duration) -> Result<(), Refusal> {
        let position = self.mirror.as_ref().map(|mirror| mirror.position());
        let request = pb::WatchRequest {
            incarnation: position.map(|it| it.incarnation.into()).unwrap_or_default(),
            after_revision: position.map_or(0, |it| it.revision.0),
            watcher: Some(self.watcher.clone().into()),
        };
        let silent = |_| {
            let text = format!("no word from it for {} s", SILENCE_MAX.as_secs());
            Refusal::new(Reason::TimedOut, text)
        };
        let mut client = self.client.clone().max_decoding_message_size(MESSAGE_BYTES_MAX);
        let mut events =
            timeout(SILENCE_MAX, client.watch(request)).await.map_err(silent)??.into_inner();
        let mut list: Option<Tree> = None;
        while let Some(event) = timeout(SILENCE_MAX, events.message()).await.map_err(silent)?? {
            let Some(event) = event.event else { continue };
            self.take(event, &mut list)?;
            if list.is_none() && self.mirror.is_some() && self.contact == Contact::Lost {
                info!(catalog = self.catalog, revision = %self.revision(), "following the catalogue");
                self.contact = Contact::Following;
                *wait = RETRY_MIN;
            }
        }
        Ok(())
    }

    fn revision(&self) -> Revision {
        self.mirror.as_ref().map_or(Revision(0), |mirror| mirror.revision())
    }

    fn take(&mut self, event: Event, list: &mut Option<Tree>) -> Result<(), Refusal> {
        match event {
            Event::Reset(reset) => {
                let incarnation =
                    Incarnation::try_from(&*reset.incarnation).map_err(Malformed::from)?;
                let revision = Revision(reset.revision);
                *list = Some(Tree::new(Position { incarnation, revision }));
            }
            Event::Records(records) => {
                let tree = list.as_mut().ok_or(Malformed::Missing("reset"))?;
                for record in records.records {
                    tree.load(Record::try_from(record)?);
                }
            }
            Event::Listed(pb::Listed {}) => {
                self.listed(list.take().ok_or(Malformed::Missing("reset"))?);
            }
            Event::Change(change) => {
                let mirror = self.mirror.as_ref().ok_or(Malformed::Missing("list"))?;
                if !mirror.apply(&Change::try_from(change)?, Source::Feed) {
                    // Cannot happen while the catalogue keeps its word; listing anew mends it.
                    return Err(Refusal::new(Reason::Storage, "the feed has a gap"));
                }
            }
            Event::Live(live) => {
                if let Some(mirror) = &self.mirror {
                    mirror.set_live(Live::try_from(live)?);
                }
            }
            Event::Heartbeat(pb::Heartbeat { .. }) => {}
        }
        Ok(())
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
