//! The library from a shell, without a mount.

use std::fs;

use rustix::process::Signal;

use crate::harness::{World, eventually, holds, pattern, text, write_image};

fn stdout(output: &std::process::Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("text")
}

#[test]
fn the_library_can_be_used_from_a_shell() {
    let world = World::new();
    let pool = world.pool("isos", &["debian-12.5.0-amd64-netinst.iso", "tools/memtest.img"]);
    let (_up, url, mount) = world.up(&[&pool]);
    let run = |args: &[&str]| {
        let mut all = vec!["--server", &url];
        all.extend(args);
        world.run(&all)
    };
    let code = |args: &[&str]| run(args).status.code();

    assert_eq!(stdout(&run(&["ls"])), "linux/\nother/\ntools/\nwindows/\n");
    assert_eq!(stdout(&run(&["ls", "/linux"])), "debian-12.5.0-amd64-netinst.iso\n");
    assert!(stdout(&run(&["ls", "-l", "/linux"])).contains("debian 12.5.0 x86_64"));
    let tree = stdout(&run(&["tree"]));
    assert!(
        tree.contains("├── linux/\n│   └── debian-12.5.0-amd64-netinst.iso  (292.97 KiB)\n"),
        "{tree}"
    );
    assert!(tree.ends_with("\n4 folders, 2 images\n"), "{tree}");

    // Changes, and their exit codes.
    assert_eq!(code(&["mkdir", "/a"]), Some(0));
    assert_eq!(code(&["mkdir", "/a"]), Some(4));
    assert_eq!(code(&["mkdir", "-p", "/a/b/c"]), Some(0));
    assert_eq!(code(&["mkdir", "/x/y"]), Some(3));
    assert_eq!(code(&["mkdir", "/1/2/3/4/5/6/7"]), Some(2));
    assert_eq!(code(&["rmdir", "/a"]), Some(4));
    assert_eq!(code(&["mv", "/tools/memtest.img", "/a/b"]), Some(0));
    assert_eq!(code(&["mv", "/a", "/a/b/c"]), Some(2));
    assert_eq!(code(&["mv", "/a/b/memtest.img", "/linux", "/windows"]), Some(0));
    assert_eq!(code(&["mv", "/nothing", "/a"]), Some(3));
    assert_eq!(code(&["rmdir", "/a/b/c", "/a/b", "/a"]), Some(0));
    assert!(mount.join("windows/linux/debian-12.5.0-amd64-netinst.iso").is_file());

    // One image, by three names.
    let info = world.json(&url, &["info", "/windows/memtest.img"]);
    let id = info["id"].as_str().expect("an id").to_owned();
    assert_eq!(info["size_bytes"], 300_000);
    assert_eq!(info["replicas"][0]["path"], "iso/tools/memtest.img");
    assert_eq!(world.json(&url, &["info", &id]), info);
    assert_eq!(world.json(&url, &["info", text(&mount.join("windows/memtest.img"))]), info);
    assert_eq!(code(&["info", "/windows"]), Some(4));
    assert_eq!(code(&["info", "/nothing.iso"]), Some(3));

    // Downloads are whole, and overwrite nothing unasked.
    let target = world.path("got.img");
    assert_eq!(code(&["get", &id, text(&target)]), Some(0));
    holds(&target, &pattern("tools/memtest.img", 300_000));
    assert_eq!(code(&["get", &id, text(&target)]), Some(4));
    assert_eq!(code(&["get", "--force", &id, text(&target)]), Some(0));
    assert_eq!(run(&["get", &id, "-"]).stdout, pattern("tools/memtest.img", 300_000));
    let left: Vec<_> = fs::read_dir(world.dir.path())
        .expect("a listing")
        .filter(|it| it.as_ref().is_ok_and(|it| it.path().extension().is_some_and(|e| e == "part")))
        .collect();
    assert!(left.is_empty(), "{left:?}");

    // Scans tell what they found.
    assert!(stdout(&run(&["scan"])).ends_with("No new ISOs found\n"));
    write_image(&pool, "one.iso", b"1");
    assert!(stdout(&run(&["scan", "isos"])).ends_with("Discovered 1 new ISO\n"));
    write_image(&pool, "two.iso", b"2");
    write_image(&pool, "three.iso", b"3");
    assert_eq!(world.json(&url, &["scan"])["message"], "Discovered 2 new ISOs");
    assert_eq!(code(&["scan", "nothing"]), Some(3));

    let status = stdout(&run(&["status"]));
    for expected in ["5 images in", "connected", "isos", "mount "] {
        assert!(status.contains(expected), "{expected:?} in\n{status}");
    }
}

#[test]
fn a_scan_explains_what_it_does_not_take() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso"]);
    std::os::unix::fs::symlink("/etc/passwd", pool.join("iso/link.iso")).expect("linked");
    fs::write(pool.join("iso/red\u{1b}[31m.iso"), "").expect("written");
    let (_up, url, mount) = world.up(&[&pool]);
    let scan = world.run(&["--server", &url, "scan"]);
    let told = String::from_utf8_lossy(&scan.stderr);
    assert!(told.contains("iso/link.iso: is a symbolic link"), "{told}");
    assert!(told.contains(r"red\u{1b}[31m.iso"), "escaped: {told}");
    assert!(!told.contains('\u{1b}'), "{told}");
    assert_eq!(crate::harness::walk(&mount), ["linux/", "other/", "other/a.iso", "windows/"]);
}

#[test]
fn a_scan_without_a_host_says_so() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso"]);
    let (_catalog, url) = world.catalog();
    let agent = world.agent("away", &url, &[&pool]);
    eventually("a scan", || world.json(&url, &["scan"])["volumes_scanned"] == 1);
    agent.kill();
    eventually("the host is missed", || world.json(&url, &["node", "ls"])["connected"] == false);
    let scan = world.run(&["--server", &url, "scan"]);
    assert_eq!(scan.status.code(), Some(6));
    let told = String::from_utf8_lossy(&scan.stdout);
    assert!(told.contains("isos: skipped: no connected node offers the volume"), "{told}");
    let pools = world.json(&url, &["pool", "ls"]);
    assert_eq!(pools["state"], "offline");
    assert_eq!(pools["reason"], "away not connected");
}

#[test]
fn the_configuration_is_layered_and_mistakes_are_named() {
    let world = World::new();
    let file = world.path("isotope.toml");
    fs::write(&file, "[catalog]\nurl = \"http://127.0.0.1:9\"\n").expect("written");
    let shown = world.run(&["config", "show", "--origin"]);
    let shown = stdout(&shown);
    assert!(shown.contains("catalog.url = \"http://127.0.0.1:9\"  # "), "{shown}");
    assert!(shown.contains("isotope.toml:2\n"), "{shown}");
    assert_eq!(stdout(&world.run(&["config", "check"])), "the configuration can be used\n");

    fs::write(&file, "[catalog]\n\nlissten = \"127.0.0.1:1\"\n").expect("written");
    let refused = world.run(&["config", "check"]);
    assert_eq!(refused.status.code(), Some(2));
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(told.contains("isotope.toml:3") && told.contains("lissten"), "{told}");
    assert_eq!(world.run(&["ls"]).status.code(), Some(2), "no command runs on a broken one");
}

#[test]
fn files_are_stored_and_deleted_from_a_shell() {
    let world = World::new();
    let pools = [world.pool("fast", &[]), world.pool("slow", &[])];
    let (_up, url, mount) = world.up(&[&pools[0], &pools[1]]);
    let code = |args: &[&str]| {
        let mut all = vec!["--server", &url];
        all.extend(args);
        world.run(&all).status.code()
    };
    let source = world.path("tool.iso");
    fs::write(&source, pattern("tool", 3_000_001)).expect("written");
    assert_eq!(code(&["put", text(&source), "/linux"]), Some(0));
    holds(mount.join("linux/tool.iso"), &pattern("tool", 3_000_001));
    assert_eq!(code(&["put", text(&source), "/linux"]), Some(4), "it exists");
    assert_eq!(code(&["put", "--force", text(&source), "/linux"]), Some(0));
    assert_eq!(code(&["put", "--pool", "slow", text(&source), "/other/named.iso"]), Some(0));
    eventually("it is in the pool asked for", || pools[1].join("iso/named.iso").exists());
    assert_eq!(code(&["put", "--pool", "none", text(&source), "/other/x.iso"]), Some(3));
    assert_eq!(code(&["put", text(&source), text(&source), "/other/named.iso"]), Some(2));
    assert_eq!(code(&["put", text(&mount), "/other"]), Some(2));
    assert_eq!(code(&["put", text(&source), "/nowhere/x.iso"]), Some(3));
    assert_eq!(world.json(&url, &["status"])["images"], 2);

    assert_eq!(code(&["rm", "/linux/tool.iso", "/other/named.iso"]), Some(0));
    assert_eq!(code(&["rm", "/linux/tool.iso"]), Some(3));
    assert_eq!(code(&["rm", "/linux"]), Some(4));
    let trash = world.run(&["--server", &url, "--json", "trash", "ls"]);
    let listed = String::from_utf8(trash.stdout).expect("text");
    assert_eq!(listed.lines().count(), 3, "the replaced one, too: {listed}");
    assert_eq!(world.json(&url, &["status"])["images"], 0);
}

#[test]
fn a_put_that_failed_frees_its_name_at_once() {
    let world = World::new();
    // The catalogue knows of its room, not of its quota: what is too large fails half way.
    let (limited, other) = (world.pool_with_quota("limited", 16), world.pool("other", &[]));
    let (_up, url, mount) = world.up(&[&limited, &other]);
    let run = |args: &[&str]| world.run(&[&["--server", &url, "put", "--pool"], args].concat());
    let code = |args: &[&str]| run(args).status.code();
    let file = |name: &str, bytes: &[u8]| {
        let path = world.path(name);
        fs::write(&path, bytes).expect("written");
        text(&path).to_owned()
    };
    let large = file("large.iso", &pattern("large", 32 << 20));
    let (small, new) = (file("small.iso", b"small"), file("new.iso", b"new"));
    let empty = file("empty.iso", b"");
    let target = mount.join("linux/image.iso");

    let failed = run(&["limited", &large, "/linux/image.iso"]);
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    let said = String::from_utf8_lossy(&failed.stderr);
    assert!(said.ends_with("large.iso: the quota is used up\n"), "{said}");
    assert_eq!(code(&["other", &small, "/linux/image.iso"]), Some(0));
    holds(&target, b"small");
    // An image that was to be replaced stays, and can be replaced at once.
    assert_eq!(code(&["limited", "--force", &large, "/linux/image.iso"]), Some(1));
    holds(&target, b"small");
    assert_eq!(code(&["other", "--force", &new, "/linux/image.iso"]), Some(0));
    holds(&target, b"new");
    assert_eq!(code(&["other", &empty, "/linux"]), Some(0));
    holds(mount.join("linux/empty.iso"), b"");
    // Of several those before the one that failed are stored, and none after it.
    assert_eq!(code(&["other", &small, &empty, &new, "/linux"]), Some(4));
    assert!(mount.join("linux/small.iso").exists());
    assert!(!mount.join("linux/new.iso").exists());
    assert_eq!(code(&["other", &new, &large, "/linux"]), Some(0));
}

#[test]
fn a_put_that_is_interrupted_frees_its_name_at_once() {
    let world = World::new();
    fs::write(world.path("isotope.toml"), "[log]\nfilter = \"isotope_catalog=debug\"\n")
        .expect("written");
    let pool = world.pool("isos", &[]);
    let (_catalog, url) = world.catalog();
    let agent = world.agent("a", &url, &[&pool]);
    eventually("a scan", || world.json(&url, &["scan"])["volumes_scanned"] == 1);
    let source = world.path("tool.iso");
    fs::write(&source, pattern("tool", 3_000_001)).expect("written");
    let put = ["--server", &url, "put", text(&source), "/linux"];

    agent.signal(Signal::STOP);
    let mut waiting = world.start("put.log", &put);
    eventually("it is on its way", || world.log("catalog.log").contains("volume chosen"));
    // The name is reserved within a few milliseconds from then.
    std::thread::sleep(std::time::Duration::from_millis(300));
    let mkdir = ["--server", &url, "mkdir", "/linux/tool.iso"];
    assert_eq!(world.run(&mkdir).status.code(), Some(4), "the name is taken");
    waiting.signal(Signal::INT);
    assert_eq!(waiting.wait(), 130);
    let made = world.run(&mkdir);
    assert!(made.status.success(), "{made:?}");
    assert!(world.run(&["--server", &url, "rmdir", "/linux/tool.iso"]).status.success());
    agent.signal(Signal::CONT);
    let stored = world.run(&put);
    assert!(stored.status.success(), "{stored:?}");
    eventually("the file in its pool", || pool.join("iso/tool.iso").exists());
    assert_eq!(world.json(&url, &["status"])["images"], 1);
}
