//! Hosts whose packets get lost, silently: whoever needs them is told so in time, everybody else
//! notices nothing, and all is well when they are back.

use std::thread;
use std::time::{Duration, Instant};

use super::{HEALED, LONG, MIB, all_scanned};
use crate::harness::hosts::Network;
use crate::harness::programs::{Copy, Reader, within};
use crate::harness::storing::{
    SECONDS, UPLOAD_SECONDS, copies, nothing_stays_staged, same, source, staged_bytes,
};
use crate::harness::{
    World, eventually, eventually_in, pattern, same_bytes, text, walk, write_image,
};

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

    // Once the catalogue misses it too, files go to the other one; the name is free.
    eventually_in(HEALED, "the file stored elsewhere", || {
        within(SECONDS, &["cp", text(&source), text(&on_c.join("linux/lost.iso"))]).well()
    });
    let is_the_second = || {
        same(&mounts[here].1.join("linux/lost.iso"), &source);
        eventually("it in its place", || pools[here].join("iso/lost.iso").exists());
        assert_eq!(walk(&pools[gone].join("iso")).len(), 0);
    };
    is_the_second();

    gone_host.reconnect();
    nothing_stays_staged(&pools[gone]);
    eventually_in(HEALED, "both volumes", || c.json(&url, &["scan"])["volumes_scanned"] == 2);
    assert_eq!(c.json(&url, &["scan"])["discovered"], 0);
    is_the_second();
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
