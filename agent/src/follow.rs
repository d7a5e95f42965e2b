//! The catalogue's feed → the copies of the library in the sidecars of the volumes that this agent
//! keeps: one stream for all of them, written down in batches. It has a connection of its own, so
//! that nothing here keeps reports or readers waiting; and a disk that does not answer keeps only
//! its own volume's copy from being written.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use isotope_proto::change::{Change, Delta, Record};
use isotope_proto::id::{Incarnation, Revision, VolumeId};
use isotope_proto::pb::feed_service_client::FeedServiceClient;
use isotope_proto::pb::{self, watch_event::Event};
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::wire::Malformed;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tonic::Streaming;
use tonic::transport::Endpoint;
use tracing::{debug, warn};

use crate::library::{Library, Position, Taken};
use crate::library_log::{self, LibraryLog};
use crate::volume::Volume;
use crate::volumes::Volumes;

/// Between two writings of one copy: a storm of renames is one sync a second.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// Heartbeats come every 250 ms; without any for so long the feed is lost.
const SILENCE_MAX: Duration = Duration::from_secs(4);
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// Between two streams: a list of a large library takes the catalogue a second.
const RETRY: Duration = Duration::from_secs(3);
/// A piece of a list holds a thousand records of some 300 bytes; names may be long.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Changes that wait for a volume's disk; one that misses more is listed anew.
const WAITING_MAX: usize = 4096;
/// Deltas that wait to be written; more, and the whole is written in their place.
const PENDING_MAX: usize = 100_000;
/// Changes of no concern to a volume before that is written down, too.
const UNWRITTEN_MAX: u64 = 1000;

/// Follows the catalogue for all volumes of this agent.
pub(crate) struct Follower {
    pub(crate) volumes: Volumes,
    pub(crate) catalog: Endpoint,
}

/// What is told of the library.
enum Told {
    Whole(Box<Library>),
    Change(Arc<Change>),
}

/// A volume's copy in memory, and what of it is yet to be written.
struct Body {
    library: Option<Library>,
    log: LibraryLog,
    pending: Vec<Delta>,
    due: Due,
    written: Revision,
    failed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Nothing,
    Append,
    Anew,
}

/// A volume that is followed for. Its body is away while the disk is read or written.
struct Copy {
    volume: Arc<Volume>,
    body: Option<Box<Body>>,
    working: Option<JoinHandle<Box<Body>>>,
    waiting: Vec<Told>,
    /// Up to where it has been told; none: it needs the list.
    heard: Option<Position>,
    /// Whether the stream that runs is for it, too.
    joined: bool,
    listing: Option<Box<Library>>,
}

impl Follower {
    pub(crate) async fn run(self) {
        let mut copies = BTreeMap::<VolumeId, Copy>::new();
        let mut events: Option<Streaming<pb::WatchEvent>> = None;
        let (mut tick, mut retry_at) = (interval(WRITE_EVERY), Instant::now());
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let heard = tokio::select! {
                _ = tick.tick() => {
                    self.tend(&mut copies).await;
                    Ok(())
                }
                event = next(&mut events), if events.is_some() => {
                    event.and_then(|event| take(&mut copies, event))
                }
            };
            if let Err(refusal) = heard {
                debug!(catalog = %self.catalog.uri(), reason = %refusal, "the feed is lost; it is followed again");
                (events, retry_at) = (None, Instant::now() + RETRY);
            }
            // One that has come, or lost the thread, needs a stream that begins where it stands.
            if copies.values().any(|copy| copy.is_open() && !copy.joined) || copies.is_empty() {
                events = None;
            }
            let wanted = copies.values().any(Copy::is_open);
            if events.is_none() && wanted && Instant::now() >= retry_at {
                retry_at = Instant::now() + RETRY;
                events = self.watch(&mut copies).await.ok();
            }
        }
    }

    /// Begins a stream for all copies that are open.
    async fn watch(
        &self,
        copies: &mut BTreeMap<VolumeId, Copy>,
    ) -> Result<Streaming<pb::WatchEvent>, Refusal> {
        for copy in copies.values_mut() {
            copy.joined = copy.is_open();
            copy.listing = None;
        }
        let from = common(copies.values().filter(|copy| copy.joined).map(|copy| copy.heard));
        let request = pb::WatchRequest {
            incarnation: from.map(|it| it.incarnation.into()).unwrap_or_default(),
            after_revision: from.map_or(0, |it| it.revision.0),
            // An agent is shown as a node.
            watcher: None,
        };
        let unavailable =
            |why: String| Refusal::new(Reason::Unavailable, format!("no feed: {why}"));
        let begin = async {
            let endpoint = self.catalog.clone().connect_timeout(CONNECT_MAX).tcp_nodelay(true);
            let channel = endpoint.connect().await.map_err(|it| unavailable(it.to_string()))?;
            let client = FeedServiceClient::new(channel);
            let mut client = client.max_decoding_message_size(MESSAGE_BYTES_MAX);
            Ok::<_, Refusal>(client.watch(request).await?.into_inner())
        };
        let begun = timeout(SILENCE_MAX, begin).await;
        begun.map_err(|_| unavailable("the catalogue does not answer".to_owned()))?
    }

    /// Follows for the volumes that are kept now, and has written what is due.
    async fn tend(&self, copies: &mut BTreeMap<VolumeId, Copy>) {
        for volume in self.volumes.all() {
            if volume.is_kept() && volume.root().is_ok() {
                copies.entry(volume.id).or_insert_with(|| Copy::open(volume));
            }
        }
        for copy in copies.values_mut() {
            copy.tend().await;
        }
        copies.retain(|_, copy| copy.working.is_some() || copy.is_wanted());
    }
}

/// Where a stream for all of them begins; none: with the list.
fn common(all: impl Iterator<Item = Option<Position>>) -> Option<Position> {
    let all: Vec<Position> = all.collect::<Option<_>>()?;
    let first = all.iter().min_by_key(|at| at.revision).copied()?;
    all.iter().all(|at| at.incarnation == first.incarnation).then_some(first)
}

async fn next(events: &mut Option<Streaming<pb::WatchEvent>>) -> Result<Option<Event>, Refusal> {
    let Some(events) = events else { return std::future::pending().await };
    let silent = |_| Refusal::new(Reason::TimedOut, "no word from the catalogue");
    match timeout(SILENCE_MAX, events.message()).await.map_err(silent)?? {
        Some(event) => Ok(event.event),
        None => Err(Refusal::new(Reason::Unavailable, "the catalogue closed the feed")),
    }
}

fn take(copies: &mut BTreeMap<VolumeId, Copy>, event: Option<Event>) -> Result<(), Refusal> {
    let joined = copies.iter_mut().filter(|(_, copy)| copy.joined);
    match event {
        Some(Event::Reset(reset)) => {
            let incarnation =
                Incarnation::try_from(&*reset.incarnation).map_err(Malformed::from)?;
            let at = Position { incarnation, revision: Revision(reset.revision) };
            for (volume, copy) in joined {
                copy.listing = Some(Box::new(Library::new(*volume, at)));
            }
        }
        Some(Event::Records(records)) => {
            let records = records.records.into_iter().map(Record::try_from);
            let records: Vec<Record> = records.collect::<Result<_, _>>()?;
            for list in joined.filter_map(|(_, copy)| copy.listing.as_mut()) {
                records.iter().for_each(|record| list.load(record));
            }
        }
        Some(Event::Listed(pb::Listed {})) => {
            for (_, copy) in joined {
                if let Some(list) = copy.listing.take() {
                    copy.heard = Some(list.position());
                    copy.hear(Told::Whole(list));
                }
            }
        }
        Some(Event::Change(change)) => {
            let change = Arc::new(Change::try_from(change)?);
            for (_, copy) in joined {
                copy.hear(Told::Change(Arc::clone(&change)));
            }
        }
        Some(Event::Live(_) | Event::Heartbeat(_)) | None => {}
    }
    Ok(())
}

impl Copy {
    /// What there is on the disk is where it goes on.
    fn open(volume: Arc<Volume>) -> Self {
        let at = Arc::clone(&volume);
        let working = Some(tokio::task::spawn_blocking(move || Box::new(Body::read(&at))));
        Self {
            volume,
            body: None,
            working,
            waiting: Vec::new(),
            heard: None,
            joined: false,
            listing: None,
        }
    }

    /// Whether its disk has been read: before, nobody knows what it needs.
    fn is_open(&self) -> bool {
        self.body.is_some() || self.joined
    }

    fn is_wanted(&self) -> bool {
        self.volume.is_kept() && !self.volume.left.is_cancelled()
    }

    fn hear(&mut self, told: Told) {
        if self.body.is_some() {
            self.apply(told);
        } else if self.waiting.len() < WAITING_MAX {
            self.waiting.push(told);
        } else {
            self.lose_the_thread();
        }
    }

    fn lose_the_thread(&mut self) {
        self.waiting.clear();
        self.heard = None;
        self.joined = false;
    }

    fn apply(&mut self, told: Told) {
        let Some(body) = &mut self.body else { return };
        match told {
            Told::Whole(list) => body.replace(*list),
            Told::Change(change) => {
                if !body.change(&change) {
                    debug!(volume = %self.volume.id, "the copy of the library is listed anew");
                    self.lose_the_thread();
                    return;
                }
            }
        }
        self.heard = body.library.as_ref().map(Library::position);
    }

    async fn tend(&mut self) {
        if let Some(working) = self.working.take_if(|it| it.is_finished()) {
            // One that panicked has nothing left to say: it is read again.
            let Ok(body) = working.await else {
                *self = Self::open(Arc::clone(&self.volume));
                return;
            };
            if !self.joined {
                self.heard = body.library.as_ref().map(Library::position);
            }
            self.body = Some(body);
            for told in std::mem::take(&mut self.waiting) {
                self.apply(told);
            }
        }
        let may_write = self.is_wanted() && self.volume.root().is_ok();
        if may_write && let Some(mut body) = self.body.take_if(|body| body.due != Due::Nothing) {
            let at = Arc::clone(&self.volume);
            self.working = Some(tokio::task::spawn_blocking(move || {
                let saved = body.save(&at);
                // Said once, not with every try.
                if let Err(error) = &saved
                    && !body.failed
                {
                    warn!(volume = %at.id, %error, "the copy of the library could not be written; it is tried again");
                }
                body.failed = saved.is_err();
                body
            }));
        }
    }
}

impl Body {
    fn read(volume: &Volume) -> Self {
        let read = volume.sidecar().map_err(|error| error.to_string());
        let library = read.and_then(|sidecar| library_log::read(&sidecar)).unwrap_or_else(|reason| {
            warn!(volume = %volume.id, reason, "the copy of the library is damaged; it is made anew by the catalogue");
            None
        });
        let written = library.as_ref().map_or(Revision(0), |it| it.position().revision);
        // Another volume's log has no business here.
        let library = library.filter(|library| library.mark().volume == volume.id);
        Self {
            library,
            log: LibraryLog::default(),
            pending: Vec::new(),
            due: Due::Nothing,
            written,
            failed: false,
        }
    }

    fn replace(&mut self, list: Library) {
        self.pending.clear();
        let life = |library: &Library| library.position().incarnation;
        let stands = self.library.as_ref();
        if stands.is_some_and(|it| life(it) == life(&list) && it.has_the_same(&list)) {
            self.due = self.due_at(list.position().revision);
        } else {
            self.due = Due::Anew;
        }
        if stands.is_some_and(|it| life(it) != life(&list)) {
            self.log.let_go();
        }
        self.library = Some(list);
    }

    /// False if the list is needed.
    fn change(&mut self, change: &Change) -> bool {
        let Some(library) = &mut self.library else { return false };
        match library.take(change) {
            Taken::Known => {}
            Taken::ListNeeded => return false,
            Taken::Deltas(deltas) => {
                let concerns = !deltas.is_empty();
                self.pending.extend(deltas);
                if self.pending.len() > PENDING_MAX {
                    self.pending.clear();
                    self.due = Due::Anew;
                } else if self.due == Due::Nothing {
                    self.due = if concerns { Due::Append } else { self.due_at(change.revision) };
                }
            }
        }
        true
    }

    /// What is due where nothing has changed but the revision.
    fn due_at(&self, revision: Revision) -> Due {
        match revision.0.saturating_sub(self.written.0) > UNWRITTEN_MAX {
            true if self.due == Due::Nothing => Due::Append,
            _ => self.due,
        }
    }

    fn save(&mut self, volume: &Volume) -> io::Result<()> {
        let Some(library) = &self.library else { return Ok(()) };
        let sidecar = volume.sidecar()?;
        let saved = match self.due {
            Due::Append if !self.log.is_stale() => {
                self.log.append(&sidecar, library, &self.pending)
            }
            Due::Append | Due::Anew => self.log.rewrite(&sidecar, library),
            Due::Nothing => return Ok(()),
        };
        self.pending.clear();
        self.due = if saved.is_ok() { Due::Nothing } else { Due::Anew };
        self.written = library.position().revision;
        saved
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::library::tests::{HERE, at, change, folder};
    use isotope_proto::change::Edit;

    #[test]
    fn a_stream_begins_where_the_one_that_is_furthest_behind_stands() {
        for (all, expected) in [
            (&[][..], None),
            (&[Some(at(1, 5)), Some(at(1, 3))], Some(at(1, 3))),
            (&[Some(at(1, 5)), None], None),
            (&[Some(at(1, 5)), Some(at(2, 9))], None),
        ] {
            assert_eq!(common(all.iter().copied()), expected, "{all:?}");
        }
    }

    #[test]
    fn only_what_concerns_the_volume_is_due() {
        let mut body = Body {
            library: None,
            log: LibraryLog::default(),
            pending: Vec::new(),
            due: Due::Nothing,
            written: Revision(0),
            failed: false,
        };
        let made = |ino| vec![Delta::Folder(Edit::Made(folder(ino)))];
        assert!(!body.change(&change(at(1, 1), made(2))), "it has not been listed");
        body.replace(Library::new(HERE, at(1, 1)));
        assert_eq!(body.due, Due::Anew);
        body.due = Due::Nothing;
        body.replace(Library::new(HERE, at(1, 2)));
        assert_eq!(body.due, Due::Nothing, "the same again");
        for revision in 3..=UNWRITTEN_MAX {
            assert!(body.change(&change(at(1, revision), Vec::new())));
        }
        assert_eq!(body.due, Due::Nothing, "nothing of its concern");
        assert!(body.change(&change(at(1, UNWRITTEN_MAX + 1), Vec::new())));
        assert_eq!(body.due, Due::Append, "so far that it would be much to catch up");
        body.due = Due::Nothing;
        assert!(body.change(&change(at(1, UNWRITTEN_MAX + 2), made(2))));
        assert_eq!((body.due, body.pending.len()), (Due::Append, 1));
        assert!(!body.change(&change(at(1, UNWRITTEN_MAX + 9), made(3))), "a gap");
    }
}
