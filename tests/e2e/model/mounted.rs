//! The same through the kernel: system calls on a real mount, the whole tree compared after each,
//! and a second mount that must come to show the same.

use std::fs;
use std::io;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::PathBuf;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::reference::{Model, Node, Op, Path, UNKNOWN, step_and_store};
use crate::harness::{World, eventually};

const STEPS: usize = 400;
/// The second mount is compared after so many steps.
const COMPARE_EVERY: usize = 10;

/// What a mount shows; every name is also looked up, so that listings and lookups must agree. What
/// does not fit together may be a change on its way: it is said, and the caller looks again.
pub(crate) fn look(mount: &std::path::Path) -> Result<Model, String> {
    fn below(
        dir: &std::path::Path,
        prefix: &Path,
        model: &mut Model,
        links: &mut Vec<(u64, u64)>,
    ) -> Result<(), String> {
        let gone = |error: io::Error| format!("{}: {error}", dir.display());
        for entry in fs::read_dir(dir).map_err(gone)? {
            let entry = entry.map_err(gone)?;
            let mut path = prefix.clone();
            path.push(entry.file_name().into_string().expect("text"));
            let meta = fs::symlink_metadata(entry.path());
            let meta = meta.map_err(|error| format!("{path:?} is listed: {error}"))?;
            if entry.ino() != meta.ino() {
                return Err(format!("{path:?}: d_ino is {}, st_ino {}", entry.ino(), meta.ino()));
            }
            let node = if meta.is_dir() {
                below(&entry.path(), &path, model, links)?;
                Node::Folder
            } else {
                links.push((meta.ino(), meta.nlink()));
                Node::Image(meta.ino())
            };
            if model.0.insert(path.clone(), node).is_some() {
                return Err(format!("{path:?} is listed twice"));
            }
        }
        Ok(())
    }
    let mut model = Model::default();
    let mut links = Vec::new();
    below(mount, &Path::new(), &mut model, &mut links)?;
    match links.iter().find(|(ino, links)| model.links(*ino) as u64 != *links) {
        Some((ino, links)) => Err(format!("{ino} says {links} links, and has another number")),
        None => Ok(model),
    }
}

/// The same where nothing is on its way.
fn model_of(mount: &std::path::Path) -> Model {
    look(mount).expect("a whole tree")
}

pub(crate) fn carry_out(mount: &std::path::Path, op: &Op) -> io::Result<()> {
    let at = |path: &Path| mount.join(path.iter().collect::<PathBuf>());
    match op {
        Op::MakeFolder(path) => fs::create_dir(at(path)),
        Op::RemoveFolder(path) => fs::remove_dir(at(path)),
        Op::Rename { from, to, no_replace: false } => fs::rename(at(from), at(to)),
        Op::Rename { from, to, no_replace: true } => {
            Ok(renameat_with(CWD, at(from), CWD, at(to), RenameFlags::NOREPLACE)?)
        }
        Op::Link { from, to } => fs::hard_link(at(from), at(to)),
        Op::Exchange { from, to } => {
            Ok(renameat_with(CWD, at(from), CWD, at(to), RenameFlags::EXCHANGE)?)
        }
        Op::Create(path) => io::Write::write_all(&mut fs::File::create_new(at(path))?, b"bytes"),
        Op::Store(path) => fs::write(at(path), b"other bytes"),
        Op::Unlink(path) => fs::remove_file(at(path)),
    }
}

#[test]
fn a_mount_agrees_with_the_model() {
    let world = World::new();
    let pool = world.pool("isos", &["a/0.iso", "a/1.iso", "2.iso"]);
    let (_up, url, first) = world.up(&[&pool]);
    let (_second, second) = world.mount("second", &url);
    let mut model = model_of(&first);
    assert_eq!(model.0.len(), 7, "three folders, /a and three images");

    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    for n in 0..STEPS {
        let step = step_and_store().new_tree(&mut runner).expect("a step").current();
        let op = step.op(&model);
        // Changes come from both sides.
        let mount = if n % 7 == 3 { &second } else { &first };
        eventually("the mount to have followed", || look(mount).as_ref() == Ok(&model));
        let expected = model.apply(&op);
        match (carry_out(mount, &op), expected) {
            (Ok(()), Ok(())) => {}
            (Err(error), Err(allowed))
                if error.raw_os_error().is_some_and(|errno| allowed.contains(&errno)) => {}
            (found, expected) => panic!("step {n}, {op:?}: expected {expected:?}, found {found:?}"),
        }
        if let Op::Create(path) | Op::Store(path) = &op {
            let new = model.0.values_mut().filter(|node| **node == Node::Image(UNKNOWN));
            for node in new {
                let at = mount.join(path.iter().collect::<PathBuf>());
                *node = Node::Image(fs::metadata(at).expect("made").ino());
            }
        }
        assert_eq!(model_of(mount), model, "whoever made it sees it at once: step {n}, {op:?}");
        if n % COMPARE_EVERY == 0 {
            eventually("both to be the same", || look(&second).as_ref() == Ok(&model));
        }
    }
}
