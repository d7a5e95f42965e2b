//! `isotope rm`.

use clap::Args;
use isotope_proto::pb;
use isotope_proto::refusal::Refusal;

use super::Context;
use crate::client::{library_path, limited, place, request_id};

/// Delete images; they can be had back from the trash for seven days
#[derive(Debug, Args)]
pub(super) struct RmArgs {
    /// Paths of the library, or on a mount
    #[arg(required = true)]
    paths: Vec<String>,
}

pub(super) async fn cmd_rm(args: &RmArgs, context: &Context) -> anyhow::Result<()> {
    let mut client = context.connect().await?;
    for path in &args.paths {
        let place = place(&library_path(path)?)?;
        let request = pb::RemoveRequest { request_id: request_id(), place: Some(place) };
        client.library.remove(limited(request)).await.map_err(Refusal::from)?;
    }
    Ok(())
}
