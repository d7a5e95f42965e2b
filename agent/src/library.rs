//! A volume's copy of the library, kept true by the catalogue's changes: all folders, and the
//! images that have a file on the volume, under their names and numbers. Pure: it knows neither the
//! feed nor the disk, nor why anything changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use isotope_proto::change::{Change, Delta, Edit, Record};
use isotope_proto::cluster::{Node, Pool, Volume};
use isotope_proto::id::{EntryId, ImageId, Incarnation, Ino, NodeId, PoolId, Revision, VolumeId};
use isotope_proto::image::Image;
use isotope_proto::name::EntryName;
use isotope_proto::sidecar::{LibraryCopy, LibraryMark};
use isotope_proto::tree::{Entry, Folder};

/// A position in a catalogue's feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) incarnation: Incarnation,
    pub(crate) revision: Revision,
}

/// What a change is to a copy.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It was applied; this of it concerns the volume, and may be nothing.
    Deltas(Vec<Delta>),
    /// It was applied before.
    Known,
    /// It does not follow, or brings an image whose names were told when nobody here listened: the
    /// whole list is needed.
    ListNeeded,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Library {
    mark: LibraryMark,
    nodes: BTreeMap<NodeId, Node>,
    pools: BTreeMap<PoolId, Pool>,
    volumes: BTreeMap<VolumeId, Volume>,
    folders: BTreeMap<Ino, Folder>,
    images: BTreeMap<ImageId, Image>,
    entries: BTreeMap<EntryId, Entry>,
    inos: HashMap<Ino, ImageId>,
}

impl Library {
    /// An empty one, to be loaded.
    pub(crate) fn new(volume: VolumeId, at: Position) -> Self {
        let Position { incarnation, revision } = at;
        let (ino_max, entry_max) = (Ino(0), EntryId(0));
        Self::with_mark(LibraryMark { volume, incarnation, revision, ino_max, entry_max })
    }

    pub(crate) fn with_mark(mark: LibraryMark) -> Self {
        Self {
            mark,
            nodes: BTreeMap::new(),
            pools: BTreeMap::new(),
            volumes: BTreeMap::new(),
            folders: BTreeMap::new(),
            images: BTreeMap::new(),
            entries: BTreeMap::new(),
            inos: HashMap::new(),
        }
    }

    pub(crate) fn mark(&self) -> LibraryMark {
        self.mark
    }

    pub(crate) fn position(&self) -> Position {
        Position { incarnation: self.mark.incarnation, revision: self.mark.revision }
    }

    /// Takes a record of a list, in which each stands before those that refer to it, if it concerns
    /// the volume.
    pub(crate) fn load(&mut self, record: &Record) {
        let delta = match record.clone() {
            Record::Node(it) => Delta::Node(Edit::Made(it)),
            Record::Pool(it) => Delta::Pool(Edit::Made(it)),
            Record::Volume(it) => Delta::Volume(Edit::Made(it)),
            Record::Folder(it) => Delta::Folder(Edit::Made(it)),
            Record::Image(it) => Delta::Image(Edit::Made(it)),
            Record::Entry(it) => Delta::Entry(Edit::Made(it)),
        };
        self.count(&delta);
        if let Some(delta) = self.concerning(&delta) {
            self.put(delta);
        }
    }

    /// Takes what the feed says, in its order.
    pub(crate) fn take(&mut self, change: &Change) -> Taken {
        if change.incarnation != self.mark.incarnation {
            return Taken::ListNeeded;
        }
        if change.revision <= self.mark.revision {
            return Taken::Known;
        }
        if change.revision != self.mark.revision.next() || self.somebody_joins(change) {
            return Taken::ListNeeded;
        }
        self.mark.revision = change.revision;
        change.deltas.iter().for_each(|delta| self.count(delta));
        // A name is of concern by what it leads to, which may be told after it.
        let (names, rest): (Vec<&Delta>, Vec<&Delta>) =
            change.deltas.iter().partition(|delta| matches!(delta, Delta::Entry(_)));
        let mut taken = Vec::new();
        for delta in rest.into_iter().chain(names) {
            if let Some(delta) = self.concerning(delta) {
                self.put(delta.clone());
                taken.push(delta);
            }
        }
        if taken.iter().any(|delta| matches!(delta, Delta::Image(Edit::Removed(_)))) {
            taken.extend(self.drop_nameless());
        }
        Taken::Deltas(taken)
    }

    /// Takes what a log says: deltas that are this volume's, true up to the mark that follows.
    pub(crate) fn replay(&mut self, change: Change) {
        for delta in change.deltas {
            self.count(&delta);
            self.put(delta);
        }
    }

    pub(crate) fn set_mark(&mut self, mark: LibraryMark) {
        self.mark = mark;
    }

    /// Whether an image that was elsewhere comes to this volume.
    fn somebody_joins(&self, change: &Change) -> bool {
        let mut made = BTreeSet::new();
        change.deltas.iter().any(|delta| match delta {
            Delta::Image(Edit::Made(image)) => {
                made.insert(image.id);
                false
            }
            Delta::Image(Edit::Changed { after, .. }) => {
                let known = self.images.contains_key(&after.id) || made.contains(&after.id);
                self.is_here(after) && !known
            }
            _ => false,
        })
    }

    fn is_here(&self, image: &Image) -> bool {
        image.replicas.iter().any(|replica| replica.volume == self.mark.volume)
    }

    /// Numbers that were given out are not given out again.
    fn count(&mut self, delta: &Delta) {
        let ino = match delta {
            Delta::Folder(edit) => edit.subject().ino,
            Delta::Image(edit) => edit.subject().ino,
            Delta::Entry(edit) => {
                self.mark.entry_max = self.mark.entry_max.max(edit.subject().id);
                return;
            }
            Delta::Node(_) | Delta::Pool(_) | Delta::Volume(_) => return,
        };
        self.mark.ino_max = self.mark.ino_max.max(ino);
    }

    /// What of a delta concerns the volume, without what was before.
    fn concerning(&self, delta: &Delta) -> Option<Delta> {
        Some(match delta {
            Delta::Node(edit) => Delta::Node(short(edit)),
            Delta::Pool(edit) => Delta::Pool(short(edit)),
            Delta::Volume(edit) => Delta::Volume(short(edit)),
            Delta::Folder(edit) => Delta::Folder(short(edit)),
            Delta::Image(edit) => {
                let mut image = edit.subject().clone();
                let stays = edit.after().is_some() && self.is_here(&image);
                image.replicas.retain(|replica| replica.volume == self.mark.volume);
                match (stays, self.images.get(&image.id)) {
                    (true, Some(known)) if *known == image => return None,
                    (true, _) => Delta::Image(Edit::Made(image)),
                    (false, Some(known)) => Delta::Image(Edit::Removed(known.clone())),
                    (false, None) => return None,
                }
            }
            Delta::Entry(edit) => {
                let entry = edit.subject();
                let leads_here =
                    self.folders.contains_key(&entry.ino) || self.inos.contains_key(&entry.ino);
                match (edit.after(), self.entries.get(&entry.id)) {
                    (Some(after), _) if leads_here => Delta::Entry(Edit::Made(after.clone())),
                    (_, Some(known)) => Delta::Entry(Edit::Removed(known.clone())),
                    (_, None) => return None,
                }
            }
        })
    }

    fn put(&mut self, delta: Delta) {
        match delta {
            Delta::Node(edit) => put(&mut self.nodes, edit, |it| it.id),
            Delta::Pool(edit) => put(&mut self.pools, edit, |it| it.id),
            Delta::Volume(edit) => put(&mut self.volumes, edit, |it| it.id),
            Delta::Folder(edit) => put(&mut self.folders, edit, |it| it.ino),
            Delta::Entry(edit) => put(&mut self.entries, edit, |it| it.id),
            Delta::Image(edit) => {
                let image = edit.subject();
                match edit.after() {
                    Some(_) => self.inos.insert(image.ino, image.id),
                    None => self.inos.remove(&image.ino),
                };
                put(&mut self.images, edit, |it| it.id);
            }
        }
    }

    /// An image that has left the volume takes its names along; they may not have been told of.
    fn drop_nameless(&mut self) -> Vec<Delta> {
        let (folders, inos) = (&self.folders, &self.inos);
        let loose =
            |entry: &&Entry| !folders.contains_key(&entry.ino) && !inos.contains_key(&entry.ino);
        let loose: Vec<Entry> = self.entries.values().filter(loose).cloned().collect();
        for entry in &loose {
            self.entries.remove(&entry.id);
        }
        loose.into_iter().map(|entry| Delta::Entry(Edit::Removed(entry))).collect()
    }

    /// Everything, each record before those that refer to it.
    pub(crate) fn records(&self) -> impl Iterator<Item = Record> + '_ {
        let nodes = self.nodes.values().cloned().map(Record::Node);
        let pools = self.pools.values().cloned().map(Record::Pool);
        let volumes = self.volumes.values().cloned().map(Record::Volume);
        let folders = self.folders.values().cloned().map(Record::Folder);
        let images = self.images.values().cloned().map(Record::Image);
        let entries = self.entries.values().cloned().map(Record::Entry);
        nodes.chain(pools).chain(volumes).chain(folders).chain(images).chain(entries)
    }

    pub(crate) fn record_count(&self) -> usize {
        let cluster = self.nodes.len() + self.pools.len() + self.volumes.len();
        cluster + self.folders.len() + self.images.len() + self.entries.len()
    }

    /// Whether both have the same records, wherever they stand in a feed.
    pub(crate) fn has_the_same(&self, other: &Self) -> bool {
        self.images == other.images
            && self.entries == other.entries
            && self.folders == other.folders
            && (&self.nodes, &self.pools, &self.volumes)
                == (&other.nodes, &other.pools, &other.volumes)
    }

    pub(crate) fn into_copy(self) -> LibraryCopy {
        LibraryCopy { mark: self.mark, records: self.records().collect() }
    }

    /// Whether a later catalogue has everything of this one: each image under the same number or
    /// one that was given out earlier, each folder by its number or its path. A catalogue that lost
    /// the library has its files, too, but tells them under new numbers.
    pub(crate) fn is_within(&self, later: &Self) -> bool {
        let later_files: HashMap<_, Ino> = later
            .images
            .values()
            .flat_map(|image| image.replicas.iter().map(|it| ((&it.path, it.stamp), image.ino)))
            .collect();
        let has_image = |image: &Image| match later.images.get(&image.id) {
            Some(known) => known.ino <= image.ino,
            None => image.replicas.iter().any(|it| {
                later_files.get(&(&it.path, it.stamp)).is_some_and(|ino| *ino <= image.ino)
            }),
        };
        let (above, later_above) = (self.names_of_folders(), later.names_of_folders());
        let later_paths: BTreeMap<Vec<&EntryName>, Ino> =
            later.folders.keys().map(|ino| (path_of(&later_above, *ino), *ino)).collect();
        let has_folder = |ino: &Ino| {
            later.folders.contains_key(ino)
                || later_paths.get(&path_of(&above, *ino)).is_some_and(|known| known <= ino)
        };
        self.images.values().all(has_image) && self.folders.keys().all(has_folder)
    }

    fn names_of_folders(&self) -> HashMap<Ino, &Entry> {
        let of_folders = self.entries.values().filter(|it| self.folders.contains_key(&it.ino));
        of_folders.map(|entry| (entry.ino, entry)).collect()
    }
}

/// Names from the root down. A copy that leads in a circle gives a path that nothing else has.
fn path_of<'a>(above: &HashMap<Ino, &'a Entry>, ino: Ino) -> Vec<&'a EntryName> {
    let mut names = Vec::new();
    let mut at = ino;
    while let Some(entry) = above.get(&at).filter(|_| names.len() <= above.len()) {
        names.push(&entry.name);
        at = entry.parent;
    }
    names.reverse();
    names
}

fn short<T: Clone>(edit: &Edit<T>) -> Edit<T> {
    match edit.after() {
        Some(after) => Edit::Made(after.clone()),
        None => Edit::Removed(edit.subject().clone()),
    }
}

fn put<K: Ord, T>(all: &mut BTreeMap<K, T>, edit: Edit<T>, key: impl Fn(&T) -> K) {
    match edit {
        Edit::Made(after) | Edit::Changed { after, .. } => {
            all.insert(key(&after), after);
        }
        Edit::Removed(before) => {
            all.remove(&key(&before));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use isotope_proto::id::ContentId;
    use isotope_proto::image::{ImageFormat, Os, Replica, Stamp};
    use isotope_proto::name::VolumePath;
    use isotope_proto::time::Timestamp;

    use super::*;

    pub(crate) const HERE: VolumeId = VolumeId::from_bytes([1; 16]);
    pub(crate) const ELSEWHERE: VolumeId = VolumeId::from_bytes([2; 16]);

    pub(crate) fn at(life: u8, revision: u64) -> Position {
        let incarnation = Incarnation::from_bytes([life; 16]);
        Position { incarnation, revision: Revision(revision) }
    }

    pub(crate) fn folder(ino: u64) -> Folder {
        let time = Timestamp(1);
        let (created, modified, changed) = (time, time, time);
        Folder { ino: Ino(ino), mode: 0o755, created, modified, changed, default_pool: None }
    }

    pub(crate) fn entry(id: u64, parent: u64, name: &str, ino: u64) -> Entry {
        let name = EntryName::parse(name).expect("a name");
        Entry { id: EntryId(id), parent: Ino(parent), name, ino: Ino(ino) }
    }

    /// Image `n` with the inode number `ino` and a file on each of some volumes.
    pub(crate) fn image(n: u8, ino: u64, volumes: &[VolumeId]) -> Image {
        let replica = |volume: &VolumeId| Replica {
            volume: *volume,
            path: VolumePath::parse(&format!("iso/{n}.iso")).expect("a path"),
            stamp: Stamp { inode: n.into(), size_bytes: 1, mtime_ns: 1 },
            checked: None,
        };
        Image {
            id: ImageId::from_bytes([n; 16]),
            ino: Ino(ino),
            content: ContentId::from_bytes([n; 16]),
            hashes: None,
            flat_names: Vec::new(),
            facts: None,
            filename: format!("{n}.iso"),
            size_bytes: 1,
            format: ImageFormat::Iso,
            os: Os::unknown(),
            mode: 0o644,
            created: Timestamp(1),
            modified: Timestamp(1),
            changed: Timestamp(1),
            replicas: volumes.iter().map(replica).collect(),
        }
    }

    pub(crate) fn change(at: Position, deltas: Vec<Delta>) -> Change {
        let Position { incarnation, revision } = at;
        Change { incarnation, revision, time: Timestamp(1), deltas }
    }

    fn listed(life: u8, records: &[Record]) -> Library {
        let mut library = Library::new(HERE, at(life, 1));
        records.iter().for_each(|record| library.load(record));
        library
    }

    #[test]
    fn a_copy_has_all_folders_and_the_images_of_its_volume() {
        let records = [
            Record::Folder(folder(1)),
            Record::Folder(folder(2)),
            Record::Image(image(3, 3, &[HERE, ELSEWHERE])),
            Record::Image(image(4, 4, &[ELSEWHERE])),
            Record::Entry(entry(2, 1, "folder", 2)),
            Record::Entry(entry(3, 2, "here", 3)),
            Record::Entry(entry(4, 2, "elsewhere", 4)),
        ];
        let library = listed(1, &records);
        let mut expected = records.to_vec();
        expected.retain(|it| !matches!(it, Record::Image(image) if image.id.as_bytes()[0] == 4));
        expected.pop();
        expected[2] = Record::Image(image(3, 3, &[HERE]));
        assert_eq!(library.records().collect::<Vec<_>>(), expected);
        assert_eq!(library.record_count(), expected.len());
        let mark = library.mark();
        assert_eq!(
            (mark.ino_max, mark.entry_max),
            (Ino(4), EntryId(4)),
            "of what is elsewhere, too"
        );
    }

    #[test]
    fn changes_are_taken_in_their_order_or_the_list_is_needed() {
        let whole = || listed(1, &[Record::Folder(folder(1))]);
        let made = |it: Image| Delta::Image(Edit::Made(it));
        let comes = |before: &[VolumeId]| {
            let (before, after) = (image(5, 5, before), image(5, 5, &[HERE]));
            Delta::Image(Edit::Changed { before, after })
        };
        let name = Delta::Entry(Edit::Made(entry(5, 1, "five", 5)));
        let short = vec![made(image(5, 5, &[HERE])), name.clone()];
        for (position, deltas, expected) in [
            (at(1, 1), vec![], Taken::Known),
            (at(1, 3), vec![], Taken::ListNeeded),
            (at(2, 2), vec![], Taken::ListNeeded),
            (at(1, 2), vec![], Taken::Deltas(vec![])),
            // Whichever way round they are told.
            (at(1, 2), vec![name.clone(), made(image(5, 5, &[HERE]))], Taken::Deltas(short)),
            (at(1, 2), vec![name.clone(), made(image(5, 5, &[ELSEWHERE]))], Taken::Deltas(vec![])),
            (at(1, 2), vec![comes(&[ELSEWHERE])], Taken::ListNeeded),
        ] {
            assert_eq!(whole().take(&change(position, deltas.clone())), expected, "{deltas:?}");
        }
    }

    #[test]
    fn an_image_that_leaves_the_volume_takes_its_names_along() {
        let name = entry(3, 1, "three", 3);
        let records = [Record::Folder(folder(1)), Record::Image(image(3, 3, &[HERE]))];
        let mut library = listed(1, &records);
        library.load(&Record::Entry(name.clone()));
        let (before, after) = (image(3, 3, &[HERE]), image(3, 3, &[ELSEWHERE]));
        let gone = Delta::Image(Edit::Changed { before: before.clone(), after });
        let expected = vec![Delta::Image(Edit::Removed(before)), Delta::Entry(Edit::Removed(name))];
        assert_eq!(library.take(&change(at(1, 2), vec![gone])), Taken::Deltas(expected));
        assert_eq!(library.record_count(), 1);
    }

    #[test]
    fn another_catalogue_has_it_all_if_numbers_are_the_same_or_earlier() {
        let library = |inos: [u64; 2], name: &str| {
            listed(
                1,
                &[
                    Record::Folder(folder(1)),
                    Record::Folder(folder(inos[0])),
                    Record::Image(image(3, inos[1], &[HERE])),
                    Record::Entry(entry(inos[0], 1, name, inos[0])),
                ],
            )
        };
        let lost = library([12, 13], "linux");
        for (later, expected) in [
            (library([12, 13], "linux"), true),
            (library([12, 13], "renamed"), true),
            // An earlier life's were had back.
            (library([2, 3], "linux"), true),
            // Told anew.
            (library([102, 103], "linux"), false),
            (library([12, 103], "linux"), false),
            (library([102, 13], "linux"), false),
            (listed(1, &[Record::Folder(folder(1))]), false),
        ] {
            assert_eq!(lost.is_within(&later), expected, "{later:?}");
        }
        // The same file under another id, for the index was lost as well.
        let mut other = image(9, 13, &[]);
        other.replicas = image(3, 13, &[HERE]).replicas;
        let records = [Record::Folder(folder(1)), Record::Folder(folder(12)), Record::Image(other)];
        assert!(lost.is_within(&listed(1, &records)));
    }
}
