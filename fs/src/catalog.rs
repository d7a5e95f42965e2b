//! The mount's one client of the catalogue: changes to the tree, each with a deadline and an
//! idempotency key, so that an answer that got lost can be asked for again.

use std::time::Duration;

use isotope_proto::change::Change;
use isotope_proto::id::{ImageId, Ino, InvalidId, RequestId, SessionId, UploadId, VolumeId};
use isotope_proto::name::EntryName;
use isotope_proto::pb;
use isotope_proto::pb::feed_service_client::FeedServiceClient;
use isotope_proto::pb::library_service_client::LibraryServiceClient;
use isotope_proto::pb::upload_service_client::UploadServiceClient;
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::tree::{Attributes, FolderRef, Place, RenameMode};
use isotope_proto::upload::{Existing, Sealed, UploadRequest};
use isotope_proto::wire::{Malformed, publish_request, time_out};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::clock;
use crate::error::FsError;
use crate::remote::WrongCopy;
use crate::stage::Destination;
use crate::upload::Draft;

/// A change of the namespace ends within this.
pub(crate) const CHANGE_DEADLINE: Duration = Duration::from_secs(2);
/// The commit of an upload is asked for so long: a catalogue that is being restarted is back by then.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(15);
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
    uploads: UploadServiceClient<Channel>,
    feed: FeedServiceClient<Channel>,
    access: Access,
}

/// What a mount may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Changes,
    /// No change is ever sent: the kernel's own flag can be taken back by `mount -o remount,rw`.
    ReadOnly,
}

fn place(folder: Ino, name: &EntryName) -> Option<pb::Place> {
    Some(Place { folder: FolderRef::Ino(folder), name: name.clone() }.into())
}

/// A key for one change, however often it is sent.
fn request_id() -> Vec<u8> {
    RequestId::mint(clock::now()).into()
}

impl Catalog {
    pub(crate) fn new(channel: Channel, access: Access) -> Self {
        Self {
            access,
            client: LibraryServiceClient::new(channel.clone()),
            uploads: UploadServiceClient::new(channel.clone()),
            feed: FeedServiceClient::new(channel),
        }
    }

    fn may_change(&self) -> Result<(), FsError> {
        match self.access {
            Access::Changes => Ok(()),
            Access::ReadOnly => Err(FsError::ReadOnly),
        }
    }

    pub(crate) async fn make_folder(
        &self,
        parent: Ino,
        name: &EntryName,
        mode: u32,
    ) -> Result<Change, FsError> {
        self.may_change()?;
        let request = pb::MakeFolderRequest {
            request_id: request_id(),
            place: place(parent, name),
            mode: Some(mode & 0o7777),
        };
        let client = &self.client;
        change(CHANGE_DEADLINE, || {
            let (mut client, request) = (client.clone(), request.clone());
            async move { client.make_folder(request).await }
        })
        .await
    }

    pub(crate) async fn remove_folder(
        &self,
        parent: Ino,
        name: &EntryName,
    ) -> Result<Change, FsError> {
        self.may_change()?;
        let request =
            pb::RemoveFolderRequest { request_id: request_id(), place: place(parent, name) };
        let client = &self.client;
        change(CHANGE_DEADLINE, || {
            let (mut client, request) = (client.clone(), request.clone());
            async move { client.remove_folder(request).await }
        })
        .await
    }

    pub(crate) async fn remove(&self, parent: Ino, name: &EntryName) -> Result<Change, FsError> {
        self.may_change()?;
        let request = pb::RemoveRequest { request_id: request_id(), place: place(parent, name) };
        let client = &self.client;
        change(CHANGE_DEADLINE, || {
            let (mut client, request) = (client.clone(), request.clone());
            async move { client.remove(request).await }
        })
        .await
    }

    pub(crate) async fn rename(
        &self,
        from: (Ino, &EntryName),
        to: (Ino, &EntryName),
        mode: RenameMode,
    ) -> Result<Change, FsError> {
        self.may_change()?;
        let request = pb::RenameRequest {
            request_id: request_id(),
            from: place(from.0, from.1),
            to: place(to.0, to.1),
            mode: pb::RenameMode::from(mode).into(),
        };
        let client = &self.client;
        change(CHANGE_DEADLINE, || {
            let (mut client, request) = (client.clone(), request.clone());
            async move { client.rename(request).await }
        })
        .await
    }

    pub(crate) async fn link(
        &self,
        ino: Ino,
        (parent, name): (Ino, &EntryName),
    ) -> Result<Change, FsError> {
        let place = place(parent, name);
        let request = pb::LinkRequest { request_id: request_id(), ino: ino.0, place };
        let client = &self.client;
        change(CHANGE_DEADLINE, || {
            let (mut client, request) = (client.clone(), request.clone());
            async move { client.link(request).await }
        })
        .await
    }

    pub(crate) async fn set_attributes(
        &self,
        ino: Ino,
        set: Attributes,
    ) -> Result<Change, FsError> {
        self.may_change()?;
        let request = pb::SetAttributesRequest {
            request_id: request_id(),
            ino: ino.0,
            mode: set.mode,
            modify_time: set.modified.and_then(time_out),
        };
        let client = &self.client;
        change(CHANGE_DEADLINE, || {
            let (mut client, request) = (client.clone(), request.clone());
            async move { client.set_attributes(request).await }
        })
        .await
    }

    /// Reserves a file. Needs the catalogue only, never an agent.
    pub(crate) async fn begin_upload(
        &self,
        place: (Ino, &EntryName),
        mode: u32,
        existing: Existing,
        host: &str,
    ) -> Result<Draft, FsError> {
        self.may_change()?;
        let request = UploadRequest {
            id: UploadId::mint(clock::now()),
            place: Place { folder: FolderRef::Ino(place.0), name: place.1.clone() },
            mode,
            pool: None,
            host: host.to_owned(),
            existing,
            size_bytes: 0,
        };
        let (to, ino) = self.reserve(request).await?;
        Ok(Draft { ino, mode, replaces: None, to })
    }

    /// Reserves what is asked for; where its bytes go, and its inode number.
    pub(crate) async fn reserve(
        &self,
        request: UploadRequest,
    ) -> Result<(Destination, Ino), Refusal> {
        let wire = pb::BeginUploadRequest::from(request);
        let uploads = &self.uploads;
        let upload: pb::Upload = until_answered(CHANGE_DEADLINE, || {
            let (mut uploads, wire) = (uploads.clone(), wire.clone());
            async move { uploads.begin(wire).await }
        })
        .await?;
        let to = destination(&upload).map_err(Malformed::from)?;
        Ok((to, Ino(upload.ino)))
    }

    /// Gives what is being written another name.
    pub(crate) async fn rename_upload(
        &self,
        upload: UploadId,
        to: (Ino, &EntryName),
        mode: RenameMode,
    ) -> Result<(), FsError> {
        let request = pb::RenameUploadRequest {
            upload_id: upload.into(),
            place: place(to.0, to.1),
            replace: mode == RenameMode::Replace,
        };
        let uploads = &self.uploads;
        let renamed = until_answered(CHANGE_DEADLINE, || {
            let (mut uploads, request) = (uploads.clone(), request.clone());
            async move { uploads.rename(request).await }
        });
        renamed.await.map(drop).map_err(FsError::from)
    }

    /// Asks until it is answered: the upload's own id makes it one publication.
    pub(crate) async fn publish(
        &self,
        upload: UploadId,
        sealed: Sealed,
        set: Attributes,
    ) -> Result<Change, FsError> {
        let request = publish_request(upload, sealed, set);
        let uploads = &self.uploads;
        change(PUBLISH_DEADLINE, || {
            let (mut uploads, request) = (uploads.clone(), request.clone());
            async move { uploads.publish(request).await }
        })
        .await
    }

    /// True: too late, it is published.
    pub(crate) async fn abort(&self, upload: UploadId) -> Result<bool, FsError> {
        let request = pb::AbortUploadRequest { upload_id: upload.into() };
        let uploads = &self.uploads;
        let reply = until_answered(CHANGE_DEADLINE, || {
            let (mut uploads, request) = (uploads.clone(), request.clone());
            async move { uploads.abort(request).await }
        });
        Ok(reply.await?.published)
    }

    pub(crate) async fn keep(&self, uploads: Vec<UploadId>) -> Result<(), FsError> {
        let upload_ids = uploads.into_iter().map(Into::into).collect();
        let mut client = self.uploads.clone();
        let kept = client.keep(pb::KeepUploadsRequest { upload_ids });
        match tokio::time::timeout(CHANGE_DEADLINE, kept).await {
            Ok(kept) => kept.map(drop).map_err(|status| Refusal::from(status).into()),
            Err(_) => Err(FsError::TimedOut),
        }
    }

    /// Says which images this mount has open.
    pub(crate) async fn hold(
        &self,
        session: SessionId,
        images: Vec<ImageId>,
    ) -> Result<(), FsError> {
        let image_ids = images.into_iter().map(Into::into).collect();
        let mut client = self.feed.clone();
        let held = client.hold(pb::HoldRequest { session_id: session.into(), image_ids });
        match tokio::time::timeout(CHANGE_DEADLINE, held).await {
            Ok(held) => held.map(drop).map_err(|status| Refusal::from(status).into()),
            Err(_) => Err(FsError::TimedOut),
        }
    }

    /// Says that a file sent bytes which are not its image's.
    pub(crate) async fn report(&self, copy: WrongCopy) -> Result<(), FsError> {
        let request = pb::ReportWrongCopyRequest {
            image_id: copy.image.into(),
            volume_id: copy.volume.into(),
            address: copy.address,
            offset_bytes: copy.range.start(),
            length_bytes: copy.range.len(),
        };
        let mut client = self.feed.clone();
        let told = tokio::time::timeout(CHANGE_DEADLINE, client.report_wrong_copy(request)).await;
        told.map_err(|_| FsError::TimedOut)?.map(drop).map_err(|it| Refusal::from(it).into())
    }
}

fn destination(upload: &pb::Upload) -> Result<Destination, InvalidId> {
    Ok(Destination {
        upload: UploadId::try_from(&*upload.upload_id)?,
        image: ImageId::try_from(&*upload.image_id)?,
        volume: VolumeId::try_from(&*upload.volume_id)?,
        address: upload.address.clone(),
    })
}

async fn change<F>(deadline: Duration, send: impl Fn() -> F) -> Result<Change, FsError>
where
    F: Future<Output = Result<Response<pb::Change>, Status>>,
{
    let change = until_answered(deadline, send).await?;
    Change::try_from(change).map_err(|error| FsError::Storage(error.to_string()))
}

/// Sends a request until it is answered or its deadline has come. Only a lost answer is asked for
/// again: a refusal is an answer.
async fn until_answered<T, F>(deadline: Duration, send: impl Fn() -> F) -> Result<T, Refusal>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let deadline = Instant::now() + deadline;
    let mut last = Refusal::new(Reason::TimedOut, "the catalogue did not answer in time");
    loop {
        last = match timeout_at(deadline, send()).await {
            Err(_) => return Err(last),
            Ok(Ok(answer)) => return Ok(answer.into_inner()),
            Ok(Err(status)) => Refusal::from(status),
        };
        if last.reason != Reason::Unavailable || timeout_at(deadline, sleep(RETRY)).await.is_err() {
            return Err(last);
        }
    }
}
