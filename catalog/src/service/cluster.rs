//! Status, and scans asked for by people.

use isotope_proto::cluster::Volume;
use isotope_proto::id::{ImageId, VolumeId};
use isotope_proto::name::LibraryPath;
use isotope_proto::pb::cluster_service_server::ClusterService;
use isotope_proto::pb::{self, scan_event::Event};
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::wire::{Malformed, time_out};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{STREAM_MAX, backup};
use crate::arranging::{self, Arranged, What};
use crate::library::{self, Node, pool_called};
use crate::pools::node_called;
use crate::recovery::{self, Extent};
use crate::scans::Scans;
use crate::store::Verb;
use crate::{Core, scanning, verifying};

pub(super) struct Cluster(pub(super) Core);

#[tonic::async_trait]
impl ClusterService for Cluster {
    type ScanIsosStream = ReceiverStream<Result<pb::ScanEvent, Status>>;
    type BackupStream = ReceiverStream<Result<pb::BackupChunk, Status>>;

    async fn backup(
        &self,
        _: Request<pb::BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        Ok(Response::new(backup::stream(self.0.store.copy().await?)))
    }

    async fn rebuild(
        &self,
        request: Request<pb::RebuildRequest>,
    ) -> Result<Response<pb::RebuildReply>, Status> {
        let extent = match request.into_inner() {
            pb::RebuildRequest { dry_run: true, .. } => Extent::DryRun,
            pb::RebuildRequest { accept: true, .. } => Extent::Whatever,
            pb::RebuildRequest { .. } => Extent::IfUntouched,
        };
        let answer = recovery::rebuild(&self.0, extent).await?;
        Ok(Response::new(pb::RebuildReply {
            logs: answer.logs,
            // Without the root.
            folders: answer.rebuilt.folders.saturating_sub(1),
            images: answer.rebuilt.images,
            restored: answer.rebuilt.restored,
            changes: answer.changes,
            renamed: answer.rebuilt.renamed,
            missing: answer.missing,
            incarnation: answer.incarnation.map(Into::into).unwrap_or_default(),
        }))
    }

    async fn get_status(
        &self,
        _: Request<pb::GetStatusRequest>,
    ) -> Result<Response<pb::ClusterStatus>, Status> {
        let core = &self.0;
        let live = core.nodes.live().borrow().clone();
        let watchers = core.feed.watchers().into_iter().map(Into::into).collect();
        let incarnation = core.store.incarnation();
        let scans = std::sync::Arc::clone(&core.scans);
        let status = core.store.read(move |rows| {
            let volumes = rows.volumes()?;
            let images = rows.image_counts()?;
            let count = |volume: &Volume| images.get(&volume.id).copied().unwrap_or(0);
            Ok(pb::ClusterStatus {
                incarnation: incarnation.into(),
                revision: rows.revision()?.0,
                version: isotope_proto::VERSION.to_owned(),
                images: rows.image_count()?,
                folders: rows.folder_count()?,
                nodes: rows.nodes()?.into_iter().map(Into::into).collect(),
                pools: rows.pools()?.into_iter().map(Into::into).collect(),
                volume_images: volumes.iter().map(count).collect(),
                backlogs: volumes.iter().map(|it| backlog_out(it.id, &scans)).collect(),
                volumes: volumes.into_iter().map(Into::into).collect(),
                live: Some(live.into()),
                watchers,
            })
        });
        Ok(Response::new(status.await?))
    }

    async fn scan_isos(
        &self,
        request: Request<pb::ScanIsosRequest>,
    ) -> Result<Response<Self::ScanIsosStream>, Status> {
        let wanted = request.into_inner().pool;
        let mut events = scanning::begin(&self.0, wanted.as_deref()).await?;
        let (out, stream) = mpsc::channel(STREAM_MAX);
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                // Who has hung up needs no more; the scan goes on.
                let _ = out.send(Ok(pb::ScanEvent { event: Some(event_out(event)) })).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn list_scans(
        &self,
        _: Request<pb::ListScansRequest>,
    ) -> Result<Response<pb::ListScansReply>, Status> {
        let core = &self.0;
        let (pools, volumes, nodes) =
            core.store.read(|rows| Ok((rows.pools()?, rows.volumes()?, rows.nodes()?))).await?;
        let one = |volume: Volume| {
            let scan = core.scans.last(volume.id)?;
            let pool = pools.iter().find(|pool| pool.id == volume.pool)?;
            let node = nodes.iter().find(|node| node.id == scan.node);
            Some(pb::VolumeScan {
                pool: pool.name.clone(),
                volume_id: volume.id.into(),
                node: node.map(|node| node.name.clone()).unwrap_or_default(),
                begin_time: time_out(scan.begun),
                end_time: scan.ended.and_then(time_out),
                asked: scan.asked,
                counts: Some(scan.outcome.counts.into()),
                problems: scan.outcome.problems.into_iter().map(problem_out).collect(),
                failure: scan.outcome.failure,
                backlog: Some(backlog_out(volume.id, &core.scans)),
            })
        };
        let scans = volumes.into_iter().filter_map(one).collect();
        Ok(Response::new(pb::ListScansReply { scans }))
    }

    type VerifyFilesStream = ReceiverStream<Result<pb::VerifyFilesEvent, Status>>;

    async fn verify_files(
        &self,
        request: Request<pb::VerifyFilesRequest>,
    ) -> Result<Response<Self::VerifyFilesStream>, Status> {
        use pb::verify_files_request::What as W;
        let what = match request.into_inner().what {
            None => verifying::What::Everything,
            Some(W::Pool(pool)) => verifying::What::Pool(pool),
            Some(W::ImageId(id)) => {
                verifying::What::Image(ImageId::try_from(&*id).map_err(Malformed::from)?)
            }
            Some(W::Path(path)) => verifying::What::Image(self.image_at(&path).await?),
        };
        let mut events = verifying::begin(&self.0, what).await?;
        let (out, stream) = mpsc::channel(STREAM_MAX);
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                // Who has hung up ends it.
                if out.send(Ok(verified_out(event))).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn add_pool(
        &self,
        request: Request<pb::AddPoolRequest>,
    ) -> Result<Response<pb::AddPoolReply>, Status> {
        let it = request.into_inner();
        let request = arranging::Request {
            pool: it.pool,
            dir: it.dir,
            layout: it.layout,
            nodes: it.nodes,
            host: it.host,
            what: if it.attach { What::Directory } else { What::NewPool },
            dry_run: it.dry_run,
        };
        let added = |it: Arranged| pb::AddedVolume {
            node: it.node,
            volume_id: it.volume.map(Into::into).unwrap_or(it.found.volume_id),
            images: it.found.images,
            size_bytes: it.found.size_bytes,
            not_taken: it.found.not_taken,
        };
        let arranged = arranging::add(&self.0, request).await?;
        Ok(Response::new(pb::AddPoolReply { volumes: arranged.into_iter().map(added).collect() }))
    }

    async fn assign_pool(
        &self,
        request: Request<pb::AssignPoolRequest>,
    ) -> Result<Response<pb::ArrangeReply>, Status> {
        let pb::AssignPoolRequest { pool: name, nodes: asked } = request.into_inner();
        let nodes = self.0.store.read(|rows| rows.nodes()).await?;
        let called = |name: &String| Ok(node_called(&nodes, name)?.id);
        let assigned = asked.iter().map(called).collect::<Result<_, Refusal>>()?;
        self.arrange(Verb::AssignPool { name, assigned }).await
    }

    async fn rename_pool(
        &self,
        request: Request<pb::RenamePoolRequest>,
    ) -> Result<Response<pb::ArrangeReply>, Status> {
        let pb::RenamePoolRequest { pool, name } = request.into_inner();
        self.arrange(Verb::RenamePool { name: pool, to: name }).await
    }

    async fn remove_pool(
        &self,
        request: Request<pb::RemovePoolRequest>,
    ) -> Result<Response<pb::ArrangeReply>, Status> {
        let pb::RemovePoolRequest { pool, force, dry_run } = request.into_inner();
        let name = pool.clone();
        let images = self.0.store.read(move |rows| {
            let pool = pool_called(&rows.pools()?, &name)?.id;
            rows.images_only_in(pool)
        });
        let images = images.await?;
        if !dry_run {
            arranging::remove(&self.0, &pool, force).await?;
        }
        Ok(Response::new(pb::ArrangeReply { images }))
    }

    async fn rename_node(
        &self,
        request: Request<pb::RenameNodeRequest>,
    ) -> Result<Response<pb::ArrangeReply>, Status> {
        let pb::RenameNodeRequest { node, name: to } = request.into_inner();
        let nodes = self.0.store.read(|rows| rows.nodes()).await?;
        let node = node_called(&nodes, &node)?.id;
        self.arrange(Verb::RenameNode { node, to }).await
    }

    async fn remove_node(
        &self,
        request: Request<pb::RemoveNodeRequest>,
    ) -> Result<Response<pb::ArrangeReply>, Status> {
        let name = request.into_inner().node;
        let nodes = self.0.store.read(|rows| rows.nodes()).await?;
        let node = node_called(&nodes, &name)?;
        if self.0.nodes.live().borrow().connected.contains(&node.id) {
            let text = format!("{} is connected, and would come back; stop its agent", node.name);
            return Err(Refusal::new(Reason::InUse, text).into());
        }
        self.arrange(Verb::RemoveNode { node: node.id }).await
    }
}

fn verified_out(event: verifying::Event) -> pb::VerifyFilesEvent {
    use pb::verify_files_event::Event as E;
    let (file, event) = match event {
        verifying::Event::Progress { file, bytes_read } => (file, E::BytesRead(bytes_read)),
        verifying::Event::Result { file, verdict } => (file, E::Verdict(verdict)),
    };
    let file = pb::VerifiedFile {
        path: file.path,
        image_id: file.image.into(),
        pool: file.pool,
        node: file.node,
        file: file.file,
        size_bytes: file.size_bytes,
    };
    pb::VerifyFilesEvent { file: Some(file), event: Some(event) }
}

impl Cluster {
    async fn image_at(&self, path: &str) -> Result<ImageId, Status> {
        let path: LibraryPath = path.parse().map_err(Malformed::from)?;
        let found = self.0.store.read(move |rows| match library::find(rows, &path)? {
            (_, Node::Image(image)) => Ok(image.id),
            (_, Node::Folder(_)) => {
                let text = format!("{path} is a folder; an image was expected");
                Err(Refusal::new(Reason::IsAFolder, text))
            }
        });
        Ok(found.await?)
    }

    async fn arrange(&self, verb: Verb) -> Result<Response<pb::ArrangeReply>, Status> {
        self.0.commit(None, verb).await?;
        Ok(Response::new(pb::ArrangeReply::default()))
    }
}

fn backlog_out(volume: VolumeId, scans: &Scans) -> pb::Backlog {
    pb::Backlog { volume_id: volume.into(), ..scans.backlog(volume).into() }
}

fn problem_out((path, reason): (String, String)) -> pb::ScanProblem {
    pb::ScanProblem { path, reason }
}

fn event_out(event: scanning::Event) -> Event {
    match event {
        scanning::Event::Choice { pool, volume, node, reason } => Event::Choice(pb::ScanChoice {
            pool,
            volume_id: volume.map(Into::into).unwrap_or_default(),
            node: node.unwrap_or_default(),
            reason,
        }),
        scanning::Event::Progress { at, counts } => Event::Progress(pb::ScanProgress {
            pool: at.pool,
            volume_id: at.volume.into(),
            node: at.node,
            counts: Some(counts.into()),
        }),
        scanning::Event::Result { at, outcome } => Event::Result(pb::ScanResult {
            pool: at.pool,
            volume_id: at.volume.into(),
            node: at.node,
            ..outcome.into()
        }),
        scanning::Event::Summary(it) => Event::Summary(pb::ScanSummary {
            discovered: it.discovered,
            message: it.message,
            volumes_scanned: it.scanned,
            volumes_skipped: it.skipped,
            volumes_failed: it.failed,
        }),
    }
}
