//! Which path manager a connection latched, and what the kernel's EINVAL means by it.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;

use crate::connection::{ended, needs_net_admin, not_local};
use crate::error::{Cause, Error, Result};
use crate::namespace::known::Known;
use crate::namespace::path_manager::PathManager;
use crate::namespace::Namespace;
use crate::netlink::diag;
use crate::netlink::pm;
use crate::netlink::route;
use crate::sys::lock::lock;

pub fn under_kernel_path_manager() -> Error {
    Error::path_manager(
        "the connection is under the in-kernel path manager, so only the kernel changes its subflows and addresses",
    )
    .because(Cause::KernelPathManager)
}

/// Refuses a connection that is not under the userspace path manager.
pub fn check_userspace(namespace: &Namespace, token: u32) -> Result<()> {
    match latched_of_token(namespace, token)? {
        PathManager::Kernel => Err(under_kernel_path_manager()),
        PathManager::Userspace => Ok(()),
    }
}

/// Refuses a connection that is known to be under another path manager than the userspace one, without waiting for its lock
/// and asking once. Where the kernel gives no such reason, the command that follows finds out.
pub fn check_userspace_at_once(namespace: &Namespace, known: &Known) -> Result<()> {
    if known.is_userspace.load(Ordering::Relaxed) {
        return Ok(());
    }
    // An address without an id is refused before the lock is taken, and after the path manager was looked at.
    let nobody = pm::Address::new(SocketAddr::from(([127, 0, 0, 1], 0)));
    if let Err(failure) = namespace.pm.command(&pm::codec::encode_announce(known.token, &nobody))? {
        match failure.text {
            Some(text) if text.contains("userspace PM not selected") => {
                return Err(under_kernel_path_manager())
            }
            Some(text) if text.contains("invalid addr") => known.is_userspace.store(true, Ordering::Relaxed),
            _ if failure.errno == libc::EPERM => return Err(needs_net_admin("opening a subflow")),
            _ => {}
        }
    }
    Ok(())
}

/// The errors that EINVAL may stand for: the kernel answers nearly every mistake with it.
pub fn explain_einval(namespace: &Namespace, token: u32, local: IpAddr, interface: u32) -> Result<()> {
    check_userspace(namespace, token)?;
    let route = route::look_up(&mut lock(&namespace.route), local.to_canonical(), interface);
    match route {
        Ok(route) if route.is_local => Ok(()),
        _ => Err(not_local(local)),
    }
}

/// Which path manager a connection latched. No interface reports it: a command that names a subflow which cannot
/// exist fails with ESRCH under the userspace path manager and with EINVAL under any other, and changes nothing.
pub fn latched(namespace: &Namespace, token: u32) -> Result<PathManager> {
    match latched_of_token(namespace, token) {
        Err(error) if error.errno() == libc::EPERM => {
            // Without privilege: since 6.10 GET_ADDR uses the token, and refuses one that is not under the userspace
            // path manager just as it refuses 0, which no connection has.
            let tells = |token| namespace.pm.local_addresses(token).map(|addresses| addresses.is_ok());
            match (tells(token)?, tells(0)?) {
                (_, true) => Err(error),
                (true, false) => Ok(PathManager::Userspace),
                (false, false) if has_ended(namespace, token)? => Err(ended(token)),
                (false, false) => Ok(PathManager::Kernel),
            }
        }
        result => result,
    }
}

/// The part of `latched` that needs CAP_NET_ADMIN and works on every kernel.
pub fn latched_of_token(namespace: &Namespace, token: u32) -> Result<PathManager> {
    let nobody = pm::Address::new(SocketAddr::from(([127, 0, 0, 1], 1)));
    match namespace
        .pm
        .command(&pm::codec::encode_destroy(token, &nobody, &nobody))?
        .map_err(|failure| failure.errno)
    {
        // The answer for a token that no connection has any more, too.
        Err(libc::EINVAL) if has_ended(namespace, token)? => Err(ended(token)),
        Err(libc::EINVAL) => Ok(PathManager::Kernel),
        Err(libc::EPERM) => Err(needs_net_admin("reading a connection's path manager on this kernel")),
        _ => Ok(PathManager::Userspace),
    }
}

/// Whether no connection has this token. False where inet_diag does not know connections, so that it cannot be told.
pub fn has_ended(namespace: &Namespace, token: u32) -> Result<bool> {
    let mut channel = lock(&namespace.diag);
    let found = diag::look_up_tokens(&mut channel, &[token]).map_err(diag::failed)?.pop().flatten();
    Ok(found.is_none() && diag::dump_connections(&mut channel, |_| {}).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::by_descriptor::read_info;
    use crate::connection::tests::loopback;
    use std::os::fd::AsRawFd;

    #[test]
    fn the_path_manager_of_a_connection_that_has_ended_is_not_told() {
        let Some((client, server)) = loopback() else {
            eprintln!("skipped: no Multipath TCP here");
            return;
        };
        let namespace = Namespace::current().unwrap();
        let token = read_info(client.as_raw_fd()).unwrap().token();
        let before = latched(&namespace, token);
        if matches!(&before, Err(error) if error.errno() == libc::EPERM) {
            eprintln!("skipped: this kernel tells the path manager to the privileged only");
            return;
        }
        assert!(before.is_ok());
        // An abort ends the connection at once.
        client.set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop((client, server));
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while latched(&namespace, token) == before {
            assert!(std::time::Instant::now() < deadline, "still told");
            std::thread::yield_now();
        }
        assert_eq!(latched(&namespace, token), Err(ended(token)));
    }
}
