//! Sequence numbers that wrap, mappings of a subflow's onto the connection's, and what waits for a number.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// Numbers further away than this are not believed: sums of them cannot overflow.
pub const FURTHEST: i64 = 1 << 60;

/// The number nearest to `near` whose lower 32 bits are `low`.
pub fn expand(near: i64, low: u32) -> i64 {
    near + i64::from(low.wrapping_sub(near as u32) as i32)
}

/// A range of a subflow's numbers and the data sequence number of its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Map {
    pub start: i64,
    pub end: i64,
    pub dsn: i64,
}

/// What is kept of mappings: more than fit into the largest window of segments.
const KEPT: usize = 1 << 16;
/// Behind how many shorter mappings a longer one is looked for.
const LONGER: usize = 16;

/// Mappings of one direction of a subflow, by their beginnings.
#[derive(Debug, Default)]
pub struct Mappings {
    maps: VecDeque<Map>,
    /// A mapping without an end: what follows `start` is what follows `dsn`.
    infinite: Option<(i64, i64)>,
}

impl Mappings {
    pub fn add(&mut self, map: Map) {
        match self.maps.back_mut() {
            Some(last) if last.start == map.start => {
                if map.end > last.end || map.dsn != last.dsn {
                    *last = map;
                }
            }
            Some(last) if last.start > map.start => {
                let at = self.maps.partition_point(|each| each.start < map.start);
                match self.maps.get_mut(at) {
                    Some(same) if same.start == map.start => *same = map,
                    _ => self.maps.insert(at, map),
                }
            }
            _ => self.maps.push_back(map),
        }
        if self.maps.len() > KEPT {
            self.maps.pop_front();
        }
    }

    /// Everything from here on has a mapping that follows the last one, or begins at 1 as in plain TCP.
    pub fn fall_back(&mut self) {
        let end = self.maps.back().map_or((1, 0), |map| (map.end, map.dsn + (map.end - map.start)));
        self.infinite.get_or_insert(end);
    }

    pub fn fall_back_to(&mut self, start: i64, dsn: i64) {
        self.infinite.get_or_insert((start, dsn));
    }

    /// The beginning of `start` to `end` that has one mapping or none: where it ends, and its data sequence number.
    pub fn part(&self, start: i64, end: i64) -> (i64, Option<i64>) {
        let after = self.maps.partition_point(|map| map.start <= start);
        // A longer one that begins earlier may cover it: a retransmission with other boundaries.
        for map in self.maps.range(..after).rev().take(LONGER) {
            if start < map.end {
                return (end.min(map.end), Some(map.dsn + (start - map.start)));
            }
        }
        let end = self.maps.get(after).map_or(end, |map| end.min(map.start));
        match self.infinite {
            Some((first, dsn)) if start >= first => (end, Some(dsn + (start - first))),
            Some((first, _)) => (end.min(first), None),
            None => (end, None),
        }
    }
}

/// Rows that wait until a number is reached.
#[derive(Debug, Default)]
pub struct Waiting {
    in_order: VecDeque<(i64, usize)>,
    others: BinaryHeap<Reverse<(i64, usize)>>,
}

impl Waiting {
    pub fn add(&mut self, number: i64, row: usize) {
        if self.in_order.back().is_none_or(|(last, _)| *last <= number) {
            self.in_order.push_back((number, row));
        } else {
            self.others.push(Reverse((number, row)));
        }
    }

    /// Passes on the rows that wait for `number` or less.
    pub fn reach(&mut self, number: i64, mut row: impl FnMut(usize)) {
        while let Some((_, found)) = self.in_order.front().copied().filter(|(wanted, _)| *wanted <= number) {
            self.in_order.pop_front();
            row(found);
        }
        while let Some(Reverse((_, found))) =
            self.others.peek().copied().filter(|Reverse((wanted, _))| *wanted <= number)
        {
            self.others.pop();
            row(found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_wrap() {
        assert_eq!(expand(0, 5), 5);
        assert_eq!(expand(0, u32::MAX), -1);
        assert_eq!(expand(0xffff_fff0, 3), 0x1_0000_0003);
        assert_eq!(expand(0x1_0000_0003, 0xffff_fff0), 0xffff_fff0);
    }

    #[test]
    fn a_range_is_mapped_part_by_part() {
        let mut mappings = Mappings::default();
        mappings.add(Map { start: 101, end: 201, dsn: 500 });
        mappings.add(Map { start: 1, end: 101, dsn: 0 });
        assert_eq!(mappings.part(50, 150), (101, Some(49)));
        assert_eq!(mappings.part(101, 150), (150, Some(500)));
        assert_eq!(mappings.part(201, 300), (300, None));
        mappings.add(Map { start: 51, end: 251, dsn: 50 });
        assert_eq!(mappings.part(201, 300), (251, Some(200)));
        mappings.add(Map { start: 201, end: 202, dsn: 600 });
        mappings.fall_back();
        assert_eq!(mappings.part(261, 300), (300, Some(660)));
    }

    #[test]
    fn rows_wait_in_any_order() {
        let mut waiting = Waiting::default();
        for (number, row) in [(10, 0), (30, 1), (20, 2), (5, 3)] {
            waiting.add(number, row);
        }
        let mut reached = Vec::new();
        waiting.reach(20, |row| reached.push(row));
        reached.sort_unstable();
        assert_eq!(reached, [0, 2, 3]);
        waiting.reach(30, |row| reached.push(row));
        assert_eq!(reached.last(), Some(&1));
    }
}
