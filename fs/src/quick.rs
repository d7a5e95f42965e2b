//! Small ranges asked for on the very thread that answers the kernel. Handing a request to another
//! thread and back takes longer than a network's answer; so a few of the threads may wait for one,
//! for a moment. Whatever does not go smoothly is left to `fetch.rs`.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use isotope_proto::channel::{GREETING, HEAD_BYTES, Head, Request, Wanted};
use tokio::sync::Semaphore;

use crate::channel::{Delivered, proof_len};

/// Of the threads that serve the kernel so many may wait at once; the others answer what memory
/// knows, whatever the network does.
pub(crate) const WAITING_MAX: usize = 6;
/// A network's answer, or a sleepy disk's; what takes longer is asked for again, and hedged.
const WAIT_MAX: Duration = Duration::from_millis(100);
/// More than this takes long enough for another thread not to matter.
pub(crate) const RANGE_BYTES_MAX: u64 = 64 << 10;
/// Agents close what is idle after five minutes.
const IDLE_KEPT: Duration = Duration::from_secs(60);

/// Connections for small ranges, and who may wait on one.
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

    /// A small range from an agent; none if that takes long or does not succeed, for whatever
    /// reason.
    pub(crate) fn read(&self, name: &str, wanted: &Wanted, size_bytes: u64) -> Option<Delivered> {
        let _waiting = self.waiting.try_acquire().ok()?;
        let (address, kept) = {
            let mut hosts = self.lock();
            let host = hosts.get_mut(name)?;
            let kept = host.idle.pop().filter(|(_, since)| since.elapsed() < IDLE_KEPT);
            (host.address, kept.map(|(stream, _)| stream))
        };
        let mut stream = kept.or_else(|| connect(&address).ok())?;
        let delivered = exchange(&mut stream, wanted, size_bytes).ok()?;
        if let Some(host) = self.lock().get_mut(name) {
            host.idle.push((stream, Instant::now()));
        }
        Some(delivered)
    }

    /// Lets go of connections that nobody has used for long.
    pub(crate) fn rest(&self) {
        for host in self.lock().values_mut() {
            host.idle.retain(|(_, since)| since.elapsed() < IDLE_KEPT);
        }
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

/// One request and its answer; a refusal is an error like any other.
fn exchange(stream: &mut TcpStream, wanted: &Wanted, size_bytes: u64) -> io::Result<Delivered> {
    let began = Instant::now();
    stream.write_all(&Request::Read(*wanted).encode())?;
    let proof_len = proof_len(wanted, size_bytes);
    let bytes_len = usize::try_from(wanted.range.len()).unwrap_or(usize::MAX);
    let whole = HEAD_BYTES + proof_len + bytes_len;
    let announced = Head::Bytes { proof_bytes: count(proof_len), bytes: count(bytes_len) };
    let (mut answer, mut filled) = (vec![0; whole], 0);
    while filled < whole {
        // All of it has that time, and not each part.
        if began.elapsed() > WAIT_MAX {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let read = stream.read(&mut answer[filled..])?;
        let had_head = filled >= HEAD_BYTES;
        filled += read;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // A refusal is shorter than the range: its head says so, before more is waited for.
        if !had_head
            && filled >= HEAD_BYTES
            && answer.first_chunk().map(Head::decode) != Some(Ok(announced))
        {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(Delivered::of(answer.into(), proof_len))
}

fn count(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
