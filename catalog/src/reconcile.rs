//! Reports from agents become images, entries and replicas. Each event is applied idempotently: an
//! agent that was not answered reports again, and nothing more changes.

use isotope_proto::change::{Delta, Edit};
use isotope_proto::id::{ContentId, ImageId, Ino, VolumeId};
use isotope_proto::image::{Image, OsFamily, Replica};
use isotope_proto::name::{EntryName, FOLDER_DEPTH_MAX, FolderPath, VolumePath};
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::report::{Description, FileChange, FileEvent, FoundFile};
use isotope_proto::time::Timestamp;
use isotope_proto::tree::{Entry, FOLDER_MODE, IMAGE_MODE};

use crate::library::{add_entry, is_views, make_folder_in, remove_entry, touch};
use crate::store::Edits;
use crate::uploads::free_name;

/// Applies a report and returns the image of each file, in order: the agent's proposal, or the id
/// under which the catalogue already keeps the file.
pub(crate) fn apply(
    edits: &mut Edits<'_>,
    volume: VolumeId,
    changes: &[FileChange],
    now: Timestamp,
) -> Result<Vec<ImageId>, Refusal> {
    let Some(known) = edits.volume(volume)? else {
        return Err(Refusal::new(Reason::NotFound, format!("volume {volume} is not known here")));
    };
    let pools = edits.pools()?;
    let pool = pools.iter().find(|pool| pool.id == known.pool).map_or("", |pool| &pool.name);
    let mut report = Report { edits, volume, pool, now, taken: Vec::new() };
    let images = changes.iter().map(|change| report.apply_one(change)).collect::<Result<_, _>>()?;
    report.take_freed_names()?;
    Ok(images)
}

/// What files are taken for now. Their entries stay where they are.
pub(crate) fn describe(
    edits: &mut Edits<'_>,
    volume: VolumeId,
    descriptions: &[Description],
) -> Result<(), Refusal> {
    for it in descriptions {
        let Some(before) = edits.image_or_alias(it.image)? else { continue };
        if before.replicas.iter().all(|replica| replica.volume != volume) {
            continue;
        }
        let (format, os) = (it.format.unwrap_or(before.format), it.os.clone());
        let after = Image { format, os, facts: Some(it.facts.clone()), ..before.clone() };
        if after != before {
            edits.write(Delta::Image(Edit::Changed { before, after }))?;
        }
    }
    Ok(())
}

struct Report<'r, 'a> {
    edits: &'r mut Edits<'a>,
    volume: VolumeId,
    pool: &'r str,
    now: Timestamp,
    /// Names that could not be followed, for others had them, and by whom: a file that is itself
    /// renamed in the same report may free one, as where two exchange theirs.
    taken: Vec<(Ino, EntryName)>,
}

impl Report<'_, '_> {
    fn apply_one(&mut self, change: &FileChange) -> Result<ImageId, Refusal> {
        let file = &change.file;
        match change.event {
            FileEvent::Created | FileEvent::Updated => self.seen(file),
            FileEvent::Moved => self.moved(file),
            FileEvent::Deleted => {
                if let Some(image) = self.edits.image_at(self.volume, &file.path)?
                    && image.id == file.image
                {
                    self.lose(image, &file.path)?;
                }
                Ok(file.image)
            }
        }
    }

    /// A file is there: as known, new, or with other bytes than before.
    fn seen(&mut self, file: &FoundFile) -> Result<ImageId, Refusal> {
        // On its way to its place, or out of it: a host that was away brings nothing back.
        if let Some(image) = self.edits.task_of_stamp(self.volume, file.stamp)? {
            return Ok(image);
        }
        // A stamp is one file's: under another path it was renamed, while its agent knew nothing.
        if let Some(image) = self.edits.image_of_stamp(self.volume, file.stamp)? {
            let id = image.id;
            self.rename(image, file)?;
            return Ok(id);
        }
        match self.edits.image_at(self.volume, &file.path)? {
            None => self.adopt(file),
            Some(image) => self.supersede(image, file),
        }
    }

    fn moved(&mut self, file: &FoundFile) -> Result<ImageId, Refusal> {
        let here = |r: &Replica| r.volume == self.volume && r.stamp == file.stamp;
        match self.edits.image(file.image)? {
            Some(image) if image.replicas.iter().any(here) => {
                self.rename(image, file)?;
                Ok(file.image)
            }
            _ => self.seen(file),
        }
    }

    /// The file of that stamp lies where it is now.
    fn rename(&mut self, before: Image, file: &FoundFile) -> Result<(), Refusal> {
        let mut after = before.clone();
        let here = |r: &&mut Replica| r.volume == self.volume && r.stamp == file.stamp;
        let Some(replica) = after.replicas.iter_mut().find(here) else { return Ok(()) };
        if replica.path == file.path {
            return Ok(());
        }
        replica.path = file.path.clone();
        let old_name = std::mem::replace(&mut after.filename, file.path.file_name().to_owned());
        self.follow_name(after.ino, &old_name, file)?;
        self.edits.write(Delta::Image(Edit::Changed { before, after }))
    }

    /// Whoever renames a file in its pool means the name; but a name given in the library stays.
    fn follow_name(&mut self, ino: Ino, old: &str, file: &FoundFile) -> Result<(), Refusal> {
        let entries = self.edits.entries_to(ino)?;
        let [entry] = &entries[..] else { return Ok(()) };
        let name = EntryName::parse(file.path.file_name())?;
        if entry.name.as_str() != old || entry.name == name {
            return Ok(());
        }
        let free = free_name(self.edits, entry.parent, &name, self.pool)?;
        if free != name {
            self.taken.push((ino, name));
        }
        let after = Entry { name: free, ..entry.clone() };
        let before = entry.clone();
        self.edits.write(Delta::Entry(Edit::Changed { before, after }))?;
        touch(self.edits, entry.parent, self.now)
    }

    /// Follows names that were taken and are not any more.
    fn take_freed_names(&mut self) -> Result<(), Refusal> {
        for (ino, name) in std::mem::take(&mut self.taken) {
            for before in self.edits.entries_to(ino)? {
                if free_name(self.edits, before.parent, &name, self.pool)? == name {
                    let after = Entry { name: name.clone(), ..before.clone() };
                    self.edits.write(Delta::Entry(Edit::Changed { before, after }))?;
                }
            }
        }
        Ok(())
    }

    /// A new image under a name of its own.
    fn adopt(&mut self, file: &FoundFile) -> Result<ImageId, Refusal> {
        let name = EntryName::parse(file.path.file_name())?;
        let folder = self.folder_for(file)?;
        let name = free_name(self.edits, folder, &name, self.pool)?;
        self.leave_trash(file)?;
        let image = self.make_image(file, IMAGE_MODE)?;
        add_entry(self.edits, folder, name, image.ino, self.now)?;
        Ok(image.id)
    }

    /// A catalogue that was restored from a backup may hold for trash what was had back since: what
    /// lies in its place again must not be purged.
    fn leave_trash(&mut self, file: &FoundFile) -> Result<(), Refusal> {
        let Some(trashed) = self.edits.trashed(file.image)? else { return Ok(()) };
        let is_it = |r: &Replica| r.volume == self.volume && r.stamp == file.stamp;
        if trashed.image.replicas.iter().any(is_it) {
            self.edits.take_from_trash(file.image)?;
        }
        Ok(())
    }

    fn make_image(&mut self, file: &FoundFile, mode: u32) -> Result<Image, Refusal> {
        let taken = self.edits.image(file.image)?.is_some();
        let image = Image {
            // An index that was copied with its files proposes ids that others have.
            id: if taken { ImageId::mint(self.now) } else { file.image },
            ino: self.edits.take_ino()?,
            content: ContentId::mint(self.now),
            hashes: None,
            filename: file.path.file_name().to_owned(),
            size_bytes: file.stamp.size_bytes,
            format: file.format,
            os: file.os.clone(),
            flat_names: Vec::new(),
            facts: file.facts.clone(),
            mode,
            created: self.now,
            modified: Timestamp(file.stamp.mtime_ns),
            changed: self.now,
            replicas: vec![Replica {
                volume: self.volume,
                path: file.path.clone(),
                stamp: file.stamp,
                checked: None,
            }],
        };
        self.edits.write(Delta::Image(Edit::Made(image.clone())))?;
        Ok(image)
    }

    /// Other bytes under a known path are a new image. If the old one has no other replica, the
    /// new one takes its names; else the old one keeps them and the new one gets a second name.
    fn supersede(&mut self, old: Image, file: &FoundFile) -> Result<ImageId, Refusal> {
        let names = self.edits.entries_to(old.ino)?;
        let mode = old.mode;
        if old.replicas.len() > 1 {
            self.lose(old, &file.path)?;
            return self.adopt(file);
        }
        let new = self.make_image(file, mode)?;
        for before in names {
            let parent = before.parent;
            let after = Entry { ino: new.ino, ..before.clone() };
            self.edits.write(Delta::Entry(Edit::Changed { before, after }))?;
            touch(self.edits, parent, self.now)?;
        }
        self.edits.write(Delta::Image(Edit::Removed(old)))?;
        Ok(new.id)
    }

    /// A file is gone; with the last replica goes the image, and its names.
    fn lose(&mut self, before: Image, path: &VolumePath) -> Result<(), Refusal> {
        let mut after = before.clone();
        after.replicas.retain(|r| r.volume != self.volume || r.path != *path);
        if !after.replicas.is_empty() {
            return self.edits.write(Delta::Image(Edit::Changed { before, after }));
        }
        for entry in self.edits.entries_to(before.ino)? {
            remove_entry(self.edits, entry, self.now)?;
        }
        self.edits.write(Delta::Image(Edit::Removed(before)))
    }

    /// The folder that the file's place in the pool asks for, else that of its family of OS; made
    /// where it is missing. Where an image has a folder's name, the folder above has to do.
    fn folder_for(&mut self, file: &FoundFile) -> Result<Ino, Refusal> {
        let family = || match file.os.family {
            OsFamily::Windows => "/windows",
            OsFamily::Linux => "/linux",
            OsFamily::Other => "/other",
        };
        let path = match &file.folder {
            Some(path) => path.clone(),
            None => family().parse::<FolderPath>()?,
        };
        let mut at = Ino::ROOT;
        for name in path.names().iter().take(FOLDER_DEPTH_MAX) {
            at = match self.edits.entry(at, name)? {
                None if is_views(at, name) => break,
                None => make_folder_in(self.edits, at, name, FOLDER_MODE, self.now)?,
                Some(entry) if self.edits.folder(entry.ino)?.is_some() => entry.ino,
                Some(_) => break,
            };
        }
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use isotope_proto::id::{NodeId, UploadId};
    use isotope_proto::image::{ImageFormat, Os, Stamp};
    use isotope_proto::name::LibraryPath;
    use isotope_proto::tree::{Attributes, FolderRef, Place, RenameMode};
    use isotope_proto::upload::{Existing, Sealed, TaskDone, UploadRequest};

    use super::*;
    use crate::library::{self, Node};
    use crate::store::tests::{VOLUMES, store};
    use crate::store::{Outcome, Store, Verb};

    fn file(n: u8, path: &str, inode: u64) -> FoundFile {
        FoundFile {
            image: ImageId::from_bytes([n; 16]),
            path: VolumePath::parse(path).expect("a path"),
            stamp: Stamp { inode, size_bytes: 10, mtime_ns: 1 },
            format: ImageFormat::Iso,
            os: Os { family: OsFamily::Linux, ..Os::unknown() },
            facts: None,
            folder: None,
        }
    }

    async fn report(
        store: &Store,
        volume: VolumeId,
        events: &[(FileEvent, FoundFile)],
    ) -> Vec<ImageId> {
        let change = |(event, file): &(FileEvent, FoundFile)| FileChange {
            event: *event,
            file: file.clone(),
            previous: None,
            found: Timestamp(1),
        };
        let changes = events.iter().map(change).collect();
        let verb = Verb::ApplyFiles { volume, changes };
        match store.commit(None, verb).await.expect("applied").outcome {
            Outcome::Images(images) => images,
            other => panic!("{other:?}"),
        }
    }

    /// The image at a path: its id and inode number.
    async fn image(store: &Store, path: &str) -> Option<(ImageId, Ino)> {
        let path: LibraryPath = path.parse().expect("a path");
        store
            .read(move |rows| match library::find(rows, &path) {
                Ok((_, Node::Image(image))) => Ok(Some((image.id, image.ino))),
                _ => Ok(None),
            })
            .await
            .expect("read")
    }

    async fn rename(store: &Store, from: &str, to: &str) {
        let place = |path: &str| {
            let (folder, name) =
                path.parse::<LibraryPath>().expect("a path").split().expect("not the root");
            Place { folder: FolderRef::Path(folder), name }
        };
        let verb = Verb::Rename { from: place(from), to: place(to), mode: RenameMode::NoReplace };
        store.commit(None, verb).await.expect("renamed");
    }

    #[tokio::test]
    async fn one_name_twice_gets_the_pools_name_in_the_second() {
        let (store, _dir) = store().await;
        report(&store, VOLUMES[0], &[(FileEvent::Created, file(1, "iso/a.iso", 1))]).await;
        let second = [
            (FileEvent::Created, file(2, "iso/a.iso", 1)),
            (FileEvent::Created, file(3, "iso/x/a.iso", 2)),
        ];
        report(&store, VOLUMES[1], &second).await;
        for (path, n) in [("/linux/a.iso", 1), ("/linux/a.slow.iso", 2), ("/linux/a.slow.2.iso", 3)]
        {
            let found = image(&store, path).await.map(|(id, _)| id);
            assert_eq!(found, Some(ImageId::from_bytes([n; 16])), "{path}");
        }
    }

    #[tokio::test]
    async fn telling_it_again_changes_nothing() {
        let (store, _dir) = store().await;
        let told = [(FileEvent::Created, file(1, "iso/a.iso", 1))];
        let first = report(&store, VOLUMES[0], &told).await;
        // After a lost index the agent proposes another id for the same file.
        let again = [(FileEvent::Created, file(9, "iso/a.iso", 1))];
        assert_eq!(report(&store, VOLUMES[0], &again).await, first);
        assert_eq!(store.read(|rows| rows.image_count()).await.expect("read"), 1);
        let gone = [(FileEvent::Deleted, file(1, "iso/a.iso", 1))];
        report(&store, VOLUMES[0], &gone).await;
        report(&store, VOLUMES[0], &gone).await;
        assert_eq!(image(&store, "/linux/a.iso").await, None);
    }

    #[tokio::test]
    async fn other_bytes_are_a_new_image_under_the_old_names() {
        let (store, _dir) = store().await;
        report(&store, VOLUMES[0], &[(FileEvent::Created, file(1, "iso/a.iso", 1))]).await;
        rename(&store, "/linux/a.iso", "/windows/mine.iso").await;
        let (_, before) = image(&store, "/windows/mine.iso").await.expect("there");
        report(&store, VOLUMES[0], &[(FileEvent::Updated, file(2, "iso/a.iso", 7))]).await;
        let (id, after) = image(&store, "/windows/mine.iso").await.expect("there");
        assert_eq!(id, ImageId::from_bytes([2; 16]));
        assert_ne!(after, before);
        assert_eq!(image(&store, "/linux/a.iso").await, None);
    }

    #[tokio::test]
    async fn a_file_renamed_in_its_pool_keeps_its_image_and_a_name_given_by_hand() {
        let (store, _dir) = store().await;
        let both = [
            (FileEvent::Created, file(1, "iso/a.iso", 1)),
            (FileEvent::Created, file(2, "iso/b.iso", 2)),
        ];
        report(&store, VOLUMES[0], &both).await;
        let inode = image(&store, "/linux/a.iso").await.expect("there").1;
        rename(&store, "/linux/b.iso", "/linux/mine.iso").await;
        let moved = [
            (FileEvent::Moved, file(1, "iso/new.iso", 1)),
            (FileEvent::Moved, file(2, "iso/c.iso", 2)),
        ];
        report(&store, VOLUMES[0], &moved).await;
        assert_eq!(image(&store, "/linux/new.iso").await.map(|(_, ino)| ino), Some(inode));
        assert_eq!(image(&store, "/linux/a.iso").await, None);
        assert!(image(&store, "/linux/mine.iso").await.is_some());
        // Exchanged on disk: each image follows its own file.
        let exchanged = [
            (FileEvent::Moved, file(1, "iso/c.iso", 1)),
            (FileEvent::Moved, file(2, "iso/new.iso", 2)),
        ];
        report(&store, VOLUMES[0], &exchanged).await;
        assert_eq!(image(&store, "/linux/c.iso").await.map(|(_, ino)| ino), Some(inode));
    }

    #[tokio::test]
    async fn names_that_are_handed_on_in_the_pool_are_handed_on_in_the_library() {
        let (store, _dir) = store().await;
        let names = ["iso/a.iso", "iso/b.iso", "iso/c.iso"];
        let files = |at: [usize; 3]| {
            (1..).zip(at).map(|(n, at)| file(n, names[at], n.into())).collect::<Vec<_>>()
        };
        let told = |event, files: Vec<FoundFile>| files.into_iter().map(|it| (event, it)).collect();
        let made: Vec<_> = told(FileEvent::Created, files([0, 1, 2]));
        report(&store, VOLUMES[0], &made).await;
        // All three in a circle, and two of them exchanged.
        for (at, expected) in [([1, 2, 0], [3, 1, 2]), ([2, 1, 0], [3, 2, 1])] {
            let moved: Vec<_> = told(FileEvent::Moved, files(at));
            report(&store, VOLUMES[0], &moved).await;
            for (name, n) in ["/linux/a.iso", "/linux/b.iso", "/linux/c.iso"].iter().zip(expected) {
                let found = image(&store, name).await.map(|(id, _)| id);
                assert_eq!(found, Some(ImageId::from_bytes([n; 16])), "{name} {at:?}");
            }
        }
    }

    #[tokio::test]
    async fn an_index_copied_with_its_files_makes_images_of_their_own() {
        let (store, _dir) = store().await;
        report(&store, VOLUMES[0], &[(FileEvent::Created, file(1, "iso/a.iso", 1))]).await;
        let copied = [(FileEvent::Created, file(1, "iso/a.iso", 50))];
        let kept = report(&store, VOLUMES[1], &copied).await;
        assert_ne!(kept, [ImageId::from_bytes([1; 16])]);
        assert_eq!(image(&store, "/linux/a.slow.iso").await.map(|(id, _)| id), Some(kept[0]));
    }

    #[tokio::test]
    async fn folders_are_made_as_the_pools_directories_ask() {
        let (store, _dir) = store().await;
        let within = |n: u8, path: &str, folder: &str| FoundFile {
            folder: Some(folder.parse().expect("a folder")),
            ..file(n, path, n.into())
        };
        let events = [
            (FileEvent::Created, within(1, "iso/x/a.iso", "/x")),
            (FileEvent::Created, within(2, "iso/x/y/b.iso", "/x/y")),
            // A file has the name that a folder would need.
            (FileEvent::Created, within(3, "iso/x/a.iso/c.iso", "/x/a.iso")),
        ];
        report(&store, VOLUMES[0], &events).await;
        for path in ["/x/a.iso", "/x/y/b.iso", "/x/c.iso"] {
            assert!(image(&store, path).await.is_some(), "{path}");
        }
    }

    /// As an agent does it: what the catalogue has at other paths is deleted.
    async fn end_introduction(store: &Store, volume: VolumeId, paths: &[&str]) {
        let listed = store.read(move |rows| rows.settled_files(volume, ("", &[]), 100)).await;
        let gone = listed.expect("read").into_iter().filter(|it| !paths.contains(&it.1.as_str()));
        let gone: Vec<_> = gone
            .map(|(image, path, stamp)| {
                (FileEvent::Deleted, FoundFile { image, path, stamp, ..file(0, "iso/x", 0) })
            })
            .collect();
        report(store, volume, &gone).await;
    }

    #[tokio::test]
    async fn what_went_while_an_index_was_lost_leaves_the_library() {
        let (store, _dir) = store().await;
        for volume in VOLUMES {
            let told = [
                (FileEvent::Created, file(1, "iso/a.iso", 1)),
                (FileEvent::Created, file(2, "iso/gone.iso", 2)),
            ];
            report(&store, volume, &told).await;
        }
        end_introduction(&store, VOLUMES[0], &["iso/a.iso", "iso/b.iso"]).await;
        for (path, there) in [
            ("/linux/a.iso", true),
            ("/linux/gone.iso", false),
            // The other volume's are no business of this one's introduction.
            ("/linux/a.slow.iso", true),
            ("/linux/gone.slow.iso", true),
        ] {
            assert_eq!(image(&store, path).await.is_some(), there, "{path}");
        }
    }

    #[tokio::test]
    async fn a_file_that_is_yet_to_be_brought_to_its_place_is_not_gone() {
        let (store, _dir) = store().await;
        let id = UploadId::from_bytes([5; 16]);
        let name = EntryName::parse("new.iso").expect("a name");
        let request = UploadRequest {
            id,
            place: Place { folder: FolderRef::Ino(Ino::ROOT), name },
            mode: IMAGE_MODE,
            pool: None,
            host: String::new(),
            existing: Existing::Refuse,
            size_bytes: 0,
        };
        let node = NodeId::from_bytes([1; 16]);
        let begin = Verb::BeginUpload { request, volume: VOLUMES[0], node };
        store.commit(None, begin).await.expect("begun");
        let FoundFile { path, stamp, format, os, facts, .. } = file(5, "iso/new.iso", 5);
        let sealed = Sealed { stamp, path, format, os, facts };
        let publish = Verb::Publish { upload: id, sealed, set: Attributes::default() };
        store.commit(None, publish).await.expect("published");
        end_introduction(&store, VOLUMES[0], &["iso/other.iso"]).await;
        assert!(image(&store, "/new.iso").await.is_some());
    }
    #[tokio::test]
    async fn what_lies_in_its_place_again_is_not_in_the_trash() {
        let (store, _dir) = store().await;
        let told = [(FileEvent::Created, file(1, "iso/a.iso", 1))];
        report(&store, VOLUMES[0], &told).await;
        let name = EntryName::parse("a.iso").expect("a name");
        let folder = FolderRef::Path("/linux".parse().expect("a path"));
        store.commit(None, Verb::Remove { place: Place { folder, name } }).await.expect("removed");
        let tasks = store.read(|rows| rows.tasks(VOLUMES[0], 9)).await.expect("read");
        let done = tasks.into_iter().map(|task| TaskDone { task, path: None }).collect();
        store.commit(None, Verb::TasksDone { volume: VOLUMES[0], done }).await.expect("done");
        let trash = || store.read(|rows| Ok(rows.trash()?.len()));
        // Another volume's copied index says nothing of this file.
        report(&store, VOLUMES[1], &[(FileEvent::Created, file(1, "iso/b.iso", 9))]).await;
        assert_eq!(trash().await, Ok(1));
        report(&store, VOLUMES[0], &told).await;
        assert_eq!(trash().await, Ok(0));
        assert!(image(&store, "/linux/a.iso").await.is_some());
    }
}
