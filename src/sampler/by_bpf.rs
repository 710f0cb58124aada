//! Subflows of one network namespace without any lock, by [`crate::tcp_sock`]; what that does not find is left to inet_diag.

use std::collections::HashMap;
use std::sync::Arc;

use super::by_diag::{sample, ByDiag, Target};
use super::Site;
use crate::abi::uapi::ulp;
use crate::error::Result;
use crate::netlink::diag::Ulp;
use crate::samples::row::RawSample;
use crate::sys::lock::lock;
use crate::tcp_sock::{SubflowState, TcpSocks};

#[derive(Debug)]
struct Slot {
    index: usize,
    /// The address of its connection is known.
    is_told: bool,
}

/// The subflows of a site that have a slot each.
#[derive(Debug)]
pub struct ByBpf {
    site: Arc<Site>,
    socks: TcpSocks,
    /// By cookie.
    slots: HashMap<u64, Slot>,
    /// For how many ticks each of the others has had none. The kernel is asked again after twice as many.
    not_found: HashMap<u64, u64>,
}

impl ByBpf {
    pub fn new(site: &Arc<Site>) -> Result<ByBpf> {
        let (slots, not_found) = (HashMap::new(), HashMap::new());
        Ok(ByBpf { site: Arc::clone(site), socks: TcpSocks::new()?, slots, not_found })
    }

    /// Adds a row a subflow, those without a slot by inet_diag.
    pub fn read(&mut self, by_diag: &mut ByDiag, time_ns: u64, rows: &mut Vec<RawSample>) -> Result<()> {
        by_diag.begin(time_ns);
        self.assign(by_diag)?;
        self.socks.run()?;
        let ByBpf { site, socks, slots, .. } = self;
        slots.retain(|cookie, slot| {
            // Without a target its notice has come.
            let read = by_diag.target(*cookie).zip(socks.copied(slot.index));
            let Some((target, copied)) = read else {
                socks.release(slot.index);
                by_diag.retire_one(*cookie);
                return false;
            };
            if let Some(now) = copied.subflow {
                update(target, now);
                if !slot.is_told && now.connection != 0 && now.token == target.token {
                    slot.is_told = true;
                    lock(&site.known.addresses).insert(now.token, now.connection);
                }
            }
            target.entry.state = copied.state;
            let mut row = sample(time_ns, target, copied.state, copied.tcp_info.bytes());
            row.head.wait_ns = copied.time_ns.saturating_sub(time_ns) as i64;
            rows.push(row);
            true
        });
        by_diag.look_up_others(&self.slots, time_ns, rows)
    }

    /// Gives each subflow that has none a slot, if the kernel finds it.
    fn assign(&mut self, by_diag: &ByDiag) -> Result<()> {
        let mut asked = Vec::new();
        let mut not_found = HashMap::new();
        for entry in by_diag.targets().map(|target| target.entry) {
            if self.slots.contains_key(&entry.cookie) {
                continue;
            }
            let ticks = self.not_found.get(&entry.cookie).copied().unwrap_or(0) + 1;
            not_found.insert(entry.cookie, ticks);
            if ticks.is_power_of_two() {
                asked.push(entry);
            }
        }
        self.not_found = not_found;
        if asked.is_empty() {
            return Ok(());
        }
        let elsewhere = self.site.namespace.elsewhere()?;
        for entry in asked {
            let ends = (entry.tuple.local, entry.tuple.remote);
            if let Some(index) = self.socks.keep(ends, entry.tuple.interface, entry.cookie, elsewhere)? {
                self.slots.insert(entry.cookie, Slot { index, is_told: false });
            }
        }
        Ok(())
    }
}

/// Takes over what the kernel's memory says of a subflow's part of Multipath TCP.
pub fn update(target: &mut Target, now: SubflowState) {
    if now.token != target.token {
        return;
    }
    target.id = now.id.filter(|_| target.id < 0).map_or(target.id, |id| id as i32);
    let unknown = Ulp { token: now.token, local_id: 0, remote_id: 0, flags: 0 };
    let known = target.entry.subflow.get_or_insert(unknown);
    known.local_id = now.local_id;
    known.remote_id = now.remote_id;
    known.flags &= !(ulp::FLAG_BKUP_LOC | ulp::FLAG_BKUP_REM);
    known.flags |= if now.backup { ulp::FLAG_BKUP_LOC } else { 0 };
    known.flags |= if now.peer_backup { ulp::FLAG_BKUP_REM } else { 0 };
}
