//! The library as several copies of it tell it, put together again. Pure: it knows records, not
//! where they come from.
//!
//! A copy is true up to one revision of one life of a catalogue, and has all folders but only the
//! images of its volume. What is newer holds: it is laid down first, and older copies add what it
//! lacks. But a catalogue that lost the library is told of the files anew, and gives numbers and
//! names of its own to what had others: of two numbers for one image, folder or pool the earlier one
//! holds, and with it what was known under it. Numbers grow from life to life, so they tell.

mod cluster;
mod tree;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use isotope_proto::change::Record;
use isotope_proto::cluster::{Node, Pool, Volume};
use isotope_proto::id::{ImageId, Ino};
use isotope_proto::image::Image;
use isotope_proto::sidecar::LibraryCopy;
use isotope_proto::tree::{Entry, Folder};

use tree::Tree;

/// What the library is, and what came of it.
#[derive(Debug, Default)]
pub(crate) struct Rebuilt {
    /// Each before those that refer to it.
    pub(crate) records: Vec<Record>,
    /// Numbers to go on with: above all that were ever seen.
    pub(crate) next_ino: u64,
    pub(crate) next_entry: u64,
    pub(crate) folders: u64,
    pub(crate) images: u64,
    /// Folders and images that the present library has not, or under other numbers.
    pub(crate) restored: u64,
    /// Names that had to give way.
    pub(crate) renamed: u64,
}

/// One copy, by what is asked of it.
#[derive(Default)]
struct Layer {
    folders: BTreeMap<Ino, Folder>,
    images: Vec<Image>,
    names: HashMap<Ino, Vec<Entry>>,
    nodes: Vec<Node>,
    pools: Vec<Pool>,
    volumes: Vec<Volume>,
}

/// Whether a copy's life went on into what has been laid down: then what is not there was removed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kinship {
    Forebear,
    Stranger,
}

/// Puts `present` and the copies together. Images in `deleted` stay so.
pub(crate) fn merge(
    present: &LibraryCopy,
    copies: &[LibraryCopy],
    deleted: &BTreeSet<ImageId>,
) -> Rebuilt {
    let mut tree = Tree::default();
    tree.number_above(copies.iter().chain([present]));
    // The present library has all that its own life's copies have.
    let life = present.mark.incarnation;
    let mut older: Vec<&LibraryCopy> =
        copies.iter().filter(|it| it.mark.incarnation != life).collect();
    older.sort_by_key(|it| std::cmp::Reverse((it.mark.incarnation, it.mark.revision)));
    for copy in [present].into_iter().chain(older) {
        tree.add(&Layer::of(copy), deleted);
    }
    let mut rebuilt = tree.finish();
    let was: BTreeSet<Ino> = present.records.iter().filter_map(ino_of).collect();
    let is_new = |it: &&Record| ino_of(it).is_some_and(|ino| !was.contains(&ino));
    rebuilt.restored = rebuilt.records.iter().filter(is_new).count() as u64;
    rebuilt
}

fn ino_of(record: &Record) -> Option<Ino> {
    match record {
        Record::Folder(folder) => Some(folder.ino),
        Record::Image(image) => Some(image.ino),
        Record::Entry(_) | Record::Node(_) | Record::Pool(_) | Record::Volume(_) => None,
    }
}

impl Layer {
    fn of(copy: &LibraryCopy) -> Self {
        let mut layer = Self::default();
        for record in &copy.records {
            match record.clone() {
                Record::Folder(it) => drop(layer.folders.insert(it.ino, it)),
                Record::Image(it) => layer.images.push(it),
                Record::Entry(it) => layer.names.entry(it.ino).or_default().push(it),
                Record::Node(it) => layer.nodes.push(it),
                Record::Pool(it) => layer.pools.push(it),
                Record::Volume(it) => layer.volumes.push(it),
            }
        }
        layer
    }
}

#[cfg(test)]
mod tests {
    use isotope_proto::cluster::Sight;
    use isotope_proto::id::{ContentId, EntryId, Incarnation, NodeId, PoolId, Revision, VolumeId};
    use isotope_proto::image::{ImageFormat, Os, Replica, Stamp};
    use isotope_proto::name::{EntryName, VolumePath};
    use isotope_proto::sidecar::LibraryMark;
    use isotope_proto::time::Timestamp;

    use super::*;

    const FIRST: u8 = 1;
    const SECOND: u8 = 2;

    fn name(text: &str) -> EntryName {
        EntryName::parse(text).expect("a name")
    }

    /// A copy of a life, with its root, a node and a pool that has volume 1.
    fn copy(life: u8, revision: u64) -> LibraryCopy {
        let mark = LibraryMark {
            volume: VolumeId::from_bytes([1; 16]),
            incarnation: Incarnation::from_bytes([life; 16]),
            revision: Revision(revision),
            ino_max: Ino(0),
            entry_max: EntryId(0),
        };
        let node = NodeId::from_bytes([1; 16]);
        let host = "ada".to_owned();
        let address = format!("ada:{life}");
        let pool = PoolId::from_bytes([life; 16]);
        let records = vec![
            Record::Node(Node { id: node, name: host.clone(), address, host }),
            Record::Pool(Pool { id: pool, name: "isos".to_owned(), assigned: vec![node] }),
            Record::Volume(Volume {
                id: mark.volume,
                pool,
                sights: vec![Sight { node, path: "/isos".to_owned() }],
            }),
        ];
        let mut copy = LibraryCopy { mark, records };
        copy.records.push(Record::Folder(folder_record(Ino::ROOT)));
        copy
    }

    fn folder_record(ino: Ino) -> Folder {
        let time = Timestamp(i64::try_from(ino.0).expect("small"));
        let (created, modified, changed) = (time, time, time);
        Folder { ino, mode: 0o755, created, modified, changed, default_pool: None }
    }

    /// Entries have their inode's number.
    fn folder(mut copy: LibraryCopy, parent: u64, text: &str, ino: u64) -> LibraryCopy {
        copy.records.push(Record::Folder(folder_record(Ino(ino))));
        let (id, parent) = (EntryId(ino), Ino(parent));
        copy.records.push(Record::Entry(Entry { id, parent, name: name(text), ino: Ino(ino) }));
        copy
    }

    /// Image `n`, a file of the name `file` on volume 1.
    fn image(
        mut copy: LibraryCopy,
        (n, ino): (u8, u64),
        file: &str,
        (parent, text): (u64, &str),
    ) -> LibraryCopy {
        let stamp = Stamp { inode: file.len() as u64, size_bytes: 1, mtime_ns: 1 };
        let path = VolumePath::parse(file).expect("a path");
        copy.records.push(Record::Image(Image {
            id: ImageId::from_bytes([n; 16]),
            ino: Ino(ino),
            content: ContentId::from_bytes([n; 16]),
            hashes: None,
            flat_names: Vec::new(),
            facts: None,
            filename: file.to_owned(),
            size_bytes: 1,
            format: ImageFormat::Iso,
            os: Os::unknown(),
            mode: 0o644,
            created: Timestamp(1),
            modified: Timestamp(1),
            changed: Timestamp(1),
            replicas: vec![Replica {
                volume: VolumeId::from_bytes([1; 16]),
                path,
                stamp,
                checked: None,
            }],
        }));
        let (id, parent) = (EntryId(ino), Ino(parent));
        copy.records.push(Record::Entry(Entry { id, parent, name: name(text), ino: Ino(ino) }));
        copy
    }

    fn merged(present: &LibraryCopy, copies: &[LibraryCopy]) -> Rebuilt {
        merge(present, copies, &BTreeSet::new())
    }

    /// Paths with their inode numbers, folders with a slash.
    fn paths(rebuilt: &Rebuilt) -> Vec<(String, u64)> {
        let entries = |of: Ino| {
            rebuilt.records.iter().find_map(move |it| match it {
                Record::Entry(entry) if entry.ino == of => Some(entry),
                _ => None,
            })
        };
        let path = |ino: Ino| {
            let (mut text, mut at) = (String::new(), ino);
            while let Some(entry) = entries(at) {
                text = format!("/{}{text}", entry.name);
                at = entry.parent;
            }
            assert_eq!(at, Ino::ROOT, "{text} hangs loose");
            text
        };
        let shown = rebuilt.records.iter().filter_map(|it| match it {
            Record::Folder(it) => Some((format!("{}/", path(it.ino)), it.ino.0)),
            Record::Image(it) => Some((path(it.ino), it.ino.0)),
            _ => None,
        });
        let mut shown: Vec<_> = shown.collect();
        shown.sort();
        shown
    }

    fn check(present: &LibraryCopy, copies: &[LibraryCopy], expected: &[(&str, u64)]) -> Rebuilt {
        let rebuilt = merged(present, copies);
        let expected: Vec<_> =
            expected.iter().map(|(path, ino)| ((*path).to_owned(), *ino)).collect();
        assert_eq!(paths(&rebuilt), expected);
        let largest = expected.iter().map(|it| it.1).max().unwrap_or(0);
        assert!(rebuilt.next_ino > largest && rebuilt.next_entry > largest);
        rebuilt
    }

    fn lost() -> LibraryCopy {
        let copy = folder(folder(copy(FIRST, 9), 1, "linux", 11), 11, "old", 12);
        image(image(copy, (1, 13), "iso/a", (12, "mine.iso")), (2, 14), "iso/bb", (11, "a"))
    }

    #[test]
    fn what_was_told_anew_gets_its_numbers_and_places_back() {
        let fresh = folder(folder(copy(SECOND, 3), 1, "linux", 101), 1, "other", 102);
        let fresh =
            image(image(fresh, (1, 103), "iso/a", (101, "a")), (2, 104), "iso/bb", (101, "bb"));
        let lost_tree = [
            ("/", 1),
            ("/linux/", 11),
            ("/linux/a", 14),
            ("/linux/old/", 12),
            ("/linux/old/mine.iso", 13),
        ];
        let rebuilt = check(&fresh, &[lost()], &[&lost_tree[..], &[("/other/", 102)]].concat());
        assert_eq!((rebuilt.restored, rebuilt.renamed, rebuilt.images), (4, 0, 2));
        // The pool is the one that was first, and the volume is in it.
        let pools: Vec<_> = rebuilt
            .records
            .iter()
            .filter_map(|it| match it {
                Record::Pool(pool) => Some(pool.id),
                Record::Volume(volume) => Some(volume.pool),
                _ => None,
            })
            .collect();
        assert_eq!(pools, [PoolId::from_bytes([FIRST; 16]); 2]);
        // A file whose index was lost as well has another id, and is known by its place and stamp.
        let fresh = image(copy(SECOND, 3), (9, 103), "iso/a", (1, "a"));
        check(&fresh, &[lost()], &lost_tree);
    }

    #[test]
    fn a_second_rebuild_brings_back_what_was_away_and_nothing_else() {
        let again = folder(folder(copy(SECOND, 3), 1, "linux", 11), 1, "other", 102);
        // Since the first one, image 1 was renamed and the folder it was in removed; image 2 was
        // away, and told anew.
        let again = image(again, (1, 13), "iso/a", (11, "new.iso"));
        let again = image(again, (2, 105), "iso/bb", (102, "bb"));
        let tree =
            [("/", 1), ("/linux/", 11), ("/linux/a", 14), ("/linux/new.iso", 13), ("/other/", 102)];
        let rebuilt = check(&again, &[lost()], &tree);
        assert_eq!(rebuilt.restored, 1);
        // Where nothing is lacking, nothing is brought back.
        let whole = lost();
        let mut present = whole.clone();
        present.mark.incarnation = Incarnation::from_bytes([SECOND; 16]);
        assert_eq!(merged(&present, &[whole]).restored, 0);
        // A copy of the present life is no news.
        let mut old = again.clone();
        old.mark.revision = Revision(1);
        assert_eq!(merged(&again, &[old]).restored, 0);
    }

    #[test]
    fn of_two_with_one_name_the_newer_keeps_it_and_none_is_lost() {
        let fresh = copy(SECOND, 1);
        let newer = image(copy(FIRST, 9), (1, 13), "iso/a", (1, "a.iso"));
        let older = image(copy(FIRST, 5), (2, 14), "iso/bb", (1, "a.iso"));
        let older = image(older, (1, 13), "iso/a", (1, "earlier.iso"));
        let tree = [("/", 1), ("/a.iso", 13), ("/a.isos.iso", 14)];
        let rebuilt = check(&fresh, &[older.clone(), newer.clone()], &tree);
        assert_eq!(rebuilt.renamed, 1);
        check(&fresh, &[newer, older], &tree);
    }

    #[test]
    fn an_image_whose_folder_was_removed_meanwhile_brings_it_along() {
        let fresh = copy(SECOND, 1);
        let newer = folder(copy(FIRST, 9), 1, "stays", 12);
        let older = folder(folder(copy(FIRST, 5), 1, "gone", 11), 11, "below", 15);
        let older = folder(folder(older, 1, "stays", 12), 1, "empty", 16);
        let older = image(older, (1, 13), "iso/a", (15, "a.iso"));
        let tree = [
            ("/", 1),
            ("/gone/", 11),
            ("/gone/below/", 15),
            ("/gone/below/a.iso", 13),
            ("/stays/", 12),
        ];
        check(&fresh, &[newer, older], &tree);
    }

    #[test]
    fn what_was_deleted_or_replaced_stays_so() {
        let fresh = image(copy(SECOND, 1), (7, 101), "iso/bb", (1, "other"));
        let mut replaced = lost();
        for record in &mut replaced.records {
            if let Record::Image(image) = record {
                image.replicas[0].stamp.size_bytes = 2;
            }
        }
        let deleted = BTreeSet::from([ImageId::from_bytes([1; 16])]);
        let rebuilt = merge(&fresh, &[replaced], &deleted);
        let shown = paths(&rebuilt);
        let images: Vec<_> = shown.iter().filter(|it| !it.0.ends_with('/')).collect();
        assert_eq!(images, [&("/other".to_owned(), 101)]);
    }
}
