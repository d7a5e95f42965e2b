//! The commands: one file each, its arguments (whose doc comments are the help) and its function.

mod catalog;
mod config;
mod connect;
mod daemon;
mod get;
mod info;
mod ln;
mod ls;
mod mkdir;
mod mount;
mod mounts;
mod mv;
mod node;
mod pool;
mod put;
mod rm;
mod rmdir;
mod scan;
mod serve;
mod status;
mod trash;
mod tree;
mod up;
mod url;
mod verify;
mod views;

use clap::{Args, Parser, Subcommand};

use crate::client::Client;
use crate::config::Settings;
use crate::output::Format;
use crate::telemetry::{self, Sink};

pub(crate) use mount::helper::{called_as_one as mount_helper, run as run_mount_helper};

/// One tree for a hypervisor cluster's ISO library.
///
/// ISO, IMG and OVA files lie in storage pools on many hosts; Isotope shows them as one tree.
#[derive(Debug, Parser)]
#[command(name = "isotope", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Global {
    /// The catalogue to talk to [default: catalog.url of the configuration]
    #[arg(long, global = true, value_name = "URL")]
    server: Option<String>,
    /// Print JSON: one object, or one a line where there are many
    #[arg(long, global = true)]
    json: bool,
    /// Log to the system's log, for daemons that nobody watches
    #[arg(long, global = true, hide = true)]
    system_log: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::UpArgs),
    Serve(serve::ServeArgs),
    Mount(mount::MountArgs),
    #[command(hide = true)]
    Guard(mount::GuardArgs),
    Ls(ls::LsArgs),
    Tree(tree::TreeArgs),
    Info(info::InfoArgs),
    Mkdir(mkdir::MkdirArgs),
    Put(put::PutArgs),
    Rm(rm::RmArgs),
    Rmdir(rmdir::RmdirArgs),
    Mv(mv::MvArgs),
    Ln(ln::LnArgs),
    Get(get::GetArgs),
    Url(url::UrlArgs),
    Trash(trash::TrashArgs),
    Scan(scan::ScanArgs),
    Verify(verify::VerifyArgs),
    Scrub(verify::ScrubArgs),
    Node(node::NodeArgs),
    Pool(pool::PoolArgs),
    Status(status::StatusArgs),
    Views(views::ViewsArgs),
    Connect(connect::ConnectArgs),
    Catalog(catalog::CatalogArgs),
    Config(config::ConfigArgs),
}

/// What every command is given.
struct Context {
    settings: Settings,
    format: Format,
    server: String,
    sink: Sink,
}

impl Context {
    async fn connect(&self) -> anyhow::Result<Client> {
        Client::connect(&self.server).await
    }
}

pub(crate) fn run() -> anyhow::Result<()> {
    let Cli { global, command } = Cli::parse();
    // The configuration must be readable to say what is wrong with it.
    if let Command::Config(args) = command {
        return config::cmd_config(&args, Format::of(global.json));
    }
    let named = match &command {
        Command::Mount(args) => args.config()?,
        _ => None,
    };
    let settings = crate::config::load(named.as_deref())?.settings;
    let sink = if global.system_log { Sink::System } else { Sink::Stderr };
    telemetry::init(&settings.log, sink)?;
    let server = global.server.unwrap_or_else(|| settings.catalog.url.clone());
    let context = Context { settings, format: Format::of(global.json), server, sink };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, |n| n.get().max(2)))
        .enable_all()
        .build()?;
    let result = runtime.block_on(dispatch(command, &context));
    // A read of a dead disk must not keep the process.
    runtime.shutdown_background();
    result
}

async fn dispatch(command: Command, context: &Context) -> anyhow::Result<()> {
    match command {
        Command::Up(args) => up::cmd_up(args, context).await,
        Command::Serve(args) => serve::cmd_serve(args, context).await,
        Command::Mount(args) => mount::cmd_mount(args, context).await,
        Command::Guard(args) => mount::cmd_guard(&args).await,
        Command::Ls(args) => ls::cmd_ls(&args, context).await,
        Command::Tree(args) => tree::cmd_tree(&args, context).await,
        Command::Info(args) => info::cmd_info(&args, context).await,
        Command::Mkdir(args) => mkdir::cmd_mkdir(&args, context).await,
        Command::Put(args) => put::cmd_put(&args, context).await,
        Command::Rm(args) => rm::cmd_rm(&args, context).await,
        Command::Trash(args) => trash::cmd_trash(&args, context).await,
        Command::Rmdir(args) => rmdir::cmd_rmdir(&args, context).await,
        Command::Mv(args) => mv::cmd_mv(&args, context).await,
        Command::Ln(args) => ln::cmd_ln(&args, context).await,
        Command::Get(args) => get::cmd_get(&args, context).await,
        Command::Url(args) => url::cmd_url(&args, context).await,
        Command::Scan(args) => scan::cmd_scan(&args, context).await,
        Command::Verify(args) => verify::cmd_verify(&args, context).await,
        Command::Scrub(args) => verify::cmd_scrub(&args, context).await,
        Command::Node(args) => node::cmd_node(&args, context).await,
        Command::Pool(args) => pool::cmd_pool(&args, context).await,
        Command::Status(args) => status::cmd_status(&args, context).await,
        Command::Connect(args) => connect::cmd_connect(&args, context),
        Command::Views(args) => {
            views::cmd_views(&args, context);
            Ok(())
        }
        Command::Catalog(args) => catalog::cmd_catalog(&args, context).await,
        Command::Config(_) => unreachable!("answered before the configuration was loaded"),
    }
}
