//! How soon a change that is made through one mount is right on another, as a program there sees
//! it: a catalogue, an agent and two mounts as processes, and for each kind of change the time from
//! before the call that makes it until `stat` and `readdir` on the other mount say so. Run by
//! `scripts/bench/instant`.

#![allow(clippy::print_stdout, clippy::print_stderr, dead_code)]

/// What the tests stand on, too.
#[path = "../tests/e2e"]
mod e2e {
    pub(crate) mod harness;
}

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use e2e::harness;
use harness::{World, eventually};

/// What is never right by then is a fault, not slow.
const NEVER: Duration = Duration::from_secs(10);
/// Rounds, where none are asked for.
const ROUNDS: u32 = 200;
/// The harness frees mounts that hang after 150 s: each world lives for so many rounds.
const ROUNDS_A_WORLD: u32 = 200;

/// All times of each kind: from before the call that makes the change, and from its return.
type Times = BTreeMap<&'static str, Vec<(Duration, Duration)>>;

fn main() {
    let (mut rounds, mut json) = (ROUNDS, false);
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--json" => json = true,
            // What cargo says to every benchmark.
            "--bench" => {}
            number => rounds = number.parse().expect("usage: instant [ROUNDS] [--json]"),
        }
    }
    let mut times = Times::new();
    let mut left = rounds;
    while left > 0 {
        let now = left.min(ROUNDS_A_WORLD);
        measure(now, &mut times);
        left -= now;
    }
    report(rounds, &times, json);
}

fn measure(rounds: u32, times: &mut Times) {
    let world = World::new();
    let pool = world.pool("isos", &[]);
    let (_catalog, url) = world.catalog();
    let _agent = world.agent("host", &url, &[&pool]);
    let (_here, here) = world.mount("here", &url);
    let (_there, there) = world.mount("there", &url);
    let stored = || fs::write(here.join("first.iso"), "first").is_ok();
    eventually("a host that stores", stored);
    for name in ["from", "to"] {
        fs::create_dir(here.join(name)).expect("made");
    }
    eventually("both folders", || there.join("to").is_dir() && there.join("from").is_dir());
    for round in 0..rounds {
        let mut watch = Watch { here: &here, there: &there, times };
        watch.round(round);
    }
}

/// One mount to change, another to look at.
struct Watch<'a> {
    here: &'a Path,
    there: &'a Path,
    times: &'a mut Times,
}

fn names(dir: &Path) -> Vec<String> {
    let listed = fs::read_dir(dir).into_iter().flatten().flatten();
    listed.map(|it| it.file_name().to_string_lossy().into_owned()).collect()
}

fn has(dir: &Path, name: &str) -> bool {
    names(dir).iter().any(|it| it == name)
}

impl Watch<'_> {
    /// The time from before a change until the other mount is right about it.
    fn time(
        &mut self,
        kind: &'static str,
        change: impl FnOnce(&Path) -> std::io::Result<()>,
        is_right: impl Fn(&Path) -> bool,
    ) {
        assert!(!is_right(self.there), "{kind}: it is so before");
        let began = Instant::now();
        change(self.here).unwrap_or_else(|error| panic!("{kind}: {error}"));
        let returned = Instant::now();
        // It may be right before: then it took no time, but for the look.
        while !is_right(self.there) {
            assert!(began.elapsed() < NEVER, "{kind}: never right");
        }
        let took = (began.elapsed(), returned.elapsed());
        self.times.entry(kind).or_default().push(took);
    }

    /// Each kind once; what is looked at first is in the kernel's caches when it changes.
    fn round(&mut self, round: u32) {
        let folder = PathBuf::from(format!("from/{round}"));
        let name = format!("{round}");
        self.time(
            "mkdir: an absent name is there",
            |at| fs::create_dir(at.join(&folder)),
            |at| at.join(&folder).is_dir(),
        );
        let listed = format!("listed-{round}");
        self.time(
            "mkdir: the listing has it",
            |at| fs::create_dir(at.join("from").join(&listed)),
            |at| has(&at.join("from"), &listed),
        );
        self.time(
            "rename: both names in one folder",
            |at| fs::rename(at.join(&folder), at.join("from/other")),
            |at| !at.join(&folder).exists() && at.join("from/other").exists(),
        );
        let links =
            |at: &Path, name: &str| fs::metadata(at.join(name)).map_or(0, |meta| meta.nlink());
        let (from, to) = (links(self.there, "from"), links(self.there, "to"));
        self.time(
            "rename: both folders, listed and counted",
            |at| fs::rename(at.join("from/other"), at.join("to").join(&name)),
            |at| {
                links(at, "from") == from - 1
                    && links(at, "to") == to + 1
                    && !has(&at.join("from"), "other")
                    && has(&at.join("to"), &name)
            },
        );
        let file = PathBuf::from(format!("from/{round}.iso"));
        self.time(
            "store: an absent file can be opened",
            |at| fs::write(at.join(&file), "small"),
            |at| fs::File::open(at.join(&file)).is_ok(),
        );
        self.time(
            "chmod: its mode",
            |at| fs::set_permissions(at.join(&file), fs::Permissions::from_mode(0o640)),
            |at| fs::metadata(at.join(&file)).is_ok_and(|it| it.mode() & 0o777 == 0o640),
        );
        self.time(
            "unlink: a known name is gone",
            |at| fs::remove_file(at.join(&file)),
            |at| !at.join(&file).exists(),
        );
        self.time(
            "rmdir: a known name is gone",
            |at| fs::remove_dir(at.join("to").join(&name)),
            |at| !at.join("to").join(&name).exists(),
        );
        self.time(
            "rmdir: the listing has it no more",
            |at| fs::remove_dir(at.join("from").join(&listed)),
            |at| !has(&at.join("from"), &listed),
        );
    }
}

/// The value that so much of all are below, by the nearest rank, in milliseconds.
fn quantile(sorted: &[Duration], part: f64) -> f64 {
    // Counts are small.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let rank = (sorted.len() as f64 * part).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1].as_secs_f64() * 1e3
}

/// p50, p90, p99 and the longest.
fn quantiles(times: impl Iterator<Item = Duration>) -> [f64; 4] {
    let mut sorted: Vec<Duration> = times.collect();
    sorted.sort_unstable();
    [0.5, 0.9, 0.99, 1.0].map(|part| quantile(&sorted, part))
}

fn report(rounds: u32, times: &Times, json: bool) {
    if !json {
        println!("{rounds} rounds; milliseconds until the other mount is right");
        println!("{:<42} {:^31} | {:^31}", "", "from before the call", "from its return");
        let heads = format!("{:>7} {:>7} {:>7} {:>7}", "p50", "p90", "p99", "max");
        println!("{:<42} {heads} | {heads}", "");
    }
    let all: Vec<_> = times.values().flatten().copied().collect();
    for (kind, times) in times.iter().chain([(&"all", &all)]) {
        let whole = quantiles(times.iter().map(|it| it.0));
        let since = quantiles(times.iter().map(|it| it.1));
        if json {
            let told = |[p50, p90, p99, max]: [f64; 4]| serde_json::json!({ "p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "max_ms": max });
            let line = serde_json::json!({
                "kind": kind, "count": times.len(),
                "from_call": told(whole), "from_return": told(since),
            });
            println!("{line}");
        } else {
            let told = |all: [f64; 4]| all.map(|it| format!("{it:>7.2}")).join(" ");
            println!("{kind:<42} {} | {}", told(whole), told(since));
        }
    }
}
