//! Reports from agents become images, entries and replicas. Each event is applied idempotently: an
//! agent that was not answered reports again, and nothing more changes.

use isotope_proto::change::{Delta, Edit};
use isotope_proto::id::{ContentId, ImageId, Ino, VolumeId};
use isotope_proto::image::{Image, OsFamily, Replica, Stamp};
use isotope_proto::name::{EntryName, FOLDER_DEPTH_MAX, FolderPath};
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::report::{FileChange, FileEvent, FoundFile};
use isotope_proto::time::Timestamp;
use isotope_proto::tree::{Entry, FOLDER_MODE, IMAGE_MODE};

use crate::library::{add_entry, make_folder_in, remove_entry, touch};
use crate::store::Edits;

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
    let mut report = Report { edits, volume, pool, now };
    changes.iter().map(|change| report.apply_one(change)).collect()
}

struct Report<'r, 'a> {
    edits: &'r mut Edits<'a>,
    volume: VolumeId,
    pool: &'r str,
    now: Timestamp,
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
                    self.lose(image, file)?;
                }
                Ok(file.image)
            }
        }
    }

    /// A file is there: as known, new, or with other bytes than before.
    fn seen(&mut self, file: &FoundFile) -> Result<ImageId, Refusal> {
        match self.edits.image_at(self.volume, &file.path)? {
            None => self.adopt(file),
            Some(image) if self.stamp_of(&image, file) == Some(file.stamp) => Ok(image.id),
            Some(image) => self.supersede(image, file),
        }
    }

    fn stamp_of(&self, image: &Image, file: &FoundFile) -> Option<Stamp> {
        let here = |r: &&Replica| r.volume == self.volume && r.path == file.path;
        image.replicas.iter().find(here).map(|replica| replica.stamp)
    }

    fn moved(&mut self, file: &FoundFile) -> Result<ImageId, Refusal> {
        let Some(before) = self.edits.image(file.image)? else { return self.seen(file) };
        let mut after = before.clone();
        let here = |r: &&mut Replica| r.volume == self.volume && r.stamp == file.stamp;
        let Some(replica) = after.replicas.iter_mut().find(here) else { return self.seen(file) };
        if replica.path == file.path {
            return Ok(file.image);
        }
        replica.path = file.path.clone();
        let old_name = std::mem::replace(&mut after.filename, file.path.file_name().to_owned());
        self.follow_name(after.ino, &old_name, file)?;
        self.edits.write(Delta::Image(Edit::Changed { before, after }))?;
        Ok(file.image)
    }

    /// Whoever renames a file in its pool means the name; but a name given in the library stays.
    fn follow_name(&mut self, ino: Ino, old: &str, file: &FoundFile) -> Result<(), Refusal> {
        let entries = self.edits.entries_to(ino)?;
        let [entry] = &entries[..] else { return Ok(()) };
        let name = EntryName::parse(file.path.file_name())?;
        if entry.name.as_str() != old || entry.name == name {
            return Ok(());
        }
        let name = self.free_name(entry.parent, name)?;
        let after = Entry { name, ..entry.clone() };
        let before = entry.clone();
        self.edits.write(Delta::Entry(Edit::Changed { before, after }))?;
        touch(self.edits, entry.parent, self.now)
    }

    /// A new image under a name of its own.
    fn adopt(&mut self, file: &FoundFile) -> Result<ImageId, Refusal> {
        let name = EntryName::parse(file.path.file_name())?;
        let folder = self.folder_for(file)?;
        let name = self.free_name(folder, name)?;
        let image = self.make_image(file, IMAGE_MODE)?;
        add_entry(self.edits, folder, name, image.ino, self.now)?;
        Ok(image.id)
    }

    fn make_image(&mut self, file: &FoundFile, mode: u32) -> Result<Image, Refusal> {
        let taken = self.edits.image(file.image)?.is_some();
        let image = Image {
            // An index that was copied with its files proposes ids that others have.
            id: if taken { ImageId::mint(self.now) } else { file.image },
            ino: self.edits.take_ino()?,
            content: ContentId::mint(self.now),
            filename: file.path.file_name().to_owned(),
            size_bytes: file.stamp.size_bytes,
            format: file.format,
            os: file.os.clone(),
            mode,
            created: self.now,
            modified: Timestamp(file.stamp.mtime_ns),
            changed: self.now,
            replicas: vec![Replica {
                volume: self.volume,
                path: file.path.clone(),
                stamp: file.stamp,
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
            self.lose(old, file)?;
            return self.adopt(file);
        }
        let new = self.make_image(file, mode)?;
        for before in names {
            let after = Entry { ino: new.ino, ..before.clone() };
            self.edits.write(Delta::Entry(Edit::Changed { before, after }))?;
        }
        self.edits.write(Delta::Image(Edit::Removed(old)))?;
        Ok(new.id)
    }

    /// A file is gone; with the last replica goes the image, and its names.
    fn lose(&mut self, before: Image, file: &FoundFile) -> Result<(), Refusal> {
        let mut after = before.clone();
        after.replicas.retain(|r| r.volume != self.volume || r.path != file.path);
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
                None => make_folder_in(self.edits, at, name, FOLDER_MODE, self.now)?,
                Some(entry) if self.edits.folder(entry.ino)?.is_some() => entry.ino,
                Some(_) => break,
            };
        }
        Ok(at)
    }

    /// `name`, or where that is taken `stem.POOL.ext`, `stem.POOL.2.ext`, …
    fn free_name(&self, folder: Ino, name: EntryName) -> Result<EntryName, Refusal> {
        let mut candidate = name.clone();
        let mut tries = 1_u32;
        while self.edits.entry(folder, &candidate)?.is_some() {
            let addition =
                if tries == 1 { self.pool.to_owned() } else { format!("{}.{tries}", self.pool) };
            candidate = name.with_addition(&addition);
            tries += 1;
        }
        Ok(candidate)
    }
}
