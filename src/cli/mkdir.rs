//! `isotope mkdir`.

use clap::Args;
use isotope_proto::name::LibraryPath;
use isotope_proto::pb;
use isotope_proto::refusal::{Reason, Refusal};

use super::Context;
use crate::client::{Client, library_path, limited, place, request_id};

/// Make folders in the library
#[derive(Debug, Args)]
pub(super) struct MkdirArgs {
    /// Paths of the library, or on a mount
    #[arg(required = true)]
    paths: Vec<String>,
    /// Make missing folders above, and do not mind existing ones
    #[arg(short, long)]
    parents: bool,
}

pub(super) async fn cmd_mkdir(args: &MkdirArgs, context: &Context) -> anyhow::Result<()> {
    let mut client = context.connect().await?;
    for path in &args.paths {
        let path = library_path(path)?;
        if !args.parents {
            make(&mut client, &path).await?;
            continue;
        }
        let mut above = LibraryPath::default();
        for name in path.names() {
            above = above.join(name.clone());
            match make(&mut client, &above).await {
                Err(Refusal { reason: Reason::Exists, .. }) => {}
                made => made?,
            }
        }
    }
    Ok(())
}

async fn make(client: &mut Client, path: &LibraryPath) -> Result<(), Refusal> {
    let place = place(path).map_err(|error| Refusal::new(Reason::Exists, error.to_string()))?;
    let request =
        pb::MakeFolderRequest { request_id: request_id(), place: Some(place), mode: None };
    client.library.make_folder(limited(request)).await?;
    Ok(())
}
