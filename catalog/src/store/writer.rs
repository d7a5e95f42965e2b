//! The one writer: takes the changes that wait, carries each out in a savepoint of its own, makes
//! them durable together (group commit), and only then publishes and answers.

use std::sync::Arc;
use std::time::Duration;

use isotope_proto::change::Change;
use isotope_proto::crash_point;
use isotope_proto::id::{ImageId, Incarnation, Ino, NodeId, RequestId, UploadId, VolumeId};
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::report::{Description, FileChange, HashedFile, Hello};
use isotope_proto::sidecar::LibraryCopy;
use isotope_proto::time::Timestamp;
use isotope_proto::tree::{Attributes, FolderRef, Place, RenameMode};
use isotope_proto::upload::{Existing, Sealed, TaskDone, Upload, UploadRequest};
use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use super::rows::Rows;
use super::write::Edits;
use super::{log, replace};
use crate::contents::{self, Merged};
use crate::feed::Feed;
use crate::{clock, library, naming, nodes, pools, rebuild, reconcile, uploads};

/// Changes made durable by one sync: it bounds how long the first of them waits.
const GROUP_MAX: usize = 64;

/// Every change there is.
#[derive(Debug, Clone)]
pub(crate) enum Verb {
    MakeFolder {
        place: Place,
        mode: u32,
    },
    RemoveFolder {
        place: Place,
    },
    Rename {
        from: Place,
        to: Place,
        mode: RenameMode,
    },
    /// One more name for an image.
    Link {
        ino: Ino,
        place: Place,
    },
    Register {
        hello: Hello,
    },
    ApplyFiles {
        volume: VolumeId,
        changes: Vec<FileChange>,
    },
    BeginUpload {
        request: UploadRequest,
        volume: VolumeId,
        node: NodeId,
    },
    RenameUpload {
        upload: UploadId,
        to: Place,
        existing: Existing,
    },
    /// Its request id is the upload's own.
    Publish {
        upload: UploadId,
        sealed: Sealed,
        set: Attributes,
    },
    SetAttributes {
        ino: Ino,
        set: Attributes,
    },
    /// A pool by its name; `None` for none of its own.
    SetDefaultPool {
        folder: FolderRef,
        pool: Option<String>,
    },
    Abort {
        upload: UploadId,
    },
    Remove {
        place: Place,
    },
    Restore {
        image: ImageId,
    },
    Purge {
        images: Vec<ImageId>,
    },
    TasksDone {
        volume: VolumeId,
        done: Vec<TaskDone>,
    },
    /// What a volume's keeper takes its files for now.
    Describe {
        volume: VolumeId,
        descriptions: Vec<Description>,
    },
    /// What a volume's keeper read.
    ApplyHashes {
        volume: VolumeId,
        files: Vec<HashedFile>,
    },
    /// The catalogue has run for so much longer; what is in the trash is that much older.
    AgeTrash {
        by: Duration,
    },
    MakePool {
        name: String,
        assigned: Vec<NodeId>,
    },
    AssignPool {
        name: String,
        assigned: Vec<NodeId>,
    },
    RenamePool {
        name: String,
        to: String,
    },
    RemovePool {
        name: String,
    },
    RenameNode {
        node: NodeId,
        to: String,
    },
    RemoveNode {
        node: NodeId,
    },
    /// Flat names for some images that have none, behind one of them.
    NameImages {
        after: Option<ImageId>,
    },
    /// Brings back what copies of the library have; as another life of the catalogue.
    Rebuild {
        copies: Arc<Vec<LibraryCopy>>,
        /// Although people have changed the library.
        accept: bool,
    },
}

impl Verb {
    fn name(&self) -> &'static str {
        match self {
            Self::MakeFolder { .. } => "make_folder",
            Self::RemoveFolder { .. } => "remove_folder",
            Self::Rename { .. } => "rename",
            Self::Link { .. } => "link",
            Self::Register { .. } => "register",
            Self::ApplyFiles { .. } => "apply_files",
            Self::BeginUpload { .. } => "begin_upload",
            Self::RenameUpload { .. } => "rename_upload",
            Self::Publish { .. } => "publish",
            Self::SetAttributes { .. } => "set_attributes",
            Self::SetDefaultPool { .. } => "set_default_pool",
            Self::Abort { .. } => "abort",
            Self::Remove { .. } => "remove",
            Self::Restore { .. } => "restore",
            Self::Purge { .. } => "purge",
            Self::TasksDone { .. } => "tasks_done",
            Self::Describe { .. } => "describe",
            Self::ApplyHashes { .. } => "apply_hashes",
            Self::AgeTrash { .. } => "age_trash",
            Self::MakePool { .. } => "make_pool",
            Self::AssignPool { .. } => "assign_pool",
            Self::RenamePool { .. } => "rename_pool",
            Self::RemovePool { .. } => "remove_pool",
            Self::RenameNode { .. } => "rename_node",
            Self::RemoveNode { .. } => "remove_node",
            Self::NameImages { .. } => "name_images",
            Self::Rebuild { .. } => "rebuild",
        }
    }
}

/// What a verb did.
#[derive(Debug, Clone)]
pub(crate) struct Committed {
    /// Without deltas, at the revision that stands, if nothing had to change.
    pub(crate) change: Arc<Change>,
    pub(crate) outcome: Outcome,
}

/// What a verb answers beside its change.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    Nothing,
    /// After `ApplyFiles`: the image of each file, in order.
    Images(Vec<ImageId>),
    Upload(Upload),
    /// After `ApplyHashes`: images that became others.
    Merged(Vec<Merged>),
    /// After `Abort`: it was published before.
    TooLate,
    /// After `NameImages`: where to go on, if there may be more.
    NamedTo(Option<ImageId>),
    Purged {
        images: u64,
        size_bytes: u64,
    },
    /// The library as it is now, in this life of the catalogue.
    Rebuilt(Incarnation),
}

pub(super) struct Job {
    pub(super) request: Option<RequestId>,
    pub(super) verb: Verb,
    pub(super) reply: oneshot::Sender<Result<Committed, Refusal>>,
}

/// A job that has been done, or refused; told once the group is durable.
struct Answered {
    verb: &'static str,
    reply: oneshot::Sender<Result<Committed, Refusal>>,
    result: Result<Done, Refusal>,
}

enum Done {
    /// New in this group: to be published.
    Made(Committed),
    /// The library is another now, and so is the catalogue's life.
    Reborn(Committed),
    /// Nothing new: answered, not published.
    Known(Committed),
}

/// Ends when all handles to the store are gone.
pub(super) fn spawn(mut connection: Connection, mut queue: mpsc::Receiver<Job>, feed: Feed) {
    let run = move || {
        let mut group = Vec::with_capacity(GROUP_MAX);
        while queue.blocking_recv_many(&mut group, GROUP_MAX) > 0 {
            commit_group(&mut connection, group.drain(..), &feed);
        }
    };
    std::thread::Builder::new()
        .name("catalog-writer".to_owned())
        .spawn(run)
        .expect("a thread at start-up");
}

fn commit_group(connection: &mut Connection, jobs: impl Iterator<Item = Job>, feed: &Feed) {
    let mut answers: Vec<Answered> = Vec::with_capacity(GROUP_MAX);
    let mut jobs = jobs.peekable();
    let mut incarnation = feed.incarnation();
    let committed = (|| {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        while jobs.peek().is_some() {
            transaction.execute_batch("SAVEPOINT change")?;
            let Some(Job { request, verb, reply }) = jobs.next() else { break };
            let result = carry_out(&transaction, incarnation, request, &verb, clock::now());
            let end = match &result {
                Ok(_) => "RELEASE change",
                Err(_) => "ROLLBACK TO change; RELEASE change",
            };
            if let Ok(Done::Reborn(committed)) = &result {
                incarnation = committed.change.incarnation;
            }
            answers.push(Answered { verb: verb.name(), reply, result });
            transaction.execute_batch(end)?;
            crash_point!("catalog.{}.written", verb.name());
        }
        transaction.commit()
    })();
    if let Err(error) = &committed {
        // Those that were not begun hear of it, too.
        let unmade = |Job { verb, reply, .. }: Job| {
            let result = Err(not_durable(error));
            Answered { verb: verb.name(), reply, result }
        };
        answers.extend(jobs.map(unmade));
    }
    for Answered { verb, reply, result } in answers {
        crash_point!("catalog.{verb}.committed");
        let result = match (&committed, result) {
            (Err(error), Ok(_)) => Err(not_durable(error)),
            (_, Err(refusal)) => Err(refusal),
            (Ok(()), Ok(Done::Known(committed))) => Ok(committed),
            (Ok(()), Ok(Done::Made(committed))) => {
                feed.publish(&committed.change);
                Ok(committed)
            }
            (Ok(()), Ok(Done::Reborn(committed))) => {
                feed.begin_life(committed.change.incarnation, committed.change.revision);
                Ok(committed)
            }
        };
        // The asker may have given up; the change stands and its request id finds it again.
        let _ = reply.send(result);
    }
}

fn not_durable(error: &rusqlite::Error) -> Refusal {
    Refusal::new(Reason::Storage, format!("the change could not be made durable: {error}"))
}

fn carry_out(
    db: &Connection,
    incarnation: Incarnation,
    request: Option<RequestId>,
    verb: &Verb,
    now: Timestamp,
) -> Result<Done, Refusal> {
    if let Some(request) = request
        && let Some(change) = log::made_by(db, request)?
    {
        let change = Arc::new(change);
        return Ok(Done::Known(Committed { change, outcome: Outcome::Nothing }));
    }
    if let Verb::Rebuild { copies, accept } = verb {
        return rebuild(db, copies, *accept, now);
    }
    let mut edits = Edits::new(db);
    let outcome = decide(db, &mut edits, verb, now)?;
    naming::settle(&mut edits)?;
    let standing = edits.revision()?;
    let deltas = edits.into_deltas();
    if deltas.is_empty() {
        let change = Arc::new(Change { incarnation, revision: standing, time: now, deltas });
        return Ok(Done::Known(Committed { change, outcome }));
    }
    let change = Change { incarnation, revision: log::next_revision(db)?, time: now, deltas };
    log::append(db, &change, request)?;
    Ok(Done::Made(Committed { change: Arc::new(change), outcome }))
}

/// Puts the library that copies tell of in the place of the one there is, if that has anything it
/// lacks.
fn rebuild(
    db: &Connection,
    copies: &[LibraryCopy],
    accept: bool,
    now: Timestamp,
) -> Result<Done, Refusal> {
    let rows = Rows::new(db);
    let present = rows.copy()?;
    let changes = rows.changes_by_people()?;
    let mut rebuilt = rebuild::merge(&present, copies, &rows.deleted_images()?);
    let mut change = Change {
        incarnation: present.mark.incarnation,
        revision: present.mark.revision,
        time: now,
        deltas: Vec::new(),
    };
    if rebuilt.restored == 0 {
        let outcome = Outcome::Nothing;
        return Ok(Done::Known(Committed { change: Arc::new(change), outcome }));
    }
    if changes > 0 && !accept {
        let text = format!(
            "people have made {changes} changes to this library; see what would become of it with \
             --dry-run, and say --yes"
        );
        return Err(Refusal::new(Reason::NotEmpty, text));
    }
    naming::name_records(&mut rebuilt.records)?;
    change.incarnation = replace::replace(db, &rebuilt, now)?;
    change.revision = log::next_revision(db)?;
    let outcome = Outcome::Rebuilt(change.incarnation);
    Ok(Done::Reborn(Committed { change: Arc::new(change), outcome }))
}

/// The rule that each verb stands for.
fn decide(
    db: &Connection,
    edits: &mut Edits<'_>,
    verb: &Verb,
    now: Timestamp,
) -> Result<Outcome, Refusal> {
    match verb {
        Verb::MakeFolder { place, mode } => library::make_folder(edits, place, *mode, now)?,
        Verb::RemoveFolder { place } => library::remove_folder(edits, place, now)?,
        Verb::Rename { from, to, mode } => library::rename(edits, from, to, *mode, now)?,
        Verb::Link { ino, place } => library::link(edits, *ino, place, now)?,
        Verb::Register { hello } => nodes::register(edits, hello, now)?,
        Verb::ApplyFiles { volume, changes } => {
            return Ok(Outcome::Images(reconcile::apply(edits, *volume, changes, now)?));
        }
        Verb::Describe { volume, descriptions } => {
            reconcile::describe(edits, *volume, descriptions)?;
        }
        Verb::BeginUpload { request, volume, node } => {
            return Ok(Outcome::Upload(uploads::begin(edits, request, *volume, *node, now)?));
        }
        Verb::RenameUpload { upload, to, existing } => {
            uploads::rename(edits, *upload, to, *existing)?;
        }
        Verb::Publish { upload, sealed, set } => {
            uploads::publish(edits, *upload, sealed, *set, now)?;
        }
        Verb::SetAttributes { ino, set } => library::set_attributes(edits, *ino, *set, now)?,
        Verb::SetDefaultPool { folder, pool } => {
            library::set_default_pool(edits, folder, pool.as_deref(), now)?;
        }
        Verb::Abort { upload } => {
            if log::made_by(db, RequestId::from_bytes(*upload.as_bytes()))?.is_some() {
                return Ok(Outcome::TooLate);
            }
            edits.release(*upload)?;
        }
        Verb::Remove { place } => uploads::remove(edits, place, now)?,
        Verb::Restore { image } => uploads::restore(edits, *image, now)?,
        Verb::Purge { images } => {
            let (images, size_bytes) = uploads::purge(edits, images)?;
            return Ok(Outcome::Purged { images, size_bytes });
        }
        Verb::TasksDone { volume, done } => uploads::tasks_done(edits, *volume, done)?,
        Verb::ApplyHashes { volume, files } => {
            return Ok(Outcome::Merged(contents::apply(edits, *volume, files, now)?));
        }
        Verb::AgeTrash { by } => edits.age_trash(*by)?,
        Verb::MakePool { name, assigned } => pools::make(edits, name, assigned, now)?,
        Verb::AssignPool { name, assigned } => pools::assign(edits, name, assigned)?,
        Verb::RenamePool { name, to } => pools::rename(edits, name, to)?,
        Verb::RemovePool { name } => pools::remove(edits, name, now)?,
        Verb::RenameNode { node, to } => pools::rename_node(edits, *node, to)?,
        Verb::RemoveNode { node } => pools::remove_node(edits, *node)?,
        Verb::NameImages { after } => {
            return Ok(Outcome::NamedTo(naming::name_more(edits, *after)?));
        }
        Verb::Rebuild { .. } => {
            return Err(Refusal::new(Reason::Malformed, "a rebuild is no change of a library"));
        }
    }
    Ok(Outcome::Nothing)
}
