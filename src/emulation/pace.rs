//! When frames leave the queue and how long each takes: by a rate, or by a packet-delivery trace.

use std::sync::Arc;

use super::frame::Size;
use super::limits::Pace;
use super::trace::{Trace, OPPORTUNITY_BYTES};

const SECOND: u128 = 1_000_000_000;

/// The end of the queue. Times are nanoseconds of one clock.
#[derive(Debug)]
pub struct Transmitter {
    /// When the last frame has left.
    free_at: u64,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// Bits a second, and the fraction of a nanosecond beyond `free_at`, in units of one by the rate.
    Rate {
        bits: u64,
        carry: u64,
    },
    Trace(Position),
}

/// A position in a trace.
#[derive(Debug)]
struct Position {
    trace: Arc<Trace>,
    /// When the trace began.
    begin: u64,
    /// The current opportunity, and how many bytes it has left.
    index: u64,
    left: u64,
}

impl Transmitter {
    pub fn new(pace: &Pace, now: u64) -> Transmitter {
        let kind = match pace {
            Pace::Rate(bits) => Kind::Rate { bits: *bits, carry: 0 },
            Pace::Trace(trace) => Kind::Trace(Position {
                trace: Arc::clone(trace),
                begin: now,
                index: 0,
                left: OPPORTUNITY_BYTES,
            }),
        };
        Transmitter { free_at: now, kind }
    }

    /// Changes the pace for frames that are yet to start. A trace that stays the same continues.
    pub fn set(&mut self, pace: &Pace, now: u64) {
        let same = match (&self.kind, pace) {
            (Kind::Rate { bits, .. }, Pace::Rate(wanted)) => bits == wanted,
            (Kind::Trace(position), Pace::Trace(wanted)) => position.trace == *wanted,
            _ => false,
        };
        if !same {
            *self = Transmitter { free_at: self.free_at, ..Transmitter::new(pace, now) };
        }
    }

    /// Forgets the frame that is leaving.
    pub fn cut(&mut self, now: u64) {
        self.free_at = self.free_at.min(now);
    }

    /// Returns when a frame starts that is ready at `ready`.
    pub fn start(&self, ready: u64) -> u64 {
        let ready = ready.max(self.free_at);
        match &self.kind {
            Kind::Rate { .. } => ready,
            Kind::Trace(position) => position.time(position.from(ready).0),
        }
    }

    /// Returns when a frame that starts at `start` has left.
    pub fn finish(&self, start: u64, size: Size) -> u64 {
        match &self.kind {
            Kind::Rate { bits, carry } => {
                start + (duration(size, carry_at(*carry, self.free_at, start)) / u128::from(*bits)) as u64
            }
            Kind::Trace(position) => {
                let (index, left) = position.after(start, size);
                debug_assert!(left < OPPORTUNITY_BYTES);
                position.time(index)
            }
        }
    }

    /// Returns how long a frame takes at least.
    pub fn least(&self, size: Size) -> u64 {
        match &self.kind {
            Kind::Rate { bits, .. } => (duration(size, 0) / u128::from(*bits)) as u64,
            Kind::Trace(_) => 0,
        }
    }

    /// Sends a frame that starts at `start`, and returns when it has left.
    pub fn take(&mut self, start: u64, size: Size) -> u64 {
        match &mut self.kind {
            Kind::Rate { bits, carry } => {
                let taken = duration(size, carry_at(*carry, self.free_at, start));
                let bits = u128::from(*bits);
                *carry = (taken % bits) as u64;
                self.free_at = start + (taken / bits) as u64;
            }
            Kind::Trace(position) => {
                (position.index, position.left) = position.after(start, size);
                self.free_at = position.time(position.index);
            }
        }
        self.free_at
    }
}

/// The fraction left by the last frame, which counts only for one that follows at once.
fn carry_at(carry: u64, free_at: u64, start: u64) -> u64 {
    if start == free_at {
        carry
    } else {
        0
    }
}

/// Nanoseconds times bits a second.
fn duration(size: Size, carry: u64) -> u128 {
    u128::from(size.bytes) * 8 * SECOND + u128::from(carry)
}

impl Position {
    fn time(&self, index: u64) -> u64 {
        self.begin + self.trace.time(index)
    }

    /// The first opportunity at `ready` or later that has bytes left, and how many.
    fn from(&self, ready: u64) -> (u64, u64) {
        let here = if self.left > 0 { (self.index, self.left) } else { (self.index + 1, OPPORTUNITY_BYTES) };
        if self.time(here.0) >= ready {
            return here;
        }
        // Opportunities that nobody used are gone.
        (self.trace.first_from(ready.saturating_sub(self.begin)), OPPORTUNITY_BYTES)
    }

    /// The opportunity that carries the end of a frame, and how many bytes it then has left.
    fn after(&self, start: u64, size: Size) -> (u64, u64) {
        let (mut index, mut left) = self.from(start);
        let mut bytes = size.packet_bytes();
        if bytes > left {
            bytes -= left;
            let more = bytes.div_ceil(OPPORTUNITY_BYTES);
            index += more;
            left = more * OPPORTUNITY_BYTES;
        }
        (index, left - bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;

    fn frame(bytes: u32) -> Size {
        Size { bytes, segments: 1 }
    }

    /// Sends frames that are all there at once; returns when each has left.
    fn leave(transmitter: &mut Transmitter, ready: u64, sizes: &[u32]) -> Vec<u64> {
        let send = |bytes: &u32| {
            let start = transmitter.start(ready);
            let finish = transmitter.finish(start, frame(*bytes));
            assert_eq!(transmitter.take(start, frame(*bytes)), finish);
            finish
        };
        sizes.iter().map(send).collect()
    }

    fn trace(text: &str, now: u64) -> Transmitter {
        Transmitter::new(&Pace::Trace(Arc::new(Trace::parse(text.as_bytes()).unwrap())), now)
    }

    #[test]
    fn a_rate_is_exact_over_a_million_frames() {
        // 1514 bytes at 7 Mbit/s are 1730285.714... ns.
        let mut transmitter = Transmitter::new(&Pace::Rate(7_000_000), 0);
        let last = leave(&mut transmitter, 0, &vec![1514; 1_000_000]).pop().unwrap();
        assert_eq!(last, 1514 * 8 * 1_000_000 * 1000 / 7);
    }

    #[test]
    fn an_idle_rate_saves_nothing_up() {
        let mut transmitter = Transmitter::new(&Pace::Rate(8_000_000), 0);
        assert_eq!(leave(&mut transmitter, 0, &[1000]), [MS]);
        assert_eq!(leave(&mut transmitter, 10 * MS, &[1000, 1000]), [11 * MS, 12 * MS]);
    }

    #[test]
    fn an_opportunity_carries_a_full_size_packet_or_several_small_ones() {
        let mut transmitter = trace("1\n3\n", 0);
        // 1514 bytes of a frame are 1500 of a packet.
        assert_eq!(leave(&mut transmitter, 0, &[1514, 1514, 1514]), [MS, 3 * MS, 4 * MS]);
        assert_eq!(leave(&mut transmitter, 5 * MS, &[764, 764, 764]), [6 * MS, 6 * MS, 7 * MS]);
        // What is left of an opportunity is lost to whoever comes later.
        assert_eq!(leave(&mut transmitter, 7 * MS + 1, &[1514]), [9 * MS]);
    }

    #[test]
    fn a_frame_of_many_segments_takes_as_many_opportunities() {
        let mut transmitter = trace("1\n3\n", 1000 * MS);
        let size = Size { bytes: 4 * 1514, segments: 4 };
        let start = transmitter.start(1000 * MS);
        assert_eq!((start, transmitter.take(start, size)), (1001 * MS, 1006 * MS));
    }

    #[test]
    fn a_trace_that_stays_goes_on_and_another_begins() {
        let mut transmitter = trace("10\n", 0);
        let same = Pace::Trace(Arc::new(Trace::parse(b"10\n").unwrap()));
        transmitter.set(&same, 25 * MS);
        assert_eq!(transmitter.start(25 * MS), 30 * MS);
        let other = Pace::Trace(Arc::new(Trace::parse(b"20\n").unwrap()));
        transmitter.set(&other, 25 * MS);
        assert_eq!(transmitter.start(25 * MS), 45 * MS);
    }

    proptest! {
        #[test]
        fn a_rate_is_exact(rate in 1_000u64..1_000_000_000, sizes in prop::collection::vec(60u32..65_000, 1..200)) {
            let mut transmitter = Transmitter::new(&Pace::Rate(rate), 0);
            let last = leave(&mut transmitter, 0, &sizes).pop().unwrap();
            let bits: u128 = sizes.iter().map(|bytes| u128::from(*bytes) * 8).sum();
            prop_assert_eq!(u128::from(last), bits * SECOND / u128::from(rate));
        }

        #[test]
        fn a_trace_wastes_nothing_while_frames_wait(
            mut times in prop::collection::vec(0u32..30, 1..10),
            sizes in prop::collection::vec(60u32..5_000, 1..100),
        ) {
            times.sort_unstable();
            *times.last_mut().unwrap() += 1;
            let text: String = times.iter().map(|time| format!("{time}\n")).collect();
            let mut transmitter = trace(&text, 0);
            let last = leave(&mut transmitter, 0, &sizes).pop().unwrap();
            let bytes: u64 = sizes.iter().map(|bytes| u64::from(*bytes) - 14).sum();
            let needed = bytes.div_ceil(OPPORTUNITY_BYTES);
            let trace = Trace::parse(text.as_bytes()).unwrap();
            prop_assert_eq!(last, trace.time(needed - 1));
        }
    }
}
