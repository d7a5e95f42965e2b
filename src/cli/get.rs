//! `isotope get`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use indicatif::ProgressBar;
use isotope_fs::{Hosts, Route};
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

async fn copy(
    image: &Image,
    routes: &[Route],
    out: &mut impl Write,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    let hosts = Hosts::default();
    let mut at = 0;
    let mut last = Refusal::new(Reason::Unavailable, "no host is known to hold the image");
    for round in 0..ROUNDS {
        if round > 0 {
            tokio::time::sleep(ROUND_PAUSE).await;
        }
        for route in routes {
            match go_on(&hosts, route, image.size_bytes, &mut at, out, bar).await? {
                Ok(()) => return Ok(()),
                Err(refusal) => last = refusal,
            }
        }
    }
    Err(last).with_context(|| format!("after {} of {} bytes", at, image.size_bytes))
}

/// Reads on from one host. The inner error is the host's, and another one may do better; the outer
/// one is ours.
async fn go_on(
    hosts: &Hosts,
    route: &Route,
    size_bytes: u64,
    at: &mut u64,
    out: &mut impl Write,
    bar: &ProgressBar,
) -> anyhow::Result<Result<(), Refusal>> {
    let range = ByteRange::clamped(*at, u64::MAX, size_bytes);
    let mut stream = match hosts.open(route, range).await {
        Ok(stream) => stream,
        Err(refusal) => return Ok(Err(refusal)),
    };
    loop {
        match hosts.next(route, &mut stream).await {
            Ok(Some(piece)) => {
                out.write_all(&piece).context("writing")?;
                *at += u64::try_from(piece.len())?;
                bar.set_position(*at);
            }
            Ok(None) if *at == size_bytes => return Ok(Ok(())),
            Ok(None) => {
                let text = format!("{} ended after {at} of {size_bytes} bytes", route.address);
                return Ok(Err(Refusal::new(Reason::Storage, text)));
            }
            Err(refusal) => return Ok(Err(refusal)),
        }
    }
}
