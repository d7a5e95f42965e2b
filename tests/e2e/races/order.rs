//! Whether what happened at once could have happened one after the other: the judge of every race.

use std::collections::BTreeMap;

use crate::model::reference::{Model, Node, Op, Path, UNKNOWN};

/// An operation that was carried out while others were, and how it ended: with an errno, or well.
#[derive(Debug, Clone)]
pub(super) struct Happened {
    pub(super) op: Op,
    pub(super) result: Result<(), i32>,
}

/// Inode numbers of files that an order makes; no mount gives them out.
const NEW: u64 = u64::MAX - 1000;

/// An order in which the operations would have had the results that they had, and would have made
/// one tree of the other.
pub(super) fn order_of(before: &Model, happened: &[Happened], after: &Model) -> Option<Vec<Op>> {
    let all: Vec<_> = (0..happened.len()).collect();
    search(before, happened, after, &all)
}

fn search(now: &Model, happened: &[Happened], after: &Model, left: &[usize]) -> Option<Vec<Op>> {
    if left.is_empty() {
        return is_same(now, after).then(Vec::new);
    }
    left.iter().find_map(|n| {
        let next = step(now, *n, happened)?;
        let left: Vec<_> = left.iter().filter(|it| *it != n).copied().collect();
        let mut rest = search(&next, happened, after, &left)?;
        rest.insert(0, happened[*n].op.clone());
        Some(rest)
    })
}

/// The tree after the operation, if it ends there as it did.
fn step(now: &Model, n: usize, happened: &[Happened]) -> Option<Model> {
    let Happened { op, result } = &happened[n];
    let mut next = now.clone();
    match (next.apply(op), result) {
        (Ok(()), Ok(())) => {
            for node in next.0.values_mut().filter(|node| **node == Node::Image(UNKNOWN)) {
                *node = Node::Image(NEW + n as u64);
            }
            Some(next)
        }
        (Err(allowed), Err(errno)) if allowed.contains(errno) => Some(now.clone()),
        // A path that no folder can have is refused before anything is looked up.
        (Err(_), Err(libc::ENAMETOOLONG)) if op.is_beyond_all_folders() => Some(now.clone()),
        // A folder that was found by its path may be elsewhere when its turn comes: below what is
        // to be moved into it, or that itself, or too deep.
        (_, Err(libc::EINVAL | libc::ENAMETOOLONG)) if moves(op) => {
            let moved = |it: &Happened| it.result.is_ok() && moves(&it.op);
            happened.iter().any(moved).then(|| now.clone())
        }
        // Where another mount has just done the same, the kernel may take the two for names of one
        // inode, which it leaves as they are.
        (Err([libc::ENOENT]), Ok(())) if moves(op) => {
            let mut others = happened.iter().enumerate().filter(|(other, _)| *other != n);
            let same = others.any(|(_, it)| it.result.is_ok() && is_same_move(&it.op, op));
            same.then(|| now.clone())
        }
        // Its folder was found, and another took its place; a removed folder takes nothing.
        (_, Err(libc::ENOENT)) if replaces_a_folder_of(op, happened) => Some(now.clone()),
        // Linux cannot always follow at once, in its cache, a folder that another mount moves.
        (_, Err(libc::ESTALE)) => {
            let moved = |it: &Happened| it.result.is_ok() && moves(&it.op);
            happened.iter().any(moved).then(|| now.clone())
        }
        // Somebody was writing a file under one of the names.
        (_, Err(libc::EBUSY)) if is_being_written(op, happened) => Some(now.clone()),
        _ => None,
    }
}

fn moves(op: &Op) -> bool {
    matches!(op, Op::Rename { .. } | Op::Exchange { .. })
}

fn replaces_a_folder_of(op: &Op, happened: &[Happened]) -> bool {
    let paths = paths_of(op);
    let replaced = |it: &Happened| match &it.op {
        Op::Rename { to, .. } if it.result.is_ok() => {
            paths.iter().any(|path| path.len() > to.len() && path.starts_with(to))
        }
        _ => false,
    };
    happened.iter().any(replaced)
}

fn is_same_move(done: &Op, op: &Op) -> bool {
    let Op::Rename { from, to, .. } = done else { return false };
    match op {
        Op::Rename { from: of, to: into, .. } => (of, into) == (from, to),
        Op::Exchange { from: of, to: into } => [(of, into), (into, of)].contains(&(from, to)),
        _ => false,
    }
}

/// The names that an operation is about.
pub(super) fn paths_of(op: &Op) -> Vec<&Path> {
    match op {
        Op::MakeFolder(path)
        | Op::RemoveFolder(path)
        | Op::Create(path)
        | Op::Store(path)
        | Op::Unlink(path) => vec![path],
        Op::Rename { from, to, .. } | Op::Link { from, to } | Op::Exchange { from, to } => {
            vec![from, to]
        }
    }
}

fn is_being_written(op: &Op, happened: &[Happened]) -> bool {
    let paths = paths_of(op);
    let writes = |op: &Op, paths: &[&Path]| match op {
        Op::Create(path) | Op::Store(path) => paths.contains(&path),
        _ => false,
    };
    let writers = happened.iter().filter(|it| writes(&it.op, &paths)).count();
    writers > usize::from(writes(op, &paths))
}

/// Equal but for the numbers of new files, which must stand for one file each.
fn is_same(expected: &Model, found: &Model) -> bool {
    let mut new: BTreeMap<u64, u64> = BTreeMap::new();
    expected.0.len() == found.0.len()
        && expected.0.iter().zip(&found.0).all(|((path, node), (found_path, found_node))| {
            path == found_path
                && match (node, found_node) {
                    (Node::Image(ino), Node::Image(found)) if *ino >= NEW => {
                        *new.entry(*ino).or_insert(*found) == *found
                    }
                    _ => node == found_node,
                }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> Path {
        vec![name.to_owned()]
    }

    fn tree(names: &[(&str, Node)]) -> Model {
        Model(names.iter().map(|(name, node)| (path(name), *node)).collect())
    }

    fn check(before: &Model, all: &[(Op, Result<(), i32>)], after: &Model, possible: bool) {
        let happened = all.iter().map(|(op, result)| Happened { op: op.clone(), result: *result });
        let happened: Vec<_> = happened.collect();
        assert_eq!(
            order_of(before, &happened, after).is_some(),
            possible,
            "{happened:?} {after:?}"
        );
    }

    #[test]
    fn two_winners_are_one_too_many() {
        let make = || Op::MakeFolder(path("a"));
        let (none, made) = (tree(&[]), tree(&[("a", Node::Folder)]));
        check(&none, &[(make(), Ok(())), (make(), Err(libc::EEXIST))], &made, true);
        check(&none, &[(make(), Err(libc::EEXIST)), (make(), Ok(()))], &made, true);
        check(&none, &[(make(), Ok(())), (make(), Ok(()))], &made, false);
        let lost = || (make(), Err(libc::EEXIST));
        check(&none, &[lost(), lost()], &none, false);
        check(&none, &[(make(), Ok(()))], &none, false);
        check(&none, &[(make(), Err(libc::EBUSY))], &none, false);
    }

    #[test]
    fn a_file_that_was_made_is_one_under_all_its_names() {
        let (make, link) = (Op::Create(path("a")), Op::Link { from: path("a"), to: path("b") });
        let all = [(make, Ok(())), (link, Ok(()))];
        for (b, possible) in [(7, true), (8, false)] {
            let after = tree(&[("a", Node::Image(7)), ("b", Node::Image(b))]);
            check(&tree(&[]), &all, &after, possible);
        }
    }

    #[test]
    fn a_folder_that_was_moved_meanwhile_is_where_it_is_now() {
        let below = |above: &str, name: &str| vec![above.to_owned(), name.to_owned()];
        let mv = |from: &str, to| Op::Rename { from: path(from), to, no_replace: false };
        let before = tree(&[("a", Node::Folder), ("b", Node::Folder)]);
        let mut after = tree(&[("a", Node::Folder)]);
        after.0.insert(below("a", "b"), Node::Folder);
        let won = (mv("b", below("a", "b")), Ok(()));
        for (errno, possible) in [(libc::EINVAL, true), (libc::ENOENT, true), (libc::EPERM, false)]
        {
            check(
                &before,
                &[won.clone(), (mv("a", below("b", "a")), Err(errno))],
                &after,
                possible,
            );
        }
        check(&before, &[(mv("a", below("c", "a")), Err(libc::EINVAL))], &before, false);
    }

    #[test]
    fn whoever_is_in_the_way_of_a_writer_hears_that_it_is_busy() {
        let before = tree(&[("b", Node::Image(3))]);
        let after = tree(&[("a", Node::Image(7)), ("b", Node::Image(3))]);
        let rename = Op::Rename { from: path("b"), to: path("a"), no_replace: false };
        let create = (Op::Create(path("a")), Ok(()));
        check(&before, &[create.clone(), (rename.clone(), Err(libc::EBUSY))], &after, true);
        check(&before, &[(rename, Err(libc::EBUSY))], &before, false);
        check(&before, &[create.clone(), (create.0, Err(libc::EBUSY))], &after, true);
    }
}
