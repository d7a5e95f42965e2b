//! The agent's one port. What a connection is for shows in its first byte: the content channel
//! greets with a zero, everything else is HTTP.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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
/// Content channels, a thread each: 64 mounts with 8 of them.
const CHANNELS_MAX: usize = 512;
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
    let channels = Arc::new(Channels { host, count: AtomicUsize::new(0), all: Mutex::default() });
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
    count: AtomicUsize,
    /// To be closed when the agent stops.
    all: Mutex<Vec<std::sync::Weak<std::net::TcpStream>>>,
}

impl Channels {
    fn begin(self: Arc<Self>, stream: std::net::TcpStream) -> io::Result<()> {
        if self.count.fetch_add(1, Ordering::Relaxed) >= CHANNELS_MAX {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return Err(io::Error::other("as many content channels as there may be"));
        }
        let closing = Arc::new(stream.try_clone()?);
        {
            let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|it| it.strong_count() > 0);
            all.push(Arc::downgrade(&closing));
        }
        let runtime = tokio::runtime::Handle::current();
        let thread = std::thread::Builder::new().name("content".to_owned()).stack_size(STACK_BYTES);
        let this = Arc::clone(&self);
        let begun = thread.spawn(move || {
            Connection::new(this.host.clone(), runtime, stream).serve();
            drop(closing);
            this.count.fetch_sub(1, Ordering::Relaxed);
        });
        begun.map(drop).inspect_err(|_| {
            self.count.fetch_sub(1, Ordering::Relaxed);
        })
    }

    /// Their threads see the end of their connections.
    fn close(&self) {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        for stream in all.iter().filter_map(std::sync::Weak::upgrade) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}
