//! The rules of uploads, of deleting and of having back. A file exists from the transaction that
//! publishes it; what its agent has yet to do on disk is recorded in that same transaction.

use isotope_proto::change::{Delta, Edit};
use isotope_proto::cluster::{Access, Live, VolumeState};
use isotope_proto::id::{ContentId, ImageId, Ino, NodeId, UploadId, VolumeId};
use isotope_proto::image::{Image, Replica};
use isotope_proto::name::{EntryName, LibraryPath};
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::time::Timestamp;
use isotope_proto::tree::{Attributes, Entry, FOLDER_MODE, Place};
use isotope_proto::upload::{
    Existing, FileTask, FileTaskKind, Sealed, TaskDone, Trashed, Upload, UploadRequest,
};

use crate::library::{
    Node, add_entry, folder, is_views, make_folder_in, node, path_of, remove_entry, touch,
    touch_image,
};
use crate::store::{Edits, Reserved, Rows};

/// How long deleted images can be had back.
pub(crate) const TRASH_KEPT_NS: i64 = 7 * 24 * 3600 * 1_000_000_000;

/// Reserves a name, an image id and an inode number.
pub(crate) fn begin(
    edits: &mut Edits<'_>,
    request: &UploadRequest,
    volume: VolumeId,
    node_id: NodeId,
    now: Timestamp,
) -> Result<Upload, Refusal> {
    if let Some(known) = edits.upload(request.id)? {
        return Ok(known.upload);
    }
    let parent = free_place(edits, &request.place, request.existing)?;
    let upload = Upload {
        id: request.id,
        image: ImageId::mint(now),
        ino: edits.take_ino()?,
        volume,
        node: node_id,
    };
    edits.reserve(&Reserved {
        upload: upload.clone(),
        parent,
        name: request.place.name.clone(),
        mode: request.mode,
        rewrites: request.existing == Existing::Rewrite,
    })?;
    Ok(upload)
}

/// The folder of a name that may be reserved.
fn free_place(rows: &Rows<'_>, place: &Place, existing: Existing) -> Result<Ino, Refusal> {
    let (parent, name) = (folder(rows, &place.folder)?, &place.name);
    if is_views(parent.ino, name) {
        return Err(Refusal::new(Reason::IsAFolder, format!("{name} is a folder")));
    }
    if rows.is_reserved(parent.ino, name)? {
        let text = format!("{name} is being written by somebody else");
        return Err(Refusal::new(Reason::InUse, text));
    }
    if let Some(entry) = rows.entry(parent.ino, name)? {
        match (node(rows, entry.ino)?, existing) {
            (Node::Folder(_), _) => {
                return Err(Refusal::new(Reason::IsAFolder, format!("{name} is a folder")));
            }
            (Node::Image(_), Existing::Refuse) => {
                return Err(Refusal::new(Reason::Exists, format!("{name} exists")));
            }
            (Node::Image(_), Existing::Replace | Existing::Rewrite) => {}
        }
    }
    Ok(parent.ino)
}

/// Gives what is being written another name. Asked again, it has it.
pub(crate) fn rename(
    edits: &mut Edits<'_>,
    upload: UploadId,
    to: &Place,
    existing: Existing,
) -> Result<(), Refusal> {
    let reserved = edits.upload(upload)?.ok_or_else(given_up)?;
    let parent = folder(edits, &to.folder)?.ino;
    if (reserved.parent, &reserved.name) == (parent, &to.name) {
        return Ok(());
    }
    let parent = free_place(edits, to, existing)?;
    edits.release(upload)?;
    edits.reserve(&Reserved { parent, name: to.name.clone(), rewrites: false, ..reserved })
}

fn given_up() -> Refusal {
    let text = "the upload was given up; it took too long without a word from its writer";
    Refusal::new(Reason::NotFound, text)
}

/// The commit point. An image of that name makes way and goes to the trash.
pub(crate) fn publish(
    edits: &mut Edits<'_>,
    upload: UploadId,
    sealed: &Sealed,
    set: Attributes,
    now: Timestamp,
) -> Result<(), Refusal> {
    let reserved = edits.upload(upload)?.ok_or_else(given_up)?;
    let Reserved { upload, parent, name, mode, rewrites } = reserved;
    edits.release(upload.id)?;
    let image = Image {
        id: upload.image,
        ino: upload.ino,
        content: ContentId::mint(now),
        hashes: None,
        filename: name.to_string(),
        size_bytes: sealed.stamp.size_bytes,
        format: sealed.format,
        os: sealed.os.clone(),
        flat_names: Vec::new(),
        facts: sealed.facts.clone(),
        mode: set.mode.unwrap_or(mode),
        created: now,
        modified: set.modified.unwrap_or(Timestamp(sealed.stamp.mtime_ns)),
        changed: now,
        replicas: vec![Replica {
            volume: upload.volume,
            path: sealed.path.clone(),
            stamp: sealed.stamp,
            checked: None,
        }],
    };
    let replica = image.replicas[0].clone();
    edits.write(Delta::Image(Edit::Made(image)))?;
    edits.set_task(upload.volume, &task(FileTaskKind::Finish, upload.image, &replica))?;
    let Some(before) = edits.entry(parent, &name)? else {
        return add_entry(edits, parent, name, upload.ino, now);
    };
    let Node::Image(old) = node(edits, before.ino)? else {
        return Err(Refusal::new(Reason::IsAFolder, format!("{name} is a folder")));
    };
    let names = if rewrites { edits.entries_to(old.ino)? } else { vec![before] };
    let paths = names.iter().map(|it| path_in(edits, it)).collect::<Result<_, _>>()?;
    for before in names {
        // The name stays, and leads to the new image from now on.
        let (parent, after) = (before.parent, Entry { ino: upload.ino, ..before.clone() });
        edits.write(Delta::Entry(Edit::Changed { before, after }))?;
        touch(edits, parent, now)?;
    }
    trash_if_nameless(edits, *old, paths, now)
}

fn task(kind: FileTaskKind, image: ImageId, replica: &Replica) -> FileTask {
    FileTask { kind, image, path: replica.path.clone(), stamp: replica.stamp }
}

fn path_in(rows: &Rows<'_>, entry: &Entry) -> Result<String, Refusal> {
    Ok(path_of(rows, entry.parent)?.join(entry.name.clone()).to_string())
}

/// What has a name, if anything. What is wrong with the place is told by the transaction, which
/// knows what was done before.
fn entry_at(rows: &Rows<'_>, place: &Place) -> Result<Option<Entry>, Refusal> {
    match folder(rows, &place.folder) {
        Ok(parent) => rows.entry(parent.ino, &place.name),
        Err(_) => Ok(None),
    }
}

/// Refuses to delete what lies on a disk that takes no writes: its file would stay. Which disks
/// those are is true only now, so this is asked before the transaction and is no part of it.
pub(crate) fn check_deletable(rows: &Rows<'_>, place: &Place, live: &Live) -> Result<(), Refusal> {
    let Some(entry) = entry_at(rows, place)? else { return Ok(()) };
    let (Node::Image(image), [_]) = (node(rows, entry.ino)?, &rows.entries_to(entry.ino)?[..])
    else {
        return Ok(());
    };
    let is_read_only = |volume| match live.volume(volume) {
        Some(VolumeState::Online(space)) => space.access == Access::ReadOnly,
        Some(VolumeState::Offline(_)) | None => false,
    };
    if image.replicas.iter().any(|replica| is_read_only(replica.volume)) {
        let text = format!(
            "{} lies in a pool that is read-only now, and stays; isotope pool remove takes all of \
             a pool out of the library",
            place.name
        );
        return Err(Refusal::new(Reason::ReadOnly, text));
    }
    Ok(())
}

/// The same for what would make way for what is renamed.
pub(crate) fn check_replaceable(
    rows: &Rows<'_>,
    (from, to): (&Place, &Place),
    live: &Live,
) -> Result<(), Refusal> {
    match (entry_at(rows, from)?, entry_at(rows, to)?) {
        (Some(one), Some(other)) if one.ino == other.ino => Ok(()),
        (Some(_), Some(_)) => check_deletable(rows, to, live),
        // Nothing makes way; or it has done so, and whoever asks was not answered.
        (None, _) | (_, None) => Ok(()),
    }
}

/// Removes a name of an image; with the last one the image goes to the trash.
pub(crate) fn remove(edits: &mut Edits<'_>, place: &Place, now: Timestamp) -> Result<(), Refusal> {
    let (parent, name) = (folder(edits, &place.folder)?, &place.name);
    let Some(entry) = edits.entry(parent.ino, name)? else {
        return Err(Refusal::new(Reason::NotFound, format!("{name}: no such file")));
    };
    match node(edits, entry.ino)? {
        Node::Folder(_) => {
            let text = format!("{name} is a folder; rmdir removes it, once it is empty");
            Err(Refusal::new(Reason::IsAFolder, text))
        }
        Node::Image(image) => {
            let path = path_in(edits, &entry)?;
            remove_entry(edits, entry, now)?;
            trash_if_nameless(edits, *image, vec![path], now)
        }
    }
}

/// An image that lost a name. With the last one: out of the library, its files into the trash.
pub(crate) fn trash_if_nameless(
    edits: &mut Edits<'_>,
    image: Image,
    paths: Vec<String>,
    now: Timestamp,
) -> Result<(), Refusal> {
    if !edits.entries_to(image.ino)?.is_empty() {
        return touch_image(edits, image, now);
    }
    edits.write(Delta::Image(Edit::Removed(image.clone())))?;
    for replica in &image.replicas {
        edits.set_task(replica.volume, &task(FileTaskKind::Trash, image.id, replica))?;
    }
    let expires = Timestamp(now.0.saturating_add(TRASH_KEPT_NS));
    edits.put_in_trash(&Trashed { image, paths, deleted: now, expires })
}

/// Gives a deleted image its names again, beside whatever has them now.
pub(crate) fn restore(
    edits: &mut Edits<'_>,
    image: ImageId,
    now: Timestamp,
) -> Result<(), Refusal> {
    let Some(Trashed { mut image, paths, .. }) = edits.trashed(image)? else {
        return Err(Refusal::new(Reason::NotFound, format!("{image} is not in the trash")));
    };
    edits.take_from_trash(image.id)?;
    for replica in &image.replicas {
        edits.set_task(replica.volume, &task(FileTaskKind::Restore, image.id, replica))?;
    }
    let ino = image.ino;
    for name in std::mem::take(&mut image.flat_names) {
        // What came in its place meanwhile may have taken it over.
        if !edits.is_flat_name(&name)? {
            image.flat_names.push(name);
        }
    }
    edits.write(Delta::Image(Edit::Made(image)))?;
    for path in paths {
        let path: LibraryPath = path.parse()?;
        let Some((above, name)) = path.split() else { continue };
        let mut at = Ino::ROOT;
        for step in above.names() {
            at = match edits.entry(at, step)? {
                Some(entry) if edits.folder(entry.ino)?.is_some() => entry.ino,
                None if !edits.is_reserved(at, step)? => {
                    make_folder_in(edits, at, step, FOLDER_MODE, now)?
                }
                // The name is a file's now: as near to where it was as there is a folder.
                Some(_) | None => break,
            };
        }
        let name = free_name(edits, at, &name, "restored")?;
        add_entry(edits, at, name, ino, now)?;
    }
    Ok(())
}

/// `name`, or where that is taken `stem.ADDITION.ext`, `stem.ADDITION.2.ext`, …
pub(crate) fn free_name(
    rows: &Rows<'_>,
    folder: Ino,
    name: &EntryName,
    addition: &str,
) -> Result<EntryName, Refusal> {
    let mut candidate = name.clone();
    let mut tries = 1_u32;
    while is_views(folder, &candidate)
        || rows.entry(folder, &candidate)?.is_some()
        || rows.is_reserved(folder, &candidate)?
    {
        let numbered = if tries == 1 { addition.to_owned() } else { format!("{addition}.{tries}") };
        candidate = name.with_addition(&numbered);
        tries += 1;
    }
    Ok(candidate)
}

/// Deletes from the trash for good; returns how many images and bytes.
pub(crate) fn purge(edits: &mut Edits<'_>, images: &[ImageId]) -> Result<(u64, u64), Refusal> {
    let mut purged = (0, 0);
    for image in images {
        let Some(Trashed { image, .. }) = edits.trashed(*image)? else { continue };
        edits.take_from_trash(image.id)?;
        for replica in &image.replicas {
            edits.set_task(replica.volume, &task(FileTaskKind::Purge, image.id, replica))?;
        }
        purged = (purged.0 + 1, purged.1 + image.size_bytes);
    }
    Ok(purged)
}

/// Takes note of what an agent did. A file whose place was taken has another one now.
pub(crate) fn tasks_done(
    edits: &mut Edits<'_>,
    volume: VolumeId,
    done: &[TaskDone],
) -> Result<(), Refusal> {
    for TaskDone { task, path } in done {
        if !edits.clear_task(volume, task)? {
            continue;
        }
        let (Some(path), Some(before)) = (path, edits.image(task.image)?) else { continue };
        let mut after = before.clone();
        for replica in &mut after.replicas {
            if replica.volume == volume && replica.path == task.path {
                replica.path = path.clone();
            }
        }
        if after != before {
            edits.write(Delta::Image(Edit::Changed { before, after }))?;
        }
    }
    Ok(())
}
