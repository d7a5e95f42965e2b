//! Reading from other hosts: the image's bytes or an error in time, whatever happens to the hosts.

mod cold_start;
mod failover;
mod probes;
mod programs;
mod wrong_bytes;

use std::path::Path;

use crate::harness::hosts::Host;
use crate::harness::{World, eventually_in, pattern, write_image};

const MIB: usize = 1 << 20;
/// More than is fetched ahead for a reader that pauses.
const LONG: usize = 20 * MIB;
/// Hashing takes a while in a build for tests.
const HASHED: std::time::Duration = std::time::Duration::from_secs(120);

/// The same file in both pools: one image, once it is known.
fn copies(pools: [&Path; 2], name: &str, len: usize) -> Vec<u8> {
    let bytes = pattern(name, len);
    for pool in pools {
        write_image(pool, name, &bytes);
    }
    bytes
}

/// Until everything is hashed, and what is the same is one.
fn hashed(host: &Host<'_>, url: &str, images: usize) {
    eventually_in(HASHED, "the hashes", || {
        host.json(url, &["scan", "--wait", "hashed"]);
        let listed = host.run(&["--server", url, "--json", "ls", "/other"]).stdout;
        let listed = String::from_utf8(listed).expect("text");
        listed.lines().count() == images && listed.lines().all(|it| it.contains("\"sha256\""))
    });
}

fn pools(world: &World) -> [std::path::PathBuf; 2] {
    ["alpha", "beta"].map(|name| world.pool(name, &[]))
}
