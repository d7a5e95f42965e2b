//! The FUSE boundary: translates requests and replies, and decides nothing. What memory can answer
//! is answered at once; everything else is a task with a deadline, for a thread that waits for a
//! network stalls the whole mount. A reply that is dropped becomes EIO by itself.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, Request, TimeOrNow,
};
use isotope_proto::change::Change;
use isotope_proto::id::{EntryId, Ino};
use isotope_proto::name::EntryName;
use isotope_proto::tree::RenameMode;
use tokio::runtime::Handle as Runtime;
use tokio::time::timeout;
use tracing::debug;

use crate::attr::{self, Owner};
use crate::catalog::{CHANGE_DEADLINE, Catalog};
use crate::errno;
use crate::error::FsError;
use crate::handle::Handles;
use crate::mirror::Mirror;
use crate::tree::Inode;
use crate::{READ_DEADLINE, READ_REQUEST_BYTES};

/// How long the kernel may believe names and attributes, known or absent: the feed corrects it.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Requests the kernel may have under way without anybody waiting (read-ahead).
const BACKGROUND_MAX: u16 = 64;
/// Cookies of `.` and `..`; entries follow at their id plus this.
const DOTS: u64 = 2;
/// `statfs` counts in these.
const BLOCK_BYTES: u32 = 4096;

#[derive(Clone)]
pub(crate) struct Adapter {
    pub(crate) mirror: Arc<Mirror>,
    pub(crate) handles: Arc<Handles>,
    pub(crate) catalog: Catalog,
    pub(crate) owner: Owner,
    pub(crate) runtime: Runtime,
}

/// What the kernel is told of an entry.
struct Answer {
    attr: FileAttr,
    generation: Generation,
}

fn parse(name: &OsStr) -> Result<EntryName, FsError> {
    Ok(EntryName::parse_bytes(name.as_bytes())?)
}

impl Adapter {
    fn attr(&self, ino: Ino) -> Result<FileAttr, FsError> {
        let attr = |inode: &Inode| attr::of(ino, inode, self.owner);
        self.mirror.with(ino, attr).ok_or(FsError::Stale)
    }

    fn lookup_now(&self, parent: Ino, name: &OsStr) -> Result<Option<Answer>, FsError> {
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
            return Ok(None);
        };
        self.mirror.remember(ino, 1);
        let attr = attr::of(ino, inode, self.owner);
        Ok(Some(Answer { attr, generation: Generation(tree.generation()) }))
    }

    /// Makes a change and waits until it shows here.
    fn change<C>(&self, change: C, answer: impl FnOnce(Result<(), FsError>) + Send + 'static)
    where
        C: Future<Output = Result<Change, FsError>> + Send + 'static,
    {
        let mirror = Arc::clone(&self.mirror);
        self.runtime.spawn(async move {
            let changed = timeout(CHANGE_DEADLINE, async {
                mirror.settle(&change.await?).await;
                Ok(())
            });
            answer(changed.await.unwrap_or(Err(FsError::TimedOut)));
        });
    }

    /// The entries of a folder after a cookie; `add` says when its buffer is full.
    fn list(
        &self,
        ino: Ino,
        cookie: u64,
        mut add: impl FnMut(u64, &OsStr, Ino, &Inode, Generation) -> bool,
    ) -> Result<(), FsError> {
        let tree = self.mirror.tree();
        let Some(folder) = tree.folder(ino) else {
            // A removed folder that is open still is empty.
            return self.mirror.with(ino, |_| ()).ok_or(FsError::Stale);
        };
        let generation = Generation(tree.generation());
        let dots = [(1, ".", ino), (2, "..", folder.parent)];
        for (at, name, ino) in dots {
            if let Some(inode) = tree.get(ino)
                && at > cookie
                && add(at, OsStr::new(name), ino, inode, generation)
            {
                return Ok(());
            }
        }
        for (id, name, ino) in folder.after(EntryId(cookie.saturating_sub(DOTS))) {
            let Some(inode) = tree.get(ino) else { continue };
            if add(id.0 + DOTS, OsStr::new(name.as_str()), ino, inode, generation) {
                break;
            }
        }
        Ok(())
    }
}

fn kind_of(inode: &Inode) -> FileType {
    match inode {
        Inode::Folder(_) => FileType::Directory,
        Inode::Image(_) => FileType::RegularFile,
    }
}

fn reply_empty(reply: ReplyEmpty, result: Result<(), FsError>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno::of(&error)),
    }
}

/// An absent name, cached as such: inode 0 with a lifetime.
fn absent(owner: Owner) -> FileAttr {
    let none = Inode::Image(crate::tree::ImageNode::absent());
    attr::of(Ino(0), &none, owner)
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        for flag in [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_MAX_PAGES,
        ] {
            if config.add_capabilities(flag).is_err() {
                debug!(?flag, "not offered by this kernel");
            }
        }
        // A smaller answer is the kernel's limit, and taken.
        let _ = config.set_max_readahead(READ_REQUEST_BYTES);
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.lookup_now(Ino(parent.0), name) {
            Ok(Some(it)) => reply.entry(&LIFETIME, &it.attr, it.generation),
            Ok(None) => reply.entry(&LIFETIME, &absent(self.owner), Generation(0)),
            Err(error) => reply.error(errno::of(&error)),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.mirror.forget(Ino(ino.0), nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(Ino(ino.0)) {
            Ok(attr) => reply.attr(&LIFETIME, &attr),
            Err(error) => reply.error(errno::of(&error)),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<std::time::SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<std::time::SystemTime>,
        _chgtime: Option<std::time::SystemTime>,
        _bkuptime: Option<std::time::SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(errno::of(&FsError::NotPermitted));
    }

    fn mkdir(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let name = match parse(name) {
            Ok(name) => name,
            Err(error) => return reply.error(errno::of(&error)),
        };
        let (catalog, this, parent) = (self.catalog.clone(), self.clone(), Ino(parent.0));
        let shown = name.clone();
        let made = async move { catalog.make_folder(parent, &name, mode).await };
        self.change(made, move |result| {
            let found = result.and_then(|()| this.lookup_now(parent, OsStr::new(shown.as_str())));
            match found {
                Ok(Some(it)) => reply.entry(&LIFETIME, &it.attr, it.generation),
                // Made, and removed again by somebody else meanwhile.
                Ok(None) => reply.error(Errno::ENOENT),
                Err(error) => reply.error(errno::of(&error)),
            }
        });
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = match parse(name) {
            Ok(name) => name,
            Err(error) => return reply.error(errno::of(&error)),
        };
        let (catalog, parent) = (self.catalog.clone(), Ino(parent.0));
        let removed = async move { catalog.remove_folder(parent, &name).await };
        self.change(removed, move |result| reply_empty(reply, result));
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            _ if flags.is_empty() => RenameMode::Replace,
            RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
            _ => return reply.error(Errno::EINVAL),
        };
        let (from, to) = match (parse(name), parse(newname)) {
            (Ok(from), Ok(to)) => (from, to),
            (Err(error), _) | (_, Err(error)) => return reply.error(errno::of(&error)),
        };
        let (catalog, parents) = (self.catalog.clone(), (Ino(parent.0), Ino(newparent.0)));
        let renamed =
            async move { catalog.rename((parents.0, &from), (parents.1, &to), mode).await };
        self.change(renamed, move |result| reply_empty(reply, result));
    }

    fn unlink(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(errno::of(&FsError::NotPermitted));
    }

    fn link(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _newparent: INodeNo,
        _newname: &OsStr,
        reply: ReplyEntry,
    ) {
        reply.error(errno::of(&FsError::NotPermitted));
    }

    fn mknod(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(errno::of(&FsError::ReadOnly));
    }

    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let refused = parse(name).map_or_else(|error| error, |_| FsError::ReadOnly);
        reply.error(errno::of(&refused));
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(errno::of(&FsError::NotPermitted));
        }
        match self.handles.open(Ino(ino.0)) {
            Ok(id) => {
                let flags = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
                reply.opened(FileHandle(id), flags);
            }
            Err(error) => reply.error(errno::of(&error)),
        }
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let handle = match self.handles.get(fh.0) {
            Ok(handle) => handle,
            Err(error) => return reply.error(errno::of(&error)),
        };
        self.runtime.spawn(async move {
            let read = timeout(READ_DEADLINE, handle.read(offset, size));
            let late = || FsError::Unreachable("no host delivered in time".to_owned());
            match read.await.unwrap_or_else(|_| Err(late())) {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => {
                    debug!(%error, offset, size, "read failed");
                    reply.error(errno::of(&error));
                }
            }
        });
    }

    /// Nothing to write back. Never ENOSYS: that would silence the flushes of writers to come.
    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.handles.close(fh.0);
        reply.ok();
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.attr(Ino(ino.0)) {
            Ok(_) => {
                let flags = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
                reply.opened(FileHandle(0), flags);
            }
            Err(error) => reply.error(errno::of(&error)),
        }
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.list(Ino(ino.0), offset, |at, name, ino, inode, _| {
            reply.add(INodeNo(ino.0), at, kind_of(inode), name)
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno::of(&error)),
        }
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let listed = self.list(Ino(ino.0), offset, |at, name, ino, inode, generation| {
            let attr = attr::of(ino, inode, self.owner);
            let full = reply.add(INodeNo(ino.0), at, name, &LIFETIME, &attr, generation);
            // The kernel takes each entry for a lookup, except the dots.
            if !full && at > DOTS {
                self.mirror.remember(ino, 1);
            }
            full
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno::of(&error)),
        }
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let tree = self.mirror.tree();
        let room = tree.space();
        let blocks = |bytes: u64| bytes / u64::from(BLOCK_BYTES);
        let name_max = u32::try_from(EntryName::LEN_MAX).unwrap_or(u32::MAX);
        reply.statfs(
            blocks(room.capacity_bytes),
            blocks(room.free_bytes),
            blocks(room.available_bytes),
            tree.inode_count(),
            0,
            BLOCK_BYTES,
            name_max,
            BLOCK_BYTES,
        );
    }
}
