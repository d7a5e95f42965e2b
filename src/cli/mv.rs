//! `isotope mv`.

use clap::Args;
use isotope_proto::pb;
use isotope_proto::refusal::Refusal;

use super::Context;
use crate::client::{library_path, limited, place, request_id};
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
    let into = client.find(&target).await?.is_some_and(|item| item.is_folder());
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
