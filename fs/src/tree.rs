//! The namespace replica: every entry, folder and image in memory, so that names, attributes and
//! listings never leave the process. Pure: it is told changes and answers questions; what the
//! kernel must forget comes back as [`Stale`].

use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeMap, HashMap};

use isotope_proto::change::{Change, Delta, Edit, Record};
use isotope_proto::cluster::{Live, Node, Space, Volume, VolumeState};
use isotope_proto::id::{
    ContentId, EntryId, ImageId, Incarnation, Ino, NodeId, Revision, VolumeId,
};
use isotope_proto::image::Image;
use isotope_proto::name::EntryName;
use isotope_proto::time::Timestamp;
use isotope_proto::tree::{Entry, Folder};

use crate::contents::Contents;

/// Something the kernel may have cached and must forget.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stale {
    /// A name, known to be there or known to be absent.
    Name { folder: Ino, name: EntryName },
    /// A folder's attributes and its listing.
    Listing(Ino),
    /// An image's attributes; its pages stay right, for an inode is one content.
    Attributes(Ino),
}

/// Where a tree stands in the feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub incarnation: Incarnation,
    pub revision: Revision,
}

/// An image, as much of it as a mount needs: a million of them must fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageNode {
    pub id: ImageId,
    /// Equal for images that are known to have the same bytes.
    pub content: ContentId,
    pub size_bytes: u64,
    pub mode: u32,
    pub links: u32,
    pub created: Timestamp,
    pub modified: Timestamp,
    pub changed: Timestamp,
    pub volumes: Box<[VolumeId]>,
}

/// A folder and what lies in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderNode {
    pub mode: u32,
    pub created: Timestamp,
    pub modified: Timestamp,
    pub changed: Timestamp,
    pub parent: Ino,
    /// Folders directly in it: each adds a link, its `..`.
    pub subfolders: u32,
    /// False once it was removed, while somebody has it open.
    pub listed: bool,
    by_name: HashMap<EntryName, EntryId>,
    /// In the order of ids, which is that of readdir's cookies.
    by_id: BTreeMap<EntryId, (EntryName, Ino)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inode {
    Folder(Box<FolderNode>),
    Image(ImageNode),
}

/// The library at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    pub position: Position,
    inodes: HashMap<Ino, Inode>,
    contents: Contents,
    nodes: HashMap<NodeId, Node>,
    volumes: HashMap<VolumeId, Volume>,
    live: Live,
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

impl FolderNode {
    fn new(folder: &Folder) -> Self {
        Self {
            mode: folder.mode,
            created: folder.created,
            modified: folder.modified,
            changed: folder.changed,
            parent: Ino::ROOT,
            subfolders: 0,
            listed: true,
            by_name: HashMap::new(),
            by_id: BTreeMap::new(),
        }
    }

    pub fn child(&self, name: &str) -> Option<Ino> {
        let id = self.by_name.get(name)?;
        self.by_id.get(id).map(|(_, ino)| *ino)
    }

    /// The entries after a cookie, oldest first. What stays in the folder is met exactly once,
    /// whatever else comes and goes meanwhile.
    pub fn after(&self, cookie: EntryId) -> impl Iterator<Item = (EntryId, &EntryName, Ino)> {
        let from = (std::ops::Bound::Excluded(cookie), std::ops::Bound::Unbounded);
        self.by_id.range(from).map(|(id, (name, ino))| (*id, name, *ino))
    }

    /// Everything in the folder, oldest first.
    pub fn names(&self) -> impl Iterator<Item = (&EntryName, Ino)> {
        self.by_id.values().map(|(name, ino)| (name, *ino))
    }
}

impl ImageNode {
    fn new(image: &Image) -> Self {
        // What is known to be rotten is no place to read from.
        let sound = image.replicas.iter().filter(|replica| !replica.is_rotten());
        Self {
            id: image.id,
            content: image.content,
            size_bytes: image.size_bytes,
            mode: image.mode,
            links: 0,
            created: image.created,
            modified: image.modified,
            changed: image.changed,
            volumes: sound.map(|replica| replica.volume).collect(),
        }
    }
}

impl Tree {
    /// An empty tree, to be filled with the records of a list.
    pub fn new(position: Position) -> Self {
        Self {
            position,
            inodes: HashMap::new(),
            contents: Contents::default(),
            nodes: HashMap::new(),
            volumes: HashMap::new(),
            live: Live::default(),
        }
    }

    pub fn get(&self, ino: Ino) -> Option<&Inode> {
        self.inodes.get(&ino)
    }

    pub fn folder(&self, ino: Ino) -> Option<&FolderNode> {
        match self.inodes.get(&ino) {
            Some(Inode::Folder(folder)) => Some(folder),
            Some(Inode::Image(_)) | None => None,
        }
    }

    /// A name that leads to an image: looks through all folders, for images do not know theirs.
    pub fn name_of(&self, image: Ino) -> Option<(Ino, EntryName)> {
        self.inodes.iter().find_map(|(&folder, inode)| match inode {
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

    /// Other images that have the same bytes as one, which need not be in the tree any more.
    pub fn twins(&self, image: &ImageNode) -> impl Iterator<Item = &ImageNode> {
        let inodes = self.contents.images(image.content).iter();
        let images = inodes.filter_map(|ino| match self.inodes.get(ino) {
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
            Inode::Image(image) => Some((image.content, *ino)),
            Inode::Folder(_) => None,
        });
        self.contents.settle(images);
    }

    /// Takes in one record of a list, to be ended by [`Self::end_list`].
    pub fn load(&mut self, record: Record) {
        let mut unused = Effects::default();
        match record {
            Record::Folder(it) => self.folder_edit(&Edit::Made(it), &mut unused),
            Record::Image(it) => self.image_edit(&Edit::Made(it), &mut unused),
            Record::Entry(it) => self.entry_edit(&Edit::Made(it), &mut unused),
            Record::Node(it) => self.node_edit(&Edit::Made(it)),
            Record::Volume(it) => self.volume_edit(&Edit::Made(it)),
            Record::Pool(_) => {}
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
                Delta::Pool(_) => {}
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
        match edit.after() {
            None => {
                effects.gone.extend(self.inodes.remove(&ino).map(|inode| (ino, inode)));
                // Its link count, for whoever has it open.
                effects.stale.push(Stale::Listing(ino));
            }
            Some(folder) => match self.inodes.entry(ino) {
                Slot::Vacant(slot) => {
                    slot.insert(Inode::Folder(Box::new(FolderNode::new(folder))));
                }
                Slot::Occupied(mut slot) => {
                    if let Inode::Folder(node) = slot.get_mut() {
                        node.mode = folder.mode;
                        node.modified = folder.modified;
                        node.changed = folder.changed;
                    }
                    effects.stale.push(Stale::Listing(ino));
                }
            },
        }
    }

    fn image_edit(&mut self, edit: &Edit<Image>, effects: &mut Effects) {
        let ino = edit.subject().ino;
        let before = match self.inodes.get(&ino) {
            Some(Inode::Image(before)) => Some(before.clone()),
            Some(Inode::Folder(_)) | None => None,
        };
        let after = edit.after().map(ImageNode::new);
        let content_before = before.as_ref().map(|before| before.content);
        if let Some(content) = content_before
            && after.as_ref().is_none_or(|after| after.content != content)
        {
            self.contents.remove(content, ino);
        }
        match after {
            None => {
                effects.gone.extend(self.inodes.remove(&ino).map(|inode| (ino, inode)));
                effects.stale.push(Stale::Attributes(ino));
            }
            Some(mut node) => {
                if let Some(before) = before {
                    node.links = before.links;
                    // Of hashes and systems no kernel knows anything.
                    if before != node {
                        effects.stale.push(Stale::Attributes(ino));
                    }
                }
                if content_before != Some(node.content) {
                    self.contents.add(node.content, ino);
                }
                self.inodes.insert(ino, Inode::Image(node));
            }
        }
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
        let to_folder = match self.inodes.get_mut(&entry.ino) {
            Some(Inode::Folder(folder)) => {
                folder.parent = entry.parent;
                true
            }
            Some(Inode::Image(image)) => {
                image.links += 1;
                effects.stale.push(Stale::Attributes(entry.ino));
                false
            }
            None => false,
        };
        if let Some(Inode::Folder(parent)) = self.inodes.get_mut(&entry.parent) {
            parent.subfolders += u32::from(to_folder);
            parent.by_name.insert(entry.name.clone(), entry.id);
            parent.by_id.insert(entry.id, (entry.name.clone(), entry.ino));
        }
        effects.name(entry);
    }

    fn unlink(&mut self, entry: &Entry, effects: &mut Effects) {
        let to_folder = match self.inodes.get_mut(&entry.ino) {
            Some(Inode::Folder(_)) => true,
            Some(Inode::Image(image)) => {
                image.links = image.links.saturating_sub(1);
                // Its link count shows in every other name's attributes.
                effects.stale.push(Stale::Attributes(entry.ino));
                false
            }
            None => false,
        };
        if let Some(Inode::Folder(parent)) = self.inodes.get_mut(&entry.parent) {
            parent.subfolders = parent.subfolders.saturating_sub(u32::from(to_folder));
            // A rename within one folder re-uses the name's slot before this one is cleared.
            if parent.by_name.get(&entry.name) == Some(&entry.id) {
                parent.by_name.remove(&entry.name);
            }
            parent.by_id.remove(&entry.id);
        }
        effects.name(entry);
    }

    fn node_edit(&mut self, edit: &Edit<Node>) {
        match edit.after() {
            Some(node) => self.nodes.insert(node.id, node.clone()),
            None => self.nodes.remove(&edit.subject().id),
        };
    }

    fn volume_edit(&mut self, edit: &Edit<Volume>) {
        match edit.after() {
            Some(volume) => self.volumes.insert(volume.id, volume.clone()),
            None => self.volumes.remove(&edit.subject().id),
        };
    }

    /// What the kernel may have cached from `self` that is not so in `new`, a list taken later;
    /// and the inodes that are gone. Of another incarnation nothing is kept.
    pub fn outdated_by(&self, new: &Self) -> (Vec<Stale>, Vec<(Ino, Inode)>) {
        let same_life = self.position.incarnation == new.position.incarnation;
        let mut effects = Effects::default();
        for (&ino, inode) in &self.inodes {
            // The root is the same in every life, and so is what the kernel keeps under it.
            let successor = new.inodes.get(&ino).filter(|_| same_life || ino == Ino::ROOT);
            if same_life && successor == Some(inode) {
                continue;
            }
            effects.stale.push(match inode {
                Inode::Folder(_) => Stale::Listing(ino),
                Inode::Image(_) => Stale::Attributes(ino),
            });
            if successor.is_none() {
                effects.gone.push((ino, inode.clone()));
            }
            let Inode::Folder(before) = inode else { continue };
            let after = match successor {
                Some(Inode::Folder(after)) => Some(after),
                Some(Inode::Image(_)) | None => None,
            };
            let lost = before.by_id.values().filter(|(name, ino)| {
                !same_life || after.and_then(|after| after.child(name.as_str())) != Some(*ino)
            });
            // Names that are new may be cached as absent.
            let gained = after.into_iter().flat_map(|after| after.by_id.values());
            let gained = gained.filter(|(name, _)| before.child(name.as_str()).is_none());
            for (name, _) in lost.chain(gained) {
                effects.stale.push(Stale::Name { folder: ino, name: name.clone() });
            }
        }
        (effects.stale, effects.gone)
    }
}

#[derive(Default)]
struct Effects {
    stale: Vec<Stale>,
    gone: Vec<(Ino, Inode)>,
}

impl Effects {
    fn name(&mut self, entry: &Entry) {
        self.stale.push(Stale::Name { folder: entry.parent, name: entry.name.clone() });
        self.stale.push(Stale::Listing(entry.parent));
    }
}

#[cfg(test)]
mod tests {
    use isotope_proto::cluster::Access;
    use isotope_proto::id::ContentId;
    use isotope_proto::image::{ImageFormat, Os};

    use super::*;

    fn position(revision: u64) -> Position {
        let incarnation = Incarnation::from_bytes([1; 16]);
        Position { incarnation, revision: Revision(revision) }
    }

    fn folder(ino: u64) -> Folder {
        let time = Timestamp(0);
        Folder {
            ino: Ino(ino),
            mode: 0o775,
            created: time,
            modified: time,
            changed: time,
            default_pool: None,
        }
    }

    fn image(ino: u64) -> Image {
        Image {
            id: ImageId::from_bytes([ino as u8; 16]),
            ino: Ino(ino),
            content: ContentId::from_bytes([ino as u8; 16]),
            hashes: None,
            filename: "x.iso".to_owned(),
            size_bytes: 1,
            format: ImageFormat::Iso,
            os: Os::unknown(),
            flat_names: Vec::new(),
            facts: None,
            mode: 0o664,
            created: Timestamp(0),
            modified: Timestamp(0),
            changed: Timestamp(0),
            replicas: Vec::new(),
        }
    }

    fn entry(id: u64, parent: u64, name: &str, ino: u64) -> Entry {
        let name = EntryName::parse(name).expect("a name");
        Entry { id: EntryId(id), parent: Ino(parent), name, ino: Ino(ino) }
    }

    /// `/linux` (2) with `a.iso` (10), and `/windows` (3).
    fn tree() -> Tree {
        let mut tree = Tree::new(position(5));
        for record in [
            Record::Folder(folder(1)),
            Record::Folder(folder(2)),
            Record::Folder(folder(3)),
            Record::Image(image(10)),
            Record::Entry(entry(1, 1, "linux", 2)),
            Record::Entry(entry(2, 1, "windows", 3)),
            Record::Entry(entry(3, 2, "a.iso", 10)),
        ] {
            tree.load(record);
        }
        tree
    }

    fn change(revision: u64, deltas: Vec<Delta>) -> Change {
        let Position { incarnation, revision } = position(revision);
        Change { incarnation, revision, time: Timestamp(0), deltas }
    }

    fn name(folder: u64, name: &str) -> Stale {
        Stale::Name { folder: Ino(folder), name: EntryName::parse(name).expect("a name") }
    }

    #[test]
    fn a_move_shows_at_both_ends_and_in_both_folders() {
        let mut tree = tree();
        let (before, after) = (entry(3, 2, "a.iso", 10), entry(3, 3, "b.iso", 10));
        let moved = change(6, vec![Delta::Entry(Edit::Changed { before, after })]);
        let Applied::Now { stale, gone } = tree.apply(&moved) else { panic!("applied") };
        assert_eq!(
            stale,
            [
                name(2, "a.iso"),
                name(3, "b.iso"),
                Stale::Listing(Ino(2)),
                Stale::Listing(Ino(3)),
                Stale::Attributes(Ino(10)),
            ]
        );
        assert!(gone.is_empty());
        assert_eq!(tree.folder(Ino(2)).and_then(|it| it.child("a.iso")), None);
        assert_eq!(tree.folder(Ino(3)).and_then(|it| it.child("b.iso")), Some(Ino(10)));
        assert!(matches!(tree.get(Ino(10)), Some(Inode::Image(image)) if image.links == 1));
        assert_eq!(tree.apply(&moved), Applied::Before);
        assert_eq!(tree.apply(&change(9, Vec::new())), Applied::OutOfOrder);
    }

    #[test]
    fn folders_count_their_folders() {
        let mut tree = tree();
        assert_eq!(tree.folder(Ino::ROOT).map(|root| root.subfolders), Some(2));
        let (before, after) = (entry(2, 1, "windows", 3), entry(2, 2, "w", 3));
        tree.apply(&change(6, vec![Delta::Entry(Edit::Changed { before, after })]));
        assert_eq!(tree.folder(Ino::ROOT).map(|root| root.subfolders), Some(1));
        assert_eq!(tree.folder(Ino(2)).map(|linux| linux.subfolders), Some(1));
        assert_eq!(tree.folder(Ino(3)).map(|moved| moved.parent), Some(Ino(2)));
    }

    #[test]
    fn a_removed_image_leaves_the_tree_and_is_handed_out() {
        let mut tree = tree();
        let deltas = vec![
            Delta::Entry(Edit::Removed(entry(3, 2, "a.iso", 10))),
            Delta::Image(Edit::Removed(image(10))),
        ];
        let Applied::Now { gone, .. } = tree.apply(&change(6, deltas)) else { panic!("applied") };
        assert!(matches!(&gone[..], [(Ino(10), Inode::Image(image))] if image.links == 0));
        assert_eq!(tree.get(Ino(10)), None);
    }

    #[test]
    fn twins_are_found_when_listed_and_when_they_come_to_be_equal() {
        let with = |ino: u64, content: u8, size_bytes: u64| {
            let content = ContentId::from_bytes([content; 16]);
            Image { content, size_bytes, ..image(ino) }
        };
        let mut tree = tree();
        for it in [with(11, 7, 5), with(12, 7, 5), with(13, 7, 6), with(14, 8, 5)] {
            tree.load(Record::Image(it));
        }
        tree.end_list();
        let twins = |tree: &Tree, of: &Image| {
            let node = ImageNode::new(of);
            let mut all: Vec<u8> = tree.twins(&node).map(|it| it.id.as_bytes()[0]).collect();
            all.sort_unstable();
            all
        };
        assert_eq!(twins(&tree, &with(11, 7, 5)), [12], "13 has another size");
        assert_eq!(twins(&tree, &with(14, 8, 5)), [0; 0]);
        // It was hashed: the same as two others.
        let edit = Edit::Changed { before: with(14, 8, 5), after: with(14, 7, 5) };
        tree.apply(&change(6, vec![Delta::Image(edit)]));
        assert_eq!(twins(&tree, &with(11, 7, 5)), [12, 14]);
        // Of a content that was one image's alone, and with no list in between.
        tree.apply(&change(7, vec![Delta::Image(Edit::Made(with(15, 10, 1)))]));
        assert_eq!(twins(&tree, &with(15, 10, 1)), [10]);
        // Deleted while it is open, it can be read from the others; they not from it.
        tree.apply(&change(8, vec![Delta::Image(Edit::Removed(with(11, 7, 5)))]));
        assert_eq!(twins(&tree, &with(11, 7, 5)), [12, 14]);
        assert_eq!(twins(&tree, &with(12, 7, 5)), [14]);
    }

    #[test]
    fn listing_goes_on_after_any_cookie() {
        let mut tree = tree();
        for id in 4..10 {
            tree.load(Record::Image(image(20 + id)));
            tree.load(Record::Entry(entry(id, 2, &format!("{id}.iso"), 20 + id)));
        }
        let after = |tree: &Tree, cookie| {
            let folder = tree.folder(Ino(2)).expect("the folder");
            folder.after(EntryId(cookie)).map(|(id, ..)| id.0).collect::<Vec<_>>()
        };
        assert_eq!(after(&tree, 0), [3, 4, 5, 6, 7, 8, 9]);
        let removed = Delta::Entry(Edit::Removed(entry(6, 2, "6.iso", 26)));
        tree.apply(&change(6, vec![removed]));
        assert_eq!(after(&tree, 6), [7, 8, 9]);
    }

    #[test]
    fn a_later_list_outdates_just_what_differs() {
        let old = tree();
        let mut new = tree();
        new.position.revision = Revision(9);
        assert_eq!(old.outdated_by(&new), (Vec::new(), Vec::new()));
        let (before, after) = (entry(3, 2, "a.iso", 10), entry(3, 2, "b.iso", 10));
        new.apply(&change(10, vec![Delta::Entry(Edit::Changed { before, after })]));
        let (mut stale, gone) = old.outdated_by(&new);
        stale.sort_unstable();
        assert_eq!(stale, [name(2, "a.iso"), name(2, "b.iso"), Stale::Listing(Ino(2))]);
        assert!(gone.is_empty());
        // Another incarnation's numbers mean other things.
        let mut reborn = tree();
        reborn.position.incarnation = Incarnation::from_bytes([2; 16]);
        reborn.load(Record::Entry(entry(9, 1, "appeared", 10)));
        let (stale, gone) = old.outdated_by(&reborn);
        assert_eq!(gone.len(), 3, "all but the root");
        for (folder, known) in [(1, "linux"), (1, "windows"), (2, "a.iso"), (1, "appeared")] {
            assert!(stale.contains(&name(folder, known)), "{known}");
        }
        assert_ne!(old.generation(), reborn.generation());
    }

    #[test]
    fn space_counts_each_file_system_once() {
        let mut tree = tree();
        let online = |id, filesystem: &str| {
            let filesystem = filesystem.to_owned();
            let space = Space {
                filesystem,
                capacity_bytes: 100,
                free_bytes: 40,
                available_bytes: 30,
                access: Access::ReadWrite,
            };
            (VolumeId::from_bytes([id; 16]), VolumeState::Online(space))
        };
        let offline = (VolumeId::from_bytes([9; 16]), VolumeState::Offline("gone".to_owned()));
        let volumes = vec![online(1, "a"), online(2, "a"), online(3, "b"), offline];
        tree.set_live(Live { connected: Vec::new(), volumes });
        let room = Room { capacity_bytes: 200, free_bytes: 80, available_bytes: 60 };
        assert_eq!(tree.space(), room);
    }
}
