//! The only system calls that need `unsafe`, each behind a safe function. Nothing here knows what the bytes mean.
#![expect(unsafe_code, reason = "system calls that std and socket2 do not offer")]

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::abi::uapi::{full_info, subflow_info};

pub mod bpf;
pub mod child;
pub mod clock;
pub mod credentials;
pub mod descriptor;
pub mod lock;
pub mod memory;
pub mod namespaces;
pub mod packet;
pub mod pages;
pub mod process;
pub mod program;
pub mod sandbox;
pub mod seccomp;
pub mod seqpacket;
pub mod terminal;
pub mod wait;

/// The result of a C call: -1 is the error in errno.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// getsockopt into `buffer`; the length that the kernel wrote.
pub fn getsockopt(fd: RawFd, level: i32, name: i32, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = buffer.len() as libc::socklen_t;
    // SAFETY: the pointer and the length describe `buffer`, which outlives the call.
    check(unsafe { libc::getsockopt(fd, level, name, buffer.as_mut_ptr().cast(), &mut length) })?;
    Ok((length as usize).min(buffer.len()))
}

/// getsockopt of an integer.
pub fn getsockopt_i32(fd: RawFd, level: i32, name: i32) -> io::Result<i32> {
    let mut bytes = [0; 4];
    getsockopt(fd, level, name, &mut bytes)?;
    Ok(i32::from_ne_bytes(bytes))
}

/// setsockopt from `value`.
pub fn setsockopt(fd: RawFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let length = value.len() as libc::socklen_t;
    // SAFETY: the pointer and the length describe `value`, which outlives the call.
    check(unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), length) }).map(drop)
}

/// setsockopt of an integer.
pub fn setsockopt_i32(fd: RawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    setsockopt(fd, level, name, &value.to_ne_bytes())
}

/// MPTCP_FULL_INFO. `header` is the option's buffer, into which the pointers to the two arrays and their sizes
/// are written here; `tcp_info_size` is the size of one element of `tcp_infos`. Returns the reply's length.
pub fn getsockopt_full_info(
    fd: RawFd,
    header: &mut [u8],
    subflows: &mut [u8],
    tcp_infos: &mut [u8],
    tcp_info_size: usize,
) -> io::Result<usize> {
    use crate::abi::bytes::put;
    let room = (subflows.len() / subflow_info::SIZE).min(tcp_infos.len() / tcp_info_size);
    // The kernel refuses the sizes it reports and the count unless they are 0 on entry.
    header.fill(0);
    put(header, full_info::SIZE_TCPINFO_USER, &(tcp_info_size as u32).to_ne_bytes());
    put(header, full_info::SIZE_SFINFO_USER, &(subflow_info::SIZE as u32).to_ne_bytes());
    put(header, full_info::SIZE_ARRAYS_USER, &(room as u32).to_ne_bytes());
    put(header, full_info::SUBFLOW_INFO, &(subflows.as_mut_ptr() as u64).to_ne_bytes());
    put(header, full_info::TCP_INFO, &(tcp_infos.as_mut_ptr() as u64).to_ne_bytes());
    // The kernel writes at most `room` elements of the given sizes through the two pointers, and `room` was
    // computed from the slices, which outlive the call.
    getsockopt(fd, crate::abi::uapi::SOL_MPTCP, crate::abi::uapi::MPTCP_FULL_INFO, header)
}

/// The other end of a connected socket.
pub fn peer_address(fd: RawFd) -> io::Result<SocketAddr> {
    address_by(libc::getpeername, fd)
}

/// A socket's own end.
pub fn local_address(fd: RawFd) -> io::Result<SocketAddr> {
    address_by(libc::getsockname, fd)
}

type GetName = unsafe extern "C" fn(RawFd, *mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int;

fn address_by(get: GetName, fd: RawFd) -> io::Result<SocketAddr> {
    // SAFETY: `try_init` gets a storage of the size it announces, and both functions fill it and set the length.
    let (_, address) = unsafe {
        socket2::SockAddr::try_init(|storage, length| check(get(fd, storage.cast(), length)).map(drop))
    }?;
    address.as_socket().ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))
}

/// A descriptor that stands for a process.
pub fn pidfd_open(process: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; a descriptor that is returned is new and nobody else's.
    unsafe {
        Ok(OwnedFd::from_raw_fd(check(libc::syscall(libc::SYS_pidfd_open, process, 0) as libc::c_int)?))
    }
}

/// A duplicate of a descriptor of that process. Needs ptrace access to it.
pub fn pidfd_getfd(process: &OwnedFd, fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: as above.
    unsafe {
        let taken = libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0);
        Ok(OwnedFd::from_raw_fd(check(taken as libc::c_int)?))
    }
}

/// Binds a socket to a local address.
pub fn bind(fd: RawFd, local: SocketAddr) -> io::Result<()> {
    let address = socket2::SockAddr::from(local);
    // SAFETY: the pointer and the length describe `address`, which outlives the call.
    check(unsafe { libc::bind(fd, address.as_ptr().cast(), address.len()) }).map(drop)
}

/// Binds a netlink socket; the kernel chooses the port.
pub fn bind_netlink(fd: RawFd) -> io::Result<()> {
    // SAFETY: sockaddr_nl is plain data for which all zeros are valid.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    let length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
    // SAFETY: the pointer and the length describe `address`, which outlives the call.
    check(unsafe { libc::bind(fd, (&raw const address).cast(), length) }).map(drop)
}

/// The index of an interface in the network namespace of the socket `fd` (SIOCGIFINDEX).
pub fn interface_index(fd: RawFd, name: &str) -> io::Result<u32> {
    let name = CString::new(name)?;
    let bytes = name.to_bytes_with_nul();
    // SAFETY: ifreq is plain data for which all zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if bytes.len() > request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(bytes) {
        *place = *byte as libc::c_char;
    }
    // SAFETY: SIOCGIFINDEX reads the name from `request` and writes the index into it.
    check(unsafe { libc::ioctl(fd, libc::SIOCGIFINDEX as _, &raw mut request) })?;
    // SAFETY: after a successful SIOCGIFINDEX the union holds the index.
    Ok(unsafe { request.ifr_ifru.ifru_ifindex } as u32)
}

/// The name of an interface in the network namespace of the socket `fd` (SIOCGIFNAME).
pub fn interface_name(fd: RawFd, index: u32) -> io::Result<String> {
    // SAFETY: ifreq is plain data for which all zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_ifindex = index as i32;
    // SAFETY: SIOCGIFNAME reads the index from `request` and writes the name into it.
    check(unsafe { libc::ioctl(fd, libc::SIOCGIFNAME as _, &raw mut request) })?;
    let name = request.ifr_name.iter().map(|byte| *byte as u8).take_while(|byte| *byte != 0).collect();
    String::from_utf8(name).map_err(|_| io::Error::from_raw_os_error(libc::EILSEQ))
}

/// CLOCK_MONOTONIC in nanoseconds, the clock of Python's time.monotonic_ns().
pub fn monotonic_ns() -> u64 {
    let mut now = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: clock_gettime fills `now`; it fails only for an unknown clock or a bad pointer.
    let now = unsafe {
        libc::clock_gettime(libc::CLOCK_MONOTONIC, now.as_mut_ptr());
        now.assume_init()
    };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32).as_nanos() as u64
}

/// What to open inside a network namespace.
pub enum Wanted {
    Socket {
        family: i32,
        kind: i32,
        protocol: i32,
    },
    /// The first of these paths that opens: for reading and writing if allowed, else for reading.
    File(&'static [&'static CStr]),
}

/// Opens one thing in the namespace of the calling thread; a descriptor or a negative errno. Called between
/// clone and _exit too, so it allocates nothing and takes no lock.
fn open_wanted(wanted: &Wanted) -> i32 {
    let fd = match wanted {
        Wanted::Socket { family, kind, protocol } => {
            // SAFETY: no pointers.
            unsafe { libc::socket(*family, kind | libc::SOCK_CLOEXEC, *protocol) }
        }
        Wanted::File(paths) => {
            let mut failed = libc::ENOENT;
            for path in *paths {
                for flags in [libc::O_RDWR, libc::O_RDONLY] {
                    // SAFETY: `path` is a C string.
                    let fd = unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC) };
                    if fd >= 0 {
                        return fd;
                    }
                    // That another path does not exist explains nothing.
                    if errno() != libc::ENOENT {
                        failed = errno();
                    }
                }
            }
            return -failed;
        }
    };
    if fd < 0 {
        -errno()
    } else {
        fd
    }
}

fn errno() -> i32 {
    // SAFETY: errno's address is valid for the thread's life.
    unsafe { *libc::__errno_location() }
}

fn claim(result: i32) -> io::Result<OwnedFd> {
    if result < 0 {
        Err(io::Error::from_raw_os_error(-result))
    } else {
        // SAFETY: open_wanted just opened it and nobody else knows of it.
        Ok(unsafe { OwnedFd::from_raw_fd(result) })
    }
}

/// Opens things in the calling thread's network namespace.
pub fn open_here<const N: usize>(wanted: &[Wanted; N]) -> [io::Result<OwnedFd>; N] {
    std::array::from_fn(|i| claim(open_wanted(&wanted[i])))
}

/// The network namespace that a socket belongs to, as a descriptor (SIOCGSKNS). Needs CAP_NET_ADMIN there.
pub fn namespace_of_socket(fd: RawFd) -> io::Result<OwnedFd> {
    const SIOCGSKNS: u32 = 0x894c; // <linux/sockios.h>
                                   // SAFETY: no pointers; the returned descriptor is new and ours.
    unsafe { Ok(OwnedFd::from_raw_fd(check(libc::ioctl(fd, SIOCGSKNS as _))?)) }
}

/// Opens things in another network namespace.
///
/// A short-lived process enters it, since a thread of a process with several threads cannot enter the user
/// namespace that may own it (that of a laboratory without root). The process shares our descriptor table, so
/// what it opens is open here, and it shares nothing else: entering a user namespace would otherwise change the
/// attributes of our own memory.
pub fn open_in_namespace<const N: usize>(
    namespace: &OwnedFd,
    wanted: &[Wanted; N],
) -> io::Result<[io::Result<OwnedFd>; N]> {
    let (mut reader, writer) = std::io::pipe()?;
    let mut opened = [0i32; N];
    let status = child::in_a_process(libc::CLONE_FILES, || {
        let entered = enter_namespace(namespace.as_raw_fd());
        for (result, wanted) in opened.iter_mut().zip(wanted) {
            *result = if entered == 0 { open_wanted(wanted) } else { -entered };
        }
        // SAFETY: the pointer and the length describe `opened`.
        unsafe { libc::write(writer.as_raw_fd(), opened.as_ptr().cast(), size_of_val(&opened)) };
        entered as u8
    })?;
    // The reply is in the pipe when the process has ended.
    drop(writer);
    let mut reply = Vec::with_capacity(size_of_val(&opened));
    io::Read::read_to_end(&mut reader, &mut reply)?;
    for (i, result) in opened.iter_mut().enumerate() {
        *result = crate::abi::bytes::u32(&reply, 4 * i).map_or(-libc::EIO, |value| value as i32);
    }
    if status != 0 {
        return Err(io::Error::from_raw_os_error(status.into()));
    }
    Ok(opened.map(claim))
}

/// Runs `step` inside a network namespace, on a thread of its own: the calling thread stays where it is. Needs
/// CAP_SYS_ADMIN in the user namespace that owns it, and does not enter that one: what `step` needs more than that
/// would be missing there.
pub fn in_network_namespace<T: Send>(
    namespace: BorrowedFd<'_>,
    step: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let inside = move || {
        // SAFETY: no pointers. Only the new thread moves.
        check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })?;
        step()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, inside)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Moves the calling process into a network namespace; 0 or an errno. System calls only.
fn enter_namespace(namespace: RawFd) -> i32 {
    const NS_GET_USERNS: u32 = 0xb701; // <linux/nsfs.h>
                                       // SAFETY: no pointers in any of these calls.
    unsafe {
        if libc::setns(namespace, libc::CLONE_NEWNET) == 0 {
            return 0;
        }
        // Not privileged here, but perhaps the owner of the user namespace that owns this one.
        let refused = errno();
        let owner = libc::ioctl(namespace, NS_GET_USERNS as _);
        if owner < 0 {
            // EPERM: it is beyond our own. EMFILE, or no memory: whether we may is not known.
            return if errno() == libc::EPERM { refused } else { errno() };
        }
        let entered = libc::setns(owner, libc::CLONE_NEWUSER);
        libc::close(owner);
        if entered != 0 {
            return refused;
        }
        if libc::setns(namespace, libc::CLONE_NEWNET) == 0 {
            0
        } else {
            errno()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_descriptor_is_an_error() {
        let error = getsockopt(-1, libc::SOL_SOCKET, libc::SO_TYPE, &mut [0; 4]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn an_interface_is_found_by_name() {
        let [socket] =
            open_here(&[Wanted::Socket { family: libc::AF_INET, kind: libc::SOCK_DGRAM, protocol: 0 }]);
        let fd = socket.unwrap();
        assert_eq!(interface_index(fd.as_raw_fd(), "lo").unwrap(), 1);
        let missing = interface_index(fd.as_raw_fd(), "no-such-interface-here").unwrap_err();
        assert_eq!(missing.raw_os_error(), Some(libc::ENODEV));
        assert_eq!(interface_name(fd.as_raw_fd(), 1).unwrap(), "lo");
    }

    #[test]
    fn a_process_opens_things_for_us_and_leaves_none_behind() {
        let here = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        let wanted = [
            Wanted::Socket { family: libc::AF_INET, kind: libc::SOCK_DGRAM, protocol: 0 },
            Wanted::File(&[c"/no/such/file", c"/proc/self/ns/net"]),
            Wanted::File(&[c"/no/such/file"]),
        ];
        match open_in_namespace(&here.into(), &wanted) {
            Ok([socket, file, missing]) => {
                assert!(socket.is_ok() && file.is_ok());
                assert_eq!(missing.unwrap_err().raw_os_error(), Some(libc::ENOENT));
            }
            // An ordinary user may not even enter the namespace it is in.
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EPERM)),
        }
        // SAFETY: no pointers; there must be no child left, of the kind that raises no SIGCHLD either.
        let left = check(unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::__WALL | libc::WNOHANG) });
        assert_eq!(left.unwrap_err().raw_os_error(), Some(libc::ECHILD));
    }
}
