//! Subflows of one network namespace without any lock: a BPF program copies the kernel's `struct tcp_sock` of each by
//! its address ([`program`]), and `tcp_info` is made from the copy ([`layout`]). A copy may be torn between two
//! acknowledgements: its counters are of one moment or the next.
//!
//! Needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN in the initial user namespace.

mod layout;
mod program;

use std::collections::HashMap;
use std::ffi::CStr;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

use super::by_diag::{sample, ByDiag, Target};
use super::row::RawSample;
use super::Site;
use crate::abi::uapi::{tcp_state, ulp};
use crate::bpf::btf::Btf;
use crate::bpf::Purpose;
use crate::error::Result;
use crate::netlink::diag::{Tuple, Ulp};
use crate::sys;
use crate::sys::bpf::{ProgramKind, SharedArray};
use crate::sys::lock::lock;
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
static LAYOUT: Mutex<Option<Arc<Layout>>> = Mutex::new(None);

fn kernel_layout() -> Result<Arc<Layout>> {
    let mut known = lock(&LAYOUT);
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

/// The subflows of a site that have a slot each; the others are left to inet_diag.
#[derive(Debug)]
pub struct ByBpf {
    site: Arc<Site>,
    layout: Arc<Layout>,
    find: OwnedFd,
    request: SharedArray,
    reading: Reading,
    /// The cookie of the subflow in each slot, 0 in one that is free.
    cookies: Vec<u64>,
    /// Slots by cookie.
    slots: HashMap<u64, usize>,
    socket: Vec<u8>,
    context: Vec<u8>,
}

impl ByBpf {
    pub fn new(site: &Arc<Site>) -> Result<ByBpf> {
        let layout = kernel_layout()?;
        let request = SharedArray::create(1, request::SIZE, "mptcp_find")
            .map_err(|error| PURPOSE.refused("BPF_MAP_CREATE", &error))?;
        let instructions = program::find(request.as_raw_fd(), &layout);
        let find = PURPOSE.load(ProgramKind::Classifier, &instructions, LICENSE, "mptcp_find")?;
        let reading = Reading::new(&layout, FIRST_SLOTS)?;
        Ok(ByBpf {
            site: Arc::clone(site),
            find,
            request,
            reading,
            cookies: Vec::new(),
            slots: HashMap::new(),
            socket: vec![0; layout.socket_size],
            context: vec![0; layout.context_size],
            layout,
        })
    }

    /// Adds a row a subflow, and those of what has no slot by inet_diag.
    pub fn read(&mut self, by_diag: &mut ByDiag, time_ns: u64, rows: &mut Vec<RawSample>) -> Result<()> {
        by_diag.begin(time_ns);
        self.assign(by_diag)?;
        self.run()?;
        for index in 0..self.cookies.len() {
            let cookie = self.cookies[index];
            let Some(target) = by_diag.target(cookie).filter(|_| cookie != 0) else {
                // Its notice has come.
                self.release(index);
                continue;
            };
            if !self.row(index, target, time_ns, rows) {
                self.release(index);
                by_diag.retire_one(cookie);
            }
        }
        by_diag.look_up_others(&self.slots, time_ns, rows)
    }

    /// Adds the row of one slot; false if the subflow is not there any more.
    fn row(&mut self, index: usize, target: &mut Target, time_ns: u64, rows: &mut Vec<RawSample>) -> bool {
        let slots = &self.reading.slots;
        let word = |at| {
            let mut bytes = [0; 8];
            slots.read(index, at, &mut bytes);
            u64::from_ne_bytes(bytes)
        };
        let cookie = target.entry.cookie;
        slots.read(index, program::SOCKET, &mut self.socket);
        let state = self.layout.state(&self.socket);
        if word(slot::COOKIE_BEFORE) != cookie
            || word(slot::COOKIE_AFTER) != cookie
            || state == tcp_state::CLOSE
        {
            return false;
        }
        slots.read(index, program::context(&self.layout), &mut self.context);
        let state_of_subflow = self.layout.subflow(&self.context, word(slot::ADDRESS));
        if let (Some(now), Some(known)) = (state_of_subflow, &mut target.entry.subflow) {
            if now.token == known.token {
                put(known, now);
                if let Some(id) = now.id.filter(|_| target.id < 0) {
                    target.id = id as i32;
                }
            }
        }
        target.entry.state = state;
        let read_ns = word(slot::TIME_NS);
        let moment = Moment { jiffies: word(slot::JIFFIES) as u32, ms: (read_ns / 1_000_000) as u32 };
        let info = self.layout.tcp_info(&self.socket, moment);
        let mut row = sample(time_ns, target, state, info.bytes());
        row.head.wait_ns = read_ns.saturating_sub(time_ns) as i64;
        rows.push(row);
        true
    }

    fn run(&self) -> Result<()> {
        let failed = |error: std::io::Error| PURPOSE.refused("BPF_PROG_TEST_RUN", &error);
        for first in (0..self.cookies.len() as u32).step_by(program::RUN as usize) {
            let count = (self.cookies.len() as u32 - first).min(program::RUN);
            sys::bpf::run_syscall(self.reading.program.as_fd(), &mut [first, count]).map_err(failed)?;
        }
        Ok(())
    }

    /// Gives each subflow that has none a slot, if the kernel finds it.
    fn assign(&mut self, by_diag: &ByDiag) -> Result<()> {
        if by_diag.targets().all(|target| self.slots.contains_key(&target.entry.cookie)) {
            return Ok(());
        }
        let site = Arc::clone(&self.site);
        let elsewhere = site.namespace.elsewhere()?;
        for target in by_diag.targets() {
            let cookie = target.entry.cookie;
            if self.slots.contains_key(&cookie) {
                continue;
            }
            let Some(tuple) = tuple(&target.entry.tuple) else { continue };
            let mut asked = [0; request::SIZE];
            asked[request::TUPLE..][..tuple.len()].copy_from_slice(&tuple);
            asked[request::LENGTH..][..8].copy_from_slice(&(tuple.len() as u64).to_ne_bytes());
            self.request.write(0, 0, &asked);
            let interface = target.entry.tuple.interface;
            let run = || sys::bpf::run_classifier(self.find.as_fd(), interface);
            let done = match elsewhere {
                None => run(),
                Some(namespace) => sys::in_network_namespace(namespace, run),
            };
            match done {
                Ok(()) => {}
                // The interface is gone.
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => continue,
                Err(error) => return Err(PURPOSE.refused("BPF_PROG_TEST_RUN", &error)),
            }
            let mut answer = [0; 8];
            self.request.read(0, request::COOKIE, &mut answer);
            if u64::from_ne_bytes(answer) != cookie {
                continue;
            }
            self.request.read(0, request::ADDRESS, &mut answer);
            let index = self.free_slot()?;
            self.reading.slots.write(index, slot::ADDRESS, &answer);
            self.cookies[index] = cookie;
            self.slots.insert(cookie, index);
        }
        Ok(())
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

    fn release(&mut self, index: usize) {
        self.slots.remove(&std::mem::take(&mut self.cookies[index]));
        self.reading.slots.write(index, slot::ADDRESS, &[0; 8]);
    }
}

/// What changes of a subflow's part of Multipath TCP.
fn put(known: &mut Ulp, now: layout::SubflowState) {
    known.local_id = now.local_id;
    known.remote_id = now.remote_id;
    known.flags &= !(ulp::FLAG_BKUP_LOC | ulp::FLAG_BKUP_REM);
    known.flags |= if now.backup { ulp::FLAG_BKUP_LOC } else { 0 };
    known.flags |= if now.peer_backup { ulp::FLAG_BKUP_REM } else { 0 };
}

/// `struct bpf_sock_tuple`: the ends as in a packet from the peer.
fn tuple(ends: &Tuple) -> Option<Vec<u8>> {
    let canonical = |address: &SocketAddr| address.ip().to_canonical();
    let mut bytes = Vec::new();
    match (canonical(&ends.remote), canonical(&ends.local)) {
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
    bytes.extend(ends.remote.port().to_be_bytes());
    bytes.extend(ends.local.port().to_be_bytes());
    Some(bytes)
}
