//! Hosts of their own that lose packets, stop, fill up, have wrong clocks and move: what was told
//! stays true, nothing waits for ever, and what was interrupted leaves nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::hosts::{Host, Network};
use crate::harness::programs::{Copy, Ended, Reader, within};
use crate::harness::volumes::{Access, remount};
use crate::harness::{
    Part, World, eventually, eventually_in, pattern, same_bytes, text, walk, write_image,
};

const MIB: usize = 1 << 20;
/// More than is ever under way between two hosts, in all buffers together.
const LONG: usize = 48 * MIB;
/// Reading, listing or storing what is in nobody's way.
const SECONDS: u64 = 60;
/// An upload that fails does so well within it; it must exceed every deadline on its way.
const UPLOAD_SECONDS: u64 = 120;
/// What is given up lapses with its lease of 20 seconds and is swept some seconds later. Packets
/// that were lost are sent again late: after as long as they were lost, at worst.
const SWEPT: Duration = Duration::from_secs(90);
/// Parts that lost one another have met again by then.
const HEALED: Duration = Duration::from_secs(30);

/// A file to store, outside of all pools.
fn source(world: &World, len: usize) -> (PathBuf, Vec<u8>) {
    let (path, bytes) = (world.path("source"), pattern("source", len));
    fs::write(&path, &bytes).expect("written");
    (path, bytes)
}

fn all_scanned(host: &Host<'_>, url: &str, volumes: usize) {
    eventually("the volumes", || host.json(url, &["scan"])["volumes_scanned"] == volumes);
}

#[track_caller]
fn same(path: &Path, expected: &Path) {
    within(SECONDS, &["cmp", text(path), text(expected)]).expect_well();
}

#[track_caller]
fn copies(from: &Path, to: &Path) {
    within(SECONDS, &["cp", text(from), text(to)]).expect_well();
}

/// Staged files of a pool, and their bytes.
fn staged(pool: &Path) -> Vec<(PathBuf, u64)> {
    let dir = pool.join(".isotope/staging");
    let all = if dir.exists() { walk(&dir) } else { Vec::new() };
    let files = all.into_iter().filter(|name| !name.ends_with('/')).map(|name| dir.join(name));
    // One may go while we look.
    files.filter_map(|it| fs::metadata(&it).ok().map(|meta| (it, meta.len()))).collect()
}

fn staged_bytes(pool: &Path) -> usize {
    usize::try_from(staged(pool).iter().map(|(_, len)| len).sum::<u64>()).expect("small")
}

#[track_caller]
fn nothing_stays_staged(pool: &Path) {
    eventually_in(SWEPT, "no staged file", || staged(pool).is_empty());
}

/// A program that ended well has stored its file for everybody; one that failed has not, and it
/// does not appear afterwards.
#[track_caller]
fn told_the_truth(ended: &Ended, paths: &[PathBuf], expected: &Path) {
    if !ended.well() {
        thread::sleep(Duration::from_secs(5));
    }
    for path in paths {
        if ended.well() {
            eventually("the file", || path.exists());
            same(path, expected);
        } else {
            assert!(!path.exists(), "{} in spite of {ended:?}", path.display());
        }
    }
}

/// The copy's last bytes, and its end, while a part has stopped for so long.
fn end_during_stop(copy: Copy, rest: &[u8], part: &Part, how_long: Duration) -> Ended {
    part.signal(Signal::STOP);
    thread::scope(|scope| {
        let copy = scope.spawn(|| copy.end(rest));
        thread::sleep(how_long);
        part.signal(Signal::CONT);
        copy.join().expect("ended")
    })
}

#[test]
fn hosts_store_and_read_each_others_images() {
    let world = World::new();
    let network = Network::new(&world);
    let [catalog, a, b, c] = ["catalog", "a", "b", "c"].map(|name| network.host(name));
    let alpha = world.pool("alpha", &["debian-12.iso"]);
    let beta = world.pool("beta", &["Win11.iso"]);
    let (_catalog, url) = catalog.catalog();
    let _agents = [a.agent(&url, &[&alpha]), b.agent(&url, &[&beta])];
    let (_mount_b, on_b) = b.mount(&url);
    let (_mount_c, on_c) = c.mount(&url);
    all_scanned(&c, &url, 2);

    for mount in [&on_b, &on_c] {
        eventually("both images", || walk(mount).len() == 5);
        same(&mount.join("linux/debian-12.iso"), &alpha.join("iso/debian-12.iso"));
        same(&mount.join("windows/Win11.iso"), &beta.join("iso/Win11.iso"));
    }

    // From a host without a pool, to read on one that has another than the file may be in.
    let (source, _) = source(&world, 20 * MIB + 1);
    copies(&source, &on_c.join("linux/stored.iso"));
    eventually("the new image", || on_b.join("linux/stored.iso").exists());
    same(&on_b.join("linux/stored.iso"), &source);
    let places = [&alpha, &beta].map(|pool| pool.join("iso/stored.iso"));
    eventually("one file in a pool", || places.iter().filter(|it| it.exists()).count() == 1);
    same(places.iter().find(|it| it.exists()).expect("found"), &source);

    // A host's own pool comes first.
    copies(&source, &on_b.join("linux/own.iso"));
    eventually("the file in its pool", || beta.join("iso/own.iso").exists());
    same(&on_c.join("linux/own.iso"), &source);
}

#[test]
fn a_host_that_vanishes_while_it_stores_a_file_fails_that_file_alone() {
    let world = World::new();
    let network = Network::new(&world);
    let [catalog, a, b, c] = ["catalog", "a", "b", "c"].map(|name| network.host(name));
    let pools = [world.pool("alpha", &[]), world.pool("beta", &[])];
    let (_catalog, url) = catalog.catalog();
    let _agents = [a.agent(&url, &[&pools[0]]), b.agent(&url, &[&pools[1]])];
    let mounts = [a.mount(&url), b.mount(&url), c.mount(&url)];
    let on_c = &mounts[2].1;
    all_scanned(&c, &url, 2);

    let (source, bytes) = source(&world, LONG);
    let mut copy = Copy::begin(&on_c.join("linux/lost.iso"), UPLOAD_SECONDS);
    copy.feed(&bytes[..4 * MIB]);
    eventually("its first bytes", || pools.iter().any(|pool| staged_bytes(pool) > MIB));
    let (gone, here) = if staged_bytes(&pools[0]) > 0 { (0, 1) } else { (1, 0) };
    let gone_host = [&a, &b][gone];
    gone_host.cut_off();
    let ended = copy.end(&bytes[4 * MIB..]);
    ended.expect_failure(&["Connection timed out", "Input/output error", "Host is down"]);
    let nowhere = || mounts.iter().all(|(_, mount)| !mount.join("linux/lost.iso").exists());
    assert!(nowhere(), "it failed, and is there");

    // Whoever does not need that host notices nothing.
    copies(&source, &on_c.join("linux/other.iso"));
    same(&mounts[here].1.join("linux/other.iso"), &source);
    assert!(pools[here].join("iso/other.iso").exists());

    gone_host.reconnect();
    nothing_stays_staged(&pools[gone]);
    eventually_in(HEALED, "both volumes", || c.json(&url, &["scan"])["volumes_scanned"] == 2);
    assert_eq!(c.json(&url, &["scan"])["discovered"], 0);
    assert!(nowhere(), "it was swept, and is there");
    let pool = ["alpha", "beta"][gone];
    let put = ["--server", &url, "put", "--pool", pool, text(&source), "/linux/again.iso"];
    assert!(c.run(&put).status.success(), "it takes files again");
    eventually_in(HEALED, "the image there", || mounts[gone].1.join("linux/again.iso").exists());
    same(&mounts[gone].1.join("linux/again.iso"), &source);
}

#[test]
fn a_host_that_vanishes_while_it_is_read_costs_an_error_or_a_pause() {
    let world = World::new();
    let network = Network::new(&world);
    let [catalog, a, b, c] = ["catalog", "a", "b", "c"].map(|name| network.host(name));
    // Both hosts see the shared one.
    let [shared, alone] = ["shared", "alone"].map(|name| world.pool(name, &[]));
    let bytes = |name| pattern(name, LONG);
    for name in ["one.iso", "two.iso"] {
        write_image(&shared, name, &bytes(name));
    }
    write_image(&alone, "three.iso", &bytes("three.iso"));
    let (_catalog, url) = catalog.catalog();
    let _agents = [a.agent(&url, &[&alone, &shared]), b.agent(&url, &[&shared])];
    let (_mount, on_c) = c.mount(&url);
    eventually("the images", || walk(&on_c.join("other")).len() == 3);
    let both_see = |volume: &serde_json::Value| volume["nodes"].as_array().map(Vec::len) == Some(2);
    eventually("two hosts of one volume", || {
        c.json(&url, &["status"])["volumes"].as_array().is_some_and(|all| all.iter().any(both_see))
    });

    let [one, three] = ["one.iso", "three.iso"]
        .map(|name| Reader::begin(&on_c.join("other").join(name), 16, SECONDS));
    a.cut_off();
    let began = Instant::now();
    let ((found, read), (part, failed)) = thread::scope(|scope| {
        let one = scope.spawn(|| one.go_on());
        (one.join().expect("read"), three.go_on())
    });
    read.expect_well();
    same_bytes(&found, &bytes("one.iso"));
    failed.expect_failure(&["Input/output error"]);
    assert!(part.len() < LONG, "not all of it can have been on its way");
    same_bytes(&part, &bytes("three.iso")[..part.len()]);
    // Each request has ten seconds, and there are a few at most.
    assert!(began.elapsed() < Duration::from_secs(45), "{:?}", began.elapsed());

    a.reconnect();
    eventually_in(HEALED, "it can be read again", || {
        let file = alone.join("iso/three.iso");
        within(SECONDS, &["cmp", text(&on_c.join("other/three.iso")), text(&file)]).well()
    });
    // The other way round, and only between the two: for the catalogue both are there.
    b.cut_off_from(&c);
    same(&on_c.join("other/two.iso"), &shared.join("iso/two.iso"));
    assert_eq!(c.json(&url, &["scan"])["volumes_scanned"], 2);
    b.reconnect();
}

#[test]
fn without_the_catalogues_host_reading_goes_on_and_changes_fail_in_time() {
    let world = World::new();
    let network = Network::new(&world);
    let [catalog, a, b] = ["catalog", "a", "b"].map(|name| network.host(name));
    let pool = world.pool("isos", &["one.iso", "two.iso"]);
    write_image(&pool, "long.iso", &pattern("long.iso", LONG));
    let (_catalog, url) = catalog.catalog();
    let _agent = a.agent(&url, &[&pool]);
    let (_mount_a, on_a) = a.mount(&url);
    let (_mount_b, on_b) = b.mount(&url);
    eventually("the images", || [&on_a, &on_b].iter().all(|it| walk(it).len() == 6));
    let (source, _) = source(&world, MIB);
    let other = on_b.join("other");

    catalog.cut_off();
    let began = Instant::now();
    for question in ["ls -lR", "find", "df", "stat"] {
        let words: Vec<&str> = question.split(' ').chain([text(&on_b)]).collect();
        within(SECONDS, &words).expect_well();
    }
    within(SECONDS, &["stat", text(&other.join("absent"))]).expect_failure(&["No such file"]);
    assert!(began.elapsed() < Duration::from_secs(10), "from memory: {:?}", began.elapsed());
    let [one, two, new, folder] =
        ["one.iso", "two.iso", "new.iso", "folder"].map(|it| other.join(it));
    for change in [
        &["mkdir", text(&folder)][..],
        &["mv", text(&one), text(&on_b)],
        &["rm", text(&two)],
        &["cp", text(&source), text(&new)],
        &["touch", text(&one)],
    ] {
        let failed = within(SECONDS, change);
        failed.expect_failure(&["Host is down", "Connection timed out"]);
        assert!(failed.took < Duration::from_secs(15), "{change:?}: {failed:?}");
    }
    same(&other.join("long.iso"), &pool.join("iso/long.iso"));

    catalog.reconnect();
    eventually_in(HEALED, "a change", || {
        within(SECONDS, &["mkdir", "-p", text(&on_b.join("later"))]).well()
    });
    eventually_in(HEALED, "the other mount to see it", || on_a.join("later").is_dir());
    copies(&source, &on_b.join("later/new.iso"));
    eventually("the image", || on_a.join("later/new.iso").exists());
    same(&on_a.join("later/new.iso"), &source);
    // What timed out was made wholly or not at all, and is the same for all.
    eventually("one tree", || walk(&on_a) == walk(&on_b));
}

#[test]
fn an_agent_that_stops_while_it_stores_a_file_makes_no_close_a_lie() {
    let world = World::new();
    let network = Network::new(&world);
    let [catalog, a, b] = ["catalog", "a", "b"].map(|name| network.host(name));
    let pool = world.pool("isos", &[]);
    let (_catalog, url) = catalog.catalog();
    let agent = a.agent(&url, &[&pool]);
    let (_mount_a, on_a) = a.mount(&url);
    let (_mount_b, on_b) = b.mount(&url);
    all_scanned(&b, &url, 1);
    let (source, bytes) = source(&world, LONG);
    // In the middle of its bytes, and when nothing but the end is missing.
    for (name, before) in [("middle.iso", 4 * MIB), ("end.iso", LONG)] {
        let paths = [&on_a, &on_b].map(|mount| mount.join("linux").join(name));
        let mut copy = Copy::begin(&paths[1], UPLOAD_SECONDS);
        copy.feed(&bytes[..before]);
        // cp may keep some of it, and so may the kernel.
        eventually("its bytes", || staged_bytes(&pool) >= before - MIB);
        let ended = end_during_stop(copy, &bytes[before..], &agent, Duration::from_secs(4));
        told_the_truth(&ended, &paths, &source);
        nothing_stays_staged(&pool);
    }
}

#[test]
fn a_catalogue_that_stops_while_a_file_is_closed_makes_no_close_a_lie() {
    let world = World::new();
    let network = Network::new(&world);
    let [catalog, a, b] = ["catalog", "a", "b"].map(|name| network.host(name));
    let pool = world.pool("isos", &[]);
    let (catalogue, url) = catalog.catalog();
    let _agent = a.agent(&url, &[&pool]);
    let (_mount_a, on_a) = a.mount(&url);
    let (_mount_b, on_b) = b.mount(&url);
    all_scanned(&b, &url, 1);
    let (source, bytes) = source(&world, 4 * MIB);
    for (name, seconds) in [("blink.iso", 1), ("nap.iso", 4)] {
        let paths = [&on_a, &on_b].map(|mount| mount.join("linux").join(name));
        let mut copy = Copy::begin(&paths[1], UPLOAD_SECONDS);
        copy.feed(&bytes);
        eventually("its bytes", || staged_bytes(&pool) >= bytes.len() - MIB);
        let ended = end_during_stop(copy, &[], &catalogue, Duration::from_secs(seconds));
        told_the_truth(&ended, &paths, &source);
        nothing_stays_staged(&pool);
    }
}

#[test]
fn a_full_volume_refuses_what_does_not_fit_and_keeps_nothing_of_it() {
    let world = World::new();
    let network = Network::new(&world);
    let [catalog, a, b] = ["catalog", "a", "b"].map(|name| network.host(name));
    let (small, big) = (world.small_pool("small", 24), world.pool("big", &[]));
    let (_catalog, url) = catalog.catalog();
    let _agents = [a.agent(&url, &[&small]), b.agent(&url, &[&big])];
    // What is written there goes to the small one, which is of the same host.
    let (_mount_a, on_a) = a.mount(&url);
    let (_mount_b, on_b) = b.mount(&url);
    all_scanned(&a, &url, 2);
    let (large, _) = source(&world, 40 * MIB);
    let fitting = world.path("fitting");
    fs::write(&fitting, pattern("fitting", 3 * MIB)).expect("written");

    let target = on_a.join("linux/large.iso");
    let full = "No space left on device";
    within(UPLOAD_SECONDS, &["cp", text(&large), text(&target)]).expect_failure(&[full]);
    eventually("its space", || staged(&small).is_empty());
    let sized = ["fallocate", "--length", "40MiB", text(&target)];
    within(UPLOAD_SECONDS, &sized).expect_failure(&[full]);
    eventually("its space", || staged(&small).is_empty());
    let put = |pool: &str, file: &Path, name: &str| {
        let target = format!("/linux/{name}");
        a.run(&["--server", &url, "put", "--pool", pool, text(file), &target])
    };
    let refused = put("small", &large, "large.iso");
    assert!(!refused.status.success(), "{refused:?}");
    for mount in [&on_a, &on_b] {
        assert!(walk(&mount.join("linux")).is_empty(), "{:?}", walk(mount));
    }
    assert!(walk(&small.join("iso")).is_empty());

    // What fits is taken, and the other pool is not full.
    copies(&fitting, &on_a.join("linux/fitting.iso"));
    eventually("the file in its pool", || small.join("iso/fitting.iso").exists());
    assert!(put("big", &large, "put.iso").status.success());
    copies(&large, &on_b.join("linux/copied.iso"));
    for (name, file) in [("fitting.iso", &fitting), ("put.iso", &large), ("copied.iso", &large)] {
        eventually("the image", || on_a.join("linux").join(name).exists());
        same(&on_a.join("linux").join(name), file);
    }
}

#[test]
fn a_volume_that_becomes_read_only_is_read_and_not_written_to() {
    let world = World::new();
    let network = Network::new(&world);
    let [catalog, a, b] = ["catalog", "a", "b"].map(|name| network.host(name));
    let (small, big) = (world.small_pool("small", 24), world.pool("big", &[]));
    write_image(&small, "kept.iso", &pattern("kept.iso", 3 * MIB));
    write_image(&small, "deleted.iso", &pattern("deleted.iso", MIB));
    let (_catalog, url) = catalog.catalog();
    let _agents = [a.agent(&url, &[&small]), b.agent(&url, &[&big])];
    let (_mount_a, on_a) = a.mount(&url);
    let (_mount_b, on_b) = b.mount(&url);
    all_scanned(&a, &url, 2);
    let (source, _) = source(&world, 2 * MIB);
    let put = |name: &str| {
        a.run(&[
            "--server",
            &url,
            "put",
            "--pool",
            "small",
            text(&source),
            &format!("/linux/{name}"),
        ])
    };

    remount(&small, Access::ReadOnly);
    // Known to its agent or not yet: refused, or stored elsewhere.
    let paths = [&on_a, &on_b].map(|mount| mount.join("linux/first.iso"));
    let first = within(SECONDS, &["cp", text(&source), text(&paths[0])]);
    if !first.well() {
        first.expect_failure(&["Read-only file system"]);
    }
    told_the_truth(&first, &paths, &source);
    let refused = put("refused.iso");
    assert!(!refused.status.success(), "{refused:?}");
    assert!(!on_a.join("linux/refused.iso").exists());
    same(&on_b.join("other/kept.iso"), &small.join("iso/kept.iso"));
    // By now it is known.
    copies(&source, &on_a.join("linux/elsewhere.iso"));
    eventually("the file in the other pool", || big.join("iso/elsewhere.iso").exists());
    // The name goes at once, the file when it can.
    within(SECONDS, &["rm", text(&on_a.join("other/deleted.iso"))]).expect_well();
    eventually("no such name", || !on_b.join("other/deleted.iso").exists());

    remount(&small, Access::ReadWrite);
    eventually_in(HEALED, "files are taken again", || put("again.iso").status.success());
    eventually_in(HEALED, "the deleted file goes", || !small.join("iso/deleted.iso").exists());
    eventually("the image", || on_b.join("linux/again.iso").exists());
    same(&on_b.join("linux/again.iso"), &source);
    assert!(staged(&small).is_empty(), "{:?}", staged(&small));
}

#[test]
fn what_is_read_on_another_host_outlives_its_name_and_the_trash() {
    let world = World::new();
    let network = Network::new(&world);
    let [catalog, a, b, c] = ["catalog", "a", "b", "c"].map(|name| network.host(name));
    let pool = world.pool("isos", &["unread.iso"]);
    write_image(&pool, "read.iso", &pattern("read.iso", LONG));
    let (_catalog, url) = catalog.catalog();
    let _agent = a.agent(&url, &[&pool]);
    let (_mount_b, on_b) = b.mount(&url);
    let (_mount_c, on_c) = c.mount(&url);
    eventually("the images", || walk(&on_b.join("other")).len() == 2);
    let reader = Reader::begin(&on_c.join("other/read.iso"), 16, UPLOAD_SECONDS);
    for name in ["read.iso", "unread.iso"] {
        within(SECONDS, &["rm", text(&on_b.join("other").join(name))]).expect_well();
    }
    eventually("no names", || walk(&on_c.join("other")).is_empty());

    let in_trash = |name: &str| {
        let listed = b.run(&["--server", &url, "trash", "ls"]);
        assert!(listed.status.success(), "{listed:?}");
        String::from_utf8_lossy(&listed.stdout).contains(&format!("/other/{name}"))
    };
    let emptied_of = |name: &str| {
        // Refused while the catalogue is so young that not every reader can have spoken.
        b.run(&["--server", &url, "trash", "empty"]);
        !in_trash(name)
    };
    eventually_in(HEALED, "what nobody reads to be deleted", || emptied_of("unread.iso"));
    assert!(in_trash("read.iso"), "somebody reads it");
    let (found, ended) = reader.go_on();
    ended.expect_well();
    same_bytes(&found, &pattern("read.iso", LONG));

    eventually_in(HEALED, "what nobody reads any more to be deleted", || emptied_of("read.iso"));
    let large = |name: &String| {
        let path = pool.join(name);
        path.is_file() && path.metadata().is_ok_and(|meta| meta.len() >= 300_000)
    };
    eventually("the files to be gone", || !walk(&pool).iter().any(large));
}

#[test]
fn wrong_clocks_change_nothing() {
    let world = World::new();
    let network = Network::new(&world);
    let catalog = network.host("catalog");
    let a = network.host_with_clock("a", "+1d");
    let b = network.host_with_clock("b", "-1h");
    let c = network.host("c");
    let pool = world.pool("isos", &["old.iso"]);
    let tomorrow = || date_of("tomorrow");
    let days = [tomorrow()];
    let (_catalog, url) = catalog.catalog();
    let _agent = a.agent(&url, &[&pool]);
    let (_mount_b, on_b) = b.mount(&url);
    let (mount_c, on_c) = c.mount(&url);
    all_scanned(&c, &url, 1);
    let log = world.log("agent-a.log");
    let is_tomorrow = days.iter().chain([&tomorrow()]).any(|day| log.contains(&**day));
    assert!(is_tomorrow, "the agent's clock is a day ahead: {log}");

    same(&on_b.join("other/old.iso"), &pool.join("iso/old.iso"));
    let (source, bytes) = source(&world, 4 * MIB);
    copies(&source, &on_b.join("linux/new.iso"));
    eventually("the image", || on_c.join("linux/new.iso").exists());
    same(&on_c.join("linux/new.iso"), &source);

    // One writer takes longer than a lease lasts; of the other nothing is heard any more.
    let mut slow = Copy::begin(&on_b.join("linux/slow.iso"), UPLOAD_SECONDS);
    slow.feed(&bytes[..2 * MIB]);
    eventually("its bytes", || staged_bytes(&pool) >= MIB);
    let mut dead = Copy::begin(&on_c.join("linux/dead.iso"), UPLOAD_SECONDS);
    dead.feed(&bytes[..2 * MIB]);
    eventually("both", || staged(&pool).len() == 2);
    mount_c.kill();
    assert!(!dead.end(&[]).well(), "its mount has gone");
    let began = Instant::now();

    // Meanwhile one is read, deleted, not purged, and had back.
    let reader = Reader::begin(&on_b.join("other/old.iso"), 1, UPLOAD_SECONDS);
    within(SECONDS, &["rm", text(&on_b.join("other/old.iso"))]).expect_well();
    // Longer than a lease.
    thread::sleep(Duration::from_secs(25).saturating_sub(began.elapsed()));
    let emptied = b.json(&url, &["trash", "empty"]);
    assert_eq!((&emptied["images"], &emptied["held"]), (&0.into(), &1.into()), "{emptied}");
    let listed = b.json(&url, &["trash", "ls"]);
    let id = listed["id"].as_str().expect("one image").to_owned();
    assert!(b.run(&["--server", &url, "trash", "restore", &id]).status.success());
    eventually("the image", || on_b.join("other/old.iso").exists());
    let (found, ended) = reader.go_on();
    ended.expect_well();
    same_bytes(&found, &pattern("old.iso", 300_000));
    eventually("the file in its place", || pool.join("iso/old.iso").exists());

    eventually_in(SWEPT, "one upload left", || staged(&pool).len() == 1);
    slow.end(&bytes[2 * MIB..]).expect_well();
    same(&on_b.join("linux/slow.iso"), &source);
    nothing_stays_staged(&pool);
    assert!(!on_b.join("linux/dead.iso").exists());
    assert_eq!(c.json(&url, &["scan"])["discovered"], 0);
}

/// A day, as logs write it.
fn date_of(day: &str) -> String {
    let output = std::process::Command::new("date").args(["-u", "-d", day, "+%F"]).output();
    String::from_utf8(output.expect("date runs").stdout).expect("text").trim().to_owned()
}

#[test]
fn agents_that_swap_their_addresses_are_read_as_before() {
    let world = World::new();
    let network = Network::new(&world);
    let [catalog, one, two, c] = ["catalog", "one", "two", "c"].map(|name| network.host(name));
    let pools = [world.pool("alpha", &["a.iso"]), world.pool("beta", &["b.iso"])];
    for (pool, name) in pools.iter().zip(["long-a.iso", "long-b.iso"]) {
        write_image(pool, name, &pattern(name, LONG));
    }
    let (_catalog, url) = catalog.catalog();
    let agents =
        [one.agent_named("a", &url, &[&pools[0]]), two.agent_named("b", &url, &[&pools[1]])];
    let (_mount, on_c) = c.mount(&url);
    eventually("the images", || walk(&on_c.join("other")).len() == 4);
    let [long_a, long_b] = ["long-a.iso", "long-b.iso"]
        .map(|name| Reader::begin(&on_c.join("other").join(name), 16, UPLOAD_SECONDS));
    for agent in agents {
        agent.kill();
    }
    let _agents =
        [two.agent_named("a", &url, &[&pools[0]]), one.agent_named("b", &url, &[&pools[1]])];
    for (reader, name) in [(long_a, "long-a.iso"), (long_b, "long-b.iso")] {
        let (found, ended) = reader.go_on();
        ended.expect_well();
        same_bytes(&found, &pattern(name, LONG));
    }
    same(&on_c.join("other/a.iso"), &pools[0].join("iso/a.iso"));
    same(&on_c.join("other/b.iso"), &pools[1].join("iso/b.iso"));
    all_scanned(&c, &url, 2);
    let (source, _) = source(&world, MIB);
    for (pool, name) in pools.iter().zip(["alpha", "beta"]) {
        let target = format!("/linux/{name}.iso");
        let put = ["--server", &url, "put", "--pool", name, text(&source), &target];
        assert!(c.run(&put).status.success(), "{name}");
        eventually("the file in its pool", || pool.join(format!("iso/{name}.iso")).exists());
        same(&on_c.join(&target[1..]), &source);
    }
}
