//! `isotope rmdir`.

use clap::Args;
use isotope_proto::pb;
use isotope_proto::refusal::Refusal;

use super::Context;
use crate::client::{library_path, limited, place, request_id};

/// Remove empty folders of the library
#[derive(Debug, Args)]
pub(super) struct RmdirArgs {
    /// Paths of the library, or on a mount
    #[arg(required = true)]
    paths: Vec<String>,
}

pub(super) async fn cmd_rmdir(args: &RmdirArgs, context: &Context) -> anyhow::Result<()> {
    let mut client = context.connect().await?;
    for path in &args.paths {
        let place = place(&library_path(path)?)?;
        let request = pb::RemoveFolderRequest { request_id: request_id(), place: Some(place) };
        client.library.remove_folder(limited(request)).await.map_err(Refusal::from)?;
    }
    Ok(())
}
