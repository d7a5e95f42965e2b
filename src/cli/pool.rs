//! `isotope pool`.

use clap::{Args, Subcommand};
use isotope_proto::cluster::{Volume, VolumeState};
use serde::Serialize;

use super::Context;
use crate::client::Status;
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
    let PoolCommand::Ls = args.command;
    let status = context.connect().await?.status().await?;
    let volumes = VolumeJson::all(&status);
    match context.format {
        Format::Json => volumes.iter().for_each(output::json),
        Format::Text => print(&volumes),
    }
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
