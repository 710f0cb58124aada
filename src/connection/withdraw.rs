//! Withdrawing local addresses: RM_ADDR, RFC 8684, section 3.4.2.
//!
//! REMOVE of the path manager finds an address by its id in the connection's list, and tells the peer only if the address
//! with its port was announced or has a live subflow. SUBFLOW_DESTROY of the last subflow at an announced address takes
//! the address out of that list, and the peer is told nothing. ANNOUNCE would put it back, but a peer that has room for
//! another subflow then joins the address again. So it is put back by a subflow that nobody hears of: from the address to
//! a listener at the same address that drops every packet. REMOVE follows while that subflow is in SYN_SENT.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;

use socket2::SockFilter;

use crate::abi::address;
use crate::connection::path_manager::check_userspace;
use crate::connection::{local_id, needs_net_admin, not_local, wait_for_lock, Connection, Subflow};
use crate::error::{Cause, Error, Result};
use crate::namespace::Namespace;
use crate::netlink::pm;
use crate::netlink::Failure;
use crate::sys::lock::lock;

/// Ports that are tried for the subflow: between its choice and its use another socket may take one.
const TRIES: usize = 4;

/// `BPF_RET | BPF_K` with 0: drop the packet.
const DROP: SockFilter = SockFilter::new(0x06, 0, 0, 0);

/// An address id that can be withdrawn, 0 for the initial address.
pub fn check_id(id: i64) -> Result<u8> {
    u8::try_from(id).map_err(|_| Error::value(format!("address_id must be from 0 to 255, not {id}")))
}

/// REMOVE of an address id: the peer closes the subflows that use it, so such an id is refused unless that is forced.
/// Needs CAP_NET_ADMIN.
pub fn withdraw(connection: &dyn Connection, id: u8, force: bool) -> Result<()> {
    let known = connection.known()?;
    let namespace = connection.namespace()?;
    // Held until the kernel has answered, so that no subflow of this process takes the id meanwhile.
    let mut ids = lock(&known.opening);
    let subflows = connection.subflows()?;
    let uses = |subflow: &&Subflow| local_id(subflow) == Some(id);
    if let Some(subflow) = subflows.iter().find(uses).filter(|_| !force) {
        let message = format!(
            "cannot remove address id {id}: it is in use by subflow {} -> {}, which the peer would close",
            subflow.local, subflow.remote
        );
        return Err(Error::subflow(libc::EBUSY, message).because(Cause::AddressInUse));
    }
    wait_for_lock(connection);
    let token = known.token;
    let mut removed = remove(&namespace, token, id)?;
    if let (Err(Failure { errno: libc::EINVAL, .. }), Some(announced)) = (&removed, ids.announced.get(&id)) {
        let address = &announced.address;
        removed = match remove_forgotten(connection, &namespace, token, address) {
            Ok(()) => Ok(()),
            Err(_) if force => {
                let address = pm::Address { interface: 0, ..*address };
                match namespace.pm.command(&pm::codec::encode_announce(token, &address))? {
                    Ok(()) => remove(&namespace, token, id)?,
                    failed => failed,
                }
            }
            Err(error) => return Err(error),
        };
    }
    match removed {
        Ok(()) => {
            ids.forget(id);
            Ok(())
        }
        Err(failure) => Err(match failure.errno {
            libc::EPERM => needs_net_admin("removing an address"),
            libc::EINVAL => {
                check_userspace(&namespace, token)?;
                Error::subflow(
                    libc::EADDRNOTAVAIL,
                    format!("the connection has no local address with id {id}"),
                )
            }
            errno => Error::subflow(errno, format!("REMOVE of address id {id}: {}", failure.describe())),
        }),
    }
}

fn remove(namespace: &Namespace, token: u32, id: u8) -> Result<std::result::Result<(), Failure>> {
    namespace.pm.command(&pm::codec::encode_remove(token, id))
}

/// Withdraws an address that the kernel has forgotten, without announcing it.
fn remove_forgotten(
    connection: &dyn Connection,
    namespace: &Namespace,
    token: u32,
    address: &pm::Address,
) -> Result<()> {
    let failed = |error: Error| {
        let message = format!(
            "cannot remove address id {} ({}), which the kernel forgot when its last subflow was closed: {error}",
            address.id, address.ip
        );
        Error::subflow(error.errno(), message).because(Cause::AddressForgotten)
    };
    let listener = at(namespace, address, libc::IPPROTO_TCP).map_err(failed)?;
    let is_deaf = listener.attach_filter(&[DROP]).and_then(|()| listener.listen(1));
    is_deaf.map_err(|error| failed(Error::call("a listener there", &error)))?;
    let remote = bound_to(&listener).map_err(failed)?;

    let mut last = None;
    for attempt in 0..TRIES {
        // With the port that it was announced with, the kernel's record of the announcement goes too. That one often is
        // in use, by the listener or by a subflow in TIME_WAIT; another serves the peer as well.
        let port = match attempt {
            0 => address.port,
            _ => {
                bound_to(&at(namespace, address, libc::IPPROTO_TCP).map_err(failed)?).map_err(failed)?.port()
            }
        };
        let local = pm::Address { flags: 0, port, ..*address };
        let create = pm::codec::encode_create(token, &local, &pm::Address::new(remote));
        match namespace.pm.command(&create)? {
            Ok(()) => {
                let subflow = connection
                    .subflows()?
                    .into_iter()
                    .find(|subflow| address::without_scope(subflow.remote) == address::without_scope(remote));
                let removed = remove(namespace, token, address.id)?;
                if let Some(subflow) = &subflow {
                    let (local, remote) = (pm::Address::new(subflow.local), pm::Address::new(subflow.remote));
                    let _ = namespace.pm.command(&pm::codec::encode_destroy(token, &local, &remote))?;
                } else if attempt > 0 {
                    let message = "a connection from it to itself was refused: a firewall may reject it";
                    return Err(failed(Error::subflow(libc::ECONNREFUSED, message)));
                }
                return removed.map_err(|failure| failed(Error::subflow(failure.errno, failure.describe())));
            }
            Err(failure) if matches!(failure.errno, libc::EADDRINUSE | libc::EINVAL) => {
                last = Some(failure);
                // Older kernels keep the address of a subflow that they could not create.
                if remove(namespace, token, address.id)?.is_ok() && attempt == 0 {
                    return Ok(());
                }
            }
            Err(failure) => return Err(failed(Error::subflow(failure.errno, failure.describe()))),
        }
    }
    let failure = last.map_or_else(String::new, |failure| failure.describe());
    Err(failed(Error::subflow(libc::EADDRINUSE, failure)))
}

/// A socket that is bound to an address, at a port that the kernel chooses.
fn at(namespace: &Namespace, address: &pm::Address, protocol: i32) -> Result<socket2::Socket> {
    let socket: OwnedFd =
        namespace.socket(i32::from(address::family(address.ip)), libc::SOCK_STREAM, protocol)?;
    let socket = socket2::Socket::from(socket);
    let end = match address.ip {
        IpAddr::V4(_) => SocketAddr::new(address.ip, 0),
        IpAddr::V6(v6) => SocketAddrV6::new(v6, 0, 0, address.interface).into(),
    };
    match socket.bind(&end.into()) {
        Ok(()) => Ok(socket),
        Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => Err(not_local(address.ip)),
        Err(error) => Err(Error::call("bind", &error)),
    }
}

fn bound_to(socket: &socket2::Socket) -> Result<SocketAddr> {
    let end = socket.local_addr().map_err(|error| Error::call("getsockname", &error))?;
    end.as_socket().ok_or_else(|| Error::os(libc::EAFNOSUPPORT, "the socket has no address"))
}
