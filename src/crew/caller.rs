//! The caller: the thread outside the crew that calls policies, and that waits for events in the place of the crew: being
//! woken by another thread would take as long as all that follows. It reads the events itself, and carries its own commands
//! out before it waits again.
//!
//! It may stay away, or one of its commands may have to wait for the lock of a connection. When that has taken [`LATE`], a
//! timer wakes the crew, which then reads events and carries the other commands out; and a thread that stands by takes the
//! place of one whose command is stuck.

use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Instant;

use crate::crew::LATE;
use crate::error::{Error, Result};
use crate::sys::lock::lock;
use crate::sys::wait::Timer;

/// How many threads may be stuck in commands at a time. One more that is stuck is waited for.
const MOST: usize = 31;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// There is no caller yet.
    Nothing,
    Waits,
    /// Something else than waiting.
    Away,
    /// It carries a command out.
    Works,
}

#[derive(Debug)]
struct State {
    thread: Option<ThreadId>,
    doing: Doing,
    /// Since when it does that, unless it waits.
    since: Instant,
    /// It reads events: the crew need not, unless it is late.
    reads: bool,
    is_late: bool,
    is_timed: bool,
    stands_by: bool,
    /// How many threads are stuck whose place another one has taken.
    stuck: usize,
    has_ended: bool,
}

/// The place of one such thread at a time, and of another that stands by.
#[derive(Debug)]
pub struct Caller {
    state: Mutex<State>,
    relief: Condvar,
    timer: Timer,
}

impl Caller {
    pub fn new() -> Result<Caller> {
        let timer = Timer::new().map_err(|error| Error::call("timerfd_create", &error))?;
        let state = State {
            thread: None,
            doing: Doing::Nothing,
            since: Instant::now(),
            reads: false,
            is_late: false,
            is_timed: false,
            stands_by: false,
            stuck: 0,
            has_ended: false,
        };
        Ok(Caller { state: Mutex::new(state), relief: Condvar::new(), timer })
    }

    // What the caller itself calls

    /// The thread that calls this is the caller from now on.
    pub fn come(&self) {
        let mut state = lock(&self.state);
        state.thread = Some(thread::current().id());
        self.leave(&mut state, Doing::Away);
    }

    /// It waits from now on, for events too if it `reads`; true if the crew has to be told that it reads them again.
    pub fn wait(&self, reads: bool) -> bool {
        let mut state = lock(&self.state);
        let must_tell = state.reads && !reads && !state.is_late;
        state.reads = reads && !state.has_ended;
        (state.doing, state.is_late) = (Doing::Waits, false);
        must_tell
    }

    /// It waits no more.
    pub fn wake(&self) {
        self.leave(&mut lock(&self.state), Doing::Away);
    }

    /// It begins a command.
    pub fn begin(&self) {
        self.leave(&mut lock(&self.state), Doing::Works);
    }

    /// A command is carried out; false if another thread has taken its place meanwhile.
    pub fn finish(&self) -> bool {
        let mut state = lock(&self.state);
        if state.thread != Some(thread::current().id()) {
            state.stuck -= 1;
            return false;
        }
        state.doing = Doing::Away;
        true
    }

    fn leave(&self, state: &mut State, doing: Doing) {
        (state.doing, state.since) = (doing, Instant::now());
        if !state.is_timed {
            state.is_timed = true;
            self.timer.set(LATE);
        }
    }

    /// Waits until a command of the caller is stuck, and becomes the caller; or at once, if there is none. False if
    /// another thread stands by already, if too many are stuck, or at the end.
    pub fn stand_by(&self) -> bool {
        let mut state = lock(&self.state);
        if state.stands_by || state.stuck >= MOST {
            return false;
        }
        state.stands_by = true;
        while !state.has_ended && !state.is_open() {
            state = self.relief.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.stands_by = false;
        if state.has_ended {
            return false;
        }
        state.stuck += usize::from(state.doing == Doing::Works);
        state.thread = Some(thread::current().id());
        self.leave(&mut state, Doing::Away);
        true
    }

    // What others call

    /// Whether the current thread is the caller.
    pub fn is_here(&self) -> bool {
        lock(&self.state).thread == Some(thread::current().id())
    }

    /// Whether a command of the current thread is carried out by itself, soon.
    pub fn takes_commands(&self) -> bool {
        let state = lock(&self.state);
        state.thread == Some(thread::current().id()) && !state.is_late && !state.has_ended
    }

    /// Whether it reads events in the place of the crew.
    pub fn reads(&self) -> bool {
        let state = lock(&self.state);
        state.reads && !state.is_late
    }

    /// Readable when it may be late.
    pub fn timer(&self) -> &Timer {
        &self.timer
    }

    /// Looks whether it is late, when the timer says so.
    pub fn look(&self) {
        let mut state = lock(&self.state);
        state.is_timed = false;
        if matches!(state.doing, Doing::Nothing | Doing::Waits) {
            return;
        }
        match LATE.checked_sub(state.since.elapsed()).filter(|left| !left.is_zero()) {
            Some(left) => {
                state.is_timed = true;
                self.timer.set(left);
            }
            None => {
                state.is_late = true;
                self.relief.notify_one();
            }
        }
    }

    /// Whether it carries a command out at this moment.
    pub fn works(&self) -> bool {
        lock(&self.state).doing == Doing::Works
    }

    /// Nobody stands by any more, and the crew does all again.
    pub fn end(&self) {
        let mut state = lock(&self.state);
        (state.has_ended, state.reads) = (true, false);
        self.relief.notify_all();
    }
}

impl State {
    /// Whether a thread that stands by may take the place.
    fn is_open(&self) -> bool {
        match self.doing {
            Doing::Nothing => true,
            Doing::Works => self.is_late && self.since.elapsed() >= LATE,
            Doing::Waits | Doing::Away => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::wait;
    use std::os::fd::AsRawFd;
    use std::sync::{mpsc, Arc};
    use std::time::Duration;

    /// Waits for the timer, as the crew does.
    fn look(caller: &Caller) {
        let patience = Some(Duration::from_secs(20));
        assert_eq!(wait::readable([caller.timer().as_raw_fd()], patience).unwrap(), [true], "no timer");
        caller.timer().reset();
        caller.look();
    }

    #[test]
    fn who_is_away_for_long_is_late_until_it_waits_again() {
        let caller = Caller::new().unwrap();
        caller.come();
        assert!(!caller.wait(true) && caller.reads());
        caller.wake();
        assert!(caller.reads() && caller.takes_commands());
        while caller.reads() {
            look(&caller); // the first may be of the time before it waited
        }
        assert!(!caller.takes_commands());
        assert!(!caller.wait(true) && caller.reads() && caller.takes_commands());
        assert!(caller.wait(false) && !caller.reads(), "the crew has to be told");
        assert!(!caller.wait(false));
    }

    #[test]
    fn who_is_stuck_is_relieved_once() {
        let caller = Arc::new(Caller::new().unwrap());
        assert!(caller.stand_by(), "nobody was there");
        let (told, heard) = mpsc::channel();
        let relief = Arc::clone(&caller);
        let thread = thread::spawn(move || {
            told.send(relief.stand_by()).unwrap();
            relief.begin();
            told.send(relief.finish()).unwrap();
        });
        caller.begin();
        assert!(caller.finish(), "nobody took its place yet");
        caller.begin();
        while heard.try_recv().is_err() {
            look(&caller);
        }
        assert!(heard.recv().unwrap(), "the other one has the place");
        thread.join().unwrap();
        assert!(!caller.finish() && !caller.takes_commands());
    }

    #[test]
    fn one_stands_by_until_the_end() {
        let caller = Arc::new(Caller::new().unwrap());
        caller.come();
        let relief = Arc::clone(&caller);
        let thread = thread::spawn(move || relief.stand_by());
        while !lock(&caller.state).stands_by {
            thread::yield_now();
        }
        assert!(!caller.stand_by(), "one is enough");
        caller.wait(true);
        caller.end();
        assert!(!thread.join().unwrap() && !caller.stand_by() && !caller.reads());
    }
}
