//! A recording of the feed: its form, and playing it back. A file of frames: the first says whose
//! it is, the others are events as they came, a whole list first and then what happened since.
//! It knows no file's place, nor who writes.
//!
//! A frame is its payload's length (4 bytes, little endian), the first 8 bytes of the payload's
//! BLAKE3, and the payload: a `WatchEvent` of `isotope/v1/feed.proto`.

use std::io::{self, Read};
use std::sync::mpsc::{self, Receiver, SyncSender};

use isotope_proto::pb;
use isotope_proto::pb::record::Record as R;
use isotope_proto::pb::watch_event::Event;
use prost::Message as _;

use crate::feed::{Feed, Heard, Taken};
use crate::follow::MESSAGE_BYTES_MAX;
use crate::tree::{Applied, Tree};

/// A program that writes another form gives it another number.
const FORM: &str = "isotope feed 2";
const CHECK_BYTES: usize = 8;
const HEAD_BYTES: usize = 4 + CHECK_BYTES;
/// Events read ahead of the tree that is made of them; one has a thousand records.
const EVENTS_AHEAD: usize = 4;
/// Stands for a file's path: the mount does not ask where on its volume an image lies.
const SOME_PATH: &str = "-";

/// Whose recording it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Whose {
    pub(crate) catalog: String,
    pub(crate) mountpoint: String,
}

impl Whose {
    /// The first frame's payload.
    fn text(&self) -> String {
        // Neither holds a NUL: a URL and a path.
        format!("{FORM}\0{}\0{}", self.catalog, self.mountpoint)
    }

    pub(crate) fn frame(&self) -> Vec<u8> {
        frame(self.text().as_bytes())
    }

    /// A name for its file: no other catalogue and mount point have it.
    pub(crate) fn file_name(&self) -> String {
        blake3::hash(self.text().as_bytes()).to_hex()[..32].to_owned()
    }
}

fn check(payload: &[u8]) -> [u8; CHECK_BYTES] {
    let hash = blake3::hash(payload);
    *hash.as_bytes().first_chunk().expect("a hash has 32 bytes")
}

fn frame(payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut frame = Vec::with_capacity(HEAD_BYTES + payload.len());
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(&check(payload));
    frame.extend_from_slice(payload);
    frame
}

/// An event as a frame, and the event again.
pub(crate) fn encode(event: Event) -> (Vec<u8>, Event) {
    let event = pb::WatchEvent { event: Some(event) };
    let bytes = frame(&event.encode_to_vec());
    (bytes, event.event.expect("put there two lines above"))
}

/// Takes out of an event what a mount makes nothing of: most of its bytes, and of the work of
/// playing it back. When the tree comes to keep more, that is left in here, and [`FORM`] is another.
pub(crate) fn strip(event: &mut Event) {
    match event {
        Event::Records(records) => records.records.iter_mut().for_each(strip_record),
        Event::Change(change) => {
            let sides = change.deltas.iter_mut().flat_map(|it| [&mut it.before, &mut it.after]);
            sides.flatten().for_each(strip_record);
        }
        Event::Reset(_) | Event::Listed(_) | Event::Live(_) | Event::Heartbeat(_) => {}
    }
}

fn strip_record(record: &mut pb::Record) {
    let Some(R::Image(image)) = &mut record.record else { return };
    image.facts = None;
    image.filename.clear();
    for replica in &mut image.replicas {
        SOME_PATH.clone_into(&mut replica.path);
        replica.stamp = Some(pb::Stamp::default());
        if let Some(checked) = &mut replica.checked {
            checked.published_in = None;
            checked.published_agrees = false;
            // Seconds are kept of it.
            checked.read_time.iter_mut().for_each(|time| time.nanos = 0);
        }
    }
}

/// What a recording held.
#[derive(Debug)]
pub(crate) struct Replayed {
    pub(crate) tree: Box<Tree>,
    /// Where its list ends.
    pub(crate) list_bytes: u64,
    /// Where the last good frame ends: what follows was torn off while it was being written.
    pub(crate) bytes: u64,
}

/// Why a recording is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("it is not of this catalogue and mount point, or of another version of Isotope")]
    Foreign,
    #[error("its list is damaged")]
    Damaged,
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// Plays a recording back, to its end or to where it was torn off. What stands before is an earlier
/// state of the library, from which the catalogue tells the rest.
///
/// # Errors
/// There is no such state in it.
pub(crate) fn replay(mut file: impl Read + Send, whose: &Whose) -> Result<Replayed, Unusable> {
    let begin = match next(&mut file)? {
        Some(first) if first == whose.text().as_bytes() => framed(&first),
        Some(_) | None => return Err(Unusable::Foreign),
    };
    // Reading and understanding takes as long as making a tree of it: each has a thread.
    let (understood, events) = mpsc::sync_channel(EVENTS_AHEAD);
    std::thread::scope(|scope| {
        let reading = scope.spawn(move || read(file, begin, &understood));
        let replayed = play(&events);
        // Where it makes no sense any more, the rest is not read.
        drop(events);
        match reading.join() {
            Ok(Ok(())) => replayed.ok_or(Unusable::Damaged),
            Ok(Err(error)) => Err(error.into()),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// An event, and where its frame ends.
type Understood = (Heard, u64);

/// Reads frames up to the first that is no good, or that nobody wants.
fn read(mut file: impl Read, begin: u64, understood: &SyncSender<Understood>) -> io::Result<()> {
    let mut bytes = begin;
    while let Some(payload) = next(&mut file)? {
        bytes += framed(&payload);
        let Ok(pb::WatchEvent { event: Some(event) }) = pb::WatchEvent::decode(&*payload) else {
            break;
        };
        let Ok(heard) = Heard::try_from(event) else { break };
        if understood.send((heard, bytes)).is_err() {
            break;
        }
    }
    Ok(())
}

/// The last state that the events lead to.
fn play(events: &Receiver<Understood>) -> Option<Replayed> {
    let mut feed = Feed::default();
    let mut replayed: Option<Replayed> = None;
    for (heard, bytes) in events {
        match (feed.take(heard), &mut replayed) {
            (Ok(Taken::Listed(tree)), _) => {
                replayed = Some(Replayed { tree, list_bytes: bytes, bytes });
            }
            (Ok(Taken::Change(change)), Some(replayed)) => {
                if replayed.tree.apply(&change) == Applied::OutOfOrder {
                    break;
                }
                replayed.bytes = bytes;
            }
            (Ok(Taken::Live(live)), Some(replayed)) => {
                replayed.tree.set_live(live);
                replayed.bytes = bytes;
            }
            (Ok(Taken::Part | Taken::Heartbeat), _) => {}
            (Ok(Taken::Change(_) | Taken::Live(_)), None) | (Err(_), _) => break,
        }
    }
    replayed
}

fn framed(payload: &[u8]) -> u64 {
    u64::try_from(HEAD_BYTES + payload.len()).unwrap_or(u64::MAX)
}

/// The next frame's payload; none at the end, or where the file is no longer what was written.
fn next(file: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut head = [0; HEAD_BYTES];
    let mut payload = Vec::new();
    if !filled(file, &mut head)? {
        return Ok(None);
    }
    let (len, expected) = head.split_at(4);
    let len = len.try_into().map_or(0, u32::from_le_bytes);
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    // Of an event nothing is empty, and none was larger when it came.
    if len == 0 || len > MESSAGE_BYTES_MAX {
        return Ok(None);
    }
    payload.resize(len, 0);
    let whole = filled(file, &mut payload)? && check(&payload) == *expected;
    Ok(whole.then_some(payload))
}

fn filled(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use isotope_proto::change::{Change, Delta, Edit, Record};
    use isotope_proto::digest::{Blake3, Sha256};
    use isotope_proto::id::{ContentId, EntryId, ImageId, Incarnation, Ino, Revision, VolumeId};
    use isotope_proto::image::{Checked, Hashes, Image, ImageFormat, Os, Replica, Stamp};
    use isotope_proto::name::{EntryName, VolumePath};
    use isotope_proto::time::Timestamp;
    use isotope_proto::tree::{Entry, Folder};

    use super::*;
    use crate::tree::Position;

    pub(crate) fn whose() -> Whose {
        Whose { catalog: "http://c:1".to_owned(), mountpoint: "/mnt/isos".to_owned() }
    }

    fn position(revision: u64) -> Position {
        let incarnation = Incarnation::from_bytes([1; 16]);
        Position { incarnation, revision: Revision(revision) }
    }

    fn folder(ino: u64) -> Record {
        let time = Timestamp(5);
        Record::Folder(Folder {
            ino: Ino(ino),
            mode: 0o775,
            created: time,
            modified: time,
            changed: time,
            default_pool: None,
        })
    }

    fn image(ino: u64) -> Image {
        let replica = |n: u8, rotten| Replica {
            volume: VolumeId::from_bytes([n; 16]),
            path: VolumePath::parse("iso/some/where.iso").expect("a path"),
            stamp: Stamp { inode: 7, size_bytes: 1, mtime_ns: -3 },
            checked: Some(Checked { read: Timestamp::from_parts(9, 5), rotten, published: None }),
        };
        Image {
            id: ImageId::from_bytes([ino as u8; 16]),
            ino: Ino(ino),
            content: ContentId::from_bytes([ino as u8; 16]),
            hashes: Some(Hashes {
                sha256: Sha256::from_bytes([3; 32]),
                blake3: Blake3::from_bytes([4; 32]),
            }),
            filename: "where.iso".to_owned(),
            size_bytes: 1,
            format: ImageFormat::Iso,
            os: Os { distribution: "some".to_owned(), ..Os::unknown() },
            flat_names: vec![EntryName::parse("a.iso").expect("a name")],
            facts: None,
            mode: 0o664,
            created: Timestamp(1),
            modified: Timestamp(2),
            changed: Timestamp(3),
            replicas: vec![replica(1, false), replica(2, true)],
        }
    }

    fn entry(id: u64, name: &str, ino: u64) -> Entry {
        let name = EntryName::parse(name).expect("a name");
        Entry { id: EntryId(id), parent: Ino::ROOT, name, ino: Ino(ino) }
    }

    /// A list of one image, and changes that each add one more.
    pub(crate) fn events(changes: u64) -> Vec<Event> {
        let Position { incarnation, revision } = position(10);
        let reset = pb::Reset { incarnation: incarnation.into(), revision: revision.0, inodes: 0 };
        let list = vec![folder(1), Record::Image(image(2)), Record::Entry(entry(2, "2.iso", 2))];
        let records = list.into_iter().map(Into::into).collect();
        let mut all = vec![
            Event::Reset(reset),
            Event::Records(pb::Records { records }),
            Event::Listed(pb::Listed {}),
        ];
        for n in 0..changes {
            let ino = 3 + n;
            let made = entry(ino, &format!("{ino}.iso"), ino);
            let deltas = vec![Delta::Image(Edit::Made(image(ino))), Delta::Entry(Edit::Made(made))];
            let Position { incarnation, revision } = position(11 + n);
            let change = Change { incarnation, revision, time: Timestamp(0), deltas };
            all.push(Event::Change(change.into()));
        }
        all
    }

    fn recorded(events: &[Event]) -> Vec<u8> {
        let frames = events.iter().flat_map(|event| encode(event.clone()).0);
        whose().frame().into_iter().chain(frames).collect()
    }

    fn play(events: &[Event]) -> Tree {
        *replay(&*recorded(events), &whose()).expect("a tree").tree
    }

    #[test]
    fn what_is_left_out_is_nothing_that_the_mount_keeps() {
        let whole = events(3);
        let mut stripped = whole.clone();
        stripped.iter_mut().for_each(strip);
        assert!(recorded(&stripped).len() < recorded(&whole).len());
        assert_eq!(play(&stripped), play(&whole));
        let verified = play(&whole).image(Ino(2)).and_then(|it| it.verified);
        assert_eq!(verified.map(u32::from), Some(9));
    }

    #[test]
    fn torn_at_any_byte_it_is_an_earlier_state() {
        let all = events(3);
        let whole = recorded(&all);
        let states: Vec<Tree> = (0..=3).map(|n| play(&all[..3 + n])).collect();
        let mut met = 0;
        for cut in 0..=whole.len() {
            match replay(&whole[..cut], &whose()) {
                Ok(Replayed { tree, list_bytes, bytes }) => {
                    assert!(list_bytes <= bytes && bytes <= cut as u64);
                    let state = states.iter().position(|state| *state == *tree);
                    let state = state.expect("an earlier state");
                    assert!(state >= met, "more bytes, not less of a state");
                    met = state;
                    // What stands before the tear plays back alone.
                    let kept = &whole[..usize::try_from(bytes).expect("small")];
                    assert_eq!(replay(kept, &whose()).expect("a tree").tree, tree);
                }
                Err(Unusable::Foreign | Unusable::Damaged) => assert_eq!(met, 0),
                Err(Unusable::Io(error)) => panic!("{error}"),
            }
        }
        assert_eq!(met, 3);
    }

    #[test]
    fn a_changed_byte_is_never_believed() {
        let all = events(2);
        let whole = recorded(&all);
        let states: Vec<Tree> = (0..=2).map(|n| play(&all[..3 + n])).collect();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x40;
            if let Ok(replayed) = replay(&*damaged, &whose()) {
                assert!(states[..2].contains(&replayed.tree), "byte {at}");
            }
        }
    }

    #[test]
    fn anothers_recording_is_told_from_ones_own() {
        let whole = recorded(&events(0));
        let other = Whose { mountpoint: "/mnt/others".to_owned(), ..whose() };
        assert!(matches!(replay(&*whole, &other), Err(Unusable::Foreign)));
        assert_ne!(other.file_name(), whose().file_name());
        assert!(matches!(replay(&b"anything else"[..], &whose()), Err(Unusable::Foreign)));
    }

    #[test]
    fn a_gap_ends_it() {
        let mut all = events(3);
        all.remove(4);
        assert_eq!(play(&all), play(&all[..4]));
    }
}
