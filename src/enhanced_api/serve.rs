//! Serving a call of the enhanced socket API: the same for a program in this process and for one that
//! [`Caller`] reaches.
//!
//! The errors are those that the call is to fail with, by [`Error::errno`].

use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use super::codec::{self, How, SubStatus, SubTuple};
use super::{Call, Layout, Name};
use crate::abi::address::{Endpoint, Scope};
use crate::abi::mptcp_info::field;
use crate::abi::uapi::tcp_state;
use crate::connection::by_descriptor::ByDescriptor;
use crate::connection::close::{close_subflow, reset_subflow};
use crate::connection::open::{Opening, Request};
use crate::connection::{not_fully_established, Connection, Subflow, Which};
use crate::error::{Error, Result};
use crate::namespace::known::Known;
use crate::netlink::diag::{Tuple, Ulp};
use crate::options::bpf::program::MAX_VALUE;
use crate::options::table::SocketOption;
use crate::options::{self, Change};
use crate::sys;
use crate::sys::lock::lock;

/// How long an open waits for data on its way to be acknowledged, as open_subflow() does if not told otherwise.
const DATA_IN_FLIGHT: Duration = Duration::from_secs(5);

/// Who made the call: its memory, which MPTCP_SUB_GETSOCKOPT and MPTCP_SUB_SETSOCKOPT point into, and what it may do
/// where this process may do more.
pub trait Caller {
    /// Fills `buffer` from an address; EFAULT where nothing can be read.
    fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// EFAULT where nothing can be written.
    fn write(&self, address: u64, bytes: &[u8]) -> io::Result<()>;

    /// Whether the caller could bind() to the local end of a subflow that it opens.
    fn may_bind(&self, local: SocketAddr) -> Result<()> {
        let _ = local;
        Ok(())
    }

    /// Whether anybody still waits for the answer.
    fn still_waits(&self) -> bool {
        true
    }

    /// Whether the caller may have one more subflow, of the connection with this token.
    fn may_open(&self, token: u32) -> Result<()> {
        let _ = token;
        Ok(())
    }

    /// Whether the caller could set the option on a socket of its own that is as the subflow's.
    fn may_set(
        &self,
        connection: &dyn Connection,
        subflow: &Subflow,
        option: SocketOption,
        value: &[u8],
    ) -> Result<()> {
        let _ = (connection, subflow, option, value);
        Ok(())
    }
}

/// A call from this process, whose addresses are our own and whose privileges the kernel checks.
#[derive(Debug, Clone, Copy)]
pub struct ThisProcess;

impl Caller for ThisProcess {
    fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        sys::memory::read(std::process::id() as i32, address, buffer)
    }

    fn write(&self, address: u64, bytes: &[u8]) -> io::Result<()> {
        sys::memory::write(std::process::id() as i32, address, bytes)
    }
}

/// What getsockopt is to leave behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// What goes to the start of the caller's buffer; may be nothing.
    pub bytes: Vec<u8>,
    /// The new optlen.
    pub length: usize,
}

/// True for a socket whose calls are ours to serve, Multipath TCP or not. To any other the kernel has its answer.
pub fn is_tcp(fd: RawFd) -> io::Result<bool> {
    let protocol = sys::getsockopt_i32(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL)?;
    Ok([libc::IPPROTO_TCP, libc::IPPROTO_MPTCP].contains(&protocol))
}

/// getsockopt(IPPROTO_TCP) of one of the options. `input` is the start of the caller's buffer, [`Call::input_size`]
/// bytes or all there are; `length` is the whole buffer's.
pub fn serve_get(
    connection: &dyn Connection,
    caller: &dyn Caller,
    call: Call,
    input: &[u8],
    length: usize,
) -> Result<Reply> {
    let unchanged = Reply { bytes: Vec::new(), length };
    let known = connection.known()?;
    let served = match call.name {
        Name::GetSubIds => get_sub_ids(connection, &known, call.layout, length),
        Name::CloseSubId => close_sub_id(connection, &known, call.layout, input).map(|()| unchanged),
        Name::GetSubTuple => get_sub_tuple(connection, &known, call.layout, input, length),
        Name::OpenSubTuple => {
            let tuple = codec::decode_sub_tuple(call.layout, input, length);
            let opened = tuple.and_then(|tuple| {
                let id = open_sub_tuple(connection, caller, &known, &tuple)?;
                Ok((id, codec::sub_tuple_size(call.layout, tuple.local.is_ipv4())))
            });
            // The kernel of 2016 wrote nothing back, but programs looked for it.
            opened.map(|(id, size)| Reply { bytes: vec![id], length: size })
        }
        Name::SubGetsockopt => sub_getsockopt(connection, caller, &known, input).map(|()| unchanged),
        Name::SubSetsockopt => Err(wrong_direction()),
    };
    served.map_err(of_a_call)
}

/// setsockopt(IPPROTO_TCP) of one of the options, which is MPTCP_SUB_SETSOCKOPT.
pub fn serve_set(connection: &dyn Connection, caller: &dyn Caller, call: Call, input: &[u8]) -> Result<()> {
    let known = connection.known()?;
    match call.name {
        Name::SubSetsockopt => sub_setsockopt(connection, caller, &known, input).map_err(of_a_call),
        _ => Err(wrong_direction()),
    }
}

/// getsockopt(IPPROTO_TCP) on any descriptor, with the whole buffer at hand.
pub fn getsockopt(
    connection: &ByDescriptor,
    caller: &dyn Caller,
    call: Call,
    optname: i32,
    buffer: &[u8],
) -> Result<Reply> {
    let failed = |error| Error::call("getsockopt", &error);
    if is_tcp(connection.fd()).map_err(failed)? {
        return serve_get(connection, caller, call, buffer, buffer.len());
    }
    let mut bytes = buffer.to_vec();
    let length = sys::getsockopt(connection.fd(), libc::IPPROTO_TCP, optname, &mut bytes).map_err(failed)?;
    Ok(Reply { bytes, length })
}

/// setsockopt(IPPROTO_TCP) on any descriptor.
pub fn setsockopt(
    connection: &ByDescriptor,
    caller: &dyn Caller,
    call: Call,
    optname: i32,
    buffer: &[u8],
) -> Result<()> {
    let failed = |error| Error::call("setsockopt", &error);
    if is_tcp(connection.fd()).map_err(failed)? {
        return serve_set(connection, caller, call, buffer);
    }
    sys::setsockopt(connection.fd(), libc::IPPROTO_TCP, optname, buffer).map_err(failed)
}

fn wrong_direction() -> Error {
    Error::os(
        libc::ENOPROTOOPT,
        "MPTCP_SUB_SETSOCKOPT is an option for setsockopt, the others are for getsockopt",
    )
}

/// What is wrong with a call is EINVAL, whatever it is to a user of the core.
fn of_a_call(error: Error) -> Error {
    match error {
        Error::Value { message, .. } => Error::os(libc::EINVAL, message),
        error => error,
    }
}

/// Of a subflow that was there a moment ago.
fn of_a_subflow(id: u8) -> impl Fn(Error) -> Error {
    move |error| match error {
        Error::Subflow { errno: libc::ENOTCONN, .. } => unknown(id),
        error => error,
    }
}

fn unknown(id: u8) -> Error {
    Error::os(libc::EINVAL, format!("the connection has no subflow with id {id}: it may be closed"))
}

fn einval(message: impl Into<String>) -> Error {
    Error::os(libc::EINVAL, message)
}

/// The subflows with their ids, oldest first. Those of which we have sent the FIN are closed already.
fn subflows(connection: &dyn Connection, known: &Known) -> Result<Vec<(u8, Subflow)>> {
    // Held from before the reading, so that no reading older than another one forgets an id.
    let mut ids = lock(&known.sub_ids);
    let mut subflows = connection.subflows()?;
    subflows.retain(|subflow| {
        subflow.entry.is_some() && !tcp_state::FIN_SENT.contains(&subflow.tcp_info.state())
    });
    let cookies: Vec<u64> = subflows.iter().filter_map(|subflow| Some(subflow.entry?.cookie)).collect();
    let ids = ids.assign(&cookies);
    Ok(ids.into_iter().zip(subflows).filter_map(|(id, subflow)| Some((id?, subflow))).collect())
}

fn find(connection: &dyn Connection, known: &Known, id: u8) -> Result<Subflow> {
    let found = subflows(connection, known)?.into_iter().find(|(other, _)| *other == id);
    found.map(|(_, subflow)| subflow).ok_or_else(|| unknown(id))
}

fn status(id: u8, subflow: &Subflow) -> SubStatus {
    let told = subflow.entry.and_then(|entry| entry.subflow);
    let is = |what: fn(&Ulp) -> bool| told.as_ref().is_some_and(what);
    SubStatus {
        id,
        slave_sk: is(|subflow| !subflow.initial()),
        fully_established: is(|subflow| subflow.fully_established()),
        attached: true,
        low_prio: is(|subflow| subflow.backup()),
        pre_established: subflow.tcp_info.state() == tcp_state::ESTABLISHED
            && is(|subflow| subflow.joined_here() && !subflow.fully_established()),
    }
}

fn get_sub_ids(connection: &dyn Connection, known: &Known, layout: Layout, length: usize) -> Result<Reply> {
    // Newest first, as the kernel of 2016 had them.
    let statuses: Vec<SubStatus> =
        subflows(connection, known)?.iter().rev().map(|(id, subflow)| status(*id, subflow)).collect();
    reply(codec::encode_sub_ids(layout, &statuses), length)
}

fn get_sub_tuple(
    connection: &dyn Connection,
    known: &Known,
    layout: Layout,
    input: &[u8],
    length: usize,
) -> Result<Reply> {
    let id = *input.first().ok_or_else(|| einval("the buffer must have room for an id"))?;
    let subflow = find(connection, known, id)?;
    let prio = status(id, &subflow).low_prio.into();
    let tuple = SubTuple { id, prio, local: subflow.local, remote: subflow.remote };
    reply(codec::encode_sub_tuple(layout, &tuple), length)
}

fn reply(bytes: Vec<u8>, length: usize) -> Result<Reply> {
    if bytes.len() > length {
        return Err(einval(format!("the buffer must have at least {} bytes, not {length}", bytes.len())));
    }
    Ok(Reply { length: bytes.len(), bytes })
}

fn close_sub_id(connection: &dyn Connection, known: &Known, layout: Layout, input: &[u8]) -> Result<()> {
    let (id, how) = codec::decode_close_sub_id(layout, input)?;
    let subflow = find(connection, known, id)?;
    let which = Which::Endpoints { local: subflow.local, remote: subflow.remote };
    match how {
        How::Shutdown => close_subflow(connection, which, true),
        How::Reset => reset_subflow(connection, which),
    }
    .map_err(of_a_subflow(id))
}

/// The new subflow's id. It is on its way: whether the peer takes it is not known yet.
fn open_sub_tuple(
    connection: &dyn Connection,
    caller: &dyn Caller,
    known: &Known,
    tuple: &SubTuple,
) -> Result<u8> {
    if tuple.local.port() != 0 {
        caller.may_bind(tuple.local)?;
    }
    caller.may_open(known.token)?;
    let request = Request {
        local: Some(endpoint(tuple.local)),
        remote: Some(endpoint(tuple.remote)),
        backup: tuple.prio != 0,
        ..Request::default()
    };
    let (own, peer) = connection.ends()?;
    let is_ipv4 = tuple.local.ip().to_canonical().is_ipv4();
    let mixed = || {
        let (one, other) = if is_ipv4 { ("IPv4", "IPv6") } else { ("IPv6", "IPv4") };
        Error::os(libc::EAFNOSUPPORT, format!("an {one} subflow on an {other} socket"))
    };
    // The reverse works, unless the socket is for IPv6 only, for which the kernel says EINVAL.
    if own.is_ipv4() && !is_ipv4 {
        return Err(mixed());
    }
    let opened =
        open_once_established(connection, caller, &request).map_err(|error| match error.errno() {
            libc::EINVAL if is_ipv4 && !peer.ip().to_canonical().is_ipv4() => mixed(),
            _ => error,
        })?;
    let subflows = subflows(connection, known)?;
    let is_new = |subflow: &Subflow| {
        let ends = Tuple { local: subflow.local, remote: subflow.remote, interface: 0 };
        opened.is_some_and(|opened| opened.same_endpoints(&ends))
    };
    if let Some((id, _)) = subflows.iter().rev().find(|(_, subflow)| is_new(subflow)) {
        return Ok(*id);
    }
    // Refused before we could look. It was a subflow all the same, and its id is one that is closed.
    let live: Vec<u64> = subflows.iter().filter_map(|(_, subflow)| Some(subflow.entry?.cookie)).collect();
    Ok(lock(&known.sub_ids).pass(&live).unwrap_or_default())
}

/// Sends the SYN. The kernel of 2016 did so as soon as the connection was established; this one wants the peer to have
/// acknowledged data first, which is waited for while there is some on its way.
fn open_once_established(
    connection: &dyn Connection,
    caller: &dyn Caller,
    request: &Request,
) -> Result<Option<Tuple>> {
    let deadline = Instant::now() + DATA_IN_FLIGHT;
    let mut pause = Duration::from_micros(100);
    loop {
        // Before the attempt, which sees whatever is acknowledged by then.
        let in_flight = has_data_in_flight(connection)?;
        match Opening::new(connection, request)?.detach(connection) {
            Err(error)
                if error == not_fully_established()
                    && in_flight
                    && Instant::now() < deadline
                    && caller.still_waits() => {}
            result => return result,
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(5));
    }
}

fn has_data_in_flight(connection: &dyn Connection) -> Result<bool> {
    let info = connection.info()?;
    Ok(field::snd_una.read(info.bytes()) != field::write_seq.read(info.bytes()))
}

fn endpoint(address: SocketAddr) -> Endpoint {
    let scope = match address {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => Some(Scope::Index(v6.scope_id())),
        _ => None,
    };
    Endpoint { ip: address.ip(), port: address.port(), scope }
}

fn sub_getsockopt(
    connection: &dyn Connection,
    caller: &dyn Caller,
    known: &Known,
    input: &[u8],
) -> Result<()> {
    let request = codec::decode_sub_getsockopt(input)?;
    let subflow = find(connection, known, request.id)?;
    let mut optlen = [0; 4];
    caller.read(request.optlen, &mut optlen).map_err(|error| memory("optlen", &error))?;
    let room =
        usize::try_from(i32::from_ne_bytes(optlen)).map_err(|_| einval("optlen must not be negative"))?;
    let option = SocketOption { level: request.level, number: request.optname };
    let value = options::get(connection, &subflow, option, room).map_err(of_a_subflow(request.id))?;
    // What was there is put back where only a part can be written: a call that failed leaves no trace.
    let mut before = vec![0; value.len()];
    caller.read(request.optval, &mut before).map_err(|error| memory("optval", &error))?;
    let length = (value.len() as u32).to_ne_bytes();
    let written = match caller.write(request.optval, &value) {
        Ok(()) => caller.write(request.optlen, &length).map_err(|error| memory("optlen", &error)),
        Err(error) => Err(memory("optval", &error)),
    };
    if written.is_err() {
        let _ = caller.write(request.optval, &before);
    }
    written
}

fn sub_setsockopt(
    connection: &dyn Connection,
    caller: &dyn Caller,
    known: &Known,
    input: &[u8],
) -> Result<()> {
    let request = codec::decode_sub_setsockopt(input)?;
    let subflow = find(connection, known, request.id)?;
    let option = SocketOption { level: request.level, number: request.optname };
    let length = i32::try_from(request.optlen).ok().and_then(|length| usize::try_from(length).ok());
    let length = length
        .filter(|length| *length <= MAX_VALUE)
        .ok_or_else(|| einval(format!("optlen must be in 1..{MAX_VALUE}, not {}", request.optlen)))?;
    let mut value = vec![0; length];
    caller.read(request.optval, &mut value).map_err(|error| memory("optval", &error))?;
    let value = as_the_kernel_takes_it(option, value);
    caller.may_set(connection, &subflow, option, &value)?;
    let change = Change { subflow, option, value };
    change.check()?;
    options::set(connection, &[change]).map_err(of_a_subflow(request.id))
}

/// setsockopt takes the first bytes of a longer buffer for an integer, and at level IPPROTO_IP a char for one too; BPF
/// takes an int only.
fn as_the_kernel_takes_it(option: SocketOption, mut value: Vec<u8>) -> Vec<u8> {
    let int = size_of::<libc::c_int>();
    if !option.is_name() && value.len() > int {
        value.truncate(int);
    }
    if option.level == libc::IPPROTO_IP && (1..int).contains(&value.len()) {
        value = libc::c_int::from(value[0]).to_ne_bytes().to_vec();
    }
    value
}

fn memory(pointer: &str, error: &io::Error) -> Error {
    Error::call(&format!("the memory that {pointer} points to"), error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::table::TCP_CONGESTION;

    #[test]
    fn integers_are_taken_as_setsockopt_takes_them() {
        let ip = SocketOption { level: libc::IPPROTO_IP, number: libc::IP_TOS };
        let tcp = SocketOption { level: libc::IPPROTO_TCP, number: libc::TCP_USER_TIMEOUT };
        let taken = |option, value: &[u8]| as_the_kernel_takes_it(option, value.to_vec());
        assert_eq!(taken(ip, &[16]), 16i32.to_ne_bytes());
        assert_eq!(taken(ip, &[16, 9, 9]), 16i32.to_ne_bytes());
        assert_eq!(taken(ip, &[1, 2, 3, 4, 5]), [1, 2, 3, 4]);
        assert!(taken(ip, &[]).is_empty());
        assert_eq!(taken(tcp, &[16]), [16]);
        assert_eq!(taken(tcp, &[1, 2, 3, 4, 5, 6, 7, 8]), [1, 2, 3, 4]);
        assert_eq!(taken(TCP_CONGESTION, b"reno\0\0\0\0"), b"reno\0\0\0\0");
    }
}
