//! Sets of numbers as intervals, which tell what of a new interval was there before.

use std::collections::BTreeMap;

/// Disjoint intervals that do not touch.
#[derive(Debug, Default)]
pub struct Intervals {
    /// The last one, to which almost everything is appended.
    last: Option<(i64, i64)>,
    /// The others: their ends by their beginnings.
    others: BTreeMap<i64, i64>,
}

impl Intervals {
    /// Adds what is from `start` to before `end`, and passes on each part in order: whether it is new, and its bounds.
    pub fn add(&mut self, start: i64, end: i64, mut part: impl FnMut(bool, i64, i64)) {
        if start >= end {
            return;
        }
        match &mut self.last {
            Some((_, last)) if start == *last => {
                *last = end;
                part(true, start, end);
            }
            Some((_, last)) if start > *last => {
                if let Some((start, end)) = self.last.replace((start, end)) {
                    self.others.insert(start, end);
                }
                part(true, start, end);
            }
            Some((first, last)) if start >= *first => {
                let known = end.min(*last);
                *last = end.max(*last);
                part(false, start, known);
                if known < end {
                    part(true, known, end);
                }
            }
            Some(_) => self.add_in_the_middle(start, end, part),
            None => {
                self.last = Some((start, end));
                part(true, start, end);
            }
        }
    }

    fn add_in_the_middle(&mut self, start: i64, end: i64, mut part: impl FnMut(bool, i64, i64)) {
        if let Some((start, end)) = self.last.take() {
            self.others.insert(start, end);
        }
        let (mut from, mut joined) = (start, (start, end));
        if let Some((&first, &last)) = self.others.range(..=start).next_back() {
            if last >= start {
                joined = (first, last.max(end));
                self.others.remove(&first);
                if last > start {
                    part(false, start, last.min(end));
                    from = last.min(end);
                }
            }
        }
        while let Some((&first, &last)) = self.others.range(start..=joined.1).next() {
            self.others.remove(&first);
            if first < end {
                if from < first {
                    part(true, from, first);
                }
                part(false, first, last.min(end));
                from = last.min(end);
            }
            joined.1 = joined.1.max(last);
        }
        if from < end {
            part(true, from, end);
        }
        self.others.insert(joined.0, joined.1);
        self.last = self.others.pop_last();
    }

    /// Whether all of it is there.
    pub fn contains(&self, start: i64, end: i64) -> bool {
        let within = |(first, last): (i64, i64)| first <= start && end <= last;
        self.last.is_some_and(within)
            || self.others.range(..=start).next_back().is_some_and(|(first, last)| within((*first, *last)))
    }

    /// Where the interval ends in which `at` lies or which begins there; `at` itself if there is none.
    pub fn end_of(&self, at: i64) -> i64 {
        if let Some((first, last)) = self.last {
            if first <= at {
                return last.max(at);
            }
        }
        self.others.range(..=at).next_back().map_or(at, |(_, last)| (*last).max(at))
    }

    /// How many numbers below `bound`, and not below `from`, are missing.
    pub fn missing(&self, from: i64, bound: i64) -> u64 {
        let all = self.others.iter().map(|(first, last)| (*first, *last)).chain(self.last);
        let there: i64 = all.map(|(first, last)| (last.min(bound) - first.max(from)).max(0)).sum();
        u64::try_from(bound - from - there).unwrap_or(0)
    }

    /// Takes everything below `bound` as there, and returns how much of that, not below `from`, was missing.
    pub fn fill(&mut self, from: i64, bound: i64) -> u64 {
        let missing = self.missing(from, bound);
        self.add(from, bound, |_, _, _| ());
        missing
    }

    pub fn count(&self) -> usize {
        self.others.len() + usize::from(self.last.is_some())
    }

    /// The numbers that are there.
    pub fn size(&self) -> u64 {
        let all = self.others.iter().map(|(first, last)| (*first, *last)).chain(self.last);
        all.map(|(first, last)| last.abs_diff(first)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn they_agree_with_a_set_of_numbers(added in proptest::collection::vec((0i64..200, 0i64..40), 0..60)) {
            let (mut intervals, mut numbers) = (Intervals::default(), BTreeSet::new());
            for (start, length) in added {
                let (end, mut at) = (start + length, start);
                intervals.add(start, end, |is_new, first, last| {
                    assert_eq!(first, at);
                    assert!(first < last);
                    at = last;
                    for number in first..last {
                        assert_eq!(numbers.insert(number), is_new);
                    }
                });
                prop_assert_eq!(at, end);
                prop_assert_eq!(intervals.size(), numbers.len() as u64);
                let missing = (10..150).filter(|number| !numbers.contains(number)).count();
                prop_assert_eq!(intervals.missing(10, 150), missing as u64);
                let contiguous = (50..).find(|number| !numbers.contains(number)).unwrap_or(50);
                prop_assert_eq!(intervals.end_of(50), contiguous);
                prop_assert_eq!(intervals.contains(50, 52), numbers.contains(&50) && numbers.contains(&51));
            }
        }
    }
}
