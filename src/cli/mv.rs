//! `isotope mv`.

use clap::Args;
use isotope_proto::name::LibraryPath;
use isotope_proto::pb::{self, stat_request::Target};
use isotope_proto::refusal::{Reason, Refusal};

use super::Context;
use crate::client::{Client, library_path, limited, place, request_id};
use crate::exit::Usage;

/// Rename a folder or image, or move several into a folder; no byte is moved
#[derive(Debug, Args)]
pub(super) struct MvArgs {
    /// What to move, then where to: a folder, or for one source a new name
    #[arg(required = true, num_args = 2.., value_names = ["SOURCE", "TARGET"])]
    paths: Vec<String>,
}

pub(super) async fn cmd_mv(args: &MvArgs, context: &Context) -> anyhow::Result<()> {
    let (target, sources) = args.paths.split_last().expect("clap asks for two");
    let target = library_path(target)?;
    let mut client = context.connect().await?;
    let into = is_folder(&mut client, &target).await?;
    if sources.len() > 1 && !into {
        return Err(Usage(format!("{target} is no folder to move several into")).into());
    }
    for source in sources {
        let source = library_path(source)?;
        let (_, name) =
            source.split().ok_or_else(|| Usage("the root cannot be moved".to_owned()))?;
        let target = if into { target.join(name) } else { target.clone() };
        let request = pb::RenameRequest {
            request_id: request_id(),
            from: Some(place(&source)?),
            to: Some(place(&target)?),
            mode: pb::RenameMode::NoReplace.into(),
        };
        client.library.rename(limited(request)).await.map_err(Refusal::from)?;
    }
    Ok(())
}

async fn is_folder(client: &mut Client, path: &LibraryPath) -> anyhow::Result<bool> {
    match client.stat(Target::Path(path.to_string())).await {
        Ok(item) => Ok(item.is_folder()),
        Err(error) => match error.downcast_ref::<Refusal>() {
            Some(Refusal { reason: Reason::NotFound, .. }) => Ok(false),
            _ => Err(error),
        },
    }
}
