//! Each segment of connections as the kernel's tracepoints tell it, live: programs at six of them ([`program`]) write
//! records ([`record`]) into a ring buffer, which a thread reads into rows ([`builder`]).
//!
//! Needs CAP_BPF and CAP_PERFMON in the initial user namespace.

pub mod builder;
mod layout;
mod program;
pub mod record;

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::abi::uapi;
use crate::bpf::btf::Btf;
use crate::bpf::Purpose;
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    pub namespace: u64,
    pub token: Option<u32>,
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
        Ok(Source { namespace: u64::from_ne_bytes(cookie), token: Some(token) })
    }

    /// A connection, if it is still there.
    pub fn of_connection(connection: &ByToken) -> Result<Source> {
        let token = connection.known()?.token;
        Ok(Source { namespace: connection.namespace()?.cookie, token: Some(token) })
    }

    /// Every connection of the calling thread's network namespace.
    pub fn here() -> Result<Source> {
        Ok(Source { namespace: Namespace::current()?.cookie, token: None })
    }

    fn key(self) -> [u8; program::WANTED_SIZE] {
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
        Ok(Tracer { reading, counters: Mutex::new(counters), running })
    }

    /// Takes the programs from their tracepoints, and reads what they have written. Once more has no effect.
    pub fn stop(&self) {
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
