//! Parts, pools and files that go away, and what is read meanwhile.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use libc::{EHOSTDOWN, EIO, EROFS, ESTALE, ETIMEDOUT};
use rustix::process::Signal;

use crate::harness::{
    SOON, World, errno, eventually, holds, pattern, same_bytes, walk, write_image,
};
use crate::hypervisors::libvirt::drop_pages;

#[test]
fn without_the_catalogue_reading_goes_on() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso"]);
    let (catalog, url) = world.catalog();
    let _agent = world.agent("a", &url, &[&pool]);
    let (part, mount) = world.mount("mnt", &url);
    eventually("the image", || mount.join("other/a.iso").is_file());
    catalog.kill();
    assert_eq!(walk(&mount), ["linux/", "other/", "other/a.iso", "windows/"]);
    holds(mount.join("other/a.iso"), &pattern("a.iso", 300_000));
    let begin = Instant::now();
    let refused = errno(fs::create_dir(mount.join("x")));
    assert!([EHOSTDOWN, ETIMEDOUT].contains(&refused), "{refused}");
    assert!(begin.elapsed() < SOON, "its deadline is 2 s: {:?}", begin.elapsed());
    // Nor does a mount that starts now need it.
    assert_eq!(part.stop(), 0);
    let (_mount, mount) = world.mount("mnt", &url);
    assert_eq!(walk(&mount), ["linux/", "other/", "other/a.iso", "windows/"]);
    holds(mount.join("other/a.iso"), &pattern("a.iso", 300_000));
    assert_eq!(errno(fs::create_dir(mount.join("x"))), EROFS);
    let (_catalog, _) = world.catalog_on(url.trim_start_matches("http://"));
    eventually("changes work again", || fs::create_dir(mount.join("x")).is_ok());
}

#[test]
fn a_pool_that_loses_its_marker_deletes_nothing() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso"]);
    let (part, url, mount) = world.up(&[&pool]);
    // As an unmounted disk looks: the directory is there, and empty.
    let away = world.path("away");
    fs::rename(&pool, &away).expect("moved away");
    fs::create_dir(&pool).expect("made");
    eventually("it is offline", || world.json(&url, &["pool", "ls"])["state"] == "offline");
    assert_ne!(world.json(&url, &["scan"])["volumes_scanned"], 1);
    assert!(mount.join("other/a.iso").is_file());
    // Nor when everything starts anew.
    assert_eq!(part.stop(), 0);
    let part = world.start_up(&[&pool], &mount);
    let url = part.wait_for("catalogue");
    part.wait_for("mounted");
    eventually("it is offline", || world.json(&url, &["pool", "ls"])["state"] == "offline");
    let reason = world.json(&url, &["pool", "ls"])["reason"].to_string();
    assert!(reason.contains("is the disk mounted?"), "{reason}");
    assert!(mount.join("other/a.iso").is_file());
    assert!(!pool.join(".isotope").exists(), "never marked anew");
    // The disk is back.
    fs::remove_dir(&pool).expect("removed");
    fs::rename(&away, &pool).expect("moved back");
    eventually("it reads again", || {
        fs::read(mount.join("other/a.iso")).is_ok_and(|it| it == pattern("a.iso", 300_000))
    });
}

#[test]
fn a_file_replaced_in_its_pool_is_a_new_image() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso"]);
    let (_catalog, url) = world.catalog();
    // Of another host's name than the mount's.
    let _agent = world.agent("a", &url, &[&pool]);
    let (_mount, mount) = world.mount("mnt", &url);
    eventually("the image", || mount.join("other/a.iso").is_file());
    fs::create_dir(mount.join("kept")).expect("made");
    let path = mount.join("kept/mine.iso");
    fs::rename(mount.join("other/a.iso"), &path).expect("moved");
    let open = File::open(&path).expect("opened");
    let mut head = [0; 16];
    open.read_exact_at(&mut head, 0).expect("read");
    assert_eq!(head, pattern("a.iso", 300_000)[..16]);
    // Of the same size, as the worst case.
    write_image(&pool, "a.iso", &pattern("other", 300_000));
    // Before the scan: never the new bytes under the old inode.
    let stale = open.read_exact_at(&mut [0; 4096], 262_144);
    assert!([ESTALE, EIO].contains(&errno(stale)));
    world.json(&url, &["scan"]);
    eventually("the new bytes under the old name", || {
        fs::read(&path).is_ok_and(|bytes| bytes == pattern("other", 300_000))
    });
    assert_eq!(errno(open.read_exact_at(&mut [0; 4096], 266_240)), ESTALE);
    eventually("no link to it", || open.metadata().is_ok_and(|meta| meta.nlink() == 0));
    let before = open.metadata().expect("its attributes go on");
    assert_ne!(before.ino(), fs::metadata(&path).expect("there").ino());
}

#[test]
fn bytes_from_the_network_are_those_of_the_image() {
    let world = World::new();
    let (group, size) = (16 << 10, 100_000);
    let pool = world.pool("isos", &[]);
    write_image(&pool, "a.iso", &pattern("a.iso", size));
    let (_catalog, url) = world.catalog();
    let _agent = world.agent("elsewhere", &url, &[&pool]);
    let (_mount, mount) = world.mount("mnt", &url);
    let image = mount.join("other/a.iso");
    eventually("the image", || image.is_file());
    eventually("its hash", || world.json(&url, &["info", "/other/a.iso"])["sha256"].is_string());
    // A bit in the third group, with the file's times as they were.
    let file = File::options().read(true).write(true).open(pool.join("iso/a.iso")).expect("opened");
    let modified = file.metadata().and_then(|it| it.modified()).expect("a time");
    file.write_all_at(&[pattern("a.iso", size)[2 * group + 5] ^ 1], 2 * group as u64 + 5)
        .expect("written");
    file.set_modified(modified).expect("set back");
    let found = File::open(&image).expect("opened");
    rustix::fs::fadvise(&found, 0, None, rustix::fs::Advice::Random).expect("advised");
    let mut bytes = vec![0; 4096];
    found.read_exact_at(&mut bytes, 0).expect("a sound group");
    same_bytes(&bytes, &pattern("a.iso", size)[..4096]);
    let begin = Instant::now();
    assert_eq!(errno(found.read_exact_at(&mut bytes, 2 * group as u64)), EIO);
    assert!(begin.elapsed() < Duration::from_secs(8), "at once: {:?}", begin.elapsed());
    eventually("the rotten copy to be known", || {
        world.json(&url, &["info", "/other/a.iso"])["replicas"][0]["rotten"] == true
    });
    // Nothing is waited for, and nothing of it is read any more.
    let begin = Instant::now();
    assert_eq!(errno(found.read_exact_at(&mut bytes, 4 * group as u64)), EIO);
    assert!(begin.elapsed() < Duration::from_secs(8), "at once: {:?}", begin.elapsed());
}

#[test]
fn a_read_ends_within_its_deadline() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso"]);
    let (_catalog, url) = world.catalog();
    let agent = world.agent("a", &url, &[&pool]);
    let (_mount, mount) = world.mount("mnt", &url);
    let image = mount.join("other/a.iso");
    eventually("the image", || image.is_file());
    agent.signal(Signal::STOP);
    let begin = Instant::now();
    assert_eq!(errno(fs::read(&image)), EIO);
    // The deadline is 10 s; the margin is for the machine.
    assert!(begin.elapsed() < Duration::from_secs(40), "{:?}", begin.elapsed());
    assert_eq!(walk(&mount).len(), 4, "names and attributes need no host");
    agent.signal(Signal::CONT);
    eventually("it reads again", || fs::read(&image).is_ok());
    // From now on its beginning is kept: what hypervisors look at needs no host.
    agent.kill();
    let mut header = [0; 0x8200];
    eventually("its beginning is read", || {
        drop_pages(&world, &mount.join("other"));
        File::open(&image).and_then(|it| it.read_exact_at(&mut header, 0)).is_ok()
    });
    assert_eq!(header[..], pattern("a.iso", 300_000)[..header.len()]);
    assert_eq!(errno(fs::read(&image)), EIO, "the rest of it does");
}
