//! `ContentService.Read`, for programs of others: gRPC on the wire, without the copies that the
//! generated service makes of each message. The frames are written by hand: five bytes of gRPC's
//! ("Length-Prefixed-Message" of its HTTP/2 protocol), a field's tag and length (protobuf's wire
//! format), and then the file's bytes as they were read.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use axum::routing::post;
use bytes::Bytes;
use http_body::Frame;
use isotope_proto::id::{ImageId, VolumeId};
use isotope_proto::pb::ReadRequest;
use isotope_proto::range::ByteRange;
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::wire::Malformed;
use prost::Message;
use tonic::Status;

use super::{is_unknown, not_here};
use crate::content::{self, Pieces};
use crate::host::Host;
use crate::index::Verdict;

const PATH: &str = "/isotope.v1.ContentService/Read";
/// Two ids and two numbers.
const REQUEST_BYTES_MAX: usize = 1 << 10;
/// Before a message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;
/// `ReadChunk.data`: field 1, of bytes.
const DATA_TAG: u8 = 1 << 3 | 2;

pub(super) fn router(host: Host) -> Router {
    Router::new().route(PATH, post(read)).with_state(Arc::new(host))
}

async fn read(State(host): State<Arc<Host>>, request: Request) -> Response {
    match begin(&host, request.into_body()).await {
        Ok(pieces) => {
            let mut response = Response::new(Body::new(Messages::of(pieces)));
            let grpc = HeaderValue::from_static("application/grpc");
            response.headers_mut().insert(header::CONTENT_TYPE, grpc);
            response
        }
        Err(refusal) => Status::from(refusal).into_http(),
    }
}

async fn begin(host: &Host, body: Body) -> Result<Pieces, Refusal> {
    let malformed = |text: &str| Refusal::new(Reason::Malformed, text);
    let body = axum::body::to_bytes(body, REQUEST_BYTES_MAX).await;
    let body = body.map_err(|_| malformed("a request of another length than announced"))?;
    let Some((&[compressed, ..], message)) = body.split_first_chunk::<PREFIX_BYTES>() else {
        return Err(malformed("no request"));
    };
    if compressed != 0 {
        return Err(malformed("a compressed request; send it as it is"));
    }
    let request = ReadRequest::decode(message).map_err(|error| malformed(&error.to_string()))?;
    let image = ImageId::try_from(&*request.image_id).map_err(Malformed::from)?;
    let volume = VolumeId::try_from(&*request.volume_id).map_err(Malformed::from)?;
    let range = ByteRange::new(request.offset_bytes, request.length_bytes)
        .ok_or_else(|| Refusal::new(Reason::OutOfRange, "the range is no range"))?;
    let volume = host.volumes.get(volume).ok_or_else(|| not_here(volume))?;
    if volume.index().hashed(image).is_some_and(|it| it.verdict == Verdict::Rotten) {
        let text = "the file has rotted: its bytes are no longer the image's";
        return Err(Refusal::new(Reason::WrongBytes, text));
    }
    let read = || content::read(Arc::clone(&volume), host.node, image, range);
    match read().await {
        Err(refusal) if is_unknown(&refusal) && host.relocate(&volume, image).await => read().await,
        read => read,
    }
}

/// Pieces as messages, and how it ended as trailers.
struct Messages {
    pieces: Pieces,
    next: Next,
}

enum Next {
    Head,
    /// What was announced.
    Piece(Bytes),
    End,
}

impl Messages {
    fn of(pieces: Pieces) -> Self {
        Self { pieces, next: Next::Head }
    }
}

/// What comes before a piece.
fn head(len: usize) -> Bytes {
    let mut field = vec![DATA_TAG];
    let mut left = len;
    // Seven bits a byte, the lowest first (protobuf, "Base 128 Varints").
    while left >= 0x80 {
        field.push(0x80 | (left & 0x7F) as u8);
        left >>= 7;
    }
    field.push(left as u8);
    let message = u32::try_from(field.len() + len).unwrap_or(u32::MAX);
    [&[0][..], &message.to_be_bytes(), &field].concat().into()
}

fn trailers(end: Result<(), Refusal>) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    let status = end.map_or_else(Status::from, |()| Status::ok(""));
    if status.add_header(&mut trailers).is_err() {
        // A text that no header can hold.
        trailers.insert("grpc-status", HeaderValue::from_static("13"));
    }
    trailers
}

impl http_body::Body for Messages {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let (frame, next) = match std::mem::replace(&mut self.next, Next::End) {
            Next::Piece(piece) => (Frame::data(piece), Next::Head),
            Next::End => return Poll::Ready(None),
            Next::Head => match self.pieces.poll_recv(context) {
                Poll::Pending => {
                    self.next = Next::Head;
                    return Poll::Pending;
                }
                Poll::Ready(Some(Ok(piece))) => {
                    (Frame::data(head(piece.len())), Next::Piece(piece))
                }
                Poll::Ready(Some(Err(refusal))) => {
                    (Frame::trailers(trailers(Err(refusal))), Next::End)
                }
                Poll::Ready(None) => (Frame::trailers(trailers(Ok(()))), Next::End),
            },
        };
        self.next = next;
        Poll::Ready(Some(Ok(frame)))
    }
}

#[cfg(test)]
mod tests {
    use isotope_proto::pb::ReadChunk;
    use isotope_proto::pb::content_service_client::ContentServiceClient;
    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn a_message_is_what_the_generated_code_makes_of_it() {
        for len in [0, 1, 127, 128, 16_383, 16_384, 262_144] {
            let piece = Bytes::from(vec![7; len]);
            let message = ReadChunk { data: piece.clone() }.encode_to_vec();
            let ours = [head(len), piece].concat();
            // An empty field is left out by it, and means the same.
            assert_eq!(
                ReadChunk::decode(&ours[PREFIX_BYTES..]).expect("a message").data.len(),
                len
            );
            if len > 0 {
                assert_eq!(ours[PREFIX_BYTES..], message);
            }
            assert_eq!(ours[1..PREFIX_BYTES], (ours.len() as u32 - 5).to_be_bytes());
        }
    }

    /// The generated client reads what was sent, and hears how it ended.
    #[tokio::test]
    async fn the_generated_client_understands_it() {
        for (sizes, end) in [
            (&[1, 300_000, 70_000][..], Ok(())),
            (&[], Ok(())),
            (&[5], Err(Refusal::new(Reason::Replaced, "it changed: ä"))),
        ] {
            let (pieces, receiver) = mpsc::channel(8);
            for size in sizes {
                pieces.send(Ok(vec![3; *size].into())).await.expect("room");
            }
            if let Err(refusal) = end.clone() {
                pieces.send(Err(refusal)).await.expect("room");
            }
            drop(pieces);
            let held = Arc::new(std::sync::Mutex::new(Some(receiver)));
            let answer = post(async move || {
                let pieces = held.lock().expect("held").take().expect("asked once");
                let mut response = Response::new(Body::new(Messages::of(pieces)));
                let grpc = HeaderValue::from_static("application/grpc");
                response.headers_mut().insert(header::CONTENT_TYPE, grpc);
                response
            });
            let mut client = ContentServiceClient::new(Router::new().route(PATH, answer));
            let heard = client.read(ReadRequest::default()).await.expect("answered");
            let (mut heard, mut found) = (heard.into_inner(), Vec::new());
            let ended = loop {
                match heard.message().await {
                    Ok(Some(chunk)) => found.push(chunk.data.len()),
                    Ok(None) => break Ok(()),
                    Err(status) => break Err(Refusal::from(status)),
                }
            };
            assert_eq!((&found[..], ended), (sizes, end));
        }
    }
}
