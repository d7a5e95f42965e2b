//! A volume's copy of the library on disk: frames, each with its length and a checksum, appended as
//! things change and written anew when they have become too many. It knows the frames' form, not
//! when they are due.
//!
//! A frame is the length of its body (32 bits, little-endian), the first eight bytes of the body's
//! BLAKE3, and the body, a `LibraryFrame` message. The first frame is a mark with the number of
//! records that follow it; then come changes and marks. A log that another life of the catalogue
//! wrote, and that has what the present one does not, is kept under the name of its life.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;

use isotope_proto::change::{Change, Delta};
use isotope_proto::id::Incarnation;
use isotope_proto::sidecar::LibraryFrame;
use isotope_proto::time::Timestamp;
use isotope_proto::wire::{decode_frame, encode_frame};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, fsync, openat, renameat, unlinkat};
use tracing::{info, warn};

use crate::kept_log::KeptLog;
use crate::library::Library;

const NAME: &str = "library.log";
/// Of logs that are kept: `library.INCARNATION.log`.
const KEPT: (&str, &str) = ("library.", ".log");
/// More lost catalogues than this without a rebuild are not waited for; the earliest are kept, for
/// what they had is what the later ones lack.
const KEPT_MAX: usize = 8;
/// A frame holds one record, or one second's changes; larger is damage.
const FRAME_BYTES_MAX: usize = 16 << 20;
/// Deltas of one frame: some 300 KiB.
const FRAME_DELTAS: usize = 1000;
/// A log that has grown by as much as it began with, and this, is written anew.
const SPARE_BYTES: usize = 64 << 10;
/// Of the body's BLAKE3: enough against a disk's mistakes.
const CHECKSUM_BYTES: usize = 8;

/// The log of one volume, as long as this process keeps the volume.
#[derive(Debug)]
pub(crate) struct LibraryLog {
    file: KeptLog,
    whole_bytes: usize,
    appended_bytes: usize,
}

impl Default for LibraryLog {
    fn default() -> Self {
        Self { file: KeptLog::new(NAME), whole_bytes: 0, appended_bytes: 0 }
    }
}

/// What the present log has, if there is one and it is whole.
///
/// # Errors
/// Why it cannot be used.
pub(crate) fn read(sidecar: &OwnedFd) -> Result<Option<Library>, String> {
    read_named(sidecar, NAME)
}

/// The logs that are kept, the earliest life first, each with its name; or why one cannot be used.
pub(crate) fn read_kept(sidecar: &OwnedFd) -> Vec<(String, Result<Library, String>)> {
    let read = |name: String| match read_named(sidecar, &name) {
        Ok(Some(library)) => Some((name, Ok(library))),
        Ok(None) => None,
        Err(reason) => Some((name, Err(reason))),
    };
    kept_names(sidecar).into_iter().filter_map(read).collect()
}

fn kept_names(sidecar: &OwnedFd) -> Vec<String> {
    let Ok(dir) = Dir::read_from(sidecar) else { return Vec::new() };
    let names = dir.flatten().filter_map(|it| it.file_name().to_str().ok().map(str::to_owned));
    let is_kept = |name: &String| {
        let life = name.strip_prefix(KEPT.0).and_then(|rest| rest.strip_suffix(KEPT.1));
        life.is_some_and(|life| life.parse::<Incarnation>().is_ok())
    };
    let mut names: Vec<String> = names.filter(is_kept).collect();
    names.sort_unstable();
    names
}

fn read_named(sidecar: &OwnedFd, name: &str) -> Result<Option<Library>, String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(sidecar, name, flags, Mode::empty()) {
        Ok(file) => read_from(BufReader::new(File::from(file))).map(Some),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

fn read_from(mut reader: impl Read) -> Result<Library, String> {
    let Some(LibraryFrame::Mark { mark, records }) = next_frame(&mut reader)? else {
        return Err("it does not begin with a mark".to_owned());
    };
    let mut library = Library::with_mark(mark);
    for _ in 0..records {
        match next_frame(&mut reader)? {
            Some(LibraryFrame::Record(record)) => library.load(&record),
            _ => return Err("it is not whole".to_owned()),
        }
    }
    library.set_mark(mark);
    while let Some(frame) = next_frame(&mut reader)? {
        match frame {
            LibraryFrame::Change(change) if change.incarnation == mark.incarnation => {
                library.replay(change);
            }
            LibraryFrame::Mark { mark: later, .. } if later.incarnation == mark.incarnation => {
                library.set_mark(later);
            }
            _ => return Err("a record stands where changes should".to_owned()),
        }
    }
    Ok(library)
}

/// None at the end, and where the last frame was cut short by a crash: it was never answered for.
fn next_frame(reader: &mut impl Read) -> Result<Option<LibraryFrame>, String> {
    let mut head = [0; 4 + CHECKSUM_BYTES];
    if !fill(reader, &mut head)? {
        return Ok(None);
    }
    let (length, checksum) = head.split_at(4);
    let length = length.iter().rev().fold(0, |sum, byte| (sum << 8) | usize::from(*byte));
    if length > FRAME_BYTES_MAX {
        return Err("a frame is too long to be one".to_owned());
    }
    let mut body = vec![0; length];
    if !fill(reader, &mut body)? {
        return Ok(None);
    }
    if !blake3::hash(&body).as_bytes().starts_with(checksum) {
        return Err("a frame's bytes are not those that were written".to_owned());
    }
    decode_frame(&body).map(Some).map_err(|error| error.to_string())
}

/// False if there is less left.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> Result<bool, String> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error.to_string()),
    }
}

fn encode(bytes: &mut Vec<u8>, frame: LibraryFrame) {
    let body = encode_frame(frame);
    // A frame is far shorter than 4 GiB; one that is not could not be read either.
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&blake3::hash(&body).as_bytes()[..CHECKSUM_BYTES]);
    bytes.extend_from_slice(&body);
}

fn whole(library: &Library) -> Vec<u8> {
    let mut bytes = Vec::new();
    let records = u64::try_from(library.record_count()).unwrap_or(u64::MAX);
    encode(&mut bytes, LibraryFrame::Mark { mark: library.mark(), records });
    library.records().for_each(|record| encode(&mut bytes, LibraryFrame::Record(record)));
    bytes
}

impl LibraryLog {
    /// Whether it has to be written anew rather than appended to.
    pub(crate) fn is_stale(&self) -> bool {
        !self.file.is_written() || self.appended_bytes > self.whole_bytes + SPARE_BYTES
    }

    /// Makes durable what changed up to the library's mark.
    ///
    /// # Errors
    /// As of [`KeptLog::append`].
    pub(crate) fn append(
        &mut self,
        sidecar: &OwnedFd,
        library: &Library,
        deltas: &[Delta],
    ) -> io::Result<()> {
        let mark = library.mark();
        let mut bytes = Vec::new();
        for deltas in deltas.chunks(FRAME_DELTAS) {
            let change = Change {
                incarnation: mark.incarnation,
                revision: mark.revision,
                time: Timestamp(0),
                deltas: deltas.to_vec(),
            };
            encode(&mut bytes, LibraryFrame::Change(change));
        }
        encode(&mut bytes, LibraryFrame::Mark { mark, records: 0 });
        self.appended_bytes += bytes.len();
        self.file.append(sidecar, &bytes)
    }

    /// Puts a library in the place of all that there is. What another life of the catalogue wrote
    /// stays beside it, unless all of that is in this one.
    pub(crate) fn rewrite(&mut self, sidecar: &OwnedFd, library: &Library) -> io::Result<()> {
        if !self.is_of(sidecar) {
            keep_other_life(sidecar, library)?;
        }
        let bytes = whole(library);
        self.file.rewrite(sidecar, &bytes)?;
        (self.whole_bytes, self.appended_bytes) = (bytes.len(), 0);
        drop_contained(sidecar, library);
        Ok(())
    }

    pub(crate) fn is_of(&self, sidecar: &OwnedFd) -> bool {
        self.file.is_of(sidecar)
    }

    pub(crate) fn let_go(&mut self) {
        self.file.let_go();
    }
}

fn keep_other_life(sidecar: &OwnedFd, library: &Library) -> io::Result<()> {
    let Ok(Some(other)) = read(sidecar) else { return Ok(()) };
    let life = other.mark().incarnation;
    if life == library.mark().incarnation || other.is_within(library) {
        return Ok(());
    }
    if kept_names(sidecar).len() >= KEPT_MAX {
        warn!(%life, "too many copies of the library are kept from lost catalogues; see isotope catalog rebuild");
        return Ok(());
    }
    info!(%life, "another catalogue's copy of the library is kept; isotope catalog rebuild brings it back");
    renameat(sidecar, NAME, sidecar, format!("{}{life}{}", KEPT.0, KEPT.1))?;
    Ok(fsync(sidecar)?)
}

/// Of what was kept, that goes which the present catalogue has, too.
fn drop_contained(sidecar: &OwnedFd, library: &Library) {
    for (name, kept) in read_kept(sidecar) {
        if kept.is_ok_and(|kept| kept.is_within(library)) {
            // Found again by the next rewriting.
            let _ = unlinkat(sidecar, &name, AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;

    use isotope_proto::change::{Edit, Record};
    use isotope_proto::id::VolumeId;
    use isotope_proto::image::Image;
    use isotope_proto::tree::Entry;
    use proptest::prelude::*;

    use super::*;
    use crate::library::Taken;
    use crate::library::tests::{ELSEWHERE, HERE, at, change, entry, folder, image};

    fn opened(dir: &Path) -> OwnedFd {
        OwnedFd::from(File::open(dir).expect("opened"))
    }

    /// A library of one life, with the root, a folder and an image in it.
    fn library(life: u8, ino: u64) -> Library {
        let mut library = Library::new(HERE, at(life, 1));
        for record in [
            Record::Folder(folder(1)),
            Record::Folder(folder(ino)),
            Record::Image(image(1, ino + 1, &[HERE])),
            Record::Entry(entry(ino, 1, "folder", ino)),
            Record::Entry(entry(ino + 1, ino, "image", ino + 1)),
        ] {
            library.load(&record);
        }
        library
    }

    fn add_folder(library: &mut Library, ino: u64) -> Vec<Delta> {
        let mut next = library.position();
        next.revision = next.revision.next();
        let made = [
            Delta::Folder(Edit::Made(folder(ino))),
            Delta::Entry(Edit::Made(entry(ino, 1, &ino.to_string(), ino))),
        ];
        match library.take(&change(next, made.to_vec())) {
            Taken::Deltas(deltas) => deltas,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn it_survives_appending_and_a_cut_end_and_damage_is_noticed() {
        let dir = tempfile::tempdir().expect("a directory");
        let sidecar = opened(dir.path());
        assert_eq!(read(&sidecar), Ok(None));
        let (mut library, mut log) = (library(1, 10), LibraryLog::default());
        assert!(log.is_stale());
        log.rewrite(&sidecar, &library).expect("written");
        let (before, begun) =
            (library.clone(), fs::read(dir.path().join(NAME)).expect("read").len());
        let deltas = add_folder(&mut library, 20);
        log.append(&sidecar, &library, &deltas).expect("appended");
        assert_eq!(read(&sidecar), Ok(Some(library.clone())));

        let place = dir.path().join(NAME);
        let whole = fs::read(&place).expect("read");
        for length in 0..whole.len() {
            fs::write(&place, &whole[..length]).expect("cut short");
            let found = read(&sidecar);
            if length < begun {
                assert!(found.is_err(), "{length}: {found:?}");
            } else {
                // What follows the last mark is told again.
                let found = found.expect("readable").expect("there");
                assert_eq!(found.position(), before.position(), "{length}");
            }
        }
        for place_of_damage in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[place_of_damage] ^= 0x10;
            fs::write(&place, damaged).expect("damaged");
            let found = read(&sidecar);
            // A length that points behind the end is a cut end, for all that can be seen.
            let is_earlier = |it: &Library| it.position() == before.position();
            assert!(
                found.is_err() || matches!(&found, Ok(Some(it)) if is_earlier(it)),
                "{found:?}"
            );
        }
    }

    #[test]
    fn it_does_not_grow_without_end_and_an_earlier_keeper_writes_no_more() {
        let dir = tempfile::tempdir().expect("a directory");
        let sidecar = opened(dir.path());
        let mut library = library(1, 10);
        let [mut stopped, mut later] = [LibraryLog::default(), LibraryLog::default()];
        stopped.rewrite(&sidecar, &library).expect("written");
        let mut ino = 100;
        while !stopped.is_stale() {
            ino += 1;
            let deltas = add_folder(&mut library, ino);
            stopped.append(&sidecar, &library, &deltas).expect("appended");
        }
        let grown = fs::metadata(dir.path().join(NAME)).expect("there").len();
        assert!(grown < 2 * SPARE_BYTES as u64, "{grown}");
        later.rewrite(&sidecar, &library).expect("taken over");
        let deltas = add_folder(&mut library, ino + 1);
        stopped.append(&sidecar, &library, &deltas).expect_err("it is another's");
        assert!(stopped.is_stale());
    }

    #[test]
    fn what_a_lost_catalogue_had_is_kept_until_another_has_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let sidecar = opened(dir.path());
        let lost = library(1, 10);
        let kept = |expected: &[&Library]| {
            let kept: Vec<_> = read_kept(&sidecar).into_iter().map(|it| it.1).collect();
            let expected: Vec<_> = expected.iter().map(|it| Ok((*it).clone())).collect();
            assert_eq!(kept, expected);
        };
        LibraryLog::default().rewrite(&sidecar, &lost).expect("written");
        // The same catalogue, after a restart of the agent.
        LibraryLog::default().rewrite(&sidecar, &lost).expect("written");
        kept(&[]);
        let (fresh, mut log) = (library(2, 100), LibraryLog::default());
        log.rewrite(&sidecar, &fresh).expect("written");
        kept(&[&lost]);
        log.rewrite(&sidecar, &fresh).expect("written");
        kept(&[&lost]);
        LibraryLog::default().rewrite(&sidecar, &library(3, 200)).expect("written");
        kept(&[&lost, &fresh]);
        // Rebuilt: with its numbers, and with the names of them all.
        let rebuilt = library(4, 10);
        LibraryLog::default().rewrite(&sidecar, &rebuilt).expect("written");
        assert_eq!(read(&sidecar), Ok(Some(rebuilt)));
        // The third one's is contained in the rebuilt one, too, and so is not kept at all.
        kept(&[]);
    }

    /// A whole library, small, and what may happen to it.
    #[derive(Debug, Default)]
    struct Model {
        folders: BTreeMap<u64, isotope_proto::tree::Folder>,
        images: BTreeMap<u8, Image>,
        entries: BTreeMap<u64, Entry>,
        next: u64,
    }

    impl Model {
        fn records(&self) -> Vec<Record> {
            let folders = self.folders.values().cloned().map(Record::Folder);
            let images = self.images.values().cloned().map(Record::Image);
            let entries = self.entries.values().cloned().map(Record::Entry);
            folders.chain(images).chain(entries).collect()
        }

        fn number(&mut self) -> u64 {
            self.next += 1;
            self.next
        }

        fn link(&mut self, ino: u64) -> Delta {
            let id = self.number();
            let parent = *self.folders.keys().nth(id as usize % self.folders.len()).expect("one");
            let made = entry(id, parent, &format!("name-{id}"), ino);
            self.entries.insert(id, made.clone());
            Delta::Entry(Edit::Made(made))
        }

        /// One change; `n` chooses of what.
        fn step(&mut self, what: u8, n: u8) -> Vec<Delta> {
            let volumes: &[VolumeId] =
                [&[HERE][..], &[ELSEWHERE], &[HERE, ELSEWHERE]][usize::from(n % 3)];
            match (what % 6, self.images.get(&n).cloned()) {
                (0, _) => {
                    let ino = self.number();
                    self.folders.insert(ino, folder(ino));
                    vec![Delta::Folder(Edit::Made(folder(ino))), self.link(ino)]
                }
                (1, None) => {
                    let made = image(n, self.number(), volumes);
                    self.images.insert(n, made.clone());
                    vec![self.link(made.ino.0), Delta::Image(Edit::Made(made))]
                }
                (2, Some(known)) => vec![self.link(known.ino.0)],
                (3, Some(before)) => {
                    let volumes = [&[HERE][..], &[ELSEWHERE]][usize::from(what / 6 % 2)];
                    let after = Image { mode: what.into(), ..image(n, before.ino.0, volumes) };
                    self.images.insert(n, after.clone());
                    vec![Delta::Image(Edit::Changed { before, after })]
                }
                (4, Some(gone)) => {
                    self.images.remove(&n);
                    let names: Vec<Entry> =
                        self.entries.values().filter(|it| it.ino == gone.ino).cloned().collect();
                    self.entries.retain(|_, it| it.ino != gone.ino);
                    let names = names.into_iter().map(|it| Delta::Entry(Edit::Removed(it)));
                    names.chain([Delta::Image(Edit::Removed(gone))]).collect()
                }
                _ => {
                    let count = self.entries.len().max(1);
                    let Some(moved) = self.entries.values_mut().nth(usize::from(n) % count) else {
                        return Vec::new();
                    };
                    let before = moved.clone();
                    moved.name = before.name.with_addition("moved");
                    vec![Delta::Entry(Edit::Changed { before, after: moved.clone() })]
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_log_replayed_is_the_volumes_part_of_the_library(
            steps in proptest::collection::vec((any::<u8>(), 0_u8..6, any::<bool>()), 0..60),
        ) {
            let dir = tempfile::tempdir().expect("a directory");
            let sidecar = opened(dir.path());
            let mut model = Model { next: 1, ..Model::default() };
            model.folders.insert(1, folder(1));
            let list = |model: &Model, revision| {
                let mut library = Library::new(HERE, at(1, revision));
                model.records().iter().for_each(|record| library.load(record));
                library
            };
            let (mut library, mut log) = (list(&model, 0), LibraryLog::default());
            let mut pending = Vec::new();
            log.rewrite(&sidecar, &library).expect("written");
            for (revision, (what, n, save)) in (1..).zip(steps) {
                match library.take(&change(at(1, revision), model.step(what, n))) {
                    Taken::Deltas(deltas) => pending.extend(deltas),
                    Taken::ListNeeded => {
                        pending.clear();
                        library = list(&model, revision);
                        log.rewrite(&sidecar, &library).expect("written");
                    }
                    Taken::Known => unreachable!("it is new"),
                }
                if save {
                    log.append(&sidecar, &library, &std::mem::take(&mut pending)).expect("appended");
                }
            }
            log.append(&sidecar, &library, &pending).expect("appended");
            let replayed = read(&sidecar).expect("whole").expect("there");
            prop_assert_eq!(&replayed, &library);
            prop_assert!(replayed.has_the_same(&list(&model, 0)));
        }
    }
}
