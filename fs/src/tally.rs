//! What reading through this mount has come to, in numbers: counted as it happens, told as plain
//! data. It decides nothing, and knows neither who reads nor how.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::FsError;

/// The root directory's attribute that holds a [`Reads`] as one line of JSON.
pub const READS_ATTRIBUTE: &str = "user.isotope.reads";

/// Why an image is read through the mount's process, and not by the kernel from a local file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// No agent of this host has a file of it.
    NotLocal,
    /// Something touched the file, and it has yet to be hashed again.
    Touched,
    /// The agent does not pass the file: it changed, it rotted, its disk is offline or hangs.
    Withheld,
    /// The agent of this host did not answer in time.
    AgentSilent,
    /// The kernel takes no file of that file system for a backing file, or none at all.
    Refused,
    /// By `verify_local`.
    TurnedOff,
    /// Only root may hand files to the kernel.
    Unprivileged,
}

impl Why {
    const COUNT: usize = 7;

    fn index(self) -> usize {
        match self {
            Self::NotLocal => 0,
            Self::Touched => 1,
            Self::Withheld => 2,
            Self::AgentSilent => 3,
            Self::Refused => 4,
            Self::TurnedOff => 5,
            Self::Unprivileged => 6,
        }
    }
}

/// How an image was opened for reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    PassedThrough,
    Ordinary(Why),
}

/// What a mount says of how it is read. All numbers are since it was mounted, except those of what
/// is open now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reads {
    /// Images open for reading that the kernel reads from this host's own files.
    pub open_passed_through: u64,
    /// Images open for reading through the mount's process.
    pub open_ordinary: u64,
    pub opens_passed_through: u64,
    pub opens_ordinary: Ordinary,
    /// Bytes of images that the mount's process fetched for its readers, from agents of whichever
    /// host. What is passed through is not among them: nobody here sees it.
    pub bytes_from_hosts: u64,
    /// Requests to read that ended with an error.
    pub reads_failed: u64,
    /// Times that a host was found not to answer.
    pub hosts_lost: u64,
    /// Times that another host was asked beside one that was silent or slow.
    pub hedges: u64,
    /// Times that bytes were not the image's.
    pub wrong_copies: u64,
}

/// Images opened the ordinary way, by why.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ordinary {
    pub not_local: u64,
    pub touched: u64,
    pub withheld: u64,
    pub agent_silent: u64,
    pub refused_by_kernel: u64,
    pub turned_off: u64,
    pub unprivileged: u64,
}

impl Ordinary {
    /// Each number, with the word for it.
    #[must_use]
    pub fn by_reason(&self) -> [(&'static str, u64); Why::COUNT] {
        [
            ("not_local", self.not_local),
            ("touched", self.touched),
            ("withheld", self.withheld),
            ("agent_silent", self.agent_silent),
            ("refused_by_kernel", self.refused_by_kernel),
            ("turned_off", self.turned_off),
            ("unprivileged", self.unprivileged),
        ]
    }

    #[must_use]
    pub fn sum(&self) -> u64 {
        self.by_reason().iter().map(|(_, count)| count).sum()
    }
}

/// The numbers of a mount. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Tally(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    open_passed_through: AtomicU64,
    open_ordinary: AtomicU64,
    opens_passed_through: AtomicU64,
    opens_ordinary: [AtomicU64; Why::COUNT],
    bytes_from_hosts: AtomicU64,
    reads_failed: AtomicU64,
    hosts_lost: AtomicU64,
    hedges: AtomicU64,
    wrong_copies: AtomicU64,
}

impl Counts {
    fn now_open(&self, way: Way) -> &AtomicU64 {
        match way {
            Way::PassedThrough => &self.open_passed_through,
            Way::Ordinary(_) => &self.open_ordinary,
        }
    }
}

/// An image that is open for reading, and counted as that; no more when dropped.
pub(crate) struct Opened {
    way: Way,
    counts: Arc<Counts>,
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.counts.now_open(self.way).fetch_sub(1, Ordering::Relaxed);
    }
}

impl Tally {
    pub(crate) fn opened(&self, way: Way) -> Opened {
        let counts = Arc::clone(&self.0);
        let opens = match way {
            Way::PassedThrough => &counts.opens_passed_through,
            Way::Ordinary(why) => &counts.opens_ordinary[why.index()],
        };
        opens.fetch_add(1, Ordering::Relaxed);
        counts.now_open(way).fetch_add(1, Ordering::Relaxed);
        Opened { way, counts }
    }

    /// So many bytes of images were fetched and handed on.
    fn fetched(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.0.bytes_from_hosts.fetch_add(bytes, Ordering::Relaxed);
    }

    fn failed(&self) {
        self.0.reads_failed.fetch_add(1, Ordering::Relaxed);
    }

    /// What came of reading an image.
    pub(crate) fn read(&self, read: &Result<Bytes, FsError>) {
        match read {
            Ok(bytes) => self.fetched(bytes.len()),
            Err(_) => self.failed(),
        }
    }

    pub(crate) fn host_lost(&self) {
        self.0.hosts_lost.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn hedged(&self) {
        self.0.hedges.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn wrong_copy(&self) {
        self.0.wrong_copies.fetch_add(1, Ordering::Relaxed);
    }

    #[must_use]
    pub fn told(&self) -> Reads {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let why = |why: Why| of(&self.0.opens_ordinary[why.index()]);
        Reads {
            open_passed_through: of(&self.0.open_passed_through),
            open_ordinary: of(&self.0.open_ordinary),
            opens_passed_through: of(&self.0.opens_passed_through),
            opens_ordinary: Ordinary {
                not_local: why(Why::NotLocal),
                touched: why(Why::Touched),
                withheld: why(Why::Withheld),
                agent_silent: why(Why::AgentSilent),
                refused_by_kernel: why(Why::Refused),
                turned_off: why(Why::TurnedOff),
                unprivileged: why(Why::Unprivileged),
            },
            bytes_from_hosts: of(&self.0.bytes_from_hosts),
            reads_failed: of(&self.0.reads_failed),
            hosts_lost: of(&self.0.hosts_lost),
            hedges: of(&self.0.hedges),
            wrong_copies: of(&self.0.wrong_copies),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_open_is_counted_once_under_its_reason() {
        let tally = Tally::default();
        let passed = [Way::PassedThrough; 2].map(|way| tally.opened(way));
        let reasons = [
            Why::NotLocal,
            Why::Touched,
            Why::Withheld,
            Why::AgentSilent,
            Why::Refused,
            Why::TurnedOff,
            Why::Unprivileged,
        ];
        let ordinary = reasons.map(|why| tally.opened(Way::Ordinary(why)));
        let told = tally.told();
        assert_eq!((told.open_passed_through, told.open_ordinary), (2, 7));
        assert!(told.opens_ordinary.by_reason().iter().all(|(_, count)| *count == 1), "{told:?}");
        drop((passed, ordinary));
        tally.read(&Ok(Bytes::from_static(b"bytes")));
        tally.read(&Err(FsError::TimedOut));
        let now = Reads {
            open_passed_through: 0,
            open_ordinary: 0,
            bytes_from_hosts: 5,
            reads_failed: 1,
            ..told
        };
        assert_eq!(tally.told(), now);
        let json = serde_json::to_string(&now).expect("JSON");
        assert_eq!(serde_json::from_str::<Reads>(&json).expect("read back"), now);
    }
}
