//! `isotope mv`.

use clap::Args;
use isotope_proto::name::LibraryPath;
use isotope_proto::pb;
use isotope_proto::refusal::Refusal;

use super::Context;
use crate::client::{Client, library_path, limited, place, request_id};
use crate::exit::Usage;

/// Rename a folder or image, or move several into a folder; no byte is moved
#[derive(Debug, Args)]
pub(super) struct MvArgs {
    /// What to move, then where to: a folder, or for one source a new name
    #[arg(required = true, num_args = 2.., value_names = ["SOURCE", "TARGET"])]
    paths: Vec<String>,
    /// Let the two change places
    #[arg(long)]
    exchange: bool,
}

pub(super) async fn cmd_mv(args: &MvArgs, context: &Context) -> anyhow::Result<()> {
    let (target, sources) = args.paths.split_last().expect("clap asks for two");
    let target = library_path(target)?;
    let mut client = context.connect().await?;
    if args.exchange {
        let [source] = sources else {
            return Err(Usage("--exchange takes two paths".to_owned()).into());
        };
        return rename(&mut client, &library_path(source)?, &target, pb::RenameMode::Exchange)
            .await;
    }
    let into = client.find(&target).await?.is_some_and(|item| item.is_folder());
    if sources.len() > 1 && !into {
        return Err(Usage(format!("{target} is no folder to move several into")).into());
    }
    for source in sources {
        let source = library_path(source)?;
        let (_, name) =
            source.split().ok_or_else(|| Usage("the root cannot be moved".to_owned()))?;
        let target = if into { target.join(name) } else { target.clone() };
        rename(&mut client, &source, &target, pb::RenameMode::NoReplace).await?;
    }
    Ok(())
}

async fn rename(
    client: &mut Client,
    from: &LibraryPath,
    to: &LibraryPath,
    mode: pb::RenameMode,
) -> anyhow::Result<()> {
    let request = pb::RenameRequest {
        request_id: request_id(),
        from: Some(place(from)?),
        to: Some(place(to)?),
        mode: mode.into(),
    };
    client.library.rename(limited(request)).await.map_err(Refusal::from)?;
    Ok(())
}
