//! Two mounts and the API at the same names at the same time. Whatever happens must be what would
//! have happened one after the other, in some order; and everybody must come to see the same tree.

mod order;

use std::collections::BTreeSet;
use std::path::{Path as FsPath, PathBuf};
use std::sync::{Barrier, Mutex};
use std::thread;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use tokio::runtime::Runtime;
use tonic::transport::Endpoint;

use self::order::{Happened, order_of, paths_of};
use crate::harness::{Part, World, eventually};
use crate::model::api::Api;
use crate::model::mounted::{carry_out, look};
use crate::model::reference::{Model, Node, Op, Path, step, step_on_a_mount};

/// Each race is run so often; who comes first is left to the machine.
const ROUNDS: usize = 8;
/// Rounds of random operations.
const RANDOM_ROUNDS: usize = 120;
/// Operations of each thread that waits for no other.
const FREE_OPS: usize = 100;
/// The thread that goes through the API; the others go through the mounts.
const BY_API: usize = 3;
const ACTORS: usize = 4;

/// A catalogue, an agent with an empty pool, and two mounts, each a process of its own.
struct Arena {
    runtime: Runtime,
    api: Api,
    mounts: [PathBuf; 2],
    /// Paths there ever were.
    seen: Mutex<BTreeSet<Path>>,
    _world: World,
}

impl Arena {
    fn new() -> (Self, Vec<Part>) {
        let world = World::new();
        let pool = world.pool("isos", &[]);
        let (catalog, url) = world.catalog();
        let agent = world.agent("a", &url, &[&pool]);
        let ((one, first), (two, second)) = (world.mount("one", &url), world.mount("two", &url));
        eventually("the pool", || world.json(&url, &["status"])["volumes"][0].is_object());
        let runtime = Runtime::new().expect("a runtime");
        let channel =
            runtime.block_on(async { Endpoint::from_shared(url).map(|it| it.connect_lazy()) });
        let api = Api::new(channel.expect("a URL"));
        let arena =
            Self { runtime, api, mounts: [first, second], seen: Mutex::default(), _world: world };
        (arena, vec![catalog, agent, one, two])
    }

    fn listed(&self) -> Model {
        self.runtime.block_on(self.api.list())
    }

    /// The tree once everybody shows the same one, and nothing that has no name.
    fn settled(&self) -> Model {
        let listed = self.listed();
        let mut seen = self.seen.lock().expect("the paths");
        seen.extend(listed.0.keys().cloned());
        for mount in &self.mounts {
            let mut last = Err(String::new());
            eventually(&format!("{} to show {listed:?}", mount.display()), || {
                last = look(mount);
                last.as_ref() == Ok(&listed)
            });
            eventually("nothing where nothing is", || {
                let mut gone = seen.iter().filter(|path| !listed.0.contains_key(*path));
                gone.all(|path| {
                    mount.join(path.iter().collect::<PathBuf>()).symlink_metadata().is_err()
                })
            });
            eventually("no orphan", || inodes_of(mount) == inodes_in(&listed));
        }
        listed
    }

    fn carry_out(&self, actor: usize, op: &Op) -> Result<(), i32> {
        if actor == BY_API && !matches!(op, Op::Create(_) | Op::Store(_)) {
            return self.runtime.block_on(self.api.change(op)).map(drop);
        }
        let result = carry_out(&self.mounts[actor % 2], op);
        result.map_err(|error| error.raw_os_error().expect("an errno"))
    }

    /// Carries out one operation by each actor, all at once.
    fn at_once(&self, ops: &[Op]) -> Vec<Happened> {
        self.seen.lock().expect("the paths").extend(ops.iter().flat_map(paths_of).cloned());
        let start = Barrier::new(ops.len());
        let go = |actor, op: &Op| {
            start.wait();
            Happened { op: op.clone(), result: self.carry_out(actor, op) }
        };
        thread::scope(|scope| {
            let go = &go;
            let actors = ops.iter().enumerate().map(|(n, op)| scope.spawn(move || go(n, op)));
            let actors: Vec<_> = actors.collect();
            actors.into_iter().map(|actor| actor.join().expect("no panic")).collect()
        })
    }

    /// A race; what became of the tree.
    #[track_caller]
    fn race(&self, before: &Model, ops: &[Op], what: &str) -> Model {
        let happened = self.at_once(ops);
        let after = self.settled();
        assert!(
            order_of(before, &happened, &after).is_some(),
            "{what}: in no order does this happen: {happened:#?}\nbefore {before:?}\nafter {after:?}"
        );
        after
    }

    /// Removes all but the folders that every library has.
    fn clear(&self, model: &Model) {
        for (path, node) in model.0.iter().rev().filter(|(path, _)| path[0].len() == 1) {
            let op = match node {
                Node::Folder => Op::RemoveFolder(path.clone()),
                Node::Image(_) => Op::Unlink(path.clone()),
            };
            self.carry_out(BY_API, &op).expect("removed");
        }
        self.settled();
    }
}

/// Inodes that a mount knows of, the root among them (`statfs`).
fn inodes_of(mount: &FsPath) -> u64 {
    let told = rustix::fs::statvfs(mount).expect("an answer");
    told.f_files - told.f_ffree
}

fn inodes_in(model: &Model) -> u64 {
    let images = model.0.values().filter_map(|node| match node {
        Node::Image(ino) => Some(*ino),
        Node::Folder => None,
    });
    let images: BTreeSet<_> = images.collect();
    let folders = model.0.values().filter(|node| **node == Node::Folder).count();
    (1 + folders + images.len()) as u64
}

/// `mkdir a`, `create a/b`, `store a`, `mv a b`, `mv-n a b`, `swap a b`, `ln a b`, `rm a`, `rmdir a`.
fn op(text: &str) -> Op {
    let words: Vec<_> = text.split(' ').collect();
    let path = |at: usize| words[at].split('/').map(str::to_owned).collect::<Path>();
    match words[0] {
        "mkdir" => Op::MakeFolder(path(1)),
        "create" => Op::Create(path(1)),
        "store" => Op::Store(path(1)),
        "mv" => Op::Rename { from: path(1), to: path(2), no_replace: false },
        "mv-n" => Op::Rename { from: path(1), to: path(2), no_replace: true },
        "swap" => Op::Exchange { from: path(1), to: path(2) },
        "ln" => Op::Link { from: path(1), to: path(2) },
        "rm" => Op::Unlink(path(1)),
        "rmdir" => Op::RemoveFolder(path(1)),
        other => panic!("{other}?"),
    }
}

/// What there is first, and what then happens at once.
const RACES: &[(&[&str], [&str; ACTORS])] = &[
    (&[], ["mkdir a", "mkdir a", "mkdir a", "mkdir a"]),
    (&[], ["create a", "create a", "create a", "create a"]),
    (&[], ["create a", "mkdir a", "create a", "mkdir a"]),
    (&["create a", "create b"], ["mv a t", "mv b t", "mv b t", "mv a t"]),
    (&["create a", "create b"], ["mv-n a t", "mv-n b t", "create t", "mkdir t"]),
    (&["create a"], ["mv a b", "mv a c", "mv a d", "mv a e"]),
    (&["mkdir a", "mkdir b"], ["mv a b/a", "mv b a/b", "mkdir a/x", "mv b a/c"]),
    (&["mkdir a", "mkdir b", "mkdir c"], ["mv a b/a", "mv b c/b", "mv c a/c", "swap a c"]),
    (&["mkdir a"], ["rmdir a", "mkdir a/x", "rmdir a", "mkdir a/y"]),
    (&["mkdir a"], ["create a/x", "rmdir a", "rmdir a", "create a/x"]),
    (&["mkdir a", "create b"], ["mv b a/b", "rmdir a", "rmdir a", "ln b a/c"]),
    (&["mkdir a", "mkdir b"], ["mv a b", "mkdir b/x", "rmdir b", "mkdir a/y"]),
    (&["create a"], ["ln a b", "rm a", "rm a", "ln a b"]),
    (&["create a", "ln a b"], ["rm a", "rm b", "mv a b", "ln b c"]),
    (&["create a"], ["mv a b", "rm a", "mv a c", "rm a"]),
    (&["create a", "create b"], ["swap a b", "mv a c", "swap a b", "rm b"]),
    (&["mkdir a", "create b"], ["swap a b", "mkdir a/x", "rmdir a", "mv b a/b"]),
    (&["create a"], ["rm a", "create a", "mkdir a", "rm a"]),
    (&[], ["store a", "create a", "mkdir a", "rm a"]),
    (&[], ["store a", "store a", "mkdir b", "rm a"]),
    (&["create a"], ["store a", "rm a", "mkdir b", "mv a c"]),
    (&["create a"], ["store a", "mkdir b", "swap a b", "rmdir b"]),
];

#[test]
fn each_race_ends_as_if_run_in_some_order() {
    let (arena, _parts) = Arena::new();
    for round in 0..ROUNDS {
        for (first, ops) in RACES {
            for text in *first {
                arena.carry_out(0, &op(text)).expect(text);
            }
            let mut ops = ops.map(op);
            // Everybody has each part once.
            ops.rotate_left(round % ACTORS);
            let before = arena.settled();
            let after = arena.race(&before, &ops, &format!("round {round}"));
            arena.clear(&after);
        }
    }
}

/// The same numbers each time; what comes of them is up to the machine.
fn runner() -> TestRunner {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    TestRunner::new_with_rng(Config::default(), rng)
}

fn random_op(runner: &mut TestRunner, actor: usize, near: &Model) -> Op {
    let step = if actor == BY_API {
        step().new_tree(runner).expect("a step").current()
    } else {
        step_on_a_mount().new_tree(runner).expect("a step").current()
    };
    step.op(near)
}

#[test]
fn random_operations_at_once_end_as_if_run_in_some_order() {
    let (arena, _parts) = Arena::new();
    let mut runner = runner();
    let mut now = arena.settled();
    for round in 0..RANDOM_ROUNDS {
        let ops: Vec<_> = (0..ACTORS).map(|actor| random_op(&mut runner, actor, &now)).collect();
        now = arena.race(&now, &ops, &format!("round {round}"));
    }
}

#[test]
fn what_was_made_less_what_was_removed_is_there() {
    let (arena, _parts) = Arena::new();
    let before = arena.settled();
    let near = ["a", "b", "c", "a/a", "a/b", "b/a"].map(|it| op(&format!("mkdir {it}")));
    let mut shape = before.clone();
    near.iter().for_each(|op| shape.apply(op).expect("a new folder"));
    let mut runner = runner();
    let mut random = |actor| match random_op(&mut runner, actor, &shape) {
        // How many names these leave depends on what they meet.
        Op::Rename { from, to, .. } => Op::Rename { from, to, no_replace: true },
        op => op,
    };
    let all: Vec<Vec<Op>> =
        (0..ACTORS).map(|actor| (0..FREE_OPS).map(|_| random(actor)).collect()).collect();
    let run = |actor: usize| -> isize {
        let ended = all[actor].iter().map(|op| (op, arena.carry_out(actor, op)));
        ended.map(|(op, result)| names_made(op, result)).sum()
    };
    let made: isize = thread::scope(|scope| {
        let run = &run;
        let actors: Vec<_> = (0..ACTORS).map(|actor| scope.spawn(move || run(actor))).collect();
        actors.into_iter().map(|actor| actor.join().expect("no panic")).sum()
    });
    let after = arena.settled();
    assert_eq!(after.0.len().cast_signed(), before.0.len().cast_signed() + made, "{after:?}");
}

/// How many names there are more after an operation; it may fail in as many ways as Linux has for
/// names that come and go.
fn names_made(op: &Op, result: Result<(), i32>) -> isize {
    match (result, op) {
        (Ok(()), Op::MakeFolder(_) | Op::Create(_) | Op::Link { .. }) => 1,
        (Ok(()), Op::RemoveFolder(_) | Op::Unlink(_)) => -1,
        (Ok(()), _) => 0,
        (Err(errno), _) => {
            let allowed = [
                [libc::ENOENT, libc::EEXIST, libc::ENOTEMPTY, libc::ENOTDIR, libc::EISDIR],
                [libc::EBUSY, libc::EINVAL, libc::ENAMETOOLONG, libc::EPERM, libc::ELOOP],
            ];
            // Linux's own, where it cannot at once follow in its cache a folder that another mount
            // has moved (`d_splice_alias`).
            let is_linux = errno == libc::ESTALE;
            assert!(is_linux || allowed.concat().contains(&errno), "{op:?}: errno {errno}");
            0
        }
    }
}
