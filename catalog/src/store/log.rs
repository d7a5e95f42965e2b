//! The log of changes, and which request made each.

use isotope_proto::change::Change;
use isotope_proto::id::{RequestId, Revision};
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::wire::{decode_change, encode_change};
use rusqlite::{Connection, OptionalExtension, params};

use super::rows::sql_int;
use super::storage;

/// Changes kept for watchers that were away: a mount that missed more lists again. At a busy
/// site's few changes a minute this is weeks, and some 100 MB at most.
const CHANGES_KEPT: u64 = 100_000;
/// How often old ones are dropped, in revisions.
const PRUNE_EVERY: u64 = 1_000;

pub(super) fn next_revision(db: &Connection) -> Result<Revision, Refusal> {
    let next = db
        .prepare_cached("UPDATE catalog SET revision = revision + 1 RETURNING revision")
        .and_then(|mut statement| statement.query_row([], |row| row.get::<_, i64>(0)));
    next.map(|revision| Revision(revision.unsigned_abs())).map_err(storage)
}

pub(super) fn append(
    db: &Connection,
    change: &Change,
    request: Option<RequestId>,
) -> Result<(), Refusal> {
    let revision = sql_int(change.revision.0);
    let write = || {
        db.prepare_cached("INSERT INTO change (revision, body) VALUES (?1, ?2)")?
            .execute(params![revision, encode_change(change)])?;
        if let Some(request) = request {
            db.prepare_cached("INSERT INTO request (id, revision) VALUES (?1, ?2)")?
                .execute(params![request.as_bytes(), revision])?;
        }
        if change.revision.0.is_multiple_of(PRUNE_EVERY) {
            let oldest = sql_int(change.revision.0.saturating_sub(CHANGES_KEPT));
            db.execute("DELETE FROM change WHERE revision <= ?1", [oldest])?;
            db.execute("DELETE FROM request WHERE revision <= ?1", [oldest])?;
        }
        Ok(())
    };
    write().map_err(storage)
}

/// The change that a request already made.
pub(super) fn made_by(db: &Connection, request: RequestId) -> Result<Option<Change>, Refusal> {
    let body = db
        .prepare_cached(
            "SELECT body FROM request JOIN change USING (revision) WHERE request.id = ?1",
        )
        .and_then(|mut statement| {
            statement.query_row([request.as_bytes()], |row| row.get::<_, Vec<u8>>(0)).optional()
        })
        .map_err(storage)?;
    body.map(|body| decoded(&body)).transpose()
}

pub(super) fn changes_after(
    db: &Connection,
    revision: Revision,
    count_max: u32,
) -> Result<Option<Vec<Change>>, Refusal> {
    let read = || {
        db.prepare_cached("SELECT body FROM change WHERE revision > ?1 ORDER BY revision LIMIT ?2")?
            .query_map(params![sql_int(revision.0), count_max], |row| row.get(0))?
            .collect::<rusqlite::Result<Vec<Vec<u8>>>>()
    };
    let changes =
        read().map_err(storage)?.iter().map(|body| decoded(body)).collect::<Result<Vec<_>, _>>()?;
    let kept = changes.first().is_none_or(|first| first.revision == revision.next());
    Ok(kept.then_some(changes))
}

fn decoded(body: &[u8]) -> Result<Change, Refusal> {
    decode_change(body).map_err(|error| {
        Refusal::new(Reason::Storage, format!("the catalogue's log is damaged: {error}"))
    })
}
