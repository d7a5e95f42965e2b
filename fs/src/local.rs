//! A file that is being stored by an agent of this host: written through a descriptor that the
//! agent passes, beside the stream on which everything else is asked of it.

use std::fs::File;
use std::io::{self, IoSliceMut, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::Duration;

use isotope_proto::id::ImageId;
use isotope_proto::pb::stage_request::Request as R;
use isotope_proto::pb::{StageDone, StageReply, StageRequest, StageWrote, stage_reply};
use isotope_proto::upload::local_socket;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::sync::mpsc;

/// The agent answers at once.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// The agent is told of what was written this often: it brings it to the disk meanwhile.
const TELL_EVERY_BYTES: u64 = 8 << 20;

/// The descriptor of an image that an agent at `address` is storing; none if that is not on this
/// host, or does not pass it to us.
pub(crate) async fn descriptor(address: &str, image: ImageId) -> Option<File> {
    let name = local_socket(address);
    let asked = tokio::task::spawn_blocking(move || ask(&name, image));
    asked.await.ok()?.ok()
}

fn ask(name: &str, image: ImageId) -> io::Result<File> {
    let mut stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.set_write_timeout(Some(ANSWER_MAX))?;
    stream.write_all(image.as_bytes())?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut messages = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(&stream, &mut [IoSliceMut::new(&mut byte)], &mut messages, RecvFlags::CMSG_CLOEXEC)?;
    let file = messages.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    file.map(File::from).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// The agent's end of the stream.
pub(crate) struct Agent {
    pub(crate) requests: mpsc::Sender<StageRequest>,
    pub(crate) replies: mpsc::Receiver<Reply>,
}

type Reply = Result<StageReply, tonic::Status>;

impl Agent {
    /// Asks, and waits for the answer. `None` when the agent has gone.
    fn ask(&mut self, request: R) -> Option<Reply> {
        self.requests.blocking_send(StageRequest { request: Some(request) }).ok()?;
        self.replies.blocking_recv()
    }

    /// Tells how much has been written since it was last told.
    fn tell(&mut self, bytes: &mut u64) -> Option<Reply> {
        match std::mem::take(bytes) {
            0 => Some(done()),
            length_bytes => self.ask(R::Wrote(StageWrote { length_bytes })),
        }
    }
}

fn done() -> Reply {
    Ok(StageReply { reply: Some(stage_reply::Reply::Done(StageDone {})) })
}

fn is_done(reply: &Reply) -> bool {
    matches!(reply, Ok(StageReply { reply: Some(stage_reply::Reply::Done(_)) }))
}

/// Writes what is to be written, and has the agent do the rest, in turn, on a thread that may wait
/// for the disk. A write that fails here is left to the agent: it knows what its disk means by it.
pub(crate) fn write_beside(
    file: &File,
    mut requests: mpsc::Receiver<StageRequest>,
    mut agent: Agent,
    replies: &mpsc::Sender<Reply>,
) {
    let mut untold_bytes = 0;
    while let Some(request) = requests.blocking_recv().and_then(|it| it.request) {
        let reply = match request {
            R::Write(it) if file.write_all_at(&it.data, it.offset_bytes).is_ok() => {
                untold_bytes += u64::try_from(it.data.len()).unwrap_or(u64::MAX);
                let tell = untold_bytes >= TELL_EVERY_BYTES;
                if tell { agent.tell(&mut untold_bytes) } else { Some(done()) }
            }
            request => match agent.tell(&mut untold_bytes) {
                Some(told) if is_done(&told) => agent.ask(request),
                failed => failed,
            },
        };
        let Some(reply) = reply else { return };
        if replies.blocking_send(reply).is_err() {
            return;
        }
    }
}
