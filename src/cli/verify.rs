//! `isotope verify` and `isotope scrub`: files read whole and compared with their hashes.

use clap::Args;
use isotope_proto::id::ImageId;
use isotope_proto::pb::{self, VerdictKind, verify_files_event, verify_files_request::What};
use isotope_proto::refusal::Refusal;
use serde::Serialize;

use super::Context;
use crate::client::library_path;
use crate::exit::Rotten;
use crate::output::{self, Format};

/// Read an image's files whole, on every host that has one, and compare them with its hashes
///
/// A file whose bytes have rotted is served no more, while another host's copy is. Exits with 7
/// if there is one.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// A library path, a path on a mount, or an id
    image: String,
}

/// Do the same with all images, or with those of one pool
///
/// Agents do it by themselves, slowly, every 30 days (agent.scrub_every_days).
#[derive(Debug, Args)]
pub(super) struct ScrubArgs {
    pool: Option<String>,
}

/// One file's verdict, a line each.
#[derive(Debug, Serialize)]
struct VerdictJson {
    path: String,
    image_id: String,
    pool: String,
    node: String,
    file: String,
    size_bytes: u64,
    verdict: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    text: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    sha256: String,
}

pub(super) async fn cmd_verify(args: &VerifyArgs, context: &Context) -> anyhow::Result<()> {
    let what = match args.image.parse::<ImageId>() {
        Ok(id) => What::ImageId(id.into()),
        Err(_) => What::Path(library_path(&args.image)?.to_string()),
    };
    run(Some(what), context).await
}

pub(super) async fn cmd_scrub(args: &ScrubArgs, context: &Context) -> anyhow::Result<()> {
    run(args.pool.clone().map(What::Pool), context).await
}

async fn run(what: Option<What>, context: &Context) -> anyhow::Result<()> {
    let mut client = context.connect().await?;
    let request = pb::VerifyFilesRequest { what };
    let heard = client.cluster.verify_files(request).await.map_err(Refusal::from)?;
    let mut events = heard.into_inner();
    let spinner = output::spinner();
    let (mut sound, mut rotten, mut unread) = (0_u64, 0_u64, 0_u64);
    while let Some(event) = events.message().await.map_err(Refusal::from)? {
        let (Some(file), Some(event)) = (event.file, event.event) else { continue };
        match event {
            verify_files_event::Event::BytesRead(bytes) => {
                let (read, size) = (output::bytes(bytes), output::bytes(file.size_bytes));
                spinner.set_message(output::plain(&format!("{}: {read} of {size}", file.path)));
            }
            verify_files_event::Event::Verdict(verdict) => {
                match verdict.kind() {
                    VerdictKind::Sound => sound += 1,
                    VerdictKind::Rotten => rotten += 1,
                    _ => unread += 1,
                }
                let verdict = VerdictJson::of(file, verdict);
                match context.format {
                    Format::Json => output::json(&verdict),
                    Format::Text => spinner.suspend(|| verdict.print()),
                }
            }
        }
    }
    spinner.finish_and_clear();
    if context.format == Format::Text {
        output::line(&format!("{sound} sound, {rotten} rotten, {unread} not read"));
    }
    if rotten > 0 {
        return Err(Rotten(rotten).into());
    }
    if unread > 0 {
        anyhow::bail!("{unread} of the files could not be verified");
    }
    Ok(())
}

impl VerdictJson {
    fn of(file: pb::VerifiedFile, verdict: pb::Verdict) -> Self {
        let kind = match verdict.kind() {
            VerdictKind::Sound => "sound",
            VerdictKind::Rotten => "rotten",
            VerdictKind::Changed => "changed",
            VerdictKind::Unreadable | VerdictKind::Unspecified => "unreadable",
        };
        let sha256 = <[u8; 32]>::try_from(&*verdict.sha256)
            .map(|bytes| isotope_proto::digest::Sha256::from_bytes(bytes).to_string());
        Self {
            path: file.path,
            image_id: ImageId::try_from(&*file.image_id)
                .map_or_else(|_| String::new(), |id| id.to_string()),
            pool: file.pool,
            node: file.node,
            file: file.file,
            size_bytes: file.size_bytes,
            verdict: kind,
            text: verdict.text,
            sha256: sha256.unwrap_or_default(),
        }
    }

    fn print(&self) {
        let Self { path, pool, node, verdict, text, .. } = self;
        let text = if text.is_empty() { String::new() } else { format!(": {text}") };
        output::line(&output::plain(&format!("{verdict}  {path} ({pool} on {node}){text}")));
    }
}
