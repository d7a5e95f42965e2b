//! The tree shared by everyone in the mount: the feed and the mount's own changes write it, the
//! kernel's requests read it. Also what has left the tree while the kernel still holds it.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use isotope_proto::change::{Change, Delta, Edit};
use isotope_proto::cluster::Live;
use isotope_proto::id::Ino;
use tokio::sync::watch;

use crate::notify::Notifications;
use crate::tree::{Applied, Inode, Position, Stale, Tree};

/// Who made a change known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Feed,
    /// The kernel's own request: it corrects its caches itself when it is answered.
    Own,
    /// The kernel's own request about a view: of the library behind it the kernel has to be told, and
    /// is before it is answered.
    View,
}

pub(crate) struct Mirror {
    // Taken in this order; neither is held across an await or a notification.
    tree: RwLock<Tree>,
    held: Mutex<Held>,
    /// Files being written here, by the inode number they will have: the kernel made their names
    /// itself, and need not be told of them.
    made_here: Mutex<HashSet<Ino>>,
    position: watch::Sender<Position>,
    notifications: Notifications,
}

/// What the kernel holds.
#[derive(Default)]
struct Held {
    /// Lookups that were answered and not forgotten yet.
    lookups: HashMap<Ino, u64>,
    /// Out of the tree, but held: their attributes and bytes go on until the last forget.
    ghosts: HashMap<Ino, Inode>,
}

impl Mirror {
    pub(crate) fn new(mut tree: Tree, notifications: Notifications) -> Self {
        tree.end_list();
        let position = watch::Sender::new(tree.position);
        Self {
            tree: RwLock::new(tree),
            held: Mutex::default(),
            made_here: Mutex::default(),
            position,
            notifications,
        }
    }

    pub(crate) fn tree(&self) -> RwLockReadGuard<'_, Tree> {
        self.tree.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn notifications(&self) -> &Notifications {
        &self.notifications
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies a change if it is the next one. False: earlier ones are missing.
    pub(crate) fn apply(&self, change: &Change, source: Source) -> bool {
        let applied = {
            let mut tree = self.tree.write().unwrap_or_else(PoisonError::into_inner);
            let applied = tree.apply(change);
            if let Applied::Now { gone, .. } = &applied {
                self.keep_ghosts(gone);
                self.position.send_replace(tree.position);
            }
            applied
        };
        match applied {
            Applied::Now { mut stale, .. } => {
                if source != Source::Own {
                    let known = self.known_to_the_kernel(change);
                    stale.retain(|it| !known.contains(it));
                    self.notifications.send(stale);
                }
                true
            }
            Applied::Before => true,
            Applied::OutOfOrder => false,
        }
    }

    /// Names that a change gives to files that the kernel made here.
    fn known_to_the_kernel(&self, change: &Change) -> Vec<Stale> {
        let made_here = self.made_here.lock().unwrap_or_else(PoisonError::into_inner);
        let known = |delta: &Delta| match delta {
            Delta::Entry(Edit::Made(entry)) if made_here.contains(&entry.ino) => {
                Some(Stale::Name { folder: entry.parent, name: entry.name.clone() })
            }
            _ => None,
        };
        change.deltas.iter().filter_map(known).collect()
    }

    /// A file is being written here, or is no more.
    pub(crate) fn set_made_here(&self, ino: Ino, is: bool) {
        let mut made_here = self.made_here.lock().unwrap_or_else(PoisonError::into_inner);
        if is {
            made_here.insert(ino)
        } else {
            made_here.remove(&ino)
        };
    }

    /// What a folder's listing shows of files being written here has changed.
    pub(crate) fn tell_listing(&self, folder: Ino) {
        self.notifications.send(vec![Stale::Listing(folder)]);
    }

    /// Puts a newly listed tree in the place of the old one.
    pub(crate) fn replace(&self, mut new: Tree) {
        new.end_list();
        loop {
            // Comparing a million entries takes a while, in which requests must be answered.
            let (compared, (stale, gone)) = {
                let tree = self.tree();
                (tree.position, tree.outdated_by(&new))
            };
            let mut tree = self.tree.write().unwrap_or_else(PoisonError::into_inner);
            if tree.position != compared {
                continue;
            }
            self.keep_ghosts(&gone);
            new.set_live(tree.live().clone());
            self.position.send_replace(new.position);
            let old = std::mem::replace(&mut *tree, new);
            drop(tree);
            self.notifications.send(stale);
            drop(old);
            return;
        }
    }

    pub(crate) fn set_live(&self, live: Live) {
        self.tree.write().unwrap_or_else(PoisonError::into_inner).set_live(live);
    }

    /// Returns once a change of ours is in the tree, so that its maker sees it: applied here if
    /// it is the next one, else when the feed has brought those before it.
    pub(crate) async fn settle(&self, change: &Change, source: Source) {
        if self.apply(change, source) {
            return;
        }
        let mut position = self.position.subscribe();
        let reached =
            |at: &Position| at.incarnation != change.incarnation || at.revision >= change.revision;
        // The sender lives as long as self.
        let _ = position.wait_for(reached).await;
    }

    /// Returns once a folder shows a name that somebody else has just given, or is gone.
    pub(crate) async fn shows(&self, folder: Ino, name: &str) {
        let mut position = self.position.subscribe();
        while self.tree().folder(folder).is_some_and(|it| it.child(name).is_none()) {
            // The sender lives as long as self.
            if position.changed().await.is_err() {
                return;
            }
        }
    }

    /// Returns once the kernel knows what a change did to folders; its maker's next look is right.
    /// Not for a request that holds the kernel's lock of one of them.
    pub(crate) async fn told(&self, change: &Change) {
        let folders: HashSet<Ino> = change.deltas.iter().flat_map(parents).collect();
        let notifications = self.notifications.clone();
        let wait = move || folders.iter().for_each(|it| notifications.wait_until_told(*it));
        // A panic there is logged by the runtime; the kernel is told all the same.
        drop(tokio::task::spawn_blocking(wait).await);
    }

    pub(crate) fn position(&self) -> Position {
        *self.position.borrow()
    }

    /// Looks at an inode in the tree, or at the ghost the kernel still holds.
    pub(crate) fn with<T>(&self, ino: Ino, look: impl FnOnce(&Inode) -> T) -> Option<T> {
        if let Some(inode) = self.tree().get(ino) {
            return Some(look(inode));
        }
        self.ghost(ino, look)
    }

    /// Looks at an inode that has left the tree while the kernel holds it.
    pub(crate) fn ghost<T>(&self, ino: Ino, look: impl FnOnce(&Inode) -> T) -> Option<T> {
        self.held().ghosts.get(&ino).map(look)
    }

    /// The kernel was told of an inode `count` times; called before the answer is sent.
    pub(crate) fn remember(&self, ino: Ino, count: u64) {
        *self.held().lookups.entry(ino).or_default() += count;
    }

    /// Whether the kernel knows of it.
    pub(crate) fn is_held(&self, ino: Ino) -> bool {
        self.held().lookups.contains_key(&ino)
    }

    /// True if the kernel knows nothing of it any more.
    pub(crate) fn forget(&self, ino: Ino, count: u64) -> bool {
        let mut held = self.held();
        let Some(lookups) = held.lookups.get_mut(&ino) else { return false };
        *lookups = lookups.saturating_sub(count);
        let is_forgotten = *lookups == 0;
        if is_forgotten {
            held.lookups.remove(&ino);
            held.ghosts.remove(&ino);
        }
        is_forgotten
    }

    /// What a change made for the kernel, and others removed before it could be told.
    pub(crate) fn keep_removed(&self, change: &Change, ino: Ino) -> Option<Inode> {
        let made = {
            let mut tree = self.tree.write().unwrap_or_else(PoisonError::into_inner);
            tree.as_changed(change, ino)?
        };
        let ghost = unlinked(&made);
        self.held().ghosts.insert(ino, ghost.clone());
        Some(ghost)
    }

    fn keep_ghosts(&self, gone: &[(Ino, Inode)]) {
        let mut held = self.held();
        for (ino, inode) in gone {
            if held.lookups.contains_key(ino) {
                held.ghosts.insert(*ino, unlinked(inode));
            }
        }
    }
}

/// The folders that an entry was in, and is in.
fn parents(delta: &Delta) -> Vec<Ino> {
    match delta {
        Delta::Entry(edit) => {
            [edit.before(), edit.after()].into_iter().flatten().map(|entry| entry.parent).collect()
        }
        _ => Vec::new(),
    }
}

/// As the kernel sees it from now on: no name leads to it.
fn unlinked(inode: &Inode) -> Inode {
    let mut inode = inode.clone();
    match &mut inode {
        Inode::Image(image) => image.links = 0,
        Inode::Folder(folder) => folder.listed = false,
    }
    inode
}
