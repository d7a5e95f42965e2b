//! Folders and images as a mount keeps them: as much as it is asked for, and no more, for a million of
//! them must fit.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;
use std::ops::Bound;
use std::sync::Arc;

use hashbrown::HashTable;
use isotope_proto::id::{ContentId, EntryId, ImageId, Ino, VolumeId};
use isotope_proto::image::{Hashes, Image, ImageFormat, Os, Replica};
use isotope_proto::name::EntryName;
use isotope_proto::time::Timestamp;
use isotope_proto::tree::{Entry, Folder};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inode {
    Folder(Box<FolderNode>),
    Image(ImageNode),
}

/// An image. What many have in common is kept once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageNode {
    pub id: ImageId,
    /// Equal for images that are known to have the same bytes.
    pub content: ContentId,
    pub hashes: Option<Hashes>,
    pub size_bytes: u64,
    pub format: ImageFormat,
    pub mode: u32,
    pub links: u32,
    pub modified: Timestamp,
    pub changed: Timestamp,
    /// When a sound file of it was last read whole and found to have its hashes, in seconds since the
    /// epoch (until 2106): four bytes that were padding.
    pub verified: Option<NonZeroU32>,
    pub os: Arc<Os>,
    /// Where a sound file of it lies.
    pub volumes: Arc<Vec<VolumeId>>,
    /// Its own name in the flat views.
    pub flat_name: Option<EntryName>,
}

impl ImageNode {
    pub(super) fn new(image: &Image, volumes: Arc<Vec<VolumeId>>, os: Arc<Os>) -> Self {
        Self {
            id: image.id,
            content: image.content,
            hashes: image.hashes,
            size_bytes: image.size_bytes,
            format: image.format,
            mode: image.mode,
            links: 0,
            modified: image.modified,
            changed: image.changed,
            verified: verified(image),
            os,
            volumes,
            flat_name: image.flat_names.first().cloned(),
        }
    }

    /// What the kernel is shown of it, apart from what never changes.
    pub(super) fn shown(&self) -> (u32, u32, [Timestamp; 2]) {
        (self.mode, self.links, [self.modified, self.changed])
    }
}

fn verified(image: &Image) -> Option<NonZeroU32> {
    image.hashes?;
    let sound = image.replicas.iter().filter(|it| !it.is_rotten());
    let read = |it: &Replica| Some(it.checked.as_ref()?.read);
    let (seconds, _) = sound.filter_map(read).max()?.since_epoch();
    NonZeroU32::new(u32::try_from(seconds).unwrap_or(u32::MAX))
}

/// A folder and what lies in it.
#[derive(Debug, Clone)]
pub struct FolderNode {
    pub mode: u32,
    pub modified: Timestamp,
    pub changed: Timestamp,
    pub parent: Ino,
    /// Folders directly in it: each adds a link, its `..`.
    pub subfolders: u32,
    /// False once it was removed, while somebody has it open.
    pub listed: bool,
    /// In the order of ids, which is that of readdir's cookies.
    by_id: BTreeMap<EntryId, (EntryName, Ino)>,
    /// The ids, found by the names that they have there.
    by_name: HashTable<EntryId>,
    hasher: RandomState,
}

/// The index by name follows from the entries.
impl PartialEq for FolderNode {
    fn eq(&self, other: &Self) -> bool {
        let all = |it: &Self| {
            let FolderNode { mode, modified, changed, parent, subfolders, listed, .. } = it;
            (*mode, *modified, *changed, *parent, *subfolders, *listed)
        };
        all(self) == all(other) && self.by_id == other.by_id
    }
}

impl Eq for FolderNode {}

impl FolderNode {
    pub(super) fn new(folder: &Folder) -> Self {
        Self {
            mode: folder.mode,
            modified: folder.modified,
            changed: folder.changed,
            parent: Ino::ROOT,
            subfolders: 0,
            listed: true,
            by_id: BTreeMap::new(),
            by_name: HashTable::new(),
            hasher: RandomState::new(),
        }
    }

    pub fn child(&self, name: &str) -> Option<Ino> {
        let is_it = |id: &EntryId| self.by_id.get(id).is_some_and(|(it, _)| it.as_str() == name);
        let id = self.by_name.find(self.hasher.hash_one(name), is_it)?;
        self.by_id.get(id).map(|(_, ino)| *ino)
    }

    /// The entries after a cookie, oldest first. What stays in the folder is met exactly once,
    /// whatever else comes and goes meanwhile.
    pub fn after(&self, cookie: EntryId) -> impl Iterator<Item = (EntryId, &EntryName, Ino)> {
        let from = (Bound::Excluded(cookie), Bound::Unbounded);
        self.by_id.range(from).map(|(id, (name, ino))| (*id, name, *ino))
    }

    /// Everything in the folder, oldest first.
    pub fn names(&self) -> impl Iterator<Item = (&EntryName, Ino)> {
        self.by_id.values().map(|(name, ino)| (name, *ino))
    }

    /// `name` is the entry's own, or one that is equal and kept already.
    pub(super) fn add(&mut self, entry: &Entry, name: EntryName) {
        self.remove(entry.id);
        self.by_id.insert(entry.id, (name, entry.ino));
        let (by_id, hasher) = (&self.by_id, &self.hasher);
        let hash = |id: &EntryId| by_id.get(id).map_or(0, |(it, _)| hasher.hash_one(it.as_str()));
        self.by_name.insert_unique(hash(&entry.id), entry.id, hash);
    }

    pub(super) fn remove(&mut self, id: EntryId) {
        let Some((name, _)) = self.by_id.get(&id) else { return };
        let hash = self.hasher.hash_one(name.as_str());
        if let Ok(found) = self.by_name.find_entry(hash, |it| *it == id) {
            found.remove();
        }
        self.by_id.remove(&id);
    }
}
