//! The kernel's `struct tcp_sock` of subflows, without any lock: a BPF program copies it by its address ([`program`]), and
//! `tcp_info` is made from the copy ([`layout`]). A copy may be torn between two acknowledgements: its counters are of one
//! moment or the next.
//!
//! Needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN in the initial user namespace.

mod endings;
mod layout;
mod program;

use std::ffi::CStr;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::abi::tcp_info::TcpInfo;
use crate::abi::uapi::tcp_state;
use crate::bpf::btf::Btf;
use crate::bpf::Purpose;
use crate::error::Result;
use crate::sys;
use crate::sys::bpf::{ProgramKind, SharedArray};
use crate::sys::lock::PerProcess;
pub use endings::{Ending, Endings};
pub use layout::SubflowState;
use layout::{Layout, Moment};
use program::{request, slot};

const PURPOSE: Purpose = Purpose {
    cannot: "read subflows by BPF",
    needs: "method='bpf' needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN in the initial user namespace: use \
            method='inet_diag', which needs no privilege",
};

/// What bpf_probe_read_kernel asks for.
const LICENSE: &CStr = c"Dual MIT/GPL";

/// Slots at the start: more take a larger map, and the program once more.
const FIRST_SLOTS: u32 = 64;

/// The layout of this kernel, which stays the same.
static LAYOUT: PerProcess<Option<Arc<Layout>>> = PerProcess::new();

fn kernel_layout() -> Result<Arc<Layout>> {
    let mut known = LAYOUT.lock();
    if let Some(layout) = known.as_ref() {
        return Ok(Arc::clone(layout));
    }
    let bytes = PURPOSE.kernel_btf()?;
    let layout = Btf::parse(&bytes)
        .and_then(|btf| Layout::new(&btf, sys::clock::hz()))
        .map_err(|error| PURPOSE.without_btf(&error))?;
    Ok(Arc::clone(known.insert(Arc::new(layout))))
}

/// The program that reads, and its slots.
#[derive(Debug)]
struct Reading {
    program: OwnedFd,
    slots: SharedArray,
}

impl Reading {
    fn new(layout: &Layout, slots: u32) -> Result<Reading> {
        let slots = SharedArray::create(slots, program::slot_size(layout), "mptcp_subflows")
            .map_err(|error| PURPOSE.refused("BPF_MAP_CREATE", &error))?;
        let instructions = program::read(slots.as_raw_fd(), layout);
        let program = PURPOSE.load(ProgramKind::Syscall, &instructions, LICENSE, "mptcp_read")?;
        Ok(Reading { program, slots })
    }
}

/// One subflow as the last run found it.
#[derive(Debug)]
pub struct Copied {
    pub state: u8,
    pub tcp_info: TcpInfo,
    /// Absent where the part of Multipath TCP has just been freed.
    pub subflow: Option<SubflowState>,
    /// CLOCK_MONOTONIC, when it had been copied.
    pub time_ns: u64,
}

/// Subflows whose addresses are kept, each in a slot, and the programs that read them.
#[derive(Debug)]
pub struct TcpSocks {
    layout: Arc<Layout>,
    find: OwnedFd,
    request: SharedArray,
    reading: Reading,
    /// The cookie of the subflow in each slot, 0 in one that is free.
    cookies: Vec<u64>,
    socket: Vec<u8>,
    context: Vec<u8>,
}

impl TcpSocks {
    pub fn new() -> Result<TcpSocks> {
        let layout = kernel_layout()?;
        let request = SharedArray::create(1, request::SIZE, "mptcp_find")
            .map_err(|error| PURPOSE.refused("BPF_MAP_CREATE", &error))?;
        let instructions = program::find(request.as_raw_fd(), &layout);
        let find = PURPOSE.load(ProgramKind::Classifier, &instructions, LICENSE, "mptcp_find")?;
        let reading = Reading::new(&layout, FIRST_SLOTS)?;
        Ok(TcpSocks {
            find,
            request,
            reading,
            cookies: Vec::new(),
            socket: vec![0; layout.socket_size],
            context: vec![0; layout.context_size],
            layout,
        })
    }

    /// Keeps the subflow with these ends and this cookie, if the kernel finds it; `interface` is the index of the one
    /// that it is bound to, or 0. `namespace` is its network namespace, `None` the calling thread's. The slot is its
    /// own until [`TcpSocks::release`].
    pub fn keep(
        &mut self,
        ends: (SocketAddr, SocketAddr),
        interface: u32,
        cookie: u64,
        namespace: Option<BorrowedFd<'_>>,
    ) -> Result<Option<usize>> {
        let (local, remote) = ends;
        let Some(tuple) = tuple(local, remote) else { return Ok(None) };
        let mut asked = [0; request::SIZE];
        asked[request::TUPLE..][..tuple.len()].copy_from_slice(&tuple);
        asked[request::LENGTH..][..8].copy_from_slice(&(tuple.len() as u64).to_ne_bytes());
        self.request.write(0, 0, &asked);
        let run = || sys::bpf::run_classifier(self.find.as_fd(), interface);
        let done = match namespace {
            None => run(),
            Some(namespace) => sys::in_network_namespace(namespace, run),
        };
        match done {
            Ok(()) => {}
            // The interface is gone.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
            Err(error) => return Err(run_failed(&error)),
        }
        let mut answer = [0; 8];
        self.request.read(0, request::COOKIE, &mut answer);
        if u64::from_ne_bytes(answer) != cookie {
            return Ok(None);
        }
        self.request.read(0, request::ADDRESS, &mut answer);
        let index = self.free_slot()?;
        self.reading.slots.write(index, slot::ADDRESS, &answer);
        self.cookies[index] = cookie;
        Ok(Some(index))
    }

    pub fn release(&mut self, slot: usize) {
        if let Some(cookie) = self.cookies.get_mut(slot) {
            *cookie = 0;
            self.reading.slots.write(slot, slot::ADDRESS, &[0; 8]);
        }
    }

    /// Copies every subflow that is kept.
    pub fn run(&mut self) -> Result<()> {
        for first in (0..self.cookies.len() as u32).step_by(program::RUN as usize) {
            let count = (self.cookies.len() as u32 - first).min(program::RUN);
            sys::bpf::run_syscall(self.reading.program.as_fd(), &mut [first, count])
                .map_err(|error| run_failed(&error))?;
        }
        Ok(())
    }

    /// What the last run copied; `None` if the subflow is not there any more.
    pub fn copied(&mut self, slot: usize) -> Option<Copied> {
        let cookie = self.cookies.get(slot).copied().filter(|cookie| *cookie != 0)?;
        let slots = &self.reading.slots;
        let word = |at| {
            let mut bytes = [0; 8];
            slots.read(slot, at, &mut bytes);
            u64::from_ne_bytes(bytes)
        };
        slots.read(slot, program::SOCKET, &mut self.socket);
        slots.read(slot, program::context(&self.layout), &mut self.context);
        let state = self.layout.state(&self.socket);
        let is_it = word(slot::COOKIE_BEFORE) == cookie && word(slot::COOKIE_AFTER) == cookie;
        if !is_it || state == tcp_state::CLOSE {
            return None;
        }
        let time_ns = word(slot::TIME_NS);
        let moment = Moment { jiffies: word(slot::JIFFIES) as u32, ms: (time_ns / 1_000_000) as u32 };
        Some(Copied {
            state,
            tcp_info: self.layout.tcp_info(&self.socket, moment),
            subflow: self.layout.subflow(&self.context, word(slot::ADDRESS)),
            time_ns,
        })
    }

    fn free_slot(&mut self) -> Result<usize> {
        if let Some(index) = self.cookies.iter().position(|cookie| *cookie == 0) {
            return Ok(index);
        }
        let count = self.reading.slots.count();
        if self.cookies.len() == count {
            let mut larger = Reading::new(&self.layout, 2 * count as u32)?;
            for index in 0..count {
                let mut address = [0; 8];
                self.reading.slots.read(index, slot::ADDRESS, &mut address);
                larger.slots.write(index, slot::ADDRESS, &address);
            }
            self.reading = larger;
        }
        self.cookies.push(0);
        Ok(self.cookies.len() - 1)
    }
}

fn run_failed(error: &io::Error) -> crate::error::Error {
    PURPOSE.refused("BPF_PROG_TEST_RUN", error)
}

/// `struct bpf_sock_tuple`: the ends as in a packet from the peer.
fn tuple(local: SocketAddr, remote: SocketAddr) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    match (remote.ip().to_canonical(), local.ip().to_canonical()) {
        (IpAddr::V4(remote), IpAddr::V4(local)) => {
            bytes.extend(remote.octets());
            bytes.extend(local.octets());
        }
        (IpAddr::V6(remote), IpAddr::V6(local)) => {
            bytes.extend(remote.octets());
            bytes.extend(local.octets());
        }
        _ => return None,
    }
    bytes.extend(remote.port().to_be_bytes());
    bytes.extend(local.port().to_be_bytes());
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_are_those_of_a_packet_from_the_peer() {
        let ends = |local: &str, remote: &str| tuple(local.parse().unwrap(), remote.parse().unwrap());
        let ipv4 = [10, 0, 0, 2, 10, 0, 0, 1, 0x13, 0x88, 0x30, 0x39];
        assert_eq!(ends("10.0.0.1:12345", "10.0.0.2:5000"), Some(ipv4.to_vec()));
        assert_eq!(ends("[::ffff:10.0.0.1]:12345", "[::ffff:10.0.0.2]:5000"), Some(ipv4.to_vec()));
        assert_eq!(ends("[fd00::1]:1", "[fd00::2]:2").unwrap().len(), request::IPV6);
        assert_eq!(ends("10.0.0.1:1", "[fd00::2]:2"), None);
    }
}
