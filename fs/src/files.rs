//! What the mount does with names, attributes, listings and files being written: answered from
//! memory, or asked of the catalogue. The kernel's requests and replies are the adapter's business.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use isotope_proto::change::Change;
use isotope_proto::crash_point;
use isotope_proto::id::{EntryId, Ino};
use isotope_proto::name::EntryName;
use isotope_proto::tree::Attributes;
use isotope_proto::upload::Existing;
use tokio::time::timeout;

use crate::attr::{self, FileAttr, FileType, Owner};
use crate::catalog::{CHANGE_DEADLINE, Catalog};
use crate::error::FsError;
use crate::handle::Handles;
use crate::mirror::{Mirror, Source};
use crate::process::thread_group;
use crate::remote::Hosts;
use crate::tree::Inode;
use crate::upload::Upload;
use crate::uploads::Uploads;
use crate::writer::{Made, Verdict};

/// How long the kernel may believe names and attributes, known or absent: the feed corrects it.
pub(crate) const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// A write is answered once its bytes are on their way; when nothing moves for so long, it fails.
pub(crate) const WRITE_DEADLINE: Duration = Duration::from_secs(60);
/// Cookies of `.` and `..`; entries follow at their id plus this.
pub(crate) const DOTS: u64 = 2;
/// Cookies of files being written follow those of all entries there will ever be.
const UPLOADS_FROM: u64 = 1 << 62;

/// Clones share everything.
#[derive(Clone)]
pub(crate) struct Files {
    pub(crate) mirror: Arc<Mirror>,
    pub(crate) handles: Arc<Handles>,
    pub(crate) uploads: Arc<Uploads>,
    pub(crate) hosts: Arc<Hosts>,
    pub(crate) catalog: Catalog,
    /// This host's name: its own volumes are preferred for what is written here.
    pub(crate) host: String,
    pub(crate) owner: Owner,
}

/// What the kernel is told of an entry.
pub(crate) struct Answer {
    pub(crate) attr: FileAttr,
    pub(crate) generation: u64,
    pub(crate) lifetime: Duration,
}

/// What a listing shows under a name.
#[derive(Clone, Copy)]
pub(crate) enum Listed<'a> {
    Inode(Ino, &'a Inode),
    Upload(&'a Upload),
}

impl Listed<'_> {
    pub(crate) fn ino(self) -> Ino {
        match self {
            Self::Inode(ino, _) => ino,
            Self::Upload(upload) => upload.draft.ino,
        }
    }

    pub(crate) fn kind(self) -> FileType {
        match self {
            Self::Inode(_, Inode::Folder(_)) => FileType::Directory,
            Self::Inode(_, Inode::Image(_)) | Self::Upload(_) => FileType::RegularFile,
        }
    }

    /// Attributes, and how long they may be believed.
    pub(crate) fn attr(self, owner: Owner) -> (FileAttr, Duration) {
        match self {
            Self::Inode(ino, inode) => (attr::of(ino, inode, owner), LIFETIME),
            Self::Upload(upload) => (attr::of_upload(upload, owner), Duration::ZERO),
        }
    }
}

impl Files {
    /// Attributes, and how long they may be believed.
    pub(crate) fn attr(&self, ino: Ino) -> Result<(FileAttr, Duration), FsError> {
        if let Some(upload) = self.uploads.get(ino) {
            return Ok((attr::of_upload(&upload, self.owner), Duration::ZERO));
        }
        let attr = |inode: &Inode| attr::of(ino, inode, self.owner);
        self.mirror.with(ino, attr).map(|attr| (attr, LIFETIME)).ok_or(FsError::Stale)
    }

    pub(crate) fn lookup_now(&self, parent: Ino, name: &OsStr) -> Result<Option<Answer>, FsError> {
        let tree = self.mirror.tree();
        let Some(folder) = tree.folder(parent) else {
            return Err(if tree.get(parent).is_some() {
                FsError::NotAFolder
            } else {
                FsError::Stale
            });
        };
        if name.len() > EntryName::LEN_MAX {
            return Err(FsError::TooLong);
        }
        // What cannot be a name otherwise is no name of ours.
        let found = name.to_str().and_then(|name| folder.child(name));
        let Some((ino, inode)) = found.and_then(|ino| Some((ino, tree.get(ino)?))) else {
            let generation = tree.generation();
            drop(tree);
            return Ok(self.lookup_upload(parent, name, generation));
        };
        self.mirror.remember(ino, 1);
        let attr = attr::of(ino, inode, self.owner);
        let generation = tree.generation();
        Ok(Some(Answer { attr, generation, lifetime: LIFETIME }))
    }

    /// A file being written here; what becomes of it is not known yet, so nothing is cached.
    fn lookup_upload(&self, parent: Ino, name: &OsStr, generation: u64) -> Option<Answer> {
        let upload = self.uploads.named(parent, name.to_str()?)?;
        self.mirror.remember(upload.draft.ino, 1);
        let attr = attr::of_upload(&upload, self.owner);
        Some(Answer { attr, generation, lifetime: Duration::ZERO })
    }

    /// Reserves a file and lists it here.
    pub(crate) async fn begin_upload(
        &self,
        parent: Ino,
        name: &EntryName,
        mode: u32,
        existing: Existing,
    ) -> Result<Arc<Upload>, FsError> {
        let begun = self.catalog.begin_upload((parent, name), mode, existing, &self.host);
        let draft = timeout(CHANGE_DEADLINE, begun).await.unwrap_or(Err(FsError::TimedOut))?;
        crash_point!("mount.create.reserved");
        let (catalog, hosts, mirror) =
            (self.catalog.clone(), Arc::clone(&self.hosts), Arc::clone(&self.mirror));
        if existing == Existing::Refuse {
            self.mirror.set_made_here(draft.ino, true);
        }
        let upload = Arc::new(Upload::new(draft, catalog, hosts, mirror));
        self.uploads.add(Arc::clone(&upload));
        Ok(upload)
    }

    /// `open(O_TRUNC)` of a finished image: what is written from here on will replace it. Its
    /// own attributes stay, for it is whole until then.
    async fn begin_replacing(&self, ino: Ino, task: u32) -> Result<(), FsError> {
        let writer = self.handles.unbegun_writer(ino, thread_group(task));
        let writer = writer.ok_or(FsError::NotPermitted)?;
        if self.handles.is_read(ino) {
            return Err(FsError::OpenForReading);
        }
        let (parent, name, mode) = {
            let tree = self.mirror.tree();
            let (parent, name) = tree.name_of(ino).ok_or(FsError::Stale)?;
            let mode = match tree.get(ino) {
                Some(Inode::Image(image)) => image.mode,
                Some(Inode::Folder(_)) | None => return Err(FsError::Stale),
            };
            (parent, name, mode)
        };
        let upload = self.begin_upload(parent, &name, mode, Existing::Replace).await?;
        writer.attach(upload);
        Ok(())
    }

    pub(crate) async fn set_attributes(
        &self,
        ino: Ino,
        size: Option<u64>,
        set: Attributes,
        task: u32,
    ) -> Result<(), FsError> {
        let upload = self.uploads.get(ino);
        match (size, &upload) {
            (Some(size), Some(upload)) => upload.truncate(size).await?,
            (Some(0), None) => self.begin_replacing(ino, task).await?,
            // A finished image is not changed in place.
            (Some(_), None) => return Err(FsError::NotPermitted),
            (None, _) => {}
        }
        if set == Attributes::default() || (size.is_some() && upload.is_none()) {
            return Ok(());
        }
        let Some(upload) = upload else {
            return self.change(self.catalog.set_attributes(ino, set)).await;
        };
        upload.set_attributes(set);
        // Made, closed, and now its time is set: nobody means to write it. Still open, its close
        // tells.
        if upload.made() == Made::Touched && upload.handles.load(Ordering::Relaxed) == 0 {
            self.uploads.commit(&upload).await?;
        }
        Ok(())
    }

    /// Reads through a descriptor of a file that was, or is being, written.
    pub(crate) async fn read_written(
        &self,
        ino: Ino,
        upload: Option<Arc<Upload>>,
        offset: u64,
        size: u32,
    ) -> Result<Bytes, FsError> {
        match upload {
            Some(upload) if !upload.is_over() => {
                let read = timeout(WRITE_DEADLINE, upload.read(offset, size));
                read.await.unwrap_or(Err(FsError::TimedOut))
            }
            // Published meanwhile: an image like any other.
            Some(upload) => self.handles.reader(upload.draft.ino)?.read(offset, size).await,
            None => self.handles.reader(ino)?.read(offset, size).await,
        }
    }

    /// Carries out what a close means; an error is the closing program's to hear.
    pub(crate) async fn conclude(
        &self,
        upload: &Arc<Upload>,
        verdict: Verdict,
    ) -> Result<(), FsError> {
        match verdict {
            Verdict::Nothing => Ok(()),
            Verdict::Commit => self.uploads.commit(upload).await,
            Verdict::Discard => {
                self.uploads.give_up(upload).await;
                Ok(())
            }
            Verdict::KeepDraft => {
                self.uploads.publish_draft_later(upload).await;
                Ok(())
            }
        }
    }

    /// Makes a change and waits until it shows here.
    pub(crate) async fn change(
        &self,
        change: impl Future<Output = Result<Change, FsError>>,
    ) -> Result<(), FsError> {
        let changed = timeout(CHANGE_DEADLINE, async {
            let change = change.await?;
            crash_point!("mount.change.made");
            self.mirror.settle(&change, Source::Own).await;
            Ok(())
        });
        changed.await.unwrap_or(Err(FsError::TimedOut))
    }

    /// Removes a name: of an image, or of a file that is still being written.
    pub(crate) async fn unlink(&self, parent: Ino, name: &EntryName) -> Result<(), FsError> {
        let listed = self.mirror.tree().folder(parent).and_then(|it| it.child(name.as_str()));
        if let (None, Some(upload)) = (listed, self.uploads.named(parent, name.as_str())) {
            self.uploads.give_up(&upload).await;
            return Ok(());
        }
        self.change(self.catalog.remove(parent, name)).await
    }

    /// The entries of a folder after a cookie; `add` says when its buffer is full.
    pub(crate) fn list(
        &self,
        ino: Ino,
        cookie: u64,
        mut add: impl FnMut(u64, &OsStr, Listed<'_>, u64) -> bool,
    ) -> Result<(), FsError> {
        let tree = self.mirror.tree();
        let Some(folder) = tree.folder(ino) else {
            // A removed folder that is open still is empty. Only what is held is asked: whoever
            // looks at the tree twice deadlocks with a change that waits between the looks.
            return self.mirror.ghost(ino, |_| ()).ok_or(FsError::Stale);
        };
        let generation = tree.generation();
        let dots = [(1, ".", ino), (2, "..", folder.parent)];
        for (at, name, ino) in dots {
            if let Some(inode) = tree.get(ino)
                && at > cookie
                && add(at, OsStr::new(name), Listed::Inode(ino, inode), generation)
            {
                return Ok(());
            }
        }
        for (id, name, ino) in folder.after(EntryId(cookie.saturating_sub(DOTS))) {
            let Some(inode) = tree.get(ino) else { continue };
            if add(id.0 + DOTS, OsStr::new(name.as_str()), Listed::Inode(ino, inode), generation) {
                return Ok(());
            }
        }
        for upload in self.uploads.in_folder(ino) {
            let (at, name) = (UPLOADS_FROM + upload.draft.ino.0, upload.draft.name.as_str());
            // One that replaces an image is listed as that image until it does.
            if at > cookie
                && folder.child(name).is_none()
                && add(at, OsStr::new(name), Listed::Upload(&upload), generation)
            {
                break;
            }
        }
        Ok(())
    }
}
