//! Volumes that are full, become read-only, or fail.

use std::fs;
use std::path::Path;

use super::{HEALED, MIB, all_scanned};
use crate::harness::hosts::Network;
use crate::harness::programs::{Copy, within};
use crate::harness::storing::{
    SECONDS, UPLOAD_SECONDS, copies, nothing_stays_staged, same, source, staged, staged_bytes,
    told_the_truth,
};
use crate::harness::volumes::{Access, fail, remount};
use crate::harness::{World, eventually, eventually_in, pattern, text, walk, write_image};

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
    let delete = || within(SECONDS, &["rm", text(&on_a.join("other/deleted.iso"))]);
    delete().expect_failure(&["Read-only file system"]);
    assert!(on_b.join("other/deleted.iso").exists());

    remount(&small, Access::ReadWrite);
    eventually_in(HEALED, "files are taken again", || put("again.iso").status.success());
    delete().expect_well();
    eventually_in(HEALED, "the deleted file goes", || !small.join("iso/deleted.iso").exists());
    eventually("the image", || on_b.join("linux/again.iso").exists());
    same(&on_b.join("linux/again.iso"), &source);
    nothing_stays_staged(&small);
}

#[test]
fn a_volume_that_fails_while_it_stores_a_file_fails_that_file_alone() {
    let world = World::new();
    let network = Network::new(&world);
    let [catalog, a, b] = ["catalog", "a", "b"].map(|name| network.host(name));
    let (small, big) = (world.small_pool("small", 24), world.pool("big", &[]));
    write_image(&small, "kept.iso", &pattern("kept.iso", 3 * MIB));
    let (_catalog, url) = catalog.catalog();
    let _agents = [a.agent(&url, &[&small]), b.agent(&url, &[&big])];
    let (_mount_a, on_a) = a.mount(&url);
    let (_mount_b, on_b) = b.mount(&url);
    all_scanned(&a, &url, 2);
    let (source, bytes) = source(&world, 8 * MIB);

    let paths = [&on_a, &on_b].map(|mount| mount.join("linux/cut.iso"));
    let mut copy = Copy::begin(&paths[0], UPLOAD_SECONDS);
    copy.feed(&bytes[..4 * MIB]);
    eventually("its bytes", || staged_bytes(&small) >= 3 * MIB);
    fail(&small);
    let ended = copy.end(&bytes[4 * MIB..]);
    ended.expect_failure(&["Read-only file system", "Input/output error"]);
    told_the_truth(&ended, &paths, &source);
    same(&on_b.join("other/kept.iso"), &small.join("iso/kept.iso"));
    copies(&source, &on_b.join("linux/cut.iso"));
    same(&on_b.join("linux/cut.iso"), &source);
    eventually("the file in its place", || big.join("iso/cut.iso").exists());
}

/// ext4 says then that it can be written to, whoever asks.
#[test]
fn files_go_elsewhere_once_a_disk_has_failed_and_refuses_writes() {
    let world = World::new();
    let network = Network::new(&world);
    let [catalog, a, b] = ["catalog", "a", "b"].map(|name| network.host(name));
    let (small, big) = (world.small_pool("small", 48), world.pool("big", &[]));
    let (_catalog, url) = catalog.catalog();
    let _agents = [a.agent(&url, &[&small]), b.agent(&url, &[&big])];
    let (_mount, on_a) = a.mount(&url);
    all_scanned(&a, &url, 2);
    let (source, bytes) = source(&world, 8 * MIB);
    let mut copy = Copy::begin(&on_a.join("linux/cut.iso"), UPLOAD_SECONDS);
    copy.feed(&bytes[..4 * MIB]);
    eventually("its bytes", || staged_bytes(&small) >= 3 * MIB);
    fail(&small);
    copy.end(&bytes[4 * MIB..]).expect_failure(&["Read-only file system"]);
    eventually_in(HEALED, "a file stored elsewhere", || {
        within(SECONDS, &["cp", text(&source), text(&on_a.join("linux/other.iso"))]).well()
    });
    eventually("the file in its place", || big.join("iso/other.iso").exists());
    same(&on_a.join("linux/other.iso"), &source);
}
