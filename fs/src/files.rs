//! What the mount does with names, attributes and listings: answered from memory, or asked of the
//! catalogue. Files that are being written are `writing.rs`'s, the kernel's requests and replies the
//! adapter's.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isotope_proto::change::{Change, Delta, Edit};
use isotope_proto::id::{EntryId, Ino};
use isotope_proto::name::EntryName;
use isotope_proto::{crash_point, crash_point_apart};
use tokio::time::{timeout, timeout_at};

use crate::attr::{self, FileAttr, FileType, Owner};
use crate::catalog::{CHANGE_DEADLINE, Catalog};
use crate::error::FsError;
use crate::handle::Handles;
use crate::health::Health;
use crate::mirror::{Mirror, Source};
use crate::passthrough::Passthrough;
use crate::remote::Hosts;
use crate::tree::Inode;
use crate::upload::Upload;
use crate::uploads::Uploads;
use crate::viewing::Views;
use crate::views::View;
use crate::xattr::{self, OfRoot};

/// How long the kernel may believe names and attributes, known or absent: the feed corrects it.
pub(crate) const LIFETIME: Duration = Duration::from_secs(24 * 3600);
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
    pub(crate) views: Arc<Views>,
    /// Who hears of the changes that are made.
    pub(crate) source: Source,
    pub(crate) health: Arc<Health>,
    pub(crate) passthrough: Arc<Passthrough>,
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
    /// In a view: to be looked up again each time.
    Viewed(Ino, &'a Inode),
    View(&'a View),
    /// A folder of which nothing but the number is of interest.
    Dot(Ino),
}

impl Listed<'_> {
    pub(crate) fn ino(self) -> Ino {
        match self {
            Self::Inode(ino, _) | Self::Viewed(ino, _) | Self::Dot(ino) => ino,
            Self::View(view) => view.ino(),
            Self::Upload(upload) => upload.draft.ino,
        }
    }

    pub(crate) fn kind(self) -> FileType {
        match self {
            Self::Inode(_, inode) | Self::Viewed(_, inode) => match inode {
                Inode::Folder(_) => FileType::Directory,
                Inode::Image(_) => FileType::RegularFile,
            },
            Self::View(_) | Self::Dot(_) => FileType::Directory,
            Self::Upload(_) => FileType::RegularFile,
        }
    }
}

impl Files {
    /// Attributes of what is listed, and how long they and the name may be believed.
    pub(crate) fn attr_of_listed(&self, it: Listed<'_>) -> (FileAttr, Duration) {
        match it {
            Listed::Inode(ino, inode) => (attr::of(ino, inode, self.owner), LIFETIME),
            Listed::Viewed(ino, inode) => (attr::of(ino, inode, self.owner), Duration::ZERO),
            Listed::Upload(upload) => {
                (attr::of_upload(upload.draft.ino, upload, self.owner), Duration::ZERO)
            }
            Listed::View(view) => (self.attr_of_view(view.ino(), view), Duration::ZERO),
            Listed::Dot(ino) => (self.attr_of_view(ino, &View::all()), Duration::ZERO),
        }
    }

    pub(crate) fn lookup_now(&self, parent: Ino, name: &OsStr) -> Result<Option<Answer>, FsError> {
        if let Some(view) = self.views.at(parent) {
            return self.lookup_in_view(&view, name).map(Some);
        }
        if let Some(entrance) = self.lookup_entrance(parent, name) {
            return Ok(Some(entrance));
        }
        let tree = self.mirror.tree();
        let Some(folder) = tree.folder(parent) else {
            return match tree.get(parent) {
                Some(_) => Err(FsError::NotAFolder),
                // Removed, and empty then; nothing will ever be in it. Linux has it so, too.
                None if self.mirror.ghost(parent, |_| ()).is_some() => Ok(None),
                None => Err(FsError::Stale),
            };
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
    pub(crate) fn lookup_upload(
        &self,
        parent: Ino,
        name: &OsStr,
        generation: u64,
    ) -> Option<Answer> {
        let upload = self.uploads.named(parent, name.to_str()?)?;
        self.mirror.remember(upload.draft.ino, 1);
        let attr = attr::of_upload(upload.draft.ino, &upload, self.owner);
        Some(Answer { attr, generation, lifetime: Duration::ZERO })
    }

    /// What is shown from a snapshot may have changed long ago: nobody decides by it.
    pub(crate) fn may_change(&self) -> Result<(), FsError> {
        if self.health.ever_followed() { Ok(()) } else { Err(FsError::ReadOnly) }
    }

    /// Makes a change and waits until it shows here.
    pub(crate) async fn change(
        &self,
        change: impl Future<Output = Result<Change, FsError>>,
    ) -> Result<(), FsError> {
        self.may_change()?;
        let changed = timeout(CHANGE_DEADLINE, async {
            let change = change.await?;
            crash_point!("mount.change.made");
            self.mirror.settle(&change, self.source).await;
            if self.source == Source::View {
                self.mirror.told(&change).await;
            }
            Ok(())
        });
        let changed = changed.await.unwrap_or(Err(FsError::TimedOut));
        crash_point_apart!("mount.change.answered");
        changed
    }

    /// An extended attribute.
    pub(crate) fn attribute(&self, ino: Ino, name: &OsStr) -> Result<String, FsError> {
        let tree = self.mirror.tree();
        let feed = || serde_json::to_string(&self.health.told(tree.position, Instant::now()));
        let reads = || serde_json::to_string(&self.passthrough.tally.told());
        xattr::get(&tree, ino, name, |of_root| match of_root {
            OfRoot::Feed => feed().unwrap_or_default(),
            OfRoot::Reads => reads().unwrap_or_default(),
        })
    }

    /// The same for a change that makes a name; the answer shows what it was made for, whatever
    /// others do to it meanwhile.
    pub(crate) async fn make(
        &self,
        (parent, name): (Ino, &EntryName),
        change: impl Future<Output = Result<Change, FsError>>,
    ) -> Result<Answer, FsError> {
        self.may_change()?;
        let deadline = tokio::time::Instant::now() + CHANGE_DEADLINE;
        let change = timeout_at(deadline, change).await.unwrap_or(Err(FsError::TimedOut))?;
        crash_point!("mount.change.made");
        let made = change.deltas.iter().find_map(|delta| match delta {
            Delta::Entry(Edit::Made(it)) if (it.parent, &it.name) == (parent, name) => Some(it.ino),
            _ => None,
        });
        let ino = made.ok_or(FsError::Stale)?;
        // From before it shows: who removes it at once leaves it to the kernel.
        self.mirror.remember(ino, 1);
        let settled = timeout_at(deadline, self.mirror.settle(&change, self.source)).await;
        let shown = settled.ok().and_then(|()| self.made(&change, ino, (parent, name)));
        if shown.is_none() {
            self.mirror.forget(ino, 1);
        }
        crash_point_apart!("mount.change.answered");
        shown.ok_or(FsError::TimedOut)
    }

    fn made(&self, change: &Change, ino: Ino, (parent, name): (Ino, &EntryName)) -> Option<Answer> {
        let tree = self.mirror.tree();
        let leads_to_it =
            tree.folder(parent).is_some_and(|it| it.child(name.as_str()) == Some(ino));
        let generation = tree.generation();
        drop(tree);
        let attr = |inode: &Inode| attr::of(ino, inode, self.owner);
        let removed = || self.mirror.keep_removed(change, ino).as_ref().map(attr);
        let attr = self.mirror.with(ino, attr).or_else(removed)?;
        // Told of another name already, the kernel must not keep this one.
        let lifetime = if leads_to_it { LIFETIME } else { Duration::ZERO };
        Some(Answer { attr, generation, lifetime })
    }

    /// The entries of a folder after a cookie; `add` says when its buffer is full.
    pub(crate) fn list(
        &self,
        ino: Ino,
        cookie: u64,
        mut add: impl FnMut(u64, &OsStr, Listed<'_>, u64) -> bool,
    ) -> Result<(), FsError> {
        if let Some(view) = self.views.at(ino) {
            self.list_view(ino, &view, cookie, add);
            return Ok(());
        }
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
            let (at, (_, name)) = (UPLOADS_FROM + upload.draft.ino.0, upload.place());
            // One that replaces an image is listed as that image until it does.
            if at > cookie
                && folder.child(name.as_str()).is_none()
                && add(at, OsStr::new(name.as_str()), Listed::Upload(&upload), generation)
            {
                break;
            }
        }
        Ok(())
    }
}
