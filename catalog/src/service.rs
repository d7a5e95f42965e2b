//! The catalogue's gRPC services, and HTTP beside them: decode, call, encode. No rule lives here.

mod agents;
mod backup;
mod cluster;
mod feed;
mod http;
mod library;
mod uploads;

use std::time::Duration;

use isotope_proto::pb::agent_service_server::AgentServiceServer;
use isotope_proto::pb::cluster_service_server::ClusterServiceServer;
use isotope_proto::pb::feed_service_server::FeedServiceServer;
use isotope_proto::pb::library_service_server::LibraryServiceServer;
use isotope_proto::pb::upload_service_server::UploadServiceServer;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Router;

use crate::Core;

/// A peer that answers no HTTP/2 ping for so long is gone.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages waiting for one slow client; then its stream waits.
const STREAM_MAX: usize = 32;
/// Largest message taken in: a report of `FILE_CHANGES_MAX` files is a fraction of it.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

pub(crate) fn server(core: &Core) -> Router {
    let library = LibraryServiceServer::new(library::Library(core.clone()));
    let feed = FeedServiceServer::new(feed::Watches(core.clone()));
    let cluster = ClusterServiceServer::new(cluster::Cluster(core.clone()));
    let uploads = UploadServiceServer::new(uploads::Uploads(core.clone()));
    let agents = AgentServiceServer::new(agents::Agents(core.clone()));
    let services = Routes::new(library.max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(feed)
        .add_service(cluster)
        .add_service(uploads)
        .add_service(agents.max_decoding_message_size(MESSAGE_BYTES_MAX));
    Server::builder()
        .accept_http1(true)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_routes(http::beside(services, core.clone()))
}
