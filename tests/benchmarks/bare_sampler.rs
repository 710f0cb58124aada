//! The system calls of a recording and nothing else: what `recorder.py` compares the Recorder with.
//!
//! `bare_sampler full_info|inet_diag INTERVAL_NS TICKS FD...`, in the network namespace of the Multipath TCP connections
//! behind the inherited descriptors. On an absolute clock it reads all of their subflows, tick by tick: by one
//! MPTCP_FULL_INFO a connection, or by exact inet_diag look-ups, 64 in one send, and a recv of each reply. It keeps nothing
//! of what it reads. INTERVAL_NS 0 reads without a pause. It prints the rows, the nanoseconds of processor time, of the
//! whole time and the missed ticks.

use std::error::Error;
use std::io::Read;
use std::os::fd::{AsRawFd, RawFd};

use mptcp::abi::bytes;
use mptcp::abi::mptcp_info;
use mptcp::abi::tcp_info;
use mptcp::abi::uapi::{self, full_info, subflow_info};
use mptcp::connection::by_descriptor;
use mptcp::netlink::diag::{self, Tuple};
use mptcp::sys;
use socket2::{Domain, Protocol, Socket, Type};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const ROOM: usize = 72;
const BATCH: usize = 64;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [method, interval, ticks, fds @ ..] = &arguments[..] else {
        return Err("usage: bare_sampler full_info|inet_diag INTERVAL_NS TICKS FD...".into());
    };
    let fds: Vec<RawFd> = fds.iter().map(|fd| fd.parse()).collect::<std::result::Result<_, _>>()?;
    let (interval, ticks): (u64, u64) = (interval.parse()?, ticks.parse()?);
    let mut reading: Box<dyn FnMut() -> Result<u64>> = match method.as_str() {
        "full_info" => by_full_info(fds),
        "inet_diag" => by_diag(&fds)?,
        _ => return Err("a method is full_info or inet_diag".into()),
    };
    reading()?;
    let _ = sys::clock::become_real_time();
    let (mut rows, mut missed, mut tick) = (0, 0, 0);
    let (start, cpu) = (sys::monotonic_ns(), sys::clock::thread_cpu_ns());
    while tick < ticks {
        tick += 1;
        if interval > 0 {
            sleep_until(start + tick * interval);
            let late = (sys::monotonic_ns() - start) / interval - tick;
            missed += late;
            tick += late;
        }
        rows += reading()?;
    }
    let (cpu, whole) = (sys::clock::thread_cpu_ns() - cpu, sys::monotonic_ns() - start);
    println!("{rows} {cpu} {whole} {missed}");
    Ok(())
}

fn sleep_until(ns: u64) {
    let until = libc::timespec { tv_sec: (ns / 1_000_000_000) as _, tv_nsec: (ns % 1_000_000_000) as _ };
    // SAFETY: `until` outlives the call, which is told to leave nothing behind.
    unsafe {
        libc::clock_nanosleep(libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME, &until, std::ptr::null_mut())
    };
}

fn by_full_info(fds: Vec<RawFd>) -> Box<dyn FnMut() -> Result<u64>> {
    let mut header = [0; full_info::MPTCP_INFO + mptcp_info::SIZE];
    let mut subflows = vec![0; ROOM * subflow_info::SIZE];
    let mut tcp_infos = vec![0; ROOM * tcp_info::SIZE];
    Box::new(move || {
        let mut rows = 0;
        for fd in &fds {
            sys::getsockopt_full_info(*fd, &mut header, &mut subflows, &mut tcp_infos, tcp_info::SIZE)?;
            rows += u64::from(bytes::u32(&header, full_info::NUM_SUBFLOWS).unwrap_or(0));
        }
        Ok(rows)
    })
}

fn by_diag(fds: &[RawFd]) -> Result<Box<dyn FnMut() -> Result<u64>>> {
    let mut look_ups = Vec::new();
    for fd in fds {
        for subflow in by_descriptor::read(*fd)?.subflows {
            let tuple = Tuple { local: subflow.local, remote: subflow.remote, interface: 0 };
            look_ups.push(message(&diag::codec::encode_request(&tuple, uapi::diag::NOCOOKIE)));
        }
    }
    let batches: Vec<(usize, Vec<u8>)> =
        look_ups.chunks(BATCH).map(|batch| (batch.len(), batch.concat())).collect();
    let protocol = Some(Protocol::from(libc::NETLINK_SOCK_DIAG));
    let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, protocol)?;
    sys::bind_netlink(socket.as_raw_fd())?;
    let mut reply = vec![0; 64 * 1024];
    Ok(Box::new(move || {
        let mut rows = 0;
        for (count, batch) in &batches {
            socket.send(batch)?;
            for _ in 0..*count {
                let _ = (&socket).read(&mut reply)?;
                rows += 1;
            }
        }
        Ok(rows)
    }))
}

/// A netlink request: `struct nlmsghdr`, with the sequence number and the port left 0, and the payload.
fn message(payload: &[u8]) -> Vec<u8> {
    const HEADER: usize = 16;
    let mut bytes = vec![0; HEADER];
    bytes::put(&mut bytes, 0, &((HEADER + payload.len()) as u32).to_ne_bytes());
    bytes::put(&mut bytes, 4, &uapi::diag::SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes::put(&mut bytes, 6, &1u16.to_ne_bytes());
    bytes.extend_from_slice(payload);
    bytes
}
