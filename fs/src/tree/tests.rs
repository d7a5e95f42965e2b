//! The tree by records and changes as the feed brings them.

use isotope_proto::cluster::Access;
use isotope_proto::digest::{Blake3, Sha256};
use isotope_proto::id::ContentId;
use isotope_proto::id::EntryId;
use isotope_proto::image::{Checked, Hashes, ImageFormat, Os, Replica, Stamp};
use isotope_proto::name::VolumePath;
use isotope_proto::time::Timestamp;

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
        let node = Tree::new(position(0)).image_node(of);
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

#[test]
fn what_a_change_made_is_known_although_it_was_removed_since() {
    let mut tree = tree();
    let made = change(6, vec![Delta::Folder(Edit::Made(folder(30)))]);
    assert!(matches!(tree.apply(&made), Applied::Now { .. }));
    assert!(matches!(
        tree.apply(&change(7, vec![Delta::Folder(Edit::Removed(folder(30)))])),
        Applied::Now { .. }
    ));
    assert!(tree.get(Ino(30)).is_none());
    assert!(matches!(tree.as_changed(&made, Ino(30)), Some(Inode::Folder(_))));
    assert_eq!(tree.as_changed(&made, Ino(31)), None);
}

#[test]
fn an_image_is_as_small_as_a_million_of_them_must_be() {
    // 400 MiB hold a million with their names and folders; `benches/tree.rs` measures it.
    assert!(size_of::<Inode>() <= 168, "{} bytes", size_of::<Inode>());
}

#[test]
fn an_image_was_verified_when_a_sound_file_of_it_was_last_read() {
    let replica = |seconds: i64, rotten| Replica {
        volume: VolumeId::from_bytes([1; 16]),
        path: VolumePath::parse("iso/x.iso").expect("a path"),
        stamp: Stamp { inode: 1, size_bytes: 1, mtime_ns: 0 },
        checked: Some(Checked {
            read: Timestamp::from_parts(seconds, 999_999_999),
            rotten,
            published: None,
        }),
    };
    let unread = Replica { checked: None, ..replica(0, false) };
    let hashes =
        Some(Hashes { sha256: Sha256::from_bytes([1; 32]), blake3: Blake3::from_bytes([2; 32]) });
    let later = i64::from(u32::MAX) + 5;
    for (hashes, replicas, expected) in [
        (hashes, vec![replica(7, false), unread.clone(), replica(9, false)], Some(9)),
        (hashes, vec![replica(7, false), replica(9, true)], Some(7)),
        (hashes, vec![replica(9, true)], None),
        (hashes, vec![unread], None),
        (None, vec![replica(9, false)], None),
        (hashes, vec![replica(-9, false)], None),
        (hashes, vec![replica(later, false)], Some(u32::MAX)),
    ] {
        let mut tree = tree();
        let after = Image { hashes, replicas, ..image(10) };
        let changed = Edit::Changed { before: image(10), after };
        tree.apply(&change(6, vec![Delta::Image(changed)]));
        let verified = tree.image(Ino(10)).and_then(|it| it.verified);
        assert_eq!(verified.map(u32::from), expected);
    }
}
