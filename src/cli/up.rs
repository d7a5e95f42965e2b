//! `isotope up`: everything in one process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use isotope_agent::{Agent, PoolDir};
use isotope_catalog::Catalog;
use isotope_fs::options::Local;
use isotope_fs::{Mount, resolved};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::{Context, daemon, mount, serve};
use crate::exit::Usage;
use crate::output;

/// Run catalogue, agent and mount in one process
///
/// The first use of a pool directory marks it (.isotope/) as a volume of its pool. Ctrl-C or
/// SIGTERM unmounts and ends.
#[derive(Debug, Args)]
pub(super) struct UpArgs {
    /// Offer a directory; its images lie in DIR/iso. NAME is the pool's, the directory's own if
    /// left out
    #[arg(long, value_name = "DIR[=NAME]")]
    pool: Vec<String>,
    /// Mount the library here [default: mount.dir of the configuration]
    #[arg(long, value_name = "DIR")]
    mount: Option<PathBuf>,
    /// Keep the catalogue and the agent's memory here
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Address of the catalogue; port 0 chooses a free one
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Address of the agent; port 0 chooses a free one
    #[arg(long, value_name = "ADDRESS")]
    agent_listen: Option<SocketAddr>,
    /// This node's name [default: the host's]
    #[arg(long)]
    name: Option<String>,
    /// Read images of this host like those of others, through the mount, which sees each byte
    #[arg(long)]
    verify_local: bool,
    /// Give all hosts together so many seconds to deliver one read, 10 if left out
    #[arg(long, value_name = "SECONDS", value_parser = isotope_fs::options::read_timeout)]
    read_timeout: Option<std::time::Duration>,
    /// Serve the mount's numbers there, at /metrics, for Prometheus
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<SocketAddr>,
    /// Allow plaintext beyond loopback
    #[arg(long)]
    insecure: bool,
}

pub(super) async fn cmd_up(args: UpArgs, context: &Context) -> anyhow::Result<()> {
    let settings = &context.settings;
    let state = args.state.unwrap_or_else(|| settings.state.clone());
    let insecure = args.insecure || settings.insecure;
    let catalog_args =
        serve::CatalogArgs { listen: args.listen, state: Some(state.clone()), insecure };
    let mountpoint = resolved(args.mount.as_deref().unwrap_or(&settings.mount.dir));
    let mut agent_args = serve::AgentArgs {
        pool: args.pool,
        catalog: None,
        listen: args.agent_listen,
        advertise: None,
        state: Some(state.clone()),
        name: args.name.clone(),
        insecure,
    };
    let pools = agent_args.pools(settings)?;
    for pool in &pools {
        check_apart(pool, &mountpoint)?;
    }
    isotope_agent::check_pools(&pools, &state)?;

    let stop = daemon::stop_on_signal()?;
    let mut options = mount::options(settings);
    options.read_timeout = args.read_timeout.or(options.read_timeout);
    if args.verify_local {
        options.local = Local::Verified;
    }
    let host = args.name.unwrap_or_else(|| mount::host(settings));
    let mount_config = |url: String| {
        let config = mount::config(&mountpoint, &url, context, &options, &state)?;
        anyhow::Ok(isotope_fs::Config { host: host.clone(), ..config })
    };
    // The mount point is checked before anything is made.
    Mount::build(mount_config("http://127.0.0.1".to_owned())?)?;
    let catalog = Catalog::build(catalog_args.config(settings)?).await?;
    let url = format!("http://{}", catalog.address());
    agent_args.catalog = Some(url.clone());
    let agent = Agent::build(agent_args.config(settings)?).await?;
    let mount = Mount::build(mount_config(url.clone())?)?;
    let metrics = args.metrics.or(options.metrics);
    let _metrics = mount::serve_metrics(&mount, metrics, insecure).await?;
    output::line(&format!("catalogue  {url}"));
    output::line(&format!("agent      {}", agent.address()));

    let (ready, mounted) = oneshot::channel();
    let mut parts: JoinSet<anyhow::Result<()>> = JoinSet::new();
    let tokens = (stop.clone(), stop.clone(), stop.clone());
    parts.spawn(async { catalog.serve(tokens.0).await.context("the catalogue") });
    parts.spawn(async { agent.serve(tokens.1).await.context("the agent") });
    parts.spawn(async { mount.serve(tokens.2, ready).await.context("the mount") });
    if mounted.await.is_ok() {
        output::line(&format!("mounted    {}", mountpoint.display()));
    }
    // One part that ends, for whatever reason, ends all.
    let mut result = Ok(());
    while let Some(ended) = parts.join_next().await {
        stop.cancel();
        result = result.and(ended.unwrap_or_else(|error| Err(error.into())));
    }
    result
}

/// An agent that walked into its own mount would wait for itself.
fn check_apart(pool: &PoolDir, mountpoint: &Path) -> anyhow::Result<()> {
    if pool.dir.starts_with(mountpoint) || mountpoint.starts_with(&pool.dir) {
        let text = format!(
            "the pool {} and the mount point {} lie in one another; keep them apart",
            pool.dir.display(),
            mountpoint.display()
        );
        return Err(Usage(text).into());
    }
    Ok(())
}
