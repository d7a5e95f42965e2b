//! The index on disk: lines of JSON, appended as things change and written anew when they have
//! become too many. It knows the lines' form, not what they mean.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::OwnedFd;

use isotope_proto::digest::InvalidDigest;
use isotope_proto::id::ImageId;
use isotope_proto::image::{Hashes, Published, Stamp};
use isotope_proto::name::VolumePath;
use rustix::fs::{Mode, OFlags, openat};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::index::{Hashed, Index, Known, Verdict, parse_id};
use crate::kept_log::KeptLog;

const NAME: &str = "index.jsonl";
const FORMAT: u32 = 2;
/// A log of twice the lines that are needed, and these more, is written anew.
const SPARE_LINES: usize = 1000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Line {
    Mark(Mark),
    File(FileLine),
    Gone {
        path: String,
    },
    Aside(FileLine),
    /// No longer aside.
    Taken {
        image: String,
    },
    Hash(HashLine),
}

/// What is known of the volume as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(crate) format: u32,
    /// The catalogue that was told all this and that it is all. Any other has to be told anew, and
    /// so has this one after the index was lost: it may know files that are no more.
    pub(crate) incarnation: Option<String>,
    /// Whether the images lay on a file system of their own when some were last seen; another
    /// place is another disk.
    pub(crate) images_apart: Option<bool>,
    /// The databases of systems that all images were matched with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) databases: Option<String>,
}

impl Default for Mark {
    fn default() -> Self {
        Self { format: FORMAT, incarnation: None, images_apart: None, databases: None }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileLine {
    path: String,
    image: String,
    inode: u64,
    size: u64,
    mtime_ns: i64,
}

impl FileLine {
    pub(crate) fn of(path: &VolumePath, known: Known) -> Self {
        Self {
            path: path.to_string(),
            image: known.image.to_string(),
            inode: known.stamp.inode,
            size: known.stamp.size_bytes,
            mtime_ns: known.stamp.mtime_ns,
        }
    }

    pub(crate) fn parse(&self) -> Result<(VolumePath, Known), String> {
        let path = VolumePath::parse(&self.path).map_err(|error| error.to_string())?;
        let stamp = Stamp { inode: self.inode, size_bytes: self.size, mtime_ns: self.mtime_ns };
        Ok((path, Known { image: parse_id(&self.image)?, stamp }))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HashLine {
    image: String,
    inode: u64,
    size: u64,
    mtime_ns: i64,
    ctime_ns: i64,
    sha256: String,
    blake3: String,
    read_ns: i64,
    rotten: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    published_in: Option<String>,
    #[serde(default)]
    published_agrees: bool,
    told: bool,
}

impl HashLine {
    pub(crate) fn of(image: ImageId, hashed: &Hashed) -> Self {
        Self {
            image: image.to_string(),
            inode: hashed.stamp.inode,
            size: hashed.stamp.size_bytes,
            mtime_ns: hashed.stamp.mtime_ns,
            ctime_ns: hashed.ctime_ns,
            sha256: hashed.hashes.sha256.to_string(),
            blake3: hashed.hashes.blake3.to_string(),
            read_ns: hashed.read_ns,
            rotten: hashed.verdict == Verdict::Rotten,
            published_in: hashed.published.as_ref().map(|it| it.file.clone()),
            published_agrees: hashed.published.as_ref().is_some_and(|it| it.agrees),
            told: hashed.told,
        }
    }

    pub(crate) fn parse(&self) -> Result<(ImageId, Hashed), String> {
        let stamp = Stamp { inode: self.inode, size_bytes: self.size, mtime_ns: self.mtime_ns };
        let digest = |error: InvalidDigest| error.to_string();
        let agrees = self.published_agrees;
        let hashed = Hashed {
            stamp,
            ctime_ns: self.ctime_ns,
            hashes: Hashes {
                sha256: self.sha256.parse().map_err(digest)?,
                blake3: self.blake3.parse().map_err(digest)?,
            },
            read_ns: self.read_ns,
            verdict: if self.rotten { Verdict::Rotten } else { Verdict::Sound },
            published: self.published_in.clone().map(|file| Published { file, agrees }),
            told: self.told,
        };
        Ok((parse_id(&self.image)?, hashed))
    }
}

/// The log of one volume, as long as this process keeps the volume.
#[derive(Debug)]
pub(crate) struct IndexLog {
    file: KeptLog,
    lines: usize,
}

impl Default for IndexLog {
    fn default() -> Self {
        Self { file: KeptLog::new(NAME), lines: 0 }
    }
}

/// An index that is missing or damaged is empty and known to no catalogue: the scan finds the
/// files again, and the catalogue knows them by volume, path and stamp.
pub(crate) fn read(sidecar: &OwnedFd) -> Index {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(file) = openat(sidecar, NAME, flags, Mode::empty()) else { return Index::default() };
    read_from(BufReader::new(File::from(file))).unwrap_or_else(|reason| {
        warn!(reason, "the volume's index is damaged; it is made anew by scanning");
        Index::default()
    })
}

fn read_from(mut reader: impl BufRead) -> Result<Index, String> {
    let mut text = Vec::new();
    let lines = std::iter::from_fn(|| {
        text.clear();
        match reader.read_until(b'\n', &mut text) {
            Ok(0) => None,
            // Cut short by a crash: it was never answered for.
            Ok(_) if text.last() != Some(&b'\n') => None,
            Ok(_) => Some(serde_json::from_slice(&text).map_err(|error| error.to_string())),
            Err(error) => Some(Err(error.to_string())),
        }
    });
    let mut lines = lines.peekable();
    match lines.peek() {
        Some(Ok(Line::Mark(mark))) if mark.format == FORMAT => Index::from_lines(lines),
        Some(Ok(Line::Mark(mark))) => Err(format!("format {} is not known here", mark.format)),
        _ => Err("it does not begin with a mark".to_owned()),
    }
}

impl IndexLog {
    /// Whether it has to be written anew rather than appended to.
    pub(crate) fn is_stale(&self, index: &Index) -> bool {
        !self.file.is_written() || self.lines > 2 * index.line_count() + SPARE_LINES
    }

    /// Makes some lines durable.
    ///
    /// # Errors
    /// As of [`KeptLog::append`].
    pub(crate) fn append(&mut self, sidecar: &OwnedFd, lines: &[Line]) -> io::Result<()> {
        self.lines += lines.len();
        let bytes = encode(lines).inspect_err(|_| self.let_go())?;
        self.file.append(sidecar, &bytes)
    }

    /// Puts these lines in the place of all that there are.
    pub(crate) fn rewrite(&mut self, sidecar: &OwnedFd, lines: &[Line]) -> io::Result<()> {
        self.file.rewrite(sidecar, &encode(lines)?)?;
        self.lines = lines.len();
        Ok(())
    }

    pub(crate) fn is_written(&self) -> bool {
        self.file.is_written()
    }

    pub(crate) fn is_of(&self, sidecar: &OwnedFd) -> bool {
        self.file.is_of(sidecar)
    }

    pub(crate) fn let_go(&mut self) {
        self.file.let_go();
    }
}

fn encode(lines: &[Line]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut bytes, line)?;
        bytes.push(b'\n');
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use isotope_proto::id::Incarnation;

    use super::*;

    fn known(n: u8) -> Known {
        let stamp = Stamp { inode: n.into(), size_bytes: 1, mtime_ns: -5 };
        Known { image: ImageId::from_bytes([n; 16]), stamp }
    }

    fn path(text: &str) -> VolumePath {
        VolumePath::parse(text).expect("a path")
    }

    fn opened(dir: &std::path::Path) -> OwnedFd {
        OwnedFd::from(File::open(dir).expect("opened"))
    }

    #[test]
    fn it_survives_appending_a_cut_end_and_damage() {
        let dir = tempfile::tempdir().expect("a directory");
        let sidecar = opened(dir.path());
        let catalog = Incarnation::from_bytes([9; 16]);
        assert!(!read(&sidecar).is_known_to(catalog), "missing");
        let (mut index, mut log) = (Index::default(), IndexLog::default());
        assert!(log.is_stale(&index));
        index.insert(path("iso/a.iso"), known(1));
        log.rewrite(&sidecar, &index.lines()).expect("written");
        index.take_pending();
        index.end_introduction(catalog);
        index.insert(path("iso/b.iso"), known(2));
        log.append(&sidecar, &index.take_pending()).expect("appended");
        let again = read(&sidecar);
        assert_eq!(again.files(), index.files());
        assert!(again.is_known_to(catalog));

        let at = dir.path().join(NAME);
        let whole = fs::read(&at).expect("read");
        let mut cut = whole.clone();
        cut.extend_from_slice(br#"{"file":{"path":"iso/c"#);
        fs::write(&at, cut).expect("cut short");
        assert_eq!(read(&sidecar).files(), index.files());
        for damaged in [&whole[20..], b"{\n", b""] {
            fs::write(&at, damaged).expect("damaged");
            let damaged = read(&sidecar);
            assert!(damaged.files().is_empty() && !damaged.is_known_to(catalog));
        }
    }

    #[test]
    fn it_does_not_grow_without_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let sidecar = opened(dir.path());
        let (mut index, mut log) = (Index::default(), IndexLog::default());
        log.rewrite(&sidecar, &index.lines()).expect("written");
        let mut appended = 0;
        while !log.is_stale(&index) {
            index.insert(path("iso/a.iso"), known(1));
            index.remove(&path("iso/a.iso"));
            let lines = index.take_pending();
            appended += lines.len();
            log.append(&sidecar, &lines).expect("appended");
        }
        assert!(appended <= SPARE_LINES + 4, "{appended} lines");
    }

    #[test]
    fn an_earlier_keeper_writes_no_more() {
        let dir = tempfile::tempdir().expect("a directory");
        let sidecar = opened(dir.path());
        let mut index = Index::default();
        let [mut stopped, mut later] = [IndexLog::default(), IndexLog::default()];
        stopped.rewrite(&sidecar, &index.lines()).expect("written");
        later.rewrite(&sidecar, &index.lines()).expect("taken over");
        index.insert(path("iso/a.iso"), known(1));
        stopped.append(&sidecar, &index.take_pending()).expect_err("it is another's");
        assert!(read(&sidecar).files().is_empty());
    }
}
