//! Capabilities of the calling thread, and whom what it makes belongs to.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::check;
use super::child::in_a_process;

const VERSION_3: u32 = 0x2008_0522; // _LINUX_CAPABILITY_VERSION_3

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`, of which there are two: for the lower and the upper 32 capabilities.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

fn get() -> io::Result<[Data; 2]> {
    let header = Header { version: VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: the kernel reads the header and writes the two structures that its version has.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) } as libc::c_int)?;
    Ok(data)
}

fn set(data: &[Data; 2]) -> libc::c_long {
    let header = Header { version: VERSION_3, pid: 0 };
    // SAFETY: the kernel reads the header and the two structures that its version has.
    unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }
}

/// Drops every capability for good; 0, or -1 and errno. A system call and nothing else.
pub fn drop_all() -> libc::c_long {
    set(&[Data::default(); 2])
}

/// Whether the calling thread has all of these capabilities in its user namespace, as far as it can tell.
pub fn has(capabilities: u64) -> bool {
    get().is_ok_and(|[lower, upper]| {
        let effective = u64::from(upper.effective) << 32 | u64::from(lower.effective);
        effective & capabilities == capabilities
    })
}

/// What a thread may do, as far as the network is concerned.
#[derive(Debug)]
pub struct Rights {
    /// Its effective user, as we see it.
    pub uid: u32,
    /// Its effective capabilities in its user namespace.
    pub capabilities: u64,
    /// That namespace, where it is not ours.
    pub user_namespace: Option<File>,
}

impl Rights {
    /// The result of `step` in a process that has these rights and no others. `step` makes system calls only, and what it
    /// changes is lost with the process, but for what descriptors stand for.
    ///
    /// Fails where we cannot take these rights, which takes CAP_SETUID for another user, and CAP_SYS_ADMIN over another
    /// namespace.
    pub fn tried(&self, step: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let status = in_a_process(0, || {
            let tried = self.take().and_then(|()| step());
            tried.map_or_else(
                |error| error.raw_os_error().and_then(|e| e.try_into().ok()).unwrap_or(u8::MAX),
                |()| 0,
            )
        })?;
        match i32::from(status) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Takes these rights for good, for a process with one thread. No program that it executes gets more.
    pub fn keep(&self) -> io::Result<()> {
        // SAFETY: no pointers.
        check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
        self.take()
    }

    /// Takes these rights for good.
    fn take(&self) -> io::Result<()> {
        hide()?;
        // SAFETY: no pointers. By syscall() where the C library would look after threads, of which there is one.
        unsafe {
            if libc::geteuid() != self.uid {
                check(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0))?;
                check(libc::syscall(libc::SYS_setresuid, self.uid, self.uid, self.uid) as libc::c_int)?;
            }
            if let Some(namespace) = &self.user_namespace {
                let permitted = get()?.map(|data| Data { effective: data.permitted, ..data });
                check(set(&permitted) as libc::c_int)?;
                check(libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWUSER))?;
            }
        }
        let mut data = get()?;
        for (data, allowed) in
            data.iter_mut().zip([self.capabilities as u32, (self.capabilities >> 32) as u32])
        {
            let allowed = data.permitted & allowed;
            *data = Data { effective: allowed, permitted: allowed, inheritable: 0 };
        }
        check(set(&data) as libc::c_int)?;
        // Other credentials have made it again what the sysctl fs.suid_dumpable says.
        hide()
    }
}

/// Keeps those with the same rights from our memory and descriptors, which are a copy of a more privileged process's.
fn hide() -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }).map(drop)
}

/// A user and a group that own what is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

impl Owner {
    /// Of what the calling thread makes.
    pub fn current() -> Owner {
        // SAFETY: no pointers, and nobody has the user and the group -1: both stay as they are.
        unsafe { Owner { uid: libc::setfsuid(u32::MAX) as u32, gid: libc::setfsgid(u32::MAX) as u32 } }
    }

    /// Both or neither, for the calling thread alone. Group first: it takes a privilege that the user's may not have.
    fn set(self) -> io::Result<()> {
        let before = Owner::current();
        // SAFETY: no pointers. What they return is the one before, whether they changed it or not.
        unsafe {
            libc::setfsgid(self.gid);
            libc::setfsuid(self.uid);
            if Owner::current() != self {
                libc::setfsuid(before.uid);
                libc::setfsgid(before.gid);
                return Err(io::Error::from_raw_os_error(libc::EPERM));
            }
        }
        Ok(())
    }

    /// Runs `step`, in which what the calling thread makes is of this owner from the start. For another than its own this
    /// takes CAP_SETUID and CAP_SETGID.
    pub fn make<T>(self, step: impl FnOnce() -> T) -> io::Result<T> {
        struct Restore(Owner);
        impl Drop for Restore {
            /// After a panic too. It was ours, so it cannot fail.
            fn drop(&mut self) {
                // SAFETY: no pointers. The user first: with root's come the capabilities that root has over files.
                unsafe {
                    libc::setfsuid(self.0.uid);
                    libc::setfsgid(self.0.gid);
                }
            }
        }
        let before = Owner::current();
        if before == self {
            return Ok(step());
        }
        self.set()?;
        let _restore = Restore(before);
        Ok(step())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_for_another_is_the_other_s_from_the_start() {
        use std::os::fd::AsFd;
        use std::os::unix::fs::MetadataExt;

        let before = Owner::current();
        let other = Owner { uid: 54321, gid: 54322 };
        let owner_of = |socket: std::net::TcpListener| {
            let metadata =
                std::fs::File::from(socket.as_fd().try_clone_to_owned().unwrap()).metadata().unwrap();
            Owner { uid: metadata.uid(), gid: metadata.gid() }
        };
        let make = || owner_of(std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        match other.make(make) {
            Ok(made) => assert_eq!(made, other),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EPERM)),
        }
        assert_eq!(Owner::current(), before);
        assert_eq!(before.make(make).unwrap(), before);
        let effective = || get().unwrap().map(|data| data.effective);
        let capabilities = effective();
        let panicked = std::panic::catch_unwind(|| other.make(|| panic!("in the test")).unwrap());
        assert!(panicked.is_err());
        assert_eq!((Owner::current(), effective()), (before, capabilities));
    }

    #[test]
    fn rights_are_those_of_another_and_ours_stay() {
        let before = (get().unwrap().map(|data| data.effective), Owner::current());
        let ours = u64::from(before.0[0]) | u64::from(before.0[1]) << 32;
        // SAFETY: no pointers.
        let uid = unsafe { libc::geteuid() };
        let rights = |uid, capabilities| Rights { uid, capabilities, user_namespace: None };
        let effective = || get().map(|data| data.map(|data| data.effective));
        let has = |wanted: [u32; 2]| {
            move || {
                if effective()? == wanted {
                    Ok(())
                } else {
                    Err(io::Error::from_raw_os_error(libc::EDOM))
                }
            }
        };
        assert!(rights(uid, 0).tried(has([0, 0])).is_ok());
        assert!(rights(uid, u64::MAX).tried(has(before.0)).is_ok());
        // SAFETY: no pointers.
        let is_hidden = || match unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::from_raw_os_error(libc::EDOM)),
        };
        assert!(rights(uid, 0).tried(is_hidden).is_ok());
        let one = ours & ours.wrapping_neg();
        assert!(rights(uid, one).tried(has([one as u32, (one >> 32) as u32])).is_ok());
        assert_eq!(rights(uid, 0).tried(has([1, 1])).unwrap_err().raw_os_error(), Some(libc::EDOM));
        match rights(54321, one).tried(has([one as u32, (one >> 32) as u32])) {
            Ok(()) => assert_eq!(uid, 0),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EPERM)),
        }
        assert_eq!((get().unwrap().map(|data| data.effective), Owner::current()), before);
    }
}
