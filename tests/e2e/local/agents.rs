//! Agents, mounts and catalogues that are away, stopped or killed before a local image is opened, or
//! while it is read.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use rustix::process::Signal;

use super::{LEN, all_closed, count, opens, passes_through, reads};
use crate::harness::background::user_says;
use crate::harness::{SOON, World, eventually, holds, pattern, same_bytes, text, write_image};

#[track_caller]
fn reads_all(open: &File) {
    let mut all = vec![0; LEN];
    open.read_exact_at(&mut all, 0).expect("read");
    same_bytes(&all, &pattern("a", LEN));
}

#[test]
fn readers_go_on_when_their_agent_is_killed_and_others_join_them() {
    let world = World::new();
    let pool = world.pool("isos", &[]);
    write_image(&pool, "a.iso", &pattern("a", LEN));
    let (_catalog, url) = world.catalog();
    let agent = world.agent("a", &url, &[&pool]);
    let (_mount, mount) = world.mount_beside("a", "mnt", &url);
    let image = mount.join("other/a.iso");
    eventually("the image", || image.is_file());
    passes_through(&mount, &image);
    let open = File::open(&image).expect("opened");
    agent.kill();
    reads_all(&open);
    let second = File::open(&image).expect("joins");
    reads_all(&second);
    assert_eq!(count(&mount, "/open_passed_through"), 2, "{}", reads(&mount));
    assert!(opens(&mount).1.is_empty(), "{}", reads(&mount));
    drop((open, second));
    all_closed(&mount);
    // The next first open finds no agent, and does not fail; back again, it is asked.
    drop(File::open(&image).expect("an open needs no host"));
    assert_eq!(opens(&mount).1, ["agent_silent 1"]);
    let _agent = world.agent("a", &url, &[&pool]);
    passes_through(&mount, &image);
}

#[test]
fn a_stopped_agent_is_not_waited_for() {
    let world = World::new();
    let pools = ["one", "two"].map(|name| world.pool(name, &[]));
    for pool in &pools {
        write_image(pool, "a.iso", &pattern("a", LEN));
    }
    let (_catalog, url) = world.catalog();
    let here = world.agent("here", &url, &[&pools[0]]);
    let _there = world.agent("there", &url, &[&pools[1]]);
    let (_mount, mount) = world.mount_beside("here", "mnt", &url);
    let image = mount.join("other/a.iso");
    // The same bytes under one name are one image, with a file on either host.
    let nodes = || {
        let mut value = [0; 256];
        let len = rustix::fs::getxattr(&image, "user.isotope.nodes", &mut value).unwrap_or(0);
        String::from_utf8_lossy(&value[..len]).into_owned()
    };
    eventually("one image of two files", || nodes() == "here,there");
    passes_through(&mount, &image);
    here.halt();
    let begin = Instant::now();
    let open = File::open(&image).expect("opened");
    assert!(begin.elapsed() < SOON, "half a second is the limit: {:?}", begin.elapsed());
    // Through the mount then, and from the other host.
    reads_all(&open);
    assert_eq!(opens(&mount).1, ["agent_silent 1"]);
    drop(open);
    here.signal(Signal::CONT);
    passes_through(&mount, &image);
}

#[test]
fn images_of_other_hosts_are_read_through_the_mount() {
    let world = World::new();
    let pool = world.pool("isos", &[]);
    write_image(&pool, "a.iso", &pattern("a", LEN));
    let (_catalog, url) = world.catalog();
    let _agent = world.agent("there", &url, &[&pool]);
    let (_mount, mount) = world.mount_beside("here", "mnt", &url);
    let image = mount.join("other/a.iso");
    eventually("the image", || image.is_file());
    holds(&image, &pattern("a", LEN));
    assert_eq!(opens(&mount), (0, vec!["not_local 1".to_owned()]));
    assert!(count(&mount, "/bytes_from_hosts") >= LEN as u64, "{}", reads(&mount));
}

#[test]
fn a_mount_that_starts_without_the_catalogue_passes_through() {
    let world = World::new();
    let pool = world.pool("isos", &[]);
    write_image(&pool, "a.iso", &pattern("a", LEN));
    let (catalog, url) = world.catalog();
    let _agent = world.agent("a", &url, &[&pool]);
    let (part, mount) = world.mount_beside("a", "mnt", &url);
    let image = mount.join("other/a.iso");
    eventually("the image", || image.is_file());
    catalog.kill();
    assert_eq!(part.stop(), 0);
    let (_mount, mount) = world.mount_beside("a", "mnt", &url);
    passes_through(&mount, &image);
    holds(&image, &pattern("a", LEN));
    assert_eq!(count(&mount, "/bytes_from_hosts"), 0, "{}", reads(&mount));
}

#[test]
fn a_users_mount_reads_by_itself() {
    let world = World::new();
    let pool = world.pool("isos", &[]);
    write_image(&pool, "a.iso", &pattern("a", LEN));
    let (_catalog, url) = world.catalog();
    let _agent = world.agent("a", &url, &[&pool]);
    let mount = world.dir_of_user("mnt");
    let state = world.dir_of_user("state-of-user");
    let mut command = world.command_of_user(&["mount", text(&mount), "--catalog", &url]);
    command.env("ISOTOPE_AGENT_NAME", "a").env("ISOTOPE_STATE", &state);
    let part = world.spawn("mount.log", command);
    part.wait_for("mounted");
    // Nobody else sees into it.
    let image = format!("{}/other/a.iso", mount.display());
    eventually("the image", || user_says(&format!("test -f {image}")).0);
    let copy = state.join("copy");
    assert_eq!(user_says(&format!("cp {image} {}", copy.display())), (true, String::new()));
    holds(&copy, &pattern("a", LEN));
    let ask = format!(
        "getfattr --absolute-names --only-values -n user.isotope.reads {}",
        mount.display()
    );
    let (_, told) = user_says(&ask);
    assert!(told.contains(r#""unprivileged":1"#), "{told}");
    assert!(told.contains(r#""opens_passed_through":0"#), "{told}");
}

/// Readers outlive their mount however it ends, and once they have closed the pool's disk is free.
fn outlived(end: impl FnOnce(&mut Option<crate::harness::Part>, &Path)) {
    let world = World::new();
    let pool = world.small_pool("isos", 32);
    write_image(&pool, "a.iso", &pattern("a", LEN));
    let (_catalog, url) = world.catalog();
    let agent = world.agent("a", &url, &[&pool]);
    let (part, mount) = world.mount_beside("a", "mnt", &url);
    let image = mount.join("other/a.iso");
    eventually("the image", || image.is_file());
    passes_through(&mount, &image);
    let open = File::open(&image).expect("opened");
    let mut part = Some(part);
    end(&mut part, &mount);
    reads_all(&open);
    assert_eq!(agent.stop(), 0);
    let unmount = || rustix::mount::unmount(&pool, UnmountFlags::empty()).is_ok();
    assert!(!unmount(), "its file is in use");
    drop(open);
    drop(part);
    // A dead mount lets go of the files when it is unmounted.
    let _ = rustix::mount::unmount(&mount, UnmountFlags::FORCE | UnmountFlags::DETACH);
    eventually("the disk is free", unmount);
}

#[test]
fn readers_outlive_a_killed_mount() {
    outlived(|part, _| part.take().expect("it runs").kill());
}

#[test]
fn readers_outlive_a_forced_unmount() {
    outlived(|_, mount| {
        let flags = UnmountFlags::FORCE | UnmountFlags::DETACH;
        rustix::mount::unmount(mount, flags).expect("unmounted");
    });
}

#[test]
fn readers_outlive_a_mount_that_is_stopped() {
    outlived(|part, _| {
        let begin = Instant::now();
        assert_eq!(part.take().expect("it runs").stop(), 0);
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    });
}
