//! What the mount does with files that are being written: reserved, opened, truncated, read back and
//! closed. Which file is meant is decided here; how its bytes travel, and what a close means, is not.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use isotope_proto::crash_point;
use isotope_proto::id::Ino;
use isotope_proto::name::EntryName;
use isotope_proto::range::ByteRange;
use isotope_proto::tree::Attributes;
use isotope_proto::upload::Existing;
use tokio::time::timeout;

use crate::READ_REQUEST_BYTES;
use crate::attr::{self, FileAttr};
use crate::catalog::CHANGE_DEADLINE;
use crate::error::FsError;
use crate::files::{Files, LIFETIME};
use crate::mirror::Source;
use crate::process::thread_group;
use crate::reader::Reader;
use crate::tree::Inode;
use crate::upload::{Stored, Upload, WriteAt};
use crate::writer::{Made, Verdict, Writer};

/// A write is answered once its bytes are on their way; when nothing moves for so long, it fails.
pub(crate) const WRITE_DEADLINE: Duration = Duration::from_secs(60);

impl Files {
    /// Reserves a file and lists it here. `replaces`: the inode of the image whose name it takes.
    async fn begin_upload(
        &self,
        (parent, name): (Ino, &EntryName),
        mode: u32,
        replaces: Option<Ino>,
    ) -> Result<Arc<Upload>, FsError> {
        self.may_change()?;
        let existing = if replaces.is_some() { Existing::Rewrite } else { Existing::Refuse };
        let begun = self.catalog.begin_upload((parent, name), mode, existing, &self.host);
        let mut draft = timeout(CHANGE_DEADLINE, begun).await.unwrap_or(Err(FsError::TimedOut))?;
        draft.replaces = replaces;
        crash_point!("mount.create.reserved");
        if replaces.is_none() && self.source == Source::Own {
            self.mirror.set_made_here(draft.ino, true);
        }
        let (catalog, hosts, mirror) =
            (self.catalog.clone(), Arc::clone(&self.hosts), Arc::clone(&self.mirror));
        let upload = Arc::new(Upload::new(draft, (parent, name.clone()), catalog, hosts, mirror));
        self.uploads.add(Arc::clone(&upload));
        Ok(upload)
    }

    /// `open(O_CREAT)`: the new file, and its handle.
    pub(crate) async fn create(
        &self,
        parent: Ino,
        name: &EntryName,
        mode: u32,
        task: u32,
    ) -> Result<(Arc<Upload>, u64), FsError> {
        let behind = self.behind(parent, name).await?;
        let upload = behind.files.begin_upload(behind.at(), mode, None).await?;
        let opener = thread_group(task);
        let writer = match Writer::open(upload.draft.ino, opener, Some(Arc::clone(&upload))) {
            Ok(writer) => writer,
            Err(error) => {
                self.uploads.give_up(&upload).await;
                return Err(error);
            }
        };
        self.mirror.remember(upload.draft.ino, 1);
        Ok((upload, self.handles.open_for_writing(writer)))
    }

    /// A finished image may be opened for writing, to be truncated; a write to it is refused.
    pub(crate) fn open_for_writing(&self, ino: Ino, task: u32) -> Result<u64, FsError> {
        self.may_change()?;
        let upload = self.uploads.get(ino).filter(|upload| !upload.is_over());
        let writer = Writer::open(ino, thread_group(task), upload)?;
        Ok(self.handles.open_for_writing(writer))
    }

    /// An image's name, and its permission bits.
    fn named(&self, ino: Ino) -> Result<(Ino, EntryName, u32), FsError> {
        let tree = self.mirror.tree();
        let (parent, name) = tree.name_of(ino).ok_or(FsError::Stale)?;
        match tree.get(ino) {
            Some(Inode::Image(image)) => Ok((parent, name, image.mode)),
            Some(Inode::Folder(_)) | None => Err(FsError::Stale),
        }
    }

    /// `open(O_TRUNC)` of a finished image: what is written from here on will replace it. Its
    /// own attributes stay, for it is whole until then.
    async fn begin_replacing(&self, ino: Ino, opener: u32) -> Result<(), FsError> {
        let writer = self.handles.unbegun_writer(ino, opener).ok_or(FsError::NotPermitted)?;
        if self.handles.is_read(ino) {
            return Err(FsError::OpenForReading);
        }
        let (parent, name, mode) = self.named(ino)?;
        // One that was begun before, and left empty or by this program.
        if let Some(begun) = self.uploads.named(parent, name.as_str()) {
            writer.attach(Arc::clone(&begun))?;
            return begun.empty().await;
        }
        writer.attach(self.begin_upload((parent, &name), mode, Some(ino)).await?)
    }

    /// Where a handle's writes go.
    async fn upload_of(&self, writer: &Writer) -> Result<Arc<Upload>, FsError> {
        let _turn = writer.beginning.lock().await;
        if let Some(upload) = writer.upload() {
            return Ok(upload);
        }
        // A finished image is not changed in place; but a program may go on with what it has just
        // stored itself (`qemu-img` writes a header, closes, and opens again).
        let stored = self.uploads.stored_by(writer.ino, writer.opener);
        let stored = stored.ok_or(FsError::NotPermitted)?;
        let parts = stored.extents.within(stored.size_bytes).ok_or(FsError::NotPermitted)?;
        let (parent, name, mode) = self.named(writer.ino)?;
        let upload = self.begin_upload((parent, &name), mode, Some(writer.ino)).await?;
        let begun = match self.write_again(writer.ino, &stored, &parts, &upload).await {
            Ok(()) => writer.attach(Arc::clone(&upload)),
            Err(error) => Err(error),
        };
        if let Err(error) = begun {
            self.uploads.give_up(&upload).await;
            return Err(error);
        }
        Ok(upload)
    }

    /// Copies what was written of an image into what is to replace it.
    async fn write_again(
        &self,
        ino: Ino,
        stored: &Stored,
        parts: &[ByteRange],
        upload: &Upload,
    ) -> Result<(), FsError> {
        let image = self.handles.reader(ino)?;
        for part in parts {
            let mut at = part.start();
            while at < part.end() {
                let len = u64::from(READ_REQUEST_BYTES).min(part.end() - at);
                let len = u32::try_from(len).unwrap_or(READ_REQUEST_BYTES);
                let bytes = Arc::clone(&image).read(at, len).await?;
                upload.write(WriteAt::Offset(at), bytes).await?;
                at += u64::from(len);
            }
        }
        upload.truncate(stored.size_bytes).await
    }

    pub(crate) async fn write(
        &self,
        handle: u64,
        at: WriteAt,
        data: Bytes,
        lock_owner: u64,
    ) -> Result<(), FsError> {
        let writer = self.handles.writer(handle)?;
        writer.wrote(lock_owner);
        self.upload_of(&writer).await?.write(at, data).await
    }

    pub(crate) async fn allocate(&self, handle: u64, at: u64, len: u64) -> Result<(), FsError> {
        let writer = self.handles.writer(handle)?;
        let allocated = async { self.upload_of(&writer).await?.allocate(at, len).await };
        timeout(WRITE_DEADLINE, allocated).await.unwrap_or(Err(FsError::TimedOut))
    }

    /// Durable, and no more than that.
    pub(crate) async fn sync(&self, handle: u64) -> Result<(), FsError> {
        match self.handles.writer(handle).ok().and_then(|writer| writer.upload()) {
            Some(upload) => upload.sync().await,
            None => Ok(()),
        }
    }

    /// What the sender of a request means by an inode: what it writes there itself.
    fn written_by(&self, ino: Ino, task: u32) -> Option<Arc<Upload>> {
        let replacing = || self.uploads.replacing(ino);
        let own = |it: &Arc<Upload>| it.holders.has(thread_group(task));
        self.uploads.get(ino).or_else(|| replacing().filter(own))
    }

    /// Attributes, and how long they may be believed.
    pub(crate) fn attr(&self, ino: Ino, task: u32) -> Result<(FileAttr, Duration), FsError> {
        if let Some(view) = self.views.at(ino) {
            return Ok((self.attr_of_view(ino, &view), Duration::ZERO));
        }
        if let Some(upload) = self.written_by(ino, task) {
            return Ok((attr::of_upload(ino, &upload, self.owner), Duration::ZERO));
        }
        self.attr_of_stored(ino)
    }

    fn attr_of_stored(&self, ino: Ino) -> Result<(FileAttr, Duration), FsError> {
        let attr = |inode: &Inode| attr::of(ino, inode, self.owner);
        let attr = self.mirror.with(ino, attr).ok_or(FsError::Stale)?;
        // To its writer it shows something else.
        let shared = self.uploads.replacing(ino).is_some();
        Ok((attr, if shared { Duration::ZERO } else { LIFETIME }))
    }

    /// What is stored when somebody asks for a mode.
    pub(crate) fn mode_to_store(&self, ino: Ino, asked: u32, task: u32) -> Result<u32, FsError> {
        if self.views.at(ino).is_some() {
            return Err(FsError::NotPermitted);
        }
        let (kind, before) = match self.written_by(ino, task) {
            Some(upload) => (attr::FileType::RegularFile, upload.shown().mode),
            None => self.mirror.with(ino, attr::kind_and_mode).ok_or(FsError::Stale)?,
        };
        self.owner.to_store(kind, asked, before).ok_or(FsError::NotPermitted)
    }

    /// Sets attributes, and returns them as the kernel is to keep them.
    pub(crate) async fn set_attributes(
        &self,
        ino: Ino,
        handle: Option<u64>,
        size: Option<u64>,
        mut set: Attributes,
        task: u32,
    ) -> Result<(FileAttr, Duration), FsError> {
        if let Some(view) = self.views.at(ino) {
            // It has no time of its own; whoever copies into it sets that at last.
            let attr = (self.attr_of_view(ino, &view), Duration::ZERO);
            return if set.mode.is_none() { Ok(attr) } else { Err(FsError::NotPermitted) };
        }
        self.may_change()?;
        if let Some(size) = size {
            self.set_size(ino, handle, size, thread_group(task)).await?;
            // The kernel sends the time along; what is written has it anyhow.
            set.modified = None;
        }
        if set != Attributes::default() {
            match self.written_by(ino, task) {
                Some(upload) => {
                    upload.set_attributes(set);
                    // Made, closed, and now its time is set: nobody means to write it. Still open,
                    // its close tells.
                    if upload.made() == Made::Touched {
                        self.uploads.commit_if_idle(&upload).await?;
                    }
                }
                None => self.change(self.catalog.set_attributes(ino, set)).await?,
            }
        }
        match self.uploads.get(ino) {
            Some(upload) => Ok((attr::of_upload(ino, &upload, self.owner), Duration::ZERO)),
            // An image that is being replaced stays as it is for those who read it.
            None => self.attr_of_stored(ino),
        }
    }

    async fn set_size(
        &self,
        ino: Ino,
        handle: Option<u64>,
        size: u64,
        group: u32,
    ) -> Result<(), FsError> {
        let truncated = async {
            // `ftruncate` names its handle, `open(O_TRUNC)` does not.
            if let Some(handle) = handle {
                let writer = self.handles.writer(handle)?;
                return self.upload_of(&writer).await?.truncate(size).await;
            }
            match self.uploads.get(ino) {
                Some(upload) if upload.holders.has_another(group) => Err(FsError::InUse),
                Some(upload) if size == 0 => upload.empty().await,
                Some(upload) => upload.truncate(size).await,
                None if size == 0 => self.begin_replacing(ino, group).await,
                None => Err(FsError::NotPermitted),
            }
        };
        timeout(WRITE_DEADLINE, truncated).await.unwrap_or(Err(FsError::TimedOut))
    }

    /// Reads through a descriptor that was opened for writing, too.
    pub(crate) async fn read_through(
        &self,
        writer: &Writer,
        offset: u64,
        size: u32,
    ) -> Result<Bytes, FsError> {
        match writer.upload() {
            Some(upload) if !upload.is_over() => read_back(&upload, offset, size).await,
            Some(upload) => self.read_stored(writer, upload.draft.ino, offset, size).await,
            None => self.read_stored(writer, writer.ino, offset, size).await,
        }
    }

    async fn read_stored(
        &self,
        writer: &Writer,
        ino: Ino,
        offset: u64,
        size: u32,
    ) -> Result<Bytes, FsError> {
        let reader: Arc<Reader> = match writer.reader.get().filter(|it| it.ino() == ino) {
            Some(reader) => Arc::clone(reader),
            None => {
                let reader = self.handles.reader(ino)?;
                // Another request may have come first; either will do.
                let _ = writer.reader.set(Arc::clone(&reader));
                reader
            }
        };
        reader.read(offset, size).await
    }

    /// Reads a file that another program on this mount writes.
    pub(crate) async fn look(
        &self,
        upload: &Upload,
        offset: u64,
        size: u32,
    ) -> Result<Bytes, FsError> {
        if upload.is_over() {
            return self.handles.reader(upload.draft.ino)?.read(offset, size).await;
        }
        read_back(upload, offset, size).await
    }

    /// A close by `task`; an error is the closing program's to hear.
    pub(crate) async fn close(
        &self,
        writer: &Writer,
        task: u32,
        lock_owner: u64,
    ) -> Result<(), FsError> {
        let Some(upload) = writer.upload() else { return Ok(()) };
        let verdict = writer.flushed_by(task, lock_owner);
        self.conclude(&upload, verdict, writer.opener).await
    }

    /// Carries out what a close, or the last one, means.
    pub(crate) async fn conclude(
        &self,
        upload: &Arc<Upload>,
        verdict: Verdict,
        by: u32,
    ) -> Result<(), FsError> {
        match verdict {
            Verdict::Nothing => Ok(()),
            Verdict::Commit => self.uploads.commit(upload, by).await,
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
}

async fn read_back(upload: &Upload, offset: u64, size: u32) -> Result<Bytes, FsError> {
    let read = timeout(WRITE_DEADLINE, upload.read(offset, size));
    read.await.unwrap_or(Err(FsError::TimedOut))
}
