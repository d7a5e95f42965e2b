//! Whether two hosts that offer a volume of one id see one directory. A marker can be copied with
//! its files; a nonce that one host has just written is read only by who sees the same disk.

use isotope_proto::cluster::Node;
use isotope_proto::id::{NodeId, VolumeId};
use isotope_proto::refusal::Refusal;
use tracing::{info, warn};

use crate::Core;
use crate::hosts::Host;

/// Whether a node may offer a volume: nobody else does, or it is the same disk.
///
/// # Errors
/// In words, that it is another disk, or that nothing could be proved; each naming the other.
pub(crate) async fn check(core: &Core, node: NodeId, volume: VolumeId) -> Result<(), String> {
    let others = core.nodes.offering(volume);
    let Some(&other) = others.iter().find(|other| **other != node) else { return Ok(()) };
    let nodes = core.store.read(move |rows| Ok((rows.node(node)?, rows.node(other)?))).await;
    let (Some(newcomer), Some(other)) = nodes.map_err(|error| error.text)? else {
        return Err("its node is not recorded yet".to_owned());
    };
    let path = core.nodes.path_of(other.id, volume).unwrap_or_default();
    let at = format!("{}:{path}", other.name);
    match prove(&newcomer, &other, volume).await {
        Ok(true) => {
            info!(%volume, node = newcomer.name, with = other.name, "shared storage");
            Ok(())
        }
        Ok(false) => {
            warn!(%volume, node = newcomer.name, other = at, "a copied marker");
            Err(format!(
                "the volume {volume} is at {at}, too, and that is another disk: its marker was \
                 copied with its files. Remove .isotope/ from the copy, and attach it anew"
            ))
        }
        Err(error) => Err(format!(
            "the volume {volume} is at {at}, too, and whether that is the same disk could not be \
             proved: {}",
            error.text
        )),
    }
}

/// Whichever of the two can write, writes; the other reads.
async fn prove(one: &Node, other: &Node, volume: VolumeId) -> Result<bool, Refusal> {
    let (mut a, mut b) = (Host::connect(one).await?, Host::connect(other).await?);
    let nonce = uuid::Uuid::new_v4().as_bytes().to_vec();
    if a.write_nonce(volume, nonce.clone()).await.is_ok() {
        return Ok(b.read_nonce(volume, one.id).await? == nonce);
    }
    b.write_nonce(volume, nonce.clone()).await?;
    Ok(a.read_nonce(volume, other.id).await? == nonce)
}
