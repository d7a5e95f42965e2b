//! Ranges asked for on the very thread that answers the kernel. Handing a request to another thread
//! and back takes longer than a small range on any network, and than any range on a fast one; so a
//! few of the threads may wait for one, for a moment. Whatever does not go smoothly is left to
//! `fetch.rs`.

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use isotope_proto::channel::{GREETING, HEAD_BYTES, Head, Request, TEXT_BYTES_MAX, Wanted};
use rustix::buffer::spare_capacity;
use tokio::sync::Semaphore;

use crate::buffers::Buffers;
use crate::channel::{Delivered, Progress};

/// Of the threads that serve the kernel so many may wait at once; the others answer what memory
/// knows, whatever the network does.
pub(crate) const WAITING_MAX: usize = 6;
/// A network's answer, or a sleepy disk's; what takes longer is asked for again, and hedged. With
/// connecting, and bytes that come just before it is over, a thread waits three times that.
const WAIT_MAX: Duration = Duration::from_millis(100);
/// What is longer takes long enough for another thread not to matter, unless the host is near.
pub(crate) const SMALL_BYTES_MAX: u64 = 64 << 10;
/// A whole refusal.
const REFUSAL_BYTES_MAX: usize = HEAD_BYTES + 2 * TEXT_BYTES_MAX as usize;
/// Agents close what is idle after five minutes.
const IDLE_KEPT: Duration = Duration::from_secs(60);

/// Why there are no bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shortfall {
    /// They did not come in a moment.
    Late,
    /// They were refused, the connection was lost, or nobody may wait just now.
    Other,
}

/// What an agent said.
enum Answer {
    Delivered(Delivered),
    /// The connection is as good as before.
    Refused,
}

/// Connections for them, and who may wait on one.
pub(crate) struct Quick {
    hosts: Mutex<HashMap<String, Host>>,
    waiting: Semaphore,
}

/// An agent that was connected to before.
struct Host {
    /// Of a name a resolver would have to be asked, which may take any time.
    address: SocketAddr,
    idle: Vec<(TcpStream, Instant)>,
}

impl Default for Quick {
    fn default() -> Self {
        Self { hosts: Mutex::default(), waiting: Semaphore::new(WAITING_MAX) }
    }
}

impl Quick {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Host>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where an agent was found: from now on it can be asked here.
    pub(crate) fn learn(&self, name: &str, address: SocketAddr) {
        let mut hosts = self.lock();
        match hosts.get_mut(name) {
            Some(host) if host.address == address => {}
            _ => drop(hosts.insert(name.to_owned(), Host { address, idle: Vec::new() })),
        }
    }

    /// A range from an agent, if it comes in a moment.
    pub(crate) fn read(
        &self,
        name: &str,
        wanted: &Wanted,
        proof_len: usize,
        buffers: &Arc<Buffers>,
        progress: &Progress,
    ) -> Result<Delivered, Shortfall> {
        let _waiting = self.waiting.try_acquire().map_err(|_| Shortfall::Other)?;
        let (address, kept) = {
            let mut hosts = self.lock();
            let host = hosts.get_mut(name).ok_or(Shortfall::Other)?;
            let kept = host.idle.pop().filter(|(_, since)| since.elapsed() < IDLE_KEPT);
            (host.address, kept.map(|(stream, _)| stream))
        };
        let mut stream = match kept {
            Some(stream) => stream,
            None => connect(&address).map_err(|error| shortfall(&error))?,
        };
        let answer = exchange(&mut stream, wanted, proof_len, buffers, progress);
        let answer = answer.map_err(|error| shortfall(&error))?;
        if let Some(host) = self.lock().get_mut(name) {
            host.idle.push((stream, Instant::now()));
        }
        match answer {
            Answer::Delivered(delivered) => Ok(delivered),
            Answer::Refused => Err(Shortfall::Other),
        }
    }

    /// Lets go of connections that nobody has used for long. True if none is left.
    pub(crate) fn rest(&self) -> bool {
        let mut hosts = self.lock();
        for host in hosts.values_mut() {
            host.idle.retain(|(_, since)| since.elapsed() < IDLE_KEPT);
        }
        hosts.values().all(|host| host.idle.is_empty())
    }
}

fn shortfall(error: &io::Error) -> Shortfall {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Shortfall::Late,
        _ => Shortfall::Other,
    }
}

fn connect(address: &SocketAddr) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(address, WAIT_MAX)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(WAIT_MAX))?;
    stream.set_write_timeout(Some(WAIT_MAX))?;
    stream.write_all(&GREETING)?;
    Ok(stream)
}

/// One request and its answer.
fn exchange(
    stream: &mut TcpStream,
    wanted: &Wanted,
    proof_len: usize,
    buffers: &Arc<Buffers>,
    progress: &Progress,
) -> io::Result<Answer> {
    let limit = Instant::now() + WAIT_MAX;
    stream.write_all(&Request::Read(*wanted).encode())?;
    let bytes_len = usize::try_from(wanted.range.len()).unwrap_or(usize::MAX);
    let announced = Head::Bytes { proof_bytes: count(proof_len), bytes: count(bytes_len) };
    let whole = HEAD_BYTES + proof_len + bytes_len;
    let mut answer = buffers.take(whole.max(REFUSAL_BYTES_MAX));
    fill(stream, &mut answer.bytes, HEAD_BYTES, limit, progress)?;
    let head = answer.bytes.first_chunk().map(Head::decode);
    let whole = match head.ok_or(io::ErrorKind::UnexpectedEof)?.map_err(io::Error::other)? {
        Head::Refused { reason_bytes, text_bytes } => {
            HEAD_BYTES + usize::try_from(reason_bytes + text_bytes).unwrap_or(usize::MAX)
        }
        head if head == announced => whole,
        Head::Bytes { .. } => return Err(io::ErrorKind::InvalidData.into()),
    };
    fill(stream, &mut answer.bytes, whole, limit, progress)?;
    if answer.bytes.len() > whole {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(match head {
        Some(Ok(Head::Bytes { .. })) => {
            Answer::Delivered(Delivered::of(Bytes::from_owner(answer), proof_len))
        }
        _ => Answer::Refused,
    })
}

/// Reads until there are so many bytes, or more. What comes just before the limit buys one more
/// wait.
fn fill(
    stream: &TcpStream,
    bytes: &mut Vec<u8>,
    len: usize,
    limit: Instant,
    progress: &Progress,
) -> io::Result<()> {
    while bytes.len() < len {
        if Instant::now() > limit {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match rustix::io::read(stream, spare_capacity(bytes))? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => progress.heard(read),
        }
    }
    Ok(())
}

fn count(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
