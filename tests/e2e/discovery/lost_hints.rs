//! Where nothing is heard, or what was heard got lost: the next look is right all the same.

use std::fs;
use std::process::Command;

use rustix::process::Signal;

use super::{Site, after_the_first_scan, shell, stays};
use crate::harness::programs::within;
use crate::harness::storing::SECONDS;
use crate::harness::{Part, World, eventually, text, write_image};

/// Files made and removed that fill the kernel's queue of events many times over.
fn flood(site: &Site<'_>) {
    let text = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").expect("a limit");
    let events: u32 = text.trim().parse().expect("a number");
    // Each is made, opened, closed and removed.
    for n in 0..events / 3 {
        let path = site.iso(&format!("{n}.tmp"));
        fs::write(&path, "").expect("written");
        fs::remove_file(path).expect("removed");
    }
}

#[test]
fn what_happened_while_events_were_lost_is_found_and_heard_of_from_then_on() {
    let world = World::new();
    let site = Site::new(&world, &["kept.iso", "gone.iso"]);
    after_the_first_scan(&world);
    site.agent().signal(Signal::STOP);
    flood(&site);
    fs::remove_file(site.iso("gone.iso")).expect("removed");
    write_image(&site.pool, "late/in.iso", b"in");
    site.agent().signal(Signal::CONT);
    eventually("what was put there", || site.shows("late/in.iso", b"in"));
    eventually("no removed one", || site.in_none("other/gone.iso"));
    // Its making was not heard of; what is put into it is.
    write_image(&site.pool, "late/second.iso", b"second");
    eventually("a second one", || site.shows("late/second.iso", b"second"));
}

/// An agent that may watch no more than two directories: the limit is its user namespace's.
pub(super) fn hard_of_hearing(world: &World, url: &str, pool: &std::path::Path) -> Part {
    let state = world.path("agent-deaf");
    let args = ["serve", "agent", "--catalog", url, "--listen", "127.0.0.1:0", "--name", "deaf"];
    let args = [&args[..], &["--state", text(&state), "--pool", text(pool)]].concat();
    let command = world.command(&args);
    let limit = r#"echo 2 >/proc/sys/user/max_inotify_watches; exec "$@""#;
    let mut limited = Command::new("unshare");
    limited.args(["--user", "--map-root-user", "sh", "-euc", limit, "sh"]);
    limited.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    let part = world.spawn("agent-deaf.log", limited);
    part.wait_for("agent");
    part
}

#[test]
fn where_watches_run_out_the_scans_say_so_and_find_everything() {
    let world = World::new();
    let images = ["a/a.iso", "b/b.iso", "c/c.iso", "d/d.iso"];
    let pool = world.pool("isos", &images);
    let (_catalog, url) = world.catalog();
    let _agent = hard_of_hearing(&world, &url, &pool);
    eventually("a scan", || world.json(&url, &["scan"])["volumes_scanned"] == 1);
    after_the_first_scan(&world);
    let there = |path: &str| world.json(&url, &["info", path])["id"].is_string();
    for directory in ["a", "b", "c", "d"] {
        write_image(&pool, &format!("{directory}/new.iso"), b"new");
    }
    stays("what is not heard of is not there", || {
        !["/a", "/b", "/c", "/d"].iter().all(|it| there(&format!("{it}/new.iso")))
    });
    let scan = world.json(&url, &["scan"]);
    let problems = scan["volumes"][0]["result"]["problems"].to_string();
    assert!(problems.contains("changes show with the next scan only"), "{problems}");
    assert!(problems.contains("max_user_watches"), "{problems}");
    assert!(["/a", "/b", "/c", "/d"].iter().all(|it| there(&format!("{it}/new.iso"))));
}

#[test]
fn the_schedule_finds_what_is_not_heard_of() {
    let world = World::new();
    fs::write(world.path("isotope.toml"), "[catalog]\nscan_every = \"1s\"\n").expect("written");
    let pool = world.pool("isos", &["a/a.iso", "b/b.iso", "c/c.iso"]);
    let (_catalog, url) = world.catalog();
    let _agent = hard_of_hearing(&world, &url, &pool);
    after_the_first_scan(&world);
    for round in ["first", "second"] {
        for directory in ["a", "b", "c"] {
            write_image(&pool, &format!("{directory}/{round}.iso"), round.as_bytes());
        }
        let there = |it: &str| world.json(&url, &["info", it])["id"].is_string();
        eventually("all of them", || {
            ["/a", "/b", "/c"].iter().all(|it| there(&format!("{it}/{round}.iso")))
        });
    }
}

/// A watch is of a directory, not of its place.
#[test]
fn a_directory_mounted_over_another_shows_with_the_next_scan() {
    let world = World::new();
    let site = Site::new(&world, &["sub/covered.iso"]);
    let other = world.make_dir("other");
    fs::write(other.join("mounted.iso"), "mounted").expect("written");
    let sub = world.path("isos/iso/sub");
    within(SECONDS, &["mount", "--bind", text(&other), text(&sub)]).expect_well();
    world.unmount_in_the_end(&sub);
    let discovered = site.json(&["scan"]);
    assert_eq!(discovered["discovered"], 1, "{discovered}");
    eventually("what is there now", || site.shows("sub/mounted.iso", b"mounted"));
    assert!(site.in_none("sub/covered.iso"));
    fs::write(other.join("later.iso"), "later").expect("written");
    site.say(&["scan"]).well();
    eventually("what came later", || site.shows("sub/later.iso", b"later"));
    // Another file system is another volume's business; what was known there stays.
    // What was just read is held open for a moment.
    eventually("it unmounted", || within(SECONDS, &["umount", text(&sub)]).well());
    within(SECONDS, &["mount", "-t", "tmpfs", "none", text(&sub)]).expect_well();
    fs::write(sub.join("foreign.iso"), "foreign").expect("written");
    let scan = site.json(&["scan"]);
    let problems = scan["volumes"][0]["result"]["problems"].to_string();
    assert!(problems.contains("another file system is mounted here"), "{scan}");
    assert!(site.in_any("sub/later.iso") && site.in_none("sub/foreign.iso"));
}

#[test]
fn a_directory_that_is_made_later_or_replaces_another_is_heard_of_like_it() {
    let world = World::new();
    let site = Site::of(&world, world.make_dir("isos"));
    let elsewhere = world.make_dir("elsewhere");
    after_the_first_scan(&world);
    // The images' directory, which was not there.
    write_image(&site.pool, "sub/old.iso", b"old");
    eventually("the first", || site.shows("sub/old.iso", b"old"));
    write_image(&site.pool, "top.iso", b"top");
    eventually("the second", || site.shows("other/top.iso", b"top"));

    let script = r#"mkdir "$2/new"; echo new >"$2/new/new.iso"; mv "$1/iso/sub" "$2/old"
        mv "$2/new" "$1/iso/sub""#;
    shell(script, &site.pool, &elsewhere);
    eventually("the new one's", || site.shows("sub/new.iso", b"new\n"));
    eventually("none of the old one's", || site.in_none("sub/old.iso"));
    write_image(&site.pool, "sub/later.iso", b"later");
    eventually("what came later", || site.shows("sub/later.iso", b"later"));

    // The images' directory itself: all that was known is gone, and looked for twice.
    let script = r#"cp -r "$1/iso" "$2/iso"; rm "$2/iso/top.iso"; mv "$1/iso" "$2/before"
        mv "$2/iso" "$1/iso""#;
    shell(script, &site.pool, &elsewhere);
    eventually("without what was left out", || site.in_none("other/top.iso"));
    assert!(site.in_any("sub/later.iso"));
    write_image(&site.pool, "sub/last.iso", b"last");
    eventually("what came last", || site.shows("sub/last.iso", b"last"));
}
