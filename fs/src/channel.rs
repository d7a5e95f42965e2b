//! The mount's end of the content channel: connections to agents, kept and used again, each for one
//! request at a time. It waits for as long as it is let: deadlines are its caller's.

use std::collections::HashMap;
use std::io;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes};
use isotope_proto::channel::{self, GREETING, HEAD_BYTES, Head, Request, Wanted};
use isotope_proto::proof::{self, PAIR_BYTES};
use isotope_proto::refusal::{Reason, Refusal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::buffers::{Buffer, Buffers};
use crate::quick::Quick;

/// Idle connections kept to one agent: as many as some steady readers have blocks under way.
const IDLE_MAX: usize = 32;
/// Requests to one agent at once; agents serve 160 connections of one host. More wait for these.
const AT_ONCE_MAX: usize = 96;
/// Agents close what is idle after five minutes; what has been so for longer is not relied on.
const IDLE_KEPT: Duration = Duration::from_secs(60);

/// Connections that nobody uses just now, by the agent's address.
#[derive(Default)]
pub(crate) struct Channels {
    idle: Mutex<HashMap<String, Vec<Idle>>>,
    /// Who may ask, by the agent's address.
    turns: Mutex<HashMap<String, Arc<Semaphore>>>,
    buffers: Arc<Buffers>,
    /// Knows the agents that were connected to.
    pub(crate) quick: Quick,
}

struct Idle {
    stream: TcpStream,
    since: Instant,
}

/// An answer: what proves the bytes, if that was asked for, and the bytes.
pub(crate) struct Delivered {
    pub(crate) proof: Bytes,
    pub(crate) bytes: Bytes,
}

impl Delivered {
    /// A whole answer, taken apart.
    pub(crate) fn of(answer: Bytes, proof_len: usize) -> Self {
        let (from, to) = (HEAD_BYTES, HEAD_BYTES + proof_len);
        Self { proof: answer.slice(from..to), bytes: answer.slice(to..) }
    }
}

/// Bytes of the proof that comes with an answer.
pub(crate) fn proof_len(wanted: &Wanted, size_bytes: u64) -> usize {
    match wanted.proved_by {
        Some(_) => proof::nodes(wanted.range, size_bytes).len() * PAIR_BYTES,
        None => 0,
    }
}

/// How far an answer has come, for whoever waits for it.
pub(crate) struct Progress {
    began: Instant,
    heard_ms: AtomicU64,
    bytes: AtomicU64,
}

impl Progress {
    pub(crate) fn begin(now: Instant) -> Self {
        Self { began: now, heard_ms: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    fn heard(&self, bytes: usize) {
        let since = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard_ms.store(since, Ordering::Relaxed);
        self.bytes.fetch_add(u64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// When something was last heard; its beginning if nothing was.
    pub(crate) fn heard_at(&self) -> Instant {
        self.began + Duration::from_millis(self.heard_ms.load(Ordering::Relaxed))
    }
}

/// Why there are no bytes.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The agent cannot be reached, or is none.
    Host(Refusal),
    /// It answered, and refused.
    Said(Refusal),
}

/// Why there is no answer.
enum Failed {
    /// The connection was lost before anything came: an old one may have been closed meanwhile.
    Closed(io::Error),
    Broken(String),
}

impl Channels {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<Idle>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn buffers(&self) -> &Arc<Buffers> {
        &self.buffers
    }

    /// A range from one agent.
    ///
    /// # Errors
    /// As the agent refuses, or that it cannot be reached or breaks off.
    pub(crate) async fn read(
        &self,
        address: &str,
        wanted: &Wanted,
        size_bytes: u64,
        progress: &Progress,
    ) -> Result<Delivered, Fault> {
        let proof_len = proof_len(wanted, size_bytes);
        self.ask(address, &Request::Read(*wanted), proof_len, progress).await
    }

    /// Whether the agent answers.
    ///
    /// # Errors
    /// As [`Channels::read`].
    pub(crate) async fn ping(&self, address: &str) -> Result<(), Fault> {
        // What was kept from before says nothing of whether it can be reached now.
        self.lock().remove(address);
        let progress = Progress::begin(Instant::now());
        self.ask(address, &Request::Ping, 0, &progress).await.map(drop)
    }

    async fn ask(
        &self,
        address: &str,
        request: &Request,
        proof_len: usize,
        progress: &Progress,
    ) -> Result<Delivered, Fault> {
        let turns = self.turns(address);
        // Nobody closes it.
        let _turn = turns.acquire().await;
        while let Some(mut stream) = self.take_idle(address) {
            match self.exchange(&mut stream, false, request, proof_len, progress).await {
                Err(Failed::Closed(_)) => {}
                answer => return self.finish(address, stream, answer),
            }
        }
        let connected = TcpStream::connect(address).await;
        let mut stream = connected.map_err(|error| unreachable(address, &error))?;
        let found = stream.set_nodelay(true).and_then(|()| stream.peer_addr());
        self.quick.learn(address, found.map_err(|error| unreachable(address, &error))?);
        let answer = self.exchange(&mut stream, true, request, proof_len, progress).await;
        self.finish(address, stream, answer)
    }

    fn turns(&self, address: &str) -> Arc<Semaphore> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_agent) = turns.get(address) {
            return Arc::clone(of_agent);
        }
        let of_agent = Arc::new(Semaphore::new(AT_ONCE_MAX));
        turns.insert(address.to_owned(), Arc::clone(&of_agent));
        of_agent
    }

    fn take_idle(&self, address: &str) -> Option<TcpStream> {
        let mut all = self.lock();
        let idle = all.get_mut(address)?;
        idle.retain(|it| it.since.elapsed() < IDLE_KEPT);
        idle.pop().map(|it| it.stream)
    }

    /// After a whole answer, also one that refuses, the connection can be used again.
    fn finish(
        &self,
        address: &str,
        stream: TcpStream,
        answer: Result<Result<Delivered, Refusal>, Failed>,
    ) -> Result<Delivered, Fault> {
        let answer = answer.map_err(|failed| match failed {
            Failed::Closed(error) => unreachable(address, &error),
            Failed::Broken(why) => unreachable(address, &why),
        })?;
        let mut all = self.lock();
        if !all.contains_key(address) {
            all.insert(address.to_owned(), Vec::new());
        }
        if let Some(idle) = all.get_mut(address).filter(|idle| idle.len() < IDLE_MAX) {
            idle.push(Idle { stream, since: Instant::now() });
        }
        let named = |it: Refusal| Refusal::new(it.reason, format!("{address}: {}", it.text));
        answer.map_err(|refusal| Fault::Said(named(refusal)))
    }

    /// One request and its answer; the inner error is the agent's word.
    async fn exchange(
        &self,
        stream: &mut TcpStream,
        new: bool,
        request: &Request,
        proof_len: usize,
        progress: &Progress,
    ) -> Result<Result<Delivered, Refusal>, Failed> {
        let frame = request.encode();
        let sent = match new {
            true => stream.write_all(&[&GREETING[..], &frame].concat()).await,
            false => stream.write_all(&frame).await,
        };
        sent.map_err(Failed::Closed)?;
        let bytes_len = match request {
            Request::Read(wanted) => usize::try_from(wanted.range.len()).unwrap_or(usize::MAX),
            Request::Ping => 0,
        };
        let whole = HEAD_BYTES + proof_len + bytes_len;
        let mut buffer = self.buffers.take(whole);
        // What comes with the head is read with it.
        fill(stream, &mut buffer, HEAD_BYTES..=whole, progress).await?;
        let head = buffer.bytes.first_chunk().expect("a head was read");
        match Head::decode(head).map_err(|error| malformed(&error.to_string()))? {
            Head::Bytes { proof_bytes, bytes } => {
                let lens = [proof_bytes, bytes].map(|it| usize::try_from(it).unwrap_or(usize::MAX));
                if lens != [proof_len, bytes_len] {
                    return Err(malformed("it sends another number of bytes than was asked for"));
                }
                fill(stream, &mut buffer, whole..=whole, progress).await?;
                Ok(Ok(Delivered::of(Bytes::from_owner(buffer), proof_len)))
            }
            Head::Refused { reason_bytes, text_bytes } => {
                let [reason, text] =
                    [reason_bytes, text_bytes].map(|it| usize::try_from(it).unwrap_or(usize::MAX));
                let whole = HEAD_BYTES + reason + text;
                buffer.bytes.reserve(whole);
                fill(stream, &mut buffer, whole..=whole, progress).await?;
                let (reason, text) = buffer.bytes[HEAD_BYTES..whole].split_at(reason);
                Ok(Err(channel::refusal(reason, text)))
            }
        }
    }

    /// Lets go of connections and memory that nobody has used for long.
    pub(crate) fn rest(&self) {
        self.quick.rest();
        let mut all = self.lock();
        for idle in all.values_mut() {
            idle.retain(|it| it.since.elapsed() < IDLE_KEPT);
        }
        all.retain(|_, idle| !idle.is_empty());
        if all.is_empty() {
            self.buffers.rest();
        }
    }
}

/// Reads on until there are as many bytes as there must be, and never more than there may be.
async fn fill(
    stream: &mut TcpStream,
    buffer: &mut Buffer,
    len: RangeInclusive<usize>,
    progress: &Progress,
) -> Result<(), Failed> {
    while buffer.bytes.len() < *len.start() {
        let room = len.end() - buffer.bytes.len();
        let read = stream.read_buf(&mut (&mut buffer.bytes).limit(room)).await;
        let nothing_yet = buffer.bytes.is_empty();
        let lost = |error: io::Error| match nothing_yet {
            true => Failed::Closed(error),
            false => Failed::Broken(format!("it broke off: {error}")),
        };
        match read.map_err(lost)? {
            0 => return Err(lost(io::ErrorKind::UnexpectedEof.into())),
            read => progress.heard(read),
        }
    }
    Ok(())
}

fn unreachable(address: &str, why: &dyn std::fmt::Display) -> Fault {
    Fault::Host(Refusal::new(Reason::Unavailable, format!("{address} cannot be reached: {why}")))
}

fn malformed(what: &str) -> Failed {
    Failed::Broken(format!("no agent that we understand: {what}"))
}
