//! The parts as processes of their own: one tree everywhere, through restarts and kills.

use std::fs;
use std::time::{Duration, Instant};

use isotope_proto::id::{ImageId, VolumeId};
use isotope_proto::pb;
use isotope_proto::pb::content_service_client::ContentServiceClient;
use isotope_proto::refusal::{Reason, Refusal};
use rustix::process::Signal;

use crate::harness::{World, eventually, holds, pattern, same_bytes, text, walk, write_image};

#[test]
fn three_agents_a_catalogue_and_two_mounts_show_one_tree() {
    let world = World::new();
    let pools = [
        world.pool("alpha", &["debian-12.5.0-amd64-netinst.iso", "same.iso"]),
        world.pool("beta", &["Win11_23H2_English_x64.iso", "same.iso"]),
        world.pool("gamma", &["linux/ubuntu/noble.iso", "tool.img"]),
    ];
    let (_catalog, url) = world.catalog();
    let (_first, one) = world.mount("one", &url);
    let agents: Vec<_> = ["a", "b", "c"]
        .iter()
        .zip(&pools)
        .map(|(name, pool)| world.agent(name, &url, &[pool]))
        .collect();
    let (_second, two) = world.mount("two", &url);
    let images = |path| walk(path).iter().filter(|it| !it.ends_with('/')).count();
    eventually("six images in both", || images(&one) == 6 && images(&two) == 6);
    assert_eq!(walk(&one), walk(&two));
    for expected in [
        "linux/debian-12.5.0-amd64-netinst.iso",
        "linux/ubuntu/noble.iso",
        "other/same.iso",
        "other/tool.img",
        "windows/Win11_23H2_English_x64.iso",
    ] {
        assert!(one.join(expected).is_file(), "{expected}");
    }
    // The later of two files of one name has its pool in its own.
    let second_name = |pool: &str| one.join(format!("other/same.{pool}.iso")).is_file();
    assert!(second_name("alpha") || second_name("beta"));

    // Each mount reads from each host.
    for mount in [&one, &two] {
        for (path, seed) in [
            ("linux/debian-12.5.0-amd64-netinst.iso", "debian-12.5.0-amd64-netinst.iso"),
            ("windows/Win11_23H2_English_x64.iso", "Win11_23H2_English_x64.iso"),
            ("linux/ubuntu/noble.iso", "linux/ubuntu/noble.iso"),
        ] {
            holds(mount.join(path), &pattern(seed, 300_000));
        }
    }

    // What one changes, the other sees, names known to be absent included.
    assert!(!two.join("boot").exists());
    fs::create_dir(one.join("boot")).expect("made");
    eventually("the folder in the other mount", || two.join("boot").is_dir());
    fs::rename(two.join("other/tool.img"), two.join("boot/tool.img")).expect("moved");
    eventually("the move in the first", || one.join("boot/tool.img").is_file());
    eventually("no more under the old name", || !one.join("other/tool.img").exists());
    assert!(pools[2].join("iso/tool.img").is_file(), "no byte was moved");

    let status = world.json(&url, &["status"]);
    assert_eq!(status["images"], 6);
    assert_eq!(status["nodes"].as_array().map(Vec::len), Some(3));
    assert_eq!(status["watchers"].as_array().map(Vec::len), Some(2));
    drop(agents);
}

#[test]
fn everything_survives_a_restart_of_each_process() {
    let world = World::new();
    let pool = world.pool("isos", &["debian-12.iso", "tool.iso"]);
    let (catalog, url) = world.catalog();
    let agent = world.agent("a", &url, &[&pool]);
    let (mount, path) = world.mount("mnt", &url);
    eventually("the images", || path.join("linux/debian-12.iso").is_file());
    fs::create_dir(path.join("kept")).expect("made");
    fs::rename(path.join("other/tool.iso"), path.join("kept/mine.iso")).expect("moved");
    let before = walk(&path);
    let inode = |name: &str| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(path.join(name)).expect("there").ino()
    };
    let number = inode("kept/mine.iso");

    // The catalogue, killed: the mount goes on, and follows the new one on the same port.
    catalog.kill();
    assert_eq!(walk(&path), before);
    let listen = url.trim_start_matches("http://").to_owned();
    let (catalog, _) = world.catalog_on(&listen);
    eventually("changes work again", || fs::create_dir(path.join("again")).is_ok());
    fs::remove_dir(path.join("again")).expect("removed");

    // The agent, killed.
    agent.kill();
    let agent = world.agent("a", &url, &[&pool]);
    write_image(&pool, "new.iso", b"new");
    eventually("the agent is back", || world.json(&url, &["scan"])["volumes_scanned"] == 1);
    eventually("its new image", || path.join("other/new.iso").is_file());
    holds(path.join("kept/mine.iso"), &pattern("tool.iso", 300_000));
    fs::remove_file(pool.join("iso/new.iso")).expect("removed");
    world.json(&url, &["scan"]);
    eventually("it is gone", || !path.join("other/new.iso").exists());

    // The mount, killed: what it leaves is cleared by the next one.
    mount.kill();
    let (mount, _) = world.mount("mnt", &url);
    assert_eq!(walk(&path), before);
    assert_eq!(inode("kept/mine.iso"), number, "inode numbers outlive everything");

    for part in [mount, agent, catalog] {
        assert_eq!(part.stop(), 0);
    }
    assert!(walk(&path).is_empty(), "unmounted");
}

#[test]
fn up_ends_cleanly_and_starts_again_after_a_kill() {
    let world = World::new();
    let pool = world.pool("isos", &["debian-12.iso"]);
    let (part, _, path) = world.up(&[&pool]);
    assert!(path.join("linux/debian-12.iso").is_file());
    part.kill();
    let (part, _, path) = world.up(&[&pool]);
    assert!(path.join("linux/debian-12.iso").is_file());
    assert_eq!(part.stop(), 0);
    assert!(walk(&path).is_empty());
    // And with the terminal's signal.
    let (part, _, _) = world.up(&[&pool]);
    part.signal(Signal::INT);
    let mut part = part;
    assert_eq!(part.wait(), 0);
}

#[test]
fn a_mount_waits_for_its_catalogue_and_comes_up_by_itself() {
    let world = World::new();
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .expect("a port")
        .local_addr()
        .expect("its address");
    let path = world.mount_point("mnt");
    let url = format!("http://{port}");
    let mount = world.start("mnt.log", &["mount", text(&path), "--catalog", &url]);
    eventually("it says that it waits", || {
        world.log("mnt.log").contains("waiting for the catalogue")
    });
    let (_catalog, _) = world.catalog_on(&port.to_string());
    mount.wait_for("mounted");
    assert_eq!(walk(&path), ["linux/", "other/", "windows/"]);
}

#[test]
fn a_second_agent_with_the_same_identity_is_refused() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso"]);
    let (_catalog, url) = world.catalog();
    let _first = world.agent("first", &url, &[&pool]);
    eventually("the first is known", || world.json(&url, &["node", "ls"])["connected"] == true);
    // Its state directory, copied to another host.
    fs::create_dir_all(world.path("agent-second/agent")).expect("made");
    let identity = "agent/node.json";
    fs::copy(world.path("agent-first").join(identity), world.path("agent-second").join(identity))
        .expect("copied");
    let _second = world.agent("second", &url, &[]);
    eventually("the second is told", || {
        world.log("agent-second.log").contains("this node's identity")
    });
    assert_eq!(world.json(&url, &["node", "ls"])["name"], "first");
}

#[test]
fn a_stopped_agent_costs_a_bounded_pause_and_nothing_else() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso"]);
    let other = world.pool("more", &["b.iso"]);
    let (_catalog, url) = world.catalog();
    let stopped = world.agent("stopped", &url, &[&pool]);
    let _other = world.agent("other", &url, &[&other]);
    let (_mount, path) = world.mount("mnt", &url);
    eventually("both images", || {
        path.join("other/a.iso").exists() && path.join("other/b.iso").exists()
    });
    stopped.signal(Signal::STOP);
    let begin = Instant::now();
    let read = fs::read(path.join("other/a.iso"));
    assert_eq!(read.expect_err("no host").raw_os_error(), Some(libc::EIO));
    // Its deadline is 10 s.
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    holds(path.join("other/b.iso"), &pattern("b.iso", 300_000));
    assert_eq!(walk(&path).len(), 5);
    stopped.signal(Signal::CONT);
    eventually("it reads again", || fs::read(path.join("other/a.iso")).is_ok());
}

#[test]
fn listing_folders_that_others_remove_does_not_hang() {
    let world = World::new();
    let (_up, url, first) = world.up(&[]);
    let (_second, second) = world.mount("second", &url);
    std::thread::scope(|scope| {
        let churn = scope.spawn(|| {
            for n in 0..300 {
                let path = first.join(format!("gone-{}", n % 3));
                let _ = fs::create_dir(&path);
                let _ = fs::remove_dir(&path);
            }
        });
        // Its folders are open when they go: each listing then asks for a ghost.
        while !churn.is_finished() {
            for n in 0..3 {
                if let Ok(open) = fs::File::open(second.join(format!("gone-{n}"))) {
                    for _ in 0..5 {
                        let _ = rustix::fs::Dir::read_from(&open).map(Iterator::count);
                    }
                }
            }
        }
    });
    eventually("both the same", || walk(&first) == walk(&second));
}

#[test]
fn a_new_incarnation_shows_no_old_bytes_and_no_old_absence() {
    let world = World::new();
    let pool = world.pool("isos", &["s1.iso", "s2.iso", "s3.iso"]);
    let (catalog, url) = world.catalog();
    let _agent = world.agent("a", &url, &[&pool]);
    let (_mount, path) = world.mount("mnt", &url);
    eventually("the images", || walk(&path).len() == 6);
    let open = fs::File::open(path.join("other/s2.iso")).expect("opened");
    assert!(!path.join("zed").exists(), "known to be absent");
    catalog.kill();
    // The database is lost; meanwhile files came that shift all numbers.
    fs::remove_dir_all(world.path("catalog")).expect("lost");
    for n in 0..4 {
        write_image(&pool, &format!("aa{n}.iso"), &pattern(&format!("aa{n}"), 10 + n));
    }
    let (_catalog, _) = world.catalog_on(url.trim_start_matches("http://"));
    eventually("the new life", || path.join("other/aa3.iso").exists());
    assert!(world.run(&["--server", &url, "mkdir", "/zed"]).status.success());
    eventually("what was absent", || path.join("zed").is_dir());
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; 300_000];
    // The old image, whole; or an error. Never another's bytes, and never a short file.
    match open.read_exact_at(&mut bytes, 0) {
        Ok(()) => same_bytes(&bytes, &pattern("s2.iso", 300_000)),
        Err(error) => assert!(
            [libc::EIO, libc::ESTALE].contains(&error.raw_os_error().unwrap_or(0)),
            "{error}"
        ),
    }
    for n in 1..=3 {
        let name = format!("s{n}.iso");
        holds(path.join("other").join(&name), &pattern(&name, 300_000));
    }
}

#[test]
fn slow_clients_hold_up_nobody() {
    let world = World::new();
    let pool = world.pool("isos", &[]);
    for n in 0..3000 {
        write_image(&pool, &format!("{n:05}-with-a-name-long-enough-to-fill-buffers.iso"), b"x");
    }
    let (_up, url, _) = world.up(&[&pool]);
    let slow: Vec<_> = (0..8)
        .map(|_| {
            let mut command = world.command(&["--server", &url, "--json", "ls", "/other"]);
            // Nobody reads the pipe.
            command.stdout(std::process::Stdio::piped()).spawn().expect("started")
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(world.json(&url, &["status"])["images"], 3000);
    let (_mount, path) = world.mount("second", &url);
    assert_eq!(walk(&path).len(), 3003);
    for mut child in slow {
        child.kill().expect("killed");
        child.wait().expect("gone");
    }
}

#[test]
fn a_linked_mount_point_is_unmounted_and_cleared_like_any_other() {
    let world = World::new();
    let real = world.mount_point("real");
    let link = world.path("link");
    std::os::unix::fs::symlink("real", &link).expect("linked");
    let (_catalog, url) = world.catalog();
    let start = || {
        let part = world.start("mnt.log", &["mount", text(&link), "--catalog", &url]);
        part.wait_for("mounted");
        part
    };
    let part = start();
    assert!(link.join("linux").is_dir());
    part.kill();
    let part = start();
    assert_eq!(walk(&real).len(), 3);
    assert_eq!(part.stop(), 0);
    assert!(walk(&real).is_empty(), "unmounted");
}

#[test]
fn small_reads_wait_for_no_timer() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso"]);
    write_image(&pool, "big.iso", &pattern("big", 64 << 20));
    let (_catalog, url) = world.catalog();
    // Another host's, by its name: what is read comes over the network.
    let _agent = world.agent("elsewhere", &url, &[&pool]);
    let (_mount, path) = world.mount("mnt", &url);
    eventually("the image", || path.join("other/big.iso").exists());
    let file = fs::File::open(path.join("other/big.iso")).expect("opened");
    use std::os::unix::fs::FileExt;
    let begin = Instant::now();
    for n in 0..100_u64 {
        // Far apart, so that each is a request of its own.
        file.read_exact_at(&mut [0; 512], (n * 7919 % 640) * 100_000).expect("read");
    }
    // Delayed acknowledgements would make it 4.4 s at the least; without, it is tens of milliseconds.
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
}

#[test]
fn a_program_of_others_reads_by_grpc() {
    let world = World::new();
    let pool = world.pool("isos", &[]);
    let bytes = pattern("a.iso", 3_000_001);
    write_image(&pool, "a.iso", &bytes);
    let (_catalog, url) = world.catalog();
    let _agent = world.agent("a", &url, &[&pool]);
    let info = || world.json(&url, &["info", "/other/a.iso"]);
    eventually("the image", || info()["id"].is_string());
    let (info, node) = (info(), world.json(&url, &["node", "ls"]));
    let image: ImageId = info["id"].as_str().expect("an id").parse().expect("an id");
    let volume = info["replicas"][0]["volume_id"].as_str().expect("an id");
    let volume: VolumeId = volume.parse().expect("an id");
    let endpoint = format!("http://{}", node["address"].as_str().expect("an address"));
    let endpoint = tonic::transport::Endpoint::from_shared(endpoint).expect("a URL");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let read = async |offset_bytes, length_bytes| {
        let mut client = ContentServiceClient::new(endpoint.connect_lazy());
        let request = pb::ReadRequest {
            image_id: image.into(),
            volume_id: volume.into(),
            offset_bytes,
            length_bytes,
        };
        let mut pieces = client.read(request).await?.into_inner();
        let mut all = Vec::new();
        while let Some(piece) = pieces.message().await? {
            all.extend_from_slice(&piece.data);
        }
        Ok::<_, tonic::Status>(all)
    };
    runtime.block_on(async {
        same_bytes(&read(0, 3_000_001).await.expect("read"), &bytes);
        same_bytes(&read(2_000_000, 7).await.expect("read"), &bytes[2_000_000..2_000_007]);
        same_bytes(&read(5, 0).await.expect("read"), &[]);
        let refused = read(3_000_000, 2).await.expect_err("past the end");
        assert_eq!(refused.code(), tonic::Code::OutOfRange);
    });
}

#[test]
fn an_agent_that_is_asked_for_anothers_volume_says_nothing_of_its_images() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso"]);
    let (_catalog, url) = world.catalog();
    let _agent = world.agent("a", &url, &[&pool]);
    let address = || world.json(&url, &["node", "ls"])["address"].as_str().map(str::to_owned);
    eventually("the agent's address", || address().is_some());
    let endpoint = format!("http://{}", address().expect("known"));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let refused = runtime.block_on(async {
        let endpoint = tonic::transport::Endpoint::from_shared(endpoint).expect("a URL");
        let mut client = ContentServiceClient::new(endpoint.connect_lazy());
        let request = pb::ReadRequest {
            image_id: vec![1; 16],
            volume_id: vec![2; 16],
            offset_bytes: 0,
            length_bytes: 1,
        };
        client.read(request).await.map(drop).expect_err("refused")
    });
    // Its reader asks elsewhere, and here again: the bytes are not gone.
    assert_eq!(Refusal::from(refused).reason, Reason::Unavailable);
}
