//! The namespace replica: every entry, folder and image in memory, so that names, attributes and
//! listings never leave the process. Pure: it is told changes and answers questions; what the
//! kernel must forget comes back as [`Stale`].

mod inodes;
mod node;
mod stale;

use std::collections::HashMap;
use std::sync::Arc;

use isotope_proto::change::{Change, Delta, Edit, Record};
use isotope_proto::cluster::{Live, Node, Pool, Space, Volume, VolumeState};
use isotope_proto::id::{ImageId, Incarnation, Ino, NodeId, PoolId, Revision, VolumeId};
use isotope_proto::image::{Image, Os};
use isotope_proto::name::EntryName;
use isotope_proto::tree::{Entry, Folder};

use self::inodes::{Inodes, Interned};
pub use self::node::{FolderNode, ImageNode, Inode};
use self::stale::Effects;
pub use self::stale::Stale;
use crate::contents::Contents;

/// Room is made beforehand for so many inodes at most, whatever a catalogue says of its list; where
/// there are more it grows as they come.
const EXPECTED_MAX: u64 = 2_000_000;

/// Where a tree stands in the feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub incarnation: Incarnation,
    pub revision: Revision,
}

/// The library at one revision.
#[derive(Debug)]
pub struct Tree {
    pub position: Position,
    inodes: Inodes,
    contents: Contents,
    systems: Interned<Os>,
    places: Interned<Vec<VolumeId>>,
    nodes: HashMap<NodeId, Node>,
    pools: HashMap<PoolId, Pool>,
    volumes: HashMap<VolumeId, Volume>,
    live: Live,
}

/// What is kept once follows from the images.
#[cfg(test)]
impl PartialEq for Tree {
    fn eq(&self, other: &Self) -> bool {
        self.position == other.position
            && self.inodes == other.inodes
            && self.nodes == other.nodes
            && self.pools == other.pools
            && self.volumes == other.volumes
            && self.live == other.live
    }
}

/// Room on several file systems together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    pub capacity_bytes: u64,
    pub free_bytes: u64,
    /// Of these, what others than root may use.
    pub available_bytes: u64,
}

/// What came of a change that was offered.
#[derive(Debug, PartialEq, Eq)]
pub enum Applied {
    Now {
        stale: Vec<Stale>,
        /// Inodes that left the tree; somebody may have them open still.
        gone: Vec<(Ino, Inode)>,
    },
    /// It was applied before.
    Before,
    /// Earlier ones are missing, or it is of another incarnation.
    OutOfOrder,
}

impl Tree {
    /// An empty tree, to be filled with the records of a list.
    pub fn new(position: Position) -> Self {
        Self {
            position,
            inodes: Inodes::default(),
            contents: Contents::default(),
            systems: Interned::new(),
            places: Interned::new(),
            nodes: HashMap::new(),
            pools: HashMap::new(),
            volumes: HashMap::new(),
            live: Live::default(),
        }
    }

    /// A list of so many inodes follows: room is made at once, for tables that grow are made anew.
    pub fn expect(&mut self, inodes: u64) {
        let inodes = usize::try_from(inodes.min(EXPECTED_MAX)).unwrap_or_default();
        self.inodes.reserve(inodes);
        self.contents.reserve(inodes);
    }

    pub fn get(&self, ino: Ino) -> Option<&Inode> {
        self.inodes.get(ino)
    }

    pub fn folder(&self, ino: Ino) -> Option<&FolderNode> {
        match self.inodes.get(ino) {
            Some(Inode::Folder(folder)) => Some(folder),
            Some(Inode::Image(_)) | None => None,
        }
    }

    /// A name that leads to an image: looks through all folders, for images do not know theirs.
    pub fn name_of(&self, image: Ino) -> Option<(Ino, EntryName)> {
        self.inodes.iter().find_map(|(folder, inode)| match inode {
            Inode::Folder(it) => {
                let named = it.names().find(|(_, ino)| *ino == image)?;
                Some((folder, named.0.clone()))
            }
            Inode::Image(_) => None,
        })
    }

    pub fn inode_count(&self) -> u64 {
        u64::try_from(self.inodes.len()).unwrap_or(u64::MAX)
    }

    /// A number that differs between incarnations, so that an inode number of one is not taken
    /// for the same number of another (the kernel compares generations).
    pub fn generation(&self) -> u64 {
        let bytes = self.position.incarnation.as_bytes();
        u64::from_le_bytes(*bytes.last_chunk().expect("an incarnation has 16 bytes"))
    }

    pub fn set_live(&mut self, live: Live) {
        self.live = live;
    }

    pub fn live(&self) -> &Live {
        &self.live
    }

    /// Room of all volumes together, each file system once.
    pub fn space(&self) -> Room {
        let mut systems: HashMap<&str, &Space> = HashMap::new();
        for (_, state) in &self.live.volumes {
            if let VolumeState::Online(space) = state {
                systems.insert(&space.filesystem, space);
            }
        }
        systems.values().fold(Room::default(), |room, space| Room {
            capacity_bytes: room.capacity_bytes.saturating_add(space.capacity_bytes),
            free_bytes: room.free_bytes.saturating_add(space.free_bytes),
            available_bytes: room.available_bytes.saturating_add(space.available_bytes),
        })
    }

    /// The nodes that see a volume.
    pub fn holders(&self, volume: VolumeId) -> impl Iterator<Item = &Node> {
        let sights = self.volumes.get(&volume).map(|volume| &volume.sights[..]).unwrap_or_default();
        sights.iter().filter_map(|sight| self.nodes.get(&sight.node))
    }

    /// Each operating system that an image is taken for, once.
    pub(crate) fn systems(&self) -> impl Iterator<Item = &Arc<Os>> {
        self.systems.used()
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.pools.values()
    }

    pub fn pool_of(&self, volume: VolumeId) -> Option<&Pool> {
        self.pools.get(&self.volumes.get(&volume)?.pool)
    }

    pub fn volumes(&self) -> impl Iterator<Item = &Volume> {
        self.volumes.values()
    }

    pub fn image(&self, ino: Ino) -> Option<&ImageNode> {
        match self.inodes.get(ino) {
            Some(Inode::Image(image)) => Some(image),
            Some(Inode::Folder(_)) | None => None,
        }
    }

    pub fn by_id(&self, id: ImageId) -> Option<Ino> {
        self.inodes.by_id(id)
    }

    /// The image that has a flat name.
    pub fn by_flat_name(&self, name: &str) -> Option<Ino> {
        self.inodes.by_flat_name(name)
    }

    /// Images from some point of an order of their own on, each with the point behind it. What stays
    /// in the tree is met exactly once, from 0 on.
    pub fn images_after(&self, point: usize) -> impl Iterator<Item = (usize, Ino, &ImageNode)> {
        self.inodes.after(point).filter_map(|(next, ino, inode)| match inode {
            Inode::Image(image) => Some((next, ino, image)),
            Inode::Folder(_) => None,
        })
    }

    /// The images of each content that several have.
    pub fn shared_contents(&self) -> impl Iterator<Item = &[Ino]> {
        self.contents.shared()
    }

    /// Other images that have the same bytes as one, which need not be in the tree any more.
    pub fn twins(&self, image: &ImageNode) -> impl Iterator<Item = &ImageNode> {
        let inodes = self.contents.images(image.content).iter();
        let images = inodes.filter_map(|ino| match self.inodes.get(*ino) {
            Some(Inode::Image(twin)) => Some(twin),
            Some(Inode::Folder(_)) | None => None,
        });
        // Whatever a catalogue says, other sizes are other bytes.
        let (id, size_bytes) = (image.id, image.size_bytes);
        images.filter(move |twin| twin.id != id && twin.size_bytes == size_bytes)
    }

    /// The list is complete.
    pub fn end_list(&mut self) {
        let images = self.inodes.iter().filter_map(|(ino, inode)| match inode {
            Inode::Image(image) => Some((image.content, ino)),
            Inode::Folder(_) => None,
        });
        self.contents.settle(images);
    }

    /// Takes in one record of a list, to be ended by [`Self::end_list`].
    pub fn load(&mut self, record: Record) {
        // Of a tree that nobody has looked at the kernel knows nothing.
        let mut unused = Effects { unwanted: true, ..Effects::default() };
        match record {
            Record::Folder(it) => self.folder_edit(&Edit::Made(it), &mut unused),
            Record::Image(it) => self.image_edit(&Edit::Made(it), &mut unused),
            Record::Entry(it) => self.entry_edit(&Edit::Made(it), &mut unused),
            Record::Node(it) => self.node_edit(&Edit::Made(it)),
            Record::Volume(it) => self.volume_edit(&Edit::Made(it)),
            Record::Pool(it) => self.pool_edit(&Edit::Made(it)),
        }
    }

    /// Takes in the next change.
    pub fn apply(&mut self, change: &Change) -> Applied {
        if change.incarnation != self.position.incarnation
            || change.revision > self.position.revision.next()
        {
            return Applied::OutOfOrder;
        }
        if change.revision <= self.position.revision {
            return Applied::Before;
        }
        let mut effects = Effects::default();
        for delta in &change.deltas {
            match delta {
                Delta::Folder(edit) => self.folder_edit(edit, &mut effects),
                Delta::Image(edit) => self.image_edit(edit, &mut effects),
                Delta::Entry(edit) => self.entry_edit(edit, &mut effects),
                Delta::Node(edit) => self.node_edit(edit),
                Delta::Volume(edit) => self.volume_edit(edit),
                Delta::Pool(edit) => self.pool_edit(edit),
            }
        }
        self.end_list();
        self.position.revision = change.revision;
        effects.stale.sort_unstable();
        effects.stale.dedup();
        Applied::Now { stale: effects.stale, gone: effects.gone }
    }

    fn folder_edit(&mut self, edit: &Edit<Folder>, effects: &mut Effects) {
        let ino = edit.subject().ino;
        let Some(folder) = edit.after() else {
            effects.gone.extend(self.inodes.remove(ino).map(|inode| (ino, inode)));
            // Its link count, for whoever has it open.
            effects.push(Stale::Listing(ino));
            return;
        };
        let Some(Inode::Folder(node)) = self.inodes.get_mut(ino) else {
            self.inodes.insert(ino, Inode::Folder(Box::new(FolderNode::new(folder))));
            return;
        };
        node.mode = folder.mode;
        node.modified = folder.modified;
        node.changed = folder.changed;
        effects.push(Stale::Listing(ino));
    }

    fn image_edit(&mut self, edit: &Edit<Image>, effects: &mut Effects) {
        let ino = edit.subject().ino;
        let before = match self.inodes.get(ino) {
            Some(Inode::Image(before)) => Some((before.content, before.shown(), before.links)),
            Some(Inode::Folder(_)) | None => None,
        };
        let content_before = before.map(|(content, ..)| content);
        if let Some(content) = content_before
            && edit.after().is_none_or(|after| after.content != content)
        {
            self.contents.remove(content, ino);
        }
        let Some(after) = edit.after() else {
            effects.gone.extend(self.inodes.remove(ino).map(|inode| (ino, inode)));
            effects.push(Stale::Attributes(ino));
            return;
        };
        let mut node = self.image_node(after);
        if let Some((_, shown, links)) = before {
            node.links = links;
            // Of hashes and systems no kernel knows anything.
            if shown != node.shown() {
                effects.push(Stale::Attributes(ino));
            }
        }
        if content_before != Some(node.content) {
            self.contents.add(node.content, ino);
        }
        self.inodes.insert(ino, Inode::Image(node));
        self.inodes.set_aliases(ino, after.flat_names.get(1..).unwrap_or_default());
    }

    /// An inode as a change left it, whatever became of it since.
    pub(crate) fn as_changed(&mut self, change: &Change, ino: Ino) -> Option<Inode> {
        change.deltas.iter().find_map(|delta| match delta {
            Delta::Folder(edit) => {
                let folder = edit.after().filter(|it| it.ino == ino)?;
                Some(Inode::Folder(Box::new(FolderNode::new(folder))))
            }
            Delta::Image(edit) => {
                let image = edit.after().filter(|it| it.ino == ino)?;
                Some(Inode::Image(self.image_node(image)))
            }
            _ => None,
        })
    }

    fn image_node(&mut self, image: &Image) -> ImageNode {
        // What is known to be rotten is no place to read from.
        let sound = image.replicas.iter().filter(|replica| !replica.is_rotten());
        let volumes: Vec<VolumeId> = sound.map(|replica| replica.volume).collect();
        let (volumes, os) = (self.places.get(&volumes), self.systems.get(&image.os));
        ImageNode::new(image, volumes, os)
    }

    fn entry_edit(&mut self, edit: &Edit<Entry>, effects: &mut Effects) {
        if let Some(before) = edit.before() {
            self.unlink(before, effects);
        }
        if let Some(after) = edit.after() {
            self.link(after, effects);
        }
    }

    fn link(&mut self, entry: &Entry, effects: &mut Effects) {
        let mut name = entry.name.clone();
        let to_folder = match self.inodes.get_mut(entry.ino) {
            Some(Inode::Folder(folder)) => {
                folder.parent = entry.parent;
                true
            }
            Some(Inode::Image(image)) => {
                image.links += 1;
                // Most are called the same in the flat views: the text is kept once.
                if let Some(flat) = image.flat_name.as_ref().filter(|it| **it == name) {
                    name = flat.clone();
                }
                effects.push(Stale::Attributes(entry.ino));
                false
            }
            None => false,
        };
        if let Some(Inode::Folder(parent)) = self.inodes.get_mut(entry.parent) {
            parent.subfolders += u32::from(to_folder);
            parent.add(entry, name);
        }
        effects.name(entry);
    }

    fn unlink(&mut self, entry: &Entry, effects: &mut Effects) {
        let to_folder = match self.inodes.get_mut(entry.ino) {
            Some(Inode::Folder(_)) => true,
            Some(Inode::Image(image)) => {
                image.links = image.links.saturating_sub(1);
                // Its link count shows in every other name's attributes.
                effects.push(Stale::Attributes(entry.ino));
                false
            }
            None => false,
        };
        if let Some(Inode::Folder(parent)) = self.inodes.get_mut(entry.parent) {
            parent.subfolders = parent.subfolders.saturating_sub(u32::from(to_folder));
            parent.remove(entry.id);
        }
        effects.name(entry);
    }

    fn node_edit(&mut self, edit: &Edit<Node>) {
        match edit.after() {
            Some(node) => self.nodes.insert(node.id, node.clone()),
            None => self.nodes.remove(&edit.subject().id),
        };
    }

    fn pool_edit(&mut self, edit: &Edit<Pool>) {
        match edit.after() {
            Some(pool) => self.pools.insert(pool.id, pool.clone()),
            None => self.pools.remove(&edit.subject().id),
        };
    }

    fn volume_edit(&mut self, edit: &Edit<Volume>) {
        match edit.after() {
            Some(volume) => self.volumes.insert(volume.id, volume.clone()),
            None => self.volumes.remove(&edit.subject().id),
        };
    }
}

#[cfg(test)]
mod tests;
