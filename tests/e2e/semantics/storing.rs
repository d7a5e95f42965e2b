//! Files that are written, and images that are not changed in place.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::time::{Duration, SystemTime};

use libc::{EBUSY, ENOTEMPTY, EPERM, ETXTBSY};

use crate::harness::{World, errno, eventually, holds, pattern, walk};

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
    assert_eq!(meta.accessed().expect("a time"), then);
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

    let file = File::create_new(mount.join("removed.iso")).expect("made");
    file.write_all_at(b"some", 0).expect("written");
    let links = || file.metadata().expect("shown to its writer").nlink();
    assert_eq!(links(), 1);
    fs::remove_file(mount.join("removed.iso")).expect("removed");
    assert_eq!(links(), 0);
    file.write_all_at(b"more", 4).expect("written");
    let mut back = [0; 8];
    file.read_exact_at(&mut back, 0).expect("read back");
    assert_eq!(&back, b"somemore");
    drop(file);
    assert!(!mount.join("removed.iso").exists());
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
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success() && said.is_empty(), "{script}: {said}");
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
    shell("cp -a $T/sub $M/kept && rsync -a $T/sub/ $M/archived");
    shell("shown() { cd $1; stat -c '%n %a %Y %s %U' *; }; diff <(shown $M/kept) <(shown $T/sub)");
    shell(
        "shown() { cd $1; stat -c '%n %a %Y %s %U' *; }; diff <(shown $M/archived) <(shown $T/sub)",
    );
    shell(
        "touch -d 2001-02-03T04:05:06Z $M/dated.iso && test $(stat -c %Y $M/dated.iso) = 981173106",
    );
    shell("touch -r $S $M/dated.iso && test $(stat -c %Y $M/dated.iso) = $(stat -c %Y $S)");
    shell(
        "cp -p $S $S.moved && mv $S.moved $M/moved.iso && cmp $S $M/moved.iso && test ! -e $S.moved",
    );
    shell("stat -c '%Y %a' $S $M/moved.iso $M/cpp.iso | sort -u | wc -l | grep -qx 1");
    shell("rsync $S $M/synced.iso && cmp $S $M/synced.iso");
    shell("curl -sS -o $M/curled.iso file://$S && cmp $S $M/curled.iso");
    shell("echo 1 | tee $M/teed.iso >> $M/appended.iso && cmp $M/teed.iso $M/appended.iso");
    shell("truncate -s 9M $M/sparse.img && test $(stat -c %s $M/sparse.img) = 9437184");
    let mapped = "import mmap, os, sys
f = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR)
os.write(f, b'x' * 4096)
try:
    mmap.mmap(f, 4096)
except OSError as error:
    sys.exit(error.errno != 19)
sys.exit('mapped')";
    shell(&format!("python3 -c \"{mapped}\" $M/mapped.iso"));
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
