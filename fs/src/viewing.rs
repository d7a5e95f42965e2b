//! What the mount does with names in views: looks them up and lists them by what `views.rs` says, and
//! finds what in the library is meant by a change that is made through one.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use isotope_proto::id::Ino;
use isotope_proto::name::EntryName;
use isotope_proto::time::Timestamp;
use isotope_proto::tree::FOLDER_MODE;

use crate::attr::{self, FileAttr};
use crate::clock;
use crate::error::FsError;
use crate::files::{Answer, DOTS, Files, Listed};
use crate::mirror::Source;
use crate::views::{Seen, View, is_entrance, is_view};

/// The folder of the library for what is stored through a view.
const INCOMING: &str = "incoming";
/// Views have the same numbers in each life of the catalogue, and are the same then: the kernel takes
/// an inode whose generation has changed for another.
const GENERATION: u64 = 0;
/// A view may be another at the next look.
const UNCACHED: Duration = Duration::ZERO;

/// The views of one mount.
pub(crate) struct Views {
    /// The one that is mounted alone.
    root: Option<View>,
    /// What the kernel was told of, by inode number.
    known: Mutex<HashMap<Ino, View>>,
    /// They have no times of their own.
    since: Timestamp,
}

impl Views {
    pub(crate) fn new(root: Option<View>) -> Self {
        Self { root, known: Mutex::default(), since: clock::now() }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Ino, View>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The view that an inode number is.
    pub(crate) fn at(&self, ino: Ino) -> Option<View> {
        if ino == Ino::ROOT {
            return self.root.clone();
        }
        is_view(ino).then(|| self.known().get(&ino).cloned()).flatten()
    }

    /// The kernel is told of it, which is counted before.
    pub(crate) fn learn(&self, view: &View) {
        self.known().insert(view.ino(), view.clone());
    }

    /// The kernel has forgotten it, unless it is told of it again at this moment.
    fn forget(&self, ino: Ino, is_held: impl FnOnce() -> bool) {
        let mut known = self.known();
        if !is_held() {
            known.remove(&ino);
        }
    }

    /// The inode number of what is above.
    fn parent_of(&self, view: &View) -> Ino {
        match view.parent() {
            Some(above) if self.root.as_ref() != Some(&above) => above.ino(),
            Some(_) | None => Ino::ROOT,
        }
    }
}

/// A name in the library, and who is to change it.
pub(crate) struct Behind {
    pub(crate) files: Files,
    pub(crate) folder: Ino,
    pub(crate) name: EntryName,
}

impl Behind {
    pub(crate) fn at(&self) -> (Ino, &EntryName) {
        (self.folder, &self.name)
    }
}

impl Files {
    pub(crate) fn attr_of_view(&self, ino: Ino, view: &View) -> FileAttr {
        attr::of_view(ino, view.takes_uploads(), self.views.since, self.owner)
    }

    fn answer_view(&self, view: &View) -> Answer {
        let ino = view.ino();
        self.mirror.remember(ino, 1);
        self.views.learn(view);
        let attr = self.attr_of_view(ino, view);
        Answer { attr, generation: GENERATION, lifetime: UNCACHED }
    }

    /// The kernel takes back that it knows an inode, so many times.
    pub(crate) fn forget(&self, ino: Ino, count: u64) {
        if self.mirror.forget(ino, count) && is_view(ino) {
            self.views.forget(ino, || self.mirror.is_held(ino));
        }
    }

    /// The folder of all views, by its name in the root.
    pub(crate) fn lookup_entrance(&self, parent: Ino, name: &OsStr) -> Option<Answer> {
        let is_it = name.to_str().is_some_and(|name| is_entrance(parent, name));
        is_it.then(|| self.answer_view(&View::all()))
    }

    pub(crate) fn lookup_in_view(&self, view: &View, name: &OsStr) -> Result<Answer, FsError> {
        if name.len() > EntryName::LEN_MAX {
            return Err(FsError::TooLong);
        }
        let name = name.to_str().ok_or(FsError::NotFound)?;
        let (seen, incoming, generation) = {
            let tree = self.mirror.tree();
            let incoming = tree.folder(Ino::ROOT).and_then(|root| root.child(INCOMING));
            let incoming = incoming.filter(|_| view.takes_uploads());
            let stored = || {
                let ino = tree.folder(incoming?)?.child(name)?;
                // A folder has one place, and that is not here.
                tree.image(ino).map(|_| Seen::Image(ino))
            };
            let seen = view.child(&tree, name).or_else(stored);
            (seen, incoming, tree.generation())
        };
        match seen {
            Some(Seen::View(child)) => Ok(self.answer_view(&child)),
            Some(Seen::Image(ino)) => {
                let attr = self.mirror.with(ino, |inode| attr::of(ino, inode, self.owner));
                let attr = attr.ok_or(FsError::NotFound)?;
                self.mirror.remember(ino, 1);
                Ok(Answer { attr, generation, lifetime: UNCACHED })
            }
            // One that is being written.
            None => incoming
                .and_then(|folder| self.lookup_upload(folder, OsStr::new(name), generation))
                .ok_or(FsError::NotFound),
        }
    }

    /// The entries of a view after a cookie; `add` says when its buffer is full.
    pub(crate) fn list_view(
        &self,
        ino: Ino,
        view: &View,
        cookie: u64,
        mut add: impl FnMut(u64, &OsStr, Listed<'_>, u64) -> bool,
    ) {
        let tree = self.mirror.tree();
        let generation = tree.generation();
        for (at, name, ino) in [(1, ".", ino), (2, "..", self.views.parent_of(view))] {
            if at > cookie && add(at, OsStr::new(name), Listed::Dot(ino), GENERATION) {
                return;
            }
        }
        view.list(&tree, cookie.saturating_sub(DOTS), |at, name, seen| {
            let (listed, generation) = match &seen {
                Seen::View(view) => (Listed::View(view), GENERATION),
                Seen::Image(ino) => match tree.get(*ino) {
                    Some(inode) => (Listed::Viewed(*ino, inode), generation),
                    None => return false,
                },
            };
            add(at + DOTS, OsStr::new(name), listed, generation)
        });
    }

    /// What a name means that is to be made, changed or removed: itself in the library; through a
    /// view that takes uploads, the image that is shown under it, else the name in `/incoming`.
    pub(crate) async fn behind(&self, parent: Ino, name: &EntryName) -> Result<Behind, FsError> {
        let Some(view) = self.views.at(parent) else {
            if is_entrance(parent, name.as_str()) {
                return Err(FsError::NotPermitted);
            }
            return Ok(Behind { files: self.clone(), folder: parent, name: name.clone() });
        };
        if !view.takes_uploads() {
            return Err(FsError::NotPermitted);
        }
        // The kernel changes what it keeps of the view, and has to be told of the library.
        let files = Self { source: Source::View, ..self.clone() };
        if let Some((folder, name)) = self.only_name(&view, name)? {
            return Ok(Behind { files, folder, name });
        }
        let folder = files.incoming().await?;
        Ok(Behind { files, folder, name: name.clone() })
    }

    /// The library's name of what a view shows under one. Of several nobody knows which is meant.
    fn only_name(
        &self,
        view: &View,
        name: &EntryName,
    ) -> Result<Option<(Ino, EntryName)>, FsError> {
        let tree = self.mirror.tree();
        let Some(Seen::Image(ino)) = view.child(&tree, name.as_str()) else { return Ok(None) };
        if tree.image(ino).is_some_and(|image| image.links > 1) {
            return Err(FsError::NotPermitted);
        }
        Ok(tree.name_of(ino))
    }

    /// Whether a name in a view is an image's for good: what is shown under it stays so.
    pub(crate) fn is_kept_name(&self, parent: Ino, name: &EntryName) -> bool {
        let Some(view) = self.views.at(parent) else { return false };
        view.child(&self.mirror.tree(), name.as_str()).is_some()
    }

    /// The folder for what is stored through views; made where it is missing.
    async fn incoming(&self) -> Result<Ino, FsError> {
        let find = || self.mirror.tree().folder(Ino::ROOT).and_then(|root| root.child(INCOMING));
        if let Some(found) = find() {
            return Ok(found);
        }
        let name = EntryName::parse(INCOMING)?;
        match self.change(self.catalog.make_folder(Ino::ROOT, &name, FOLDER_MODE)).await {
            // Somebody else was quicker.
            Ok(()) | Err(FsError::Exists) => find().ok_or(FsError::Busy),
            Err(error) => Err(error),
        }
    }
}
