//! What the broker may still do once it is set up, should a caller ever take it over: answer on the sockets that it has,
//! open netlink sockets, read files of /proc, run the BPF program that it has loaded, start threads.

use crate::abi::seccomp::{self, Condition, Rule, ALL};
use crate::error::{Error, Result};
use crate::sys::sandbox::{confine, filter, use_few_arenas};

/// Commands of bpf(2): look-ups and changes of maps, and a run of an iterator, but no new programs.
const BPF_COMMANDS: &[i32] = &[1, 2, 3, 33]; // MAP_LOOKUP_ELEM, MAP_UPDATE_ELEM, MAP_DELETE_ELEM, ITER_CREATE

/// `SO_RCVTIMEO_NEW` and `SO_SNDTIMEO_NEW`, which C libraries with 64-bit times on every machine use.
const TIMEOUTS: &[i32] = &[libc::SO_RCVTIMEO, libc::SO_SNDTIMEO, 66, 67];

const WRITING: i32 =
    libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND | (libc::O_TMPFILE & !libc::O_DIRECTORY);

/// What a thread is, and what of it a process or a container is.
const THREAD: i32 = libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND;
const NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

const fn any(number: libc::c_long) -> Rule {
    Rule { number, conditions: &[] }
}

macro_rules! when {
    ($number:expr, $($argument:literal & $mask:expr => $values:expr),+) => {
        Rule { number: $number, conditions: &[$(Condition { argument: $argument, mask: $mask, values: $values }),+] }
    };
}

#[rustfmt::skip]
const RULES: &[Rule] = &[
    // messages, and waiting for them
    any(libc::SYS_recvmsg), any(libc::SYS_recvfrom), any(libc::SYS_sendto), any(libc::SYS_sendmsg),
    any(libc::SYS_ppoll), any(libc::SYS_accept4), any(libc::SYS_shutdown), any(libc::SYS_close),
    any(libc::SYS_read), any(libc::SYS_write), any(libc::SYS_writev), any(libc::SYS_readv),
    any(libc::SYS_pread64), any(libc::SYS_pwrite64), any(libc::SYS_lseek), any(libc::SYS_flock),
    any(libc::SYS_fstat), any(libc::SYS_statx), any(libc::SYS_newfstatat),
    // what musl makes of pwrite(): with a flag for one write, that it goes where it was asked to
    any(libc::SYS_pwritev2),
    #[cfg(target_arch = "x86_64")]
    any(libc::SYS_poll),
    // threads, their memory and clocks
    any(libc::SYS_futex), any(libc::SYS_exit), any(libc::SYS_exit_group), any(libc::SYS_gettid), any(libc::SYS_getpid),
    any(libc::SYS_set_robust_list), any(libc::SYS_rseq), any(libc::SYS_sched_yield), any(libc::SYS_sched_getaffinity),
    any(libc::SYS_rt_sigprocmask), any(libc::SYS_rt_sigaction), any(libc::SYS_rt_sigreturn), any(libc::SYS_sigaltstack),
    any(libc::SYS_restart_syscall), any(libc::SYS_nanosleep), any(libc::SYS_clock_nanosleep),
    any(libc::SYS_clock_gettime), any(libc::SYS_getrandom),
    any(libc::SYS_munmap), any(libc::SYS_mremap), any(libc::SYS_madvise), any(libc::SYS_brk),
    when!(libc::SYS_mmap, 2 & libc::PROT_EXEC => &[0]),
    when!(libc::SYS_mprotect, 2 & libc::PROT_EXEC => &[0]),
    when!(libc::SYS_clone, 0 & (THREAD | NAMESPACES) => &[THREAD]),
    when!(libc::SYS_prctl, 0 & ALL => &[libc::PR_SET_NAME]),
    // one more netlink socket, or a duplicate, and what is asked of a caller's
    when!(libc::SYS_socket, 0 & ALL => &[libc::AF_NETLINK]),
    any(libc::SYS_bind),
    when!(libc::SYS_getsockopt, 1 & ALL => &[libc::SOL_SOCKET]),
    when!(libc::SYS_setsockopt, 1 & ALL => &[libc::SOL_NETLINK]),
    when!(libc::SYS_setsockopt, 1 & ALL => &[libc::SOL_SOCKET], 2 & ALL => TIMEOUTS),
    when!(libc::SYS_fcntl, 1 & ALL => &[libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL]),
    when!(libc::SYS_ioctl, 1 & ALL => &[libc::SIOCGIFNAME as i32]),
    when!(libc::SYS_openat, 2 & WRITING => &[libc::O_RDONLY]),
    // musl has it for paths that do not begin at a descriptor; glibc makes it openat()
    #[cfg(target_arch = "x86_64")]
    when!(libc::SYS_open, 1 & WRITING => &[libc::O_RDONLY]),
    when!(libc::SYS_bpf, 0 & ALL => BPF_COMMANDS),
];

/// The flags of clone3() are in memory, which a filter does not read: C libraries then use clone().
const UNKNOWN: &[Rule] = &[any(libc::SYS_clone3)];

fn program() -> Option<Vec<libc::sock_filter>> {
    let errno = |errno: i32| libc::SECCOMP_RET_ERRNO | errno as u32;
    let groups = [(UNKNOWN, errno(libc::ENOSYS)), (RULES, libc::SECCOMP_RET_ALLOW)];
    seccomp::program(&groups, errno(libc::EPERM), libc::SECCOMP_RET_KILL_PROCESS)
}

/// Confines the process for good. What the kernel does not have is left out; returns what that is.
pub fn enter() -> Result<Vec<&'static str>> {
    use_few_arenas();
    let mut missing = Vec::new();
    match confine(c"/proc") {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EOPNOTSUPP)) => {
            missing.push("Landlock");
        }
        confined => confined.map_err(|error| Error::call("Landlock", &error))?,
    }
    match program().map(|program| filter(&program)) {
        None => missing.push("a seccomp filter for this architecture"),
        Some(Err(error)) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL)) => {
            missing.push("seccomp");
        }
        Some(installed) => installed.map_err(|error| Error::call("seccomp", &error))?,
    }
    Ok(missing)
}

#[cfg(test)]
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod tests {
    use super::*;

    fn answer(number: libc::c_long, arguments: &[i32]) -> u32 {
        seccomp::run(&program().unwrap(), seccomp::AUDIT_ARCH.unwrap(), number, arguments)
    }

    fn is_allowed(number: libc::c_long, arguments: &[i32]) -> bool {
        answer(number, arguments) == libc::SECCOMP_RET_ALLOW
    }

    #[test]
    fn what_takes_a_process_over_is_refused() {
        let refused = [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_process_vm_writev,
            libc::SYS_pidfd_getfd,
            libc::SYS_kill,
            libc::SYS_tgkill,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_mount,
            libc::SYS_connect,
            libc::SYS_openat2,
            libc::SYS_unlinkat,
            libc::SYS_io_uring_setup,
            libc::SYS_perf_event_open,
            libc::SYS_seccomp,
        ];
        for number in refused {
            assert_eq!(answer(number, &[0; 6]), libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, "{number}");
        }
        assert_eq!(answer(libc::SYS_clone3, &[]), libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
        let i386 = 0x4000_0003;
        assert_eq!(
            seccomp::run(&program().unwrap(), i386, libc::SYS_read, &[]),
            libc::SECCOMP_RET_KILL_PROCESS
        );
        assert!(!is_allowed(libc::SYS_read | 0x4000_0000, &[]), "the x32 interface");
    }

    #[test]
    fn arguments_decide_where_a_call_can_do_both() {
        assert!(is_allowed(libc::SYS_openat, &[0, 0, libc::O_CLOEXEC]));
        for flags in [libc::O_RDWR, libc::O_WRONLY, libc::O_CREAT, libc::O_TMPFILE] {
            assert!(!is_allowed(libc::SYS_openat, &[0, 0, flags]), "{flags:o}");
            #[cfg(target_arch = "x86_64")]
            assert!(!is_allowed(libc::SYS_open, &[0, flags, 0]), "{flags:o}");
        }
        #[cfg(target_arch = "x86_64")]
        assert!(is_allowed(libc::SYS_open, &[0, libc::O_CLOEXEC, 0o666]));
        let thread = libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SETTLS | libc::CLONE_SYSVSEM | THREAD;
        assert!(is_allowed(libc::SYS_clone, &[thread]) && !is_allowed(libc::SYS_clone, &[libc::SIGCHLD]));
        assert!(!is_allowed(libc::SYS_clone, &[thread | libc::CLONE_NEWUSER]));
        assert!(is_allowed(libc::SYS_mmap, &[0, 0, libc::PROT_READ | libc::PROT_WRITE]));
        assert!(!is_allowed(libc::SYS_mprotect, &[0, 0, libc::PROT_READ | libc::PROT_EXEC]));
        assert!(
            is_allowed(libc::SYS_socket, &[libc::AF_NETLINK])
                && !is_allowed(libc::SYS_socket, &[libc::AF_INET])
        );
        assert!(is_allowed(libc::SYS_bpf, &[33]) && !is_allowed(libc::SYS_bpf, &[5]));
        assert!(is_allowed(libc::SYS_setsockopt, &[0, libc::SOL_SOCKET, libc::SO_SNDTIMEO]));
        assert!(!is_allowed(libc::SYS_setsockopt, &[0, libc::SOL_SOCKET, libc::SO_MARK]));
    }
}
