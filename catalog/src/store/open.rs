//! Opening the database: ours, whole, not newer than us, and ours alone.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use isotope_proto::id::{Incarnation, Ino, Revision};
use isotope_proto::signature::UrlKey;
use isotope_proto::time::Timestamp;
use isotope_proto::tree::{DEFAULT_FOLDERS, FOLDER_MODE};
use rusqlite::{Connection, ErrorCode, OpenFlags, params};

use super::key;
use super::rows::sql_int;

mod embedded {
    refinery::embed_migrations!("migrations/sqlite");
}

/// "ISOT": tells our databases from others' (`PRAGMA application_id`).
const APPLICATION_ID: i32 = 0x4953_4f54;
/// Pages of the cache, in KiB (negative is SQLite's sign for KiB).
const CACHE_KIB: i64 = -16_384;
/// A database up to this size, that of a million images, is looked through at each start, in about
/// a second if it is in memory. A larger one is checked where it is read, and by a backup.
const LOOKED_THROUGH_BYTES_MAX: u64 = 512 << 20;
/// Statements kept prepared, more than the writer has: of the 16 that rusqlite keeps by itself, a
/// report of new files used each once and then prepared it anew.
const STATEMENTS_KEPT: usize = 256;
/// A reader never waits for the writer in WAL mode; this is for checkpoints.
const BUSY_MS: u64 = 5_000;

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot make the state directory {path}: {error}")]
    State { path: PathBuf, error: std::io::Error },
    #[error(
        "another catalogue is using {0}; stop it, or give this one a directory of its own (--state)"
    )]
    InUse(PathBuf),
    #[error(
        "{0} is not a catalogue of Isotope; move it away, or choose another --state; if it was \
         one, it is damaged: restore a backup (isotope catalog restore), or start an empty one and \
         have it rebuilt from the volumes (isotope catalog rebuild)"
    )]
    NotOurs(PathBuf),
    #[error(
        "{path} is damaged: {detail}; restore a backup of it (isotope catalog restore FILE), or \
         make it anew from what lies in the pools (isotope catalog rebuild)"
    )]
    Damaged { path: PathBuf, detail: String },
    #[error(
        "{path} was written by a newer isotope (schema {found}, this one knows {known}); \
         upgrade this program"
    )]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error("cannot bring {path} up to date: {error}")]
    Migrate { path: PathBuf, error: Box<refinery::Error> },
    #[error("cannot open {path}: {error}")]
    Sqlite { path: PathBuf, error: rusqlite::Error },
    #[error("the system gives no random numbers for a key: {0}")]
    Random(getrandom::Error),
}

impl OpenError {
    pub(super) fn of(path: &Path, error: rusqlite::Error) -> Self {
        let path = path.to_owned();
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => Self::NotOurs(path),
            Some(ErrorCode::DatabaseCorrupt) => Self::Damaged { path, detail: error.to_string() },
            _ => Self::Sqlite { path, error },
        }
    }
}

pub(super) struct Opened {
    pub(super) connection: Connection,
    pub(super) incarnation: Incarnation,
    pub(super) revision: Revision,
    pub(super) url_key: UrlKey,
    pub(super) lock: File,
    path: PathBuf,
}

/// Takes a state directory for this process, for as long as the file is held.
pub(super) fn take(state: &Path) -> Result<File, OpenError> {
    let state_error = |error| OpenError::State { path: state.to_owned(), error };
    fs::create_dir_all(state).map_err(state_error)?;
    let lock = File::create(state.join("catalog.lock")).map_err(state_error)?;
    lock.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => OpenError::InUse(state.to_owned()),
        TryLockError::Error(error) => state_error(error),
    })?;
    Ok(lock)
}

/// The database's place in a state directory.
pub(super) fn database(state: &Path) -> PathBuf {
    state.join("catalog.db")
}

pub(super) fn open(state: &Path, now: Timestamp) -> Result<Opened, OpenError> {
    let lock = take(state)?;
    let path = database(state);
    let sqlite = |error| OpenError::of(&path, error);
    let mut connection = Connection::open(&path).map_err(sqlite)?;
    check_identity(&connection, &path).map_err(sqlite)??;
    if fs::metadata(&path).is_ok_and(|meta| meta.len() <= LOOKED_THROUGH_BYTES_MAX) {
        check_pages(&connection, &path, "quick_check")?;
    }
    configure(&connection).map_err(sqlite)?;
    migrate(&mut connection, &path)?;
    begin_life(&mut connection, now).map_err(sqlite)?;
    let url_key = key::ensure(&connection, sqlite)?;
    let (incarnation, revision) = connection
        .query_row("SELECT incarnation, revision FROM catalog", [], |row| {
            Ok((row.get::<_, [u8; 16]>(0)?, row.get::<_, i64>(1)?))
        })
        .map_err(sqlite)?;
    Ok(Opened {
        connection,
        incarnation: Incarnation::from_bytes(incarnation),
        revision: Revision(revision.unsigned_abs()),
        url_key,
        lock,
        path,
    })
}

impl Opened {
    pub(super) fn reader(&self) -> Result<Connection, OpenError> {
        let sqlite = |error| OpenError::of(&self.path, error);
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags).map_err(sqlite)?;
        connection.busy_timeout(std::time::Duration::from_millis(BUSY_MS)).map_err(sqlite)?;
        Ok(connection)
    }
}

/// A file of somebody else's must not be touched, so this looks before anything is set.
pub(super) fn check_identity(
    connection: &Connection,
    path: &Path,
) -> rusqlite::Result<Result<(), OpenError>> {
    let id: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let ours = id == APPLICATION_ID || (id == 0 && tables == 0);
    Ok(if ours { Ok(()) } else { Err(OpenError::NotOurs(path.to_owned())) })
}

/// `PRAGMA quick_check` or, more thoroughly, `PRAGMA integrity_check`.
pub(super) fn check_pages(
    connection: &Connection,
    path: &Path,
    pragma: &str,
) -> Result<(), OpenError> {
    // The first finding says enough.
    let sql = format!("PRAGMA {pragma}(1)");
    let found: String = connection
        .query_row(&sql, [], |row| row.get(0))
        .map_err(|error| OpenError::of(path, error))?;
    if found == "ok" {
        return Ok(());
    }
    Err(OpenError::Damaged { path: path.to_owned(), detail: found.replace('\n', " ") })
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "application_id", APPLICATION_ID)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    // NORMAL would lose acknowledged changes when the power goes.
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "cache_size", CACHE_KIB)?;
    connection.busy_timeout(std::time::Duration::from_millis(BUSY_MS))?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    Ok(())
}

/// Brings a database up to date, or refuses one that is newer than this program.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), OpenError> {
    let failed = |error| OpenError::Migrate { path: path.to_owned(), error: Box::new(error) };
    let runner = embedded::migrations::runner();
    check_schema(connection, path)?;
    runner.run(connection).map_err(failed)?;
    Ok(())
}

/// The database's schema is one that this program knows.
pub(super) fn check_schema(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let migrations = embedded::migrations::runner();
    let versions = migrations.get_migrations().iter().map(|m| i64::from(m.version()));
    let known = versions.max().unwrap_or(0);
    let found = schema_version(connection).map_err(|error| OpenError::of(path, error))?;
    if found > known {
        return Err(OpenError::Newer { path: path.to_owned(), found, known });
    }
    Ok(())
}

/// The newest migration that was applied; 0 for a new database.
fn schema_version(connection: &Connection) -> rusqlite::Result<i64> {
    let history = "refinery_schema_history";
    if !connection.table_exists(None, history)? {
        return Ok(0);
    }
    let sql = format!("SELECT coalesce(max(version), 0) FROM {history}");
    connection.query_row(&sql, [], |row| row.get(0))
}

/// A new database gets its incarnation, the root and the default folders. Its numbers begin where
/// no earlier life of the catalogue can have been, for kernels may still hold inodes of that life:
/// at the microseconds since the epoch, of which no catalogue hands out one each.
fn begin_life(connection: &mut Connection, now: Timestamp) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    let lives: i64 = transaction.query_row("SELECT count(*) FROM catalog", [], |row| row.get(0))?;
    if lives > 0 {
        return Ok(());
    }
    let first = first_number(now).max(sql_int(Ino::ROOT.0) + 1);
    let mut next = first;
    let make_folder = |ino: i64| {
        transaction.execute("INSERT INTO inode (ino) VALUES (?1)", [ino])?;
        transaction.execute(
            "INSERT INTO folder (ino, mode, created_ns, modified_ns, changed_ns)
             VALUES (?1, ?2, ?3, ?3, ?3)",
            params![ino, FOLDER_MODE, now.0],
        )
    };
    let root = sql_int(Ino::ROOT.0);
    make_folder(root)?;
    for name in DEFAULT_FOLDERS {
        make_folder(next)?;
        transaction.execute(
            "INSERT INTO entry (id, parent, name, ino) VALUES (?1, ?2, ?3, ?1)",
            params![next, root, name],
        )?;
        next += 1;
    }
    transaction.execute(
        "INSERT INTO catalog (one, incarnation, revision, next_ino, next_entry)
         VALUES (1, ?1, 0, ?2, ?2)",
        params![Incarnation::mint(now).as_bytes(), next],
    )?;
    transaction.commit()
}

/// From where a life that begins now numbers inodes and entries.
fn first_number(now: Timestamp) -> i64 {
    now.0 / 1000
}

/// An old state goes on as a new life: whatever followed it until now may be in kernels and on
/// hosts, so its numbers are passed over, and nobody's caches hold. What was being written then
/// has long ended. Bytes that were in the trash then may be in use again, which hosts will tell;
/// until they have, nothing of it is deleted for good.
pub(super) fn begin_anew(
    connection: &mut Connection,
    now: Timestamp,
    trash_kept_ns: i64,
) -> rusqlite::Result<Incarnation> {
    let transaction = connection.transaction()?;
    let incarnation = begin_next_life(&transaction, now, trash_kept_ns)?;
    transaction.commit()?;
    Ok(incarnation)
}

/// The same within a transaction.
pub(super) fn begin_next_life(
    db: &Connection,
    now: Timestamp,
    trash_kept_ns: i64,
) -> rusqlite::Result<Incarnation> {
    let incarnation = Incarnation::mint(now);
    db.execute(
        "UPDATE catalog SET incarnation = ?1,
             next_ino = max(next_ino, ?2), next_entry = max(next_entry, ?2)",
        params![incarnation.as_bytes(), first_number(now)],
    )?;
    db.execute("DELETE FROM upload", [])?;
    db.execute(
        "UPDATE trash SET expires_ns = max(expires_ns, ?1), left_ns = ?2",
        [now.0.saturating_add(trash_kept_ns), trash_kept_ns],
    )?;
    Ok(incarnation)
}
