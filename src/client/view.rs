//! Entries as commands show them; the JSON keys are the API's field names.

use isotope_proto::facts::Facts;
use isotope_proto::image::{Image, Os};
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
    /// Of an image that was asked for by itself: all its paths, the oldest first.
    pub(crate) paths: Vec<String>,
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
            paths: listing.paths,
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
            paths: self.paths.clone(),
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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    paths: Vec<String>,
    #[serde(flatten)]
    image: Option<ImageJson>,
}

#[derive(Debug, Serialize)]
struct ImageJson {
    id: String,
    size_bytes: u64,
    format: String,
    filename: String,
    /// Its names in the flat views.
    flat_names: Vec<String>,
    os: OsJson,
    #[serde(skip_serializing_if = "Option::is_none")]
    facts: Option<FactsJson>,
    create_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blake3: Option<String>,
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
struct FactsJson {
    volume_label: String,
    system_id: String,
    publisher_id: String,
    application_id: String,
    volume_size_bytes: u64,
    joliet: bool,
    rock_ridge: bool,
    udf: bool,
    boots_bios: bool,
    boots_uefi: bool,
    partition_table: Option<String>,
    virtual_size_bytes: u64,
    appliance: Option<ApplianceJson>,
    markers: Vec<MarkerJson>,
    candidates: Vec<CandidateJson>,
    database: String,
    problem: Option<String>,
}

#[derive(Debug, Serialize)]
struct ApplianceJson {
    name: String,
    os: String,
    memory_bytes: u64,
    disks: Vec<DiskJson>,
}

#[derive(Debug, Serialize)]
struct DiskJson {
    name: String,
    capacity_bytes: u64,
}

#[derive(Debug, Serialize)]
struct MarkerJson {
    path: String,
    text: String,
}

#[derive(Debug, Serialize)]
struct CandidateJson {
    name: String,
    os: OsJson,
    source: String,
}

#[derive(Debug, Serialize)]
struct ReplicaJson {
    volume_id: String,
    path: String,
    size_bytes: u64,
    mtime_ns: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    verified_at: Option<String>,
    rotten: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    published: Option<PublishedJson>,
}

#[derive(Debug, Serialize)]
struct PublishedJson {
    file: String,
    agrees: bool,
}

impl ImageJson {
    fn of(image: &Image) -> Self {
        let replicas = image.replicas.iter().map(|replica| ReplicaJson {
            volume_id: replica.volume.to_string(),
            path: replica.path.to_string(),
            size_bytes: replica.stamp.size_bytes,
            mtime_ns: replica.stamp.mtime_ns,
            verified_at: replica.checked.as_ref().map(|it| output::time(it.read)),
            rotten: replica.is_rotten(),
            published: replica
                .checked
                .as_ref()
                .and_then(|it| it.published.as_ref())
                .map(|it| PublishedJson { file: it.file.clone(), agrees: it.agrees }),
        });
        Self {
            id: image.id.to_string(),
            size_bytes: image.size_bytes,
            format: image.format.to_string(),
            filename: image.filename.clone(),
            flat_names: image.flat_names.iter().map(ToString::to_string).collect(),
            os: OsJson::of(&image.os),
            facts: image.facts.as_deref().map(FactsJson::of),
            create_time: output::time(image.created),
            sha256: image.hashes.map(|it| it.sha256.to_string()),
            blake3: image.hashes.map(|it| it.blake3.to_string()),
            replicas: replicas.collect(),
        }
    }
}

impl OsJson {
    fn of(os: &Os) -> Self {
        Self {
            family: os.family.to_string(),
            distribution: os.distribution.clone(),
            version: os.version.clone(),
            arch: os.arch.clone(),
        }
    }
}

impl FactsJson {
    fn of(facts: &Facts) -> Self {
        let appliance = facts.appliance.as_ref().map(|it| ApplianceJson {
            name: it.name.clone(),
            os: it.os.clone(),
            memory_bytes: it.memory_bytes,
            disks: it
                .disks
                .iter()
                .map(|it| DiskJson { name: it.name.clone(), capacity_bytes: it.capacity_bytes })
                .collect(),
        });
        let markers = facts
            .markers
            .iter()
            .map(|it| MarkerJson { path: it.path.clone(), text: it.text.clone() });
        let candidates = facts.candidates.iter().map(|it| CandidateJson {
            name: it.name.clone(),
            os: OsJson::of(&it.os),
            source: it.source.to_string(),
        });
        Self {
            volume_label: facts.volume_label.clone(),
            system_id: facts.system_id.clone(),
            publisher_id: facts.publisher_id.clone(),
            application_id: facts.application_id.clone(),
            volume_size_bytes: facts.volume_size_bytes,
            joliet: facts.extensions.joliet,
            rock_ridge: facts.extensions.rock_ridge,
            udf: facts.extensions.udf,
            boots_bios: facts.boot.bios,
            boots_uefi: facts.boot.uefi,
            partition_table: facts.partitions.map(|it| it.to_string()),
            virtual_size_bytes: facts.virtual_size_bytes,
            appliance,
            markers: markers.collect(),
            candidates: candidates.collect(),
            database: facts.database.clone(),
            problem: facts.problem.clone(),
        }
    }
}
