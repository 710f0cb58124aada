//! The local addresses that the kernel keeps for a connection, with their ids.

use crate::connection::path_manager::{has_ended, under_kernel_path_manager};
use crate::connection::{ended, wait_for_lock, Connection};
use crate::error::{Error, Result};
use crate::netlink::pm::Address;

/// GET_ADDR with the connection's token, since Linux 6.10. No privilege.
pub fn addresses(connection: &dyn Connection) -> Result<Vec<Address>> {
    let token = connection.known()?.token;
    let namespace = connection.namespace()?;
    wait_for_lock(connection);
    match namespace.pm.local_addresses(token)? {
        // Where it is taken with 0, which no connection has, the token was ignored and endpoints are listed.
        Ok(_) if namespace.pm.local_addresses(0)?.is_ok() => Err(Error::unsupported(
            "this kernel cannot list the addresses of a connection (GET_ADDR with a token, Linux 6.10)",
        )),
        Ok(listed) => Ok(listed),
        Err(failure) if failure.errno == libc::EINVAL => {
            Err(if has_ended(&namespace, token)? { ended(token) } else { under_kernel_path_manager() })
        }
        Err(failure) => Err(Error::os(failure.errno, format!("GET_ADDR: {}", failure.describe()))),
    }
}
