//! The threads that carry commands out beside the one that reads events: a command waits for the lock of its connection,
//! which its owner may hold for any length of time.
//!
//! They are all alike. One of them reads; when there is a command, that one is awake already, so it carries the command out
//! and reads on. If that takes it longer than [`LATE`], a timer has woken another one meanwhile, which reads and carries
//! other commands out. Commands of one connection stay in order, and wait for no other connection. A thread outside the
//! crew may take commands too, see [`caller`].

pub mod caller;

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::sys::lock::lock;
use crate::sys::wait::{self, EventFd, Timer};

/// How many threads there are at most: so many connections but one may be stuck at a time.
const MOST: usize = 32;

/// How many wait for commands when there are none.
const KEPT: usize = 1;

/// How long the one that reads may be at a command before another one reads. To wake that at once would delay the command:
/// it takes as long as the command itself.
pub const LATE: Duration = Duration::from_millis(2);

/// How long the end waits for commands that are being carried out.
const PATIENCE: Duration = Duration::from_millis(100);

/// A command.
pub type Job = Box<dyn FnOnce() + Send>;

/// What a thread does next.
pub enum Next {
    Read,
    /// `needs_deputy`: no thread is left that would read.
    Job {
        token: u32,
        job: Job,
        needs_deputy: bool,
    },
    End,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<(u32, Job)>,
    /// The connections whose commands are being carried out.
    busy: HashSet<u32>,
    threads: usize,
    idle: usize,
    /// A thread reads.
    reads: bool,
    /// That thread is awake, and looks for commands before it waits again.
    attends: bool,
    /// The timer runs.
    is_timed: bool,
    ended: bool,
}

impl State {
    /// The first command of a connection that is not busy.
    fn take(&mut self) -> Option<(u32, Job)> {
        let position = self.jobs.iter().position(|(token, _)| !self.busy.contains(token))?;
        self.jobs.remove(position)
    }

    fn can_take(&self) -> bool {
        self.jobs.iter().any(|(token, _)| !self.busy.contains(token))
    }
}

pub struct Crew {
    state: Mutex<State>,
    /// For the end.
    changed: Condvar,
    /// For the thread that waits for commands: there are some, and it may be needed to read.
    bell: EventFd,
    timer: Timer,
    /// How many commands wait, to look at without the lock.
    waiting: AtomicUsize,
}

impl Crew {
    pub fn new() -> io::Result<Crew> {
        Ok(Crew {
            state: Mutex::default(),
            changed: Condvar::new(),
            bell: EventFd::new()?,
            timer: Timer::new()?,
            waiting: AtomicUsize::new(0),
        })
    }

    /// Counts a thread that is about to be started; false if there are enough, or it is over.
    pub fn begin(&self) -> bool {
        let mut state = lock(&self.state);
        if state.ended || state.threads >= MOST {
            return false;
        }
        state.threads += 1;
        true
    }

    /// A thread that was counted has not begun, or ends.
    pub fn leave(&self) {
        lock(&self.state).threads -= 1;
        self.changed.notify_all();
    }

    /// Whether no thread would read, or wait, if the one that reads had a command.
    pub fn lacks_deputy(&self) -> bool {
        let state = lock(&self.state);
        state.threads < MOST && state.idle < KEPT
    }

    /// Adds a command; true if the thread that reads has to be woken for it.
    pub fn submit(&self, token: u32, job: Job) -> bool {
        let mut state = lock(&self.state);
        state.jobs.push_back((token, job));
        self.waiting.store(state.jobs.len(), Ordering::Relaxed);
        if state.attends || state.busy.contains(&token) {
            return false; // looked at before it waits; or by the thread that has the connection's command before this
        }
        if state.idle > 0 {
            self.bell.set();
            return false;
        }
        true
    }

    /// Adds a command that the caller is about to take, or has others take.
    pub fn put(&self, token: u32, job: Job) {
        let mut state = lock(&self.state);
        state.jobs.push_back((token, job));
        self.waiting.store(state.jobs.len(), Ordering::Relaxed);
    }

    /// A command for a thread outside the crew, which calls `put_down` when it is carried out.
    pub fn take(&self) -> Option<(u32, Job)> {
        if self.waiting.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut state = lock(&self.state);
        let (token, job) = state.take().filter(|_| !state.ended)?;
        self.waiting.store(state.jobs.len(), Ordering::Relaxed);
        state.busy.insert(token);
        Some((token, job))
    }

    /// A command that was taken is carried out; true if others wait.
    pub fn put_down(&self, token: u32) -> bool {
        let mut state = lock(&self.state);
        state.busy.remove(&token);
        state.can_take()
    }

    /// Whether there are commands to take.
    pub fn has_jobs(&self) -> bool {
        lock(&self.state).can_take()
    }

    /// Whether the thread that reads goes on, and waits next.
    pub fn goes_on_reading(&self) -> bool {
        let mut state = lock(&self.state);
        state.attends = state.can_take() && (state.idle > 0 || state.threads < MOST);
        !state.attends && !state.ended
    }

    /// The thread that reads is awake.
    pub fn attend(&self) {
        lock(&self.state).attends = true;
    }

    /// What the thread does next that has stopped reading.
    pub fn stop_reading(&self) -> Next {
        let mut state = lock(&self.state);
        (state.reads, state.attends) = (false, false);
        self.find(state)
    }

    /// What a thread does next whose command is carried out.
    pub fn finish(&self, token: u32) -> Next {
        let mut state = lock(&self.state);
        state.busy.remove(&token);
        self.find(state)
    }

    /// What a new thread does.
    pub fn next(&self) -> Next {
        self.find(lock(&self.state))
    }

    fn find<'a>(&'a self, mut state: MutexGuard<'a, State>) -> Next {
        loop {
            if state.ended {
                break;
            }
            let can_spare = state.reads || state.idle > 0 || state.threads < MOST;
            if let Some((token, job)) = can_spare.then(|| state.take()).flatten() {
                self.waiting.store(state.jobs.len(), Ordering::Relaxed);
                state.busy.insert(token);
                let needs_deputy = !state.reads && state.idle == 0;
                if !state.reads && state.idle > 0 && !state.is_timed {
                    state.is_timed = true;
                    self.timer.set(LATE);
                }
                return Next::Job { token, job, needs_deputy };
            }
            if !state.reads {
                state.reads = true;
                return Next::Read;
            }
            if state.idle >= KEPT {
                break;
            }
            state.idle += 1;
            drop(state);
            let ready = wait::readable([self.bell.as_raw_fd(), self.timer.as_raw_fd()], None);
            state = lock(&self.state);
            state.idle -= 1;
            let [rung, timed] = ready.unwrap_or([false; 2]);
            if rung {
                self.bell.reset();
            }
            if timed {
                self.timer.reset();
                state.is_timed = false;
            }
        }
        state.threads -= 1;
        self.changed.notify_all();
        Next::End
    }

    /// No more is done: a thread that finds this ends.
    pub fn refuse(&self) {
        lock(&self.state).ended = true;
        self.bell.set();
    }

    /// Ends the threads. Commands that wait are not carried out. One that is stuck is left behind with its thread, which no
    /// longer reads.
    pub fn end(&self) {
        let mut state = lock(&self.state);
        state.ended = true;
        let jobs = std::mem::take(&mut state.jobs);
        self.bell.set();
        let deadline = Instant::now() + PATIENCE;
        while state.threads > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            // The one that reads always ends: events must not be read by two.
            if left.is_zero() && !state.reads {
                break;
            }
            let left = left.max(Duration::from_millis(1));
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        drop(jobs);
    }
}

impl fmt::Debug for Crew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crew").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn job_of(next: Next) -> (u32, Job) {
        match next {
            Next::Job { token, job, .. } => (token, job),
            Next::Read | Next::End => panic!("not a command"),
        }
    }

    #[test]
    fn commands_of_a_connection_are_in_order_and_wait_for_no_other() {
        let crew = Crew::new().unwrap();
        let (told, heard) = mpsc::channel();
        for _ in 0..3 {
            assert!(crew.begin());
        }
        for (token, name) in [(1, "a"), (1, "b"), (2, "c")] {
            let told = told.clone();
            crew.submit(token, Box::new(move || told.send(name).unwrap()));
        }
        let (first, run_first) = job_of(crew.next());
        let (second, run_second) = job_of(crew.next());
        assert_eq!((first, second), (1, 2), "the first connection is busy");
        assert!(matches!(crew.next(), Next::Read), "its other command has to wait");
        run_second();
        run_first();
        job_of(crew.finish(1)).1();
        assert_eq!(heard.try_iter().collect::<Vec<_>>(), ["c", "a", "b"]);
    }

    #[test]
    fn who_reads_is_asked_only_while_it_waits() {
        let crew = Crew::new().unwrap();
        assert!(crew.begin());
        assert!(matches!(crew.next(), Next::Read));
        assert!(crew.goes_on_reading());
        assert!(crew.submit(1, Box::new(|| {})), "it has to be woken");
        crew.attend();
        assert!(!crew.submit(2, Box::new(|| {})), "it is awake");
        assert!(crew.has_jobs() && !crew.goes_on_reading());
        let Next::Job { token: 1, needs_deputy: true, .. } = crew.stop_reading() else {
            panic!("not the first command, with nobody left to read")
        };
    }

    #[test]
    fn another_thread_takes_commands_of_connections_that_are_not_busy() {
        let crew = Crew::new().unwrap();
        for token in [1, 1, 2] {
            crew.put(token, Box::new(|| {}));
        }
        assert!(crew.begin());
        let (first, _) = crew.take().unwrap();
        assert_eq!((first, job_of(crew.next()).0), (1, 2));
        assert!(crew.take().is_none() && !crew.has_jobs(), "the other command waits for the first");
        assert!(crew.put_down(1) && crew.has_jobs());
        assert_eq!(crew.take().unwrap().0, 1);
        assert!(!crew.put_down(1));
    }

    #[test]
    fn the_number_of_threads_is_bounded_and_reading_never_stops() {
        let crew = Crew::new().unwrap();
        assert_eq!((0..2 * MOST).filter(|_| crew.begin()).count(), MOST);
        assert!(matches!(crew.next(), Next::Read));
        for token in 0..2 * MOST as u32 {
            crew.submit(token, Box::new(|| {}));
        }
        for _ in 1..MOST {
            let _stuck = job_of(crew.next());
        }
        assert!(crew.goes_on_reading(), "no other thread could read");
    }

    #[test]
    fn the_end_waits_for_no_command_that_is_stuck() {
        let crew = Crew::new().unwrap();
        assert!(crew.begin());
        crew.submit(1, Box::new(|| {}));
        let _stuck = job_of(crew.next());
        crew.end();
        assert!(!crew.begin());
        assert!(matches!(crew.finish(1), Next::End));
    }
}
