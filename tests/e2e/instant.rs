//! One tree, at once: what is changed through one mount shows on the others, whatever the kernel
//! keeps; and mounts that begin, or go on, while the catalogue is away.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use libc::EROFS;
use rustix::process::Signal;

use crate::harness::{Part, SOON, World, errno, eventually, holds, pattern, text, walk};

/// What a mount says of its feed.
fn feed(world: &World, url: &str, mount: &Path) -> serde_json::Value {
    let status = world.json(url, &["status"]);
    let mounts = status["mounts"].as_array().cloned().unwrap_or_default();
    let ours = mounts.into_iter().find(|it| it["path"] == text(mount));
    ours.map(|it| it["feed"].clone()).unwrap_or_default()
}

fn nlink(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.nlink())
}

/// The recording of the only mount of a test, once it holds the whole library.
fn recording(world: &World) -> std::path::PathBuf {
    let mut found = None;
    eventually("a recording", || {
        let listed = fs::read_dir(world.path("state/mount")).into_iter().flatten().flatten();
        found = listed.map(|it| it.path()).find(|it| it.extension() == Some("feed".as_ref()));
        found.is_some()
    });
    found.expect("there is one")
}

/// The catalogue again, at the same address.
fn again(world: &World, url: &str) -> Part {
    world.catalog_on(url.trim_start_matches("http://")).0
}

#[test]
fn each_kind_of_change_shows_on_the_other_mount() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso"]);
    let (_up, url, here) = world.up(&[&pool]);
    let (_second, there) = world.mount("second", &url);
    let shows = |what: &str, is_so: &dyn Fn(&Path) -> bool| {
        eventually(what, || is_so(&there));
    };
    // Looked up before it is there, so that the kernel knows that it is not.
    for name in ["new", "new/in", "other/small.iso", "linux/a.iso"] {
        assert!(!there.join(name).exists(), "{name}");
    }
    fs::create_dir(here.join("new")).expect("made");
    shows("a folder", &|at| at.join("new").is_dir() && walk(at).contains(&"new/".to_owned()));
    assert_eq!(nlink(&there.join("new")), 2);
    fs::create_dir(here.join("new/in")).expect("made");
    shows("a folder in it", &|at| at.join("new/in").is_dir() && nlink(&at.join("new")) == 3);

    fs::write(here.join("other/small.iso"), b"small").expect("stored");
    shows("a file", &|at| fs::read(at.join("other/small.iso")).is_ok_and(|it| it == b"small"));

    let both = |at: &Path, gone: &str, there: &str| {
        let listed = walk(at);
        !at.join(gone).exists()
            && at.join(there).exists()
            && !listed.contains(&gone.to_owned())
            && listed.contains(&there.to_owned())
    };
    fs::rename(here.join("other/a.iso"), here.join("other/b.iso")).expect("renamed");
    shows("another name", &|at| both(at, "other/a.iso", "other/b.iso"));
    fs::rename(here.join("other/b.iso"), here.join("new/in/a.iso")).expect("moved");
    shows("both folders of a move", &|at| both(at, "other/b.iso", "new/in/a.iso"));
    fs::rename(here.join("new/in"), here.join("linux/out")).expect("moved");
    shows("a moved folder, with what is in it", &|at| {
        both(at, "new/in/a.iso", "linux/out/a.iso")
            && nlink(&at.join("new")) == 2
            && nlink(&at.join("linux")) == 3
    });

    let mode = fs::Permissions::from_mode(0o640);
    fs::set_permissions(here.join("linux/out/a.iso"), mode).expect("set");
    shows("its mode", &|at| {
        fs::metadata(at.join("linux/out/a.iso")).is_ok_and(|it| it.mode() & 0o777 == 0o640)
    });
    fs::remove_file(here.join("linux/out/a.iso")).expect("removed");
    shows("no file", &|at| !at.join("linux/out/a.iso").exists());
    fs::remove_dir(here.join("new")).expect("removed");
    shows("no folder", &|at| !at.join("new").exists() && !walk(at).contains(&"new/".to_owned()));
    assert_eq!(walk(&here), walk(&there));
}

#[test]
fn a_slow_change_in_one_folder_holds_up_no_other() {
    let world = World::new();
    let (_catalog, url) = world.catalog();
    let (_fast, fast) = world.mount("fast", &url);
    for name in ["busy", "idle"] {
        fs::create_dir(fast.join(name)).expect("made");
    }
    // The answer to the kernel waits, and with it the kernel's lock on the folder.
    world.fail_next(Some("mount.change.answered=1*sleep(15000)->off"));
    let (_slow, slow) = world.mount("slow", &url);
    eventually("both folders", || walk(&slow).len() == 5);
    assert!(!slow.join("idle/there").exists() && !slow.join("busy/there").exists());
    std::thread::scope(|scope| {
        let began = Instant::now();
        let held = scope.spawn(|| fs::create_dir(slow.join("busy/slow")));
        eventually("it is made", || fast.join("busy/slow").is_dir());
        // More than there are threads that tell the kernel, and all of the folder that is held.
        for n in 0..20 {
            fs::create_dir(fast.join(format!("busy/{n}"))).expect("made");
        }
        fs::create_dir(fast.join("busy/there")).expect("made");
        fs::create_dir(fast.join("idle/there")).expect("made");
        eventually("the other folder", || slow.join("idle/there").is_dir());
        assert_eq!(walk(&slow.join("idle")), ["there/"]);
        fs::remove_dir(slow.join("idle/there")).expect("changes go on there, too");
        eventually("what was removed", || !fast.join("idle/there").exists());
        assert!(!held.is_finished(), "all that while the slow one was under way");
        assert!(began.elapsed() < Duration::from_secs(15));
        held.join().expect("ends").expect("made");
    });
    eventually("the folder that was held", || {
        slow.join("busy/there").is_dir() && walk(&slow.join("busy")).len() == 22
    });
}

#[test]
fn a_mount_starts_from_its_snapshot_while_the_catalogue_is_away() {
    let world = World::new();
    let (near, far) = (world.pool("near", &["near.iso"]), world.pool("far", &["far.iso"]));
    let (catalog, url) = world.catalog();
    let _near = world.agent("near", &url, &[&near]);
    let _far = world.agent("far", &url, &[&far]);
    let (mount, path) = world.mount("mnt", &url);
    eventually("both images", || walk(&path).len() == 5);
    fs::rename(path.join("other/near.iso"), path.join("linux/renamed.iso")).expect("renamed");
    fs::create_dir(path.join("linux/folder")).expect("made");
    let file = recording(&world);
    assert_eq!(fs::metadata(&file).expect("there").mode() & 0o777, 0o600);
    let ino = fs::metadata(path.join("linux/renamed.iso")).expect("there").ino();
    assert_eq!(mount.stop(), 0);
    assert_eq!(catalog.stop(), 0);

    let (_mount, path) = world.mount("mnt", &url);
    let shown =
        ["linux/", "linux/folder/", "linux/renamed.iso", "other/", "other/far.iso", "windows/"];
    assert_eq!(walk(&path), shown);
    assert_eq!(fs::metadata(path.join("linux/renamed.iso")).expect("there").ino(), ino);
    holds(path.join("linux/renamed.iso"), &pattern("near.iso", 300_000));
    holds(path.join("other/far.iso"), &pattern("far.iso", 300_000));
    // Refused at once, and not after the deadline of a change.
    let writable = fs::File::options().write(true).open(path.join("other/far.iso"));
    let mode = fs::Permissions::from_mode(0o600);
    for refused in [
        errno(fs::create_dir(path.join("x"))),
        errno(fs::remove_dir(path.join("linux/folder"))),
        errno(fs::remove_file(path.join("other/far.iso"))),
        errno(fs::rename(path.join("other/far.iso"), path.join("other/x.iso"))),
        errno(fs::write(path.join("new.iso"), b"x")),
        errno(fs::set_permissions(path.join("other/far.iso"), mode)),
        errno(writable),
    ] {
        assert_eq!(refused, EROFS);
    }
    assert!(world.log("mnt.log").contains("read-only until"), "{}", world.log("mnt.log"));
    let told = feed(&world, &url, &path);
    assert_eq!((&told["contact"], &told["from_snapshot"]), (&"lost".into(), &true.into()));
    assert_eq!(world.run(&["--server", &url, "status"]).status.code(), Some(6));

    let _catalog = again(&world, &url);
    eventually("it follows again", || feed(&world, &url, &path)["contact"] == "following");
    assert_eq!(feed(&world, &url, &path)["from_snapshot"], false);
    fs::create_dir(path.join("x")).expect("changes are made again");
    fs::write(path.join("x/new.iso"), b"new").expect("files are stored again");
    holds(path.join("x/new.iso"), b"new");
}

#[test]
fn a_start_from_a_snapshot_needs_no_list() {
    let world = World::new();
    let (_catalog, url) = world.catalog();
    let (mount, path) = world.mount("mnt", &url);
    fs::create_dir(path.join("before")).expect("made");
    let file = recording(&world);
    assert_eq!(mount.stop(), 0);
    let inode = fs::metadata(&file).expect("there").ino();
    assert!(world.run(&["--server", &url, "mkdir", "/meanwhile"]).status.success());
    let (_mount, path) = world.mount("mnt", &url);
    // It waited for the catalogue, which told what it had missed.
    assert!(path.join("before").is_dir() && path.join("meanwhile").is_dir());
    fs::create_dir(path.join("after")).expect("made");
    // A list would have been recorded to a new file.
    assert_eq!(fs::metadata(&file).expect("there").ino(), inode);
}

#[test]
fn a_mount_killed_while_it_records_starts_from_what_it_had() {
    let world = World::new();
    let (catalog, url) = world.catalog();
    let (mount, path) = world.mount("mnt", &url);
    let file = recording(&world);
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| {
            let mut made = 0;
            while fs::create_dir(path.join(format!("{made}"))).is_ok() {
                made += 1;
            }
            made
        });
        std::thread::sleep(Duration::from_millis(300));
        mount.kill();
        assert!(busy.join().expect("ends") > 0);
    });
    let all = world.run(&["--server", &url, "ls"]);
    let all = String::from_utf8_lossy(&all.stdout).lines().count();
    catalog.kill();
    // And as a disk looks that lost its power: the end is there in part.
    let whole = fs::metadata(&file).expect("there").len();
    fs::File::options().write(true).open(&file).expect("open").set_len(whole - 5).expect("torn");
    let (_mount, path) = world.mount("mnt", &url);
    let shown = fs::read_dir(&path).expect("listed").count();
    assert!((3..=all).contains(&shown), "{shown} of {all}");
    let _catalog = again(&world, &url);
    eventually("all that was made", || fs::read_dir(&path).is_ok_and(|it| it.count() == all));
    assert!(!world.log("mnt.log").contains("of no use"));
}

#[test]
fn a_damaged_snapshot_is_removed_and_said_so() {
    let world = World::new();
    let (catalog, url) = world.catalog();
    let (mount, path) = world.mount("mnt", &url);
    let file = recording(&world);
    assert_eq!(mount.stop(), 0);
    catalog.kill();
    let mut bytes = fs::read(&file).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(&file, bytes).expect("damaged");
    let mount = world.start("mnt.log", &["mount", text(&path), "--catalog", &url]);
    eventually("it waits", || world.log("mnt.log").contains("waiting for the catalogue"));
    assert!(world.log("mnt.log").contains("of no use and was removed"));
    assert!(!file.exists());
    let _catalog = again(&world, &url);
    mount.wait_for("mounted");
    assert_eq!(walk(&path).len(), 3);
    assert_eq!(recording(&world), file);
}

#[test]
fn a_full_disk_ends_the_recording_and_nothing_else() {
    let world = World::new();
    let state = world.make_dir("state");
    world.unmount_in_the_end(&state);
    let options = Some(c"size=32k");
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", &state, "tmpfs", flags, options).expect("a small disk");
    let (_catalog, url) = world.catalog();
    let (_mount, path) = world.mount("mnt", &url);
    let file = recording(&world);
    let mut made = 0;
    eventually("the disk is full", || {
        fs::create_dir(path.join(format!("{made}"))).expect("changes go on");
        made += 1;
        !file.exists()
    });
    eventually("it is told", || feed(&world, &url, &path)["unrecorded"].is_string());
    fs::create_dir(path.join("last")).expect("changes go on");
    assert_eq!(walk(&path).len(), made + 4);
    assert_eq!(world.log("mnt.log").matches("the feed is not recorded").count(), 1);
    // Nothing of it is left to fill the disk.
    let mut filler = fs::File::create(state.join("filler")).expect("made");
    filler.write_all(&[0; 16 << 10]).expect("there is room again");
}

#[test]
fn a_new_incarnation_voids_the_snapshot_of_the_last() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso", "b.iso"]);
    let (catalog, url) = world.catalog();
    let _agent = world.agent("host", &url, &[&pool]);
    let (mount, path) = world.mount("mnt", &url);
    eventually("the images", || walk(&path).len() == 5);
    let saved = world.path("saved.db");
    assert!(world.json(&url, &["catalog", "backup", text(&saved)]).is_object());
    fs::rename(path.join("other/a.iso"), path.join("linux/lost.iso")).expect("renamed");
    fs::create_dir(path.join("lost")).expect("made");
    let file = recording(&world);
    let life = feed(&world, &url, &path)["incarnation"].clone();
    assert_eq!(mount.stop(), 0);
    catalog.kill();
    let state = world.path("catalog");
    let restore = ["catalog", "restore", text(&saved), "--state", text(&state)];
    assert!(world.run(&restore).status.success());

    // From the old life's snapshot, with what the kernel learns of it.
    let (_mount, path) = world.mount("mnt", &url);
    let old = fs::metadata(path.join("lost")).expect("as it was recorded").ino();
    assert!(path.join("linux/lost.iso").exists() && !path.join("other/a.iso").exists());
    let recorded = fs::metadata(&file).expect("there").ino();
    let _catalog = again(&world, &url);
    eventually("the restored library", || {
        !path.join("lost").exists()
            && !path.join("linux/lost.iso").exists()
            && path.join("other/a.iso").exists()
    });
    holds(path.join("other/a.iso"), &pattern("a.iso", 300_000));
    assert_ne!(feed(&world, &url, &path)["incarnation"], life);
    fs::create_dir(path.join("lost")).expect("made");
    assert_ne!(fs::metadata(path.join("lost")).expect("there").ino(), old);
    // And what is recorded is of the new life.
    eventually("a new recording", || fs::metadata(&file).is_ok_and(|it| it.ino() != recorded));
}

#[test]
fn a_lost_feed_is_told_and_what_the_kernel_knew_is_corrected() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso"]);
    let (catalog, url) = world.catalog();
    let _agent = world.agent("host", &url, &[&pool]);
    let (mount, path) = world.mount("mnt", &url);
    eventually("the image", || path.join("other/a.iso").exists());
    eventually("it follows", || feed(&world, &url, &path)["contact"] == "following");
    // The kernel learns names that are there, and one that is not.
    assert!(!path.join("absent").exists() && path.join("linux").exists());
    assert_eq!(walk(&path).len(), 4);
    // A mount that hears nothing for a while, while the library changes.
    mount.signal(Signal::STOP);
    let status = Instant::now();
    let stopped = world.json(&url, &["status"]);
    assert!(status.elapsed() < SOON, "a mount that is stopped holds up no status");
    let mounts = stopped["mounts"].as_array().cloned().unwrap_or_default();
    let ours = mounts.iter().find(|it| it["path"] == text(&path)).expect("it is told");
    assert!(ours["error"].to_string().contains("does not answer"), "{ours}");
    let run = |args: &[&str]| {
        let mut all = vec!["--server", &url];
        all.extend(args);
        assert!(world.run(&all).status.success(), "{args:?}");
    };
    run(&["mkdir", "/absent"]);
    run(&["mv", "/other/a.iso", "/absent/a.iso"]);
    run(&["rmdir", "/linux"]);
    catalog.kill();
    mount.signal(Signal::CONT);
    eventually("it says so", || feed(&world, &url, &path)["contact"] == "lost");
    assert!(feed(&world, &url, &path)["because"].is_string());
    let catalog = again(&world, &url);
    eventually("all is as it should be", || {
        path.join("absent/a.iso").exists()
            && !path.join("linux").exists()
            && !path.join("other/a.iso").exists()
            && walk(&path) == ["absent/", "absent/a.iso", "other/", "windows/"]
    });
    eventually("it follows again", || feed(&world, &url, &path)["contact"] == "following");

    // The log of changes does not reach back so far: the whole library is told again.
    catalog.kill();
    let database = rusqlite::Connection::open(world.path("catalog/catalog.db")).expect("opened");
    let sql = "UPDATE entry SET name = 'other way' WHERE name = 'absent'; DELETE FROM change;
               UPDATE catalog SET revision = revision + 1;";
    database.execute_batch(sql).expect("a change that nobody is told of");
    drop(database);
    let _catalog = again(&world, &url);
    eventually("what was listed anew", || {
        path.join("other way/a.iso").exists() && !path.join("absent").exists()
    });
}
