//! The catalogue's database lost for good, and the library brought back from the volumes.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::harness::{Part, World, eventually, holds, pattern, walk};

/// A path with its inode number, mode and time.
type Shown = (String, u64, u32, i64, i64);

/// Everything that is to be the same. What goes while it is looked at is left out.
fn tree(mnt: &Path) -> Vec<Shown> {
    fn below(dir: &Path, prefix: &str, all: &mut Vec<Shown>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let Ok(meta) = fs::metadata(entry.path()) else { continue };
            if meta.is_dir() {
                below(&entry.path(), &format!("{name}/"), all);
            }
            all.push((name, meta.ino(), meta.mode(), meta.mtime(), meta.mtime_nsec()));
        }
    }
    let mut all = Vec::new();
    below(mnt, "", &mut all);
    // No listing of the library shows them.
    below(&mnt.join(".views/flat"), ".views/flat/", &mut all);
    all.sort();
    all
}

/// Ids of the images at some paths.
fn ids(world: &World, url: &str, paths: &[&str]) -> Vec<String> {
    let id = |path: &&str| {
        let info = world.json(url, &["info", path]);
        info["id"].as_str().unwrap_or_else(|| panic!("{path}: {info}")).to_owned()
    };
    paths.iter().map(id).collect()
}

/// Waits until the copies on some volumes have all that has happened so far.
fn copied(world: &World, url: &str, pools: &[&Path]) {
    // What is changed last is a folder, which every copy has.
    let name = format!("mark-{}", world.json(url, &["status"])["revision"]);
    assert!(world.run(&["--server", url, "mkdir", &format!("/{name}")]).status.success());
    for pool in pools {
        let log = pool.join(".isotope/library.log");
        eventually("the copy of the library", || {
            let log = fs::read(&log).unwrap_or_default();
            log.windows(name.len()).any(|it| it == name.as_bytes())
        });
    }
}

struct Site {
    world: World,
    pools: [std::path::PathBuf; 2],
    mnt: std::path::PathBuf,
    url: String,
    catalog: Option<Part>,
    agents: [Option<Part>; 2],
    _mount: Part,
}

const IMAGES: [&str; 4] =
    ["/a/b/c/d/deep.iso", "/a/first.iso", "/mine/ubuntu.iso", "/windows/second.iso"];

/// Two hosts, and a library that somebody has arranged.
fn site() -> Site {
    let world = World::new();
    let pools = [
        world.pool("fast", &["one.iso", "ubuntu-24.04.iso"]),
        world.pool("slow", &["two.iso", "three.iso"]),
    ];
    let (catalog, url) = world.catalog();
    let agents = [world.agent("ada", &url, &[&pools[0]]), world.agent("bob", &url, &[&pools[1]])];
    let (mount, mnt) = world.mount("mnt", &url);
    eventually("all images", || walk(&mnt).iter().filter(|it| it.ends_with(".iso")).count() == 4);
    fs::create_dir_all(mnt.join("a/b/c/d")).expect("made");
    fs::create_dir_all(mnt.join("mine/empty")).expect("made");
    for (from, to) in [
        ("other/one.iso", IMAGES[0]),
        ("other/two.iso", IMAGES[1]),
        ("linux/ubuntu-24.04.iso", IMAGES[2]),
        ("other/three.iso", IMAGES[3]),
    ] {
        fs::rename(mnt.join(from), mnt.join(&to[1..])).expect("moved");
    }
    let chmod = |path: &str, mode| {
        fs::set_permissions(mnt.join(path), fs::Permissions::from_mode(mode)).expect("set");
    };
    chmod("a/first.iso", 0o440);
    chmod("mine", 0o750);
    let set = world.run(&["--server", &url, "pool", "default", "/mine", "slow"]);
    assert!(set.status.success(), "{set:?}");
    copied(&world, &url, &[&pools[0], &pools[1]]);
    let agents = agents.map(Some);
    Site { world, pools, mnt, url, catalog: Some(catalog), agents, _mount: mount }
}

impl Site {
    /// The catalogue dies and its database with it; another takes its place, which knows nothing but
    /// so many images, whose files it was told of anew.
    fn lose(&mut self, told: u64) {
        self.catalog.take().into_iter().for_each(Part::kill);
        fs::remove_dir_all(self.world.path("catalog")).expect("removed");
        let (catalog, _) = self.world.catalog_on(self.url.trim_start_matches("http://"));
        self.catalog = Some(catalog);
        self.knows(told);
    }

    fn knows(&self, images: u64) {
        let told = || self.world.json(&self.url, &["status"])["images"] == images;
        eventually("the files, told anew", told);
    }

    fn rebuild(&self, args: &[&str]) -> serde_json::Value {
        let mut all = vec!["catalog", "rebuild"];
        all.extend(args);
        self.world.json(&self.url, &all)
    }

    fn bytes(&self) {
        for (path, name) in
            IMAGES.iter().zip(["one.iso", "two.iso", "ubuntu-24.04.iso", "three.iso"])
        {
            holds(self.mnt.join(&path[1..]), &pattern(name, 300_000));
        }
    }
}

#[test]
fn a_lost_catalogue_is_rebuilt_from_the_volumes() {
    let mut site = site();
    fs::hard_link(site.mnt.join(IMAGES[0].trim_start_matches('/')), site.mnt.join("mine/link.iso"))
        .expect("linked");
    copied(&site.world, &site.url, &[&site.pools[0], &site.pools[1]]);
    let (before, named) = (tree(&site.mnt), ids(&site.world, &site.url, &IMAGES));
    site.lose(4);
    eventually("the new catalogue's own folders", || site.mnt.join("other/one.iso").exists());
    let planned = site.rebuild(&["--dry-run"]);
    assert_eq!(planned["images"], 4, "{planned}");
    assert!(planned["incarnation"].is_null() && site.mnt.join("other/one.iso").exists());

    let rebuilt = site.rebuild(&[]);
    assert_eq!((&rebuilt["images"], &rebuilt["renamed"]), (&4.into(), &0.into()), "{rebuilt}");
    assert_eq!(rebuilt["missing"], serde_json::json!([]));
    eventually("the tree as it was", || tree(&site.mnt) == before);
    assert_eq!(ids(&site.world, &site.url, &IMAGES), named);
    site.bytes();
    let default = site.world.json(&site.url, &["pool", "default", "/mine"]);
    assert_eq!(default["pool"], "slow", "{default}");

    // Again, it is harmless; and the copies are those of the new life.
    let again = site.rebuild(&[]);
    assert_eq!((&again["restored"], &again["incarnation"]), (&0.into(), &().into()), "{again}");
    // New numbers are above all that there were.
    fs::create_dir(site.mnt.join("later")).expect("made");
    let largest = before.iter().map(|it| it.1).max();
    assert!(fs::metadata(site.mnt.join("later")).ok().map(|it| it.ino()) > largest);
    // And once more from what was written since.
    let before = tree(&site.mnt);
    copied(&site.world, &site.url, &[&site.pools[0], &site.pools[1]]);
    let marked = tree(&site.mnt);
    assert!(marked.len() > before.len());
    site.lose(4);
    site.rebuild(&[]);
    eventually("the tree as it was", || tree(&site.mnt) == marked);
}

#[test]
fn what_was_away_is_named_and_brought_back_by_another_rebuild() {
    let mut site = site();
    let images = |shown: Vec<Shown>| {
        shown.into_iter().filter(|it| it.0.ends_with(".iso")).collect::<Vec<_>>()
    };
    let before = images(tree(&site.mnt));
    drop(site.agents[1].take());
    site.lose(2);
    // Somebody has begun to work with what there is.
    let server = ["--server", &site.url.clone()];
    let run = |world: &World, args: &[&str]| world.run(&[&server[..], args].concat());
    assert!(run(&site.world, &["mkdir", "/begun"]).status.success());
    let refused = run(&site.world, &["catalog", "rebuild"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(4) && said.contains("--yes"), "{refused:?}");
    let rebuilt = site.rebuild(&["--yes"]);
    assert_eq!((&rebuilt["images"], &rebuilt["changes"]), (&2.into(), &1.into()), "{rebuilt}");
    let missing = rebuilt["missing"].to_string();
    assert!(missing.contains("pool slow") && missing.contains("on bob"), "{missing}");
    eventually("what somebody began", || site.mnt.join("begun").is_dir());
    eventually("what is there", || site.mnt.join("mine/ubuntu.iso").exists());

    site.agents[1] = Some(site.world.agent("bob", &site.url, &[&site.pools[1]]));
    site.knows(4);
    eventually("a name of its own", || site.mnt.join("other/two.iso").exists());
    // The new catalogue's copy does not take the place of what only the old one's has.
    let kept = || {
        let all = fs::read_dir(site.pools[1].join(".isotope")).expect("listed").flatten();
        let name = |it: fs::DirEntry| it.file_name().to_string_lossy().into_owned();
        all.map(name).filter(|it| it.starts_with("library.")).count() == 2
    };
    eventually("both copies", kept);
    let again = site.rebuild(&[]);
    assert_eq!((&again["restored"], &again["missing"]), (&2.into(), &serde_json::json!([])));
    eventually("the images as they were", || images(tree(&site.mnt)) == before);
    assert!(site.mnt.join("begun").is_dir());
    site.bytes();
    eventually("one copy", || {
        let all = fs::read_dir(site.pools[1].join(".isotope")).expect("listed").flatten();
        all.filter(|it| it.file_name().to_string_lossy().starts_with("library.")).count() == 1
    });
}

#[test]
fn a_volume_without_its_copy_is_found_by_scanning_and_keeps_its_ids() {
    let mut site = site();
    let (before, named) = (tree(&site.mnt), ids(&site.world, &site.url, &IMAGES));
    let on_slow = [IMAGES[1], IMAGES[3]];
    let lost = ids(&site.world, &site.url, &on_slow);
    site.catalog.take().expect("one runs").kill();
    fs::remove_file(site.pools[1].join(".isotope/library.log")).expect("removed");
    site.lose(4);
    let rebuilt = site.rebuild(&[]);
    assert_eq!(rebuilt["images"], 4, "{rebuilt}");
    // All folders are in the other copy, and so are its own images.
    let kept = |path: &str| {
        !on_slow.iter().any(|it| path == &it[1..])
            && path.ends_with(".iso")
            && !path.starts_with(".views")
    };
    let was: Vec<_> = before.iter().filter(|it| kept(&it.0)).collect();
    eventually("the images of the other volume", || {
        was.iter().all(|it| site.mnt.join(&it.0).exists())
    });
    let now = tree(&site.mnt);
    assert!(was.iter().all(|it| now.contains(it)), "{was:?}\n{now:?}");
    assert!(site.mnt.join("mine/empty").is_dir());
    let found = ids(&site.world, &site.url, &["/other/two.iso", "/other/three.iso"]);
    assert_eq!(found, lost);
    assert_eq!(ids(&site.world, &site.url, &[IMAGES[0], IMAGES[2]]), [&*named[0], &*named[2]]);
    holds(site.mnt.join("other/two.iso"), &pattern("two.iso", 300_000));
}

#[test]
fn a_lost_sidecar_is_made_again_from_the_files_and_the_catalogue() {
    let site = site();
    let (before, named) = (tree(&site.mnt), ids(&site.world, &site.url, &IMAGES));
    let Site { world, pools, mnt, url, agents: [_ada, bob], catalog: _catalog, _mount } = site;
    drop(bob);
    let sidecar = pools[1].join(".isotope");
    for entry in fs::read_dir(&sidecar).expect("listed").flatten() {
        if entry.file_name() != "volume.json" && entry.path().is_file() {
            fs::remove_file(entry.path()).expect("removed");
        }
    }
    let bob = world.agent("bob", &url, &[&pools[1]]);
    eventually("the index", || sidecar.join("index.jsonl").exists());
    copied(&world, &url, &[&pools[1]]);
    let scanned = world.run(&["--server", &url, "scan"]);
    assert!(scanned.status.success(), "{scanned:?}");
    assert_eq!(ids(&world, &url, &IMAGES), named);
    let now = tree(&mnt);
    let kept = |it: &&Shown| it.0.ends_with(".iso");
    assert!(before.iter().filter(kept).all(|it| now.contains(it)), "{before:?}\n{now:?}");
    holds(mnt.join(&IMAGES[1][1..]), &pattern("two.iso", 300_000));
    let index = fs::read_to_string(sidecar.join("index.jsonl")).expect("read");
    assert!(index.contains(&named[1]) && index.contains(&named[3]), "{index}");

    // What was damaged is made again as well.
    let log = sidecar.join("library.log");
    let mut damaged = fs::read(&log).expect("read");
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0xff;
    drop(bob);
    fs::write(&log, &damaged).expect("written");
    let _bob = world.agent("bob", &url, &[&pools[1]]);
    copied(&world, &url, &[&pools[1]]);
    assert!(world.log("agent-bob.log").contains("damaged"));
}
