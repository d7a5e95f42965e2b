//! `isotope get`.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use clap::Args;
use indicatif::ProgressBar;
use isotope_fs::{Content, Hosts, Route};
use isotope_proto::channel::RANGE_BYTES_MAX;
use isotope_proto::image::Image;
use isotope_proto::range::ByteRange;
use isotope_proto::refusal::{Reason, Refusal};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{Context, daemon};
use crate::client::Status;
use crate::exit::Interrupted;
use crate::output;

/// Rounds over all replicas before giving up.
const ROUNDS: u32 = 3;
const ROUND_PAUSE: Duration = Duration::from_millis(500);
const BLOCK_BYTES: usize = RANGE_BYTES_MAX as usize;
/// Blocks under way: 8 MiB.
const BLOCKS_AHEAD: usize = 8;

/// Download an image
///
/// The file appears whole or not at all. When a host fails, another one goes on.
#[derive(Debug, Args)]
pub(super) struct GetArgs {
    /// A library path, a path on a mount, or an id
    image: String,
    /// A file or directory to write to, - for standard output
    #[arg(default_value = ".")]
    target: PathBuf,
    /// Replace an existing file
    #[arg(short, long)]
    force: bool,
}

pub(super) async fn cmd_get(args: &GetArgs, context: &Context) -> anyhow::Result<()> {
    let mut client = context.connect().await?;
    let (item, image) = client.image(&args.image).await?;
    let routes = routes(&image, &item.twins, &client.status().await?);
    let bar = output::byte_bar(image.size_bytes);
    if args.target == Path::new("-") {
        let mut out = io::stdout().lock();
        copy(&image, &routes, &mut out, &bar).await?;
        return out.flush().context("writing to standard output");
    }
    let target =
        if args.target.is_dir() { args.target.join(item.name()) } else { args.target.clone() };
    if target.exists() && !args.force {
        let text = format!("{} exists; --force replaces it", target.display());
        return Err(Refusal::new(Reason::Exists, text).into());
    }
    let partial = Partial::create(&target)?;
    let stop = daemon::stop_on_signal()?;
    let mut file = &partial.file;
    tokio::select! {
        copied = copy(&image, &routes, &mut file, &bar) => copied?,
        () = stop.cancelled() => return Err(Interrupted.into()),
    }
    // What came there meanwhile is not replaced unasked.
    let flags = if args.force { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
    partial.publish(&target, flags)?;
    bar.finish_and_clear();
    Ok(())
}

/// A file under a name of its own until it is whole; removed if it never becomes so.
struct Partial {
    path: PathBuf,
    file: File,
}

impl Partial {
    fn create(target: &Path) -> anyhow::Result<Self> {
        let name = target.file_name().context("the target has no file name")?.to_string_lossy();
        let path = target.with_file_name(format!(".{name}.{}.part", std::process::id()));
        let file =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path, file })
    }

    fn publish(self, target: &Path, flags: RenameFlags) -> anyhow::Result<()> {
        let rename = || Ok(renameat_with(CWD, &self.path, CWD, target, flags)?);
        let done = self.file.sync_all().and_then(|()| rename());
        done.with_context(|| format!("cannot write {}", target.display()))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Gone already when it was published.
        let _ = fs::remove_file(&self.path);
    }
}

/// Hosts that are connected come first; among equals, the image's own files, and then those of
/// others with the same bytes.
fn routes(image: &Image, twins: &[Image], status: &Status) -> Vec<Route> {
    let mut ranked = Vec::new();
    // Whatever a catalogue says, other sizes are other bytes.
    let twins = twins.iter().filter(|twin| twin.size_bytes == image.size_bytes);
    for image in std::iter::once(image).chain(twins) {
        for replica in image.replicas.iter().filter(|replica| !replica.is_rotten()) {
            let Some(volume) = status.volume(replica.volume) else { continue };
            for sight in &volume.sights {
                let Some(node) = status.node(sight.node) else { continue };
                let address = node.address.clone();
                let route = Route { image: image.id, volume: replica.volume, address };
                ranked.push((!status.connected(sight.node), route));
            }
        }
    }
    ranked.sort_by_key(|(away, _)| *away);
    ranked.into_iter().map(|(_, route)| route).collect()
}

/// Copies block by block, some of them on their way while one is written; what has a hash is
/// checked before it is.
async fn copy(
    image: &Image,
    routes: &[Route],
    out: &mut impl Write,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    let hosts = Arc::new(Hosts::default());
    let content =
        Content { size_bytes: image.size_bytes, blake3: image.hashes.map(|hashes| hashes.blake3) };
    let blocks = (0..image.size_bytes).step_by(BLOCK_BYTES);
    let mut blocks = blocks.map(|at| ByteRange::clamped(at, RANGE_BYTES_MAX, image.size_bytes));
    let fetch = |range| {
        let (hosts, routes) = (Arc::clone(&hosts), routes.to_vec());
        tokio::spawn(async move { fetch(&hosts, &routes, content, range).await })
    };
    let mut under_way: VecDeque<_> = blocks.by_ref().take(BLOCKS_AHEAD).map(fetch).collect();
    let mut at = 0;
    while let Some(block) = under_way.pop_front() {
        let bytes = block.await?;
        let bytes = bytes.with_context(|| format!("after {at} of {} bytes", image.size_bytes))?;
        under_way.extend(blocks.next().map(fetch));
        out.write_all(&bytes).context("writing")?;
        at += u64::try_from(bytes.len())?;
        bar.set_position(at);
    }
    Ok(())
}

/// A block from any host, in some rounds: hosts come back.
async fn fetch(
    hosts: &Hosts,
    routes: &[Route],
    content: Content,
    range: ByteRange,
) -> Result<Bytes, Refusal> {
    let mut round = 1;
    loop {
        match hosts.read(routes, content, range).await {
            Err(refusal) if round == ROUNDS => return Err(refusal),
            Err(_) => tokio::time::sleep(ROUND_PAUSE).await,
            Ok(bytes) => return Ok(bytes),
        }
        round += 1;
    }
}
