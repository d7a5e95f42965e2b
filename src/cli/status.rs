//! `isotope status`: what the catalogue says of the cluster, and the mounts of this host of
//! themselves.

use clap::Args;
use serde::Serialize;

use super::Context;
use super::mounts::{self, MountJson};
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
    /// What has yet to be hashed.
    backlog: BacklogJson,
    watchers: Vec<WatcherJson>,
    mounts: Vec<MountJson>,
}

/// What is left to tell while the catalogue is away.
#[derive(Debug, Serialize)]
struct AwayJson<'a> {
    server: &'a str,
    mounts: Vec<MountJson>,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct BacklogJson {
    files: u64,
    size_bytes: u64,
    bytes_per_second: u64,
}

impl BacklogJson {
    pub(super) fn sum<'a>(all: impl Iterator<Item = &'a isotope_proto::pb::Backlog>) -> Self {
        all.fold(Self::default(), |sum, it| Self {
            files: sum.files + it.files,
            size_bytes: sum.size_bytes + it.size_bytes,
            bytes_per_second: sum.bytes_per_second + it.bytes_per_second,
        })
    }

    /// In words, with the time that it will take.
    pub(super) fn told(&self) -> String {
        let Self { files, size_bytes, bytes_per_second } = *self;
        match files {
            0 => "all hashed".to_owned(),
            _ => format!(
                "{files} to be hashed, {}{}",
                output::bytes(size_bytes),
                output::time_left(size_bytes, bytes_per_second)
            ),
        }
    }
}

#[derive(Debug, Serialize)]
struct WatcherJson {
    host: String,
    purpose: String,
}

pub(super) async fn cmd_status(_: &StatusArgs, context: &Context) -> anyhow::Result<()> {
    let asked = tokio::task::spawn_blocking(mounts::all);
    let status = match context.connect().await {
        Ok(mut client) => client.status().await,
        Err(error) => Err(error),
    };
    let mounts = asked.await?;
    let status = match status {
        Ok(status) => status,
        Err(error) => {
            match context.format {
                Format::Json => output::json(&AwayJson { server: &context.server, mounts }),
                Format::Text => mounts::print(mounts),
            }
            return Err(error);
        }
    };
    let raw = &status.raw;
    let incarnation = isotope_proto::id::Incarnation::try_from(&*raw.incarnation)?;
    let watcher = |it: &isotope_proto::pb::Watcher| WatcherJson {
        host: it.host.clone(),
        purpose: it.purpose.clone(),
    };
    let backlog = BacklogJson::sum(raw.backlogs.iter());
    let answer = StatusJson {
        backlog,
        server: context.server.clone(),
        version: raw.version.clone(),
        incarnation: incarnation.to_string(),
        revision: raw.revision,
        images: raw.images,
        folders: raw.folders,
        nodes: status.nodes.iter().map(|node| NodeJson::of(node, &status)).collect(),
        volumes: VolumeJson::all(&status),
        watchers: raw.watchers.iter().map(watcher).collect(),
        mounts,
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
    let hashed = status.backlog.told();
    output::line(&format!("{images} images in {folders} folders; {hashed}\n"));
    node::print(status.nodes.into_iter());
    output::line("");
    pool::print(&status.volumes);
    if !status.watchers.is_empty() {
        output::line("");
        let row = |it: WatcherJson| vec![it.host, it.purpose];
        let rows: Vec<_> = status.watchers.into_iter().map(row).collect();
        output::table(&["HOST", "FOLLOWS THE FEED"], &rows);
    }
    if !status.mounts.is_empty() {
        output::line("");
        mounts::print(status.mounts);
    }
}
