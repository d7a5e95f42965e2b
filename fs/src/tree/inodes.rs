//! The inodes of a tree, found by their number, an image also by its id and its flat names. They lie
//! in one vector; the indexes hold positions in it, four bytes each, for a table of whole nodes is
//! half empty most of the time.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

use hashbrown::HashTable;
use isotope_proto::id::{ImageId, Ino};
use isotope_proto::name::EntryName;

use super::node::{ImageNode, Inode};

/// Where an inode lies, for as long as it is in the tree. Others may lie there later.
type Position = u32;

#[derive(Debug, Default)]
pub(super) struct Inodes {
    nodes: Vec<Option<(Ino, Inode)>>,
    /// Positions where nothing lies.
    free: Vec<Position>,
    by_ino: HashTable<Position>,
    by_id: HashTable<Position>,
    by_flat_name: HashTable<Position>,
    /// The further flat names of images, of which there are few: those of others that became one
    /// with them.
    aliases: HashMap<EntryName, Ino>,
    aliased: HashMap<Ino, Box<[EntryName]>>,
    hasher: RandomState,
}

fn at(nodes: &[Option<(Ino, Inode)>], position: Position) -> Option<&(Ino, Inode)> {
    nodes.get(position as usize)?.as_ref()
}

fn image_at(nodes: &[Option<(Ino, Inode)>], position: Position) -> Option<&ImageNode> {
    match at(nodes, position) {
        Some((_, Inode::Image(image))) => Some(image),
        Some((_, Inode::Folder(_))) | None => None,
    }
}

fn flat_name_at(nodes: &[Option<(Ino, Inode)>], position: Position) -> Option<&str> {
    image_at(nodes, position)?.flat_name.as_ref().map(EntryName::as_str)
}

impl Inodes {
    pub(super) fn reserve(&mut self, more: usize) {
        let Self { nodes, by_ino, by_id, by_flat_name, .. } = self;
        nodes.reserve(more);
        // They are empty: nothing has to be hashed.
        for table in [by_ino, by_id, by_flat_name] {
            if table.is_empty() {
                table.reserve(more, |_| 0);
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_ino.len()
    }

    fn position(&self, ino: Ino) -> Option<Position> {
        let is_it = |it: &Position| at(&self.nodes, *it).is_some_and(|(known, _)| *known == ino);
        self.by_ino.find(self.hasher.hash_one(ino), is_it).copied()
    }

    pub(super) fn get(&self, ino: Ino) -> Option<&Inode> {
        at(&self.nodes, self.position(ino)?).map(|(_, inode)| inode)
    }

    /// To change an image's link count, or a folder; an image that changes otherwise is inserted
    /// anew.
    pub(super) fn get_mut(&mut self, ino: Ino) -> Option<&mut Inode> {
        let position = self.position(ino)?;
        self.nodes[position as usize].as_mut().map(|(_, inode)| inode)
    }

    pub(super) fn by_id(&self, id: ImageId) -> Option<Ino> {
        let is_it = |it: &Position| image_at(&self.nodes, *it).is_some_and(|it| it.id == id);
        let position = self.by_id.find(self.hasher.hash_one(id), is_it)?;
        at(&self.nodes, *position).map(|(ino, _)| *ino)
    }

    pub(super) fn by_flat_name(&self, name: &str) -> Option<Ino> {
        let is_it = |it: &Position| flat_name_at(&self.nodes, *it) == Some(name);
        match self.by_flat_name.find(self.hasher.hash_one(name), is_it) {
            Some(position) => at(&self.nodes, *position).map(|(ino, _)| *ino),
            None => self.aliases.get(name).copied(),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Ino, &Inode)> {
        self.nodes.iter().flatten().map(|(ino, inode)| (*ino, inode))
    }

    /// All that lie behind a number of positions, with the number to go on from. What stays in the
    /// tree is met exactly once.
    pub(super) fn after(&self, positions: usize) -> impl Iterator<Item = (usize, Ino, &Inode)> {
        let behind = self.nodes.get(positions..).unwrap_or_default();
        let numbered = (positions + 1..).zip(behind);
        numbered.filter_map(|(next, it)| it.as_ref().map(|(ino, inode)| (next, *ino, inode)))
    }

    /// In the place of what had the number.
    pub(super) fn insert(&mut self, ino: Ino, inode: Inode) -> Option<Inode> {
        let Some(position) = self.position(ino) else {
            let position = self.free.pop().unwrap_or_else(|| {
                self.nodes.push(None);
                Position::try_from(self.nodes.len() - 1).expect("fewer inodes than fit into memory")
            });
            self.nodes[position as usize] = Some((ino, inode));
            let (nodes, hasher) = (&self.nodes, &self.hasher);
            let number = |it: &Position| at(nodes, *it).map_or(0, |it| hasher.hash_one(it.0));
            self.by_ino.insert_unique(number(&position), position, number);
            self.index(position);
            return None;
        };
        self.forget(position);
        let before = self.nodes[position as usize].replace((ino, inode));
        self.index(position);
        before.map(|(_, inode)| inode)
    }

    /// Sets an image's further flat names.
    pub(super) fn set_aliases(&mut self, ino: Ino, names: &[EntryName]) {
        for name in self.aliased.remove(&ino).unwrap_or_default() {
            // It may be another's by now.
            if self.aliases.get(&name) == Some(&ino) {
                self.aliases.remove(&name);
            }
        }
        if !names.is_empty() {
            self.aliases.extend(names.iter().map(|name| (name.clone(), ino)));
            self.aliased.insert(ino, names.into());
        }
    }

    pub(super) fn remove(&mut self, ino: Ino) -> Option<Inode> {
        let position = self.position(ino)?;
        self.set_aliases(ino, &[]);
        self.forget(position);
        let hash = self.hasher.hash_one(ino);
        if let Ok(found) = self.by_ino.find_entry(hash, |it| *it == position) {
            found.remove();
        }
        self.free.push(position);
        self.nodes[position as usize].take().map(|(_, inode)| inode)
    }

    /// Adds an image to the indexes of images.
    fn index(&mut self, position: Position) {
        let (nodes, hasher) = (&self.nodes, &self.hasher);
        let Some(image) = image_at(nodes, position) else { return };
        let id = |it: &Position| image_at(nodes, *it).map_or(0, |it| hasher.hash_one(it.id));
        self.by_id.insert_unique(id(&position), position, id);
        let name = |it: &Position| flat_name_at(nodes, *it).map_or(0, |it| hasher.hash_one(it));
        if image.flat_name.is_some() {
            self.by_flat_name.insert_unique(name(&position), position, name);
        }
    }

    /// Takes an image out of them.
    fn forget(&mut self, position: Position) {
        let Some(image) = image_at(&self.nodes, position) else { return };
        let is_it = |it: &Position| *it == position;
        if let Ok(found) = self.by_id.find_entry(self.hasher.hash_one(image.id), is_it) {
            found.remove();
        }
        if let Some(name) = &image.flat_name
            && let Ok(found) =
                self.by_flat_name.find_entry(self.hasher.hash_one(name.as_str()), is_it)
        {
            found.remove();
        }
    }
}

/// In whichever order they came.
#[cfg(test)]
impl PartialEq for Inodes {
    fn eq(&self, other: &Self) -> bool {
        let same = |(ino, inode): (Ino, &Inode)| other.get(ino) == Some(inode);
        self.len() == other.len() && self.aliases == other.aliases && self.iter().all(same)
    }
}

/// What images have in common, kept once.
#[derive(Debug)]
pub(super) struct Interned<T> {
    all: HashSet<Arc<T>>,
    /// With so many, those that nobody uses any more are dropped.
    full: usize,
}

/// Fewer are not worth looking through.
const FULL_MIN: usize = 1024;

impl<T: Clone + Eq + Hash> Interned<T> {
    pub(super) fn new() -> Self {
        Self { all: HashSet::new(), full: FULL_MIN }
    }

    /// What something other than this still uses.
    pub(super) fn used(&self) -> impl Iterator<Item = &Arc<T>> {
        self.all.iter().filter(|it| Arc::strong_count(it) > 1)
    }

    pub(super) fn get(&mut self, value: &T) -> Arc<T> {
        if let Some(known) = self.all.get(value) {
            return Arc::clone(known);
        }
        if self.all.len() >= self.full {
            self.all.retain(|it| Arc::strong_count(it) > 1);
            self.full = FULL_MIN.max(self.all.len() * 2);
        }
        let new = Arc::new(value.clone());
        self.all.insert(Arc::clone(&new));
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_uses_any_more_is_not_kept() {
        let mut interned = Interned::<String>::new();
        let used = interned.get(&"used".to_owned());
        assert!(Arc::ptr_eq(&used, &interned.get(&"used".to_owned())));
        for n in 0..10 * FULL_MIN {
            interned.get(&n.to_string());
        }
        assert!(interned.all.len() <= FULL_MIN);
        assert!(Arc::ptr_eq(&used, &interned.get(&"used".to_owned())));
    }
}
