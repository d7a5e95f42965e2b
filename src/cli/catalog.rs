//! `isotope catalog`: the catalogue's own database, saved and put back.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use isotope_catalog::check_backup;
use isotope_proto::id::Incarnation;
use isotope_proto::pb;
use isotope_proto::refusal::{Reason, Refusal};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::Serialize;

use super::{Context, daemon};
use crate::client::next;
use crate::exit::Interrupted;
use crate::output::{self, Format};

/// The database is copied before its first byte is sent: a minute is enough for that of a million
/// images on a slow disk.
const FIRST_CHUNK_MAX: Duration = Duration::from_secs(120);
/// Every host reads its copies, and the library is written anew: minutes for a million images on
/// slow disks.
const REBUILD_MAX: Duration = Duration::from_secs(600);

/// The catalogue's database: what has which name, and where its bytes are
#[derive(Debug, Args)]
pub(super) struct CatalogArgs {
    #[command(subcommand)]
    command: CatalogCommand,
}

#[derive(Debug, Subcommand)]
enum CatalogCommand {
    /// Save the database of a running catalogue to a file
    ///
    /// Changes go on meanwhile; the file has the library as it was at one moment. It is checked,
    /// and appears whole or not at all.
    Backup {
        file: PathBuf,
        /// Replace an existing file
        #[arg(short, long)]
        force: bool,
    },
    /// Put a backup in the place of the database, while the catalogue is stopped
    ///
    /// The database that was there is kept beside it. Names and folders are as they were; files
    /// that came since are found again when their hosts connect, those that went are missed.
    Restore {
        file: PathBuf,
        /// Directory of the database [default: state of the configuration]
        #[arg(long, value_name = "DIR")]
        state: Option<PathBuf>,
    },
    /// Bring back folders and names from what lies in the pools, after the database was lost
    ///
    /// Asks every connected host for the copies of the library in its volumes, and puts what they
    /// come to in the place of the running catalogue's. Volumes that cannot be asked are named; run
    /// it again when they are back.
    Rebuild {
        /// Only tell what would come of it
        #[arg(long)]
        dry_run: bool,
        /// Although people have changed the library since
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Serialize)]
struct BackupJson {
    file: PathBuf,
    size_bytes: u64,
    revision: u64,
    images: u64,
}

#[derive(Debug, Serialize)]
struct RebuildJson {
    /// Copies of the library that were read.
    logs: u64,
    /// What the library has with them.
    images: u64,
    folders: u64,
    /// Images and folders that it did not have, or under other numbers.
    restored: u64,
    /// Changes that people had made to the library as it was.
    changes: u64,
    /// Names that had to give way to others.
    renamed: u64,
    /// What could not be asked, and why.
    missing: Vec<String>,
    /// Of the catalogue's new life; none if nothing was to be brought back, or in a dry run.
    incarnation: Option<String>,
}

#[derive(Debug, Serialize)]
struct RestoreJson {
    file: PathBuf,
    revision: u64,
    images: u64,
    incarnation: String,
    /// The database that was there before.
    kept: Option<PathBuf>,
}

pub(super) async fn cmd_catalog(args: &CatalogArgs, context: &Context) -> anyhow::Result<()> {
    match &args.command {
        CatalogCommand::Backup { file, force } => backup(file, *force, context).await,
        CatalogCommand::Restore { file, state } => {
            restore(file, state.as_deref().unwrap_or(&context.settings.state), context)
        }
        CatalogCommand::Rebuild { dry_run, yes } => rebuild(*dry_run, *yes, context).await,
    }
}

async fn backup(file: &Path, force: bool, context: &Context) -> anyhow::Result<()> {
    if file.exists() && !force {
        let text = format!("{} exists; --force replaces it", file.display());
        return Err(Refusal::new(Reason::Exists, text).into());
    }
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let stop = daemon::stop_on_signal()?;
    let saved = tokio::select! {
        saved = save(&part, context) => saved,
        () = stop.cancelled() => Err(Interrupted.into()),
    };
    let published = saved.and_then(|size_bytes| {
        let info = check_backup(&part)?;
        // What came there meanwhile is not replaced unasked.
        let flags = if force { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        let cannot = || format!("cannot write {}", file.display());
        renameat_with(CWD, &part, CWD, file, flags).with_context(cannot)?;
        sync_dir(file).with_context(cannot)?;
        Ok((size_bytes, info))
    });
    let (size_bytes, info) = published.inspect_err(|_| drop(fs::remove_file(&part)))?;
    match context.format {
        Format::Json => output::json(&BackupJson {
            file: file.to_owned(),
            size_bytes,
            revision: info.revision,
            images: info.images,
        }),
        Format::Text => output::line(&format!(
            "{}: {}, {}, up to revision {}",
            output::plain(&file.to_string_lossy()),
            output::bytes(size_bytes),
            output::images(info.images),
            info.revision
        )),
    }
    Ok(())
}

/// Writes what the catalogue sends, and has it on the disk; its size.
async fn save(part: &Path, context: &Context) -> anyhow::Result<u64> {
    let mut client = context.connect().await?;
    let late = |_| Refusal::new(Reason::TimedOut, "the catalogue does not answer");
    let asked = client.cluster.backup(pb::BackupRequest {});
    let answered = tokio::time::timeout(FIRST_CHUNK_MAX, asked).await.map_err(late)?;
    let mut chunks = answered.map_err(Refusal::from)?.into_inner();
    let cannot = || format!("cannot write {}", part.display());
    let mut out = File::create(part).with_context(cannot)?;
    let mut written = 0;
    let mut expected = 0;
    while let Some(chunk) = next(&mut chunks).await? {
        out.write_all(&chunk.data).with_context(cannot)?;
        written += u64::try_from(chunk.data.len())?;
        expected = chunk.size_bytes;
    }
    if written != expected || written == 0 {
        let text = format!("the catalogue sent {written} of {expected} bytes; try again");
        return Err(Refusal::new(Reason::Unavailable, text).into());
    }
    out.sync_all().with_context(cannot)?;
    Ok(written)
}

fn sync_dir(file: &Path) -> std::io::Result<()> {
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

fn restore(file: &Path, state: &Path, context: &Context) -> anyhow::Result<()> {
    let restored = isotope_catalog::restore(file, state)?;
    match context.format {
        Format::Json => output::json(&RestoreJson {
            file: file.to_owned(),
            revision: restored.backup.revision,
            images: restored.backup.images,
            incarnation: restored.incarnation.to_string(),
            kept: restored.kept,
        }),
        Format::Text => {
            output::line(&format!(
                "restored {}, up to revision {}; start the catalogue, and hosts will tell it \
                 what has changed in their pools",
                output::images(restored.backup.images),
                restored.backup.revision
            ));
            if let Some(kept) = &restored.kept {
                let kept = output::plain(&kept.to_string_lossy());
                output::line(&format!("the database that was there is {kept}"));
            }
        }
    }
    Ok(())
}

async fn rebuild(dry_run: bool, yes: bool, context: &Context) -> anyhow::Result<()> {
    let mut client = context.connect().await?;
    let late = |_| Refusal::new(Reason::TimedOut, "the catalogue does not answer");
    let asked = client.cluster.rebuild(pb::RebuildRequest { dry_run, accept: yes });
    let answer = tokio::time::timeout(REBUILD_MAX, asked).await.map_err(late)?;
    let answer = answer.map_err(Refusal::from)?.into_inner();
    let incarnation = Incarnation::try_from(&*answer.incarnation).ok();
    let answer = RebuildJson {
        logs: answer.logs,
        images: answer.images,
        folders: answer.folders,
        restored: answer.restored,
        changes: answer.changes,
        renamed: answer.renamed,
        missing: answer.missing,
        incarnation: incarnation.map(|it| it.to_string()),
    };
    match context.format {
        Format::Json => output::json(&answer),
        Format::Text => answer.print(dry_run),
    }
    Ok(())
}

impl RebuildJson {
    fn print(&self, dry_run: bool) {
        let RebuildJson { logs, images, folders, restored, changes, renamed, .. } = self;
        let images = output::images(*images);
        if *restored == 0 {
            output::line(&format!(
                "nothing to bring back: of {logs} copies none has what the library has not"
            ));
        } else {
            let (verb, tense) = if dry_run { ("would have", "would be") } else { ("has", "are") };
            output::line(&format!(
                "from {logs} copies the library {verb} {images} in {folders} folders; {restored} \
                 images and folders {tense} as they were again"
            ));
        }
        if *renamed > 0 {
            output::line(&format!("{renamed} names had been given twice, and got an addition"));
        }
        if dry_run && *restored > 0 && *changes > 0 {
            output::line(&format!(
                "people have made {changes} changes to the library as it is; say --yes to rebuild it"
            ));
        }
        for missing in &self.missing {
            output::line(&format!("not asked: {}", output::plain(missing)));
        }
        if !self.missing.is_empty() {
            output::line("run isotope catalog rebuild again when they are back");
        }
    }
}
