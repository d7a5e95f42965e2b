//! The same with everything that can happen: bytes, modes and times, two mounts and the API, files
//! changed in the pool behind everybody's back, a catalogue that falls silent or dies, a mount that
//! is killed. After each step both mounts must show the model's tree, whole, with every byte.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path as FsPath, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rustix::process::Signal;
use tokio::runtime::Runtime;
use tonic::transport::Endpoint;

use super::api::Api;
use super::mounted::{carry_out, look};
use super::reference::{Errnos, Model, Node, Op, Path, Step, UNKNOWN, step, step_and_store};
use crate::harness::{Part, SOON, World, errno, eventually, pattern, write_image};

const STEPS: usize = 130;
/// Longer than a feed may be silent without being taken for lost.
const SILENCE: Duration = Duration::from_millis(2500);
/// The folder of the files that are changed in the pool; nobody else touches it.
const BEHIND: &str = "behind";
/// What failed once is run each time; a line a number.
const SEEDS: &str = include_str!("whole.seeds");

#[derive(Debug, Clone)]
enum Event {
    /// By the first mount, the second, or the API.
    Names(Step, usize),
    Mode(usize, u32),
    Time(usize, u64),
    /// An image loses a name while it is open.
    UnlinkOpen(usize),
    /// A file is put into the pool.
    Put,
    /// Those that were put there, by number.
    Remove(usize),
    Move(usize),
    Replace(usize),
    SilenceCatalog,
    KillCatalog,
    KillMount,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        60 => (step_and_store(), 0..2_usize).prop_map(|(step, by)| Event::Names(step, by)),
        20 => step().prop_map(|step| Event::Names(step, 2)),
        8 => (any::<usize>(), 0..0o1000_u32).prop_map(|(which, mode)| Event::Mode(which, mode)),
        8 => (any::<usize>(), 1..4_000_000_000_u64).prop_map(|(which, at)| Event::Time(which, at)),
        6 => any::<usize>().prop_map(Event::UnlinkOpen),
        5 => Just(Event::Put),
        1 => any::<usize>().prop_map(Event::Remove),
        2 => any::<usize>().prop_map(Event::Move),
        2 => any::<usize>().prop_map(Event::Replace),
        1 => Just(Event::SilenceCatalog),
        1 => Just(Event::KillCatalog),
        1 => Just(Event::KillMount),
    ]
}

/// An image as a mount shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Image {
    mode: u32,
    modified: (i64, i64),
    bytes: Vec<u8>,
}

struct Cluster {
    model: Model,
    images: BTreeMap<u64, Image>,
    catalog: Option<Part>,
    mounts: [Option<Part>; 2],
    _agent: Part,
    paths: [PathBuf; 2],
    pool: PathBuf,
    url: String,
    runtime: Runtime,
    api: Api,
    world: World,
}

fn at(mount: &FsPath, path: &Path) -> PathBuf {
    mount.join(path.iter().collect::<PathBuf>())
}

fn image_at(path: &FsPath) -> Result<Image, String> {
    let said = |error| format!("{}: {error}", path.display());
    let meta = fs::metadata(path).map_err(said)?;
    let bytes = fs::read(path).map_err(said)?;
    if meta.len() != bytes.len() as u64 {
        return Err(format!("{}: {} bytes of {}", path.display(), bytes.len(), meta.len()));
    }
    Ok(Image { mode: meta.mode() & 0o7777, modified: (meta.mtime(), meta.mtime_nsec()), bytes })
}

impl Cluster {
    fn new() -> Self {
        let world = World::new();
        let pool = world.pool("isos", &["a/0.iso", "a/1.iso", "2.iso"]);
        let (catalog, url) = world.catalog();
        let agent = world.agent("a", &url, &[&pool]);
        let ((one, first), (two, second)) = (world.mount("one", &url), world.mount("two", &url));
        let known = || look(&first).is_ok_and(|model| model.0.len() == 7);
        eventually("three folders, /a and three images", known);
        let runtime = Runtime::new().expect("a runtime");
        let endpoint = Endpoint::from_shared(url.clone()).expect("a URL");
        let api = Api::new(runtime.block_on(async { endpoint.connect_lazy() }));
        let mut cluster = Self {
            model: look(&first).expect("a whole tree"),
            images: BTreeMap::new(),
            catalog: Some(catalog),
            mounts: [Some(one), Some(two)],
            _agent: agent,
            paths: [first, second],
            pool,
            url,
            runtime,
            api,
            world,
        };
        cluster.learn(0, None);
        cluster
    }

    /// Takes note of images that are new on a mount; `bytes` are what they hold.
    fn learn(&mut self, mount: usize, bytes: Option<&[u8]>) {
        for (path, node) in &mut self.model.0 {
            let Node::Image(ino) = node else { continue };
            let path = at(&self.paths[mount], path);
            if *ino == UNKNOWN {
                *ino = fs::metadata(&path).expect("made").ino();
            } else if self.images.contains_key(ino) {
                continue;
            }
            let image = image_at(&path).expect("readable");
            assert!(bytes.is_none_or(|bytes| image.bytes == bytes), "{}", path.display());
            self.images.insert(*ino, image);
        }
        let model = &self.model;
        self.images.retain(|ino, _| model.links(*ino) > 0);
    }

    /// How a mount differs from the model, if it does.
    fn difference(&self, mount: usize) -> Option<String> {
        let found = match look(&self.paths[mount]) {
            Ok(found) => found,
            Err(error) => return Some(error),
        };
        if found != self.model {
            return Some(format!("{found:?}"));
        }
        self.model.0.iter().find_map(|(path, node)| {
            let Node::Image(ino) = node else { return None };
            let expected = &self.images[ino];
            match image_at(&at(&self.paths[mount], path)) {
                Ok(found) if found == *expected => None,
                Ok(Image { mode, modified, .. }) => {
                    Some(format!("{path:?}: {mode:o} {modified:?}, {expected:?}"))
                }
                Err(error) => Some(error),
            }
        })
    }

    fn compare(&self, what: &str) {
        for mount in 0..2 {
            let mut last = None;
            let deadline = Instant::now() + SOON;
            while Instant::now() < deadline {
                last = self.difference(mount);
                if last.is_none() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            assert_eq!(last, None, "{what}: mount {mount} against {:?}", self.model);
        }
        assert_eq!(self.runtime.block_on(self.api.list()), self.model, "{what}: the API");
    }

    /// What may be changed through mounts and the API.
    fn near(&self) -> Model {
        let mut near = self.model.clone();
        near.0.retain(|path, _| path[0] != BEHIND);
        near
    }

    fn names(&mut self, step: &Step, by: usize, n: usize) {
        let op = step.op(&self.near());
        let expected: Result<(), Errnos> = self.model.apply(&op);
        let bytes = pattern(&n.to_string(), 100 + 37 * n);
        let result = match (&op, by) {
            (_, 2) => self.runtime.block_on(self.api.change(&op)).map(drop),
            (Op::Create(path), _) => {
                let file = fs::File::create_new(at(&self.paths[by], path));
                told(file.and_then(|file| file.write_all_at(&bytes, 0)))
            }
            (Op::Store(path), _) => told(fs::write(at(&self.paths[by], path), &bytes)),
            (op, _) => told(carry_out(&self.paths[by], op)),
        };
        match (result, expected) {
            (Ok(()), Ok(())) => {}
            (Err(errno), Err(allowed)) if allowed.contains(&errno) => {}
            (Err(libc::ENAMETOOLONG), Err(_)) if by == 2 && op.is_beyond_all_folders() => {}
            (found, expected) => panic!("{op:?}: expected {expected:?}, found {found:?}"),
        }
        self.learn(by % 2, Some(&bytes));
    }

    /// One of the images that mounts may change, and a path of it.
    fn pick(&self, which: usize) -> Option<(Path, u64)> {
        let images = self.near().0.into_iter().filter_map(|(path, node)| match node {
            Node::Image(ino) => Some((path, ino)),
            Node::Folder => None,
        });
        let images: Vec<_> = images.collect();
        (!images.is_empty()).then(|| images[which % images.len()].clone())
    }

    fn unlink_open(&mut self, which: usize) {
        let Some((path, ino)) = self.pick(which) else { return };
        let (mount, expected) = (which % 2, self.images[&ino].bytes.clone());
        let path_there = at(&self.paths[mount], &path);
        let open = fs::File::open(&path_there).expect("opened");
        fs::remove_file(path_there).expect("removed");
        self.model.0.remove(&path);
        let left = self.model.links(ino) as u64;
        let meta = open.metadata().expect("its attributes go on");
        assert_eq!((meta.nlink(), meta.ino(), meta.len()), (left, ino, expected.len() as u64));
        let mut bytes = vec![0; expected.len()];
        open.read_exact_at(&mut bytes, 0).expect("its bytes do, too");
        assert!(bytes == expected, "{path:?}");
        self.learn(mount, None);
    }

    /// Changes a file in the pool, and waits until the first mount shows it.
    fn behind(&mut self, event: &Event, n: usize) {
        let names = self.model.0.keys().filter(|path| path.len() == 2 && path[0] == BEHIND);
        let names: Vec<Path> = names.cloned().collect();
        let in_pool = |path: &Path| self.pool.join("iso").join(path.iter().collect::<PathBuf>());
        let new = vec![BEHIND.to_owned(), format!("{n}.iso")];
        let bytes = pattern(&format!("behind {n}"), 5000 + n);
        let shown = match event {
            Event::Remove(which) if !names.is_empty() => {
                let path = &names[which % names.len()];
                fs::remove_file(in_pool(path)).expect("removed");
                self.model.0.remove(path);
                return;
            }
            Event::Move(which) if !names.is_empty() => {
                let path = &names[which % names.len()];
                fs::rename(in_pool(path), in_pool(&new)).expect("renamed");
                let node = self.model.0.remove(path).expect("there");
                self.model.0.insert(new, node);
                return;
            }
            Event::Replace(which) if !names.is_empty() => {
                let path = names[which % names.len()].clone();
                fs::write(self.pool.join("new"), &bytes).expect("written");
                fs::rename(self.pool.join("new"), in_pool(&path)).expect("replaced");
                path
            }
            _ => {
                write_image(&self.pool, &new.join("/"), &bytes);
                self.model.0.insert(vec![BEHIND.to_owned()], Node::Folder);
                new
            }
        };
        let there = at(&self.paths[0], &shown);
        eventually("the new image", || fs::read(&there).is_ok_and(|found| found == bytes));
        self.model.0.insert(shown, Node::Image(UNKNOWN));
        self.learn(0, Some(&bytes));
    }

    fn happen(&mut self, event: &Event, n: usize) {
        match event {
            Event::Names(step, by) => self.names(step, *by, n),
            Event::Mode(which, mode) => {
                let Some((path, ino)) = self.pick(*which) else { return };
                let permissions = fs::Permissions::from_mode(*mode);
                fs::set_permissions(at(&self.paths[which % 2], &path), permissions).expect("set");
                self.images.get_mut(&ino).expect("known").mode = *mode;
            }
            Event::Time(which, seconds) => {
                let Some((path, ino)) = self.pick(*which) else { return };
                let time = SystemTime::UNIX_EPOCH + Duration::new(*seconds, 123_456_789);
                let file = fs::File::open(at(&self.paths[which % 2], &path)).expect("opened");
                file.set_modified(time).expect("set");
                let modified = (seconds.cast_signed(), 123_456_789);
                self.images.get_mut(&ino).expect("known").modified = modified;
            }
            Event::UnlinkOpen(which) => self.unlink_open(*which),
            Event::Put | Event::Remove(_) | Event::Move(_) | Event::Replace(_) => {
                self.behind(event, n);
            }
            Event::SilenceCatalog => {
                let catalog = self.catalog.as_ref().expect("a catalogue");
                catalog.signal(Signal::STOP);
                std::thread::sleep(SILENCE);
                let apart = [0, 1].map(|mount| self.difference(mount));
                catalog.signal(Signal::CONT);
                assert_eq!(apart, [None, None], "without the catalogue reading goes on");
                self.reconnected();
            }
            Event::KillCatalog => {
                self.catalog.take().expect("a catalogue").kill();
                let listen = self.url.trim_start_matches("http://");
                self.catalog = Some(self.world.catalog_on(listen).0);
                self.reconnected();
            }
            Event::KillMount => {
                self.mounts[1].take().expect("a mount").kill();
                self.mounts[1] = Some(self.world.mount("two", &self.url).0);
            }
        }
    }

    /// Waits until a change goes through: everybody is back.
    fn reconnected(&self) {
        let folder = |mount: usize| self.paths[mount].join("reconnected");
        for mount in 0..2 {
            eventually("changes to go through", || fs::create_dir(folder(mount)).is_ok());
            eventually("it can go", || fs::remove_dir(folder(mount)).is_ok());
            eventually("it is gone", || !folder(1 - mount).exists());
        }
        let status = || self.world.json(&self.url, &["status"]);
        let online = || status()["nodes"][0]["connected"] == true;
        eventually("the agent", online);
    }
}

fn told(result: std::io::Result<()>) -> Result<(), i32> {
    if result.is_ok() { Ok(()) } else { Err(errno(result)) }
}

fn run(seed: u64) {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let mut cluster = Cluster::new();
    for n in 0..STEPS {
        let event = event().new_tree(&mut runner).expect("an event").current();
        let happened = panic::catch_unwind(AssertUnwindSafe(|| {
            cluster.happen(&event, n);
            cluster.compare(&format!("step {n}"));
        }));
        assert!(happened.is_ok(), "that was seed {seed}, step {n}: {event:?}");
    }
}

/// Another one by hand, with the variable set to it.
fn seeds() -> Vec<u64> {
    if let Some(seed) = std::env::var("ISOTOPE_TEST_SEED").ok().and_then(|it| it.parse().ok()) {
        return vec![seed];
    }
    let numbers = SEEDS.lines().filter(|line| !line.starts_with('#'));
    numbers.map(|line| line.trim().parse().expect("a number")).collect()
}

#[test]
fn whatever_happens_both_mounts_show_the_model() {
    let seeds = seeds();
    assert!(!seeds.is_empty(), "whole.seeds has none");
    seeds.into_iter().for_each(run);
}
