//! Status, and scans asked for by people.

use isotope_proto::cluster::{Node, Pool, Volume};
use isotope_proto::id::{NodeId, ScanId};
use isotope_proto::pb::cluster_service_server::ClusterService;
use isotope_proto::pb::{self, scan_event::Event};
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::report::ScanOutcome;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::{debug, info};

use super::{STREAM_MAX, backup};
use crate::nodes::Command;
use crate::placement::{Choice, choose};
use crate::scans::{Update, summary};
use crate::{Core, clock};

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

    async fn get_status(
        &self,
        _: Request<pb::GetStatusRequest>,
    ) -> Result<Response<pb::ClusterStatus>, Status> {
        let core = &self.0;
        let live = core.nodes.live().borrow().clone();
        let watchers = core.feed.watchers().into_iter().map(Into::into).collect();
        let incarnation = core.store.incarnation();
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
        let (pools, volumes, nodes) =
            self.0.store.read(|rows| Ok((rows.pools()?, rows.volumes()?, rows.nodes()?))).await?;
        if let Some(name) = &wanted
            && !pools.iter().any(|pool| pool.name == *name)
        {
            return Err(Refusal::new(Reason::NotFound, format!("no pool is called {name}")).into());
        }
        let targets = volumes
            .into_iter()
            .filter_map(|volume| {
                let pool = pools.iter().find(|pool| pool.id == volume.pool)?;
                let chosen = wanted.as_ref().is_none_or(|name| pool.name == *name);
                chosen.then(|| (pool.clone(), volume))
            })
            .collect();
        let (out, stream) = mpsc::channel(STREAM_MAX);
        let run = Run { core: self.0.clone(), nodes, out, summary: pb::ScanSummary::default() };
        tokio::spawn(run.all(targets));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// One request for scans.
struct Run {
    core: Core,
    nodes: Vec<Node>,
    out: mpsc::Sender<Result<pb::ScanEvent, Status>>,
    summary: pb::ScanSummary,
}

impl Run {
    /// The volumes are scanned at the same time, for their disks are different ones.
    async fn all(mut self, targets: Vec<(Pool, Volume)>) {
        let mut running = tokio::task::JoinSet::new();
        for (pool, volume) in targets {
            match self.start(&pool, &volume).await {
                Some((node, updates)) => {
                    let follow = Follow { pool: pool.name, volume, node, out: self.out.clone() };
                    running.spawn(follow.until_the_end(updates));
                }
                None => self.summary.volumes_skipped += 1,
            }
        }
        while let Some(ended) = running.join_next().await {
            match ended {
                Ok(outcome) if outcome.failure.is_none() => {
                    self.summary.volumes_scanned += 1;
                    self.summary.discovered += outcome.created;
                }
                Ok(_) | Err(_) => self.summary.volumes_failed += 1,
            }
        }
        self.summary.message = summary(self.summary.discovered);
        info!(discovered = self.summary.discovered, "scan ended");
        let summary = Event::Summary(self.summary);
        let _ = self.out.send(Ok(pb::ScanEvent { event: Some(summary) })).await;
    }

    async fn start(
        &self,
        pool: &Pool,
        volume: &Volume,
    ) -> Option<(String, watch::Receiver<Update>)> {
        let choice = choose(pool, &self.core.nodes.offering(volume.id));
        let (node, mut reason) = match choice {
            Choice::Node { node, reason } => (Some(node), reason.to_owned()),
            Choice::Skip { reason } => (None, reason.to_owned()),
        };
        let started = node.and_then(|node| {
            let scan = ScanId::mint(clock::now());
            let updates = self.core.scans.begin(scan, node);
            match self.core.nodes.command(node, Command::Scan { scan, volume: volume.id }) {
                Ok(()) => Some((self.node_name(node), updates)),
                Err(refusal) => {
                    reason = refusal.text;
                    None
                }
            }
        });
        let name = started.as_ref().map(|(name, _)| name.clone()).unwrap_or_default();
        debug!(pool = pool.name, volume = %volume.id, node = name, reason, "node chosen for a scan");
        let choice = pb::ScanChoice {
            pool: pool.name.clone(),
            volume_id: volume.id.into(),
            node: name,
            reason,
        };
        let _ = self.out.send(Ok(pb::ScanEvent { event: Some(Event::Choice(choice)) })).await;
        started
    }

    fn node_name(&self, id: NodeId) -> String {
        let known = self.nodes.iter().find(|node| node.id == id);
        known.map_or_else(|| id.to_string(), |node| node.name.clone())
    }
}

/// One volume's scan, as told to whoever asked.
struct Follow {
    pool: String,
    volume: Volume,
    node: String,
    out: mpsc::Sender<Result<pb::ScanEvent, Status>>,
}

impl Follow {
    async fn until_the_end(self, mut updates: watch::Receiver<Update>) -> ScanOutcome {
        let outcome = loop {
            let changed = updates.changed().await;
            let update = updates.borrow_and_update().clone();
            match (changed, update) {
                (Ok(()), Update::FilesSeen(files_seen)) => {
                    let progress = pb::ScanProgress {
                        pool: self.pool.clone(),
                        volume_id: self.volume.id.into(),
                        node: self.node.clone(),
                        files_seen,
                    };
                    let _ = self.send(Event::Progress(progress)).await;
                }
                (_, Update::Ended(outcome)) => break outcome,
                (Err(_), Update::FilesSeen(_)) => {
                    let failure = Some(format!("{} went away during the scan", self.node));
                    break ScanOutcome { failure, ..ScanOutcome::default() };
                }
            }
        };
        let result = pb::ScanResult {
            pool: self.pool.clone(),
            volume_id: self.volume.id.into(),
            node: self.node.clone(),
            ..outcome.clone().into()
        };
        let _ = self.send(Event::Result(result)).await;
        outcome
    }

    async fn send(
        &self,
        event: Event,
    ) -> Result<(), mpsc::error::SendError<Result<pb::ScanEvent, Status>>> {
        self.out.send(Ok(pb::ScanEvent { event: Some(event) })).await
    }
}
