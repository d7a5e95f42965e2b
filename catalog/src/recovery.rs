//! The library brought back from the volumes: every connected agent is asked for the copies in its
//! volumes' sidecars, and what they come to is put in the place of the library there is. It knows
//! whom to ask and what to say of those who cannot be asked; how copies are put together is not its
//! business.

use std::collections::BTreeSet;
use std::sync::Arc;

use isotope_proto::change::Record;
use isotope_proto::cluster::{Node, Pool, Volume};
use isotope_proto::id::{Incarnation, VolumeId};
use isotope_proto::refusal::Refusal;
use isotope_proto::sidecar::LibraryCopy;
use tracing::info;

use crate::Core;
use crate::hosts::Host;
use crate::rebuild::{self, Rebuilt};
use crate::store::{Outcome, Verb};

/// What was found, and done.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) logs: u64,
    pub(crate) rebuilt: Rebuilt,
    /// Changes that people have made to the library as it was.
    pub(crate) changes: u64,
    /// What could not be asked, and why.
    pub(crate) missing: Vec<String>,
    /// Of the catalogue's next life, if one was begun.
    pub(crate) incarnation: Option<Incarnation>,
}

/// Whether a rebuild is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    DryRun,
    /// Unless people have changed the library.
    IfUntouched,
    Whatever,
}

pub(crate) async fn rebuild(core: &Core, extent: Extent) -> Result<Answer, Refusal> {
    let nodes = core.store.read(|rows| rows.nodes()).await?;
    let (copies, mut missing) = ask(core, &nodes).await;
    let copies = Arc::new(copies);
    let told = Arc::clone(&copies);
    let (rebuilt, changes) = core
        .store
        .read(move |rows| {
            let rebuilt = rebuild::merge(&rows.copy()?, &told, &rows.deleted_images()?);
            Ok((rebuilt, rows.changes_by_people()?))
        })
        .await?;
    missing.extend(away(&rebuilt, &core.nodes.offers().into_keys().collect()));
    let logs = copies.len() as u64;
    let mut answer = Answer { logs, rebuilt, changes, missing, incarnation: None };
    if extent != Extent::DryRun {
        let verb = Verb::Rebuild { copies, accept: extent == Extent::Whatever };
        if let Outcome::Rebuilt(incarnation) = core.commit(None, verb).await?.outcome {
            let (folders, images) = (answer.rebuilt.folders, answer.rebuilt.images);
            info!(%incarnation, folders, images, "the library was rebuilt from the volumes");
            answer.incarnation = Some(incarnation);
        }
    }
    Ok(answer)
}

/// Asks each node for each volume that it offers: of one that nothing is written to, each has a
/// sidecar of its own.
async fn ask(core: &Core, nodes: &[Node]) -> (Vec<LibraryCopy>, Vec<String>) {
    let mut asked = tokio::task::JoinSet::new();
    for (volume, seeing) in core.nodes.offers() {
        for node in nodes.iter().filter(|node| seeing.contains(&node.id)).cloned() {
            asked.spawn(async move {
                let read = async { Host::connect(&node).await?.read_sidecar(volume).await };
                (node.name.clone(), volume, read.await)
            });
        }
    }
    let (mut copies, mut missing) = (Vec::new(), Vec::new());
    while let Some(answered) = asked.join_next().await {
        match answered {
            Ok((node, volume, Ok((read, problems)))) => {
                copies.extend(read);
                let tell = |why: String| format!("volume {volume} on {node}: {why}");
                missing.extend(problems.into_iter().map(tell));
            }
            Ok((_, volume, Err(refusal))) => missing.push(format!("volume {volume}: {refusal}")),
            Err(error) => missing.push(error.to_string()),
        }
    }
    missing.sort_unstable();
    (copies, missing)
}

/// Volumes that the library knows and nobody offers.
fn away(rebuilt: &Rebuilt, offered: &BTreeSet<VolumeId>) -> Vec<String> {
    let (mut nodes, mut pools, mut volumes) =
        (Vec::<&Node>::new(), Vec::<&Pool>::new(), Vec::<&Volume>::new());
    for record in &rebuilt.records {
        match record {
            Record::Node(it) => nodes.push(it),
            Record::Pool(it) => pools.push(it),
            Record::Volume(it) if !offered.contains(&it.id) => volumes.push(it),
            Record::Volume(_) | Record::Folder(_) | Record::Image(_) | Record::Entry(_) => {}
        }
    }
    let tell = |volume: &Volume| {
        let pool = pools.iter().find(|pool| pool.id == volume.pool).map_or("", |it| &it.name);
        let place = |sight: &isotope_proto::cluster::Sight| {
            let node = nodes.iter().find(|node| node.id == sight.node);
            format!("{} on {}", sight.path, node.map_or("a lost node", |node| &node.name))
        };
        let places: Vec<String> = volume.sights.iter().map(place).collect();
        let places = if places.is_empty() { volume.id.to_string() } else { places.join(", ") };
        format!("pool {pool}: {places} is offline, or its node not connected")
    };
    volumes.into_iter().map(tell).collect()
}
