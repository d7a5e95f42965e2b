//! One watcher's stream: list where needed, then changes in order, what is live, and heartbeats.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use isotope_proto::cluster::Watcher;
use isotope_proto::id::{ImageId, Incarnation, Revision, SessionId, VolumeId};
use isotope_proto::pb::feed_service_server::FeedService;
use isotope_proto::pb::{self, watch_event::Event};
use isotope_proto::wire::Malformed;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::warn;

use super::STREAM_MAX;
use crate::Core;
use crate::verifying::suspect;

/// A watcher that hears nothing for a few of these knows that it is cut off.
const HEARTBEAT: Duration = Duration::from_millis(250);
/// Changes read from the log at once.
const CATCH_UP_MAX: u32 = 256;
/// A watcher that takes nothing for so long is dropped; it lists again when it is back.
const SEND_MAX: Duration = Duration::from_secs(10);
/// Pieces of a list read ahead of the watcher.
const PIECES_AHEAD: usize = 2;

pub(super) struct Watches(pub(super) Core);

#[tonic::async_trait]
impl FeedService for Watches {
    type WatchStream = ReceiverStream<Result<pb::WatchEvent, Status>>;

    async fn watch(
        &self,
        request: Request<pb::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        let incarnation = Incarnation::try_from(&*request.incarnation).ok();
        let after = Revision(request.after_revision);
        let watcher = request.watcher.map(Into::into);
        let (out, stream) = mpsc::channel(STREAM_MAX);
        let watch = Watch { core: self.0.clone(), out, position: after };
        tokio::spawn(watch.run(incarnation, watcher));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn hold(
        &self,
        request: Request<pb::HoldRequest>,
    ) -> Result<Response<pb::HoldReply>, Status> {
        let request = request.into_inner();
        let session = SessionId::try_from(&*request.session_id).map_err(Malformed::from)?;
        let images = request.image_ids.iter();
        let images = images.map(|id| ImageId::try_from(&**id).map_err(Malformed::from));
        let images: HashSet<ImageId> = images.collect::<Result<_, _>>()?;
        self.0.leases.hold(session, images, Instant::now());
        Ok(Response::new(pb::HoldReply {}))
    }

    async fn report_wrong_copy(
        &self,
        request: Request<pb::ReportWrongCopyRequest>,
    ) -> Result<Response<pb::ReportWrongCopyReply>, Status> {
        let request = request.into_inner();
        let image = ImageId::try_from(&*request.image_id).map_err(Malformed::from)?;
        let volume = VolumeId::try_from(&*request.volume_id).map_err(Malformed::from)?;
        let (address, offset_bytes) = (request.address, request.offset_bytes);
        warn!(%image, %volume, ?address, offset_bytes, "a mount got wrong bytes of an image; the file is read whole");
        suspect(&self.0, image, volume);
        Ok(Response::new(pb::ReportWrongCopyReply {}))
    }
}

/// Why a stream ended.
enum End {
    /// The watcher went away, or is too slow.
    Gone,
    Failed(Status),
}

impl<E: Into<Status>> From<E> for End {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

struct Watch {
    core: Core,
    out: mpsc::Sender<Result<pb::WatchEvent, Status>>,
    /// Everything up to here was sent.
    position: Revision,
}

impl Watch {
    async fn run(mut self, incarnation: Option<Incarnation>, watcher: Option<Watcher>) {
        let name = match &watcher {
            Some(it) => format!("{} on {}", it.purpose, it.host),
            None => "an agent".to_owned(),
        };
        let _presence = watcher.map(|watcher| self.core.feed.arrive(watcher));
        match self.stream(incarnation).await {
            Ok(()) | Err(End::Gone) => {}
            Err(End::Failed(status)) => {
                warn!(watcher = name, error = status.message(), "watch failed");
                let _ = self.out.try_send(Err(status));
            }
        }
    }

    async fn send(&self, event: Event) -> Result<(), End> {
        let event = pb::WatchEvent { event: Some(event) };
        match timeout(SEND_MAX, self.out.send(Ok(event))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(End::Gone),
        }
    }

    async fn stream(&mut self, incarnation: Option<Incarnation>) -> Result<(), End> {
        // Subscribed before the list is read, so that nothing falls between the two.
        let mut life = self.core.feed.life();
        let mut changes = self.core.feed.subscribe();
        let mut live = self.core.nodes.live();
        let ours = incarnation == Some(self.core.feed.incarnation());
        if !ours || self.position > self.core.feed.newest() {
            self.list().await?;
        }
        self.catch_up().await?;
        live.mark_changed();
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                change = changes.recv() => match change {
                    Ok(change) if change.revision <= self.position => {}
                    Ok(change) if change.revision == self.position.next() => {
                        self.send(Event::Change((*change).clone().into())).await?;
                        self.position = change.revision;
                    }
                    Ok(_) | Err(RecvError::Lagged(_)) => self.catch_up().await?,
                    Err(RecvError::Closed) => return Ok(()),
                },
                Ok(()) = live.changed() => {
                    let now = live.borrow_and_update().clone();
                    self.send(Event::Live(now.into())).await?;
                }
                _ = heartbeat.tick() => {
                    let revision = self.core.feed.newest().0;
                    self.send(Event::Heartbeat(pb::Heartbeat { revision })).await?;
                }
                // Another library: the watcher comes again, and is told so.
                _ = life.changed() => return Ok(()),
                () = self.core.shutdown.cancelled() => return Ok(()),
                () = self.out.closed() => return Ok(()),
            }
        }
    }

    /// Sends what the log holds after the position; the whole library if that is not all.
    async fn catch_up(&mut self) -> Result<(), End> {
        loop {
            match self.core.store.changes_after(self.position, CATCH_UP_MAX).await? {
                Some(changes) if changes.is_empty() => {
                    // An empty log behind the newest revision has been cleared.
                    if self.position >= self.core.feed.newest() {
                        return Ok(());
                    }
                    self.list().await?;
                }
                Some(changes) => {
                    for change in changes {
                        self.position = change.revision;
                        self.send(Event::Change(change.into())).await?;
                    }
                }
                None => self.list().await?,
            }
        }
    }

    async fn list(&mut self) -> Result<(), End> {
        let (pieces, mut read) = mpsc::channel(PIECES_AHEAD);
        let (begin, begun) = oneshot::channel();
        let store = self.core.store.clone();
        let listing = tokio::spawn(async move { store.list(pieces, begin).await });
        if let Ok((revision, inodes)) = begun.await {
            let incarnation = self.core.feed.incarnation().into();
            let reset = pb::Reset { incarnation, revision: revision.0, inodes };
            self.send(Event::Reset(reset)).await?;
            self.position = revision;
        }
        while let Some(piece) = read.recv().await {
            let records = piece.into_iter().map(Into::into).collect();
            self.send(Event::Records(pb::Records { records })).await?;
        }
        listing.await.map_err(|error| Status::internal(error.to_string()))??;
        self.send(Event::Listed(pb::Listed {})).await
    }
}
