//! What is removed, and had back.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use libc::ENOENT;

use crate::harness::{World, errno, eventually, pattern, same_bytes, write_image};

#[test]
fn deleting_can_be_undone() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso"]);
    let (_up, url, mount) = world.up(&[&pool]);
    let path = mount.join("other/a.iso");
    let open = File::open(&path).expect("opened");
    fs::remove_file(&path).expect("removed");
    assert_eq!(errno(fs::metadata(&path)), ENOENT);
    eventually("it has left its place", || !pool.join("iso/a.iso").exists());
    let mut bytes = vec![0; 300_000];
    open.read_exact_at(&mut bytes, 0).expect("whoever has it open reads on");
    same_bytes(&bytes, &pattern("a.iso", 300_000));
    assert_eq!(open.metadata().expect("attributes").nlink(), 0);
    // Its file brings nothing back.
    assert_eq!(world.json(&url, &["scan"])["discovered"], 0);
    let trashed = world.json(&url, &["trash", "ls"]);
    let id = trashed["id"].as_str().expect("an id").to_owned();
    assert_eq!(trashed["paths"][0], "/other/a.iso");
    let ino = open.metadata().expect("attributes").ino();

    write_image(&pool, "x/a.iso", b"taken meanwhile");
    world.json(&url, &["scan"]);
    fs::rename(mount.join("x/a.iso"), &path).expect("moved");
    assert!(world.run(&["--server", &url, "trash", "restore", &id]).status.success());
    let restored = mount.join("other/a.restored.iso");
    eventually("it is back", || fs::read(&restored).is_ok_and(|it| it == bytes));
    assert_eq!(fs::metadata(&restored).expect("there").ino(), ino);
    eventually("on disk, too", || pool.join("iso/a.iso").exists());
    assert!(world.run(&["--server", &url, "trash", "ls"]).stdout.len() < 80, "the trash is empty");
}
