//! What the catalogue has decided about files, done on disk. Each task is found done or does
//! itself: the file is looked for wherever an interrupted try may have left it.

use std::io;
use std::os::fd::OwnedFd;

use isotope_proto::crash_point;
use isotope_proto::id::{ImageId, NodeId};
use isotope_proto::name::{EntryName, VolumePath};
use isotope_proto::upload::{FileTask, FileTaskKind, TaskDone};
use rustix::fs::{AtFlags, OFlags, RenameFlags, fsync, renameat, renameat_with, unlinkat};
use rustix::io::Errno;
use tracing::{info, warn};

use crate::index::Known;
use crate::marker::SIDECAR_DIR;
use crate::stage::{clear, make_dirs, staging_dir};
use crate::volume::{Volume, open_beneath, open_file};
use crate::walk;

const TRASH_DIR: &str = ".isotope/trash";
/// Names tried for a file whose place is taken.
const NAMES_MAX: u32 = 10_000;

/// Where a deleted image's file lies.
pub(crate) fn trash_path(image: ImageId) -> String {
    format!("{TRASH_DIR}/{image}")
}

/// Carries out tasks; returns those that are done.
pub(crate) fn carry_out(volume: &Volume, node: NodeId, tasks: Vec<FileTask>) -> Vec<TaskDone> {
    let root = match volume.root() {
        Ok(root) => root,
        Err(reason) => {
            info!(volume = %volume.id, reason, "tasks wait until the volume is back");
            return Vec::new();
        }
    };
    let mut done = Vec::with_capacity(tasks.len());
    for task in tasks {
        crash_point!("agent.{}.told", task.kind);
        match one(volume, &root, node, &task) {
            Ok(Some(path)) => {
                crash_point!("agent.{}.done", task.kind);
                done.push(TaskDone { path: (path != task.path).then_some(path), task });
            }
            Ok(None) => {
                warn!(image = %task.image, path = %task.path, kind = %task.kind, "the file of this task is not here");
            }
            Err(error) => {
                volume.writable.failed(&error);
                warn!(image = %task.image, path = %task.path, kind = %task.kind, %error, "a file could not be brought to its place; it is tried again");
            }
        }
    }
    done
}

/// Where the file has its place now; `None` if it is nowhere and should be somewhere.
fn one(
    volume: &Volume,
    root: &OwnedFd,
    node: NodeId,
    task: &FileTask,
) -> io::Result<Option<VolumePath>> {
    let trash = VolumePath::parse(&trash_path(task.image)).map_err(invalid)?;
    let found = find(volume, root, node, task, &trash);
    let _moving = volume.moving();
    match (task.kind, found) {
        (FileTaskKind::Finish | FileTaskKind::Restore, Some(at)) => {
            let place = if at.as_str().starts_with(SIDECAR_DIR) {
                move_to_place(root, &at, &task.path)?
            } else {
                at.clone()
            };
            let known = Known { image: task.image, stamp: task.stamp };
            volume.index_mut().insert(place.clone(), known);
            sync_dirs(root, &at, &place)?;
            crash_point!("agent.{}.moved", task.kind);
            clear(root, node, task.image)?;
            Ok(Some(place))
        }
        (FileTaskKind::Finish | FileTaskKind::Restore, None) => Ok(None),
        (FileTaskKind::Trash, Some(at)) => {
            if at != trash {
                make_dirs(root, TRASH_DIR)?;
                renameat(root, at.as_str(), root, trash.as_str())?;
            }
            let mut index = volume.index_mut();
            index.put_aside(task.image, trash.clone(), task.stamp);
            index.remove_from(&task.path, task.image);
            index.remove_from(&at, task.image);
            drop(index);
            sync_dirs(root, &at, &trash)?;
            crash_point!("agent.{}.moved", task.kind);
            clear(root, node, task.image)?;
            Ok(Some(task.path.clone()))
        }
        (FileTaskKind::Purge, Some(at)) => {
            unlinkat(root, at.as_str(), AtFlags::empty())?;
            crash_point!("agent.{}.moved", task.kind);
            forget(volume, task.image, &at);
            clear(root, node, task.image)?;
            Ok(Some(task.path.clone()))
        }
        // Somebody removed it by hand: what was wanted is so.
        (FileTaskKind::Trash | FileTaskKind::Purge, None) => {
            forget(volume, task.image, &task.path);
            Ok(Some(task.path.clone()))
        }
    }
}

fn forget(volume: &Volume, image: ImageId, path: &VolumePath) {
    let mut index = volume.index_mut();
    index.remove_from(path, image);
    index.drop_aside(image);
}

/// The file, known by its stamp, in any of the places it may be in. One that had to take another
/// name is looked for beside its place: an agent that died then may not remember.
fn find(
    volume: &Volume,
    root: &OwnedFd,
    node: NodeId,
    task: &FileTask,
    trash: &VolumePath,
) -> Option<VolumePath> {
    let is_it = |path: &VolumePath| {
        open_file(root, path.as_str()).is_ok_and(|(_, stamp)| stamp == task.stamp)
    };
    let staged = VolumePath::parse(&format!("{}/{}", staging_dir(node), task.image)).ok();
    let known = volume.index().locate(task.image).map(|(path, _)| path.clone());
    let places = [Some(task.path.clone()), known, staged, Some(trash.clone())];
    let place = places.into_iter().flatten().find(is_it);
    place.or_else(|| beside(root, task).into_iter().find(is_it))
}

/// Files beside a task's place with its file's inode number.
fn beside(root: &OwnedFd, task: &FileTask) -> Vec<VolumePath> {
    let (dir, _) = task.path.as_str().rsplit_once('/').unwrap_or((".", task.path.as_str()));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let Ok(opened) = open_beneath(root, dir, flags) else { return Vec::new() };
    let names = walk::names_of_inode(&opened, task.stamp.inode).unwrap_or_default();
    let path = |name: String| VolumePath::parse(&format!("{dir}/{name}")).ok();
    names.into_iter().filter_map(path).collect()
}

/// Renames into the pool; where the name is taken, `stem.2.ext`, `stem.3.ext`, …
fn move_to_place(root: &OwnedFd, from: &VolumePath, place: &VolumePath) -> io::Result<VolumePath> {
    let (dir, name) = place.as_str().rsplit_once('/').unwrap_or(("", place.as_str()));
    make_dirs(root, dir)?;
    let name = EntryName::parse(name).map_err(invalid)?;
    for n in 1..NAMES_MAX {
        let tried = if n == 1 { name.clone() } else { name.with_addition(&n.to_string()) };
        let to = VolumePath::parse(&format!("{dir}/{tried}")).map_err(invalid)?;
        match renameat_with(root, from.as_str(), root, to.as_str(), RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(to),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::other(format!("no free name beside {place}")))
}

/// Makes a rename durable, this try's or an interrupted one's: after a crash the file is at one end
/// or the other. Whoever reads it has been told by the index before, for this may take long.
fn sync_dirs(root: &OwnedFd, from: &VolumePath, to: &VolumePath) -> io::Result<()> {
    crash_point!("agent.rename.unsynced");
    let dir = |path: &VolumePath| match path.as_str().rsplit_once('/') {
        Some((dir, _)) => dir.to_owned(),
        None => ".".to_owned(),
    };
    let mut dirs = vec![dir(from), dir(to)];
    dirs.dedup();
    for dir in dirs {
        fsync(open_beneath(root, &*dir, OFlags::RDONLY | OFlags::DIRECTORY)?)?;
    }
    Ok(())
}

fn invalid(error: isotope_proto::name::InvalidName) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::Arc;

    use isotope_proto::image::Stamp;
    use isotope_proto::time::Timestamp;

    use super::*;
    use crate::stage::{Staged, left_behind};

    const NODE: NodeId = NodeId::from_bytes([1; 16]);
    const IMAGE: ImageId = ImageId::from_bytes([7; 16]);

    fn volume(dir: &Path) -> Arc<Volume> {
        Arc::new(Volume::open(dir, "isos", None, Timestamp(1)).expect("a volume"))
    }

    /// A sealed upload of some bytes.
    fn staged(volume: &Arc<Volume>, bytes: &[u8]) -> (VolumePath, Stamp) {
        let mut staged = Staged::create(Arc::clone(volume), NODE, IMAGE).expect("created");
        staged.write(0, bytes).expect("written");
        let sealed = staged.seal("new.iso").expect("sealed");
        (sealed.path, sealed.stamp)
    }

    fn run(volume: &Volume, kind: FileTaskKind, path: &VolumePath, stamp: Stamp) -> Vec<TaskDone> {
        let task = FileTask { kind, image: IMAGE, path: path.clone(), stamp };
        let done = carry_out(volume, NODE, vec![task.clone()]);
        // Done again, it changes nothing more.
        let path = done.first().and_then(|done| done.path.clone());
        let again = carry_out(volume, NODE, vec![task]);
        assert_eq!(again.first().and_then(|done| done.path.clone()), path);
        done
    }

    #[test]
    fn a_file_goes_from_staging_to_its_place_to_the_trash_and_back_into_nothing() {
        use FileTaskKind::{Finish, Purge, Restore, Trash};
        let dir = tempfile::tempdir().expect("a directory");
        let volume = volume(dir.path());
        let (path, stamp) = staged(&volume, b"bytes");
        let at = |path: &str| fs::read(dir.path().join(path)).ok();
        assert_eq!(at("iso/new.iso"), None, "published before it is moved");
        assert_eq!(left_behind(&volume, NODE).expect("listed"), [IMAGE]);
        assert_eq!(run(&volume, Finish, &path, stamp).len(), 1);
        assert_eq!(at("iso/new.iso").as_deref(), Some(&b"bytes"[..]));
        assert!(left_behind(&volume, NODE).expect("listed").is_empty());
        run(&volume, Trash, &path, stamp);
        assert_eq!(at("iso/new.iso"), None);
        assert!(volume.index().locate(IMAGE).is_some(), "open readers go on");
        run(&volume, Restore, &path, stamp);
        assert_eq!(at("iso/new.iso").as_deref(), Some(&b"bytes"[..]));
        run(&volume, Trash, &path, stamp);
        run(&volume, Purge, &path, stamp);
        assert!(volume.index().locate(IMAGE).is_none());
        assert_eq!(fs::read_dir(dir.path().join(TRASH_DIR)).expect("listed").count(), 0);
    }

    #[test]
    fn a_taken_place_is_told_and_nothing_is_overwritten() {
        let dir = tempfile::tempdir().expect("a directory");
        let volume = volume(dir.path());
        fs::create_dir(dir.path().join("iso")).expect("made");
        fs::write(dir.path().join("iso/new.iso"), "theirs").expect("written");
        let (path, stamp) = staged(&volume, b"ours");
        let done = run(&volume, FileTaskKind::Finish, &path, stamp);
        let moved_to = done[0].path.as_ref().map(VolumePath::as_str);
        assert_eq!(moved_to, Some("iso/new.2.iso"));
        assert_eq!(fs::read(dir.path().join("iso/new.iso")).expect("read"), b"theirs");
        // An agent that died before it wrote that down finds it again.
        volume.index_mut().remove(&VolumePath::parse("iso/new.2.iso").expect("a path"));
        let again = run(&volume, FileTaskKind::Finish, &path, stamp);
        assert_eq!(again, done);
    }

    #[test]
    fn a_task_done_twice_leaves_its_successor_at_the_place_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let volume = volume(dir.path());
        let (path, stamp) = staged(&volume, b"old");
        run(&volume, FileTaskKind::Finish, &path, stamp);
        run(&volume, FileTaskKind::Trash, &path, stamp);
        let successor = ImageId::from_bytes([8; 16]);
        fs::write(dir.path().join("iso/new.iso"), "new").expect("written");
        volume.index_mut().insert(path.clone(), Known { image: successor, stamp });
        for kind in [FileTaskKind::Trash, FileTaskKind::Purge, FileTaskKind::Purge] {
            let _ = carry_out(
                &volume,
                NODE,
                vec![FileTask { kind, image: IMAGE, path: path.clone(), stamp }],
            );
            assert!(volume.index().locate(successor).is_some(), "{kind}");
        }
    }

    #[test]
    fn what_was_never_sealed_leaves_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let volume = volume(dir.path());
        let mut staged = Staged::create(Arc::clone(&volume), NODE, IMAGE).expect("created");
        staged.write(10, b"bytes").expect("written");
        drop(staged);
        // And what a killed agent left.
        let killed =
            dir.path().join(staging_dir(NODE)).join(ImageId::from_bytes([8; 16]).to_string());
        fs::write(&killed, "half").expect("written");
        assert!(left_behind(&volume, NODE).expect("listed").is_empty());
        assert_eq!(fs::read_dir(dir.path().join(staging_dir(NODE))).expect("listed").count(), 0);
    }

    #[test]
    fn the_index_is_not_written_between_a_rename_and_its_sync() {
        let dir = tempfile::tempdir().expect("a directory");
        let volume = volume(dir.path());
        let (path, stamp) = staged(&volume, b"bytes");
        let index = dir.path().join(".isotope/index.jsonl");
        let moving = volume.moving();
        std::thread::scope(|scope| {
            let saved = scope.spawn(|| volume.save_index());
            volume.index_mut().insert(path, Known { image: IMAGE, stamp });
            std::thread::sleep(std::time::Duration::from_millis(100));
            assert!(!index.exists(), "the file may be in staging after a power cut");
            drop(moving);
            saved.join().expect("ended").expect("saved");
        });
        assert!(fs::read_to_string(index).expect("saved").contains("iso/new.iso"));
    }
}
