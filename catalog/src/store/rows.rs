//! Reading records: the library as one transaction sees it.

use std::collections::HashMap;

use isotope_proto::change::{Change, Record};
use isotope_proto::cluster::{Node, Pool, Sight, Volume};
use isotope_proto::id::{EntryId, Ino, NodeId, PoolId, Revision, VolumeId};
use isotope_proto::image::{ImageFormat, OsFamily};
use isotope_proto::name::EntryName;
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::time::Timestamp;
use isotope_proto::tree::{Entry, Folder};
use isotope_proto::upload::FileTaskKind;
use rusqlite::types::{FromSql, ToSql, Type, ValueRef};
use rusqlite::{Connection, OptionalExtension, Params, Row};

use super::{log, storage};

/// Records in one piece of a list: about 700 KiB on the wire, and 3 MiB at most.
pub(super) const PIECE_RECORDS: usize = 1000;

/// The records of the library, read within one transaction.
pub(crate) struct Rows<'a> {
    pub(super) db: &'a Connection,
}

const FOLDER: &str =
    "SELECT ino, mode, created_ns, modified_ns, changed_ns, default_pool FROM folder";
const ENTRY: &str = "SELECT id, parent, name, ino FROM entry";
impl<'a> Rows<'a> {
    pub(super) fn new(db: &'a Connection) -> Self {
        Self { db }
    }

    pub(super) fn one<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: fn(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, Refusal> {
        let query = || self.db.prepare_cached(sql)?.query_row(params, read).optional();
        query().map_err(storage)
    }

    pub(super) fn all<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: fn(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, Refusal> {
        let query = || -> rusqlite::Result<Vec<T>> {
            self.db.prepare_cached(sql)?.query_map(params, read)?.collect()
        };
        query().map_err(storage)
    }

    fn count(&self, sql: &str) -> Result<u64, Refusal> {
        let count: Option<i64> = self.one(sql, [], |row| row.get(0))?;
        Ok(count.unwrap_or(0).unsigned_abs())
    }

    pub(crate) fn revision(&self) -> Result<Revision, Refusal> {
        Ok(Revision(self.count("SELECT revision FROM catalog")?))
    }

    pub(super) fn inode_count(&self) -> Result<u64, Refusal> {
        self.count("SELECT count(*) FROM inode")
    }

    pub(crate) fn image_count(&self) -> Result<u64, Refusal> {
        self.count("SELECT count(*) FROM image")
    }

    /// Without the root.
    pub(crate) fn folder_count(&self) -> Result<u64, Refusal> {
        self.count("SELECT count(*) - 1 FROM folder")
    }

    /// Images with a file on each volume.
    pub(crate) fn image_counts(&self) -> Result<HashMap<VolumeId, u64>, Refusal> {
        let sql = "SELECT volume, count(DISTINCT image) FROM replica GROUP BY volume";
        let pairs = self.all(sql, [], |row| {
            Ok((VolumeId::from_bytes(row.get(0)?), row.get::<_, i64>(1)?.unsigned_abs()))
        })?;
        Ok(pairs.into_iter().collect())
    }

    pub(crate) fn folder(&self, ino: Ino) -> Result<Option<Folder>, Refusal> {
        self.one(&format!("{FOLDER} WHERE ino = ?1"), [sql_int(ino.0)], folder_of)
    }

    /// Folders whose default is a pool.
    pub(crate) fn folders_by_default(&self, pool: PoolId) -> Result<Vec<Folder>, Refusal> {
        self.all(&format!("{FOLDER} WHERE default_pool = ?1"), [pool.as_bytes()], folder_of)
    }

    /// A folder that must be there, for an entry leads to it.
    pub(crate) fn folder_known(&self, ino: Ino) -> Result<Folder, Refusal> {
        self.folder(ino)?.ok_or_else(|| {
            Refusal::new(Reason::Storage, format!("the catalogue has lost folder {ino}"))
        })
    }

    pub(crate) fn entry(&self, parent: Ino, name: &EntryName) -> Result<Option<Entry>, Refusal> {
        let params = (sql_int(parent.0), name.as_str());
        self.one(&format!("{ENTRY} WHERE parent = ?1 AND name = ?2"), params, entry_of)
    }

    /// The names that lead to an inode, oldest first.
    pub(crate) fn entries_to(&self, ino: Ino) -> Result<Vec<Entry>, Refusal> {
        self.all(&format!("{ENTRY} WHERE ino = ?1 ORDER BY id"), [sql_int(ino.0)], entry_of)
    }

    /// What lies in a folder, by name, after one of them.
    pub(crate) fn children_after(
        &self,
        folder: Ino,
        after: Option<&EntryName>,
        most: usize,
    ) -> Result<Vec<Entry>, Refusal> {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        // Every name sorts after the empty one.
        let after = after.map_or("", |name| name.as_str());
        let sql = format!("{ENTRY} WHERE parent = ?1 AND name > ?2 ORDER BY name LIMIT ?3");
        self.all(&sql, (sql_int(folder.0), after, most), entry_of)
    }

    pub(crate) fn is_empty(&self, folder: Ino) -> Result<bool, Refusal> {
        // What somebody is writing into it counts, although nobody else sees it.
        let sql = "SELECT 1 FROM entry WHERE parent = ?1
                   UNION ALL SELECT 1 FROM upload WHERE parent = ?1 LIMIT 1";
        Ok(self.one(sql, [sql_int(folder.0)], |_| Ok(()))?.is_none())
    }

    /// Folders directly in a folder.
    pub(crate) fn subfolders(&self, folder: Ino) -> Result<Vec<Ino>, Refusal> {
        let sql = "SELECT folder.ino FROM entry JOIN folder ON folder.ino = entry.ino
                   WHERE entry.parent = ?1";
        self.all(sql, [sql_int(folder.0)], |row| Ok(Ino(sql_uint(row, 0)?)))
    }

    pub(crate) fn node(&self, id: NodeId) -> Result<Option<Node>, Refusal> {
        self.one("SELECT id, name, address, host FROM node WHERE id = ?1", [id.as_bytes()], node_of)
    }

    pub(crate) fn nodes(&self) -> Result<Vec<Node>, Refusal> {
        self.all("SELECT id, name, address, host FROM node ORDER BY name, id", [], node_of)
    }

    pub(crate) fn pools(&self) -> Result<Vec<Pool>, Refusal> {
        let mut pools = self.all("SELECT id, name FROM pool ORDER BY name", [], |row| {
            let id = PoolId::from_bytes(row.get(0)?);
            Ok(Pool { id, name: row.get(1)?, assigned: Vec::new() })
        })?;
        let sql = "SELECT node FROM pool_node WHERE pool = ?1 ORDER BY rank";
        for pool in &mut pools {
            let node = |row: &Row<'_>| Ok(NodeId::from_bytes(row.get(0)?));
            pool.assigned = self.all(sql, [pool.id.as_bytes()], node)?;
        }
        Ok(pools)
    }

    pub(crate) fn volumes(&self) -> Result<Vec<Volume>, Refusal> {
        self.volumes_where("ORDER BY id", [])
    }

    pub(crate) fn volume(&self, id: VolumeId) -> Result<Option<Volume>, Refusal> {
        Ok(self.volumes_where("WHERE id = ?1", [id.as_bytes()])?.into_iter().next())
    }

    fn volumes_where(&self, condition: &str, params: impl Params) -> Result<Vec<Volume>, Refusal> {
        let sql = format!("SELECT id, pool FROM volume {condition}");
        let mut volumes = self.all(&sql, params, |row| {
            let (id, pool) = (VolumeId::from_bytes(row.get(0)?), PoolId::from_bytes(row.get(1)?));
            Ok(Volume { id, pool, sights: Vec::new() })
        })?;
        let sql = "SELECT node, path FROM sight WHERE volume = ?1 ORDER BY node";
        let sight =
            |row: &Row<'_>| Ok(Sight { node: NodeId::from_bytes(row.get(0)?), path: row.get(1)? });
        for volume in &mut volumes {
            volume.sights = self.all(sql, [volume.id.as_bytes()], sight)?;
        }
        Ok(volumes)
    }

    pub(crate) fn changes_after(
        &self,
        revision: Revision,
        count_max: u32,
    ) -> Result<Option<Vec<Change>>, Refusal> {
        log::changes_after(self.db, revision, count_max)
    }

    /// Every record, in pieces, each before those that refer to it; ends early when `take` says
    /// that nobody wants more.
    pub(crate) fn each_record(
        &self,
        mut take: impl FnMut(Vec<Record>) -> bool,
    ) -> Result<(), Refusal> {
        let mut cluster: Vec<Record> = Vec::new();
        cluster.extend(self.nodes()?.into_iter().map(Record::Node));
        cluster.extend(self.pools()?.into_iter().map(Record::Pool));
        cluster.extend(self.volumes()?.into_iter().map(Record::Volume));
        if !take(cluster) {
            return Ok(());
        }
        let folders = format!("{FOLDER} ORDER BY ino");
        let entries = format!("{ENTRY} ORDER BY parent, id");
        let _ = self.pieces(&folders, |row| Ok(Record::Folder(folder_of(row)?)), &mut take)?
            && self.image_pieces(&mut take)?
            && self.pieces(&entries, |row| Ok(Record::Entry(entry_of(row)?)), &mut take)?;
        Ok(())
    }

    fn pieces(
        &self,
        sql: &str,
        read: fn(&Row<'_>) -> rusqlite::Result<Record>,
        take: &mut impl FnMut(Vec<Record>) -> bool,
    ) -> Result<bool, Refusal> {
        let mut statement = self.db.prepare(sql).map_err(storage)?;
        let mut records = statement.query_map([], read).map_err(storage)?;
        loop {
            let piece: Vec<Record> =
                records.by_ref().take(PIECE_RECORDS).collect::<Result<_, _>>().map_err(storage)?;
            if piece.is_empty() {
                return Ok(true);
            }
            if !take(piece) {
                return Ok(false);
            }
        }
    }
}

/// SQLite keeps 64-bit integers signed; the bits survive.
pub(super) fn sql_int(value: u64) -> i64 {
    value.cast_signed()
}

pub(super) fn sql_uint(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(column)?.cast_unsigned())
}

/// A stored text that must parse, as it did when it was stored.
pub(super) fn parsed<S, T, E>(
    row: &Row<'_>,
    column: usize,
    parse: impl Fn(S) -> Result<T, E>,
) -> rusqlite::Result<T>
where
    S: FromSql,
    E: std::error::Error + Send + Sync + 'static,
{
    let failed = |error| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, error);
    parse(row.get(column)?).map_err(|error| failed(Box::new(error)))
}

fn folder_of(row: &Row<'_>) -> rusqlite::Result<Folder> {
    Ok(Folder {
        ino: Ino(sql_uint(row, 0)?),
        mode: row.get(1)?,
        created: Timestamp(row.get(2)?),
        modified: Timestamp(row.get(3)?),
        changed: Timestamp(row.get(4)?),
        default_pool: row.get::<_, Option<_>>(5)?.map(PoolId::from_bytes),
    })
}

fn entry_of(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry {
        id: EntryId(sql_uint(row, 0)?),
        parent: Ino(sql_uint(row, 1)?),
        name: parsed(row, 2, |name: String| EntryName::parse(&name))?,
        ino: Ino(sql_uint(row, 3)?),
    })
}

fn node_of(row: &Row<'_>) -> rusqlite::Result<Node> {
    Ok(Node {
        id: NodeId::from_bytes(row.get(0)?),
        name: row.get(1)?,
        address: row.get(2)?,
        host: row.get(3)?,
    })
}

/// An enumeration stored by the name it is shown under.
pub(super) struct Stored<T>(pub(super) T);

macro_rules! stored {
    ($($type:ident: $($variant:ident),+;)*) => {$(
        impl FromSql for Stored<$type> {
            fn column_result(
                value: ValueRef<'_>,
            ) -> rusqlite::types::FromSqlResult<Self> {
                let text = value.as_str()?;
                [$($type::$variant),+]
                    .into_iter()
                    .find(|variant| variant.to_string() == text)
                    .map(Stored)
                    .ok_or(rusqlite::types::FromSqlError::InvalidType)
            }
        }
        impl ToSql for Stored<$type> {
            fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
                Ok(self.0.to_string().into())
            }
        }
    )*};
}

stored! {
    ImageFormat: Iso, Img, Ova, Qcow2, Vmdk, Vhd, Vhdx, Vdi, Gzip, Bzip2, Xz, Zstd, SevenZip, Zip;
    OsFamily: Windows, Linux, Other;
    FileTaskKind: Finish, Trash, Restore, Purge;
}
