//! The house rules that a machine can check: which way the crates depend, where a library may be
//! named, that modules open with a sentence, that each promise has its test.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Rust files below a directory, as paths from the root.
fn sources(dir: &str) -> Vec<PathBuf> {
    fn below(dir: &Path, all: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).expect("a listing") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                below(&path, all);
            } else if path.extension().is_some_and(|it| it == "rs") {
                all.push(path.strip_prefix(root()).expect("below the root").to_owned());
            }
        }
    }
    let mut all = Vec::new();
    below(&root().join(dir), &mut all);
    assert!(!all.is_empty(), "{dir} has no sources");
    all
}

fn product() -> Vec<PathBuf> {
    ["src", "proto/src", "catalog/src", "agent/src", "fs/src"]
        .into_iter()
        .flat_map(sources)
        .collect()
}

/// A file without its unit tests, which stand at its end.
fn code(path: &Path) -> String {
    let text = read(&root().join(path));
    text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().to_owned()
}

#[test]
fn the_daemons_meet_only_in_proto() {
    for (name, forbidden) in [
        ("proto", &["isotope-catalog", "isotope-agent", "isotope-fs"][..]),
        ("catalog", &["isotope-agent", "isotope-fs"]),
        ("agent", &["isotope-catalog", "isotope-fs"]),
        ("fs", &["isotope-catalog", "isotope-agent"]),
    ] {
        let manifest = read(&root().join(name).join("Cargo.toml"));
        for other in forbidden {
            assert!(!manifest.contains(other), "{name} depends on {other}");
        }
    }
}

#[test]
fn each_library_is_named_where_it_belongs() {
    for (library, rooms) in [
        ("rusqlite::", &["catalog/src/store"][..]),
        ("refinery::", &["catalog/src/store"]),
        (
            "fuser::",
            &[
                "fs/src/adapter.rs",
                "fs/src/reply.rs",
                "fs/src/errno.rs",
                "fs/src/session.rs",
                "fs/src/notify.rs",
                "fs/src/attr.rs",
                "fs/src/opening.rs",
                "fs/src/passthrough.rs",
            ],
        ),
        ("axum::", &["agent/src/http", "agent/src/service/read.rs", "catalog/src/service/http.rs"]),
        ("anyhow", &["src/"]),
        ("prometheus_client", &["src/metrics.rs"]),
        (
            "SystemTime::now",
            &["src/", "catalog/src/clock.rs", "agent/src/clock.rs", "fs/src/clock.rs"],
        ),
        ("println!", &["src/output.rs"]),
        ("notify::", &["agent/src/watch.rs", "fs/src"]),
        (
            "pb::",
            &[
                "proto/src/",
                "src/",
                "catalog/src/service",
                "catalog/src/hosts.rs",
                "catalog/src/arranging.rs",
                "catalog/src/verifying.rs",
                "agent/src/service",
                "agent/src/follow.rs",
                "agent/src/session.rs",
                "agent/src/tell.rs",
                "agent/src/roll.rs",
                "agent/src/refresh.rs",
                "agent/src/hasher.rs",
                "agent/src/host.rs",
                "agent/src/worker.rs",
                "fs/src/catalog.rs",
                "fs/src/feed.rs",
                "fs/src/follow.rs",
                "fs/src/local.rs",
                "fs/src/recorder.rs",
                "fs/src/recording.rs",
                "fs/src/remote.rs",
                "fs/src/stage.rs",
                "fs/src/beginning.rs",
            ],
        ),
    ] {
        for path in product() {
            let allowed = rooms.iter().any(|room| path.to_string_lossy().starts_with(room));
            let named = code(&path)
                .lines()
                .any(|line| line.contains(library) && !line.trim_start().starts_with("//"));
            assert!(allowed || !named, "{} names {library}", path.display());
        }
    }
}

#[test]
fn modules_open_with_a_sentence() {
    for path in product().into_iter().chain(sources("tests")) {
        let text = read(&root().join(&path));
        assert!(text.starts_with("//! "), "{} does not open with //!", path.display());
    }
}

#[test]
fn each_promise_has_its_test() {
    let headings: BTreeSet<String> = read(&root().join("docs/SEMANTICS.md"))
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .map(|heading| heading.to_lowercase().replace([' ', '-'], "_"))
        .collect();
    let mut tests = BTreeSet::new();
    for path in sources("tests/e2e/semantics") {
        let text = read(&root().join(path));
        let functions = text.split("#[test]\n").filter_map(|it| it.strip_prefix("fn "));
        tests.extend(functions.filter_map(|it| Some(it.split_once("() {")?.0.to_owned())));
    }
    assert_eq!(headings, tests);
    assert!(headings.len() > 10);
}
