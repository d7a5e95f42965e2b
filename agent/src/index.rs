//! The index of a volume: which image each of its files is, as the catalogue confirmed it. It lies
//! in the volume's sidecar, so that ids survive a lost catalogue.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use isotope_proto::id::{ImageId, Incarnation};
use isotope_proto::image::Stamp;
use isotope_proto::name::VolumePath;
use rustix::fs::{Mode, OFlags, openat};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::marker::{SIDECAR_DIR, write_beneath};

const FORMAT: u32 = 1;

/// A file as it was last reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) image: ImageId,
    pub(crate) stamp: Stamp,
}

#[derive(Debug, Default)]
pub(crate) struct Index {
    files: BTreeMap<VolumePath, Known>,
    paths: HashMap<ImageId, VolumePath>,
    /// The catalogue that knows all this; another one has to be told anew.
    pub(crate) incarnation: Option<Incarnation>,
}

#[derive(Serialize, Deserialize)]
struct IndexFile {
    format: u32,
    incarnation: Option<String>,
    files: Vec<FileLine>,
}

#[derive(Serialize, Deserialize)]
struct FileLine {
    path: String,
    image: String,
    inode: u64,
    size: u64,
    mtime_ns: i64,
}

impl Index {
    /// An index that is missing or damaged is empty: the scan finds the files again, and the
    /// catalogue knows them by volume, path and stamp.
    pub(crate) fn read(root: &OwnedFd) -> Self {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let path = format!("{SIDECAR_DIR}/index.json");
        let Ok(file) = openat(root, &path, flags, Mode::empty()) else { return Self::default() };
        let reader = io::BufReader::new(File::from(file));
        let parsed = serde_json::from_reader::<_, IndexFile>(reader).map_err(|e| e.to_string());
        match parsed.and_then(Self::from_file) {
            Ok(index) => index,
            Err(reason) => {
                warn!(reason, "the volume's index is damaged; it is made anew by scanning");
                Self::default()
            }
        }
    }

    fn from_file(file: IndexFile) -> Result<Self, String> {
        if file.format != FORMAT {
            return Err(format!("format {} is not known here", file.format));
        }
        let mut index = Self {
            incarnation: file.incarnation.and_then(|text| text.parse().ok()),
            ..Self::default()
        };
        for line in file.files {
            let path = VolumePath::parse(&line.path).map_err(|error| error.to_string())?;
            let image = line.image.parse::<ImageId>().map_err(|error| error.to_string())?;
            let stamp = Stamp { inode: line.inode, size_bytes: line.size, mtime_ns: line.mtime_ns };
            index.insert(path, Known { image, stamp });
        }
        Ok(index)
    }

    pub(crate) fn write(&self, root: &OwnedFd) -> io::Result<()> {
        let line = |(path, known): (&VolumePath, &Known)| FileLine {
            path: path.to_string(),
            image: known.image.to_string(),
            inode: known.stamp.inode,
            size: known.stamp.size_bytes,
            mtime_ns: known.stamp.mtime_ns,
        };
        let file = IndexFile {
            format: FORMAT,
            incarnation: self.incarnation.map(|id| id.to_string()),
            files: self.files.iter().map(line).collect(),
        };
        write_beneath(root, "index.json", &serde_json::to_vec(&file)?)
    }

    pub(crate) fn files(&self) -> &BTreeMap<VolumePath, Known> {
        &self.files
    }

    /// Where the bytes of an image lie.
    pub(crate) fn locate(&self, image: ImageId) -> Option<(&VolumePath, Stamp)> {
        let path = self.paths.get(&image)?;
        Some((path, self.files.get(path)?.stamp))
    }

    pub(crate) fn insert(&mut self, path: VolumePath, known: Known) {
        self.paths.insert(known.image, path.clone());
        if let Some(before) = self.files.insert(path.clone(), known)
            && before.image != known.image
        {
            self.forget_path(before.image, &path);
        }
    }

    pub(crate) fn remove(&mut self, path: &VolumePath) {
        if let Some(before) = self.files.remove(path) {
            self.forget_path(before.image, path);
        }
    }

    /// Unless the image has been found elsewhere since.
    fn forget_path(&mut self, image: ImageId, path: &VolumePath) {
        if self.paths.get(&image) == Some(path) {
            self.paths.remove(&image);
        }
    }
}

/// Replaces a JSON file of the state directory as a whole, durably.
pub(crate) fn write_whole(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec_pretty(value)?)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(n: u8) -> Known {
        let stamp = Stamp { inode: n.into(), size_bytes: 1, mtime_ns: -5 };
        Known { image: ImageId::from_bytes([n; 16]), stamp }
    }

    fn path(text: &str) -> VolumePath {
        VolumePath::parse(text).expect("a path")
    }

    #[test]
    fn an_image_is_found_where_it_was_last_seen() {
        let mut index = Index::default();
        index.insert(path("iso/a"), known(1));
        // Renamed a → b, in the order a scan may tell it.
        index.insert(path("iso/b"), known(1));
        index.remove(&path("iso/a"));
        assert_eq!(index.locate(known(1).image), Some((&path("iso/b"), known(1).stamp)));
        // Replaced.
        index.insert(path("iso/b"), known(2));
        assert_eq!(index.locate(known(1).image), None);
    }

    #[test]
    fn it_survives_a_round_trip_and_damage() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join(SIDECAR_DIR)).expect("a sidecar");
        let root = OwnedFd::from(File::open(dir.path()).expect("opened"));
        let mut index = Index::default();
        index.insert(path("iso/a.iso"), known(1));
        index.incarnation = Some(Incarnation::from_bytes([9; 16]));
        index.write(&root).expect("written");
        let again = Index::read(&root);
        assert_eq!((again.files(), again.incarnation), (index.files(), index.incarnation));
        fs::write(dir.path().join(".isotope/index.json"), "{").expect("damaged");
        assert!(Index::read(&root).files().is_empty());
    }
}
