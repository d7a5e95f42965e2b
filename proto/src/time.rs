//! Points in time as values. Clocks order nothing here; they only describe.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Nanoseconds since the Unix epoch, negative before it; reaches from 1677 to 2262.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub i64);

const NANOS_PER_SECOND: i64 = 1_000_000_000;

impl Timestamp {
    /// Clamped to what 64 bits of nanoseconds hold.
    #[must_use]
    pub fn from_parts(seconds: i64, nanos: u32) -> Self {
        Self(seconds.saturating_mul(NANOS_PER_SECOND).saturating_add(i64::from(nanos)))
    }

    /// Whole seconds, rounded down, and the nanoseconds above them.
    #[must_use]
    pub fn parts(self) -> (i64, u32) {
        let nanos = self.0.rem_euclid(NANOS_PER_SECOND);
        (self.0.div_euclid(NANOS_PER_SECOND), u32::try_from(nanos).unwrap_or(0))
    }

    /// Seconds and nanoseconds since the epoch; zero for times before it.
    #[must_use]
    pub fn since_epoch(self) -> (u64, u32) {
        match self.parts() {
            (seconds, nanos) if seconds >= 0 => (seconds.unsigned_abs(), nanos),
            _ => (0, 0),
        }
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let nanos = |d: Duration| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX);
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Self(nanos(after)),
            Err(before) => Self(nanos(before.duration()).saturating_neg()),
        }
    }
}

impl From<Timestamp> for SystemTime {
    fn from(time: Timestamp) -> Self {
        let distance = Duration::from_nanos(time.0.unsigned_abs());
        if time.0 >= 0 { UNIX_EPOCH + distance } else { UNIX_EPOCH - distance }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_round_down_and_come_back() {
        for (nanos, parts) in [
            (0, (0, 0)),
            (1, (0, 1)),
            (1_500_000_000, (1, 500_000_000)),
            (-1, (-1, 999_999_999)),
            (-1_000_000_000, (-1, 0)),
        ] {
            assert_eq!(Timestamp(nanos).parts(), parts);
            assert_eq!(Timestamp::from_parts(parts.0, parts.1), Timestamp(nanos));
            assert_eq!(Timestamp::from(SystemTime::from(Timestamp(nanos))), Timestamp(nanos));
        }
    }
}
