//! Pools and nodes arranged from the command line, and what is said to what makes no sense.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::{Said, say, state, stays, volumes};
use crate::harness::{Part, World, eventually, pattern, text, walk};

/// A catalogue, two agents that offer nothing yet, and the catalogue's URL.
fn two_agents(world: &World) -> (Vec<Part>, String) {
    let (catalog, url) = world.catalog();
    let parts = vec![catalog, world.agent("a", &url, &[]), world.agent("b", &url, &[])];
    let connected = |it: &Value| it["connected"] == true;
    eventually("both agents", || {
        let status = world.json(&url, &["status"]);
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        nodes.iter().filter(|it| connected(it)).count() == 2
    });
    (parts, url)
}

/// As another program left it: other directories, owners, permissions and times.
fn foreign(world: &World, name: &str) -> std::path::PathBuf {
    let pool = world.make_dir(name);
    let images = pool.join("template/iso");
    fs::create_dir_all(images.join("old")).expect("made");
    for name in ["debian-12.iso", "old/dos.img", "notes.txt", "disk.qcow2"] {
        fs::write(images.join(name), pattern(name, 100_000)).expect("written");
    }
    let script = r#"cd "$1/template/iso"; chown 33:33 debian-12.iso; chmod 440 debian-12.iso
        chmod 555 old; touch -d 2001-02-03 old/dos.img old ."#;
    super::shell(script, &pool, &pool);
    pool
}

/// All there is to know of each file and directory: kind, mode, owner, size, times.
fn listing(dir: &Path) -> String {
    let format = "%P %y %m %U %G %s %T@ %C@ %i\\n";
    let found = Command::new("find").args([text(dir), "-printf", format]).output();
    let found = String::from_utf8(found.expect("find runs").stdout).expect("text");
    let mut lines: Vec<&str> = found.lines().collect();
    lines.sort_unstable();
    assert!(lines.len() > 1, "{lines:?}");
    lines.join("\n")
}

fn images(world: &World, url: &str) -> u64 {
    world.json(url, &["status"])["images"].as_u64().expect("a number")
}

#[test]
fn nothing_is_written_to_a_read_only_pool_in_all_its_life() {
    let world = World::new();
    let (mut parts, url) = two_agents(&world);
    let pool = foreign(&world, "foreign");
    let before = listing(&pool);
    let same = |when: &str| assert_eq!(listing(&pool), before, "{when}");
    let dir = text(&pool);
    let layout = ["--dir", "template/iso", "--read-only", "--node", "a"];
    let add = [&["pool", "add", "old", dir][..], &layout].concat();
    let would = world.json(&url, &[&add[..], &["--dry-run"]].concat());
    assert_eq!((&would["images"], &would["size_bytes"]), (&2.into(), &200_000.into()), "{would}");
    say(&world, &url, &add).well();
    eventually("its images", || images(&world, &url) == 2);
    say(&world, &url, &["scan"]).well();
    same("it was scanned");
    let (_mounted, mount) = world.mount("mnt", &url);
    assert_eq!(fs::read(mount.join("old/dos.img")).expect("read"), pattern("old/dos.img", 100_000));
    let id = |path: &str| world.json(&url, &["info", path])["id"].clone();
    let known = id("/linux/debian-12.iso");

    let refused = ["rm", "/linux/debian-12.iso"];
    say(&world, &url, &refused).refused(5, &["debian-12.iso", "read-only"]);
    let removed = fs::remove_file(mount.join("linux/debian-12.iso"));
    assert_eq!(crate::harness::errno(removed), libc::EROFS);
    say(&world, &url, &["mv", "/linux/debian-12.iso", "/other/mine.iso"]).well();
    let target = mount.join("old/dos.img");
    let replaced = fs::rename(mount.join("other/mine.iso"), &target);
    assert_eq!(crate::harness::errno(replaced), libc::EROFS);
    let file = text(&world.path("isotope.toml")).to_owned();
    say(&world, &url, &["put", "--pool", "old", &file, "/other/x.iso"]).refused(5, &["read-only"]);
    same("it was asked to be changed");

    drop(parts.remove(1));
    let gone = || state(&world, &url, "old").0 == "offline";
    eventually("the agent's end", gone);
    parts.push(world.agent("a", &url, &[]));
    eventually("it is back", || state(&world, &url, "old").0 == "online");
    say(&world, &url, &["scan"]).well();
    assert_eq!((images(&world, &url), id("/other/mine.iso")), (2, known));
    same("its agent was started again");
    say(&world, &url, &["pool", "remove", "old"]).well();
    assert_eq!(images(&world, &url), 0);
    same("it was removed");
}

#[test]
fn a_pool_takes_the_files_that_it_was_told_to() {
    let world = World::new();
    let (_parts, url) = two_agents(&world);
    let pool = foreign(&world, "foreign");
    let add = ["pool", "add", "some", text(&pool), "--dir", "template/iso", "--node", "a"];
    let include = ["--include", "*.QCOW2", "--include", "deb*"];
    say(&world, &url, &[&add[..], &include].concat()).well();
    eventually("two", || images(&world, &url) == 2);
    let (_mounted, mount) = world.mount("mnt", &url);
    let names = walk(&mount);
    for name in ["debian-12.iso", "disk.qcow2"] {
        assert!(names.iter().any(|it| it.ends_with(name)), "{names:?}");
    }
    fs::write(pool.join("template/iso/notes.iso"), "no").expect("written");
    fs::write(pool.join("template/iso/deb.txt"), "yes").expect("written");
    eventually("what is included", || images(&world, &url) == 3);
    say(&world, &url, &["scan"]).well();
    stays("nothing else", || images(&world, &url) == 3);
    // Used in one way, it is not used in another.
    let attach = ["pool", "attach", "some", text(&pool), "--node", "b"];
    let said = say(&world, &url, &[&attach[..], &["--dir", "iso"]].concat());
    said.refused(2, &["used in another way", "leave out --dir"]);
}

#[test]
fn pools_are_attached_assigned_renamed_and_removed() {
    let world = World::new();
    let (_parts, url) = two_agents(&world);
    let well = |args: &[&str]| say(&world, &url, args).well();
    // One directory for both, as on shared storage; and another of one alone.
    let shared = world.pool("shared", &["a.iso", "b.iso"]);
    let own = world.pool("own", &["c.iso"]);
    let said = well(&["pool", "add", "isos", text(&shared), "--node", "a", "--node", "b"]);
    assert_eq!(said.lines().count(), 2, "{said}");
    well(&["pool", "attach", "isos", text(&own), "--node", "b"]);
    well(&["pool", "attach", "isos", text(&own), "--node", "b"]);
    eventually("all images", || images(&world, &url) == 3);
    let all = volumes(&world, &url);
    let mut sights: Vec<usize> =
        all.iter().filter_map(|it| it["nodes"].as_array().map(Vec::len)).collect();
    sights.sort_unstable();
    assert_eq!(sights, [1, 2], "{all:?}");

    let keepers = || {
        let scan = world.json(&url, &["scan"]);
        let volumes = scan["volumes"].as_array().cloned().unwrap_or_default();
        let all = volumes.iter().filter(|it| it["result"]["files_seen"] == 2);
        all.map(|it| it["node"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(keepers().len(), 1, "one keeps what both see");
    well(&["pool", "assign", "isos", "b", "a"]);
    well(&["pool", "rename", "isos", "renamed"]);
    assert_eq!(state(&world, &url, "renamed").0, "online");
    well(&["node", "rename", "b", "bee"]);
    let listed = well(&["node", "ls"]);
    assert!(listed.lines().any(|line| line.starts_with("bee")), "{listed}");

    // Of what is ours, an agent that leaves a volume may write something down.
    let images_in = |dir: &Path| listing(&dir.join("iso"));
    let before = [images_in(&shared), images_in(&own)];
    let would = well(&["pool", "remove", "renamed", "--dry-run"]);
    assert_eq!(would, "3 images would leave the library; no file is touched");
    assert_eq!(images(&world, &url), 3);
    assert_eq!(
        well(&["pool", "remove", "renamed"]),
        "3 images have left the library; no file was touched"
    );
    assert_eq!((images(&world, &url), volumes(&world, &url).len()), (0, 0));
    assert_eq!([images_in(&shared), images_in(&own)], before);
    stays("nobody brings it back", || volumes(&world, &url).is_empty());
    // The same directory as another pool: an image of its own again.
    well(&["pool", "add", "again", text(&own), "--node", "a"]);
    eventually("its image", || images(&world, &url) == 1);
}

#[test]
fn a_node_that_is_away_would_bring_its_pool_back() {
    let world = World::new();
    let (mut parts, url) = two_agents(&world);
    let pool = world.pool("isos", &["a.iso"]);
    say(&world, &url, &["pool", "add", "isos", text(&pool), "--node", "a"]).well();
    eventually("its image", || images(&world, &url) == 1);
    say(&world, &url, &["node", "remove", "a"]).refused(4, &["a", "connected"]);
    parts.remove(1).kill();
    eventually("its end", || state(&world, &url, "isos").0 == "offline");
    let said = say(&world, &url, &["pool", "remove", "isos"]);
    said.refused(6, &["a not connected", "--force"]);
    assert_eq!(images(&world, &url), 1);
    say(&world, &url, &["pool", "remove", "isos", "--force"]).well();
    assert_eq!(images(&world, &url), 0);
    say(&world, &url, &["node", "remove", "a"]).well();
    let nodes = say(&world, &url, &["node", "ls"]).well();
    assert_eq!(nodes.lines().count(), 2, "{nodes}");
}

#[test]
fn what_makes_no_sense_is_refused_with_what_to_do() {
    let world = World::new();
    let (mut parts, url) = two_agents(&world);
    let pool = world.pool("isos", &["a.iso"]);
    say(&world, &url, &["pool", "add", "isos", text(&pool), "--node", "a"]).well();
    eventually("its image", || images(&world, &url) == 1);
    let (_mounted, mount) = world.mount("mnt", &url);
    let other = world.pool("other", &[]);
    let file = world.path("isotope.toml");
    parts.pop().expect("b").kill();
    let away = || {
        let nodes = say(&world, &url, &["node", "ls"]).out;
        nodes.lines().any(|line| line.starts_with('b') && line.contains("not connected"))
    };
    eventually("the end of b", away);
    let [pool, other, mount, file] = [&pool, &other, &mount, &file].map(|it| text(it));
    let missing = format!("{other}/none");
    let cases: BTreeMap<&str, (Vec<&str>, i32, &[&str])> = [
        ("existing name", (vec!["pool", "add", "isos", other], 4, &["attach isos DIR"][..])),
        ("no such pool", (vec!["pool", "attach", "no", other], 3, &["no pool is called no"])),
        ("no such node", (vec!["pool", "add", "x", other, "--node", "z"], 3, &["called z"])),
        ("node away", (vec!["pool", "add", "x", other, "--node", "b"], 6, &["b is not conn"])),
        ("no directory", (vec!["pool", "add", "x", &missing], 2, &["does not exist", "make it"])),
        ("a file", (vec!["pool", "add", "x", file], 2, &["is not a directory"])),
        ("our own mount", (vec!["pool", "add", "x", mount], 2, &["lies on a mount of Isotope"])),
        ("another pool's", (vec!["pool", "add", "x", pool], 4, &["of the pool isos already"])),
        ("a bad name", (vec!["pool", "add", "a/b", other], 2, &["cannot be a name"])),
        ("above", (vec!["pool", "add", "x", other, "--dir", "../y"], 2, &["no directory below"])),
        ("a bad pattern", (vec!["pool", "add", "x", other, "--include", "a["], 2, &["a["])),
        ("assign", (vec!["pool", "assign", "no", "a"], 3, &["no pool is called no"])),
        ("assign nobody", (vec!["pool", "assign", "isos", "z"], 3, &["no node is called z"])),
        ("rename", (vec!["pool", "rename", "no", "x"], 3, &["no pool is called no"])),
        ("rename badly", (vec!["pool", "rename", "isos", "a/b"], 2, &["cannot be a name"])),
        ("remove", (vec!["pool", "remove", "no"], 3, &["no pool is called no"])),
        ("remove, dry", (vec!["pool", "remove", "no", "--dry-run"], 3, &["called no"])),
        ("node", (vec!["node", "rename", "z", "y"], 3, &["no node is called z"])),
        ("node's name", (vec!["node", "rename", "a", "b"], 4, &["another node is called b"])),
        ("no node", (vec!["node", "remove", "z"], 3, &["no node is called z"])),
    ]
    .into();
    for (what, (args, code, texts)) in cases {
        let said: Said = say(&world, &url, &args);
        assert!(said.code == Some(code), "{what}: {said:?}");
        said.refused(code, texts);
    }
    assert_eq!(volumes(&world, &url).len(), 1);
    assert!(!Path::new(other).join(".isotope").exists(), "nothing was marked");
    parts.pop().expect("a").kill();
    eventually("nobody", || state(&world, &url, "isos").0 == "offline");
    let said = say(&world, &url, &["pool", "add", "x", other]);
    said.refused(6, &["no node is connected", "isotope serve agent"]);
}
