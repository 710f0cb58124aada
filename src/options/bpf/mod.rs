//! Socket options on single TCP sockets that nobody holds a descriptor of: a BPF program of type `iter/tcp` visits the
//! sockets of a network namespace, each one locked, and serves the requests for those whose cookie it knows.
//!
//! The program is written out in [`program`]; BTF finds the kernel function that it attaches to. It is loaded when it is first needed, once a process. Nothing is pinned: it ends with the process.

pub mod program;

use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::bpf::btf::Btf;
use crate::bpf::{Purpose, TcpIterator, ENOTSUPP};
use crate::error::{Error, Result};
use crate::sys::bpf::{Map, MapKind};
use crate::sys::lock::PerProcess;
use program::{Maps, Range, Slot, MAX_PER_SOCKET, MAX_REQUESTS, MAX_VALUE, NOT_MET};

/// What to do to which socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The socket's cookie, as inet_diag tells it.
    pub cookie: u64,
    pub level: i32,
    pub name: i32,
    pub action: Action,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The kernel wants exactly the option's length: 4 for integers.
    Get(usize),
    Set(Vec<u8>),
}

impl Action {
    fn length(&self) -> usize {
        match self {
            Self::Get(length) => *length,
            Self::Set(value) => value.len(),
        }
    }
}

/// What became of a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Visit {
    /// The value read, as long as was asked; empty after a set.
    Done(Vec<u8>),
    /// The kernel's errno.
    Refused(i32),
    /// The visit met no live TCP socket with this cookie.
    NotMet,
}

/// The program of this process. One visit at a time: the maps carry the requests of one.
static LOADED: PerProcess<Option<Loaded>> = PerProcess::new();

/// Serves the requests, each socket's in the order given, and answers in the same order. One visit carries
/// [`MAX_REQUESTS`], and [`MAX_PER_SOCKET`] for one socket; what is more takes more visits. `namespace` is the network
/// namespace of the sockets; `None` is the calling thread's.
///
/// Needs CAP_BPF and CAP_PERFMON in the initial user namespace, and CAP_SYS_ADMIN for another network namespace.
pub fn serve(requests: &[Request], namespace: Option<BorrowedFd<'_>>) -> Result<Vec<Visit>> {
    let mut loaded = LOADED.lock();
    let program = match loaded.as_ref() {
        Some(program) => program,
        None => loaded.insert(Loaded::load()?),
    };
    let mut outcomes = vec![Visit::NotMet; requests.len()];
    let order = by_socket(requests);
    for batch in batches(requests, &order) {
        program.serve(requests, batch, namespace, &mut outcomes)?;
    }
    Ok(outcomes)
}

/// The loaded program and its maps.
#[derive(Debug)]
struct Loaded {
    index: Map<8, { Range::SIZE }>,
    slots: Map<4, { Slot::SIZE }>,
    unserved: Map<4, 4>,
    iterator: TcpIterator,
}

impl Loaded {
    fn load() -> Result<Self> {
        let btf = PURPOSE.kernel_btf()?;
        let target = Btf::parse(&btf)
            .and_then(|btf| btf.function_id(TcpIterator::TARGET))
            .map_err(|error| PURPOSE.without_btf(&error))?;
        let requests = MAX_REQUESTS as u32;
        let failed = |error: io::Error| PURPOSE.refused("BPF_MAP_CREATE", &error);
        let index = Map::create(MapKind::Hash, requests, "mptcp_index").map_err(failed)?;
        let slots = Map::create(MapKind::Array, requests, "mptcp_slots").map_err(failed)?;
        let unserved = Map::create(MapKind::Array, 1, "mptcp_unserved").map_err(failed)?;
        let instructions = program::program(Maps {
            index: index.as_raw_fd(),
            slots: slots.as_raw_fd(),
            unserved: unserved.as_raw_fd(),
        });
        let iterator = TcpIterator::load(&PURPOSE, target, &instructions, LICENSE, "mptcp_options")?;
        Ok(Self { index, slots, unserved, iterator })
    }

    /// One visit, for the requests at the positions in `batch`.
    fn serve(
        &self,
        requests: &[Request],
        batch: &[usize],
        namespace: Option<BorrowedFd<'_>>,
        outcomes: &mut [Visit],
    ) -> Result<()> {
        let update = |error: io::Error| Error::call("BPF_MAP_UPDATE_ELEM", &error);
        let mut ranges: HashMap<u64, Range> = HashMap::new();
        for (number, &position) in (0u32..).zip(batch) {
            let request = &requests[position];
            let range = ranges.entry(request.cookie).or_insert(Range { first: number, count: 0 });
            range.count += 1;
            self.slots.update(&number.to_ne_bytes(), &slot(request).to_bytes()).map_err(update)?;
        }
        let unserved = batch.len() as u32;
        self.unserved.update(&[0; 4], &unserved.to_ne_bytes()).map_err(update)?;
        let filled = ranges
            .iter()
            .try_for_each(|(cookie, range)| self.index.update(&cookie.to_ne_bytes(), &range.to_bytes()))
            .map_err(update);
        let visited = filled.and_then(|()| self.visit(namespace));
        for cookie in ranges.keys() {
            // A cookie that is not there was never put there.
            let _ = self.index.delete(&cookie.to_ne_bytes());
        }
        visited?;
        for (number, &position) in (0u32..).zip(batch) {
            let bytes = self.slots.lookup(&number.to_ne_bytes()).map_err(lookup_failed)?;
            outcomes[position] = outcome(&requests[position], &bytes);
        }
        Ok(())
    }

    /// Lets the program see every socket of the namespace, or as many as it takes to serve every request.
    fn visit(&self, namespace: Option<BorrowedFd<'_>>) -> Result<()> {
        self.iterator.visit(namespace, || Ok(self.unserved.lookup(&[0; 4]).map_err(lookup_failed)? == [0; 4]))
    }
}

fn lookup_failed(error: io::Error) -> Error {
    Error::call("BPF_MAP_LOOKUP_ELEM", &error)
}

/// The helpers that the program calls ask for no licence in particular.
const LICENSE: &CStr = c"MIT";

const PURPOSE: Purpose = Purpose {
    cannot: "reach the options of one subflow through BPF",
    needs: "reaching an option of one subflow through BPF needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN in the \
            initial user namespace. Without them, these can be read: TCP_INFO, TCP_CC_INFO, TCP_CONGESTION, \
            TCP_MAXSEG, IP_TOS, IPV6_TCLASS, SO_SNDBUF, SO_RCVBUF, SO_MAX_PACING_RATE. To set options, use setsockopt \
            on the whole socket, or a congestion control for a route (ip route ... congctl NAME; in a lab, \
            Link.set(congestion_control=))",
};

/// Positions of the requests, those of one socket together and in the order given.
fn by_socket(requests: &[Request]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by_key(|&position| requests[position].cookie);
    order
}

/// `order` in pieces that one visit can carry.
fn batches<'a>(requests: &[Request], order: &'a [usize]) -> Vec<&'a [usize]> {
    let mut batches = Vec::new();
    let (mut begin, mut same) = (0, 0);
    for end in 0..order.len() {
        let cookie = requests[order[end]].cookie;
        let repeated = end > begin && requests[order[end - 1]].cookie == cookie;
        same = if repeated { same + 1 } else { 1 };
        if same > MAX_PER_SOCKET || end - begin == MAX_REQUESTS {
            batches.push(&order[begin..end]);
            (begin, same) = (end, 1);
        }
    }
    if begin < order.len() {
        batches.push(&order[begin..]);
    }
    batches
}

/// A value longer than [`MAX_VALUE`] is cut: who asks has refused it already.
fn slot(request: &Request) -> Slot {
    let mut value = [0; MAX_VALUE];
    if let Action::Set(bytes) = &request.action {
        for (to, from) in value.iter_mut().zip(bytes) {
            *to = *from;
        }
    }
    Slot {
        cookie: request.cookie,
        level: request.level,
        name: request.name,
        set: matches!(request.action, Action::Set(_)),
        length: request.action.length().min(MAX_VALUE) as u32,
        result: NOT_MET,
        value,
    }
}

fn outcome(request: &Request, bytes: &[u8; Slot::SIZE]) -> Visit {
    let (result, value) = Slot::answer(bytes);
    match (result, &request.action) {
        (NOT_MET, _) => Visit::NotMet,
        (0, Action::Get(length)) => Visit::Done(value[..(*length).min(MAX_VALUE)].to_vec()),
        (0, Action::Set(_)) => Visit::Done(Vec::new()),
        (result, _) if result == -ENOTSUPP =>
        // bpf_setsockopt gives it for the congestion control "cdg".
        {
            Visit::Refused(libc::EOPNOTSUPP)
        }
        (result, _) => Visit::Refused(-result),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(cookie: u64, action: Action) -> Request {
        Request { cookie, level: libc::IPPROTO_TCP, name: libc::TCP_CONGESTION, action }
    }

    #[test]
    fn a_sockets_requests_stay_together_and_in_order() {
        let requests: Vec<Request> = [5, 3, 5, 9, 3].map(|cookie| request(cookie, Action::Get(4))).into();
        assert_eq!(by_socket(&requests), [1, 4, 0, 2, 3]);
    }

    #[test]
    fn a_batch_is_what_one_run_can_carry() {
        let sizes = |cookies: &[u64]| -> Vec<usize> {
            let requests: Vec<Request> =
                cookies.iter().map(|&cookie| request(cookie, Action::Get(4))).collect();
            let order = by_socket(&requests);
            let batches = batches(&requests, &order);
            assert_eq!(batches.concat(), order);
            batches.into_iter().map(<[usize]>::len).collect()
        };
        assert_eq!(sizes(&[]), [0; 0]);
        assert_eq!(sizes(&[7; MAX_PER_SOCKET]), [MAX_PER_SOCKET]);
        assert_eq!(sizes(&[7; 2 * MAX_PER_SOCKET + 1]), [MAX_PER_SOCKET, MAX_PER_SOCKET, 1]);
        let many: Vec<u64> = (0..MAX_REQUESTS as u64 + 3).collect();
        assert_eq!(sizes(&many), [MAX_REQUESTS, 3]);
        let two = [[7; MAX_PER_SOCKET], [8; MAX_PER_SOCKET]].concat();
        assert_eq!(sizes(&two), [2 * MAX_PER_SOCKET]);
    }

    #[test]
    fn results_have_a_meaning() {
        let get = request(1, Action::Get(4));
        let set = request(1, Action::Set(b"reno".to_vec()));
        let answered = |request: &Request, result| {
            let answer = Slot { result, ..slot(request) };
            outcome(request, &answer.to_bytes())
        };
        assert_eq!(answered(&get, NOT_MET), Visit::NotMet);
        assert_eq!(answered(&get, 0), Visit::Done(vec![0; 4]));
        assert_eq!(answered(&set, 0), Visit::Done(vec![]));
        assert_eq!(answered(&set, -libc::ENOENT), Visit::Refused(libc::ENOENT));
        assert_eq!(answered(&set, -ENOTSUPP), Visit::Refused(libc::EOPNOTSUPP));
    }
}
