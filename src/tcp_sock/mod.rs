//! The kernel's `struct tcp_sock` of subflows and `struct mptcp_sock` of connections, without any lock: a BPF program copies
//! them by their addresses ([`program`]), and `tcp_info` and `mptcp_info` are made from the copies ([`layout`],
//! [`connection_layout`]). A copy may be torn between two acknowledgements: its counters are of one moment or the next.
//!
//! Needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN in the initial user namespace.

mod connection_layout;
mod endings;
mod layout;
mod program;
mod slots;

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
pub use connection_layout::{ConnectionState, OF_NAMESPACE};
pub use endings::{Ending, Endings};
pub use layout::SubflowState;
use layout::{Layout, Moment};
use program::request;
use slots::{Head, Slots};

const PURPOSE: Purpose = Purpose {
    cannot: "read subflows by BPF",
    needs: "method='bpf' needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN in the initial user namespace: use \
            method='inet_diag', which needs no privilege",
};

/// What bpf_probe_read_kernel asks for.
const LICENSE: &CStr = c"Dual MIT/GPL";

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
    slots: Slots,
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
        let of = Arc::clone(&layout);
        let slots =
            Slots::new(program::slot_size(&layout), "mptcp_read", move |map| program::read(map, &of))?;
        Ok(TcpSocks {
            find,
            request,
            slots,
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
        let answer = |at| {
            let mut bytes = [0; 8];
            self.request.read(0, at, &mut bytes);
            u64::from_ne_bytes(bytes)
        };
        if answer(request::COOKIE) != cookie {
            return Ok(None);
        }
        let address = answer(request::ADDRESS);
        self.slots.keep(address, cookie).map(Some)
    }

    pub fn release(&mut self, slot: usize) {
        self.slots.release(slot);
    }

    /// Copies every subflow that is kept.
    pub fn run(&mut self) -> Result<()> {
        self.slots.run()
    }

    /// What the last run copied; `None` if the subflow is not there any more.
    pub fn copied(&mut self, slot: usize) -> Option<Copied> {
        let head = self.slots.head(slot)?;
        self.slots.read(slot, program::SOCKET, &mut self.socket);
        self.slots.read(slot, program::context(&self.layout), &mut self.context);
        let state = self.layout.state(&self.socket);
        if state == tcp_state::CLOSE {
            return None;
        }
        let Head { address, time_ns, jiffies } = head;
        let moment = Moment { jiffies, ms: (time_ns / 1_000_000) as u32 };
        Some(Copied {
            state,
            tcp_info: self.layout.tcp_info(&self.socket, moment),
            subflow: self.layout.subflow(&self.context, address),
            time_ns,
        })
    }
}

/// Connections whose addresses are kept, each in a slot, and the program that reads them.
#[derive(Debug)]
pub struct MptcpSocks {
    layout: Arc<Layout>,
    slots: Slots,
    socket: Vec<u8>,
}

impl MptcpSocks {
    /// None where this kernel's `mptcp_sock` lacks what is needed.
    pub fn new() -> Result<Option<MptcpSocks>> {
        let layout = kernel_layout()?;
        let Some(connection) = &layout.connection else { return Ok(None) };
        let of = Arc::clone(&layout);
        let read =
            move |map| of.connection.as_ref().map_or_else(Vec::new, |of| program::read_connections(map, of));
        let size = program::connection_slot_size(connection);
        let slots = Slots::new(size, "mptcp_read_conn", read)?;
        let socket = vec![0; connection.socket_size];
        Ok(Some(MptcpSocks { layout, slots, socket }))
    }

    /// Keeps the connection with this token, whose `mptcp_sock` is, or was, at `address`. The slot is its own until
    /// [`MptcpSocks::release`].
    pub fn keep(&mut self, address: u64, token: u32) -> Result<usize> {
        self.slots.keep(address, token.into())
    }

    pub fn release(&mut self, slot: usize) {
        self.slots.release(slot);
    }

    /// Copies every connection that is kept.
    pub fn run(&mut self) -> Result<()> {
        self.slots.run()
    }

    /// What the last run copied, and when, by CLOCK_MONOTONIC; `None` if the connection is not there any more.
    pub fn copied(&mut self, slot: usize) -> Option<(ConnectionState, u64)> {
        let layout = self.layout.connection.as_ref()?;
        let Head { jiffies, time_ns, .. } = self.slots.head(slot)?;
        self.slots.read(slot, program::SOCKET, &mut self.socket);
        let mut first = [0];
        self.slots.read(slot, program::first_state(layout), &mut first);
        Some((layout.state(&self.socket, first[0], jiffies), time_ns))
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
