//! Images over HTTP/1.1, on the port of the gRPC services: `GET` and `HEAD` of `/content/ID`. It
//! puts together what the index knows of a file, what the request asks for and the bytes; where
//! an image is in the library is not known here.

mod conditions;
mod headers;
mod ranges;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, on};
use bytes::Bytes;
use isotope_proto::id::ImageId;
use isotope_proto::range::ByteRange;
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::signature::{UrlKey, may_read};
use isotope_proto::web;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tracing::warn;

use self::conditions::Answer;
use self::headers::Representation;
use crate::content::Pieces;
use crate::host::Host;
use crate::index::Verdict;
use crate::volume::Volume;
use crate::{clock, content};

/// Bodies under way at once. Each holds a thread that reads the disk, of the 512 that the runtime
/// has, and some pieces in memory.
const BODIES_MAX: usize = 64;
/// A client that takes nothing for so long, or a disk that gives nothing, is given up. A console
/// that is restarted, or a person at a prompt, may take a while.
const STALLED_MAX: Duration = Duration::from_secs(60);
/// Pieces waiting for the connection, beside those that the reader is ahead.
const PIECES_WAITING: usize = 1;
/// A disk that takes longer to open a file is in trouble; clients give up later.
const OPEN_MAX: Duration = Duration::from_secs(10);

/// What signed URLs are checked with, once the catalogue has told it; in memory alone.
#[derive(Default)]
pub(crate) struct ToldKey(RwLock<Option<UrlKey>>);

impl ToldKey {
    /// As it travels; what is no key, as from an older catalogue, changes nothing.
    pub(crate) fn hear(&self, key: &[u8]) {
        if let Ok(key) = key.try_into() {
            let mut told = self.0.write().unwrap_or_else(PoisonError::into_inner);
            *told = Some(UrlKey::from_bytes(key));
        }
    }

    fn get(&self) -> Option<UrlKey> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Web {
    host: Host,
    key: Arc<ToldKey>,
    bodies: Arc<Semaphore>,
}

/// The gRPC services' routes, and those of HTTP.
pub(crate) fn beside(services: Routes, host: Host, key: Arc<ToldKey>) -> Routes {
    let bodies = Arc::new(Semaphore::new(BODIES_MAX));
    let read = on(MethodFilter::GET.or(MethodFilter::HEAD), content);
    let router = Router::new()
        .route("/content/{image}", read.clone())
        .route("/content/{image}/{*name}", read)
        .with_state(Arc::new(Web { host, key, bodies }));
    services.into_axum_router().merge(router).fallback(nothing).into()
}

async fn nothing(headers: HeaderMap, uri: Uri) -> Response {
    if web::is_grpc(&headers) {
        return tonic::Status::unimplemented("").into_http::<Body>();
    }
    web::refused(&web::nothing_at(uri.path())).into_response()
}

async fn content(State(web): State<Arc<Web>>, request: Request) -> Response {
    let (request, _) = request.into_parts();
    web.answer(&request).await.unwrap_or_else(|refusal| web::refused(&refusal).into_response())
}

impl Web {
    async fn answer(&self, request: &Parts) -> Result<Response, Refusal> {
        let (image, name) = web::content_of(request.uri.path())?;
        let now = clock::now();
        may_read(self.key.get().as_ref(), image, request.uri.query(), now)?;
        let name = name.as_ref().map(|name| name.as_str());
        let mut last = not_here(image);
        for volume in self.host.volumes.all() {
            match self.try_volume(&volume, image, name, request).await {
                Ok(response) => return Ok(response),
                Err(refusal) if refusal.reason != Reason::NotFound => last = refusal,
                Err(_) => {}
            }
        }
        Err(last)
    }

    /// As one volume has it; where it is not known there, or no longer so, the catalogue is asked.
    async fn try_volume(
        &self,
        volume: &Arc<Volume>,
        image: ImageId,
        name: Option<&str>,
        request: &Parts,
    ) -> Result<Response, Refusal> {
        let first = self.serve(volume, image, name, request).await;
        match first {
            Err(Refusal { reason: Reason::NotFound | Reason::Replaced, .. })
                if self.host.relocate(volume, image).await =>
            {
                self.serve(volume, image, name, request).await
            }
            first => first,
        }
    }

    async fn serve(
        &self,
        volume: &Arc<Volume>,
        image: ImageId,
        name: Option<&str>,
        request: &Parts,
    ) -> Result<Response, Refusal> {
        let it = known(volume, image, name)?;
        let range = match conditions::answer(&request.method, &request.headers, &it) {
            Answer::Whole => None,
            Answer::Part(range) => Some(range),
            Answer::NotModified => return Ok(not_modified(&it)),
            Answer::PreconditionFailed => {
                let text = "the image is another than the request expects; fetch it anew";
                return Ok(web::told(StatusCode::PRECONDITION_FAILED, text).into_response());
            }
            Answer::Unsatisfiable => return Ok(unsatisfiable(&it)),
        };
        let to_send = range.unwrap_or(ByteRange::clamped(0, it.size_bytes, it.size_bytes));
        // Whether the file is there, and the same, is to be known for HEAD as well.
        let is_get = request.method == Method::GET;
        let to_read = if is_get { to_send } else { ByteRange::clamped(0, 0, it.size_bytes) };
        let permit = Arc::clone(&self.bodies).try_acquire_owned().map_err(|_| busy())?;
        let read = content::read(Arc::clone(volume), self.host.node, image, to_read);
        let late = |_| Refusal::new(Reason::TimedOut, "the disk does not answer; try again later");
        let pieces = timeout(OPEN_MAX, read).await.map_err(late)??;
        let mut response = match is_get {
            true => Response::new(body(pieces, permit, STALLED_MAX)),
            false => Response::new(Body::empty()),
        };
        *response.headers_mut() = it.headers();
        response.headers_mut().insert(header::CONTENT_LENGTH, to_send.len().into());
        if let Some(range) = range {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let last = range.end().saturating_sub(1);
            say_range(&mut response, &format!("{}-{last}", range.start()), &it);
        }
        Ok(response)
    }
}

/// What a volume's index knows of an image.
fn known(volume: &Volume, image: ImageId, name: Option<&str>) -> Result<Representation, Refusal> {
    let index = volume.index();
    let (path, stamp) = index.locate(image).ok_or_else(|| not_here(image))?;
    // The image may have become another, under which all else is known.
    let own = index.files().get(path).map_or(image, |known| known.image);
    let hashed = index.hashed(own);
    if hashed.is_some_and(|hashed| hashed.verdict == Verdict::Rotten) {
        let text = "the bytes of this host's file have rotted; ask the catalogue for another host";
        return Err(Refusal::new(Reason::Replaced, text));
    }
    let hashes = hashed.map(|hashed| hashed.hashes);
    Ok(Representation::new((image, hashes), stamp, path.file_name(), name, clock::now()))
}

fn not_here(image: ImageId) -> Refusal {
    let text = format!("this host does not hold the image {image}; ask the catalogue where it is");
    Refusal::new(Reason::NotFound, text)
}

fn busy() -> Refusal {
    let text = format!("{BODIES_MAX} images are being sent from this host; try again later");
    Refusal::new(Reason::Busy, text)
}

fn not_modified(it: &Representation) -> Response {
    let mut response = StatusCode::NOT_MODIFIED.into_response();
    *response.headers_mut() = it.headers();
    // As GET would say (RFC 9110 §8.6); without it the server would say that there is nothing.
    response.headers_mut().insert(header::CONTENT_LENGTH, it.size_bytes.into());
    response
}

fn unsatisfiable(it: &Representation) -> Response {
    let text = format!("the image has {} bytes, and none of those asked for", it.size_bytes);
    let mut response = web::told(StatusCode::RANGE_NOT_SATISFIABLE, &text).into_response();
    say_range(&mut response, "*", it);
    response
}

fn say_range(response: &mut Response, part: &str, it: &Representation) {
    if let Ok(value) = HeaderValue::from_str(&format!("bytes {part}/{}", it.size_bytes)) {
        response.headers_mut().insert(header::CONTENT_RANGE, value);
    }
}

/// The pieces as a body. After an error, and when one end has stalled, it ends short of its length:
/// then the server breaks off the connection, and nobody takes it for whole. The reader of the disk
/// is let go at once, whatever becomes of the connection.
fn body(mut pieces: Pieces, permit: OwnedSemaphorePermit, stalled_max: Duration) -> Body {
    let (out, waiting) = mpsc::channel::<Result<Bytes, Refusal>>(PIECES_WAITING);
    tokio::spawn(async move {
        let _held = permit;
        loop {
            let piece = match timeout(stalled_max, pieces.recv()).await {
                Ok(Some(piece)) => piece,
                Ok(None) => return,
                Err(_) => Err(Refusal::new(Reason::TimedOut, "the disk gives nothing any more")),
            };
            let broken = piece.is_err();
            if let Err(refusal) = &piece {
                warn!(%refusal, "an image that is being sent is broken off");
            }
            match timeout(stalled_max, out.send(piece)).await {
                Ok(Ok(())) if !broken => {}
                // Nobody takes more of it, or is to.
                Ok(_) => return,
                Err(_) => {
                    warn!("a client takes nothing any more; its image is broken off");
                    return;
                }
            }
        }
    });
    Body::from_stream(ReceiverStream::new(waiting))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permit(bodies: &Arc<Semaphore>) -> OwnedSemaphorePermit {
        Arc::clone(bodies).try_acquire_owned().expect("one is free")
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_lets_the_reader_go() {
        let bodies = Arc::new(Semaphore::new(1));
        let (reader, pieces) = mpsc::channel(1);
        let body = body(pieces, permit(&bodies), Duration::from_millis(50));
        let piece = || Ok(Bytes::from_static(b"piece"));
        while reader.send(piece()).await.is_ok() {}
        let free = timeout(Duration::from_secs(20), bodies.acquire()).await;
        assert!(free.is_ok(), "the next one may begin");
        // What was under way is all there is.
        let sent = axum::body::to_bytes(body, 1 << 20).await.expect("it ends");
        assert!(sent.len() <= 3 * 5, "{} bytes", sent.len());
    }

    #[tokio::test]
    async fn a_disk_that_gives_nothing_breaks_the_body() {
        let bodies = Arc::new(Semaphore::new(1));
        let (reader, pieces) = mpsc::channel(1);
        let body = body(pieces, permit(&bodies), Duration::from_millis(50));
        reader.send(Ok(Bytes::from_static(b"piece"))).await.expect("room");
        assert!(axum::body::to_bytes(body, 1 << 20).await.is_err());
    }

    #[tokio::test]
    async fn an_error_of_the_reader_breaks_the_body() {
        let bodies = Arc::new(Semaphore::new(1));
        let (reader, pieces) = mpsc::channel(2);
        let body = body(pieces, permit(&bodies), STALLED_MAX);
        reader.send(Ok(Bytes::from_static(b"piece"))).await.expect("room");
        reader.send(Err(not_here(ImageId::from_bytes([1; 16])))).await.expect("room");
        drop(reader);
        assert!(axum::body::to_bytes(body, 1 << 20).await.is_err());
    }

    #[test]
    fn what_is_no_key_is_not_heard() {
        let told = ToldKey::default();
        told.hear(&[]);
        assert_eq!(told.get(), None);
        told.hear(&[3; 32]);
        told.hear(&[4; 31]);
        assert_eq!(told.get(), Some(UrlKey::from_bytes([3; 32])));
    }
}
