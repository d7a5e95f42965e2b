//! Files of this host, through descriptors that its agent passes: a stored one to be read by the
//! kernel, and one that is being stored to be written through, beside the stream on which everything
//! else is asked of the agent. Which file is wanted is decided elsewhere.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;

use isotope_proto::image::Stamp;
use isotope_proto::passing::{self, ANSWER_MAX, Answer, Ask, Withheld};
use isotope_proto::pb::stage_request::Request as R;
use isotope_proto::pb::{StageDone, StageReply, StageRequest, StageWrote, stage_reply};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// The agent is told of what was written this often: it brings it to the disk meanwhile.
const TELL_EVERY_BYTES: u64 = 8 << 20;

/// Why there is no descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missed {
    /// No agent of that address is on this host, or it does not speak to us.
    Away,
    /// It does not answer in time.
    Silent,
    Withheld(Withheld),
}

/// The descriptor of a file that an agent at `address` has, and its stamp; within [`ANSWER_MAX`].
pub(crate) async fn descriptor(address: &str, ask: Ask) -> Result<(File, Stamp), Missed> {
    let asked = timeout(ANSWER_MAX, answer(address, ask)).await;
    let (answer, file) = asked.map_err(|_| Missed::Silent)?.map_err(|_| Missed::Away)?;
    match (answer, file) {
        (Answer::Passed(stamp), Some(file)) => Ok((file, stamp)),
        // This process has no room for another descriptor.
        (Answer::Passed(_), None) => Err(Missed::Withheld(Withheld::Failed)),
        (Answer::Withheld(why), _) => Err(Missed::Withheld(why)),
    }
}

async fn answer(address: &str, ask: Ask) -> io::Result<(Answer, Option<File>)> {
    // A NUL before the name makes it an abstract one. An agent whose queue is full is refused at
    // once, for nothing here waits in the kernel.
    let mut stream = UnixStream::connect(format!("\0{}", passing::socket(address))).await?;
    stream.write_all(&ask.encode()).await?;
    stream.async_io(Interest::READABLE, || receive(&stream)).await
}

/// An answer comes whole or not at all.
fn receive(stream: &UnixStream) -> io::Result<(Answer, Option<File>)> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut messages = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; Answer::BYTES];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let it = recvmsg(stream, &mut [IoSliceMut::new(&mut bytes)], &mut messages, flags)?;
    if it.bytes != Answer::BYTES {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let file = messages.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    let cut = it.flags.contains(ReturnFlags::CTRUNC);
    Ok((Answer::decode(&bytes), file.filter(|_| !cut).map(File::from)))
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
