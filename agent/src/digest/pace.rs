//! How fast to read: a number of bytes per second, and how long to wait for it. Times are given;
//! it knows no clock.

use std::time::{Duration, Instant};

/// What was not read while the disk or others were slow is not made good for longer than this: a
/// host that was busy must not find the disk busy next.
const CATCH_UP_MAX: Duration = Duration::from_millis(200);

/// A limit on the bytes read per second.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    bytes_per_second: Option<u64>,
    /// When what was read so far is used up.
    due: Option<Instant>,
}

impl Pace {
    /// `None` and zero are no limit.
    #[must_use]
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second: bytes_per_second.filter(|rate| *rate > 0), due: None }
    }

    #[must_use]
    pub fn unlimited() -> Self {
        Self::default()
    }

    /// So many bytes have been read: how long to wait before the next.
    pub fn wait(&mut self, bytes: u64, now: Instant) -> Duration {
        let Some(rate) = self.bytes_per_second else { return Duration::ZERO };
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let earliest = now.checked_sub(CATCH_UP_MAX).unwrap_or(now);
        // The first bytes were being read before anything was known of time.
        let due = self.due.map_or(now, |due| due.max(earliest)) + takes;
        self.due = Some(due);
        due.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_kept_and_little_is_made_good() {
        // Bytes read at a time in ms, and the wait in ms, at 1 MB/s.
        let mut pace = Pace::new(Some(1_000_000));
        let began = Instant::now();
        for (at_ms, bytes, expected_ms) in [
            (0, 100_000, 100),
            (100, 100_000, 100),
            // The disk took 50 ms longer: the wait is shorter.
            (250, 100_000, 50),
            (300, 0, 0),
            // Nothing for 700 ms, of which only 200 are made good.
            (1_000, 150_000, 0),
            (1_000, 150_000, 100),
        ] {
            let waits = pace.wait(bytes, began + Duration::from_millis(at_ms));
            assert_eq!(waits, Duration::from_millis(expected_ms), "at {at_ms} ms");
        }
    }

    #[test]
    fn no_limit_never_waits() {
        for rate in [None, Some(0)] {
            assert_eq!(Pace::new(rate).wait(u64::MAX, Instant::now()), Duration::ZERO);
        }
    }

    #[test]
    fn a_slow_pace_keeps_its_average_over_an_hour() {
        let mut pace = Pace::new(Some(3_000_000));
        let began = Instant::now();
        let mut now = began;
        for _ in 0..10_000 {
            now += pace.wait(1 << 20, now);
        }
        let took = (now - began).as_secs_f64();
        assert!((took - 10_000.0 * f64::from(1 << 20) / 3e6).abs() < 0.01, "{took}");
    }
}
