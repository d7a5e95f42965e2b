//! Discovery: what lies in the pools is in the library, by itself; on real agents, whose events get
//! lost, whose disks go, and who are away for a while.

mod guards;
mod lost_hints;
mod partitions;
mod pool_commands;
mod pool_disks;
mod random_changes;
mod situations;
mod unfit;
mod watching;

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Part, World, eventually, eventually_in, text};

/// The scan five seconds after a catalogue's start is over by then.
const FIRST_SCAN: Duration = Duration::from_secs(30);
/// What would be found although it must not be is found within it.
const A_WHILE: Duration = Duration::from_secs(2);

/// What came of a command.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    out: String,
    error: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        Self { code: output.status.code(), out: text(&output.stdout), error: text(&output.stderr) }
    }
}

impl Said {
    #[track_caller]
    fn well(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    /// It failed with that code, and said each of these.
    #[track_caller]
    fn refused(self, code: i32, texts: &[&str]) {
        let all = texts.iter().all(|it| self.error.contains(it));
        assert!(self.code == Some(code) && all, "expected {code} and {texts:?}: {self:?}");
    }
}

fn say(world: &World, url: &str, args: &[&str]) -> Said {
    world.run(&[&["--server", url], args].concat()).into()
}

/// One pool, its agent, and two mounts.
struct Site<'w> {
    world: &'w World,
    url: String,
    pool: PathBuf,
    mounts: [PathBuf; 2],
    agent: Option<Part>,
    _parts: Vec<Part>,
}

impl<'w> Site<'w> {
    fn new(world: &'w World, images: &[&str]) -> Self {
        Self::of(world, world.pool("isos", images))
    }

    fn of(world: &'w World, pool: PathBuf) -> Self {
        let (catalog, url) = world.catalog();
        let agent = world.agent("a", &url, &[&pool]);
        let (one, on_one) = world.mount("one", &url);
        let (two, on_two) = world.mount("two", &url);
        eventually("the first look", || world.json(&url, &["scan"])["volumes_scanned"] == 1);
        let _parts = vec![catalog, one, two];
        Self { world, url, pool, mounts: [on_one, on_two], agent: Some(agent), _parts }
    }

    fn agent(&self) -> &Part {
        self.agent.as_ref().expect("it runs")
    }

    fn say(&self, args: &[&str]) -> Said {
        say(self.world, &self.url, args)
    }

    fn json(&self, args: &[&str]) -> Value {
        self.world.json(&self.url, args)
    }

    /// A place in the pool's `iso/`.
    fn iso(&self, name: &str) -> PathBuf {
        self.pool.join("iso").join(name)
    }

    /// In both mounts, with just these bytes.
    fn shows(&self, path: &str, bytes: &[u8]) -> bool {
        self.mounts.iter().all(|it| std::fs::read(it.join(path)).is_ok_and(|read| read == bytes))
    }

    fn in_any(&self, path: &str) -> bool {
        self.mounts.iter().any(|mount| mount.join(path).exists())
    }

    fn in_none(&self, path: &str) -> bool {
        !self.in_any(path)
    }

    /// The id and the inode number of the image at a path of the library; null if there is none.
    fn identity(&self, path: &str) -> (Value, Value) {
        let info = self.json(&["info", path]);
        (info["id"].clone(), info["ino"].clone())
    }
}

/// The schedule's next scan is minutes away: what is found from now on was heard of.
fn after_the_first_scan(world: &World) {
    let over = || world.log("catalog.log").lines().filter(|it| it.contains("scan ended")).count();
    let before = over();
    // Those that were asked for ended before.
    eventually_in(FIRST_SCAN, "the scan after the start", || over() > before);
}

/// It is so now, and stays so for a while.
#[track_caller]
fn stays(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + A_WHILE;
    while Instant::now() < until {
        assert!(is_so(), "not for long: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Runs a shell script with the pool and another directory as `$1` and `$2`.
#[track_caller]
fn shell(script: &str, pool: &Path, other: &Path) {
    let mut sh = std::process::Command::new("sh");
    let output = sh.args(["-euc", script, "sh", text(pool), text(other)]).output();
    let output = output.expect("sh runs");
    assert!(output.status.success(), "{script}: {output:?}");
}

/// The volumes of a listing, one object a line.
fn volumes(world: &World, url: &str) -> Vec<Value> {
    let listed = say(world, url, &["--json", "pool", "ls"]).out;
    listed.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The state of a pool's only volume, and why.
fn state(world: &World, url: &str, pool: &str) -> (String, String) {
    let all = volumes(world, url);
    let volume = all.iter().find(|it| it["pool"] == pool).cloned().unwrap_or_default();
    let text = |key: &str| volume[key].as_str().unwrap_or_default().to_owned();
    (text("state"), text("reason"))
}
