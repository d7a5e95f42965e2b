//! `isotope node`.

use clap::{Args, Subcommand};
use isotope_proto::cluster::Node;
use isotope_proto::pb;
use isotope_proto::refusal::Refusal;
use serde::Serialize;

use super::Context;
use crate::client::{Client, Status, limited};
use crate::output::{self, Format};

/// The hosts that run an agent
#[derive(Debug, Args)]
pub(super) struct NodeArgs {
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    /// List nodes, and whether they are connected
    Ls,
    /// Call a node something else
    Rename {
        /// Its name or id
        node: String,
        name: String,
    },
    /// Forget a node that is gone for good; its volumes and their images stay in the library
    Remove {
        /// Its name or id
        node: String,
    },
}

#[derive(Debug, Serialize)]
pub(super) struct NodeJson {
    id: String,
    name: String,
    address: String,
    connected: bool,
    volumes: usize,
}

impl NodeJson {
    pub(super) fn of(node: &Node, status: &Status) -> Self {
        let sees = |volume: &&isotope_proto::cluster::Volume| {
            volume.sights.iter().any(|sight| sight.node == node.id)
        };
        Self {
            id: node.id.to_string(),
            name: node.name.clone(),
            address: node.address.clone(),
            connected: status.connected(node.id),
            volumes: status.volumes.iter().filter(sees).count(),
        }
    }
}

pub(super) async fn cmd_node(args: &NodeArgs, context: &Context) -> anyhow::Result<()> {
    let mut client = context.connect().await?;
    match &args.command {
        NodeCommand::Ls => return list(&mut client, context).await,
        NodeCommand::Rename { node, name } => {
            let request = pb::RenameNodeRequest { node: node.clone(), name: name.clone() };
            client.cluster.rename_node(limited(request)).await.map_err(Refusal::from)?;
        }
        NodeCommand::Remove { node } => {
            let request = pb::RemoveNodeRequest { node: node.clone() };
            client.cluster.remove_node(limited(request)).await.map_err(Refusal::from)?;
        }
    }
    Ok(())
}

async fn list(client: &mut Client, context: &Context) -> anyhow::Result<()> {
    let status = client.status().await?;
    let nodes = status.nodes.iter().map(|node| NodeJson::of(node, &status));
    match context.format {
        Format::Json => nodes.for_each(|node| output::json(&node)),
        Format::Text => print(nodes),
    }
    Ok(())
}

pub(super) fn print(nodes: impl Iterator<Item = NodeJson>) {
    let row = |node: NodeJson| {
        let state = if node.connected { "connected" } else { "not connected" };
        vec![node.name, state.to_owned(), node.address, node.volumes.to_string(), node.id]
    };
    output::table(
        &["NODE", "STATE", "ADDRESS", "VOLUMES", "ID"],
        &nodes.map(row).collect::<Vec<_>>(),
    );
}
