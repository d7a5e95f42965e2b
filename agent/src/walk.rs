//! What lies in a volume: its images, each with its stamp, and what was met but not taken.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;

use isotope_proto::image::Stamp;
use isotope_proto::name::{EntryName, VolumePath};
use rustix::fs::{AtFlags, Dir, FileType, OFlags, fstat, statat};
use rustix::io::Errno;

use crate::layout::Layout;
use crate::volume::{open_beneath, stamp_of};

/// Levels of sub-directories walked; deeper ones are reported.
const DEPTH_MAX: usize = 32;
/// Problems reported in full; the rest are counted in one line.
const PROBLEMS_MAX: usize = 100;
/// A volume of which so many places cannot be read has a broken disk; the look says nothing.
const UNSEEN_MAX: usize = 1000;

/// Where the images' directory lies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum ImageDir {
    #[default]
    Missing,
    /// On the file system of the volume's root.
    Within,
    /// On a file system of its own, mounted there.
    Apart,
}

/// A file that would not be adopted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Other {
    pub(crate) stamp: Stamp,
    pub(crate) has_image_name: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) files: BTreeMap<VolumePath, Stamp>,
    /// Files that are there but would not be adopted: hard-linked, hidden, without an image's
    /// name. One that is known stays known.
    pub(crate) others: BTreeMap<VolumePath, Other>,
    /// What could not be looked at, mostly directories. What is known there counts as there.
    pub(crate) unseen: BTreeSet<String>,
    pub(crate) image_dir: ImageDir,
    /// Of the images' directory, while this host runs.
    pub(crate) device: u64,
    /// Of the images' directory; 0 if there is none.
    pub(crate) inode: u64,
    /// Path and reason.
    pub(crate) problems: Vec<(String, String)>,
    pub(crate) problems_more: usize,
}

impl Seen {
    fn problem(&mut self, path: &str, reason: impl Into<String>) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push((path.to_owned(), reason.into()));
        } else {
            self.problems_more += 1;
        }
    }

    /// What is unreadable must not look deleted.
    fn unseen(&mut self, path: &str, reason: impl Into<String>) {
        self.unseen.insert(path.to_owned());
        self.problem(path, reason);
    }

    /// Whether a path lies where nothing could be seen.
    pub(crate) fn hides(&self, path: &VolumePath) -> bool {
        let path = path.as_str();
        let above = path.match_indices('/').map(|(end, _)| &path[..end]);
        !self.unseen.is_empty() && above.chain([path]).any(|it| self.unseen.contains(it))
    }
}

/// Walks the images of a volume. `progress` is told the number of files seen so far.
pub(crate) fn walk(root: &OwnedFd, layout: &Layout, progress: impl FnMut(u64)) -> io::Result<Seen> {
    let open = |path: &str| open_beneath(root, path, OFlags::RDONLY | OFlags::DIRECTORY);
    walk_by(open, layout, fstat(root)?.st_dev, progress)
}

/// Paths wait, not open directories: a volume may have more of them than a process may open.
fn walk_by(
    open: impl Fn(&str) -> rustix::io::Result<OwnedFd>,
    layout: &Layout,
    root_device: u64,
    mut progress: impl FnMut(u64),
) -> io::Result<Seen> {
    let mut seen = Seen::default();
    let image_dir = layout.image_dir();
    let (device, inode) = match open(image_dir) {
        Ok(dir) => fstat(&dir).map(|stat| (stat.st_dev, stat.st_ino))?,
        // A pool that nothing was put into yet, or a disk that is not there: the caller knows.
        Err(Errno::NOENT) => return Ok(seen),
        Err(error) => return Err(error.into()),
    };
    (seen.device, seen.inode) = (device, inode);
    seen.image_dir = if device == root_device { ImageDir::Within } else { ImageDir::Apart };
    let meet = Meet { layout, device };
    let mut pending = vec![(image_dir.to_owned(), 0)];
    while let Some((path, depth)) = pending.pop() {
        let listed = open(&path).map_err(io::Error::from).and_then(|dir| Ok((names(&dir)?, dir)));
        let (names, dir) = match listed {
            Ok(listed) => listed,
            Err(error) if path == image_dir => return Err(error),
            // Renamed or removed since it was met: the next look tells which.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                seen.unseen.insert(path);
                continue;
            }
            Err(error) => {
                seen.unseen(&path, format!("cannot be read: {error}; what is known in it stays"));
                continue;
            }
        };
        for name in names {
            if let Some(below) = meet.one(&mut seen, &dir, &path, &name) {
                if depth == DEPTH_MAX {
                    seen.problem(&below, "lies too deep to be walked");
                } else {
                    pending.push((below, depth + 1));
                }
            }
            progress(u64::try_from(seen.files.len()).unwrap_or(u64::MAX));
        }
        if seen.unseen.len() > UNSEEN_MAX {
            let first = seen.unseen.first().cloned().unwrap_or_default();
            let text = format!("more than {UNSEEN_MAX} directories cannot be read, as {first}");
            return Err(io::Error::other(text));
        }
    }
    if seen.problems_more > 0 {
        let more = format!("and {} more", seen.problems_more);
        seen.problems.push((image_dir.to_owned(), more));
    }
    Ok(seen)
}

/// What a walk goes by.
struct Meet<'a> {
    layout: &'a Layout,
    /// Of the images' directory; what is mounted below it is another volume's business.
    device: u64,
}

impl Meet<'_> {
    /// Takes note of one name in a directory; returns the path of a directory to be walked.
    fn one(&self, seen: &mut Seen, dir: &OwnedFd, path: &str, name: &[u8]) -> Option<String> {
        let Ok(name) = std::str::from_utf8(name) else {
            // Hidden files are nobody's business, whatever they are called.
            if !name.starts_with(b".") {
                let shown = String::from_utf8_lossy(name);
                seen.problem(&format!("{path}/{shown}"), "its name is not UTF-8");
            }
            return None;
        };
        let at = format!("{path}/{name}");
        let stat = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // Gone since the directory was read.
            Err(Errno::NOENT) => return None,
            Err(error) => {
                seen.unseen(&at, format!("cannot be looked at: {error}"));
                return None;
            }
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory if name.starts_with('.') => {}
            FileType::Directory if stat.st_dev != self.device => {
                // It covers what lay there before.
                seen.unseen(
                    &at,
                    "another file system is mounted here; add it as a pool of its own",
                );
            }
            FileType::Directory => return Some(at),
            FileType::RegularFile => self.file(seen, name, at, &stat),
            _ if !self.layout.takes(name) => {}
            FileType::Symlink => seen.problem(&at, "is a symbolic link; they are not followed"),
            _ => seen.problem(&at, "is not a regular file"),
        }
        None
    }

    fn file(&self, seen: &mut Seen, name: &str, at: String, stat: &rustix::fs::Stat) {
        let taken = self.layout.takes(name);
        let path = match EntryName::parse(name).and_then(|_| VolumePath::parse(&at)) {
            Ok(path) => path,
            Err(error) => {
                if taken {
                    seen.problem(&at, error.to_string());
                }
                return;
            }
        };
        if taken && stat.st_nlink == 1 {
            seen.files.insert(path, stamp_of(stat));
            return;
        }
        if taken {
            let links = stat.st_nlink;
            let reason = format!("has {links} hard links; only files of one name are taken");
            seen.problem(&at, reason);
        }
        seen.others.insert(path, Other { stamp: stamp_of(stat), has_image_name: taken });
    }
}

/// The names in a directory.
pub(crate) fn names(dir: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

/// The names in a directory that lead to one inode, of those that are text.
pub(crate) fn names_of_inode(dir: &OwnedFd, inode: u64) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if entry.ino() == inode {
            names.extend(entry.file_name().to_str().map(str::to_owned));
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn images_are_found_and_everything_else_is_explained_or_passed_over() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |path: &str| dir.path().join(path);
        fs::create_dir_all(at("iso/linux/deep")).expect("made");
        for path in [
            "iso/a.iso",
            "iso/linux/B.ISO",
            "iso/linux/deep/c.ova",
            "iso/notes.txt",
            "iso/.d.iso.part",
            "outside.iso",
        ] {
            fs::write(at(path), path).expect("written");
        }
        symlink("a.iso", at("iso/link.iso")).expect("linked");
        fs::write(at("iso/one.iso"), "1").expect("written");
        fs::hard_link(at("iso/one.iso"), at("iso/two.iso")).expect("linked");
        fs::write(at("iso/tab\there.iso"), "").expect("written");
        let bad = dir.path().join("iso").join(std::ffi::OsStr::from_bytes(b"\xff.iso"));
        fs::write(bad, "").expect("written");

        let root = OwnedFd::from(File::open(dir.path()).expect("opened"));
        let mut counted = 0;
        let seen = walk(&root, &Layout::default(), |count| counted = count).expect("walked");
        let files: Vec<&str> = seen.files.keys().map(VolumePath::as_str).collect();
        assert_eq!(files, ["iso/a.iso", "iso/linux/B.ISO", "iso/linux/deep/c.ova"]);
        assert_eq!(counted, 3);
        let mut problems: Vec<&str> = seen.problems.iter().map(|(path, _)| &**path).collect();
        problems.sort_unstable();
        assert_eq!(
            problems,
            ["iso/link.iso", "iso/one.iso", "iso/tab\there.iso", "iso/two.iso", "iso/\u{fffd}.iso"]
        );
    }

    #[test]
    fn a_pool_without_images_is_empty() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = OwnedFd::from(File::open(dir.path()).expect("opened"));
        assert_eq!(walk(&root, &Layout::default(), |_| {}).expect("walked"), Seen::default());
    }

    fn root(dir: &tempfile::TempDir) -> OwnedFd {
        OwnedFd::from(File::open(dir.path()).expect("opened"))
    }

    fn path(text: &str) -> VolumePath {
        VolumePath::parse(text).expect("a path")
    }

    #[test]
    fn what_would_not_be_adopted_is_met_all_the_same() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(dir.path().join("iso/.hidden")).expect("made");
        for path in ["iso/one.iso", "iso/noext", "iso/.dot.iso", "iso/.hidden/in.iso"] {
            fs::write(dir.path().join(path), path).expect("written");
        }
        let two = dir.path().join("outside");
        fs::hard_link(dir.path().join("iso/one.iso"), two).expect("linked");
        let seen = walk(&root(&dir), &Layout::default(), |_| {}).expect("walked");
        assert!(seen.files.is_empty());
        let others: Vec<&str> = seen.others.keys().map(VolumePath::as_str).collect();
        assert_eq!(others, ["iso/.dot.iso", "iso/noext", "iso/one.iso"]);
        assert_eq!(seen.problems.len(), 1, "only the link is remarkable");
    }

    #[test]
    fn more_directories_than_a_process_may_open_are_walked() {
        use std::cell::RefCell;
        use std::os::fd::AsRawFd;
        let dir = tempfile::tempdir().expect("a directory");
        for n in 0..300 {
            let at = dir.path().join(format!("iso/{n}"));
            fs::create_dir_all(&at).expect("made");
            fs::write(at.join("a.iso"), "").expect("written");
        }
        let root = root(&dir);
        let highest = RefCell::new(0);
        let open = |path: &str| {
            let opened = open_beneath(&root, path, OFlags::RDONLY | OFlags::DIRECTORY)?;
            highest.replace_with(|most| opened.as_raw_fd().max(*most));
            Ok(opened)
        };
        let device = fstat(&root).expect("looked at").st_dev;
        assert_eq!(
            walk_by(open, &Layout::default(), device, |_| {}).expect("walked").files.len(),
            300
        );
        // Other tests open files, too, but not so many.
        let limit = root.as_raw_fd() + 200;
        assert!(*highest.borrow() < limit, "{} descriptors", highest.borrow());
    }

    #[test]
    fn an_unreadable_directory_hides_what_is_below_it_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        for sub in ["iso/bad", "iso/good", "iso/raced"] {
            fs::create_dir_all(dir.path().join(sub)).expect("made");
            fs::write(dir.path().join(sub).join("a.iso"), "").expect("written");
        }
        let root = root(&dir);
        let open = |path: &str| match path {
            "iso/bad" => Err(Errno::IO),
            "iso/raced" => Err(Errno::NOENT),
            path => open_beneath(&root, path, OFlags::RDONLY | OFlags::DIRECTORY),
        };
        let device = fstat(&root).expect("looked at").st_dev;
        let seen = walk_by(open, &Layout::default(), device, |_| {}).expect("walked");
        let files: Vec<&str> = seen.files.keys().map(VolumePath::as_str).collect();
        assert_eq!(files, ["iso/good/a.iso"]);
        for (at, hidden) in [
            ("iso/bad/a.iso", true),
            ("iso/bad/deep/a.iso", true),
            ("iso/raced/a.iso", true),
            ("iso/badly/a.iso", false),
            ("iso/good/b.iso", false),
        ] {
            assert_eq!(seen.hides(&path(at)), hidden, "{at}");
        }
        assert_eq!(seen.problems.len(), 1);
        assert!(seen.problems[0].0 == "iso/bad", "{:?}", seen.problems);
        // The images' directory itself: nothing is known then.
        assert!(walk_by(|_| Err(Errno::IO), &Layout::default(), device, |_| {}).is_err());
    }
}
