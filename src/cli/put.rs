//! `isotope put`.

use std::fs::{File, Metadata};
use std::io::Read;
use std::path::Path;

use anyhow::Context as _;
use clap::Args;
use isotope_fs::{Aborted, Storing};
use isotope_proto::id::UploadId;
use isotope_proto::name::{EntryName, LibraryPath};
use isotope_proto::time::Timestamp;
use isotope_proto::tree::{FolderRef, Place};
use isotope_proto::upload::{Existing, UploadRequest};
use tokio_util::sync::CancellationToken;

use super::{Context, daemon};
use crate::client::{ItemKind, library_path};
use crate::exit::{Interrupted, Usage};
use crate::output;

/// Bytes read and sent at once.
const PIECE_BYTES: usize = 1 << 20;
/// Permission bits of what is stored from a shell.
const FILE_MODE: u32 = 0o644;

/// Store files in the library
///
/// Each appears whole or not at all; interrupted, nothing of it is left.
#[derive(Debug, Args)]
pub(super) struct PutArgs {
    /// What to store, then where: a folder, or for one file a new name
    #[arg(required = true, num_args = 2.., value_names = ["FILE", "TARGET"])]
    paths: Vec<String>,
    /// Store in this pool [default: the folder's, else one of this host's, else the one with most
    /// room]
    #[arg(long)]
    pool: Option<String>,
    /// Replace existing images
    #[arg(short, long)]
    force: bool,
}

pub(super) async fn cmd_put(args: &PutArgs, context: &Context) -> anyhow::Result<()> {
    let (target, sources) = args.paths.split_last().expect("clap asks for two");
    let target = library_path(target)?;
    let mut client = context.connect().await?;
    let found = client.find(&target).await?;
    let into = matches!(found.map(|item| item.kind), Some(ItemKind::Folder(_)));
    if sources.len() > 1 && !into {
        return Err(Usage(format!("{target} is no folder to store several files in")).into());
    }
    let stop = daemon::stop_on_signal()?;
    for source in sources {
        let source = Path::new(source);
        let target = if into { target.join(name_of(source)?) } else { target.clone() };
        if stop.is_cancelled() {
            return Err(Interrupted.into());
        }
        put(source, &target, args, context, &stop)
            .await
            .with_context(|| format!("storing {}", source.display()))?;
    }
    Ok(())
}

fn name_of(source: &Path) -> anyhow::Result<EntryName> {
    let name = source.file_name().context("the file has no name")?;
    Ok(EntryName::parse_bytes(name.as_encoded_bytes())?)
}

async fn put(
    source: &Path,
    target: &LibraryPath,
    args: &PutArgs,
    context: &Context,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let mut file = File::open(source).context("opening it")?;
    let meta = file.metadata().context("opening it")?;
    if !meta.is_file() {
        return Err(Usage(format!("{} is not a file", source.display())).into());
    }
    let (folder, name) =
        target.split().ok_or_else(|| Usage("the root is no file's name".to_owned()))?;
    let request = UploadRequest {
        id: UploadId::mint(Timestamp::from(std::time::SystemTime::now())),
        place: Place { folder: FolderRef::Path(folder), name },
        mode: FILE_MODE,
        pool: args.pool.clone(),
        host: context.settings.agent.name.clone().unwrap_or_else(daemon::host_name),
        existing: if args.force { Existing::Replace } else { Existing::Refuse },
        size_bytes: meta.len(),
    };
    let storing = Storing::new(&daemon::uri(&context.server)?, request);
    let stored = tokio::select! {
        stored = send(&mut file, &meta, &storing) => stored,
        () = stop.cancelled() => Err(Interrupted.into()),
    };
    match stored {
        Ok(()) => Ok(()),
        Err(error) => match storing.abort().await {
            Aborted::TooLate => Ok(()),
            Aborted::InTime => Err(error),
        },
    }
}

async fn send(file: &mut File, meta: &Metadata, storing: &Storing) -> anyhow::Result<()> {
    storing.begin().await?;
    let bar = output::byte_bar(meta.len());
    let mut at = 0_u64;
    loop {
        let piece = read_piece(file).context("reading it")?;
        if piece.is_empty() {
            break;
        }
        let len = u64::try_from(piece.len())?;
        storing.write(at, piece).await?;
        at += len;
        bar.set_position(at);
    }
    storing.publish(Timestamp::from(meta.modified()?)).await?;
    bar.finish_and_clear();
    Ok(())
}

fn read_piece(file: &mut File) -> std::io::Result<Vec<u8>> {
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    let most = u64::try_from(PIECE_BYTES).unwrap_or(u64::MAX);
    file.take(most).read_to_end(&mut piece)?;
    Ok(piece)
}
