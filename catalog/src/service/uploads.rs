//! Uploads: reserve, keep, publish, give up.

use std::time::Instant;

use isotope_proto::cluster::Volume;
use isotope_proto::id::{RequestId, UploadId};
use isotope_proto::pb;
use isotope_proto::pb::upload_service_server::UploadService;
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::tree::Place;
use isotope_proto::upload::{Existing, Sealed, Upload, UploadRequest};
use isotope_proto::wire::{Malformed, published_attributes};
use tonic::{Request, Response, Status};
use tracing::debug;

use crate::Core;
use crate::library;
use crate::placement::{self, Known, Target};
use crate::store::{Outcome, Verb};
use crate::uploads;

pub(super) struct Uploads(pub(super) Core);

impl Uploads {
    /// The volume that an upload goes to, and the node that writes it.
    async fn place(&self, request: &UploadRequest) -> Result<Target, Refusal> {
        let (place, existing) = (request.place.clone(), request.existing);
        let standing = self.0.nodes.live().borrow().clone();
        let read = self.0.store.read(move |rows| {
            if existing != Existing::Refuse {
                uploads::check_deletable(rows, &place, &standing)?;
            }
            let folder = library::folder(rows, &place.folder)?;
            let default = library::default_pool(rows, &folder)?.map(|(pool, _)| pool);
            Ok((default, rows.nodes()?, rows.pools()?, rows.volumes()?))
        });
        let (default, nodes, pools, volumes) = read.await?;
        let live = self.0.nodes.live().borrow().clone();
        let known = Known { nodes: &nodes, pools: &pools, volumes: &volumes, live: &live };
        let offering = |volume| self.0.nodes.offering(volume);
        let target = placement::choose_volume(request, default, &known, offering)?;
        debug!(name = %request.place.name, pool = target.pool, node = target.node.name, reason = target.reason, "volume chosen for an upload");
        Ok(target)
    }

    /// Where an upload was reserved. One that is asked for again goes where it went first, although
    /// another volume may be the better one by now.
    async fn reserved(&self, upload: &Upload, target: Target) -> Result<Target, Refusal> {
        if (upload.volume, upload.node) == (target.volume, target.node.id) {
            return Ok(target);
        }
        let (volume, node) = (upload.volume, upload.node);
        let read = self.0.store.read(move |rows| {
            Ok(rows.node(node)?.zip(rows.volume(volume)?).zip(Some(rows.pools()?)))
        });
        let lost = || Refusal::new(Reason::Storage, "the catalogue has lost an upload's volume");
        let ((node, Volume { id, pool, .. }), pools) = read.await?.ok_or_else(lost)?;
        let pool = pools.into_iter().find(|it| it.id == pool).ok_or_else(lost)?.name;
        Ok(Target { volume: id, node, pool, reason: "reserved before" })
    }
}

#[tonic::async_trait]
impl UploadService for Uploads {
    async fn begin(
        &self,
        request: Request<pb::BeginUploadRequest>,
    ) -> Result<Response<pb::Upload>, Status> {
        let request = UploadRequest::try_from(request.into_inner())?;
        let target = self.place(&request).await?;
        self.0.leases.keep([request.id], Instant::now());
        let (volume, node) = (target.volume, target.node.id);
        let verb = Verb::BeginUpload { request, volume, node };
        let Outcome::Upload(upload) = self.0.store.commit(None, verb).await?.outcome else {
            return Err(Refusal::new(Reason::Storage, "no upload was reserved").into());
        };
        let target = self.reserved(&upload, target).await?;
        Ok(Response::new(pb::Upload {
            upload_id: upload.id.into(),
            image_id: upload.image.into(),
            ino: upload.ino.0,
            volume_id: upload.volume.into(),
            address: target.node.address,
            pool: target.pool,
            node: target.node.name,
        }))
    }

    async fn rename(
        &self,
        request: Request<pb::RenameUploadRequest>,
    ) -> Result<Response<pb::RenameUploadReply>, Status> {
        let request = request.into_inner();
        let upload = UploadId::try_from(&*request.upload_id).map_err(Malformed::from)?;
        let to = Place::try_from(request.place)?;
        let existing = if request.replace { Existing::Replace } else { Existing::Refuse };
        self.0.store.commit(None, Verb::RenameUpload { upload, to, existing }).await?;
        Ok(Response::new(pb::RenameUploadReply {}))
    }

    async fn publish(
        &self,
        request: Request<pb::PublishUploadRequest>,
    ) -> Result<Response<pb::Change>, Status> {
        let request = request.into_inner();
        let upload = UploadId::try_from(&*request.upload_id).map_err(Malformed::from)?;
        let set = published_attributes(&request);
        let sealed = Sealed::try_from(request)?;
        let request = Some(RequestId::from_bytes(*upload.as_bytes()));
        let committed = self.0.commit(request, Verb::Publish { upload, sealed, set }).await?;
        Ok(Response::new((*committed.change).clone().into()))
    }

    async fn abort(
        &self,
        request: Request<pb::AbortUploadRequest>,
    ) -> Result<Response<pb::AbortUploadReply>, Status> {
        let request = request.into_inner();
        let upload = UploadId::try_from(&*request.upload_id).map_err(Malformed::from)?;
        let outcome = self.0.store.commit(None, Verb::Abort { upload }).await?.outcome;
        let published = matches!(outcome, Outcome::TooLate);
        Ok(Response::new(pb::AbortUploadReply { published }))
    }

    async fn keep(
        &self,
        request: Request<pb::KeepUploadsRequest>,
    ) -> Result<Response<pb::KeepUploadsReply>, Status> {
        let ids = request.into_inner().upload_ids;
        let ids = ids.iter().map(|id| UploadId::try_from(&**id).map_err(Malformed::from));
        let ids: Vec<UploadId> = ids.collect::<Result<_, _>>()?;
        self.0.leases.keep(ids, Instant::now());
        Ok(Response::new(pb::KeepUploadsReply {}))
    }
}
