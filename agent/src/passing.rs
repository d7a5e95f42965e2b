//! Descriptors of files being written, for programs of this host: what they write need not go
//! through the network. Asked for over a Unix socket whose name no other host sees, by the image's
//! id; given to root and to whoever runs the agent.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdUnixListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use isotope_proto::id::ImageId;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::debug;

/// Whoever connects asks at once.
const ASK_MAX: Duration = Duration::from_secs(2);
/// Programs answered at once; more wait in the socket's queue, and store over the network if that
/// takes too long.
const ASKING_MAX: usize = 64;

#[derive(Default)]
pub(crate) struct Passing {
    offered: Mutex<HashMap<ImageId, OwnedFd>>,
}

/// A descriptor that may be asked for; no more when dropped.
pub(crate) struct Offer {
    image: ImageId,
    passing: Arc<Passing>,
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.passing.lock().remove(&self.image);
    }
}

impl Passing {
    fn lock(&self) -> MutexGuard<'_, HashMap<ImageId, OwnedFd>> {
        self.offered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn offer(self: &Arc<Self>, image: ImageId, file: OwnedFd) -> Offer {
        self.lock().insert(image, file);
        Offer { image, passing: Arc::clone(self) }
    }

    /// The socket of the agent that others reach at `address`.
    pub(crate) fn listen(address: &str) -> io::Result<UnixListener> {
        let name = isotope_proto::upload::local_socket(address);
        let listener = StdUnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener)
    }

    /// Answers for as long as the agent lives.
    pub(crate) async fn serve(self: Arc<Self>, listener: UnixListener) {
        let asking = Arc::new(Semaphore::new(ASKING_MAX));
        while let Ok(permit) = Arc::clone(&asking).acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let this = Arc::clone(&self);
                    tokio::spawn(async move {
                        let _permit = permit;
                        let answered = timeout(ASK_MAX, this.answer(stream)).await;
                        if let Ok(Err(error)) = answered {
                            debug!(%error, "a descriptor was not passed");
                        }
                    });
                }
                // Of descriptors there are none left; there will be.
                Err(_) => tokio::time::sleep(ASK_MAX).await,
            }
        }
    }

    async fn answer(&self, mut stream: UnixStream) -> io::Result<()> {
        let peer = stream.peer_cred()?.uid();
        if peer != 0 && peer != rustix::process::geteuid().as_raw() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut id = [0; 16];
        stream.read_exact(&mut id).await?;
        let file = match self.lock().get(&ImageId::from_bytes(id)) {
            Some(file) => file.try_clone()?,
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        stream.async_io(Interest::WRITABLE, || pass(&stream, &file)).await
    }
}

/// Sends one byte, and with it the descriptor (unix(7), SCM_RIGHTS).
fn pass(stream: &UnixStream, file: &OwnedFd) -> io::Result<()> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    let files = [file.as_fd()];
    message.push(SendAncillaryMessage::ScmRights(&files));
    sendmsg(stream, &[IoSlice::new(&[1])], &mut message, SendFlags::empty())?;
    Ok(())
}
