//! The agents of all hosts, as this process reaches them: what is known of each, and how to come to
//! one. Ranges of bytes are `fetch.rs`'s, files being stored `stage.rs`'s.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use isotope_proto::id::{ImageId, VolumeId};
use isotope_proto::pb::stage_service_client::StageServiceClient;
use isotope_proto::pb::{StageReply, StageRequest};
use isotope_proto::range::ByteRange;
use isotope_proto::refusal::{Reason, Refusal};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};
use tracing::{info, warn};

use crate::channel::Channels;
use crate::error::FsError;
use crate::replicas::{Health, Route};
use crate::tally::Tally;

const CONNECT_MAX: Duration = Duration::from_secs(2);
/// HTTP/2 pings find a host that has gone without a word: an agent answers them whatever its disks
/// do.
const PING_EVERY: Duration = Duration::from_secs(2);
const PING_MAX: Duration = Duration::from_secs(5);
/// An agent makes the staged file before it answers.
const STAGE_OPEN_MAX: Duration = Duration::from_secs(10);
/// HTTP/2 windows and frames; the receiver's frame size is the one in force.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
const FRAME_BYTES: u32 = 1 << 20;
/// How often a host that failed is asked whether it is back: at first, and at last.
const PROBE_MIN: Duration = Duration::from_secs(1);
const PROBE_MAX: Duration = Duration::from_secs(5);
/// A host that is back answers at once.
const PROBE_WAIT: Duration = Duration::from_secs(1);
/// Reports of wrong copies waiting for the catalogue; each copy is reported once in ten minutes.
const REPORTS_MAX: usize = 64;

/// The agents of all hosts, as this process reaches them.
#[derive(Default)]
pub struct Hosts {
    stages: Mutex<HashMap<String, Channel>>,
    shared: Arc<Shared>,
    reports: Option<mpsc::Sender<WrongCopy>>,
    pub(crate) tally: Tally,
}

/// What those who look whether a host is back need as well.
#[derive(Default)]
struct Shared {
    channels: Channels,
    health: Mutex<Health>,
}

/// A file that sent bytes which are not its image's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WrongCopy {
    pub(crate) image: ImageId,
    pub(crate) volume: VolumeId,
    pub(crate) address: String,
    pub(crate) range: ByteRange,
}

impl Shared {
    fn with_health<T>(&self, look: impl FnOnce(&mut Health) -> T) -> T {
        look(&mut self.health.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Hosts {
    /// The same, with somebody to hear of copies that sent wrong bytes.
    pub(crate) fn reporting(tally: Tally) -> (Self, mpsc::Receiver<WrongCopy>) {
        let (reports, heard) = mpsc::channel(REPORTS_MAX);
        (Self { reports: Some(reports), tally, ..Self::default() }, heard)
    }

    pub(crate) fn with_health<T>(&self, look: impl FnOnce(&mut Health) -> T) -> T {
        self.shared.with_health(look)
    }

    pub(crate) fn channels(&self) -> &Channels {
        &self.shared.channels
    }

    pub(crate) fn rest(&self) {
        self.shared.channels.rest();
    }

    pub(crate) fn report(&self, route: &Route, range: ByteRange) {
        let Route { image, volume, address } = route.clone();
        if let Some(reports) = &self.reports {
            // Without room it is reported another time: others see it, too.
            let _ = reports.try_send(WrongCopy { image, volume, address, range });
        }
    }

    /// A host that failed is asked last from now on; by itself it is looked whether it is back.
    pub(crate) fn distrust(&self, address: &str, why: &str) {
        if !self.with_health(|health| health.failed(address, Instant::now())) {
            return;
        }
        self.tally.host_lost();
        warn!(address, why, "a host is passed over until it answers again");
        let (shared, address) = (Arc::downgrade(&self.shared), address.to_owned());
        tokio::spawn(async move {
            let mut wait = PROBE_MIN;
            loop {
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(PROBE_MAX);
                let Some(shared) = shared.upgrade() else { return };
                let back = timeout(PROBE_WAIT, shared.channels.ping(&address)).await;
                // A reader that had no other choice may have found it back.
                let well = shared.with_health(|health| health.bad_since(&address).is_none());
                if well || matches!(back, Ok(Ok(()))) {
                    shared.with_health(|health| health.succeeded(&address, Instant::now()));
                    info!(address, "a host answers again");
                    return;
                }
            }
        });
    }

    fn stage_channel(&self, address: &str) -> Result<Channel, Refusal> {
        let mut channels = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| {
            Refusal::new(Reason::Unavailable, format!("{address} is no address of an agent"))
        })?;
        let channel = endpoint
            .connect_timeout(CONNECT_MAX)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_MAX)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES)
            .connect_lazy();
        channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }

    /// Opens the stream on which a file is stored.
    pub(crate) async fn stage(
        &self,
        address: &str,
        requests: ReceiverStream<StageRequest>,
    ) -> Result<Streaming<StageReply>, FsError> {
        let mut client = StageServiceClient::new(self.stage_channel(address)?);
        let opened = timeout(STAGE_OPEN_MAX, client.stage(requests)).await;
        let opened = opened.map_err(|_| FsError::TimedOut)?.map_err(Refusal::from);
        Ok(opened
            .map_err(|refusal| match refusal.reason {
                // Not the catalogue: the host that was to store it.
                Reason::Unavailable => FsError::Unreachable(refusal.text),
                _ => refusal.into(),
            })?
            .into_inner())
    }
}
