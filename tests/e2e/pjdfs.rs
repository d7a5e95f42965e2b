//! pjdfstest, the conformance tests for POSIX file systems, on a real mount. Which of its cases do
//! not apply stands in `pjdfs.txt`, with a reason each: that list is exact, in both directions.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::programs::limited;
use crate::harness::{World, text};

/// All cases together take ten seconds on two cores.
const SECONDS_MAX: u64 = 140;
/// Fewer, and it has not run what it used to.
const PASSED_MIN: usize = 130;

/// Two users that every Debian has, each with its own group. A rename's ctime is not asked for:
/// POSIX leaves it open.
const CONFIG: &str = r#"
[features]
posix_fallocate = {}
utime_now = {}
utimensat = {}
[settings]
# Times have nanoseconds.
naptime = 0.002
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// What does not apply: groups of patterns, each below its reason.
const LIST: &str = include_str!("pjdfs.txt");

/// What `scripts/test` installs, beside the binaries that are tested.
fn program() -> PathBuf {
    let target = Path::new(env!("CARGO_BIN_EXE_isotope")).ancestors().nth(2).expect("a directory");
    let path = target.join("tools/bin/pjdfstest");
    assert!(path.is_file(), "there is no {}: scripts/test installs it", path.display());
    path
}

/// Each case, and what was said of it unless it passed.
fn run(world: &World, dir: &Path) -> BTreeMap<String, Option<String>> {
    fs::write(world.path("pjdfs.toml"), CONFIG).expect("written");
    let mut command = Command::new(program());
    command.args(["--configuration-file", text(&world.path("pjdfs.toml"))]);
    command.args(["--secondary-fs", text(&world.make_dir("elsewhere"))]);
    command.args(["--path", text(dir)]).env("NO_COLOR", "1").env("RUST_BACKTRACE", "0");
    let output = limited(SECONDS_MAX, &command).output().expect("the program runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("Summary"), "it did not come to its end:\n{said}\n{errors}");
    results(&said)
}

/// A line for each case; below one that did not pass, indented, why.
fn results(said: &str) -> BTreeMap<String, Option<String>> {
    let mut cases = BTreeMap::new();
    let mut last = None;
    for line in said.lines() {
        if let Some(why) = line.strip_prefix('\t') {
            if let Some(told) = last.as_ref().and_then(|name| cases.get_mut(name)) {
                *told = Some(why.to_owned());
            }
            last = None;
        } else if let Some((name, result)) = line.split_once(' ')
            && name.contains("::")
        {
            let passed = result.trim() == "ok";
            let told = (!passed).then(|| result.trim().to_owned());
            assert_eq!(cases.insert(name.to_owned(), told), None, "{name} twice");
            last = (!passed).then(|| name.to_owned());
        }
    }
    cases
}

/// Whether a pattern, in which `*` stands for anything, means a case.
fn means(pattern: &str, case: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == case,
        Some((head, rest)) => case.strip_prefix(head).is_some_and(|case| {
            (0..=case.len())
                .filter(|at| case.is_char_boundary(*at))
                .any(|at| means(rest, &case[at..]))
        }),
    }
}

fn patterns() -> Vec<&'static str> {
    let patterns: Vec<_> = LIST.lines().filter_map(|line| line.strip_prefix("    ")).collect();
    let groups = LIST.split("\n\n").all(|group| {
        let mut lines = group.lines();
        let reason = lines.next().is_some_and(|line| line.ends_with('.') && !line.starts_with(' '));
        reason && lines.all(|line| line.starts_with("    "))
    });
    assert!(groups, "pjdfs.txt: each group is a reason, and indented patterns below it");
    patterns
}

#[test]
fn the_cases_of_pjdfstest_that_apply_pass() {
    let world = World::new();
    // Some of its cases are other users.
    world.open_to_users();
    let pool = world.pool("isos", &[]);
    let (_up, _, mount) = world.up(&[&pool]);
    let cases = run(&world, &mount);
    let patterns = patterns();

    let is_listed = |case: &str| patterns.iter().any(|pattern| means(pattern, case));
    let mut wrong = Vec::new();
    for (case, told) in &cases {
        match told {
            Some(told) if !is_listed(case) => wrong.push(format!("{case}: {told}")),
            None if is_listed(case) => wrong.push(format!("{case}: listed, and passed")),
            Some(_) | None => {}
        }
    }
    for pattern in &patterns {
        if !cases.keys().any(|case| means(pattern, case)) {
            wrong.push(format!("{pattern}: listed, and there is no such case"));
        }
    }
    assert!(wrong.is_empty(), "against tests/e2e/pjdfs.txt:\n{}", wrong.join("\n"));
    let passed = cases.values().filter(|told| told.is_none()).count();
    assert!(passed >= PASSED_MIN, "only {passed} cases passed");
}

#[test]
fn a_case_is_found_with_what_was_said_of_it() {
    let said =
        "chmod::a::dir    ok\nchmod::b   FAILED\n\tleft and right\n\tmore\n\nSummary: 1 failed";
    let expected = [("chmod::a::dir", None), ("chmod::b", Some("left and right"))];
    let expected = expected.map(|(case, told)| (case.to_owned(), told.map(str::to_owned)));
    assert_eq!(results(said), BTreeMap::from(expected));
    for (pattern, case, expected) in [
        ("a::b", "a::b", true),
        ("a::b", "a::bc", false),
        ("*::b", "a::c::b", true),
        ("*::b_*", "a::b_c", true),
        ("*::b_*", "a::b", false),
        ("a::*", "b::a::c", false),
    ] {
        assert_eq!(means(pattern, case), expected, "{pattern} {case}");
    }
}
