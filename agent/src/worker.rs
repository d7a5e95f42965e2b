//! One worker a volume: what is done with a volume is done in turn, for a scan would take a file
//! that is being moved for two. It decides when to look by itself, from what is heard of the disk.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use isotope_proto::crash_point;
use isotope_proto::id::{NodeId, ScanId, VolumeId};
use isotope_proto::pb::agent_service_client::AgentServiceClient;
use isotope_proto::pb::{self, agent_message::Message, scan_update};
use isotope_proto::refusal::Refusal;
use isotope_proto::report::{ScanCounts, ScanOutcome};
use isotope_proto::upload::FileTask;
use tokio::sync::{mpsc, watch};
use tonic::transport::Channel;
use tracing::warn;

use crate::hasher::{backlog, backlog_message};
use crate::scan::{Waiting, scan};
use crate::session::message;
use crate::tell::Link;
use crate::volume::Volume;
use crate::watch::{Hints, Reach, Watch};
use crate::{clock, tasks};

/// Scans that wait for one volume, which are one scan; tasks that find no room are sent again.
const WAITING_MAX: usize = 16;
/// For one report, the catalogue's sync included.
const REPORT_MAX: Duration = Duration::from_secs(30);
/// What is open for writing is looked at again, should its close not have been heard.
const OPEN_AGAIN: Duration = Duration::from_secs(10);
/// And so is what may be written by another host, once it may have stopped changing.
const UNSURE_AGAIN: Duration = Duration::from_secs(2);
/// A scan that failed, as where the catalogue did not take its report, is made again; what it saw
/// may have been heard of before it.
const FAILED_AGAIN: Duration = Duration::from_secs(30);
/// A scan that others joined looks once more, for it may have passed what they mean; but not for
/// ever.
const JOINED_MAX: usize = 3;

/// Where a worker's results go while the catalogue is connected and this agent keeps the volume.
#[derive(Clone)]
pub(crate) struct Keeping {
    pub(crate) link: Link,
    pub(crate) messages: Messages,
}

pub(crate) type Messages = mpsc::Sender<pb::AgentMessage>;
pub(crate) type Catalog = AgentServiceClient<Channel>;

/// What the session asks of a volume's worker.
pub(crate) struct Orders {
    /// Scans, and who is to hear of their ends.
    pub(crate) scans: mpsc::Sender<(ScanId, Messages)>,
    pub(crate) tasks: mpsc::Sender<(Vec<FileTask>, Catalog)>,
    pub(crate) hints: Arc<Hints>,
    pub(crate) keeping: watch::Sender<Option<Keeping>>,
}

struct Worker {
    volume: Arc<Volume>,
    node: NodeId,
    scans: mpsc::Receiver<(ScanId, Messages)>,
    tasks: mpsc::Receiver<(Vec<FileTask>, Catalog)>,
    hints: Arc<Hints>,
    keeping: watch::Receiver<Option<Keeping>>,
    watch: Option<Watch>,
    /// Why changes are not heard of, as it was last said.
    deaf: Option<String>,
    waiting: Arc<Mutex<Waiting>>,
}

/// Begins to work on a volume, until it is left.
pub(crate) fn begin(volume: Arc<Volume>, node: NodeId) -> Orders {
    let (scans, scan_queue) = mpsc::channel(WAITING_MAX);
    let (tasks, task_queue) = mpsc::channel(WAITING_MAX);
    let (keeping, keeping_now) = watch::channel(None);
    let hints = Arc::<Hints>::default();
    let worker = Worker {
        volume,
        node,
        scans: scan_queue,
        tasks: task_queue,
        hints: Arc::clone(&hints),
        keeping: keeping_now,
        watch: None,
        deaf: None,
        waiting: Arc::default(),
    };
    tokio::spawn(worker.run());
    Orders { scans, tasks, hints, keeping }
}

impl Worker {
    async fn run(mut self) {
        let left = self.volume.left.clone();
        loop {
            let keeps = self.keeping.borrow().is_some();
            tokio::select! {
                () = left.cancelled() => return,
                Some(scan) = self.scans.recv() => self.scan(Some(scan)).await,
                Some((tasks, catalog)) = self.tasks.recv() => self.carry_out(tasks, catalog).await,
                () = self.hints.due(), if keeps => self.scan(None).await,
                changed = self.keeping.changed() => if changed.is_err() { return },
            }
        }
    }

    /// One scan for all who ask for one until it ends.
    async fn scan(&mut self, first: Option<(ScanId, Messages)>) {
        let Some(Keeping { link, messages }) = self.keeping.borrow_and_update().clone() else {
            if let Some((scan, messages)) = first {
                let failure = Some("another node keeps the volume now".to_owned());
                let outcome = ScanOutcome { failure, ..ScanOutcome::default() };
                let _ = messages.send(ended(scan, self.volume.id, outcome)).await;
            }
            return;
        };
        let mut asked: Vec<ScanId> = first.into_iter().map(|(scan, _)| scan).collect();
        let own = ScanId::mint(clock::now());
        let mut outcome = ScanOutcome::default();
        for _ in 0..JOINED_MAX {
            if self.hints.begin_look() {
                self.watch = None;
            }
            self.listen().await;
            let ids = if asked.is_empty() { vec![own] } else { asked.clone() };
            let tell = progress(messages.clone(), self.volume.id, ids, outcome.counts);
            let volume = Arc::clone(&self.volume);
            let (once, walked) = scan(volume, link.clone(), Arc::clone(&self.waiting), tell).await;
            self.hints.end_look(walked);
            outcome = and_then(outcome, once);
            outcome.problems.extend(self.deaf.clone().map(|why| (String::new(), why)));
            let before = asked.len();
            asked.extend(std::iter::from_fn(|| self.scans.try_recv().ok()).map(|(scan, _)| scan));
            let unsure = !self.lock_waiting().unsure.is_empty() && !asked.is_empty();
            if unsure {
                // Whoever asked wants to see what is there.
                tokio::time::sleep(UNSURE_AGAIN).await;
            } else if asked.len() == before {
                break;
            }
        }
        self.look_again();
        if outcome.failure.is_some() {
            self.hints.look_again_in(FAILED_AGAIN);
        }
        if asked.is_empty() {
            asked.push(own);
        }
        // Whoever waits for the hashes is told what there is to wait for before the end of the scan.
        let _ = messages.send(backlog_message(&self.volume, backlog(&self.volume))).await;
        for id in asked {
            // Nobody is left to hear it when the session has ended.
            let _ = messages.send(ended(id, self.volume.id, outcome.clone())).await;
        }
    }

    fn lock_waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look_again(&self) {
        let waiting = self.lock_waiting();
        if !waiting.unsure.is_empty() {
            self.hints.look_again_in(UNSURE_AGAIN);
        } else if !waiting.open.is_empty() {
            self.hints.look_again_in(OPEN_AGAIN);
        }
    }

    /// Watches the images' directory that is there now, or where it would be made. Begun before a
    /// look, so that what it passes is heard of.
    async fn listen(&mut self) {
        let dir = self.volume.path.join(self.volume.layout().image_dir());
        let (watch, hints) = (self.watch.take(), Arc::clone(&self.hints));
        let (volume, at) = (Arc::clone(&self.volume), dir.clone());
        let watched = tokio::task::spawn_blocking(move || {
            volume.root()?;
            let there = nearest_there(&volume.path, &at);
            let reach = if there == at { Reach::All } else { Reach::Itself };
            let stat = rustix::fs::stat(&there).map_err(|error| error.to_string())?;
            match watch {
                Some(watch) if watch.is_of(&there, stat.st_ino, reach) => Ok(watch),
                Some(_) | None => {
                    Watch::begin(&there, stat.st_ino, reach, move |hint| hints.hear(hint))
                }
            }
        });
        let listened = match watched.await {
            Ok(listened) => listened,
            Err(error) => Err(error.to_string()),
        };
        let deaf = match listened {
            Ok(watch) => {
                self.watch = Some(watch);
                None
            }
            // Nothing lies there; its coming is noticed by the lookout.
            Err(_) if self.volume.root().is_err() => None,
            Err(why) => Some(format!("changes show with the next scan only: {why}")),
        };
        if deaf != self.deaf
            && let Some(why) = &deaf
        {
            warn!(dir = %dir.display(), why, "the directory is not watched");
        }
        self.deaf = deaf;
    }

    /// Not reported is sent again, and found done.
    async fn carry_out(&mut self, tasks: Vec<FileTask>, mut catalog: Catalog) {
        let (at, node) = (Arc::clone(&self.volume), self.node);
        let done = tokio::task::spawn_blocking(move || tasks::carry_out(&at, node, tasks)).await;
        let done: Vec<_> = done.unwrap_or_default().into_iter().map(Into::into).collect();
        if done.is_empty() {
            return;
        }
        let volume_id = self.volume.id.into();
        let mut report = tonic::Request::new(pb::ReportTasksRequest { volume_id, done });
        report.set_timeout(REPORT_MAX);
        let reported = catalog.report_tasks(report).await;
        crash_point!("agent.tasks.reported");
        if let Err(status) = reported {
            warn!(volume = %self.volume.id, reason = %Refusal::from(status), "finished tasks could not be reported; they are asked for again");
        }
    }
}

/// The lowest directory that there is on the way to `dir`, from the volume's own.
fn nearest_there(root: &Path, dir: &Path) -> PathBuf {
    let on_the_way = dir.ancestors().take_while(|it| it.starts_with(root));
    let there = on_the_way.take_while(|it| *it != root).find(|it| it.is_dir());
    there.unwrap_or(root).to_owned()
}

/// One scan after another, as one.
fn and_then(first: ScanOutcome, second: ScanOutcome) -> ScanOutcome {
    ScanOutcome { counts: sum(first.counts, second.counts), ..second }
}

fn sum(before: ScanCounts, now: ScanCounts) -> ScanCounts {
    ScanCounts {
        created: before.created + now.created,
        updated: before.updated + now.updated,
        deleted: before.deleted + now.deleted,
        ..now
    }
}

/// Tells all who wait how far a scan is.
fn progress(
    messages: Messages,
    volume: VolumeId,
    ids: Vec<ScanId>,
    before: ScanCounts,
) -> impl Fn(ScanCounts) + Send + Sync {
    move |counts| {
        for id in &ids {
            let counts = scan_update::Update::Counts(sum(before, counts).into());
            // Progress that finds no room is old by the time there is some.
            let _ = messages.try_send(update(*id, volume, counts));
        }
    }
}

/// The end of a scan, in a message.
pub(crate) fn ended(scan: ScanId, volume: VolumeId, outcome: ScanOutcome) -> pb::AgentMessage {
    update(scan, volume, scan_update::Update::Result(outcome.into()))
}

fn update(scan: ScanId, volume: VolumeId, update: scan_update::Update) -> pb::AgentMessage {
    let (scan_id, volume_id) = (scan.into(), volume.into());
    message(Message::Scan(pb::ScanUpdate { scan_id, volume_id, update: Some(update) }))
}
