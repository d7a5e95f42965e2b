//! URLs that let whoever has them read one image for some time.

use super::{Reply, Served};
use crate::harness::{World, eventually, pattern, same_bytes};

/// What `isotope url` prints.
#[track_caller]
fn signed(world: &World, url: &str, args: &[&str]) -> String {
    let output = world.run(&[&["--server", url, "url"], args].concat());
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

#[test]
fn a_signed_url_reads_its_image_and_no_other() {
    let bytes = pattern("signed", 300_000);
    let it = Served::with(&[("a b.iso", &bytes), ("other.iso", b"other")]);
    let (world, url) = (&it.world, &it.url);
    let (path, id) = ("/other/a b.iso", it.id("/other/a b.iso"));
    let at_catalog = signed(world, url, &[path]);
    let start = format!("{url}/content/{id}/a%20b.iso?expires=");
    assert!(at_catalog.starts_with(&start), "{at_catalog}");
    let at_agent = signed(world, url, &["--agent", &id]);
    assert!(at_agent.starts_with(&start.replace(url, &it.agent)), "{at_agent}");
    let same = |reply: &Reply| {
        assert_eq!(reply.status, 200, "{}", reply.text());
        same_bytes(&reply.body, &bytes);
    };
    same(&it.get(&["-L", &at_catalog]));
    same(&it.get(&[&at_agent]));
    let part = it.get(&["-L", "-r", "5-9", &at_catalog]);
    assert_eq!((part.status, &*part.body), (206, &bytes[5..10]));
    // The query goes along, whichever name leads there.
    let query = at_catalog.split_once('?').expect("a query").1;
    same(&it.get(&["-L", &format!("{url}/files/other/a%20b.iso?{query}")]));

    let flipped = if at_agent.ends_with('0') { "1" } else { "0" };
    let forged = format!("{}{flipped}", &at_agent[..at_agent.len() - 1]);
    let others = at_agent.replace(&id, &it.id("/other/other.iso"));
    let longer = at_agent.replace("expires=", "expires=9");
    let unsigned = at_agent.split("&signature").next().expect("a query").to_owned();
    for wrong in [forged, others, longer, unsigned] {
        it.get(&[&wrong]).refuses(403, "signature is wrong");
        let by_catalog = wrong.replace(&it.agent, url);
        it.get(&["-L", &by_catalog]).refuses(403, "signature is wrong");
    }
    let json = world.json(url, &["url", path, "--ttl", "30d"]);
    assert!(json["url"].as_str().is_some_and(|it| it.starts_with(&start)), "{json}");
    assert_eq!(json["image_id"], *id);
    assert!(json["expire_time"].is_string());
}

#[test]
fn a_signed_url_ends_with_its_time() {
    let it = Served::with(&[("a.iso", b"bytes")]);
    let (world, url) = (&it.world, &it.url);
    for (ttl, words) in [("0s", "a second at least"), ("31d", "30 days at most")] {
        let refused = world.run(&["--server", url, "url", "/other/a.iso", "--ttl", ttl]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(2) && said.contains(words), "{said}");
    }
    let missing = world.run(&["--server", url, "url", "/other/no.iso"]);
    assert_eq!(missing.status.code(), Some(3));
    let short = signed(world, url, &["--ttl", "1s", "/other/a.iso"]);
    let at_agent = short.replace(url, &it.agent);
    eventually("it has expired", || it.get(&["-L", &short]).status == 403);
    it.get(&[&short]).refuses(403, "has expired");
    it.get(&[&at_agent]).refuses(403, "has expired");
    // Who needs none reads as before.
    assert_eq!(it.get(&[at_agent.split('?').next().expect("a path")]).text(), "bytes");
}

#[test]
fn a_signed_url_outlives_restarts() {
    let it = Served::with(&[("a.iso", b"bytes")]);
    let by_catalog = signed(&it.world, &it.url, &["/other/a.iso"]);
    let Served { world, url, catalog, part, .. } = it;
    let pool = world.path("isos");
    assert_eq!((part.stop(), catalog.stop()), (0, 0));
    // An agent alone cannot tell a right signature from a wrong one, and says so.
    let state = world.path("agent-host");
    let state = crate::harness::text(&state);
    let args = ["serve", "agent", "--catalog", &url, "--listen", "127.0.0.1:0", "--name", "host"];
    let pool = ["--state", state, "--pool", crate::harness::text(&pool)];
    let agent = world.start("agent-host.log", &[&args[..], &pool[..]].concat());
    let address = format!("http://{}", agent.wait_for("agent"));
    let by_agent = by_catalog.replace(&url, &address);
    let alone = super::get(&world, &[&by_agent]);
    alone.refuses(503, "before the catalogue has been reached");
    assert_eq!(alone.header("retry-after"), Some("5"));
    let (_catalog, _) = world.catalog_on(url.trim_start_matches("http://"));
    eventually("both are back", || super::get(&world, &["-L", &by_catalog]).status == 200);
    assert_eq!(super::get(&world, &[&by_agent]).text(), "bytes");
}
