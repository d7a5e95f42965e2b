//! The one writer: takes the changes that wait, carries each out in a savepoint of its own, makes
//! them durable together (group commit), and only then publishes and answers.

use std::sync::Arc;

use isotope_proto::change::Change;
use isotope_proto::id::{ImageId, Incarnation, RequestId, VolumeId};
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::report::{FileChange, Hello};
use isotope_proto::time::Timestamp;
use isotope_proto::tree::{Place, RenameMode};
use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use super::log;
use super::write::Edits;
use crate::feed::Feed;
use crate::{clock, library, nodes, reconcile};

/// Changes made durable by one sync: it bounds how long the first of them waits.
const GROUP_MAX: usize = 64;

/// Every change there is.
#[derive(Debug, Clone)]
pub(crate) enum Verb {
    MakeFolder { place: Place, mode: u32 },
    RemoveFolder { place: Place },
    Rename { from: Place, to: Place, mode: RenameMode },
    Register { hello: Hello },
    ApplyFiles { volume: VolumeId, changes: Vec<FileChange> },
}

/// What a verb did.
#[derive(Debug, Clone)]
pub(crate) struct Committed {
    /// Without deltas, at the revision that stands, if nothing had to change.
    pub(crate) change: Arc<Change>,
    /// After `ApplyFiles`: the image of each file, in order.
    pub(crate) images: Vec<ImageId>,
}

pub(super) struct Job {
    pub(super) request: Option<RequestId>,
    pub(super) verb: Verb,
    pub(super) reply: oneshot::Sender<Result<Committed, Refusal>>,
}

type Answered = (oneshot::Sender<Result<Committed, Refusal>>, Result<Outcome, Refusal>);

enum Outcome {
    /// New in this group: to be published.
    Made(Committed),
    /// Nothing new: answered, not published.
    Known(Committed),
}

/// Ends when all handles to the store are gone.
pub(super) fn spawn(
    mut connection: Connection,
    incarnation: Incarnation,
    mut queue: mpsc::Receiver<Job>,
    feed: Feed,
) {
    let run = move || {
        let mut group = Vec::with_capacity(GROUP_MAX);
        while queue.blocking_recv_many(&mut group, GROUP_MAX) > 0 {
            commit_group(&mut connection, incarnation, group.drain(..), &feed);
        }
    };
    std::thread::Builder::new()
        .name("catalog-writer".to_owned())
        .spawn(run)
        .expect("a thread at start-up");
}

fn commit_group(
    connection: &mut Connection,
    incarnation: Incarnation,
    jobs: impl Iterator<Item = Job>,
    feed: &Feed,
) {
    let mut answers: Vec<Answered> = Vec::with_capacity(GROUP_MAX);
    let jobs: Vec<Job> = jobs.collect();
    let committed = (|| {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for Job { request, verb, reply } in jobs {
            transaction.execute_batch("SAVEPOINT change")?;
            let result = carry_out(&transaction, incarnation, request, &verb, clock::now());
            transaction.execute_batch(match &result {
                Ok(_) => "RELEASE change",
                Err(_) => "ROLLBACK TO change; RELEASE change",
            })?;
            answers.push((reply, result));
        }
        transaction.commit()
    })();
    for (reply, result) in answers {
        let result = match (&committed, result) {
            (Err(error), Ok(_)) => Err(Refusal::new(
                Reason::Storage,
                format!("the change could not be made durable: {error}"),
            )),
            (_, Err(refusal)) => Err(refusal),
            (Ok(()), Ok(Outcome::Known(committed))) => Ok(committed),
            (Ok(()), Ok(Outcome::Made(committed))) => {
                feed.publish(&committed.change);
                Ok(committed)
            }
        };
        // The asker may have given up; the change stands and its request id finds it again.
        let _ = reply.send(result);
    }
}

fn carry_out(
    db: &Connection,
    incarnation: Incarnation,
    request: Option<RequestId>,
    verb: &Verb,
    now: Timestamp,
) -> Result<Outcome, Refusal> {
    if let Some(request) = request
        && let Some(change) = log::made_by(db, request)?
    {
        return Ok(Outcome::Known(Committed { change: Arc::new(change), images: Vec::new() }));
    }
    let mut edits = Edits::new(db);
    let mut images = Vec::new();
    match verb {
        Verb::MakeFolder { place, mode } => library::make_folder(&mut edits, place, *mode, now)?,
        Verb::RemoveFolder { place } => library::remove_folder(&mut edits, place, now)?,
        Verb::Rename { from, to, mode } => library::rename(&mut edits, from, to, *mode, now)?,
        Verb::Register { hello } => nodes::register(&mut edits, hello, now)?,
        Verb::ApplyFiles { volume, changes } => {
            images = reconcile::apply(&mut edits, *volume, changes, now)?;
        }
    }
    let standing = edits.revision()?;
    let deltas = edits.into_deltas();
    if deltas.is_empty() {
        let change = Change { incarnation, revision: standing, time: now, deltas };
        return Ok(Outcome::Known(Committed { change: Arc::new(change), images }));
    }
    let change = Change { incarnation, revision: log::next_revision(db)?, time: now, deltas };
    log::append(db, &change, request)?;
    Ok(Outcome::Made(Committed { change: Arc::new(change), images }))
}
