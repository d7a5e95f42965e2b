//! The index of a volume: which image each of its files is, as the catalogue confirmed it, and what
//! is known of its bytes. It lies in the volume's sidecar, so that ids survive a lost catalogue.
//!
//! On disk it is a log of JSON lines (`index_log.rs`), the later covering the earlier: what a change
//! costs does not depend on how many files there are.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use isotope_proto::id::{ImageId, Incarnation};
use isotope_proto::image::{Hashes, Published, Stamp};
use isotope_proto::name::VolumePath;
use serde::Serialize;

use crate::index_log::{FileLine, HashLine, Line, Mark};
use crate::walk::ImageDir;

/// A file as it was last reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) image: ImageId,
    pub(crate) stamp: Stamp,
}

/// What was read of an image's bytes, and when that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hashed {
    pub(crate) stamp: Stamp,
    /// Moved by whatever touches the file, but also by `chown` and relabels: then it is read again.
    pub(crate) ctime_ns: i64,
    pub(crate) hashes: Hashes,
    /// When the bytes were last read whole, in nanoseconds since the epoch.
    pub(crate) read_ns: i64,
    pub(crate) verdict: Verdict,
    /// What published checksums beside the file say.
    pub(crate) published: Option<Published>,
    /// Whether the catalogue confirmed that it knows all this.
    pub(crate) told: bool,
}

/// What the last reading found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Sound,
    /// The stamp is the same and the bytes are others: they rotted on the disk.
    Rotten,
}

#[derive(Debug, Default)]
pub(crate) struct Index {
    files: BTreeMap<VolumePath, Known>,
    paths: HashMap<ImageId, VolumePath>,
    /// Images with more than one file here; `paths` names the last that was met.
    several: HashSet<ImageId>,
    /// Files out of a scan's sight, staged or in the trash, whose bytes may still be asked for.
    aside: HashMap<ImageId, (VolumePath, Stamp)>,
    hashes: HashMap<ImageId, Hashed>,
    /// Images whose files became another's: whoever still has them open finds them by it.
    merged: HashMap<ImageId, ImageId>,
    mark: Mark,
    /// Whether the catalogue was asked since this index was read what else it has of the volume: a
    /// killed agent may have told more than it wrote down.
    compared: bool,
    /// What has yet to be written.
    pending: Vec<Line>,
}

impl Index {
    /// As the lines of a log tell it.
    pub(crate) fn from_lines(
        lines: impl Iterator<Item = Result<Line, String>>,
    ) -> Result<Self, String> {
        let mut index = Self::default();
        for line in lines {
            match line? {
                Line::Mark(mark) => index.mark = mark,
                Line::File(file) => {
                    let (path, known) = file.parse()?;
                    index.insert(path, known);
                }
                Line::Gone { path } => {
                    index.remove(&VolumePath::parse(&path).map_err(|error| error.to_string())?);
                }
                Line::Aside(file) => {
                    let (path, known) = file.parse()?;
                    index.put_aside(known.image, path, known.stamp);
                }
                Line::Taken { image } => index.drop_aside(parse_id(&image)?),
                Line::Hash(line) => {
                    let (image, hashed) = line.parse()?;
                    index.hashes.insert(image, hashed);
                }
            }
        }
        index.pending.clear();
        let Self { hashes, paths, aside, .. } = &mut index;
        hashes.retain(|image, _| paths.contains_key(image) || aside.contains_key(image));
        Ok(index)
    }

    /// Everything, as it is brought to the disk anew.
    pub(crate) fn lines(&self) -> Vec<Line> {
        let known = self.files.iter().map(|(path, known)| Line::File(FileLine::of(path, *known)));
        let aside = self.aside.iter().map(|(&image, (path, stamp))| {
            Line::Aside(FileLine::of(path, Known { image, stamp: *stamp }))
        });
        let hashes = self.hashes.iter().map(|(image, it)| Line::Hash(HashLine::of(*image, it)));
        [Line::Mark(self.mark.clone())]
            .into_iter()
            .chain(known)
            .chain(aside)
            .chain(hashes)
            .collect()
    }

    /// Lines that [`Self::lines`] would give: a log much longer than that is written anew.
    pub(crate) fn line_count(&self) -> usize {
        1 + self.files.len() + self.aside.len() + self.hashes.len()
    }

    /// What changed since this was last asked.
    pub(crate) fn take_pending(&mut self) -> Vec<Line> {
        std::mem::take(&mut self.pending)
    }

    pub(crate) fn files(&self) -> &BTreeMap<VolumePath, Known> {
        &self.files
    }

    /// Where the bytes of an image lie.
    pub(crate) fn locate(&self, image: ImageId) -> Option<(&VolumePath, Stamp)> {
        let image = self.merged.get(&image).copied().unwrap_or(image);
        if let Some(path) = self.paths.get(&image) {
            return Some((path, self.files.get(path)?.stamp));
        }
        self.aside.get(&image).map(|(path, stamp)| (path, *stamp))
    }

    pub(crate) fn put_aside(&mut self, image: ImageId, path: VolumePath, stamp: Stamp) {
        self.pending.push(Line::Aside(FileLine::of(&path, Known { image, stamp })));
        self.aside.insert(image, (path, stamp));
    }

    /// Takes over what another index has aside.
    pub(crate) fn adopt_aside(&mut self, other: &Self) {
        for (image, (path, stamp)) in &other.aside {
            if self.locate(*image).is_none() {
                self.put_aside(*image, path.clone(), *stamp);
            }
        }
    }

    pub(crate) fn drop_aside(&mut self, image: ImageId) {
        if self.aside.remove(&image).is_some() {
            self.pending.push(Line::Taken { image: image.to_string() });
        }
    }

    /// Whether a catalogue was told all this and that it is all.
    pub(crate) fn is_known_to(&self, catalog: Incarnation) -> bool {
        self.mark.incarnation.as_deref() == Some(&*catalog.to_string())
    }

    /// A catalogue is about to be told everything. What is known stays until it has been: bytes
    /// are served meanwhile, and an interrupted introduction begins anew under the same ids.
    pub(crate) fn begin_introduction(&mut self) {
        self.set_mark(Mark { incarnation: None, databases: None, ..self.mark.clone() });
    }

    /// Whether the catalogue may have files of the volume of which nothing is known here.
    pub(crate) fn is_compared(&self) -> bool {
        self.compared
    }

    /// The catalogue has been told everything, and has nothing else.
    pub(crate) fn end_introduction(&mut self, catalog: Incarnation) {
        self.compared = true;
        let incarnation = Some(catalog.to_string());
        self.set_mark(Mark { incarnation, ..self.mark.clone() });
    }

    pub(crate) fn image_dir(&self) -> Option<ImageDir> {
        let dir = |apart: bool| if apart { ImageDir::Apart } else { ImageDir::Within };
        self.mark.images_apart.map(dir)
    }

    pub(crate) fn images_lie(&mut self, image_dir: ImageDir) {
        let images_apart = Some(image_dir == ImageDir::Apart);
        self.set_mark(Mark { images_apart, ..self.mark.clone() });
    }

    /// The databases of systems that all images were matched with.
    pub(crate) fn matched_with(&self) -> Option<&str> {
        self.mark.databases.as_deref()
    }

    pub(crate) fn set_matched_with(&mut self, version: String) {
        self.set_mark(Mark { databases: Some(version), ..self.mark.clone() });
    }

    fn set_mark(&mut self, mark: Mark) {
        if self.mark != mark {
            self.mark = mark;
            self.pending.push(Line::Mark(self.mark.clone()));
        }
    }

    pub(crate) fn insert(&mut self, path: VolumePath, known: Known) {
        self.drop_aside(known.image);
        let elsewhere = self.paths.insert(known.image, path.clone()).filter(|it| *it != path);
        if elsewhere.is_some_and(|it| self.files.get(&it).map(|it| it.image) == Some(known.image)) {
            self.several.insert(known.image);
        }
        let before = self.files.insert(path.clone(), known);
        if before == Some(known) {
            return;
        }
        self.pending.push(Line::File(FileLine::of(&path, known)));
        if let Some(before) = before
            && before.image != known.image
        {
            self.forget_path(before.image, &path);
        }
    }

    /// A file that the catalogue knows, and that may be known here as another image, which became
    /// this one.
    pub(crate) fn learn(&mut self, path: VolumePath, known: Known) {
        match self.files.get(&path).copied() {
            Some(before) if before.image != known.image && before.stamp == known.stamp => {
                self.merge(before.image, known.image);
            }
            _ => self.insert(path, known),
        }
    }

    /// The catalogue made two images one; the file of the first is the second's from now on.
    pub(crate) fn merge(&mut self, image: ImageId, into: ImageId) {
        let Some(path) = self.paths.get(&image).cloned() else { return };
        let Some(known) = self.files.get(&path).copied() else { return };
        if let Some(hashed) = self.hashes.remove(&image) {
            self.pending.push(Line::Hash(HashLine::of(into, &hashed)));
            self.hashes.insert(into, hashed);
        }
        self.insert(path, Known { image: into, ..known });
        self.merged.insert(image, into);
    }

    pub(crate) fn remove(&mut self, path: &VolumePath) {
        if let Some(before) = self.files.remove(path) {
            self.pending.push(Line::Gone { path: path.to_string() });
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
            if self.several.contains(&image) {
                let other = self.files.iter().find(|(_, known)| known.image == image);
                if let Some((other, _)) = other {
                    self.paths.insert(image, other.clone());
                    return;
                }
                self.several.remove(&image);
            }
            if !self.aside.contains_key(&image) {
                self.hashes.remove(&image);
            }
        }
    }

    /// What was read of an image, if that still holds for its file.
    pub(crate) fn hashed(&self, image: ImageId) -> Option<&Hashed> {
        let (_, stamp) = self.locate(image)?;
        let image = self.merged.get(&image).copied().unwrap_or(image);
        self.hashes.get(&image).filter(|hashed| hashed.stamp == stamp)
    }

    pub(crate) fn set_hashed(&mut self, image: ImageId, hashed: Hashed) {
        self.pending.push(Line::Hash(HashLine::of(image, &hashed)));
        self.hashes.insert(image, hashed);
    }

    /// The images that have files here, and the BLAKE3 roots of those that are hashed.
    pub(crate) fn hashed_of(&self) -> (HashSet<ImageId>, HashSet<[u8; 32]>) {
        let images = self.paths.keys().chain(self.aside.keys()).copied().collect();
        let roots = self.hashes.values().map(|hashed| *hashed.hashes.blake3.as_bytes());
        (images, roots.collect())
    }

    /// Images whose hashes the catalogue has not confirmed, at most so many.
    pub(crate) fn untold(&self, most: usize) -> Vec<(ImageId, Hashed)> {
        let untold = self.hashes.iter().filter(|(_, hashed)| !hashed.told);
        untold.take(most).map(|(image, hashed)| (*image, hashed.clone())).collect()
    }

    /// The catalogue has confirmed what it was told.
    pub(crate) fn confirm_hashed(&mut self, image: ImageId, told: &Hashed) {
        if let Some(hashed) = self.hashes.get_mut(&image)
            && hashed == told
        {
            hashed.told = true;
            self.pending.push(Line::Hash(HashLine::of(image, hashed)));
        }
    }

    /// Another catalogue knows no hashes.
    pub(crate) fn tell_hashes_anew(&mut self) {
        for (image, hashed) in &mut self.hashes {
            if std::mem::take(&mut hashed.told) {
                self.pending.push(Line::Hash(HashLine::of(*image, hashed)));
            }
        }
    }
}

pub(crate) fn parse_id(text: &str) -> Result<ImageId, String> {
    text.parse::<ImageId>().map_err(|error| error.to_string())
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
    use isotope_proto::digest::{Blake3, Sha256};

    use super::*;

    fn known(n: u8) -> Known {
        let stamp = Stamp { inode: n.into(), size_bytes: 1, mtime_ns: -5 };
        Known { image: ImageId::from_bytes([n; 16]), stamp }
    }

    fn path(text: &str) -> VolumePath {
        VolumePath::parse(text).expect("a path")
    }

    fn hashed(n: u8) -> Hashed {
        Hashed {
            stamp: known(n).stamp,
            ctime_ns: 3,
            hashes: Hashes {
                sha256: Sha256::from_bytes([n; 32]),
                blake3: Blake3::from_bytes([n + 1; 32]),
            },
            read_ns: 9,
            verdict: Verdict::Sound,
            published: None,
            told: false,
        }
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
    fn hashes_hold_for_the_stamp_they_were_read_under() {
        let mut index = Index::default();
        index.insert(path("iso/a"), known(1));
        index.set_hashed(known(1).image, hashed(1));
        assert_eq!(index.hashed(known(1).image), Some(&hashed(1)));
        assert_eq!(index.untold(9), [(known(1).image, hashed(1))]);
        index.confirm_hashed(known(1).image, &hashed(1));
        assert!(index.untold(9).is_empty());
        index.tell_hashes_anew();
        assert_eq!(index.untold(9).len(), 1);
        let touched = Known { stamp: Stamp { mtime_ns: 7, ..known(1).stamp }, ..known(1) };
        index.insert(path("iso/a"), touched);
        assert_eq!(index.hashed(known(1).image), None);
    }

    #[test]
    fn a_merged_image_is_found_under_either_id() {
        let mut index = Index::default();
        index.insert(path("iso/a"), known(2));
        index.set_hashed(known(2).image, hashed(2));
        index.merge(known(2).image, known(1).image);
        for n in [1, 2] {
            let found = index.locate(known(n).image).map(|(path, _)| path.as_str());
            assert_eq!(found, Some("iso/a"), "{n}");
            assert_eq!(index.hashed(known(n).image), Some(&hashed(2)), "{n}");
        }
        assert_eq!(index.files()[&path("iso/a")].image, known(1).image);
    }

    #[test]
    fn of_several_files_one_is_found_while_there_is_one() {
        let mut index = Index::default();
        let copy = Known { stamp: known(2).stamp, ..known(1) };
        index.insert(path("iso/a"), known(1));
        index.insert(path("iso/b"), copy);
        for (gone, left) in [("iso/b", Some("iso/a")), ("iso/a", None)] {
            index.remove(&path(gone));
            assert_eq!(index.locate(known(1).image).map(|(path, _)| path.as_str()), left);
        }
    }

    #[test]
    fn changes_and_the_whole_tell_the_same() {
        let mut index = Index::default();
        let mut log = Vec::new();
        index.insert(path("iso/a.iso"), known(1));
        index.insert(path("iso/b.iso"), known(2));
        index.set_hashed(known(2).image, hashed(2));
        log.extend(index.take_pending());
        index.end_introduction(Incarnation::from_bytes([9; 16]));
        index.images_lie(ImageDir::Apart);
        index.remove(&path("iso/a.iso"));
        index.put_aside(known(1).image, path(".isotope/trash/1"), known(1).stamp);
        index.put_aside(known(3).image, path(".isotope/trash/3"), known(3).stamp);
        index.drop_aside(known(3).image);
        log.extend(index.take_pending());
        assert!(index.take_pending().is_empty());
        for lines in [log, index.lines()] {
            let again = Index::from_lines(lines.into_iter().map(Ok)).expect("read");
            assert_eq!(again.files(), index.files());
            assert_eq!(again.aside, index.aside);
            assert_eq!(again.hashes, index.hashes);
            assert_eq!(again.mark, index.mark);
            assert_eq!(again.line_count(), again.lines().len());
        }
    }
}
