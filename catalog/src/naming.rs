//! Flat names: under one of these an image is found in the flat views for as long as it is in the
//! library, through every move and rename, so that a machine's configuration stays true. It is given
//! when the image first has a name that ends as images' names do; temporary names do not. What takes
//! an image's place takes its flat names over.

use std::collections::{HashMap, HashSet};

use isotope_proto::change::{Delta, Edit, Record};
use isotope_proto::id::{ImageId, Ino};
use isotope_proto::image::Image;
use isotope_proto::name::EntryName;
use isotope_proto::refusal::Refusal;
use isotope_proto::tree::Entry;

use crate::store::Edits;

/// How names of images end; programs that look for images go by that.
const EXTENSIONS: [&str; 15] = [
    "iso", "img", "ova", "qcow2", "raw", "vmdk", "vhd", "vhdx", "vdi", "gz", "bz2", "xz", "zst",
    "7z", "zip",
];
/// Names that differ by a number only; from then on part of the image's id tells them apart, so that
/// a thousand images of one name cost no million looks.
const NUMBERED_MAX: u32 = 9;
/// The random end of an id, in hexadecimal digits.
const ID_DIGITS: usize = 8;

/// The flat name that an image would like to have by one of its names. Characters that volume ids
/// and configurations of virtual machines cannot hold become `_`; those that stay are what Proxmox
/// VE takes for the names of uploads.
fn wished(name: &EntryName) -> Option<String> {
    let (stem, extension) = name.as_str().rsplit_once('.')?;
    let known = EXTENSIONS.iter().any(|it| it.eq_ignore_ascii_case(extension));
    if !known || stem.is_empty() || stem.starts_with('.') {
        return None;
    }
    let safe = |c: char| c.is_ascii_alphanumeric() || "._+=-".contains(c);
    let mut flat: String = name.as_str().chars().map(|c| if safe(c) { c } else { '_' }).collect();
    if flat.starts_with('-') {
        flat.replace_range(..1, "_");
    }
    Some(flat)
}

/// The first of the names that come into question that is not taken.
fn free(
    wished: &str,
    image: ImageId,
    mut is_taken: impl FnMut(&EntryName) -> Result<bool, Refusal>,
) -> Result<EntryName, Refusal> {
    let name = EntryName::parse(wished)?;
    if !is_taken(&name)? {
        return Ok(name);
    }
    let (stem, extension) = wished.rsplit_once('.').unwrap_or((wished, ""));
    let with = |end: &str| {
        let room = EntryName::LEN_MAX - extension.len() - end.len() - 2;
        let stem = &stem[..stem.floor_char_boundary(room)];
        EntryName::parse(&format!("{stem}-{end}.{extension}"))
    };
    for n in 2..=NUMBERED_MAX {
        let name = with(&n.to_string())?;
        if !is_taken(&name)? {
            return Ok(name);
        }
    }
    let id: String = image.to_string().chars().filter(|it| *it != '-').collect();
    let name = with(&id[id.len() - ID_DIGITS..])?;
    // The whole id is nobody else's.
    if is_taken(&name)? { Ok(with(&id)?) } else { Ok(name) }
}

/// Gives flat names to the images that a change gave names to.
pub(crate) fn settle(edits: &mut Edits<'_>) -> Result<(), Refusal> {
    for (ino, wish, inherited) in due(edits.deltas()) {
        let Some(image) = edits.image_now(ino)? else { continue };
        let mut names = image.flat_names.clone();
        names.extend(inherited);
        if let (true, Some(wish)) = (names.is_empty(), wish) {
            names.push(free(&wish, image.id, |name| edits.is_flat_name(name))?);
        }
        if names != image.flat_names {
            edits.name_flat(image, names)?;
        }
    }
    Ok(())
}

/// The inodes that may be given names by these deltas: what each would like to be called, and the
/// names of the images whose places it took.
fn due(deltas: &[Delta]) -> Vec<(Ino, Option<String>, Vec<EntryName>)> {
    let removed: HashMap<Ino, &Image> = deltas
        .iter()
        .filter_map(|delta| match delta {
            Delta::Image(Edit::Removed(image)) => Some((image.ino, image)),
            _ => None,
        })
        .collect();
    let entries = || {
        deltas.iter().filter_map(|delta| match delta {
            Delta::Entry(edit) => Some(edit),
            _ => None,
        })
    };
    let place = |entry: &Entry| (entry.parent, entry.name.clone());
    let left = entries().filter_map(|edit| edit.before());
    let mut heirs: HashMap<_, &Image> = left
        .filter_map(|entry| Some((place(entry), *removed.get(&entry.ino)?)))
        .filter(|(_, image)| !image.flat_names.is_empty())
        .collect();
    let mut given = HashSet::new();
    let mut due: Vec<(Ino, Option<String>, Vec<EntryName>)> = Vec::new();
    for entry in entries().filter_map(|edit| edit.after()) {
        // Each image's names once, although it had several places.
        let inherited = heirs.remove(&place(entry)).filter(|image| given.insert(image.ino));
        let inherited = inherited.map(|image| image.flat_names.clone()).unwrap_or_default();
        let wish = wished(&entry.name);
        if wish.is_some() || !inherited.is_empty() {
            due.push((entry.ino, wish, inherited));
        }
    }
    due
}

/// Makes the flat names of records unique, the images with the smaller inode numbers keeping theirs,
/// and gives names to those that have none.
pub(crate) fn name_records(records: &mut [Record]) -> Result<(), Refusal> {
    let mut wishes: HashMap<Ino, String> = HashMap::new();
    for record in &*records {
        if let Record::Entry(entry) = record
            && let Some(wish) = wished(&entry.name)
        {
            wishes.entry(entry.ino).or_insert(wish);
        }
    }
    let mut images: Vec<&mut Image> = records
        .iter_mut()
        .filter_map(|record| match record {
            Record::Image(image) => Some(image),
            _ => None,
        })
        .collect();
    images.sort_by_key(|image| image.ino);
    let mut taken: HashSet<EntryName> = HashSet::new();
    for image in &mut images {
        image.flat_names.retain(|name| taken.insert(name.clone()));
    }
    for image in images.iter_mut().filter(|image| image.flat_names.is_empty()) {
        let Some(wish) = wishes.get(&image.ino) else { continue };
        let name = free(wish, image.id, |name| Ok(taken.contains(name)))?;
        taken.insert(name.clone());
        image.flat_names.push(name);
    }
    Ok(())
}

/// Gives names to some images that have none, for a database of an earlier version; returns where to
/// go on, if there may be more.
pub(crate) fn name_more(
    edits: &mut Edits<'_>,
    after: Option<ImageId>,
) -> Result<Option<ImageId>, Refusal> {
    let nameless = edits.images_without_flat_name(after)?;
    for id in &nameless {
        let Some(image) = edits.image(*id)? else { continue };
        let entries = edits.entries_to(image.ino)?;
        let Some(wish) = entries.iter().find_map(|entry| wished(&entry.name)) else { continue };
        let name = free(&wish, image.id, |name| edits.is_flat_name(name))?;
        edits.name_flat(image, vec![name])?;
    }
    Ok(nameless.last().copied())
}

#[cfg(test)]
mod tests {
    use isotope_proto::image::{ImageFormat, Os, Stamp};
    use isotope_proto::name::{LibraryPath, VolumePath};
    use isotope_proto::report::{FileChange, FileEvent, FoundFile};
    use isotope_proto::time::Timestamp;
    use isotope_proto::tree::{FolderRef, Place, RenameMode};

    use super::*;
    use crate::store::tests::{VOLUMES, store};
    use crate::store::{Outcome, Store, Verb};

    fn place(path: &str) -> Place {
        let path: LibraryPath = path.parse().expect("a path");
        let (folder, name) = path.split().expect("not the root");
        Place { folder: FolderRef::Path(folder), name }
    }

    async fn found(store: &Store, n: u8, path: &str) {
        let file = FoundFile {
            image: ImageId::from_bytes([n; 16]),
            path: VolumePath::parse(path).expect("a path"),
            stamp: Stamp { inode: n.into(), size_bytes: 10, mtime_ns: 1 },
            format: ImageFormat::Iso,
            os: Os::unknown(),
            facts: None,
            folder: Some(if n == 2 { "/x" } else { "/in" }.parse().expect("a path")),
        };
        let (event, previous, found) = (FileEvent::Created, None, Timestamp(1));
        let changes = vec![FileChange { event, file, previous, found }];
        let verb = Verb::ApplyFiles { volume: VOLUMES[0], changes };
        store.commit(None, verb).await.expect("applied");
    }

    async fn names(store: &Store, n: u8) -> Vec<String> {
        let id = ImageId::from_bytes([n; 16]);
        let image = store.read(move |rows| rows.image(id)).await.expect("read");
        let names = image.map(|it| it.flat_names).unwrap_or_default();
        names.iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn a_flat_name_stays_and_goes_over_to_what_takes_the_images_place() {
        let (store, _dir) = store().await;
        let commit = async |verb| store.commit(None, verb).await.expect("made");
        let rename = async |from: &str, to: &str| {
            let (from, to, mode) = (place(from), place(to), RenameMode::Replace);
            commit(Verb::Rename { from, to, mode }).await
        };
        found(&store, 1, "iso/a.iso").await;
        found(&store, 2, "iso/x/a.iso").await;
        assert_eq!(
            (names(&store, 1).await, names(&store, 2).await),
            (vec!["a.iso".to_owned()], vec!["a-2.iso".to_owned()])
        );
        let change = rename("/in/a.iso", "/other/b.iso").await.change;
        assert!(!change.deltas.iter().any(|it| matches!(it, Delta::Image(_))), "nothing to name");
        assert_eq!(names(&store, 1).await, ["a.iso"]);
        // Under a temporary name there is none; under the other's it gets the other's.
        found(&store, 3, "iso/.b.iso.Xq3kTz").await;
        assert!(names(&store, 3).await.is_empty());
        rename("/in/.b.iso.Xq3kTz", "/other/b.iso").await;
        assert_eq!(names(&store, 3).await, ["a.iso"]);
        // Its names were taken over meanwhile, and it is given another.
        commit(Verb::Restore { image: ImageId::from_bytes([1; 16]) }).await;
        assert_eq!(names(&store, 1).await, ["b.restored.iso"]);
        let listed = store.read(|rows| {
            let mut all = Vec::new();
            rows.each_record(|piece| {
                all.extend(piece);
                true
            })?;
            Ok(all)
        });
        let mut listed = listed.await.expect("read");
        let image = |record: &Record| match record {
            Record::Image(it) => Some((it.id.as_bytes()[0], it.flat_names[0].to_string())),
            _ => None,
        };
        let told: Vec<_> = listed.iter().filter_map(image).collect();
        let name = |n, name: &str| (n, name.to_owned());
        assert_eq!(told, [name(1, "b.restored.iso"), name(2, "a-2.iso"), name(3, "a.iso")]);
        // Copies of different times may give one name twice, or none.
        for record in &mut listed {
            if let Record::Image(it) = record {
                it.flat_names = if it.id.as_bytes()[0] == 2 {
                    Vec::new()
                } else {
                    vec![EntryName::parse("same.iso").expect("a name")]
                };
            }
        }
        name_records(&mut listed).expect("named");
        let told: Vec<_> = listed.iter().filter_map(image).collect();
        assert_eq!(told, [name(1, "same.iso"), name(2, "a.iso"), name(3, "b.iso")]);
    }

    #[tokio::test]
    async fn a_database_of_an_earlier_version_has_its_images_named() {
        let (store, dir) = store().await;
        found(&store, 1, "iso/a.iso").await;
        found(&store, 2, "iso/.hidden.iso").await;
        let other = rusqlite::Connection::open(dir.path().join("catalog.db")).expect("opened");
        other.execute("DELETE FROM flat_name", []).expect("deleted");
        let mut after = None;
        for last in [Some(2), None] {
            let verb = Verb::NameImages { after };
            let Outcome::NamedTo(named_to) = store.commit(None, verb).await.expect("made").outcome
            else {
                panic!("how far it came");
            };
            assert_eq!(named_to.map(|it| it.as_bytes()[0]), last);
            after = named_to;
        }
        assert_eq!((names(&store, 1).await.len(), names(&store, 2).await.len()), (1, 0));
    }

    #[test]
    fn a_flat_name_has_no_characters_that_configurations_cannot_hold() {
        let check = |name: &str, expected: Option<&str>| {
            let name = EntryName::parse(name).expect("a name");
            assert_eq!(wished(&name).as_deref(), expected, "{name}");
        };
        check("debian-12.5.0-amd64.iso", Some("debian-12.5.0-amd64.iso"));
        check("Windows Server, 2022.ISO", Some("Windows_Server__2022.ISO"));
        check("größe.img", Some("gr__e.img"));
        check("-rf.iso", Some("_rf.iso"));
        check("disk.img.xz", Some("disk.img.xz"));
        check(".debian.iso.Xq3kTz", None);
        check(".hidden.iso", None);
        check("debian.iso.tmp_dwnl.812", None);
        check("notes", None);
        check(".iso", None);
    }

    #[test]
    fn taken_names_are_numbered_and_then_told_apart_by_id() {
        let mut taken = HashSet::new();
        let mut next = |image: u8, wish: &str| {
            let id = ImageId::from_bytes([image; 16]);
            let name = free(wish, id, |name| Ok(taken.contains(name))).expect("a name");
            assert!(taken.insert(name.clone()), "{name} is free");
            name.to_string()
        };
        let first: Vec<String> = (0..3).map(|n| next(n, "a.iso")).collect();
        assert_eq!(first, ["a.iso", "a-2.iso", "a-3.iso"]);
        let all: Vec<String> = (3..11).map(|n| next(n, "a.iso")).collect();
        assert_eq!(all[5..], ["a-9.iso", "a-09090909.iso", "a-0a0a0a0a.iso"]);
        assert_eq!(next(9, "a.iso"), format!("a-{}.iso", "09".repeat(16)));
        let long = format!("{}.iso", "x".repeat(251));
        assert_eq!((next(1, &long).len(), next(2, &long).len()), (255, 255));
    }
}
