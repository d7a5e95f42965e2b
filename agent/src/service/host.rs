//! What the catalogue asks of this host, beside what it sends on the session.

use std::path::Path;
use std::time::{Duration, Instant};

use isotope_proto::id::{ImageId, NodeId, VolumeId};
use isotope_proto::pb::host_service_server::HostService;
use isotope_proto::pb::sidecar_part::Part;
use isotope_proto::pb::{self, VerdictKind, verify_event};
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::sidecar::LibraryCopy;
use isotope_proto::wire::Malformed;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::info;

use crate::bytes::{self, Read};
use crate::digest::{Damage, GROUP_BYTES, Manner};
use crate::host::{Host, Inspection};
use crate::layout::Layout;

/// Progress is told at most so often, and at most so much of it waits.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
const PROGRESS_MAX: usize = 4;

pub(super) struct Hosts(pub(super) Host);

/// Records in one piece: about 300 KiB.
const PIECE_RECORDS: usize = 1000;
/// Read ahead of the network.
const PIECES_AHEAD: usize = 2;

#[tonic::async_trait]
impl HostService for Hosts {
    type ReadSidecarStream = ReceiverStream<Result<pb::SidecarPart, Status>>;

    async fn read_sidecar(
        &self,
        request: Request<pb::ReadSidecarRequest>,
    ) -> Result<Response<Self::ReadSidecarStream>, Status> {
        let id = request.into_inner().volume_id;
        let volume = VolumeId::try_from(&*id).map_err(Malformed::from)?;
        let (out, stream) = mpsc::channel(PIECES_AHEAD);
        let host = self.0.clone();
        tokio::task::spawn_blocking(move || {
            let send = |part| out.blocking_send(Ok(pb::SidecarPart { part: Some(part) })).is_ok();
            let read = host.read_library(volume, |copy| match copy {
                Err(problem) => send(Part::Problem(problem)),
                Ok(LibraryCopy { mark, records }) => {
                    let mut records = records.into_iter().map(Into::into).peekable();
                    let mut wanted = send(Part::Mark(mark.into()));
                    while wanted && records.peek().is_some() {
                        let records = records.by_ref().take(PIECE_RECORDS).collect();
                        wanted = send(Part::Records(pb::Records { records }));
                    }
                    wanted
                }
            });
            if let Err(refusal) = read {
                // Whoever asked may have gone.
                let _ = out.blocking_send(Err(refusal.into()));
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn reconnect(
        &self,
        _: Request<pb::ReconnectRequest>,
    ) -> Result<Response<pb::ReconnectReply>, Status> {
        info!("asked to connect to the catalogue now");
        self.0.wake.notify_one();
        Ok(Response::new(pb::ReconnectReply { node_id: self.0.node.into() }))
    }

    async fn inspect(
        &self,
        request: Request<pb::InspectRequest>,
    ) -> Result<Response<pb::InspectReply>, Status> {
        let pb::InspectRequest { dir, layout, count } = request.into_inner();
        let layout = layout.map(layout_in).transpose()?;
        let host = self.0.clone();
        let looked = aside(move || Ok(host.inspect(Path::new(&dir), layout.as_ref(), count)));
        let Inspection { problem, volume, images, size_bytes, not_taken } = looked.await?;
        let not_taken = not_taken.into_iter().map(|(path, reason)| pb::NotTaken { path, reason });
        Ok(Response::new(pb::InspectReply {
            problem,
            volume_id: volume.map(Into::into).unwrap_or_default(),
            images,
            size_bytes,
            not_taken: not_taken.collect(),
        }))
    }

    async fn attach(
        &self,
        request: Request<pb::AttachRequest>,
    ) -> Result<Response<pb::AttachReply>, Status> {
        let pb::AttachRequest { dir, pool, layout } = request.into_inner();
        let layout = layout.map(layout_in).transpose()?;
        let host = self.0.clone();
        info!(dir, pool, "a directory is attached");
        let id = aside(move || host.attach(Path::new(&dir), &pool, layout.as_ref())).await?;
        Ok(Response::new(pb::AttachReply { volume_id: id.into() }))
    }

    async fn detach(
        &self,
        request: Request<pb::DetachRequest>,
    ) -> Result<Response<pb::DetachReply>, Status> {
        let id = VolumeId::try_from(&*request.into_inner().volume_id).map_err(Malformed::from)?;
        let host = self.0.clone();
        info!(volume = %id, "a volume is detached");
        aside(move || host.detach(id)).await?;
        Ok(Response::new(pb::DetachReply {}))
    }

    type VerifyStream = ReceiverStream<Result<pb::VerifyEvent, Status>>;

    async fn verify(
        &self,
        request: Request<pb::VerifyRequest>,
    ) -> Result<Response<Self::VerifyStream>, Status> {
        let request = request.into_inner();
        let volume = VolumeId::try_from(&*request.volume_id).map_err(Malformed::from)?;
        let image = ImageId::try_from(&*request.image_id).map_err(Malformed::from)?;
        let volume = self.0.volumes.get(volume).ok_or_else(|| {
            Refusal::new(Reason::NotFound, format!("volume {volume} is not on this node"))
        })?;
        if volume.index().locate(image).is_none() {
            self.0.relocate(&volume, image).await;
        }
        let (out, stream) = mpsc::channel(PROGRESS_MAX);
        tokio::task::spawn_blocking(move || {
            let stop = CancellationToken::new();
            let manner = Manner { stop: stop.clone(), ..Manner::default() };
            let mut told = Instant::now();
            let found = bytes::check(&volume, image, &manner, |bytes_read| {
                if told.elapsed() >= PROGRESS_EVERY {
                    told = Instant::now();
                    let event = Some(verify_event::Event::BytesRead(bytes_read));
                    // Progress that finds no room is old by the time there is some; whoever has
                    // hung up needs no verdict.
                    let sent = out.try_send(Ok(pb::VerifyEvent { event }));
                    if matches!(sent, Err(mpsc::error::TrySendError::Closed(_))) {
                        stop.cancel();
                    }
                }
            });
            let sha256 = volume.index().hashed(image).map(|it| it.hashes.sha256);
            let mut verdict = verdict(found);
            verdict.sha256 = sha256.map(|it| it.as_bytes().to_vec()).unwrap_or_default();
            let event = Some(verify_event::Event::Verdict(verdict));
            let _ = out.blocking_send(Ok(pb::VerifyEvent { event }));
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn write_nonce(
        &self,
        request: Request<pb::WriteNonceRequest>,
    ) -> Result<Response<pb::WriteNonceReply>, Status> {
        let pb::WriteNonceRequest { volume_id, nonce } = request.into_inner();
        let id = VolumeId::try_from(&*volume_id).map_err(Malformed::from)?;
        let host = self.0.clone();
        aside(move || host.write_nonce(id, &nonce)).await?;
        Ok(Response::new(pb::WriteNonceReply {}))
    }

    async fn read_nonce(
        &self,
        request: Request<pb::ReadNonceRequest>,
    ) -> Result<Response<pb::ReadNonceReply>, Status> {
        let pb::ReadNonceRequest { volume_id, node_id } = request.into_inner();
        let id = VolumeId::try_from(&*volume_id).map_err(Malformed::from)?;
        let writer = NodeId::try_from(&*node_id).map_err(Malformed::from)?;
        let host = self.0.clone();
        let nonce = aside(move || host.read_nonce(id, writer)).await?;
        Ok(Response::new(pb::ReadNonceReply { nonce }))
    }
}

fn verdict(found: Result<Read, String>) -> pb::Verdict {
    let (kind, text) = match found {
        Ok(Read::Sound) => (VerdictKind::Sound, String::new()),
        Ok(Read::Rotten(None)) => (VerdictKind::Rotten, "its bytes have changed".to_owned()),
        Ok(Read::Rotten(Some(Damage { first_offset, groups, .. }))) => {
            let size = groups * GROUP_BYTES / 1024;
            (VerdictKind::Rotten, format!("{size} KiB differ, from byte {first_offset} on"))
        }
        Ok(Read::Changed) => {
            (VerdictKind::Changed, "the file is another now, or gone; scan its pool".to_owned())
        }
        Ok(Read::Stopped) => (VerdictKind::Unreadable, "it was interrupted".to_owned()),
        Err(reason) => (VerdictKind::Unreadable, reason),
    };
    pb::Verdict { kind: kind.into(), text, sha256: Vec::new() }
}

fn layout_in(layout: pb::Layout) -> Result<Layout, Refusal> {
    let dir = if layout.dir.is_empty() { "iso" } else { &layout.dir };
    Layout::new(dir, &layout.include, layout.read_only)
        .map_err(|error| Refusal::new(Reason::Malformed, error.to_string()))
}

/// Work that may wait for a disk.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Refusal::new(Reason::Storage, error.to_string()))?
}
