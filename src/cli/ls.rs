//! `isotope ls`.

use clap::Args;

use super::Context;
use crate::client::{Item, ItemKind, library_path, next};
use crate::output::{self, Format};

/// List a folder of the library
#[derive(Debug, Args)]
pub(super) struct LsArgs {
    /// A path of the library, or on a mount
    #[arg(default_value = "/")]
    path: String,
    /// Show size, time and system
    #[arg(short, long)]
    long: bool,
}

pub(super) async fn cmd_ls(args: &LsArgs, context: &Context) -> anyhow::Result<()> {
    let mut client = context.connect().await?;
    let mut listing = client.list(&library_path(&args.path)?, 1).await?;
    let mut rows = Vec::new();
    while let Some(it) = next(&mut listing).await? {
        let item = Item::try_from(it)?;
        match (context.format, args.long) {
            (Format::Json, _) => output::json(&item.to_json()),
            (Format::Text, true) => rows.push(row(&item)),
            (Format::Text, false) => output::line(&shown(&item)),
        }
    }
    if !rows.is_empty() {
        output::table(&["SIZE", "MODIFIED", "SYSTEM", "NAME"], &rows);
    }
    Ok(())
}

/// Folders are told by a slash.
pub(super) fn shown(item: &Item) -> String {
    let slash = if item.is_folder() && item.entry.is_some() { "/" } else { "" };
    output::plain(&format!("{}{slash}", item.name()))
}

fn row(item: &Item) -> Vec<String> {
    let (size, modified, system) = match &item.kind {
        ItemKind::Folder(folder) => (String::new(), folder.modified, String::new()),
        ItemKind::Image(image) => {
            let parts = [&image.os.distribution, &image.os.version, &image.os.arch];
            let known: Vec<&str> =
                parts.into_iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
            (output::bytes(image.size_bytes), image.modified, known.join(" "))
        }
    };
    vec![size, output::time(modified), system, shown(item)]
}
