//! Terminals: pairs of pseudo-terminals, modes, sizes, and whose turn it is.

use std::io::{self, IsTerminal};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::check;

/// Standard input, output and error: those of them that are terminals.
pub fn standard() -> [bool; 3] {
    [std::io::stdin().is_terminal(), std::io::stdout().is_terminal(), std::io::stderr().is_terminal()]
}

/// How a terminal handles what is typed and shown.
#[derive(Clone, Copy)]
pub struct Modes(libc::termios);

impl Modes {
    pub fn of(terminal: BorrowedFd<'_>) -> io::Result<Modes> {
        let mut modes = MaybeUninit::uninit();
        // SAFETY: tcgetattr fills the structure when it succeeds.
        unsafe {
            check(libc::tcgetattr(terminal.as_raw_fd(), modes.as_mut_ptr()))?;
            Ok(Modes(modes.assume_init()))
        }
    }

    /// The same but for what would interpret bytes: every one that is typed is read as it is, and shown as written.
    pub fn raw(mut self) -> Modes {
        // SAFETY: cfmakeraw changes the structure that it is given.
        unsafe { libc::cfmakeraw(&raw mut self.0) };
        self
    }

    pub fn set(&self, terminal: BorrowedFd<'_>) -> io::Result<()> {
        // SAFETY: tcsetattr reads the structure.
        check(unsafe { libc::tcsetattr(terminal.as_raw_fd(), libc::TCSANOW, &raw const self.0) }).map(drop)
    }
}

/// A new pair: the master, which never waits, and the terminal itself, which belongs to `uid` and has the modes and the
/// size of `like`. If it is not `interactive` what is written to it comes out as it is, for `like` to make lines of.
pub fn open_pair(like: BorrowedFd<'_>, interactive: bool, uid: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the path is a C string, and the integer that TIOCSPTLCK reads outlives the call; both descriptors are new
    // and ours.
    let (master, terminal) = unsafe {
        let master = check(libc::open(c"/dev/ptmx".as_ptr(), flags | libc::O_NONBLOCK))?;
        let master = OwnedFd::from_raw_fd(master);
        let locked: libc::c_int = 0;
        check(libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const locked))?;
        // By the master alone, whatever is mounted at /dev/pts.
        let terminal = check(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags))?;
        (master, OwnedFd::from_raw_fd(terminal))
    };
    let mut modes = Modes::of(like)?;
    if !interactive {
        modes.0.c_oflag &= !libc::OPOST;
    }
    modes.set(terminal.as_fd())?;
    copy_size(like, master.as_fd());
    // SAFETY: no pointers; a group of -1 stays as it is.
    check(unsafe { libc::fchown(terminal.as_raw_fd(), uid, u32::MAX) })?;
    Ok((master, terminal))
}

/// Gives one terminal the size of another. Who is in its foreground gets SIGWINCH if it changes.
pub fn copy_size(from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
    let mut size = MaybeUninit::<libc::winsize>::uninit();
    // SAFETY: TIOCGWINSZ fills the structure when it succeeds, and only then TIOCSWINSZ reads it.
    unsafe {
        if libc::ioctl(from.as_raw_fd(), libc::TIOCGWINSZ, size.as_mut_ptr()) == 0 {
            libc::ioctl(to.as_raw_fd(), libc::TIOCSWINSZ, size.as_ptr());
        }
    }
}

/// Whether we may read a terminal and change its modes: our process group is in its foreground, or it controls nobody's
/// session that we are in.
pub fn is_ours_to_use(terminal: BorrowedFd<'_>) -> bool {
    // SAFETY: no pointers.
    unsafe {
        let foreground = libc::tcgetpgrp(terminal.as_raw_fd());
        foreground < 0 || foreground == libc::getpgrp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};

    fn pair() -> Option<(OwnedFd, OwnedFd)> {
        let terminal = File::options().read(true).write(true).open("/dev/ptmx").ok()?;
        open_pair(terminal.as_fd(), true, super::super::credentials::Owner::current().uid).ok()
    }

    #[test]
    fn a_pair_of_terminals() {
        let Some((master, terminal)) = pair() else {
            eprintln!("skipped: no pseudo-terminals here");
            return;
        };
        let modes = Modes::of(terminal.as_fd()).unwrap();
        modes.raw().set(terminal.as_fd()).unwrap();
        let (mut master, mut terminal) = (File::from(master), File::from(terminal));
        assert_eq!(master.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        terminal.write_all(b"a\nb").unwrap();
        let mut read = [0; 8];
        assert_eq!(master.read(&mut read).unwrap(), 3);
        assert_eq!(&read[..3], b"a\nb", "as it was written");
        modes.set(terminal.as_fd()).unwrap();
        terminal.write_all(b"\n").unwrap();
        assert_eq!(master.read(&mut read).unwrap(), 2);
        assert_eq!(&read[..2], b"\r\n");
        assert!(is_ours_to_use(terminal.as_fd()));
        drop(terminal);
        assert_eq!(master.read(&mut read).unwrap_err().raw_os_error(), Some(libc::EIO));
    }
}
