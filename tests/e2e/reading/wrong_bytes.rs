//! Copies that send bytes which are not the image's: passed over in mid-read, reported, and read by
//! nobody any more once their agent has found that they rotted.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use super::{HASHED, LONG, MIB};
use crate::harness::programs::within;
use crate::harness::{World, eventually, eventually_in, pattern, text, write_image};

const READ_SECONDS: u64 = 60;
/// Which of two hosts is asked first changes with what is measured.
const ROUNDS_MAX: usize = 8;

/// Somebody between a mount and an agent, who changes a byte of all that is longer than a message.
fn liar(agent: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = listener.local_addr().expect("an address").to_string();
    let agent = agent.to_owned();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(&agent) else { continue };
            let [to, from] = [&client, &server].map(|it| it.try_clone().expect("cloned"));
            thread::spawn(move || pass(client, server, |_| {}));
            thread::spawn(move || {
                pass(from, to, |bytes| {
                    if bytes.len() > 8 << 10 {
                        bytes[8 << 10] ^= 1;
                    }
                });
            });
        }
    });
    address
}

fn pass(mut from: TcpStream, mut to: TcpStream, change: impl Fn(&mut [u8])) {
    let mut buffer = vec![0; MIB];
    while let Ok(read) = from.read(&mut buffer)
        && read > 0
    {
        change(&mut buffer[..read]);
        if to.write_all(&buffer[..read]).is_err() {
            return;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

fn free_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    listener.local_addr().expect("an address").to_string()
}

#[test]
fn a_host_that_lies_is_passed_over_and_reported() {
    let world = World::new();
    let pools = super::pools(&world);
    let bytes = super::copies([&pools[0], &pools[1]], "one.iso", LONG);
    let (_catalog, url) = world.catalog();
    let port = free_port();
    let lies = liar(&port);
    let state = world.path("agent-liar");
    let mut args = vec!["serve", "agent", "--catalog", &url, "--listen", &port, "--name", "liar"];
    args.extend(["--advertise", &lies, "--state", text(&state), "--pool", text(&pools[0])]);
    let liar = world.start("agent-liar.log", &args);
    liar.wait_for("agent");
    let honest = world.agent("honest", &url, &[&pools[1]]);
    let (_mount, path) = world.mount("mnt", &url);
    let image = path.join("other/one.iso");
    eventually_in(HASHED, "one image with two copies", || {
        let found = world.json(&url, &["info", "/other/one.iso"]);
        found["sha256"].is_string() && found["replicas"].as_array().map(Vec::len) == Some(2)
    });
    eventually("the image", || image.exists());

    // With both, with the liar alone, and with both again.
    same_as(&image, &bytes, &world);
    if !world.log("mnt.log").contains("wrong bytes") {
        // The honest one was first: it goes away, and the liar is asked.
        drop_caches_of(&image);
        honest.signal(rustix::process::Signal::STOP);
        let read = within(READ_SECONDS, &["cat", text(&image)]);
        read.expect_failure(&["Input/output error"]);
        honest.signal(rustix::process::Signal::CONT);
    }
    eventually("the catalogue to hear of it", || {
        world.log("catalog.log").contains("a mount got wrong bytes of an image")
    });
    assert!(world.log("mnt.log").contains("it is passed over and reported"));
    drop_caches_of(&image);
    eventually_in(Duration::from_secs(30), "the image", || {
        within(READ_SECONDS, &["cmp", text(&image), text(&pools[1].join("iso/one.iso"))]).well()
    });
    // Its file is sound: only what it sends is not.
    eventually_in(HASHED, "the file to be read whole", || {
        world.log("catalog.log").contains("a file was verified")
    });
    let found = world.json(&url, &["info", "/other/one.iso"]);
    let rotten = |it: &serde_json::Value| it["rotten"] == true;
    assert!(!found["replicas"].as_array().expect("two").iter().any(rotten), "{found}");
}

#[test]
fn what_rotted_on_one_host_is_read_from_another_and_quarantined() {
    let world = World::new();
    let pools = super::pools(&world);
    let bytes = super::copies([&pools[0], &pools[1]], "one.iso", LONG);
    let (_catalog, url) = world.catalog();
    let _agents = [world.agent("a", &url, &[&pools[0]]), world.agent("b", &url, &[&pools[1]])];
    let (_mount, path) = world.mount("mnt", &url);
    let image = path.join("other/one.iso");
    let info = || world.json(&url, &["info", "/other/one.iso"]);
    eventually_in(HASHED, "one image with two copies", || {
        let found = info();
        found["sha256"].is_string() && found["replicas"].as_array().map(Vec::len) == Some(2)
    });
    eventually("the image", || image.exists());
    // Whichever is asked first, sooner or later it is the one that has rotted.
    let noticed = pools.iter().cycle().take(ROUNDS_MAX).any(|pool| {
        rot(&pool.join("iso/one.iso"));
        same_as(&image, &bytes, &world);
        let noticed = world.log("mnt.log").contains("it is passed over and reported");
        if !noticed {
            mend(&pool.join("iso/one.iso"));
            drop_caches_of(&image);
        }
        noticed
    });
    assert!(noticed, "{}", world.log("mnt.log"));
    let rotten = |it: &serde_json::Value| it["rotten"] == true;
    eventually_in(HASHED, "the rotten copy to be told", || {
        info()["replicas"]
            .as_array()
            .is_some_and(|all| all.iter().filter(|it| rotten(it)).count() == 1)
    });
    drop_caches_of(&image);
    same_as(&image, &bytes, &world);
}

#[test]
fn an_image_of_which_all_copies_rotted_is_an_error() {
    let world = World::new();
    let pool = world.pool("isos", &[]);
    write_image(&pool, "one.iso", &pattern("one.iso", LONG));
    let (_catalog, url) = world.catalog();
    let _agent = world.agent("a", &url, &[&pool]);
    let (_mount, path) = world.mount("mnt", &url);
    eventually_in(HASHED, "its hash", || {
        world.json(&url, &["info", "/other/one.iso"])["sha256"].is_string()
    });
    eventually("the image", || path.join("other/one.iso").exists());
    rot(&pool.join("iso/one.iso"));
    let read = within(READ_SECONDS, &["cat", text(&path.join("other/one.iso"))]);
    read.expect_failure(&["Input/output error"]);
    assert!(read.took < Duration::from_secs(9), "at once: {read:?}");
}

/// One bit, with the file's times as they were.
fn rot(file: &std::path::Path) {
    flip(file, LONG as u64 / 2);
}

fn mend(file: &std::path::Path) {
    rot(file);
}

fn flip(path: &std::path::Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).expect("opened");
    let modified = file.metadata().and_then(|it| it.modified()).expect("a time");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 1], at).expect("written");
    file.set_modified(modified).expect("set back");
}

fn same_as(image: &std::path::Path, bytes: &[u8], world: &World) {
    let expected = world.path("expected");
    std::fs::write(&expected, bytes).expect("written");
    within(READ_SECONDS, &["cmp", text(image), text(&expected)]).expect_well();
}

/// The next reader asks the hosts again.
fn drop_caches_of(image: &std::path::Path) {
    let dd = format!("if={}", text(image));
    within(READ_SECONDS, &["dd", &dd, "iflag=nocache", "count=0"]).expect_well();
}
