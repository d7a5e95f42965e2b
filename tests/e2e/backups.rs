//! The catalogue's database saved while it is in use, lost, and put back.

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::{World, eventually, holds, pattern, text};

#[test]
fn a_backup_made_while_changes_go_on_brings_the_library_back() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso", "b.iso"]);
    let (catalog, url) = world.catalog();
    let agent = world.agent("host", &url, &[&pool]);
    let (_mount, mnt) = world.mount("mnt", &url);
    eventually("both images", || mnt.join("other/b.iso").exists());
    fs::create_dir(mnt.join("mine")).expect("made");
    fs::rename(mnt.join("other/a.iso"), mnt.join("mine/first.iso")).expect("renamed");

    // Somebody makes folders all the while: each backup has all that were made before it began.
    let (file, done) = (world.path("saved.db"), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| {
            let mut made = 0;
            while !done.load(Ordering::Relaxed) {
                fs::create_dir(mnt.join(format!("mine/{made}"))).expect("made");
                made += 1;
            }
            made
        });
        for _ in 0..5 {
            let before = fs::read_dir(mnt.join("mine")).expect("listed").count();
            let saved = world.json(&url, &["catalog", "backup", "--force", text(&file)]);
            assert_eq!(saved["images"], 2, "{saved}");
            assert_eq!(saved["size_bytes"], fs::metadata(&file).expect("there").len());
            // A revision for each of them.
            assert!(saved["revision"].as_u64() > Some(before as u64), "{saved}");
        }
        done.store(true, Ordering::Relaxed);
        assert!(busy.join().expect("made") > 0);
    });
    let code = |args: &[&str]| world.run(args).status.code();
    assert_eq!(code(&["--server", &url, "catalog", "backup", text(&file)]), Some(4), "it exists");
    let left = fs::read_dir(world.dir.path()).expect("listed").flatten();
    assert!(left.map(|it| it.file_name()).all(|name| !text(name.as_ref()).ends_with(".part")));

    // What is changed from here on is lost with the database; what lies in the pool is not.
    fs::rename(mnt.join("mine/first.iso"), mnt.join("mine/second.iso")).expect("renamed");
    fs::create_dir(mnt.join("later")).expect("made");
    let bytes = pattern("stored since", 100_000);
    fs::write(mnt.join("later/new.iso"), &bytes).expect("stored");
    eventually("the file in its place", || pool.join("iso/new.iso").exists());
    let before = world.json(&url, &["status"]);
    let state = world.path("catalog");
    let restore = ["--json", "catalog", "restore", text(&file), "--state", text(&state)];
    assert_eq!(code(&restore), Some(4), "a catalogue runs there");
    catalog.kill();
    let output = world.run(&restore);
    let restored: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(restored["kept"], text(&state.join("catalog.db.before-restore-1")));

    // A view is the same in each life: whoever has it open looks into it as before.
    let view = fs::File::open(mnt.join(".views/flat")).expect("opened");
    let (_catalog, _) = world.catalog_on(url.trim_start_matches("http://"));
    // The same mount, which never went away.
    eventually("the old name", || mnt.join("mine/first.iso").exists());
    eventually("the new file, where it belongs by itself", || mnt.join("other/new.iso").exists());
    assert!(!mnt.join("mine/second.iso").exists() && !mnt.join("later").exists());
    eventually("its bytes", || fs::read(mnt.join("other/new.iso")).is_ok_and(|it| it == bytes));
    holds(mnt.join("mine/first.iso"), &pattern("a.iso", 300_000));
    assert!(fs::metadata(mnt.join(".views/flat/new.iso")).is_ok());
    let kept = rustix::fs::Dir::read_from(&view).expect("opened").filter_map(Result::ok);
    assert!(kept.map(|it| it.file_name().to_owned()).any(|it| it.as_c_str() == c"new.iso"));
    let after = world.json(&url, &["status"]);
    assert_ne!(before["incarnation"], after["incarnation"]);
    // A number that the lost time may have given out is not given out again.
    fs::create_dir(mnt.join("fresh")).expect("made");
    let ino = |path: &str| {
        std::os::unix::fs::MetadataExt::ino(&fs::metadata(mnt.join(path)).expect("there"))
    };
    assert!(ino("fresh") > ino("mine") + 1_000, "{} {}", ino("fresh"), ino("mine"));
    drop(agent);
}

#[test]
fn a_damaged_database_or_backup_is_refused_with_a_way_out() {
    let world = World::new();
    let (catalog, url) = world.catalog();
    for n in 0..200 {
        let made = world.run(&["--server", &url, "mkdir", &format!("/{n}-{}", "x".repeat(200))]);
        assert!(made.status.success(), "{made:?}");
    }
    let (file, state) = (world.path("saved.db"), world.path("catalog"));
    let saved = world.run(&["--server", &url, "catalog", "backup", text(&file)]);
    assert!(saved.status.success(), "{saved:?}");
    assert_eq!(catalog.stop(), 0);

    let run = |args: &[&str]| {
        let output = world.run(args);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let whole = fs::read(&file).expect("read");
    let restore = ["catalog", "restore", text(&file), "--state", text(&state)];
    fs::write(&file, &whole[..whole.len() / 2]).expect("cut");
    let (code, error) = run(&restore);
    assert!(code == Some(7) && error.contains("damaged"), "{code:?} {error}");
    fs::write(&file, "no backup").expect("written");
    let (code, error) = run(&restore);
    assert!(code == Some(7) && error.contains("not a backup"), "{code:?} {error}");
    let (code, error) =
        run(&["catalog", "restore", text(&world.path("none")), "--state", text(&state)]);
    assert!(code == Some(3) && error.contains("no backup at"), "{code:?} {error}");

    let database = state.join("catalog.db");
    let damaged = fs::File::options().write(true).open(&database).expect("opened");
    let pages = damaged.metadata().expect("a size").len() / 4096;
    for page in pages / 2..pages {
        damaged.write_all_at(&[0xa5; 512], page * 4096).expect("damaged");
    }
    let serve = ["serve", "catalog", "--listen", "127.0.0.1:0", "--state", text(&state)];
    let (code, error) = run(&serve);
    assert_eq!(code, Some(7), "{error}");
    for way in ["is damaged", "isotope catalog restore", "isotope catalog rebuild"] {
        assert!(error.contains(way), "{error}");
    }
    fs::write(&file, &whole).expect("written");
    let (code, error) = run(&restore);
    assert_eq!(code, Some(0), "{error}");
    let (_catalog, url) = world.catalog();
    let listed = world.run(&["--server", &url, "ls"]);
    assert_eq!(String::from_utf8_lossy(&listed.stdout).lines().count(), 203);
}
