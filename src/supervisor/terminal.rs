//! A separate terminal for a program that runs as another user. In ours it could type into the shell that started us
//! (TIOCSTI), read what is typed there, and change its modes.
//!
//! What is typed is passed on byte by byte: the keys that send signals do so in the program's terminal. Where standard
//! input is not a terminal, only what the program shows is passed on, and our terminal keeps its modes.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::error::{describe, Error, Result};
use crate::sys::program::Session;
use crate::sys::terminal::{self, Modes};
use crate::sys::wait::{self, EventFd};

/// Bytes passed on at a time, and the most typed bytes that wait for the program.
const ROOM: usize = 4096;

/// How long to wait in the background of our terminal before looking whether we still are. Nothing reports a change.
const BACKGROUND: Duration = Duration::from_millis(300);

/// Our terminal and the program's.
pub struct Terminal {
    /// The program's, from our side.
    master: File,
    /// Ours. Absent if what is typed is not passed on.
    keyboard: Option<File>,
    screen: File,
    /// The modes of ours.
    before: Modes,
    wake: EventFd,
    /// Ours may have modes by now that we did not set.
    was_stopped: AtomicBool,
    stop: AtomicBool,
}

/// The session that a program starts in as the user `uid`, and its terminal if one of our standard descriptors is a
/// terminal.
pub fn open(uid: u32) -> Result<(Session, Option<Terminal>)> {
    let is_terminal = terminal::standard();
    let (input, output, error) = (io::stdin(), io::stdout(), io::stderr());
    let shown = match is_terminal {
        [_, true, _] => output.as_fd(),
        [_, _, true] => error.as_fd(),
        [true, ..] => input.as_fd(),
        [false, false, false] => return Ok((Session { terminal: None, is_terminal }, None)),
    };
    let open = || -> io::Result<(OwnedFd, Terminal)> {
        let (master, theirs) = terminal::open_pair(shown, is_terminal[0], uid)?;
        let keyboard = if is_terminal[0] { Some(input.as_fd().try_clone_to_owned()?.into()) } else { None };
        let terminal = Terminal {
            master: master.into(),
            keyboard,
            screen: shown.try_clone_to_owned()?.into(),
            before: Modes::of(shown)?,
            wake: EventFd::new()?,
            was_stopped: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        };
        Ok((theirs, terminal))
    };
    let (theirs, terminal) = open().map_err(|error| {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        let text = format!(
            "opening a terminal for the program: {}. Mount devpts at /dev/pts, or redirect standard input, output \
             and error",
            describe(errno)
        );
        Error::os(errno, text)
    })?;
    Ok((Session { terminal: Some(theirs), is_terminal }, Some(terminal)))
}

impl Terminal {
    /// Passes on what is typed and shown until the program's terminal is closed, or `stop`.
    pub fn relay(&self) {
        let mut raw = Raw { terminal: self, is_set: false };
        let mut keyboard = self.keyboard.as_ref();
        let mut typed: Vec<u8> = Vec::new();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                // Show what the program has written so far.
                while self.show() {}
                return;
            }
            let is_ours = keyboard.is_some_and(|keyboard| terminal::is_ours_to_use(keyboard.as_fd()));
            raw.set(is_ours);
            let read = keyboard.filter(|_| is_ours && typed.len() < ROOM);
            let timeout = (keyboard.is_some() && !is_ours).then_some(BACKGROUND);
            let master = self.master.as_raw_fd();
            let fds = [self.wake.as_raw_fd(), master, read.map_or(-1, AsRawFd::as_raw_fd)];
            let written = if typed.is_empty() { -1 } else { master };
            let ([woken, shown, pressed], writable) = match wait::ready(fds, written, timeout) {
                Ok(ready) => ready,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            if woken {
                self.wake.reset();
            }
            if let (Some(mut file), true) = (read, pressed) {
                let mut bytes = [0; ROOM];
                match file.read(&mut bytes) {
                    Ok(count @ 1..) => typed.extend(&bytes[..count]),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // Our terminal is gone.
                    _ => keyboard = None,
                }
            }
            if writable {
                match (&self.master).write(&typed) {
                    Ok(count) => drop(typed.drain(..count)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => typed.clear(),
                }
            }
            if shown && !self.show() {
                return;
            }
        }
    }

    /// Shows what the program has written; false if there was nothing.
    fn show(&self) -> bool {
        let mut bytes = [0; ROOM];
        match (&self.master).read(&mut bytes) {
            Ok(count @ 1..) => {
                // Our terminal may be gone, which need not keep the program waiting.
                let _ = (&self.screen).write_all(&bytes[..count]);
                true
            }
            Err(error) => error.kind() == io::ErrorKind::Interrupted,
            Ok(0) => false,
        }
    }

    /// Gives the program's terminal the size that ours has.
    pub fn resize(&self) {
        terminal::copy_size(self.screen.as_fd(), self.master.as_fd());
    }

    /// To be called when we continue after a stop, during which a shell has set modes of its own.
    pub fn go_on(&self) {
        self.was_stopped.store(true, Ordering::Relaxed);
        self.wake.set();
    }

    /// Ends `relay` after it has shown what the program has written so far.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.wake.set();
    }
}

/// Whether our terminal is raw. When it is dropped the terminal has the modes from before.
struct Raw<'a> {
    terminal: &'a Terminal,
    is_set: bool,
}

impl Raw<'_> {
    /// Makes it raw, where it is ours to use. The shell that has it in the meantime sets its own modes.
    fn set(&mut self, is_ours: bool) {
        let Terminal { screen, before, was_stopped, .. } = self.terminal;
        let was_stopped = was_stopped.swap(false, Ordering::Relaxed);
        if is_ours && (!self.is_set || was_stopped) {
            let _ = before.raw().set(screen.as_fd());
            self.terminal.resize();
        }
        self.is_set = is_ours;
    }
}

impl Drop for Raw<'_> {
    fn drop(&mut self) {
        let screen = self.terminal.screen.as_fd();
        if self.is_set && terminal::is_ours_to_use(screen) {
            let _ = self.terminal.before.set(screen);
        }
    }
}
