//! Talking to the catalogue as a command does: connect, ask, answer in the command's words.

mod view;

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Context as _;
use isotope_proto::cluster::{Live, Node, Pool, Volume, VolumeState};
use isotope_proto::id::{ImageId, NodeId, PoolId, RequestId, VolumeId};
use isotope_proto::image::Image;
use isotope_proto::name::{LibraryPath, VIEWS};
use isotope_proto::pb::cluster_service_client::ClusterServiceClient;
use isotope_proto::pb::library_service_client::LibraryServiceClient;
use isotope_proto::pb::{self, stat_request::Target};
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::time::Timestamp;
use isotope_proto::tree::{FolderRef, Place};
use isotope_proto::wire::Malformed;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

pub(crate) use view::{Item, ItemKind};

/// A command waits so long for a catalogue to answer its call.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// A mount answers from memory; one that takes so long is dead, or stopped.
const MOUNT_ANSWER_MAX: Duration = Duration::from_secs(1);
/// For one call that is no stream.
const CALL_MAX: Duration = Duration::from_secs(10);

pub(crate) struct Client {
    pub(crate) library: LibraryServiceClient<Channel>,
    pub(crate) cluster: ClusterServiceClient<Channel>,
}

/// The whole of what the catalogue says of hosts and pools.
pub(crate) struct Status {
    pub(crate) raw: pb::ClusterStatus,
    pub(crate) nodes: Vec<Node>,
    pub(crate) pools: Vec<Pool>,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) live: Live,
}

impl Client {
    pub(crate) async fn connect(url: &str) -> anyhow::Result<Self> {
        let unreachable = |why: String| {
            let text = format!(
                "cannot reach the catalogue at {url}: {why}; is it running (isotope up), and is \
                 --server or catalog.url right?"
            );
            Refusal::new(Reason::Unavailable, text)
        };
        let endpoint = Endpoint::from_shared(url.to_owned())
            .map_err(|_| crate::exit::Usage(format!("{url:?} is no URL of a catalogue")))?
            .connect_timeout(CONNECT_MAX);
        let channel = endpoint.connect().await.map_err(|error| unreachable(root_cause(&error)))?;
        Ok(Self {
            library: LibraryServiceClient::new(channel.clone()),
            cluster: ClusterServiceClient::new(channel),
        })
    }

    pub(crate) async fn stat(&mut self, target: Target) -> anyhow::Result<Item> {
        let request = pb::StatRequest { target: Some(target) };
        let listing = self.library.stat(limited(request)).await.map_err(Refusal::from)?;
        Ok(Item::try_from(listing.into_inner())?)
    }

    /// What is at a path; `None` if nothing is.
    pub(crate) async fn find(&mut self, path: &LibraryPath) -> anyhow::Result<Option<Item>> {
        match self.stat(Target::Path(path.to_string())).await {
            Ok(item) => Ok(Some(item)),
            Err(error) => match error.downcast_ref::<Refusal>() {
                Some(Refusal { reason: Reason::NotFound, .. }) => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// An image by its library path, its path on a mount, in a view there too, or its id.
    pub(crate) async fn image(&mut self, argument: &str) -> anyhow::Result<(Item, Image)> {
        let target = match argument.parse::<ImageId>().ok().or_else(|| id_in_view(argument)) {
            Some(id) => Target::ImageId(id.into()),
            None => Target::Path(library_path(argument)?.to_string()),
        };
        let item = self.stat(target).await?;
        match item.kind.clone() {
            ItemKind::Image(image) => Ok((item, *image)),
            ItemKind::Folder(_) => {
                let text = format!("{} is a folder; an image was expected", item.path);
                Err(Refusal::new(Reason::IsAFolder, text).into())
            }
        }
    }

    /// What lies below a folder, `depth` levels of it (0: all).
    pub(crate) async fn list(
        &mut self,
        path: &LibraryPath,
        depth: u32,
    ) -> anyhow::Result<Streaming<pb::Listing>> {
        let request = pb::ListRequest { path: path.to_string(), depth };
        let listed = answered(self.library.list(request)).await?;
        Ok(listed.map_err(Refusal::from)?.into_inner())
    }

    pub(crate) async fn status(&mut self) -> anyhow::Result<Status> {
        let answer = self.cluster.get_status(limited(pb::GetStatusRequest {})).await;
        let raw = answer.map_err(Refusal::from)?.into_inner();
        Ok(Status {
            nodes: all(&raw.nodes)?,
            pools: all(&raw.pools)?,
            volumes: all(&raw.volumes)?,
            live: raw.live.clone().unwrap_or_default().try_into()?,
            raw,
        })
    }
}

impl Status {
    pub(crate) fn connected(&self, node: NodeId) -> bool {
        self.live.connected.contains(&node)
    }

    pub(crate) fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.iter().find(|node| node.id == id)
    }

    pub(crate) fn node_name(&self, id: NodeId) -> String {
        self.node(id).map_or_else(|| id.to_string(), |node| node.name.clone())
    }

    pub(crate) fn pool_name(&self, id: PoolId) -> &str {
        self.pools.iter().find(|pool| pool.id == id).map_or("", |pool| &pool.name)
    }

    pub(crate) fn volume(&self, id: VolumeId) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.id == id)
    }

    /// Whether a volume can be used, in words, and its room.
    pub(crate) fn volume_state(&self, volume: &Volume) -> VolumeState {
        self.live.volume(volume.id).cloned().unwrap_or_else(|| {
            let names: Vec<String> =
                volume.sights.iter().map(|sight| self.node_name(sight.node)).collect();
            VolumeState::Offline(format!("{} not connected", names.join(", ")))
        })
    }
}

fn all<A: Clone, B: TryFrom<A, Error = Malformed>>(values: &[A]) -> Result<Vec<B>, Malformed> {
    values.iter().cloned().map(B::try_from).collect()
}

/// The next message of a stream, within its time.
pub(crate) async fn next<T>(stream: &mut Streaming<T>) -> anyhow::Result<Option<T>> {
    Ok(answered(stream.message()).await?.map_err(Refusal::from)?)
}

async fn answered<T>(answer: impl Future<Output = T>) -> Result<T, Refusal> {
    let late = |_| Refusal::new(Reason::TimedOut, "the catalogue does not answer");
    tokio::time::timeout(CALL_MAX, answer).await.map_err(late)
}

/// A call that ends within its time.
pub(crate) fn limited<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CALL_MAX);
    request
}

/// Marks one change, so that it is made once.
pub(crate) fn request_id() -> Vec<u8> {
    RequestId::mint(Timestamp::from(std::time::SystemTime::now())).into()
}

/// A message's time.
pub(crate) fn time_of(at: &prost_types::Timestamp) -> Timestamp {
    Timestamp::from_parts(at.seconds, u32::try_from(at.nanos).unwrap_or(0))
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// A path of the library, given as such or as a path on one of this host's mounts. The mount is
/// not touched: the kernel's table of mounts is enough.
pub(crate) fn library_path(argument: &str) -> anyhow::Result<LibraryPath> {
    let path = Path::new(argument);
    let absolute = if path.is_absolute() {
        path.to_owned()
    } else {
        std::env::current_dir().context("finding the current directory")?.join(path)
    };
    let mounts = isotope_fs::our_mounts();
    let on_mount = mounts.iter().filter_map(|mount| absolute.strip_prefix(mount).ok());
    let within = on_mount.min_by_key(|rest| rest.as_os_str().len()).and_then(Path::to_str);
    let text = match within {
        Some(rest) => format!("/{rest}"),
        None if path.is_absolute() => argument.to_owned(),
        None => format!("/{argument}"),
    };
    Ok(text.parse::<LibraryPath>()?)
}

/// The image that a path in a view of one of this host's mounts leads to: the mount itself says so.
/// Asked from a thread, for a dead one may not answer.
fn id_in_view(argument: &str) -> Option<ImageId> {
    let path = std::path::absolute(argument).ok()?;
    let is_in_view =
        isotope_fs::our_mounts().iter().any(|mount| path.starts_with(mount.join(VIEWS)));
    if !is_in_view {
        return None;
    }
    let (told, answer) = mpsc::channel();
    std::thread::spawn(move || {
        let mut id = [0; 64];
        let found = rustix::fs::getxattr(&path, "user.isotope.id", &mut id).ok();
        // Nobody waits for an answer that comes too late.
        let _ = told.send(found.map(|len| String::from_utf8_lossy(&id[..len]).into_owned()));
    });
    answer.recv_timeout(MOUNT_ANSWER_MAX).ok()??.parse().ok()
}

/// A name in a folder, for a change.
pub(crate) fn place(path: &LibraryPath) -> anyhow::Result<pb::Place> {
    let (folder, name) =
        path.split().ok_or_else(|| crate::exit::Usage("the root cannot be changed".to_owned()))?;
    Ok(Place { folder: FolderRef::Path(folder), name }.into())
}
