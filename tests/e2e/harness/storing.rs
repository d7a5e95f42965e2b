//! What tests of storing ask of pools and programs: what is staged, where a file came to lie, and
//! whether a program told the truth about it.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::programs::{Ended, within};
use super::{World, eventually, eventually_in, pattern, text, walk};

/// Reading, listing or storing what is in nobody's way.
pub(crate) const SECONDS: u64 = 60;
/// An upload that fails does so well within it; it exceeds every deadline on its way.
pub(crate) const UPLOAD_SECONDS: u64 = 120;
/// What is given up lapses with its lease of 20 seconds and is swept some seconds later. Packets
/// that were lost are sent again late: after as long as they were lost, at worst.
const SWEPT: Duration = Duration::from_secs(90);
/// What was refused and comes all the same would come within it.
const AFTERMATH: Duration = Duration::from_secs(5);

/// A file to store, outside of all pools.
pub(crate) fn source(world: &World, len: usize) -> (PathBuf, Vec<u8>) {
    let (path, bytes) = (world.path("source"), pattern("source", len));
    fs::write(&path, &bytes).expect("written");
    (path, bytes)
}

/// Two files hold the same bytes; read within a time limit.
#[track_caller]
pub(crate) fn same(path: &Path, expected: &Path) {
    within(SECONDS, &["cmp", text(path), text(expected)]).expect_well();
}

#[track_caller]
pub(crate) fn copies(from: &Path, to: &Path) {
    within(SECONDS, &["cp", text(from), text(to)]).expect_well();
}

/// Staged files of a pool, and their bytes.
pub(crate) fn staged(pool: &Path) -> Vec<(PathBuf, u64)> {
    let dir = pool.join(".isotope/staging");
    let all = if dir.exists() { walk(&dir) } else { Vec::new() };
    let files = all.into_iter().filter(|name| !name.ends_with('/')).map(|name| dir.join(name));
    // One may go while we look.
    files.filter_map(|it| fs::metadata(&it).ok().map(|meta| (it, meta.len()))).collect()
}

pub(crate) fn staged_bytes(pool: &Path) -> usize {
    usize::try_from(staged(pool).iter().map(|(_, len)| len).sum::<u64>()).expect("small")
}

#[track_caller]
pub(crate) fn nothing_stays_staged(pool: &Path) {
    eventually_in(SWEPT, "no staged file", || staged(pool).is_empty());
}

/// A program that ended well has stored its file for everybody; one that failed has not, and it
/// does not appear afterwards.
#[track_caller]
pub(crate) fn told_the_truth(ended: &Ended, paths: &[PathBuf], expected: &Path) {
    if !ended.well() {
        thread::sleep(AFTERMATH);
    }
    for path in paths {
        if ended.well() {
            eventually("the file", || path.exists());
            same(path, expected);
        } else {
            assert!(!path.exists(), "{} in spite of {ended:?}", path.display());
        }
    }
}
