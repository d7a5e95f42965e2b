//! A file being written: reserved in the catalogue, its bytes on their way to an agent, published
//! when its writer closes it and means it. Until then nobody else sees it; given up, nothing of it
//! remains.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use isotope_proto::crash_point;
use isotope_proto::id::{Ino, UploadId};
use isotope_proto::name::EntryName;
use isotope_proto::time::Timestamp;
use isotope_proto::tree::{Attributes, RenameMode};
use tokio::sync::OnceCell;

use crate::catalog::Catalog;
use crate::clock;
use crate::error::FsError;
use crate::extents::Extents;
use crate::holders::Holders;
use crate::mirror::{Mirror, Source};
use crate::remote::Hosts;
use crate::stage::{Destination, Stage};
use crate::writer::Made;
use crate::writing::WRITE_DEADLINE;

/// What a new file is to become.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    pub(crate) ino: Ino,
    pub(crate) mode: u32,
    /// The inode under which its writer opened it, where that shows another image until this one
    /// is published.
    pub(crate) replaces: Option<Ino>,
    pub(crate) to: Destination,
}

/// One file being written, by however many handles.
pub(crate) struct Upload {
    pub(crate) draft: Draft,
    /// The name that it will have.
    place: Mutex<(Ino, EntryName)>,
    catalog: Catalog,
    hosts: Arc<Hosts>,
    mirror: Arc<Mirror>,
    stage: OnceCell<Stage>,
    size_bytes: AtomicU64,
    written: AtomicBool,
    extents: Mutex<Extents>,
    pub(crate) holders: Holders,
    /// Its name is gone: what is written still is for its writer alone.
    unlinked: AtomicBool,
    set: Mutex<Set>,
    /// The first write that failed.
    failed: Mutex<Option<FsError>>,
    /// How it ended; whoever asks for the end waits for the one that brings it about.
    /// It is being published, or given up: nothing more comes into it.
    ending: AtomicBool,
    end: OnceCell<Result<(), FsError>>,
}

/// Where a write goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriteAt {
    Offset(u64),
    /// O_APPEND: the end is the writer's own, which the kernel may not know.
    End,
}

/// What was set on it, when it was last written, and when anything of it last changed.
#[derive(Debug, Clone, Copy)]
struct Set {
    attributes: Attributes,
    touched: Timestamp,
    changed: Timestamp,
}

/// A file that is being written, as its writer sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) size_bytes: u64,
    pub(crate) mode: u32,
    /// 0 once its name was removed.
    pub(crate) links: u32,
    pub(crate) modified: Timestamp,
    pub(crate) changed: Timestamp,
}

/// What a program has stored, for it to go on with.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) by: u32,
    pub(crate) size_bytes: u64,
    pub(crate) extents: Extents,
}

impl Upload {
    pub(crate) fn new(
        draft: Draft,
        place: (Ino, EntryName),
        catalog: Catalog,
        hosts: Arc<Hosts>,
        mirror: Arc<Mirror>,
    ) -> Self {
        let now = clock::now();
        let set = Set { attributes: Attributes::default(), touched: now, changed: now };
        Self {
            draft,
            place: Mutex::new(place),
            catalog,
            hosts,
            mirror,
            stage: OnceCell::new(),
            size_bytes: AtomicU64::new(0),
            written: AtomicBool::new(false),
            extents: Mutex::default(),
            holders: Holders::default(),
            unlinked: AtomicBool::new(false),
            set: Mutex::new(set),
            failed: Mutex::default(),
            ending: AtomicBool::new(false),
            end: OnceCell::new(),
        }
    }

    /// Folder and name.
    pub(crate) fn place(&self) -> (Ino, EntryName) {
        self.place.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives it another name.
    pub(crate) async fn rename(
        &self,
        to: (Ino, &EntryName),
        mode: RenameMode,
    ) -> Result<(), FsError> {
        self.catalog.rename_upload(self.id(), to, mode).await?;
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = (to.0, to.1.clone());
        Ok(())
    }

    fn set(&self) -> MutexGuard<'_, Set> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_unlinked(&self) -> bool {
        self.unlinked.load(Ordering::Relaxed)
    }

    /// For whoever wrote it, once it is published.
    pub(crate) fn stored(&self, by: u32) -> Stored {
        Stored {
            by,
            size_bytes: self.size_bytes.load(Ordering::Relaxed),
            extents: self.extents().clone(),
        }
    }

    fn extents(&self) -> MutexGuard<'_, Extents> {
        self.extents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is over, and whatever came of it is in the tree.
    pub(crate) fn left(&self) {
        self.mirror.set_made_here(self.draft.ino, false);
        // A listing that the kernel keeps may show it still.
        self.mirror.tell_listing(self.place().0);
    }

    pub(crate) fn id(&self) -> UploadId {
        self.draft.to.upload
    }

    /// As its writer sees it.
    pub(crate) fn shown(&self) -> Shown {
        let set = *self.set();
        Shown {
            size_bytes: self.size_bytes.load(Ordering::Relaxed),
            mode: set.attributes.mode.unwrap_or(self.draft.mode),
            links: u32::from(!self.is_unlinked()),
            modified: set.attributes.modified.unwrap_or(set.touched),
            changed: set.changed,
        }
    }

    fn is_written(&self) -> bool {
        self.written.load(Ordering::Relaxed)
    }

    pub(crate) fn made(&self) -> Made {
        if self.is_written() {
            Made::Written
        } else if self.set().attributes.modified.is_some() {
            Made::Touched
        } else {
            Made::Opened
        }
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.end.initialized()
    }

    /// Mode and times that go with it when it is published.
    pub(crate) fn set_attributes(&self, attributes: Attributes) {
        let mut set = self.set();
        set.attributes.mode = attributes.mode.or(set.attributes.mode);
        set.attributes.modified = attributes.modified.or(set.attributes.modified);
        set.changed = clock::now();
    }

    async fn stage(&self) -> Result<&Stage, FsError> {
        if self.is_over() {
            // A finished image is not changed in place.
            return Err(FsError::NotPermitted);
        }
        let failed = self.failed().clone();
        match failed {
            Some(error) => Err(error),
            None => self.stage.get_or_try_init(|| Stage::open(&self.hosts, &self.draft.to)).await,
        }
    }

    fn failed(&self) -> MutexGuard<'_, Option<FsError>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a failure: what could not be written must not be published as if it had not been
    /// meant, whatever the program does next.
    fn keep_failure<T>(&self, result: Result<T, FsError>) -> Result<T, FsError> {
        if let Err(error) = &result
            && !self.is_over()
        {
            self.failed().get_or_insert_with(|| error.clone());
            self.written.store(true, Ordering::Relaxed);
        }
        result
    }

    fn wrote(&self) {
        self.written.store(true, Ordering::Relaxed);
        self.touch();
    }

    /// Its times are now.
    fn touch(&self) {
        let mut set = self.set();
        (set.touched, set.changed) = (clock::now(), clock::now());
        // Writing after setting a time makes it now, as on any file system.
        set.attributes.modified = None;
    }

    /// Writes at an offset, or at its end.
    pub(crate) async fn write(&self, at: WriteAt, data: Bytes) -> Result<(), FsError> {
        let offset = match at {
            WriteAt::Offset(offset) => offset,
            // The kernel sends the writes of one file in turn.
            WriteAt::End => self.size_bytes.load(Ordering::Relaxed),
        };
        let len = u64::try_from(data.len()).unwrap_or(u64::MAX);
        let end = offset.saturating_add(len);
        let written = async { self.stage().await?.write(offset, data).await };
        let written = tokio::time::timeout(WRITE_DEADLINE, written);
        self.keep_failure(written.await.unwrap_or(Err(FsError::TimedOut)))?;
        crash_point!("mount.write.sent");
        self.size_bytes.fetch_max(end, Ordering::Relaxed);
        self.extents().wrote(offset, len);
        self.wrote();
        Ok(())
    }

    /// As an `open(O_TRUNC)` has it. Another thread may be closing it, and come first.
    pub(crate) async fn empty(&self) -> Result<(), FsError> {
        if self.is_ending() {
            return Err(FsError::InUse);
        }
        self.truncate(0)
            .await
            .map_err(|error| if self.is_ending() { FsError::InUse } else { error })
    }

    pub(crate) async fn truncate(&self, size_bytes: u64) -> Result<(), FsError> {
        // A new file is empty, and asked to be so by every O_TRUNC.
        if size_bytes == 0 && !self.is_written() {
            self.touch();
            return Ok(());
        }
        let truncated = async { self.stage().await?.truncate(size_bytes).await };
        self.keep_failure(truncated.await)?;
        self.size_bytes.store(size_bytes, Ordering::Relaxed);
        self.wrote();
        Ok(())
    }

    pub(crate) async fn allocate(&self, offset: u64, len: u64) -> Result<(), FsError> {
        let allocated = async { self.stage().await?.allocate(offset, len).await };
        self.keep_failure(allocated.await)?;
        self.size_bytes.fetch_max(offset.saturating_add(len), Ordering::Relaxed);
        self.extents().wrote(offset, len);
        self.wrote();
        Ok(())
    }

    pub(crate) async fn read(&self, offset: u64, len: u32) -> Result<Bytes, FsError> {
        if offset >= self.size_bytes.load(Ordering::Relaxed) {
            return Ok(Bytes::new());
        }
        self.stage().await?.read(offset, len.into()).await
    }

    /// Durable, and no more than that.
    pub(crate) async fn sync(&self) -> Result<(), FsError> {
        match self.stage.get() {
            Some(stage) if !self.is_over() => stage.sync().await,
            Some(_) | None => Ok(()),
        }
    }

    /// Publishes it, once; everybody who asks hears how that ended. A failed file is given up
    /// before the error is told, so that nothing appears after it.
    pub(crate) async fn commit(self: &Arc<Self>) -> Result<(), FsError> {
        self.ending.store(true, Ordering::Relaxed);
        // A task of its own: whoever asked may be interrupted, and this must not stop half way.
        let this = Arc::clone(self);
        let ended = tokio::spawn(async move {
            let publish = || async {
                match this.try_commit().await {
                    Ok(()) => Ok(()),
                    Err(error) => this.settle_failure(error).await,
                }
            };
            this.end.get_or_init(publish).await.clone()
        });
        ended.await.unwrap_or_else(|error| Err(FsError::Storage(error.to_string())))
    }

    async fn try_commit(&self) -> Result<(), FsError> {
        if self.is_unlinked() {
            return Ok(());
        }
        crash_point!("mount.close.begun");
        let (_, name) = self.place();
        let sealed = self.stage().await?.seal(name.to_string()).await?;
        crash_point!("mount.close.sealed");
        let set = self.set().attributes;
        let change = self.catalog.publish(self.id(), sealed, set).await?;
        crash_point!("mount.close.published");
        // As if from the feed: a name that led to another file is told to the kernel, and so is
        // what changed of the folder.
        self.mirror.settle(&change, Source::Feed).await;
        self.mirror.told(&change).await;
        crash_point!("mount.close.told");
        Ok(())
    }

    /// After a failure the upload is given up for certain, unless it turns out to be published.
    async fn settle_failure(&self, error: FsError) -> Result<(), FsError> {
        tracing::warn!(name = %self.place().1, %error, "an upload failed");
        match self.catalog.abort(self.id()).await {
            Ok(true) => Ok(()),
            // Unreachable: its lease ends there, and with it the upload.
            Ok(false) | Err(_) => Err(error),
        }
    }

    /// Takes its name away; its writer goes on, and nothing comes of it. False: too late, it is
    /// published.
    pub(crate) async fn remove_name(&self) -> Result<bool, FsError> {
        let published = self.catalog.abort(self.id()).await?;
        self.unlinked.store(!published, Ordering::Relaxed);
        self.set().changed = clock::now();
        Ok(!published)
    }

    /// Gives it up, unless it is over.
    pub(crate) async fn give_up(self: &Arc<Self>) {
        self.ending.store(true, Ordering::Relaxed);
        let this = Arc::clone(self);
        let given_up = tokio::spawn(async move {
            let abort = || async {
                if let Err(error) = this.catalog.abort(this.id()).await {
                    tracing::debug!(%error, "an upload is left to its lease");
                }
                Err(FsError::Stale)
            };
            let _ = this.end.get_or_init(abort).await;
        });
        // A panic there is logged by the runtime; the lease does the rest.
        drop(given_up.await);
    }
}
