//! The system calls of the main job and nothing else: what `main_job.py` compares the package with.
//!
//! `bare_calls FD`, in the network namespace of the Multipath TCP connection behind the inherited descriptor FD.
//! It reads a command a line and answers each with a line, the nanoseconds of one call:
//!
//! - `info COUNT`: getsockopt(MPTCP_INFO).
//! - `subflows COUNT`: getsockopt(MPTCP_FULL_INFO), one send of an exact inet_diag look-up for each subflow, and
//!   the recv of each reply.
//! - `open LOCAL REMOTE`: from SUBFLOW_CREATE to the first look-up that shows the subflow accepted; and, behind a space,
//!   from SUBFLOW_DESTROY to its acknowledgement.
//! - `run PROGRAM [ARGUMENT]...`: a program, from its start to the end of its output.
//!
//! Requests are made by the package's own code before the clock starts. What is timed is libc and the kernel.

use std::error::Error;
use std::io::{self, BufRead, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::process::{Command, Stdio};
use std::time::Instant;

use mptcp::abi::bytes;
use mptcp::abi::mptcp_info;
use mptcp::abi::tcp_info;
use mptcp::abi::uapi::{self, full_info, subflow_info};
use mptcp::connection::by_descriptor;
use mptcp::netlink::codec::{messages, Message};
use mptcp::netlink::diag::{self, Tuple};
use mptcp::netlink::pm;
use mptcp::netlink::{Channel, Failure};
use mptcp::sys;
use socket2::{Domain, Protocol, Socket, Type};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// As many subflows as the package makes room for at first.
const ROOM: usize = 8;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;

fn main() -> Result<()> {
    let fd = std::env::args().nth(1).ok_or("usage: bare_calls FD")?.parse()?;
    let mut calls = Calls::new(fd)?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let answer = match line.split(' ').collect::<Vec<_>>()[..] {
            ["info", count] => calls.info(count.parse()?)?.to_string(),
            ["subflows", count] => calls.subflows(count.parse()?)?.to_string(),
            ["open", local, remote] => {
                let (opened, closed) = calls.open(local.parse()?, remote.parse()?)?;
                format!("{opened} {closed}")
            }
            ["run", program, ref arguments @ ..] => run(program, arguments)?.to_string(),
            _ => return Err(format!("unknown command: {line}").into()),
        };
        println!("{answer}");
        io::stdout().flush()?;
    }
    Ok(())
}

struct Calls {
    fd: RawFd,
    diag: Socket,
    pm: Socket,
    pm_family: u16,
    address_id: u8,
    reply: Vec<u8>,
}

impl Calls {
    fn new(fd: RawFd) -> Result<Calls> {
        let mut channel = Channel::new(netlink(libc::NETLINK_GENERIC)?.into())?;
        let family = pm::resolve(&mut channel).map_err(|failure| failure.describe())?;
        let (diag, pm) = (netlink(libc::NETLINK_SOCK_DIAG)?, netlink(libc::NETLINK_GENERIC)?);
        for socket in [&diag, &pm] {
            sys::bind_netlink(socket.as_raw_fd())?;
        }
        Ok(Calls { fd, diag, pm, pm_family: family.id, address_id: 100, reply: vec![0; 64 * 1024] })
    }

    fn info(&self, count: u32) -> Result<u128> {
        let mut reply = [0; mptcp_info::SIZE];
        time_of_one(count, || Ok(mptcp_info(self.fd, &mut reply)?))
    }

    fn subflows(&mut self, count: u32) -> Result<u128> {
        let subflows = by_descriptor::read(self.fd)?.subflows;
        let look_ups: Vec<u8> = subflows.iter().flat_map(|s| look_up(s.local, s.remote)).collect();
        let mut full_info = FullInfo::new();
        let nanoseconds = time_of_one(count, || {
            full_info.read(self.fd)?;
            self.diag.send(&look_ups)?;
            for _ in &subflows {
                let _ = (&self.diag).read(&mut self.reply)?;
            }
            Ok(())
        })?;
        if full_info.count() != subflows.len() {
            return Err("the connection's subflows changed meanwhile".into());
        }
        Ok(nanoseconds)
    }

    fn open(&mut self, local: SocketAddr, remote: SocketAddr) -> Result<(u128, u128)> {
        let token = by_descriptor::read_info(self.fd)?.token();
        let ends = (pm::Address::new(local), pm::Address::new(remote));
        let destroy = self.pm_command(&pm::codec::encode_destroy(token, &ends.0, &ends.1));
        let look_up = look_up(local, remote);

        let mut retries = 0..255;
        let start = loop {
            self.address_id = self.address_id.checked_add(1).unwrap_or(1);
            let with_id = pm::Address { id: self.address_id, ..ends.0 };
            let create = self.pm_command(&pm::codec::encode_create(token, &with_id, &ends.1));
            let start = Instant::now();
            match acknowledged(&self.pm, &create, &mut self.reply)? {
                Ok(()) => break start,
                // The id is taken: closing a subflow frees that of any one from the same address.
                Err(failure) if failure.errno == libc::EINVAL && retries.next().is_some() => {}
                Err(failure) => return Err(failure.describe().into()),
            }
        };
        loop {
            self.diag.send(&look_up)?;
            let length = (&self.diag).read(&mut self.reply)?;
            if is_accepted(&self.reply[..length])? {
                break;
            }
        }
        let opened = start.elapsed();
        let start = Instant::now();
        acknowledged(&self.pm, &destroy, &mut self.reply)?.map_err(|failure| failure.describe())?;
        Ok((opened.as_nanos(), start.elapsed().as_nanos()))
    }

    fn pm_command(&self, payload: &[u8]) -> Vec<u8> {
        message(self.pm_family, NLM_F_ACK, payload)
    }
}

/// The nanoseconds of one of so many calls in a row, after some that are not counted.
fn time_of_one(count: u32, mut call: impl FnMut() -> Result<()>) -> Result<u128> {
    for _ in 0..count / 10 {
        call()?;
    }
    let start = Instant::now();
    for _ in 0..count {
        call()?;
    }
    Ok(start.elapsed().as_nanos() / u128::from(count))
}

fn run(program: &str, arguments: &[&str]) -> Result<u128> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let start = Instant::now();
    let output = command.output()?;
    let elapsed = start.elapsed();
    if output.stdout.is_empty() {
        return Err(format!("{program} printed nothing").into());
    }
    Ok(elapsed.as_nanos())
}

/// getsockopt(MPTCP_INFO).
fn mptcp_info(fd: RawFd, reply: &mut [u8; mptcp_info::SIZE]) -> io::Result<()> {
    let mut length = mptcp_info::SIZE as libc::socklen_t;
    // SAFETY: the pointer and the length describe `reply`, which outlives the call.
    check(unsafe {
        libc::getsockopt(fd, uapi::SOL_MPTCP, uapi::MPTCP_INFO, reply.as_mut_ptr().cast(), &mut length)
    })
}

/// The buffers of getsockopt(MPTCP_FULL_INFO).
struct FullInfo {
    header: [u8; full_info::MPTCP_INFO + mptcp_info::SIZE],
    subflows: [u8; ROOM * subflow_info::SIZE],
    tcp_infos: [u8; ROOM * tcp_info::SIZE],
}

impl FullInfo {
    fn new() -> FullInfo {
        FullInfo {
            header: [0; full_info::MPTCP_INFO + mptcp_info::SIZE],
            subflows: [0; ROOM * subflow_info::SIZE],
            tcp_infos: [0; ROOM * tcp_info::SIZE],
        }
    }

    fn read(&mut self, fd: RawFd) -> io::Result<()> {
        let header = &mut self.header;
        // The kernel wants zeros where it writes sizes and the count.
        header[..full_info::MPTCP_INFO].fill(0);
        bytes::put(header, full_info::SIZE_TCPINFO_USER, &(tcp_info::SIZE as u32).to_ne_bytes());
        bytes::put(header, full_info::SIZE_SFINFO_USER, &(subflow_info::SIZE as u32).to_ne_bytes());
        bytes::put(header, full_info::SIZE_ARRAYS_USER, &(ROOM as u32).to_ne_bytes());
        bytes::put(header, full_info::SUBFLOW_INFO, &(self.subflows.as_mut_ptr() as u64).to_ne_bytes());
        bytes::put(header, full_info::TCP_INFO, &(self.tcp_infos.as_mut_ptr() as u64).to_ne_bytes());
        let mut length = header.len() as libc::socklen_t;
        // SAFETY: the pointer and the length describe `header`. Through the two pointers in it the kernel writes
        // at most ROOM elements of the given sizes, which is what the arrays hold. All of it outlives the call.
        check(unsafe {
            libc::getsockopt(
                fd,
                uapi::SOL_MPTCP,
                uapi::MPTCP_FULL_INFO,
                header.as_mut_ptr().cast(),
                &mut length,
            )
        })
    }

    fn count(&self) -> usize {
        bytes::u32(&self.header, full_info::NUM_SUBFLOWS).unwrap_or(0) as usize
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn netlink(protocol: i32) -> io::Result<Socket> {
    Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(protocol)))
}

/// A netlink request: `struct nlmsghdr`, with the sequence number and the port left 0, and the payload.
fn message(message_type: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
    const HEADER: usize = 16;
    let mut bytes = vec![0; HEADER];
    bytes::put(&mut bytes, 0, &((HEADER + payload.len()) as u32).to_ne_bytes());
    bytes::put(&mut bytes, 4, &message_type.to_ne_bytes());
    bytes::put(&mut bytes, 6, &(NLM_F_REQUEST | flags).to_ne_bytes());
    bytes.extend_from_slice(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An exact look-up of one subflow, which the kernel answers with one message.
fn look_up(local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let tuple = Tuple { local, remote, interface: 0 };
    message(uapi::diag::SOCK_DIAG_BY_FAMILY, 0, &diag::codec::encode_request(&tuple, uapi::diag::NOCOOKIE))
}

/// The reply to a look-up: has the peer accepted the subflow?
fn is_accepted(reply: &[u8]) -> Result<bool> {
    match messages(reply).next() {
        Some(Message::Data { payload, .. }) => {
            let subflow = diag::codec::decode(payload).and_then(|entry| entry.subflow);
            Ok(subflow.is_some_and(|subflow| subflow.fully_established()))
        }
        Some(Message::Failed { failure, .. }) => Err(format!("look-up: {}", failure.describe()).into()),
        _ => Err("look-up: not a reply".into()),
    }
}

/// Sends a command and takes its acknowledgement.
fn acknowledged(
    socket: &Socket,
    command: &[u8],
    reply: &mut [u8],
) -> io::Result<std::result::Result<(), Failure>> {
    socket.send(command)?;
    let length = (&*socket).read(reply)?;
    match messages(&reply[..length]).next() {
        Some(Message::Ack { .. }) => Ok(Ok(())),
        Some(Message::Failed { failure, .. }) => Ok(Err(failure)),
        _ => Err(io::Error::from_raw_os_error(libc::EBADMSG)),
    }
}
