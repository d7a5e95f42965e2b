//! `isotope views`.

use clap::Args;
use isotope_fs::our_mounts;
use isotope_fs::views::KINDS;
use isotope_proto::name::VIEWS;
use serde::Serialize;

use super::Context;
use crate::output::{self, Format};

/// Explain the views of the library that a mount offers
///
/// Each mount has them under /.views, which no listing shows, so that `find` and `rm -r` pass them by.
/// `isotope mount --view NAME DIR` mounts one alone.
#[derive(Debug, Args)]
pub(super) struct ViewsArgs {}

#[derive(Debug, Serialize)]
struct ViewJson {
    name: &'static str,
    path: String,
    holds: &'static str,
    about: &'static str,
}

pub(super) fn cmd_views(_: &ViewsArgs, context: &Context) {
    // Where it is mounted here; else where it would be.
    let mounted = our_mounts().into_iter().next();
    let dir = mounted.unwrap_or_else(|| context.settings.mount.dir.clone());
    let views = KINDS.iter().map(|&(name, holds, about)| {
        let path = format!("{}/{VIEWS}/{name}", dir.display());
        ViewJson { name, path, holds, about }
    });
    match context.format {
        Format::Json => views.for_each(|view| output::json(&view)),
        Format::Text => {
            let row = |it: ViewJson| vec![it.path, it.holds.to_owned(), it.about.to_owned()];
            output::table(&["VIEW", "HOLDS", "SHOWS"], &views.map(row).collect::<Vec<_>>());
        }
    }
}
