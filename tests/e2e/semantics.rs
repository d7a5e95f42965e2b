//! `docs/SEMANTICS.md`, heading by heading: each promise there has its test of the same name here.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

use libc::*;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::process::Signal;

use crate::harness::{SOON, World, errno, eventually, pattern, walk, write_image};

#[test]
fn names_are_utf8_without_control_characters() {
    let world = World::new();
    let (_up, _, mount) = world.up(&[]);
    for name in
        ["Ünïcode 文字.d", "UPPER", "upper", "e\u{301}", "\u{e9}", "a b", "...", &"x".repeat(255)]
    {
        fs::create_dir(mount.join(name)).expect(name);
    }
    let listed: BTreeSet<_> = walk(&mount).into_iter().collect();
    assert_eq!(listed.len(), 8 + 3, "case and normal forms stay distinct");
    for (name, expected) in [
        (&b"new\nline"[..], EINVAL),
        (b"esc\x1b[31m", EINVAL),
        (b"\xff\xfe", EILSEQ),
        ("x".repeat(256).as_bytes(), ENAMETOOLONG),
    ] {
        let path = mount.join(OsStr::from_bytes(name));
        assert_eq!(errno(fs::create_dir(&path)), expected, "{name:?}");
        assert_eq!(errno(fs::rename(mount.join("UPPER"), &path)), expected, "{name:?}");
        let looked = errno(fs::metadata(&path));
        assert_eq!(looked, if name.len() > 255 { ENAMETOOLONG } else { ENOENT });
    }
    assert_eq!(walk(&mount).len(), 11);
}

#[test]
fn folders_nest_five_deep() {
    let world = World::new();
    let pool = world.pool("isos", &["1/2/3/4/5/deep.iso", "1/2/3/4/5/6/7/deeper.iso"]);
    let (_up, _, mount) = world.up(&[&pool]);
    let five = mount.join("1/2/3/4/5");
    assert!(five.join("deep.iso").is_file());
    assert!(five.join("deeper.iso").is_file(), "the rest joins the last level");
    assert_eq!(errno(fs::create_dir(five.join("6"))), ENAMETOOLONG);
    // Counted for the deepest child of what is moved.
    fs::create_dir_all(mount.join("a/b")).expect("made");
    assert_eq!(errno(fs::rename(mount.join("a"), mount.join("1/2/3/4/a"))), ENAMETOOLONG);
    fs::rename(mount.join("a"), mount.join("1/2/3/a")).expect("its child is at the fifth");
    assert!(mount.join("1/2/3/a/b").is_dir());
}

#[test]
fn a_rename_moves_no_bytes() {
    let world = World::new();
    let pool = world.pool("isos", &["debian-12.iso"]);
    let (_up, _, mount) = world.up(&[&pool]);
    let on_disk = || {
        let meta = fs::metadata(pool.join("iso/debian-12.iso")).expect("where it was");
        (meta.ino(), meta.mtime_nsec(), meta.len())
    };
    let (before, from) = (on_disk(), mount.join("linux/debian-12.iso"));
    let number = fs::metadata(&from).expect("there").ino();
    let mut open = File::open(&from).expect("opened");
    fs::create_dir(mount.join("install")).expect("made");
    fs::rename(&from, mount.join("install/d.iso")).expect("moved");
    fs::rename(mount.join("install"), mount.join("linux/install")).expect("moved");
    let to = mount.join("linux/install/d.iso");
    assert_eq!(fs::metadata(&to).expect("there").ino(), number);
    assert_eq!(on_disk(), before);
    assert_eq!(errno(fs::metadata(&from)), ENOENT);
    assert_eq!(fs::read(&to).expect("read"), pattern("debian-12.iso", 300_000));
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut open, &mut bytes).expect("what was open reads on");
    assert_eq!(bytes, pattern("debian-12.iso", 300_000));
}

#[test]
fn a_rename_replaces_nothing_but_an_empty_folder() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso", "b.iso"]);
    let (_up, _, mount) = world.up(&[&pool]);
    let at = |name: &str| mount.join(name);
    for name in ["x", "empty", "full", "full/child"] {
        fs::create_dir(at(name)).expect("made");
    }
    for (from, to, expected) in [
        ("x", "full", ENOTEMPTY),
        ("x", "other/a.iso", ENOTDIR),
        ("other/a.iso", "x", EISDIR),
        ("other/a.iso", "other/b.iso", EPERM),
        ("full", "full/child/below", EINVAL),
        ("nothing", "x", ENOENT),
    ] {
        assert_eq!(errno(fs::rename(at(from), at(to))), expected, "{from} → {to}");
    }
    let no_replace = |from, to| {
        renameat_with(CWD, at(from), CWD, at(to), RenameFlags::NOREPLACE).map_err(io::Error::from)
    };
    assert_eq!(errno(no_replace("x", "empty")), EEXIST);
    assert_eq!(errno(no_replace("other/a.iso", "other/b.iso")), EEXIST);
    fs::rename(at("x"), at("empty")).expect("an empty folder gives way");
    assert!(!at("x").exists());
    fs::rename(at("empty"), at("empty")).expect("onto itself changes nothing");
    let exchange = renameat_with(CWD, at("empty"), CWD, at("full"), RenameFlags::EXCHANGE)
        .map_err(io::Error::from);
    assert_eq!(errno(exchange), EINVAL);
}

#[test]
fn images_are_read_only() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso"]);
    let (_up, _, mount) = world.up(&[&pool]);
    let image = mount.join("other/a.iso");
    assert_eq!(errno(File::create(mount.join("other/new.iso"))), EROFS);
    assert_eq!(errno(File::options().write(true).open(&image)), EPERM);
    assert_eq!(errno(File::options().append(true).open(&image)), EPERM);
    assert_eq!(errno(fs::remove_file(&image)), EPERM);
    assert_eq!(errno(fs::hard_link(&image, mount.join("other/b.iso"))), EPERM);
    assert_eq!(errno(std::os::unix::fs::symlink("a.iso", mount.join("other/l.iso"))), EPERM);
    assert_eq!(errno(fs::set_permissions(&image, Permissions::from_mode(0o600))), EPERM);
    assert_eq!(errno(std::os::unix::fs::chown(&image, Some(1), None)), EPERM);
    assert_eq!(fs::read(&image).expect("intact"), pattern("a.iso", 300_000));
    assert_eq!(walk(&mount), ["linux/", "other/", "other/a.iso", "windows/"]);
}

#[test]
fn a_listing_is_exact_while_others_change_it() {
    let world = World::new();
    let (_up, url, mount) = world.up(&[]);
    let (_second, second) = world.mount("second", &url);
    let stays: BTreeSet<String> = (0..600).map(|n| format!("stays-{n:03}")).collect();
    let folder = mount.join("many");
    fs::create_dir(&folder).expect("made");
    for name in &stays {
        fs::create_dir(folder.join(name)).expect("made");
    }
    let other = second.join("many");
    eventually("the second mount", || {
        fs::read_dir(&other).is_ok_and(|it| it.count() == stays.len())
    });
    // Names come and go through the other mount all the while.
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0.. {
                let path = other.join(format!("goes-{}", n % 20));
                if done.load(std::sync::atomic::Ordering::Relaxed) {
                    return;
                }
                let _ = fs::create_dir(&path);
                let _ = fs::rename(&path, other.join(format!("gone-{}", n % 20)));
                let _ = fs::remove_dir(other.join(format!("gone-{}", n % 20)));
            }
        });
        for _ in 0..20 {
            let mut met = BTreeSet::new();
            for entry in fs::read_dir(&folder).expect("a listing") {
                let name = entry.expect("an entry").file_name().into_string().expect("text");
                assert!(met.insert(name.clone()) || !stays.contains(&name), "{name} twice");
            }
            assert!(met.is_superset(&stays), "{:?} are missing", stays.difference(&met));
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn an_inode_number_is_one_content_for_ever() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso", "b.iso"]);
    let (_up, url, mount) = world.up(&[&pool]);
    let number = |name: &str| fs::metadata(mount.join(name)).expect("there").ino();
    let (a, b) = (number("other/a.iso"), number("other/b.iso"));
    fs::create_dir(mount.join("x")).expect("made");
    fs::rename(mount.join("other/a.iso"), mount.join("x/a.iso")).expect("moved");
    assert_eq!(number("x/a.iso"), a);
    write_image(&pool, "b.iso", b"other bytes");
    world.json(&url, &["scan"]);
    eventually("the new image", || number("other/b.iso") != b);
    let folder = number("x");
    fs::rename(mount.join("x/a.iso"), mount.join("other/a.iso")).expect("moved back");
    fs::remove_dir(mount.join("x")).expect("removed");
    fs::create_dir(mount.join("x")).expect("made anew");
    let used = [a, b, folder, number("other/b.iso")];
    assert!(!used.contains(&number("x")), "never reused");
}

#[test]
fn two_mounts_show_one_tree() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso"]);
    let (_up, url, first) = world.up(&[&pool]);
    let (_second, second) = world.mount("second", &url);
    let mut slowest = Duration::ZERO;
    for n in 0..30 {
        let (made, moved) = (format!("made-{n}"), format!("moved-{n}"));
        // Known to be absent, so that the kernel has to be told.
        assert!(!second.join(&made).exists() && !second.join(&moved).exists());
        let before = fs::metadata(&second).expect("there").mtime();
        fs::create_dir(first.join(&made)).expect("made");
        fs::rename(first.join(&made), first.join("other").join(&moved)).expect("moved");
        let begin = Instant::now();
        eventually("the move in the other mount", || second.join("other").join(&moved).is_dir());
        eventually("the old name is gone", || !second.join(&made).exists());
        eventually("the listing", || walk(&second).contains(&format!("other/{moved}/")));
        assert!(fs::metadata(&second).expect("there").mtime() >= before);
        slowest = slowest.max(begin.elapsed());
        fs::remove_dir(second.join("other").join(&moved)).expect("removed there");
        eventually("it is gone here", || !first.join("other").join(&moved).exists());
    }
    // Promised within a second; a busy machine is given more before this fails.
    assert!(slowest < SOON / 2, "{slowest:?}");
}

#[test]
fn a_removed_folder_that_is_open_is_empty() {
    let world = World::new();
    let (_up, url, mount) = world.up(&[]);
    fs::create_dir_all(mount.join("a/b")).expect("made");
    let open = File::open(mount.join("a/b")).expect("opened");
    assert!(world.run(&["--server", &url, "rmdir", "/a/b"]).status.success());
    eventually("it is gone", || !mount.join("a/b").exists());
    let meta = open.metadata().expect("its attributes go on");
    assert!(meta.is_dir());
    let listed = rustix::fs::Dir::read_from(&open).expect("opened").count();
    assert!(listed <= 2, "nothing but the dots");
    let inside = rustix::fs::mkdirat(&open, "c", rustix::fs::Mode::RWXU).map_err(io::Error::from);
    assert!([ENOENT, ESTALE].contains(&errno(inside)));
}

#[test]
fn free_space_counts_each_file_system_once() {
    let world = World::new();
    let pools = [world.pool("one", &[]), world.pool("two", &[])];
    let (_up, _, mount) = world.up(&[&pools[0], &pools[1]]);
    let beneath = rustix::fs::statvfs(&pools[0]).expect("statvfs");
    let size = |it: &rustix::fs::StatVfs| it.f_blocks * it.f_frsize;
    eventually("the capacity of the one disk", || {
        let shown = rustix::fs::statvfs(&mount).expect("statvfs");
        size(&shown) == size(&beneath) && shown.f_bavail > 0 && shown.f_namemax == 255
    });
}

#[test]
fn without_the_catalogue_reading_goes_on() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso"]);
    let (catalog, url) = world.catalog();
    let _agent = world.agent("a", &url, &[&pool]);
    let (_mount, mount) = world.mount("mnt", &url);
    eventually("the image", || mount.join("other/a.iso").is_file());
    catalog.kill();
    assert_eq!(walk(&mount), ["linux/", "other/", "other/a.iso", "windows/"]);
    assert_eq!(fs::read(mount.join("other/a.iso")).expect("read"), pattern("a.iso", 300_000));
    let begin = Instant::now();
    let refused = errno(fs::create_dir(mount.join("x")));
    assert!([EHOSTDOWN, ETIMEDOUT].contains(&refused), "{refused}");
    assert!(begin.elapsed() < SOON, "its deadline is 2 s: {:?}", begin.elapsed());
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
    let (_up, url, mount) = world.up(&[&pool]);
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
    let before = open.metadata().expect("its attributes go on");
    assert_eq!(before.nlink(), 0);
    assert_ne!(before.ino(), fs::metadata(&path).expect("there").ino());
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
}
