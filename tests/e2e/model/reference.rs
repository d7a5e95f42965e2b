//! A tree as plain as can be: a map from path to what is there. What it refuses it refuses with the
//! errnos that POSIX and Linux allow there; where two rules are broken at once either may show.

use std::collections::BTreeMap;

use proptest::prelude::*;

pub(crate) type Path = Vec<String>;
pub(crate) type Errnos = &'static [i32];

/// A folder, or an image by its inode number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Node {
    Folder,
    Image(u64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    MakeFolder(Path),
    RemoveFolder(Path),
    Rename {
        from: Path,
        to: Path,
        no_replace: bool,
    },
    /// `to` becomes one more name of the image at `from`.
    Link {
        from: Path,
        to: Path,
    },
    Exchange {
        from: Path,
        to: Path,
    },
    /// A file is made, written and closed.
    Create(Path),
    /// The same, whatever has the name: an image there is replaced.
    Store(Path),
    Unlink(Path),
}

/// Everything but the root.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Model(pub(crate) BTreeMap<Path, Node>);

/// The inode number of a file just made, until it was looked at.
pub(crate) const UNKNOWN: u64 = 0;

const FOLDER_DEPTH_MAX: usize = 5;

impl Op {
    /// Whether it names something in a folder deeper than any can be.
    pub(crate) fn is_beyond_all_folders(&self) -> bool {
        let beyond = |path: &Path| path.len() > FOLDER_DEPTH_MAX + 1;
        match self {
            Self::MakeFolder(path)
            | Self::RemoveFolder(path)
            | Self::Create(path)
            | Self::Store(path)
            | Self::Unlink(path) => beyond(path),
            Self::Rename { from, to, .. }
            | Self::Link { from, to }
            | Self::Exchange { from, to } => beyond(from) || beyond(to),
        }
    }
}

impl Model {
    fn get(&self, path: &[String]) -> Option<Node> {
        if path.is_empty() { Some(Node::Folder) } else { self.0.get(path).copied() }
    }

    fn is_empty(&self, folder: &[String]) -> bool {
        !self.0.keys().any(|path| path.len() > folder.len() && path.starts_with(folder))
    }

    fn parent(&self, path: &[String]) -> Result<(), Errnos> {
        let (_, above) = path.split_last().expect("not the root");
        for depth in 0..=above.len() {
            match self.get(&above[..depth]) {
                Some(Node::Folder) => {}
                Some(Node::Image(_)) => return Err(&[libc::ENOTDIR]),
                None => return Err(&[libc::ENOENT]),
            }
        }
        Ok(())
    }

    pub(crate) fn apply(&mut self, op: &Op) -> Result<(), Errnos> {
        match op {
            Op::MakeFolder(path) => self.make_folder(path),
            Op::RemoveFolder(path) => self.remove_folder(path),
            Op::Rename { from, to, no_replace } => self.rename(from, to, *no_replace),
            Op::Link { from, to } => self.link(from, to),
            Op::Exchange { from, to } => self.exchange(from, to),
            Op::Create(path) => {
                self.parent(path)?;
                if self.get(path).is_some() {
                    return Err(&[libc::EEXIST]);
                }
                self.0.insert(path.clone(), Node::Image(UNKNOWN));
                Ok(())
            }
            Op::Store(path) => {
                self.parent(path)?;
                if self.get(path) == Some(Node::Folder) {
                    return Err(&[libc::EISDIR]);
                }
                let before = self.get(path);
                self.0.insert(path.clone(), Node::Image(UNKNOWN));
                // Under all its names.
                self.0.values_mut().filter(|node| Some(**node) == before).for_each(|node| {
                    *node = Node::Image(UNKNOWN);
                });
                Ok(())
            }
            Op::Unlink(path) => {
                self.parent(path)?;
                match self.get(path) {
                    None => Err(&[libc::ENOENT]),
                    Some(Node::Folder) => Err(&[libc::EISDIR]),
                    Some(Node::Image(_)) => {
                        self.0.remove(path);
                        Ok(())
                    }
                }
            }
        }
    }

    fn make_folder(&mut self, path: &Path) -> Result<(), Errnos> {
        self.parent(path)?;
        if self.get(path).is_some() {
            return Err(&[libc::EEXIST]);
        }
        if path.len() > FOLDER_DEPTH_MAX {
            return Err(&[libc::ENAMETOOLONG]);
        }
        self.0.insert(path.clone(), Node::Folder);
        Ok(())
    }

    fn remove_folder(&mut self, path: &Path) -> Result<(), Errnos> {
        self.parent(path)?;
        match self.get(path) {
            None => Err(&[libc::ENOENT]),
            Some(Node::Image(_)) => Err(&[libc::ENOTDIR]),
            Some(Node::Folder) if !self.is_empty(path) => Err(&[libc::ENOTEMPTY]),
            Some(Node::Folder) => {
                self.0.remove(path);
                Ok(())
            }
        }
    }

    /// Names of an image.
    pub(crate) fn links(&self, ino: u64) -> usize {
        self.0.values().filter(|node| **node == Node::Image(ino)).count()
    }

    fn link(&mut self, from: &Path, to: &Path) -> Result<(), Errnos> {
        self.parent(from)?;
        let Some(node) = self.get(from) else { return Err(&[libc::ENOENT]) };
        self.parent(to)?;
        match (node, self.get(to)) {
            (Node::Folder, Some(_)) => Err(&[libc::EEXIST, libc::EPERM]),
            (Node::Folder, None) => Err(&[libc::EPERM]),
            (Node::Image(_), Some(_)) => Err(&[libc::EEXIST]),
            (Node::Image(_), None) => {
                self.0.insert(to.clone(), node);
                Ok(())
            }
        }
    }

    fn exchange(&mut self, from: &Path, to: &Path) -> Result<(), Errnos> {
        self.parent(from)?;
        self.parent(to)?;
        let (Some(one), Some(other)) = (self.get(from), self.get(to)) else {
            return Err(&[libc::ENOENT]);
        };
        let is_folder_above =
            |a: &Path, b: &Path| a != b && b.starts_with(a) && self.get(a) == Some(Node::Folder);
        if is_folder_above(from, to) || is_folder_above(to, from) {
            return Err(&[libc::EINVAL]);
        }
        if from == to || (one == other && one != Node::Folder) {
            return Ok(());
        }
        if self.is_too_deep(from, to) || self.is_too_deep(to, from) {
            return Err(&[libc::ENAMETOOLONG]);
        }
        let moves = [(from, to), (to, from)].map(|(from, to)| (self.below(from), from, to));
        let mut moved = Vec::new();
        for (below, from, to) in moves {
            for path in below {
                let node = self.0.remove(&path).expect("listed");
                moved.push((to.iter().chain(&path[from.len()..]).cloned().collect(), node));
            }
        }
        self.0.extend(moved);
        Ok(())
    }

    /// What lies at a path and below it.
    fn below(&self, path: &Path) -> Vec<Path> {
        self.0.keys().filter(|it| it.starts_with(path)).cloned().collect()
    }

    fn is_too_deep(&self, from: &Path, to: &Path) -> bool {
        let below = self.below(from);
        let mut folders = below.iter().filter(|path| self.0[*path] == Node::Folder);
        folders.any(|path| path.len() - from.len() + to.len() > FOLDER_DEPTH_MAX)
    }

    fn rename(&mut self, from: &Path, to: &Path, no_replace: bool) -> Result<(), Errnos> {
        self.parent(from)?;
        self.parent(to)?;
        let Some(moved) = self.get(from) else { return Err(&[libc::ENOENT]) };
        let target = self.get(to);
        if no_replace && target.is_some() {
            return Err(&[libc::EEXIST]);
        }
        if from == to {
            return Ok(());
        }
        if to.starts_with(from) {
            return Err(&[libc::EINVAL]);
        }
        // Two names of one image are left as they are.
        if matches!(moved, Node::Image(_)) && target == Some(moved) {
            return Ok(());
        }
        let (below, too_deep) = (self.below(from), self.is_too_deep(from, to));
        match (moved, target) {
            (Node::Folder, Some(Node::Image(_))) if too_deep => {
                return Err(&[libc::ENAMETOOLONG, libc::ENOTDIR]);
            }
            (Node::Folder, Some(Node::Folder)) if too_deep && !self.is_empty(to) => {
                return Err(&[libc::ENAMETOOLONG, libc::ENOTEMPTY]);
            }
            _ if too_deep => return Err(&[libc::ENAMETOOLONG]),
            (Node::Folder, Some(Node::Image(_))) => return Err(&[libc::ENOTDIR]),
            (Node::Folder, Some(Node::Folder)) if !self.is_empty(to) => {
                return Err(&[libc::ENOTEMPTY]);
            }
            // The kernel looks whether the target is above the source first.
            (Node::Image(_), Some(Node::Folder)) => return Err(&[libc::EISDIR, libc::ENOTEMPTY]),
            (Node::Image(_), Some(Node::Image(_)))
            | (_, None)
            | (Node::Folder, Some(Node::Folder)) => {}
        }
        for path in below {
            let node = self.0.remove(&path).expect("listed");
            let moved_to = to.iter().chain(&path[from.len()..]).cloned().collect();
            self.0.insert(moved_to, node);
        }
        Ok(())
    }
}

/// A path near what there is: something existing, or a new name in it.
#[derive(Debug, Clone)]
pub(crate) struct Pick {
    existing: usize,
    child: Option<u8>,
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    MakeFolder(Pick),
    RemoveFolder(Pick),
    Rename(Pick, Pick, bool),
    Link(Pick, Pick),
    Exchange(Pick, Pick),
    Create(Pick),
    Store(Pick),
    Unlink(Pick),
}

impl Pick {
    fn path(&self, model: &Model) -> Path {
        let mut all: Vec<Path> = vec![Vec::new()];
        all.extend(model.0.keys().cloned());
        let mut path = all[self.existing % all.len()].clone();
        match self.child {
            Some(child) => path.push(char::from(b'a' + child).to_string()),
            // The root itself is nobody's to change.
            None if path.is_empty() => path.push("a".to_owned()),
            None => {}
        }
        path
    }
}

impl Step {
    pub(crate) fn op(&self, model: &Model) -> Op {
        match self {
            Self::MakeFolder(pick) => Op::MakeFolder(pick.path(model)),
            Self::RemoveFolder(pick) => Op::RemoveFolder(pick.path(model)),
            Self::Rename(from, to, no_replace) => {
                Op::Rename { from: from.path(model), to: to.path(model), no_replace: *no_replace }
            }
            Self::Link(from, to) => Op::Link { from: from.path(model), to: to.path(model) },
            Self::Exchange(a, b) => Op::Exchange { from: a.path(model), to: b.path(model) },
            Self::Create(pick) => Op::Create(pick.path(model)),
            Self::Store(pick) => Op::Store(pick.path(model)),
            Self::Unlink(pick) => Op::Unlink(pick.path(model)),
        }
    }
}

fn pick() -> impl Strategy<Value = Pick> {
    (any::<usize>(), proptest::option::weighted(0.6, 0..5_u8))
        .prop_map(|(existing, child)| Pick { existing, child })
}

/// The operations on names.
pub(crate) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => pick().prop_map(Step::MakeFolder),
        1 => pick().prop_map(Step::RemoveFolder),
        4 => (pick(), pick(), any::<bool>()).prop_map(|(a, b, c)| Step::Rename(a, b, c)),
        2 => (pick(), pick()).prop_map(|(a, b)| Step::Link(a, b)),
        2 => (pick(), pick()).prop_map(|(a, b)| Step::Exchange(a, b)),
        2 => pick().prop_map(Step::Unlink),
    ]
}

/// Those, and files made.
pub(crate) fn step_on_a_mount() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => step(),
        1 => pick().prop_map(Step::Create),
    ]
}

/// Those, and files stored over what is there.
pub(crate) fn step_and_store() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => step_on_a_mount(),
        1 => pick().prop_map(Step::Store),
    ]
}
