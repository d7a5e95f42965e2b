//! A death between any two steps of storing, replacing, deleting and having back, in each part:
//! every crash point there is, reached by every kind of step that passes it.

use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, thread};

use super::cluster::{Cluster, Shell, Victim};
use super::ledger::{Ledger, Step, Told};
use crate::harness::{World, walk};

/// What a part does by itself, it does by then.
const REACHED: Duration = Duration::from_secs(20);
/// `abort(3)`, as the shell shows it.
const ABORTED: i32 = 128 + 6;

/// A kind of step, with the points that it passes in each part.
struct Passing {
    what: What,
    catalog: &'static [&'static str],
    agent: &'static [&'static str],
    mount: &'static [&'static str],
}

#[derive(Debug, Clone, Copy)]
enum What {
    Store,
    /// `cp` onto an image: O_TRUNC.
    Overwrite,
    /// `mv` onto an image.
    Replace,
    Delete,
    Restore,
}

/// Which points there are, and who passes them.
const ALL: [Passing; 5] = [
    Passing {
        what: What::Store,
        catalog: &[
            "catalog.begin_upload.written",
            "catalog.begin_upload.committed",
            "catalog.publish.written",
            "catalog.publish.committed",
            "catalog.tasks_done.written",
            "catalog.tasks_done.committed",
        ],
        agent: &[
            "agent.stage.created",
            "agent.stage.written",
            "agent.seal.synced",
            "agent.seal.begun",
            "agent.seal.done",
            "agent.finish.told",
            "agent.rename.unsynced",
            "agent.finish.moved",
            "agent.clear.step",
            "agent.finish.done",
            "agent.tasks.reported",
        ],
        mount: &[
            "mount.create.reserved",
            "mount.write.sent",
            "mount.close.begun",
            "mount.close.sealed",
            "mount.close.published",
            "mount.close.told",
        ],
    },
    Passing {
        what: What::Overwrite,
        catalog: &[
            "catalog.begin_upload.committed",
            "catalog.publish.written",
            "catalog.publish.committed",
        ],
        agent: &[
            "agent.seal.done",
            "agent.finish.moved",
            "agent.trash.told",
            "agent.trash.moved",
            "agent.trash.done",
        ],
        mount: &[
            "mount.create.reserved",
            "mount.write.sent",
            "mount.close.sealed",
            "mount.close.published",
            "mount.notify.begun",
            "mount.close.told",
        ],
    },
    Passing {
        what: What::Replace,
        catalog: &["catalog.rename.written", "catalog.rename.committed"],
        agent: &["agent.trash.told", "agent.trash.moved"],
        mount: &["mount.change.made"],
    },
    Passing {
        what: What::Delete,
        catalog: &[
            "catalog.remove.written",
            "catalog.remove.committed",
            "catalog.tasks_done.written",
            "catalog.tasks_done.committed",
        ],
        agent: &[
            "agent.trash.told",
            "agent.rename.unsynced",
            "agent.trash.moved",
            "agent.clear.step",
            "agent.trash.done",
            "agent.tasks.reported",
        ],
        mount: &["mount.change.made"],
    },
    Passing {
        what: What::Restore,
        catalog: &[
            "catalog.restore.written",
            "catalog.restore.committed",
            "catalog.tasks_done.written",
        ],
        agent: &[
            "agent.restore.told",
            "agent.rename.unsynced",
            "agent.restore.moved",
            "agent.restore.done",
            "agent.tasks.reported",
        ],
        mount: &[],
    },
];

/// What is there before, and the step that is to die.
fn scene(what: What, n: usize) -> (Vec<Step>, Step) {
    let name = |what: &str| format!("{n}-{what}.iso");
    let seed = |what: &str| format!("{n}-{what}");
    let store = |it: &str| Step::Store { name: name(it), seed: seed(it) };
    match what {
        What::Store => (vec![], store("new")),
        What::Overwrite => {
            (vec![store("old")], Step::Store { name: name("old"), seed: seed("newer") })
        }
        What::Replace => {
            (vec![store("old"), store("new")], Step::Move { from: name("new"), to: name("old") })
        }
        What::Delete => (vec![store("old")], Step::Delete { name: name("old") }),
        What::Restore => (
            vec![store("old"), Step::Delete { name: name("old") }],
            Step::Restore { name: name("old"), seed: seed("old") },
        ),
    }
}

fn dies_at_each_point(victim: Victim) {
    let points = |it: &Passing| match victim {
        Victim::Catalog => it.catalog,
        Victim::Agent => it.agent,
        Victim::Mount => it.mount,
    };
    let rounds: Vec<(What, &str)> = ALL
        .iter()
        .flat_map(|passing| points(passing).iter().map(|point| (passing.what, *point)))
        .collect();
    let world = World::new();
    let mut cluster = Cluster::start(&world);
    let shell = cluster.shell(victim);
    let shell = Shell::new(&world, &shell);
    let mut ledger = Ledger::default();
    for (n, &(what, point)) in rounds.iter().enumerate() {
        let (before, step) = scene(what, n);
        for before in before {
            let told = shell.make(&before);
            assert_eq!(told, Told::Done, "{before:?} before {point}");
            ledger.note(&before, told);
        }
        cluster.until_settled();
        cluster.restart(victim, Some(point));
        // Started again while whoever asked may still be waiting for an answer.
        let told = thread::scope(|scope| {
            let making = scope.spawn(|| shell.make(&step));
            let deadline = Instant::now() + REACHED;
            while cluster.lives(victim) {
                assert!(Instant::now() < deadline, "{what:?} does not pass {point}");
                thread::sleep(Duration::from_millis(10));
            }
            assert_eq!(cluster.wait(victim), ABORTED, "{what:?} at {point}");
            cluster.restart(victim, None);
            making.join().expect("the step ends")
        });
        ledger.note(&step, told);
        ledger.found(cluster.contents());
    }
    cluster.check_pool();
    assert!(ledger.done > rounds.len() / 2, "there was something to check: {ledger:?}");
}

#[test]
fn the_catalogue_may_die_between_any_two_steps() {
    dies_at_each_point(Victim::Catalog);
}

#[test]
fn the_agent_may_die_between_any_two_steps() {
    dies_at_each_point(Victim::Agent);
}

#[test]
fn the_mount_may_die_between_any_two_steps() {
    dies_at_each_point(Victim::Mount);
}

/// The names in the code; what is filled in stands for anything.
fn in_the_code() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = ["catalog/src", "agent/src", "fs/src"].map(|dir| root.join(dir));
    let texts = sources.iter().flat_map(|dir| {
        let files = walk(dir).into_iter().filter(|it| it.ends_with(".rs"));
        files.map(|file| fs::read_to_string(dir.join(file)).expect("a source")).collect::<Vec<_>>()
    });
    let mut names = Vec::new();
    for text in texts {
        let points = text.split("crash_point!(\"").skip(1);
        names.extend(points.filter_map(|it| Some(it.split_once('"')?.0.to_owned())));
    }
    names
}

fn is_like(name: &str, pattern: &str) -> bool {
    let (name, pattern) = (name.split('.'), pattern.split('.'));
    name.clone().count() == pattern.clone().count()
        && name.zip(pattern).all(|(name, pattern)| pattern.starts_with('{') || name == pattern)
}

#[test]
fn every_crash_point_is_reached() {
    let reached: Vec<&str> =
        ALL.iter().flat_map(|it| [it.catalog, it.agent, it.mount]).flatten().copied().collect();
    let points = in_the_code();
    assert!(points.len() > 20, "the points are found in the code: {points:?}");
    for point in &points {
        assert!(reached.iter().any(|it| is_like(it, point)), "{point} is in no step's way");
    }
    for name in reached {
        assert!(points.iter().any(|it| is_like(name, it)), "{name} is not in the code");
    }
}
