//! Closing one subflow.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use crate::abi::address;
use crate::abi::full_info::Reading;
use crate::abi::uapi::tcp_state;
use crate::connection::by_token::ByToken;
use crate::connection::{
    check_is_of, find, gone, needs_net_admin, wait_for_lock, wait_for_lock_of, Connection, Subflow, Which,
};
use crate::error::{Cause, Error, Result};
use crate::namespace::Namespace;
use crate::netlink::pm;

/// Closes one subflow: SUBFLOW_DESTROY under the userspace path manager, SOCK_DESTROY under another.
/// Needs CAP_NET_ADMIN.
pub fn close_subflow(connection: &dyn Connection, which: Which, force: bool) -> Result<()> {
    close_meant(connection, which, meant(connection, which)?, force)
}

/// The same of the subflow of a snapshot, which must be of this connection.
pub fn close_snapshot(connection: &dyn Connection, subflow: &Subflow, force: bool) -> Result<()> {
    let which = Which::Endpoints { local: subflow.local, remote: subflow.remote };
    let meant = meant(connection, which)?.filter(|(token, _)| *token == subflow.token);
    if meant.is_none() {
        check_is_of(connection, [subflow])?;
    }
    close_meant(connection, which, meant, force)
}

fn close_meant(connection: &dyn Connection, which: Which, meant: Option<Meant>, force: bool) -> Result<()> {
    let (token, ends, found) = match meant {
        Some((token, ends)) => (token, ends, None),
        None => {
            let (subflow, live) = find(connection, which)?;
            wait_for_lock(connection);
            (subflow.token, (subflow.local, subflow.remote), Some((subflow, live)))
        }
    };
    let namespace = connection.namespace()?;
    let addresses = (pm::Address::new(ends.0), pm::Address::new(ends.1));
    match namespace.pm.command(&pm::codec::encode_destroy(token, &addresses.0, &addresses.1))? {
        Ok(()) => return Ok(()),
        Err(failure) => match failure.errno {
            libc::ESRCH => return Err(gone(which)),
            libc::EINVAL => {} // not under the userspace path manager
            libc::EPERM => return Err(needs_net_admin("closing a subflow")),
            errno => return Err(Error::subflow(errno, format!("SUBFLOW_DESTROY: {}", failure.describe()))),
        },
    }
    let (subflow, live) = found.map_or_else(|| find(connection, which), Ok)?;
    if live == 1 && !force {
        let message =
            "cannot close the last subflow: under the in-kernel path manager nothing could open another";
        return Err(Error::path_manager(message).because(Cause::LastSubflow));
    }
    destroy(&namespace, &subflow, which)
}

/// A connection's token, and the ends of a live subflow of it.
type Meant = (u32, (SocketAddr, SocketAddr));

/// The token, and the ends of a live subflow, by one reading through a descriptor, which waits for the connection's lock:
/// SUBFLOW_DESTROY needs no more. None where that does not show them.
fn meant(connection: &dyn Connection, which: Which) -> Result<Option<Meant>> {
    if connection.reads_by_dump() {
        return Ok(None);
    }
    let (token, readings) = connection.read_with_closed()?;
    let is_meant = |reading: &&Reading| {
        reading.tcp_info.state() != tcp_state::CLOSE
            && match which {
                Which::Id(id) => reading.id == Some(id),
                Which::Endpoints { local, remote } => {
                    let ends = [reading.local, reading.remote, local, remote].map(address::unmapped);
                    ends[..2] == ends[2..]
                }
            }
    };
    let found = readings.iter().find(is_meant).filter(|_| token != 0);
    Ok(found.map(|reading| (token, (reading.local, reading.remote))))
}

/// Closes the subflow of a connection without a descriptor that has these ends, looking nothing up where the connection is
/// under the userspace path manager.
pub fn close_at(connection: &ByToken, (local, remote): (SocketAddr, SocketAddr), force: bool) -> Result<()> {
    let (namespace, known) = connection.shared()?;
    if known.is_userspace.load(Ordering::Relaxed) {
        wait_for_lock_of(namespace, known);
        let ends = (pm::Address::new(local), pm::Address::new(remote));
        if namespace.pm.command(&pm::codec::encode_destroy(known.token, &ends.0, &ends.1))?.is_ok() {
            return Ok(());
        }
    }
    close_subflow(connection, Which::Endpoints { local, remote }, force)
}

/// Closes one subflow by a reset, whatever the path manager: SOCK_DESTROY. Needs CAP_NET_ADMIN.
pub fn reset_subflow(connection: &dyn Connection, which: Which) -> Result<()> {
    let (subflow, _) = find(connection, which)?;
    destroy(&*connection.namespace()?, &subflow, which)
}

fn destroy(namespace: &Namespace, subflow: &Subflow, which: Which) -> Result<()> {
    let entry = subflow.entry.ok_or_else(|| gone(which))?;
    namespace.destroy(&entry.tuple, entry.cookie, subflow.token)?.map_err(|failure| match failure.errno {
        libc::ENOENT => gone(which),
        libc::EPERM => needs_net_admin("closing a subflow"),
        libc::EOPNOTSUPP => Error::unsupported(
            "this kernel has no SOCK_DESTROY (CONFIG_INET_DIAG_DESTROY), which resets subflows and closes them under \
             the in-kernel path manager",
        ),
        errno => Error::subflow(errno, format!("SOCK_DESTROY: {}", failure.describe())),
    })
}
