//! The binary: parse, call, report. The only part that prints.

mod cli;
mod client;
mod config;
mod exit;
mod metrics;
mod output;
mod telemetry;

use std::process::ExitCode;

fn main() -> ExitCode {
    // Only in a binary built for tests.
    let _crash_points = fail::has_failpoints().then(fail::FailScenario::setup);
    if let Some(args) = cli::mount_helper(&std::env::args_os().collect::<Vec<_>>()) {
        return cli::run_mount_helper(args);
    }
    match cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::report(&error),
    }
}
