//! `isotope pool`.

use clap::{Args, Subcommand};
use isotope_proto::cluster::{Volume, VolumeState};
use isotope_proto::name::FolderPath;
use isotope_proto::pb;
use isotope_proto::refusal::Refusal;
use isotope_proto::tree::FolderRef;
use serde::Serialize;

use super::Context;
use crate::client::{Status, library_path, limited, request_id};
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
        PoolCommand::Default { folder, pool: None, clear: false } => {
            show_default(folder, context).await
        }
        PoolCommand::Default { folder, pool, .. } => set_default(folder, pool, context).await,
    }
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
