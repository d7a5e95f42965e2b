//! `isotope serve`: the catalogue or the agent as a process of its own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use isotope_agent::{Agent, Hashing, PoolDir};
use isotope_catalog::Catalog;

use super::{Context, daemon};
use crate::config::{AgentSettings, Settings};
use crate::output;

/// Run one part as a process of its own
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    #[command(subcommand)]
    part: Part,
}

#[derive(Debug, Subcommand)]
enum Part {
    Catalog(CatalogArgs),
    Agent(AgentArgs),
}

/// Run the catalogue: who has what, under which name
#[derive(Debug, Args)]
pub(super) struct CatalogArgs {
    /// Address to listen on; port 0 chooses a free one
    #[arg(long, value_name = "ADDRESS")]
    pub(super) listen: Option<SocketAddr>,
    /// Directory of the database
    #[arg(long, value_name = "DIR")]
    pub(super) state: Option<PathBuf>,
    /// Allow plaintext beyond loopback
    #[arg(long)]
    pub(super) insecure: bool,
}

/// Run the agent: this host's pools
#[derive(Debug, Args)]
pub(super) struct AgentArgs {
    /// Offer a directory; its images lie in DIR/iso. NAME is the pool's, the directory's own if
    /// left out
    #[arg(long, value_name = "DIR[=NAME]")]
    pub(super) pool: Vec<String>,
    /// The catalogue to report to [default: catalog.url of the configuration]
    #[arg(long, value_name = "URL")]
    pub(super) catalog: Option<String>,
    /// Address to serve bytes on; port 0 chooses a free one
    #[arg(long, value_name = "ADDRESS")]
    pub(super) listen: Option<SocketAddr>,
    /// Where others reach this agent, if not at the listening address
    #[arg(long, value_name = "HOST:PORT")]
    pub(super) advertise: Option<String>,
    /// Directory of the agent's identity and memory
    #[arg(long, value_name = "DIR")]
    pub(super) state: Option<PathBuf>,
    /// This node's name [default: the host's]
    #[arg(long)]
    pub(super) name: Option<String>,
    /// Allow plaintext beyond loopback
    #[arg(long)]
    pub(super) insecure: bool,
}

impl CatalogArgs {
    pub(super) fn config(&self, settings: &Settings) -> anyhow::Result<isotope_catalog::Config> {
        let listen = self.listen.unwrap_or(settings.catalog.listen);
        daemon::check_listen(listen, self.insecure || settings.insecure)?;
        let state = self.state.clone().unwrap_or_else(|| settings.state.clone());
        let scan_every = settings.catalog.scan_every.0;
        Ok(isotope_catalog::Config { listen, state, scan_every })
    }
}

impl AgentArgs {
    pub(super) fn pools(&self, settings: &Settings) -> anyhow::Result<Vec<PoolDir>> {
        let pools = if self.pool.is_empty() { &settings.agent.pools } else { &self.pool };
        pools.iter().map(|pool| daemon::parse_pool(pool)).collect()
    }

    pub(super) fn config(&self, settings: &Settings) -> anyhow::Result<isotope_agent::Config> {
        let listen = self.listen.unwrap_or(settings.agent.listen);
        daemon::check_listen(listen, self.insecure || settings.insecure)?;
        let name = self.name.clone().or_else(|| settings.agent.name.clone());
        Ok(isotope_agent::Config {
            listen,
            advertise: self.advertise.clone().or_else(|| settings.agent.advertise.clone()),
            name: name.unwrap_or_else(daemon::host_name),
            pools: self.pools(settings)?,
            catalog: daemon::uri(self.catalog.as_deref().unwrap_or(&settings.catalog.url))?,
            state: self.state.clone().unwrap_or_else(|| settings.state.clone()),
            hashing: hashing(&settings.agent),
        })
    }
}

/// 0 stands for no limit, and for never.
fn hashing(settings: &AgentSettings) -> Hashing {
    let rate = |mib_per_s: u64| (mib_per_s > 0).then_some(mib_per_s.saturating_mul(1 << 20));
    let days = settings.scrub_every_days;
    Hashing {
        rate: rate(settings.hash_mib_per_s),
        scrub_rate: rate(settings.scrub_mib_per_s),
        scrub_every: (days > 0).then(|| Duration::from_secs(days.saturating_mul(24 * 3600))),
    }
}

pub(super) async fn cmd_serve(args: ServeArgs, context: &Context) -> anyhow::Result<()> {
    match args.part {
        Part::Catalog(args) => {
            let catalog = Catalog::build(args.config(&context.settings)?).await?;
            let stop = daemon::stop_on_signal()?;
            output::line(&format!("catalogue  http://{}", catalog.address()));
            Ok(catalog.serve(stop).await?)
        }
        Part::Agent(args) => {
            let agent = Agent::build(args.config(&context.settings)?).await?;
            let stop = daemon::stop_on_signal()?;
            output::line(&format!("agent      {}", agent.address()));
            Ok(agent.serve(stop).await?)
        }
    }
}
