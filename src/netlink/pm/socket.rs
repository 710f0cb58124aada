//! The netlink socket for commands of `mptcp_pm` in one network namespace.

use std::sync::{Mutex, OnceLock};

use crate::error::{Error, Result};
use crate::netlink::pm::{self, Address, Family};
use crate::netlink::{Channel, Failure};
use crate::sys::lock::lock;

#[derive(Debug)]
pub struct PmSocket(Mutex<Channel>);

impl PmSocket {
    pub fn new(channel: Channel) -> PmSocket {
        PmSocket(Mutex::new(channel))
    }

    /// The numbers of the generic netlink family `mptcp_pm`, which hold for the whole host.
    pub fn family(&self) -> Result<Family> {
        static FAMILY: OnceLock<Family> = OnceLock::new();
        if let Some(family) = FAMILY.get() {
            return Ok(*family);
        }
        match pm::resolve(&mut lock(&self.0)) {
            Ok(family) => Ok(*FAMILY.get_or_init(|| family)),
            Err(failure) if failure.errno == libc::ENOENT => Err(Error::unsupported(
                "this kernel has no generic netlink family mptcp_pm (CONFIG_MPTCP, Linux 5.19 for its commands)",
            )),
            Err(failure) => Err(Error::os(failure.errno, format!("CTRL_CMD_GETFAMILY: {}", failure.describe()))),
        }
    }

    /// Sends a command; what the kernel refuses is the inner error.
    pub fn command(&self, payload: &[u8]) -> Result<std::result::Result<(), Failure>> {
        let family = self.family()?;
        Ok(lock(&self.0).command(family.id, payload))
    }

    /// GET_ADDR: a connection's list of local addresses. Empty on kernels that cannot tell (before 6.10); refused, where
    /// it can, under the in-kernel path manager.
    pub fn local_addresses(&self, token: u32) -> Result<std::result::Result<Vec<Address>, Failure>> {
        let family = self.family()?;
        let mut listed = Vec::new();
        let dumped = lock(&self.0).dump(family.id, &pm::encode_get_addr(token), |payload| {
            // The kernel takes an IPv4 address and its IPv4-mapped form for the same.
            listed.extend(pm::decode_get_addr(payload).map(|a| Address { ip: a.ip.to_canonical(), ..a }));
        });
        Ok(dumped.map(|()| listed))
    }
}
