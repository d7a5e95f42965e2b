//! How long a mount takes to start from its snapshot, and what memory it needs, beside a start from
//! a list: the catalogue is a scripted one that tells of as many images as are asked for. Run by
//! `scripts/bench/instant`.

#![allow(clippy::print_stdout, clippy::print_stderr, dead_code)]

/// What the tests stand on, too.
#[path = "../tests/e2e"]
mod e2e {
    pub(crate) mod harness;
}

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use e2e::harness;
use harness::{World, text};
use isotope_proto::change::Record;
use isotope_proto::cluster::{Live, Node, Sight, Volume};
use isotope_proto::id::{ContentId, EntryId, ImageId, Incarnation, Ino, NodeId, PoolId, VolumeId};
use isotope_proto::image::{Image, ImageFormat, Os, OsFamily, Replica, Stamp};
use isotope_proto::name::{EntryName, VolumePath};
use isotope_proto::pb::feed_service_server::{FeedService, FeedServiceServer};
use isotope_proto::pb::watch_event::Event;
use isotope_proto::pb::{self, WatchEvent};
use isotope_proto::time::Timestamp;
use isotope_proto::tree::{Entry, Folder};
use rustix::process::{Pid, Signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

const IMAGES: u64 = 1_000_000;
const FOLDERS: u64 = 1_000;
const REVISION: u64 = 5_000_000;
/// As many records are in one message as a catalogue sends.
const RECORDS: usize = 1_000;
/// An inode number is a folder's up to here, an image's behind it.
const IMAGES_FROM: u64 = 1 << 20;

fn bytes(n: u64) -> [u8; 16] {
    // Ids are random at their end (RFC 9562 §5.7).
    let mixed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    bytes[8..].copy_from_slice(&mixed.to_be_bytes());
    bytes
}

fn incarnation() -> Incarnation {
    Incarnation::from_bytes([7; 16])
}

fn folder(ino: u64) -> Record {
    let (created, modified, changed) = (Timestamp(1), Timestamp(2), Timestamp(3));
    let default_pool = None;
    Record::Folder(Folder { ino: Ino(ino), mode: 0o2775, created, modified, changed, default_pool })
}

fn entry(parent: u64, name: String, ino: u64) -> Record {
    let name = EntryName::parse(&name).expect("a name");
    Record::Entry(Entry { id: EntryId(ino), parent: Ino(parent), name, ino: Ino(ino) })
}

fn file_name(n: u64) -> String {
    format!("distribution-{n}-server-amd64-installer.iso")
}

fn image(n: u64) -> Record {
    let path = VolumePath::parse(&format!("iso/{}", file_name(n))).expect("a path");
    let stamp = Stamp { inode: n, size_bytes: 4 << 30, mtime_ns: 1_700_000_000_000_000_000 };
    let volume = VolumeId::from_bytes(bytes(n % 3));
    Record::Image(Image {
        id: ImageId::from_bytes(bytes(n)),
        ino: Ino(IMAGES_FROM + n),
        content: ContentId::from_bytes(bytes(n)),
        hashes: None,
        filename: file_name(n),
        size_bytes: 4 << 30,
        format: ImageFormat::Iso,
        os: Os {
            family: OsFamily::Linux,
            distribution: "distribution".to_owned(),
            version: "12.1".to_owned(),
            arch: "x86_64".to_owned(),
        },
        flat_names: vec![EntryName::parse(&file_name(n)).expect("a name")],
        facts: None,
        mode: 0o664,
        created: Timestamp(1),
        modified: Timestamp(2),
        changed: Timestamp(3),
        replicas: vec![Replica { volume, path, stamp, checked: None }],
    })
}

fn library(images: u64) -> impl Iterator<Item = Record> {
    let hosts = (0..3).flat_map(|n| {
        let (id, name, address) =
            (NodeId::from_bytes(bytes(n)), format!("host-{n}"), "127.0.0.1:9".to_owned());
        let host = name.clone();
        let sights = vec![Sight { node: id, path: "/isos".to_owned() }];
        let (volume, pool) = (VolumeId::from_bytes(bytes(n)), PoolId::from_bytes([9; 16]));
        let volume = Record::Volume(Volume { id: volume, pool, sights });
        [Record::Node(Node { id, name, address, host }), volume]
    });
    let folders = (0..FOLDERS).map(|n| folder(2 + n));
    let below = (0..FOLDERS).map(|n| entry(1, format!("folder-{n}"), 2 + n));
    let entries = (0..images).map(|n| entry(2 + n % FOLDERS, file_name(n), IMAGES_FROM + n));
    let all = hosts.chain([folder(1)]).chain(folders).chain((0..images).map(image));
    all.chain(below).chain(entries)
}

/// The scripted catalogue.
struct Scripted {
    images: u64,
}

#[tonic::async_trait]
impl FeedService for Scripted {
    type WatchStream = ReceiverStream<Result<WatchEvent, Status>>;

    async fn watch(
        &self,
        request: Request<pb::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (out, stream) = mpsc::channel(8);
        let known = request.into_inner().after_revision == REVISION;
        let images = self.images;
        tokio::task::spawn_blocking(move || {
            let send = |event| out.blocking_send(Ok(WatchEvent { event: Some(event) })).is_ok();
            if !known {
                let incarnation = incarnation().into();
                send(Event::Reset(pb::Reset { incarnation, revision: REVISION, inodes: images }));
                let mut records = library(images).map(pb::Record::from).peekable();
                while records.peek().is_some() {
                    let records = records.by_ref().take(RECORDS).collect();
                    send(Event::Records(pb::Records { records }));
                }
                send(Event::Listed(pb::Listed {}));
            }
            let connected = (0..3).map(|n| NodeId::from_bytes(bytes(n))).collect();
            send(Event::Live(Live { connected, volumes: Vec::new() }.into()));
            while send(Event::Heartbeat(pb::Heartbeat { revision: REVISION })) {
                std::thread::sleep(Duration::from_millis(250));
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn hold(&self, _: Request<pb::HoldRequest>) -> Result<Response<pb::HoldReply>, Status> {
        Ok(Response::new(pb::HoldReply {}))
    }

    async fn report_wrong_copy(
        &self,
        _: Request<pb::ReportWrongCopyRequest>,
    ) -> Result<Response<pb::ReportWrongCopyReply>, Status> {
        Ok(Response::new(pb::ReportWrongCopyReply {}))
    }
}

/// Serves until it is dropped.
fn catalog(images: u64, address: SocketAddr) -> tokio::runtime::Runtime {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let service = FeedServiceServer::new(Scripted { images });
    let server = tonic::transport::Server::builder().add_service(service).serve(address);
    runtime.spawn(server);
    runtime
}

/// A mount that was started, and how long it took until it was mounted.
struct Started {
    child: Child,
    seconds: f64,
}

fn start(world: &World, path: &Path, url: &str) -> Started {
    let began = Instant::now();
    let log = fs::File::create(world.path("mnt.log")).expect("a log");
    let mut command = world.command(&["mount", text(path), "--catalog", url]);
    let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().expect("started");
    let stdout = BufReader::new(child.stdout.take().expect("piped"));
    let mounted = stdout.lines().map_while(Result::ok).any(|line| line.starts_with("mounted"));
    let seconds = began.elapsed().as_secs_f64();
    assert!(mounted, "{}", world.log("mnt.log"));
    Started { child, seconds }
}

impl Started {
    /// `VmRSS` or `VmHWM` of proc_pid_status(5), in MiB.
    fn memory(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("read");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("a field");
        let kib = line.trim_matches(|c: char| !c.is_ascii_digit()).parse::<u64>();
        kib.expect("a number") >> 10
    }

    fn stop(mut self) {
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, Signal::TERM).expect("it lives");
        self.child.wait().expect("a child");
    }
}

fn main() {
    let (mut images, mut json) = (IMAGES, false);
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--json" => json = true,
            // What cargo says to every benchmark.
            "--bench" => {}
            number => images = number.parse().expect("usage: snapshot [IMAGES] [--json]"),
        }
    }
    let world = World::new();
    let path = world.mount_point("mnt");
    let address = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port");
    let url = format!("http://{address}");
    let probe = path.join(format!("folder-{}/{}", 7, file_name(7)));
    let tell = |what: &str, started: &Started| {
        assert!(probe.is_file(), "{what}");
        let (seconds, peak, rss) =
            (started.seconds, started.memory("VmHWM:"), started.memory("VmRSS:"));
        if json {
            let line = serde_json::json!({
                "start": what, "images": images, "seconds": seconds, "peak_mib": peak, "rss_mib": rss,
            });
            println!("{line}");
        } else {
            println!("{what:<36} {seconds:>7.2} s   {peak:>6} MiB at most, {rss:>6} MiB then");
        }
    };

    let serving = catalog(images, address);
    let mount = start(&world, &path, &url);
    tell("from a list", &mount);
    let recording = || {
        let listed = fs::read_dir(world.path("state/mount")).into_iter().flatten().flatten();
        listed.map(|it| it.path()).find(|it| it.extension() == Some("feed".as_ref()))
    };
    harness::eventually_in(Duration::from_secs(60), "a recording", || recording().is_some());
    mount.stop();
    let size = fs::metadata(recording().expect("there")).expect("there").len();
    let mount = start(&world, &path, &url);
    tell("from a snapshot, and its catalogue", &mount);
    mount.stop();
    serving.shutdown_background();
    let mount = start(&world, &path, &url);
    tell("from a snapshot, without a catalogue", &mount);
    mount.stop();
    if !json {
        println!("{images} images; the snapshot has {} MiB", size >> 20);
    }
}
