//! What seems gone and is not, what is gone and seems back: the library is never wrong about
//! deletion, nor about whose report to believe.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::{Site, shell, stays, volumes};
use crate::harness::hosts::{Host, Network};
use crate::harness::programs::within;
use crate::harness::storing::SECONDS;
use crate::harness::{World, eventually, eventually_in, pattern, text, walk, write_image};

/// Hosts that were missed, or are back, are known to be by then.
const NOTICED: Duration = Duration::from_secs(30);

fn images(n: usize) -> Vec<String> {
    (0..n).map(|n| format!("{n}.iso")).collect()
}

fn site_with<'w>(world: &'w World, names: &[String]) -> Site<'w> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let site = Site::new(world, &names);
    eventually("all", || names.iter().all(|it| site.in_any(&format!("other/{it}"))));
    site
}

#[test]
fn many_files_gone_at_once_are_looked_for_twice_before_they_leave() {
    let world = World::new();
    let all = images(20);
    let site = site_with(&world, &all);
    let counted = || site.json(&["status"])["images"].as_u64().expect("a number");
    let before = all.iter().map(|it| site.identity(&format!("/other/{it}"))).collect::<Vec<_>>();
    // Away and back, as by a tool that rebuilds a directory.
    shell(r#"mv "$1/iso" "$1/aside"; mkdir "$1/iso""#, &site.pool, &site.pool);
    thread::sleep(Duration::from_secs(1));
    shell(r#"rmdir "$1/iso"; mv "$1/aside" "$1/iso""#, &site.pool, &site.pool);
    // Longer than between the two looks.
    stays("nothing left", || counted() == 20);
    stays("nothing left", || counted() == 20);
    let after = all.iter().map(|it| site.identity(&format!("/other/{it}"))).collect::<Vec<_>>();
    assert_eq!(after, before);

    // More than a tenth, for good: not at once.
    let script = r#"mkdir "$1/gone"; mv "$1"/iso/1?.iso "$1/gone""#;
    shell(script, &site.pool, &site.pool);
    thread::sleep(Duration::from_secs(1));
    assert_eq!(counted(), 20, "one look is not believed");
    eventually("ten have left", || counted() == 10);
    assert!(site.in_none("other/11.iso") && site.in_any("other/1.iso"));
    // A tenth is believed at once.
    fs::remove_file(site.iso("1.iso")).expect("removed");
    // And the wait for the second look was no work of the disk, after which it would have to rest.
    eventually_in(Duration::from_secs(6), "one has left", || counted() == 9);
}

#[test]
fn a_marker_that_is_gone_deletes_nothing() {
    let world = World::new();
    let site = site_with(&world, &images(3));
    let before = site.identity("/other/1.iso");
    let state = || super::state(&world, &site.url, "isos").0;
    shell(r#"mv "$1/.isotope" "$2/aside""#, &site.pool, world.dir.path());
    fs::remove_file(site.iso("0.iso")).expect("removed");
    write_image(&site.pool, "new.iso", b"new");
    eventually("offline", || state() == "offline");
    site.say(&["scan"]).refused(6, &["no volume could be scanned"]);
    stays("as it was", || site.in_any("other/0.iso") && site.in_none("other/new.iso"));
    assert!(!site.pool.join(".isotope").exists(), "it is not marked anew");
    shell(r#"mv "$2/aside" "$1/.isotope""#, &site.pool, world.dir.path());
    eventually("online", || state() == "online");
    eventually("as it is", || site.in_none("other/0.iso") && site.shows("other/new.iso", b"new"));
    assert_eq!(site.identity("/other/1.iso"), before);
}

#[test]
fn what_was_deleted_while_its_host_was_away_does_not_come_back() {
    let world = World::new();
    let mut site = site_with(&world, &images(20));
    let before = ["/other/1.iso", "/other/2.iso", "/other/3.iso"].map(|it| site.identity(it));
    site.agent.take().expect("it runs").kill();
    eventually("missed", || super::state(&world, &site.url, "isos").0 == "offline");
    for name in ["/other/1.iso", "/other/2.iso", "/other/3.iso"] {
        site.say(&["rm", name]).well();
    }
    // One is copied there anew meanwhile, and one is moved.
    shell(r#"cd "$1/iso"; cp 2.iso x; mv x 2.iso; mv 3.iso three.iso"#, &site.pool, &site.pool);
    site.agent = Some(world.agent("a", &site.url, &[&site.pool]));
    eventually("the copy", || site.shows("other/2.iso", &pattern("2.iso", 300_000)));
    let copy = site.identity("/other/2.iso");
    assert!(copy.0 != before[1].0 && copy.1 != before[1].1, "another image");
    eventually("the deleted one out of its place", || !site.iso("1.iso").exists());
    site.say(&["scan"]).well();
    stays("what was deleted is gone", || {
        site.in_none("other/1.iso") && site.in_none("other/three.iso")
    });
    // The same bytes again, once more.
    write_image(&site.pool, "1.iso", &pattern("1.iso", 300_000));
    eventually("a new one", || site.shows("other/1.iso", &pattern("1.iso", 300_000)));
    assert_ne!(site.identity("/other/1.iso").0, before[0].0);
    let trash = site.say(&["--json", "trash", "ls"]).well();
    assert_eq!(trash.lines().count(), 3, "{trash}");
}

#[test]
fn a_copied_volume_is_refused_and_a_shared_one_has_one_keeper() {
    let world = World::new();
    let site = site_with(&world, &images(3));
    let before = site.identity("/other/1.iso");
    let copy = world.path("copy");
    within(SECONDS, &["cp", "-a", text(&site.pool), text(&copy)]).expect_well();
    let _copier = world.agent("copier", &site.url, &[&copy]);
    let refused = || world.log("catalog.log").contains("a copied marker");
    eventually("the copy found out", refused);
    let at = format!("a:{}", text(&site.pool));
    let same = ["pool", "attach", "isos", text(&copy), "--node"];
    let texts = [&*at, "another disk", "Remove .isotope/"];
    site.say(&[&same[..], &["copier"]].concat()).refused(4, &texts);
    let _later = world.agent("later", &site.url, &[]);
    let connected = || site.say(&["node", "ls"]).out.matches("not connected").count() == 0;
    eventually("another agent", || connected() && site.say(&["node", "ls"]).out.contains("later"));
    site.say(&[&same[..], &["later"]].concat()).refused(4, &texts);
    assert_eq!(volumes(&world, &site.url).len(), 1);
    write_image(&copy, "other.iso", b"other");
    site.say(&["scan"]).well();
    stays("nothing of the copy", || site.in_none("other/other.iso"));

    let _sharer = world.agent("sharer", &site.url, &[&site.pool]);
    let sights = || volumes(&world, &site.url)[0]["nodes"].to_string();
    eventually("both see it", || sights().contains("\"sharer\""));
    let scan = site.json(&["scan"]);
    assert_eq!(scan["volumes"].as_array().map(Vec::len), Some(1), "{scan}");
    assert_eq!(scan["volumes"][0]["node"], "a");
    write_image(&site.pool, "both.iso", b"both");
    eventually("one image", || site.shows("other/both.iso", b"both"));
    let images = site.json(&["status"])["images"].clone();
    assert_eq!((images, site.identity("/other/1.iso")), (4.into(), before));
}

fn keeper(host: &Host<'_>, url: &str) -> Value {
    host.json(url, &["scan"])["volumes"][0]["node"].clone()
}

/// Each file of a pool, under its own name in the library, and nothing else.
fn is_true(host: &Host<'_>, url: &str, pool: &Path) -> bool {
    let listed = host.run(&["--server", url, "ls", "/other"]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let mut listed: Vec<&str> = listed.lines().collect();
    listed.sort_unstable();
    listed == walk(&pool.join("iso"))
}

#[test]
fn a_keeper_that_stops_is_followed_by_another_and_no_longer_believed() {
    let world = World::new();
    let network = Network::new(&world);
    let [c, a, b] = ["catalog", "a", "b"].map(|name| network.host(name));
    let names = images(20);
    let pool = world.pool("isos", &names.iter().map(String::as_str).collect::<Vec<_>>());
    let (_catalog, url) = c.catalog();
    let stopped = a.agent(&url, &[&pool]);
    eventually("a keeper", || keeper(&c, &url) == "a");
    let other = b.agent(&url, &[&pool]);
    let both = || c.json(&url, &["status"])["volumes"][0]["nodes"].as_array().map(Vec::len);
    eventually("both see it", || both() == Some(2));
    let id = |name: &str| c.json(&url, &["info", &format!("/other/{name}")])["id"].clone();
    let before = id("1.iso");

    // It has heard of something, and is about to look.
    write_image(&pool, "heard.iso", b"heard");
    stopped.signal(Signal::STOP);
    eventually_in(NOTICED, "another keeper", || keeper(&c, &url) == "b");
    shell(r#"cd "$1/iso"; mv 1.iso one.iso; rm 2.iso; echo x >3.iso"#, &pool, &pool);
    write_image(&pool, "while-stopped.iso", b"stopped");
    eventually("what is there", || is_true(&c, &url, &pool));
    stopped.signal(Signal::CONT);
    write_image(&pool, "goes-on.iso", b"on");
    shell(r#"cd "$1/iso"; mv one.iso eins.iso; rm 4.iso"#, &pool, &pool);
    eventually("what is there now", || is_true(&c, &url, &pool));
    assert_eq!(keeper(&c, &url), "b", "it works on");
    assert_eq!(id("eins.iso"), before);

    // Both wrote no index but the keeper's: whoever reads it knows all.
    other.kill();
    eventually_in(NOTICED, "the first again", || keeper(&c, &url) == "a");
    let revision = c.json(&url, &["status"])["revision"].clone();
    let scan = c.json(&url, &["scan"]);
    let result = &scan["volumes"][0]["result"];
    for count in ["created", "updated", "deleted"] {
        assert_eq!(result[count], 0, "{scan}");
    }
    assert_eq!((c.json(&url, &["status"])["revision"].clone(), id("eins.iso")), (revision, before));
    assert!(is_true(&c, &url, &pool));
}

#[test]
fn the_second_of_two_agents_with_one_identity_is_refused() {
    let world = World::new();
    let network = Network::new(&world);
    let [c, a, b] = ["catalog", "a", "b"].map(|name| network.host(name));
    let pool = world.pool("isos", &["a.iso"]);
    let other = world.pool("other", &["b.iso"]);
    let (_catalog, url) = c.catalog();
    let first = a.agent(&url, &[&pool]);
    eventually("its volume", || c.json(&url, &["scan"])["volumes_scanned"] == 1);
    let (state, copy) = (world.path("agent-a"), world.path("agent-b"));
    within(SECONDS, &["cp", "-a", text(&state), text(&copy)]).expect_well();
    let _second = b.agent(&url, &[&other]);
    let refused = || world.log("agent-b.log").contains("remove agent/node.json from the copy");
    eventually("it is told", refused);
    let node = || c.json(&url, &["status"])["nodes"].clone();
    stays("the first stays", || node()[0]["name"] == "a" && node()[0]["connected"] == true);
    assert_eq!(c.json(&url, &["status"])["images"], 1);
    assert_eq!(node().as_array().map(Vec::len), Some(1));
    // It is the only one once the other has gone.
    first.kill();
    eventually_in(NOTICED, "its image", || c.json(&url, &["status"])["images"] == 2);
}

#[test]
fn clocks_ten_years_off_change_nothing() {
    let world = World::new();
    let network = Network::new(&world);
    let c = network.host("catalog");
    let ahead = network.host_with_clock("ahead", "+3650d");
    let behind = network.host_with_clock("behind", "-3650d");
    let pools = [world.pool("alpha", &["a.iso"]), world.pool("beta", &["b.iso"])];
    let (_catalog, url) = c.catalog();
    let _agents = [ahead.agent(&url, &[&pools[0]]), behind.agent(&url, &[&pools[1]])];
    let scanned = || c.json(&url, &["scan"])["volumes_scanned"] == 2;
    eventually("both volumes", scanned);
    let id = |path: &str| c.json(&url, &["info", path])["id"].clone();
    for (pool, name) in pools.iter().zip(["a", "b"]) {
        let of = |it: &str| format!("/other/{name}{it}.iso");
        let known = id(&of(""));
        let script =
            format!(r#"cd "$1/iso"; mv {name}.iso {name}-moved.iso; echo x >{name}-x.iso"#);
        shell(&script, pool, pool);
        eventually("what moved, and what is new", || {
            id(&of("-moved")) == known && id(&of("-x")).is_string()
        });
        let new = id(&of("-x"));
        // A file's own time is whatever somebody says.
        shell(&format!(r#"touch -d 2040-01-01 "$1/iso/{name}-x.iso""#), pool, pool);
        eventually("it counts as another", || id(&of("-x")) != new && id(&of("-x")).is_string());
        fs::remove_file(pool.join(format!("iso/{name}-x.iso"))).expect("removed");
        eventually("no removed one", || id(&of("-x")).is_null());
    }
    let scan = c.json(&url, &["scan"]);
    assert_eq!((&scan["discovered"], &scan["volumes_failed"]), (&0.into(), &0.into()), "{scan}");
}
