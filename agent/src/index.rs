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
use crate::walk::ImageDir;

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
    /// Files out of a scan's sight, staged or in the trash, whose bytes may still be asked for.
    aside: HashMap<ImageId, (VolumePath, Stamp)>,
    /// Whether there is something to write.
    changed: bool,
    /// The catalogue that was told all this and that it is all. Any other has to be told anew, and
    /// so has this one after the index was lost: it may know files that are no more.
    incarnation: Option<Incarnation>,
    /// Where the images lay when some were last seen; another place is another disk.
    image_dir: Option<ImageDir>,
}

#[derive(Serialize, Deserialize)]
struct IndexFile {
    format: u32,
    incarnation: Option<String>,
    /// Whether the images lay on a file system of their own.
    #[serde(default)]
    images_apart: Option<bool>,
    files: Vec<FileLine>,
    #[serde(default)]
    aside: Vec<FileLine>,
}

#[derive(Serialize, Deserialize)]
struct FileLine {
    path: String,
    image: String,
    inode: u64,
    size: u64,
    mtime_ns: i64,
}

impl FileLine {
    fn of(path: &VolumePath, known: Known) -> Self {
        Self {
            path: path.to_string(),
            image: known.image.to_string(),
            inode: known.stamp.inode,
            size: known.stamp.size_bytes,
            mtime_ns: known.stamp.mtime_ns,
        }
    }

    fn parse(&self) -> Result<(VolumePath, Known), String> {
        let path = VolumePath::parse(&self.path).map_err(|error| error.to_string())?;
        let image = self.image.parse::<ImageId>().map_err(|error| error.to_string())?;
        let stamp = Stamp { inode: self.inode, size_bytes: self.size, mtime_ns: self.mtime_ns };
        Ok((path, Known { image, stamp }))
    }
}

impl Index {
    /// An index that is missing or damaged is empty and known to no catalogue: the scan finds the
    /// files again, and the catalogue knows them by volume, path and stamp.
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
            image_dir: file
                .images_apart
                .map(|apart| if apart { ImageDir::Apart } else { ImageDir::Within }),
            ..Self::default()
        };
        for line in file.files {
            let (path, known) = line.parse()?;
            index.insert(path, known);
        }
        for line in file.aside {
            let (path, known) = line.parse()?;
            index.put_aside(known.image, path, known.stamp);
        }
        index.changed = false;
        Ok(index)
    }

    /// As [`write`] brings it to the disk.
    pub(crate) fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let known = self.files.iter().map(|(path, known)| FileLine::of(path, *known));
        let aside = self.aside.iter();
        let aside =
            aside.map(|(&image, (path, stamp))| FileLine::of(path, Known { image, stamp: *stamp }));
        let file = IndexFile {
            format: FORMAT,
            incarnation: self.incarnation.map(|id| id.to_string()),
            images_apart: self.image_dir.map(|dir| dir == ImageDir::Apart),
            files: known.collect(),
            aside: aside.collect(),
        };
        Ok(serde_json::to_vec(&file)?)
    }

    pub(crate) fn files(&self) -> &BTreeMap<VolumePath, Known> {
        &self.files
    }

    /// Where the bytes of an image lie.
    pub(crate) fn locate(&self, image: ImageId) -> Option<(&VolumePath, Stamp)> {
        if let Some(path) = self.paths.get(&image) {
            return Some((path, self.files.get(path)?.stamp));
        }
        self.aside.get(&image).map(|(path, stamp)| (path, *stamp))
    }

    pub(crate) fn put_aside(&mut self, image: ImageId, path: VolumePath, stamp: Stamp) {
        self.aside.insert(image, (path, stamp));
        self.changed = true;
    }

    pub(crate) fn drop_aside(&mut self, image: ImageId) {
        self.changed |= self.aside.remove(&image).is_some();
    }

    /// Whether a catalogue was told all this and that it is all.
    pub(crate) fn is_known_to(&self, catalog: Incarnation) -> bool {
        self.incarnation == Some(catalog)
    }

    /// A catalogue is about to be told everything. What is known stays until it has been: bytes
    /// are served meanwhile, and an interrupted introduction begins anew under the same ids.
    pub(crate) fn begin_introduction(&mut self) {
        self.incarnation = None;
        self.changed = true;
    }

    /// The catalogue has been told everything.
    pub(crate) fn end_introduction(&mut self, catalog: Incarnation) {
        self.incarnation = Some(catalog);
        self.changed = true;
    }

    pub(crate) fn image_dir(&self) -> Option<ImageDir> {
        self.image_dir
    }

    pub(crate) fn images_lie(&mut self, image_dir: ImageDir) {
        self.changed |= self.image_dir.replace(image_dir) != Some(image_dir);
    }

    pub(crate) fn mark_changed(&mut self) {
        self.changed = true;
    }

    /// Whether it changed since this was last asked.
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    pub(crate) fn insert(&mut self, path: VolumePath, known: Known) {
        self.changed = true;
        self.drop_aside(known.image);
        self.paths.insert(known.image, path.clone());
        if let Some(before) = self.files.insert(path.clone(), known)
            && before.image != known.image
        {
            self.forget_path(before.image, &path);
        }
    }

    pub(crate) fn remove(&mut self, path: &VolumePath) {
        if let Some(before) = self.files.remove(path) {
            self.changed = true;
            self.forget_path(before.image, path);
        }
    }

    /// The image no longer lies there; another that has taken the place does.
    pub(crate) fn remove_from(&mut self, path: &VolumePath, image: ImageId) {
        if self.files.get(path).is_some_and(|known| known.image == image) {
            self.remove(path);
        }
    }

    /// Unless the image has been found elsewhere since.
    fn forget_path(&mut self, image: ImageId, path: &VolumePath) {
        if self.paths.get(&image) == Some(path) {
            self.paths.remove(&image);
        }
    }
}

pub(crate) fn write(root: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    write_beneath(root, "index.json", bytes)
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
        let catalog = Incarnation::from_bytes([9; 16]);
        assert!(!Index::read(&root).is_known_to(catalog), "missing");
        index.end_introduction(catalog);
        index.images_lie(ImageDir::Apart);
        write(&root, &index.to_bytes().expect("encoded")).expect("written");
        let again = Index::read(&root);
        assert_eq!((again.files(), again.image_dir()), (index.files(), index.image_dir()));
        assert!(again.is_known_to(catalog));
        fs::write(dir.path().join(".isotope/index.json"), "{").expect("damaged");
        let damaged = Index::read(&root);
        assert!(damaged.files().is_empty() && !damaged.is_known_to(catalog));
    }
}
