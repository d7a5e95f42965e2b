//! `isotope scan`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use isotope_proto::cluster::VolumeState;
use isotope_proto::pb::{self, scan_event::Event};
use isotope_proto::refusal::{Reason, Refusal};
use serde::Serialize;

use super::Context;
use super::status::BacklogJson;
use crate::client::{Client, limited, time_of};
use crate::output::{self, Format};

/// How often is looked whether what is waited for is done.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Look for new, changed and removed images in the pools
#[derive(Debug, Args)]
pub(super) struct ScanArgs {
    /// Scan this pool alone
    pool: Option<String>,
    /// Wait until all that was found is hashed, too
    #[arg(long, value_name = "FOR")]
    wait: Option<Wait>,
    /// Scan nothing: show the scan of each volume that runs or ended last
    #[arg(long, conflicts_with = "wait")]
    last: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Wait {
    Hashed,
}

/// A scan of `--last`.
#[derive(Debug, Serialize)]
struct LastJson {
    pool: String,
    volume_id: String,
    node: String,
    begin_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_time: Option<String>,
    /// By somebody or the schedule; else the agent began it for what it heard.
    asked: bool,
    #[serde(flatten)]
    result: ResultJson,
    /// What has yet to be hashed.
    backlog: BacklogJson,
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
    if args.last {
        return show_last(&mut client, args.pool.as_deref(), context).await;
    }
    let request = pb::ScanIsosRequest { pool: args.pool.clone() };
    let mut events = client.cluster.scan_isos(request).await.map_err(Refusal::from)?.into_inner();
    let spinner = output::spinner();
    // Of each volume, as its pool's name and what was found so far.
    let mut found: BTreeMap<Vec<u8>, (String, pb::ScanCounts)> = BTreeMap::new();
    let mut answer = ScanJson::default();
    while let Some(event) = events.message().await.map_err(Refusal::from)? {
        match event.event {
            Some(Event::Choice(choice)) => answer.chosen(choice),
            Some(Event::Progress(progress)) => {
                let counts = progress.counts.unwrap_or_default();
                found.insert(progress.volume_id, (progress.pool, counts));
                let told: Vec<String> = found.values().map(so_far).collect();
                spinner.set_message(output::plain(&told.join("; ")));
            }
            Some(Event::Result(result)) => answer.ended(result),
            Some(Event::Summary(summary)) => answer.summed_up(summary),
            // From a newer catalogue.
            None => {}
        }
    }
    if args.wait.is_some() {
        let volumes: BTreeSet<&String> = answer.volumes.iter().map(|it| &it.volume_id).collect();
        until_hashed(&mut client, &volumes, &spinner).await?;
    }
    spinner.finish_and_clear();
    match context.format {
        Format::Json => output::json(&answer),
        Format::Text => answer.print(),
    }
    answer.verdict()
}

/// How far a volume's scan is.
fn so_far((pool, counts): &(String, pb::ScanCounts)) -> String {
    let pb::ScanCounts { files_seen, created, updated, deleted, suspect } = counts;
    let suspect = match suspect {
        0 => String::new(),
        _ => format!(", {suspect} seem gone: looking again"),
    };
    format!("{pool}: {files_seen} files, {created} new, {updated} changed, {deleted} gone{suspect}")
}

/// Waits until nothing of some volumes is left to be hashed.
async fn until_hashed(
    client: &mut Client,
    volumes: &BTreeSet<&String>,
    spinner: &ProgressBar,
) -> anyhow::Result<()> {
    loop {
        let status = client.status().await?;
        let backlogs = status.raw.backlogs.iter();
        let waits = |it: &&pb::Backlog| it.files > 0 && volumes.contains(&volume_id(&it.volume_id));
        let left: Vec<_> = backlogs.filter(waits).collect();
        if left.is_empty() {
            return Ok(());
        }
        // Nobody hashes what nobody sees.
        let is_left = |id| left.iter().any(|it| volume_id(&it.volume_id) == id);
        for volume in status.volumes.iter().filter(|it| is_left(it.id.to_string())) {
            if let VolumeState::Offline(reason) = status.volume_state(volume) {
                let text = format!("not all that was found is hashed: {reason}");
                return Err(Refusal::new(Reason::Unavailable, text).into());
            }
        }
        spinner.set_message(BacklogJson::sum(left.into_iter()).told());
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn show_last(
    client: &mut Client,
    pool: Option<&str>,
    context: &Context,
) -> anyhow::Result<()> {
    let scans = client.cluster.list_scans(limited(pb::ListScansRequest {})).await;
    let scans = scans.map_err(Refusal::from)?.into_inner().scans;
    let scans = scans.into_iter().filter(|scan| pool.is_none_or(|pool| scan.pool == pool));
    for scan in scans.map(LastJson::of) {
        match context.format {
            Format::Json => output::json(&scan),
            Format::Text => scan.print(),
        }
    }
    Ok(())
}

impl LastJson {
    fn of(scan: pb::VolumeScan) -> Self {
        let time = |at: prost_types::Timestamp| output::time(time_of(&at));
        Self {
            pool: scan.pool,
            volume_id: volume_id(&scan.volume_id),
            node: scan.node,
            begin_time: scan.begin_time.map(time).unwrap_or_default(),
            end_time: scan.end_time.map(time),
            asked: scan.asked,
            backlog: BacklogJson::sum(scan.backlog.iter()),
            result: ResultJson::of(scan.counts, scan.failure, scan.problems),
        }
    }

    fn print(&self) {
        let Self { pool, node, begin_time, end_time, asked, result, .. } = self;
        let by = if *asked { "asked for" } else { "by itself" };
        let ended = match end_time {
            Some(at) => format!("ended {at}"),
            None => "running".to_owned(),
        };
        let line = format!(
            "{begin_time}  {pool} on {node}, {by}, {ended}: {}; {}",
            result.told(),
            self.backlog.told()
        );
        output::line(&output::plain(&line));
        result.print_problems();
    }
}

impl ResultJson {
    fn of(
        counts: Option<pb::ScanCounts>,
        failure: Option<String>,
        problems: Vec<pb::ScanProblem>,
    ) -> Self {
        let counts = counts.unwrap_or_default();
        let problem = |it: pb::ScanProblem| ProblemJson { path: it.path, reason: it.reason };
        Self {
            files_seen: counts.files_seen,
            created: counts.created,
            updated: counts.updated,
            deleted: counts.deleted,
            failure,
            problems: problems.into_iter().map(problem).collect(),
        }
    }

    fn told(&self) -> String {
        let Self { files_seen, created, updated, deleted, failure, .. } = self;
        match failure {
            Some(failure) => format!("failed: {failure}"),
            None => {
                format!("{files_seen} files: {created} new, {updated} changed, {deleted} gone")
            }
        }
    }

    fn print_problems(&self) {
        for problem in &self.problems {
            let path = if problem.path.is_empty() { "" } else { "not taken: " };
            let colon = if problem.path.is_empty() { "" } else { ": " };
            output::note(&format!("  {path}{}{colon}{}", problem.path, problem.reason));
        }
    }
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
        if let Some(volume) = self.volumes.iter_mut().find(|volume| volume.volume_id == id) {
            let (counts, failure) = (result.counts, result.failure);
            volume.result = Some(ResultJson::of(counts, failure, result.problems));
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
                Some(result) => format!("{pool} on {node}: {}", result.told()),
            };
            output::line(&output::plain(&told));
            result.iter().for_each(ResultJson::print_problems);
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
