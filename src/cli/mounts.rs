//! The mounts of this host, as they say themselves how they stand with their catalogue and how they
//! are read.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use isotope_fs::{Contact, FEED_ATTRIBUTE, FeedHealth, READS_ATTRIBUTE, Reads, our_mounts};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::output;

/// A mount answers from memory; one that takes so long is dead, or stopped.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// An answer is one line of a few hundred bytes; a reason may be long.
const ANSWER_BYTES_MAX: usize = 64 << 10;

#[derive(Debug, Serialize)]
pub(super) struct MountJson {
    path: PathBuf,
    /// Null if it did not say.
    feed: Option<FeedHealth>,
    /// Null if it did not say.
    reads: Option<Reads>,
    /// Why it did not.
    error: Option<String>,
}

type Told = (FeedHealth, Reads);

/// All mounts of Isotope here, each asked from a thread of its own: whoever asks a dead one may wait
/// for ever, and then it is not us.
pub(super) fn all() -> Vec<MountJson> {
    let (told, answers) = mpsc::channel();
    let paths = our_mounts();
    for (n, path) in paths.iter().cloned().enumerate() {
        let told = told.clone();
        std::thread::spawn(move || {
            // Nobody waits for an answer that comes too late.
            let _ = told.send((n, ask(&path)));
        });
    }
    drop(told);
    let late = || Err("it does not answer; umount -l, or umount -f, frees it".to_owned());
    let mut all: Vec<Result<Told, String>> = paths.iter().map(|_| late()).collect();
    let deadline = Instant::now() + ANSWER_MAX;
    while let Ok((n, answer)) =
        answers.recv_timeout(deadline.saturating_duration_since(Instant::now()))
    {
        all[n] = answer;
    }
    let mount = |(path, answer): (PathBuf, Result<Told, String>)| match answer {
        Ok((feed, reads)) => MountJson { path, feed: Some(feed), reads: Some(reads), error: None },
        Err(error) => MountJson { path, feed: None, reads: None, error: Some(error) },
    };
    paths.into_iter().zip(all).map(mount).collect()
}

fn ask(path: &Path) -> Result<Told, String> {
    Ok((attribute(path, FEED_ATTRIBUTE)?, attribute(path, READS_ATTRIBUTE)?))
}

fn attribute<T: DeserializeOwned>(path: &Path, name: &str) -> Result<T, String> {
    let mut answer = vec![0; ANSWER_BYTES_MAX];
    match rustix::fs::getxattr(path, name, &mut answer) {
        Ok(len) => serde_json::from_slice(&answer[..len])
            .map_err(|_| "it is of another version of Isotope".to_owned()),
        Err(Errno::ACCESS) => Err("it lets only its owner ask".to_owned()),
        Err(Errno::NOTCONN) => Err("its process has died; umount it, or start it again".to_owned()),
        Err(Errno::NODATA) => Err("it is of an older version of Isotope".to_owned()),
        Err(error) => Err(format!("it cannot be asked: {error}")),
    }
}

pub(super) fn print(mounts: Vec<MountJson>) {
    let row = |it: MountJson| {
        let revision =
            it.feed.as_ref().map_or_else(|| "-".to_owned(), |it| it.revision.to_string());
        let open = it.reads.as_ref().map_or_else(|| "-".to_owned(), open);
        vec![it.path.display().to_string(), revision, open, words(&it)]
    };
    let rows: Vec<_> = mounts.into_iter().map(row).collect();
    if !rows.is_empty() {
        output::table(&["MOUNT", "REVISION", "OPEN", "FEED"], &rows);
    }
}

/// What is open for reading now, and why not all images that were opened were passed through.
fn open(reads: &Reads) -> String {
    let Reads { open_passed_through, open_ordinary, opens_ordinary, .. } = reads;
    let mut words =
        format!("{open_passed_through} passed through, {open_ordinary} through the mount");
    // An image of another host is nothing to be explained.
    let reasons = opens_ordinary.by_reason().into_iter().filter(|(why, _)| *why != "not_local");
    let told = reasons.filter(|(_, count)| *count != 0);
    let told: Vec<_> = told.map(|(why, n)| format!("{n} {}", why.replace('_', " "))).collect();
    if !told.is_empty() {
        words.push_str(&format!(" (so far {})", told.join(", ")));
    }
    words
}

fn words(mount: &MountJson) -> String {
    let Some(feed) = &mount.feed else { return mount.error.clone().unwrap_or_default() };
    let since = humantime::format_duration(Duration::from_secs(feed.seconds));
    let because = feed.because.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    let mut words = match feed.contact {
        Contact::Following => format!("following {} for {since}", feed.catalog),
        Contact::CatchingUp => format!("catching up with {}", feed.catalog),
        Contact::Lost => format!("lost {} {since} ago{because}", feed.catalog),
    };
    if feed.from_snapshot {
        words.push_str("; read-only, as it was recorded");
    }
    if let Some(why) = &feed.unrecorded {
        words.push_str("; not recorded: ");
        words.push_str(why);
    }
    words
}

#[cfg(test)]
mod tests {
    use isotope_fs::Ordinary;

    use super::*;

    #[test]
    fn what_is_open_is_told_with_the_reasons() {
        let opens_ordinary =
            Ordinary { not_local: 9, touched: 2, agent_silent: 1, ..Ordinary::default() };
        let reads = Reads { open_passed_through: 3, opens_ordinary, ..Reads::default() };
        let told = "3 passed through, 0 through the mount (so far 2 touched, 1 agent silent)";
        assert_eq!(open(&reads), told);
        assert_eq!(open(&Reads::default()), "0 passed through, 0 through the mount");
    }

    #[test]
    fn each_state_has_its_words() {
        let feed = FeedHealth {
            catalog: "http://c".to_owned(),
            contact: Contact::Lost,
            seconds: 65,
            because: Some("refused".to_owned()),
            from_snapshot: true,
            incarnation: String::new(),
            revision: 3,
            unrecorded: Some("the disk is full".to_owned()),
        };
        let told = |feed| {
            words(&MountJson { path: "/m".into(), feed: Some(feed), reads: None, error: None })
        };
        let lost = "lost http://c 1m 5s ago: refused; read-only, as it was recorded; not recorded: \
                    the disk is full";
        assert_eq!(told(feed.clone()), lost);
        let fine = FeedHealth {
            contact: Contact::Following,
            because: None,
            from_snapshot: false,
            unrecorded: None,
            ..feed
        };
        assert_eq!(told(fine), "following http://c for 1m 5s");
    }
}
