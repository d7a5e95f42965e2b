//! A mount killed while one of its threads waits in the kernel for a lock that a request to the
//! mount holds: by itself it would never end, nor would anybody who looks at the mount point.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use rustix::process::Signal;

use crate::harness::{Part, World, eventually, text};

/// One second for the guard to be sure, and plenty for a busy machine.
const ENDED: Duration = Duration::from_secs(30);

/// The process that guards a mount point.
fn guard_of(mountpoint: &Path) -> Option<String> {
    let processes = fs::read_dir("/proc").expect("a listing").flatten();
    let ours = format!("\0{}\0", text(mountpoint));
    let mut names = processes.map(|it| it.file_name().to_string_lossy().into_owned());
    names.find(|pid| {
        fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|it| it.contains("\0guard\0") && it.ends_with(&ours))
    })
}

struct Stuck {
    mounted: Part,
    mount: PathBuf,
    url: String,
    catalog: Part,
    _agent: Part,
}

/// A mount of which a thread waits in the kernel, for a folder that a `create` has locked.
fn stuck(world: &World) -> Stuck {
    let pool = world.pool("isos", &["a.iso"]);
    let (catalog, url) = world.catalog();
    let agent = world.agent("a", &url, &[&pool]);
    let scanned = || world.json(&url, &["scan"])["volumes_scanned"] == 1;
    eventually("the image in the list that the mount begins with", scanned);
    world.fail_next(Some("mount.notify.begun=sleep(2500)"));
    let (mounted, mount) = world.mount("mnt", &url);
    world.fail_next(None);
    assert!(mount.join("other/a.iso").exists());
    assert!(world.run(&["--server", &url, "mv", "/other/a.iso", "/other/b.iso"]).status.success());
    // The kernel is about to be told, when a create waits for two seconds for the catalogue.
    thread::sleep(Duration::from_millis(1500));
    catalog.signal(Signal::STOP);
    let mut touch = Command::new("timeout");
    touch.args(["-s", "KILL", "100", "touch"]).arg(mount.join("other/new.iso"));
    let mut touch = touch.stderr(Stdio::null()).spawn().expect("touch runs");
    thread::spawn(move || touch.wait());
    eventually("a thread waiting in the kernel", || mounted.waits_in_the_kernel());
    Stuck { mounted, mount, url, catalog, _agent: agent }
}

/// Whether somebody who looks at the mount point has to be killed.
fn hangs(mount: &Path) -> bool {
    /// As timeout(1) ends when it had to send SIGKILL.
    const KILLED: i32 = 128 + 9;
    let listed = Command::new("timeout").args(["-s", "KILL", "10", "ls"]).arg(mount).output();
    listed.expect("ls runs").status.code() == Some(KILLED)
}

#[test]
fn a_killed_mount_that_cannot_die_is_cut_off_by_its_guard() {
    let world = World::new();
    let Stuck { mut mounted, mount, url, catalog, _agent } = stuck(&world);
    assert!(guard_of(&mount).is_some());
    let killed = Instant::now();
    mounted.signal(Signal::KILL);
    while mounted.lives() {
        assert!(killed.elapsed() < ENDED, "the mount ends");
        thread::sleep(Duration::from_millis(20));
    }
    eventually("it told", || world.log("mnt.log").contains("could not die"));
    assert!(!hangs(&mount));
    catalog.signal(Signal::CONT);
    let (_again, mount) = world.mount("mnt", &url);
    assert!(mount.join("other/b.iso").exists());
    assert!(guard_of(&mount).is_some(), "the new one has its own");
}

#[test]
fn a_mount_that_starts_cuts_off_one_that_cannot_die() {
    let world = World::new();
    let Stuck { mut mounted, mount, url, catalog, _agent } = stuck(&world);
    let guard = guard_of(&mount).expect("a guard");
    assert!(Command::new("kill").args(["-9", &guard]).status().expect("kill runs").success());
    mounted.signal(Signal::KILL);
    thread::sleep(Duration::from_secs(2));
    assert!(mounted.lives(), "it cannot die by itself");
    catalog.signal(Signal::CONT);
    let (_again, mount) = world.mount("mnt", &url);
    assert!(mount.join("other/b.iso").exists());
    eventually("the end of the killed one", || !mounted.lives());
}
