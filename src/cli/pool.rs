//! `isotope pool`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use isotope_proto::cluster::{Volume, VolumeState};
use isotope_proto::id::VolumeId;
use isotope_proto::name::FolderPath;
use isotope_proto::pb;
use isotope_proto::refusal::Refusal;
use isotope_proto::tree::FolderRef;
use serde::Serialize;

use super::{Context, daemon};
use crate::client::{Status, library_path, limited, request_id};
use crate::exit::Usage;
use crate::output::{self, Format};

/// The places where images lie
#[derive(Debug, Args)]
pub(super) struct PoolArgs {
    #[command(subcommand)]
    command: PoolCommand,
}

#[derive(Debug, Subcommand)]
enum PoolCommand {
    /// List the pools' volumes, where they are and whether they can be used
    Ls,
    /// Use a directory as a new pool, on this host or on others
    ///
    /// The images already in it appear in the library by themselves. Its files stay what and where
    /// they are.
    Add {
        name: String,
        #[command(flatten)]
        directory: DirectoryArgs,
    },
    /// Use one more directory for a pool: another host's, or a shared one that another host sees
    Attach {
        name: String,
        #[command(flatten)]
        directory: DirectoryArgs,
    },
    /// Say which nodes are to work on a pool, best first; none: any that sees it
    Assign {
        name: String,
        /// Names or ids
        nodes: Vec<String>,
    },
    /// Call a pool something else
    Rename { name: String, to: String },
    /// Take a pool out of the library; its files stay where they are
    Remove {
        name: String,
        /// Even if a node that sees it is not connected: it would bring the pool back
        #[arg(long)]
        force: bool,
        /// Say how many images would leave the library, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Show or set the pool for what is stored in a folder and below it
    ///
    /// It holds for all folders below that have none of their own. Where it cannot take a file, or
    /// there is none, a pool of the writer's host does, else the one with most room.
    Default {
        /// A path of the library, or on a mount
        folder: String,
        /// The pool from now on
        #[arg(conflicts_with = "clear")]
        pool: Option<String>,
        /// From now on none of its own
        #[arg(long)]
        clear: bool,
    },
}

#[derive(Debug, Args)]
struct DirectoryArgs {
    /// The pool's directory on each of the nodes
    dir: PathBuf,
    /// Where in it the images lie [default: iso]
    #[arg(long = "dir", value_name = "SUBDIRECTORY")]
    image_dir: Option<String>,
    /// Take files of these names, as *.iso, whatever their kind [default: *.iso, *.img, *.ova]
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// Never write to it: its marker and index lie with the agent
    #[arg(long)]
    read_only: bool,
    /// On this node, a name or id [default: this host]
    #[arg(long)]
    node: Vec<String>,
    /// Say what would be taken, and do nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Serialize)]
struct AddedJson {
    pool: String,
    node: String,
    dir: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    volume_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    images: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_bytes: Option<u64>,
    not_taken: Vec<NotTakenJson>,
}

#[derive(Debug, Serialize)]
struct NotTakenJson {
    path: String,
    reason: String,
}

#[derive(Debug, Serialize)]
struct RemovedJson {
    images: u64,
    dry_run: bool,
}

#[derive(Debug, Serialize)]
struct DefaultJson {
    folder: String,
    pool: Option<String>,
    /// The folder that it is set on.
    from: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct VolumeJson {
    pool: String,
    volume_id: String,
    nodes: Vec<SightJson>,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    images: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    capacity_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    available_bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
struct SightJson {
    node: String,
    path: String,
}

impl VolumeJson {
    fn of(volume: &Volume, images: u64, status: &Status) -> Self {
        let (state, reason, space) = match status.volume_state(volume) {
            VolumeState::Online(space) => ("online", None, Some(space)),
            VolumeState::Offline(reason) => ("offline", Some(reason), None),
        };
        let sight = |sight: &isotope_proto::cluster::Sight| SightJson {
            node: status.node_name(sight.node),
            path: sight.path.clone(),
        };
        Self {
            pool: status.pool_name(volume.pool).to_owned(),
            volume_id: volume.id.to_string(),
            nodes: volume.sights.iter().map(sight).collect(),
            state,
            reason,
            images,
            capacity_bytes: space.as_ref().map(|space| space.capacity_bytes),
            available_bytes: space.as_ref().map(|space| space.available_bytes),
        }
    }

    pub(super) fn all(status: &Status) -> Vec<Self> {
        let counts = status.raw.volume_images.iter().copied().chain(std::iter::repeat(0));
        let volumes = status.volumes.iter().zip(counts);
        let mut all: Vec<Self> =
            volumes.map(|(volume, images)| Self::of(volume, images, status)).collect();
        all.sort_by(|a, b| (&a.pool, &a.volume_id).cmp(&(&b.pool, &b.volume_id)));
        all
    }
}

pub(super) async fn cmd_pool(args: &PoolArgs, context: &Context) -> anyhow::Result<()> {
    match &args.command {
        PoolCommand::Ls => list(context).await,
        PoolCommand::Add { name, directory } => add(name, directory, false, context).await,
        PoolCommand::Attach { name, directory } => add(name, directory, true, context).await,
        PoolCommand::Assign { name, nodes } => {
            let request = pb::AssignPoolRequest { pool: name.clone(), nodes: nodes.clone() };
            let mut client = context.connect().await?;
            client.cluster.assign_pool(limited(request)).await.map_err(Refusal::from)?;
            Ok(())
        }
        PoolCommand::Rename { name, to } => {
            let request = pb::RenamePoolRequest { pool: name.clone(), name: to.clone() };
            let mut client = context.connect().await?;
            client.cluster.rename_pool(limited(request)).await.map_err(Refusal::from)?;
            Ok(())
        }
        PoolCommand::Remove { name, force, dry_run } => {
            remove(name, *force, *dry_run, context).await
        }
        PoolCommand::Default { folder, pool: None, clear: false } => {
            show_default(folder, context).await
        }
        PoolCommand::Default { folder, pool, .. } => set_default(folder, pool, context).await,
    }
}

async fn add(
    name: &str,
    args: &DirectoryArgs,
    attach: bool,
    context: &Context,
) -> anyhow::Result<()> {
    let dir = std::path::absolute(&args.dir).context("finding the current directory")?;
    let dir = dir.to_str().ok_or_else(|| Usage("the directory's name is not UTF-8".to_owned()))?;
    let said = args.image_dir.is_some() || !args.include.is_empty() || args.read_only;
    let layout = said.then(|| pb::Layout {
        dir: args.image_dir.clone().unwrap_or_default(),
        include: args.include.clone(),
        read_only: args.read_only,
    });
    let request = pb::AddPoolRequest {
        pool: name.to_owned(),
        dir: dir.to_owned(),
        layout,
        nodes: args.node.clone(),
        host: daemon::host_name(),
        attach,
        dry_run: args.dry_run,
    };
    let mut client = context.connect().await?;
    // A large directory takes a while to be walked.
    let added = client.cluster.add_pool(request).await.map_err(Refusal::from)?.into_inner();
    for it in added.volumes {
        let not_taken = it.not_taken.into_iter();
        let counted = |count| args.dry_run.then_some(count);
        let added = AddedJson {
            pool: name.to_owned(),
            node: it.node,
            dir: dir.to_owned(),
            volume_id: VolumeId::try_from(&*it.volume_id)
                .map_or_else(|_| String::new(), |id| id.to_string()),
            images: counted(it.images),
            size_bytes: counted(it.size_bytes),
            not_taken: not_taken
                .map(|it| NotTakenJson { path: it.path, reason: it.reason })
                .collect(),
        };
        match context.format {
            Format::Json => output::json(&added),
            Format::Text => added.print(),
        }
    }
    Ok(())
}

impl AddedJson {
    fn print(&self) {
        let Self { pool, node, dir, .. } = self;
        let line = match (self.images, self.size_bytes) {
            (Some(images), Some(size)) => {
                let size = output::bytes(size);
                format!("would use {dir} on {node} for {pool}: {images} images, {size}")
            }
            _ => format!("{pool} uses {dir} on {node}"),
        };
        output::line(&output::plain(&line));
        for NotTakenJson { path, reason } in &self.not_taken {
            output::note(&format!("  would not be taken: {path}: {reason}"));
        }
    }
}

async fn remove(name: &str, force: bool, dry_run: bool, context: &Context) -> anyhow::Result<()> {
    let request = pb::RemovePoolRequest { pool: name.to_owned(), force, dry_run };
    let mut client = context.connect().await?;
    let removed = client.cluster.remove_pool(request).await.map_err(Refusal::from)?.into_inner();
    let images = removed.images;
    match (context.format, dry_run) {
        (Format::Json, _) => output::json(&RemovedJson { images, dry_run }),
        (Format::Text, true) => {
            output::line(&format!("{images} images would leave the library; no file is touched"));
        }
        (Format::Text, false) => {
            output::line(&format!("{images} images have left the library; no file was touched"));
        }
    }
    Ok(())
}

async fn list(context: &Context) -> anyhow::Result<()> {
    let status = context.connect().await?.status().await?;
    let volumes = VolumeJson::all(&status);
    match context.format {
        Format::Json => volumes.iter().for_each(output::json),
        Format::Text => print(&volumes),
    }
    Ok(())
}

fn folder_ref(folder: &str) -> anyhow::Result<pb::FolderRef> {
    let path: FolderPath = library_path(folder)?.to_string().parse()?;
    Ok(FolderRef::Path(path).into())
}

async fn set_default(folder: &str, pool: &Option<String>, context: &Context) -> anyhow::Result<()> {
    let request = pb::SetDefaultPoolRequest {
        request_id: request_id(),
        folder: Some(folder_ref(folder)?),
        pool: pool.clone(),
    };
    let mut client = context.connect().await?;
    client.library.set_default_pool(limited(request)).await.map_err(Refusal::from)?;
    Ok(())
}

async fn show_default(folder: &str, context: &Context) -> anyhow::Result<()> {
    let request = pb::GetDefaultPoolRequest { folder: Some(folder_ref(folder)?) };
    let mut client = context.connect().await?;
    let found = client.library.get_default_pool(limited(request)).await.map_err(Refusal::from)?;
    let pb::DefaultPool { folder, pool, from } = found.into_inner();
    if context.format == Format::Json {
        output::json(&DefaultJson { folder, pool, from });
        return Ok(());
    }
    let line = match (pool, from) {
        (Some(pool), Some(from)) if from != folder => format!("{pool}, from {from}"),
        (Some(pool), _) => pool,
        (None, _) => {
            "none: a pool of the writer's host is taken, else the one with most room".to_owned()
        }
    };
    output::line(&output::plain(&line));
    Ok(())
}

pub(super) fn print(volumes: &[VolumeJson]) {
    let row = |volume: &VolumeJson| {
        let sight = |sight: &SightJson| format!("{}:{}", sight.node, sight.path);
        let free = volume.available_bytes.map(output::bytes).unwrap_or_default();
        let state = match &volume.reason {
            Some(reason) => format!("offline: {reason}"),
            None => "online".to_owned(),
        };
        let places = volume.nodes.iter().map(sight).collect::<Vec<_>>().join(", ");
        vec![volume.pool.clone(), volume.images.to_string(), free, places, state]
    };
    output::table(
        &["POOL", "IMAGES", "AVAILABLE", "WHERE", "STATE"],
        &volumes.iter().map(row).collect::<Vec<_>>(),
    );
}
