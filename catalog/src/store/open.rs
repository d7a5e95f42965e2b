//! Opening the database: ours, not newer than us, and ours alone.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use isotope_proto::id::{Incarnation, Ino, Revision};
use isotope_proto::time::Timestamp;
use isotope_proto::tree::{DEFAULT_FOLDERS, FOLDER_MODE};
use rusqlite::{Connection, ErrorCode, OpenFlags, params};

use super::rows::sql_int;

mod embedded {
    refinery::embed_migrations!("migrations/sqlite");
}

/// "ISOT": tells our databases from others' (`PRAGMA application_id`).
const APPLICATION_ID: i32 = 0x4953_4f54;
/// Pages of the cache, in KiB (negative is SQLite's sign for KiB).
const CACHE_KIB: i64 = -16_384;
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
    #[error("{0} is not a catalogue of Isotope; move it away, or choose another --state")]
    NotOurs(PathBuf),
    #[error(
        "{path} was written by a newer isotope (schema {found}, this one knows {known}); \
         upgrade this program"
    )]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error("cannot bring {path} up to date: {error}")]
    Migrate { path: PathBuf, error: Box<refinery::Error> },
    #[error("cannot open {path}: {error}")]
    Sqlite { path: PathBuf, error: rusqlite::Error },
}

pub(super) struct Opened {
    pub(super) connection: Connection,
    pub(super) incarnation: Incarnation,
    pub(super) revision: Revision,
    pub(super) lock: File,
    path: PathBuf,
}

pub(super) fn open(state: &Path, now: Timestamp) -> Result<Opened, OpenError> {
    let state_error = |error| OpenError::State { path: state.to_owned(), error };
    fs::create_dir_all(state).map_err(state_error)?;
    let lock = File::create(state.join("catalog.lock")).map_err(state_error)?;
    lock.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => OpenError::InUse(state.to_owned()),
        TryLockError::Error(error) => state_error(error),
    })?;

    let path = state.join("catalog.db");
    let sqlite = |error: rusqlite::Error| match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => OpenError::NotOurs(path.clone()),
        _ => OpenError::Sqlite { path: path.clone(), error },
    };
    let mut connection = Connection::open(&path).map_err(sqlite)?;
    check_identity(&connection, &path).map_err(sqlite)??;
    configure(&connection).map_err(sqlite)?;
    migrate(&mut connection, &path)?;
    begin_life(&mut connection, now).map_err(sqlite)?;
    let (incarnation, revision) = connection
        .query_row("SELECT incarnation, revision FROM catalog", [], |row| {
            Ok((row.get::<_, [u8; 16]>(0)?, row.get::<_, i64>(1)?))
        })
        .map_err(sqlite)?;
    Ok(Opened {
        connection,
        incarnation: Incarnation::from_bytes(incarnation),
        revision: Revision(revision.unsigned_abs()),
        lock,
        path,
    })
}

impl Opened {
    pub(super) fn reader(&self) -> Result<Connection, OpenError> {
        let sqlite = |error| OpenError::Sqlite { path: self.path.clone(), error };
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags).map_err(sqlite)?;
        connection.busy_timeout(std::time::Duration::from_millis(BUSY_MS)).map_err(sqlite)?;
        Ok(connection)
    }
}

/// A file of somebody else's must not be touched, so this looks before anything is set.
fn check_identity(connection: &Connection, path: &Path) -> rusqlite::Result<Result<(), OpenError>> {
    let id: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let ours = id == APPLICATION_ID || (id == 0 && tables == 0);
    Ok(if ours { Ok(()) } else { Err(OpenError::NotOurs(path.to_owned())) })
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "application_id", APPLICATION_ID)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    // NORMAL would lose acknowledged changes when the power goes.
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "cache_size", CACHE_KIB)?;
    connection.busy_timeout(std::time::Duration::from_millis(BUSY_MS))?;
    Ok(())
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), OpenError> {
    let failed = |error| OpenError::Migrate { path: path.to_owned(), error: Box::new(error) };
    let runner = embedded::migrations::runner();
    let known = runner.get_migrations().iter().map(|m| i64::from(m.version())).max().unwrap_or(0);
    let found = schema_version(connection)
        .map_err(|error| OpenError::Sqlite { path: path.to_owned(), error })?;
    if found > known {
        return Err(OpenError::Newer { path: path.to_owned(), found, known });
    }
    runner.run(connection).map_err(failed)?;
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
    let first = (now.0 / 1000).max(sql_int(Ino::ROOT.0) + 1);
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
