//! What follows from knowing the bytes of files: images with equal bytes share their content, and
//! where folder and file name agree as well they are one image with several files.

use isotope_proto::change::{Delta, Edit};
use isotope_proto::cluster::Pool;
use isotope_proto::id::{ImageId, VolumeId};
use isotope_proto::image::{Checked, Image, Replica};
use isotope_proto::name::EntryName;
use isotope_proto::refusal::Refusal;
use isotope_proto::report::HashedFile;
use isotope_proto::time::Timestamp;
use isotope_proto::tree::Entry;
use tracing::{info, warn};

use crate::library::remove_entry;
use crate::store::Edits;

/// An image that became another.
pub(crate) type Merged = (ImageId, ImageId);

/// Takes note of what a volume's keeper read; returns which images became others.
pub(crate) fn apply(
    edits: &mut Edits<'_>,
    volume: VolumeId,
    files: &[HashedFile],
    now: Timestamp,
) -> Result<Vec<Merged>, Refusal> {
    let mut merged = Vec::new();
    for file in files {
        if let Some(became) = edits.became(file.image)? {
            merged.push((file.image, became));
        }
        if let Some(image) = apply_one(edits, volume, file)? {
            merged.extend(merge_same(edits, image, now)?);
        }
    }
    Ok(merged)
}

/// The image, if its bytes are known to be sound now.
fn apply_one(
    edits: &mut Edits<'_>,
    volume: VolumeId,
    file: &HashedFile,
) -> Result<Option<Image>, Refusal> {
    let Some(before) = edits.image_or_alias(file.image)? else { return Ok(None) };
    let mut after = before.clone();
    let is_it = |it: &&mut Replica| it.volume == volume && it.stamp == file.stamp;
    let Some(replica) = after.replicas.iter_mut().find(is_it) else { return Ok(None) };
    let agrees = before.hashes.is_none_or(|hashes| hashes == file.hashes);
    let rotten = file.checked.rotten || !agrees;
    if rotten && !replica.checked.as_ref().is_some_and(|it| it.rotten) {
        warn!(image = %before.id, %volume, path = %replica.path, "a file's bytes are not the image's; it is quarantined");
    }
    replica.checked = Some(Checked { rotten, ..file.checked.clone() });
    if !rotten && after.hashes.is_none() {
        after.hashes = Some(file.hashes);
        if let Some(known) = edits.content_of(after.size_bytes, &file.hashes)? {
            after.content = known;
        }
    }
    if after != before {
        edits.write(Delta::Image(Edit::Changed { before, after: after.clone() }))?;
    }
    Ok((!rotten).then_some(after))
}

/// Makes one image of those that have this one's bytes, name and folder: the one that has the plain
/// name takes the files of those that had to take a second one.
fn merge_same(edits: &mut Edits<'_>, image: Image, now: Timestamp) -> Result<Vec<Merged>, Refusal> {
    let mut merged = Vec::new();
    let pools = edits.pools()?;
    let twins = edits.images_of(image.content)?;
    for twin in twins.into_iter().filter(|twin| twin.id != image.id) {
        // Either may have been there first.
        for (first, second) in [(image.id, twin.id), (twin.id, image.id)] {
            let (Some(first), Some(second)) = (edits.image(first)?, edits.image(second)?) else {
                continue;
            };
            if let Some(entry) = second_name(edits, &pools, &first, &second)? {
                merged.push((second.id, first.id));
                merge(edits, first, second, entry, now)?;
            }
        }
    }
    Ok(merged)
}

/// The name of the second image, if it is one that it was given only because the first has the
/// plain one.
fn second_name(
    edits: &Edits<'_>,
    pools: &[Pool],
    first: &Image,
    second: &Image,
) -> Result<Option<Entry>, Refusal> {
    if first.filename != second.filename || edits.has_tasks(second.id)? {
        return Ok(None);
    }
    let [entry] = &edits.entries_to(second.ino)?[..] else { return Ok(None) };
    let plain = |it: &Entry| it.parent == entry.parent && it.name.as_str() == first.filename;
    let beside = edits.entries_to(first.ino)?.iter().any(plain);
    let is_second = beside && is_second_name(&second.filename, &entry.name, pools);
    Ok(is_second.then(|| entry.clone()))
}

/// Whether a name is the one of a file, made another by a pool's name: `stem.POOL.ext`,
/// `stem.POOL.2.ext`.
fn is_second_name(filename: &str, name: &EntryName, pools: &[Pool]) -> bool {
    let Ok(filename) = EntryName::parse(filename) else { return false };
    let text = name.as_str();
    // The number, if there is one: between the last two points.
    let number = text.rsplit('.').nth(1).filter(|part| part.parse::<u32>().is_ok());
    pools.iter().any(|pool| {
        let plain = filename.with_addition(&pool.name);
        let numbered =
            number.map(|number| filename.with_addition(&format!("{}.{number}", pool.name)));
        plain == *name || numbered.as_ref() == Some(name)
    })
}

fn merge(
    edits: &mut Edits<'_>,
    first: Image,
    second: Image,
    entry: Entry,
    now: Timestamp,
) -> Result<(), Refusal> {
    info!(image = %first.id, same = %second.id, name = first.filename, "one image in several places");
    remove_entry(edits, entry, now)?;
    edits.add_alias(second.id, first.id)?;
    let (replicas, names) = (second.replicas.clone(), second.flat_names.clone());
    edits.write(Delta::Image(Edit::Removed(second)))?;
    let mut after = first.clone();
    after.replicas.extend(replicas);
    after.flat_names.extend(names);
    edits.write(Delta::Image(Edit::Changed { before: first, after }))
}

#[cfg(test)]
mod tests {
    use isotope_proto::digest::{Blake3, Sha256};
    use isotope_proto::id::{NodeId, PoolId};
    use isotope_proto::image::{Hashes, ImageFormat, Os, Stamp};
    use isotope_proto::name::{LibraryPath, VolumePath};
    use isotope_proto::report::{FileChange, FileEvent, FoundFile};
    use isotope_proto::tree::{FolderRef, Place, RenameMode};

    use super::*;
    use crate::library::{self, Node};
    use crate::store::tests::{VOLUMES, store};
    use crate::store::{Outcome, Store, Verb};

    const ASSIGNED: Vec<NodeId> = Vec::new();

    fn stamp(n: u8) -> Stamp {
        Stamp { inode: n.into(), size_bytes: 10, mtime_ns: 1 }
    }

    fn id(n: u8) -> ImageId {
        ImageId::from_bytes([n; 16])
    }

    async fn found(store: &Store, volume: VolumeId, n: u8, path: &str) {
        let file = FoundFile {
            image: id(n),
            path: VolumePath::parse(path).expect("a path"),
            stamp: stamp(n),
            format: ImageFormat::Iso,
            os: Os::unknown(),
            facts: None,
            folder: None,
        };
        let (event, previous, found) = (FileEvent::Created, None, Timestamp(1));
        let changes = vec![FileChange { event, file, previous, found }];
        let verb = Verb::ApplyFiles { volume, changes };
        store.commit(None, verb).await.expect("applied");
    }

    async fn hashed(store: &Store, volume: VolumeId, n: u8, bytes: u8) -> Vec<Merged> {
        let (sha256, blake3) = (Sha256::from_bytes([bytes; 32]), Blake3::from_bytes([bytes; 32]));
        let checked = Checked { read: Timestamp(5), rotten: false, published: None };
        let file = HashedFile {
            image: id(n),
            stamp: stamp(n),
            hashes: Hashes { sha256, blake3 },
            checked,
        };
        let verb = Verb::ApplyHashes { volume, files: vec![file] };
        match store.commit(None, verb).await.expect("applied").outcome {
            Outcome::Merged(merged) => merged,
            other => panic!("{other:?}"),
        }
    }

    async fn image(store: &Store, path: &str) -> Option<Image> {
        let path: LibraryPath = path.parse().expect("a path");
        let found = store.read(move |rows| match library::find(rows, &path) {
            Ok((_, Node::Image(image))) => Ok(Some(*image)),
            _ => Ok(None),
        });
        found.await.expect("read")
    }

    #[tokio::test]
    async fn the_same_iso_in_two_pools_is_one_image() {
        for order in [[1, 2], [2, 1]] {
            let (store, _dir) = store().await;
            found(&store, VOLUMES[0], 1, "iso/a.iso").await;
            found(&store, VOLUMES[1], 2, "iso/a.iso").await;
            assert!(image(&store, "/other/a.slow.iso").await.is_some());
            let mut merged = Vec::new();
            for n in order {
                merged.extend(hashed(&store, VOLUMES[usize::from(n) - 1], n, 7).await);
            }
            assert_eq!(merged, [(id(2), id(1))]);
            let one = image(&store, "/other/a.iso").await.expect("one");
            assert_eq!((one.id, one.replicas.len()), (id(1), 2));
            assert!(image(&store, "/other/a.slow.iso").await.is_none());
            // Told again by a host that has not heard of it, nothing more changes.
            assert_eq!(hashed(&store, VOLUMES[1], 2, 7).await, [(id(2), id(1))]);
            let alias = store.read(|rows| rows.image_or_alias(id(2))).await.expect("read");
            assert_eq!(alias.map(|it| it.id), Some(id(1)));
        }
    }

    #[tokio::test]
    async fn equal_bytes_under_other_names_share_their_content() {
        let (store, _dir) = store().await;
        found(&store, VOLUMES[0], 1, "iso/a.iso").await;
        found(&store, VOLUMES[1], 2, "iso/b.iso").await;
        found(&store, VOLUMES[1], 3, "iso/a.iso").await;
        let place = |name: &str| Place {
            folder: FolderRef::Path("/other".parse().expect("a path")),
            name: EntryName::parse(name).expect("a name"),
        };
        let (from, to) = (place("a.slow.iso"), place("mine.iso"));
        let rename = Verb::Rename { from, to, mode: RenameMode::NoReplace };
        store.commit(None, rename).await.expect("renamed");
        for (n, volume) in [(1, 0), (2, 1), (3, 1)] {
            assert!(hashed(&store, VOLUMES[volume], n, 7).await.is_empty());
        }
        let mut contents = Vec::new();
        for path in ["/other/a.iso", "/other/b.iso", "/other/mine.iso"] {
            contents.push(image(&store, path).await.expect("kept").content);
        }
        contents.dedup();
        assert_eq!(contents.len(), 1);
    }

    #[tokio::test]
    async fn other_bytes_under_one_name_keep_the_second_name() {
        let (store, _dir) = store().await;
        found(&store, VOLUMES[0], 1, "iso/a.iso").await;
        found(&store, VOLUMES[1], 2, "iso/a.iso").await;
        assert!(hashed(&store, VOLUMES[0], 1, 7).await.is_empty());
        assert!(hashed(&store, VOLUMES[1], 2, 8).await.is_empty());
        assert!(image(&store, "/other/a.slow.iso").await.is_some());
    }

    #[tokio::test]
    async fn a_file_that_reads_otherwise_than_before_is_quarantined() {
        let (store, _dir) = store().await;
        found(&store, VOLUMES[0], 1, "iso/a.iso").await;
        hashed(&store, VOLUMES[0], 1, 7).await;
        hashed(&store, VOLUMES[0], 1, 8).await;
        let rotten = image(&store, "/other/a.iso").await.expect("there");
        assert!(rotten.replicas[0].checked.as_ref().is_some_and(|it| it.rotten));
        assert_eq!(rotten.hashes.map(|it| it.sha256), Some(Sha256::from_bytes([7; 32])));
    }

    #[test]
    fn second_names_are_those_of_pools() {
        let pool = |name: &str| Pool {
            id: PoolId::from_bytes([0; 16]),
            name: name.to_owned(),
            assigned: ASSIGNED,
        };
        let pools = [pool("slow"), pool("v1.2")];
        for (name, is_one) in [
            ("a.slow.iso", true),
            ("a.slow.3.iso", true),
            ("a.v1.2.iso", true),
            ("a.v1.2.9.iso", true),
            ("a.iso", false),
            ("a.backup.iso", false),
            ("b.slow.iso", false),
        ] {
            let name = EntryName::parse(name).expect("a name");
            assert_eq!(is_second_name("a.iso", &name, &pools), is_one, "{name}");
        }
    }
}
