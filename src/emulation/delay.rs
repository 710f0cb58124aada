//! Frames in flight: each is due after the delay, which varies by the jitter.

use std::collections::VecDeque;

use oorandom::Rand64;

use super::frame::Size;

/// When frames are due. Times are nanoseconds.
#[derive(Debug)]
pub struct Delay {
    random: Rand64,
    delay: u64,
    jitter: u64,
    reorder: bool,
    /// The latest time at which any frame is due.
    latest: u64,
}

impl Delay {
    pub fn new(delay: u64, jitter: u64, reorder: bool, random: Rand64) -> Delay {
        Delay { random, delay, jitter: jitter.min(delay), reorder, latest: 0 }
    }

    pub fn set(&mut self, delay: u64, jitter: u64, reorder: bool) {
        (self.delay, self.jitter, self.reorder) = (delay, jitter.min(delay), reorder);
    }

    /// Forgets earlier frames.
    pub fn cut(&mut self) {
        self.latest = 0;
    }

    /// Returns how long a frame takes at least.
    pub fn least(&self) -> u64 {
        self.delay - self.jitter
    }

    /// Returns when a frame is due that starts at `start`.
    pub fn due(&mut self, start: u64) -> u64 {
        let variation = match self.jitter {
            0 => 0,
            jitter => self.random.rand_range(0..2 * jitter + 1),
        };
        let mut due = start + self.least() + variation;
        if !self.reorder {
            due = due.max(self.latest);
        }
        self.latest = self.latest.max(due);
        due
    }
}

#[derive(Debug)]
pub struct Held<F> {
    pub frame: F,
    pub size: Size,
    pub due: u64,
}

/// Frames in the order in which they are due.
#[derive(Debug)]
pub struct Line<F> {
    frames: VecDeque<Held<F>>,
    /// The sum of all frames, as on the wire.
    pub bytes: u64,
    pub packets: u64,
}

impl<F> Default for Line<F> {
    fn default() -> Line<F> {
        Line { frames: VecDeque::new(), bytes: 0, packets: 0 }
    }
}

impl<F> Line<F> {
    pub fn push(&mut self, frame: F, size: Size, due: u64) {
        self.bytes += u64::from(size.bytes);
        self.packets += u64::from(size.segments);
        let held = Held { frame, size, due };
        match self.frames.back() {
            Some(last) if last.due > due => {
                let place = self.frames.partition_point(|other| other.due <= due);
                self.frames.insert(place, held);
            }
            _ => self.frames.push_back(held),
        }
    }

    /// Returns when the first frame is due.
    pub fn next(&self) -> Option<u64> {
        self.frames.front().map(|held| held.due)
    }

    /// Returns when the last frame is due.
    pub fn last(&self) -> Option<u64> {
        self.frames.back().map(|held| held.due)
    }

    /// Takes the first frame if it is due.
    pub fn pop(&mut self, now: u64) -> Option<Held<F>> {
        self.frames.front().filter(|held| held.due <= now)?;
        let held = self.frames.pop_front()?;
        self.bytes -= u64::from(held.size.bytes);
        self.packets -= u64::from(held.size.segments);
        Some(held)
    }

    /// Takes all frames.
    pub fn drain(&mut self) -> impl Iterator<Item = Held<F>> + '_ {
        (self.bytes, self.packets) = (0, 0);
        self.frames.drain(..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;
    const FRAMES: u64 = 20_000;

    fn dues(delay: u64, jitter: u64, reorder: bool) -> Vec<u64> {
        let mut delay = Delay::new(delay, jitter, reorder, Rand64::new(1));
        (0..FRAMES).map(|frame| delay.due(frame * MS)).collect()
    }

    #[test]
    fn without_jitter_each_frame_takes_the_delay() {
        assert!(dues(10 * MS, 0, false).iter().zip(0..).all(|(due, frame)| *due == frame * MS + 10 * MS));
    }

    #[test]
    fn jitter_is_even_around_the_delay() {
        let dues = dues(10 * MS, 2 * MS, true);
        let taken: Vec<f64> = dues.iter().zip(0..).map(|(due, frame)| (due - frame * MS) as f64).collect();
        let (least, most) =
            (taken.iter().copied().fold(f64::MAX, f64::min), taken.iter().copied().fold(0.0, f64::max));
        assert!((8e6..8.01e6).contains(&least) && (11.99e6..=12e6).contains(&most), "{least} {most}");
        // An even distribution of 4 ms has a standard deviation of 4 ms / sqrt(12).
        let mean = taken.iter().sum::<f64>() / FRAMES as f64;
        let error = 4e6 / 12f64.sqrt() / (FRAMES as f64).sqrt();
        assert!((mean - 10e6).abs() <= 3.0 * error, "{mean}");
    }

    #[test]
    fn jitter_reorders_only_if_it_may() {
        assert!(dues(10 * MS, 5 * MS, false).is_sorted());
        assert!(!dues(10 * MS, 5 * MS, true).is_sorted());
    }

    proptest! {
        #[test]
        fn frames_come_out_by_when_they_are_due(dues in prop::collection::vec(0u64..100, 0..100), at in 0u64..120) {
            let mut line = Line::default();
            for (number, due) in dues.iter().enumerate() {
                line.push(number, Size { bytes: 10, segments: 1 }, *due);
            }
            let out: Vec<(u64, usize)> =
                std::iter::from_fn(|| line.pop(at)).map(|held| (held.due, held.frame)).collect();
            // Those of the same time as they came.
            prop_assert!(out.is_sorted());
            prop_assert_eq!(out.len(), dues.iter().filter(|due| **due <= at).count());
            prop_assert_eq!(line.packets as usize, dues.len() - out.len());
            prop_assert_eq!(line.next(), dues.iter().copied().filter(|due| *due > at).min());
        }

        #[test]
        fn a_change_of_the_delay_overtakes_nothing(delays in prop::collection::vec((0u64..50, 0u64..50), 1..50)) {
            let mut delay = Delay::new(0, 0, false, Rand64::new(7));
            let mut last = 0;
            for (frame, (most, jitter)) in (0..).zip(delays) {
                delay.set(most * MS, jitter * MS, false);
                let due = delay.due(frame * MS);
                prop_assert!(due >= last && due >= frame * MS);
                last = due;
            }
        }
    }
}
