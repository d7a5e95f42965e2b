//! Whatever is done to a pool, in whatever order, while its agent is killed, stopped, or hears
//! nothing: in the end the library says what lies there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::lost_hints::hard_of_hearing;
use crate::harness::{Part, World, eventually, eventually_in, pattern, walk};

/// Any will do; what failed once is kept here.
const SEEDS: [u64; 3] = [1, 0x9e37_79b9, 0xdead_beef];
const STEPS: u32 = 60;
/// Between two steps, so that some come before a look, some during it, and some after.
const PAUSE_MS_MAX: u64 = 120;
/// Second looks, and agents that were missed, included.
const SETTLED: Duration = Duration::from_secs(40);

/// xorshift64: any full-period generator will do.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    fn one_of<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        let end = u64::try_from(all.len()).expect("few");
        if end == 0 { None } else { all.get(usize::try_from(self.below(end)).expect("few")) }
    }
}

/// What somebody does to a pool who knows nothing of us.
struct Stranger {
    iso: PathBuf,
    aside: PathBuf,
    dice: Dice,
    /// So many contents, no two of one length: what the file system's clock is too coarse to tell
    /// apart, that does.
    made: u64,
    held: Vec<File>,
}

impl Stranger {
    fn bytes(&mut self) -> Vec<u8> {
        self.made += 1;
        // Another length each time, for so few.
        let len = self.made * 7 + self.dice.below(20) * 1_000;
        pattern(&self.made.to_string(), usize::try_from(len).expect("small"))
    }

    fn all(&self, ending: &str) -> Vec<PathBuf> {
        walk(&self.iso)
            .iter()
            .filter(|it| it.ends_with(ending))
            .map(|it| self.iso.join(it))
            .collect()
    }

    fn any_file(&mut self) -> Option<PathBuf> {
        let all = self.all(".iso");
        self.dice.one_of(&all).cloned()
    }

    fn any_dir(&mut self) -> PathBuf {
        let all = self.all("/");
        self.dice.one_of(&all).cloned().unwrap_or_else(|| self.iso.clone())
    }

    /// A name that is in use, or may be soon.
    fn any_name(&mut self) -> PathBuf {
        let name = format!("{}.iso", self.dice.below(12));
        self.any_dir().join(name)
    }

    fn step(&mut self) {
        let (file, name, dir) = (self.any_file(), self.any_name(), self.any_dir());
        let bytes = self.bytes();
        // Some cannot be done: what was chosen is a directory, say, or lies in what is moved.
        let _ = match self.dice.below(14) {
            0..=2 => fs::write(&name, bytes),
            3 => fs::write(&self.aside, bytes).and_then(|()| fs::rename(&self.aside, &name)),
            4 | 5 => file.map_or(Ok(()), |file| fs::rename(file, &name)),
            6 => file.map_or(Ok(()), fs::remove_file),
            7 => file.map_or(Ok(()), |file| fs::write(file, bytes)),
            8 => {
                let len = self.dice.below(1_000);
                let cut = |file| File::options().write(true).open(file)?.set_len(len);
                file.map_or(Ok(()), cut)
            }
            9 => fs::create_dir_all(dir.join(format!("d{}", self.made)).join("e")),
            10 => fs::remove_dir_all(&dir).and_then(|()| fs::create_dir_all(&self.iso)),
            11 => fs::rename(&dir, self.iso.join(format!("r{}", self.made))),
            12 => File::options().create(true).append(true).open(&name).and_then(|mut file| {
                file.write_all(&bytes)?;
                self.held.push(file);
                Ok(())
            }),
            _ => self.held.pop().map_or(Ok(()), |mut file| file.write_all(&bytes)),
        };
    }

    /// What there is, and how many bytes of it.
    fn truth(&self) -> BTreeMap<String, u64> {
        let size = |name: &String| fs::metadata(self.iso.join(name)).expect("there").len();
        let files = walk(&self.iso).into_iter().filter(|it| it.ends_with(".iso"));
        files.map(|name| (format!("iso/{name}"), size(&name))).collect()
    }
}

/// Each file of which the library knows, by its place in the pool, and how large it is there; and
/// how many names there are.
fn library(world: &World, url: &str) -> (BTreeMap<String, u64>, usize) {
    let told = world.run(&["--server", url, "--json", "tree"]);
    let lines = String::from_utf8_lossy(&told.stdout).into_owned();
    let items = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let images: Vec<Value> = items.filter(|it| it["kind"] == "image").collect();
    let of = |image: &Value| {
        let replica = &image["replicas"][0];
        let path = replica["path"].as_str().unwrap_or("?").to_owned();
        assert_eq!(image["size_bytes"], replica["size_bytes"]);
        (path, replica["size_bytes"].as_u64().unwrap_or(u64::MAX))
    };
    (images.iter().map(of).collect(), images.len())
}

/// Two of three hear what happens; nobody hears everything, for they die.
fn agent(world: &World, url: &str, pool: &Path, dice: &mut Dice) -> Part {
    match dice.below(3) {
        0 => hard_of_hearing(world, url, pool),
        _ => world.agent("deaf", url, &[pool]),
    }
}

fn ends_at_the_truth(seed: u64) {
    let world = World::new();
    let pool = world.pool("isos", &["0.iso", "1.iso", "dir/2.iso"]);
    let (_catalog, url) = world.catalog();
    let (iso, aside) = (pool.join("iso"), pool.join("aside"));
    let mut stranger = Stranger { iso, aside, dice: Dice(seed), made: 0, held: Vec::new() };
    let mut dice = Dice(seed ^ 0x5555);
    let mut running = agent(&world, &url, &pool, &mut dice);
    for _ in 0..STEPS {
        stranger.step();
        std::thread::sleep(Duration::from_millis(dice.below(PAUSE_MS_MAX)));
        match dice.below(20) {
            0 => {
                running.kill();
                stranger.step();
                running = agent(&world, &url, &pool, &mut dice);
            }
            1 => running.signal(Signal::STOP),
            2..=5 => running.signal(Signal::CONT),
            _ => {}
        }
    }
    running.signal(Signal::CONT);
    stranger.held.clear();
    // Whoever hears nothing finds it by a scan; whoever hears, without.
    let hears = dice.below(2) == 0;
    if hears {
        running.kill();
        running = world.agent("deaf", &url, &[&pool]);
        stranger.step();
        stranger.held.clear();
    }
    fs::write(stranger.iso.join("last.iso"), "last").expect("written");
    let truth = stranger.truth();
    eventually_in(SETTLED, &format!("of seed {seed}: {truth:?}"), || {
        if !hears {
            world.json(&url, &["scan"]);
        }
        library(&world, &url) == (truth.clone(), truth.len())
    });
    drop(running);
    // Nothing that is yet to come changes it.
    let (_agent, revision) =
        (world.agent("deaf", &url, &[&pool]), || world.json(&url, &["status"])["revision"].clone());
    eventually("a scan", || world.json(&url, &["scan"])["volumes_scanned"] == 1);
    let before = revision();
    world.json(&url, &["scan"]);
    assert_eq!(revision(), before, "of seed {seed}");
    assert_eq!(library(&world, &url).0, truth, "of seed {seed}");
}

/// More of them by hand, with the variable set to the first.
fn seeds() -> Vec<u64> {
    let first = std::env::var("ISOTOPE_TEST_SEED").ok().and_then(|it| it.parse().ok());
    first.map_or(SEEDS.to_vec(), |first: u64| (first..first + 4).collect())
}

#[test]
fn any_changes_to_a_pool_end_at_the_truth() {
    std::thread::scope(|scope| {
        for seed in seeds() {
            scope.spawn(move || ends_at_the_truth(seed));
        }
    });
}
