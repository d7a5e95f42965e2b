//! `isotope ln`.

use clap::Args;
use isotope_proto::pb;
use isotope_proto::refusal::Refusal;

use super::Context;
use crate::client::{library_path, limited, place, request_id};
use crate::exit::Usage;

/// Give an image one more name: a hard link
///
/// Both names lead to the same image. Its bytes go with the last of them.
#[derive(Debug, Args)]
pub(super) struct LnArgs {
    /// The image: its library path, its path on a mount, or its id
    image: String,
    /// The new name, or a folder to have the image in under the name that it has
    target: String,
}

pub(super) async fn cmd_ln(args: &LnArgs, context: &Context) -> anyhow::Result<()> {
    let mut client = context.connect().await?;
    let (item, image) = client.image(&args.image).await?;
    let target = library_path(&args.target)?;
    let is_folder = client.find(&target).await?.is_some_and(|it| it.is_folder());
    let target = match item.path.split() {
        Some((_, name)) if is_folder => target.join(name),
        Some(_) => target,
        None => return Err(Usage(format!("{} is no image", args.image)).into()),
    };
    let request = pb::LinkRequest {
        request_id: request_id(),
        ino: image.ino.0,
        place: Some(place(&target)?),
    };
    client.library.link(limited(request)).await.map_err(Refusal::from)?;
    Ok(())
}
