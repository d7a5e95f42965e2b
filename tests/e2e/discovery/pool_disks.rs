//! A pool on a disk that comes and goes: what lay on it is missing, not deleted.

use std::fs;
use std::path::Path;

use super::{Site, state};
use crate::harness::programs::within;
use crate::harness::storing::SECONDS;
use crate::harness::{World, eventually, pattern, text, write_image};

#[track_caller]
fn mount(device: &Path, at: &Path) {
    within(SECONDS, &["mount", "-o", "loop", text(device), text(at)]).expect_well();
}

#[track_caller]
fn unmount(at: &Path) {
    // Lazily, for its agent has it open until it looks the next time.
    within(SECONDS, &["umount", "--lazy", text(at)]).expect_well();
}

#[test]
fn an_unmounted_disk_is_offline_and_its_images_are_missing_until_it_is_back() {
    let world = World::new();
    let pool = world.small_pool("disk", 24);
    let bytes = pattern("a.iso", 300_000);
    for name in ["a.iso", "b.iso", "sub/c.iso"] {
        write_image(&pool, name, &bytes);
    }
    let site = Site::of(&world, pool);
    let device = world.path("disk.volume");
    eventually("all", || site.shows("sub/c.iso", &bytes) && site.shows("other/b.iso", &bytes));
    let before = site.identity("/other/a.iso");
    let offline = |why: &str| {
        eventually(why, || {
            let (state, reason) = state(&world, &site.url, "disk");
            state == "offline" && reason.contains(why)
        });
    };
    let all_listed = || {
        assert_eq!(site.json(&["status"])["images"], 3);
        assert_eq!(site.identity("/other/a.iso"), before);
        assert!(site.in_any("other/a.iso") && site.in_any("sub/c.iso"));
    };

    unmount(&site.pool);
    offline("its marker .isotope/volume.json is missing; is the disk mounted?");
    let scan = site.json(&["scan"]);
    assert_eq!((&scan["volumes_scanned"], &scan["volumes_skipped"]), (&0.into(), &1.into()));
    assert!(scan["volumes"][0]["reason"].as_str().is_some_and(|it| it.contains("is offline")));
    all_listed();
    assert!(fs::read(site.mounts[0].join("other/a.iso")).is_err(), "it cannot be read");
    // What is put into the empty directory meanwhile is nobody's.
    fs::create_dir_all(site.iso("")).expect("made");
    write_image(&site.pool, "stray.iso", b"stray");
    site.say(&["scan"]).refused(6, &["no volume could be scanned"]);
    all_listed();
    fs::remove_dir_all(site.iso("")).expect("removed");

    // Another disk, which is a volume of its own.
    let other = world.small_pool("other-disk", 24);
    write_image(&other, "foreign.iso", b"foreign");
    site.say(&["pool", "add", "spare", text(&other)]).well();
    site.say(&["pool", "remove", "spare"]).well();
    unmount(&other);
    mount(&world.path("other-disk.volume"), &site.pool);
    offline("is in its place");
    site.say(&["scan"]).refused(6, &["no volume could be scanned"]);
    all_listed();
    assert!(site.in_none("other/foreign.iso"));
    unmount(&site.pool);

    mount(&device, &site.pool);
    eventually("it is back", || state(&world, &site.url, "disk").0 == "online");
    eventually("its bytes", || site.shows("other/a.iso", &bytes));
    all_listed();
    // Whose changes are heard of again.
    write_image(&site.pool, "later.iso", b"later");
    eventually("what came later", || site.shows("other/later.iso", b"later"));
}
