//! Whether a command of a caller may be sent: the connection is his, and he could not do harm with it to others.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::rules::Allowed;
use crate::abi::uapi::pm::{FLAG_BACKUP, FLAG_SIGNAL};
use crate::namespace::Namespace;
use crate::netlink::broker::codec::Denial;
use crate::netlink::diag::{self, Entry};
use crate::netlink::pm::codec::Command;
use crate::netlink::pm::Address;
use crate::netlink::{route, Failure};
use crate::sys;
use crate::sys::lock::lock;

/// A refusal in words of the broker's own.
pub fn refusal(text: impl Into<String>) -> Denial {
    Denial { errno: libc::EACCES, refused: true, text: format!("the broker refuses this: {}", text.into()) }
}

/// What failed here, not what was asked for.
pub fn trouble(errno: i32, text: impl Into<String>) -> Denial {
    Denial { errno, refused: true, text: format!("the broker failed: {}", text.into()) }
}

/// What the kernel says.
pub fn refused_by_kernel(failure: Failure) -> Denial {
    Denial { errno: failure.errno, refused: false, text: failure.text.unwrap_or_default() }
}

/// The connection with a token, as inet_diag tells it, without its lock.
pub fn connection(namespace: &Namespace, token: u32) -> Result<Option<Entry>, Denial> {
    let found = diag::look_up_tokens(&mut lock(&namespace.diag), &[token]);
    let found =
        found.map_err(|failure| trouble(failure.errno, format!("inet_diag: {}", failure.describe())))?;
    Ok(found.into_iter().next().flatten())
}

/// The first port that an ordinary user may bind.
#[derive(Debug)]
pub struct LowPorts(io::Result<File>);

impl LowPorts {
    pub fn open() -> LowPorts {
        LowPorts(File::open("/proc/sys/net/ipv4/ip_unprivileged_port_start"))
    }

    fn first(&self) -> u16 {
        const DEFAULT: u16 = 1024;
        let Ok(file) = &self.0 else { return DEFAULT };
        let mut text = [0; 16];
        let length = file.read_at(&mut text, 0).unwrap_or(0);
        String::from_utf8_lossy(&text[..length]).trim().parse().unwrap_or(DEFAULT)
    }

    fn check(&self, port: u16) -> Result<(), Denial> {
        let first = self.first();
        if port == 0 || port >= first {
            return Ok(());
        }
        Err(refusal(format!("port {port} is below net.ipv4.ip_unprivileged_port_start, {first}")))
    }
}

/// What a command is checked against.
pub struct Checks<'a> {
    pub namespace: &'a Arc<Namespace>,
    pub allowed: &'a Allowed,
    pub ports: &'a LowPorts,
    /// The connection of the command.
    pub connection: Entry,
    /// The addresses that its peer has announced, port 0 for the peer's own port.
    pub announced: &'a [SocketAddr],
}

impl Checks<'_> {
    /// The command as it is sent.
    pub fn check(&self, command: Command) -> Result<Command, Denial> {
        match command {
            Command::Create { token, local, remote } => {
                self.check_local(&local)?;
                self.ports.check(local.port)?;
                self.check_interface(local.interface)?;
                self.check_remote(&remote)?;
                let local = Address { flags: local.flags & FLAG_BACKUP, ..local };
                Ok(Command::Create { token, local, remote })
            }
            Command::Destroy { .. } | Command::Remove { .. } => Ok(command),
            // Of a subflow that does not belong to the connection the kernel knows nothing.
            Command::SetFlags { token, local, remote } => {
                let local = Address { flags: local.flags & FLAG_BACKUP, ..local };
                Ok(Command::SetFlags { token, local, remote })
            }
            Command::Announce { token, address } => {
                self.check_local(&address)?;
                self.ports.check(address.port)?;
                // To the route look-up an address of all zeros is local.
                if address.ip.to_canonical().is_unspecified() || !self.is_local(&address) {
                    return Err(refusal(format!(
                        "{} is not an address of this host: the peer would connect to somebody else",
                        address.ip
                    )));
                }
                let address = Address { flags: FLAG_SIGNAL, ..address };
                Ok(Command::Announce { token, address })
            }
        }
    }

    /// Whether it is an address of this host, by the route to it.
    fn is_local(&self, address: &Address) -> bool {
        let route =
            route::look_up(&mut lock(&self.namespace.route), address.ip.to_canonical(), address.interface);
        route.is_ok_and(|route| route.is_local)
    }

    fn check_local(&self, local: &Address) -> Result<(), Denial> {
        if self.allowed.is_local_allowed(local.ip) {
            return Ok(());
        }
        Err(refusal(format!("its rules do not allow the local address {}", local.ip)))
    }

    /// Binding to an interface goes past the routes, and past the addresses that they choose.
    fn check_interface(&self, index: u32) -> Result<(), Denial> {
        if index == 0 || index == self.connection.tuple.interface {
            return Ok(());
        }
        let name = sys::interface_name(lock(&self.namespace.route).fd(), index);
        match name {
            Ok(name) if self.allowed.interfaces.contains(&name) => Ok(()),
            Ok(name) => Err(refusal(format!("its rules do not allow binding to the interface {name}"))),
            Err(error) => Err(trouble(error.raw_os_error().unwrap_or(libc::ENODEV), "no such interface")),
        }
    }

    /// Whether an address means another host to each host, or none: whoever connects to it does not reach the peer, unless
    /// the connection is a loopback one itself.
    fn is_nobody_elses(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        let is_broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
        ip.is_unspecified()
            || ip.is_multicast()
            || is_broadcast
            || ip.is_loopback() && !self.connection.tuple.remote.ip().to_canonical().is_loopback()
    }

    /// Anything else would make a port scanner of it.
    fn check_remote(&self, remote: &Address) -> Result<(), Denial> {
        let peer = self.connection.tuple.remote;
        let wanted = (remote.ip.to_canonical(), remote.port);
        let is_known = |known: &SocketAddr| {
            let port = if known.port() == 0 { peer.port() } else { known.port() };
            (known.ip().to_canonical(), port) == wanted
        };
        // A peer that works together with a user of this host may announce anything.
        let is_announced = || !self.is_nobody_elses(remote.ip) && self.announced.iter().any(is_known);
        if is_known(&peer) || is_announced() || self.allowed.is_remote_allowed(remote.ip) {
            return Ok(());
        }
        Err(refusal(format!(
            "{} is neither the peer's address and port nor announced by it, and its rules do not allow others",
            SocketAddr::new(remote.ip, remote.port)
        )))
    }
}
