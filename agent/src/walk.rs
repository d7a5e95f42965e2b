//! What lies in a volume: its images, each with its stamp, and what was met but not taken.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use isotope_proto::image::{ImageFormat, Stamp};
use isotope_proto::name::{EntryName, VolumePath};
use rustix::fs::{AtFlags, Dir, FileType, OFlags, fstat, statat};
use rustix::io::Errno;

use crate::volume::{IMAGE_DIR, open_beneath, stamp_of};

/// Levels of sub-directories walked; deeper ones are reported.
const DEPTH_MAX: usize = 32;
/// Problems reported in full; the rest are counted in one line.
const PROBLEMS_MAX: usize = 100;

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) files: BTreeMap<VolumePath, Stamp>,
    /// Path and reason.
    pub(crate) problems: Vec<(String, String)>,
    problems_more: usize,
}

impl Seen {
    fn problem(&mut self, path: &str, reason: impl Into<String>) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push((path.to_owned(), reason.into()));
        } else {
            self.problems_more += 1;
        }
    }
}

/// Walks the images of a volume. `progress` is told the number of files seen so far.
pub(crate) fn walk(root: &OwnedFd, mut progress: impl FnMut(u64)) -> io::Result<Seen> {
    let mut seen = Seen::default();
    let dir = match open_beneath(root, IMAGE_DIR, OFlags::RDONLY | OFlags::DIRECTORY) {
        Ok(dir) => dir,
        // A pool that nothing was put into yet.
        Err(Errno::NOENT) => return Ok(seen),
        Err(error) => return Err(error.into()),
    };
    let device = fstat(&dir)?.st_dev;
    let mut pending = vec![(dir, IMAGE_DIR.to_owned(), 0)];
    while let Some((dir, path, depth)) = pending.pop() {
        for name in names(&dir)? {
            let Ok(name) = std::str::from_utf8(&name) else {
                let shown = String::from_utf8_lossy(&name);
                seen.problem(&format!("{path}/{shown}"), "its name is not UTF-8");
                continue;
            };
            let at = format!("{path}/{name}");
            let stat = match statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                // Gone since the directory was read.
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory if stat.st_dev != device => {
                    let reason = "another file system is mounted here; add it as a pool of its own";
                    seen.problem(&at, reason);
                }
                FileType::Directory if depth == DEPTH_MAX => {
                    seen.problem(&at, "lies too deep to be walked");
                }
                FileType::Directory => {
                    match open_beneath(&dir, name, OFlags::RDONLY | OFlags::DIRECTORY) {
                        Ok(below) => pending.push((below, at, depth + 1)),
                        Err(Errno::NOENT) => {}
                        // What is unreadable must not look deleted.
                        Err(error) => return Err(error.into()),
                    }
                }
                _ if ImageFormat::of_name(name).is_none() => {}
                FileType::RegularFile if stat.st_nlink > 1 => {
                    let reason =
                        format!("has {} hard links; only files of one name", stat.st_nlink);
                    seen.problem(&at, reason + " are taken");
                }
                FileType::RegularFile => match (EntryName::parse(name), VolumePath::parse(&at)) {
                    (Ok(_), Ok(at)) => {
                        seen.files.insert(at, stamp_of(&stat));
                        progress(u64::try_from(seen.files.len()).unwrap_or(u64::MAX));
                    }
                    (Err(error), _) | (_, Err(error)) => seen.problem(&at, error.to_string()),
                },
                FileType::Symlink => seen.problem(&at, "is a symbolic link; they are not followed"),
                _ => seen.problem(&at, "is not a regular file"),
            }
        }
    }
    if seen.problems_more > 0 {
        let more = format!("and {} more", seen.problems_more);
        seen.problems.push((IMAGE_DIR.to_owned(), more));
    }
    Ok(seen)
}

/// The names in a directory, without hidden ones: those are other tools' unfinished files.
fn names(dir: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !name.starts_with(b".") {
            names.push(name.to_vec());
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
        let seen = walk(&root, |count| counted = count).expect("walked");
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
        assert_eq!(walk(&root, |_| {}).expect("walked"), Seen::default());
    }
}
