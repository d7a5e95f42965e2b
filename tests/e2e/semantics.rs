//! `docs/SEMANTICS.md`, heading by heading: each promise there has its test of the same name here.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::time::{Duration, Instant, SystemTime};

use libc::*;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::process::Signal;

use crate::harness::{
    SOON, World, errno, eventually, holds, pattern, same_bytes, walk, write_image,
};

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
    let exchange = renameat_with(CWD, at("empty"), CWD, at("full"), RenameFlags::EXCHANGE);
    assert_eq!(errno(exchange.map_err(io::Error::from)), EINVAL);

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

#[test]
fn a_finished_image_is_not_changed_in_place() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso"]);
    let (_up, _, mount) = world.up(&[&pool]);
    let image = mount.join("other/a.iso");
    let whole = pattern("a.iso", 300_000);
    let writer = File::options().write(true).open(&image).expect("an open tells nothing");
    assert_eq!(errno(writer.write_at(b"x", 0)), EPERM);
    assert_eq!(errno(writer.set_len(5)), EPERM);
    drop(writer);
    let appender = File::options().append(true).open(&image).expect("opened");
    assert_eq!(errno(io::Write::write(&mut &appender, b"x")), EPERM);
    drop(appender);
    let by_path = File::options().write(true).open(&image).and_then(|it| it.set_len(10));
    assert_eq!(errno(by_path), EPERM);
    assert_eq!(errno(fs::hard_link(&image, mount.join("other/b.iso"))), EPERM);
    assert_eq!(errno(std::os::unix::fs::symlink("a.iso", mount.join("other/l.iso"))), EPERM);
    assert_eq!(errno(std::os::unix::fs::chown(&image, Some(1), None)), EPERM);
    holds(&image, &whole);

    // Truncated on opening it is replaced, unless it is being read here.
    let reader = File::open(&image).expect("opened");
    assert_eq!(errno(File::create(&image)), ETXTBSY);
    drop(reader);
    eventually("the reader has left", || fs::write(&image, b"new").is_ok());
    holds(&image, b"new");
    // Mode and times are its owner's to set.
    fs::set_permissions(&image, Permissions::from_mode(0o600)).expect("set");
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let writer = File::options().write(true).open(&image).expect("opened");
    writer.set_modified(then).expect("set");
    drop(writer);
    let meta = fs::metadata(&image).expect("there");
    assert_eq!((meta.mode() & 0o7777, meta.modified().expect("a time")), (0o600, then));
}

#[test]
fn a_file_appears_whole_when_it_is_closed() {
    let world = World::new();
    let pool = world.pool("isos", &[]);
    let (_up, url, mount) = world.up(&[&pool]);
    let (_second, second) = world.mount("second", &url);
    let path = mount.join("linux/new.iso");
    let file = File::create(&path).expect("made");
    // Out of order, with a hole.
    file.write_all_at(b"tail", 3_000_000).expect("written");
    file.write_all_at(&pattern("head", 1_000_000), 0).expect("written");
    file.sync_all().expect("synced");
    assert_eq!(file.metadata().expect("shown to its writer").len(), 3_000_004);
    assert!(walk(&mount).contains(&"linux/new.iso".to_owned()));
    std::thread::sleep(Duration::from_millis(300));
    assert!(!second.join("linux/new.iso").exists(), "nobody else sees it");
    assert_eq!(walk(&pool.join("iso")), Vec::<String>::new(), "nor does the pool");
    assert_eq!(errno(fs::remove_dir(mount.join("linux"))), ENOTEMPTY);
    assert_eq!(errno(File::create(second.join("linux/new.iso"))), EBUSY, "one writer a name");
    // Somebody looks at it on this mount: that is no close of its writer's.
    let looker = File::open(&path).expect("opened");
    let mut tail = [0; 4];
    looker.read_exact_at(&mut tail, 3_000_000).expect("read back");
    assert_eq!(&tail, b"tail");
    drop(File::open(&path).expect("opened again"));
    file.write_all_at(b"TAIL", 3_000_000).expect("it is still being written");
    file.write_all_at(b"tail", 3_000_000).expect("written");
    drop(file);
    looker.read_exact_at(&mut tail, 3_000_000).expect("and read once it is published");
    assert_eq!(&tail, b"tail");
    let mut expected = pattern("head", 1_000_000);
    expected.resize(3_000_000, 0);
    expected.extend_from_slice(b"tail");
    holds(&path, &expected);
    eventually("it is in the other mount", || second.join("linux/new.iso").is_file());
    holds(second.join("linux/new.iso"), &expected);
    eventually("it lies in its pool", || {
        fs::read(pool.join("iso/new.iso")).is_ok_and(|bytes| bytes == expected)
    });
    // A scan finds nothing new in it.
    assert_eq!(world.json(&url, &["scan"])["discovered"], 0);
}

#[test]
fn tools_can_store_what_they_make() {
    let world = World::new();
    let pool = world.pool("isos", &[]);
    let (_up, _, mount) = world.up(&[&pool]);
    let bytes = pattern("source", 5_000_001);
    fs::write(world.path("source"), &bytes).expect("written");
    fs::create_dir_all(world.path("tree/sub")).expect("made");
    for n in 0..40 {
        fs::write(world.path("tree/sub").join(format!("{n}.iso")), &bytes[..n * 100 + 1])
            .expect("written");
    }
    let shell = |script: &str| {
        let done = std::process::Command::new("timeout")
            .args(["60", "bash", "-ec", script])
            .env("S", world.path("source"))
            .env("T", world.path("tree"))
            .env("M", &mount)
            .output()
            .expect("bash runs");
        assert!(done.status.success(), "{script}: {}", String::from_utf8_lossy(&done.stderr));
    };
    for (script, name) in [
        ("cp $S $M/cp.iso", "cp.iso"),
        ("cp -p $S $M/cpp.iso", "cpp.iso"),
        ("cat $S > $M/cat.iso", "cat.iso"),
        ("cat < $S | cat > $M/pipe.iso", "pipe.iso"),
        ("dd if=$S of=$M/dd.iso bs=77777 status=none", "dd.iso"),
        ("dd if=$S of=$M/sync.iso bs=1M conv=fsync status=none", "sync.iso"),
        ("(cat $S) > $M/sub.iso", "sub.iso"),
        ("cp $S $M/.tmp.iso && mv $M/.tmp.iso $M/renamed.iso", "renamed.iso"),
        ("install -m 600 $S $M/installed.iso", "installed.iso"),
        ("cp $S $M/over.iso; echo x > $M/over.iso; cp $S $M/over.iso", "over.iso"),
    ] {
        shell(script);
        assert!(fs::read(mount.join(name)).expect(name) == bytes, "{script}");
    }
    shell("tar -C $T -cf - sub | tar -C $M -xf -");
    shell("cp -r $T/sub $M/copied");
    shell("touch $M/touched.iso && test -f $M/touched.iso && test ! -s $M/touched.iso");
    for n in 0..40 {
        for folder in ["sub", "copied"] {
            let stored = fs::read(mount.join(folder).join(format!("{n}.iso"))).expect("stored");
            assert!(stored == bytes[..n * 100 + 1], "{folder}/{n}");
        }
    }
    shell(
        "mkdir $M/made && xorriso -as mkisofs -quiet -o $M/made/x.iso $T 2>/dev/null && xorriso -indev $M/made/x.iso -find / -name 7.iso 2>/dev/null | grep -q 7.iso",
    );
}

#[test]
fn a_write_that_is_cut_short_leaves_nothing() {
    let world = World::new();
    let pool = world.pool("isos", &[]);
    let (_up, url, mount) = world.up(&[&pool]);
    let target = mount.join("half.iso");
    let script = |script: &str| {
        let done = std::process::Command::new("timeout")
            .args(["60", "bash", "-c", script])
            .env("F", &target)
            .output();
        done.expect("bash runs");
    };
    for what in [
        // The writer is killed, interrupted, or fails.
        "(exec >$F; head -c 500000 /dev/zero; kill -9 $BASHPID)",
        "(exec >$F; head -c 500000 /dev/zero; kill -TERM $BASHPID)",
        "python3 -c 'import os,sys; f=os.open(sys.argv[1],os.O_CREAT|os.O_WRONLY); os.write(f,b\"x\"*500000); os._exit(3)' $F",
        "timeout -s KILL 1 dd if=/dev/zero of=$F bs=1M",
    ] {
        script(what);
        eventually("nothing of it is left", || !target.exists());
        assert_eq!(walk(&mount), ["linux/", "other/", "windows/"], "{what}");
    }
    // A clean exit without a close is a close.
    script(
        "python3 -c 'import os,sys; f=os.open(sys.argv[1],os.O_CREAT|os.O_WRONLY); os.write(f,b\"x\"*5); os._exit(0)' $F",
    );
    holds(&target, b"xxxxx");
    // A child goes on writing after its opener has closed.
    fs::remove_file(&target).expect("removed");
    script("exec 3>$F; (sleep 0.3; echo late >&3) & exec 3>&-; wait");
    eventually("the child's bytes", || fs::read(&target).is_ok_and(|bytes| bytes == b"late\n"));
    eventually("the space is free again", || {
        let staging = pool.join(".isotope/staging");
        walk(&staging).iter().all(|it| it.ends_with('/'))
    });
    assert_eq!(world.json(&url, &["status"])["images"], 1);
}

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
    eventually("no link to it", || open.metadata().is_ok_and(|meta| meta.nlink() == 0));
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
        let files = shown.f_files - shown.f_ffree;
        size(&shown) == size(&beneath) && shown.f_bavail > 0 && shown.f_namemax == 255 && files == 4
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
    holds(mount.join("other/a.iso"), &pattern("a.iso", 300_000));
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
    assert_eq!(errno(open.read_exact_at(&mut [0; 4096], 266_240)), ESTALE);
    eventually("no link to it", || open.metadata().is_ok_and(|meta| meta.nlink() == 0));
    let before = open.metadata().expect("its attributes go on");
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
