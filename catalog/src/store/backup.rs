//! Copies of the database: made while it is in use, checked, and put in its place. It knows
//! nothing of how they travel.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use isotope_proto::id::{Incarnation, Revision};
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::time::Timestamp;
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};
use tokio::sync::OwnedSemaphorePermit;

use super::open::{self, OpenError};
use super::{Borrowed, Store, stopped, storage};

/// A copy of the database as it was at one revision.
pub(crate) struct Copied {
    /// Without a name: it goes when it is closed.
    pub(crate) file: File,
    pub(crate) size_bytes: u64,
    pub(crate) revision: Revision,
    /// One copy at a time: each takes as much room as the database.
    pub(crate) permit: OwnedSemaphorePermit,
}

/// What is in a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackupInfo {
    /// Changes of its catalogue up to which it goes.
    pub revision: u64,
    pub images: u64,
}

/// What became of a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    pub backup: BackupInfo,
    /// The database that was in its place, if there was one.
    pub kept: Option<PathBuf>,
    /// Of the catalogue's new life.
    pub incarnation: Incarnation,
}

/// Why a backup cannot be used or put in place.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("there is no backup at {0}; name the file that isotope catalog backup wrote")]
    Missing(PathBuf),
    #[error("{0} is not a backup of a catalogue of Isotope; name another file")]
    NotABackup(PathBuf),
    #[error("the backup {path} is damaged: {detail}; use another one")]
    Damaged { path: PathBuf, detail: String },
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("cannot put the backup in place, at {path}: {error}; nothing has been replaced")]
    Place { path: PathBuf, error: io::Error },
}

impl Store {
    /// Copies the database with SQLite's backup interface. Changes go on meanwhile: the copy is
    /// one read transaction, which waits for nobody and has nobody wait.
    ///
    /// # Errors
    /// `Busy` while another copy is being made or fetched; `Storage`, as if there is no room.
    pub(crate) async fn copy(&self) -> Result<Copied, Refusal> {
        let busy = |_| Refusal::new(Reason::Busy, "another backup is being made; wait for it");
        let permit = Arc::clone(&self.shared.copying).try_acquire_owned().map_err(busy)?;
        let _reads = self.shared.permits.acquire().await.map_err(|_| stopped())?;
        let shared = Arc::clone(&self.shared);
        let work = tokio::task::spawn_blocking(move || {
            let mut borrowed = Borrowed::take(&shared)?;
            let path = shared.state.join("catalog.db.copy");
            let copied = copy(borrowed.connection()?, &path);
            // Whether it was made or not: only the open file is to be left of it.
            let file = File::open(&path);
            let _ = fs::remove_file(&path);
            let revision = copied.map_err(storage)?;
            let failed = |error: io::Error| {
                Refusal::new(Reason::Storage, format!("the copy cannot be read: {error}"))
            };
            let file = file.map_err(failed)?;
            let size_bytes = file.metadata().map_err(failed)?.len();
            Ok(Copied { file, size_bytes, revision, permit })
        });
        work.await.map_err(|_| stopped())?
    }
}

fn copy(from: &Connection, path: &Path) -> rusqlite::Result<Revision> {
    // A killed catalogue may have left half of one.
    let _ = fs::remove_file(path);
    let mut to = Connection::open(path)?;
    // It is worth nothing before it is whole, so it needs no journal and no sync.
    to.pragma_update(None, "journal_mode", "off")?;
    to.pragma_update(None, "synchronous", "off")?;
    // All pages at once: between steps, a change would have it begin anew.
    let step = Backup::new(from, &mut to)?.step(-1)?;
    if step != StepResult::Done {
        let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
        return Err(rusqlite::Error::SqliteFailure(busy, Some("the copy did not end".to_owned())));
    }
    let revision: i64 = to.query_row("SELECT revision FROM catalog", [], |row| row.get(0))?;
    Ok(Revision(revision.unsigned_abs()))
}

/// Reads a whole backup and looks whether it can be restored by this program. Changes nothing.
///
/// # Errors
/// As [`RestoreError`] has them.
pub fn check_backup(path: &Path) -> Result<BackupInfo, RestoreError> {
    if !path.is_file() {
        return Err(RestoreError::Missing(path.to_owned()));
    }
    check(path).map_err(|error| match error {
        OpenError::NotOurs(path) => RestoreError::NotABackup(path),
        OpenError::Damaged { path, detail } => RestoreError::Damaged { path, detail },
        other => RestoreError::Open(other),
    })
}

fn check(path: &Path) -> Result<BackupInfo, OpenError> {
    let sqlite = |error| OpenError::of(path, error);
    let connection = open_alone(path).map_err(sqlite)?;
    open::check_identity(&connection, path).map_err(sqlite)??;
    if !connection.table_exists(None, "catalog").map_err(sqlite)? {
        return Err(OpenError::NotOurs(path.to_owned()));
    }
    open::check_pages(&connection, path, "integrity_check")?;
    open::check_schema(&connection, path)?;
    let damaged =
        |detail: &str| OpenError::Damaged { path: path.to_owned(), detail: detail.into() };
    let loose: i64 = connection
        .query_row("SELECT count(*) FROM pragma_foreign_key_check", [], |row| row.get(0))
        .map_err(sqlite)?;
    if loose > 0 {
        return Err(damaged("records refer to others that are not there"));
    }
    let counts = "SELECT revision, (SELECT count(*) FROM image) FROM catalog";
    let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
    let (revision, images) = connection.query_row(counts, [], read).map_err(sqlite)?;
    Ok(BackupInfo { revision: revision.unsigned_abs(), images: images.unsigned_abs() })
}

/// A file that nobody writes: no journal is looked for, and none made beside it.
fn open_alone(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    Connection::open_with_flags(format!("file:{}?immutable=1", escaped(path)), flags)
}

/// A path in a URI (RFC 3986 §2.1).
fn escaped(path: &Path) -> String {
    use std::fmt::Write;
    use std::os::unix::ffi::OsStrExt;
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute.as_os_str().as_bytes().iter().fold(String::new(), |mut text, &byte| {
        if byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            // Writing to a string never fails.
            let _ = write!(text, "%{byte:02X}");
        }
        text
    })
}

/// Puts a backup in the place of the database of a state directory.
pub(crate) fn restore(
    backup: &Path,
    state: &Path,
    now: Timestamp,
    trash_kept_ns: i64,
) -> Result<Restored, RestoreError> {
    let _lock = open::take(state)?;
    let info = check_backup(backup)?;
    let place = open::database(state);
    let new = state.join("catalog.db.restoring");
    let incarnation = prepare(backup, &new, now, trash_kept_ns);
    let incarnation = incarnation.inspect_err(|_| drop(fs::remove_file(&new)))?;
    let failed = |error| RestoreError::Place { path: place.clone(), error };
    let kept = keep(&place, state).map_err(failed)?;
    fs::rename(&new, &place).map_err(failed)?;
    File::open(state).and_then(|dir| dir.sync_all()).map_err(failed)?;
    Ok(Restored { backup: info, kept, incarnation })
}

/// Copies the backup and begins its new life, all of it durable.
fn prepare(
    backup: &Path,
    new: &Path,
    now: Timestamp,
    trash_kept_ns: i64,
) -> Result<Incarnation, RestoreError> {
    let failed = |error| RestoreError::Place { path: new.to_owned(), error };
    // An interrupted restore's journal would be played back into this copy.
    remove_if_there(&beside(new, "-journal")).map_err(failed)?;
    // Not with its permissions: a backup may well be read-only.
    let copied =
        File::open(backup).and_then(|mut from| io::copy(&mut from, &mut File::create(new)?));
    copied.map_err(failed)?;
    let sqlite = |error| OpenError::of(new, error);
    let mut connection = Connection::open(new).map_err(sqlite)?;
    // All in the one file, which is all that is renamed.
    connection.pragma_update(None, "journal_mode", "delete").map_err(sqlite)?;
    connection.pragma_update(None, "synchronous", "full").map_err(sqlite)?;
    open::migrate(&mut connection, new)?;
    let incarnation = open::begin_anew(&mut connection, now, trash_kept_ns).map_err(sqlite)?;
    connection.close().map_err(|(_, error)| sqlite(error))?;
    File::open(new).and_then(|file| file.sync_all()).map_err(failed)?;
    Ok(incarnation)
}

/// Gives the database that is there a second name. There is always one under the first: whoever
/// starts a catalogue after an interrupted restore finds the old one.
fn keep(place: &Path, state: &Path) -> io::Result<Option<PathBuf>> {
    let log = beside(place, "-wal");
    let mut kept = None;
    if place.exists() {
        // One too damaged for it is kept together with its log.
        let merged = merge_log(place);
        let name = |n: u32| state.join(format!("catalog.db.before-restore-{n}"));
        let free = (1..).map(name).find(|path| !path.exists()).unwrap_or_default();
        fs::hard_link(place, &free)?;
        if !merged && log.exists() {
            fs::hard_link(&log, beside(&free, "-wal"))?;
        }
        kept = Some(free);
    }
    // SQLite would take the old log for one of the new database.
    remove_if_there(&log)?;
    remove_if_there(&beside(place, "-shm"))?;
    Ok(kept)
}

/// One of the files that SQLite keeps beside a database.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Brings into the database what a killed catalogue had left in its log.
fn merge_log(place: &Path) -> bool {
    Connection::open(place).is_ok_and(|old| {
        matches!(open::check_identity(&old, place), Ok(Ok(())))
            && old.pragma_update(None, "journal_mode", "delete").is_ok()
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::FileExt;

    use isotope_proto::id::Ino;
    use isotope_proto::name::EntryName;
    use isotope_proto::tree::{FOLDER_MODE, FolderRef, Place};

    use super::super::{Verb, tests};
    use super::*;

    fn make(name: &str) -> Verb {
        let name = EntryName::parse(name).expect("a name");
        let place = Place { folder: FolderRef::Ino(Ino::ROOT), name };
        Verb::MakeFolder { place, mode: FOLDER_MODE }
    }

    /// A backup of a store with a folder called `first`, and the store's own directory.
    async fn backup(dir: &Path) -> (PathBuf, tempfile::TempDir) {
        let (store, state) = tests::store().await;
        store.commit(None, make("first")).await.expect("made");
        let mut copied = store.copy().await.expect("copied");
        assert_eq!(store.copy().await.err().map(|it| it.reason), Some(Reason::Busy));
        let mut bytes = Vec::new();
        copied.file.read_to_end(&mut bytes).expect("read");
        assert_eq!(bytes.len() as u64, copied.size_bytes);
        let path = dir.join("a backup?#%.db");
        fs::write(&path, bytes).expect("written");
        let mut readable = fs::metadata(&path).expect("there").permissions();
        readable.set_readonly(true);
        fs::set_permissions(&path, readable).expect("kept as backups are");
        let info = check_backup(&path).expect("whole");
        assert_eq!((info.revision, info.images), (copied.revision.0, 0));
        store.commit(None, make("later")).await.expect("made");
        (path, state)
    }

    /// All that a test asks of a store: its next number, and whether a folder is there.
    fn look(path: &Path, name: &str) -> (i64, bool) {
        let db = Connection::open(path).expect("opened");
        let ino = db.query_row("SELECT next_ino FROM catalog", [], |row| row.get(0));
        let sql = "SELECT count(*) FROM entry WHERE name = ?1";
        let there: i64 = db.query_row(sql, [name], |row| row.get(0)).expect("counted");
        (ino.expect("a number"), there > 0)
    }

    #[tokio::test]
    async fn a_restored_catalogue_is_as_it_was_and_numbers_on_from_now() {
        let dir = tempfile::tempdir().expect("a directory");
        let (backup, state) = backup(dir.path()).await;
        let state = state.path();
        // The store's writer ends by itself once nobody holds it.
        let now = Timestamp(1_700_000_000_000_000_000);
        let restored = (0..500).find_map(|_| match restore(&backup, state, now, 7) {
            Err(RestoreError::Open(OpenError::InUse(_))) => {
                std::thread::sleep(std::time::Duration::from_millis(10));
                None
            }
            done => Some(done.expect("restored")),
        });
        let restored = restored.expect("the store has ended");
        let kept = restored.kept.expect("the old one");
        assert_eq!(kept, state.join("catalog.db.before-restore-1"));
        let place = open::database(state);
        assert_eq!(look(&place, "first"), (1_700_000_000_000_000, true));
        assert!(!look(&place, "later").1 && look(&kept, "later").1);
        let (store, _) = Store::open(state, now).expect("opened");
        assert_eq!(store.incarnation(), restored.incarnation);
        let backup_db = Connection::open(&backup).expect("opened");
        let sql = "SELECT url_key FROM catalog";
        let key = backup_db.query_row(sql, [], |row| row.get::<_, [u8; 32]>(0));
        assert_eq!(store.url_key().as_bytes(), &key.expect("a key"), "signed URLs hold");
        assert!(!fs::metadata(&place).expect("there").permissions().readonly());
        let refused = restore(&backup, state, now, 7);
        assert!(matches!(refused, Err(RestoreError::Open(OpenError::InUse(_)))), "{refused:?}");
    }

    #[tokio::test]
    async fn what_is_no_whole_backup_replaces_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let (backup, _state) = backup(dir.path()).await;
        let whole = fs::read(&backup).expect("read");
        let state = dir.path().join("state");
        let of = |error: &RestoreError| match error {
            RestoreError::Missing(_) => "missing",
            RestoreError::NotABackup(_) => "no backup",
            RestoreError::Damaged { .. } => "damaged",
            RestoreError::Open(OpenError::Newer { .. }) => "newer",
            RestoreError::Open(_) | RestoreError::Place { .. } => "other",
        };
        let check = |path: &Path, expected: &str| {
            let refused = restore(path, &state, Timestamp(1), 7).expect_err("refused");
            assert_eq!(of(&refused), expected, "{refused}");
            let left: Vec<_> = fs::read_dir(&state).expect("listed").flatten().collect();
            assert_eq!(left.len(), 1, "the lock alone: {left:?}");
        };
        check(&dir.path().join("nothing"), "missing");
        check(dir.path(), "missing");
        let other = dir.path().join("other");
        for (bytes, expected) in [
            (&b""[..], "no backup"),
            (b"something else", "no backup"),
            (&whole[..whole.len() / 2], "damaged"),
        ] {
            fs::write(&other, bytes).expect("written");
            check(&other, expected);
        }
        fs::write(&other, &whole).expect("written");
        let file = File::options().write(true).open(&other).expect("opened");
        // Not the first page, which says what it is.
        for page in 4..whole.len() as u64 / 4096 {
            file.write_all_at(&[0xa5; 64], page * 4096).expect("written");
        }
        check(&other, "damaged");
        fs::write(&other, &whole).expect("written");
        let db = Connection::open(&other).expect("opened");
        let history = "UPDATE refinery_schema_history SET version = 9999 WHERE version = 1";
        db.execute(history, []).expect("changed");
        db.pragma_update(None, "journal_mode", "delete").expect("in one file");
        drop(db);
        check(&other, "newer");
    }
}
