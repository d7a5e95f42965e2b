//! Views: the same images under other folders.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use libc::{EEXIST, ENOENT, EPERM};

use crate::harness::{World, errno, eventually, holds, pattern, text, walk, write_image};

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).expect("a listing");
    entries.map(|it| it.expect("an entry").file_name().into_string().expect("text")).collect()
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

#[test]
fn views_show_the_same_images_otherwise() {
    let world = World::new();
    let fast = world.pool("fast", &["debian 12.iso", "x/a.iso", "disk.ova"]);
    let slow = world.pool("slow", &["y/a.iso"]);
    write_image(&slow, "same.iso", &pattern("x/a.iso", 300_000));
    let (_up, url, mount) = world.up(&[&fast, &slow]);
    let views = mount.join(".views");
    assert!(!walk(&mount).iter().any(|it| it.contains("views")), "found by name alone");
    let kinds = ["flat", "proxmox", "by-id", "by-os", "by-node", "by-pool", "duplicates"];
    assert_eq!(names(&views), set(kinds));
    let told = world.run(&["--server", &url, "views"]);
    let told = String::from_utf8(told.stdout).expect("text");
    assert!(kinds.iter().all(|kind| told.contains(&format!("/.views/{kind}"))), "{told}");

    let flat = views.join("flat");
    eventually("every image, once", || names(&flat).len() == 5);
    let shown = names(&flat);
    assert!(shown.is_superset(&set(["debian_12.iso", "disk.ova", "a.iso", "a-2.iso", "same.iso"])));
    let numbers = |dir: &Path| -> BTreeSet<u64> {
        names(dir).iter().map(|it| fs::metadata(dir.join(it)).expect("there").ino()).collect()
    };
    assert_eq!(numbers(&flat).len(), 5, "the images themselves");
    let debian = fs::metadata(mount.join("linux/debian 12.iso")).expect("there").ino();
    assert_eq!(fs::metadata(flat.join("debian_12.iso")).expect("there").ino(), debian);
    holds(flat.join("debian_12.iso"), &pattern("debian 12.iso", 300_000));

    // A name there stays, wherever the image goes.
    fs::rename(mount.join("linux/debian 12.iso"), mount.join("windows/d.iso")).expect("moved");
    assert_eq!(fs::metadata(flat.join("debian_12.iso")).expect("there").ino(), debian);
    assert_eq!(errno(fs::metadata(flat.join("d.iso"))), ENOENT);
    let id =
        world.json(&url, &["info", "/windows/d.iso"])["id"].as_str().expect("an id").to_owned();
    let by_id = views.join(format!("by-id/{id}.iso"));
    assert_eq!(fs::metadata(by_id).expect("there").ino(), debian);
    assert!(numbers(&views.join("by-id")).contains(&debian));
    let by_view = world.json(&url, &["info", text(&flat.join("debian_12.iso"))]);
    assert_eq!((&by_view["id"], &by_view["flat_names"][0]), (&id.into(), &"debian_12.iso".into()));

    assert_eq!(names(&views.join("by-pool")), set(["fast", "slow"]));
    assert_eq!(names(&views.join("by-pool/fast")).len(), 3);
    let node = names(&views.join("by-node")).into_iter().next().expect("a node");
    assert_eq!(names(&views.join("by-node").join(node)).len(), 5);
    assert_eq!(names(&views.join("by-os")), set(["linux", "other"]));
    assert_eq!(names(&views.join("by-os/other/unknown/unknown")).len(), 4);
    assert!(walk(&views.join("by-os/linux")).iter().any(|it| it.ends_with("/debian_12.iso")));
    let duplicates = views.join("duplicates");
    eventually("the twins, once they were hashed", || names(&duplicates).len() == 1);
    let group = names(&duplicates).into_iter().next().expect("a group");
    eventually("both", || names(&duplicates.join(&group)).len() == 2);

    // Nothing is made or changed there.
    let file = flat.join("debian_12.iso");
    assert_eq!(errno(fs::create_dir(flat.join("x"))), EPERM);
    assert_eq!(errno(fs::create_dir(&flat)), EEXIST);
    assert_eq!(errno(fs::write(flat.join("new.iso"), "some")), EPERM);
    assert_eq!(errno(fs::remove_file(&file)), EPERM);
    assert_eq!(errno(fs::rename(&file, flat.join("z.iso"))), EPERM);
    assert_eq!(errno(fs::rename(&file, mount.join("z.iso"))), EPERM);
    assert_eq!(errno(fs::hard_link(&file, flat.join("z.iso"))), EPERM);
    assert_eq!(errno(fs::remove_dir(&flat)), EPERM);
    assert_eq!(errno(fs::remove_dir(&views)), EPERM);
    assert_eq!(errno(fs::rename(mount.join("linux"), &views)), EPERM);
    let made = world.run(&["--server", &url, "mkdir", "/.views"]);
    assert_eq!(made.status.code(), Some(4));

    // One alone, in the place of the library.
    let alone = world.mount_point("alone");
    let args = ["--server", &url, "mount", "--view", "flat", text(&alone)];
    let part = world.start("alone.log", &args);
    part.wait_for("mounted");
    assert_eq!(names(&alone), names(&flat));
    assert_eq!(fs::metadata(alone.join("debian_12.iso")).expect("there").ino(), debian);
    assert!(fs::metadata(&alone).expect("there").is_dir() && !alone.join(".views").exists());
    assert_eq!(errno(fs::create_dir(alone.join("x"))), EPERM);

    // What is gone from the library is gone there at once.
    fs::remove_file(mount.join("windows/d.iso")).expect("removed");
    assert_eq!(errno(fs::metadata(&file)), ENOENT);
    assert!(!names(&flat).contains("debian_12.iso"));
}

#[test]
fn what_is_stored_through_the_proxmox_view_comes_to_incoming() {
    let world = World::new();
    let pool = world.pool("fast", &["a.iso", "disk.ova"]);
    let (_up, url, mount) = world.up(&[&pool]);
    let (_second, second) = world.mount("second", &url);
    let proxmox = mount.join(".views/proxmox");
    let iso = proxmox.join("template/iso");
    assert_eq!((names(&iso), names(&proxmox.join("import"))), (set(["a.iso"]), set(["disk.ova"])));
    for dir in ["template/iso", "template/cache", "import", "dump", "images", "snippets", "private"]
    {
        assert_eq!(errno(fs::create_dir(proxmox.join(dir))), EEXIST, "{dir}");
    }
    // Known to be absent, and listed before.
    assert!(!mount.join("incoming").exists() && !walk(&mount).contains(&"incoming/".to_owned()));
    let bytes = pattern("new", 300_000);
    let mut file = fs::File::create_new(iso.join("new.iso")).expect("made");
    file.write_all(&bytes).expect("written");
    assert_eq!(fs::metadata(iso.join("new.iso")).expect("listed for its writer").len(), 300_000);
    drop(file);
    assert_eq!(names(&iso), set(["a.iso", "new.iso"]));
    eventually("it is in the library", || mount.join("incoming/new.iso").exists());
    assert!(walk(&mount).contains(&"incoming/new.iso".to_owned()));
    eventually("and on the other mount", || second.join("incoming/new.iso").exists());
    holds(iso.join("new.iso"), &bytes);

    // As Proxmox VE downloads: under another name first.
    let part = iso.join("big.iso.tmp_dwnl.4711");
    fs::write(&part, &bytes).expect("stored");
    assert!(!names(&iso).contains("big.iso.tmp_dwnl.4711"), "no image's name");
    fs::rename(&part, iso.join("big.iso")).expect("renamed");
    assert!(names(&iso).contains("big.iso") && mount.join("incoming/big.iso").exists());
    assert!(!mount.join("incoming/big.iso.tmp_dwnl.4711").exists());
    // What is shown keeps its name, and folders are not shown.
    assert_eq!(errno(fs::rename(iso.join("big.iso"), iso.join("other.iso"))), EPERM);
    fs::create_dir(mount.join("incoming/folder")).expect("made");
    assert_eq!(errno(fs::metadata(iso.join("folder"))), ENOENT);
    fs::remove_dir(mount.join("incoming/folder")).expect("removed");
    // Whoever copies a directory into it sets its times at last.
    let now = rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: now, last_modification: now };
    let flags = rustix::fs::AtFlags::empty();
    rustix::fs::utimensat(rustix::fs::CWD, &iso, &times, flags).expect("no complaint");
    let chmod = fs::set_permissions(&iso, std::os::unix::fs::PermissionsExt::from_mode(0o700));
    assert_eq!(errno(chmod), EPERM);
    // And removes what it shows.
    fs::remove_file(iso.join("big.iso")).expect("removed");
    fs::remove_file(iso.join("a.iso")).expect("removed");
    assert_eq!(names(&iso), set(["new.iso"]));
    assert!(!mount.join("other/a.iso").exists() && !mount.join("incoming/big.iso").exists());
    // Not what has other names as well.
    fs::hard_link(mount.join("incoming/new.iso"), mount.join("linux/new.iso")).expect("linked");
    assert_eq!(errno(fs::remove_file(iso.join("new.iso"))), EPERM);
    assert_eq!(errno(fs::write(proxmox.join("dump/x.iso"), "some")), EPERM);
}
