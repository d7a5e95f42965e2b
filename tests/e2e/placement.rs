//! Where stored files come to lie, and what their writers are told when they cannot.

use std::fs;
use std::path::Path;

use crate::harness::hosts::{Host, Network};
use crate::harness::programs::within;
use crate::harness::storing::{SECONDS, copies, nothing_stays_staged, source};
use crate::harness::volumes::{Access, remount};
use crate::harness::{World, eventually, pattern, text};

const MIB: usize = 1 << 20;

/// Exit code, what was said on stdout and on stderr.
fn told(host: &Host<'_>, url: &str, args: &[&str]) -> (Option<i32>, String, String) {
    let mut all = vec!["--server", url];
    all.extend(args);
    let output = host.run(&all);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[track_caller]
fn does(host: &Host<'_>, url: &str, args: &[&str]) -> String {
    let (code, said, error) = told(host, url, args);
    assert_eq!(code, Some(0), "{args:?}: {error}");
    said
}

#[track_caller]
fn lies_in(pool: &Path, name: &str) {
    eventually("the file in its pool", || pool.join("iso").join(name).exists());
}

#[test]
fn a_folders_default_pool_takes_what_is_stored_in_it_and_below() {
    let world = World::new();
    let network = Network::new(&world);
    let [c, a, b] = ["catalog", "a", "b"].map(|name| network.host(name));
    let (fast, slow) = (world.small_pool("fast", 24), world.pool("slow", &[]));
    let (catalog, url) = c.catalog();
    let agent_a = a.agent(&url, &[&fast]);
    let _agent_b = b.agent(&url, &[&slow]);
    let (_mount_b, on_b) = b.mount(&url);
    eventually("the volumes", || a.json(&url, &["scan"])["volumes_scanned"] == 2);
    let (file, _) = source(&world, 100_000);
    let copy = |path: &str| copies(&file, &on_b.join(path));
    let put = |host: &Host<'_>, path: &str| does(host, &url, &["put", text(&file), path]);
    let default = |args: &[&str]| does(&b, &url, &[&["pool", "default"], args].concat());

    // Each host's own, until a folder has another one.
    copy("linux/home.iso");
    lies_in(&slow, "home.iso");
    assert!(default(&["/linux"]).starts_with("none: "));
    assert_eq!(default(&["/linux", "fast"]), "");
    assert_eq!(default(&["/linux"]), "fast");
    copy("linux/copied.iso");
    lies_in(&fast, "copied.iso");
    put(&b, "/linux/put.iso");
    lies_in(&fast, "put.iso");

    // Folders below go by it, unless they have their own.
    fs::create_dir_all(on_b.join("linux/debian/old")).expect("made");
    assert_eq!(default(&["/linux/debian/old"]), "fast, from /linux");
    let shown = b.json(&url, &["pool", "default", "/linux/debian"]);
    let expected = r#"{"folder":"/linux/debian","pool":"fast","from":"/linux"}"#;
    assert_eq!(shown, serde_json::from_str::<serde_json::Value>(expected).expect("JSON"));
    copy("linux/debian/old/below.iso");
    lies_in(&fast, "below.iso");
    default(&["/linux/debian", "slow"]);
    assert_eq!(default(&["/linux/debian/old"]), "slow, from /linux/debian");
    put(&a, "/linux/debian/old/other.iso");
    lies_in(&slow, "other.iso");
    // A pool that was asked for is the one.
    does(&b, &url, &["put", "--pool", "slow", text(&file), "/linux/asked.iso"]);
    lies_in(&slow, "asked.iso");

    // It goes with its folder, and outlives the catalogue's process.
    fs::rename(on_b.join("linux/debian"), on_b.join("other/moved")).expect("moved");
    assert_eq!(default(&["/other/moved/old"]), "slow, from /other/moved");
    assert_eq!(catalog.stop(), 0);
    let (_catalog, _) = c.catalog();
    assert_eq!(default(&[text(&on_b.join("other/moved"))]), "slow");
    default(&["/other/moved", "--clear"]);
    assert!(default(&["/other/moved"]).starts_with("none: "));
    default(&["/", "fast"]);
    assert_eq!(default(&["/other/moved"]), "fast, from /");
    default(&["/", "--clear"]);
    let online = |pool: &str| {
        let listed = does(&b, &url, &["pool", "ls"]);
        listed.lines().any(|line| line.starts_with(pool) && line.ends_with("online"))
    };
    eventually("both agents are back", || online("fast") && online("slow"));

    // Where it cannot take a file, another pool does.
    remount(&fast, Access::ReadOnly);
    let mut tries = 0;
    eventually("it is known to be read-only", || {
        tries += 1;
        let name = format!("readonly{tries}.iso");
        let (code, _, _) = told(&b, &url, &["put", text(&file), &format!("/linux/{name}")]);
        code == Some(0) && slow.join("iso").join(name).exists()
    });
    copy("linux/elsewhere.iso");
    lies_in(&slow, "elsewhere.iso");
    remount(&fast, Access::ReadWrite);
    let large = world.path("large");
    fs::write(&large, pattern("large", 30 * MIB)).expect("written");
    does(&b, &url, &["put", text(&large), "/linux/large.iso"]);
    lies_in(&slow, "large.iso");
    agent_a.kill();
    eventually("the host is missed", || !online("fast"));
    copy("linux/away.iso");
    lies_in(&slow, "away.iso");
}

#[test]
fn a_default_pool_that_makes_no_sense_is_refused() {
    let world = World::new();
    let network = Network::new(&world);
    let host = network.host("a");
    let pool = world.pool("isos", &["a.iso"]);
    let (_catalog, url) = host.catalog();
    let _agent = host.agent(&url, &[&pool]);
    eventually("the volume", || host.json(&url, &["scan"])["volumes_scanned"] == 1);
    for (args, code, text) in [
        (&["/linux", "nothing"][..], 3, "isotope: no pool is called nothing"),
        (&["/nowhere", "isos"], 3, "isotope: /nowhere: no such folder"),
        (&["/nowhere"], 3, "isotope: /nowhere: no such folder"),
        (&["/other/a.iso", "isos"], 4, "isotope: /other/a.iso: a.iso is no folder"),
        (&["/other/a.iso"], 4, "isotope: /other/a.iso: a.iso is no folder"),
        (&["/linux", "isos", "--clear"], 2, "cannot be used with"),
    ] {
        let (found, _, said) = told(&host, &url, &[&["pool", "default"], args].concat());
        assert_eq!(found, Some(code), "{args:?}: {said}");
        assert!(said.contains(text), "{args:?}: {said}");
    }
    // Set twice, or cleared where nothing is, changes nothing.
    let revision = || host.json(&url, &["status"])["revision"].as_u64().expect("a number");
    does(&host, &url, &["pool", "default", "/linux", "isos"]);
    let before = revision();
    does(&host, &url, &["pool", "default", "/linux", "isos"]);
    does(&host, &url, &["pool", "default", "/other", "--clear"]);
    assert_eq!(revision(), before);
}

#[test]
fn a_file_that_is_too_large_for_its_volume_is_efbig() {
    let world = World::new();
    let pool = world.small_pool("small", 24);
    let (_up, _, mount) = world.up(&[&pool]);
    let path = mount.join("linux/large.iso");
    let of = format!("of={}", text(&path));
    // More than ext4 holds in one file, whatever its blocks: by its size, and by a write.
    for words in [
        &["truncate", "--size=20T", text(&path)][..],
        &["dd", "if=/dev/zero", &of, "bs=1", "count=1", "seek=20T", "conv=notrunc,fsync"],
        &["dd", "if=/dev/zero", &of, "bs=1", "count=1", "seek=20T", "conv=notrunc"],
    ] {
        within(SECONDS, words).expect_failure(&["File too large"]);
        assert!(!path.exists());
        nothing_stays_staged(&pool);
    }
    within(SECONDS, &["touch", text(&path)]).expect_well();
}

#[test]
fn a_file_that_exceeds_a_quota_is_edquot() {
    let world = World::new();
    let pool = world.pool_with_quota("limited", 16);
    let (_up, _, mount) = world.up(&[&pool]);
    let (large, _) = source(&world, 32 * MIB);
    let path = mount.join("linux/large.iso");
    let exceeded = "Disk quota exceeded";
    within(SECONDS, &["cp", text(&large), text(&path)]).expect_failure(&[exceeded]);
    assert!(!path.exists());
    nothing_stays_staged(&pool);
    // What is freed is free after the file system's next commit.
    let small = world.path("small");
    fs::write(&small, "small").expect("written");
    eventually("what fits is taken", || within(SECONDS, &["cp", text(&small), text(&path)]).well());
}
