//! Bad input gets an error that names what was wrong and what to do, and changes nothing.

use std::fs;
use std::net::TcpListener;

use crate::harness::{World, text};

/// The command fails with a code and a sentence.
#[track_caller]
fn refuses(world: &World, args: &[&str], code: i32, sentence: &str) {
    let output = world.run(args);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains(sentence), "{args:?}: expected {sentence:?} in {told}");
    assert_eq!(output.status.code(), Some(code), "{args:?}: {told}");
}

fn up<'a>(world: &World, pool: &'a str, mount: &'a str, more: &[&'a str]) -> Vec<String> {
    let state = world.path("state");
    let mut args = vec!["up", "--pool", pool, "--mount", mount, "--state", text(&state)];
    args.extend(["--listen", "127.0.0.1:0", "--agent-listen", "127.0.0.1:0"]);
    args.extend(more);
    args.into_iter().map(str::to_owned).collect()
}

#[track_caller]
fn up_refuses(world: &World, pool: &str, mount: &str, code: i32, sentence: &str) {
    let args = up(world, pool, mount, &[]);
    refuses(world, &args.iter().map(String::as_str).collect::<Vec<_>>(), code, sentence);
}

#[test]
fn pools_that_cannot_be_used() {
    let world = World::new();
    let mount = world.mount_point("mnt");
    let mount = text(&mount);
    let missing = world.path("missing");
    up_refuses(&world, text(&missing), mount, 3, "does not exist; make it, or correct its path");
    assert!(!missing.exists());
    assert!(!world.path("state").exists(), "nothing was made");
    let file = world.path("file");
    fs::write(&file, "").expect("written");
    up_refuses(&world, text(&file), mount, 1, "is not a directory");
    let foreign = world.make_dir("foreign");
    fs::create_dir(foreign.join(".isotope")).expect("made");
    fs::write(foreign.join(".isotope/volume.json"), "mine").expect("written");
    up_refuses(&world, text(&foreign), mount, 1, "is not ours");
    assert_eq!(fs::read(foreign.join(".isotope/volume.json")).expect("there"), b"mine");
    let around = world.dir.path();
    up_refuses(&world, text(around), mount, 2, "lie in one another");
    assert!(!around.join(".isotope").exists());
    let good = world.pool("good", &[]);
    let named = format!("{}=bad\nname", text(&good));
    up_refuses(&world, &named, mount, 2, "cannot be a pool's name");
    assert!(!good.join(".isotope").exists(), "nothing was marked");
}

#[test]
fn mount_points_that_cannot_be_used() {
    let world = World::new();
    let pool = world.pool("isos", &[]);
    let pool = text(&pool);
    let missing = world.path("missing");
    up_refuses(&world, pool, text(&missing), 3, "does not exist; make it with mkdir -p");
    assert!(!missing.exists());
    let full = world.make_dir("full");
    fs::write(full.join("file"), "").expect("written");
    up_refuses(&world, pool, text(&full), 4, "is not empty");
    up_refuses(&world, pool, text(&full.join("file")), 1, "is not a directory");
    up_refuses(&world, pool, "/proc", 4, "file system of type proc");
    assert!(!world.path("isos/.isotope").exists(), "nothing was marked");

    // One that a living mount is on.
    let (_up, url, mount) = world.up(&[&world.path("isos")]);
    refuses(
        &world,
        &["mount", text(&mount), "--catalog", &url],
        4,
        "has an isotope mount on it already",
    );
    // And a pool on it.
    let state = world.path("other");
    let inside = mount.join("linux");
    let args = [
        "serve",
        "agent",
        "--pool",
        text(&inside),
        "--state",
        text(&state),
        "--catalog",
        &url,
        "--listen",
        "127.0.0.1:0",
    ];
    refuses(&world, &args, 1, "lies on a mount of Isotope");
}

#[test]
fn ports_and_databases_that_cannot_be_used() {
    let world = World::new();
    let taken = TcpListener::bind("127.0.0.1:0")
        .expect("a port")
        .local_addr()
        .expect("its address")
        .to_string();
    let state = world.path("catalog");
    let serve = |listen: &str| {
        ["serve", "catalog", "--state", text(&state), "--listen", listen].map(str::to_owned)
    };
    let held = TcpListener::bind(&taken).expect("the port is held");
    let refused = |listen: &str, code: i32, sentence: &str| {
        refuses(&world, &serve(listen).each_ref().map(String::as_str), code, sentence);
    };
    refused(&taken, 4, "cannot listen on");
    drop(held);
    refused("0.0.0.0:0", 2, "--insecure");

    // Another catalogue has it.
    let (catalog, _) = world.catalog();
    refused("127.0.0.1:0", 4, "another catalogue is using");
    catalog.stop();

    // It is newer than the program.
    let database = state.join("catalog.db");
    let sql = "UPDATE refinery_schema_history SET version = 999 WHERE version = 1";
    rusqlite::Connection::open(&database).and_then(|it| it.execute(sql, [])).expect("changed");
    refused("127.0.0.1:0", 1, "written by a newer isotope");

    // It is somebody else's, or no database at all.
    for name in ["catalog.db", "catalog.db-wal", "catalog.db-shm"] {
        let _ = fs::remove_file(state.join(name));
    }
    let foreign = "CREATE TABLE theirs (x); PRAGMA user_version = 7";
    rusqlite::Connection::open(&database).and_then(|it| it.execute_batch(foreign)).expect("made");
    refused("127.0.0.1:0", 1, "is not a catalogue of Isotope");
    fs::write(&database, "not a database, but more than a header's length of text".repeat(10))
        .expect("written");
    refused("127.0.0.1:0", 1, "is not a catalogue of Isotope");
}

#[test]
fn catalogues_and_arguments_that_lead_nowhere() {
    let world = World::new();
    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
    let url = format!("http://{free}");
    refuses(&world, &["--server", &url, "ls"], 6, "cannot reach the catalogue at");
    refuses(&world, &["--server", "::", "ls"], 2, "is no URL of a catalogue");
    refuses(&world, &["mount", "/tmp", "--catalog", "ftp://x"], 2, "is no URL like");
    refuses(&world, &["frobnicate"], 2, "unrecognized subcommand");
    let (_catalog, url) = world.catalog();
    refuses(&world, &["--server", &url, "mkdir", "/a\nb"], 2, "control character");
    refuses(&world, &["--server", &url, "mkdir", "/"], 4, "the root");
    refuses(
        &world,
        &["--server", &url, "mkdir", &format!("/{}", "x".repeat(256))],
        2,
        "256 bytes long",
    );
    refuses(&world, &["--server", &url, "get", "/nothing.iso"], 3, "no such file");
}

#[test]
fn a_machine_without_fuse() {
    let world = World::new();
    let mount = world.mount_point("mnt");
    let binary = env!("CARGO_BIN_EXE_isotope");
    // A mount namespace of its own, in which /dev is empty.
    let script = r#"mount -t tmpfs none /dev && exec "$0" mount "$1""#;
    let output = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", script, binary, text(&mount)])
        .env("ISOTOPE_CONFIG", world.path("isotope.toml"))
        .output()
        .expect("unshare runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("/dev/fuse is missing"), "{told}");
    assert_eq!(output.status.code(), Some(1));

    // Somebody who is not root, and has no fusermount3: in a user namespace of its own.
    let output = std::process::Command::new("unshare")
        .args(["--user", "env", "PATH=/nowhere", binary, "mount", text(&mount)])
        .env("ISOTOPE_CONFIG", world.path("isotope.toml"))
        .output()
        .expect("unshare runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("install the package fuse3"), "{told}");
}
