//! Subflows of one connection by MPTCP_FULL_INFO through a descriptor: all in one moment, and after the connection's
//! lock. What inet_diag alone tells, cookies, address ids and backup, is looked up at once after that.

use std::os::fd::RawFd;
use std::sync::Arc;

use super::by_diag::{final_sample, sample, Target};
use super::Common;
use crate::abi::bytes;
use crate::abi::full_info::Reading;
use crate::abi::tcp_info;
use crate::abi::uapi::{full_info, subflow_info, tcp_state};
use crate::connection::by_descriptor;
use crate::error::{Error, Result};
use crate::netlink::diag::{self, Entry, Tuple};
use crate::netlink::Channel;
use crate::samples::row::RawSample;
use crate::sys;

/// What one reading fills, for all connections one after the other.
#[derive(Debug)]
pub struct Buffers {
    header: [u8; full_info::MPTCP_INFO + crate::abi::mptcp_info::SIZE],
    subflows: Vec<u8>,
    tcp_infos: Vec<u8>,
}

impl Buffers {
    pub fn new() -> Buffers {
        let mut buffers = Buffers {
            header: [0; full_info::MPTCP_INFO + crate::abi::mptcp_info::SIZE],
            subflows: Vec::new(),
            tcp_infos: Vec::new(),
        };
        buffers.make_room(8);
        buffers
    }

    fn make_room(&mut self, count: usize) {
        self.subflows.resize(count * subflow_info::SIZE, 0);
        self.tcp_infos.resize(count * tcp_info::SIZE, 0);
    }
}

/// What came of a reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadOutcome {
    Read,
    /// The descriptor is closed, or is another connection's.
    Ended,
    /// The connection fell back to TCP.
    FellBack,
}

/// One connection.
#[derive(Debug)]
pub struct FullInfo {
    common: Arc<Common>,
    fd: RawFd,
    pub token: u32,
    /// It is not read any more.
    pub ended: bool,
    /// In the kernel's order.
    targets: Vec<Target>,
    /// Not in the list any more.
    gone: Vec<Target>,
    /// Somebody else tells when a subflow has ended, and with which counters: its place in the list does not.
    ends_are_told: bool,
    /// This kernel has no MPTCP_FULL_INFO: our own count of subflows.
    by_parts: Option<u32>,
}

impl FullInfo {
    pub fn new(common: &Arc<Common>, fd: RawFd, token: u32, ends_are_told: bool) -> FullInfo {
        FullInfo {
            common: Arc::clone(common),
            fd,
            token,
            ended: false,
            targets: Vec::new(),
            gone: Vec::new(),
            ends_are_told,
            by_parts: None,
        }
    }

    /// The subflows that it read last.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Adds a row a subflow.
    pub fn read(
        &mut self,
        buffers: &mut Buffers,
        channel: &mut Channel,
        time_ns: u64,
        rows: &mut Vec<RawSample>,
    ) -> Result<ReadOutcome> {
        if self.by_parts.is_some() {
            return self.read_by_parts(channel, time_ns, rows);
        }
        let (total, stride) = loop {
            let length = match sys::getsockopt_full_info(
                self.fd,
                &mut buffers.header,
                &mut buffers.subflows,
                &mut buffers.tcp_infos,
                tcp_info::SIZE,
            ) {
                Ok(length) => length,
                Err(error) => return self.failed(&error, channel, time_ns, rows),
            };
            let number = |at| bytes::u32(&buffers.header[..length], at).unwrap_or(0) as usize;
            let total = number(full_info::NUM_SUBFLOWS);
            if total * subflow_info::SIZE <= buffers.subflows.len() {
                break (total, number(full_info::SIZE_TCPINFO_KERNEL).min(tcp_info::SIZE));
            }
            buffers.make_room(total + 8);
        };
        let token =
            bytes::u32(&buffers.header, full_info::MPTCP_INFO + crate::abi::mptcp_info::field::token.offset);
        if token != Some(self.token) || stride == 0 {
            return Ok(ReadOutcome::Ended);
        }
        self.follow(&buffers.subflows, channel, total, time_ns)?;
        let wait_ns = (sys::monotonic_ns() - time_ns) as i64;
        let mut tcp_infos = buffers.tcp_infos.chunks_exact(stride);
        for target in &mut self.targets {
            let Some(bytes) = tcp_infos.next() else { break };
            push(target, bytes, (time_ns, wait_ns), self.ends_are_told, rows);
        }
        Ok(ReadOutcome::Read)
    }

    /// Makes `targets` what the kernel's list is now.
    fn follow(&mut self, subflows: &[u8], channel: &mut Channel, total: usize, time_ns: u64) -> Result<()> {
        let elements = || subflows.chunks_exact(subflow_info::SIZE).take(total);
        let id = |element: &[u8]| bytes::u32(element, subflow_info::ID).unwrap_or(0) as i32;
        let same = self.targets.len() == total
            && elements().zip(&self.targets).all(|(element, target)| id(element) == target.id);
        if same {
            return self.refresh(channel);
        }
        let readings: Vec<Reading> = elements()
            .filter_map(|element| {
                Some(Reading {
                    id: Some(id(element) as u32),
                    local: crate::abi::address::decode_sockaddr(&element[subflow_info::LOCAL..])?,
                    remote: crate::abi::address::decode_sockaddr(&element[subflow_info::REMOTE..])?,
                    tcp_info: crate::abi::tcp_info::TcpInfo::decode(&[]),
                })
            })
            .collect();
        self.adopt(channel, &readings, time_ns)
    }

    /// Asks inet_diag what may have changed of each.
    fn refresh(&mut self, channel: &mut Channel) -> Result<()> {
        let tuples: Vec<Tuple> = self.targets.iter().map(|target| target.entry.tuple).collect();
        let entries = diag::look_up(channel, &tuples).map_err(diag::failed)?;
        for (target, entry) in self.targets.iter_mut().zip(entries) {
            self.common.update(target, entry);
        }
        Ok(())
    }

    /// Takes over a new list, and asks inet_diag what it tells of each.
    fn adopt(&mut self, channel: &mut Channel, readings: &[Reading], time_ns: u64) -> Result<()> {
        let tuple = |reading: &Reading| {
            let known = self.targets.iter().find(|target| reading.id == u32::try_from(target.id).ok());
            let interface = known.map_or(0, |target| target.entry.tuple.interface);
            Tuple { local: reading.local, remote: reading.remote, interface }
        };
        let tuples: Vec<Tuple> = readings.iter().map(tuple).collect();
        let entries = diag::look_up(channel, &tuples).map_err(diag::failed)?;
        let mut before = std::mem::take(&mut self.targets);
        for ((reading, tuple), entry) in readings.iter().zip(tuples).zip(entries) {
            let id = reading.id.and_then(|id| i32::try_from(id).ok()).unwrap_or(-1);
            let known = before.iter().position(|target| target.id == id).map(|at| before.swap_remove(at));
            let unknown = Entry::of_ends(tuple, 0);
            let mut target = known.unwrap_or_else(|| Target::new(unknown, self.token, id, time_ns));
            self.common.update(&mut target, entry);
            self.targets.push(target);
        }
        self.gone.extend(before.into_iter().filter(|target| !target.ended));
        Ok(())
    }

    fn failed(
        &mut self,
        error: &std::io::Error,
        channel: &mut Channel,
        time_ns: u64,
        rows: &mut Vec<RawSample>,
    ) -> Result<ReadOutcome> {
        match error.raw_os_error() {
            Some(libc::EBADF | libc::ENOTSOCK | libc::EINVAL) => Ok(ReadOutcome::Ended),
            // Before 6.5, or fallen back, or another socket has the descriptor: the older calls tell which.
            Some(libc::EOPNOTSUPP | libc::ENOPROTOOPT) => {
                self.by_parts = Some(0);
                let outcome = self.read_by_parts(channel, time_ns, rows)?;
                if outcome != ReadOutcome::Read {
                    self.by_parts = None;
                }
                Ok(outcome)
            }
            _ => Err(Error::call("getsockopt(MPTCP_FULL_INFO)", error)),
        }
    }

    fn read_by_parts(
        &mut self,
        channel: &mut Channel,
        time_ns: u64,
        rows: &mut Vec<RawSample>,
    ) -> Result<ReadOutcome> {
        let mut read = match by_descriptor::read_by_parts(self.fd) {
            Ok(read) if read.info.token() == self.token => read,
            Ok(_) => return Ok(ReadOutcome::Ended),
            Err(error) => {
                return match error.raw_os_error() {
                    Some(libc::EBADF | libc::ENOTSOCK | libc::EINVAL) => Ok(ReadOutcome::Ended),
                    Some(libc::EOPNOTSUPP | libc::ENOPROTOOPT) => Ok(ReadOutcome::FellBack),
                    _ => Err(Error::call("getsockopt(MPTCP_TCPINFO)", &error)),
                }
            }
        };
        for reading in &mut read.subflows {
            let ends = (reading.local, reading.remote);
            let known = self
                .targets
                .iter()
                .find(|target| (target.entry.tuple.local, target.entry.tuple.remote) == ends);
            let count = self.by_parts.get_or_insert_default();
            reading.id = Some(known.map_or_else(
                || {
                    *count += 1;
                    *count
                },
                |target| target.id as u32,
            ));
        }
        let same = self.targets.len() == read.subflows.len()
            && self.targets.iter().zip(&read.subflows).all(|(target, r)| Some(target.id as u32) == r.id);
        if same {
            self.refresh(channel)?;
        } else {
            self.adopt(channel, &read.subflows, time_ns)?;
        }
        let wait_ns = (sys::monotonic_ns() - time_ns) as i64;
        for (target, reading) in self.targets.iter_mut().zip(&read.subflows) {
            push(target, reading.tcp_info.bytes(), (time_ns, wait_ns), self.ends_are_told, rows);
        }
        Ok(ReadOutcome::Read)
    }

    /// What is known of a subflow that has ended. The kernel may go on to list it: it has no further rows.
    pub fn end(&mut self, cookie: u64) -> Option<Target> {
        if let Some(at) = self.gone.iter().position(|target| target.entry.cookie == cookie) {
            return Some(self.gone.swap_remove(at));
        }
        let target = self.targets.iter_mut().find(|target| target.entry.cookie == cookie)?;
        let found = *target;
        target.ended = true;
        Some(found)
    }
}

impl Common {
    /// Takes over what inet_diag tells of a subflow now.
    fn update(&self, target: &mut Target, entry: Option<Entry>) {
        // A closed subflow's place may be another's by now.
        let Some(entry) = entry.filter(|entry| [0, entry.cookie].contains(&target.entry.cookie)) else {
            return;
        };
        if target.entry.cookie == 0 {
            self.note(&entry, target.token);
        }
        target.entry = entry;
    }
}

/// The row of a subflow. One that is closed and stays in the kernel's list has its last, unless others tell that.
fn push(
    target: &mut Target,
    bytes: &[u8],
    (time_ns, wait_ns): (u64, i64),
    ends_are_told: bool,
    rows: &mut Vec<RawSample>,
) {
    let state = bytes.first().copied().unwrap_or(0);
    let is_told = state == tcp_state::CLOSE && (ends_are_told || target.entry.cookie == 0);
    if target.ended || is_told || state == tcp_state::LISTEN {
        return;
    }
    let mut row = if state == tcp_state::CLOSE {
        final_sample(time_ns, target, bytes)
    } else {
        sample(time_ns, target, state, bytes)
    };
    if row.head.wait_ns == 0 {
        row.head.wait_ns = wait_ns;
    }
    rows.push(row);
}
