//! Entries as commands show them; the JSON keys are the API's field names.

use isotope_proto::image::Image;
use isotope_proto::name::LibraryPath;
use isotope_proto::pb::{self, listing};
use isotope_proto::tree::{Entry, Folder};
use isotope_proto::wire::Malformed;
use serde::Serialize;

use crate::output;

/// A folder or an image, and where it is.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) path: LibraryPath,
    pub(crate) entry: Option<Entry>,
    pub(crate) kind: ItemKind,
    /// Of one that was asked for by itself: others with its bytes.
    pub(crate) twins: Vec<Image>,
}

#[derive(Debug, Clone)]
pub(crate) enum ItemKind {
    Folder(Folder),
    Image(Box<Image>),
}

impl TryFrom<pb::Listing> for Item {
    type Error = Malformed;
    fn try_from(listing: pb::Listing) -> Result<Self, Malformed> {
        Ok(Self {
            path: listing.path.parse()?,
            twins: listing.twins.into_iter().map(Image::try_from).collect::<Result<_, _>>()?,
            entry: listing.entry.map(Entry::try_from).transpose()?,
            kind: match listing.node.ok_or(Malformed::Missing("node"))? {
                listing::Node::Folder(folder) => ItemKind::Folder(folder.try_into()?),
                listing::Node::Image(image) => ItemKind::Image(Box::new(image.try_into()?)),
            },
        })
    }
}

impl Item {
    /// The last part of its path; `/` for the root.
    pub(crate) fn name(&self) -> &str {
        self.entry.as_ref().map_or("/", |entry| entry.name.as_str())
    }

    pub(crate) fn is_folder(&self) -> bool {
        matches!(self.kind, ItemKind::Folder(_))
    }

    pub(crate) fn to_json(&self) -> ItemJson {
        let (kind, ino, mode, modified, image) = match &self.kind {
            ItemKind::Folder(it) => ("folder", it.ino, it.mode, it.modified, None),
            ItemKind::Image(it) => ("image", it.ino, it.mode, it.modified, Some(&**it)),
        };
        ItemJson {
            path: self.path.to_string(),
            name: self.name().to_owned(),
            kind,
            ino: ino.0,
            mode: format!("{mode:04o}"),
            modify_time: output::time(modified),
            image: image.map(ImageJson::of),
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct ItemJson {
    path: String,
    name: String,
    kind: &'static str,
    ino: u64,
    mode: String,
    modify_time: String,
    #[serde(flatten)]
    image: Option<ImageJson>,
}

#[derive(Debug, Serialize)]
struct ImageJson {
    id: String,
    size_bytes: u64,
    format: String,
    filename: String,
    os: OsJson,
    create_time: String,
    replicas: Vec<ReplicaJson>,
}

#[derive(Debug, Serialize)]
struct OsJson {
    family: String,
    distribution: String,
    version: String,
    arch: String,
}

#[derive(Debug, Serialize)]
struct ReplicaJson {
    volume_id: String,
    path: String,
    size_bytes: u64,
    mtime_ns: i64,
}

impl ImageJson {
    fn of(image: &Image) -> Self {
        let replicas = image.replicas.iter().map(|replica| ReplicaJson {
            volume_id: replica.volume.to_string(),
            path: replica.path.to_string(),
            size_bytes: replica.stamp.size_bytes,
            mtime_ns: replica.stamp.mtime_ns,
        });
        Self {
            id: image.id.to_string(),
            size_bytes: image.size_bytes,
            format: image.format.to_string(),
            filename: image.filename.clone(),
            os: OsJson {
                family: image.os.family.to_string(),
                distribution: image.os.distribution.clone(),
                version: image.os.version.clone(),
                arch: image.os.arch.clone(),
            },
            create_time: output::time(image.created),
            replicas: replicas.collect(),
        }
    }
}
