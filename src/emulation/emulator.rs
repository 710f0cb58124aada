//! The thread that emulates all links of a lab, and what its owner asks of it. It goes on whatever its owner does.

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

/// How often frames are received before a request, at most: more than the rings hold.
const MOST_ROUNDS: u32 = 64;

type Request = Box<dyn FnOnce(&mut Links) + Send>;

/// What the thread tells of itself.
#[derive(Debug, Default)]
struct Condition {
    real_time: AtomicBool,
    cpu_ns: AtomicU64,
    wakeups: AtomicU64,
    failure: Mutex<Option<Error>>,
}

/// How the emulation as a whole is doing.
#[derive(Debug, Clone, Copy)]
pub struct Status {
    /// Frames that were lost because they came faster than they were taken, of whatever link.
    pub overruns: u64,
    /// Frames that were dropped because all the memory was used that links may hold.
    pub refused: u64,
    /// How often the system did not take frames for a moment.
    pub blocked: u64,
    pub real_time: bool,
    pub cpu_ns: u64,
    pub wakeups: u64,
}

#[derive(Debug)]
pub struct Emulator {
    /// None after the end.
    requests: Mutex<Option<mpsc::Sender<Request>>>,
    wake: Arc<EventFd>,
    thread: Mutex<Option<JoinHandle<()>>>,
    condition: Arc<Condition>,
    process: u32,
}

impl Emulator {
    /// Starts to emulate links of the calling thread's network namespace; there are none yet.
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
            condition: Arc::clone(&condition),
        };
        let run = move || {
            if let Err(error) = thread.run() {
                *lock(&thread.condition.failure) = Some(error);
            }
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

    /// Links two interfaces, by their indexes in the network namespace of the emulator. `number` names the link.
    pub fn add(&self, number: u16, interfaces: [u32; 2], limits: Both) -> Result<()> {
        self.ask(move |links| links.add(number, interfaces, limits))?
    }

    /// Changes the limits of both directions. What is under way goes on.
    pub fn set(&self, number: u16, limits: Both) -> Result<()> {
        self.ask(move |links| links.set(number, limits))?
    }

    /// Says which directions are emulated; the others are the kernel's.
    pub fn attach(&self, number: u16, attached: [bool; 2]) -> Result<()> {
        self.ask(move |links| links.attach(number, attached))?
    }

    /// Drops what a link holds.
    pub fn cut(&self, number: u16) -> Result<()> {
        self.ask(move |links| links.cut(number))?
    }

    /// Forgets a link.
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

    /// Waits until a link holds nothing. Returns whether that was before the deadline.
    pub fn wait_empty(&self, number: u16, deadline: Option<Instant>) -> Result<bool> {
        /// How often it is looked at: what a link holds passes by itself, and nobody tells.
        const STEP: Duration = Duration::from_millis(1);
        loop {
            if self.ask(move |links| links.is_empty(number))?? {
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
        // After a fork the thread is the parent's.
        if self.process != std::process::id() {
            return;
        }
        drop(lock(&self.requests).take());
        self.wake.set();
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
    }

    /// Lets the thread do something between two frames, and waits for it.
    fn ask<T: Send + 'static>(&self, question: impl FnOnce(&mut Links) -> T + Send + 'static) -> Result<T> {
        let closed = || Error::os(libc::EBADF, "the link emulator is closed");
        if self.process != std::process::id() {
            return Err(Error::os(libc::EBADF, "the link emulator belongs to the process that started it"));
        }
        let (sender, answer) = mpsc::sync_channel(1);
        let request = Box::new(move |links: &mut Links| {
            // Nobody waits any more if this fails.
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
    condition: Arc<Condition>,
}

impl Thread {
    /// Until the owner has let go of the requests.
    fn run(&mut self) -> Result<()> {
        let real_time = sys::clock::become_real_time().is_ok();
        self.condition.real_time.store(real_time, Ordering::Relaxed);
        if !real_time {
            // Where it is not known it is not needed for anything else.
            let _ = sys::clock::prefer_short_turns();
        }
        let mut wakeups = 0;
        loop {
            let (received, more) = self.links.receive();
            let next = self.links.forward();
            if more || next.is_some_and(|next| next <= sys::monotonic_ns()) {
                if !self.obey() {
                    return Ok(());
                }
                continue;
            }
            if self.sleep(next, received)? && !self.obey() {
                return Ok(());
            }
            wakeups += 1;
            self.condition.wakeups.store(wakeups, Ordering::Relaxed);
            self.condition.cpu_ns.store(sys::clock::thread_cpu_ns(), Ordering::Relaxed);
        }
    }

    /// Waits for frames, requests and the time `next`. Returns whether there is a request.
    fn sleep(&mut self, next: Option<u64>, received: bool) -> Result<bool> {
        let failed = |error: std::io::Error| Error::call("waiting for frames", &error);
        // While frames come, and none that comes can be due soon, they need not be looked at one by one.
        let left = self.links.least_held().saturating_sub(MARGIN).min(MOST_LEFT);
        let leave = received && left >= LEAST_LEFT;
        let mut at = next.unwrap_or(0);
        if leave {
            let look = sys::monotonic_ns() + left;
            at = next.map_or(look, |next| next.min(look));
        }
        if at != self.timer_at {
            sys::clock::set_timer(self.timer.as_raw_fd(), at, 0).map_err(failed)?;
            self.timer_at = at;
        }
        let [small, large] = if leave { [-1; 2] } else { self.links.descriptors() };
        match readable([self.wake.as_raw_fd(), self.timer.as_raw_fd(), small, large], None) {
            Ok([request, ..]) => Ok(request),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    /// Does what was asked for. Returns whether the owner is there.
    fn obey(&mut self) -> bool {
        self.wake.reset();
        loop {
            match self.requests.try_recv() {
                Ok(request) => {
                    // What came before the request is treated as it was then. If frames come faster than they are
                    // taken, the request need not wait for that to end.
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
