//! `isotope status`.

use clap::Args;
use serde::Serialize;

use super::Context;
use super::node::{self, NodeJson};
use super::pool::{self, VolumeJson};
use crate::output::{self, Format};

/// Show how the cluster is
#[derive(Debug, Args)]
pub(super) struct StatusArgs {}

#[derive(Debug, Serialize)]
struct StatusJson {
    server: String,
    version: String,
    incarnation: String,
    revision: u64,
    images: u64,
    folders: u64,
    nodes: Vec<NodeJson>,
    volumes: Vec<VolumeJson>,
    watchers: Vec<WatcherJson>,
}

#[derive(Debug, Serialize)]
struct WatcherJson {
    host: String,
    purpose: String,
}

pub(super) async fn cmd_status(_: &StatusArgs, context: &Context) -> anyhow::Result<()> {
    let status = context.connect().await?.status().await?;
    let raw = &status.raw;
    let incarnation = isotope_proto::id::Incarnation::try_from(&*raw.incarnation)?;
    let watcher = |it: &isotope_proto::pb::Watcher| WatcherJson {
        host: it.host.clone(),
        purpose: it.purpose.clone(),
    };
    let answer = StatusJson {
        server: context.server.clone(),
        version: raw.version.clone(),
        incarnation: incarnation.to_string(),
        revision: raw.revision,
        images: raw.images,
        folders: raw.folders,
        nodes: status.nodes.iter().map(|node| NodeJson::of(node, &status)).collect(),
        volumes: VolumeJson::all(&status),
        watchers: raw.watchers.iter().map(watcher).collect(),
    };
    match context.format {
        Format::Json => output::json(&answer),
        Format::Text => print(answer),
    }
    Ok(())
}

fn print(status: StatusJson) {
    let StatusJson { server, version, images, folders, revision, .. } = &status;
    output::line(&format!("catalogue {server}, version {version}, revision {revision}"));
    output::line(&format!("{images} images in {folders} folders\n"));
    node::print(status.nodes.into_iter());
    output::line("");
    pool::print(&status.volumes);
    if !status.watchers.is_empty() {
        output::line("");
        let row = |it: WatcherJson| vec![it.host, it.purpose];
        let rows: Vec<_> = status.watchers.into_iter().map(row).collect();
        output::table(&["HOST", "FOLLOWS THE FEED"], &rows);
    }
}
