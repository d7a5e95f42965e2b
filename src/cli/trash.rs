//! `isotope trash`.

use clap::{Args, Subcommand};
use isotope_proto::id::ImageId;
use isotope_proto::pb;
use isotope_proto::refusal::Refusal;
use isotope_proto::upload::Trashed;
use serde::Serialize;

use super::Context;
use crate::client::{limited, next, request_id};
use crate::output::{self, Format};

/// What was deleted and can still be had back
#[derive(Debug, Args)]
pub(super) struct TrashArgs {
    #[command(subcommand)]
    command: TrashCommand,
}

#[derive(Debug, Subcommand)]
enum TrashCommand {
    /// List deleted images, newest first
    Ls,
    /// Give deleted images their names again
    Restore {
        /// Ids, as listed
        #[arg(required = true)]
        images: Vec<ImageId>,
    },
    /// Delete for good, all or some; what is open somewhere is left
    Empty {
        /// Ids, as listed
        images: Vec<ImageId>,
    },
}

#[derive(Debug, Serialize)]
struct TrashedJson {
    id: String,
    paths: Vec<String>,
    size_bytes: u64,
    delete_time: String,
    expire_time: String,
}

#[derive(Debug, Serialize)]
struct EmptiedJson {
    images: u64,
    size_bytes: u64,
    held: u64,
}

pub(super) async fn cmd_trash(args: &TrashArgs, context: &Context) -> anyhow::Result<()> {
    match &args.command {
        TrashCommand::Ls => list(context).await,
        TrashCommand::Restore { images } => restore(images, context).await,
        TrashCommand::Empty { images } => empty(images, context).await,
    }
}

async fn list(context: &Context) -> anyhow::Result<()> {
    let mut client = context.connect().await?;
    let listed = client.library.list_trash(pb::ListTrashRequest {}).await;
    let mut listed = listed.map_err(Refusal::from)?.into_inner();
    let mut rows = Vec::new();
    while let Some(it) = next(&mut listed).await? {
        let it = Trashed::try_from(it)?;
        let shown = TrashedJson {
            id: it.image.id.to_string(),
            paths: it.paths,
            size_bytes: it.image.size_bytes,
            delete_time: output::time(it.deleted),
            expire_time: output::time(it.expires),
        };
        match context.format {
            Format::Json => output::json(&shown),
            Format::Text => rows.push(vec![
                shown.delete_time,
                shown.expire_time,
                output::bytes(shown.size_bytes),
                shown.id,
                shown.paths.join(", "),
            ]),
        }
    }
    if context.format == Format::Text {
        output::table(&["DELETED", "KEPT UNTIL", "SIZE", "ID", "WAS"], &rows);
    }
    Ok(())
}

async fn restore(images: &[ImageId], context: &Context) -> anyhow::Result<()> {
    let mut client = context.connect().await?;
    for image in images {
        let request = pb::RestoreRequest { request_id: request_id(), image_id: (*image).into() };
        client.library.restore(limited(request)).await.map_err(Refusal::from)?;
    }
    Ok(())
}

async fn empty(images: &[ImageId], context: &Context) -> anyhow::Result<()> {
    let mut client = context.connect().await?;
    let image_ids = images.iter().copied().map(Into::into).collect();
    let request = limited(pb::EmptyTrashRequest { image_ids });
    let emptied = client.library.empty_trash(request).await.map_err(Refusal::from)?.into_inner();
    let pb::EmptyTrashReply { images, size_bytes, held } = emptied;
    match context.format {
        Format::Json => output::json(&EmptiedJson { images, size_bytes, held }),
        Format::Text => {
            output::line(&format!(
                "{images} images deleted for good, {}",
                output::bytes(size_bytes)
            ));
            if held > 0 {
                output::line(&format!("{held} left, for they are or may be open somewhere"));
            }
        }
    }
    Ok(())
}
