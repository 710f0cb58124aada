//! When frames arrived: the kernel stamps them by CLOCK_REALTIME, which somebody may set at any time. Everything else
//! here uses CLOCK_MONOTONIC.

/// A frame may have been stamped this long before the rings were last empty, and become visible after that.
const GRACE: u64 = 1_000_000;

/// The difference of the clocks, read again before frames are received.
#[derive(Debug)]
pub struct Stamps {
    /// CLOCK_REALTIME minus CLOCK_MONOTONIC, when the rings were last empty and now.
    before: i64,
    now: i64,
    /// When the rings were last empty.
    earliest: u64,
    /// When the clocks were last read.
    checked: u64,
}

impl Stamps {
    pub fn new(monotonic: u64, realtime: u64) -> Stamps {
        let offset = realtime.wrapping_sub(monotonic) as i64;
        Stamps { before: offset, now: offset, earliest: monotonic, checked: monotonic }
    }

    /// Call with both clocks before receiving frames.
    pub fn check(&mut self, monotonic: u64, realtime: u64) {
        self.now = realtime.wrapping_sub(monotonic) as i64;
        self.checked = monotonic;
    }

    /// Call when no frame was left, after [`Stamps::check`].
    pub fn emptied(&mut self) {
        self.before = self.now;
        self.earliest = self.checked;
    }

    /// Whether a frame seems to have arrived after `now`.
    pub fn is_later(&self, stamp: u64, now: u64) -> bool {
        (stamp as i64).saturating_sub(self.now) > now as i64
    }

    /// Returns when a frame arrived, by CLOCK_MONOTONIC: after the rings were last empty, and not after `now`.
    pub fn arrival(&self, stamp: u64, now: u64) -> u64 {
        let earliest = self.earliest.saturating_sub(GRACE);
        let by = |offset: i64| u64::try_from((stamp as i64).saturating_sub(offset)).unwrap_or(0);
        let within = |time: &u64| (earliest..=now).contains(time);
        // For a frame that was stamped before the clock was set, only the earlier difference gives a time that fits.
        let time = [by(self.now), by(self.before)].into_iter().find(within);
        time.unwrap_or_else(|| by(self.now).clamp(earliest, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const HOUR: u64 = 3600 * SECOND;
    const BEGIN: u64 = 1_700_000_000 * SECOND;

    #[test]
    fn a_stamp_is_a_time_of_the_other_clock() {
        let mut stamps = Stamps::new(10 * SECOND, BEGIN);
        stamps.check(11 * SECOND, BEGIN + SECOND);
        assert_eq!(stamps.arrival(BEGIN + SECOND - 5, 11 * SECOND), 11 * SECOND - 5);
    }

    #[test]
    fn a_clock_that_is_set_changes_no_arrival() {
        for step in [HOUR as i64, -(HOUR as i64), SECOND as i64, -(SECOND as i64) / 10] {
            let mut stamps = Stamps::new(10 * SECOND, BEGIN);
            stamps.check(10 * SECOND, BEGIN);
            stamps.emptied();
            // A frame comes after 1 ms, the clock is set, and another frame comes after 2 ms more.
            let ms = 1_000_000;
            let set = |time: u64| time.wrapping_add(step as u64);
            let (first, second) = (BEGIN + ms, set(BEGIN + 3 * ms));
            let now = 10 * SECOND + 4 * ms;
            stamps.check(now, set(BEGIN + 4 * ms));
            assert_eq!(stamps.arrival(first, now), 10 * SECOND + ms, "{step}");
            assert_eq!(stamps.arrival(second, now), 10 * SECOND + 3 * ms, "{step}");
            // The next ones know only the new time.
            stamps.emptied();
            stamps.check(now + ms, set(BEGIN + 5 * ms));
            assert_eq!(stamps.arrival(set(BEGIN + 5 * ms), now + ms), 10 * SECOND + 5 * ms, "{step}");
        }
    }

    #[test]
    fn a_clock_that_is_set_a_little_moves_a_frame_by_no_more() {
        let ms = 1_000_000;
        let mut stamps = Stamps::new(10 * SECOND, BEGIN);
        // By half of the time that has passed: a stamp of before fits by both differences.
        stamps.check(10 * SECOND + 4 * ms, BEGIN + 6 * ms);
        let arrival = stamps.arrival(BEGIN + 3 * ms, 10 * SECOND + 4 * ms);
        assert!((10 * SECOND + ms..=10 * SECOND + 3 * ms).contains(&arrival));
    }

    #[test]
    fn no_frame_comes_from_the_future_or_from_before_the_last_one() {
        let mut stamps = Stamps::new(10 * SECOND, BEGIN);
        stamps.check(20 * SECOND, BEGIN + 10 * SECOND);
        stamps.emptied();
        stamps.check(21 * SECOND, BEGIN + 11 * SECOND);
        assert_eq!(stamps.arrival(BEGIN + HOUR, 21 * SECOND), 21 * SECOND);
        assert_eq!(stamps.arrival(BEGIN - HOUR, 21 * SECOND), 20 * SECOND - GRACE);
        assert_eq!(stamps.arrival(0, 21 * SECOND), 20 * SECOND - GRACE);
    }
}
