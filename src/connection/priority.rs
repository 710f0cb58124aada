//! The priority of one subflow, which the peer is told by MP_PRIO.

use crate::abi::uapi;
use crate::connection::path_manager::explain_einval;
use crate::connection::{find, needs_net_admin, wait_for_lock, Connection, Which};
use crate::error::{Error, Result};
use crate::netlink::pm;

/// Changes the priority of one subflow by MP_PRIO. Needs CAP_NET_ADMIN and the userspace path manager.
pub fn set_backup(connection: &dyn Connection, which: Which, backup: bool) -> Result<()> {
    let (subflow, _) = find(connection, which)?;
    let namespace = connection.namespace()?;
    wait_for_lock(connection);
    let flags = if backup { uapi::pm::FLAG_BACKUP } else { 0 };
    let local = pm::Address { flags, ..pm::Address::new(subflow.local) };
    let remote = pm::Address::new(subflow.remote);
    let Err(failure) = namespace.pm.command(&pm::codec::encode_set_flags(subflow.token, &local, &remote))?
    else {
        return Ok(());
    };
    match failure.errno {
        libc::EPERM => Err(needs_net_admin("changing a subflow's priority")),
        // Not under the userspace path manager, or no such subflow.
        libc::EINVAL => {
            explain_einval(&namespace, subflow.token, subflow.local.ip(), 0)?;
            find(connection, which)?;
            Err(Error::subflow(libc::EINVAL, format!("SET_FLAGS: {}", failure.describe())))
        }
        errno => Err(Error::subflow(errno, format!("SET_FLAGS: {}", failure.describe()))),
    }
}
