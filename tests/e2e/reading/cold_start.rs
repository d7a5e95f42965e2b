//! Mounts that start from their snapshot while the catalogue is away: images of other hosts and of
//! this one are read, and what comes over the network is checked.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{LONG, MIB, hashed};
use crate::harness::hosts::Network;
use crate::harness::programs::within;
use crate::harness::{World, eventually, holds, pattern, text, write_image};
use crate::local::{passes_through, reads};

/// Until there is something to start from.
fn recorded(world: &World) {
    eventually("a snapshot", || {
        let listed = std::fs::read_dir(world.path("state/mount")).into_iter().flatten().flatten();
        listed.map(|it| it.path()).any(|it| it.extension() == Some("feed".as_ref()))
    });
}

fn count(mount: &Path, which: &str) -> u64 {
    reads(mount)[which].as_u64().expect("a number")
}

#[test]
fn images_of_other_hosts_are_read_and_checked() {
    let world = World::new();
    let network = Network::new(&world);
    let [catalog, a, c] = ["catalog", "a", "c"].map(|name| network.host(name));
    let pool = world.pool("isos", &[]);
    let names = ["sound.iso", "wrong.iso"];
    for name in names {
        write_image(&pool, name, &pattern(name, LONG));
    }
    let (catalogue, url) = catalog.catalog();
    let _agent = a.agent(&url, &[&pool]);
    hashed(&c, &url, names.len());
    let begun = c.mount(&url);
    eventually("both images", || names.iter().all(|it| begun.1.join("other").join(it).is_file()));
    recorded(&world);
    assert_eq!(begun.0.stop(), 0);
    catalogue.kill();
    let (_mount, path) = c.mount(&url);
    holds(path.join("other/sound.iso"), &pattern("sound.iso", LONG));
    assert_eq!(count(&path, "wrong_copies"), 0);
    // One byte, and nobody is there to tell: the snapshot has the hash that it does not agree with.
    let file = pool.join("iso/wrong.iso");
    let time = std::fs::metadata(&file).and_then(|it| it.modified()).expect("there");
    let open = File::options().write(true).open(&file).expect("opened");
    let at = 3 * MIB as u64;
    open.write_all_at(&[!pattern("wrong.iso", LONG)[3 * MIB]], at).expect("changed");
    open.set_modified(time).expect("as if nothing had happened");
    drop(open);
    within(60, &["cat", text(&path.join("other/wrong.iso"))])
        .expect_failure(&["Input/output error"]);
    assert!(count(&path, "wrong_copies") > 0, "{}", reads(&path));
}

#[test]
fn an_image_of_this_host_is_passed_through() {
    let world = World::new();
    let network = Network::new(&world);
    let [catalog, c] = ["catalog", "c"].map(|name| network.host(name));
    let pool = world.pool("isos", &[]);
    write_image(&pool, "a.iso", &pattern("a.iso", LONG));
    let (catalogue, url) = catalog.catalog();
    let _agent = c.agent(&url, &[&pool]);
    hashed(&c, &url, 1);
    let begun = c.mount(&url);
    eventually("the image", || begun.1.join("other/a.iso").is_file());
    recorded(&world);
    assert_eq!(begun.0.stop(), 0);
    catalogue.kill();
    let (_mount, path) = c.mount(&url);
    let image = path.join("other/a.iso");
    passes_through(&path, &image);
    holds(&image, &pattern("a.iso", LONG));
    assert_eq!(count(&path, "bytes_from_hosts"), 0, "{}", reads(&path));
}
