//! libvirt and QEMU, replayed (`libvirt.py` has the calls): each call is answered, or refused in a
//! way that libvirt takes for an answer; what is wrong with one file is not wrong with its pool.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::harness::programs::limited;
use crate::harness::{World, eventually, pattern, text, write_image};

/// What it reads of each file (VIR_STORAGE_MAX_HEADER, storage_source.c).
pub(crate) const HEADER_BYTES: u64 = 0x8200;
/// Nobody's, and that of Debian's libvirt-qemu.
const OTHER: u32 = 64_055;

/// What the script says.
#[track_caller]
fn said(world: &World, words: &[&str]) -> Vec<u8> {
    let script = world.path("libvirt.py");
    fs::write(&script, include_str!("libvirt.py")).expect("written");
    let mut python = Command::new("python3");
    let output = limited(60, python.arg(&script).args(words)).output().expect("python3 runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The replay of a pool on `dir`, by `uid`, and of a machine of user `owner` with its `image`.
fn replayed(world: &World, dir: &Path, image: &str, uid: u32, owner: u32) -> Value {
    let (uid, owner) = (uid.to_string(), owner.to_string());
    let said = said(world, &[text(dir), image, &uid, &owner]);
    serde_json::from_slice(&said).expect("JSON")
}

/// What a refresh of the pool on `dir` finds of each file: the beginning that it reads, or the name
/// of the errno.
#[track_caller]
pub(crate) fn refreshed(world: &World, dir: &Path) -> BTreeMap<String, Result<Vec<u8>, String>> {
    let pool: Value = serde_json::from_slice(&said(world, &[text(dir)])).expect("JSON");
    let volumes = pool["volumes"].as_object().expect("volumes");
    let found = volumes.iter().map(|(name, it)| {
        let header = it["header"].as_str().map(|hex| {
            let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
            (0..hex.len()).step_by(2).map(byte).collect()
        });
        (name.clone(), header.ok_or_else(|| it.as_str().unwrap_or("nothing").to_owned()))
    });
    found.collect()
}

/// Nothing of what lies in `dir` is in the kernel's page cache any more.
pub(crate) fn drop_pages(world: &World, dir: &Path) {
    said(world, &[text(dir), "drop"]);
}

/// A pool that libvirt would show: with room, and each of its files known.
#[track_caller]
fn expect_pool(pool: &Value, names: &[&str]) {
    assert_eq!((&pool["directory"], &pool["access"]), (&true.into(), &true.into()), "{pool}");
    assert!(pool["capacity"].as_u64() > Some(0), "{pool}");
    let volumes = pool["volumes"].as_object().expect("volumes");
    for name in names {
        assert!(volumes.contains_key(*name), "{name}: {pool}");
    }
    for (name, volume) in volumes {
        if volume["directory"] == true {
            continue;
        }
        let (size, read) = (volume["size"].as_u64(), volume["header_bytes"].as_u64());
        assert_eq!(read, size.map(|it| it.min(HEADER_BYTES)), "{name}: {volume}");
        // virStorageBackendUpdateVolTargetInfoFD tolerates these two.
        let label = volume["label"].as_str();
        assert!(matches!(label, Some("EOPNOTSUPP" | "ENODATA")), "{name}: {volume}");
    }
}

/// A machine that would start: nothing that virSecurityDACSetOwnership or
/// virSecuritySELinuxSetFilecon give up for.
#[track_caller]
fn expect_machine(replay: &Value, uid: u32, size: u64) {
    let labelled = &replay["labelled"];
    // Root never tries to set what it cannot ask for. For others the kernel answers: they may not,
    // which libvirt knows of a user's own machines.
    let (remember, relabel) =
        if uid == 0 { ("EOPNOTSUPP", "EOPNOTSUPP") } else { ("ENODATA", "EPERM") };
    assert_eq!(labelled["remember"], remember, "{labelled}");
    assert_eq!(labelled["relabel"], relabel, "{labelled}");
    assert_eq!(labelled["relabelled"], "EOPNOTSUPP", "{labelled}");
    for call in ["chown", "chown_to_group"] {
        let result = labelled[call].as_str();
        assert!(matches!(result, Some("EPERM" | "EROFS")), "{call}: {labelled}");
    }
    for way in ["buffered", "direct"] {
        let read = &replay[way];
        assert_eq!(read["size"], size, "{way}: {read}");
        assert_eq!((&read["read"], &read["mapped_is_read"]), (&4096.into(), &true.into()), "{way}");
        for call in ["sizes_of_a_device", "a_drive"] {
            assert_eq!(read[call], "ENOTTY", "it is no device: {way}: {read}");
        }
        assert_eq!(read["locks"], serde_json::json!(["done", "done"]), "{way}: {read}");
        assert_eq!((&read["data"], &read["hole"]), (&0.into(), &size.into()), "{way}: {read}");
        assert_eq!(read["advice"], "done", "{way}: {read}");
    }
}

#[test]
fn libvirt_makes_a_pool_and_starts_a_machine() {
    let world = World::new();
    // Others are to come by.
    fs::set_permissions(world.dir.path(), PermissionsExt::from_mode(0o755)).expect("set");
    let size = 300_000;
    let pool = world.pool("isos", &["debian 12.iso", "x/a.iso", "disk.ova"]);
    let (_up, url, mount) = world.up(&[&pool]);
    let alone = world.mount_point("alone");
    let part =
        world.start("alone.log", &["--server", &url, "mount", "--view", "flat", text(&alone)]);
    part.wait_for("mounted");
    let flat = ["debian_12.iso", "a.iso", "disk.ova"];
    for (dir, names, image) in [
        (mount.join(".views/flat"), &flat[..], "debian_12.iso"),
        (mount.join("x"), &["a.iso"], "a.iso"),
        (alone, &flat, "a.iso"),
    ] {
        let before = fs::metadata(dir.join(image)).expect("there");
        for (uid, owner) in [(0, OTHER), (OTHER, OTHER)] {
            let replay = replayed(&world, &dir, image, uid, owner);
            expect_pool(&replay["pool"], names);
            expect_machine(&replay, uid, size);
            // The kernel lets root; another user has no write permission.
            let opened = replay["for_writing"].as_u64().is_some();
            assert_eq!(opened, uid == 0, "{}", replay["for_writing"]);
        }
        let after = fs::metadata(dir.join(image)).expect("there");
        let facts = |it: &fs::Metadata| (it.ino(), it.uid(), it.gid(), it.mode(), it.len());
        assert_eq!(facts(&after), facts(&before), "as it was: {}", dir.display());
    }
    // The library itself holds folders, which libvirt passes over.
    let replay = replayed(&world, &mount, "x/a.iso", 0, OTHER);
    assert_eq!(replay["pool"]["volumes"]["x"]["directory"], true);
    expect_machine(&replay, 0, size);
}

#[test]
fn what_is_wrong_with_one_file_is_not_wrong_with_its_pool() {
    let world = World::new();
    let pool = world.pool("isos", &["good.iso"]);
    write_image(&pool, "empty.iso", b"");
    write_image(&pool, "short.iso", &pattern("short", 100));
    write_image(&pool, "secret.iso", &pattern("secret", 50_000));
    // A disk whose backing file is nowhere: version 2, backing name at 0x100, 5 bytes long.
    let mut disk = b"QFI\xfb\0\0\0\x02\0\0\0\0\0\0\x01\0\0\0\0\x05".to_vec();
    disk.resize(0x100, 0);
    disk.extend(b"/no/x");
    disk.resize(70_000, 0);
    write_image(&pool, "child.img", &disk);
    let secret = pool.join("iso/secret.iso");
    fs::set_permissions(secret, PermissionsExt::from_mode(0o0)).expect("set");
    write_image(&pool, "gone.iso", &pattern("gone", 50_000));
    let (_up, _, mount) = world.up(&[&pool]);
    let flat = mount.join(".views/flat");
    eventually("all images", || fs::read_dir(&flat).expect("a listing").count() == 6);
    let all = ["good.iso", "empty.iso", "short.iso", "secret.iso", "child.img", "gone.iso"];
    let replay = replayed(&world, &flat, "good.iso", 0, OTHER);
    expect_pool(&replay["pool"], &all);
    let magic = replay["pool"]["volumes"]["child.img"]["header"].as_str();
    assert!(magic.is_some_and(|it| it.starts_with("514649fb00000002")), "{replay}");
    // What has gone is listed no more, and asked for no more.
    fs::remove_file(pool.join("iso/gone.iso")).expect("removed");
    eventually("it is gone", || !flat.join("gone.iso").exists());
    expect_pool(&replayed(&world, &flat, "good.iso", 0, OTHER)["pool"], &all[..5]);
}
