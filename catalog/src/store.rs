//! The store: domain verbs, each one transaction that returns the change it made. SQL lives
//! beneath this module and nowhere else; no connection or transaction leaves it.

mod aside;
mod backup;
mod images;
mod key;
mod log;
mod open;
mod replace;
mod rows;
mod write;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use isotope_proto::change::{Change, Record};
use isotope_proto::id::{Incarnation, RequestId, Revision};
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::signature::UrlKey;
use isotope_proto::time::Timestamp;
use rusqlite::Connection;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::feed::Feed;
pub(crate) use aside::Reserved;
pub use backup::{BackupInfo, RestoreError, Restored, check_backup};
pub(crate) use backup::{Copied, restore};
pub use open::OpenError;
pub(crate) use rows::Rows;
pub(crate) use write::Edits;
use writer::Job;
pub(crate) use writer::{Committed, Outcome, Verb};

/// Reads at once: enough to keep two cores busy while one waits for the disk.
const READERS: usize = 4;
/// Changes waiting for the writer; more are refused as busy.
const QUEUE_MAX: usize = 1024;

/// A handle to the one database; clones share it.
#[derive(Clone)]
pub(crate) struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    jobs: mpsc::Sender<Job>,
    readers: Mutex<Vec<Connection>>,
    permits: Semaphore,
    feed: Feed,
    state: PathBuf,
    url_key: UrlKey,
    /// For the one copy that may be made at a time.
    copying: Arc<Semaphore>,
    /// Held for the life of the process: two catalogues on one database would both write.
    _lock: std::fs::File,
}

impl Shared {
    fn lock_readers(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Opens the database in `state`, or makes it, and starts the writer. The feed carries what
    /// the writer commits.
    pub(crate) fn open(state: &Path, now: Timestamp) -> Result<(Self, Feed), OpenError> {
        let opened = open::open(state, now)?;
        let readers =
            (0..READERS).map(|_| opened.reader()).collect::<Result<Vec<_>, OpenError>>()?;
        let feed = Feed::new(opened.incarnation, opened.revision);
        let (jobs, queue) = mpsc::channel(QUEUE_MAX);
        writer::spawn(opened.connection, queue, feed.clone());
        let shared = Shared {
            jobs,
            readers: Mutex::new(readers),
            permits: Semaphore::new(READERS),
            feed: feed.clone(),
            state: state.to_owned(),
            url_key: opened.url_key,
            copying: Arc::new(Semaphore::new(1)),
            _lock: opened.lock,
        };
        Ok((Self { shared: Arc::new(shared) }, feed))
    }

    pub(crate) fn incarnation(&self) -> Incarnation {
        self.shared.feed.incarnation()
    }

    /// What URLs of images are signed with.
    pub(crate) fn url_key(&self) -> &UrlKey {
        &self.shared.url_key
    }

    /// Carries out a change, once for each request id, and answers when it is durable.
    pub(crate) async fn commit(
        &self,
        request: Option<RequestId>,
        verb: Verb,
    ) -> Result<Committed, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.shared.jobs.try_send(Job { request, verb, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                Refusal::new(Reason::Busy, "the catalogue has too many changes waiting; try again")
            }
            mpsc::error::TrySendError::Closed(_) => stopped(),
        })?;
        answer.await.map_err(|_| stopped())?
    }

    /// Runs `look` over one consistent view of the library, off the async threads.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Rows<'_>) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let _permit = self.shared.permits.acquire().await.map_err(|_| stopped())?;
        let shared = Arc::clone(&self.shared);
        let work = tokio::task::spawn_blocking(move || {
            let mut borrowed = Borrowed::take(&shared)?;
            let transaction = borrowed.connection()?.transaction().map_err(storage)?;
            look(&Rows::new(&transaction))
        });
        work.await.map_err(|_| stopped())?
    }

    /// The whole library at one revision, in pieces; begins with that, and how many inodes it has.
    pub(crate) async fn list(
        &self,
        pieces: mpsc::Sender<Vec<Record>>,
        begin: oneshot::Sender<(Revision, u64)>,
    ) -> Result<(), Refusal> {
        self.read(move |rows| {
            // A watcher that has gone away is no error of the list.
            let _ = begin.send((rows.revision()?, rows.inode_count()?));
            rows.each_record(|piece| pieces.blocking_send(piece).is_ok())
        })
        .await
    }

    /// Up to `count_max` changes after a revision; `None` when the next one is no longer kept.
    pub(crate) async fn changes_after(
        &self,
        revision: Revision,
        count_max: u32,
    ) -> Result<Option<Vec<Change>>, Refusal> {
        self.read(move |rows| rows.changes_after(revision, count_max)).await
    }
}

/// A reader's connection, given back however its use ends.
struct Borrowed<'a> {
    connection: Option<Connection>,
    shared: &'a Shared,
}

impl<'a> Borrowed<'a> {
    fn take(shared: &'a Shared) -> Result<Self, Refusal> {
        let connection = shared.lock_readers().pop().ok_or_else(stopped)?;
        Ok(Self { connection: Some(connection), shared })
    }

    fn connection(&mut self) -> Result<&mut Connection, Refusal> {
        self.connection.as_mut().ok_or_else(stopped)
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        self.shared.lock_readers().extend(self.connection.take());
    }
}

fn stopped() -> Refusal {
    Refusal::new(Reason::Unavailable, "the catalogue is stopping")
}

/// What a failed statement looks like from outside.
fn storage(error: rusqlite::Error) -> Refusal {
    Refusal::new(Reason::Storage, format!("the catalogue's database failed: {error}"))
}

#[cfg(test)]
pub(crate) mod tests {
    use isotope_proto::cluster::{Node, VolumeState};
    use isotope_proto::id::{BootId, Ino, NodeId, VolumeId};
    use isotope_proto::name::EntryName;
    use isotope_proto::report::{Hello, OfferedVolume};
    use isotope_proto::tree::{FOLDER_MODE, FolderRef, Place};

    use super::*;

    pub(crate) const VOLUMES: [VolumeId; 2] =
        [VolumeId::from_bytes([2; 16]), VolumeId::from_bytes([3; 16])];

    /// A new store that knows one node with a volume in each of the pools `fast` and `slow`.
    pub(crate) async fn store() -> (Store, tempfile::TempDir) {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, _) = Store::open(dir.path(), Timestamp(1)).expect("a store");
        let volume = |(id, pool): (VolumeId, &str)| OfferedVolume {
            id,
            pool_name: pool.to_owned(),
            path: format!("/{pool}"),
            state: VolumeState::Offline(String::new()),
        };
        let id = NodeId::from_bytes([1; 16]);
        let hello = Hello {
            node: Node {
                id,
                name: "host".to_owned(),
                address: "host:1".to_owned(),
                host: "host".to_owned(),
            },
            boot: BootId::from_bytes([1; 16]),
            version: String::new(),
            volumes: VOLUMES.into_iter().zip(["fast", "slow"]).map(volume).collect(),
        };
        store.commit(None, Verb::Register { hello }).await.expect("registered");
        (store, dir)
    }

    fn make(name: &str) -> Verb {
        let name = EntryName::parse(name).expect("a name");
        let place = Place { folder: FolderRef::Ino(Ino::ROOT), name };
        Verb::MakeFolder { place, mode: FOLDER_MODE }
    }

    #[tokio::test]
    async fn a_request_makes_its_change_once() {
        let (store, _dir) = store().await;
        let request = Some(RequestId::from_bytes([9; 16]));
        let first = store.commit(request, make("a")).await.expect("made").change;
        let again = store.commit(request, make("a")).await.expect("known").change;
        assert_eq!(first, again);
        let other = store.commit(Some(RequestId::from_bytes([8; 16])), make("a")).await;
        assert_eq!(other.expect_err("taken").reason, Reason::Exists);
        assert_eq!(
            store.read(|rows| rows.revision()).await.expect("read"),
            first.revision,
            "a refusal is no revision"
        );
    }

    #[tokio::test]
    async fn changes_of_one_group_are_refused_alone_and_published_in_order() {
        let (store, _dir) = store().await;
        let mut waiting = tokio::task::JoinSet::new();
        for n in 0..200_usize {
            let store = store.clone();
            // Every other name is asked for twice.
            waiting.spawn(async move { store.commit(None, make(&format!("{}", n / 2 * 2))).await });
        }
        let results = waiting.join_all().await;
        assert_eq!(results.iter().filter(|it| it.is_ok()).count(), 100);
        let changes = store.changes_after(Revision(0), 1000).await.expect("read").expect("kept");
        let revisions: Vec<u64> = changes.iter().map(|change| change.revision.0).collect();
        assert_eq!(revisions, (1..=101).collect::<Vec<_>>(), "no gap, no repetition");
    }

    #[tokio::test]
    async fn what_is_acknowledged_outlives_the_process() {
        let (store, dir) = store().await;
        let change = store.commit(None, make("kept")).await.expect("made").change;
        let (incarnation, url_key) = (store.incarnation(), store.url_key().clone());
        drop(store);
        // The writer ends once it has seen that nobody can ask any more.
        let reopened = (0..100).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            Store::open(dir.path(), Timestamp(2)).ok()
        });
        let (store, feed) = reopened.expect("the lock is free");
        assert_eq!(store.incarnation(), incarnation);
        assert!(*store.url_key() == url_key, "URLs that were signed hold");
        assert_eq!(feed.newest(), change.revision);
        let changes = store.changes_after(Revision(1), 10).await.expect("read");
        assert_eq!(changes, Some(vec![(*change).clone()]));
    }
}
