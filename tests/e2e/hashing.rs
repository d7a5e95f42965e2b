//! What files hold is learnt, compared, and made use of: one image in several places, a rotten copy
//! passed over, published checksums shown.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Part, World, eventually, eventually_in, holds, pattern, text, write_image};

/// A catalogue and two agents, each with a pool directory of its own; the pools are called as said.
struct Two {
    world: World,
    url: String,
    dirs: [std::path::PathBuf; 2],
    _parts: Vec<Part>,
}

fn two(names: [&str; 2], images: [&[&str]; 2]) -> Two {
    let world = World::new();
    let dirs = [world.pool("one", images[0]), world.pool("two", images[1])];
    let (catalog, url) = world.catalog();
    let mut parts = vec![catalog];
    for (node, (dir, name)) in ["a", "b"].into_iter().zip(dirs.iter().zip(names)) {
        let pool = format!("{}={name}", text(dir));
        parts.push(world.agent(node, &url, &[Path::new(&pool)]));
    }
    Two { world, url, dirs, _parts: parts }
}

impl Two {
    /// Everything is found and hashed.
    fn settle(&self) {
        eventually("a scan of both", || {
            let scan = self.world.json(&self.url, &["scan", "--wait", "hashed"]);
            scan["volumes_scanned"].as_u64() == Some(2)
        });
    }

    fn info(&self, path: &str) -> Value {
        self.world.json(&self.url, &["info", path])
    }

    fn names(&self) -> Vec<String> {
        let listed = self.world.run(&["--server", &self.url, "ls", "/other"]);
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        listed.lines().map(str::to_owned).collect()
    }
}

/// Changes one byte, and nothing that a stamp would show.
pub(crate) fn rot(path: &Path, offset: u64) {
    let modified = fs::metadata(path).expect("a file").modified().expect("a time");
    let file = File::options().read(true).write(true).open(path).expect("opened");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("read");
    file.write_all_at(&[!byte[0]], offset).expect("written");
    file.set_modified(modified).expect("put back");
}

#[test]
fn the_same_iso_on_every_node_is_one_image_and_a_rotten_copy_is_passed_over() {
    let it = two(["isos", "isos"], [&["same.iso", "only.iso"], &["same.iso"]]);
    it.settle();
    eventually("one image", || it.names() == ["only.iso", "same.iso"]);
    let same = it.info("/other/same.iso");
    assert_eq!(same["replicas"].as_array().map(Vec::len), Some(2));
    let bytes = pattern("same.iso", 300_000);
    let expected = sha256(&it.world, &bytes);
    assert_eq!(same["sha256"], expected);

    // Rot is found, told, and not served.
    rot(&it.dirs[0].join("iso/same.iso"), 200_000);
    let verified = it.world.run(&["--server", &it.url, "verify", "/other/same.iso"]);
    let told = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert_eq!(verified.status.code(), Some(7), "{told}");
    assert!(told.contains("rotten") && told.contains("from byte 196608 on"), "{told}");
    let rotten = |info: &Value| {
        let replicas = info["replicas"].as_array().cloned().unwrap_or_default();
        replicas.iter().filter(|it| it["rotten"] == true).count()
    };
    eventually("the verdict", || rotten(&it.info("/other/same.iso")) == 1);
    let (_mount, path) = it.world.mount("mnt", &it.url);
    holds(path.join("other/same.iso"), &bytes);
    // With no sound copy left there is an error, and never the wrong bytes.
    rot(&it.dirs[1].join("iso/same.iso"), 7);
    let scrubbed = it.world.run(&["--server", &it.url, "scrub"]);
    assert_eq!(scrubbed.status.code(), Some(7));
    eventually("both verdicts", || rotten(&it.info("/other/same.iso")) == 2);
    let (_other, path) = it.world.mount("other", &it.url);
    assert!(fs::read(path.join("other/same.iso")).is_err());
    holds(path.join("other/only.iso"), &pattern("only.iso", 300_000));
}

fn sha256(world: &World, bytes: &[u8]) -> String {
    let path = world.path("to-be-summed");
    fs::write(&path, bytes).expect("written");
    let summed = std::process::Command::new("sha256sum").arg(&path).output().expect("summed");
    let text = String::from_utf8_lossy(&summed.stdout).into_owned();
    text.split(' ').next().unwrap_or_default().to_owned()
}

#[test]
fn equal_bytes_keep_their_names_and_other_bytes_under_one_name_a_second_one() {
    let it = two(["fast", "slow"], [&["a.iso", "b.iso"], &["c.iso"]]);
    write_image(&it.dirs[1], "a.iso", &pattern("another", 300_000));
    write_image(&it.dirs[1], "copy.iso", &pattern("b.iso", 300_000));
    it.settle();
    let expected = ["a.iso", "b.iso", "c.iso", "copy.iso"];
    eventually("all hashed", || {
        let names = it.names();
        names.len() == 5 && expected.iter().all(|name| names.iter().any(|it| it == name))
    });
    let second = it.names().into_iter().find(|name| !expected.contains(&name.as_str()));
    let second = second.expect("a second name");
    assert!(["a.fast.iso", "a.slow.iso"].contains(&second.as_str()), "{second}");
    let sum = |name: &str| it.info(&format!("/other/{name}"))["sha256"].clone();
    assert_eq!(sum("b.iso"), sum("copy.iso"));
    assert_ne!(sum("a.iso"), sum(&second));
}

#[test]
fn a_file_that_was_touched_is_read_again_and_one_that_was_not_is_not() {
    let world = World::new();
    let logged = "[log]\nfilter = \"info,isotope_agent=debug\"\n";
    fs::write(world.path("isotope.toml"), logged).expect("written");
    let pool = world.pool("isos", &["a.iso", "b.iso"]);
    let (_catalog, url) = world.catalog();
    let agent = world.agent("a", &url, &[&pool]);
    let hashed = || world.json(&url, &["scan", "--wait", "hashed"])["volumes_scanned"] == 1;
    eventually("hashed", hashed);
    let read_at = |name: &str| {
        let info = world.json(&url, &["info", &format!("/other/{name}")]);
        info["replicas"][0]["verified_at"].as_str().map(str::to_owned)
    };
    eventually("told", || read_at("a.iso").is_some() && read_at("b.iso").is_some());
    let reads = || world.log("agent-a.log").matches("a file was read whole").count();
    assert_eq!(reads(), 2);
    // A restart of the agent reads nothing anew, nor does another catalogue.
    agent.kill();
    let _agent = world.agent("a", &url, &[&pool]);
    eventually("scanned again", hashed);
    // `chown` and the like move the ctime alone.
    let modes = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(pool.join("iso/a.iso"), modes).expect("set");
    eventually_in(Duration::from_secs(30), "read again", || reads() == 3);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(reads(), 3, "once, and the other not at all");
}

#[test]
fn checksums_beside_the_images_are_compared() {
    let world = World::new();
    let pool = world.pool("isos", &["good.iso", "bad.iso", "other.iso"]);
    let good = sha256(&world, &pattern("good.iso", 300_000));
    let text = format!("{good}  good.iso\n{good} *bad.iso\n");
    fs::write(pool.join("iso/SHA256SUMS"), text).expect("written");
    let (_catalog, url) = world.catalog();
    let _agent = world.agent("a", &url, &[&pool]);
    let published = |name: &str| {
        let info = world.json(&url, &["info", &format!("/other/{name}")]);
        info["replicas"][0]["published"].clone()
    };
    eventually("compared", || published("good.iso")["agrees"] == true);
    assert_eq!(published("good.iso")["file"], "SHA256SUMS");
    eventually("compared", || published("bad.iso")["agrees"] == false);
    assert!(published("other.iso").is_null());
}

#[test]
fn waiting_for_hashes_ends_when_nobody_is_left_to_hash() {
    let world = World::new();
    let slow = "[agent]\nhash_mib_per_s = 1\n";
    fs::write(world.path("isotope.toml"), slow).expect("written");
    let pool = world.pool("isos", &[]);
    write_image(&pool, "large.img", &pattern("large.img", 100 << 20));
    let (_catalog, url) = world.catalog();
    let agent = world.agent("a", &url, &[&pool]);
    eventually("found", || world.json(&url, &["status"])["images"] == 1);
    let mut command = world.command(&["--server", &url, "scan", "--wait", "hashed"]);
    let mut waiting = command.stderr(std::process::Stdio::piped()).spawn().expect("begun");
    std::thread::sleep(Duration::from_secs(2));
    assert!(waiting.try_wait().expect("asked").is_none(), "it waits");
    agent.kill();
    eventually("an end", || waiting.try_wait().expect("asked").is_some());
    let output = waiting.wait_with_output().expect("ended");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(6), "{told}");
    assert!(told.contains("not all that was found is hashed"), "{told}");
}

#[test]
fn verifying_ends_when_the_host_has_stopped() {
    let world = World::new();
    let pool = world.pool("isos", &[]);
    // It takes longer to be read than the host has.
    let file = File::create(pool.join("iso/large.img")).expect("made");
    file.set_len(64 << 30).expect("sparse");
    drop(file);
    let (_catalog, url) = world.catalog();
    let agent = world.agent("a", &url, &[&pool]);
    eventually("found", || world.json(&url, &["status"])["images"] == 1);
    let mut command = world.command(&["--server", &url, "verify", "/other/large.img"]);
    let mut waiting = command.stdout(std::process::Stdio::piped()).spawn().expect("begun");
    std::thread::sleep(Duration::from_secs(1));
    agent.signal(rustix::process::Signal::STOP);
    let ended = || waiting.try_wait().expect("asked").is_some();
    eventually_in(Duration::from_secs(40), "an end", ended);
    let output = waiting.wait_with_output().expect("ended");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success() && told.contains("unreadable"), "{told}");
}
