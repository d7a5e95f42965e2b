//! What the bytes of an image say, from the pool to the shell.

use std::fs;

use crate::harness::{World, text, write_image};

#[test]
fn what_the_bytes_say_is_shown_wherever_they_came_from() {
    let world = World::new();
    let pool = world.make_dir("isos");
    let ipxe = fs::read("/usr/lib/ipxe/ipxe.iso").expect("Debian's ipxe is installed");
    write_image(&pool, "ipxe.iso", &ipxe);
    write_image(&pool, "cut.iso", &ipxe[..1_000_000]);
    let mut hostile = ipxe.clone();
    // The volume identifier of the primary descriptor (ECMA-119 §8.4.7).
    hostile[16 * 2048 + 40..][..10].copy_from_slice(b"a\x1b[2J\nId 7");
    write_image(&pool, "hostile.iso", &hostile);
    write_image(&pool, "disk.iso", b"QFI\xfb\0\0\0\x03");
    let (_up, url, mount) = world.up(&[&pool]);

    let info = |path: &str| world.json(&url, &["info", path]);
    let problem = |path: &str| info(path)["facts"]["problem"].clone();
    let sound = info("/other/ipxe.iso");
    assert_eq!(sound["facts"]["problem"], serde_json::Value::Null, "{sound}");
    assert_eq!(sound["facts"]["volume_label"], "ISOIMAGE");
    assert_eq!(sound["facts"]["volume_size_bytes"], 1_730_560);
    assert_eq!(sound["facts"]["boots_bios"], true);
    assert_eq!(
        problem("/other/cut.iso"),
        "truncated: 1730560 bytes are declared, 1000000 are there"
    );
    assert_eq!(info("/other/disk.iso")["format"], "qcow2");
    assert_eq!(problem("/other/disk.iso"), "called .iso, but is a qcow2 disk image");

    let shown = world.run(&["--server", &url, "info", "/other/hostile.iso"]).stdout;
    let shown = String::from_utf8(shown).expect("text");
    assert!(shown.contains("Volume label  a\\u{1b}[2J\\nId 7"), "{shown}");
    assert_eq!(shown.lines().filter(|line| line.starts_with("Id ")).count(), 1, "{shown}");

    // Stored through the mount, and deleted: the same is known of it.
    fs::copy("/usr/lib/ipxe/ipxe.iso", mount.join("linux/ipxe.iso")).expect("stored");
    assert_eq!(info(text(&mount.join("linux/ipxe.iso")))["facts"], sound["facts"]);
    fs::remove_file(mount.join("linux/ipxe.iso")).expect("removed");
    let restored = world.run(&["--server", &url, "trash", "restore", "/linux/ipxe.iso"]);
    assert!(restored.status.success(), "{restored:?}");
    assert_eq!(info("/linux/ipxe.iso")["facts"], sound["facts"]);
}
