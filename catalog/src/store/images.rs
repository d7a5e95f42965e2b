//! Reading images: each with its content's hashes and its files.

use isotope_proto::change::Record;
use isotope_proto::digest::{Blake3, Sha256};
use isotope_proto::id::{ContentId, ImageId, Ino, VolumeId};
use isotope_proto::image::{Hashes, Image, ImageFormat, Os, OsFamily, Replica, Stamp};
use isotope_proto::name::{EntryName, VolumePath};
use isotope_proto::refusal::Refusal;
use isotope_proto::time::Timestamp;
use isotope_proto::wire::{decode_checked, decode_facts};
use rusqlite::Row;
use rusqlite::types::{FromSql, ValueRef};

use super::rows::{PIECE_RECORDS, Rows, Stored, parsed, sql_int, sql_uint};
use super::storage;

/// Twins told of an image: as many hosts as a reader can try before its patience ends.
const TWINS_MAX: u32 = 16;

const IMAGE: &str = "SELECT image.id, ino, content, filename, size_bytes, format, os_family,
    os_distribution, os_version, os_arch, mode, created_ns, modified_ns, changed_ns, facts, sha256,
    blake3 FROM image JOIN content ON content.id = image.content";
const FLAT_NAME: &str = "SELECT name, image FROM flat_name";
const REPLICA: &str =
    "SELECT volume, path, inode, size_bytes, mtime_ns, image, checked FROM replica";

impl Rows<'_> {
    pub(crate) fn image(&self, id: ImageId) -> Result<Option<Image>, Refusal> {
        let found = self.one(&format!("{IMAGE} WHERE image.id = ?1"), [id.as_bytes()], image_of)?;
        self.with_replicas(found)
    }

    pub(crate) fn image_of_ino(&self, ino: Ino) -> Result<Option<Image>, Refusal> {
        let found = self.one(&format!("{IMAGE} WHERE ino = ?1"), [sql_int(ino.0)], image_of)?;
        self.with_replicas(found)
    }

    /// The image to which the file at a volume's path belongs.
    pub(crate) fn image_at(
        &self,
        volume: VolumeId,
        path: &VolumePath,
    ) -> Result<Option<Image>, Refusal> {
        let sql = "SELECT image FROM replica WHERE volume = ?1 AND path = ?2 LIMIT 1";
        let params = (volume.as_bytes(), path.as_str());
        match self.one(sql, params, |row| Ok(ImageId::from_bytes(row.get(0)?)))? {
            Some(id) => self.image(id),
            None => Ok(None),
        }
    }

    /// The image to which the file of a stamp belongs.
    pub(crate) fn image_of_stamp(
        &self,
        volume: VolumeId,
        stamp: Stamp,
    ) -> Result<Option<Image>, Refusal> {
        let sql = "SELECT image FROM replica
                   WHERE volume = ?1 AND inode = ?2 AND size_bytes = ?3 AND mtime_ns = ?4 LIMIT 1";
        let (inode, size_bytes) = (sql_int(stamp.inode), sql_int(stamp.size_bytes));
        let params = (volume.as_bytes(), inode, size_bytes, stamp.mtime_ns);
        match self.one(sql, params, |row| Ok(ImageId::from_bytes(row.get(0)?)))? {
            Some(id) => self.image(id),
            None => Ok(None),
        }
    }

    /// An image by an id that it has, or had before it became another.
    pub(crate) fn image_or_alias(&self, id: ImageId) -> Result<Option<Image>, Refusal> {
        match self.image(id)? {
            Some(image) => Ok(Some(image)),
            None => self.became(id)?.map_or(Ok(None), |became| self.image(became)),
        }
    }

    /// What an image became, if it became another.
    pub(crate) fn became(&self, id: ImageId) -> Result<Option<ImageId>, Refusal> {
        let sql = "SELECT became FROM alias WHERE image = ?1";
        self.one(sql, [id.as_bytes()], |row| Ok(ImageId::from_bytes(row.get(0)?)))
    }

    /// The content that has these bytes, if one is known.
    pub(crate) fn content_of(
        &self,
        size_bytes: u64,
        hashes: &Hashes,
    ) -> Result<Option<ContentId>, Refusal> {
        let sql = "SELECT id FROM content WHERE sha256 = ?1 AND blake3 = ?2 AND size_bytes = ?3";
        let params = (hashes.sha256.as_bytes(), hashes.blake3.as_bytes(), sql_int(size_bytes));
        self.one(sql, params, |row| Ok(ContentId::from_bytes(row.get(0)?)))
    }

    /// The images with a content, oldest first.
    pub(crate) fn images_of(&self, content: ContentId) -> Result<Vec<Image>, Refusal> {
        let sql = format!("{IMAGE} WHERE content = ?1 ORDER BY ino");
        let images = self.all(&sql, [content.as_bytes()], image_of)?.into_iter();
        images.filter_map(|image| self.with_replicas(Some(image)).transpose()).collect()
    }

    /// Other images with the same content, some of them where there are many.
    pub(crate) fn twins(&self, of: &Image) -> Result<Vec<Image>, Refusal> {
        let sql = format!("{IMAGE} WHERE content = ?1 AND image.id != ?2 ORDER BY ino LIMIT ?3");
        let params = (of.content.as_bytes(), of.id.as_bytes(), TWINS_MAX);
        let twins = self.all(&sql, params, image_of)?.into_iter();
        twins.filter_map(|twin| self.with_replicas(Some(twin)).transpose()).collect()
    }

    fn with_replicas(&self, image: Option<Image>) -> Result<Option<Image>, Refusal> {
        let Some(mut image) = image else { return Ok(None) };
        let sql = format!("{REPLICA} WHERE image = ?1 ORDER BY volume, path");
        image.replicas = self.all(&sql, [image.id.as_bytes()], replica_of)?;
        let sql = format!("{FLAT_NAME} WHERE image = ?1 ORDER BY rank");
        image.flat_names = self.all(&sql, [image.id.as_bytes()], flat_name_of)?;
        Ok(Some(image))
    }

    /// Whether a flat name is some image's.
    pub(crate) fn is_flat_name(&self, name: &EntryName) -> Result<bool, Refusal> {
        let sql = "SELECT 1 FROM flat_name WHERE name = ?1";
        Ok(self.one(sql, [name.as_str()], |_| Ok(()))?.is_some())
    }

    /// Some images that have no flat name, by their ids, behind one of them.
    pub(crate) fn images_without_flat_name(
        &self,
        after: Option<ImageId>,
    ) -> Result<Vec<ImageId>, Refusal> {
        let sql = "SELECT id FROM image WHERE id > ?1
                   AND NOT EXISTS (SELECT 1 FROM flat_name WHERE image = image.id)
                   ORDER BY id LIMIT ?2";
        let after = after.map(|it| it.as_bytes().to_vec()).unwrap_or_default();
        let most = i64::try_from(PIECE_RECORDS).unwrap_or(i64::MAX);
        self.all(sql, (after, most), |row| Ok(ImageId::from_bytes(row.get(0)?)))
    }

    /// Images merged with their replicas and names: sorted cursors instead of queries an image.
    pub(super) fn image_pieces(
        &self,
        take: &mut impl FnMut(Vec<Record>) -> bool,
    ) -> Result<bool, Refusal> {
        let mut images = self.db.prepare(&format!("{IMAGE} ORDER BY image.id")).map_err(storage)?;
        let mut replicas =
            self.db.prepare(&format!("{REPLICA} ORDER BY image, volume, path")).map_err(storage)?;
        let mut replicas = replicas
            .query_map([], |row| Ok((ImageId::from_bytes(row.get(5)?), replica_of(row)?)))
            .map_err(storage)?
            .peekable();
        let mut names =
            self.db.prepare(&format!("{FLAT_NAME} ORDER BY image, rank")).map_err(storage)?;
        let mut names = names
            .query_map([], |row| Ok((ImageId::from_bytes(row.get(1)?), flat_name_of(row)?)))
            .map_err(storage)?
            .peekable();
        let mut piece = Vec::with_capacity(PIECE_RECORDS);
        for image in images.query_map([], image_of).map_err(storage)? {
            let mut image = image.map_err(storage)?;
            while let Some(next) =
                replicas.next_if(|next| next.as_ref().map_or(true, |(owner, _)| *owner == image.id))
            {
                image.replicas.push(next.map_err(storage)?.1);
            }
            while let Some(next) =
                names.next_if(|next| next.as_ref().map_or(true, |(owner, _)| *owner == image.id))
            {
                image.flat_names.push(next.map_err(storage)?.1);
            }
            piece.push(Record::Image(image));
            if piece.len() == PIECE_RECORDS && !take(std::mem::take(&mut piece)) {
                return Ok(false);
            }
        }
        Ok(piece.is_empty() || take(piece))
    }
}

fn flat_name_of(row: &Row<'_>) -> rusqlite::Result<EntryName> {
    parsed(row, 0, |name: String| EntryName::parse(&name))
}

fn replica_of(row: &Row<'_>) -> rusqlite::Result<Replica> {
    Ok(Replica {
        volume: VolumeId::from_bytes(row.get(0)?),
        path: parsed(row, 1, |path: String| VolumePath::parse(&path))?,
        stamp: Stamp {
            inode: sql_uint(row, 2)?,
            size_bytes: sql_uint(row, 3)?,
            mtime_ns: row.get(4)?,
        },
        checked: known(row, 6, |bytes: Vec<u8>| decode_checked(&bytes))?,
    })
}

/// Without its replicas and flat names.
fn image_of(row: &Row<'_>) -> rusqlite::Result<Image> {
    Ok(Image {
        id: ImageId::from_bytes(row.get(0)?),
        ino: Ino(sql_uint(row, 1)?),
        content: ContentId::from_bytes(row.get(2)?),
        filename: row.get(3)?,
        size_bytes: sql_uint(row, 4)?,
        format: row.get::<_, Stored<ImageFormat>>(5)?.0,
        os: Os {
            family: row.get::<_, Stored<OsFamily>>(6)?.0,
            distribution: row.get(7)?,
            version: row.get(8)?,
            arch: row.get(9)?,
        },
        mode: row.get(10)?,
        created: Timestamp(row.get(11)?),
        modified: Timestamp(row.get(12)?),
        changed: Timestamp(row.get(13)?),
        facts: known(row, 14, |bytes: Vec<u8>| decode_facts(&bytes).map(Box::new))?,
        hashes: hashes_of(row, 15)?,
        flat_names: Vec::new(),
        replicas: Vec::new(),
    })
}

/// What may not be known yet.
fn known<S, T, E>(
    row: &Row<'_>,
    column: usize,
    parse: impl Fn(S) -> Result<T, E>,
) -> rusqlite::Result<Option<T>>
where
    S: FromSql,
    E: std::error::Error + Send + Sync + 'static,
{
    if row.get_ref(column)? == ValueRef::Null {
        return Ok(None);
    }
    parsed(row, column, parse).map(Some)
}

/// Both hashes, or neither.
fn hashes_of(row: &Row<'_>, sha256: usize) -> rusqlite::Result<Option<Hashes>> {
    let (sha256, blake3) = (row.get::<_, Option<_>>(sha256)?, row.get::<_, Option<_>>(sha256 + 1)?);
    Ok(sha256.zip(blake3).map(|(sha256, blake3)| Hashes {
        sha256: Sha256::from_bytes(sha256),
        blake3: Blake3::from_bytes(blake3),
    }))
}
