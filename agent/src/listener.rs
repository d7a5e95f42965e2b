//! The agent's one port. What a connection is for shows in its first byte: the content channel
//! greets with a zero, everything else is HTTP.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use isotope_proto::channel::GREETING;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::channel::Connection;
use crate::host::Host;

/// Whoever connects says at once what for.
const GREETING_MAX: Duration = Duration::from_secs(10);
/// Connections that have yet to say it; more wait in the listener's queue.
const GREETED_MAX: usize = 256;
/// Connections waiting for the HTTP server, which takes them at once.
const HTTP_MAX: usize = 64;
/// Content channels, a thread each.
const CHANNELS_MAX: usize = 1024;
/// Of them one host's: a mount that is read hard has some 60, and rarely shares its host with
/// another.
const CHANNELS_OF_ONE_MAX: usize = 160;
/// A thread of a channel calls nothing deep.
const STACK_BYTES: usize = 256 << 10;
/// Between two tries to accept, when the process has no descriptors left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

type Http = mpsc::Sender<io::Result<TcpStream>>;

/// The connections that are no content channels; those are served until `stop`.
pub(crate) fn listen(
    listener: TcpListener,
    host: Host,
    stop: CancellationToken,
) -> ReceiverStream<io::Result<TcpStream>> {
    let (http, connections) = mpsc::channel(HTTP_MAX);
    let channels = Arc::new(Channels { host, all: Mutex::default() });
    tokio::spawn(async move {
        tokio::select! {
            () = accept(listener, http, &channels) => {}
            () = stop.cancelled() => {}
        }
        channels.close();
    });
    ReceiverStream::new(connections)
}

async fn accept(listener: TcpListener, http: Http, channels: &Arc<Channels>) {
    let greeted = Arc::new(Semaphore::new(GREETED_MAX));
    while let Ok(permit) = Arc::clone(&greeted).acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "no connection can be accepted");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let (http, channels) = (http.clone(), Arc::clone(channels));
        tokio::spawn(async move {
            let sorted = timeout(GREETING_MAX, sort(stream, &http, channels)).await;
            drop(permit);
            if let Ok(Err(error)) = sorted {
                debug!(%error, "a connection was lost before it said what for");
            }
        });
    }
}

async fn sort(mut stream: TcpStream, http: &Http, channels: Arc<Channels>) -> io::Result<()> {
    // Answers of one small frame must not wait for the acknowledgement of the last.
    stream.set_nodelay(true)?;
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Ok(());
    }
    if first[0] != GREETING[0] {
        // The server has ended if nobody takes it.
        let _ = http.send(Ok(stream)).await;
        return Ok(());
    }
    let mut greeting = [0; GREETING.len()];
    stream.read_exact(&mut greeting).await?;
    if greeting != GREETING {
        return Err(io::ErrorKind::InvalidData.into());
    }
    channels.begin(stream.into_std()?)
}

/// The content channels there are.
struct Channels {
    host: Host,
    /// To be counted, and closed when the agent stops; gone when their threads are.
    all: Mutex<Vec<(IpAddr, Weak<std::net::TcpStream>)>>,
}

impl Channels {
    fn begin(self: Arc<Self>, stream: std::net::TcpStream) -> io::Result<()> {
        let peer = stream.peer_addr()?.ip();
        let closing = Arc::new(stream.try_clone()?);
        {
            let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|(_, it)| it.strong_count() > 0);
            let of_peer = all.iter().filter(|(other, _)| *other == peer).count();
            if all.len() >= CHANNELS_MAX || of_peer >= CHANNELS_OF_ONE_MAX {
                warn!(%peer, of_peer, all = all.len(), "no more content channels are served");
                return Err(io::Error::other("as many content channels as there may be"));
            }
            all.push((peer, Arc::downgrade(&closing)));
        }
        let runtime = tokio::runtime::Handle::current();
        let thread = std::thread::Builder::new().name("content".to_owned()).stack_size(STACK_BYTES);
        let host = self.host.clone();
        let begun = thread.spawn(move || {
            Connection::new(host, runtime, stream).serve();
            drop(closing);
        });
        begun.map(drop)
    }

    /// Their threads see the end of their connections.
    fn close(&self) {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        for stream in all.iter().filter_map(|(_, it)| it.upgrade()) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}
