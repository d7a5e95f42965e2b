//! Which node scans a pool, in each situation of the design; and what whoever asked is told.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::Said;
use crate::harness::hosts::{Host, Network};
use crate::harness::{Part, World, eventually, text, write_image};

fn say(host: &Host<'_>, url: &str, args: &[&str]) -> Said {
    host.run(&[&["--server", url], args].concat()).into()
}

fn scanned(host: &Host<'_>, url: &str, volumes: usize) {
    eventually("the volumes", || host.json(url, &["scan"])["volumes_scanned"] == volumes);
}

fn connected(host: &Host<'_>, url: &str, names: &[&str]) {
    eventually("who is connected", || {
        let status = host.json(url, &["status"]);
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        let is = |it: &Value| it["connected"] == true;
        let there: Vec<&str> =
            nodes.iter().filter(|it| is(it)).filter_map(|it| it["name"].as_str()).collect();
        there.len() == names.len() && names.iter().all(|name| there.contains(name))
    });
}

/// Of each volume of a scan's answer: who scanned it, or nobody, and why.
fn choices(scan: &Value) -> Vec<(String, String)> {
    let text = |it: &Value| it.as_str().unwrap_or("?").to_owned();
    let volumes = scan["volumes"].as_array().cloned().unwrap_or_default();
    let mut all: Vec<_> =
        volumes.iter().map(|it| (text(&it["node"]), text(&it["reason"]))).collect();
    all.sort();
    all
}

#[test]
fn an_assigned_node_scans_while_it_is_connected_and_another_when_it_is_not() {
    let world = World::new();
    let network = Network::new(&world);
    let [c, a, b] = ["catalog", "a", "b"].map(|name| network.host(name));
    // Both see one directory, as on shared storage.
    let pool = world.pool("isos", &["a.iso"]);
    let (_catalog, url) = c.catalog();
    let agent_a = a.agent(&url, &[&pool]);
    scanned(&c, &url, 1);
    let agent_b = b.agent(&url, &[&pool]);
    let both = || c.json(&url, &["status"])["volumes"][0]["nodes"].as_array().map(Vec::len);
    eventually("both see it", || both() == Some(2));
    say(&c, &url, &["pool", "assign", "isos", "a"]).well();
    let scan = c.json(&url, &["scan", "isos"]);
    assert_eq!(choices(&scan), [("a".into(), "assigned and connected".into())], "{scan}");

    agent_a.kill();
    connected(&c, &url, &["b"]);
    write_image(&pool, "b.iso", b"b");
    let scan = c.json(&url, &["scan", "isos"]);
    let why = "no assigned node can do it; this one offers the pool";
    assert_eq!(choices(&scan), [("b".into(), why.into())], "{scan}");
    eventually("what it found", || c.json(&url, &["status"])["images"] == 2);

    agent_b.kill();
    connected(&c, &url, &[]);
    say(&c, &url, &["pool", "assign", "isos"]).well();
    let _agent_b = b.agent(&url, &[&pool]);
    scanned(&c, &url, 1);
    let scan = c.json(&url, &["scan", "isos"]);
    let why = "the pool has no assignment; this node offers it";
    assert_eq!(choices(&scan), [("b".into(), why.into())], "{scan}");
}

#[test]
fn without_a_node_a_pool_is_skipped_and_said_why() {
    let world = World::new();
    let network = Network::new(&world);
    let [c, a] = ["catalog", "a"].map(|name| network.host(name));
    let pool = world.pool("isos", &["a.iso"]);
    let (_catalog, url) = c.catalog();
    let agent = a.agent(&url, &[&pool]);
    scanned(&c, &url, 1);
    agent.kill();
    connected(&c, &url, &[]);
    let scan = c.json(&url, &["scan"]);
    let why = "no connected node offers the volume: a not connected";
    assert_eq!(choices(&scan), [(String::new(), why.to_owned())], "{scan}");
    assert_eq!((&scan["volumes_scanned"], &scan["volumes_skipped"]), (&0.into(), &1.into()));
    assert_eq!(c.json(&url, &["status"])["images"], 1, "what was known stays");
    let told = say(&c, &url, &["scan"]);
    assert!(told.out.contains(&format!("isos: skipped: {why}")), "{told:?}");
    told.refused(6, &["no volume could be scanned"]);
    say(&c, &url, &["scan", "nothing"]).refused(3, &["no pool is called nothing"]);
}

#[test]
fn a_directory_without_a_marker_is_told_with_the_command_that_attaches_it() {
    let world = World::new();
    let network = Network::new(&world);
    let [c, a, b] = ["catalog", "a", "b"].map(|name| network.host(name));
    let pool = world.pool("isos", &["a.iso"]);
    let (_catalog, url) = c.catalog();
    let agent_a = a.agent(&url, &[&pool]);
    let _agent_b = b.agent(&url, &[]);
    scanned(&c, &url, 1);
    agent_a.kill();
    connected(&c, &url, &["b"]);
    // Of the other host there is a directory of the same name, which nobody has used yet.
    fs::rename(&pool, world.path("of-a")).expect("moved");
    let pool = world.pool("isos", &["b.iso"]);
    let scan = c.json(&url, &["scan"]);
    let command = format!("isotope pool attach isos {} --node b", text(&pool));
    let [(_, why)] = &choices(&scan)[..] else { panic!("{scan}") };
    let said = format!("b has a {} that is no volume: {command}", text(&pool));
    assert!(
        why.starts_with("no connected node offers the volume") && why.ends_with(&said),
        "{why}"
    );
    assert!(!pool.join(".isotope").exists(), "it was looked at, and no more");

    let words: Vec<&str> = command.split(' ').skip(1).collect();
    say(&c, &url, &words).well();
    let scan = c.json(&url, &["scan"]);
    let chosen = choices(&scan);
    assert!(chosen.iter().any(|(node, _)| node == "b"), "{chosen:?}");
    eventually("its image, too", || c.json(&url, &["info", "/other/b.iso"])["id"].is_string());
    assert!(c.json(&url, &["info", "/other/a.iso"])["id"].is_string());
}

/// Puts images into a pool and scans, until what is told is not what the agent had found by itself
/// meanwhile; returns the path of the last.
fn put_and_scan(host: &Host<'_>, url: &str, pool: &Path) -> String {
    for n in 0..10 {
        write_image(pool, &format!("put-{n}.iso"), format!("put {n}").as_bytes());
        let said = say(host, url, &["scan"]).well();
        let path = format!("/other/put-{n}.iso");
        assert!(host.json(url, &["info", &path])["id"].is_string(), "{path} is there");
        if said.ends_with("Discovered 1 new ISO") {
            return path;
        }
        assert!(said.ends_with("No new ISOs found"), "{said}");
    }
    panic!("no scan discovered what was put there just before");
}

/// "Test 1: Offline Assigned Node".
#[test]
fn what_is_put_on_another_node_is_discovered_while_the_assigned_one_is_offline() {
    let world = World::new();
    let network = Network::new(&world);
    let [c, a, b] = ["catalog", "a", "b"].map(|name| network.host(name));
    let (of_a, of_b) = (world.pool("of-a", &[]), world.pool("of-b", &[]));
    let (_catalog, url) = c.catalog();
    let (agent_a, _agent_b) = (a.agent(&url, &[]), b.agent(&url, &[]));
    connected(&c, &url, &["a", "b"]);
    say(&c, &url, &["pool", "add", "isos", text(&of_a), "--node", "a"]).well();
    say(&c, &url, &["pool", "attach", "isos", text(&of_b), "--node", "b"]).well();
    say(&c, &url, &["pool", "assign", "isos", "a"]).well();
    scanned(&c, &url, 2);
    assert_eq!(agent_a.stop(), 0);
    connected(&c, &url, &["b"]);
    put_and_scan(&c, &url, &of_b);
    let scan = c.json(&url, &["scan"]);
    let [(nobody, skipped), (node, why)] = &choices(&scan)[..] else { panic!("{scan}") };
    assert_eq!((&**nobody, &**node), ("", "b"));
    assert!(skipped.contains("a not connected"), "{skipped}");
    assert_eq!(why, "no assigned node can do it; this one offers the pool");
}

/// "Test 2: No Assigned Nodes", and "Test 3: Manual Scan Feedback".
#[test]
fn a_pool_without_assignment_is_scanned_and_told_of_in_words() {
    let world = World::new();
    let network = Network::new(&world);
    let [c, a] = ["catalog", "a"].map(|name| network.host(name));
    let pool = world.pool("isos", &[]);
    let (_catalog, url) = c.catalog();
    let _agent = a.agent(&url, &[&pool]);
    scanned(&c, &url, 1);
    say(&c, &url, &["pool", "assign", "isos"]).well();
    assert!(say(&c, &url, &["scan"]).well().ends_with("No new ISOs found"));
    put_and_scan(&c, &url, &pool);
    assert!(say(&c, &url, &["scan"]).well().ends_with("No new ISOs found"));
}

#[test]
fn two_scans_at_once_are_one_and_say_the_same() {
    let world = World::new();
    let network = Network::new(&world);
    let host = network.host("a");
    let pool = world.pool("isos", &["a.iso"]);
    let (_catalog, url) = host.catalog();
    let agent = host.agent(&url, &[&pool]);
    scanned(&host, &url, 1);
    agent.signal(Signal::STOP);
    for n in 0..3 {
        write_image(&pool, &format!("new-{n}.iso"), b"new");
    }
    let (one, other) = thread::scope(|scope| {
        let ask = || scope.spawn(|| host.json(&url, &["scan"]));
        let asked = (ask(), ask());
        // Both wait at the agent then.
        thread::sleep(Duration::from_secs(1));
        agent.signal(Signal::CONT);
        (asked.0.join().expect("told"), asked.1.join().expect("told"))
    });
    assert_eq!(one, other);
    assert_eq!(one["message"], "Discovered 3 new ISOs", "{one}");
}

/// What an agent writes down.
const ASKED: &str = "asked to connect to the catalogue now";
const ROUNDS_MAX: usize = 5;

#[test]
fn a_node_that_waits_before_it_connects_again_is_asked_to_do_so_now() {
    let world = World::new();
    let network = Network::new(&world);
    let [c, a] = ["catalog", "a"].map(|name| network.host(name));
    let pool = world.pool("isos", &["a.iso"]);
    let (catalog, url) = c.catalog();
    let _agent = a.agent(&url, &[&pool]);
    scanned(&c, &url, 1);
    let mut catalog = Some(catalog);
    // On a host that is starved of its processor the two seconds for asking may not be enough.
    let asked_and_scanned = (0..ROUNDS_MAX).any(|_| {
        catalog.take().into_iter().for_each(Part::kill);
        // By now it tries every three seconds.
        thread::sleep(Duration::from_secs(7));
        let asked_before = world.log("agent-a.log").matches(ASKED).count();
        catalog = Some(c.catalog().0);
        let scanned = c.json(&url, &["scan"])["volumes_scanned"] == 1;
        // Unless it happened to come by itself.
        scanned && world.log("agent-a.log").matches(ASKED).count() > asked_before
    });
    assert!(asked_and_scanned, "{}", world.log("catalog.log"));
}
