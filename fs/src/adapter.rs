//! The FUSE boundary: translates requests and replies, and decides nothing. What memory can answer
//! is answered at once; everything else is a task with a deadline, for a thread that waits for a
//! network stalls the whole mount. A reply that is dropped becomes EIO by itself.

use std::ffi::OsStr;
use std::time::Duration;

use bytes::Bytes;
use fuser::{
    BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use isotope_proto::id::Ino;
use isotope_proto::name::EntryName;
use isotope_proto::tree::{Attributes, RenameMode};
use tokio::runtime::Handle as Runtime;
use tracing::debug;

use crate::attr::{self, Owner};
use crate::error::FsError;
use crate::files::{Answer, DOTS, Files, LIFETIME, Listed};
use crate::handle::Open;
use crate::opening::For;
use crate::reader::{Asker, Reading};
use crate::reply::{self, or_reply, parse};
use crate::tally::Why;
use crate::upload::WriteAt;
use crate::{READ_REQUEST_BYTES, clock, errno, xattr};

/// Requests the kernel may have under way without anybody waiting (read-ahead).
const BACKGROUND_MAX: u16 = 64;
/// Pools may lie on one stacked file system, as overlayfs; the kernel knows no more levels than two,
/// and this mount is the other.
const STACK_DEPTH: u32 = 2;
/// There is no limit; 0 would look like a full file system to whoever watches `df -i`.
const INODES_FREE: u64 = 1 << 32;
/// `statfs` counts in these.
const BLOCK_BYTES: u32 = 4096;

pub(crate) struct Adapter {
    pub(crate) files: Files,
    pub(crate) runtime: Runtime,
}

impl Adapter {
    /// Carries out a change in a task of its own, and answers when it is done.
    fn change<C>(&self, reply: ReplyEmpty, change: impl FnOnce(Files) -> C)
    where
        C: Future<Output = Result<(), FsError>> + Send + 'static,
    {
        let change = change(self.files.clone());
        self.runtime.spawn(async move { reply::empty(reply, change.await) });
    }

    /// Answers a read when its bytes are there.
    fn deliver<R>(&self, reply: ReplyData, read: R)
    where
        R: Future<Output = Result<Bytes, FsError>> + Send + 'static,
    {
        self.runtime.spawn(async move { reply::data(reply, read.await) });
    }

    /// The same for a change that makes a name, which the answer shows.
    fn make<C>(&self, reply: ReplyEntry, change: impl FnOnce(Files) -> C)
    where
        C: Future<Output = Result<Answer, FsError>> + Send + 'static,
    {
        let change = change(self.files.clone());
        self.runtime.spawn(async move {
            let it = or_reply!(reply, change.await);
            reply::entry(reply, &it);
        });
    }
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
        let passthrough = &self.files.passthrough;
        if passthrough.is_on() {
            let offered = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok();
            if !offered || config.set_max_stack_depth(STACK_DEPTH).is_err() {
                passthrough.turn_off(Why::Refused);
            }
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match or_reply!(reply, self.files.lookup_now(Ino(parent.0), name)) {
            Some(it) => reply::entry(reply, &it),
            None => reply.entry(&LIFETIME, &attr::absent(self.files.owner), Generation(0)),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.files.forget(Ino(ino.0), nlookup);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply::attr(reply, self.files.attr(Ino(ino.0), req.pid()));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<std::time::SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<std::time::SystemTime>,
        _chgtime: Option<std::time::SystemTime>,
        _bkuptime: Option<std::time::SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let Owner { uid: own_uid, gid: own_gid, .. } = self.files.owner;
        // Everything here belongs to one owner.
        if uid.is_some_and(|uid| uid != own_uid) || gid.is_some_and(|gid| gid != own_gid) {
            return reply.error(errno::of(&FsError::NotPermitted));
        }
        let modified = mtime.map(|time| match time {
            TimeOrNow::SpecificTime(time) => time.into(),
            TimeOrNow::Now => clock::now(),
        });
        let (files, ino, task) = (self.files.clone(), Ino(ino.0), req.pid());
        let mode = match mode.map(|mode| files.mode_to_store(ino, mode, task)).transpose() {
            Ok(mode) => mode,
            Err(error) => return reply.error(errno::of(&error)),
        };
        let set = Attributes { mode, modified };
        let handle = fh.map(|fh| fh.0);
        self.runtime.spawn(async move {
            reply::attr(reply, files.set_attributes(ino, handle, size, set, task).await);
        });
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
        let name = or_reply!(reply, parse(name));
        let parent = Ino(parent.0);
        self.make(reply, |files| async move { files.make_folder(parent, &name, mode).await });
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = or_reply!(reply, parse(name));
        let parent = Ino(parent.0);
        self.change(reply, |files| async move { files.remove_folder(parent, &name).await });
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
            RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return reply.error(Errno::EINVAL),
        };
        let (from, to) = (or_reply!(reply, parse(name)), or_reply!(reply, parse(newname)));
        let parents = (Ino(parent.0), Ino(newparent.0));
        self.change(reply, |files| async move {
            files.rename((parents.0, &from), (parents.1, &to), mode).await
        });
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = or_reply!(reply, parse(name));
        let parent = Ino(parent.0);
        self.change(reply, |files| async move { files.unlink(parent, &name).await });
    }

    fn link(
        &self,
        _req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let name = or_reply!(reply, parse(newname));
        let (ino, parent) = (Ino(ino.0), Ino(newparent.0));
        self.make(reply, |files| async move { files.link(ino, (parent, &name)).await });
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
        // Devices, fifos and sockets are no images.
        reply.error(errno::of(&FsError::NotPermitted));
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let name = or_reply!(reply, parse(name));
        let (files, parent, task) = (self.files.clone(), Ino(parent.0), req.pid());
        self.runtime.spawn(async move {
            match files.create(parent, &name, mode & 0o1777, task).await {
                Ok((upload, handle)) => {
                    let attr = attr::of_upload(upload.draft.ino, &upload, files.owner);
                    let generation = Generation(files.mirror.tree().generation());
                    let direct = FopenFlags::FOPEN_DIRECT_IO;
                    reply.created(&Duration::ZERO, &attr, generation, FileHandle(handle), direct);
                }
                Err(error) => {
                    let error = files.not_created(error, (parent, &name), flags).await;
                    reply.error(errno::of(&error));
                }
            }
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let ino = Ino(ino.0);
        let what_for = match flags.acc_mode() {
            OpenAccMode::O_RDONLY => None,
            OpenAccMode::O_WRONLY => Some(For::Writing),
            OpenAccMode::O_RDWR => Some(For::Both),
        };
        if let Some(what_for) = what_for {
            self.open_to_write(ino, what_for, req.pid(), reply);
        } else if let Some(upload) = self.files.uploads.get(ino) {
            let handle = self.files.handles.open_for_looking(upload);
            reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO);
        } else {
            self.open_to_read(ino, reply);
        }
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let append = flags.0 & libc::O_APPEND != 0;
        let at = if append { WriteAt::End } else { WriteAt::Offset(offset) };
        let lock_owner = lock_owner.map_or(0, |it| it.0);
        let (files, data) = (self.files.clone(), Bytes::copy_from_slice(data));
        self.runtime.spawn(async move {
            let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
            match files.write(fh.0, at, data, lock_owner).await {
                Ok(()) => reply.written(len),
                Err(error) => reply.error(errno::of(&error)),
            }
        });
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode != 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        self.change(reply, |files| async move { files.allocate(fh.0, offset, length).await });
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let open = or_reply!(reply, self.files.handles.get(fh.0));
        // What is fetched ahead is fetched by the runtime's threads.
        let _runtime = self.runtime.enter();
        let files = self.files.clone();
        match open {
            Open::Reading(reader) => {
                let direct = flags.0 & libc::O_DIRECT != 0;
                let asker = if direct { Asker::Program } else { Asker::PageCache };
                match or_reply!(reply, reader.begin(offset, size, asker)) {
                    Reading::Done(bytes) => reply.data(&bytes),
                    Reading::Waiting(it) => {
                        self.deliver(reply, async move { reader.finish(it).await });
                    }
                }
            }
            Open::Looking(upload) => {
                self.deliver(reply, async move { files.look(&upload, offset, size).await });
            }
            Open::Writing(writer) => {
                self.deliver(reply, async move { files.read_through(&writer, offset, size).await });
            }
        }
    }

    /// A close. Never ENOSYS: that would silence the closes of all writers to come.
    fn flush(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let Ok(Open::Writing(writer)) = self.files.handles.get(fh.0) else { return reply.ok() };
        let task = req.pid();
        self.change(reply, |files| async move { files.close(&writer, task, lock_owner.0).await });
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.change(reply, |files| async move { files.sync(fh.0).await });
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
        if let Some(Open::Writing(writer)) = self.files.handles.close(fh.0)
            && let Some((upload, verdict)) = writer.released()
        {
            let files = self.files.clone();
            self.runtime.spawn(async move {
                // The program has closed its file; nobody is left to hear how this ends.
                drop(files.conclude(&upload, verdict, writer.opener).await);
            });
        }
        reply.ok();
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let ino = Ino(ino.0);
        or_reply!(reply, self.files.attr(ino, req.pid()));
        // Nobody tells the kernel of changes in a view.
        let flags = match self.files.views.at(ino) {
            Some(_) => FopenFlags::empty(),
            None => FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
        };
        reply.opened(FileHandle(0), flags);
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.files.list(Ino(ino.0), offset, |at, name, it, _| {
            reply.add(INodeNo(it.ino().0), at, it.kind(), name)
        });
        or_reply!(reply, listed);
        reply.ok();
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let listed = self.files.list(Ino(ino.0), offset, |at, name, it, generation| {
            let (ino, (attr, lifetime)) = (it.ino(), self.files.attr_of_listed(it));
            let generation = Generation(generation);
            let full = reply.add(INodeNo(ino.0), at, name, &lifetime, &attr, generation);
            // The kernel takes each entry for a lookup, except the dots.
            if !full && at > DOTS {
                self.files.mirror.remember(ino, 1);
                if let Listed::View(view) = it {
                    self.files.views.learn(view);
                }
            }
            full
        });
        or_reply!(reply, listed);
        reply.ok();
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let value = self.files.attribute(Ino(ino.0), name);
        reply::attribute(reply, size, value.map(String::into_bytes));
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        reply::attribute(reply, size, Ok(xattr::list(&self.files.mirror.tree(), Ino(ino.0))));
    }

    fn setxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(errno::of(&xattr::refused(name)));
    }

    fn removexattr(&self, _req: &Request, _ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply.error(errno::of(&xattr::refused(name)));
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let tree = self.files.mirror.tree();
        let room = tree.space();
        let blocks = |bytes: u64| bytes / u64::from(BLOCK_BYTES);
        let name_max = u32::try_from(EntryName::LEN_MAX).unwrap_or(u32::MAX);
        reply.statfs(
            blocks(room.capacity_bytes),
            blocks(room.free_bytes),
            blocks(room.available_bytes),
            tree.inode_count() + INODES_FREE,
            INODES_FREE,
            BLOCK_BYTES,
            name_max,
            BLOCK_BYTES,
        );
    }
}
