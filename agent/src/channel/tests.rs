//! The channel from outside: frames sent to a listening agent, and what comes back.

use std::fs;
use std::path::Path;

use isotope_proto::channel::{GREETING, HEAD_BYTES};
use isotope_proto::id::{NodeId, VolumeId};
use isotope_proto::name::VolumePath;
use isotope_proto::time::Timestamp;
use tokio::net::TcpListener;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::bytes;
use crate::digest::Manner;
use crate::identity::State;
use crate::index::Known;
use crate::listener;
use crate::volume::open_file;
use crate::volumes::Volumes;

const IMAGE: ImageId = ImageId::from_bytes([7; 16]);

/// An agent with one volume and one image, and a connection to it.
struct Channel {
    volume: Arc<Volume>,
    stream: TcpStream,
    http: ReceiverStream<io::Result<tokio::net::TcpStream>>,
    address: std::net::SocketAddr,
    stop: CancellationToken,
    _runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
}

fn image_bytes(size: usize) -> Vec<u8> {
    (0..size).map(|n| (n % 251) as u8 ^ (n / 4099) as u8).collect()
}

impl Channel {
    fn to(size: usize) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let pool = dir.path().join("pool");
        fs::create_dir_all(pool.join("iso")).expect("made");
        fs::write(pool.join("iso/a.iso"), image_bytes(size)).expect("written");
        let volume = Volume::open(&pool, "isos", None, Timestamp(1)).expect("a volume");
        let root = volume.root().expect("online");
        let (_, stamp) = open_file(&root, "iso/a.iso").expect("opened");
        let path = VolumePath::parse("iso/a.iso").expect("a path");
        volume.index_mut().insert(path, Known { image: IMAGE, stamp });
        volume.settle();
        let (volumes, id) = (Volumes::default(), volume.id);
        assert!(volumes.add(volume));
        let volume = volumes.get(id).expect("added");
        let state = State::open(&dir.path().join("state"), Timestamp(1)).expect("a state");
        let host = Host::new(NodeId::from_bytes([1; 16]), volumes, state, Arc::default());
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let stop = CancellationToken::new();
        let (address, http) = runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
            let address = listener.local_addr().expect("an address");
            (address, listener::listen(listener, host, stop.clone()))
        });
        let stream = connect(address, &GREETING);
        Self { volume, stream, http, address, stop, _runtime: runtime, _dir: dir }
    }

    fn pool(&self) -> &Path {
        &self.volume.path
    }

    fn hash(&self) -> Blake3 {
        let read = bytes::hash(&self.volume, IMAGE, &Manner::default());
        assert_eq!(read, Ok(bytes::Read::Sound));
        self.volume.index().hashed(IMAGE).expect("hashed").hashes.blake3
    }

    fn ask(&mut self, request: &Request) -> Result<(Vec<u8>, Vec<u8>), Refusal> {
        self.stream.write_all(&request.encode()).expect("sent");
        let mut head = [0; HEAD_BYTES];
        self.stream.read_exact(&mut head).expect("answered");
        let mut take = |len: u64| {
            let mut bytes = vec![0; len as usize];
            self.stream.read_exact(&mut bytes).expect("as long as announced");
            bytes
        };
        match Head::decode(&head).expect("a head") {
            Head::Bytes { proof_bytes, bytes } => Ok((take(proof_bytes), take(bytes))),
            Head::Refused { reason_bytes, text_bytes } => {
                let reason = take(reason_bytes);
                Err(channel::refusal(&reason, &take(text_bytes)))
            }
        }
    }

    fn read(
        &mut self,
        start: u64,
        len: u64,
        proved_by: Option<Blake3>,
    ) -> Result<(Vec<u8>, Vec<u8>), Reason> {
        let range = ByteRange::new(start, len).expect("a range");
        let wanted = Wanted { image: IMAGE, volume: self.volume.id, range, proved_by };
        self.ask(&Request::Read(wanted)).map_err(|refusal| refusal.reason)
    }
}

fn connect(address: std::net::SocketAddr, greeting: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    stream.write_all(greeting).expect("sent");
    stream
}

#[test]
fn a_range_is_read_small_or_large_and_with_its_proof() {
    let size = 3_000_000;
    let (mut channel, all) = (Channel::to(size), image_bytes(size));
    assert!(channel.ask(&Request::Ping).is_ok());
    for (start, len) in [(0, 1), (5, 70_000), (2_999_999, 1), (7, 0), (1 << 20, 1 << 20)] {
        let (proof, bytes) = channel.read(start, len, None).expect("read");
        assert!(proof.is_empty() && bytes == all[start as usize..(start + len) as usize]);
    }
    let root = channel.hash();
    let size = size as u64;
    for (start, len) in [(0, 1), (40_000, 9_000), (1 << 20, 1 << 20), (2_990_000, 10_000)] {
        let range = proof::widened(ByteRange::clamped(start, len, size), size);
        let (proof, bytes) = channel.read(range.start(), range.len(), Some(root)).expect("read");
        assert_eq!(proof::verify(&root, size, range, &proof, &bytes), Ok(()));
    }
}

#[test]
fn what_cannot_be_read_is_refused_and_the_connection_goes_on() {
    let mut channel = Channel::to(100_000);
    let root = channel.hash();
    assert_eq!(channel.read(99_999, 2, None), Err(Reason::OutOfRange));
    assert_eq!(channel.read(1, 16_384, Some(root)), Err(Reason::OutOfRange), "no whole groups");
    let range = ByteRange::new(0, 1).expect("a range");
    let elsewhere = VolumeId::from_bytes([9; 16]);
    let wanted = Wanted { image: IMAGE, volume: elsewhere, range, proved_by: None };
    let refusal = channel.ask(&Request::Read(wanted)).expect_err("another volume");
    assert_eq!(refusal.reason, Reason::Unavailable);
    let nobody = ImageId::from_bytes([8; 16]);
    let wanted = Wanted { image: nobody, volume: channel.volume.id, range, proved_by: None };
    let refusal = channel.ask(&Request::Read(wanted)).expect_err("another image");
    assert_eq!(refusal.reason, Reason::NotFound);
    assert!(channel.read(0, 1, None).is_ok());
}

#[test]
fn a_missing_tree_is_said_and_made_anew() {
    let mut channel = Channel::to(100_000);
    let root = channel.hash();
    let tree = channel.pool().join(format!(".isotope/hashes/{root}.obao"));
    fs::remove_file(&tree).expect("removed");
    assert_eq!(channel.read(0, 16_384, Some(root)), Err(Reason::Unavailable));
    assert!(channel.volume.treeless.lock().expect("the wishes").contains(&IMAGE));
    channel.hash();
    assert!(channel.read(0, 16_384, Some(root)).is_ok());
}

#[test]
fn a_file_that_was_changed_or_rotted_is_served_no_more() {
    let mut channel = Channel::to(100_000);
    channel.hash();
    assert!(channel.read(0, 9, None).is_ok(), "it is kept open from now on");
    let path = channel.pool().join("iso/a.iso");
    let file = File::options().write(true).open(&path).expect("opened");
    file.set_len(50_000).expect("cut");
    assert_eq!(channel.read(0, 9, None), Err(Reason::Replaced));
    fs::write(path.with_extension("new"), image_bytes(100_000)).expect("written");
    fs::rename(path.with_extension("new"), &path).expect("replaced");
    assert_eq!(channel.read(0, 9, None), Err(Reason::Replaced));
    let mut channel = Channel::to(100_000);
    channel.hash();
    assert!(channel.read(0, 9, None).is_ok());
    let mut hashed = channel.volume.index().hashed(IMAGE).expect("hashed").clone();
    hashed.verdict = Verdict::Rotten;
    channel.volume.index_mut().set_hashed(IMAGE, hashed);
    assert_eq!(channel.read(0, 9, None), Err(Reason::WrongBytes));
}

#[test]
fn a_file_is_let_go_when_nobody_has_asked_for_a_moment() {
    let mut channel = Channel::to(100_000);
    assert!(channel.read(0, 9, None).is_ok());
    let file = channel.pool().join("iso/a.iso");
    let is_held = || {
        let links = fs::read_dir("/proc/self/fd").expect("descriptors").flatten();
        links.filter_map(|it| fs::read_link(it.path()).ok()).any(|it| it == file)
    };
    assert!(is_held(), "the next request comes soon, as a rule");
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while is_held() {
        assert!(std::time::Instant::now() < deadline, "it keeps the disk busy");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(channel.read(0, 9, None).is_ok(), "and it is opened again");
}

#[test]
fn strangers_are_shown_out_and_http_goes_to_its_server() {
    let mut channel = Channel::to(9);
    let closed = |bytes: &[u8]| {
        let mut stream = connect(channel.address, bytes);
        let mut rest = Vec::new();
        // A reset is as good an end as another.
        let ended = stream.read_to_end(&mut rest);
        assert!(ended.map_or_else(|it| it.kind() == io::ErrorKind::ConnectionReset, |_| true));
        assert!(rest.is_empty());
    };
    closed(b"\0ISOTOPE");
    closed(&[&GREETING[..], &[0xFF; REQUEST_BYTES]].concat());
    let _http = connect(channel.address, b"GET / HTTP/1.1\r\n\r\n");
    let found = channel._runtime.block_on(channel.http.next()).expect("one").expect("accepted");
    assert!(found.nodelay().expect("asked"), "small answers are sent at once");
    channel.stop.cancel();
    let mut rest = Vec::new();
    assert_eq!(channel.stream.read_to_end(&mut rest).expect("closed"), 0);
}
