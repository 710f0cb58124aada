//! What this process may still do, for good: seccomp and Landlock.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::check;

/// Puts every thread of the process, and whatever they start, under a filter. The caller has set no_new_privs.
pub fn filter(program: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: `program` points to as many instructions as it says, which the kernel copies.
    let set = unsafe {
        let flags = libc::SECCOMP_FILTER_FLAG_TSYNC;
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    };
    match set {
        // A thread that has another filter already, by its id.
        1.. => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        set => check(set as libc::c_int).map(drop),
    }
}

/// Lets the C library's allocator have two arenas at most, where many threads would fill eight for each processor.
pub fn use_few_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers; a value that it does not know is ignored.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// `struct landlock_ruleset_attr` of Linux 6.12. Older kernels take it while what they do not know is 0.
#[repr(C)]
#[derive(Default)]
struct Ruleset {
    files: u64,
    network: u64,
    scopes: u64,
}

/// `struct landlock_path_beneath_attr`
#[repr(C, packed)]
struct Beneath {
    allowed: u64,
    parent: i32,
}

const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
const LANDLOCK_RULE_PATH_BENEATH: u32 = 1;
const LANDLOCK_ACCESS_FS_READ_FILE: u64 = 1 << 2;

impl Ruleset {
    /// All that a version of Landlock can refuse.
    fn of_version(version: libc::c_long) -> Ruleset {
        let since = |first, bits| if version >= first { bits } else { 0 };
        Ruleset {
            // up to MAKE_SYM, then REFER, TRUNCATE and IOCTL_DEV
            files: 0x1fff | since(2, 1 << 13) | since(3, 1 << 14) | since(5, 1 << 15),
            // BIND_TCP and CONNECT_TCP
            network: since(4, 0x3),
            // ABSTRACT_UNIX_SOCKET and SIGNAL
            scopes: since(6, 0x3),
        }
    }
}

/// Has the calling thread, and whatever it starts, read files beneath one folder and use no others: no paths, no new
/// TCP connections, no signals to other processes. The caller has set no_new_privs. Fails with ENOSYS or EOPNOTSUPP
/// where the kernel has no Landlock.
pub fn confine(folder: &CStr) -> io::Result<()> {
    let descriptor = |result: libc::c_long| {
        // SAFETY: a descriptor that is returned is new and ours.
        check(result as libc::c_int).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
    };
    // SAFETY: every pointer is to a value that outlives its call, of the size and type that the kernel reads.
    unsafe {
        let none = std::ptr::null::<Ruleset>();
        let flags = LANDLOCK_CREATE_RULESET_VERSION;
        let version = libc::syscall(libc::SYS_landlock_create_ruleset, none, 0usize, flags);
        check(version as libc::c_int)?;
        let wanted = Ruleset::of_version(version);
        let size = size_of::<Ruleset>();
        let ruleset =
            descriptor(libc::syscall(libc::SYS_landlock_create_ruleset, &raw const wanted, size, 0u32))?;
        let folder = descriptor(libc::open(folder.as_ptr(), libc::O_PATH | libc::O_CLOEXEC).into())?;
        let beneath = Beneath { allowed: LANDLOCK_ACCESS_FS_READ_FILE, parent: folder.as_raw_fd() };
        let kind = LANDLOCK_RULE_PATH_BENEATH;
        let rule = &raw const beneath;
        let added = libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), kind, rule, 0u32);
        check(added as libc::c_int)?;
        let restricted = libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0u32);
        check(restricted as libc::c_int).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::seccomp::{program, Rule};
    use crate::sys::child::in_a_process;

    fn no_new_privs() -> bool {
        // SAFETY: no pointers.
        unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 }
    }

    fn errno_of(fd: libc::c_int) -> i32 {
        if fd < 0 {
            super::super::errno()
        } else {
            0
        }
    }

    #[test]
    fn files_elsewhere_cannot_be_opened_and_those_beneath_only_read() {
        let tried = in_a_process(0, || {
            if !no_new_privs() {
                return 1;
            }
            match confine(c"/proc") {
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EOPNOTSUPP)) => {
                    return 0; // a kernel without Landlock
                }
                Err(_) => return 2,
                Ok(()) => {}
            }
            // SAFETY: the paths end with NUL.
            let open = |path: &CStr, flags| errno_of(unsafe { libc::open(path.as_ptr(), flags) });
            match () {
                () if open(c"/proc/self/uid_map", libc::O_RDONLY) != 0 => 3,
                () if open(c"/proc/self/comm", libc::O_RDWR) != libc::EACCES => 4,
                () if open(c"/etc/passwd", libc::O_RDONLY) != libc::EACCES => 5,
                () if open(c"/dev/null", libc::O_WRONLY) != libc::EACCES => 6,
                () => 0,
            }
        });
        assert_eq!(tried.unwrap(), 0);
    }

    #[test]
    fn a_call_that_is_not_in_the_filter_is_refused() {
        let rules = [libc::SYS_exit_group, libc::SYS_exit, libc::SYS_getpid]
            .map(|number| Rule { number, conditions: &[] });
        let refused = libc::SECCOMP_RET_ERRNO | libc::EDOM as u32;
        let Some(program) = program(&[(&rules, libc::SECCOMP_RET_ALLOW)], refused, refused) else { return };
        let tried = in_a_process(0, || {
            if !no_new_privs() || filter(&program).is_err() {
                return 1;
            }
            // SAFETY: no pointers.
            let (pid, parent) = unsafe { (libc::getpid(), libc::syscall(libc::SYS_getppid)) };
            u8::from(pid <= 0 || parent != -1 || super::super::errno() != libc::EDOM) << 1
        });
        assert_eq!(tried.unwrap(), 0);
    }
}
