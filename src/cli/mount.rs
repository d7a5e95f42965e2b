//! `isotope mount`: the mount as a process of its own.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use isotope_fs::{Mount, Owner};
use tokio::sync::oneshot;

use super::{Context, daemon};
use crate::config::Settings;
use crate::output;

/// Mount the library on a directory
///
/// Waits for the catalogue where it cannot be reached yet. Ctrl-C, SIGTERM or umount(8) ends it.
#[derive(Debug, Args)]
pub(super) struct MountArgs {
    /// An empty directory [default: mount.dir of the configuration]
    dir: Option<PathBuf>,
    /// The catalogue to show [default: --server, or catalog.url of the configuration]
    #[arg(long, value_name = "URL")]
    catalog: Option<String>,
}

/// The mount point with its parent resolved; the directory itself may be a dead mount and is not
/// touched.
pub(super) fn absolute(dir: &Path) -> anyhow::Result<PathBuf> {
    let dir = std::path::absolute(dir).context("finding the current directory")?;
    let resolved = match (dir.parent().map(Path::canonicalize), dir.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => dir,
    };
    Ok(resolved)
}

pub(super) fn config(
    mountpoint: &Path,
    catalog: &str,
    settings: &Settings,
) -> anyhow::Result<isotope_fs::Config> {
    Ok(isotope_fs::Config {
        mountpoint: mountpoint.to_owned(),
        catalog: daemon::uri(catalog)?,
        host: settings.agent.name.clone().unwrap_or_else(daemon::host_name),
        owner: Owner {
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
        },
    })
}

pub(super) async fn cmd_mount(args: MountArgs, context: &Context) -> anyhow::Result<()> {
    let settings = &context.settings;
    let mountpoint = absolute(args.dir.as_deref().unwrap_or(&settings.mount.dir))?;
    let catalog = args.catalog.as_deref().unwrap_or(&context.server);
    let mount = Mount::build(config(&mountpoint, catalog, settings)?)?;
    let stop = daemon::stop_on_signal()?;
    let (ready, mounted) = oneshot::channel();
    let served = tokio::spawn(mount.serve(stop, ready));
    if mounted.await.is_ok() {
        output::line(&format!("mounted    {}", mountpoint.display()));
    }
    Ok(served.await??)
}
