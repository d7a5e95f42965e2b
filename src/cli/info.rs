//! `isotope info`.

use clap::Args;
use isotope_proto::image::Replica;

use super::Context;
use crate::client::Status;
use crate::output::{self, Format};

/// Show what is known of an image
#[derive(Debug, Args)]
pub(super) struct InfoArgs {
    /// A library path, a path on a mount, or an id
    image: String,
}

pub(super) async fn cmd_info(args: &InfoArgs, context: &Context) -> anyhow::Result<()> {
    let mut client = context.connect().await?;
    let (item, image) = client.image(&args.image).await?;
    if context.format == Format::Json {
        output::json(&item.to_json());
        return Ok(());
    }
    let status = client.status().await?;
    let os = &image.os;
    let known = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let mut rows = vec![
        ("Path", item.path.to_string()),
        ("Id", image.id.to_string()),
        ("Size", format!("{} ({} bytes)", output::bytes(image.size_bytes), image.size_bytes)),
        ("Format", image.format.to_string()),
        ("Family", os.family.to_string()),
        ("Distribution", known(&os.distribution)),
        ("Version", known(&os.version)),
        ("Architecture", known(&os.arch)),
        ("Modified", output::time(image.modified)),
        ("Inode", image.ino.to_string()),
    ];
    rows.extend(image.replicas.iter().map(|replica| ("Replica", place(replica, &status))));
    for (label, value) in rows {
        output::line(&output::plain(&format!("{label:<13} {value}")));
    }
    Ok(())
}

/// Pool, host and file of a replica, and whether it can be read now.
fn place(replica: &Replica, status: &Status) -> String {
    let Some(volume) = status.volume(replica.volume) else { return replica.volume.to_string() };
    let at = |sight: &isotope_proto::cluster::Sight| {
        let away = if status.connected(sight.node) { "" } else { " (not connected)" };
        format!("{}:{}/{}{away}", status.node_name(sight.node), sight.path, replica.path)
    };
    let sights: Vec<String> = volume.sights.iter().map(at).collect();
    format!("{} on {}", status.pool_name(volume.pool), sights.join(", "))
}
