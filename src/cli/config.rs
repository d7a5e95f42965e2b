//! `isotope config`.

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::config;
use crate::output::{self, Format};

/// The configuration: /etc/isotope/isotope.toml, conf.d/*.toml, ISOTOPE_*
#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Say whether the configuration can be used
    Check,
    /// Show each setting in force
    Show {
        /// And where it came from
        #[arg(long)]
        origin: bool,
    },
}

#[derive(Debug, Serialize)]
struct SettingJson<'a> {
    key: &'a str,
    value: &'a str,
    origin: &'a str,
}

pub(super) fn cmd_config(args: &ConfigArgs, format: Format) -> anyhow::Result<()> {
    let loaded = config::load(None)?;
    match args.command {
        ConfigCommand::Check => output::line("the configuration can be used"),
        ConfigCommand::Show { origin: with_origin } => {
            for (key, value, origin) in &loaded.origins {
                let shown = if value.is_empty() { "(not set)" } else { value };
                match (format, with_origin) {
                    (Format::Json, _) => output::json(&SettingJson { key, value, origin }),
                    (Format::Text, true) => output::line(&format!("{key} = {shown}  # {origin}")),
                    (Format::Text, false) => output::line(&format!("{key} = {shown}")),
                }
            }
        }
    }
    Ok(())
}
