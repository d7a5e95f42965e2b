//! Writing records. What a verb decides is a list of deltas; this is the one place that turns a
//! delta into rows, and it remembers them for the feed.

use isotope_proto::change::{Delta, Edit};
use isotope_proto::cluster::{Node, Pool, Volume};
use isotope_proto::id::{ContentId, EntryId, ImageId, Ino, PoolId};
use isotope_proto::image::Image;
use isotope_proto::name::EntryName;
use isotope_proto::refusal::Refusal;
use isotope_proto::tree::{Entry, Folder};
use isotope_proto::wire::{encode_checked, encode_facts};
use rusqlite::{Connection, Params, params};

use super::rows::{Rows, Stored, sql_int};
use super::storage;

/// A transaction that changes the library: reads like [`Rows`], remembers what it writes.
pub(crate) struct Edits<'a> {
    rows: Rows<'a>,
    deltas: Vec<Delta>,
}

impl<'a> std::ops::Deref for Edits<'a> {
    type Target = Rows<'a>;
    fn deref(&self) -> &Rows<'a> {
        &self.rows
    }
}

impl<'a> Edits<'a> {
    pub(super) fn new(db: &'a Connection) -> Self {
        Self { rows: Rows::new(db), deltas: Vec::new() }
    }

    pub(crate) fn deltas(&self) -> &[Delta] {
        &self.deltas
    }

    pub(super) fn into_deltas(self) -> Vec<Delta> {
        self.deltas
    }

    pub(super) fn execute(&self, sql: &str, params: impl Params) -> Result<(), Refusal> {
        let run = || self.db.prepare_cached(sql)?.execute(params);
        run().map(drop).map_err(storage)
    }

    fn take_number(&self, column: &str) -> Result<u64, Refusal> {
        let sql = format!("UPDATE catalog SET {column} = {column} + 1 RETURNING {column} - 1");
        let take = || self.db.prepare_cached(&sql)?.query_row([], |row| row.get::<_, i64>(0));
        take().map(i64::unsigned_abs).map_err(storage)
    }

    /// An inode number that was never handed out before.
    pub(crate) fn take_ino(&mut self) -> Result<Ino, Refusal> {
        self.take_number("next_ino").map(Ino)
    }

    /// An entry id that was never handed out before.
    pub(crate) fn take_entry_id(&mut self) -> Result<EntryId, Refusal> {
        self.take_number("next_entry").map(EntryId)
    }

    /// An image became another; whoever knows it by its old id finds that.
    pub(crate) fn add_alias(&mut self, image: ImageId, became: ImageId) -> Result<(), Refusal> {
        let (image, became) = (image.as_bytes(), became.as_bytes());
        self.execute("UPDATE alias SET became = ?2 WHERE became = ?1", [image, became])?;
        self.execute(
            "INSERT OR REPLACE INTO alias (image, became) VALUES (?1, ?2)",
            [image, became],
        )
    }

    pub(crate) fn write(&mut self, delta: Delta) -> Result<(), Refusal> {
        match &delta {
            Delta::Folder(edit) => self.write_folder(edit)?,
            Delta::Image(edit) => self.write_image(edit)?,
            Delta::Entry(edit) => self.write_entry(edit)?,
            Delta::Node(edit) => self.write_node(edit)?,
            Delta::Pool(edit) => self.write_pool(edit)?,
            Delta::Volume(edit) => self.write_volume(edit)?,
        }
        self.remember(delta);
        Ok(())
    }

    /// A folder whose times move with each of many entries appears once, with its first state
    /// before and its last after.
    fn remember(&mut self, delta: Delta) {
        if let Delta::Folder(Edit::Changed { after, .. }) = &delta {
            let earlier = self.deltas.iter_mut().find_map(|delta| match delta {
                Delta::Folder(Edit::Made(a) | Edit::Changed { after: a, .. })
                    if a.ino == after.ino =>
                {
                    Some(a)
                }
                _ => None,
            });
            if let Some(earlier) = earlier {
                *earlier = after.clone();
                return;
            }
        }
        self.deltas.push(delta);
    }

    fn write_folder(&self, edit: &Edit<Folder>) -> Result<(), Refusal> {
        let ino = sql_int(edit.subject().ino.0);
        if let Edit::Removed(_) = edit {
            self.execute("DELETE FROM folder WHERE ino = ?1", [ino])?;
            return self.execute("DELETE FROM inode WHERE ino = ?1", [ino]);
        }
        self.execute("INSERT OR IGNORE INTO inode (ino) VALUES (?1)", [ino])?;
        let folder = edit.subject();
        self.execute(
            "INSERT INTO folder (ino, mode, created_ns, modified_ns, changed_ns, default_pool)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (ino) DO UPDATE SET mode = excluded.mode,
                 modified_ns = excluded.modified_ns, changed_ns = excluded.changed_ns,
                 default_pool = excluded.default_pool",
            params![
                ino,
                folder.mode,
                folder.created.0,
                folder.modified.0,
                folder.changed.0,
                folder.default_pool.as_ref().map(PoolId::as_bytes),
            ],
        )
    }

    fn write_entry(&self, edit: &Edit<Entry>) -> Result<(), Refusal> {
        let entry = edit.subject();
        let id = sql_int(entry.id.0);
        if let Edit::Removed(_) = edit {
            return self.execute("DELETE FROM entry WHERE id = ?1", [id]);
        }
        self.execute(
            "INSERT INTO entry (id, parent, name, ino) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (id) DO UPDATE SET parent = excluded.parent, name = excluded.name,
                 ino = excluded.ino",
            params![id, sql_int(entry.parent.0), entry.name.as_str(), sql_int(entry.ino.0)],
        )
    }

    fn write_image(&self, edit: &Edit<Image>) -> Result<(), Refusal> {
        let image = edit.subject();
        let (id, ino) = (image.id.as_bytes(), sql_int(image.ino.0));
        self.execute("DELETE FROM replica WHERE image = ?1", [id])?;
        self.execute("DELETE FROM flat_name WHERE image = ?1", [id])?;
        if let Edit::Removed(_) = edit {
            self.execute("DELETE FROM image WHERE id = ?1", [id])?;
            self.execute("DELETE FROM inode WHERE ino = ?1", [ino])?;
            return self.drop_unused(image.content);
        }
        self.execute("INSERT OR IGNORE INTO inode (ino) VALUES (?1)", [ino])?;
        self.execute(
            "INSERT INTO content (id, size_bytes, sha256, blake3) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (id) DO UPDATE SET sha256 = coalesce(excluded.sha256, sha256),
                 blake3 = coalesce(excluded.blake3, blake3)",
            params![
                image.content.as_bytes(),
                sql_int(image.size_bytes),
                image.hashes.map(|it| *it.sha256.as_bytes()),
                image.hashes.map(|it| *it.blake3.as_bytes()),
            ],
        )?;
        self.execute(
            "INSERT INTO image (id, ino, content, filename, format, os_family, os_distribution,
                 os_version, os_arch, mode, created_ns, modified_ns, changed_ns, facts)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)
             ON CONFLICT (id) DO UPDATE SET content = excluded.content,
                 filename = excluded.filename, format = excluded.format,
                 os_family = excluded.os_family, os_distribution = excluded.os_distribution,
                 os_version = excluded.os_version, os_arch = excluded.os_arch,
                 mode = excluded.mode, modified_ns = excluded.modified_ns,
                 changed_ns = excluded.changed_ns, facts = excluded.facts",
            params![
                id,
                ino,
                image.content.as_bytes(),
                image.filename,
                Stored(image.format),
                Stored(image.os.family),
                image.os.distribution,
                image.os.version,
                image.os.arch,
                image.mode,
                image.created.0,
                image.modified.0,
                image.changed.0,
                image.facts.as_deref().map(encode_facts),
            ],
        )?;
        self.write_flat_names(image)?;
        if let Some(before) = edit.before().filter(|before| before.content != image.content) {
            self.drop_unused(before.content)?;
        }
        for replica in &image.replicas {
            self.execute(
                "INSERT INTO replica (image, volume, path, inode, size_bytes, mtime_ns, checked)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![
                    id,
                    replica.volume.as_bytes(),
                    replica.path.as_str(),
                    sql_int(replica.stamp.inode),
                    sql_int(replica.stamp.size_bytes),
                    replica.stamp.mtime_ns,
                    replica.checked.as_ref().map(encode_checked),
                ],
            )?;
        }
        Ok(())
    }

    fn write_flat_names(&self, image: &Image) -> Result<(), Refusal> {
        for (rank, name) in (0_i64..).zip(&image.flat_names) {
            self.execute(
                "INSERT INTO flat_name (name, image, rank) VALUES (?1, ?2, ?3)",
                params![name.as_str(), image.id.as_bytes(), rank],
            )?;
        }
        Ok(())
    }

    /// An image as this change leaves it.
    pub(crate) fn image_now(&self, ino: Ino) -> Result<Option<Image>, Refusal> {
        let here = self.deltas.iter().rev().find_map(|delta| match delta {
            Delta::Image(edit) if edit.subject().ino == ino => Some(edit.after().cloned()),
            _ => None,
        });
        here.map_or_else(|| self.image_of_ino(ino), Ok)
    }

    /// Gives an image its flat names. One that this change made or changed has them from the first.
    pub(crate) fn name_flat(
        &mut self,
        image: Image,
        flat_names: Vec<EntryName>,
    ) -> Result<(), Refusal> {
        let here = self.deltas.iter_mut().rev().find_map(|delta| match delta {
            Delta::Image(Edit::Made(it) | Edit::Changed { after: it, .. }) if it.id == image.id => {
                Some(it)
            }
            _ => None,
        });
        let Some(it) = here else {
            let after = Image { flat_names, ..image.clone() };
            return self.write(Delta::Image(Edit::Changed { before: image, after }));
        };
        it.flat_names = flat_names;
        let named = it.clone();
        self.execute("DELETE FROM flat_name WHERE image = ?1", [image.id.as_bytes()])?;
        self.write_flat_names(&named)
    }

    /// A content lives while an image has it.
    fn drop_unused(&self, content: ContentId) -> Result<(), Refusal> {
        self.execute(
            "DELETE FROM content WHERE id = ?1
             AND NOT EXISTS (SELECT 1 FROM image WHERE content = ?1)",
            [content.as_bytes()],
        )
    }

    fn write_node(&self, edit: &Edit<Node>) -> Result<(), Refusal> {
        let node = edit.subject();
        if let Edit::Removed(_) = edit {
            return self.execute("DELETE FROM node WHERE id = ?1", [node.id.as_bytes()]);
        }
        self.execute(
            "INSERT INTO node (id, name, address, host) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (id) DO UPDATE SET name = excluded.name, address = excluded.address,
                 host = excluded.host",
            params![node.id.as_bytes(), node.name, node.address, node.host],
        )
    }

    fn write_pool(&self, edit: &Edit<Pool>) -> Result<(), Refusal> {
        let pool = edit.subject();
        self.execute("DELETE FROM pool_node WHERE pool = ?1", [pool.id.as_bytes()])?;
        if let Edit::Removed(_) = edit {
            return self.execute("DELETE FROM pool WHERE id = ?1", [pool.id.as_bytes()]);
        }
        self.execute(
            "INSERT INTO pool (id, name) VALUES (?1, ?2)
             ON CONFLICT (id) DO UPDATE SET name = excluded.name",
            params![pool.id.as_bytes(), pool.name],
        )?;
        for (rank, node) in (0_i64..).zip(&pool.assigned) {
            self.execute(
                "INSERT INTO pool_node (pool, node, rank) VALUES (?1, ?2, ?3)",
                params![pool.id.as_bytes(), node.as_bytes(), rank],
            )?;
        }
        Ok(())
    }

    fn write_volume(&self, edit: &Edit<Volume>) -> Result<(), Refusal> {
        let volume = edit.subject();
        self.execute("DELETE FROM sight WHERE volume = ?1", [volume.id.as_bytes()])?;
        if let Edit::Removed(_) = edit {
            return self.execute("DELETE FROM volume WHERE id = ?1", [volume.id.as_bytes()]);
        }
        self.execute(
            "INSERT INTO volume (id, pool) VALUES (?1, ?2)
             ON CONFLICT (id) DO UPDATE SET pool = excluded.pool",
            params![volume.id.as_bytes(), volume.pool.as_bytes()],
        )?;
        for sight in &volume.sights {
            self.execute(
                "INSERT INTO sight (volume, node, path) VALUES (?1, ?2, ?3)",
                params![volume.id.as_bytes(), sight.node.as_bytes(), sight.path],
            )?;
        }
        Ok(())
    }
}
