//! Subflows as they end: what each had counted when it became CLOSE, by the tracepoint inet_sock_set_state. Later the kernel
//! clears the counters of some, by tcp_disconnect(), before inet_diag tells that they are destroyed.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use super::layout::{Layout, Moment, SubflowState};
use super::program::{self, ending};
use super::{kernel_layout, LICENSE, PURPOSE};
use crate::abi::bytes;
use crate::abi::tcp_info::TcpInfo;
use crate::abi::uapi::tcp_state;
use crate::error::Result;
use crate::sys;
use crate::sys::bpf::{ProgramKind, RingBuffer};

/// Bytes of the ring: room for some 1,600 subflows that end between two readings.
const ROOM: usize = 4 << 20;

/// A subflow that has ended.
#[derive(Debug)]
pub struct Ending {
    /// SO_NETNS_COOKIE of its network namespace.
    pub namespace: u64,
    pub cookie: u64,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub subflow: SubflowState,
    pub tcp_info: TcpInfo,
    /// CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// It was established once.
    pub was_established: bool,
}

/// Tells of every subflow of the host that ends.
#[derive(Debug)]
pub struct Endings {
    layout: Arc<Layout>,
    records: RingBuffer,
    /// The program ends with it.
    _link: OwnedFd,
}

impl Endings {
    pub fn new() -> Result<Endings> {
        let layout = kernel_layout()?;
        let records = RingBuffer::create(ROOM, "mptcp_endings")
            .map_err(|error| PURPOSE.refused("BPF_MAP_CREATE", &error))?;
        let instructions = program::end(records.as_raw_fd(), &layout);
        let kind = ProgramKind::Tracepoint { typedef: layout.set_state };
        let program = PURPOSE.load(kind, &instructions, LICENSE, "mptcp_end")?;
        let link = sys::bpf::attach_tracepoint(program.as_fd())
            .map_err(|error| PURPOSE.refused("BPF_RAW_TRACEPOINT_OPEN", &error))?;
        Ok(Endings { layout, records, _link: link })
    }

    /// Readable when a subflow has ended.
    pub fn fd(&self) -> RawFd {
        self.records.as_raw_fd()
    }

    /// Takes those that have ended since the last time, in order.
    pub fn read(&mut self, mut on_ending: impl FnMut(Ending)) {
        let layout = &self.layout;
        self.records.read(|record| {
            if let Some(ending) = decode(layout, record) {
                on_ending(ending);
            }
        });
    }
}

/// None for a socket that is not a subflow.
fn decode(layout: &Layout, record: &[u8]) -> Option<Ending> {
    let word = |at| bytes::u64(record, at);
    let socket = record.get(program::ENDED_SOCKET..)?.get(..layout.socket_size)?;
    let context = record.get(program::ended_context(layout)..)?.get(..layout.context_size)?;
    let subflow = layout.subflow(context, word(ending::ADDRESS)?).filter(|subflow| subflow.token != 0)?;
    let (local, remote) = layout.ends(socket)?;
    let time_ns = word(ending::TIME_NS)?;
    let moment = Moment { jiffies: word(ending::JIFFIES)? as u32, ms: (time_ns / 1_000_000) as u32 };
    let before = [tcp_state::SYN_SENT, tcp_state::SYN_RECV, tcp_state::CLOSE, tcp_state::LISTEN];
    Some(Ending {
        namespace: word(ending::NAMESPACE)?,
        cookie: word(ending::COOKIE)?,
        local,
        remote,
        subflow,
        tcp_info: layout.tcp_info(socket, moment),
        time_ns,
        was_established: !before.contains(&(word(ending::STATE)? as u8)),
    })
}
