//! The netlink socket for commands of `mptcp_pm` in one network namespace. The ones that change something need
//! CAP_NET_ADMIN in the user namespace that owns it; those that name a connection need one under the userspace path
//! manager. [`codec`] has the bytes of these, [`endpoints`] those of the in-kernel path manager.

pub mod codec;
pub mod endpoints;

use std::sync::atomic::{AtomicU64, Ordering};

use crate::abi::uapi::ctrl;
use crate::error::{Error, Result};
use crate::netlink::broker;
use crate::netlink::pm::codec::{decode_family, decode_get_addr, encode_get_addr, encode_get_family};
pub use crate::netlink::pm::codec::{Address, Family};
pub use crate::netlink::pm::endpoints::Limits;
use crate::netlink::pm::endpoints::{decode_limits, encode_get_endpoints, encode_get_limits};
use crate::netlink::pool::Pool;
use crate::netlink::{Channel, Failure};

/// Asks the kernel for the family; ENOENT where it has none.
pub fn resolve(channel: &mut Channel) -> std::result::Result<Family, Failure> {
    let reply = channel.request(ctrl::GENL_ID_CTRL, &encode_get_family())?;
    decode_family(&reply).ok_or(Failure { errno: libc::EBADMSG, text: None })
}

/// Commands wait for the connection's lock, so they do not share one socket.
#[derive(Debug)]
pub struct PmSocket {
    pool: Pool,
    /// The cookie of its network namespace, whose broker sends what the caller may not.
    namespace: Option<u64>,
}

impl PmSocket {
    pub fn new(pool: Pool, namespace: Option<u64>) -> PmSocket {
        PmSocket { pool, namespace }
    }

    fn with<T>(&self, request: impl FnOnce(&mut Channel) -> T) -> Result<T> {
        self.pool.with(request).map_err(|error| Error::call("socket(AF_NETLINK)", &error))
    }

    /// The numbers of the generic netlink family `mptcp_pm`.
    pub fn family(&self) -> Result<Family> {
        // The group and the id. The kernel keeps both until the next boot.
        static FAMILY: AtomicU64 = AtomicU64::new(0);
        let known = FAMILY.load(Ordering::Relaxed);
        if known != 0 {
            return Ok(Family { id: known as u16, event_group: (known >> 16) as u32 });
        }
        match self.with(resolve)? {
            Ok(family) => {
                FAMILY.store(u64::from(family.event_group) << 16 | u64::from(family.id), Ordering::Relaxed);
                Ok(family)
            }
            Err(failure) if failure.errno == libc::ENOENT => Err(Error::unsupported(
                "this kernel has no generic netlink family mptcp_pm (CONFIG_MPTCP, Linux 5.19 for its commands)",
            )),
            Err(failure) => Err(Error::os(failure.errno, format!("CTRL_CMD_GETFAMILY: {}", failure.describe()))),
        }
    }

    /// Sends a command, by the broker where the caller lacks the privilege and there is one; a refusal by the kernel is
    /// the inner error.
    pub fn command(&self, payload: &[u8]) -> Result<std::result::Result<(), Failure>> {
        let family = self.family()?;
        match self.with(|channel| channel.command(family.id, payload))? {
            Err(failure) if failure.errno == libc::EPERM => match self.namespace.and_then(broker::of) {
                Some(broker) => broker.command(payload),
                None => Ok(Err(failure)),
            },
            answer => Ok(answer),
        }
    }

    /// GET_ADDR: a connection's list of local addresses. Empty on kernels that cannot list them (before 6.10); on others
    /// refused under the in-kernel path manager.
    pub fn local_addresses(&self, token: u32) -> Result<std::result::Result<Vec<Address>, Failure>> {
        self.dump_addresses(&encode_get_addr(token))
    }

    /// GET_ADDR: the endpoints of the in-kernel path manager, in the order of their ids.
    pub fn endpoints(&self) -> Result<std::result::Result<Vec<Address>, Failure>> {
        self.dump_addresses(&encode_get_endpoints())
    }

    fn dump_addresses(&self, request: &[u8]) -> Result<std::result::Result<Vec<Address>, Failure>> {
        let family = self.family()?;
        let mut listed = Vec::new();
        let dumped = self.with(|channel| {
            channel.dump(family.id, request, |payload| {
                // To the kernel an IPv4 address and its IPv4-mapped form are the same.
                listed.extend(decode_get_addr(payload).map(|a| Address { ip: a.ip.to_canonical(), ..a }));
            })
        })?;
        Ok(dumped.map(|()| listed))
    }

    /// GET_LIMITS.
    pub fn limits(&self) -> Result<std::result::Result<Limits, Failure>> {
        let family = self.family()?;
        let reply = self.with(|channel| channel.request(family.id, &encode_get_limits()))?;
        let bad = || Failure { errno: libc::EBADMSG, text: None };
        Ok(reply.and_then(|reply| decode_limits(&reply).ok_or_else(bad)))
    }
}
