//! Several hosts: they store, read and delete each other's images, and move.

mod clocks;
mod lost_packets;
mod stopped_parts;
mod volumes;

use std::time::Duration;

use crate::harness::hosts::{Host, Network};
use crate::harness::programs::{Reader, within};
use crate::harness::storing::{SECONDS, UPLOAD_SECONDS, copies, same, source};
use crate::harness::{
    World, eventually, eventually_in, pattern, same_bytes, text, walk, write_image,
};

const MIB: usize = 1 << 20;
/// More than is ever under way between two hosts, in all buffers together.
const LONG: usize = 48 * MIB;
/// Parts that lost one another have met again by then.
const HEALED: Duration = Duration::from_secs(30);

fn all_scanned(host: &Host<'_>, url: &str, volumes: usize) {
    eventually("the volumes", || host.json(url, &["scan"])["volumes_scanned"] == volumes);
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
        eventually("the image on the mount", || on_c.join(&target[1..]).exists());
        same(&on_c.join(&target[1..]), &source);
    }
}
