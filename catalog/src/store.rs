//! The store: domain verbs, each one transaction that returns the change it made. SQL lives
//! beneath this module and nowhere else; no connection or transaction leaves it.

mod log;
mod open;
mod rows;
mod write;
mod writer;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use isotope_proto::change::{Change, Record};
use isotope_proto::id::{Incarnation, RequestId, Revision};
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::time::Timestamp;
use rusqlite::Connection;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::feed::Feed;
pub use open::OpenError;
pub(crate) use rows::Rows;
pub(crate) use write::Edits;
use writer::Job;
pub(crate) use writer::{Committed, Verb};

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
    incarnation: Incarnation,
    /// Held for the life of the process: two catalogues on one database would both write.
    _lock: std::fs::File,
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
        writer::spawn(opened.connection, opened.incarnation, queue, feed.clone());
        let shared = Shared {
            jobs,
            readers: Mutex::new(readers),
            permits: Semaphore::new(READERS),
            incarnation: opened.incarnation,
            _lock: opened.lock,
        };
        Ok((Self { shared: Arc::new(shared) }, feed))
    }

    pub(crate) fn incarnation(&self) -> Incarnation {
        self.shared.incarnation
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
            let lock = || shared.readers.lock().unwrap_or_else(PoisonError::into_inner);
            let mut connection = lock().pop().ok_or_else(stopped)?;
            let result = (|| {
                let transaction = connection.transaction().map_err(storage)?;
                look(&Rows::new(&transaction))
            })();
            lock().push(connection);
            result
        });
        work.await.map_err(|_| stopped())?
    }

    /// The whole library at one revision, in pieces.
    pub(crate) async fn list(
        &self,
        pieces: mpsc::Sender<Vec<Record>>,
        begin: oneshot::Sender<Revision>,
    ) -> Result<(), Refusal> {
        self.read(move |rows| {
            // A watcher that has gone away is no error of the list.
            let _ = begin.send(rows.revision()?);
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

fn stopped() -> Refusal {
    Refusal::new(Reason::Unavailable, "the catalogue is stopping")
}

/// What a failed statement looks like from outside.
fn storage(error: rusqlite::Error) -> Refusal {
    Refusal::new(Reason::Storage, format!("the catalogue's database failed: {error}"))
}
