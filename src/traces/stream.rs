//! One direction of a subflow, and one direction of a connection.

use std::collections::VecDeque;

use super::interval::Intervals;
use super::sequence::{expand, Mappings, Waiting, FURTHEST};
use crate::capture::option::Number;

/// A transmission that the receiver's capture has not shown yet.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    pub start: i64,
    pub end: i64,
    pub row: usize,
    pub dsn: i64,
    pub timestamp: Option<u32>,
    /// How many of its bytes have arrived.
    pub arrived: i64,
}

impl Sent {
    pub fn has_arrived(&self) -> bool {
        self.arrived >= self.end - self.start
    }
}

/// What a subflow's one end sends. Numbers are relative to its initial sequence number.
#[derive(Debug, Default)]
pub struct Stream {
    /// The initial sequence number; without the SYN, one less than the first number captured.
    pub isn: Option<u32>,
    /// What is to be subtracted from a number to get that of a mapping: unknown without the SYN, or the bytes that came
    /// with it.
    pub offset: Option<i64>,
    /// The end of what was captured.
    pub highest: i64,
    pub lowest: Option<i64>,
    /// The end of what the other end has acknowledged.
    pub acked: i64,
    pub seen: Intervals,
    pub mappings: Mappings,
    /// First transmissions by their numbers, and others in the order of their times.
    pub fresh: VecDeque<Sent>,
    pub again: VecDeque<Sent>,
    /// Segments in a row that the receiver's capture showed and the sender's did not.
    pub ahead: u8,
    /// Missing numbers that `seen` no longer shows.
    pub missing: u64,
    pub fin_shown: bool,
}

/// As many holes as this are kept; then the oldest ones count as missing.
const HOLES: usize = 1 << 10;
/// As many transmissions as this wait to be seen at the receiver: first ones, and others.
const IN_FLIGHT: [usize; 2] = [1 << 17, 1 << 8];

impl Stream {
    /// The relative number of a sequence number. The first one is taken for the beginning if there is none.
    pub fn relative(&mut self, sequence: u32) -> i64 {
        let isn = *self.isn.get_or_insert(sequence.wrapping_sub(1));
        expand(self.highest, sequence.wrapping_sub(isn))
    }

    /// The other end has everything before `sequence`.
    pub fn acknowledge(&mut self, sequence: u32) {
        let Some(isn) = self.isn else { return };
        let number = expand(self.highest, sequence.wrapping_sub(isn));
        if number <= self.acked || number > self.highest + (1 << 30) {
            return;
        }
        self.acked = number;
        if self.seen.count() > HOLES {
            self.missing += self.seen.fill(self.first(), number);
        }
    }

    fn first(&self) -> i64 {
        self.lowest.unwrap_or(self.acked)
    }

    /// The bytes that the other end has acknowledged and that were not captured.
    pub fn missing(&self) -> u64 {
        self.missing + self.seen.missing(self.first(), self.acked.min(self.highest).max(self.first()))
    }

    pub fn send(&mut self, sent: Sent, is_new: bool) {
        let (queue, most) =
            if is_new { (&mut self.fresh, IN_FLIGHT[0]) } else { (&mut self.again, IN_FLIGHT[1]) };
        while queue.front().is_some_and(Sent::has_arrived) || queue.len() >= most {
            queue.pop_front();
        }
        if is_new && queue.back().is_some_and(|last| last.start > sent.start) {
            let at = queue.partition_point(|each| each.start < sent.start);
            queue.insert(at, sent);
        } else {
            queue.push_back(sent);
        }
    }
}

/// What a connection's one side sends. Numbers count from its first byte.
#[derive(Debug, Default)]
pub struct Data {
    pub key: Option<u64>,
    pub token: Option<u32>,
    pub idsn: Option<u64>,
    /// The number of the first byte, and whether its upper half is a guess.
    base: Option<(u64, bool)>,
    pub highest: i64,
    pub acked: Option<i64>,
    pub seen: Intervals,
    pub lowest: Option<i64>,
    pub missing: u64,
    pub reinjected: i64,
    /// Rows that a DATA_ACK will cover.
    pub waiting: Waiting,
    /// What has arrived, where that was captured.
    pub arrived: Intervals,
    pub next: Option<i64>,
    pub undelivered: Waiting,
    /// The number of the first DATA_FIN, and its time.
    pub fin: Option<(i64, i64)>,
}

impl Data {
    pub fn begin(&mut self, idsn: u64) {
        self.idsn = Some(idsn);
        if self.base.is_none() {
            self.base = Some((idsn.wrapping_add(1), false));
            self.next = Some(0);
            self.lowest = Some(0);
        }
    }

    /// Whether a number of this direction was seen, or its key.
    pub fn base_is_known(&self) -> bool {
        self.base.is_some()
    }

    /// Counted from the first byte; `None` if it is too far away to be one of this connection.
    pub fn relative(&mut self, number: Number) -> Option<i64> {
        let relative = match (number, self.base) {
            (Number::Long(long), None) => {
                self.base = Some((long, false));
                0
            }
            (Number::Short(short), None) => {
                self.base = Some((u64::from(short), true));
                0
            }
            (Number::Short(short), Some((base, _))) => expand(self.highest, short.wrapping_sub(base as u32)),
            (Number::Long(long), Some((base, false))) => long.wrapping_sub(base) as i64,
            (Number::Long(long), Some((base, true))) => {
                let relative = expand(self.highest, (long as u32).wrapping_sub(base as u32));
                self.base = Some((long.wrapping_sub(relative as u64), false));
                relative
            }
        };
        (relative.unsigned_abs() < FURTHEST.unsigned_abs()).then_some(relative)
    }

    /// As it is on the wire, where that is known.
    pub fn absolute(&self, relative: i64) -> Option<u64> {
        match self.base {
            Some((base, false)) => Some(base.wrapping_add(relative as u64)),
            _ => None,
        }
    }

    /// The other side has everything before `number`.
    pub fn acknowledge(&mut self, number: i64) {
        if self.acked.is_some_and(|acked| number <= acked) {
            return;
        }
        self.acked = Some(number);
        if self.seen.count() > HOLES {
            let first = self.lowest.unwrap_or(number);
            self.missing += self.seen.fill(first, number.min(self.highest));
        }
    }

    /// The bytes that the other side has acknowledged and that were not captured.
    pub fn missing(&self) -> u64 {
        let (Some(first), Some(acked)) = (self.lowest, self.acked) else { return self.missing };
        self.missing + self.seen.missing(first, acked.min(self.highest).max(first))
    }

    /// `start` to `end` has arrived: how far the data is in order now.
    pub fn arrive(&mut self, start: i64, end: i64) -> i64 {
        self.arrived.add(start, end, |_, _, _| ());
        let next = self.arrived.end_of(*self.next.get_or_insert(start));
        self.next = Some(next);
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_number_is_the_lower_half() {
        let mut data = Data::default();
        data.begin(0xffff_ffff_ffff_fffe);
        assert_eq!(data.relative(Number::Long(u64::MAX)), Some(0));
        assert_eq!(data.relative(Number::Long(5)), Some(6), "64 bits wrap");
        assert_eq!(data.relative(Number::Short(5)), Some(6), "32 bits wrap");
        assert_eq!(data.relative(Number::Long(u64::MAX ^ 1 << 63)), None, "as far away as possible");
    }
}
