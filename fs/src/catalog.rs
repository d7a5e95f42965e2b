//! The mount's one client of the catalogue: changes to the tree, each with a deadline and an
//! idempotency key, so that an answer that got lost can be asked for again.

use std::time::Duration;

use isotope_proto::change::Change;
use isotope_proto::id::{Ino, RequestId};
use isotope_proto::name::EntryName;
use isotope_proto::pb;
use isotope_proto::pb::library_service_client::LibraryServiceClient;
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::tree::{FolderRef, Place, RenameMode};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::clock;
use crate::error::FsError;

/// A change of the namespace ends within this.
pub(crate) const CHANGE_DEADLINE: Duration = Duration::from_secs(2);
/// Between two tries of one change.
const RETRY: Duration = Duration::from_millis(100);
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// HTTP/2 pings find a catalogue that has gone without a word.
const KEEPALIVE: Duration = Duration::from_secs(2);

/// A connection that is made when first used, and again when lost.
pub(crate) fn connect(endpoint: Endpoint) -> Channel {
    endpoint
        .connect_timeout(CONNECT_MAX)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .connect_lazy()
}

/// Clones share the connection.
#[derive(Clone)]
pub(crate) struct Catalog {
    client: LibraryServiceClient<Channel>,
}

fn place(folder: Ino, name: &EntryName) -> Option<pb::Place> {
    Some(Place { folder: FolderRef::Ino(folder), name: name.clone() }.into())
}

/// A key for one change, however often it is sent.
fn request_id() -> Vec<u8> {
    RequestId::mint(clock::now()).into()
}

impl Catalog {
    pub(crate) fn new(channel: Channel) -> Self {
        Self { client: LibraryServiceClient::new(channel) }
    }

    pub(crate) async fn make_folder(
        &self,
        parent: Ino,
        name: &EntryName,
        mode: u32,
    ) -> Result<Change, FsError> {
        let request = pb::MakeFolderRequest {
            request_id: request_id(),
            place: place(parent, name),
            mode: Some(mode & 0o7777),
        };
        let send = |mut client: LibraryServiceClient<Channel>| {
            let request = request.clone();
            async move { client.make_folder(request).await }
        };
        self.until_answered(send).await
    }

    pub(crate) async fn remove_folder(
        &self,
        parent: Ino,
        name: &EntryName,
    ) -> Result<Change, FsError> {
        let request =
            pb::RemoveFolderRequest { request_id: request_id(), place: place(parent, name) };
        let send = |mut client: LibraryServiceClient<Channel>| {
            let request = request.clone();
            async move { client.remove_folder(request).await }
        };
        self.until_answered(send).await
    }

    pub(crate) async fn rename(
        &self,
        from: (Ino, &EntryName),
        to: (Ino, &EntryName),
        mode: RenameMode,
    ) -> Result<Change, FsError> {
        let request = pb::RenameRequest {
            request_id: request_id(),
            from: place(from.0, from.1),
            to: place(to.0, to.1),
            mode: pb::RenameMode::from(mode).into(),
        };
        let send = |mut client: LibraryServiceClient<Channel>| {
            let request = request.clone();
            async move { client.rename(request).await }
        };
        self.until_answered(send).await
    }

    /// Sends a change until it is answered or its deadline has come. Only a lost answer is asked
    /// for again: a refusal is an answer.
    async fn until_answered<F>(
        &self,
        send: impl Fn(LibraryServiceClient<Channel>) -> F,
    ) -> Result<Change, FsError>
    where
        F: Future<Output = Result<Response<pb::Change>, Status>>,
    {
        let deadline = Instant::now() + CHANGE_DEADLINE;
        let mut last = FsError::TimedOut;
        loop {
            let refusal = match timeout_at(deadline, send(self.client.clone())).await {
                Err(_) => return Err(last),
                Ok(Ok(change)) => {
                    return Change::try_from(change.into_inner())
                        .map_err(|error| FsError::Storage(error.to_string()));
                }
                Ok(Err(status)) => Refusal::from(status),
            };
            if refusal.reason != Reason::Unavailable {
                return Err(refusal.into());
            }
            last = refusal.into();
            if timeout_at(deadline, sleep(RETRY)).await.is_err() {
                return Err(last);
            }
        }
    }
}
