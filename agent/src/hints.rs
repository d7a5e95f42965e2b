//! When a volume is next to be looked at, by what is heard of it. Pure: no clock, no inotify. A hint
//! is never the truth; it is only a reason to look.

use std::time::{Duration, Instant};

/// After the last of several changes: a file that was closed may be opened again at once, as by
/// `cp -p`, which sets its times.
const QUIET: Duration = Duration::from_millis(300);
/// Changes that never end are looked at all the same.
const QUIET_MAX: Duration = Duration::from_secs(1);
/// After the last write to a file of which no close is heard: truncate(2) is such a one, and a
/// close that got lost. A file that is still open then is passed over by the look.
const WRITTEN_QUIET: Duration = Duration::from_secs(5);
/// Between two looks there is this much more time than the last one took: looking at a large
/// volume must not keep its disk busy for good.
const REST_FACTOR: u32 = 4;

/// What was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hint {
    /// Something was closed, moved, made or removed.
    Settled,
    /// Something is being written.
    Written,
    /// It is not known what has happened.
    Lost,
}

/// When to look.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Due {
    /// The first hint that was not followed up, and when to follow it up.
    settled: Option<(Instant, Instant)>,
    written: Option<Instant>,
    /// Something has happened of which nothing was heard.
    lost: bool,
    /// Not earlier, whatever is heard.
    rested: Option<Instant>,
}

impl Due {
    pub(crate) fn hear(&mut self, hint: Hint, now: Instant) {
        self.lost |= hint == Hint::Lost;
        match hint {
            Hint::Settled | Hint::Lost => {
                let first = self.settled.map_or(now, |(first, _)| first);
                self.settled = Some((first, (now + QUIET).min(first + QUIET_MAX)));
            }
            Hint::Written => self.written = Some(now + WRITTEN_QUIET),
        }
    }

    /// Something that waits is to be looked at again by then.
    pub(crate) fn by(&mut self, at: Instant) {
        self.written = Some(self.written.map_or(at, |standing| standing.min(at)));
    }

    /// The moment to look.
    pub(crate) fn at(&self) -> Option<Instant> {
        let at = self.settled.map(|(_, at)| at).into_iter().chain(self.written).min()?;
        Some(self.rested.map_or(at, |rested| rested.max(at)))
    }

    /// A look begins: it sees all that was heard of before. True if that was not all there was to
    /// hear: a directory may have been made that is not listened to, or a disk mounted anew.
    pub(crate) fn begin(&mut self) -> bool {
        let before = std::mem::take(self);
        self.rested = before.rested;
        before.lost
    }

    /// A look has ended.
    pub(crate) fn end(&mut self, now: Instant, took: Duration) {
        self.rested = Some(now + took * REST_FACTOR);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Milliseconds after the beginning.
    fn check(heard: &[(Hint, u64)], expected: Option<u64>) {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut due = Due::default();
        for (hint, ms) in heard {
            due.hear(*hint, at(*ms));
        }
        assert_eq!(due.at(), expected.map(at), "{heard:?}");
    }

    #[test]
    fn a_look_waits_for_quiet_but_not_for_ever() {
        use Hint::{Lost, Settled, Written};
        check(&[], None);
        check(&[(Settled, 0)], Some(300));
        check(&[(Settled, 0), (Settled, 200)], Some(500));
        check(&[(Settled, 0), (Settled, 200), (Settled, 400), (Settled, 600)], Some(900));
        check(&[(Settled, 0), (Settled, 900), (Settled, 990)], Some(1000));
        check(&[(Written, 0)], Some(5000));
        check(&[(Written, 0), (Written, 3000)], Some(8000));
        check(&[(Written, 0), (Written, 3000), (Settled, 3100)], Some(3400));
        check(&[(Lost, 0)], Some(300));
    }

    #[test]
    fn long_looks_are_followed_by_long_rests() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut due = Due::default();
        due.hear(Hint::Settled, at(0));
        assert!(!due.begin());
        assert_eq!(due.at(), None);
        due.hear(Hint::Settled, at(500));
        due.end(at(1000), Duration::from_secs(1));
        assert_eq!(due.at(), Some(at(5000)));
        due.by(at(6000));
        assert_eq!(due.at(), Some(at(5000)));
        due.hear(Hint::Lost, at(600));
        due.hear(Hint::Settled, at(700));
        assert!(due.begin() && !due.begin(), "a loss is told once");
        due.by(at(6000));
        assert_eq!(due.at(), Some(at(6000)));
    }
}
