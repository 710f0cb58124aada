//! Subflows of one network namespace by inet_diag: exact look-ups of those that are known, several in a message, or,
//! where that is cheaper, a dump.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering;
use std::sync::Arc;

use super::{Common, Ids, Site};
use crate::abi::tcp_info::{self, TcpInfo};
use crate::abi::uapi::{self, tcp_state};
use crate::error::{Error, Result};
use crate::netlink::codec::Prepared;
use crate::netlink::diag::{self, Entry};
use crate::netlink::Channel;
use crate::samples::row::{Head, RawSample, UNKNOWN};
use crate::sys;
use crate::sys::lock::lock;

/// Look-ups in one message: their replies have to fit into the socket's receive buffer.
const BATCH: usize = 64;

/// Nanoseconds that look-up of one subflow takes, until we know better.
const LOOK_UP_NS: u64 = 3000;

/// Every so many ticks the way of reading that was slower is tried again.
const TRIED_AGAIN: u64 = 1000;

/// What is known of one subflow beside its `tcp_info`.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    pub entry: Entry,
    pub token: u32,
    pub id: i32,
    pub since_ns: u64,
    /// It has its final row.
    pub ended: bool,
    /// What was read of it last, and when.
    read: TcpInfo,
    read_ns: u64,
    /// It was there at the tick of this number.
    tick: u64,
}

impl Target {
    pub fn new(entry: Entry, token: u32, id: i32, since_ns: u64) -> Target {
        let read = TcpInfo::decode(&[]);
        Target { entry, token, id, since_ns, ended: false, read, read_ns: since_ns, tick: 0 }
    }

    /// The kernel has cleared the counters since the last reading: it has sent less now. A subflow has sent or received a
    /// segment at least.
    fn is_cleared(&self, tcp_info: &[u8]) -> bool {
        let [sent, received] = [tcp_info::field::segs_out, tcp_info::field::segs_in]
            .map(|field| field.read(tcp_info).unwrap_or(0));
        let before = tcp_info::field::segs_out.read(self.read.bytes()).unwrap_or(0);
        sent < before || sent == 0 && received == 0
    }
}

/// The subflows of a site.
#[derive(Debug)]
pub struct ByDiag {
    site: Arc<Site>,
    common: Arc<Common>,
    pub channel: Channel,
    /// The connections that are meant; all of the namespace if absent.
    tokens: Option<BTreeSet<u32>>,
    targets: HashMap<u64, Target>,
    /// The cookies of the targets as they stand in `batches`.
    order: Vec<u64>,
    batches: Vec<Prepared>,
    /// There are other targets by now. `batches` are made again when they are needed, not for every subflow that ends.
    is_stale: bool,
    /// Subflows that no reading shows any more and no notice has told of.
    gone: HashMap<u64, Target>,
    /// Subflows that were found and that somebody else reads, unless they are closed before that.
    of_others: HashMap<u64, Entry>,
    /// Nanoseconds that the last dump took, and a look-up of one subflow.
    dump_ns: u64,
    look_up_ns: u64,
    tick: u64,
}

/// The row of a reading.
pub fn sample(time_ns: u64, target: &mut Target, state: u8, tcp_info: &[u8]) -> RawSample {
    let known =
        |id: fn(&diag::Ulp) -> u8| target.entry.subflow.map_or(i16::from(UNKNOWN), |ulp| id(&ulp).into());
    let head = Head {
        time_ns: time_ns as i64,
        wait_ns: 0,
        token: target.token,
        subflow: target.id,
        cookie: target.entry.cookie,
        state: state.into(),
        local_id: known(|ulp| ulp.local_id),
        remote_id: known(|ulp| ulp.remote_id),
        backup: target.entry.subflow.map_or(UNKNOWN, |ulp| ulp.backup().into()),
        last: 0,
    };
    target.read = TcpInfo::decode(tcp_info);
    target.read_ns = time_ns;
    RawSample { head, tcp_info: target.read }
}

/// The final row of a subflow that has ended. The kernel clears the counters of some before it tells of their end, of an
/// initial subflow that was reset for instance: then they are those of the last reading, and `wait_ns` is negative, the
/// time since then.
pub fn final_sample(time_ns: u64, target: &mut Target, tcp_info: &[u8]) -> RawSample {
    let before = *target;
    let mut row = sample(time_ns, target, tcp_state::CLOSE, tcp_info);
    row.head.last = 1;
    if before.is_cleared(tcp_info) {
        if !before.read.bytes().is_empty() {
            row.tcp_info = before.read;
        }
        row.head.wait_ns = (before.read_ns as i64 - time_ns as i64).min(-1);
    }
    target.ended = true;
    row
}

impl ByDiag {
    pub fn new(site: &Arc<Site>, common: &Arc<Common>, tokens: Option<BTreeSet<u32>>) -> Result<ByDiag> {
        let channel = Channel::new(site.diag_socket()?)
            .map_err(|error| Error::call("socket(NETLINK_SOCK_DIAG)", &error))?;
        Ok(ByDiag {
            site: Arc::clone(site),
            common: Arc::clone(common),
            channel,
            tokens,
            targets: HashMap::new(),
            order: Vec::new(),
            batches: Vec::new(),
            is_stale: false,
            gone: HashMap::new(),
            of_others: HashMap::new(),
            dump_ns: 0,
            look_up_ns: LOOK_UP_NS,
            tick: 0,
        })
    }

    /// Reads another connection too.
    pub fn add(&mut self, token: u32) {
        if let Some(tokens) = &mut self.tokens {
            tokens.insert(token);
        }
        self.site.known.searched.store(true, Ordering::Relaxed);
    }

    /// Takes over a subflow that somebody else knew.
    pub fn receive(&mut self, target: Target) {
        if target.entry.cookie != 0 && !target.ended {
            self.gone.remove(&target.entry.cookie);
            self.targets.insert(target.entry.cookie, target);
        }
    }

    /// Reads these connections and no others, with the subflows that were received.
    pub fn take_over(&mut self, tokens: Option<BTreeSet<u32>>) {
        self.tokens = tokens;
        self.site.known.searched.store(true, Ordering::Relaxed);
        self.prepare_all();
    }

    /// Leaves the connections to somebody else, who knows the subflows with `cookies`. The others wait for their notice.
    pub fn leave(&mut self, cookies: &BTreeSet<u64>) {
        self.tokens = Some(BTreeSet::new());
        self.site.known.searched.store(false, Ordering::Relaxed);
        for (cookie, target) in self.targets.drain() {
            if !cookies.contains(&cookie) {
                self.gone.insert(cookie, target);
            }
        }
        self.prepare_all();
    }

    /// Adds a row a subflow.
    pub fn read(&mut self, time_ns: u64, rows: &mut Vec<RawSample>) -> Result<()> {
        if self.tokens.as_ref().is_some_and(BTreeSet::is_empty) {
            return Ok(());
        }
        self.begin(time_ns);
        let look_ups_ns = self.look_up_ns * self.targets.len() as u64;
        if self.dump_ns < look_ups_ns
            || self.tick.is_multiple_of(TRIED_AGAIN) && self.dump_ns < 2 * look_ups_ns
        {
            self.dump(time_ns, rows)
        } else {
            self.look_up_all(time_ns, rows)
        }
    }

    /// Begins a tick.
    pub fn begin(&mut self, time_ns: u64) {
        self.tick += 1;
        self.adopt(time_ns);
        self.identify();
    }

    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        self.targets.values()
    }

    pub fn target(&mut self, cookie: u64) -> Option<&mut Target> {
        self.targets.get_mut(&cookie)
    }

    /// A subflow that is not there any more waits for its notice.
    pub fn retire_one(&mut self, cookie: u64) {
        if let Some(target) = self.targets.remove(&cookie) {
            self.gone.insert(cookie, target);
        }
    }

    /// Adds a row for each subflow that somebody else does not read already.
    pub fn look_up_others<V>(
        &mut self,
        read: &HashMap<u64, V>,
        time_ns: u64,
        rows: &mut Vec<RawSample>,
    ) -> Result<()> {
        let others: Vec<u64> =
            self.targets.keys().filter(|cookie| !read.contains_key(cookie)).copied().collect();
        if others.is_empty() {
            return Ok(());
        }
        self.prepare(others);
        self.look_up(time_ns, rows)?;
        let (tick, is_other) = (self.tick, |cookie: &u64| !read.contains_key(cookie));
        self.retire(|target| is_other(&target.entry.cookie) && target.tick != tick);
        Ok(())
    }

    /// Takes over the subflows that were found meanwhile.
    pub fn adopt(&mut self, time_ns: u64) {
        let found = std::mem::take(&mut *lock(&self.site.known.found));
        let mut changed = false;
        for entry in found.into_values() {
            let Some(ulp) = entry.subflow else { continue };
            if !self.wants(ulp.token) {
                self.of_others.insert(entry.cookie, entry);
                continue;
            }
            if !self.targets.contains_key(&entry.cookie) && !self.gone.contains_key(&entry.cookie) {
                let target = Target::new(entry, ulp.token, -1, time_ns);
                self.targets.insert(entry.cookie, target);
                self.common.note(&entry, ulp.token);
                lock(&self.site.known.tokens).insert(ulp.token);
                changed = true;
            }
        }
        if changed {
            self.is_stale = true;
        }
    }

    /// At the end of a recording: adds a row for each subflow that was found and that nobody has read. It was closed before
    /// the tick after that, and waits for its peer.
    pub fn read_unread(&mut self, time_ns: u64, rows: &mut Vec<RawSample>) -> Result<()> {
        let mut unread = Vec::new();
        for (cookie, entry) in self.of_others.drain() {
            if let Some(ulp) = entry.subflow.filter(|_| !self.common.has_noted(cookie)) {
                self.targets.insert(cookie, Target::new(entry, ulp.token, -1, time_ns));
                unread.push(cookie);
            }
        }
        if unread.is_empty() {
            return Ok(());
        }
        self.tick += 1;
        self.identify();
        self.prepare(unread.clone());
        self.look_up(time_ns, rows)?;
        for target in unread.iter().filter_map(|cookie| self.targets.get(cookie)) {
            if target.tick == self.tick {
                self.common.note(&target.entry, target.token);
            }
        }
        Ok(())
    }

    /// Whether a subflow is gone before anything was read of it: only its notice can give it a row.
    pub fn has_unread_gone(&self) -> bool {
        self.gone.values().any(|target| target.read.bytes().is_empty())
    }

    fn wants(&self, token: u32) -> bool {
        self.tokens.as_ref().is_none_or(|tokens| tokens.contains(&token))
    }

    fn dump(&mut self, time_ns: u64, rows: &mut Vec<RawSample>) -> Result<()> {
        let begin_ns = sys::monotonic_ns();
        let (site, tokens, targets, tick) = (&self.site, &self.tokens, &mut self.targets, self.tick);
        let common = &self.common;
        let wants = |token| tokens.as_ref().is_none_or(|tokens| tokens.contains(&token));
        let mut changed = false;
        let result = diag::dump_sockets(&mut self.channel, |entry, tcp_info| {
            if tcp_info.is_empty() {
                return;
            }
            let target = match targets.get_mut(&entry.cookie) {
                Some(target) => target,
                None => match entry.subflow.filter(|ulp| wants(ulp.token)) {
                    None => return,
                    Some(ulp) => {
                        changed = true;
                        lock(&site.known.tokens).insert(ulp.token);
                        let target = Target::new(entry, ulp.token, -1, time_ns);
                        common.note(&entry, ulp.token);
                        lock(&site.known.begun).find(&entry);
                        targets.entry(entry.cookie).or_insert(target)
                    }
                },
            };
            // A connection that fell back has lost its part of Multipath TCP: what was known of it stays.
            let subflow = entry.subflow.or(target.entry.subflow);
            target.entry = Entry { subflow, ..entry };
            target.tick = tick;
            let mut row = sample(time_ns, target, entry.state, tcp_info);
            row.head.wait_ns = (sys::monotonic_ns() - time_ns) as i64;
            rows.push(row);
        });
        result.map_err(diag::failed)?;
        self.dump_ns = sys::monotonic_ns() - begin_ns;
        self.site.known.dumped_ns.store(time_ns, Ordering::Relaxed);
        let before = self.targets.len();
        self.retire(|target| target.tick != tick);
        if changed || self.targets.len() != before {
            self.is_stale = true;
        }
        Ok(())
    }

    /// Those that a reading no longer shows wait for their notice.
    fn retire(&mut self, is_gone: impl Fn(&Target) -> bool) {
        let gone = &mut self.gone;
        self.targets.retain(|cookie, target| {
            let leaves = is_gone(target);
            if leaves {
                gone.insert(*cookie, *target);
            }
            !leaves
        });
    }

    fn prepare_all(&mut self) {
        self.prepare(self.targets.keys().copied().collect());
    }

    fn prepare(&mut self, cookies: Vec<u64>) {
        self.order = cookies;
        self.order.sort_unstable();
        self.batches.clear();
        for (number, cookies) in self.order.chunks(BATCH).enumerate() {
            let mut batch = Prepared::default();
            for (index, cookie) in cookies.iter().enumerate() {
                let request = diag::codec::encode_request(&self.targets[cookie].entry.tuple, *cookie);
                batch.push(uapi::diag::SOCK_DIAG_BY_FAMILY, (number * BATCH + index) as u32, &request);
            }
            self.batches.push(batch);
        }
    }

    fn look_up_all(&mut self, time_ns: u64, rows: &mut Vec<RawSample>) -> Result<()> {
        if std::mem::take(&mut self.is_stale) {
            self.prepare_all();
        }
        self.look_up(time_ns, rows)?;
        let (before, tick) = (self.targets.len(), self.tick);
        self.retire(|target| target.tick != tick);
        if self.targets.len() != before {
            self.is_stale = true;
        }
        Ok(())
    }

    /// Reads what `batches` asks for.
    fn look_up(&mut self, time_ns: u64, rows: &mut Vec<RawSample>) -> Result<()> {
        let begin_ns = sys::monotonic_ns();
        let (order, targets, tick) = (&self.order, &mut self.targets, self.tick);
        let mut failed = None;
        for batch in &self.batches {
            let result = self.channel.exchange_prepared(batch, |index, reply| {
                let Some(target) = order.get(index as usize).and_then(|cookie| targets.get_mut(cookie))
                else {
                    return;
                };
                match reply.map(diag::codec::decode_with_info) {
                    Ok(Some((entry, tcp_info)))
                        if entry.cookie == target.entry.cookie && !tcp_info.is_empty() =>
                    {
                        let subflow = entry.subflow.or(target.entry.subflow);
                        target.entry = Entry { subflow, ..entry };
                        target.tick = tick;
                        let mut row = sample(time_ns, target, entry.state, tcp_info);
                        row.head.wait_ns = (sys::monotonic_ns() - time_ns) as i64;
                        rows.push(row);
                    }
                    // ESTALE: another socket has the four-tuple now. A reply without tcp_info is of TIME_WAIT.
                    Ok(_) => {}
                    Err(failure) if [libc::ENOENT, libc::ESTALE].contains(&failure.errno) => {}
                    Err(failure) => failed = Some(failure),
                }
            });
            if let Err(error) = result {
                return Err(Error::call("inet_diag", &error));
            }
        }
        if let Some(failure) = failed {
            return Err(diag::failed(failure));
        }
        if let Some(each) = (sys::monotonic_ns() - begin_ns).checked_div(order.len() as u64) {
            self.look_up_ns = each;
        }
        Ok(())
    }

    /// Gives subflows their ids as soon as they are known.
    fn identify(&mut self) {
        if self.site.descriptors.is_empty() {
            return;
        }
        let ids = lock(&self.site.known.ids);
        for target in self.targets.values_mut().chain(self.gone.values_mut()).filter(|target| target.id < 0) {
            self.common.identify(target, &ids);
        }
    }

    /// What is known of a subflow that has ended. It is not read any more.
    pub fn end(&mut self, cookie: u64) -> Option<Target> {
        self.of_others.remove(&cookie);
        let mut target = match self.gone.remove(&cookie) {
            Some(target) => target,
            None => {
                let target = self.targets.remove(&cookie)?;
                self.is_stale = true;
                target
            }
        };
        if target.id < 0 {
            self.common.identify(&mut target, &lock(&self.site.known.ids));
        }
        Some(target)
    }
}

impl Common {
    /// Gives a subflow its id if it is known, in rows that nobody has taken yet, too.
    fn identify(&self, target: &mut Target, ids: &Ids) {
        let tuple = &target.entry.tuple;
        let Some(id) = ids.get(&(target.token, tuple.local, tuple.remote)) else { return };
        target.id = *id as i32;
        let (cookie, since_ns, id) = (target.entry.cookie, target.since_ns as i64, target.id);
        self.samples.amend(|row| {
            if row.head.cookie == cookie {
                row.head.subflow = id;
            }
            row.head.time_ns >= since_ns
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::Method;
    use super::*;
    use crate::namespace::Namespace;
    use crate::netlink::diag::Tuple;

    #[test]
    fn the_end_of_one_subflow_costs_nothing_for_the_others() {
        let site = Site {
            namespace: Namespace::current().unwrap(),
            descriptors: Vec::new(),
            tokens: None,
            known: Arc::default(),
        };
        let mut by_diag =
            ByDiag::new(&Arc::new(site), &Arc::new(Common::new(10, Method::InetDiag)), None).unwrap();
        let local = "127.0.0.1:1".parse().unwrap();
        let tuple = Tuple { local, remote: local, interface: 0 };
        let entry = |cookie| Entry { tuple, state: 1, cookie, uid: 0, inode: 0, cgroup: None, subflow: None };
        for cookie in 1..=3 {
            by_diag.targets.insert(cookie, Target::new(entry(cookie), 7, -1, 0));
        }
        by_diag.prepare_all();
        assert!(by_diag.end(2).is_some() && by_diag.end(2).is_none());
        assert_eq!(by_diag.order, [1, 2, 3], "the requests of the others were made again");
        by_diag.tick += 1;
        by_diag.look_up_all(0, &mut Vec::new()).unwrap();
        assert_eq!(by_diag.order, [1, 3]);
        // No socket has these ends.
        assert_eq!((by_diag.targets.len(), by_diag.gone.len()), (0, 2));
    }
}
