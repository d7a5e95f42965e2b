//! `isotope scan`.

use std::collections::BTreeMap;

use clap::Args;
use isotope_proto::pb::{self, scan_event::Event};
use isotope_proto::refusal::{Reason, Refusal};
use serde::Serialize;

use super::Context;
use crate::output::{self, Format};

/// Look for new, changed and removed images in the pools
#[derive(Debug, Args)]
pub(super) struct ScanArgs {
    /// Scan this pool alone
    pool: Option<String>,
}

/// What `--json` prints.
#[derive(Debug, Default, Serialize)]
struct ScanJson {
    discovered: u64,
    message: String,
    volumes_scanned: u64,
    volumes_skipped: u64,
    volumes_failed: u64,
    volumes: Vec<VolumeJson>,
}

#[derive(Debug, Serialize)]
struct VolumeJson {
    pool: String,
    volume_id: String,
    node: String,
    /// Why that node, or why none.
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<ResultJson>,
}

#[derive(Debug, Serialize)]
struct ResultJson {
    files_seen: u64,
    created: u64,
    updated: u64,
    deleted: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
    problems: Vec<ProblemJson>,
}

#[derive(Debug, Serialize)]
struct ProblemJson {
    path: String,
    reason: String,
}

pub(super) async fn cmd_scan(args: &ScanArgs, context: &Context) -> anyhow::Result<()> {
    let mut client = context.connect().await?;
    let request = pb::ScanIsosRequest { pool: args.pool.clone() };
    let mut events = client.cluster.scan_isos(request).await.map_err(Refusal::from)?.into_inner();
    let spinner = output::spinner();
    let mut seen: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    let mut answer = ScanJson::default();
    while let Some(event) = events.message().await.map_err(Refusal::from)? {
        match event.event {
            Some(Event::Choice(choice)) => answer.chosen(choice),
            Some(Event::Progress(progress)) => {
                seen.insert(progress.volume_id, progress.counts.unwrap_or_default().files_seen);
                spinner.set_message(format!("{} files seen", seen.values().sum::<u64>()));
            }
            Some(Event::Result(result)) => answer.ended(result),
            Some(Event::Summary(summary)) => answer.summed_up(summary),
            // From a newer catalogue.
            None => {}
        }
    }
    spinner.finish_and_clear();
    match context.format {
        Format::Json => output::json(&answer),
        Format::Text => answer.print(),
    }
    answer.verdict()
}

impl ScanJson {
    fn chosen(&mut self, choice: pb::ScanChoice) {
        self.volumes.push(VolumeJson {
            pool: choice.pool,
            volume_id: volume_id(&choice.volume_id),
            node: choice.node,
            reason: choice.reason,
            result: None,
        });
    }

    fn ended(&mut self, result: pb::ScanResult) {
        let id = volume_id(&result.volume_id);
        let counts = result.counts.unwrap_or_default();
        let problem = |it: pb::ScanProblem| ProblemJson { path: it.path, reason: it.reason };
        if let Some(volume) = self.volumes.iter_mut().find(|volume| volume.volume_id == id) {
            volume.result = Some(ResultJson {
                files_seen: counts.files_seen,
                created: counts.created,
                updated: counts.updated,
                deleted: counts.deleted,
                failure: result.failure,
                problems: result.problems.into_iter().map(problem).collect(),
            });
        }
    }

    fn summed_up(&mut self, summary: pb::ScanSummary) {
        self.discovered = summary.discovered;
        self.message = summary.message;
        self.volumes_scanned = summary.volumes_scanned;
        self.volumes_skipped = summary.volumes_skipped;
        self.volumes_failed = summary.volumes_failed;
    }

    fn print(&self) {
        for VolumeJson { pool, node, reason, result, .. } in &self.volumes {
            let told = match result {
                None => format!("{pool}: skipped: {reason}"),
                Some(ResultJson { failure: Some(failure), .. }) => {
                    format!("{pool} on {node}: failed: {failure}")
                }
                Some(it) => format!(
                    "{pool} on {node}: {} files: {} new, {} changed, {} gone",
                    it.files_seen, it.created, it.updated, it.deleted
                ),
            };
            output::line(&output::plain(&told));
            for problem in result.iter().flat_map(|it| &it.problems) {
                output::note(&format!("  not taken: {}: {}", problem.path, problem.reason));
            }
        }
        output::line(&self.message);
    }

    fn verdict(&self) -> anyhow::Result<()> {
        if self.volumes_failed > 0 {
            anyhow::bail!("{} of the volumes could not be scanned", self.volumes_failed);
        }
        if self.volumes_scanned == 0 && self.volumes_skipped > 0 {
            let text = "no volume could be scanned; see isotope node ls";
            return Err(Refusal::new(Reason::Unavailable, text).into());
        }
        Ok(())
    }
}

fn volume_id(bytes: &[u8]) -> String {
    isotope_proto::id::VolumeId::try_from(bytes).map_or_else(|_| String::new(), |id| id.to_string())
}
