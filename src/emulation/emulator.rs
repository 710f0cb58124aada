//! The thread that emulates all links of a lab, and the handle of its owner. The thread goes on whatever its owner
//! does.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, TryRecvError};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::links::{Both, Links, Statistics};
use crate::error::{Error, Result};
use crate::sys;
use crate::sys::lock::lock;
use crate::sys::wait::{readable, EventFd};

/// Frames may be left in the ring while none of them can be due, so that the thread wakes up less often: for so long
/// at most, and not if it is hardly worth it, nanoseconds.
const MOST_LEFT: u64 = 1_000_000;
const LEAST_LEFT: u64 = 200_000;
/// How late the thread may wake up then.
const MARGIN: u64 = 300_000;

/// Waking up takes as long as some frames do. While there is much to do the thread wakes up once in so long and then
/// does all that has come to be done, nanoseconds; a few times it may wake up at once, whatever it does.
const TURN: u64 = 100_000;
const TURNS_AT_ONCE: u64 = 32;
/// A turn that keeps the thread busy for more than this part of its time makes the next one longer, up to `LONGEST_TURN`.
const BUSY_PART: u64 = 4;
const LONGEST_TURN: u64 = 300_000;

/// The kernel wakes the thread some time after a timer expires, so the timer is set earlier by what that takes nearly
/// always: at most by this, nanoseconds.
const MOST_LEAD: u64 = 50_000;

/// How many times frames are received before a request is served: enough for all that the rings hold.
const MOST_ROUNDS: u32 = 64;

type Request = Box<dyn FnOnce(&mut Links) + Send>;

/// What the thread reports about itself.
#[derive(Debug, Default)]
struct Condition {
    real_time: AtomicBool,
    cpu_ns: AtomicU64,
    wakeups: AtomicU64,
    failure: Mutex<Option<Error>>,
}

/// The state of the emulation of all links.
#[derive(Debug, Clone, Copy)]
pub struct Status {
    /// Frames of all links that were lost because the rings were full.
    pub overruns: u64,
    /// Frames that were dropped because they were too large, or links held all the memory that they may.
    pub refused: u64,
    /// How often the kernel could not accept frames for a moment.
    pub blocked: u64,
    pub real_time: bool,
    pub cpu_ns: u64,
    pub wakeups: u64,
}

#[derive(Debug)]
pub struct Emulator {
    /// `None` once closed.
    requests: Mutex<Option<mpsc::Sender<Request>>>,
    wake: Arc<EventFd>,
    thread: Mutex<Option<JoinHandle<()>>>,
    condition: Arc<Condition>,
    process: u32,
}

impl Emulator {
    /// Starts the thread, for links between interfaces of the calling thread's network namespace.
    pub fn start(seed: u64) -> Result<Emulator> {
        let failed = |what: &'static str| move |error: std::io::Error| Error::call(what, &error);
        let links = Links::new(seed)?;
        let timer = sys::clock::timer(0, 0).map_err(failed("timerfd"))?;
        let wake = EventFd::new().map(Arc::new).map_err(failed("eventfd"))?;
        let (sender, requests) = mpsc::channel();
        let condition = Arc::new(Condition::default());
        let mut thread = Thread {
            links,
            requests,
            wake: Arc::clone(&wake),
            timer,
            timer_at: 0,
            turns: Turns::default(),
            turn: 0,
            began: 0,
            lead: Lead::default(),
            condition: Arc::clone(&condition),
        };
        let run = move || {
            if let Err(error) = thread.run() {
                *lock(&thread.condition.failure) = Some(error);
            }
            thread.links.close();
        };
        let thread = std::thread::Builder::new()
            .name("mptcp-links".to_owned())
            .spawn(run)
            .map_err(failed("starting a thread"))?;
        Ok(Emulator {
            requests: Mutex::new(Some(sender)),
            wake,
            thread: Mutex::new(Some(thread)),
            condition,
            process: std::process::id(),
        })
    }

    /// Links two interfaces, by their indexes. `number` names the link.
    pub fn add(&self, number: u16, interfaces: [u32; 2], limits: Both) -> Result<()> {
        self.ask(move |links| links.add(number, interfaces, limits))?
    }

    /// Changes the limits of both directions. Frames that the link holds stay.
    pub fn set(&self, number: u16, limits: Both) -> Result<()> {
        self.ask(move |links| links.set(number, limits))?
    }

    /// Sets which directions are emulated; the others are left to the kernel.
    pub fn attach(&self, number: u16, attached: [bool; 2]) -> Result<()> {
        self.ask(move |links| links.attach(number, attached))?
    }

    /// Drops what a link holds.
    pub fn cut(&self, number: u16) -> Result<()> {
        self.ask(move |links| links.cut(number))?
    }

    /// Removes a link and drops what it holds.
    pub fn remove(&self, number: u16) -> Result<()> {
        self.ask(move |links| links.remove(number))?
    }

    pub fn statistics(&self, number: u16) -> Result<[Statistics; 2]> {
        self.ask(move |links| links.statistics(number))?
    }

    pub fn status(&self) -> Result<Status> {
        let [overruns, refused, blocked] = self.ask(Links::troubles)??;
        let Condition { real_time, cpu_ns, wakeups, .. } = &*self.condition;
        Ok(Status {
            overruns,
            refused,
            blocked,
            real_time: real_time.load(Ordering::Relaxed),
            cpu_ns: cpu_ns.load(Ordering::Relaxed),
            wakeups: wakeups.load(Ordering::Relaxed),
        })
    }

    /// Waits until all has left that one direction of a link holds now, 0 for that from its first interface. Returns
    /// whether that was before the deadline. Frames that come meanwhile do not matter.
    pub fn wait_passed(&self, number: u16, from: usize, deadline: Option<Instant>) -> Result<bool> {
        /// There is no event for it, so it is polled.
        const STEP: Duration = Duration::from_millis(1);
        let Some(last) = self.ask(move |links| links.last_due(number, from))?? else { return Ok(true) };
        loop {
            if self.ask(move |links| links.has_passed(number, from, last))?? {
                return Ok(true);
            }
            let left = deadline.map_or(STEP, |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Ok(false);
            }
            std::thread::sleep(left.min(STEP));
        }
    }

    /// Ends the thread; what links hold is lost. Calling it again has no effect.
    pub fn close(&self) {
        // After a fork the thread is the parent's. A thread of the child may have got the same pthread_t, which dropping
        // the handle would detach.
        if self.process != std::process::id() {
            std::mem::forget(self.thread.try_lock().ok().and_then(|mut thread| thread.take()));
            return;
        }
        drop(lock(&self.requests).take());
        self.wake.set();
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
    }

    /// Has the thread run `question` between two frames, and waits for the answer.
    fn ask<T: Send + 'static>(&self, question: impl FnOnce(&mut Links) -> T + Send + 'static) -> Result<T> {
        let closed = || Error::os(libc::EBADF, "the link emulator is closed");
        if self.process != std::process::id() {
            return Err(Error::os(libc::EBADF, "the link emulator belongs to the process that started it"));
        }
        let (sender, answer) = mpsc::sync_channel(1);
        let request = Box::new(move |links: &mut Links| {
            // It fails only if nobody waits any more.
            let _ = sender.send(question(links));
        });
        let sent = lock(&self.requests).as_ref().ok_or_else(closed)?.send(request);
        self.wake.set();
        let ended = || lock(&self.condition.failure).clone().unwrap_or_else(closed);
        sent.map_err(|_| ended())?;
        answer.recv().map_err(|_| ended())
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.close();
    }
}

struct Thread {
    links: Links,
    requests: mpsc::Receiver<Request>,
    wake: Arc<EventFd>,
    timer: OwnedFd,
    /// When the timer expires; 0 for never.
    timer_at: u64,
    turns: Turns,
    /// When the next turn may begin.
    turn: u64,
    /// When the thread woke up, or when it had done a round without sleeping.
    began: u64,
    lead: Lead,
    condition: Arc<Condition>,
}

/// Limits how often the thread wakes up: once in TURN, and more often for a while after a pause.
#[derive(Debug, Default)]
struct Turns {
    /// When the next turn would begin if all had kept to TURN.
    due: u64,
}

impl Turns {
    /// Counts a turn that took so long, and returns when the next one may begin.
    fn count(&mut self, now: u64, took: u64) -> u64 {
        let turn = (BUSY_PART * took).clamp(TURN, LONGEST_TURN);
        self.due = self.due.max(now.saturating_sub(TURNS_AT_ONCE * TURN)) + turn;
        self.due.max(now)
    }
}

/// How long waking up takes at least, nearly always.
#[derive(Debug, Default)]
struct Lead {
    ns: u64,
}

impl Lead {
    /// Moves towards the time that one wake-up of ten is faster than.
    fn learn(&mut self, took: u64) {
        const STEP: u64 = 1_000;
        if took > self.ns {
            self.ns = (self.ns + STEP / 10).min(MOST_LEAD);
        } else {
            self.ns = self.ns.saturating_sub(STEP - STEP / 10);
        }
    }
}

enum Woken {
    ByRequest,
    /// By frames or by the timer.
    Otherwise,
    /// Without having slept: a frame is due sooner than waking up takes.
    Early,
}

impl Thread {
    /// Runs until the owner has dropped its end of the requests.
    fn run(&mut self) -> Result<()> {
        let real_time = sys::clock::become_real_time().is_ok();
        self.condition.real_time.store(real_time, Ordering::Relaxed);
        if !real_time {
            // An old kernel may refuse it; then waking up takes a little longer.
            let _ = sys::clock::prefer_short_turns();
        }
        let mut wakeups = 0;
        loop {
            let (received, more) = self.links.receive();
            let (sent, next) = self.links.forward();
            if received || sent {
                let now = sys::monotonic_ns();
                self.turn = self.turns.count(now, now - self.began);
                self.began = now;
            }
            if more || next.is_some_and(|next| next <= sys::monotonic_ns()) {
                if !self.obey() {
                    return Ok(());
                }
                continue;
            }
            match self.sleep(next, received)? {
                Woken::Early => continue,
                Woken::ByRequest if !self.obey() => return Ok(()),
                Woken::ByRequest | Woken::Otherwise => {}
            }
            wakeups += 1;
            self.condition.wakeups.store(wakeups, Ordering::Relaxed);
            self.condition.cpu_ns.store(sys::clock::thread_cpu_ns(), Ordering::Relaxed);
        }
    }

    /// Waits for frames, requests and the time `next`.
    fn sleep(&mut self, next: Option<u64>, received: bool) -> Result<Woken> {
        let failed = |error: std::io::Error| Error::call("waiting for frames", &error);
        let now = sys::monotonic_ns();
        let mut look_at_frames = true;
        let mut at = next.map(|next| next.saturating_sub(self.lead.ns));
        // While frames arrive and none can be due soon, they need not be received one by one.
        let left = self.links.least_held().saturating_sub(MARGIN).min(MOST_LEFT);
        if received && left >= LEAST_LEFT {
            look_at_frames = false;
            at = Some(at.map_or(now + left, |at| at.min(now + left)));
        }
        if self.turn > now {
            look_at_frames = false;
            at = Some(at.unwrap_or(0).max(self.turn));
        }
        if at.is_some_and(|at| at <= now) {
            return Ok(Woken::Early);
        }
        let at = at.unwrap_or(0);
        if at != self.timer_at {
            sys::clock::set_timer(self.timer.as_raw_fd(), at, 0).map_err(failed)?;
            self.timer_at = at;
        }
        let [small, large] = if look_at_frames { self.links.descriptors() } else { [-1; 2] };
        let [request, expired, _, _] =
            match readable([self.wake.as_raw_fd(), self.timer.as_raw_fd(), small, large], None) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => [false; 4],
                ready => ready.map_err(failed)?,
            };
        self.began = sys::monotonic_ns();
        if expired {
            self.lead.learn(self.began.saturating_sub(at));
        }
        Ok(if request { Woken::ByRequest } else { Woken::Otherwise })
    }

    /// Serves requests. Returns false once the owner is gone.
    fn obey(&mut self) -> bool {
        self.wake.reset();
        loop {
            match self.requests.try_recv() {
                Ok(request) => {
                    // Frames that arrived before the request are treated as before it. The limit is for frames that
                    // arrive faster than they can be received.
                    for _ in 0..MOST_ROUNDS {
                        if !self.links.receive().1 {
                            break;
                        }
                    }
                    request(&mut self.links);
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_taken_at_once_until_there_are_too_many() {
        let begin = 1_000_000_000;
        let mut turns = Turns::default();
        for _ in 0..TURNS_AT_ONCE {
            assert_eq!(turns.count(begin, 0), begin);
        }
        // From then on one in TURN, whenever it is asked for.
        for turn in 1..10 {
            assert_eq!(turns.count(begin + turn, 0), begin + turn * TURN);
        }
        // A pause gives back what it took.
        let later = begin + 1000 * TURN;
        for _ in 0..TURNS_AT_ONCE {
            assert_eq!(turns.count(later, 0), later);
        }
        assert!(turns.count(later, 0) > later);
    }

    #[test]
    fn a_busy_thread_takes_longer_turns() {
        let begin = 1_000_000_000;
        let mut turns = Turns::default();
        for _ in 0..TURNS_AT_ONCE {
            turns.count(begin, 0);
        }
        let mut next = |took| {
            let before = turns.due;
            turns.count(begin, took) - before
        };
        assert_eq!(next(TURN / BUSY_PART), TURN);
        assert_eq!(next(LONGEST_TURN / BUSY_PART - 1), LONGEST_TURN - BUSY_PART);
        assert_eq!(next(LONGEST_TURN), LONGEST_TURN);
    }

    #[test]
    fn the_lead_is_what_nine_of_ten_wake_ups_take_at_least() {
        let mut lead = Lead::default();
        for number in 0..10_000 {
            // From 20 to 29 us.
            lead.learn(20_000 + number % 10 * 1_000);
        }
        assert!((19_000..=22_500).contains(&lead.ns), "{}", lead.ns);
        (0..10_000).for_each(|_| lead.learn(1_000_000));
        assert_eq!(lead.ns, MOST_LEAD);
        (0..10_000).for_each(|_| lead.learn(0));
        assert_eq!(lead.ns, 0);
    }

    #[test]
    fn one_turn_in_a_while_never_waits() {
        let mut turns = Turns::default();
        for now in (1..1000).map(|turn| 1_000_000_000 + turn * TURN) {
            assert_eq!(turns.count(now, 0), now);
        }
    }
}
