//! `mptcp run`: a program whose TCP sockets are created as Multipath TCP and whose calls of the enhanced socket API of
//! 2016 are served, by seccomp user notification. [`filter`] says which calls those are, [`caller`] who made one,
//! [`socket`] and [`options`] answer; here are the program's start and end, its signals, and the threads that serve.

mod caller;
mod connections;
mod filter;
mod options;
mod socket;
mod terminal;

use std::ffi::CString;
use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::Scope;

use self::caller::Caller;
use self::connections::Connections;
use self::terminal::Terminal;
use crate::abi::seccomp::pass_all;
use crate::enhanced_api::Layout;
use crate::error::{Error, Result};
use crate::events::reader::Reader;
use crate::namespace::path_manager::{self, PathManager};
use crate::namespace::Namespace;
use crate::sys::lock::lock;
use crate::sys::program::{self, Child, Signal, SignalReader, Signals, Step, User, ENDING};
use crate::sys::seccomp::{Listener, Notification, Wait};
use crate::sys::wait::EventFd;

/// Signals that are passed on to the program. Others end the supervisor like any program or, like the terminal's SIGTTIN,
/// reach the program anyway.
pub const SIGNALS: [i32; 9] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGCONT,
    libc::SIGTSTP,
    libc::SIGWINCH,
];

/// The signals that all threads of a supervising process block.
pub fn held_back() -> Vec<i32> {
    [SIGNALS.as_slice(), &[libc::SIGCHLD]].concat()
}

/// How many threads wait for calls at most. A call that waits, for a connection's lock say, keeps its thread, and
/// another one takes its place.
const THREADS: usize = 8;

/// How many calls of options are served at a time at most. One more is ENOBUFS.
const MOST: usize = 500;

/// How to run a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The program, found as execvp() does, and its arguments.
    pub arguments: Vec<CString>,
    /// Its environment, `NAME=value` each.
    pub environment: Vec<CString>,
    /// What the program's sockets latch. Absent: userspace where the privilege is there, else the namespace's.
    pub path_manager: Option<PathManager>,
    /// Programs whose sockets stay TCP.
    pub except: Vec<Vec<u8>>,
    /// Of options 66 to 72.
    pub layout: Layout,
    pub user: Option<User>,
    /// Signals that are blocked when the program starts.
    pub blocked: Vec<i32>,
}

/// How the program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Exited(i32),
    /// By a signal.
    Killed(i32),
    /// It was not executed: the errno of execve.
    NotExecuted(i32),
}

/// How a call is answered.
enum Outcome {
    /// The kernel runs it, as without a supervisor.
    Pass,
    Succeed,
    /// An errno.
    Fail(i32),
    Answered,
}

struct Supervisor<'a> {
    settings: &'a Settings,
    listener: Listener,
    /// Our own network namespace.
    namespace: Arc<Namespace>,
    /// What new sockets latch, or the namespace's choice.
    path_manager: Option<&'static str>,
    connections: Connections,
    /// Held by the thread that waits for the next call.
    turn: Mutex<()>,
    /// Threads that wait for calls, or for their turn to do so.
    waiting: AtomicUsize,
    /// Calls of options that are being served.
    options: AtomicUsize,
    /// Readable when the threads are to end.
    stop: EventFd,
    /// Under the userspace path manager the kernel accepts joins only while a process is subscribed.
    _events: Option<Arc<Reader>>,
}

/// Runs a program to its end, and serves it and all that it starts until the last of them has ended. All threads of this
/// process must block [`held_back`]; the calling one does from now on.
pub fn run(settings: &Settings) -> Result<End> {
    check_proc()?;
    let filter = filter::program().ok_or_else(|| {
        Error::unsupported("mptcp run supports x86-64 and 64-bit ARM only, not this machine")
    })?;
    let failed = |call: &'static str| move |error: io::Error| Error::call(call, &error);
    let namespace = Namespace::current()?;
    let path_manager = choose_path_manager(&namespace, settings.path_manager)?;
    if let Some(signal) = program::pending(&ENDING) {
        return Ok(End::Killed(signal));
    }
    let events = namespace.reader().ok();
    program::default_action(libc::SIGCHLD);
    let caught = Signals::new(&held_back());
    let signals = SignalReader::new(&caught).map_err(failed("signalfd"))?;
    let stop = EventFd::new().map_err(failed("eventfd"))?;
    let blocked = Signals::new(&settings.blocked);
    let (session, terminal) = match &settings.user {
        Some(user) => {
            let (session, terminal) = terminal::open(user.uid)?;
            (Some((user, session)), terminal)
        }
        None => (None, None),
    };
    let user = session.as_ref().map(|(user, session)| (*user, session));
    let started = program::start(&settings.arguments, &settings.environment, &filter, user, &blocked)
        .map_err(failed("starting the program"))?;
    let has_session = session.is_some();
    // Otherwise the program's terminal would never be closed.
    drop(session);
    let (process, listener) = match started {
        Ok(started) => started,
        Err((Step::Execute, error)) => {
            return Ok(End::NotExecuted(error.raw_os_error().unwrap_or(libc::ENOEXEC)))
        }
        Err((step, error)) => return Err(explain(step, &error)),
    };
    // Each call that waits for a connection's lock has some. The program has its own limit.
    program::raise_descriptor_limit();
    let supervisor = Supervisor {
        settings,
        listener,
        namespace,
        path_manager,
        connections: Connections::default(),
        turn: Mutex::default(),
        waiting: AtomicUsize::new(0),
        options: AtomicUsize::new(0),
        stop,
        _events: events,
    };
    std::thread::scope(|scope| {
        supervisor.start_thread(scope).map_err(failed("starting a thread"))?;
        let program = Program { process, has_session, terminal: terminal.as_ref() };
        let relay = terminal.as_ref().map(|terminal| thread().spawn_scoped(scope, || terminal.relay()));
        let end = match relay {
            Some(Err(error)) => Err(error),
            _ => supervisor.wait(&program, &signals),
        };
        supervisor.stop_threads();
        if let Some(terminal) = &terminal {
            terminal.stop();
        }
        end.map_err(failed("waiting for the program"))
    })
}

/// Tries the part of seccomp that `run` needs: puts the calling thread under a filter that lets every call pass. This
/// cannot be undone, so it is for a process that ends at once.
pub fn probe() -> Result<std::os::fd::OwnedFd> {
    program::install_here(&pass_all()).map_err(|(step, error)| explain(step, &error))
}

/// The caller is looked up in /proc by the ids in the notification.
fn check_proc() -> Result<()> {
    let told = std::fs::read_link("/proc/self");
    if told.is_ok_and(|told| told.as_os_str() == std::process::id().to_string().as_str()) {
        return Ok(());
    }
    Err(Error::unsupported(
        "mptcp run needs the /proc of its own PID namespace: mount it, or enter the namespace with it (unshare --mount-proc)",
    ))
}

/// What the program's sockets are to latch, tried on one.
fn choose_path_manager(namespace: &Namespace, wanted: Option<PathManager>) -> Result<Option<&'static str>> {
    let attempt = |name| {
        path_manager::create_socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP, name, None)
            .map(drop)
    };
    if attempt(None).is_err() {
        // No Multipath TCP here: the sockets are TCP, as the program asked.
        return Ok(None);
    }
    match wanted {
        Some(name) => attempt(Some(name.name())).map(|()| Some(name.name())),
        None => {
            let name = PathManager::Userspace.name();
            // The subscription shows that the privilege to open subflows is there.
            let allowed = match namespace.reader().and_then(|_| attempt(Some(name))) {
                // Another process holds the lock that this takes. While it does, the sockets are TCP.
                Err(error) if error.errno() == libc::EBUSY => true,
                Err(error) if error.errno() == libc::EINTR => return Err(error),
                result => result.is_ok(),
            };
            Ok(allowed.then_some(name))
        }
    }
}

fn explain(step: Step, error: &io::Error) -> Error {
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    let text = crate::error::describe(errno);
    match (step, errno) {
        (Step::Filter, libc::EBUSY) => Error::os(
            errno,
            "another supervisor, perhaps another mptcp run, already serves this process: the kernel allows only one for a \
             process tree (seccomp, EBUSY)",
        ),
        (Step::Filter, libc::EINVAL | libc::ENOSYS) => Error::unsupported(
            "this kernel has no seccomp user notification with WAIT_KILLABLE_RECV (CONFIG_SECCOMP_FILTER, Linux 5.19)",
        ),
        (Step::Filter, _) => Error::os(errno, format!("seccomp: {text}")),
        (Step::NoNewPrivileges, _) => Error::os(errno, format!("PR_SET_NO_NEW_PRIVS: {text}")),
        (Step::User, libc::EPERM) => {
            Error::permission("running as another user needs CAP_SETUID, CAP_SETGID and the initial user namespace")
        }
        (Step::User, libc::EINVAL) => {
            Error::os(errno, "this user, or one of its groups, is not mapped in this user namespace")
        }
        (Step::User, _) => Error::os(errno, format!("becoming another user: {text}")),
        (Step::Session, _) => Error::os(
            errno,
            format!("giving the program a session, a terminal or a keyring of its own: {text}"),
        ),
        (Step::Execute, _) => Error::os(errno, format!("execve: {text}")),
    }
}

/// The program that was started.
struct Program<'a> {
    process: i32,
    /// It has a session of its own, where our terminal's keys do not reach it.
    has_session: bool,
    terminal: Option<&'a Terminal>,
}

impl Program<'_> {
    /// Passes on a signal that was sent to us.
    fn signal(&self, signal: Signal) {
        let Signal { number, sender } = signal;
        match (self.terminal, number) {
            (Some(terminal), libc::SIGWINCH) => return terminal.resize(),
            (Some(terminal), libc::SIGCONT) => terminal.go_on(),
            _ => {}
        }
        match sender {
            // A program that sends to its process group sends to us too.
            Some(sender) if sender == self.process => {}
            // The shell continues a job that Ctrl-Z has stopped.
            Some(_) if self.has_session && number == libc::SIGCONT => program::kill(-self.process, number),
            Some(_) => program::kill(self.process, number),
            // Our terminal. A program outside its session is stopped by SIGSTOP only: no shell there could continue it.
            None if self.has_session && number == libc::SIGTSTP => {
                program::kill(-self.process, libc::SIGSTOP)
            }
            None if self.has_session => program::kill(-self.process, number),
            None => {}
        }
    }
}

impl Supervisor<'_> {
    /// Passes signals on, and returns when the last process has ended.
    fn wait(&self, program: &Program<'_>, signals: &SignalReader) -> io::Result<End> {
        let process = program.process;
        let mut end = None;
        // Of the terminal's Ctrl-Z, whose two signals come in either order.
        let (mut stop_asked, mut stopped) = (false, false);
        loop {
            if self.listener.wait_for_hang_up(signals)? == Wait::HangUp {
                return match end {
                    Some(end) => Ok(end),
                    None => program::wait(process, true).map(|child| ended(child).unwrap_or(End::Exited(0))),
                };
            }
            while let Some(signal) = signals.next() {
                if signal.number == libc::SIGCHLD {
                    if end.is_some() {
                        continue;
                    }
                    let child = program::wait(process, false)?;
                    end = ended(child);
                    stopped |= child == Child::Stopped;
                } else if let Some(end) = end {
                    if ENDING.contains(&signal.number) {
                        return Ok(end);
                    }
                } else {
                    stop_asked |= signal.number == libc::SIGTSTP;
                    if signal.number == libc::SIGCONT {
                        (stop_asked, stopped) = (false, false);
                    }
                    program.signal(signal);
                }
            }
            // The program took the terminal's Ctrl-Z: so do we. A SIGSTOP from elsewhere is the program's own.
            if stop_asked && stopped {
                (stop_asked, stopped) = (false, false);
                program::kill(std::process::id() as i32, libc::SIGSTOP);
            }
        }
    }

    /// Ends the threads that serve.
    fn stop_threads(&self) {
        self.stop.set();
    }

    /// Starts one more thread that serves calls.
    fn start_thread<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) -> io::Result<()> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let started = thread().spawn_scoped(scope, || self.serve(scope));
        if started.is_err() {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        started.map(drop)
    }

    /// Serves calls until there are no more, or enough others wait for them.
    fn serve<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        while let Some(call) = self.next() {
            let Some(call) = call else { continue };
            // Another thread waits for the next call while this one is served.
            let is_alone =
                self.waiting.fetch_sub(1, Ordering::Relaxed) == 1 && self.start_thread(scope).is_err();
            // A panic must leave no caller waiting.
            let outcome = catch_unwind(AssertUnwindSafe(|| self.serve_one(&call, is_alone)));
            match outcome.unwrap_or(Outcome::Fail(libc::EIO)) {
                Outcome::Pass => self.listener.pass(call.id),
                Outcome::Succeed => self.listener.answer(call.id, Ok(())),
                Outcome::Fail(errno) => self.listener.answer(call.id, Err(errno)),
                Outcome::Answered => {}
            }
            if self.waiting.fetch_add(1, Ordering::Relaxed) >= THREADS {
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                return;
            }
        }
    }

    /// The next call, or nothing if its caller is gone; `None` when there will be no more.
    fn next(&self) -> Option<Option<Notification>> {
        let _turn = lock(&self.turn);
        match self.listener.wait(&self.stop) {
            Ok(Wait::Call) => self.listener.receive().ok(),
            _ => None,
        }
    }

    /// With `is_alone`, if no other thread can be created, it serves only what cannot wait for a connection's lock.
    fn serve_one(&self, call: &Notification, is_alone: bool) -> Outcome {
        if is_alone && call.number != libc::SYS_socket {
            return Outcome::Fail(libc::ENOBUFS);
        }
        let caller = match Caller::of(self, call) {
            Ok(caller) => caller,
            Err(error) if call.number != libc::SYS_socket && is_short_of_descriptors(&error) => {
                return Outcome::Fail(libc::ENOBUFS)
            }
            Err(_) => return Outcome::Pass,
        };
        match call.number {
            libc::SYS_socket => socket::serve(self, &caller, call),
            libc::SYS_getsockopt | libc::SYS_setsockopt => {
                // Calls that wait for connections' locks must not take all threads.
                match Counted::one_more(&self.options, MOST) {
                    Some(_counted) => options::serve(self, &caller, call),
                    None => Outcome::Fail(libc::ENOBUFS),
                }
            }
            _ => Outcome::Pass,
        }
    }
}

/// Whether we, and not the caller, have too many open.
fn is_short_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// One call that is counted until this is dropped.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn one_more(count: &'a AtomicUsize, most: usize) -> Option<Counted<'a>> {
        let counted = Counted(count);
        (count.fetch_add(1, Ordering::Relaxed) < most).then_some(counted)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn thread() -> std::thread::Builder {
    std::thread::Builder::new().name("mptcp-run".into())
}

fn ended(child: Child) -> Option<End> {
    match child {
        Child::Exited(status) => Some(End::Exited(status)),
        Child::Killed(signal) => Some(End::Killed(signal)),
        Child::Runs | Child::Stopped => None,
    }
}
