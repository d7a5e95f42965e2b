//! Images that lie on the reader's own host.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use libc::{ESTALE, ETXTBSY};

use crate::harness::{World, errno, eventually, holds, pattern, same_bytes};
use crate::local::{passes_through, reads};

#[test]
fn an_image_of_this_host_is_read_from_its_file() {
    const LEN: usize = 300_000;
    let world = World::new();
    let pool = world.pool("isos", &["a.iso"]);
    let (up, _, mount) = world.up(&[&pool]);
    let image = mount.join("other/a.iso");
    passes_through(&mount, &image);
    holds(&image, &pattern("a.iso", LEN));
    assert_eq!(reads(&mount)["bytes_from_hosts"], 0);

    let open = File::open(&image).expect("opened");
    assert_eq!(errno(File::options().write(true).open(&image)), ETXTBSY);
    let ino = open.metadata().expect("attributes").ino();
    // Replaced by a rename, it is read on by who has it open; nobody finds other bytes under its
    // number.
    let (file, part) = (pool.join("iso/a.iso"), pool.join("iso/a.part"));
    fs::write(&part, pattern("new", LEN)).expect("written");
    fs::rename(&part, &file).expect("replaced");
    let mut all = vec![0; LEN];
    open.read_exact_at(&mut all, 0).expect("read on");
    same_bytes(&all, &pattern("a.iso", LEN));
    eventually("the new image", || {
        let opened = File::open(&image).and_then(|it| Ok((it.metadata()?.ino(), it)));
        let Ok((found, opened)) = opened else { return false };
        match opened.read_exact_at(&mut all, 0) {
            Ok(()) if found == ino => same_bytes(&all, &pattern("a.iso", LEN)),
            Ok(()) => same_bytes(&all, &pattern("new", LEN)),
            Err(error) => assert_eq!(error.raw_os_error(), Some(ESTALE)),
        }
        found != ino
    });

    // Whoever has it open needs no part of the product any more.
    up.kill();
    open.read_exact_at(&mut all, 0).expect("read on");
    same_bytes(&all, &pattern("a.iso", LEN));
}
