//! CoDel (RFC 8289): which frames are dropped because frames have waited too long for a while.

/// RFC 8289 4.2 and 4.3, nanoseconds.
pub const TARGET: u64 = 5_000_000;
pub const INTERVAL: u64 = 100_000_000;

/// The frame at the head of a queue.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    pub arrived: u64,
    /// Bytes that wait behind it.
    pub behind: u64,
    /// The largest frame so far, bytes.
    pub largest: u64,
}

/// The state, with the names of RFC 8289 5.3.
#[derive(Debug, Default)]
pub struct Codel {
    first_above_time: u64,
    drop_next: u64,
    count: u32,
    lastcount: u32,
    dropping: bool,
}

fn control_law(time: u64, count: u32) -> u64 {
    time + (INTERVAL as f64 / f64::from(count).sqrt()) as u64
}

impl Codel {
    /// Takes the next frame to send at `now` from a queue: `take` takes the queue's head, and `drop` is called with the
    /// frames to drop.
    pub fn dequeue<T>(
        &mut self,
        now: u64,
        mut take: impl FnMut() -> Option<(T, Head)>,
        mut drop: impl FnMut(T),
    ) -> Option<T> {
        let (mut frame, mut ok_to_drop) = self.next(now, &mut take)?;
        if self.dropping {
            if !ok_to_drop {
                self.dropping = false;
            }
            while self.dropping && now >= self.drop_next {
                drop(frame);
                self.count += 1;
                let Some(next) = self.next(now, &mut take) else {
                    self.dropping = false;
                    return None;
                };
                (frame, ok_to_drop) = next;
                if ok_to_drop {
                    self.drop_next = control_law(self.drop_next, self.count);
                } else {
                    self.dropping = false;
                }
            }
        } else if ok_to_drop {
            drop(frame);
            let next = self.next(now, &mut take);
            self.dropping = true;
            // After dropping recently, start at the rate of drops that controlled the queue then.
            let delta = self.count.saturating_sub(self.lastcount);
            self.count =
                if delta > 1 && now.saturating_sub(self.drop_next) < 16 * INTERVAL { delta } else { 1 };
            self.drop_next = control_law(now, self.count);
            self.lastcount = self.count;
            frame = next?.0;
        }
        Some(frame)
    }

    /// RFC 8289's dodequeue(): the head, and whether it may be dropped.
    fn next<T>(&mut self, now: u64, take: &mut impl FnMut() -> Option<(T, Head)>) -> Option<(T, bool)> {
        let Some((frame, head)) = take() else {
            self.first_above_time = 0;
            return None;
        };
        let mut ok_to_drop = false;
        if now.saturating_sub(head.arrived) < TARGET || head.behind <= head.largest {
            self.first_above_time = 0;
        } else if self.first_above_time == 0 {
            self.first_above_time = now + INTERVAL;
        } else {
            ok_to_drop = now >= self.first_above_time;
        }
        Some((frame, ok_to_drop))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const MS: u64 = 1_000_000;

    /// A queue of frames of 1000 bytes each, told by when they arrived; drops are noted with their times.
    #[derive(Default)]
    struct Bottleneck {
        codel: Codel,
        queue: VecDeque<u64>,
        drops: Vec<u64>,
    }

    impl Bottleneck {
        fn dequeue(&mut self, now: u64) -> Option<u64> {
            let Bottleneck { codel, queue, drops } = self;
            let take = || {
                let arrived = queue.pop_front()?;
                Some((arrived, Head { arrived, behind: queue.len() as u64 * 1000, largest: 1000 }))
            };
            codel.dequeue(now, take, |_| drops.push(now))
        }
    }

    /// One frame leaves a millisecond, and so many arrive.
    fn run(milliseconds: u64, arrivals: impl Fn(u64) -> u64) -> Bottleneck {
        let mut bottleneck = Bottleneck::default();
        for ms in 1..=milliseconds {
            for _ in 0..arrivals(ms) {
                bottleneck.queue.push_back(ms * MS);
            }
            bottleneck.dequeue(ms * MS);
        }
        bottleneck
    }

    #[test]
    fn a_burst_that_drains_within_an_interval_loses_nothing() {
        // 80 frames at once wait up to 80 ms: above the target, for less than an interval.
        let bottleneck = run(300, |ms| if ms == 1 { 80 } else { 0 });
        assert!(bottleneck.drops.is_empty());
    }

    #[test]
    fn a_queue_that_stands_is_dropped_from_faster_and_faster() {
        // Two arrive for each that leaves: the wait exceeds 5 ms for the first time at 11 ms, and an interval later
        // the first is dropped; the next ones follow after INTERVAL / sqrt(count).
        let bottleneck = run(1000, |_| 2);
        let first = bottleneck.drops[0];
        assert!((110 * MS..=112 * MS).contains(&first), "{first}");
        let mut due = first;
        for (count, drop) in (1..).zip(&bottleneck.drops[1..]) {
            due = control_law(due, count);
            // Looked at each time that a frame leaves, once a millisecond.
            assert!((due..due + MS).contains(drop), "drop {count} at {drop}, due {due}");
        }
        assert!(bottleneck.drops.len() > 20, "{}", bottleneck.drops.len());
    }

    #[test]
    fn one_frame_that_waits_long_is_not_dropped() {
        // A slow link: what waits behind the head is no more than one frame.
        let mut bottleneck = Bottleneck::default();
        for second in 1..20 {
            bottleneck.queue.push_back(second * 1000 * MS);
            assert_eq!(bottleneck.dequeue(second * 1000 * MS + 500 * MS), Some(second * 1000 * MS));
        }
        assert!(bottleneck.drops.is_empty());
    }

    #[test]
    fn dropping_soon_again_begins_with_the_rate_that_it_had() {
        let mut bottleneck = run(1000, |_| 2);
        let before = bottleneck.codel.count;
        // The queue empties, and stands again at once.
        bottleneck.queue.clear();
        bottleneck.dequeue(1001 * MS);
        assert!(!bottleneck.codel.dropping || bottleneck.codel.first_above_time == 0);
        let drops = bottleneck.drops.len();
        for ms in 1002..1300 {
            bottleneck.queue.extend([ms * MS, ms * MS]);
            bottleneck.dequeue(ms * MS);
        }
        assert!(bottleneck.drops.len() > drops + 2);
        assert!(bottleneck.codel.count >= before - 1, "{} {before}", bottleneck.codel.count);
    }

    #[test]
    fn a_queue_that_was_emptied_by_drops_has_nothing_to_send() {
        let mut codel = Codel { first_above_time: 1, ..Codel::default() };
        let mut queue = vec![(7, Head { arrived: 0, behind: 5000, largest: 1000 })];
        let mut dropped = Vec::new();
        let sent = codel.dequeue(200 * MS, || queue.pop(), |frame| dropped.push(frame));
        assert_eq!((sent, dropped), (None, vec![7]));
        assert!(codel.dropping);
    }
}
