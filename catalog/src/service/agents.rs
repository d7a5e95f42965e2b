//! Agents: their sessions, and what they report.

use std::collections::HashMap;
use std::time::Duration;

use isotope_proto::cluster::VolumeState;
use isotope_proto::id::{ImageId, Incarnation, LeaseId, NodeId, ScanId, VolumeId};
use isotope_proto::image::Stamp;
use isotope_proto::name::VolumePath;
use isotope_proto::pb::agent_service_server::AgentService;
use isotope_proto::pb::{self, agent_message, catalog_message, scan_update};
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::report::{
    Description, FILE_CHANGES_MAX, FileChange, HASHED_FILES_MAX, HashedFile, Hello,
    LISTED_FILES_MAX, OfferedVolume,
};
use isotope_proto::upload::{TASKS_MAX, TaskDone};
use isotope_proto::wire::Malformed;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, interval, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::warn;

use super::STREAM_MAX;
use crate::nodes::{Command, SILENCE_MAX};
use crate::scans::Update;
use crate::store::{Outcome, Verb};
use crate::{Core, clock, sharing};

pub(super) struct Agents(pub(super) Core);

#[tonic::async_trait]
impl AgentService for Agents {
    type SessionStream = ReceiverStream<Result<pb::CatalogMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<pb::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut messages = request.into_inner();
        let first = timeout(SILENCE_MAX, messages.message())
            .await
            .map_err(|_| Refusal::new(Reason::TimedOut, "the agent did not say hello"))??;
        let Some(agent_message::Message::Hello(hello)) = first.and_then(|first| first.message)
        else {
            return Err(Malformed::Missing("hello").into());
        };
        let hello = Hello::try_from(hello)?;
        // Volumes count once it is known that no other host has another disk of their ids.
        let offered = hello.volumes.clone();
        let node_alone = Hello { volumes: Vec::new(), ..hello };
        let life = self.0.feed.life();
        let (number, commands) = self.0.nodes.connect(node_alone.clone())?;
        let proved = HashMap::new();
        let mut session = Session { core: self.0.clone(), number, hello: node_alone, proved, life };
        self.0.store.commit(None, Verb::Register { hello: session.hello.clone() }).await?;
        session.offer(offered).await?;
        let (out, stream) = mpsc::channel(STREAM_MAX);
        let welcome = catalog_message::Message::Welcome(pb::Welcome {
            incarnation: self.0.store.incarnation().into(),
            url_key: self.0.store.url_key().as_bytes().to_vec(),
        });
        let _ = out.send(Ok(pb::CatalogMessage { message: Some(welcome) })).await;
        tokio::spawn(session.run(messages, commands, out));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn notify_image_changes(
        &self,
        request: Request<pb::NotifyImageChangesRequest>,
    ) -> Result<Response<pb::NotifyImageChangesReply>, Status> {
        let request = request.into_inner();
        let volume = VolumeId::try_from(&*request.volume_id).map_err(Malformed::from)?;
        let node = NodeId::try_from(&*request.node_id).map_err(Malformed::from)?;
        let lease = LeaseId::try_from(&*request.lease_id).map_err(Malformed::from)?;
        self.0.keepers.check(volume, node, lease)?;
        if request.events.len() > FILE_CHANGES_MAX {
            let text = format!("a report holds at most {FILE_CHANGES_MAX} files");
            return Err(Refusal::new(Reason::Malformed, text).into());
        }
        let changes =
            request.events.into_iter().map(FileChange::try_from).collect::<Result<_, _>>()?;
        let verb = Verb::ApplyFiles { volume, changes };
        let committed = self.0.store.commit(None, verb).await?;
        let images = match committed.outcome {
            Outcome::Images(images) => images,
            _ => Vec::new(),
        };
        Ok(Response::new(pb::NotifyImageChangesReply {
            revision: committed.change.revision.0,
            image_ids: images.into_iter().map(Into::into).collect(),
        }))
    }

    async fn notify_hashes(
        &self,
        request: Request<pb::NotifyHashesRequest>,
    ) -> Result<Response<pb::NotifyHashesReply>, Status> {
        let request = request.into_inner();
        let volume = VolumeId::try_from(&*request.volume_id).map_err(Malformed::from)?;
        let node = NodeId::try_from(&*request.node_id).map_err(Malformed::from)?;
        let lease = LeaseId::try_from(&*request.lease_id).map_err(Malformed::from)?;
        self.0.keepers.check(volume, node, lease)?;
        if request.files.len() > HASHED_FILES_MAX {
            let text = format!("a report holds at most {HASHED_FILES_MAX} files");
            return Err(Refusal::new(Reason::Malformed, text).into());
        }
        let files =
            request.files.into_iter().map(HashedFile::try_from).collect::<Result<_, _>>()?;
        let verb = Verb::ApplyHashes { volume, files };
        let merged = match self.0.store.commit(None, verb).await?.outcome {
            Outcome::Merged(merged) => merged,
            _ => Vec::new(),
        };
        let merged = merged.into_iter().map(|(image, became)| pb::MergedImage {
            image_id: image.into(),
            became_id: became.into(),
        });
        Ok(Response::new(pb::NotifyHashesReply { merged: merged.collect() }))
    }

    async fn list_files(
        &self,
        request: Request<pb::ListFilesRequest>,
    ) -> Result<Response<pb::ListFilesReply>, Status> {
        let request = request.into_inner();
        let volume = VolumeId::try_from(&*request.volume_id).map_err(Malformed::from)?;
        let node = NodeId::try_from(&*request.node_id).map_err(Malformed::from)?;
        let lease = LeaseId::try_from(&*request.lease_id).map_err(Malformed::from)?;
        self.0.keepers.check(volume, node, lease)?;
        let listed = self.0.store.read(move |rows| {
            let after = (&*request.after_path, &*request.after_image_id);
            let page = rows.settled_files(volume, after, LISTED_FILES_MAX)?;
            let one = |(image, path, stamp): (ImageId, VolumePath, Stamp)| {
                let known = if request.facts { rows.image(image)? } else { None };
                Ok(pb::ListedFile {
                    image_id: image.into(),
                    path: path.to_string(),
                    stamp: Some(stamp.into()),
                    facts: known.and_then(|image| image.facts).map(|facts| (*facts).into()),
                })
            };
            page.into_iter().map(one).collect::<Result<_, Refusal>>()
        });
        Ok(Response::new(pb::ListFilesReply { files: listed.await? }))
    }

    async fn describe(
        &self,
        request: Request<pb::DescribeRequest>,
    ) -> Result<Response<pb::DescribeReply>, Status> {
        let request = request.into_inner();
        let volume = VolumeId::try_from(&*request.volume_id).map_err(Malformed::from)?;
        let node = NodeId::try_from(&*request.node_id).map_err(Malformed::from)?;
        let lease = LeaseId::try_from(&*request.lease_id).map_err(Malformed::from)?;
        self.0.keepers.check(volume, node, lease)?;
        let descriptions = request.descriptions.into_iter().take(LISTED_FILES_MAX);
        let descriptions = descriptions.map(Description::try_from).collect::<Result<_, _>>()?;
        self.0.store.commit(None, Verb::Describe { volume, descriptions }).await?;
        Ok(Response::new(pb::DescribeReply {}))
    }

    async fn locate(
        &self,
        request: Request<pb::LocateRequest>,
    ) -> Result<Response<pb::LocateReply>, Status> {
        let request = request.into_inner();
        let volume = VolumeId::try_from(&*request.volume_id).map_err(Malformed::from)?;
        let image = ImageId::try_from(&*request.image_id).map_err(Malformed::from)?;
        let image = self.0.store.read(move |rows| rows.image_or_alias(image)).await?;
        let replicas = image.map(|image| image.replicas).unwrap_or_default();
        let replica = replicas.into_iter().find(|replica| replica.volume == volume);
        Ok(Response::new(pb::LocateReply {
            stamp: replica.as_ref().map(|it| it.stamp.into()),
            path: replica.map(|it| it.path.to_string()),
        }))
    }

    async fn report_tasks(
        &self,
        request: Request<pb::ReportTasksRequest>,
    ) -> Result<Response<pb::ReportTasksReply>, Status> {
        let request = request.into_inner();
        let volume = VolumeId::try_from(&*request.volume_id).map_err(Malformed::from)?;
        let done = request.done.into_iter().map(TaskDone::try_from).collect::<Result<_, _>>()?;
        self.0.commit(None, Verb::TasksDone { volume, done }).await?;
        Ok(Response::new(pb::ReportTasksReply {}))
    }

    async fn check_uploads(
        &self,
        request: Request<pb::CheckUploadsRequest>,
    ) -> Result<Response<pb::CheckUploadsReply>, Status> {
        let ids = request.into_inner().image_ids;
        let ids = ids.iter().map(|id| ImageId::try_from(&**id).map_err(Malformed::from));
        let ids: Vec<ImageId> = ids.collect::<Result<_, _>>()?;
        let wanted = self.0.store.read(move |rows| rows.wanted(&ids)).await?;
        let wanted_ids = wanted.into_iter().map(Into::into).collect();
        Ok(Response::new(pb::CheckUploadsReply { wanted_ids }))
    }
}

/// A command as the agent hears it.
fn message(command: Command) -> catalog_message::Message {
    use catalog_message::Message;
    match command {
        Command::Scan { scan, volume } => {
            Message::StartScan(pb::StartScan { scan_id: scan.into(), volume_id: volume.into() })
        }
        Command::Keep { volume, lease, images } => {
            let (volume_id, lease_id) = (volume.into(), lease.into());
            Message::Keep(pb::Keep { volume_id, lease_id, images })
        }
        Command::Release { volume } => Message::Release(pb::Release { volume_id: volume.into() }),
    }
}

/// Tasks go out anew so often even when nothing changed: an agent may have failed to do them.
const TASKS_EVERY: Duration = Duration::from_secs(5);

/// A volume that was refused is asked about again: whoever had the other may have gone.
const PROVE_AGAIN: Duration = Duration::from_secs(10);

/// One agent's session; the node is disconnected when it is dropped, however that comes.
struct Session {
    core: Core,
    number: u64,
    hello: Hello,
    /// Whether each volume is no other host's other disk, and when that was asked.
    proved: HashMap<VolumeId, (Result<(), String>, Instant)>,
    /// Moves when the agent has to tell its files anew, to another life of the catalogue.
    life: watch::Receiver<Incarnation>,
}

impl Drop for Session {
    fn drop(&mut self) {
        let node = self.hello.node.id;
        if self.core.nodes.disconnect(node, self.number) {
            self.core.scans.node_gone(node, clock::now());
        }
    }
}

impl Session {
    async fn run(
        mut self,
        mut messages: Streaming<pb::AgentMessage>,
        mut commands: mpsc::Receiver<Command>,
        out: mpsc::Sender<Result<pb::CatalogMessage, Status>>,
    ) {
        let mut tasks = self.core.tasks.subscribe();
        tasks.mark_changed();
        let mut again = interval(TASKS_EVERY);
        // Not begun anew in each round: most end with something else than a message.
        let mut silent_at = Instant::now() + SILENCE_MAX;
        loop {
            tokio::select! {
                Ok(()) = tasks.changed() => {
                    if self.send_tasks(&out).await.is_err() {
                        return;
                    }
                }
                _ = again.tick() => tasks.mark_changed(),
                message = timeout_at(silent_at, messages.message()) => match message {
                    Ok(Ok(Some(message))) => {
                        if let Err(refusal) = self.heard(message).await {
                            warn!(node = self.hello.node.name, error = %refusal, "agent's message refused");
                            let _ = out.try_send(Err(refusal.into()));
                            return;
                        }
                        silent_at = Instant::now() + SILENCE_MAX;
                    }
                    Ok(Ok(None) | Err(_)) => return,
                    Err(_) => {
                        warn!(node = self.hello.node.name, "agent is silent; taken for gone");
                        return;
                    }
                },
                command = commands.recv() => {
                    // None: the agent has connected anew, and talks on that session.
                    let Some(command) = command else { return };
                    let message = Some(message(command));
                    if out.send(Ok(pb::CatalogMessage { message })).await.is_err() {
                        return;
                    }
                }
                _ = self.life.changed() => return,
                () = self.core.shutdown.cancelled() => return,
            }
        }
    }

    /// What is yet to be done on this node's volumes.
    async fn send_tasks(
        &self,
        out: &mpsc::Sender<Result<pb::CatalogMessage, Status>>,
    ) -> Result<(), Refusal> {
        for volume in self.hello.volumes.iter().map(|volume| volume.id) {
            let tasks = self.core.store.read(move |rows| rows.tasks(volume, TASKS_MAX)).await?;
            if tasks.is_empty() {
                continue;
            }
            let tasks = tasks.into_iter().map(Into::into).collect();
            let message = pb::FileTasks { volume_id: volume.into(), tasks };
            let message = Some(catalog_message::Message::Tasks(message));
            let gone = |_| Refusal::new(Reason::Unavailable, "the agent has gone");
            out.send(Ok(pb::CatalogMessage { message })).await.map_err(gone)?;
        }
        Ok(())
    }

    /// Takes note of the volumes that the agent sees.
    async fn offer(&mut self, mut volumes: Vec<OfferedVolume>) -> Result<(), Refusal> {
        for volume in &mut volumes {
            if let Err(reason) = self.prove(volume).await {
                volume.state = VolumeState::Offline(reason);
            }
        }
        let refused = |volume: &&OfferedVolume| {
            self.proved.get(&volume.id).is_none_or(|(proved, _)| proved.is_ok())
        };
        let recorded = volumes.iter().filter(refused).cloned().collect();
        let hello = Hello { volumes: recorded, ..self.hello.clone() };
        self.core.store.commit(None, Verb::Register { hello }).await?;
        self.hello.volumes.clone_from(&volumes);
        self.core.nodes.offer(self.hello.node.id, self.number, volumes);
        Ok(())
    }

    /// Whether an online volume is no other host's other disk. One that went away is another when
    /// it comes back, for all that is known.
    async fn prove(&mut self, volume: &OfferedVolume) -> Result<(), String> {
        if let VolumeState::Offline(reason) = &volume.state {
            self.proved.remove(&volume.id);
            return Err(reason.clone());
        }
        let standing = self.proved.get(&volume.id);
        if let Some((proved, at)) = standing
            && (proved.is_ok() || at.elapsed() < PROVE_AGAIN)
        {
            return proved.clone();
        }
        let proved = sharing::check(&self.core, self.hello.node.id, volume.id).await;
        self.proved.insert(volume.id, (proved.clone(), Instant::now()));
        proved
    }

    async fn heard(&mut self, message: pb::AgentMessage) -> Result<(), Refusal> {
        match message.message.ok_or(Malformed::Missing("message"))? {
            agent_message::Message::Hello(_) => {
                Err(Malformed::Missing("a message after hello").into())
            }
            agent_message::Message::Ping(pb::Ping {}) => Ok(()),
            agent_message::Message::Volumes(report) => self.offer(Vec::try_from(report)?).await,
            agent_message::Message::Scan(update) => {
                let scan = ScanId::try_from(&*update.scan_id).map_err(Malformed::from)?;
                let volume_id = update.volume_id;
                let update = match update.update.ok_or(Malformed::Missing("update"))? {
                    scan_update::Update::Counts(counts) => Update::Counts(counts.into()),
                    scan_update::Update::Result(result) => Update::Ended(result.into()),
                };
                let volume = VolumeId::try_from(&*volume_id).map_err(Malformed::from)?;
                let by = (self.hello.node.id, volume);
                self.core.scans.update(scan, by, update, clock::now());
                Ok(())
            }
            agent_message::Message::Backlog(backlog) => {
                let volume = VolumeId::try_from(&*backlog.volume_id).map_err(Malformed::from)?;
                self.core.scans.set_backlog(volume, backlog.into());
                Ok(())
            }
        }
    }
}
