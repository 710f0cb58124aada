//! Capabilities of the calling thread, and whom what it makes belongs to.

use std::io;

use super::check;

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

/// Runs `step` with no effective capabilities but those of `allowed`, on the calling thread alone.
pub fn limited_to<T>(allowed: u64, step: impl FnOnce() -> T) -> io::Result<T> {
    let before = get()?;
    let mut limited = before;
    limited[0].effective &= allowed as u32;
    limited[1].effective &= (allowed >> 32) as u32;
    /// Puts them back, after a panic too. What is permitted was not touched, so it cannot fail.
    struct Restore([Data; 2]);
    impl Drop for Restore {
        fn drop(&mut self) {
            set(&self.0);
        }
    }
    let restore = Restore(before);
    check(set(&limited) as libc::c_int)?;
    let result = step();
    drop(restore);
    Ok(result)
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
    fn capabilities_come_back() {
        let effective = || {
            let data = get().unwrap();
            u64::from(data[0].effective) | u64::from(data[1].effective) << 32
        };
        let before = effective();
        assert_eq!(limited_to(0, effective).unwrap(), 0);
        assert_eq!(effective(), before);
        let one = before & before.wrapping_neg();
        assert_eq!(limited_to(one, effective).unwrap(), one);
        let panicked = std::panic::catch_unwind(|| limited_to(0, || panic!("in the test")));
        assert!(panicked.is_err());
        assert_eq!(effective(), before);
    }
}
