//! Announcing local addresses to the peer: ADD_ADDR, RFC 8684, section 3.4.1.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;

use crate::abi::address::{self, Endpoint, Scope};
use crate::abi::uapi;
use crate::connection::path_manager::explain_einval;
use crate::connection::{
    live_ids, needs_net_admin, not_fully_established, not_local, wait_for_lock, Connection, Subflow,
};
use crate::error::{describe, Error, Result};
use crate::events::ends::Listener;
use crate::namespace::address_ids::{self, Announced};
use crate::namespace::Namespace;
use crate::netlink::diag;
use crate::netlink::pm;
use crate::netlink::route;
use crate::sys::lock::lock;

/// Connections that may wait at a listener of ours: subflows that join do not wait there.
const BACKLOG: i32 = 128;

/// What can be refused before any system call.
pub fn check(address: &Endpoint) -> Result<()> {
    let ip = address.ip;
    if ip.is_unspecified() {
        return Err(Error::value(format!(
            "cannot announce the unspecified address {ip}: announce one of the host's addresses"
        )));
    }
    if ip.is_multicast() {
        return Err(Error::value(format!("cannot announce the multicast address {ip}")));
    }
    if address::is_link_local(ip) && address.scope.is_none() {
        return Err(Error::value(format!(
            "the link-local address {ip} must have an interface, as in \"{ip}%eth0\""
        )));
    }
    Ok(())
}

/// A port that an address can be announced with.
pub fn check_port(port: i64) -> Result<u16> {
    let in_range = u16::try_from(port).ok().filter(|port| *port != 0);
    in_range.ok_or_else(|| Error::value(format!("port must be from 1 to 65535, not {port}")))
}

/// An address id that an address can be announced with: 0 is the initial address's.
pub fn check_id(id: i64) -> Result<u8> {
    let in_range = u8::try_from(id).ok().filter(|id| *id != 0);
    in_range.ok_or_else(|| Error::value(format!("address_id must be from 1 to 255, not {id}")))
}

/// How an address is announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct How {
    /// The address id. Absent: one that is free.
    pub id: Option<u8>,
    /// Opens a listener where none is.
    pub listen: bool,
}

/// ANNOUNCE of an address; port 0 announces none, which stands for the connection's own. Where no Multipath TCP
/// listener is, one is opened and held, if that is asked for. Returns the address id. Needs CAP_NET_ADMIN.
pub fn announce(connection: &dyn Connection, address: &Endpoint, how: How) -> Result<u8> {
    check(address)?;
    let known = connection.known()?;
    let namespace = connection.namespace()?;
    let ip = address.ip.to_canonical();
    let interface = match &address.scope {
        Some(Scope::Index(index)) => *index,
        Some(Scope::Name(name)) => namespace.interface_index(name)?,
        None => 0,
    };
    match route::look_up(&mut lock(&namespace.route), ip, interface) {
        Ok(route) if route.is_local => {}
        _ => return Err(not_local(ip)),
    }
    let reader = namespace.reader_of_outcomes().map_err(|error| match error.errno() {
        libc::EPERM => needs_net_admin("announcing an address"),
        _ => error,
    })?;

    let mut ids = lock(&known.opening);
    let subflows = connection.subflows()?;
    // ADD_ADDR travels on a subflow that is fully established; without one the kernel silently drops it.
    let established = |subflow: &Subflow| {
        subflow.entry.and_then(|entry| entry.subflow).is_some_and(|subflow| subflow.fully_established())
    };
    if !subflows.iter().any(established) {
        return Err(not_fully_established());
    }
    let port = if address.port == 0 { connection.ends()?.0.port() } else { address.port };
    let listener = match how.listen {
        true => listen(&namespace, ip, port, interface)?.map(Listener::new),
        false => None,
    };

    wait_for_lock(connection);
    let token = known.token;
    if let Some(listener) = &listener {
        reader.close_at_end(token, listener)?;
    }
    let announced =
        pm::Address { flags: uapi::pm::FLAG_SIGNAL, ..pm::Address::new(SocketAddr::new(ip, address.port)) };
    let id = ids.choose(
        (&namespace.pm, token),
        address_ids::Request { pair: (ip, address.port), id: how.id, live: &live_ids(&subflows) },
        |id| pm::codec::encode_announce(token, &pm::Address { id, ..announced }),
        || explain_einval(&namespace, token, ip, interface),
        |failure| match failure.errno {
            libc::EPERM => needs_net_admin("announcing an address"),
            errno => Error::subflow(errno, format!("ANNOUNCE of {ip}: {}", failure.describe())),
        },
    )?;
    // Announced again, it keeps the listener that it has.
    ids.announced.entry(id).or_insert(Announced {
        address: pm::Address { id, interface, ..announced },
        _listener: listener,
        _reader: reader,
    });
    Ok(id)
}

/// A Multipath TCP listener at an address; `None` if there is one already.
fn listen(namespace: &Namespace, ip: IpAddr, port: u16, interface: u32) -> Result<Option<socket2::Socket>> {
    let at = match ip {
        IpAddr::V4(_) => SocketAddr::new(ip, port),
        IpAddr::V6(v6) => SocketAddrV6::new(v6, port, 0, interface).into(),
    };
    match diag::listener(&mut lock(&namespace.diag), at, interface).map_err(diag::failed)? {
        Some(true) => return Ok(None),
        Some(false) => {
            return Err(Error::subflow(
                libc::EADDRINUSE,
                format!(
                    "cannot listen at {at}: a plain TCP listener there would receive the peer's subflows"
                ),
            ));
        }
        None => {}
    }
    let family = i32::from(address::family(ip));
    let socket: OwnedFd = namespace.socket(family, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)?;
    let socket = socket2::Socket::from(socket);
    let listening = socket
        .set_reuse_address(true)
        .and_then(|()| socket.bind(&at.into()))
        .and_then(|()| socket.listen(BACKLOG));
    match listening {
        Ok(()) => Ok(Some(socket)),
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            Err(Error::subflow(
                errno,
                format!("cannot listen at {at} for the peer's subflows: {}", describe(errno)),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_announced_is_refused() {
        for bad in ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "fe80::1"] {
            let address = Endpoint::parse(bad, 0).unwrap();
            assert!(matches!(check(&address), Err(Error::Value { .. })), "{bad}");
        }
        for good in ["10.0.0.1", "fd00::1", "fe80::1%lo"] {
            assert_eq!(check(&Endpoint::parse(good, 7000).unwrap()), Ok(()), "{good}");
        }
    }
}
