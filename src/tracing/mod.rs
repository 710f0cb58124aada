//! Each segment of connections as the kernel's tracepoints tell it, live: programs at six of them ([`program`]) write
//! records ([`record`]) into a ring buffer, which a thread reads into rows ([`builder`]).
//!
//! Needs CAP_BPF and CAP_PERFMON in the initial user namespace.

pub mod builder;
mod layout;
mod program;
pub mod record;

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::abi::uapi;
use crate::bpf::btf::Btf;
use crate::bpf::{Purpose, TcpIterator};
use crate::connection::by_descriptor::read_info;
use crate::connection::by_token::ByToken;
use crate::connection::Connection as _;
use crate::error::{Error, Result};
use crate::namespace::Namespace;
use crate::sys;
use crate::sys::bpf::{Map, MapKind, ProgramKind, RingBuffer, SharedArray};
use crate::sys::lock::{lock, PerProcess};
use crate::sys::wait::{readable, EventFd};

use builder::Builder;
use layout::Layout;
use program::{counter, Maps};

const PURPOSE: Purpose = Purpose {
    cannot: "trace segments",
    needs: "a Tracer needs CAP_BPF and CAP_PERFMON in the initial user namespace: run it as root, or read a capture with \
            read_trace(), which needs no privilege",
};

/// What bpf_probe_read_kernel asks for.
const LICENSE: &CStr = c"Dual MIT/GPL";

/// Bytes of the ring: room for half a second of the events of a sender at full speed over loopback.
const ROOM: usize = 16 << 20;
/// Between two readings of the ring.
const INTERVAL: Duration = Duration::from_millis(20);
/// Subflows that are recognised at once, traced or not; of more the ones that were silent longest are looked at anew.
const KNOWN: u32 = 16 << 10;
/// Connections and namespaces that can be asked for.
const MOST_SOURCES: u32 = 16 << 10;

/// The layout of this kernel, which stays the same.
static LAYOUT: PerProcess<Option<Arc<Layout>>> = PerProcess::new();

fn kernel_layout() -> Result<Arc<Layout>> {
    let mut known = LAYOUT.lock();
    if let Some(layout) = known.as_ref() {
        return Ok(Arc::clone(layout));
    }
    let bytes = PURPOSE.kernel_btf()?;
    let layout =
        Btf::parse(&bytes).and_then(|btf| Layout::new(&btf)).map_err(|error| PURPOSE.without_btf(&error))?;
    Ok(Arc::clone(known.insert(Arc::new(layout))))
}

/// What is traced: the cookie of a network namespace, and a token or all of them.
#[derive(Debug, Clone)]
pub struct Source {
    pub namespace: u64,
    pub token: Option<u32>,
    /// The namespace itself, where it is needed and can be entered.
    place: Option<Arc<Namespace>>,
}

impl Source {
    /// A connected socket.
    pub fn descriptor(fd: RawFd) -> Result<Source> {
        let token = read_info(fd)?.token();
        if token == 0 {
            return Err(Error::os(libc::ENOTCONN, "the socket is not connected: it has no token yet"));
        }
        let mut cookie = [0; 8];
        sys::getsockopt(fd, libc::SOL_SOCKET, uapi::SO_NETNS_COOKIE, &mut cookie)
            .map_err(|error| Error::call("getsockopt(SO_NETNS_COOKIE)", &error))?;
        // Entering it takes privileges and time, which only some kernels need.
        let place = kernel_layout()?.iterator.and_then(|_| Namespace::of_socket(fd).ok());
        Ok(Source { namespace: u64::from_ne_bytes(cookie), token: Some(token), place })
    }

    /// A connection, if it is still there.
    pub fn of_connection(connection: &ByToken) -> Result<Source> {
        let token = connection.known()?.token;
        let place = connection.namespace()?;
        Ok(Source { namespace: place.cookie, token: Some(token), place: Some(place) })
    }

    /// Every connection of the calling thread's network namespace.
    pub fn here() -> Result<Source> {
        let place = Namespace::current()?;
        Ok(Source { namespace: place.cookie, token: None, place: Some(place) })
    }

    fn key(&self) -> [u8; program::WANTED_SIZE] {
        let mut key = [0; program::WANTED_SIZE];
        key[..8].copy_from_slice(&self.namespace.to_ne_bytes());
        key[8..12].copy_from_slice(&self.token.unwrap_or(0).to_ne_bytes());
        key
    }
}

/// The ring, and what was made of its records. Only who holds the lock reads.
#[derive(Debug)]
struct Reading {
    records: RingBuffer,
    builder: Builder,
}

impl Reading {
    fn read(&mut self) {
        let builder = &mut self.builder;
        self.records.read(|record| builder.add(record));
    }
}

/// The programs at their tracepoints, and the thread that reads what they write.
#[derive(Debug)]
pub struct Tracer {
    reading: Arc<Mutex<Reading>>,
    counters: Mutex<SharedArray>,
    running: Mutex<Option<Running>>,
    /// That started it.
    process: u32,
}

#[derive(Debug)]
struct Running {
    /// The programs end with them.
    links: Vec<OwnedFd>,
    stop: Arc<EventFd>,
    thread: JoinHandle<()>,
}

impl Tracer {
    /// Traces from now on. ACKs and choices are kept only if `keeps` says so.
    pub fn start(sources: &[Source], keeps: bool) -> Result<Tracer> {
        let layout = kernel_layout()?;
        let create = |error| PURPOSE.refused("BPF_MAP_CREATE", &error);
        let records = RingBuffer::create(ROOM, "mptcp_records").map_err(create)?;
        let counters = SharedArray::create(1, counter::SIZE, "mptcp_counters").map_err(create)?;
        let wanted: Map<{ program::WANTED_SIZE }, 8> =
            Map::create(MapKind::Hash, MOST_SOURCES, "mptcp_wanted").map_err(create)?;
        for source in sources {
            wanted
                .update(&source.key(), &1u64.to_ne_bytes())
                .map_err(|error| PURPOSE.refused("BPF_MAP_UPDATE_ELEM", &error))?;
        }
        let known: Map<8, { program::KNOWN_SIZE }> =
            Map::create(MapKind::LruHash, KNOWN, "mptcp_known").map_err(create)?;
        let slots: Map<4, { program::SLOT_SIZE }> =
            Map::create(MapKind::Array, program::SLOTS, "mptcp_slots").map_err(create)?;
        let states: Map<4, { program::STATE_SIZE }> =
            Map::create(MapKind::PerCpuArray, 1, "mptcp_states").map_err(create)?;
        let maps = Maps {
            records: records.as_raw_fd(),
            wanted: wanted.as_raw_fd(),
            known: known.as_raw_fd(),
            slots: slots.as_raw_fd(),
            states: states.as_raw_fd(),
            counters: counters.as_raw_fd(),
        };
        let tracepoints = &layout.tracepoints;
        let programs = [
            (tracepoints.probe, "mptcp_probe", program::probe(maps, &layout)),
            (tracepoints.retransmit, "mptcp_retrans", program::retransmit(maps, &layout)),
            (tracepoints.get_send, "mptcp_get_send", program::get_send(maps, &layout)),
            (tracepoints.mapping, "mptcp_mapping", program::mapping(maps, &layout)),
            (tracepoints.ack_update, "mptcp_data_ack", program::ack_update(maps, &layout)),
            (tracepoints.sendmsg_frag, "mptcp_sent", program::sendmsg_frag(maps, &layout)),
        ];
        let mut loaded = Vec::new();
        for (typedef, name, instructions) in programs {
            loaded.push(PURPOSE.load(ProgramKind::Tracepoint { typedef }, &instructions, LICENSE, name)?);
        }
        // All of them at once, as far as that can be: what was loaded first saw nothing that the others missed.
        let mut links = Vec::new();
        for program in &loaded {
            links.push(
                sys::bpf::attach_tracepoint(program.as_fd())
                    .map_err(|error| PURPOSE.refused("BPF_RAW_TRACEPOINT_OPEN", &error))?,
            );
        }
        if let Some(target) = layout.iterator {
            let program = program::existing(maps, &layout);
            let iterator = TcpIterator::load(&PURPOSE, target, &program, LICENSE, "mptcp_existing")?;
            let places: HashMap<u64, &Arc<Namespace>> = sources
                .iter()
                .filter_map(|source| Some((source.namespace, source.place.as_ref()?)))
                .collect();
            for place in places.values() {
                iterator.visit(place.elsewhere()?, || Ok(false))?;
            }
        }
        let (monotonic, realtime) = sys::clock::both_ns();
        let builder = Builder::new(layout, realtime as i64 - monotonic as i64, keeps);
        let reading = Arc::new(Mutex::new(Reading { records, builder }));
        let stop = Arc::new(EventFd::new().map_err(|error| Error::call("eventfd", &error))?);
        let thread = {
            let (reading, stop) = (Arc::clone(&reading), Arc::clone(&stop));
            std::thread::Builder::new()
                .name("mptcp-tracer".to_owned())
                .spawn(move || loop {
                    lock(&reading).read();
                    if matches!(readable([stop.as_raw_fd()], Some(INTERVAL)), Ok([true])) {
                        return;
                    }
                })
                .map_err(|error| Error::call("starting a thread", &error))?
        };
        let running = Mutex::new(Some(Running { links, stop, thread }));
        Ok(Tracer { reading, counters: Mutex::new(counters), running, process: std::process::id() })
    }

    /// Takes the programs from their tracepoints, and reads what they have written. Once more has no effect. Nor has it
    /// any in a forked child, but that it closes the descriptors there.
    pub fn stop(&self) {
        // The thread is the parent's. One of the child may have got the same pthread_t, which dropping it would detach.
        if self.process != std::process::id() {
            if let Some(running) = self.running.try_lock().ok().and_then(|mut running| running.take()) {
                std::mem::forget(running.thread);
            }
            return;
        }
        let Some(Running { links, stop, thread }) = lock(&self.running).take() else { return };
        drop(links);
        stop.set();
        let _ = thread.join();
        lock(&self.reading).read();
    }

    /// What was traced until now, without waiting for the next reading.
    pub fn read<T>(&self, look: impl FnOnce(&mut Builder) -> T) -> T {
        let mut reading = lock(&self.reading);
        reading.read();
        look(&mut reading.builder)
    }

    /// Records for which the ring had no room.
    pub fn lost(&self) -> u64 {
        self.counter(counter::LOST)
    }

    /// Data given to a subflow that could not be told.
    pub fn unknown(&self) -> u64 {
        self.counter(counter::UNKNOWN)
    }

    fn counter(&self, counter: usize) -> u64 {
        let mut bytes = [0; 8];
        lock(&self.counters).read(0, counter, &mut bytes);
        u64::from_ne_bytes(bytes)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::builder::Builder;
    use super::record::{candidate, data, data_ack, head, kind, subflow};
    use super::*;
    use crate::bpf::btf::Member;
    use crate::traces::key::token_and_idsn;
    use crate::traces::row::{Packet, UNKNOWN};
    use proptest::prelude::*;

    const KEYS: [u64; 2] = [0x0102_0304_0506_0708, 0x1112_1314_1516_1718];
    const LOCAL: u64 = 7;

    fn put(record: &mut [u8], at: usize, bytes: &[u8]) {
        record[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn record(kind: i32, time: u64, cookie: u64, size: usize) -> Vec<u8> {
        let mut record = vec![0; size];
        put(&mut record, head::KIND, &(kind as u64).to_ne_bytes());
        put(&mut record, head::TIME_NS, &time.to_ne_bytes());
        put(&mut record, head::COOKIE, &cookie.to_ne_bytes());
        record
    }

    /// A subflow of the connecting side, whose first number is 1.
    fn begun(layout: &Layout, cookie: u64) -> Vec<u8> {
        let mut record = record(kind::SUBFLOW, 1, cookie, subflow::size(layout));
        let msk = subflow::msk(layout);
        let mut set = |member: Member, value: &[u8]| put(&mut record, msk + member.offset(), value);
        set(layout.msk.local_key, &KEYS[0].to_ne_bytes());
        set(layout.msk.remote_key, &KEYS[1].to_ne_bytes());
        set(layout.msk.token, &token_and_idsn(1, KEYS[0]).0.to_ne_bytes());
        // Its address, so that each is a subflow of its own.
        let port = subflow::TCP + layout.tcp.local_port.offset();
        put(&mut record, port, &(cookie as u16).to_be_bytes());
        record
    }

    /// The mapping that begins with the byte `dsn` of the connection, which TCP's numbers before `end` have.
    fn sent(time: u64, cookie: u64, dsn: u64, length: u32, end: u32) -> Vec<u8> {
        let mut record = record(kind::SENT, time, cookie, data::SIZE);
        let number = token_and_idsn(1, KEYS[0]).1.wrapping_add(1 + dsn);
        put(&mut record, data::DATA_SEQ, &number.to_ne_bytes());
        put(&mut record, data::LENGTH, &length.to_ne_bytes());
        put(&mut record, data::SEQUENCE, &end.to_ne_bytes());
        record
    }

    fn acknowledged(time: u64, cookie: u64, dsn: u64) -> Vec<u8> {
        let mut record = record(kind::DATA_ACK, time, cookie, data_ack::SIZE);
        let number = token_and_idsn(1, KEYS[0]).1.wrapping_add(1 + dsn);
        put(&mut record, data_ack::NUMBER, &number.to_ne_bytes());
        record
    }

    /// This kernel's layout, if it can be had.
    fn layout() -> Option<Arc<Layout>> {
        kernel_layout().map_err(|missing| eprintln!("skipped: {missing}")).ok()
    }

    fn rows(builder: &Builder) -> Vec<(i64, i64, i32, bool, i64)> {
        let row = |row: &Packet| (row.time_ns, row.dsn, row.length, row.reinjected, row.data_acked_ns);
        builder.packets().iter().map(row).collect()
    }

    #[test]
    fn a_mapping_that_grows_is_one_row_and_data_given_twice_is_reinjected() {
        let Some(layout) = layout() else { return };
        let mut builder = Builder::new(Arc::clone(&layout), 0, true);
        builder.add(&begun(&layout, LOCAL));
        builder.add(&begun(&layout, LOCAL + 1));
        builder.add(&sent(10, LOCAL, 0, 100, u32::MAX));
        builder.add(&sent(11, LOCAL, 0, 150, 49));
        builder.add(&sent(11, LOCAL, 0, 150, 49));
        builder.add(&sent(12, LOCAL + 1, 100, 80, 1080));
        builder.add(&acknowledged(20, LOCAL, 150));
        builder.add(&acknowledged(21, LOCAL + 1, 179));
        let expected = [(10, 0, 150, false, 20), (12, 100, 50, true, 20), (12, 150, 30, false, UNKNOWN)];
        assert_eq!(rows(&builder), expected);
        let (connections, subflows) = builder.tables();
        assert_eq!(
            (connections.len(), connections[0].bytes, connections[0].reinjected),
            (1, [180, 0], [50, 0])
        );
        assert_eq!(subflows.iter().map(|subflow| subflow.bytes[0]).collect::<Vec<_>>(), [150, 80]);
        assert_eq!(connections[0].data_acked, [179, UNKNOWN]);
    }

    #[test]
    fn what_was_chosen_is_the_newest_candidate_that_sends() {
        let Some(layout) = layout() else { return };
        let mut builder = Builder::new(Arc::clone(&layout), 0, true);
        for cookie in [LOCAL, LOCAL + 1] {
            builder.add(&begun(&layout, cookie));
        }
        for (time, cookie) in [(1, LOCAL), (2, LOCAL + 1), (3, LOCAL), (4, LOCAL + 1)] {
            builder.add(&record(kind::CANDIDATE, time, cookie, candidate::SIZE));
        }
        builder.add(&sent(5, LOCAL, 0, 10, 11));
        builder.add(&sent(6, LOCAL + 1, 10, 10, 11));
        let chosen = builder.choices().iter().map(|choice| choice.chosen).collect::<Vec<_>>();
        assert_eq!(chosen, [false, false, true, false]);
    }

    proptest! {
        #[test]
        fn any_record_is_survived(
            records in proptest::collection::vec(
                (0i32..9, 6u64..9, proptest::collection::vec(any::<u8>(), 0..80)), 0..60)
        ) {
            if let Some(layout) = layout() {
                let mut builder = Builder::new(Arc::clone(&layout), 0, true);
                builder.add(&begun(&layout, LOCAL));
                for (kind, cookie, rest) in records {
                    let mut bytes = record(kind, 1, cookie, head::SIZE);
                    bytes.extend(rest);
                    builder.add(&bytes);
                    let _ = builder.take_packets(false);
                }
                let _ = (builder.tables(), builder.packets());
            }
        }
    }
}
