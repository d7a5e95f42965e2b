//! `isotope trash`.

use clap::{Args, Subcommand};
use isotope_proto::id::ImageId;
use isotope_proto::pb;
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::upload::Trashed;
use serde::Serialize;

use super::Context;
use crate::client::{Client, library_path, limited, next, request_id};
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
        /// Paths they had, of images or of folders they were in; or ids, as listed
        #[arg(required = true, value_name = "PATH|ID")]
        what: Vec<String>,
    },
    /// Delete for good, all or some; what is open somewhere is left
    Empty {
        /// Paths they had, of images or of folders they were in; or ids, as listed
        #[arg(value_name = "PATH|ID")]
        what: Vec<String>,
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
        TrashCommand::Restore { what } => restore(what, context).await,
        TrashCommand::Empty { what } => empty(what, context).await,
    }
}

async fn listed(client: &mut Client) -> anyhow::Result<Vec<Trashed>> {
    let listed = client.library.list_trash(pb::ListTrashRequest {}).await;
    let mut listed = listed.map_err(Refusal::from)?.into_inner();
    let mut all = Vec::new();
    while let Some(it) = next(&mut listed).await? {
        all.push(Trashed::try_from(it)?);
    }
    Ok(all)
}

/// The images that are meant. A path that several had means the one deleted last; a folder's
/// means all that were in it.
fn meant(what: &str, listed: &[Trashed]) -> anyhow::Result<Vec<ImageId>> {
    if let Ok(id) = what.parse() {
        return Ok(vec![id]);
    }
    let path = library_path(what)?.to_string();
    let was_there = |it: &&Trashed| it.paths.contains(&path);
    if let Some(newest) = listed.iter().find(was_there) {
        return Ok(vec![newest.image.id]);
    }
    let below = format!("{path}/");
    let was_below = |it: &&Trashed| it.paths.iter().any(|path| path.starts_with(&below));
    let all: Vec<ImageId> = listed.iter().filter(was_below).map(|it| it.image.id).collect();
    if all.is_empty() {
        let text = format!("{path}: nothing that was there is in the trash");
        return Err(Refusal::new(Reason::NotFound, text).into());
    }
    Ok(all)
}

async fn all_meant(what: &[String], client: &mut Client) -> anyhow::Result<Vec<ImageId>> {
    let listed = listed(client).await?;
    let mut all = Vec::new();
    for what in what {
        all.extend(meant(what, &listed)?);
    }
    Ok(all)
}

async fn list(context: &Context) -> anyhow::Result<()> {
    let mut client = context.connect().await?;
    let mut rows = Vec::new();
    for it in listed(&mut client).await? {
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

async fn restore(what: &[String], context: &Context) -> anyhow::Result<()> {
    let mut client = context.connect().await?;
    for image in all_meant(what, &mut client).await? {
        let request = pb::RestoreRequest { request_id: request_id(), image_id: image.into() };
        client.library.restore(limited(request)).await.map_err(Refusal::from)?;
    }
    Ok(())
}

async fn empty(what: &[String], context: &Context) -> anyhow::Result<()> {
    let mut client = context.connect().await?;
    // None means all of them.
    let image_ids = all_meant(what, &mut client).await?.into_iter().map(Into::into).collect();
    let request = limited(pb::EmptyTrashRequest { image_ids });
    let emptied = client.library.empty_trash(request).await.map_err(Refusal::from)?.into_inner();
    let pb::EmptyTrashReply { images, size_bytes, held } = emptied;
    match context.format {
        Format::Json => output::json(&EmptiedJson { images, size_bytes, held }),
        Format::Text => {
            let freed = output::bytes(size_bytes);
            output::line(&format!("{} deleted for good, {freed}", output::images(images)));
            if held > 0 {
                let left = output::images(held);
                output::line(&format!("{left} left: open somewhere, or deleted a moment ago"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use isotope_proto::id::{ContentId, Ino};
    use isotope_proto::image::{Image, ImageFormat, Os};
    use isotope_proto::time::Timestamp;

    use super::*;

    fn trashed(n: u8, path: &str) -> Trashed {
        let image = Image {
            id: ImageId::from_bytes([n; 16]),
            ino: Ino(n.into()),
            content: ContentId::from_bytes([n; 16]),
            hashes: None,
            filename: String::new(),
            size_bytes: 0,
            format: ImageFormat::Iso,
            os: Os::unknown(),
            flat_names: Vec::new(),
            facts: None,
            mode: 0,
            created: Timestamp(0),
            modified: Timestamp(0),
            changed: Timestamp(0),
            replicas: Vec::new(),
        };
        Trashed {
            image,
            paths: vec![path.to_owned()],
            deleted: Timestamp(0),
            expires: Timestamp(0),
        }
    }

    #[test]
    fn a_path_means_what_was_there_last() {
        let listed = [(3, "/a/x.iso"), (2, "/a/y.iso"), (1, "/a/x.iso"), (4, "/ab/z.iso")];
        let listed = listed.map(|(n, path)| trashed(n, path));
        let ids = |all: &[u8]| all.iter().map(|n| ImageId::from_bytes([*n; 16])).collect();
        let id = ImageId::from_bytes([9; 16]).to_string();
        for (what, expected) in [
            ("/a/x.iso", Some(ids(&[3]))),
            ("/a", Some(ids(&[3, 2, 1]))),
            ("/ab/z.iso", Some(ids(&[4]))),
            (&*id, Some(ids(&[9]))),
            ("/b", None),
        ] {
            assert_eq!(meant(what, &listed).ok(), expected, "{what}");
        }
    }
}
