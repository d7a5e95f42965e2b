//! The agent's connection to the catalogue: kept up, announced on, listened to. While it is down
//! the agent goes on serving bytes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use isotope_proto::VERSION;
use isotope_proto::cluster::Node;
use isotope_proto::id::{BootId, Incarnation, ScanId, VolumeId};
use isotope_proto::pb::agent_service_client::AgentServiceClient;
use isotope_proto::pb::{self, agent_message::Message, catalog_message, scan_update};
use isotope_proto::refusal::Refusal;
use isotope_proto::report::{Hello, OfferedVolume, ScanOutcome};
use isotope_proto::wire::Malformed;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tracing::{info, warn};

use crate::Volumes;
use crate::scan::{Link, scan};
use crate::volume::Volume;

/// The catalogue takes an agent for gone after five of these without a word.
const PING: Duration = Duration::from_secs(1);
/// How often the directories are looked at: a mounted or unmounted disk shows within it.
const LOOK: Duration = Duration::from_secs(2);
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// Between two tries to connect.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(3);
/// HTTP/2 pings find a catalogue that has gone without a word.
const KEEPALIVE: Duration = Duration::from_secs(2);
/// Messages waiting for the catalogue.
const MESSAGES_MAX: usize = 64;
/// Scans waiting for one volume: the one that runs may have passed a new file already, the next
/// one has not begun.
const SCANS_MAX: usize = 16;

pub(crate) struct Session {
    pub(crate) node: Node,
    pub(crate) boot: BootId,
    pub(crate) volumes: Volumes,
    pub(crate) catalog: Endpoint,
    pub(crate) stop: CancellationToken,
}

/// A scan to be made; without an id when nobody waits for it.
struct ScanRequest {
    scan: Option<ScanId>,
    link: Link,
    messages: mpsc::Sender<pb::AgentMessage>,
}

type Scanners = HashMap<VolumeId, mpsc::Sender<ScanRequest>>;

impl Session {
    /// Until stopped: connect, talk, and when the connection is lost connect again.
    pub(crate) async fn run(self) {
        let scanners: Scanners = self
            .volumes
            .iter()
            .map(|(id, volume)| {
                let (requests, queue) = mpsc::channel(SCANS_MAX);
                tokio::spawn(scan_in_turn(Arc::clone(volume), queue));
                (*id, requests)
            })
            .collect();
        let mut wait = RETRY_MIN;
        let mut reported = String::new();
        while !self.stop.is_cancelled() {
            match self.talk(&scanners, &mut wait).await {
                Ok(()) => info!("the catalogue closed the session"),
                // Said once, not with every try.
                Err(refusal) if refusal.text != reported => {
                    warn!(catalog = %self.catalog.uri(), reason = %refusal, "no session with the catalogue; trying on");
                    reported = refusal.text;
                }
                Err(_) => {}
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.stop.cancelled() => {}
            }
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    async fn offered(&self) -> Vec<OfferedVolume> {
        let volumes: Vec<_> = self.volumes.values().map(Arc::clone).collect();
        let look = move || volumes.iter().map(|volume| volume.look()).collect();
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
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

    async fn talk(&self, scanners: &Scanners, wait: &mut Duration) -> Result<(), Refusal> {
        let mut client = AgentServiceClient::new(self.connect().await?);
        let (messages, outbound) = mpsc::channel(MESSAGES_MAX);
        let mut offered = self.offered().await;
        let hello = Hello {
            node: self.node.clone(),
            boot: self.boot,
            version: VERSION.to_owned(),
            volumes: offered.clone(),
        };
        // The channel is new and has room.
        let _ = messages.try_send(message(Message::Hello(hello.into())));
        let mut inbound = client.session(ReceiverStream::new(outbound)).await?.into_inner();
        let mut link: Option<Link> = None;
        let (mut ping, mut look) = (interval(PING), interval(LOOK));
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                heard = inbound.message() => match heard?.map(|heard| heard.message) {
                    None => return Ok(()),
                    Some(Some(catalog_message::Message::Welcome(welcome))) => {
                        let incarnation = Incarnation::try_from(&*welcome.incarnation).map_err(Malformed::from)?;
                        info!(catalog = %self.catalog.uri(), "connected to the catalogue");
                        *wait = RETRY_MIN;
                        let client = client.clone();
                        let now = Link { client, incarnation, node: self.node.id };
                        for requests in scanners.values() {
                            let request = ScanRequest { scan: None, link: now.clone(), messages: messages.clone() };
                            // Full: scans are waiting that will see the same.
                            let _ = requests.try_send(request);
                        }
                        link = Some(now);
                    }
                    Some(Some(catalog_message::Message::StartScan(start))) => {
                        let scan = ScanId::try_from(&*start.scan_id).map_err(Malformed::from)?;
                        let volume = VolumeId::try_from(&*start.volume_id).map_err(Malformed::from)?;
                        if let Err(failure) = ask(scanners, link.as_ref(), scan, volume, &messages) {
                            let outcome = ScanOutcome { failure: Some(failure), ..ScanOutcome::default() };
                            let _ = messages.try_send(ended(scan, volume, outcome));
                        }
                    }
                    // From a newer catalogue.
                    Some(None) => {}
                },
                _ = ping.tick() => {
                    let _ = messages.try_send(message(Message::Ping(pb::Ping {})));
                }
                _ = look.tick() => {
                    let now = self.offered().await;
                    if now != offered {
                        if let Some(link) = &link {
                            scan_what_came_back(scanners, link, &offered, &now, &messages);
                        }
                        offered.clone_from(&now);
                        let volumes = now.into_iter().map(Into::into).collect();
                        let _ = messages.try_send(message(Message::Volumes(pb::VolumesReport { volumes })));
                    }
                }
                () = self.stop.cancelled() => return Ok(()),
            }
        }
    }
}

fn message(message: Message) -> pb::AgentMessage {
    pb::AgentMessage { message: Some(message) }
}

fn ended(scan: ScanId, volume: VolumeId, outcome: ScanOutcome) -> pb::AgentMessage {
    update(scan, volume, scan_update::Update::Result(outcome.into()))
}

fn update(scan: ScanId, volume: VolumeId, update: scan_update::Update) -> pb::AgentMessage {
    let (scan_id, volume_id) = (scan.into(), volume.into());
    message(Message::Scan(pb::ScanUpdate { scan_id, volume_id, update: Some(update) }))
}

fn ask(
    scanners: &Scanners,
    link: Option<&Link>,
    scan: ScanId,
    volume: VolumeId,
    messages: &mpsc::Sender<pb::AgentMessage>,
) -> Result<(), String> {
    let requests = scanners.get(&volume).ok_or("this node does not have the volume")?;
    let link = link.ok_or("the session has not begun")?.clone();
    let request = ScanRequest { scan: Some(scan), link, messages: messages.clone() };
    requests.try_send(request).map_err(|_| "too many scans of the volume are waiting".to_owned())
}

fn scan_what_came_back(
    scanners: &Scanners,
    link: &Link,
    before: &[OfferedVolume],
    now: &[OfferedVolume],
    messages: &mpsc::Sender<pb::AgentMessage>,
) {
    use isotope_proto::cluster::VolumeState::{Offline, Online};
    let was_offline = |id: VolumeId| {
        before.iter().any(|volume| volume.id == id && matches!(volume.state, Offline(_)))
    };
    for volume in now.iter().filter(|it| matches!(it.state, Online(_)) && was_offline(it.id)) {
        if let Some(requests) = scanners.get(&volume.id) {
            let (link, messages) = (link.clone(), messages.clone());
            let _ = requests.try_send(ScanRequest { scan: None, link, messages });
        }
    }
}

/// Scans of one volume never overlap.
async fn scan_in_turn(volume: Arc<Volume>, mut queue: mpsc::Receiver<ScanRequest>) {
    while let Some(ScanRequest { scan: id, link, messages }) = queue.recv().await {
        let (progress, at) = (messages.clone(), volume.id);
        let tell = move |count| {
            if let Some(id) = id {
                // Progress that finds no room is old by the time there is some.
                let _ = progress.try_send(update(id, at, scan_update::Update::FilesSeen(count)));
            }
        };
        let outcome = scan(Arc::clone(&volume), link, tell).await;
        if let Some(id) = id {
            // Nobody is left to hear it when the session has ended.
            let _ = messages.send(ended(id, volume.id, outcome)).await;
        }
    }
}
