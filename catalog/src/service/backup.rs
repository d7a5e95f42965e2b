//! A copy of the database, on its way to whoever asked for it.

use std::io::Read;
use std::time::Duration;

use isotope_proto::pb;
use isotope_proto::refusal::{Reason, Refusal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tracing::info;

use crate::store::Copied;

/// Bytes in one message; larger ones gained nothing.
const CHUNK_BYTES: usize = 256 << 10;
/// Read ahead of the network.
const CHUNKS_AHEAD: usize = 4;
/// Whoever takes no more for so long has gone, and keeps others from making a backup.
const SILENCE_MAX: Duration = Duration::from_secs(30);

type Chunk = Result<pb::BackupChunk, Status>;

/// The copy's file is gone when the stream ends, whichever way.
pub(super) fn stream(copied: Copied) -> ReceiverStream<Chunk> {
    let (out, stream) = mpsc::channel(CHUNKS_AHEAD);
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || {
        let Copied { mut file, size_bytes, revision, permit } = copied;
        info!(size_bytes, revision = revision.0, "a backup is fetched");
        loop {
            let mut data = Vec::with_capacity(CHUNK_BYTES);
            let chunk = match file.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut data) {
                Ok(0) => break,
                Ok(_) => Ok(pb::BackupChunk { size_bytes, revision: revision.0, data }),
                Err(error) => {
                    let text = format!("reading the copy failed: {error}");
                    Err(Refusal::new(Reason::Storage, text).into())
                }
            };
            let last = chunk.is_err();
            let sent = runtime.block_on(tokio::time::timeout(SILENCE_MAX, out.send(chunk)));
            if last || !matches!(sent, Ok(Ok(()))) {
                break;
            }
        }
        drop(permit);
    });
    ReceiverStream::new(stream)
}
