//! What is kept beside the library: uploads under way, the trash, what agents have yet to do.

use std::time::Duration;

use isotope_proto::id::{ImageId, Ino, NodeId, PoolId, UploadId, VolumeId};
use isotope_proto::image::Stamp;
use isotope_proto::name::{EntryName, VolumePath};
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::time::Timestamp;
use isotope_proto::upload::{FileTask, FileTaskKind, Trashed, Upload};
use isotope_proto::wire::{decode_image, encode_image};
use rusqlite::{Row, params};

use super::rows::{Rows, Stored, parsed, sql_int, sql_uint};
use super::write::Edits;

/// An upload with what it is to become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reserved {
    pub(crate) upload: Upload,
    pub(crate) parent: Ino,
    pub(crate) name: EntryName,
    pub(crate) mode: u32,
    /// All names of the image that has the name, not that one alone.
    pub(crate) rewrites: bool,
}

const UPLOAD: &str =
    "SELECT id, image, ino, volume, node, parent, name, mode, rewrites FROM upload";
const TASK: &str = "SELECT kind, image, path, inode, size_bytes, mtime_ns FROM file_task";

impl Rows<'_> {
    pub(crate) fn upload(&self, id: UploadId) -> Result<Option<Reserved>, Refusal> {
        self.one(&format!("{UPLOAD} WHERE id = ?1"), [id.as_bytes()], reserved_of)
    }

    pub(crate) fn upload_ids(&self) -> Result<Vec<UploadId>, Refusal> {
        self.all("SELECT id FROM upload", [], |row| Ok(UploadId::from_bytes(row.get(0)?)))
    }

    /// Whether somebody is writing a file of that name.
    pub(crate) fn is_reserved(&self, parent: Ino, name: &EntryName) -> Result<bool, Refusal> {
        let sql = "SELECT 1 FROM upload WHERE parent = ?1 AND name = ?2";
        Ok(self.one(sql, (sql_int(parent.0), name.as_str()), |_| Ok(()))?.is_some())
    }

    /// Of some images, those that are being written or have yet to be brought to their place.
    pub(crate) fn wanted(&self, images: &[ImageId]) -> Result<Vec<ImageId>, Refusal> {
        let sql = "SELECT 1 FROM upload WHERE image = ?1
                   UNION ALL SELECT 1 FROM file_task WHERE image = ?1";
        let mut wanted = Vec::new();
        for image in images {
            if self.one(sql, [image.as_bytes()], |_| Ok(()))?.is_some() {
                wanted.push(*image);
            }
        }
        Ok(wanted)
    }

    pub(crate) fn tasks(&self, volume: VolumeId, most: usize) -> Result<Vec<FileTask>, Refusal> {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let sql = format!("{TASK} WHERE volume = ?1 ORDER BY image LIMIT ?2");
        self.all(&sql, params![volume.as_bytes(), most], task_of)
    }

    /// The image whose file this is, if something is yet to be done with it.
    pub(crate) fn task_of_stamp(
        &self,
        volume: VolumeId,
        stamp: Stamp,
    ) -> Result<Option<ImageId>, Refusal> {
        let sql = "SELECT image FROM file_task
                   WHERE volume = ?1 AND inode = ?2 AND size_bytes = ?3 AND mtime_ns = ?4";
        let params = params![
            volume.as_bytes(),
            sql_int(stamp.inode),
            sql_int(stamp.size_bytes),
            stamp.mtime_ns
        ];
        self.one(sql, params, |row| Ok(ImageId::from_bytes(row.get(0)?)))
    }

    /// Files of a volume that nothing is yet to be done with, by path and image, behind one of them.
    pub(crate) fn settled_files(
        &self,
        volume: VolumeId,
        after: (&str, &[u8]),
        most: usize,
    ) -> Result<Vec<(ImageId, VolumePath, Stamp)>, Refusal> {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let sql = "SELECT image, path, inode, size_bytes, mtime_ns FROM replica
                   WHERE volume = ?1 AND (path, image) > (?2, ?3) AND NOT EXISTS (
                       SELECT 1 FROM file_task
                       WHERE file_task.volume = replica.volume AND file_task.image = replica.image)
                   ORDER BY path, image LIMIT ?4";
        self.all(sql, params![volume.as_bytes(), after.0, after.1, most], |row| {
            let path = parsed(row, 1, |path: String| VolumePath::parse(&path))?;
            let stamp = Stamp {
                inode: sql_uint(row, 2)?,
                size_bytes: sql_uint(row, 3)?,
                mtime_ns: row.get(4)?,
            };
            Ok((ImageId::from_bytes(row.get(0)?), path, stamp))
        })
    }

    /// Images all of whose files lie in a pool.
    pub(crate) fn images_only_in(&self, pool: PoolId) -> Result<u64, Refusal> {
        let sql = "SELECT count(DISTINCT image) FROM replica AS here
                   JOIN volume ON volume.id = here.volume
                   WHERE volume.pool = ?1 AND NOT EXISTS (
                       SELECT 1 FROM replica AS other JOIN volume AS at ON at.id = other.volume
                       WHERE other.image = here.image AND at.pool <> ?1)";
        let count = self.one(sql, [pool.as_bytes()], |row| row.get::<_, i64>(0))?;
        Ok(count.unwrap_or(0).unsigned_abs())
    }

    /// Whether something is yet to be done with files of an image.
    pub(crate) fn has_tasks(&self, image: ImageId) -> Result<bool, Refusal> {
        let sql = "SELECT 1 FROM file_task WHERE image = ?1";
        Ok(self.one(sql, [image.as_bytes()], |_| Ok(()))?.is_some())
    }

    pub(crate) fn image_ids(&self) -> Result<Vec<ImageId>, Refusal> {
        let sql = "SELECT id FROM image ORDER BY ino";
        self.all(sql, [], |row| Ok(ImageId::from_bytes(row.get(0)?)))
    }

    /// Images with a file in a pool.
    pub(crate) fn image_ids_in(&self, pool: PoolId) -> Result<Vec<ImageId>, Refusal> {
        let sql = "SELECT DISTINCT image FROM replica JOIN volume ON volume.id = replica.volume
                   WHERE volume.pool = ?1";
        self.all(sql, [pool.as_bytes()], |row| Ok(ImageId::from_bytes(row.get(0)?)))
    }

    /// Images with a file on a volume.
    pub(crate) fn images_on(&self, volume: VolumeId) -> Result<Vec<ImageId>, Refusal> {
        let sql = "SELECT DISTINCT image FROM replica WHERE volume = ?1";
        self.all(sql, [volume.as_bytes()], |row| Ok(ImageId::from_bytes(row.get(0)?)))
    }

    pub(crate) fn image_count_on(&self, volume: VolumeId) -> Result<u64, Refusal> {
        let sql = "SELECT count(DISTINCT image) FROM replica WHERE volume = ?1";
        let count = self.one(sql, [volume.as_bytes()], |row| row.get::<_, i64>(0))?;
        Ok(count.unwrap_or(0).unsigned_abs())
    }

    /// Whether a file is being written to a volume.
    pub(crate) fn is_written_to(&self, volume: VolumeId) -> Result<bool, Refusal> {
        let sql = "SELECT 1 FROM upload WHERE volume = ?1";
        Ok(self.one(sql, [volume.as_bytes()], |_| Ok(()))?.is_some())
    }

    /// Whether a file is being written through a node.
    pub(crate) fn is_written_by(&self, node: NodeId) -> Result<bool, Refusal> {
        let sql = "SELECT 1 FROM upload WHERE node = ?1";
        Ok(self.one(sql, [node.as_bytes()], |_| Ok(()))?.is_some())
    }

    pub(crate) fn trashed(&self, image: ImageId) -> Result<Option<Trashed>, Refusal> {
        let found = self.trash_where("WHERE image = ?1", [image.as_bytes()])?;
        Ok(found.into_iter().next())
    }

    /// Newest first.
    pub(crate) fn trash(&self) -> Result<Vec<Trashed>, Refusal> {
        self.trash_where("ORDER BY deleted_ns DESC, image", [])
    }

    /// Deleted images that have been kept for long enough.
    pub(crate) fn trash_expired(&self) -> Result<Vec<ImageId>, Refusal> {
        let sql = "SELECT image FROM trash WHERE left_ns <= 0";
        self.all(sql, [], |row| Ok(ImageId::from_bytes(row.get(0)?)))
    }

    fn trash_where(
        &self,
        condition: &str,
        params: impl rusqlite::Params,
    ) -> Result<Vec<Trashed>, Refusal> {
        let sql = format!("SELECT body, paths, deleted_ns, expires_ns FROM trash {condition}");
        let rows = self.all(&sql, params, |row| {
            let (body, paths): (Vec<u8>, String) = (row.get(0)?, row.get(1)?);
            Ok((body, paths, Timestamp(row.get(2)?), Timestamp(row.get(3)?)))
        })?;
        let trashed = |(body, paths, deleted, expires): (Vec<u8>, String, _, _)| {
            let image = decode_image(&body).map_err(|error| {
                Refusal::new(Reason::Storage, format!("the trash is damaged: {error}"))
            })?;
            let paths = paths.lines().map(str::to_owned).collect();
            Ok(Trashed { image, paths, deleted, expires })
        };
        rows.into_iter().map(trashed).collect()
    }
}

impl Edits<'_> {
    /// Nothing is to be done any more on a volume, nor had back from its trash.
    pub(crate) fn forget_volume(&mut self, volume: VolumeId) -> Result<(), Refusal> {
        self.execute("DELETE FROM file_task WHERE volume = ?1", [volume.as_bytes()])?;
        for trashed in self.trash()? {
            let image = &trashed.image;
            if image.replicas.iter().all(|it| it.volume != volume) {
                continue;
            }
            self.take_from_trash(image.id)?;
            let mut rest = trashed.clone();
            rest.image.replicas.retain(|replica| replica.volume != volume);
            if !rest.image.replicas.is_empty() {
                self.put_in_trash(&rest)?;
            }
        }
        Ok(())
    }

    pub(crate) fn reserve(&mut self, it: &Reserved) -> Result<(), Refusal> {
        self.execute(
            "INSERT INTO upload (id, image, ino, parent, name, mode, volume, node, rewrites)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            params![
                it.upload.id.as_bytes(),
                it.upload.image.as_bytes(),
                sql_int(it.upload.ino.0),
                sql_int(it.parent.0),
                it.name.as_str(),
                it.mode,
                it.upload.volume.as_bytes(),
                it.upload.node.as_bytes(),
                it.rewrites,
            ],
        )
    }

    pub(crate) fn release(&mut self, upload: UploadId) -> Result<(), Refusal> {
        self.execute("DELETE FROM upload WHERE id = ?1", [upload.as_bytes()])
    }

    /// Whatever was to be done with the file before, now this is.
    pub(crate) fn set_task(&mut self, volume: VolumeId, task: &FileTask) -> Result<(), Refusal> {
        self.execute(
            "INSERT INTO file_task (volume, image, path, kind, inode, size_bytes, mtime_ns)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT (volume, image, path) DO UPDATE SET kind = excluded.kind",
            params![
                volume.as_bytes(),
                task.image.as_bytes(),
                task.path.as_str(),
                Stored(task.kind),
                sql_int(task.stamp.inode),
                sql_int(task.stamp.size_bytes),
                task.stamp.mtime_ns,
            ],
        )
    }

    /// The task was carried out, unless another has taken its place meanwhile. True if it stood.
    pub(crate) fn clear_task(
        &mut self,
        volume: VolumeId,
        task: &FileTask,
    ) -> Result<bool, Refusal> {
        let sql = "DELETE FROM file_task
                   WHERE volume = ?1 AND image = ?2 AND path = ?3 AND kind = ?4 RETURNING 1";
        let params = params![
            volume.as_bytes(),
            task.image.as_bytes(),
            task.path.as_str(),
            Stored(task.kind)
        ];
        Ok(self.one(sql, params, |_| Ok(()))?.is_some())
    }

    /// The catalogue has run for so much longer.
    pub(crate) fn age_trash(&mut self, by: Duration) -> Result<(), Refusal> {
        let by_ns = i64::try_from(by.as_nanos()).unwrap_or(i64::MAX);
        self.execute("UPDATE trash SET left_ns = left_ns - ?1", [by_ns])
    }

    pub(crate) fn put_in_trash(&mut self, it: &Trashed) -> Result<(), Refusal> {
        self.execute(
            "INSERT INTO trash (image, body, paths, deleted_ns, expires_ns, left_ns)
             VALUES (?1, ?2, ?3, ?4, ?5, ?5 - ?4)",
            params![
                it.image.id.as_bytes(),
                encode_image(&it.image),
                it.paths.join("\n"),
                it.deleted.0,
                it.expires.0,
            ],
        )
    }

    pub(crate) fn take_from_trash(&mut self, image: ImageId) -> Result<(), Refusal> {
        self.execute("DELETE FROM trash WHERE image = ?1", [image.as_bytes()])
    }
}

fn reserved_of(row: &Row<'_>) -> rusqlite::Result<Reserved> {
    Ok(Reserved {
        upload: Upload {
            id: UploadId::from_bytes(row.get(0)?),
            image: ImageId::from_bytes(row.get(1)?),
            ino: Ino(sql_uint(row, 2)?),
            volume: VolumeId::from_bytes(row.get(3)?),
            node: NodeId::from_bytes(row.get(4)?),
        },
        parent: Ino(sql_uint(row, 5)?),
        name: parsed(row, 6, |name: String| EntryName::parse(&name))?,
        mode: row.get(7)?,
        rewrites: row.get(8)?,
    })
}

fn task_of(row: &Row<'_>) -> rusqlite::Result<FileTask> {
    Ok(FileTask {
        kind: row.get::<_, Stored<FileTaskKind>>(0)?.0,
        image: ImageId::from_bytes(row.get(1)?),
        path: parsed(row, 2, |path: String| VolumePath::parse(&path))?,
        stamp: Stamp {
            inode: sql_uint(row, 3)?,
            size_bytes: sql_uint(row, 4)?,
            mtime_ns: row.get(5)?,
        },
    })
}
