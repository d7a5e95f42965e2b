//! Read in every way there is, a local image has its file's bytes, and the mount sees none of them.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{LEN, all_closed, count, opens, passes_through, reads};
use crate::harness::programs::within;
use crate::harness::{Part, World, eventually, holds, pattern, same_bytes, text, write_image};

/// The image, mounted on its own host.
fn mounted(world: &World) -> (Part, PathBuf, PathBuf) {
    let pool = world.pool("isos", &[]);
    write_image(&pool, "a.iso", &pattern("a", LEN));
    let (up, _, mount) = world.up(&[&pool]);
    let image = mount.join("other/a.iso");
    passes_through(&mount, &image);
    (up, mount, image)
}

/// Nothing was asked of the mount itself.
#[track_caller]
fn saw_nothing(mount: &Path) {
    assert_eq!(count(mount, "/bytes_from_hosts"), 0, "{}", reads(mount));
    assert_eq!(count(mount, "/reads_failed"), 0, "{}", reads(mount));
}

#[test]
fn each_way_of_reading_finds_the_files_bytes() {
    let world = World::new();
    let (_up, mount, image) = mounted(&world);
    let expected = pattern("a", LEN);
    holds(&image, &expected);
    let file = File::open(&image).expect("opened");
    for at in [0, 1, 4095, 1 << 20, LEN - 5] {
        let mut some = [0; 5];
        file.read_exact_at(&mut some, at as u64).expect("read");
        assert_eq!(some, expected[at..at + 5], "at {at}");
    }
    assert_eq!(file.read_at(&mut [0; 8], LEN as u64).expect("the end"), 0);
    // Whole blocks alone, and the tail that is none.
    let direct = world.path("direct");
    let (from, to) = (format!("if={}", text(&image)), format!("of={}", text(&direct)));
    within(60, &["dd", &from, &to, "bs=1M", "iflag=direct", "status=none"]).expect_well();
    holds(&direct, &expected);
    // copy_file_range, sendfile, splice.
    for (name, command) in [("cp", "cp $0 $1"), ("cat", "cat $0 | cat >$1"), ("tar", TAR)] {
        let copy = world.path(name);
        within(60, &["sh", "-c", command, text(&image), text(&copy)]).expect_well();
        holds(&copy, &expected);
    }
    let sent = Command::new("python3").args(["-c", SENDFILE, text(&image)]).output();
    same_bytes(&sent.expect("python3 runs").stdout, &expected);
    saw_nothing(&mount);
    let (passed, others) = opens(&mount);
    assert!(passed >= 7 && others.is_empty(), "{passed} {others:?}");
}

const TAR: &str = "tar cf - -C \"$(dirname $0)\" a.iso | tar xf - -O >$1";
const SENDFILE: &str = "
import os, sys
source = open(sys.argv[1], 'rb')
at = 0
while sent := os.sendfile(1, source.fileno(), at, 1 << 20):
    at += sent
";

/// Prints what it has mapped; of a private mapping a page was changed, which is nobody else's.
const MAPPED: &str = "
import mmap, sys
file = open(sys.argv[1], 'rb')
if sys.argv[2] == 'shared':
    it = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
else:
    it = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    first = it[0]
    it[0] = first ^ 255
    it[0] = first
file.close()
sys.stdout.buffer.write(it)
";

#[test]
fn mapped_memory_shows_the_files_bytes() {
    let world = World::new();
    let (_up, mount, image) = mounted(&world);
    for manner in ["shared", "private"] {
        let shown = Command::new("timeout")
            .args(["60", "python3", "-c", MAPPED, text(&image), manner])
            .output()
            .expect("python3 runs");
        assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
        same_bytes(&shown.stdout, &pattern("a", LEN));
    }
    // What is open for reading cannot be mapped to be written: the file is the pool's.
    let written = "import mmap, sys; file = open(sys.argv[1], 'rb'); mmap.mmap(file.fileno(), 0, \
                   mmap.MAP_SHARED, mmap.PROT_WRITE)";
    within(60, &["python3", "-c", written, text(&image)]).expect_failure(&["Permission denied"]);
    holds(&image, &pattern("a", LEN));
    saw_nothing(&mount);
}

#[test]
fn readers_of_one_image_share_its_file() {
    let world = World::new();
    let (_up, mount, image) = mounted(&world);
    let expected = pattern("a", LEN);
    let first = File::open(&image).expect("opened");
    std::thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| {
                for _ in 0..20 {
                    let mut all = Vec::new();
                    File::open(&image).expect("opened").read_to_end(&mut all).expect("read");
                    same_bytes(&all, &expected);
                }
            });
        }
    });
    let open = count(&mount, "/open_passed_through");
    assert!(open >= 1, "{}", reads(&mount));
    drop(first);
    all_closed(&mount);
    // Nothing of it is kept: opened anew it is as before.
    holds(&image, &expected);
    saw_nothing(&mount);
    assert!(opens(&mount).1.is_empty(), "{}", reads(&mount));
}

#[test]
fn many_first_opens_at_once_agree_on_a_way() {
    let world = World::new();
    let (_up, mount, image) = mounted(&world);
    let expected = pattern("a", LEN);
    for _ in 0..20 {
        all_closed(&mount);
        std::thread::scope(|threads| {
            for _ in 0..8 {
                threads.spawn(|| {
                    let file = File::open(&image).expect("no open fails");
                    let mut some = [0; 16];
                    file.read_exact_at(&mut some, 4096).expect("read");
                    assert_eq!(some, expected[4096..4112]);
                });
            }
        });
    }
}

#[test]
fn attributes_and_programs_are_as_ever() {
    let world = World::new();
    let pool = world.pool("isos", &[]);
    // A program is a file that is mapped to be run.
    let program = fs::read("/bin/true").expect("a program");
    write_image(&pool, "true.img", &program);
    let (_up, _, mount) = world.up(&[&pool]);
    let image = mount.join("other/true.img");
    passes_through(&mount, &image);
    let file = File::open(&image).expect("opened");
    let meta = file.metadata().expect("attributes");
    assert_eq!(meta.len(), program.len() as u64);
    assert_eq!(meta.ino(), fs::metadata(&image).expect("by name").ino());
    drop(file);
    fs::set_permissions(&image, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("set");
    let ran = || Command::new(&image).status().is_ok_and(|it| it.success());
    eventually("it runs", ran);
    saw_nothing(&mount);
}

#[test]
fn the_option_verify_local_reads_through_the_mount() {
    let world = World::new();
    let pool = world.pool("isos", &[]);
    write_image(&pool, "a.iso", &pattern("a", LEN));
    let (_catalog, url) = world.catalog();
    let _agent = world.agent("a", &url, &[&pool]);
    for (name, words) in [("flag", &["--verify-local"][..]), ("option", &["-o", "verify_local"])] {
        let mount = world.mount_point(name);
        let mut args = vec!["mount", text(&mount), "--catalog", &url];
        args.extend(words);
        let mut command = world.command(&args);
        command.env("ISOTOPE_AGENT_NAME", "a");
        let part = world.spawn("mount.log", command);
        part.wait_for("mounted");
        let image = mount.join("other/a.iso");
        eventually("the image", || image.is_file());
        holds(&image, &pattern("a", LEN));
        assert_eq!(opens(&mount), (0, vec!["turned_off 1".to_owned()]), "{name}");
        assert!(count(&mount, "/bytes_from_hosts") >= LEN as u64, "{}", reads(&mount));
    }
}

/// What is served at a URL like `http://IP:PORT/metrics`.
fn scrape(url: &str) -> String {
    let (address, path) = url.trim_start_matches("http://").split_once('/').expect("a path");
    let mut stream = TcpStream::connect(address).expect("connected");
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {address}\r\n\r\n").expect("asked");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    answer
}

#[test]
fn metrics_tell_the_same_numbers() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso"]);
    let (_catalog, url) = world.catalog();
    let _agent = world.agent("a", &url, &[&pool]);
    let mount = world.mount_point("mnt");
    let words = ["mount", text(&mount), "--catalog", &url, "--metrics", "127.0.0.1:0"];
    let part = world.start("mount.log", &words);
    let metrics = part.wait_for("metrics");
    part.wait_for("mounted");
    let image = mount.join("other/a.iso");
    eventually("the image", || image.is_file());
    holds(&image, &pattern("a.iso", 300_000));
    let told = scrape(&metrics);
    let fetched = count(&mount, "/bytes_from_hosts");
    for line in [
        "HTTP/1.1 200 OK".to_owned(),
        "isotope_fs_opens_ordinary_total{reason=\"not_local\"} 1".to_owned(),
        format!("isotope_fs_host_read_bytes_total {fetched}"),
    ] {
        assert!(told.lines().any(|it| it == line), "{line}\n{told}");
    }
    assert!(scrape(&metrics.replace("/metrics", "/")).starts_with("HTTP/1.1 404 "));
    // Nobody listens beyond loopback unasked.
    let other = world.make_dir("other");
    let refused = world.run(&["mount", text(&other), "--metrics", "0.0.0.0:0"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
}

#[test]
fn status_tells_how_each_mount_is_read() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso"]);
    let (_up, url, mount) = world.up(&[&pool]);
    let image = mount.join("other/a.iso");
    passes_through(&mount, &image);
    let _open = File::open(&image).expect("opened");
    let status = world.json(&url, &["status"]);
    let mounts = status["mounts"].as_array().expect("mounts");
    let ours = mounts.iter().find(|it| it["path"] == text(&mount)).expect("ours");
    assert_eq!(ours["reads"]["open_passed_through"], 1, "{ours}");
    let told = String::from_utf8(world.run(&["--server", &url, "status"]).stdout).expect("text");
    let row = told.lines().find(|it| it.starts_with(text(&mount))).expect("a row");
    assert!(row.contains("1 passed through, 0 through the mount"), "{row}");
}
