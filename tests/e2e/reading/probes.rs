//! What hypervisors look at of every image: its first 33 KiB, from this host's disk while no host that
//! has the image is to be reckoned with. All else is read or fails as ever.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use libc::EIO;
use rustix::process::Signal;

use super::hashed;
use crate::harness::hosts::{Host, Network};
use crate::harness::programs::within;
use crate::harness::{
    Part, World, errno, eventually, eventually_in, pattern, same_bytes, text, walk, write_image,
};
use crate::hypervisors::libvirt::{HEADER_BYTES, drop_pages, refreshed};
use crate::local::passes_through;

/// More than the kernel reads ahead at first, so that more is asked for than is kept.
const LEN: usize = 300_000;
const IMAGES: usize = 60;
/// A host is found to be gone within two seconds; the rest is for the machine.
const FIRST_MAX: Duration = Duration::from_secs(12);
/// Then nobody is waited for. Each image waiting by itself, one second at the least, it would be a
/// minute.
const NEXT_MAX: Duration = Duration::from_secs(6);
/// Hosts that were away are asked again by then.
const HEALED: Duration = Duration::from_secs(30);

fn names() -> Vec<String> {
    (0..IMAGES).map(|n| format!("image-{n}.iso")).collect()
}

/// Where the only mount of a test keeps headers.
fn headers(world: &World) -> PathBuf {
    let listed = fs::read_dir(world.path("state/mount")).expect("a state directory").flatten();
    let mut dirs = listed.map(|it| it.path()).filter(|it| it.is_dir());
    dirs.find(|it| it.extension() == Some("headers".as_ref())).expect("headers are kept")
}

fn kept(world: &World) -> usize {
    let listed = fs::read_dir(headers(world)).expect("listed").flatten();
    listed.filter(|it| it.path().extension().is_none()).count()
}

/// libvirt takes the pool, and all that it reads is right; returns how long it took.
#[track_caller]
fn expect_pool(world: &World, dir: &Path, names: &[String]) -> Duration {
    let began = Instant::now();
    let found = refreshed(world, dir);
    let took = began.elapsed();
    assert_eq!(found.len(), names.len());
    for name in names {
        let header = found[name].as_ref().unwrap_or_else(|error| panic!("{name}: {error}"));
        same_bytes(header, &pattern(name, LEN)[..usize::try_from(HEADER_BYTES).expect("small")]);
    }
    took
}

/// As after the kernel had needed its memory.
#[track_caller]
fn expect_pool_anew(world: &World, dir: &Path, names: &[String], most: Duration) -> Duration {
    drop_pages(world, dir);
    let took = expect_pool(world, dir, names);
    assert!(took < most, "{took:?}");
    took
}

/// Reading an image behind what is kept of it fails, in time, and by itself.
#[track_caller]
fn expect_no_more(image: &Path) {
    let began = Instant::now();
    let open = File::open(image).expect("an open needs no host");
    assert_eq!(errno(open.read_exact_at(&mut [0; 4096], 200_000)), EIO);
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Killed,
    Stopped,
    CutOff,
}

/// The only host of a pool, to which things happen.
struct Only<'a> {
    host: &'a Host<'a>,
    pool: &'a Path,
    url: &'a str,
    part: Option<Part>,
}

impl Only<'_> {
    fn go(&mut self, event: Event) {
        match event {
            Event::Killed => self.part.take().expect("it runs").kill(),
            Event::Stopped => self.part.as_ref().expect("it runs").signal(Signal::STOP),
            Event::CutOff => self.host.cut_off(),
        }
    }

    fn return_from(&mut self, event: Event) {
        match event {
            Event::Killed => self.part = Some(self.host.agent(self.url, &[self.pool])),
            Event::Stopped => self.part.as_ref().expect("it runs").signal(Signal::CONT),
            Event::CutOff => self.host.reconnect(),
        }
    }
}

#[test]
fn a_pool_is_refreshed_whatever_became_of_its_only_host() {
    let world = World::new();
    let network = Network::new(&world);
    let [catalog, a, c] = ["catalog", "a", "c"].map(|name| network.host(name));
    let pool = world.pool("isos", &[]);
    let names = names();
    for name in &names {
        write_image(&pool, name, &pattern(name, LEN));
    }
    let (catalogue, url) = catalog.catalog();
    let mut only = Only { host: &a, pool: &pool, url: &url, part: Some(a.agent(&url, &[&pool])) };
    let (mut mount, on_c) = c.mount(&url);
    hashed(&c, &url, names.len());
    let dir = on_c.join("other");
    eventually("the images", || walk(&dir).len() == names.len());
    expect_pool_anew(&world, &dir, &names, FIRST_MAX);
    eventually("all are kept", || kept(&world) == names.len());

    let whole = |name: &str| {
        within(60, &["cmp", text(&dir.join(name)), text(&pool.join("iso").join(name))])
    };
    for event in [Event::Killed, Event::Stopped, Event::CutOff] {
        only.go(event);
        let first = expect_pool_anew(&world, &dir, &names, FIRST_MAX);
        let next = expect_pool_anew(&world, &dir, &names, NEXT_MAX);
        println!("{event:?}: probed in {first:?}, then in {next:?}");
        // Nobody tells the mount that starts now but the catalogue.
        assert_eq!(mount.stop(), 0);
        mount = c.mount(&url).0;
        let first = expect_pool_anew(&world, &dir, &names, FIRST_MAX);
        let next = expect_pool_anew(&world, &dir, &names, NEXT_MAX);
        println!("{event:?}, a new mount: probed in {first:?}, then in {next:?}");
        expect_no_more(&dir.join(&names[7]));
        only.return_from(event);
        eventually_in(HEALED, "it is read again", || whole(&names[7]).well());
        drop_pages(&world, &dir);
        whole(&names[8]).expect_well();
    }
    // Nobody at all is left to tell.
    only.go(Event::CutOff);
    catalogue.kill();
    assert_eq!(mount.stop(), 0);
    let _mount = c.mount(&url).0;
    expect_pool_anew(&world, &dir, &names, FIRST_MAX);
    expect_pool_anew(&world, &dir, &names, NEXT_MAX);
}

/// Two images as a mount shows them, that mount with its agent and catalogue, and the pool; the agent
/// comes first of them.
fn two_images(world: &World, names: [&str; 2]) -> (PathBuf, Vec<Part>, PathBuf) {
    let pool = world.pool("isos", &[]);
    for name in names {
        write_image(&pool, name, &pattern(name, LEN));
    }
    let (catalogue, url) = world.catalog();
    let agent = world.agent("far", &url, &[&pool]);
    let (mount, path) = world.mount_beside("near", "mnt", &url);
    let dir = path.join("other");
    eventually("both images", || walk(&dir).len() == names.len());
    (dir, vec![agent, mount, catalogue], pool)
}

#[test]
fn what_was_never_seen_fails_in_time_and_what_was_seen_in_part_does_not() {
    let world = World::new();
    let (dir, parts, _) = two_images(&world, ["seen.iso", "unseen.iso"]);
    let [seen, unseen] = ["seen.iso", "unseen.iso"].map(|name| dir.join(name));
    // The smallest piece: what is missing of the header is fetched for it.
    let piece = within(20, &["dd", &format!("if={}", text(&seen)), "bs=512", "count=1"]);
    piece.expect_well();
    eventually("it is kept", || kept(&world) == 1);
    drop_pages(&world, &dir);
    parts[0].signal(Signal::STOP);
    let began = Instant::now();
    let found = refreshed(&world, &dir);
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
    assert_eq!(found["unseen.iso"], Err("EIO".to_owned()));
    let header = found["seen.iso"].as_ref().expect("it was seen");
    same_bytes(header, &pattern("seen.iso", LEN)[..header.len()]);
    expect_no_more(&unseen);
    // Whoever goes round the page cache gets the same, and whoever wants more an error.
    drop_pages(&world, &dir);
    let direct = |blocks: &str| {
        let from = format!("if={}", text(&seen));
        within(60, &["dd", &from, "of=/dev/null", "iflag=direct", "bs=16k", blocks])
    };
    direct("count=3").expect_well();
    direct("count=4").expect_failure(&["Input/output error"]);
    within(60, &["cat", text(&seen)]).expect_failure(&["Input/output error"]);
    parts[0].signal(Signal::CONT);
    eventually_in(HEALED, "all is read", || refreshed(&world, &dir).values().all(Result::is_ok));
}

#[test]
fn a_reader_that_begins_while_its_host_is_away_waits_for_it_behind_the_beginning() {
    let world = World::new();
    let (dir, parts, pool) = two_images(&world, ["a.iso", "b.iso"]);
    refreshed(&world, &dir);
    eventually("both are kept", || kept(&world) == 2);
    parts[0].signal(Signal::STOP);
    drop_pages(&world, &dir);
    // It is known to be away when this has ended.
    refreshed(&world, &dir);
    std::thread::scope(|scope| {
        let (from, to) = (dir.join("a.iso"), pool.join("iso/a.iso"));
        let reading = scope.spawn(move || within(60, &["cmp", text(&from), text(&to)]));
        std::thread::sleep(Duration::from_secs(2));
        assert!(!reading.is_finished(), "it waits for its host");
        parts[0].signal(Signal::CONT);
        reading.join().expect("ended").expect_well();
    });
}

#[test]
fn a_full_disk_keeps_no_headers_and_changes_nothing_for_readers() {
    let world = World::new();
    let state = world.make_dir("state");
    world.unmount_in_the_end(&state);
    let flags = rustix::mount::MountFlags::empty();
    let options = Some(c"size=256k");
    rustix::mount::mount("tmpfs", &state, "tmpfs", flags, options).expect("a small disk");
    let pool = world.pool("isos", &[]);
    let names = &names()[..8];
    for name in names {
        write_image(&pool, name, &pattern(name, LEN));
    }
    let (_catalogue, url) = world.catalog();
    let agent = world.agent("far", &url, &[&pool]);
    let (_mount, path) = world.mount_beside("near", "mnt", &url);
    let dir = path.join("other");
    eventually("the images", || walk(&dir).len() == names.len());
    expect_pool_anew(&world, &dir, names, FIRST_MAX);
    // As many as there is room for, each whole.
    eventually("some are kept", || kept(&world) > 0);
    expect_pool_anew(&world, &dir, names, FIRST_MAX);
    for name in names {
        within(60, &["cmp", text(&dir.join(name)), text(&pool.join("iso").join(name))])
            .expect_well();
    }
    let few = kept(&world);
    assert!(few < names.len(), "{few} in 256 KiB");
    agent.kill();
    drop_pages(&world, &dir);
    let found = refreshed(&world, &dir);
    let read = found.iter().filter(|(_, it)| it.is_ok());
    assert!(read.clone().count() >= few.min(1), "{found:?}");
    for (name, header) in read {
        let header = header.as_ref().expect("filtered");
        same_bytes(header, &pattern(name, LEN)[..header.len()]);
    }
    let room = rustix::fs::statvfs(&state).expect("a file system");
    assert!(room.f_bavail > 0, "the rest is left to others");
}

#[test]
fn images_of_this_host_are_probed_when_its_agent_is_away() {
    let world = World::new();
    let pool = world.pool("isos", &[]);
    let names = &names()[..5];
    for name in names {
        write_image(&pool, name, &pattern(name, LEN));
    }
    let (catalogue, url) = world.catalog();
    let agent = world.agent("near", &url, &[&pool]);
    let (mount, path) = world.mount_beside("near", "mnt", &url);
    let dir = path.join("other");
    eventually("the images", || walk(&dir).len() == names.len());
    // Past the mount, which keeps their beginnings even so.
    for name in names {
        passes_through(&path, &dir.join(name));
    }
    eventually("all are kept", || kept(&world) == names.len());
    agent.kill();
    expect_pool_anew(&world, &dir, names, FIRST_MAX);
    expect_pool_anew(&world, &dir, names, NEXT_MAX);
    catalogue.kill();
    assert_eq!(mount.stop(), 0);
    let (_mount, _) = world.mount_beside("near", "mnt", &url);
    expect_pool_anew(&world, &dir, names, FIRST_MAX);
}
