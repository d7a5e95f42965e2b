//! Hosts with wrong clocks: clocks describe, and decide nothing.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::{HEALED, MIB, all_scanned};
use crate::harness::hosts::Network;
use crate::harness::programs::{Copy, Reader, within};
use crate::harness::storing::{
    SECONDS, UPLOAD_SECONDS, copies, nothing_stays_staged, same, source, staged, staged_bytes,
};
use crate::harness::{World, eventually, eventually_in, pattern, same_bytes, text};

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
    let (_mount_c, on_c) = c.mount(&url);
    all_scanned(&c, &url, 1);
    let log = world.log("agent-a.log");
    let is_tomorrow = days.iter().chain([&tomorrow()]).any(|day| log.contains(&**day));
    assert!(is_tomorrow, "the agent's clock is a day ahead: {log}");

    same(&on_b.join("other/old.iso"), &pool.join("iso/old.iso"));
    let (source, bytes) = source(&world, 4 * MIB);
    copies(&source, &on_b.join("linux/new.iso"));
    eventually("the image", || on_c.join("linux/new.iso").exists());
    same(&on_c.join("linux/new.iso"), &source);

    // One writer takes longer than a lease lasts; the other's host vanishes.
    let mut slow = Copy::begin(&on_b.join("linux/slow.iso"), UPLOAD_SECONDS);
    slow.feed(&bytes[..2 * MIB]);
    eventually("its bytes", || staged_bytes(&pool) >= MIB);
    let mut lost = Copy::begin(&on_c.join("linux/lost.iso"), UPLOAD_SECONDS);
    lost.feed(&bytes[..2 * MIB]);
    eventually("both", || staged(&pool).len() == 2);
    c.cut_off();
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

    eventually_in(HEALED, "one upload left", || staged(&pool).len() == 1);
    slow.end(&bytes[2 * MIB..]).expect_well();
    same(&on_b.join("linux/slow.iso"), &source);
    nothing_stays_staged(&pool);
    c.reconnect();
    assert!(!lost.end(&[]).well(), "its lease had ended");
    assert!(!on_b.join("linux/lost.iso").exists());
    eventually_in(HEALED, "the mount to follow again", || on_c.join("linux/slow.iso").exists());
    copies(&source, &on_c.join("linux/lost.iso"));
    assert_eq!(c.json(&url, &["scan"])["discovered"], 0);
}

#[test]
fn the_trash_is_emptied_although_the_clock_was_set_back() {
    let world = World::new();
    let network = Network::new(&world);
    let [right, a] = ["right", "a"].map(|name| network.host(name));
    let back = network.host_with_clock("back", "-1d");
    let pool = world.pool("isos", &["old.iso"]);
    let (catalog, url) = right.catalog();
    let agent = a.agent(&url, &[&pool]);
    all_scanned(&a, &url, 1);
    assert!(a.run(&["--server", &url, "rm", "/other/old.iso"]).status.success());
    catalog.kill();
    drop(agent);
    // The same state.
    let (_catalog, url) = back.catalog();
    let _agent = a.agent(&url, &[&pool]);
    all_scanned(&a, &url, 1);
    eventually_in(HEALED, "an empty trash", || a.json(&url, &["trash", "empty"])["images"] == 1);
}

/// A day, as logs write it.
fn date_of(day: &str) -> String {
    let output = Command::new("date").args(["-u", "-d", day, "+%F"]).output();
    String::from_utf8(output.expect("date runs").stdout).expect("text").trim().to_owned()
}
