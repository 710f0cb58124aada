//! Starting a program under a seccomp filter, and waiting for it.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::seccomp::Listener;
use super::{check, errno};

/// Whom a program runs as, and what of ours it keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// Descriptors beside 0, 1 and 2, in ascending order.
    pub descriptors: Vec<RawFd>,
}

/// A session of its own for a program that runs as another user.
#[derive(Debug)]
pub struct Session {
    /// Its controlling terminal, if it has one.
    pub terminal: Option<OwnedFd>,
    /// Which of descriptors 0, 1 and 2 are to be that terminal.
    pub is_terminal: [bool; 3],
}

/// What stood in the way of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// setgroups, setresgid, setresuid or capset
    User = 1,
    /// PR_SET_NO_NEW_PRIVS
    NoNewPrivileges = 2,
    /// SECCOMP_SET_MODE_FILTER
    Filter = 3,
    /// execve
    Execute = 4,
    /// setsid, TIOCSCTTY, dup2, KEYCTL_JOIN_SESSION_KEYRING or close_range
    Session = 5,
}

/// A set of signals.
#[derive(Clone, Copy)]
pub struct Signals(libc::sigset_t);

impl Signals {
    pub fn new(signals: &[i32]) -> Signals {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset fills the set; sigaddset refuses numbers that are none.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in signals {
                libc::sigaddset(set.as_mut_ptr(), *signal);
            }
            Signals(set.assume_init())
        }
    }
}

/// What ends a process that is asked to end.
pub const ENDING: [i32; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// One of these signals that has come for the calling thread, or for its process, is held back and is not ignored.
pub fn pending(signals: &[i32]) -> Option<i32> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigpending fills the set.
    let set = unsafe {
        if libc::sigpending(set.as_mut_ptr()) != 0 {
            return None;
        }
        set.assume_init()
    };
    let is_ignored = |signal| {
        let mut action = MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: without a new action the old one is written, and it is read only if it was.
        unsafe {
            libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
                && action.assume_init().sa_sigaction == libc::SIG_IGN
        }
    };
    // SAFETY: sigismember reads the set.
    let has_come = |signal| unsafe { libc::sigismember(&raw const set, signal) == 1 };
    signals.iter().copied().find(|signal| has_come(*signal) && !is_ignored(*signal))
}

/// Starts a program in a new process. It finds the program as execvp() does in that environment, holds the signals of
/// `blocked` back and no others, and has no_new_privs and the filter; as another user it has no capabilities.
pub fn start(
    arguments: &[CString],
    environment: &[CString],
    filter: &[libc::sock_filter],
    user: Option<(&User, &Session)>,
    blocked: &Signals,
) -> io::Result<Result<(i32, Listener), (Step, io::Error)>> {
    let pointers = |strings: &[CString]| {
        let ends = strings.iter().map(|string| string.as_ptr());
        ends.chain(std::iter::once(std::ptr::null())).collect::<Vec<_>>()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    let (ours, theirs) = socket_pair()?;
    // SAFETY: until execve or _exit the new process makes system calls only: it allocates nothing and takes no lock
    // that another thread may have held at this moment.
    let process = check(unsafe { libc::fork() })?;
    if process == 0 {
        let (step, error) =
            become_program(theirs.as_raw_fd(), &arguments, &environment, &program, user, blocked);
        let report = [step as i32, error];
        // SAFETY: the pointer and the length describe `report`; _exit does not return.
        unsafe {
            libc::send(theirs.as_raw_fd(), report.as_ptr().cast(), size_of_val(&report), libc::MSG_NOSIGNAL);
            libc::_exit(127);
        }
    }
    drop(theirs);
    let outcome = await_program(&ours);
    if !matches!(outcome, Ok(Ok(_))) {
        let _ = wait(process, true);
    }
    match outcome? {
        Ok(listener) => Ok(Ok((process, Listener::new(listener)?))),
        Err(failure) => Ok(Err(failure)),
    }
}

/// The listener, once the program runs.
fn await_program(channel: &OwnedFd) -> io::Result<Result<OwnedFd, (Step, io::Error)>> {
    let mut listener = None;
    loop {
        let mut report = [0i32; 2];
        let (length, descriptor) = receive(channel.as_fd(), &mut report)?;
        if let Some(descriptor) = descriptor {
            listener = Some(descriptor);
            continue;
        }
        if length == 0 {
            // execve has closed the other end.
            return listener.map(Ok).ok_or_else(|| io::Error::from_raw_os_error(libc::ECHILD));
        }
        let steps = [Step::User, Step::NoNewPrivileges, Step::Filter, Step::Execute, Step::Session];
        let step = steps.into_iter().find(|step| *step as i32 == report[0]).unwrap_or(Step::Execute);
        return Ok(Err((step, io::Error::from_raw_os_error(report[1]))));
    }
}

/// In the new process: returns only on failure. System calls only.
fn become_program(
    channel: RawFd,
    arguments: &[*const libc::c_char],
    environment: &[*const libc::c_char],
    filter: &libc::sock_fprog,
    user: Option<(&User, &Session)>,
    blocked: &Signals,
) -> (Step, i32) {
    // SAFETY: every pointer is to memory of the calling function, copied by fork; the arrays end with NULL. By
    // syscall() where the C library would look after threads, of which there is one.
    unsafe {
        // What Python ignores and a program expects at its default.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::signal(libc::SIGXFSZ, libc::SIG_DFL);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const blocked.0, std::ptr::null_mut());
        if let Some((user, session)) = user {
            if enter_session(session) < 0 || keep_descriptors(&user.descriptors) < 0 {
                return (Step::Session, errno());
            }
            let groups = user.groups.as_ptr();
            if libc::syscall(libc::SYS_setgroups, user.groups.len(), groups) != 0
                || libc::syscall(libc::SYS_setresgid, user.gid, user.gid, user.gid) != 0
                || libc::syscall(libc::SYS_setresuid, user.uid, user.uid, user.uid) != 0
                || libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) != 0
                || super::credentials::drop_all() != 0
            {
                return (Step::User, errno());
            }
            // What it is refused for, no keys in the kernel or a sandbox of ours, keeps the program from ours too.
            let joined = libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0);
            if joined < 0 && ![libc::ENOSYS, libc::EPERM].contains(&errno()) {
                return (Step::Session, errno());
            }
        }
        let listener = match install(filter) {
            Ok(listener) => listener,
            Err(failure) => return failure,
        };
        if send_descriptor(channel, listener) < 0 {
            return (Step::Filter, errno());
        }
        libc::close(listener);
        // Its PATH is that of the program's environment.
        environ = environment.as_ptr();
        libc::execvp(arguments[0], arguments.as_ptr());
        (Step::Execute, errno())
    }
}

unsafe extern "C" {
    /// environ(7). The libc crate has it for glibc alone.
    static mut environ: *const *const libc::c_char;
}

/// Puts the calling thread under a filter, for good; returns its listener. Called between fork and exec too.
fn install(filter: &libc::sock_fprog) -> Result<RawFd, (Step, i32)> {
    // SAFETY: `filter` points to its instructions, which the kernel copies.
    unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return Err((Step::NoNewPrivileges, errno()));
        }
        let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
        let set = libc::SECCOMP_SET_MODE_FILTER;
        let listener = libc::syscall(libc::SYS_seccomp, set, flags, std::ptr::from_ref(filter)) as RawFd;
        if listener < 0 {
            return Err((Step::Filter, errno()));
        }
        Ok(listener)
    }
}

/// Puts the calling thread, and whatever it starts, under a filter for good. The listener is what keeps calls that the
/// filter catches waiting; a process that only tries whether there can be one ends soon.
pub fn install_here(filter: &[libc::sock_filter]) -> Result<OwnedFd, (Step, io::Error)> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    match install(&program) {
        // SAFETY: the descriptor is new and ours.
        Ok(listener) => Ok(unsafe { OwnedFd::from_raw_fd(listener) }),
        Err((step, errno)) => Err((step, io::Error::from_raw_os_error(errno))),
    }
}

/// `<linux/keyctl.h>`
const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;

/// A session without our terminal; -1 and errno on failure. System calls only.
fn enter_session(session: &Session) -> libc::c_int {
    // SAFETY: no pointers.
    unsafe {
        if libc::setsid() < 0 {
            return -1;
        }
        let Some(terminal) = session.terminal.as_ref().map(AsRawFd::as_raw_fd) else { return 0 };
        if libc::ioctl(terminal, libc::TIOCSCTTY, 0) < 0 {
            return -1;
        }
        for (fd, is_terminal) in (0..).zip(session.is_terminal) {
            if is_terminal && libc::dup2(terminal, fd) < 0 {
                return -1;
            }
        }
    }
    0
}

/// Lets execve close all descriptors but 0, 1, 2 and these, which are in ascending order; -1 and errno on failure. System
/// calls only.
fn keep_descriptors(kept: &[RawFd]) -> libc::c_int {
    let mut first: libc::c_uint = 3;
    let close = |first: libc::c_uint, last: libc::c_uint| {
        // SAFETY: no pointers.
        first > last
            || unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC) } == 0
    };
    for fd in kept.iter().filter_map(|fd| libc::c_uint::try_from(*fd).ok()).filter(|fd| *fd >= 3) {
        if !close(first, fd - 1) {
            return -1;
        }
        first = fd + 1;
    }
    if close(first, libc::c_uint::MAX) {
        0
    } else {
        -1
    }
}

fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the kernel writes two descriptors, which are new and ours.
    unsafe {
        check(libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()))?;
        Ok((OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])))
    }
}

/// Room for one descriptor, aligned as cmsghdr has to be.
type Control = [u64; 4];

/// A message of one byte with one descriptor. Called between fork and exec too.
fn send_descriptor(channel: RawFd, descriptor: RawFd) -> isize {
    let mut byte = 0u8;
    let mut data = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut control: Control = [0; 4];
    // SAFETY: msghdr is plain data; its pointers are to the three values above, which outlive the call. The control
    // buffer has room for a header and one descriptor, which is what CMSG_SPACE(4) is.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut data;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(4) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(descriptor);
        libc::sendmsg(channel, &raw const message, libc::MSG_NOSIGNAL)
    }
}

/// A message, and the descriptor that came with it.
fn receive(channel: BorrowedFd<'_>, report: &mut [i32; 2]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut data = libc::iovec { iov_base: report.as_mut_ptr().cast(), iov_len: size_of_val(report) };
    let mut control: Control = [0; 4];
    // SAFETY: as in `send_descriptor`; a descriptor that the kernel puts there is new and ours.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut data;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        let length = loop {
            let length = libc::recvmsg(channel.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC);
            match check(length as libc::c_int) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result? as usize,
            }
        };
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if header.is_null() || (*header).cmsg_type != libc::SCM_RIGHTS {
            return Ok((length, None));
        }
        let descriptor = libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned();
        Ok((length, Some(OwnedFd::from_raw_fd(descriptor))))
    }
}

/// How a child is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Child {
    Runs,
    Stopped,
    Exited(i32),
    /// Ended by a signal.
    Killed(i32),
}

/// Asks after a child, or waits for its end.
pub fn wait(process: i32, to_the_end: bool) -> io::Result<Child> {
    let mut status = 0;
    let options = if to_the_end { 0 } else { libc::WNOHANG | libc::WUNTRACED };
    loop {
        // SAFETY: `status` outlives the call.
        match check(unsafe { libc::waitpid(process, &raw mut status, options) }) {
            Ok(0) => return Ok(Child::Runs),
            Ok(_) if libc::WIFSTOPPED(status) => return Ok(Child::Stopped),
            Ok(_) if libc::WIFSIGNALED(status) => return Ok(Child::Killed(libc::WTERMSIG(status))),
            Ok(_) => return Ok(Child::Exited(libc::WEXITSTATUS(status))),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Sends a signal to a process that may have ended; to a process group by a negative number.
pub fn kill(process: i32, signal: i32) {
    // SAFETY: no pointers.
    unsafe { libc::kill(process, signal) };
}

/// Takes as many descriptors as this process may have: RLIMIT_NOFILE up to its hard limit. What it starts afterwards has
/// that limit too.
pub fn raise_descriptor_limit() {
    let mut limit = MaybeUninit::<libc::rlimit>::uninit();
    // SAFETY: both calls take a pointer to the structure, which is used only if the kernel has filled it.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, limit.as_mut_ptr()) == 0 {
            let mut limit = limit.assume_init();
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// Gives a signal its default meaning.
pub fn default_action(signal: i32) {
    // SAFETY: no handler is installed.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// A signal that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal {
    pub number: i32,
    /// The process that sent it; `None` for the kernel, as when a terminal's key does.
    pub sender: Option<i32>,
}

/// Signals that the calling thread holds back, read from a descriptor.
#[derive(Debug)]
pub struct SignalReader(OwnedFd);

impl SignalReader {
    /// Holds `signals` back in the calling thread, and in those that it starts.
    pub fn new(signals: &Signals) -> io::Result<SignalReader> {
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        // SAFETY: both calls read the set; the descriptor is new and ours.
        unsafe {
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals.0, std::ptr::null_mut());
            let descriptor = check(libc::signalfd(-1, &raw const signals.0, flags))?;
            Ok(SignalReader(OwnedFd::from_raw_fd(descriptor)))
        }
    }

    /// The next signal, if one has come.
    pub fn next(&self) -> Option<Signal> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the kernel writes whole structures or nothing, and it is read only if it was written.
        let info = unsafe {
            if libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size) != size as isize {
                return None;
            }
            info.assume_init()
        };
        // SI_USER and all that processes send are 0 or less.
        let sender = (info.ssi_code <= 0).then_some(info.ssi_pid as i32);
        Some(Signal { number: info.ssi_signo as i32, sender })
    }
}

impl AsRawFd for SignalReader {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
