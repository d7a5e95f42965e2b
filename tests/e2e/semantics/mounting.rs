//! How a mount comes up, whose it is, and what it shows of modes and owners.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::time::SystemTime;

use libc::{EACCES, EPERM, EROFS};
use rustix::fs::{IFlags, ioctl_getflags};

use crate::harness::background::{Background, NOWHERE, USER, mounted_as, user_says};
use crate::harness::programs::within;
use crate::harness::volumes::{Access, remount};
use crate::harness::{World, errno, eventually, holds, pattern, text, walk};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("there").mode() & 0o7777
}

#[test]
fn a_mount_returns_when_it_answers() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso"]);
    let (_up, url, first) = world.up(&[&pool]);
    eventually("the image", || first.join("other/a.iso").is_file());
    let (background, mount) = world.mount_in_background(&url, "second", "rw");
    // At once, and by itself: its caller's pipes were closed, else this would hang.
    holds(mount.join("other/a.iso"), &pattern("a.iso", 300_000));
    assert_eq!(background.processes().len(), 2, "itself and its guard");
    assert!(within(20, &["umount", text(&mount)]).well());
    eventually("it ends when unmounted", || background.has_ended());

    let refused = world.mount_helper(&[NOWHERE, text(&mount), "-o", "timeout=1"]);
    let told = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(32), "{told}");
    assert!(told.contains("could not be reached within 1 s"), "{told}");
    assert_eq!(mounted_as(&mount), None);
    assert!(background.has_ended());
}

#[test]
fn a_mount_shows_one_owner_and_what_masks_leave() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso"]);
    let (_up, url, plain) = world.up(&[&pool]);
    let image = Path::new("other/a.iso");
    eventually("the image", || plain.join(image).is_file());
    assert_eq!((mode(&plain), mode(&plain.join("other"))), (0o2775, 0o2775));
    assert_eq!(mode(&plain.join(image)), 0o664);
    assert_eq!(fs::metadata(&plain).expect("there").uid(), 0);

    let options = "uid=nobody,gid=6,umask=027,dmask=077";
    let (_second, masked) = world.mount_in_background(&url, "masked", options);
    assert_eq!((mode(&masked.join("other")), mode(&masked.join(image))), (0o2700, 0o640));
    let meta = fs::metadata(masked.join(image)).expect("there");
    assert_eq!((meta.uid(), meta.gid()), (USER, 6));
    // The kernel checks what is shown: here nobody is the owner, there only one of the others.
    world.open_to_users();
    let reads = |mount: &Path| user_says(&format!("wc -c < {}/other/a.iso", text(mount)));
    assert_eq!(reads(&masked), (true, "300000".to_owned()));
    let writes = |mount: &Path, name| user_says(&format!("mkdir {}/linux/{name}", text(mount)));
    assert!(writes(&masked, "mine").0);
    assert!(writes(&plain, "others").1.contains("Permission denied"));
    // What is hidden is not changed by somebody who has not seen it.
    fs::set_permissions(masked.join(image), Permissions::from_mode(0o740)).expect("set");
    assert_eq!(mode(&masked.join(image)), 0o740);
    eventually("the other mount shows it", || mode(&plain.join(image)) == 0o764);
    assert_eq!(errno(chown(masked.join(image), Some(0), None)), EPERM);
    chown(masked.join(image), Some(USER), Some(6)).expect("its owner's already");
}

#[test]
fn a_read_only_mount_changes_nothing() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso"]);
    let (_up, url, plain) = world.up(&[&pool]);
    eventually("the image", || plain.join("other/a.iso").is_file());
    let (_second, mount) = world.mount_in_background(&url, "second", "ro");
    let image = mount.join("other/a.iso");
    assert_eq!((mode(&mount), mode(&mount.join("other")), mode(&image)), (0o555, 0o555, 0o444));
    holds(&image, &pattern("a.iso", 300_000));
    let refuses = || {
        assert_eq!(errno(File::create_new(mount.join("x.iso"))), EROFS);
        assert_eq!(errno(fs::create_dir(mount.join("x"))), EROFS);
        assert_eq!(errno(fs::rename(&image, mount.join("b.iso"))), EROFS);
        assert_eq!(errno(fs::remove_file(&image)), EROFS);
        assert_eq!(errno(fs::remove_dir(mount.join("windows"))), EROFS);
        assert_eq!(errno(fs::set_permissions(&image, Permissions::from_mode(0o400))), EROFS);
    };
    refuses();
    assert_eq!(errno(File::options().write(true).open(&image)), EROFS);
    let touched = File::open(&image).and_then(|it| it.set_modified(SystemTime::UNIX_EPOCH));
    assert_eq!(errno(touched), EROFS);
    // The kernel's own flag is gone; ours is not.
    within(20, &["mount", "-i", "-o", "remount,rw", text(&mount)]).expect_well();
    refuses();
    assert_eq!(walk(&plain), ["linux/", "other/", "other/a.iso", "windows/"]);
    fs::create_dir(plain.join("new")).expect("made");
    eventually("what others change shows", || mount.join("new").is_dir());
}

#[test]
fn a_library_that_is_not_mounted_takes_no_files() {
    let world = World::new();
    // What is immutable goes with its file system.
    let disk = world.small_pool("disk", 16);
    let dir = |name: &str| {
        let path = disk.join(name);
        fs::create_dir(&path).expect("made");
        world.unmount_in_the_end(&path);
        path
    };
    let start = |path: &Path, url: &str, options: &str| {
        world.start("mnt.log", &["mount", text(path), "--catalog", url, "-o", options])
    };
    let (_catalog, url) = world.catalog();
    let mount = dir("mnt");
    // Already while the catalogue is awaited.
    let waiting = start(&mount, &format!("http://{NOWHERE}"), "immutable");
    let flags = || File::open(&mount).map(|dir| ioctl_getflags(dir).expect("ext4 has flags"));
    eventually("the flag", || flags().is_ok_and(|it| it.contains(IFlags::IMMUTABLE)));
    waiting.stop();
    let part = start(&mount, &url, "immutable");
    part.wait_for("mounted");
    fs::create_dir(mount.join("new")).expect("the library takes changes");
    part.stop();
    assert_eq!(mounted_as(&mount), None);
    assert_eq!(errno(File::create(mount.join("x.iso"))), EPERM);
    assert_eq!(errno(fs::create_dir(mount.join("x"))), EPERM);
    assert_eq!(errno(fs::remove_dir(&mount)), EPERM);
    let told = world.log("mnt.log");
    assert_eq!(told.matches("is immutable now").count(), 1, "said the first time: {told}");

    let left = dir("left");
    let part = start(&left, &url, "noimmutable");
    part.wait_for("mounted");
    part.stop();
    fs::remove_dir(&left).expect("left as it was");
    // A directory that cannot be changed is left, too, and mounted on.
    let unchanged = dir("unchanged");
    remount(&disk, Access::ReadOnly);
    let part = start(&unchanged, &url, "immutable");
    part.wait_for("mounted");
    assert_eq!(part.stop(), 0);
}

#[test]
fn a_user_mounts_for_that_user_alone() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso"]);
    let (_up, url, first) = world.up(&[&pool]);
    eventually("the image", || first.join("other/a.iso").is_file());
    let mount = world.dir_of_user("mine");
    let _background = Background::of(&mount);
    let start = || {
        let args = ["mount", text(&mount), "--catalog", &url];
        let part = world.spawn("mine.log", world.command_of_user(&args));
        part.wait_for("mounted");
        part
    };
    let part = start();
    let look = format!("stat -c %u:%g:%a {0}/other && wc -c < {0}/other/a.iso", text(&mount));
    let seen = (true, format!("{USER}:{USER}:2775\n300000"));
    assert_eq!(user_says(&look), seen);
    // Not even root.
    assert_eq!(errno(fs::read_dir(&mount)), EACCES);
    let told = world.log("mine.log");
    assert_eq!(told.matches("mounted for this user alone").count(), 1, "{told}");
    // What a killed one leaves is cleared by the next.
    part.kill();
    let part = start();
    assert_eq!(user_says(&look), seen);
    assert_eq!(part.stop(), 0);
    assert_eq!(mounted_as(&mount), None);
    // One that the user unmounts ends.
    let mut part = start();
    assert_eq!(user_says(&format!("umount {}", text(&mount))), (true, String::new()));
    assert_eq!(part.wait(), 0);

    let shared = ["mount", text(&mount), "--catalog", &url, "-o", "allow_other"];
    let refused = world.command_of_user(&shared).output().expect("it runs");
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(told.contains("the line user_allow_other"), "{told}");
    assert_eq!(refused.status.code(), Some(5));
}
