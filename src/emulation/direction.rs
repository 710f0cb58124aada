//! One direction of a link: its frames pass queue, rate, loss and delay, by explicit times in nanoseconds.

use oorandom::Rand64;

use super::delay::{Delay, Held, Line};
use super::frame::Size;
use super::lateness::Lateness;
use super::limits::Limits;
use super::loss::Chance;
use super::pace::Transmitter;
use super::queue::Queue;

/// The smallest frame that hosts send.
const SMALLEST: Size = Size { bytes: 42, segments: 1 };

/// What has happened to frames. A frame counts as its segments, and bytes are those on the wire.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames as the kernel handed them over, each once, those by which hosts find each other included.
    pub taken: u64,
    pub arrived: u64,
    /// Frames that have left, and their bytes.
    pub frames: u64,
    pub bytes: u64,
    /// Dropped by the queue.
    pub dropped: u64,
    pub lost: u64,
    /// Dropped when the link was cut.
    pub cut: u64,
    /// Not accepted by the interface that was to send them.
    pub failed: u64,
    /// Too large, or all the memory of links was in use.
    pub refused: u64,
    /// Left later than [`Limits::tolerated`].
    pub late: u64,
}

/// Its frames are of any type `F`.
#[derive(Debug)]
pub struct Direction<F> {
    limits: Limits,
    queue: Queue<F>,
    /// `None` without a rate or a trace: then nothing waits.
    transmitter: Option<Transmitter>,
    chance: Chance,
    delay: Delay,
    line: Line<F>,
    pub counts: Counts,
    pub lateness: Lateness,
    /// Everything until this time is done.
    now: u64,
    /// Frames that were dropped or lost, for their owner to reuse.
    pub discarded: Vec<F>,
}

impl<F> Direction<F> {
    /// `seed` determines losses and jitter.
    pub fn new(limits: Limits, seed: u128, now: u64) -> Direction<F> {
        let mut queue = Queue::default();
        queue.set_codel(limits.codel());
        Direction {
            queue,
            transmitter: limits.pace().map(|pace| Transmitter::new(pace, now)),
            // Two streams of random numbers, so that which frames are lost does not depend on jitter.
            chance: Chance::new(limits.loss(), Rand64::new_inc(seed, 0)),
            delay: Delay::new(limits.delay(), limits.jitter(), limits.reorder(), Rand64::new_inc(seed, 1)),
            line: Line::default(),
            counts: Counts::default(),
            lateness: Lateness::default(),
            limits,
            now,
            discarded: Vec::new(),
        }
    }

    /// Changes the limits. Waiting frames leave at the new rate; the others are due when they were.
    pub fn set(&mut self, limits: Limits, now: u64) {
        self.advance(now);
        let now = self.now;
        self.queue.set_codel(limits.codel());
        self.chance.set(limits.loss());
        self.delay.set(limits.delay(), limits.jitter(), limits.reorder());
        match (&mut self.transmitter, limits.pace()) {
            (Some(transmitter), Some(pace)) => transmitter.set(pace, now),
            (transmitter, pace) => *transmitter = pace.map(|pace| Transmitter::new(pace, now)),
        }
        self.limits = limits;
        self.advance(now);
    }

    /// Takes a frame that arrived at `at`. Calls `make` for it unless the queue drops it.
    pub fn arrive(&mut self, at: u64, size: Size, make: impl FnOnce() -> F) {
        self.advance(at);
        let at = self.now;
        self.counts.arrived += u64::from(size.segments);
        let (Some(transmitter), Some(limit)) = (&self.transmitter, self.limits.queue()) else {
            return self.send_off(make(), size, at);
        };
        // A frame that is sent at once needs no room.
        let waits = self.queue.head().is_some() || transmitter.start(at) > at;
        if waits && !self.queue.has_room(limit, size) {
            self.counts.dropped += u64::from(size.segments);
            return;
        }
        self.queue.push(make(), size, at);
        self.advance(at);
    }

    /// Takes a frame that arrived at `at` and by which hosts find each other. It is delayed and nothing else: it uses up
    /// neither a draw nor the rate, so that losses, jitter and what is counted depend on what programs send.
    pub fn arrive_uncounted(&mut self, at: u64, frame: F) {
        self.advance(at);
        self.line.push(frame, Size::NOTHING, self.now + self.limits.delay());
    }

    /// Does everything that happens until `now`.
    pub fn advance(&mut self, now: u64) {
        self.now = self.now.max(now);
        loop {
            let Some(head) = self.queue.head() else { return };
            let start =
                self.transmitter.as_ref().map_or(self.now, |transmitter| transmitter.start(head.arrived));
            if start > self.now {
                return;
            }
            let Direction { queue, counts, discarded, .. } = self;
            let sent = queue.pop(start, |dropped| {
                counts.dropped += u64::from(dropped.size.segments);
                discarded.push(dropped.frame);
            });
            let Some(sent) = sent else { return };
            let left = match &mut self.transmitter {
                Some(transmitter) => transmitter.take(start.max(sent.arrived), sent.size),
                None => start,
            };
            self.send_off(sent.frame, sent.size, left);
        }
    }

    /// Loses a frame that has left the queue, or delays it.
    fn send_off(&mut self, frame: F, size: Size, left: u64) {
        if self.chance.loses() {
            self.counts.lost += u64::from(size.segments);
            self.discarded.push(frame);
        } else {
            let due = self.delay.due(left);
            self.line.push(frame, size, due);
        }
    }

    /// Takes the next frame that is due, after [`Direction::advance`].
    pub fn depart(&mut self, now: u64) -> Option<Held<F>> {
        let held = self.line.pop(now)?;
        self.counts.frames += u64::from(held.size.segments);
        self.counts.bytes += u64::from(held.size.bytes);
        if held.size != Size::NOTHING {
            let late = now - held.due;
            self.lateness.record(late);
            if late > self.limits.tolerated() {
                self.counts.late += u64::from(held.size.segments);
            }
        }
        Some(held)
    }

    /// Counts a frame that departed and then could not be sent.
    pub fn failed(&mut self, size: Size) {
        self.counts.frames -= u64::from(size.segments);
        self.counts.bytes -= u64::from(size.bytes);
        self.counts.failed += u64::from(size.segments);
    }

    /// Returns when there is something to do next. No frame is due before that.
    pub fn next(&self) -> Option<u64> {
        let queued = self.queue.head().map(|head| {
            let Some(transmitter) = &self.transmitter else { return self.now };
            let start = transmitter.start(head.arrived);
            // CoDel may drop the head.
            let left = if self.limits.codel() { start } else { transmitter.finish(start, head.size) };
            left + self.delay.least()
        });
        [self.line.next(), queued].into_iter().flatten().min()
    }

    /// Returns how long every frame that arrives from now on is held at least.
    pub fn least_held(&self) -> u64 {
        let rate = match &self.transmitter {
            Some(transmitter) => transmitter.least(SMALLEST),
            None => 0,
        };
        rate + self.delay.least()
    }

    /// Drops all frames.
    pub fn cut(&mut self, now: u64) {
        self.advance(now);
        let Direction { queue, line, counts, discarded, .. } = self;
        let queued = queue.drain().map(|waiting| (waiting.frame, waiting.size));
        let flying = line.drain().map(|held| (held.frame, held.size));
        for (frame, size) in queued.chain(flying) {
            counts.cut += u64::from(size.segments);
            discarded.push(frame);
        }
        self.delay.cut();
        if let Some(transmitter) = &mut self.transmitter {
            transmitter.cut(self.now);
        }
    }

    /// Returns when the last frame is due that is held now; for one that waits in the queue that is never yet.
    pub fn last_due(&self) -> Option<u64> {
        if self.queue.head().is_some() {
            Some(u64::MAX)
        } else {
            self.line.last()
        }
    }

    /// Frames and bytes in the queue.
    pub fn waiting(&self) -> (u64, u64) {
        (self.queue.packets, self.queue.bytes)
    }

    /// Frames and bytes on their way.
    pub fn flying(&self) -> (u64, u64) {
        (self.line.packets, self.line.bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::emulation::limits::{Loss, Pace, Queue as Wait, Wanted};
    use crate::emulation::trace::Trace;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;
    const FULL: Size = Size { bytes: 1500, segments: 1 };

    fn direction(wanted: Wanted) -> Direction<u32> {
        Direction::new(Limits::new(wanted).unwrap(), 1, 0)
    }

    /// 1500 bytes a millisecond.
    fn at_rate() -> Wanted {
        Wanted { pace: Some(Pace::Rate(12_000_000)), ..Wanted::default() }
    }

    fn departures(direction: &mut Direction<u32>, now: u64) -> Vec<(u32, u64)> {
        direction.advance(now);
        std::iter::from_fn(|| direction.depart(now)).map(|held| (held.frame, held.due)).collect()
    }

    fn arrive(direction: &mut Direction<u32>, at: u64, frames: std::ops::Range<u32>) {
        for frame in frames {
            direction.arrive(at, FULL, || frame);
        }
    }

    #[test]
    fn frames_pass_at_once_without_limits() {
        let mut direction = direction(Wanted::default());
        arrive(&mut direction, 5, 0..2);
        assert_eq!(direction.next(), Some(5));
        assert_eq!(departures(&mut direction, 9), [(0, 5), (1, 5)]);
        assert_eq!((direction.lateness.max(), direction.next()), (4, None));
    }

    #[test]
    fn a_frame_that_hosts_send_by_themselves_is_delayed_and_nothing_else() {
        let run = |at: Option<u64>| {
            let mut direction = direction(Wanted {
                delay: 5 * MS,
                jitter: 5 * MS,
                loss: Some(Loss::Bernoulli(0.5)),
                queue: Some(Wait::Packets(50)),
                ..at_rate()
            });
            for ms in 0..100 {
                if at == Some(ms) {
                    direction.arrive_uncounted(ms * MS, 1000);
                }
                arrive(&mut direction, ms * MS, ms as u32..ms as u32 + 1);
            }
            let departed = departures(&mut direction, 1000 * MS);
            (departed, direction.counts, direction.lateness.max())
        };
        let without = run(None);
        assert!((20..80).contains(&without.1.lost));
        for at in 0..100 {
            let (mut departed, counts, latest) = run(Some(at));
            let place = departed.iter().position(|(frame, _)| *frame == 1000).unwrap();
            assert_eq!(departed.remove(place), (1000, (at + 5) * MS));
            assert_eq!((departed, counts, latest), without);
        }
    }

    #[test]
    fn frames_that_left_much_later_than_their_delay_are_counted() {
        for (delay, tolerated) in [(0, MS), (5 * MS, MS), (50 * MS, 5 * MS)] {
            let mut direction = direction(Wanted { delay, ..Wanted::default() });
            for late in [tolerated, tolerated + 1] {
                direction.arrive(MS, Size { bytes: 3000, segments: 2 }, || 1);
                direction.advance(MS + delay + late);
                assert!(direction.depart(MS + delay + late).is_some());
                direction = Direction { now: 0, ..direction };
            }
            assert_eq!((direction.counts.frames, direction.counts.late), (4, 2), "{delay}");
        }
    }

    #[test]
    fn late_looks_change_no_time() {
        // Looked at each time that something happens, or once at the end.
        let run = |each: bool| {
            let mut direction =
                direction(Wanted { delay: 5 * MS, queue: Some(Wait::Packets(3)), ..at_rate() });
            let mut departed = Vec::new();
            for ms in 0..10 {
                arrive(&mut direction, ms * MS, 2 * ms as u32..2 * ms as u32 + 2);
                while let Some(next) = direction.next().filter(|next| each && *next <= ms * MS) {
                    departed.extend(departures(&mut direction, next));
                }
            }
            departed.extend(departures(&mut direction, 1000 * MS));
            // The looks themselves are late, not what they find.
            (departed, Counts { late: 0, ..direction.counts })
        };
        let (departed, counts) = run(true);
        assert_eq!((departed.clone(), counts), run(false));
        // The first takes 1 ms and is there 5 ms later; the next ones follow, one a millisecond.
        assert!(departed.iter().map(|(_, due)| *due).eq((6..).map(|ms| ms * MS).take(departed.len())));
        assert_eq!(counts.frames + counts.dropped, 20);
    }

    #[test]
    fn a_full_queue_drops_what_comes() {
        for (queue, room) in
            [(Wait::Bytes(4500), 3), (Wait::Bytes(4499), 2), (Wait::Packets(3), 3), (Wait::Time(3 * MS), 3)]
        {
            let mut direction = direction(Wanted { queue: Some(queue), ..at_rate() });
            arrive(&mut direction, 0, 0..10);
            // One is sent, and does not wait.
            assert_eq!(direction.waiting(), (room, room * 1500), "{queue:?}");
            assert_eq!(direction.counts.dropped, 9 - room);
            let departed = departures(&mut direction, 100 * MS);
            assert!(departed.iter().map(|(frame, _)| u64::from(*frame)).eq(0..=room), "{departed:?}");
        }
    }

    #[test]
    fn a_link_without_a_queue_to_speak_of_sends_what_finds_it_idle() {
        let mut direction = direction(Wanted { queue: Some(Wait::Bytes(1)), ..at_rate() });
        arrive(&mut direction, 0, 0..2);
        arrive(&mut direction, MS / 2, 2..3);
        arrive(&mut direction, MS, 3..4);
        assert_eq!(departures(&mut direction, 9 * MS), [(0, MS), (3, 2 * MS)]);
    }

    #[test]
    fn codel_keeps_the_queue_short_that_drop_tail_lets_grow() {
        let waited = |codel| {
            let mut direction = direction(Wanted { codel, queue: Some(Wait::Time(1000 * MS)), ..at_rate() });
            let mut frame = 0;
            // A sender that slows down by a tenth for each frame lost, and else speeds up a little.
            let (mut gap, mut seen, mut at, mut most) = (0.9e6, 0, 0.0, 0);
            while at < 20_000e6 {
                arrive(&mut direction, at as u64, frame..frame + 1);
                frame += 1;
                gap *= 1.1f64.powi((direction.counts.dropped - seen) as i32) * 0.9998;
                seen = direction.counts.dropped;
                if at > 10_000e6 {
                    most = most.max(direction.waiting().0);
                }
                at += gap;
            }
            most
        };
        assert_eq!(waited(false), 1000);
        assert!(waited(true) < 300, "{}", waited(true));
    }

    #[test]
    fn a_change_loses_nothing_that_is_under_way() {
        let mut direction = direction(Wanted { delay: 10 * MS, ..at_rate() });
        arrive(&mut direction, 0, 0..10);
        // After 4.5 ms 5 frames have begun to leave. The others go ten times as fast.
        let faster = Wanted { delay: MS, pace: Some(Pace::Rate(120_000_000)), ..Wanted::default() };
        direction.set(Limits::new(faster).unwrap(), 4 * MS + MS / 2);
        assert_eq!((direction.waiting().0, direction.flying().0), (5, 5));
        let departed = departures(&mut direction, 100 * MS);
        // In order: behind those that take the longer way.
        let expected = (0..5).map(|n| (n, u64::from(n) * MS + 11 * MS)).chain((5..10).map(|n| (n, 15 * MS)));
        assert_eq!(departed, expected.collect::<Vec<_>>());
    }

    #[test]
    fn without_a_rate_from_now_on_what_waits_goes() {
        let mut direction = direction(at_rate());
        arrive(&mut direction, 0, 0..10);
        direction.set(Limits::unlimited(), 3 * MS + 1);
        arrive(&mut direction, 4 * MS, 10..11);
        let departed = departures(&mut direction, 4 * MS);
        assert!(departed.iter().map(|(frame, _)| *frame).eq(0..11), "{departed:?}");
        assert_eq!(departed[9].1, 4 * MS);
        // And a rate again.
        direction.set(Limits::new(at_rate()).unwrap(), 10 * MS);
        arrive(&mut direction, 10 * MS, 11..12);
        assert_eq!(departures(&mut direction, 20 * MS), [(11, 11 * MS)]);
    }

    #[test]
    fn a_cut_link_forgets_what_it_holds() {
        let mut direction = direction(Wanted { delay: 5 * MS, ..at_rate() });
        arrive(&mut direction, 0, 0..10);
        direction.cut(3 * MS);
        assert_eq!((direction.last_due(), direction.waiting(), direction.flying()), (None, (0, 0), (0, 0)));
        assert_eq!((direction.counts.cut, direction.discarded.len()), (10, 10));
        assert_eq!(direction.next(), None);
        arrive(&mut direction, 4 * MS, 10..11);
        assert_eq!(departures(&mut direction, 100 * MS), [(10, 10 * MS)]);
    }

    #[test]
    fn a_trace_paces_and_begins_again() {
        let trace = Pace::Trace(Arc::new(Trace::parse(b"1\n2\n5\n").unwrap()));
        let mut direction = direction(Wanted { pace: Some(trace), ..Wanted::default() });
        arrive(&mut direction, 0, 0..6);
        let dues: Vec<_> = departures(&mut direction, 100 * MS).iter().map(|(_, due)| due / MS).collect();
        assert_eq!(dues, [1, 2, 5, 6, 7, 10]);
    }

    #[test]
    fn jitter_changes_nothing_about_which_frames_are_lost() {
        let lost = |jitter| {
            let loss = Some(Loss::Bernoulli(0.2));
            let mut direction =
                direction(Wanted { loss, delay: 10 * MS, jitter, reorder: true, ..Wanted::default() });
            arrive(&mut direction, 0, 0..1000);
            direction.discarded
        };
        assert_eq!(lost(0), lost(5 * MS));
        assert!((140..260).contains(&lost(0).len()));
    }

    fn wanted() -> impl Strategy<Value = Wanted> {
        let pace = prop_oneof![
            Just(None),
            (1_000_000u64..100_000_000).prop_map(|rate| Some(Pace::Rate(rate))),
            prop::collection::vec(0u32..9, 1..5).prop_map(|mut times| {
                times.sort_unstable();
                let last = times.last().unwrap() + 1;
                let text: String = times.iter().map(|time| format!("{time}\n")).collect();
                let text = format!("{text}{last}\n");
                Some(Pace::Trace(Arc::new(Trace::parse(text.as_bytes()).unwrap())))
            }),
        ];
        let queue = prop_oneof![
            Just(None),
            (1u64..100_000).prop_map(|bytes| Some(Wait::Bytes(bytes))),
            (1u64..50).prop_map(|packets| Some(Wait::Packets(packets))),
            (1u64..50).prop_map(|ms| Some(Wait::Time(ms * MS))),
        ];
        let loss = prop_oneof![
            Just(None),
            (0.0..1.0).prop_map(|loss| Some(Loss::Bernoulli(loss))),
            (0.0..1.0, 0.1..1.0, 0.0..1.0, 0.0..1.0).prop_map(|(to_bad, to_good, in_bad, in_good)| Some(
                Loss::GilbertElliott { to_bad, to_good, in_bad, in_good }
            )),
        ];
        let rest = (any::<bool>(), 0u64..30, 0u64..30, any::<bool>());
        (pace, queue, loss, rest).prop_map(|(pace, queue, loss, (codel, delay, jitter, reorder))| {
            let paced = pace.is_some();
            let queue = queue.filter(|_| paced);
            let (delay, jitter) = (delay * MS, jitter.min(delay) * MS);
            Wanted { pace, queue, codel: codel && paced, loss, delay, jitter, reorder }
        })
    }

    proptest! {
        /// Whatever is asked for and whenever it is looked at: no frame is lost but told, none leaves before it is due
        /// or comes, none overtakes another unless it may, and `next` does not miss any.
        #[test]
        fn every_frame_is_accounted_for(
            (first, second) in (wanted(), wanted()),
            steps in prop::collection::vec((0u64..3 * MS, 60u32..1515, any::<bool>()), 1..200),
            change in 0usize..200,
        ) {
            let reorder = first.reorder || second.reorder;
            let mut direction: Direction<(u64, u32)> = Direction::new(Limits::new(first).unwrap(), 9, 0);
            let (mut now, mut departed, mut number) = (0, Vec::new(), 0);
            for (step, (gap, bytes, look)) in steps.into_iter().enumerate() {
                now += gap;
                if step == change {
                    direction.set(Limits::new(second.clone()).unwrap(), now);
                }
                if look {
                    while let Some(next) = direction.next().filter(|next| *next <= now) {
                        direction.advance(next);
                        departed.extend(std::iter::from_fn(|| direction.depart(next)));
                        prop_assert!(direction.next().is_none_or(|then| then >= next));
                    }
                }
                direction.arrive(now, Size { bytes, segments: 1 }, || (now, number));
                number += 1;
            }
            let mut looks = 0;
            while let Some(next) = direction.next() {
                direction.advance(next);
                departed.extend(std::iter::from_fn(|| direction.depart(next)));
                looks += 1;
                prop_assert!(looks < 10_000);
            }
            prop_assert_eq!(direction.last_due(), None);
            let counts = direction.counts;
            prop_assert_eq!(counts.arrived, u64::from(number));
            prop_assert_eq!(counts.frames + counts.dropped + counts.lost, counts.arrived);
            prop_assert_eq!(departed.len() as u64, counts.frames);
            prop_assert!(departed.iter().all(|held| held.due >= held.frame.0));
            prop_assert!(reorder || departed.iter().map(|held| held.frame.1).is_sorted());
        }
    }
}
