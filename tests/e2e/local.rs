//! Images that lie on the reader's own host: the kernel reads their files, past the mount, and where
//! it cannot they are read as those of other hosts are.

mod agents;
mod behind;
mod bytes;
mod pools;
mod writers;

use std::path::{Path, PathBuf};

use crate::harness::{Part, World, eventually, text};

/// Bytes of the images of these tests: some requests to read, and no whole number of pages.
const LEN: usize = (4 << 20) + 777;

/// What a mount says of how it is read.
pub(crate) fn reads(mount: &Path) -> serde_json::Value {
    let mut answer = vec![0; 4096];
    let len = rustix::fs::getxattr(mount, "user.isotope.reads", &mut answer).expect("it answers");
    serde_json::from_slice(&answer[..len]).expect("JSON")
}

/// One of its numbers, by a path like `/opens_ordinary/touched`.
#[track_caller]
fn count(mount: &Path, which: &str) -> u64 {
    let all = reads(mount);
    let found = all.pointer(which).and_then(serde_json::Value::as_u64);
    found.unwrap_or_else(|| panic!("no {which} in {all}"))
}

/// How images were opened since the mount began: passed through, and by each other way's reason.
#[track_caller]
fn opens(mount: &Path) -> (u64, Vec<String>) {
    let all = reads(mount);
    let ordinary = all["opens_ordinary"].as_object().expect("the reasons");
    let told = ordinary.iter().filter(|(_, count)| *count != 0);
    let passed = all["opens_passed_through"].as_u64().expect("a number");
    (passed, told.map(|(why, count)| format!("{why} {count}")).collect())
}

/// Every release has been heard of: an inode's next open is its first.
fn all_closed(mount: &Path) {
    eventually("nothing is open", || {
        count(mount, "/open_passed_through") + count(mount, "/open_ordinary") == 0
    });
}

/// Whether an image is passed through when it is opened first. A busy machine may let an agent's
/// time pass, and then it is not asked for some seconds: tried until it is so.
#[track_caller]
pub(crate) fn passes_through(mount: &Path, image: &Path) {
    eventually("it is passed through", || {
        all_closed(mount);
        let before = count(mount, "/opens_passed_through");
        std::fs::File::open(image).expect("opened");
        count(mount, "/opens_passed_through") > before
    });
    all_closed(mount);
}

impl World {
    /// A mount whose host has the name of an agent.
    pub(crate) fn mount_beside(&self, agent: &str, name: &str, url: &str) -> (Part, PathBuf) {
        let path = self.mount_point(name);
        let mut command = self.command(&["mount", text(&path), "--catalog", url]);
        let part = self.spawn(&format!("{name}.log"), {
            command.env("ISOTOPE_AGENT_NAME", agent);
            command
        });
        part.wait_for("mounted");
        (part, path)
    }
}
