//! What lies in a pool and is no image, or not one alone: counted, explained, and let be.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use serde_json::Value;

use super::{Site, say, shell};
use crate::harness::{World, eventually, walk, write_image};

/// Everything that is not taken, and the one file that is.
fn odd_pool(world: &World) -> std::path::PathBuf {
    let pool = world.pool("isos", &["good.iso", "linked.iso"]);
    let script = r#"cd "$1/iso"; ln linked.iso second.iso; ln -s good.iso link.iso
        ln -s nothing dangling.iso; mkfifo fifo.iso; mknod device.iso c 1 3; mkdir dir.iso
        : >notes.txt; : >.hidden.iso"#;
    shell(script, &pool, &pool);
    UnixListener::bind(pool.join("iso/socket.iso")).expect("bound");
    let bad = Path::new(std::ffi::OsStr::from_bytes(b"bad\xff.iso"));
    fs::write(pool.join("iso").join(bad), "bad").expect("written");
    fs::write(pool.join("iso/tab\there.iso"), "bad").expect("written");
    pool
}

/// Each with the beginning of its reason.
const NOT_TAKEN: [(&str, &str); 9] = [
    ("iso/linked.iso", "has 2 hard links"),
    ("iso/second.iso", "has 2 hard links"),
    ("iso/link.iso", "is a symbolic link"),
    ("iso/dangling.iso", "is a symbolic link"),
    ("iso/fifo.iso", "is not a regular file"),
    ("iso/device.iso", "is not a regular file"),
    ("iso/socket.iso", "is not a regular file"),
    ("iso/bad\u{fffd}.iso", "its name is not UTF-8"),
    ("iso/tab\there.iso", ""),
];

#[track_caller]
fn explains(told: &Value) {
    let told = told.as_array().expect("a list");
    for (path, reason) in NOT_TAKEN {
        let found = told.iter().find(|it| it["path"] == path);
        let found = found.unwrap_or_else(|| panic!("{path}: {told:?}"));
        assert!(found["reason"].as_str().is_some_and(|it| it.starts_with(reason)), "{found}");
    }
    assert_eq!(told.len(), NOT_TAKEN.len(), "{told:?}");
}

#[test]
fn what_is_not_taken_is_explained_before_and_after() {
    let world = World::new();
    let pool = odd_pool(&world);
    let dir = pool.to_str().expect("text");
    let (_catalog, url) = world.catalog();
    let _agent = world.agent("a", &url, &[]);
    let connected = || world.json(&url, &["status"])["nodes"][0]["connected"] == true;
    eventually("the agent", connected);
    let before = walk(&pool);
    let would = world.json(&url, &["pool", "add", "isos", dir, "--dry-run"]);
    assert_eq!((&would["images"], &would["size_bytes"]), (&1.into(), &300_000.into()), "{would}");
    explains(&would["not_taken"]);
    let told = say(&world, &url, &["pool", "add", "isos", dir, "--dry-run"]);
    assert!(told.out.contains("1 images, "), "{told:?}");
    assert!(told.error.contains("would not be taken: iso/fifo.iso: is not a regular file"));
    assert_eq!(walk(&pool), before, "looking changes nothing");
    assert_eq!(world.json(&url, &["status"])["volumes"], serde_json::json!([]));

    say(&world, &url, &["pool", "add", "isos", dir]).well();
    let scanned = || world.json(&url, &["scan"])["volumes_scanned"] == 1;
    eventually("a scan", scanned);
    let result = &world.json(&url, &["scan"])["volumes"][0]["result"];
    explains(&result["problems"]);
    assert_eq!(result["files_seen"], 1);
    let told = say(&world, &url, &["scan", "isos"]);
    let line = "not taken: iso/device.iso: is not a regular file";
    assert!(told.out.contains("No new ISOs found") && told.error.contains(line), "{told:?}");
    assert_eq!(world.json(&url, &["status"])["images"], 1);
    let all = walk(&pool.join("iso"));
    assert_eq!(all.len(), 13, "nothing was moved or deleted: {all:?}");
}

#[test]
fn a_linked_file_is_taken_once_it_is_alone_and_a_known_one_stays_when_it_is_linked() {
    let world = World::new();
    let site = Site::new(&world, &["known.iso", "linked.iso"]);
    let before = site.identity("/other/known.iso");
    shell(r#"cd "$1/iso"; ln known.iso other.iso; ln linked.iso "$1/x""#, &site.pool, &site.pool);
    write_image(&site.pool, "mark.iso", b"mark");
    eventually("another file", || site.in_any("other/mark.iso"));
    assert_eq!(site.identity("/other/known.iso"), before);
    assert!(site.in_none("other/other.iso"), "its second name is not taken");
    shell(r#"cd "$1/iso"; rm known.iso "$1/x""#, &site.pool, &site.pool);
    eventually("what it is called now", || site.in_any("other/other.iso"));
    assert_eq!(site.identity("/other/other.iso"), before);
}
