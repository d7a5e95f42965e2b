//! The tree: look, list, change.

use std::time::{Duration, Instant};

use isotope_proto::id::{ImageId, Ino, RequestId};
use isotope_proto::name::{EntryName, LibraryPath};
use isotope_proto::pb::library_service_server::LibraryService;
use isotope_proto::pb::{self, listing, stat_request};
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::signature::TTL_MAX;
use isotope_proto::time::Timestamp;
use isotope_proto::tree::{Entry, FOLDER_MODE, FolderRef, Place, RenameMode};
use isotope_proto::web;
use isotope_proto::wire::{Malformed, time_out};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::STREAM_MAX;
use crate::library::{self, Node};
use crate::store::{Outcome, Rows, Verb};
use crate::urls::{self, Wanted};
use crate::{Core, clock, uploads};

/// Entries read at once for a list.
const PAGE_MAX: usize = 1000;

pub(super) struct Library(pub(super) Core);

impl Library {
    async fn commit(&self, request_id: &[u8], verb: Verb) -> Result<Response<pb::Change>, Status> {
        let request = match request_id {
            [] => None,
            id => Some(RequestId::try_from(id).map_err(Malformed::from)?),
        };
        let committed = self.0.commit(request, verb).await?;
        Ok(Response::new((*committed.change).clone().into()))
    }
}

fn listing(path: &LibraryPath, entry: Option<Entry>, node: Node) -> pb::Listing {
    let node = match node {
        Node::Folder(folder) => listing::Node::Folder(folder.into()),
        Node::Image(image) => listing::Node::Image((*image).into()),
    };
    let (path, entry) = (path.to_string(), entry.map(Into::into));
    pb::Listing { path, entry, node: Some(node), twins: Vec::new(), paths: Vec::new() }
}

/// A folder of which a list has come as far as a name.
struct Level {
    path: LibraryPath,
    folder: Ino,
    levels: u32,
    after: Option<EntryName>,
}

/// The next entries below the folders of a list under way, depth first. A page at a time, so that
/// a client that reads slowly holds no view of the database.
fn next_page(rows: &Rows<'_>, under_way: &mut Vec<Level>) -> Result<Vec<pb::Listing>, Refusal> {
    let mut page = Vec::new();
    while page.len() < PAGE_MAX {
        let Some(level) = under_way.last_mut() else { break };
        let room = PAGE_MAX - page.len();
        let entries = rows.children_after(level.folder, level.after.as_ref(), room)?;
        if entries.is_empty() {
            under_way.pop();
            continue;
        }
        let mut deeper = None;
        for entry in entries {
            level.after = Some(entry.name.clone());
            let path = level.path.join(entry.name.clone());
            let node = library::node(rows, entry.ino)?;
            if let (Node::Folder(folder), true) = (&node, level.levels > 1) {
                let levels = level.levels - 1;
                deeper =
                    Some(Level { path: path.clone(), folder: folder.ino, levels, after: None });
            }
            page.push(listing(&path, Some(entry), node));
            if deeper.is_some() {
                break;
            }
        }
        under_way.extend(deeper);
    }
    Ok(page)
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
                Target::Image(id) => match rows.image_or_alias(id)? {
                    Some(image) => library::path_of(rows, image.ino)?,
                    None => {
                        let text = format!("no image has the id {id}");
                        return Err(Refusal::new(Reason::NotFound, text));
                    }
                },
            };
            let (entry, node) = library::find(rows, &path)?;
            let (twins, paths) = match &node {
                Node::Image(image) => (rows.twins(image)?, library::paths_of(rows, image.ino)?),
                Node::Folder(_) => (Vec::new(), Vec::new()),
            };
            let twins = twins.into_iter().map(Into::into).collect();
            let paths = paths.iter().map(ToString::to_string).collect();
            Ok(pb::Listing { twins, paths, ..listing(&path, entry, node) })
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
        let begin = self.0.store.read(move |rows| match library::find(rows, &path)? {
            (_, Node::Folder(folder)) => {
                let (folder, after) = (folder.ino, None);
                Ok((vec![Level { path, folder, levels, after }], Vec::new()))
            }
            (entry, image) => Ok((Vec::new(), vec![listing(&path, entry, image)])),
        });
        let (mut under_way, mut page) = begin.await?;
        let (out, stream) = mpsc::channel(STREAM_MAX);
        let store = self.0.store.clone();
        tokio::spawn(async move {
            loop {
                for it in page {
                    if out.send(Ok(it)).await.is_err() {
                        return;
                    }
                }
                let read = store.read(move |rows| {
                    let page = next_page(rows, &mut under_way)?;
                    Ok((under_way, page))
                });
                (under_way, page) = match read.await {
                    Ok((_, page)) if page.is_empty() => return,
                    Ok(next) => next,
                    Err(refusal) => {
                        // The client may be gone, and then needs no answer.
                        let _ = out.send(Err(refusal.into())).await;
                        return;
                    }
                };
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
        if mode == RenameMode::Replace {
            let (places, live) = ((from.clone(), to.clone()), self.0.nodes.live().borrow().clone());
            let check = move |rows: &Rows<'_>| {
                uploads::check_replaceable(rows, (&places.0, &places.1), &live)
            };
            self.0.store.read(check).await?;
        }
        self.commit(&request.request_id, Verb::Rename { from, to, mode }).await
    }

    async fn link(
        &self,
        request: Request<pb::LinkRequest>,
    ) -> Result<Response<pb::Change>, Status> {
        let pb::LinkRequest { request_id, ino, place } = request.into_inner();
        let place = Place::try_from(place)?;
        self.commit(&request_id, Verb::Link { ino: Ino(ino), place }).await
    }

    async fn set_attributes(
        &self,
        request: Request<pb::SetAttributesRequest>,
    ) -> Result<Response<pb::Change>, Status> {
        let request = request.into_inner();
        let (request_id, ino) = (request.request_id.clone(), Ino(request.ino));
        self.commit(&request_id, Verb::SetAttributes { ino, set: request.into() }).await
    }

    async fn set_default_pool(
        &self,
        request: Request<pb::SetDefaultPoolRequest>,
    ) -> Result<Response<pb::Change>, Status> {
        let pb::SetDefaultPoolRequest { request_id, folder, pool } = request.into_inner();
        let folder = FolderRef::try_from(folder)?;
        self.commit(&request_id, Verb::SetDefaultPool { folder, pool }).await
    }

    async fn get_default_pool(
        &self,
        request: Request<pb::GetDefaultPoolRequest>,
    ) -> Result<Response<pb::DefaultPool>, Status> {
        let folder = FolderRef::try_from(request.into_inner().folder)?;
        let found = self.0.store.read(move |rows| {
            let folder = library::folder(rows, &folder)?;
            let path = |ino| Ok::<_, Refusal>(library::path_of(rows, ino)?.to_string());
            let (mut pool, mut from) = (None, None);
            if let Some((id, ino)) = library::default_pool(rows, &folder)? {
                pool = rows.pools()?.into_iter().find(|it| it.id == id).map(|it| it.name);
                from = Some(path(ino)?);
            }
            Ok(pb::DefaultPool { folder: path(folder.ino)?, pool, from })
        });
        Ok(Response::new(found.await?))
    }

    async fn remove(
        &self,
        request: Request<pb::RemoveRequest>,
    ) -> Result<Response<pb::Change>, Status> {
        let request = request.into_inner();
        let place = Place::try_from(request.place)?;
        let (asked, live) = (place.clone(), self.0.nodes.live().borrow().clone());
        self.0.store.read(move |rows| uploads::check_deletable(rows, &asked, &live)).await?;
        self.commit(&request.request_id, Verb::Remove { place }).await
    }

    type ListTrashStream = ReceiverStream<Result<pb::Trashed, Status>>;

    async fn list_trash(
        &self,
        _: Request<pb::ListTrashRequest>,
    ) -> Result<Response<Self::ListTrashStream>, Status> {
        let trash = self.0.store.read(|rows| rows.trash()).await?;
        let (out, stream) = mpsc::channel(STREAM_MAX);
        tokio::spawn(async move {
            for trashed in trash {
                if out.send(Ok(trashed.into())).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn restore(
        &self,
        request: Request<pb::RestoreRequest>,
    ) -> Result<Response<pb::Change>, Status> {
        let request = request.into_inner();
        let image = ImageId::try_from(&*request.image_id).map_err(Malformed::from)?;
        self.commit(&request.request_id, Verb::Restore { image }).await
    }

    async fn empty_trash(
        &self,
        request: Request<pb::EmptyTrashRequest>,
    ) -> Result<Response<pb::EmptyTrashReply>, Status> {
        let ids = request.into_inner().image_ids;
        let ids = ids.iter().map(|id| ImageId::try_from(&**id).map_err(Malformed::from));
        let mut images: Vec<ImageId> = ids.collect::<Result<_, _>>()?;
        if images.is_empty() {
            let trash = self.0.store.read(|rows| rows.trash()).await?;
            images = trash.iter().map(|it| it.image.id).collect();
        }
        let asked = images.len();
        let Some(images) = self.0.leases.unheld(images, Instant::now()) else {
            let text = "the catalogue has just started and does not know yet what mounts have \
                        open; try again in 15 seconds";
            return Err(Refusal::new(Reason::Busy, text).into());
        };
        let held = u64::try_from(asked - images.len()).unwrap_or(u64::MAX);
        match self.0.commit(None, Verb::Purge { images }).await?.outcome {
            Outcome::Purged { images, size_bytes } => {
                Ok(Response::new(pb::EmptyTrashReply { images, size_bytes, held }))
            }
            _ => Err(Refusal::new(Reason::Storage, "nothing was purged").into()),
        }
    }

    async fn sign_url(
        &self,
        request: Request<pb::SignUrlRequest>,
    ) -> Result<Response<pb::SignedUrl>, Status> {
        let request = request.into_inner();
        let image = ImageId::try_from(&*request.image_id).map_err(Malformed::from)?;
        let ttl = Duration::from_secs(request.ttl_seconds);
        if ttl.is_zero() || ttl > TTL_MAX {
            let text = "a URL holds for a second at least, and for 30 days at most";
            return Err(Refusal::new(Reason::Malformed, text).into());
        }
        let found = urls::find(&self.0, Wanted::Image(image)).await?;
        let key = self.0.store.url_key();
        let expires = clock::now().since_epoch().0 + ttl.as_secs();
        let signed = |url: String, image| format!("{url}?{}", key.query(image, expires));
        let agent = found.at_agent(&found.name).ok().map(|(image, url)| signed(url, image));
        let expire_time = Timestamp::from_parts(i64::try_from(expires).unwrap_or(i64::MAX), 0);
        Ok(Response::new(pb::SignedUrl {
            path: signed(web::content_path(found.image, &found.name), found.image),
            expire_time: time_out(expire_time),
            agent_url: agent,
        }))
    }
}
