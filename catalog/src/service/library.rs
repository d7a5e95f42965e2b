//! The tree: look, list, change.

use isotope_proto::id::{ImageId, RequestId};
use isotope_proto::name::LibraryPath;
use isotope_proto::pb::library_service_server::LibraryService;
use isotope_proto::pb::{self, listing, stat_request};
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::tree::{Entry, FOLDER_MODE, Place};
use isotope_proto::wire::Malformed;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::STREAM_MAX;
use crate::Core;
use crate::library::{self, Node};
use crate::store::{Rows, Verb};

pub(super) struct Library(pub(super) Core);

impl Library {
    async fn commit(&self, request_id: &[u8], verb: Verb) -> Result<Response<pb::Change>, Status> {
        let request = match request_id {
            [] => None,
            id => Some(RequestId::try_from(id).map_err(Malformed::from)?),
        };
        let committed = self.0.store.commit(request, verb).await?;
        Ok(Response::new((*committed.change).clone().into()))
    }
}

fn listing(path: &LibraryPath, entry: Option<Entry>, node: Node) -> pb::Listing {
    let node = match node {
        Node::Folder(folder) => listing::Node::Folder(folder.into()),
        Node::Image(image) => listing::Node::Image((*image).into()),
    };
    pb::Listing { path: path.to_string(), entry: entry.map(Into::into), node: Some(node) }
}

/// Where an image is first listed.
fn path_to(rows: &Rows<'_>, id: ImageId) -> Result<LibraryPath, Refusal> {
    let gone = || Refusal::new(Reason::NotFound, format!("no image has the id {id}"));
    let image = rows.image(id)?.ok_or_else(gone)?;
    let mut names = Vec::new();
    let mut ino = image.ino;
    while let Some(entry) = rows.entries_to(ino)?.into_iter().next() {
        names.push(entry.name);
        ino = entry.parent;
    }
    Ok(names.into_iter().rev().fold(LibraryPath::default(), |path, name| path.join(name)))
}

/// Sends everything below a folder, depth first; false when nobody listens any more.
fn send_below(
    rows: &Rows<'_>,
    path: &LibraryPath,
    folder: isotope_proto::id::Ino,
    levels: u32,
    out: &mpsc::Sender<Result<pb::Listing, Status>>,
) -> Result<bool, Refusal> {
    for entry in rows.children(folder)? {
        let path = path.join(entry.name.clone());
        let node = library::node(rows, entry.ino)?;
        let below = match &node {
            Node::Folder(folder) if levels > 1 => Some(folder.ino),
            Node::Folder(_) | Node::Image(_) => None,
        };
        if out.blocking_send(Ok(listing(&path, Some(entry), node))).is_err() {
            return Ok(false);
        }
        if let Some(folder) = below
            && !send_below(rows, &path, folder, levels - 1, out)?
        {
            return Ok(false);
        }
    }
    Ok(true)
}

#[tonic::async_trait]
impl LibraryService for Library {
    type ListStream = ReceiverStream<Result<pb::Listing, Status>>;

    async fn stat(
        &self,
        request: Request<pb::StatRequest>,
    ) -> Result<Response<pb::Listing>, Status> {
        enum Target {
            Path(LibraryPath),
            Image(ImageId),
        }
        let target = match request.into_inner().target {
            Some(stat_request::Target::Path(path)) => {
                Target::Path(path.parse().map_err(Malformed::from)?)
            }
            Some(stat_request::Target::ImageId(id)) => {
                Target::Image(ImageId::try_from(&*id).map_err(Malformed::from)?)
            }
            None => return Err(Malformed::Missing("target").into()),
        };
        let found = self.0.store.read(move |rows| {
            let path = match target {
                Target::Path(path) => path,
                Target::Image(id) => path_to(rows, id)?,
            };
            let (entry, node) = library::find(rows, &path)?;
            Ok(listing(&path, entry, node))
        });
        Ok(Response::new(found.await?))
    }

    async fn list(
        &self,
        request: Request<pb::ListRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let pb::ListRequest { path, depth } = request.into_inner();
        let path: LibraryPath = path.parse().map_err(Malformed::from)?;
        let levels = if depth == 0 { u32::MAX } else { depth };
        let (out, stream) = mpsc::channel(STREAM_MAX);
        let store = self.0.store.clone();
        tokio::spawn(async move {
            let failed = out.clone();
            let listed = store.read(move |rows| match library::find(rows, &path)? {
                (_, Node::Folder(folder)) => send_below(rows, &path, folder.ino, levels, &out),
                (entry, image) => Ok(out.blocking_send(Ok(listing(&path, entry, image))).is_ok()),
            });
            if let Err(refusal) = listed.await {
                // The client may be gone, and then needs no answer.
                let _ = failed.send(Err(refusal.into())).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn make_folder(
        &self,
        request: Request<pb::MakeFolderRequest>,
    ) -> Result<Response<pb::Change>, Status> {
        let request = request.into_inner();
        let place = Place::try_from(request.place)?;
        let mode = request.mode.unwrap_or(FOLDER_MODE);
        self.commit(&request.request_id, Verb::MakeFolder { place, mode }).await
    }

    async fn remove_folder(
        &self,
        request: Request<pb::RemoveFolderRequest>,
    ) -> Result<Response<pb::Change>, Status> {
        let request = request.into_inner();
        let place = Place::try_from(request.place)?;
        self.commit(&request.request_id, Verb::RemoveFolder { place }).await
    }

    async fn rename(
        &self,
        request: Request<pb::RenameRequest>,
    ) -> Result<Response<pb::Change>, Status> {
        let request = request.into_inner();
        let mode = request.mode().into();
        let (from, to) = (Place::try_from(request.from)?, Place::try_from(request.to)?);
        self.commit(&request.request_id, Verb::Rename { from, to, mode }).await
    }
}
