//! Agents: their sessions, and what they report.

use std::collections::BTreeSet;
use std::time::Duration;

use isotope_proto::id::{ImageId, ScanId, VolumeId};
use isotope_proto::pb::agent_service_server::AgentService;
use isotope_proto::pb::{self, agent_message, catalog_message, scan_update};
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::report::{FILE_CHANGES_MAX, FileChange, Hello, OfferedVolume};
use isotope_proto::upload::{TASKS_MAX, TaskDone};
use isotope_proto::wire::Malformed;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::warn;

use super::STREAM_MAX;
use crate::Core;
use crate::nodes::{Command, SILENCE_MAX};
use crate::scans::Update;
use crate::store::{Outcome, Verb};

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
        let (number, commands) = self.0.nodes.connect(hello.clone())?;
        let session = Session { core: self.0.clone(), number, hello };
        self.0.store.commit(None, Verb::Register { hello: session.hello.clone() }).await?;
        let (out, stream) = mpsc::channel(STREAM_MAX);
        let welcome = catalog_message::Message::Welcome(pb::Welcome {
            incarnation: self.0.store.incarnation().into(),
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
        if request.events.len() > FILE_CHANGES_MAX {
            let text = format!("a report holds at most {FILE_CHANGES_MAX} files");
            return Err(Refusal::new(Reason::Malformed, text).into());
        }
        let changes =
            request.events.into_iter().map(FileChange::try_from).collect::<Result<_, _>>()?;
        let everything = request.everything.map(BTreeSet::try_from).transpose()?;
        let verb = Verb::ApplyFiles { volume, changes, everything };
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

/// Tasks go out anew so often even when nothing changed: an agent may have failed to do them.
const TASKS_EVERY: Duration = Duration::from_secs(5);

/// One agent's session; the node is disconnected when it is dropped, however that comes.
struct Session {
    core: Core,
    number: u64,
    hello: Hello,
}

impl Drop for Session {
    fn drop(&mut self) {
        let node = self.hello.node.id;
        if self.core.nodes.disconnect(node, self.number) {
            self.core.scans.node_gone(node);
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
                    let Some(Command::Scan { scan, volume }) = command else { return };
                    let start = pb::StartScan { scan_id: scan.into(), volume_id: volume.into() };
                    let message = Some(catalog_message::Message::StartScan(start));
                    if out.send(Ok(pb::CatalogMessage { message })).await.is_err() {
                        return;
                    }
                }
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

    async fn heard(&mut self, message: pb::AgentMessage) -> Result<(), Refusal> {
        match message.message.ok_or(Malformed::Missing("message"))? {
            agent_message::Message::Hello(_) => {
                Err(Malformed::Missing("a message after hello").into())
            }
            agent_message::Message::Ping(pb::Ping {}) => Ok(()),
            agent_message::Message::Volumes(report) => {
                let volumes = Vec::<OfferedVolume>::try_from(report)?;
                self.hello.volumes.clone_from(&volumes);
                let hello = self.hello.clone();
                self.core.store.commit(None, Verb::Register { hello }).await?;
                self.core.nodes.offer(self.hello.node.id, self.number, volumes);
                Ok(())
            }
            agent_message::Message::Scan(update) => {
                let scan = ScanId::try_from(&*update.scan_id).map_err(Malformed::from)?;
                let update = match update.update.ok_or(Malformed::Missing("update"))? {
                    scan_update::Update::FilesSeen(count) => Update::FilesSeen(count),
                    scan_update::Update::Result(result) => Update::Ended(result.into()),
                };
                self.core.scans.update(scan, update);
                Ok(())
            }
        }
    }
}
