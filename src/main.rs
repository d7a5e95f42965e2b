//! The binary: parse, call, report. The only part that prints.

mod cli;
mod client;
mod config;
mod exit;
mod output;
mod telemetry;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::report(&error),
    }
}
