//! Names, folders, and moving them.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};

use libc::{EEXIST, EILSEQ, EINVAL, EISDIR, ENAMETOOLONG, ENOENT, ENOTDIR, ENOTEMPTY};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::harness::{World, errno, holds, pattern, same_bytes, walk};

#[test]
fn names_are_utf_8_without_control_characters() {
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
    holds(&to, &pattern("debian-12.iso", 300_000));
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut open, &mut bytes).expect("what was open reads on");
    same_bytes(&bytes, &pattern("debian-12.iso", 300_000));
}

#[test]
fn a_rename_replaces_its_like() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso", "b.iso"]);
    let (_up, url, mount) = world.up(&[&pool]);
    let at = |name: &str| mount.join(name);
    for name in ["x", "empty", "full", "full/child"] {
        fs::create_dir(at(name)).expect("made");
    }
    for (from, to, expected) in [
        ("x", "full", ENOTEMPTY),
        ("x", "other/a.iso", ENOTDIR),
        ("other/a.iso", "x", EISDIR),
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
    let whiteout = renameat_with(CWD, at("empty"), CWD, at("full"), RenameFlags::WHITEOUT);
    assert_eq!(errno(whiteout.map_err(io::Error::from)), EINVAL);

    // An image gives way to an image, and can be had back; whoever reads it reads on.
    let open = File::open(at("other/b.iso")).expect("opened");
    fs::rename(at("other/a.iso"), at("other/b.iso")).expect("replaced");
    holds(at("other/b.iso"), &pattern("a.iso", 300_000));
    let mut bytes = vec![0; 300_000];
    open.read_exact_at(&mut bytes, 0).expect("read");
    same_bytes(&bytes, &pattern("b.iso", 300_000));
    let trashed = world.json(&url, &["trash", "ls"]);
    assert_eq!(trashed["paths"][0], "/other/b.iso");
}
