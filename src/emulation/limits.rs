//! The limits of one direction of a link, checked.

use std::sync::Arc;

use super::trace::Trace;
use crate::error::{Error, Result};

/// An Ethernet frame of the usual MTU, without its checksum.
pub const FULL_FRAME: u64 = 1514;

const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;

/// Below the lower end one frame takes over ten seconds.
const RATES: std::ops::RangeInclusive<u64> = 1_000..=100_000_000_000;
const LONGEST: u64 = 240 * SECOND;
const LARGEST_QUEUE: u64 = (1 << 31) - 1;
const DEFAULT_QUEUE: u64 = 100 * MILLISECOND;
/// How long a frame may take at the rate, so that others do not wait for it: a host may send 64 KiB as one frame.
const LONGEST_FRAME: u64 = MILLISECOND;
/// How many frames a queue should hold at least, because it drops whole frames.
const FRAMES_OF_QUEUE: u64 = 4;
/// More segments than any frame has.
const UNLIMITED_SEGMENTS: u64 = 65535;

/// How fast frames may leave the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pace {
    /// Bits a second of frames, with their Ethernet headers.
    Rate(u64),
    Trace(Arc<Trace>),
}

impl Pace {
    /// A rate in bits a second, or a trace; not both.
    pub fn of(rate: Option<u64>, trace: Option<Arc<Trace>>) -> Result<Option<Pace>> {
        match (rate, trace) {
            (Some(_), Some(_)) => Err(Error::value("a link must have a rate or a trace, not both")),
            (rate, trace) => Ok(rate.map(Pace::Rate).or(trace.map(Pace::Trace))),
        }
    }

    fn rate(&self) -> f64 {
        match self {
            Pace::Rate(bits) => *bits as f64,
            Pace::Trace(trace) => trace.rate(),
        }
    }
}

/// How much may wait for the rate, as the user gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    Bytes(u64),
    Packets(u64),
    /// Nanoseconds at the rate, or at a trace's average.
    Time(u64),
}

/// The same, as the queue counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueLimit {
    Bytes(u64),
    Packets(u64),
}

/// Which frames are lost, as probabilities.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Loss {
    /// Each frame by itself.
    Bernoulli(f64),
    /// By Gilbert and Elliott: two states, each with its own probability of loss. The state may change after each
    /// frame.
    GilbertElliott { to_bad: f64, to_good: f64, in_bad: f64, in_good: f64 },
}

/// Limits as the user gives them.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    pub pace: Option<Pace>,
    pub queue: Option<Queue>,
    pub codel: bool,
    pub loss: Option<Loss>,
    /// Nanoseconds.
    pub delay: u64,
    /// Nanoseconds: the delay is evenly distributed from `delay - jitter` to `delay + jitter`.
    pub jitter: u64,
    pub reorder: bool,
}

/// Limits that a link can have.
#[derive(Debug, Clone)]
pub struct Limits(Wanted);

impl Limits {
    pub fn new(wanted: Wanted) -> Result<Limits> {
        check_pace(&wanted)?;
        if wanted.delay > LONGEST {
            return Err(Error::value(format!("delay must be at most 240 s, not {} ns", wanted.delay)));
        }
        if wanted.jitter > wanted.delay {
            return Err(Error::value("jitter must not be larger than the delay that it varies"));
        }
        if let Some(loss) = wanted.loss {
            check_loss(loss)?;
        }
        Ok(Limits(wanted))
    }

    /// No limits: frames pass at once.
    pub fn unlimited() -> Limits {
        Limits(Wanted::default())
    }

    /// Returns whether frames pass at once.
    pub fn is_unlimited(&self) -> bool {
        let Wanted { pace, loss, delay, .. } = &self.0;
        pace.is_none() && loss.is_none() && *delay == 0
    }

    pub fn pace(&self) -> Option<&Pace> {
        self.0.pace.as_ref()
    }

    /// Returns how much may wait for the rate, by default 100 ms of it.
    pub fn queue(&self) -> Option<QueueLimit> {
        let rate = self.0.pace.as_ref()?.rate();
        Some(match self.0.queue.unwrap_or(Queue::Time(DEFAULT_QUEUE)) {
            Queue::Bytes(bytes) => QueueLimit::Bytes(bytes),
            Queue::Packets(packets) => QueueLimit::Packets(packets),
            Queue::Time(time) => QueueLimit::Bytes((rate / 8.0 * time as f64 / SECOND as f64) as u64),
        })
    }

    pub fn codel(&self) -> bool {
        self.0.codel
    }

    pub fn loss(&self) -> Option<Loss> {
        self.0.loss
    }

    pub fn delay(&self) -> u64 {
        self.0.delay
    }

    /// Returns how late a frame may leave before it counts as late: by a tenth of the delay, or by what a wake-up of a
    /// thread may well take.
    pub fn tolerated(&self) -> u64 {
        (self.0.delay / 10).max(MILLISECOND)
    }

    pub fn jitter(&self) -> u64 {
        self.0.jitter
    }

    pub fn reorder(&self) -> bool {
        self.0.reorder
    }

    /// Returns how many segments the sending host should put into one frame (gso_max_segs of its interface): one where
    /// frames are dropped by CoDel, lost, or delayed one by one; else as many as the rate carries in a millisecond, but
    /// at most a quarter of the queue.
    pub fn gso_max_segs(&self) -> u64 {
        if self.0.codel || self.0.loss.is_some() || self.0.jitter > 0 || self.0.reorder {
            return 1;
        }
        let Some(pace) = &self.0.pace else { return UNLIMITED_SEGMENTS };
        let of_rate = (pace.rate() / 8.0 * LONGEST_FRAME as f64 / SECOND as f64) as u64 / FULL_FRAME;
        let of_queue = match self.queue() {
            Some(QueueLimit::Bytes(bytes)) => bytes / FULL_FRAME / FRAMES_OF_QUEUE,
            Some(QueueLimit::Packets(packets)) => packets / FRAMES_OF_QUEUE,
            None => UNLIMITED_SEGMENTS,
        };
        of_rate.min(of_queue).clamp(1, UNLIMITED_SEGMENTS)
    }
}

fn check_pace(wanted: &Wanted) -> Result<()> {
    let Some(pace) = &wanted.pace else {
        return if wanted.queue.is_some() {
            Err(Error::value("a queue needs a rate or a trace: without one nothing waits"))
        } else if wanted.codel {
            Err(Error::value("aqm needs a rate or a trace: without one nothing waits"))
        } else {
            Ok(())
        };
    };
    match pace {
        Pace::Rate(rate) if !RATES.contains(rate) => {
            return Err(Error::value(format!(
                "rate must be from {} bit/s to {} Gbit/s, not {rate} bit/s",
                RATES.start(),
                RATES.end() / 1_000_000_000
            )));
        }
        _ => {}
    }
    match wanted.queue {
        Some(Queue::Bytes(bytes)) if !(1..=LARGEST_QUEUE).contains(&bytes) => {
            Err(Error::value(format!("queue must be from 1 to {LARGEST_QUEUE} bytes, not {bytes}")))
        }
        Some(Queue::Packets(packets)) if !(1..=LARGEST_QUEUE).contains(&packets) => {
            Err(Error::value(format!("queue must be from 1 to {LARGEST_QUEUE} packets, not {packets}")))
        }
        Some(Queue::Time(time)) if !(1..=LONGEST).contains(&time) => {
            Err(Error::value(format!("queue must be above 0 and at most 240 s, not {time} ns")))
        }
        _ => Ok(()),
    }
}

fn check_loss(loss: Loss) -> Result<()> {
    let check = |name: &str, value: f64| {
        if (0.0..=1.0).contains(&value) {
            Ok(())
        } else {
            Err(Error::value(format!("{name} must be a probability from 0 to 1, not {value}")))
        }
    };
    match loss {
        Loss::Bernoulli(loss) => check("loss", loss),
        Loss::GilbertElliott { to_bad, to_good, in_bad, in_good } => {
            check("the probability of becoming bad", to_bad)?;
            check("the probability of becoming good", to_good)?;
            check("the loss in the bad state", in_bad)?;
            check("the loss in the good state", in_good)?;
            if to_good == 0.0 && to_bad > 0.0 {
                return Err(Error::value(
                    "the probability of becoming good must be above 0: the link would stay bad",
                ));
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(wanted: Wanted) -> String {
        let error = Limits::new(wanted).unwrap_err();
        assert!(matches!(error, Error::Value { .. }));
        error.to_string()
    }

    fn at(rate: u64) -> Wanted {
        Wanted { pace: Some(Pace::Rate(rate)), ..Wanted::default() }
    }

    #[test]
    fn what_no_link_can_be_is_refused() {
        assert!(refusal(at(999)).contains("rate must be"));
        assert!(refusal(at(100_000_000_001)).contains("rate must be"));
        for queue in [Queue::Bytes(0), Queue::Packets(0), Queue::Time(0), Queue::Time(LONGEST + 1)] {
            assert!(refusal(Wanted { queue: Some(queue), ..at(1_000_000) }).contains("queue must be"));
        }
        let queue = Some(Queue::Bytes(1000));
        assert!(refusal(Wanted { queue, ..Wanted::default() }).contains("needs a rate"));
        assert!(refusal(Wanted { codel: true, ..Wanted::default() }).contains("needs a rate"));
        assert!(refusal(Wanted { delay: LONGEST + 1, ..Wanted::default() }).contains("delay"));
        assert!(refusal(Wanted { delay: 5, jitter: 6, ..Wanted::default() }).contains("jitter"));
        for loss in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            let loss = Some(Loss::Bernoulli(loss));
            assert!(refusal(Wanted { loss, ..Wanted::default() }).contains("probability"));
        }
        let stuck = Loss::GilbertElliott { to_bad: 0.1, to_good: 0.0, in_bad: 1.0, in_good: 0.0 };
        assert!(refusal(Wanted { loss: Some(stuck), ..Wanted::default() }).contains("stay bad"));
    }

    #[test]
    fn a_queue_is_a_tenth_of_a_second_of_the_rate_if_nothing_else_is_asked_for() {
        let queue = |queue| Limits::new(Wanted { queue, ..at(20_000_000) }).unwrap().queue();
        assert_eq!(queue(None), Some(QueueLimit::Bytes(250_000)));
        assert_eq!(queue(Some(Queue::Time(10 * MILLISECOND))), Some(QueueLimit::Bytes(25_000)));
        assert_eq!(queue(Some(Queue::Bytes(7))), Some(QueueLimit::Bytes(7)));
        assert_eq!(queue(Some(Queue::Packets(7))), Some(QueueLimit::Packets(7)));
        assert_eq!(Limits::unlimited().queue(), None);
        let trace = Some(Pace::Trace(Arc::new(Trace::parse(b"1\n").unwrap())));
        let limits = Limits::new(Wanted { pace: trace, ..Wanted::default() }).unwrap();
        assert_eq!(limits.queue(), Some(QueueLimit::Bytes(150_000)));
    }

    #[test]
    fn a_frame_takes_at_most_a_millisecond_of_the_rate_and_a_quarter_of_the_queue() {
        let segments = |wanted| Limits::new(wanted).unwrap().gso_max_segs();
        assert_eq!(segments(Wanted::default()), 65535);
        assert_eq!(segments(Wanted { delay: 5, ..Wanted::default() }), 65535);
        assert_eq!(segments(at(1_000_000)), 1);
        assert_eq!(segments(at(100_000_000)), 8);
        assert_eq!(segments(Wanted { queue: Some(Queue::Bytes(20_000)), ..at(100_000_000) }), 3);
        assert_eq!(segments(Wanted { queue: Some(Queue::Packets(8)), ..at(100_000_000) }), 2);
        assert_eq!(segments(Wanted { codel: true, ..at(100_000_000) }), 1);
        assert_eq!(segments(Wanted { loss: Some(Loss::Bernoulli(0.1)), ..Wanted::default() }), 1);
        assert_eq!(segments(Wanted { delay: 5, jitter: 5, ..Wanted::default() }), 1);
    }
}
