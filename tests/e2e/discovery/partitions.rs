//! A host that cannot be reached while its pool changes: the library is right once it is back.

use std::time::Duration;

use super::{shell, stays};
use crate::harness::hosts::Network;
use crate::harness::{World, eventually, eventually_in, walk, write_image};

/// Hosts that lost one another have met again by then.
const HEALED: Duration = Duration::from_secs(30);

#[test]
fn what_happened_in_a_pool_during_a_partition_is_known_after_it() {
    let world = World::new();
    let network = Network::new(&world);
    let [c, a] = ["catalog", "a"].map(|name| network.host(name));
    let names = ["moved.iso", "gone.iso", "changed.iso", "kept.iso", "dir/deep.iso"];
    let pool = world.pool("isos", &names);
    for n in 0..20 {
        write_image(&pool, &format!("other-{n}.iso"), b"other");
    }
    let (_catalog, url) = c.catalog();
    let _agent = a.agent(&url, &[&pool]);
    eventually("all", || c.json(&url, &["status"])["images"] == 25);
    let known = |path: &str| {
        let info = c.json(&url, &["info", path]);
        (info["id"].clone(), info["ino"].clone())
    };
    let nothing = || (serde_json::Value::Null, serde_json::Value::Null);
    let before = ["/other/moved.iso", "/other/kept.iso", "/dir/deep.iso"].map(known);
    let changed = known("/other/changed.iso");
    // A connection that is missed, and one that survives.
    for (round, missed) in [("long", true), ("short", false)] {
        a.cut_off();
        let script = match missed {
            true => {
                r#"cd "$1/iso"; mv moved.iso other-name.iso; rm gone.iso
                echo new >changed.iso; mv dir elsewhere"#
            }
            false => r#"cd "$1/iso"; mv other-name.iso moved.iso; rm other-1.iso other-2.iso"#,
        };
        shell(script, &pool, &pool);
        write_image(&pool, &format!("{round}.iso"), round.as_bytes());
        let state = || super::state(&world, &url, "isos").0;
        if missed {
            let offline = || c.json(&url, &["status"])["volumes"][0]["state"] == "offline";
            eventually_in(HEALED, "it is missed", offline);
            assert_eq!(known("/other/moved.iso"), before[0], "{}: nothing is known", state());
            assert_eq!(c.json(&url, &["status"])["images"], 25);
        } else {
            stays("nothing is known", || known("/other/short.iso") == nothing());
        }
        a.reconnect();
        let put = format!("/other/{round}.iso");
        eventually_in(HEALED, "what was put there", || known(&put) != nothing());
    }
    eventually("what was removed", || known("/other/other-1.iso") == nothing());
    assert_eq!(known("/other/gone.iso"), nothing());
    let after = ["/other/moved.iso", "/other/kept.iso", "/dir/deep.iso"].map(known);
    assert_eq!(after, before);
    let now = known("/other/changed.iso");
    assert!(now != nothing() && now != changed);
    let files = walk(&pool.join("iso")).iter().filter(|it| it.ends_with(".iso")).count();
    assert_eq!(c.json(&url, &["status"])["images"], files);
}
