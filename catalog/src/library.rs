//! The rules of the tree: what each change needs, what it refuses, which records it leaves. It
//! knows records only, neither SQL nor who asked.

use isotope_proto::change::{Delta, Edit};
use isotope_proto::cluster::Pool;
use isotope_proto::id::{Ino, PoolId};
use isotope_proto::image::Image;
use isotope_proto::name::{EntryName, FOLDER_DEPTH_MAX, FolderPath, LibraryPath, VIEWS};
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::time::Timestamp;
use isotope_proto::tree::{Attributes, Entry, Folder, FolderRef, Place, RenameMode};

use crate::store::{Edits, Rows};
use crate::uploads::trash_if_nameless;

/// What an inode is.
#[derive(Debug, Clone)]
pub(crate) enum Node {
    Folder(Folder),
    Image(Box<Image>),
}

fn refuse<T>(reason: Reason, text: String) -> Result<T, Refusal> {
    Err(Refusal::new(reason, text))
}

/// What an inode number leads to; it must lead to something.
pub(crate) fn node(rows: &Rows<'_>, ino: Ino) -> Result<Node, Refusal> {
    if let Some(folder) = rows.folder(ino)? {
        return Ok(Node::Folder(folder));
    }
    match rows.image_of_ino(ino)? {
        Some(image) => Ok(Node::Image(Box::new(image))),
        None => refuse(Reason::NotFound, format!("inode {ino} is gone")),
    }
}

/// The entry at a path, and its node; the root has no entry.
pub(crate) fn find(rows: &Rows<'_>, path: &LibraryPath) -> Result<(Option<Entry>, Node), Refusal> {
    let mut entry: Option<Entry> = None;
    let mut at = Node::Folder(rows.folder_known(Ino::ROOT)?);
    for name in path.names() {
        let Node::Folder(folder) = &at else {
            return refuse(Reason::NotAFolder, format!("{path}: a component is no folder"));
        };
        let Some(next) = rows.entry(folder.ino, name)? else {
            return refuse(Reason::NotFound, format!("{path}: no such file or folder"));
        };
        at = node(rows, next.ino)?;
        entry = Some(next);
    }
    Ok((entry, at))
}

pub(crate) fn folder(rows: &Rows<'_>, folder: &FolderRef) -> Result<Folder, Refusal> {
    match folder {
        FolderRef::Ino(ino) => match node(rows, *ino)? {
            Node::Folder(folder) => Ok(folder),
            Node::Image(_) => refuse(Reason::NotAFolder, format!("inode {ino} is no folder")),
        },
        FolderRef::Path(path) => folder_at(rows, path),
    }
}

fn folder_at(rows: &Rows<'_>, path: &FolderPath) -> Result<Folder, Refusal> {
    let mut at = rows.folder_known(Ino::ROOT)?;
    for name in path.names() {
        let Some(next) = rows.entry(at.ino, name)? else {
            return refuse(Reason::NotFound, format!("{path}: no such folder"));
        };
        let Some(folder) = rows.folder(next.ino)? else {
            return refuse(Reason::NotAFolder, format!("{path}: {name} is no folder"));
        };
        at = folder;
    }
    Ok(at)
}

/// The folders above a folder and itself, from the root's child down; empty for the root.
fn lineage(rows: &Rows<'_>, mut at: Ino) -> Result<Vec<Ino>, Refusal> {
    let mut above = Vec::with_capacity(FOLDER_DEPTH_MAX);
    while at != Ino::ROOT {
        above.push(at);
        let entries = rows.entries_to(at)?;
        let Some(entry) = entries.first() else {
            return refuse(Reason::NotFound, format!("folder {at} is gone"));
        };
        at = entry.parent;
    }
    above.reverse();
    Ok(above)
}

/// Levels of folders below a folder.
fn height(rows: &Rows<'_>, ino: Ino) -> Result<usize, Refusal> {
    let mut levels = 0;
    let mut level = rows.subfolders(ino)?;
    while !level.is_empty() {
        levels += 1;
        let mut next = Vec::new();
        for folder in level {
            next.extend(rows.subfolders(folder)?);
        }
        level = next;
    }
    Ok(levels)
}

/// A folder's times move when its entries change.
pub(crate) fn touch(edits: &mut Edits<'_>, ino: Ino, now: Timestamp) -> Result<(), Refusal> {
    let before = edits.folder_known(ino)?;
    // Never backwards: a clock that was set back must not make a cache believe nothing changed.
    let now = now.max(Timestamp(before.modified.0.saturating_add(1)));
    let after = Folder { modified: now, changed: now, ..before.clone() };
    edits.write(Delta::Folder(Edit::Changed { before, after }))
}

fn too_deep<T>(name: &EntryName) -> Result<T, Refusal> {
    refuse(
        Reason::TooDeep,
        format!("{name} would lie deeper than {FOLDER_DEPTH_MAX} levels of folders"),
    )
}

pub(crate) fn make_folder(
    edits: &mut Edits<'_>,
    place: &Place,
    mode: u32,
    now: Timestamp,
) -> Result<(), Refusal> {
    let parent = folder(edits, &place.folder)?;
    make_folder_in(edits, parent.ino, &place.name, mode, now).map(drop)
}

/// Whether it is the name of the views, which no entry can have.
pub(crate) fn is_views(parent: Ino, name: &EntryName) -> bool {
    parent == Ino::ROOT && name.as_str() == VIEWS
}

/// Refuses a name that something has, that somebody is writing a file under, or that stands for the
/// views.
fn check_free(rows: &Rows<'_>, parent: Ino, name: &EntryName) -> Result<(), Refusal> {
    if rows.entry(parent, name)?.is_some() || is_views(parent, name) {
        return refuse(Reason::Exists, format!("{name} exists"));
    }
    if rows.is_reserved(parent, name)? {
        return refuse(Reason::Exists, format!("{name} is being written"));
    }
    Ok(())
}

/// Makes one folder and returns it.
pub(crate) fn make_folder_in(
    edits: &mut Edits<'_>,
    parent: Ino,
    name: &EntryName,
    mode: u32,
    now: Timestamp,
) -> Result<Ino, Refusal> {
    check_free(edits, parent, name)?;
    if lineage(edits, parent)?.len() >= FOLDER_DEPTH_MAX {
        return too_deep(name);
    }
    let ino = edits.take_ino()?;
    let made = Folder {
        ino,
        mode: mode & 0o7777,
        created: now,
        modified: now,
        changed: now,
        default_pool: None,
    };
    edits.write(Delta::Folder(Edit::Made(made)))?;
    add_entry(edits, parent, name.clone(), ino, now)?;
    Ok(ino)
}

/// Gives an inode a name that is known to be free.
pub(crate) fn add_entry(
    edits: &mut Edits<'_>,
    parent: Ino,
    name: EntryName,
    ino: Ino,
    now: Timestamp,
) -> Result<(), Refusal> {
    let id = edits.take_entry_id()?;
    edits.write(Delta::Entry(Edit::Made(Entry { id, parent, name, ino })))?;
    touch(edits, parent, now)
}

pub(crate) fn remove_entry(
    edits: &mut Edits<'_>,
    entry: Entry,
    now: Timestamp,
) -> Result<(), Refusal> {
    let parent = entry.parent;
    edits.write(Delta::Entry(Edit::Removed(entry)))?;
    touch(edits, parent, now)
}

pub(crate) fn remove_folder(
    edits: &mut Edits<'_>,
    place: &Place,
    now: Timestamp,
) -> Result<(), Refusal> {
    let name = &place.name;
    let parent = folder(edits, &place.folder)?;
    let Some(entry) = edits.entry(parent.ino, name)? else {
        return refuse(Reason::NotFound, format!("{name}: no such folder"));
    };
    let Some(victim) = edits.folder(entry.ino)? else {
        return refuse(Reason::NotAFolder, format!("{name} is no folder"));
    };
    if !edits.is_empty(victim.ino)? {
        return refuse(Reason::NotEmpty, format!("the folder {name} is not empty"));
    }
    remove_entry(edits, entry, now)?;
    edits.write(Delta::Folder(Edit::Removed(victim)))
}

/// Names that one image may have. Each is looked at when the image is; nobody needs as many.
pub(crate) const LINKS_MAX: usize = 1000;

/// Gives an image one more name.
pub(crate) fn link(
    edits: &mut Edits<'_>,
    ino: Ino,
    place: &Place,
    now: Timestamp,
) -> Result<(), Refusal> {
    let (parent, name) = (folder(edits, &place.folder)?, &place.name);
    let Node::Image(image) = node(edits, ino)? else {
        return refuse(Reason::NotPermitted, "a folder has one name only".to_owned());
    };
    check_free(edits, parent.ino, name)?;
    if edits.entries_to(ino)?.len() >= LINKS_MAX {
        let text = format!("the image has {LINKS_MAX} names, and cannot have more");
        return refuse(Reason::TooManyLinks, text);
    }
    touch_image(edits, *image, now)?;
    add_entry(edits, parent.ino, name.clone(), ino, now)
}

/// An image's time of change moves with the number of its names.
pub(crate) fn touch_image(
    edits: &mut Edits<'_>,
    before: Image,
    now: Timestamp,
) -> Result<(), Refusal> {
    let after = Image { changed: now.max(before.changed), ..before.clone() };
    edits.write(Delta::Image(Edit::Changed { before, after }))
}

pub(crate) fn rename(
    edits: &mut Edits<'_>,
    from: &Place,
    to: &Place,
    mode: RenameMode,
    now: Timestamp,
) -> Result<(), Refusal> {
    let (from_parent, to_parent) = (folder(edits, &from.folder)?, folder(edits, &to.folder)?);
    let Some(entry) = edits.entry(from_parent.ino, &from.name)? else {
        return refuse(Reason::NotFound, format!("{}: no such file or folder", from.name));
    };
    if is_views(to_parent.ino, &to.name) {
        return refuse(Reason::Exists, format!("{} exists", to.name));
    }
    let target = edits.entry(to_parent.ino, &to.name)?;
    if let Some(target) = &target {
        if mode == RenameMode::NoReplace {
            return refuse(Reason::Exists, format!("{} exists", to.name));
        }
        // POSIX: two names of one file, or the name itself, are left as they are.
        if target.ino == entry.ino {
            return Ok(());
        }
    }
    if mode == RenameMode::Exchange {
        return exchange(edits, entry, target, &to.name, now);
    }
    if edits.is_reserved(to_parent.ino, &to.name)? {
        return refuse(Reason::InUse, format!("{} is being written", to.name));
    }
    let is_folder = check_move(edits, &entry, to_parent.ino)?;
    if let Some(target) = target {
        give_way(edits, target, is_folder, now)?;
    }
    let after = Entry { parent: to_parent.ino, name: to.name.clone(), ..entry.clone() };
    edits.write(Delta::Entry(Edit::Changed { before: entry, after }))?;
    touch(edits, from_parent.ino, now)?;
    if from_parent.ino != to_parent.ino {
        touch(edits, to_parent.ino, now)?;
    }
    Ok(())
}

/// Refuses to move a folder into itself or too deep. True if it is a folder that is moved.
fn check_move(rows: &Rows<'_>, entry: &Entry, into: Ino) -> Result<bool, Refusal> {
    let Some(moved) = rows.folder(entry.ino)? else { return Ok(false) };
    let above = lineage(rows, into)?;
    if above.contains(&moved.ino) {
        let text = format!("the folder {} cannot be moved into itself", entry.name);
        return refuse(Reason::IntoItself, text);
    }
    if above.len() + 1 + height(rows, moved.ino)? > FOLDER_DEPTH_MAX {
        return too_deep(&entry.name);
    }
    Ok(true)
}

/// What two names lead to changes places, folders or images.
fn exchange(
    edits: &mut Edits<'_>,
    one: Entry,
    other: Option<Entry>,
    to: &EntryName,
    now: Timestamp,
) -> Result<(), Refusal> {
    let Some(other) = other else {
        return refuse(Reason::NotFound, format!("{to}: no such file or folder"));
    };
    for (entry, with) in [(&one, &other), (&other, &one)] {
        if edits.is_reserved(entry.parent, &entry.name)? {
            return refuse(Reason::InUse, format!("{} is being written", entry.name));
        }
        check_move(edits, entry, with.parent)?;
    }
    let parents = (one.parent, other.parent);
    for (before, ino) in [(one.clone(), other.ino), (other, one.ino)] {
        let after = Entry { ino, ..before.clone() };
        edits.write(Delta::Entry(Edit::Changed { before, after }))?;
    }
    touch(edits, parents.0, now)?;
    if parents.0 != parents.1 {
        touch(edits, parents.1, now)?;
    }
    Ok(())
}

pub(crate) fn set_attributes(
    edits: &mut Edits<'_>,
    ino: Ino,
    set: Attributes,
    now: Timestamp,
) -> Result<(), Refusal> {
    match node(edits, ino)? {
        Node::Folder(before) => {
            let after = Folder {
                mode: set.mode.unwrap_or(before.mode),
                modified: set.modified.unwrap_or(before.modified),
                changed: now,
                ..before.clone()
            };
            edits.write(Delta::Folder(Edit::Changed { before, after }))
        }
        Node::Image(before) => {
            let before = *before;
            let after = Image {
                mode: set.mode.unwrap_or(before.mode),
                modified: set.modified.unwrap_or(before.modified),
                changed: now,
                ..before.clone()
            };
            edits.write(Delta::Image(Edit::Changed { before, after }))
        }
    }
}

/// Sets the pool, by its name, for what is stored in a folder and below it, or clears it.
pub(crate) fn set_default_pool(
    edits: &mut Edits<'_>,
    of: &FolderRef,
    pool: Option<&str>,
    now: Timestamp,
) -> Result<(), Refusal> {
    let before = folder(edits, of)?;
    let default_pool = match pool {
        Some(name) => Some(pool_called(&edits.pools()?, name)?.id),
        None => None,
    };
    if before.default_pool == default_pool {
        return Ok(());
    }
    let after = Folder { default_pool, changed: now, ..before.clone() };
    edits.write(Delta::Folder(Edit::Changed { before, after }))
}

pub(crate) fn pool_called<'a>(pools: &'a [Pool], name: &str) -> Result<&'a Pool, Refusal> {
    let found = pools.iter().find(|pool| pool.name == name);
    found.ok_or_else(|| Refusal::new(Reason::NotFound, format!("no pool is called {name}")))
}

/// The pool for what is stored in a folder, and the folder it is set on: this one, or the nearest
/// above that has one.
pub(crate) fn default_pool(
    rows: &Rows<'_>,
    folder: &Folder,
) -> Result<Option<(PoolId, Ino)>, Refusal> {
    let above = lineage(rows, folder.ino)?.into_iter().rev().chain([Ino::ROOT]);
    for ino in above {
        if let Some(pool) = rows.folder_known(ino)?.default_pool {
            return Ok(Some((pool, ino)));
        }
    }
    Ok(None)
}

/// Removes what a rename replaces.
fn give_way(
    edits: &mut Edits<'_>,
    target: Entry,
    for_folder: bool,
    now: Timestamp,
) -> Result<(), Refusal> {
    let name = target.name.clone();
    match (node(edits, target.ino)?, for_folder) {
        (Node::Folder(folder), true) if edits.is_empty(folder.ino)? => {
            edits.write(Delta::Entry(Edit::Removed(target)))?;
            edits.write(Delta::Folder(Edit::Removed(folder)))
        }
        (Node::Folder(_), true) => {
            refuse(Reason::NotEmpty, format!("the folder {name} is not empty"))
        }
        (Node::Folder(_), false) => refuse(Reason::IsAFolder, format!("{name} is a folder")),
        (Node::Image(_), true) => refuse(Reason::NotAFolder, format!("{name} is no folder")),
        (Node::Image(image), false) => {
            let path = path_of(edits, target.parent)?.join(name).to_string();
            edits.write(Delta::Entry(Edit::Removed(target)))?;
            trash_if_nameless(edits, *image, vec![path], now)
        }
    }
}

/// Where a folder or image is; for an image with several names, by its oldest.
pub(crate) fn path_of(rows: &Rows<'_>, mut ino: Ino) -> Result<LibraryPath, Refusal> {
    let mut names = Vec::new();
    while let Some(entry) = rows.entries_to(ino)?.into_iter().next() {
        names.push(entry.name);
        ino = entry.parent;
    }
    Ok(names.into_iter().rev().fold(LibraryPath::default(), |path, name| path.join(name)))
}

/// All paths of an image, the oldest first.
pub(crate) fn paths_of(rows: &Rows<'_>, ino: Ino) -> Result<Vec<LibraryPath>, Refusal> {
    let entries = rows.entries_to(ino)?.into_iter();
    entries.map(|it| Ok(path_of(rows, it.parent)?.join(it.name))).collect()
}
