//! The agent's gRPC services: decode, call, encode; on the same port `http.rs` answers HTTP/1.1.

mod host;
mod read;

use std::sync::Arc;
use std::time::Duration;

use isotope_proto::id::{ImageId, NodeId, VolumeId};
use isotope_proto::pb::host_service_server::HostServiceServer;
use isotope_proto::pb::stage_service_server::{StageService, StageServiceServer};
use isotope_proto::pb::{
    StageData, StageDone, StageReply, StageRequest, StageSync, stage_reply, stage_request,
};
use isotope_proto::range::ByteRange;
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::wire::Malformed;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tonic::{Request, Response, Status, Streaming};

use crate::host::Host;
use crate::http;
use crate::http::ToldKey;
use crate::passing::Passing;
use crate::stage::Staged;
use crate::volumes::Volumes;

/// How long open reads get to end after a stop was asked for.
pub(crate) const DRAIN_MAX: Duration = Duration::from_secs(2);
/// HTTP/2 windows: below 1 MiB a fast network is clearly held back.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
const FRAME_BYTES: u32 = 1 << 20;
/// The largest write of a mount is 1 MiB.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Requests waiting for a slow disk, of one upload.
const WRITES_AHEAD: usize = 16;
const KEEPALIVE: Duration = Duration::from_secs(10);

pub(crate) fn server(shared: Host, passing: Arc<Passing>, url_key: Arc<ToldKey>) -> Router {
    let Host { volumes, node, .. } = shared.clone();
    let stage = StageServiceServer::new(Stage { volumes, node, passing });
    let services = Routes::new(HostServiceServer::new(host::Hosts(shared.clone())))
        .add_service(stage.max_decoding_message_size(MESSAGE_BYTES_MAX));
    let services = services.into_axum_router().merge(read::router(shared.clone())).into();
    Server::builder()
        .accept_http1(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_routes(http::beside(services, shared, url_key))
}

/// Whether somebody else may know better where the file is.
pub(crate) fn is_unknown(refusal: &Refusal) -> bool {
    matches!(refusal.reason, Reason::NotFound | Reason::Unavailable | Reason::Replaced)
}

/// Says nothing of the image: whoever asks may know an address that was another agent's before.
pub(crate) fn not_here(volume: VolumeId) -> Refusal {
    Refusal::new(Reason::Unavailable, format!("volume {volume} is not on this node"))
}

struct Stage {
    volumes: Volumes,
    node: NodeId,
    passing: Arc<Passing>,
}

#[tonic::async_trait]
impl StageService for Stage {
    type StageStream = ReceiverStream<Result<StageReply, Status>>;

    async fn stage(
        &self,
        request: Request<Streaming<StageRequest>>,
    ) -> Result<Response<Self::StageStream>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|first| first.request);
        let Some(stage_request::Request::Open(open)) = first else {
            return Err(Malformed::Missing("open").into());
        };
        let image = ImageId::try_from(&*open.image_id).map_err(Malformed::from)?;
        let volume = VolumeId::try_from(&*open.volume_id).map_err(Malformed::from)?;
        let volume = self.volumes.get(volume).ok_or_else(|| not_here(volume))?;
        let node = self.node;
        let created = tokio::task::spawn_blocking(move || Staged::create(volume, node, image));
        let staged = created.await.map_err(|error| Status::internal(error.to_string()))??;
        // Without one its bytes come over the network, as they do from other hosts.
        let passed = staged.descriptor().ok().map(|file| self.passing.offer(image, file));
        let (forward, queue) = mpsc::channel(WRITES_AHEAD);
        let (replies, stream) = mpsc::channel(WRITES_AHEAD);
        tokio::task::spawn_blocking(move || {
            serve_stage(staged, queue, &replies);
            drop(passed);
        });
        tokio::spawn(async move {
            // Ends with the stream, whether that ended or broke; then the queue ends, too.
            while let Ok(Some(request)) = requests.message().await {
                if forward.send(request).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// One upload's requests in turn, on a thread that may wait for the disk.
fn serve_stage(
    mut staged: Staged,
    mut queue: mpsc::Receiver<StageRequest>,
    replies: &mpsc::Sender<Result<StageReply, Status>>,
) {
    use stage_reply::Reply;
    while let Some(request) = queue.blocking_recv() {
        let reply =
            serve_one(&mut staged, request).unwrap_or_else(|refusal| Reply::Failed(refusal.into()));
        if replies.blocking_send(Ok(StageReply { reply: Some(reply) })).is_err() {
            return;
        }
    }
}

fn serve_one(staged: &mut Staged, request: StageRequest) -> Result<stage_reply::Reply, Refusal> {
    use stage_reply::Reply;
    use stage_request::Request as R;
    let range = |offset, length| {
        ByteRange::new(offset, length)
            .ok_or_else(|| Refusal::new(Reason::TooLarge, "the range is no range"))
    };
    let done = |()| Reply::Done(StageDone {});
    match request.request.ok_or(Malformed::Missing("request"))? {
        R::Open(_) => Err(Malformed::Missing("a request after open").into()),
        R::Write(write) => staged.write(write.offset_bytes, &write.data).map(done),
        R::Wrote(it) => staged.wrote(it.length_bytes).map(done),
        R::Truncate(to) => staged.truncate(to.size_bytes).map(done),
        R::Allocate(it) => staged.allocate(range(it.offset_bytes, it.length_bytes)?).map(done),
        R::Read(it) => {
            let data = staged.read(range(it.offset_bytes, it.length_bytes)?)?;
            Ok(Reply::Data(StageData { data }))
        }
        R::Sync(StageSync {}) => staged.sync().map(done),
        R::Seal(seal) => Ok(Reply::Sealed(staged.seal(&seal.filename)?.into())),
    }
}
