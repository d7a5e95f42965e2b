//! `isotope tree`.

use clap::Args;

use super::{Context, ls};
use crate::client::{Item, ItemKind, library_path, next};
use crate::output::{self, Format};

/// Show everything below a folder as a tree
#[derive(Debug, Args)]
pub(super) struct TreeArgs {
    /// A path of the library, or on a mount
    #[arg(default_value = "/")]
    path: String,
    /// Levels to show; 0 for all
    #[arg(short = 'L', long, default_value_t = 0, value_name = "LEVELS")]
    depth: u32,
}

pub(super) async fn cmd_tree(args: &TreeArgs, context: &Context) -> anyhow::Result<()> {
    let path = library_path(&args.path)?;
    let mut client = context.connect().await?;
    let mut listing = client.list(&path, args.depth).await?;
    let mut items = Vec::new();
    while let Some(it) = next(&mut listing).await? {
        let item = Item::try_from(it)?;
        match context.format {
            Format::Json => output::json(&item.to_json()),
            Format::Text => items.push(item),
        }
    }
    if context.format == Format::Text {
        output::line(&output::plain(&path.to_string()));
        draw(&items, path.names().len());
        let folders = items.iter().filter(|item| item.is_folder()).count();
        output::line(&format!("\n{folders} folders, {} images", items.len() - folders));
    }
    Ok(())
}

/// The items come depth first; a line's strokes depend on which levels go on below it.
fn draw(items: &[Item], root_depth: usize) {
    // From the last item up: which levels have another entry further down.
    let mut goes_on: Vec<bool> = Vec::new();
    let mut lines = Vec::with_capacity(items.len());
    for item in items.iter().rev() {
        let depth = item.path.names().len() - root_depth;
        goes_on.resize(depth, false);
        let (last, above) = (goes_on.len() - 1, &goes_on[..goes_on.len() - 1]);
        let mut line: String = above.iter().map(|on| if *on { "│   " } else { "    " }).collect();
        line.push_str(if goes_on[last] { "├── " } else { "└── " });
        line.push_str(&ls::shown(item));
        if let ItemKind::Image(image) = &item.kind {
            line.push_str(&format!("  ({})", output::bytes(image.size_bytes)));
        }
        lines.push(line);
        goes_on[last] = true;
    }
    lines.iter().rev().for_each(|line| output::line(line));
}
