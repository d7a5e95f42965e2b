//! The library read as a whole, and another put in its place.

use std::collections::BTreeSet;

use isotope_proto::change::{Delta, Edit, Record};
use isotope_proto::id::{EntryId, ImageId, Incarnation, Ino, VolumeId};
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::sidecar::{LibraryCopy, LibraryMark};
use isotope_proto::time::Timestamp;
use isotope_proto::upload::FileTaskKind;
use rusqlite::{Connection, params};

use super::rows::{Rows, Stored, sql_int};
use super::write::Edits;
use super::{open, storage};
use crate::rebuild::Rebuilt;
use crate::uploads::TRASH_KEPT_NS;

impl Rows<'_> {
    /// The whole library, of no one volume.
    pub(crate) fn copy(&self) -> Result<LibraryCopy, Refusal> {
        let sql = "SELECT incarnation, next_ino, next_entry FROM catalog";
        let read = |row: &rusqlite::Row<'_>| {
            let numbers =
                (row.get::<_, i64>(1)?.unsigned_abs(), row.get::<_, i64>(2)?.unsigned_abs());
            Ok((Incarnation::from_bytes(row.get(0)?), numbers))
        };
        let lost = || Refusal::new(Reason::Storage, "the catalogue has lost its own record");
        let (incarnation, (next_ino, next_entry)) = self.one(sql, [], read)?.ok_or_else(lost)?;
        let mark = LibraryMark {
            volume: VolumeId::from_bytes([0; 16]),
            incarnation,
            revision: self.revision()?,
            ino_max: Ino(next_ino.saturating_sub(1)),
            entry_max: EntryId(next_entry.saturating_sub(1)),
        };
        let mut records: Vec<Record> = Vec::new();
        self.each_record(|piece| {
            records.extend(piece);
            true
        })?;
        Ok(LibraryCopy { mark, records })
    }

    /// Changes that somebody asked for, of those that are remembered.
    pub(crate) fn changes_by_people(&self) -> Result<u64, Refusal> {
        let count = self.one("SELECT count(*) FROM request", [], |row| row.get::<_, i64>(0))?;
        Ok(count.unwrap_or(0).unsigned_abs())
    }

    /// Images whose bytes may lie there still, and that are to be no more.
    pub(crate) fn deleted_images(&self) -> Result<BTreeSet<ImageId>, Refusal> {
        let sql =
            "SELECT image FROM trash UNION SELECT image FROM file_task WHERE kind IN (?1, ?2)";
        let kinds = (Stored(FileTaskKind::Trash), Stored(FileTaskKind::Purge));
        let images = self.all(sql, kinds, |row| Ok(ImageId::from_bytes(row.get(0)?)))?;
        Ok(images.into_iter().collect())
    }
}

/// Puts a library in the place of the one there is, and begins the catalogue's next life with it.
/// The trash and what hosts have yet to do stay; what was being written ends.
pub(super) fn replace(
    db: &Connection,
    with: &Rebuilt,
    now: Timestamp,
) -> Result<Incarnation, Refusal> {
    // Records refer to others in circles of their own; what counts is how it ends.
    db.pragma_update(None, "defer_foreign_keys", true).map_err(storage)?;
    for table in [
        "entry",
        "replica",
        "flat_name",
        "image",
        "folder",
        "inode",
        "sight",
        "pool_node",
        "volume",
        "pool",
        "node",
        "change",
        "request",
    ] {
        db.execute(&format!("DELETE FROM {table}"), []).map_err(storage)?;
    }
    let incarnation = open::begin_next_life(db, now, TRASH_KEPT_NS).map_err(storage)?;
    let next = params![sql_int(with.next_ino), sql_int(with.next_entry)];
    let sql = "UPDATE catalog SET next_ino = max(next_ino, ?1), next_entry = max(next_entry, ?2)";
    db.execute(sql, next).map_err(storage)?;
    let mut edits = Edits::new(db);
    for record in &with.records {
        edits.write(match record.clone() {
            Record::Node(it) => Delta::Node(Edit::Made(it)),
            Record::Pool(it) => Delta::Pool(Edit::Made(it)),
            Record::Volume(it) => Delta::Volume(Edit::Made(it)),
            Record::Folder(it) => Delta::Folder(Edit::Made(it)),
            Record::Image(it) => Delta::Image(Edit::Made(it)),
            Record::Entry(it) => Delta::Entry(Edit::Made(it)),
        })?;
    }
    let unused = "DELETE FROM content WHERE id NOT IN (SELECT content FROM image)";
    db.execute(unused, []).map_err(storage)?;
    let sql = "SELECT count(*) FROM pragma_foreign_key_check";
    let loose: i64 = db.query_row(sql, [], |row| row.get(0)).map_err(storage)?;
    if loose > 0 {
        let text = format!("the library cannot be put together: {loose} records lack others");
        return Err(Refusal::new(Reason::Storage, text));
    }
    Ok(incarnation)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use isotope_proto::id::RequestId;
    use isotope_proto::name::EntryName;
    use isotope_proto::tree::{FOLDER_MODE, FolderRef, Place};

    use super::super::{Outcome, Store, Verb, tests};
    use super::*;
    use crate::library;

    fn make(name: &str) -> Verb {
        let name = EntryName::parse(name).expect("a name");
        let place = Place { folder: FolderRef::Ino(Ino::ROOT), name };
        Verb::MakeFolder { place, mode: FOLDER_MODE }
    }

    async fn ino(store: &Store, path: &'static str) -> Option<Ino> {
        let path: isotope_proto::name::LibraryPath = path.parse().expect("a path");
        let find = move |rows: &Rows<'_>| match library::find(rows, &path) {
            Ok((entry, _)) => Ok(entry.map(|entry| entry.ino)),
            Err(_) => Ok(None),
        };
        store.read(find).await.expect("read")
    }

    #[tokio::test]
    async fn a_rebuilt_library_is_another_life_with_the_old_numbers() {
        let (lost, _dir) = tests::store().await;
        lost.commit(None, make("mine")).await.expect("made");
        let was = ino(&lost, "/mine").await.expect("there");
        let copies = Arc::new(vec![lost.read(|rows| rows.copy()).await.expect("read")]);
        let rebuild = |accept| Verb::Rebuild { copies: Arc::clone(&copies), accept };

        let dir = tempfile::tempdir().expect("a directory");
        // Of a later time, as its numbers are.
        let now = Timestamp(1_700_000_000_000_000_000);
        let (fresh, feed) = Store::open(dir.path(), now).expect("a store");
        let request = Some(RequestId::from_bytes([9; 16]));
        let began = fresh.commit(request, make("begun")).await.expect("made").change;
        let refused = fresh.commit(None, rebuild(false)).await.expect_err("somebody worked on it");
        assert_eq!(refused.reason, Reason::NotEmpty);
        let mut life = feed.life();
        assert!(!life.has_changed().expect("it lives"));
        let rebuilt = fresh.commit(None, rebuild(true)).await.expect("rebuilt");
        let Outcome::Rebuilt(incarnation) = rebuilt.outcome else { panic!("{rebuilt:?}") };
        assert_ne!(incarnation, began.incarnation);
        assert_eq!((*life.borrow_and_update(), fresh.incarnation()), (incarnation, incarnation));
        assert_eq!(feed.newest(), began.revision.next());
        assert_eq!(ino(&fresh, "/mine").await, Some(was));
        assert!(ino(&fresh, "/begun").await.is_some(), "what was begun stays");
        assert_eq!(fresh.read(|rows| rows.volumes()).await.expect("read").len(), 2);

        let next = fresh.commit(None, make("next")).await.expect("made").change;
        assert_eq!((next.incarnation, next.revision), (incarnation, feed.newest()));
        assert!(ino(&fresh, "/next").await > Some(was));
        let kept = fresh.changes_after(began.revision, 9).await.expect("read");
        assert_eq!(kept, None, "who followed the last life lists anew");
        let again = fresh.commit(None, rebuild(false)).await.expect("nothing to do");
        assert!(matches!(again.outcome, Outcome::Nothing));
        assert_eq!(fresh.incarnation(), incarnation);
    }
}
