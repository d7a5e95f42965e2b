//! `isotope mount`: the mount as a process of its own, in the foreground, or started by
//! `mount.isotope`.

pub(crate) mod helper;
mod owner;

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use isotope_fs::options::{Local, Options, Others, Unknown, Wait, read_timeout};
use isotope_fs::{Mount, resolved};
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use super::{Context, daemon};
use crate::config::Settings;
use crate::exit::Usage;
use crate::metrics::Metrics;
use crate::output;
use crate::telemetry::Sink;

/// Mount the library on a directory
///
/// Waits for the catalogue where it cannot be reached yet. Ctrl-C, SIGTERM or umount(8) ends it.
#[derive(Debug, Args)]
pub(crate) struct MountArgs {
    /// An empty directory [default: mount.dir of the configuration]
    dir: Option<PathBuf>,
    /// The catalogue to show [default: --server, or catalog.url of the configuration]
    #[arg(long, value_name = "URL")]
    catalog: Option<String>,
    /// Mount options, as ro,uid=1000; docs/MOUNTING.md has them all. They cover mount.options of
    /// the configuration
    #[arg(short, long, value_name = "OPTIONS")]
    options: Vec<String>,
    /// Show this view in the place of the library's own tree; isotope views lists them
    #[arg(long, value_name = "NAME")]
    view: Option<String>,
    /// Read images of this host like those of others, through the mount, which sees each byte; as
    /// the option verify_local
    #[arg(long)]
    verify_local: bool,
    /// Give all hosts together so many seconds to deliver one read, 10 if left out; as the option
    /// read_timeout
    #[arg(long, value_name = "SECONDS", value_parser = read_timeout)]
    read_timeout: Option<Duration>,
    /// Serve the mount's numbers there, at /metrics, for Prometheus; as the option metrics
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<SocketAddr>,
    /// Allow metrics beyond loopback
    #[arg(long)]
    insecure: bool,
    /// What the kernel's table shows as the source
    #[arg(long, hide = true, default_value = "")]
    source: String,
    /// Belongs to no terminal, and lets go of whoever started it once it has mounted
    #[arg(long, hide = true)]
    background: bool,
    /// Pass over options that nobody knows
    #[arg(long, hide = true)]
    sloppy: bool,
}

impl MountArgs {
    /// The configuration that the options name.
    pub(super) fn config(&self) -> anyhow::Result<Option<PathBuf>> {
        let mut options = Options::default();
        self.add_options(&mut options)?;
        Ok(options.config)
    }

    fn add_options(&self, options: &mut Options) -> anyhow::Result<()> {
        for text in &self.options {
            let unknown = if self.sloppy { Unknown::PassedOver } else { Unknown::Refused };
            options.add(text, unknown).map_err(|error| Usage(error.to_string()))?;
        }
        if self.view.is_some() {
            options.view.clone_from(&self.view);
        }
        if self.verify_local {
            options.local = Local::Verified;
        }
        options.metrics = self.metrics.or(options.metrics);
        options.read_timeout = self.read_timeout.or(options.read_timeout);
        Ok(())
    }
}

/// What the configuration says of every mount.
pub(super) fn options(settings: &Settings) -> Options {
    Options::parse(&settings.mount.options).expect("checked when it was read")
}

/// This host's name: files of nodes on it are local.
pub(super) fn host(settings: &Settings) -> String {
    settings.agent.name.clone().unwrap_or_else(daemon::host_name)
}

/// How to mount; what `options` leave open is this process's and this host's.
pub(super) fn config(
    mountpoint: &Path,
    catalog: &str,
    context: &Context,
    options: &Options,
    state: &Path,
) -> anyhow::Result<isotope_fs::Config> {
    let is_root = rustix::process::geteuid().is_root();
    let others = if is_root { Others::LetIn } else { Others::KeptOut };
    let mut guard = vec![std::env::current_exe()?, "guard".into()];
    if context.sink == Sink::System {
        guard.insert(1, "--system-log".into());
    }
    Ok(isotope_fs::Config {
        read_timeout: options.read_timeout.unwrap_or(isotope_fs::READ_TIMEOUT),
        mountpoint: mountpoint.to_owned(),
        catalog: daemon::uri(catalog)?,
        source: String::new(),
        host: host(&context.settings),
        owner: owner::of(options)?,
        read_only: options.read_only,
        no_exec: options.no_exec,
        // QEMU runs as a user of its own; only root may let others in without asking fuse.conf.
        others: options.others.unwrap_or(others),
        view: options.view.clone(),
        wait: options.wait.unwrap_or(Wait::ForEver),
        beneath: options.beneath,
        local: options.local,
        guard,
        snapshots: Some(state.join("mount")),
    })
}

/// Begins to serve a mount's numbers, if that was asked for; they are served until the handle is
/// dropped.
pub(super) async fn serve_metrics(
    mount: &Mount,
    address: Option<SocketAddr>,
    insecure: bool,
) -> anyhow::Result<Option<AbortOnDropHandle<()>>> {
    let Some(address) = address else { return Ok(None) };
    daemon::check_listen(address, insecure)?;
    let metrics = Metrics::bind(address, mount.tally()).await?;
    output::line(&format!("metrics    {}", metrics.url()?));
    Ok(Some(AbortOnDropHandle::new(tokio::spawn(metrics.serve()))))
}

pub(super) async fn cmd_mount(args: MountArgs, context: &Context) -> anyhow::Result<()> {
    if args.background {
        // Whoever leads its process group is in a session of its own already.
        let _ = rustix::process::setsid();
    }
    let settings = &context.settings;
    let mountpoint = resolved(args.dir.as_deref().unwrap_or(&settings.mount.dir));
    let mut options = options(settings);
    args.add_options(&mut options)?;
    let catalog = args.catalog.as_deref().or(options.catalog.as_deref());
    let catalog = catalog.unwrap_or(&context.server);
    if args.background {
        options.wait.get_or_insert(Wait::AtMost(helper::WAIT));
    }
    let config = config(&mountpoint, catalog, context, &options, &settings.state)?;
    let mount = Mount::build(isotope_fs::Config { source: args.source, ..config })?;
    let insecure = args.insecure || settings.insecure;
    let _metrics = serve_metrics(&mount, options.metrics, insecure).await?;
    let stop = daemon::stop_on_signal()?;
    let (ready, mounted) = oneshot::channel();
    let served = tokio::spawn(mount.serve(stop, ready));
    if mounted.await.is_ok() {
        output::line(&format!("mounted    {}", mountpoint.display()));
        if args.background {
            let_go()?;
            // Nobody else hears of it from here on.
            return served
                .await?
                .inspect_err(|error| tracing::error!("{error}"))
                .map_err(Into::into);
        }
    }
    Ok(served.await??)
}

/// Closes what leads to whoever started this process.
fn let_go() -> anyhow::Result<()> {
    let null = File::options().write(true).open("/dev/null").context("opening /dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
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
