//! `isotope info`.

use clap::Args;
use isotope_proto::cluster::VolumeState;
use isotope_proto::facts::{Facts, Source};
use isotope_proto::image::{Image, Replica};

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
    rows.extend(image.flat_names.iter().map(|name| ("View name", name.to_string())));
    rows.splice(0..0, item.paths.iter().map(|path| ("Path", path.clone())));
    if let Some(facts) = &image.facts {
        rows.extend(told(facts));
    }
    if let Some(hashes) = image.hashes {
        rows.push(("SHA-256", hashes.sha256.to_string()));
        rows.push(("BLAKE3", hashes.blake3.to_string()));
    }
    rows.push(("State", state(&image, &status)));
    rows.extend(image.replicas.iter().map(|replica| ("Replica", place(replica, &status))));
    for (label, value) in rows {
        // A label may have line breaks too, and must not pose as a line of ours.
        output::line(&output::plain(&format!("{label:<13} {}", value.replace('\n', "\\n"))));
    }
    Ok(())
}

/// What its bytes say, a row each; nothing of what they do not say.
fn told(facts: &Facts) -> Vec<(&'static str, String)> {
    let mut rows: Vec<(&'static str, String)> = Vec::new();
    let mut text = |label, text: &str| {
        if !text.is_empty() {
            rows.push((label, text.to_owned()));
        }
    };
    text("Problem", facts.problem.as_deref().unwrap_or_default());
    text("Volume label", &facts.volume_label);
    text("System id", &facts.system_id);
    text("Publisher", &facts.publisher_id);
    text("Application", &facts.application_id);
    text("Volume size", &size(facts.volume_size_bytes));
    let extensions = facts.extensions;
    text(
        "Extensions",
        &listed(&[
            (extensions.joliet, "Joliet"),
            (extensions.rock_ridge, "Rock Ridge"),
            (extensions.udf, "UDF"),
        ]),
    );
    text("Boots", &listed(&[(facts.boot.bios, "BIOS"), (facts.boot.uefi, "UEFI")]));
    text("Partitions", &facts.partitions.map(|it| it.to_string()).unwrap_or_default());
    text("Disk size", &size(facts.virtual_size_bytes));
    if let Some(machine) = &facts.appliance {
        text("Machine", &machine.name);
        text("System", &machine.os);
        text("Memory", &size(machine.memory_bytes));
        for disk in &machine.disks {
            text("Disk", format!("{} {}", disk.name, size(disk.capacity_bytes)).trim());
        }
    }
    for candidate in &facts.candidates {
        let from = match candidate.source {
            Source::Osinfo => "osinfo-db",
            Source::OwnTable => "its labels",
            Source::MarkerFile => "files on it",
            Source::Appliance => "its description",
            Source::FileName => "its name",
        };
        text("Candidate", &format!("{} (by {from})", candidate.name));
    }
    rows
}

/// Nothing for a size that is not known.
fn size(size_bytes: u64) -> String {
    if size_bytes == 0 { String::new() } else { output::bytes(size_bytes) }
}

fn listed(all: &[(bool, &str)]) -> String {
    let there: Vec<&str> = all.iter().filter(|(there, _)| *there).map(|(_, name)| *name).collect();
    there.join(", ")
}

/// Pool, host and file of a replica, and whether it can be read now.
/// Whether its bytes can be had, and are known.
fn state(image: &Image, status: &Status) -> String {
    let is_online = |replica: &&Replica| {
        let volume = status.volume(replica.volume);
        volume.is_some_and(|it| matches!(status.volume_state(it), VolumeState::Online(_)))
    };
    let sound = image.replicas.iter().filter(|replica| !replica.is_rotten());
    let (sound, online) = (sound.clone().count(), sound.filter(is_online).count());
    let rotten = image.replicas.len() - sound;
    match (sound, online, image.hashes) {
        (0, _, _) => "corrupt: no file of it is sound".to_owned(),
        (_, 0, _) => "missing: no volume that has it can be read now".to_owned(),
        _ if rotten > 0 => format!("degraded: {rotten} of its files have rotted"),
        (_, _, Some(_)) => "ready".to_owned(),
        (_, _, None) => "ready, not hashed yet".to_owned(),
    }
}

/// What reading a file whole found.
fn checked(replica: &Replica) -> String {
    let Some(checked) = &replica.checked else { return String::new() };
    let read = output::time(checked.read);
    let found = if checked.rotten { "ROTTEN" } else { "verified" };
    let published = match &checked.published {
        Some(it) if it.agrees => format!(", as {} says", it.file),
        Some(it) => format!(", NOT as {} says", it.file),
        None => String::new(),
    };
    format!(", {found} {read}{published}")
}

fn place(replica: &Replica, status: &Status) -> String {
    let Some(volume) = status.volume(replica.volume) else { return replica.volume.to_string() };
    let at = |sight: &isotope_proto::cluster::Sight| {
        let away = if status.connected(sight.node) { "" } else { " (not connected)" };
        format!("{}:{}/{}{away}", status.node_name(sight.node), sight.path, replica.path)
    };
    let sights: Vec<String> = volume.sights.iter().map(at).collect();
    let (pool, checked) = (status.pool_name(volume.pool), checked(replica));
    format!("{pool} on {}{checked}", sights.join(", "))
}
