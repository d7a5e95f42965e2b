//! Parts killed while files are being stored and deleted: what was acknowledged is there and
//! whole, what was refused is absent, what was not answered is one or the other, and no staged
//! byte stays behind.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use std::{fs, thread};

use crate::harness::{Part, World, eventually, pattern, text, walk};

const ROUNDS: usize = 5;
const WRITERS: usize = 3;
const FILE_BYTES: usize = 700_001;
/// What is given up lapses with its lease of 20 seconds and is swept some seconds later.
const SWEPT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Catalog,
    Agent,
}

/// What a writer was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Stored,
    Refused,
    /// The catalogue died under it: it cannot know.
    Nothing,
}

/// Ends the writers even when the test fails: they would be waited for.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Cluster<'w> {
    world: &'w World,
    pool: PathBuf,
    url: String,
    mount: PathBuf,
    catalog: Option<Part>,
    agent: Option<Part>,
}

impl Cluster<'_> {
    fn kill_and_restart(&mut self, victim: Victim) {
        match victim {
            Victim::Catalog => {
                self.catalog.take().expect("running").kill();
                let listen = self.url.trim_start_matches("http://").to_owned();
                self.catalog = Some(self.world.catalog_on(&listen).0);
            }
            Victim::Agent => {
                self.agent.take().expect("running").kill();
                self.agent = Some(self.world.agent("a", &self.url, &[&self.pool]));
            }
        }
    }
}

fn copy(source: &Path, target: &Path, victim: Victim) -> Told {
    let done = Command::new("timeout").args(["90", "cp", "--"]).args([source, target]).output();
    match done.expect("cp runs").status.code() {
        Some(0) => Told::Stored,
        // The catalogue that was killed may have published before it could answer.
        _ if victim == Victim::Catalog => Told::Nothing,
        _ => Told::Refused,
    }
}

fn storing_survives(victim: Victim) {
    let world = World::new();
    let pool = world.pool("isos", &[]);
    let (catalog, url) = world.catalog();
    let agent = world.agent("a", &url, &[&pool]);
    let (_mounted, mount) = world.mount("mnt", &url);
    eventually("the volume", || world.json(&url, &["scan"])["volumes_scanned"] == 1);
    let source = world.path("source");
    let bytes = pattern("source", FILE_BYTES);
    fs::write(&source, &bytes).expect("written");
    let mut cluster = Cluster {
        world: &world,
        pool: pool.clone(),
        url: url.clone(),
        mount: mount.clone(),
        catalog: Some(catalog),
        agent: Some(agent),
    };

    let told: Mutex<BTreeMap<String, Told>> = Mutex::default();
    let (done, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..WRITERS {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let name = format!("{:04}.iso", count.fetch_add(1, Ordering::Relaxed));
                    // In a folder that is there only while the library is mounted.
                    let answer = copy(&source, &mount.join("linux").join(&name), victim);
                    told.lock().expect("the list").insert(name, answer);
                    if answer != Told::Stored {
                        thread::sleep(Duration::from_millis(50));
                    }
                }
            });
        }
        let _stop_writers = OnDrop(&done);
        for round in 0..ROUNDS {
            // At another point of what is under way each time.
            thread::sleep(Duration::from_millis(400 + 137 * u64::try_from(round).unwrap_or(0)));
            cluster.kill_and_restart(victim);
        }
        thread::sleep(Duration::from_millis(500));
    });

    let told = told.into_inner().expect("the list");
    let stored = told.values().filter(|it| **it == Told::Stored).count();
    assert!(stored >= ROUNDS, "there was something to check: {told:?}");
    for (name, answer) in &told {
        let path = cluster.mount.join("linux").join(name);
        match answer {
            Told::Stored => {
                eventually(name, || fs::read(&path).is_ok_and(|found| found == bytes));
            }
            Told::Refused => assert!(!path.exists(), "{name} was refused and is there"),
            Told::Nothing if path.exists() => {
                eventually(name, || fs::read(&path).is_ok_and(|found| found == bytes));
            }
            Told::Nothing => {}
        }
    }
    // No byte of space is lost, and each file lies once in its pool.
    let deadline = std::time::Instant::now() + SWEPT;
    let staged = || {
        walk(&pool.join(".isotope/staging"))
            .into_iter()
            .filter(|it| !it.ends_with('/'))
            .collect::<Vec<_>>()
    };
    while !staged().is_empty() {
        assert!(std::time::Instant::now() < deadline, "left behind: {:?}", staged());
        thread::sleep(Duration::from_millis(200));
    }
    let listed = walk(&cluster.mount.join("linux"));
    assert_eq!(walk(&pool.join("iso")), listed);
    assert_eq!(world.json(&url, &["scan"])["discovered"], 0, "{}", text(&pool));
}

#[test]
fn storing_survives_kills_of_the_catalogue() {
    storing_survives(Victim::Catalog);
}

#[test]
fn storing_survives_kills_of_the_agent() {
    storing_survives(Victim::Agent);
}
