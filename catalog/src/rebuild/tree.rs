//! Folders, images and names, laid down copy by copy, the newest first. It decides what holds where
//! two copies differ, by the rules at the head of `rebuild.rs`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use isotope_proto::change::Record;
use isotope_proto::id::{EntryId, ImageId, Ino, VolumeId};
use isotope_proto::image::{Image, Replica};
use isotope_proto::name::{EntryName, FOLDER_DEPTH_MAX, VolumePath};
use isotope_proto::sidecar::LibraryCopy;
use isotope_proto::tree::{Entry, Folder};

use super::cluster::Cluster;
use super::{Kinship, Layer, Rebuilt, ino_of};

struct Place {
    folder: Folder,
    /// None for the root alone.
    above: Option<(usize, EntryName, EntryId)>,
    depth: usize,
    children: HashMap<EntryName, Child>,
}

#[derive(Clone, Copy)]
enum Child {
    Folder(usize),
    Image,
}

struct Found {
    image: Image,
    names: Vec<(usize, EntryName, EntryId)>,
}

#[derive(Default)]
pub(super) struct Tree {
    places: Vec<Place>,
    by_ino: HashMap<Ino, usize>,
    images: HashMap<ImageId, Found>,
    image_inos: HashMap<Ino, ImageId>,
    files: HashMap<(VolumeId, VolumePath), (ImageId, Replica)>,
    entry_ids: BTreeSet<EntryId>,
    cluster: Cluster,
    next_ino: u64,
    next_entry: u64,
    renamed: u64,
}

impl Tree {
    pub(super) fn number_above<'a>(&mut self, copies: impl Iterator<Item = &'a LibraryCopy>) {
        let (mut ino, mut entry) = (Ino::ROOT, EntryId(0));
        for copy in copies {
            (ino, entry) = (ino.max(copy.mark.ino_max), entry.max(copy.mark.entry_max));
            for record in &copy.records {
                ino = ino.max(ino_of(record).unwrap_or(ino));
                if let Record::Entry(it) = record {
                    entry = entry.max(it.id);
                }
            }
        }
        (self.next_ino, self.next_entry) = (ino.0.saturating_add(1), entry.0.saturating_add(1));
    }

    /// Adds what a copy has and newer ones have not.
    pub(super) fn add(&mut self, layer: &Layer, deleted: &BTreeSet<ImageId>) {
        let is_known = |image: &Image| {
            self.images.get(&image.id).is_some_and(|found| found.image.ino == image.ino)
        };
        let goes_on =
            layer.folders.keys().any(|it| *it != Ino::ROOT && self.by_ino.contains_key(it))
                || layer.images.iter().any(is_known);
        let kinship = if goes_on { Kinship::Forebear } else { Kinship::Stranger };
        self.cluster.add(layer, kinship);
        if self.places.is_empty() {
            let Some(root) = layer.folders.get(&Ino::ROOT) else { return };
            self.by_ino.insert(Ino::ROOT, 0);
            let children = HashMap::new();
            self.places.push(Place { folder: root.clone(), above: None, depth: 0, children });
        } else if kinship == Kinship::Stranger
            && let Some(root) = layer.folders.get(&Ino::ROOT)
        {
            // It has been in use; the other one was only made.
            self.places[0].folder = root.clone();
        }
        if kinship == Kinship::Stranger {
            for ino in layer.folders.keys() {
                self.place(layer, *ino, kinship, 0);
            }
        }
        let mut to_name = Vec::new();
        for image in &layer.images {
            if !deleted.contains(&image.id) && self.add_image(image) {
                to_name.push(image);
            }
        }
        for image in to_name {
            self.name(layer, image, kinship);
        }
    }

    /// Where a copy's folder is; made where it is missing.
    fn place(&mut self, layer: &Layer, ino: Ino, kinship: Kinship, below: usize) -> usize {
        if let Some(at) = self.by_ino.get(&ino) {
            return *at;
        }
        let names = layer.names.get(&ino).and_then(|names| names.first());
        // A damaged copy must not lead in a circle.
        let (Some(folder), Some(entry)) = (layer.folders.get(&ino), names) else { return 0 };
        if below > layer.folders.len() {
            return 0;
        }
        let parent = self.place(layer, entry.parent, kinship, below + 1);
        if let Some(Child::Folder(at)) = self.places[parent].children.get(&entry.name).copied() {
            if kinship == Kinship::Stranger && ino < self.places[at].folder.ino {
                let id = self.free_entry_id(entry.id);
                self.places[at].folder = folder.clone();
                self.places[at].above = Some((parent, entry.name.clone(), id));
            }
            self.by_ino.insert(ino, at);
            return at;
        }
        let depth = self.places[parent].depth + 1;
        if depth > FOLDER_DEPTH_MAX {
            return parent;
        }
        let name = self.free_name(parent, &entry.name, "restored");
        let id = self.free_entry_id(entry.id);
        let at = self.places.len();
        let above = Some((parent, name.clone(), id));
        let children = HashMap::new();
        self.places.push(Place { folder: folder.clone(), above, depth, children });
        self.places[parent].children.insert(name, Child::Folder(at));
        self.by_ino.insert(ino, at);
        at
    }

    /// True if the image is to have the names that this copy gives it.
    fn add_image(&mut self, image: &Image) -> bool {
        let twin = image.replicas.iter().find_map(|it| {
            let (id, known) = self.files.get(&(it.volume, it.path.clone()))?;
            (known.stamp == it.stamp).then_some(*id)
        });
        let known = if self.images.contains_key(&image.id) { Some(image.id) } else { twin };
        let Some(known) = known else {
            let is_free = |it: &Replica| !self.files.contains_key(&(it.volume, it.path.clone()));
            // All its files have become others.
            if !image.replicas.iter().any(is_free) {
                return false;
            }
            self.insert(image);
            return true;
        };
        let holds = self.images.get(&known).is_none_or(|it| it.image.ino <= image.ino);
        if holds {
            self.claim(known, &image.replicas);
            return false;
        }
        self.remove(known);
        if known != image.id {
            for (id, _) in self.files.values_mut().filter(|(id, _)| *id == known) {
                *id = image.id;
            }
        }
        self.insert(image);
        true
    }

    fn insert(&mut self, image: &Image) {
        let mut image = image.clone();
        if self.by_ino.contains_key(&image.ino) || self.image_inos.contains_key(&image.ino) {
            image.ino = Ino(self.next_ino);
            self.next_ino += 1;
        }
        self.claim(image.id, &image.replicas);
        self.image_inos.insert(image.ino, image.id);
        self.images.insert(image.id, Found { image, names: Vec::new() });
    }

    fn claim(&mut self, image: ImageId, replicas: &[Replica]) {
        for it in replicas {
            self.files.entry((it.volume, it.path.clone())).or_insert((image, it.clone()));
        }
    }

    fn remove(&mut self, image: ImageId) {
        let Some(found) = self.images.remove(&image) else { return };
        self.image_inos.remove(&found.image.ino);
        for (at, name, _) in found.names {
            self.places[at].children.remove(&name);
        }
    }

    fn name(&mut self, layer: &Layer, image: &Image, kinship: Kinship) {
        let no_names = Vec::new();
        for entry in layer.names.get(&image.ino).unwrap_or(&no_names) {
            let at = self.place(layer, entry.parent, kinship, 0);
            let volume = image.replicas.first().map(|it| it.volume);
            let pool = volume.and_then(|volume| self.cluster.pool_name(volume)).map(str::to_owned);
            let name = self.free_name(at, &entry.name, pool.as_deref().unwrap_or("restored"));
            let id = self.free_entry_id(entry.id);
            self.places[at].children.insert(name.clone(), Child::Image);
            if let Some(found) = self.images.get_mut(&image.id) {
                found.names.push((at, name, id));
            }
        }
    }

    /// `name`, or where that is taken `stem.ADDITION.ext`, `stem.ADDITION.2.ext`, …
    fn free_name(&mut self, at: usize, name: &EntryName, addition: &str) -> EntryName {
        let taken = &self.places[at].children;
        let mut candidate = name.clone();
        let mut tries = 1_u32;
        while taken.contains_key(&candidate) {
            let numbered =
                if tries == 1 { addition.to_owned() } else { format!("{addition}.{tries}") };
            candidate = name.with_addition(&numbered);
            tries += 1;
        }
        self.renamed += u64::from(tries > 1);
        candidate
    }

    fn free_entry_id(&mut self, wanted: EntryId) -> EntryId {
        if self.entry_ids.insert(wanted) {
            return wanted;
        }
        let id = EntryId(self.next_entry);
        self.next_entry += 1;
        self.entry_ids.insert(id);
        id
    }

    pub(super) fn finish(mut self) -> Rebuilt {
        let mut images = std::mem::take(&mut self.images);
        images.values_mut().for_each(|found| found.image.replicas.clear());
        let files: BTreeMap<_, _> = std::mem::take(&mut self.files).into_iter().collect();
        for (image, replica) in files.into_values() {
            if let Some(found) = images.get_mut(&image) {
                found.image.replicas.push(replica);
            }
        }
        images.retain(|_, found| !found.names.is_empty() && !found.image.replicas.is_empty());
        let mut rebuilt = Rebuilt {
            next_ino: self.next_ino,
            next_entry: self.next_entry,
            images: images.len() as u64,
            folders: self.places.len() as u64,
            renamed: self.renamed,
            ..Rebuilt::default()
        };
        let used = images.values().flat_map(|it| &it.image.replicas).map(|it| it.volume);
        let used: BTreeSet<VolumeId> = used.collect();
        let pools = self.cluster.finish(&used, &mut rebuilt.records);
        let mut entries = Vec::new();
        for place in &mut self.places {
            let mut folder = place.folder.clone();
            folder.default_pool = folder.default_pool.and_then(|id| pools.get(&id).copied());
            if let Some((above, name, id)) = place.above.take() {
                entries.push((above, name, id, folder.ino));
            }
            place.folder = folder.clone();
            rebuilt.records.push(Record::Folder(folder));
        }
        for Found { image, names } in images.into_values() {
            entries.extend(names.into_iter().map(|(at, name, id)| (at, name, id, image.ino)));
            rebuilt.records.push(Record::Image(image));
        }
        rebuilt.records.extend(entries.into_iter().map(|(at, name, id, ino)| {
            Record::Entry(Entry { id, parent: self.places[at].folder.ino, name, ino })
        }));
        rebuilt
    }
}
