//! The agent's gRPC service: decode, call, encode.

use std::sync::Arc;
use std::time::Duration;

use isotope_proto::id::{ImageId, VolumeId};
use isotope_proto::pb::content_service_server::{ContentService, ContentServiceServer};
use isotope_proto::pb::{ReadChunk, ReadRequest};
use isotope_proto::range::ByteRange;
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::wire::Malformed;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tonic::{Request, Response, Status};

use crate::{Volumes, content};

/// How long open reads get to end after a stop was asked for.
pub(crate) const DRAIN_MAX: Duration = Duration::from_secs(2);
/// HTTP/2 windows: below 1 MiB a fast network is clearly held back.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
const FRAME_BYTES: u32 = 1 << 20;
const KEEPALIVE: Duration = Duration::from_secs(10);

pub(crate) fn server(volumes: Volumes) -> Router {
    Server::builder()
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(ContentServiceServer::new(Content { volumes }))
}

struct Content {
    volumes: Volumes,
}

#[tonic::async_trait]
impl ContentService for Content {
    type ReadStream =
        std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<ReadChunk, Status>> + Send>>;

    async fn read(
        &self,
        request: Request<ReadRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let image = ImageId::try_from(&*request.image_id).map_err(Malformed::from)?;
        let volume = VolumeId::try_from(&*request.volume_id).map_err(Malformed::from)?;
        let range = ByteRange::new(request.offset_bytes, request.length_bytes)
            .ok_or_else(|| Refusal::new(Reason::OutOfRange, "the range is no range"))?;
        let volume = self.volumes.get(&volume).ok_or_else(|| {
            Refusal::new(Reason::NotFound, format!("volume {volume} is not on this node"))
        })?;
        let pieces = content::read(Arc::clone(volume), image, range).await?;
        let chunk = |piece: Result<_, Refusal>| Ok(ReadChunk { data: piece? });
        Ok(Response::new(Box::pin(ReceiverStream::new(pieces).map(chunk))))
    }
}
