//! A catalogue, an agent and a mount as processes of their own, of which one is killed and started
//! again; what is done with files through them, and what is found afterwards.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, thread};

use super::ledger::{Contents, Step, Told};
use crate::harness::{Part, World, eventually, pattern, text, walk};

const FILE_BYTES: usize = 300_001;
/// More than any deadline of the mount.
const STEP_SECONDS: &str = "90";
/// What is given up lapses with its lease of 20 seconds and is swept some seconds later.
const SWEPT: Duration = Duration::from_secs(60);
/// Where the tests store: there only while the library is mounted.
pub(super) const FOLDER: &str = "linux";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Victim {
    Catalog,
    Agent,
    Mount,
}

pub(super) struct Cluster<'w> {
    world: &'w World,
    pool: PathBuf,
    url: String,
    mount: PathBuf,
    catalog: Option<Part>,
    agent: Option<Part>,
    mounted: Option<Part>,
}

/// Where steps are made; shared by many at once.
#[derive(Clone, Copy)]
pub(super) struct Shell<'a> {
    world: &'a World,
    url: &'a str,
    folder: &'a Path,
    /// Who may die meanwhile.
    victim: Victim,
}

pub(super) fn bytes_of(seed: &str) -> Vec<u8> {
    // Told from any other by its first bytes.
    let mut bytes = format!("{seed}\n").into_bytes();
    bytes.extend(pattern(seed, FILE_BYTES));
    bytes
}

impl<'w> Cluster<'w> {
    pub(super) fn start(world: &'w World) -> Self {
        let pool = world.pool("isos", &[]);
        let (catalog, url) = world.catalog();
        let agent = world.agent("a", &url, &[&pool]);
        let (mounted, mount) = world.mount("mnt", &url);
        let (catalog, agent, mounted) = (Some(catalog), Some(agent), Some(mounted));
        let cluster = Self { world, pool, url, mount, catalog, agent, mounted };
        cluster.until_ready();
        cluster
    }

    pub(super) fn shell(&self, victim: Victim) -> (PathBuf, String, Victim) {
        (self.mount.join(FOLDER), self.url.clone(), victim)
    }

    pub(super) fn folder(&self) -> PathBuf {
        self.mount.join(FOLDER)
    }

    /// All parts know of one another.
    pub(super) fn until_ready(&self) {
        eventually("all parts connected", || {
            let status = self.status();
            let some = |what: &str| status[what].as_array().is_some_and(|it| !it.is_empty());
            some("watchers")
                && status["nodes"][0]["connected"] == true
                && status["volumes"][0]["state"] == "online"
        });
    }

    fn status(&self) -> serde_json::Value {
        self.world.json(&self.url, &["status"])
    }

    fn part(&mut self, victim: Victim) -> &mut Option<Part> {
        match victim {
            Victim::Catalog => &mut self.catalog,
            Victim::Agent => &mut self.agent,
            Victim::Mount => &mut self.mounted,
        }
    }

    /// kill -9, if it lives still, and a new start; at a crash point it will die by itself.
    pub(super) fn restart(&mut self, victim: Victim, crash_point: Option<&str>) {
        if let Some(part) = self.part(victim).take() {
            part.kill();
        }
        if victim == Victim::Agent {
            eventually("the agent's end noticed", || {
                self.status()["nodes"][0]["connected"] == false
            });
        }
        self.world.fail_next(crash_point.map(|point| format!("{point}=return")).as_deref());
        let part = match victim {
            Victim::Catalog => self.world.catalog_on(self.url.trim_start_matches("http://")).0,
            Victim::Agent => self.world.agent("a", &self.url, &[&self.pool]),
            Victim::Mount => self.world.mount("mnt", &self.url).0,
        };
        self.world.fail_next(None);
        *self.part(victim) = Some(part);
        self.until_ready();
    }

    pub(super) fn lives(&mut self, victim: Victim) -> bool {
        self.part(victim).as_mut().is_some_and(Part::lives)
    }

    /// The exit code of a part that has died.
    pub(super) fn wait(&mut self, victim: Victim) -> i32 {
        self.part(victim).take().map_or(0, |mut part| part.wait())
    }

    /// All files are at their places, so that nothing of what comes next is of before. What a dead
    /// writer left lies in staging until its lease has lapsed.
    pub(super) fn until_settled(&self) {
        eventually("all files at their places", || {
            self.files("iso").len() == walk(&self.folder()).len()
                && self.files(".isotope/trash").len() == self.trash().len()
        });
    }

    /// What the folder holds, once the mount has caught up with the catalogue.
    pub(super) fn contents(&self) -> Contents {
        let barrier = self.mount.join("barrier");
        eventually("a change through the mount", || {
            quietly(Command::new("timeout").args([STEP_SECONDS, "mkdir"]).arg(&barrier))
                || barrier.exists()
        });
        eventually("it undone", || {
            quietly(Command::new("timeout").args([STEP_SECONDS, "rmdir"]).arg(&barrier))
        });
        let folder = self.folder();
        let names = walk(&folder);
        names
            .into_iter()
            .map(|name| {
                let mut seed = String::new();
                // Its agent may be starting still.
                eventually(&format!("{name} to be read"), || match fs::read(folder.join(&name)) {
                    Ok(found) => {
                        seed = seed_of(&found);
                        true
                    }
                    Err(_) => false,
                });
                (name, seed)
            })
            .collect()
    }

    /// No byte of space is lost: each image lies once in the pool, each deleted one in the trash,
    /// and nothing else lies there.
    #[track_caller]
    pub(super) fn check_pool(&self) {
        let deadline = Instant::now() + SWEPT;
        loop {
            let (staged, trashed) = (self.files(".isotope/staging"), self.files(".isotope/trash"));
            let kept = self.trash().len();
            if staged.is_empty() && trashed.len() == kept {
                break;
            }
            let late = Instant::now() > deadline;
            assert!(!late, "left behind: {staged:?}; {trashed:?} for {kept} images in the trash");
            thread::sleep(Duration::from_millis(200));
        }
        let sizes = |dir: BTreeMap<String, u64>| {
            let mut sizes: Vec<u64> = dir.into_values().collect();
            sizes.sort_unstable();
            sizes
        };
        let folder = self.folder();
        let mut listed: Vec<u64> = walk(&folder)
            .iter()
            .map(|name| fs::metadata(folder.join(name)).expect("listed").len())
            .collect();
        listed.sort_unstable();
        assert_eq!(sizes(self.files("iso")), listed, "in the pool, and in the library");
        let scan = self.world.json(&self.url, &["scan"]);
        assert_eq!(scan["discovered"], 0, "a scan finds nothing new in {}", text(&self.pool));
    }

    /// Files below a directory of the pool, and their sizes.
    fn files(&self, dir: &str) -> BTreeMap<String, u64> {
        let dir = self.pool.join(dir);
        if !dir.exists() {
            return BTreeMap::new();
        }
        let names = walk(&dir).into_iter().filter(|it| !it.ends_with('/'));
        let size = |name: &String| fs::metadata(dir.join(name)).map_or(0, |meta| meta.len());
        names.map(|name| (name.clone(), size(&name))).collect()
    }

    /// Deleted images: their ids, and the last part of the path each had.
    fn trash(&self) -> Vec<(String, String)> {
        trash(self.world, &self.url)
    }
}

fn trash(world: &World, url: &str) -> Vec<(String, String)> {
    let listed = world.run(&["--server", url, "--json", "trash", "ls"]);
    let lines = String::from_utf8(listed.stdout).expect("text");
    lines
        .lines()
        .map(|line| {
            let it: serde_json::Value = serde_json::from_str(line).expect("JSON");
            let path = it["paths"][0].as_str().unwrap_or_default();
            let name = path.rsplit('/').next().unwrap_or_default().to_owned();
            (it["id"].as_str().unwrap_or_default().to_owned(), name)
        })
        .collect()
}

fn quietly(command: &mut Command) -> bool {
    command.output().is_ok_and(|it| it.status.success())
}

fn seed_of(found: &[u8]) -> String {
    let seed = found.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let seed = String::from_utf8_lossy(seed).into_owned();
    let whole = found == bytes_of(&seed);
    assert!(whole, "{} bytes that are not those of {seed:?}", found.len());
    seed
}

impl<'a> Shell<'a> {
    pub(super) fn new(
        world: &'a World,
        (folder, url, victim): &'a (PathBuf, String, Victim),
    ) -> Self {
        Self { world, url, folder, victim: *victim }
    }

    pub(super) fn make(&self, step: &Step) -> Told {
        let path = |name: &String| self.folder.join(name);
        let done = match step {
            Step::Store { name, seed } => {
                let source = self.world.path(&format!("source-{seed}"));
                fs::write(&source, bytes_of(seed)).expect("written");
                let done = self.run("cp", &[&source, &path(name)]);
                fs::remove_file(&source).expect("removed");
                done
            }
            Step::Delete { name } => self.run("rm", &[&path(name)]),
            Step::Move { from, to } => self.run("mv", &[&path(from), &path(to)]),
            Step::Restore { name, .. } => {
                // Asked for before anything can die.
                let all = trash(self.world, self.url);
                let (id, _) = all.iter().find(|(_, it)| it == name).expect("in the trash");
                let args = ["--server", self.url, "trash", "restore", id];
                self.world.run(&args).status.success()
            }
        };
        match (done, self.victim) {
            (true, _) => Told::Done,
            // The catalogue that died may have made the change before it could answer, and the
            // mount that died may have heard so.
            (false, Victim::Catalog | Victim::Mount) => Told::Nothing,
            (false, Victim::Agent) => Told::Refused,
        }
    }

    fn run(&self, program: &str, paths: &[&PathBuf]) -> bool {
        quietly(Command::new("timeout").args([STEP_SECONDS, program, "--"]).args(paths))
    }
}
