//! An open file goes on from another replica, with nothing noticed but a pause, when its host is
//! killed, stopped, cut off or slow; and when nobody is left, readers hear of it in time.

use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{LONG, MIB, copies, hashed, pools};
use crate::harness::hosts::{Host, Network};
use crate::harness::programs::{Reader, within};
use crate::harness::{
    Part, World, eventually, eventually_in, pattern, same_bytes, text, walk, write_image,
};

/// Far more than any failover takes, and far less than a reader that hangs.
const READ_SECONDS: u64 = 60;
/// Hosts that were away are asked again by then, by everybody.
const HEALED: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Killed,
    Stopped,
    CutOff,
    Slow,
    /// One packet in twenty.
    Lossy,
}

const EVENTS: [Event; 5] =
    [Event::Killed, Event::Stopped, Event::CutOff, Event::Slow, Event::Lossy];

/// An agent that things happen to.
struct Agent<'a> {
    host: &'a Host<'a>,
    pool: &'a std::path::Path,
    part: Option<Part>,
}

impl<'a> Agent<'a> {
    fn new(host: &'a Host<'a>, url: &str, pool: &'a std::path::Path) -> Self {
        Self { host, pool, part: Some(host.agent(url, &[pool])) }
    }

    fn suffer(&mut self, event: Event) {
        match event {
            Event::Killed => self.part.take().expect("it runs").kill(),
            Event::Stopped => self.part.as_ref().expect("it runs").signal(Signal::STOP),
            Event::CutOff => self.host.cut_off(),
            Event::Slow => self.host.slow_down(),
            Event::Lossy => self.host.lose_some(5),
        }
    }

    fn recover(&mut self, event: Event, url: &str) {
        match event {
            Event::Killed => self.part = Some(self.host.agent(url, &[self.pool])),
            Event::Stopped => self.part.as_ref().expect("it runs").signal(Signal::CONT),
            Event::CutOff | Event::Lossy => self.host.reconnect(),
            Event::Slow => self.host.speed_up(),
        }
    }
}

#[test]
fn a_file_is_read_on_whatever_happens_to_one_of_its_hosts() {
    let world = World::new();
    let network = Network::new(&world);
    let [catalog, a, b, c] = ["catalog", "a", "b", "c"].map(|name| network.host(name));
    let pools = pools(&world);
    let places = [&*pools[0], &*pools[1]];
    let names: Vec<String> = (0..EVENTS.len() * 2).map(|n| format!("image-{n}.iso")).collect();
    let images: Vec<_> = names.iter().map(|name| copies(places, name, LONG)).collect();
    let (_catalog, url) = catalog.catalog();
    let mut agents = [Agent::new(&a, &url, places[0]), Agent::new(&b, &url, places[1])];
    let (_mount, on_c) = c.mount(&url);
    hashed(&c, &url, names.len());
    eventually("the images", || walk(&on_c.join("other")).len() == names.len());

    // Nobody knows which of the two is asked first: it happens to each of them once.
    let hit = EVENTS.iter().flat_map(|event| [(*event, 0), (*event, 1)]);
    for ((event, which), (name, image)) in hit.zip(names.iter().zip(&images)) {
        let path = on_c.join("other").join(name);
        let reader = Reader::begin(&path, 16, READ_SECONDS);
        agents[which].suffer(event);
        let began = Instant::now();
        let (read, ended) = reader.go_on();
        ended.expect_well();
        same_bytes(&read, image);
        println!("{event:?} on {which}: read on in {:?}", began.elapsed());
        agents[which].recover(event, &url);
        eventually_in(HEALED, "both hosts", || c.json(&url, &["scan"])["volumes_scanned"] == 2);
    }
    // What was found bad is asked again once it is well: alone, it delivers.
    for (gone, name) in [(0, &names[0]), (1, &names[1])] {
        agents[gone].suffer(Event::CutOff);
        within(
            READ_SECONDS,
            &[
                "cmp",
                text(&on_c.join("other").join(name)),
                text(&pools[1 - gone].join("iso").join(name)),
            ],
        )
        .expect_well();
        agents[gone].recover(Event::CutOff, &url);
    }
}

#[test]
fn a_host_found_bad_costs_one_pause_and_not_one_a_read() {
    let world = World::new();
    let network = Network::new(&world);
    let [catalog, a, b, c] = ["catalog", "a", "b", "c"].map(|name| network.host(name));
    let pools = pools(&world);
    let places = [&*pools[0], &*pools[1]];
    let names: Vec<String> = (0..12).map(|n| format!("image-{n}.iso")).collect();
    for name in &names {
        copies(places, name, 300_000);
    }
    let (_catalog, url) = catalog.catalog();
    let agents = [a.agent(&url, &[places[0]]), b.agent(&url, &[places[1]])];
    let (_mount, on_c) = c.mount(&url);
    hashed(&c, &url, names.len());
    eventually("the images", || walk(&on_c.join("other")).len() == names.len());
    agents[0].signal(Signal::STOP);
    let began = Instant::now();
    for name in &names {
        let expected = pools[1].join("iso").join(name);
        let found = on_c.join("other").join(name);
        within(READ_SECONDS, &["cmp", text(&found), text(&expected)]).expect_well();
    }
    let took = began.elapsed();
    agents[0].signal(Signal::CONT);
    // Each by itself, twelve pauses of half a second and more would be eight seconds.
    println!("twelve images with one host stopped: {took:?}");
    assert!(took < Duration::from_secs(6), "{took:?}");
}

#[test]
fn without_a_replica_a_read_ends_in_time_and_nothing_else_notices() {
    let world = World::new();
    let network = Network::new(&world);
    let [catalog, a, b, c] = ["catalog", "a", "b", "c"].map(|name| network.host(name));
    let pools = pools(&world);
    write_image(&pools[0], "one.iso", &pattern("one.iso", LONG));
    write_image(&pools[1], "two.iso", &pattern("two.iso", LONG));
    let (_catalog, url) = catalog.catalog();
    let (agent, _other) = (a.agent(&url, &[&pools[0]]), b.agent(&url, &[&pools[1]]));
    let (_mount, on_c) = c.mount_with(&url, &["--read-timeout", "4"]);
    hashed(&c, &url, 2);
    let [one, two] = ["one.iso", "two.iso"].map(|name| on_c.join("other").join(name));
    eventually("the images", || one.exists() && two.exists());

    agent.signal(Signal::STOP);
    let began = Instant::now();
    thread::scope(|scope| {
        let reading = scope.spawn(|| within(READ_SECONDS, &["cat", text(&one)]));
        // Killed while it waits, a reader is gone at once.
        let killed = scope.spawn(|| {
            let killed = within(READ_SECONDS, &["timeout", "-s", "KILL", "2", "cat", text(&one)]);
            (killed.took, killed.well())
        });
        let file = pools[1].join("iso/two.iso");
        within(READ_SECONDS, &["cmp", text(&two), text(&file)]).expect_well();
        for question in ["ls -lR", "df", "stat"] {
            let words: Vec<&str> = question.split(' ').chain([text(&on_c)]).collect();
            let answered = within(READ_SECONDS, &words);
            answered.expect_well();
            assert!(answered.took < Duration::from_secs(5), "{question}: {answered:?}");
        }
        let (took, well) = killed.join().expect("ended");
        assert!(!well && took < Duration::from_secs(6), "{took:?}");
        let failed = reading.join().expect("ended");
        failed.expect_failure(&["Input/output error"]);
        let took = failed.took.as_secs_f32();
        assert!((3.9..9.5).contains(&took), "not as --read-timeout has it: {took}");
    });
    println!("EIO after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    agent.signal(Signal::CONT);
    eventually_in(HEALED, "it can be read again", || {
        within(READ_SECONDS, &["cmp", text(&one), text(&pools[0].join("iso/one.iso"))]).well()
    });
}

/// A link of 2 Mbit/s brings a block in four seconds: two at once would be late.
#[test]
fn a_slow_host_that_is_the_only_one_delivers() {
    let world = World::new();
    let network = Network::new(&world);
    let [catalog, a, c] = ["catalog", "a", "c"].map(|name| network.host(name));
    let pool = world.pool("isos", &[]);
    write_image(&pool, "one.iso", &pattern("one.iso", 4 * MIB));
    let (_catalog, url) = catalog.catalog();
    let _agent = a.agent(&url, &[&pool]);
    let (_mount, on_c) = c.mount(&url);
    hashed(&c, &url, 1);
    let image = on_c.join("other/one.iso");
    eventually("the image", || image.exists());
    a.slow_down();
    let read = within(READ_SECONDS, &["cmp", text(&image), text(&pool.join("iso/one.iso"))]);
    println!("4 MiB at 2 Mbit/s: {:?}", read.took);
    read.expect_well();
}

/// Of an image that somebody truncates, replaces or deletes in its pool while it is read, a reader
/// gets all of the old bytes or an error: never zeros, never a mixture.
#[test]
fn what_is_changed_while_it_is_read_is_never_mixed() {
    let world = World::new();
    let network = Network::new(&world);
    let [catalog, a, c] = ["catalog", "a", "c"].map(|name| network.host(name));
    let pool = world.pool("isos", &[]);
    let names = ["cut.iso", "rewritten.iso", "replaced.iso", "deleted.iso"];
    for name in names {
        write_image(&pool, name, &pattern(name, LONG));
    }
    let (_catalog, url) = catalog.catalog();
    let _agent = a.agent(&url, &[&pool]);
    let (_mount, on_c) = c.mount(&url);
    hashed(&c, &url, names.len());
    for name in names {
        let path = on_c.join("other").join(name);
        eventually("the image", || path.exists());
        let old = pattern(name, LONG);
        let reader = Reader::begin(&path, 16, READ_SECONDS);
        let file = pool.join("iso").join(name);
        let new = pattern("something else", LONG);
        match name {
            "cut.iso" => {
                let file = std::fs::File::options().write(true).open(&file).expect("opened");
                file.set_len(2 * MIB as u64).expect("cut");
            }
            "rewritten.iso" => std::fs::write(&file, &new).expect("rewritten"),
            "replaced.iso" => {
                let beside = pool.join("iso/.beside");
                std::fs::write(&beside, &new).expect("written");
                std::fs::rename(&beside, &file).expect("replaced");
            }
            _ => std::fs::remove_file(&file).expect("deleted"),
        }
        let (read, ended) = reader.go_on();
        // Whatever came is the old image's.
        same_bytes(&read, &old[..read.len()]);
        if ended.well() {
            assert_eq!(read.len(), old.len(), "{name}: a short file");
        } else {
            ended.expect_failure(&["Input/output error", "Stale file handle"]);
        }
    }
}
