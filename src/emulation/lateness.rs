//! How late frames left: a histogram of bounded size, whose buckets are a sixteenth of their value wide.

/// The unit of the smallest buckets: 64 ns.
const UNIT_BITS: u32 = 6;
/// Buckets for each power of two.
const STEPS_BITS: u32 = 4;
const STEPS: usize = 1 << STEPS_BITS;
/// Up to 2^42 ns, more than an hour; anything later is counted there.
const BUCKETS: usize = (42 - UNIT_BITS - STEPS_BITS + 1) as usize * STEPS;

#[derive(Debug)]
pub struct Lateness {
    counts: Box<[u64; BUCKETS]>,
    total: u64,
    max: u64,
}

impl Default for Lateness {
    fn default() -> Lateness {
        Lateness { counts: Box::new([0; BUCKETS]), total: 0, max: 0 }
    }
}

fn bucket(ns: u64) -> usize {
    let value = ns >> UNIT_BITS;
    if value < STEPS as u64 {
        return value as usize;
    }
    let shift = value.ilog2() - STEPS_BITS;
    let bucket = (shift as usize + 1) * STEPS + (value >> shift) as usize - STEPS;
    bucket.min(BUCKETS - 1)
}

/// The upper end of a bucket, nanoseconds.
fn end(bucket: usize) -> u64 {
    let (power, step) = (bucket / STEPS, (bucket % STEPS) as u64);
    let value = match power {
        0 => step + 1,
        _ => (step + STEPS as u64 + 1) << (power - 1),
    };
    value << UNIT_BITS
}

impl Lateness {
    pub fn record(&mut self, ns: u64) {
        self.counts[bucket(ns)] += 1;
        self.total += 1;
        self.max = self.max.max(ns);
    }

    /// Returns a percentile, nanoseconds: the exact one or up to a sixteenth more. 0 if nothing was recorded.
    pub fn percentile(&self, percent: u64) -> u64 {
        let rank = (self.total * percent).div_ceil(100).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return end(bucket).min(self.max);
            }
        }
        self.max
    }

    pub fn max(&self) -> u64 {
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_is_late_by_nothing() {
        let lateness = Lateness::default();
        assert_eq!((lateness.percentile(50), lateness.percentile(99), lateness.max()), (0, 0, 0));
    }

    #[test]
    fn of_a_hundred_the_last_one_is_the_most() {
        let mut lateness = Lateness::default();
        for us in 1..=100 {
            lateness.record(us * 1000);
        }
        assert!((50_000..=54_000).contains(&lateness.percentile(50)), "{}", lateness.percentile(50));
        assert!((99_000..=100_000).contains(&lateness.percentile(99)), "{}", lateness.percentile(99));
        assert_eq!((lateness.percentile(100), lateness.max()), (100_000, 100_000));
    }

    proptest! {
        #[test]
        fn a_percentile_is_no_less_than_the_value_and_hardly_more(
            values in prop::collection::vec((0u32..41).prop_flat_map(|bits| 0..=1u64 << bits), 1..100),
            percent in 1u64..=100,
        ) {
            let mut lateness = Lateness::default();
            values.iter().for_each(|value| lateness.record(*value));
            let mut sorted = values.clone();
            sorted.sort_unstable();
            let exact = sorted[(values.len() * percent as usize).div_ceil(100) - 1];
            let found = lateness.percentile(percent);
            prop_assert!(found >= exact, "{found} {exact}");
            prop_assert!(found <= exact + exact / 16 + (1 << UNIT_BITS), "{found} {exact}");
        }

        #[test]
        fn no_value_is_too_large(value: u64) {
            let mut lateness = Lateness::default();
            lateness.record(value);
            prop_assert_eq!(lateness.max(), value);
        }
    }
}
