//! What is put into a pool, changed or removed there shows by itself, once it is closed.

use std::fs::{self, File};
use std::io::Write;
use std::time::{Duration, Instant};

use super::{Site, after_the_first_scan, shell, stays};
use crate::harness::programs::within;
use crate::harness::storing::SECONDS;
use crate::harness::{World, eventually, pattern, text, write_image};

/// What is promised, from the close to the last mount.
const PROMISED: Duration = Duration::from_secs(2);

/// How a file comes into a pool, `$1`, from another directory, `$2`; and where it shows.
const WAYS: [(&str, &str); 11] = [
    (r#"cp "$2/new.iso" "$1/iso/copied.iso""#, "other/copied.iso"),
    (r#"cp -p "$2/new.iso" "$1/iso/times.iso""#, "other/times.iso"),
    (r#"cp "$2/new.iso" "$2/x"; mv "$2/x" "$1/iso/moved.iso""#, "other/moved.iso"),
    (r#"cp "$2/new.iso" "$1/x"; mv "$1/x" "$1/iso/within.iso""#, "other/within.iso"),
    (
        r#"cp "$2/new.iso" "$1/iso/.x.iso.tmp"; mv "$1/iso/.x.iso.tmp" "$1/iso/t.iso""#,
        "other/t.iso",
    ),
    (r#"cp "$2/new.iso" "$1/iso/p.part"; mv "$1/iso/p.part" "$1/iso/p.iso""#, "other/p.iso"),
    (r#"install -m 444 "$2/new.iso" "$1/iso/installed.iso""#, "other/installed.iso"),
    (r#"mkdir "$1/iso/sub"; cp "$2/new.iso" "$1/iso/sub/below.iso""#, "sub/below.iso"),
    (r#"mkdir -p "$1/iso/a/b/c/d"; cp "$2/new.iso" "$1/iso/a/b/c/d/deep.iso""#, "a/b/c/d/deep.iso"),
    (
        r#"mkdir -p "$2/t/u"; cp "$2/new.iso" "$2/t/u/tree.iso"; cp -r "$2/t" "$1/iso/t""#,
        "t/u/tree.iso",
    ),
    (
        r#"mkdir -p "$2/m/u"; cp "$2/new.iso" "$2/m/u/tree.iso"; mv "$2/m" "$1/iso/m""#,
        "m/u/tree.iso",
    ),
];

#[test]
fn a_file_is_in_every_mount_soon_after_it_is_closed_however_it_came() {
    let world = World::new();
    let site = Site::new(&world, &[]);
    let elsewhere = world.make_dir("elsewhere");
    let bytes = pattern("new", 300_001);
    fs::write(elsewhere.join("new.iso"), &bytes).expect("written");
    after_the_first_scan(&world);
    let mut fastest = Duration::MAX;
    for (script, path) in WAYS {
        shell(script, &site.pool, &elsewhere);
        let closed = Instant::now();
        eventually(script, || site.shows(path, &bytes));
        fastest = fastest.min(closed.elapsed());
    }
    // The others on a machine that is less busy.
    assert!(fastest < PROMISED, "{fastest:?}");
    // A directory made by one of them is watched like the others.
    write_image(&site.pool, "a/b/c/second.iso", b"second");
    eventually("a second file", || site.shows("a/b/c/second.iso", b"second"));
}

#[test]
fn a_file_is_not_listed_while_somebody_has_it_open_for_writing() {
    let world = World::new();
    let site = Site::new(&world, &["there.iso"]);
    let made = within(SECONDS, &["qemu-img", "create", "-q", text(&site.iso("disk.img")), "1M"]);
    // As of a running machine: not written to, for as long as we look.
    let disk = File::options().read(true).write(true).open(site.iso("disk.img"));
    let disk = disk.expect("opened");
    made.expect_well();
    let mut slow = File::create(site.iso("slow.iso")).expect("made");
    let mut moved = File::create(site.pool.join("outside")).expect("made");
    moved.write_all(b"half of ").expect("written");
    fs::rename(site.pool.join("outside"), site.iso("moved.iso")).expect("moved");
    let open = ["disk.img", "slow.iso", "moved.iso"];
    stays("nothing that is open is listed", || {
        slow.write_all(b"piece").expect("written");
        open.iter().all(|name| site.in_none(&format!("other/{name}")))
    });
    let scan = site.json(&["scan"]);
    let problems = &scan["volumes"][0]["result"]["problems"];
    for name in open {
        let path = format!("iso/{name}");
        let told = problems.as_array().expect("a list").iter().any(|it| {
            let reason = it["reason"].as_str().expect("text");
            it["path"] == path && reason.starts_with("is open for writing")
        });
        assert!(told, "{name}: {problems}");
        assert!(site.in_none(&format!("other/{name}")), "a scan does not take it either");
    }
    moved.write_all(b"it").expect("written");
    drop((slow, moved, disk));
    let slow = fs::read(site.iso("slow.iso")).expect("read");
    eventually("what is closed", || {
        site.shows("other/slow.iso", &slow) && site.shows("other/moved.iso", b"half of it")
    });
    eventually("the disk of a machine that has ended", || {
        site.shows("other/disk.img", &vec![0; 1 << 20])
    });
}

#[test]
fn a_known_file_that_is_being_rewritten_stays_until_it_is_closed() {
    let world = World::new();
    let site = Site::new(&world, &["a.iso"]);
    let before = site.identity("/other/a.iso");
    assert!(before.0.is_string(), "{before:?}");
    let mut file = File::create(site.iso("a.iso")).expect("opened");
    stays("what was known", || {
        file.write_all(b"piece").expect("written");
        site.identity("/other/a.iso") == before
    });
    drop(file);
    let now = fs::read(site.iso("a.iso")).expect("read");
    eventually("the new bytes", || site.shows("other/a.iso", &now));
    let after = site.identity("/other/a.iso");
    assert!(after.0 != before.0 && after.1 != before.1, "other bytes are another image");
}

#[test]
fn renames_in_the_pool_keep_the_image_and_its_folder() {
    let world = World::new();
    let images = ["plain.iso", "kept.iso", "named.iso", "one.iso", "two.iso", "dir/in.iso"];
    let site = Site::new(&world, &images);
    let bytes = |name: &str| pattern(name, 300_000);
    eventually("all", || images.iter().all(|it| site.in_any(&place_of(it))));
    site.say(&["mkdir", "/linux/mine"]).well();
    site.say(&["mv", "/other/kept.iso", "/linux/mine/kept.iso"]).well();
    site.say(&["mv", "/other/named.iso", "/other/my name.iso"]).well();
    let before = ["plain.iso", "one.iso", "two.iso"].map(|it| site.identity(&place_of(it)));
    let kept = site.identity("/linux/mine/kept.iso");
    let named = site.identity("/other/my name.iso");
    let below = site.identity("/dir/in.iso");
    let script = r#"cd "$1/iso"; mv plain.iso follows.iso; mkdir sub; mv kept.iso sub/also.iso
        mv named.iso elsewhere.iso; mv one.iso x; mv two.iso one.iso; mv x two.iso; mv dir moved"#;
    shell(script, &site.pool, &site.pool);
    // Before the name follows, there is the old one; after it, all is settled.
    eventually("the names that follow", || {
        site.shows("other/follows.iso", &bytes("plain.iso"))
            && site.shows("linux/mine/also.iso", &bytes("kept.iso"))
            && site.shows("other/two.iso", &bytes("one.iso"))
            && site.shows("other/one.iso", &bytes("two.iso"))
    });
    assert_eq!(site.identity("/other/follows.iso"), before[0]);
    assert_eq!(site.identity("/other/two.iso"), before[1]);
    assert_eq!(site.identity("/other/one.iso"), before[2]);
    assert_eq!(site.identity("/linux/mine/also.iso"), kept);
    assert_eq!(site.identity("/other/my name.iso"), named, "a name given in the library stays");
    assert_eq!(site.identity("/dir/in.iso"), below, "its folder stays");
    assert!(site.shows("dir/in.iso", &bytes("dir/in.iso")));
    for gone in ["other/plain.iso", "other/kept.iso", "other/elsewhere.iso", "moved/in.iso"] {
        assert!(site.in_none(gone), "{gone}");
    }
}

/// Where an image of nobody's system lies in the library, by its place in the pool.
fn place_of(image: &str) -> String {
    if image.contains('/') { image.to_owned() } else { format!("other/{image}") }
}

#[test]
fn deletion_truncation_and_replacement_are_seen() {
    let world = World::new();
    let names = ["gone", "cut", "silently-cut", "over", "over-old", "inside", "stays"];
    let images = names.map(|name| format!("{name}.iso"));
    let images = images.each_ref().map(String::as_str);
    let site = Site::new(&world, &images);
    // Few enough to be believed at once, beside the others.
    for n in 0..12 {
        write_image(&site.pool, &format!("other-{n}.iso"), b"other");
    }
    eventually("all", || site.in_any("other/other-11.iso") && site.in_any("other/stays.iso"));
    let before = images.map(|name| site.identity(&format!("/other/{name}")));
    let new = pattern("new", 300_000);
    fs::write(world.path("new"), &new).expect("written");
    fs::write(world.path("new-old"), &new).expect("written");
    let script = r#"rm "$1/iso/gone.iso"; truncate -s 1000 "$1/iso/cut.iso"
        touch -r "$1/iso/over-old.iso" "$2/new-old"
        mv "$2/new" "$1/iso/over.iso"; mv "$2/new-old" "$1/iso/over-old.iso"
        dd if=/dev/zero of="$1/iso/inside.iso" bs=1 count=5 conv=notrunc status=none"#;
    shell(script, &site.pool, world.dir.path());
    // By its name, with truncate(2): nobody closes anything.
    let cut = "truncate(shift, 2000) or die";
    within(SECONDS, &["perl", "-e", cut, text(&site.iso("silently-cut.iso"))]).expect_well();
    let whole = |name: &str| pattern(&format!("{name}.iso"), 300_000);
    let mut zeroed = whole("inside");
    zeroed[..5].fill(0);
    for (name, bytes) in [
        ("cut", &whole("cut")[..1000]),
        ("silently-cut", &whole("silently-cut")[..2000]),
        ("over", &new[..]),
        ("over-old", &new[..]),
        ("inside", &zeroed[..]),
        ("stays", &whole("stays")[..]),
    ] {
        eventually(name, || site.shows(&format!("other/{name}.iso"), bytes));
    }
    eventually("no deleted one", || site.in_none("other/gone.iso"));
    for (name, before) in images.iter().zip(before) {
        let same = site.identity(&format!("/other/{name}")) == before;
        assert_eq!(same, *name == "stays.iso", "{name}");
    }
}
