//! Writers and readers of one image: what is passed through is the pool's own file, and no writer
//! gets at it.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};

use libc::{EPERM, EROFS, ETXTBSY};

use super::{LEN, all_closed, count, passes_through, reads};
use crate::harness::programs::within;
use crate::harness::{World, errno, eventually, holds, pattern, same_bytes, write_image};

/// A loop device has whole sectors.
const LEN_OF_SECTORS: usize = LEN / 512 * 512;

fn to_write() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options
}

#[test]
fn what_is_passed_through_is_not_opened_for_writing() {
    let world = World::new();
    let pool = world.pool("isos", &[]);
    write_image(&pool, "a.iso", &pattern("a", LEN));
    let (_up, _, mount) = world.up(&[&pool]);
    let image = mount.join("other/a.iso");
    passes_through(&mount, &image);
    let reader = File::open(&image).expect("opened");
    assert_eq!(count(&mount, "/open_passed_through"), 1, "{}", reads(&mount));
    let appending = OpenOptions::new().append(true).open(&image);
    for refused in [appending, File::create(&image)] {
        assert_eq!(errno(refused), ETXTBSY);
    }
    assert_eq!(errno(to_write().open(&image)), EROFS);
    // Which has them read who would rather write.
    let looped = format!(
        "loop=$(losetup --find --show {0}) && trap 'losetup -d $loop' EXIT && cmp -n {LEN_OF_SECTORS} $loop {1}",
        image.display(),
        pool.join("iso/a.iso").display()
    );
    within(60, &["bash", "-c", &looped]).expect_well();
    let mut some = [0; 16];
    reader.read_exact_at(&mut some, 0).expect("it reads on");
    assert_eq!(some, pattern("a", LEN)[..16]);
    drop(reader);
    // Nobody reads it: it may be opened, and is not changed in place.
    let writer = to_write().open(&image).expect("opened");
    assert_eq!(errno(writer.write_at(b"x", 0)), EPERM);
    drop(writer);
    holds(pool.join("iso/a.iso"), &pattern("a", LEN));
}

#[test]
fn a_writer_is_not_held_up_by_its_own_last_close() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso"]);
    let (_up, _, mount) = world.up(&[&pool]);
    let image = mount.join("other/a.iso");
    passes_through(&mount, &image);
    for _ in 0..50 {
        drop(File::open(&image).expect("opened for reading"));
        drop(to_write().open(&image).expect("opened for writing at once"));
    }
}

#[test]
fn a_reader_beside_an_open_writer_is_passed_through() {
    let world = World::new();
    let pool = world.pool("isos", &[]);
    write_image(&pool, "a.iso", &pattern("a", LEN));
    let (_up, _, mount) = world.up(&[&pool]);
    let image = mount.join("other/a.iso");
    passes_through(&mount, &image);
    let writer = to_write().open(&image).expect("opened");
    let before = count(&mount, "/opens_passed_through");
    holds(&image, &pattern("a", LEN));
    assert_eq!(count(&mount, "/opens_passed_through"), before + 1);
    assert_eq!(errno(writer.write_at(b"x", 0)), EPERM);
    let mut some = [0; 16];
    writer.read_exact_at(&mut some, 5).expect("a writer may read");
    assert_eq!(some, pattern("a", LEN)[5..21]);
}

#[test]
fn an_image_is_passed_through_once_it_is_stored() {
    let world = World::new();
    let pool = world.pool("isos", &[]);
    let (_up, _, mount) = world.up(&[&pool]);
    let image = mount.join("linux/new.iso");
    let bytes = pattern("new", LEN);
    let mut writer = File::create(&image).expect("made");
    writer.write_all(&bytes[..1 << 20]).expect("written");
    let looking = File::open(&image).expect("opened while it is being written");
    let mut some = [0; 16];
    looking.read_exact_at(&mut some, 100).expect("read back");
    assert_eq!(some, bytes[100..116]);
    writer.write_all(&bytes[1 << 20..]).expect("written");
    drop(writer);
    // One who looked on has it open still.
    passes_through(&mount, &image);
    holds(&image, &bytes);
    drop(looking);
    holds(&image, &bytes);
}

#[test]
fn what_is_replaced_or_removed_is_read_on() {
    let world = World::new();
    let pool = world.pool("isos", &[]);
    for name in ["a.iso", "b.iso"] {
        write_image(&pool, name, &pattern(name, LEN));
    }
    let (_up, _, mount) = world.up(&[&pool]);
    let [a, b] = ["a.iso", "b.iso"].map(|name| mount.join("other").join(name));
    for image in [&a, &b] {
        passes_through(&mount, image);
    }
    let readers = [&a, &b].map(|image| File::open(image).expect("opened"));
    let before = readers[0].metadata().expect("attributes").ino();
    let new = mount.join("other/new.iso");
    fs::write(&new, pattern("new", LEN)).expect("stored");
    fs::rename(&new, &a).expect("it takes the place");
    fs::remove_file(&b).expect("removed");
    for (reader, name) in readers.iter().zip(["a.iso", "b.iso"]) {
        let mut all = vec![0; LEN];
        reader.read_exact_at(&mut all, 0).expect("read on");
        same_bytes(&all, &pattern(name, LEN));
    }
    holds(&a, &pattern("new", LEN));
    assert_ne!(fs::metadata(&a).expect("there").ino(), before);
    drop(readers);
    all_closed(&mount);
    eventually("nothing of it is held", || count(&mount, "/open_passed_through") == 0);
}
