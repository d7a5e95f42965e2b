//! The agent's connection to the catalogue: kept up, announced on, listened to. While it is down
//! the agent goes on serving bytes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use isotope_proto::VERSION;
use isotope_proto::cluster::Node;
use isotope_proto::id::{BootId, Incarnation, LeaseId, NodeId, ScanId, VolumeId};
use isotope_proto::pb::agent_service_client::AgentServiceClient;
use isotope_proto::pb::{self, agent_message::Message, catalog_message};
use isotope_proto::refusal::Refusal;
use isotope_proto::report::{Hello, OfferedVolume, ScanOutcome};
use isotope_proto::upload::FileTask;
use isotope_proto::wire::Malformed;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tracing::{info, warn};

use crate::hasher::{self, Hashing};
use crate::hints::Hint;
use crate::http::ToldKey;
use crate::lookout::{Lookouts, Offers};
use crate::stage;
use crate::tell::Link;
use crate::volume::Volume;
use crate::volumes::Volumes;
use crate::worker::{self, Catalog, Keeping, Orders, ended};

/// The catalogue takes an agent for gone after five of these without a word.
const PING: Duration = Duration::from_secs(1);
/// How often staged files that nobody writes are asked about, and the indexes written.
const SWEEP: Duration = Duration::from_secs(3);
/// For one report, the catalogue's sync included.
const REPORT_MAX: Duration = Duration::from_secs(30);
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// Between two tries to connect.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(3);
/// HTTP/2 pings find a catalogue that has gone without a word.
const KEEPALIVE: Duration = Duration::from_secs(2);
/// Messages waiting for the catalogue.
const MESSAGES_MAX: usize = 64;

pub(crate) struct Session {
    pub(crate) node: Node,
    pub(crate) boot: BootId,
    pub(crate) volumes: Volumes,
    pub(crate) catalog: Endpoint,
    pub(crate) hashing: Hashing,
    /// Where the catalogue is shown to others, while there is a session.
    pub(crate) shown: Arc<watch::Sender<Option<Catalog>>>,
    /// Somebody asks for a session now.
    pub(crate) wake: Arc<tokio::sync::Notify>,
    pub(crate) url_key: Arc<ToldKey>,
    pub(crate) stop: CancellationToken,
}

/// What outlives a connection.
struct Kept {
    workers: HashMap<VolumeId, Orders>,
    lookouts: Lookouts,
    offers: watch::Receiver<Offers>,
    /// The last sweep of each volume; one that waits for its disk is not joined by another.
    sweeps: HashMap<VolumeId, JoinHandle<()>>,
    hashing: Hashing,
    /// Files that are read whole at once.
    reads: Arc<Semaphore>,
    /// Until the next try to connect.
    wait: Duration,
}

impl Kept {
    /// Works on the volumes that there are now, and on no others.
    fn follow(&mut self, volumes: &Volumes, node: NodeId) {
        let all = volumes.all();
        for volume in &all {
            self.workers.entry(volume.id).or_insert_with(|| {
                self.lookouts.add(Arc::clone(volume));
                let orders = worker::begin(Arc::clone(volume), node);
                let (volume, keeping) = (Arc::clone(volume), orders.keeping.subscribe());
                hasher::begin(volume, keeping, self.hashing, Arc::clone(&self.reads));
                orders
            });
        }
        let is_there = |id: &VolumeId| all.iter().any(|volume| volume.id == *id);
        self.workers.retain(|id, _| is_there(id));
        self.sweeps.retain(|id, _| is_there(id));
        self.lookouts.retain(is_there);
    }

    /// The session has ended: nobody gave this agent anything to keep.
    fn release_all(&mut self, volumes: &Volumes) {
        for volume in volumes.all() {
            volume.let_go();
        }
        for orders in self.workers.values() {
            orders.keeping.send_replace(None);
        }
    }
}

impl Session {
    /// Until stopped: connect, talk, and when the connection is lost connect again.
    pub(crate) async fn run(self) {
        let (lookouts, offers) = Lookouts::begin();
        let mut kept = Kept {
            workers: HashMap::new(),
            lookouts,
            offers,
            sweeps: HashMap::new(),
            hashing: self.hashing,
            reads: Arc::new(Semaphore::new(hasher::READS_MAX)),
            wait: RETRY_MIN,
        };
        kept.follow(&self.volumes, self.node.id);
        // The catalogue is to hear of all of them at once. Each is found or given up in time.
        let all = kept.workers.len();
        let _ = kept.offers.wait_for(|offers| offers.len() == all).await;
        let mut reported = String::new();
        while !self.stop.is_cancelled() {
            match self.talk(&mut kept).await {
                Ok(()) => info!("the catalogue closed the session"),
                // Said once, not with every try.
                Err(refusal) if refusal.text != reported => {
                    warn!(catalog = %self.catalog.uri(), reason = %refusal, "no session with the catalogue; trying on");
                    reported = refusal.text;
                }
                Err(_) => {}
            }
            self.shown.send_replace(None);
            kept.release_all(&self.volumes);
            tokio::select! {
                () = tokio::time::sleep(kept.wait) => {}
                () = self.wake.notified() => {}
                () = self.stop.cancelled() => {}
            }
            kept.wait = (kept.wait * 2).min(RETRY_MAX);
        }
    }

    async fn connect(&self) -> Result<Channel, Refusal> {
        let endpoint = self
            .catalog
            .clone()
            .connect_timeout(CONNECT_MAX)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE);
        endpoint.connect().await.map_err(|error| {
            let cause =
                std::error::Error::source(&error).map_or(String::new(), |e| format!(": {e}"));
            tonic::Status::unavailable(format!("{error}{cause}")).into()
        })
    }

    async fn talk(&self, kept: &mut Kept) -> Result<(), Refusal> {
        let mut client = AgentServiceClient::new(self.connect().await?);
        let (messages, outbound) = mpsc::channel(MESSAGES_MAX);
        let offered: Vec<_> = kept.offers.borrow_and_update().values().cloned().collect();
        let hello = Hello {
            node: self.node.clone(),
            boot: self.boot,
            version: VERSION.to_owned(),
            volumes: offered.clone(),
        };
        // The channel is new and has room.
        let _ = messages.try_send(message(Message::Hello(hello.into())));
        let mut inbound = client.session(ReceiverStream::new(outbound)).await?.into_inner();
        let mut talk = Talk { session: self, client, messages, offered, incarnation: None };
        let mut volumes = self.volumes.changed();
        let (mut ping, mut sweeping) = (interval(PING), interval(SWEEP));
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                heard = inbound.message() => match heard?.map(|heard| heard.message) {
                    None => return Ok(()),
                    Some(Some(heard)) => talk.heard(heard, kept)?,
                    // From a newer catalogue.
                    Some(None) => {}
                },
                _ = ping.tick() => {
                    let _ = talk.messages.try_send(message(Message::Ping(pb::Ping {})));
                    // What found no room before.
                    talk.offer(kept);
                }
                Ok(()) = kept.offers.changed() => talk.offer(kept),
                Ok(()) = volumes.changed() => kept.follow(&self.volumes, self.node.id),
                _ = sweeping.tick() => talk.sweep(kept),
                () = self.stop.cancelled() => return Ok(()),
            }
        }
    }
}

/// One connection with the catalogue. Nothing in it waits: a catalogue or a disk that does not
/// answer must not keep it from pinging.
struct Talk<'a> {
    session: &'a Session,
    client: AgentServiceClient<Channel>,
    messages: mpsc::Sender<pb::AgentMessage>,
    /// What the catalogue was last told of the volumes.
    offered: Vec<OfferedVolume>,
    /// Of the catalogue that welcomed us.
    incarnation: Option<Incarnation>,
}

impl Talk<'_> {
    fn heard(&mut self, heard: catalog_message::Message, kept: &mut Kept) -> Result<(), Refusal> {
        match heard {
            catalog_message::Message::Welcome(welcome) => {
                let incarnation =
                    Incarnation::try_from(&*welcome.incarnation).map_err(Malformed::from)?;
                info!(catalog = %self.session.catalog.uri(), "connected to the catalogue");
                kept.wait = RETRY_MIN;
                self.session.url_key.hear(&welcome.url_key);
                self.incarnation = Some(incarnation);
                self.session.shown.send_replace(Some(self.client.clone()));
            }
            catalog_message::Message::Keep(keep) => {
                let volume = VolumeId::try_from(&*keep.volume_id).map_err(Malformed::from)?;
                let lease = LeaseId::try_from(&*keep.lease_id).map_err(Malformed::from)?;
                self.keep(kept, volume, lease, keep.images);
            }
            catalog_message::Message::Release(release) => {
                let volume = VolumeId::try_from(&*release.volume_id).map_err(Malformed::from)?;
                // First, so that nothing that is under way keeps it after all.
                self.session.volumes.get(volume).iter().for_each(|volume| volume.let_go());
                if let Some(orders) = kept.workers.get(&volume) {
                    info!(%volume, "another agent keeps the volume");
                    orders.keeping.send_replace(None);
                }
            }
            catalog_message::Message::StartScan(start) => {
                let scan = ScanId::try_from(&*start.scan_id).map_err(Malformed::from)?;
                let volume = VolumeId::try_from(&*start.volume_id).map_err(Malformed::from)?;
                if let Err(failure) = self.ask(&kept.workers, scan, volume) {
                    let outcome = ScanOutcome { failure: Some(failure), ..ScanOutcome::default() };
                    let (messages, ended) = (self.messages.clone(), ended(scan, volume, outcome));
                    // Somebody waits for the end of each scan. Without room it goes out later; the
                    // catalogue bounds how many it asks for, and the session's end ends this.
                    tokio::spawn(async move { messages.send(ended).await });
                }
            }
            catalog_message::Message::Tasks(tasks) => {
                let volume = VolumeId::try_from(&*tasks.volume_id).map_err(Malformed::from)?;
                let tasks = Vec::<FileTask>::try_from(tasks)?;
                if let Some(orders) = kept.workers.get(&volume) {
                    // Full: they are sent again.
                    let _ = orders.tasks.try_send((tasks, self.client.clone()));
                }
            }
        }
        Ok(())
    }

    /// This agent keeps a volume from now on: it looks what has changed since somebody last did.
    fn keep(&self, kept: &Kept, id: VolumeId, lease: LeaseId, images_known: u64) {
        let (Some(volume), Some(orders), Some(incarnation)) =
            (self.session.volumes.get(id), kept.workers.get(&id), self.incarnation)
        else {
            return;
        };
        info!(volume = %id, pool = volume.pool_name, "this agent keeps the volume");
        let (client, node) = (self.client.clone(), self.session.node.id);
        let link = Link { client, incarnation, node, lease };
        let keeping = Keeping { link, messages: self.messages.clone() };
        let (sender, hints) = (orders.keeping.clone(), Arc::clone(&orders.hints));
        volume.want(lease);
        // The index of whoever kept it before is read from the disk.
        tokio::task::spawn_blocking(move || {
            volume.keep(lease, images_known, || {
                sender.send_replace(Some(keeping));
                hints.hear(Hint::Lost);
            });
        });
    }

    fn ask(
        &self,
        workers: &HashMap<VolumeId, Orders>,
        scan: ScanId,
        volume: VolumeId,
    ) -> Result<(), String> {
        let no_volume = "this node does not have the volume";
        let orders = workers.get(&volume).ok_or(no_volume)?;
        if self.session.volumes.get(volume).ok_or(no_volume)?.is_silent() {
            return Err("the volume's directory does not answer".to_owned());
        }
        orders
            .scans
            .try_send((scan, self.messages.clone()))
            .map_err(|_| "too many scans of the volume are waiting".to_owned())
    }

    /// Tells what the volumes are now, and looks at those that came back.
    fn offer(&mut self, kept: &mut Kept) {
        let now: Vec<_> = kept.offers.borrow_and_update().values().cloned().collect();
        let before = self.offered.clone();
        if !tell_offers(&self.messages, &mut self.offered, now) {
            return;
        }
        for volume in came_back(&before, &self.offered) {
            kept.workers.get(&volume).iter().for_each(|orders| orders.hints.hear(Hint::Lost));
        }
    }

    fn sweep(&self, kept: &mut Kept) {
        if self.incarnation.is_none() {
            return;
        }
        for volume in self.session.volumes.all() {
            let id = volume.id;
            if kept.sweeps.get(&id).is_none_or(JoinHandle::is_finished) {
                let sweep = sweep(volume, self.session.node.id, self.client.clone());
                kept.sweeps.insert(id, tokio::spawn(sweep));
            }
        }
    }
}

/// Tells the catalogue what the volumes are `now`, if that is news. False if nothing was told:
/// what finds no room is still news the next time.
fn tell_offers(
    messages: &mpsc::Sender<pb::AgentMessage>,
    offered: &mut Vec<OfferedVolume>,
    now: Vec<OfferedVolume>,
) -> bool {
    if now == *offered {
        return false;
    }
    let volumes = now.iter().cloned().map(Into::into).collect();
    let told = messages.try_send(message(Message::Volumes(pb::VolumesReport { volumes })));
    if told.is_ok() {
        *offered = now;
    }
    told.is_ok()
}

/// Volumes that are online now and were not before.
fn came_back(before: &[OfferedVolume], now: &[OfferedVolume]) -> Vec<VolumeId> {
    use isotope_proto::cluster::VolumeState::{Offline, Online};
    let was_offline = |id: VolumeId| {
        before.iter().any(|volume| volume.id == id && matches!(volume.state, Offline(_)))
    };
    let back = now.iter().filter(|it| matches!(it.state, Online(_)) && was_offline(it.id));
    back.map(|volume| volume.id).collect()
}

pub(crate) fn message(message: Message) -> pb::AgentMessage {
    pb::AgentMessage { message: Some(message) }
}

/// Writes the index; asks of staged files that nobody is writing whether they are still wanted,
/// and removes those that are not: their writers gave up, or died.
async fn sweep(volume: Arc<Volume>, node: NodeId, mut catalog: Catalog) {
    let at = Arc::clone(&volume);
    let left = tokio::task::spawn_blocking(move || {
        if let Err(error) = at.save_index() {
            warn!(volume = %at.id, %error, "the volume's index could not be written");
        }
        stage::left_behind(&at, node)
    });
    let Ok(Ok(left)) = left.await else { return };
    if left.is_empty() {
        return;
    }
    let image_ids = left.iter().copied().map(Into::into).collect();
    let mut request = tonic::Request::new(pb::CheckUploadsRequest { image_ids });
    request.set_timeout(REPORT_MAX);
    let Ok(reply) = catalog.check_uploads(request).await else { return };
    let wanted = reply.into_inner().wanted_ids;
    let unwanted: Vec<_> =
        left.into_iter().filter(|image| !wanted.contains(&(*image).into())).collect();
    let cleared = tokio::task::spawn_blocking(move || {
        let Ok(root) = volume.root() else { return };
        for image in unwanted {
            info!(%image, "an upload was given up; its staged file is removed");
            volume.index_mut().drop_aside(image);
            if let Err(error) = stage::clear(&root, node, image) {
                warn!(%image, %error, "a staged file could not be removed; it is tried again");
            }
        }
    });
    // A panic of the closure is logged by the runtime; the next sweep tries again.
    let _ = cleared.await;
}

#[cfg(test)]
mod tests {
    use isotope_proto::cluster::VolumeState;

    use super::*;

    #[tokio::test]
    async fn what_found_no_room_is_told_later() {
        let volume = |reason: &str| OfferedVolume {
            id: VolumeId::from_bytes([1; 16]),
            pool_name: "isos".to_owned(),
            path: "/isos".to_owned(),
            state: VolumeState::Offline(reason.to_owned()),
        };
        let (messages, mut outbound) = mpsc::channel(1);
        let mut offered = vec![volume("before")];
        let now = || vec![volume("now")];
        messages.try_send(message(Message::Ping(pb::Ping {}))).expect("room for one");
        assert!(!tell_offers(&messages, &mut offered, now()));
        assert_eq!(offered, [volume("before")], "it has not been told");
        outbound.recv().await.expect("the ping");
        assert!(tell_offers(&messages, &mut offered, now()));
        assert!(!tell_offers(&messages, &mut offered, now()), "no news");
    }
}
