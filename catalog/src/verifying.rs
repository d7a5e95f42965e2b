//! Having files read whole and compared with their hashes: of one image, of a pool, of all. Each
//! volume's files are read one after another, by a node that sees it; different volumes at the same
//! time.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use isotope_proto::cluster::{Node, Pool, Volume};
use isotope_proto::id::{ImageId, NodeId, VolumeId};
use isotope_proto::image::Image;
use isotope_proto::pb::{self, verify_event};
use isotope_proto::refusal::{Reason, Refusal};
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::Core;
use crate::hosts::Host;
use crate::library::{self, pool_called};
use crate::placement::{Choice, choose};

/// Events that wait for a slow listener; then the run waits.
const EVENTS_MAX: usize = 32;

/// Suspect files read at once; whoever meets another one reports it again.
const SUSPECTS_MAX: usize = 16;

/// Which files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    Image(ImageId),
    /// An image's file on one volume.
    Copy(ImageId, VolumeId),
    Pool(String),
    Everything,
}

/// One file to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    /// In the library.
    pub(crate) path: String,
    pub(crate) image: ImageId,
    pub(crate) pool: String,
    pub(crate) node: String,
    /// On its volume.
    pub(crate) file: String,
    pub(crate) size_bytes: u64,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event {
    Progress { file: File, bytes_read: u64 },
    Result { file: File, verdict: pb::Verdict },
}

/// What can be read of the cluster at once.
struct Known {
    pools: Vec<Pool>,
    volumes: Vec<Volume>,
    nodes: Vec<Node>,
}

/// Begins to verify; what happens comes through the channel, which ends when all is done.
pub(crate) async fn begin(core: &Core, what: What) -> Result<mpsc::Receiver<Event>, Refusal> {
    let only = match what {
        What::Copy(_, volume) => Some(volume),
        What::Image(_) | What::Pool(_) | What::Everything => None,
    };
    let (known, images) = core
        .store
        .read(move |rows| {
            let known =
                Known { pools: rows.pools()?, volumes: rows.volumes()?, nodes: rows.nodes()? };
            let ids = match &what {
                What::Image(id) | What::Copy(id, _) => vec![*id],
                What::Pool(name) => {
                    let pool = pool_called(&known.pools, name)?.id;
                    rows.image_ids_in(pool)?
                }
                What::Everything => rows.image_ids()?,
            };
            Ok((known, ids))
        })
        .await?;
    let mut by_volume: BTreeMap<VolumeId, Vec<ImageId>> = BTreeMap::new();
    for id in images {
        let volumes = core.store.read(move |rows| {
            let Some(image) = rows.image_or_alias(id)? else {
                return Err(Refusal::new(Reason::NotFound, format!("no image has the id {id}")));
            };
            Ok(image.replicas.into_iter().map(|it| it.volume).collect::<Vec<_>>())
        });
        for volume in volumes.await?.into_iter().filter(|it| only.is_none_or(|only| only == *it)) {
            by_volume.entry(volume).or_default().push(id);
        }
    }
    let (events, stream) = mpsc::channel(EVENTS_MAX);
    for (volume, images) in by_volume {
        let run = Run::new(core, &known, volume, events.clone());
        tokio::spawn(run.all(images));
    }
    Ok(stream)
}

/// A mount got wrong bytes from a file: that is read whole where it lies, and what is found told as
/// always. A file that is being looked at already is not looked at twice.
pub(crate) fn suspect(core: &Core, image: ImageId, volume: VolumeId) {
    if !core.suspects.begin(image, volume) {
        return;
    }
    let core = core.clone();
    tokio::spawn(async move {
        match begin(&core, What::Copy(image, volume)).await {
            Ok(mut events) => while events.recv().await.is_some() {},
            Err(refusal) => {
                warn!(%image, %volume, reason = %refusal, "a suspect file cannot be read");
            }
        }
        core.suspects.end(image, volume);
    });
}

/// Files that are being read whole because somebody got wrong bytes from them.
#[derive(Default)]
pub(crate) struct Suspects(Mutex<HashSet<(ImageId, VolumeId)>>);

impl Suspects {
    fn lock(&self) -> MutexGuard<'_, HashSet<(ImageId, VolumeId)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False if it is being read already, or too many are.
    fn begin(&self, image: ImageId, volume: VolumeId) -> bool {
        let mut all = self.lock();
        all.len() < SUSPECTS_MAX && all.insert((image, volume))
    }

    fn end(&self, image: ImageId, volume: VolumeId) {
        self.lock().remove(&(image, volume));
    }
}

/// The files of one volume.
struct Run {
    core: Core,
    volume: VolumeId,
    pool: String,
    /// Who reads; or why nobody can.
    node: Result<Node, String>,
    events: mpsc::Sender<Event>,
}

impl Run {
    fn new(core: &Core, known: &Known, volume: VolumeId, events: mpsc::Sender<Event>) -> Self {
        let pool = known.volumes.iter().find(|it| it.id == volume).map(|it| it.pool);
        let pool = known.pools.iter().find(|it| Some(it.id) == pool);
        let keeper = core.keepers.of(volume).map(|lease| lease.node);
        let chosen = pool.map(|pool| choose(pool, &core.nodes.offering(volume)));
        let node: Result<NodeId, String> = match (keeper, chosen) {
            (Some(keeper), _) => Ok(keeper),
            (None, Some(Choice::Node { node, .. })) => Ok(node),
            (None, Some(Choice::Skip { reason })) => Err(reason.to_owned()),
            (None, None) => Err("its volume is not known".to_owned()),
        };
        let node = node.and_then(|id| {
            let known = known.nodes.iter().find(|node| node.id == id);
            known.cloned().ok_or_else(|| "its node is not known".to_owned())
        });
        let pool = pool.map(|pool| pool.name.clone()).unwrap_or_default();
        Self { core: core.clone(), volume, pool, node, events }
    }

    async fn all(self, images: Vec<ImageId>) {
        for id in images {
            let found = self.core.store.read(move |rows| {
                let Some(image) = rows.image_or_alias(id)? else { return Ok(None) };
                let path = library::path_of(rows, image.ino)?.to_string();
                Ok(Some((image, path)))
            });
            // Deleted since.
            let Ok(Some((image, path))) = found.await else { continue };
            // Nobody listens any more: what is being read is not read to its end.
            if self.one(&image, &path).await.is_err() {
                return;
            }
        }
    }

    async fn one(&self, image: &Image, path: &str) -> Result<(), mpsc::error::SendError<Event>> {
        let Some(replica) = image.replicas.iter().find(|it| it.volume == self.volume) else {
            return Ok(());
        };
        let file = File {
            path: path.to_owned(),
            image: image.id,
            pool: self.pool.clone(),
            node: self.node.as_ref().map(|node| node.name.clone()).unwrap_or_default(),
            file: replica.path.to_string(),
            size_bytes: image.size_bytes,
        };
        let verdict = match self.read(image.id, &file).await {
            Ok(verdict) => verdict,
            Err(text) => {
                pb::Verdict { kind: pb::VerdictKind::Unreadable.into(), text, ..Default::default() }
            }
        };
        info!(path, volume = %self.volume, verdict = ?verdict.kind(), "a file was verified");
        self.events.send(Event::Result { file, verdict }).await
    }

    async fn read(&self, image: ImageId, file: &File) -> Result<pb::Verdict, String> {
        let node = self.node.as_ref().map_err(Clone::clone)?;
        let mut host = Host::connect(node).await.map_err(|refusal| refusal.text)?;
        let (volume_id, image_id) = (self.volume.into(), image.into());
        let request = pb::VerifyRequest { volume_id, image_id };
        let mut heard = host.verify(request).await.map_err(|refusal| refusal.text)?;
        loop {
            let event = heard.message().await.map_err(|status| Refusal::from(status).text)?;
            match event.and_then(|event| event.event) {
                Some(verify_event::Event::BytesRead(bytes_read)) => {
                    let event = Event::Progress { file: file.clone(), bytes_read };
                    let sent = self.events.send(event).await;
                    sent.map_err(|_| "nobody waits for it any more".to_owned())?;
                }
                Some(verify_event::Event::Verdict(verdict)) => return Ok(verdict),
                None => return Err("its agent ended without a verdict".to_owned()),
            }
        }
    }
}
