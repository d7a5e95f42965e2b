//! A replica on another host: ranges of it, over one kept connection a host. Whoever asks sets
//! the deadline; a silent host ends an attempt, not the read.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use isotope_proto::pb::content_service_client::ContentServiceClient;
use isotope_proto::pb::stage_service_client::StageServiceClient;
use isotope_proto::pb::{ReadChunk, ReadRequest, StageReply, StageRequest};
use isotope_proto::range::ByteRange;
use isotope_proto::refusal::{Reason, Refusal};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};
use tracing::debug;

use crate::error::FsError;
use crate::replicas::{Health, Route};

/// A host that sends nothing for so long has failed this attempt.
const SILENCE_MAX: Duration = Duration::from_secs(2);
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// HTTP/2 pings find a host that has gone without a word: an agent answers them whatever its disks
/// do.
const PING_EVERY: Duration = Duration::from_secs(2);
const PING_MAX: Duration = Duration::from_secs(5);
/// An agent makes the staged file before it answers.
const STAGE_OPEN_MAX: Duration = Duration::from_secs(10);
/// Between two rounds over all replicas.
const ROUND_PAUSE: Duration = Duration::from_millis(200);
/// HTTP/2 windows and frames; the receiver's frame size is the one in force.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
const FRAME_BYTES: u32 = 1 << 20;
/// One piece of a stream: agents send 256 KiB.
const MESSAGE_BYTES_MAX: usize = 2 << 20;

/// The agents of all hosts, as this process reaches them.
#[derive(Default)]
pub struct Hosts {
    channels: Mutex<HashMap<String, Channel>>,
    health: Mutex<Health>,
}

impl Hosts {
    pub(crate) fn with_health<T>(&self, look: impl FnOnce(&mut Health) -> T) -> T {
        look(&mut self.health.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn channel(&self, address: &str) -> Result<Channel, Refusal> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// Begins to read a range; the pieces follow in order.
    ///
    /// # Errors
    /// As the agent refuses, or `TimedOut` and `Unavailable` when it does not answer.
    pub async fn open(
        &self,
        route: &Route,
        range: ByteRange,
    ) -> Result<Streaming<ReadChunk>, Refusal> {
        let mut client = ContentServiceClient::new(self.channel(&route.address)?)
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let request = ReadRequest {
            image_id: route.image.into(),
            volume_id: route.volume.into(),
            offset_bytes: range.start(),
            length_bytes: range.len(),
        };
        let stream =
            timeout(SILENCE_MAX, client.read(request)).await.map_err(|_| silent(route))??;
        Ok(stream.into_inner())
    }

    /// Opens the stream on which a file is stored.
    pub(crate) async fn stage(
        &self,
        address: &str,
        requests: ReceiverStream<StageRequest>,
    ) -> Result<Streaming<StageReply>, FsError> {
        let mut client = StageServiceClient::new(self.channel(address)?);
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

    /// The next piece of an opened range; `None` at its end.
    ///
    /// # Errors
    /// As [`Hosts::open`].
    pub async fn next(
        &self,
        route: &Route,
        stream: &mut Streaming<ReadChunk>,
    ) -> Result<Option<Bytes>, Refusal> {
        let chunk = timeout(SILENCE_MAX, stream.message()).await.map_err(|_| silent(route))??;
        Ok(chunk.map(|chunk| chunk.data))
    }

    /// A whole range from one host: exactly its bytes, or an error.
    async fn fetch(&self, route: &Route, range: ByteRange) -> Result<Bytes, Refusal> {
        let mut stream = self.open(route, range).await?;
        let wanted = usize::try_from(range.len()).unwrap_or(usize::MAX);
        let mut all = BytesMut::with_capacity(wanted);
        while let Some(piece) = self.next(route, &mut stream).await? {
            all.extend_from_slice(&piece);
        }
        if all.len() == wanted {
            Ok(all.freeze())
        } else {
            let text = format!("{} sent {} bytes of {wanted}", route.address, all.len());
            Err(Refusal::new(Reason::Storage, text))
        }
    }

    /// A whole range from the first host that delivers it. `routes` is asked anew for each round,
    /// for hosts come back; rounds go on until the caller's deadline ends them, unless every
    /// replica says that the bytes are no longer those.
    pub(crate) async fn fetch_any(
        &self,
        routes: impl Fn() -> Vec<Route>,
        range: ByteRange,
    ) -> Result<Bytes, FsError> {
        loop {
            let round = routes();
            let mut verdicts = Vec::with_capacity(round.len());
            for route in &round {
                match self.fetch(route, range).await {
                    Ok(bytes) => {
                        self.with_health(|health| health.succeeded(&route.address));
                        return Ok(bytes);
                    }
                    Err(refusal) => {
                        debug!(address = route.address, image = %route.image, reason = %refusal, "replica passed over");
                        if is_the_hosts(refusal.reason) {
                            self.with_health(|it| it.failed(&route.address, Instant::now()));
                        }
                        verdicts.push(refusal);
                    }
                }
            }
            if let Some(error) = final_verdict(verdicts) {
                return Err(error);
            }
            tokio::time::sleep(ROUND_PAUSE).await;
        }
    }
}

fn silent(route: &Route) -> Refusal {
    let text = format!("{} did not answer for {} s", route.address, SILENCE_MAX.as_secs());
    Refusal::new(Reason::TimedOut, text)
}

/// Whether a failure is the host's, and not this image's alone.
fn is_the_hosts(reason: Reason) -> bool {
    matches!(reason, Reason::Unavailable | Reason::TimedOut | Reason::Busy)
}

/// What a round means when asking again would not help; an image's bytes that every replica has
/// lost or changed do not come back by waiting.
fn final_verdict(verdicts: Vec<Refusal>) -> Option<FsError> {
    if verdicts.is_empty() || verdicts.iter().any(|it| is_the_hosts(it.reason)) {
        return None;
    }
    if verdicts.iter().any(|it| it.reason == Reason::Replaced) {
        return Some(FsError::Replaced);
    }
    let texts: Vec<String> = verdicts.into_iter().map(|it| it.text).collect();
    Some(FsError::Unreachable(texts.join("; ")))
}
