//! Parts that stop for a while and go on as if nothing had been: no close is a lie.

use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{HEALED, LONG, MIB, all_scanned};
use crate::harness::hosts::Network;
use crate::harness::programs::{Copy, Ended};
use crate::harness::storing::{
    UPLOAD_SECONDS, nothing_stays_staged, source, staged_bytes, told_the_truth,
};
use crate::harness::{Part, World, eventually, eventually_in};

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

/// Its connection stays, so only its silence tells.
#[test]
fn an_agent_that_says_nothing_for_five_seconds_is_taken_for_gone() {
    let world = World::new();
    let network = Network::new(&world);
    let [catalog, a] = ["catalog", "a"].map(|name| network.host(name));
    let pool = world.pool("isos", &[]);
    let (_catalog, url) = catalog.catalog();
    let agent = a.agent(&url, &[&pool]);
    all_scanned(&catalog, &url, 1);
    let state = || {
        catalog.json(&url, &["status"])["volumes"][0]["state"].as_str().unwrap_or("?").to_owned()
    };
    agent.signal(Signal::STOP);
    let began = Instant::now();
    eventually_in(HEALED, "offline", || state() == "offline");
    let took = began.elapsed();
    agent.signal(Signal::CONT);
    assert!(took < Duration::from_secs(10), "{took:?}");
}
