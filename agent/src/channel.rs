//! The agent's end of the content channel: one thread a connection, which may wait for the disk and
//! for the network without holding up another. It knows frames and files, and nothing of names.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use isotope_proto::channel::{self, Head, REQUEST_BYTES, Request, Wanted};
use isotope_proto::digest::Blake3;
use isotope_proto::id::ImageId;
use isotope_proto::image::Stamp;
use isotope_proto::proof;
use isotope_proto::range::ByteRange;
use isotope_proto::refusal::{Reason, Refusal};
use tokio::runtime::Handle as Runtime;
use tracing::debug;

use crate::content;
use crate::hasher::hash_anew;
use crate::host::Host;
use crate::index::Verdict;
use crate::outboards::Outboards;
use crate::service::{is_unknown, not_here};
use crate::volume::Volume;

mod tree;

use tree::Tree;

/// A connection on which nothing is asked for so long lets go of the files that it has open: whoever
/// unmounts a disk must not find it busy.
const REST_AFTER: Duration = Duration::from_millis(200);
/// One on which nothing is asked for so long is closed; whoever comes back connects anew.
const IDLE_MAX: Duration = Duration::from_secs(300);
/// Whoever takes nothing for so long is gone.
const STALLED_MAX: Duration = Duration::from_secs(60);
/// Files kept open by one connection: its program reads a few at a time.
const OPEN_MAX: usize = 4;

/// One connection, after the greeting.
pub(crate) struct Connection {
    host: Host,
    runtime: Runtime,
    stream: TcpStream,
    /// The latest used last.
    open: Vec<Open>,
    /// As long as the longest range that was asked for lately. Reading and sending it whole costs half
    /// of what sendfile does, which sends 64 KiB at a time.
    buffer: Vec<u8>,
}

/// A file that was asked for.
struct Open {
    volume: Arc<Volume>,
    image: ImageId,
    file: File,
    stamp: Stamp,
    tree: Option<(Blake3, Tree)>,
}

impl Connection {
    pub(crate) fn new(host: Host, runtime: Runtime, stream: TcpStream) -> Self {
        Self { host, runtime, stream, open: Vec::new(), buffer: Vec::new() }
    }

    /// Answers until the other side closes it, or breaks its rules.
    pub(crate) fn serve(mut self) {
        let ready = self.stream.set_nonblocking(false);
        let ready = ready.and_then(|()| self.stream.set_read_timeout(Some(IDLE_MAX)));
        let ready = ready.and_then(|()| self.stream.set_write_timeout(Some(STALLED_MAX)));
        let served = ready.and_then(|()| {
            while let Some(frame) = self.next_request()? {
                let request = Request::decode(&frame).map_err(io::Error::other)?;
                self.answer(request)?;
            }
            Ok(())
        });
        if let Err(error) = served {
            debug!(%error, "a content channel was closed");
        }
    }

    /// None when the other side has no more, or has not asked for long.
    fn next_request(&mut self) -> io::Result<Option<[u8; REQUEST_BYTES]>> {
        let (mut frame, mut filled) = ([0; REQUEST_BYTES], 0);
        while filled < frame.len() {
            match self.stream.read(&mut frame[filled..]) {
                Ok(0) => return Ok(None),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                Err(_) if self.open.is_empty() => return Ok(None),
                Err(_) => {
                    self.open.clear();
                    self.buffer = Vec::new();
                    self.stream.set_read_timeout(Some(IDLE_MAX))?;
                }
            }
        }
        Ok(Some(frame))
    }

    /// An error here is the connection's; what the request meets is told to whoever asked.
    fn answer(&mut self, request: Request) -> io::Result<()> {
        let Request::Read(wanted) = request else {
            return self.stream.write_all(&Head::Bytes { proof_bytes: 0, bytes: 0 }.encode());
        };
        match self.prepare(&wanted) {
            Ok(proof) => self.send(wanted.range, &proof),
            Err(refusal) => self.stream.write_all(&channel::refused(&refusal)),
        }
    }

    /// Puts the range into the buffer; returns its proof, if one is wanted.
    fn prepare(&mut self, wanted: &Wanted) -> Result<Vec<u8>, Refusal> {
        let at = self.opened(wanted)?;
        let open = &mut self.open[at];
        content::within(wanted.range, wanted.image, open.stamp)?;
        let proof = match wanted.proved_by {
            Some(root) => open.proof(wanted.range, root)?,
            None => Vec::new(),
        };
        let len = len_of(wanted.range);
        if self.buffer.len() < len {
            self.buffer.resize(len, 0);
        }
        let bytes = &mut self.buffer[..len];
        content::read_whole(&open.file, open.stamp, wanted.range.start(), bytes)?;
        Ok(proof)
    }

    /// The file's place among those that are open.
    fn opened(&mut self, wanted: &Wanted) -> Result<usize, Refusal> {
        let volume = self.host.volumes.get(wanted.volume).ok_or_else(|| not_here(wanted.volume))?;
        let known = {
            let index = volume.index();
            if index.hashed(wanted.image).is_some_and(|it| it.verdict == Verdict::Rotten) {
                let text = "the file has rotted: its bytes are no longer the image's";
                return Err(Refusal::new(Reason::WrongBytes, text));
            }
            index.locate(wanted.image).map(|(_, stamp)| stamp)
        };
        let is_it = |it: &Open| Arc::ptr_eq(&it.volume, &volume) && it.image == wanted.image;
        if let Some(at) = self.open.iter().position(is_it) {
            let open = self.open.remove(at);
            // Gone from the index, it is looked for anew.
            if known == Some(open.stamp) && volume.root().is_ok() {
                self.open.push(open);
                return Ok(self.open.len() - 1);
            }
        }
        let (file, stamp) = self.find(&volume, wanted.image)?;
        if self.open.len() >= OPEN_MAX {
            self.open.remove(0);
        }
        // Only no time at all is refused.
        let _ = self.stream.set_read_timeout(Some(REST_AFTER));
        self.open.push(Open { volume, image: wanted.image, file, stamp, tree: None });
        Ok(self.open.len() - 1)
    }

    fn find(&self, volume: &Arc<Volume>, image: ImageId) -> Result<(File, Stamp), Refusal> {
        let open = || content::open(volume, self.host.node, image);
        open().or_else(|refusal| {
            let known_elsewhere = || self.runtime.block_on(self.host.relocate(volume, image));
            if is_unknown(&refusal) && known_elsewhere() { open() } else { Err(refusal) }
        })
    }

    fn send(&mut self, range: ByteRange, proof: &[u8]) -> io::Result<()> {
        let count = |bytes: &[u8]| u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let head = Head::Bytes { proof_bytes: count(proof), bytes: range.len() }.encode();
        let mut parts = [&head[..], proof, &self.buffer[..len_of(range)]].map(IoSlice::new);
        write_all_vectored(&mut self.stream, &mut parts)
    }
}

impl Open {
    /// The inner nodes that prove a range, from the tree that was kept when the file was hashed.
    fn proof(&mut self, range: ByteRange, root: Blake3) -> Result<Vec<u8>, Refusal> {
        let size_bytes = self.stamp.size_bytes;
        if proof::widened(range, size_bytes) != range {
            return Err(Refusal::new(Reason::OutOfRange, "only whole groups can be proved"));
        }
        let nodes = proof::nodes(range, size_bytes);
        if nodes.is_empty() {
            return Ok(Vec::new());
        }
        let mut tree = match self.tree.take() {
            Some((of, tree)) if of == root => tree,
            _ => self.open_tree(root)?,
        };
        let proof = tree.nodes(&nodes).map_err(|error| self.treeless(&error))?;
        self.tree = Some((root, tree));
        Ok(proof)
    }

    fn open_tree(&self, root: Blake3) -> Result<Tree, Refusal> {
        let outboards = self.volume.sidecar().and_then(|sidecar| Outboards::open(&sidecar));
        let tree = outboards.map(|outboards| outboards.tree(root.as_bytes()));
        let tree = tree.and_then(|tree| tree.ok_or(io::ErrorKind::NotFound.into()));
        tree.map(Tree::new).map_err(|error| self.treeless(&error))
    }

    /// It is made anew; whoever asks again in some seconds gets it.
    fn treeless(&self, error: &io::Error) -> Refusal {
        hash_anew(&self.volume, self.image);
        let text = format!("the file's hash tree cannot be read ({error}); it is made anew");
        Refusal::new(Reason::Unavailable, text)
    }
}

fn write_all_vectored(stream: &mut TcpStream, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
    IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        match stream.write_vectored(parts) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut parts, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// At most what a frame may ask for.
fn len_of(range: ByteRange) -> usize {
    usize::try_from(range.len()).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
