//! `isotope mount`: the mount as a process of its own.

use std::path::{Path, PathBuf};

use clap::Args;
use isotope_fs::{Mount, Owner, resolved};
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

pub(super) fn config(
    mountpoint: &Path,
    catalog: &str,
    settings: &Settings,
    state: &Path,
) -> anyhow::Result<isotope_fs::Config> {
    Ok(isotope_fs::Config {
        mountpoint: mountpoint.to_owned(),
        catalog: daemon::uri(catalog)?,
        host: settings.agent.name.clone().unwrap_or_else(daemon::host_name),
        owner: Owner {
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
        },
        guard: vec![std::env::current_exe()?, "guard".into()],
        snapshots: Some(state.join("mount")),
    })
}

pub(super) async fn cmd_mount(args: MountArgs, context: &Context) -> anyhow::Result<()> {
    let settings = &context.settings;
    let mountpoint = resolved(args.dir.as_deref().unwrap_or(&settings.mount.dir));
    let catalog = args.catalog.as_deref().unwrap_or(&context.server);
    let mount = Mount::build(config(&mountpoint, catalog, settings, &settings.state)?)?;
    let stop = daemon::stop_on_signal()?;
    let (ready, mounted) = oneshot::channel();
    let served = tokio::spawn(mount.serve(stop, ready));
    if mounted.await.is_ok() {
        output::line(&format!("mounted    {}", mountpoint.display()));
    }
    Ok(served.await??)
}

/// Cut off a mount whose process was killed and cannot die
///
/// Each mount starts one for itself.
#[derive(Debug, Args)]
pub(super) struct GuardArgs {
    parent: u32,
    mountpoint: PathBuf,
}

pub(super) async fn cmd_guard(args: &GuardArgs) -> anyhow::Result<()> {
    Ok(isotope_fs::guard(args.parent, &args.mountpoint).await?)
}
