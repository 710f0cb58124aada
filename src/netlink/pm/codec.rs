//! Commands of the generic netlink family `mptcp_pm` as bytes, `<linux/mptcp_pm.h>`: those that name a connection by its
//! token.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::abi::address;
use crate::abi::bytes;
use crate::abi::uapi::{ctrl, pm};
use crate::netlink::codec::{attributes, find, push_attribute, push_nested};

/// The numbers that the kernel gave the family and its event group. They hold for the whole host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Family {
    pub id: u16,
    pub event_group: u32,
}

/// `struct genlmsghdr`, and the attributes that `push` appends.
pub(super) fn message(command: u8, version: u8, push: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128);
    bytes.extend_from_slice(&[command, version, 0, 0]);
    push(&mut bytes);
    bytes
}

/// CTRL_CMD_GETFAMILY of the family.
pub fn encode_get_family() -> Vec<u8> {
    let name = [pm::NAME.as_bytes(), &[0]].concat();
    message(ctrl::CMD_GETFAMILY, ctrl::VERSION, |bytes| push_attribute(bytes, ctrl::ATTR_FAMILY_NAME, &name))
}

/// The reply.
pub fn decode_family(payload: &[u8]) -> Option<Family> {
    let body = payload.get(4..)?;
    let id = bytes::u16(find(body, ctrl::ATTR_FAMILY_ID)?, 0)?;
    let event_group = attributes(find(body, ctrl::ATTR_MCAST_GROUPS)?).find_map(|(_, group)| {
        let name = find(group, ctrl::ATTR_MCAST_GRP_NAME)?;
        let name = name.split(|byte| *byte == 0).next()?;
        (name == pm::EVENT_GROUP.as_bytes()).then(|| bytes::u32(find(group, ctrl::ATTR_MCAST_GRP_ID)?, 0))?
    })?;
    Some(Family { id, event_group })
}

/// A local or remote address of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    pub ip: IpAddr,
    pub port: u16,
    pub id: u8,
    pub flags: u32,
    pub interface: u32,
}

impl Address {
    pub fn new(endpoint: SocketAddr) -> Address {
        Address { ip: endpoint.ip(), port: endpoint.port(), id: 0, flags: 0, interface: 0 }
    }

    /// Appends it as an attribute; what is 0 is left out, as the kernel's own tools do.
    pub(super) fn push(&self, bytes: &mut Vec<u8>, kind: u16) {
        push_nested(bytes, kind, |bytes| {
            push_attribute(bytes, pm::ADDR_FAMILY, &u16::from(address::family(self.ip)).to_ne_bytes());
            match self.ip {
                IpAddr::V4(v4) => push_attribute(bytes, pm::ADDR_ADDR4, &v4.octets()),
                IpAddr::V6(v6) => push_attribute(bytes, pm::ADDR_ADDR6, &v6.octets()),
            }
            if self.id != 0 {
                push_attribute(bytes, pm::ADDR_ID, &[self.id]);
            }
            if self.port != 0 {
                // In host byte order, unlike in the events.
                push_attribute(bytes, pm::ADDR_PORT, &self.port.to_ne_bytes());
            }
            let others = [(pm::ADDR_FLAGS, self.flags), (pm::ADDR_IF_IDX, self.interface)];
            for (kind, value) in others.into_iter().filter(|(_, value)| *value != 0) {
                push_attribute(bytes, kind, &value.to_ne_bytes());
            }
        });
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Address> {
        let ip = match (find(bytes, pm::ADDR_ADDR4), find(bytes, pm::ADDR_ADDR6)) {
            (Some(v4), _) => IpAddr::V4(bytes::ipv4(v4, 0)?),
            (None, v6) => IpAddr::V6(bytes::ipv6(v6?, 0)?),
        };
        let u32_of = |kind| find(bytes, kind).and_then(|value| bytes::u32(value, 0));
        Some(Address {
            ip,
            port: find(bytes, pm::ADDR_PORT).and_then(|value| bytes::u16(value, 0)).unwrap_or(0),
            id: find(bytes, pm::ADDR_ID).and_then(|value| bytes::u8(value, 0)).unwrap_or(0),
            flags: u32_of(pm::ADDR_FLAGS).unwrap_or(0),
            interface: u32_of(pm::ADDR_IF_IDX).unwrap_or(0),
        })
    }
}

fn with_token(command: u8, token: u32, push: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    message(command, pm::VERSION, |bytes| {
        push(bytes);
        push_attribute(bytes, pm::ATTR_TOKEN, &token.to_ne_bytes());
    })
}

fn of_subflow(command: u8, token: u32, local: &Address, remote: &Address) -> Vec<u8> {
    with_token(command, token, |bytes| {
        local.push(bytes, pm::ATTR_ADDR);
        remote.push(bytes, pm::ATTR_ADDR_REMOTE);
    })
}

/// SUBFLOW_CREATE: sends the SYN of a new subflow. Success means no more than that.
pub fn encode_create(token: u32, local: &Address, remote: &Address) -> Vec<u8> {
    of_subflow(pm::CMD_SUBFLOW_CREATE, token, local, remote)
}

/// SUBFLOW_DESTROY: closes a subflow, the initial one by a FIN, any other at once. Needs both ports.
pub fn encode_destroy(token: u32, local: &Address, remote: &Address) -> Vec<u8> {
    of_subflow(pm::CMD_SUBFLOW_DESTROY, token, local, remote)
}

/// SUBFLOW_DESTROY of nothing. The kernel refuses it after checking the privilege.
pub fn encode_destroy_nothing() -> Vec<u8> {
    message(pm::CMD_SUBFLOW_DESTROY, pm::VERSION, |_| {})
}

/// SET_FLAGS of one subflow: MP_PRIO by the backup flag of `local`. Needs both ports.
pub fn encode_set_flags(token: u32, local: &Address, remote: &Address) -> Vec<u8> {
    of_subflow(pm::CMD_SET_FLAGS, token, local, remote)
}

/// ANNOUNCE: sends ADD_ADDR. Needs an address id and the flag SIGNAL.
pub fn encode_announce(token: u32, address: &Address) -> Vec<u8> {
    with_token(pm::CMD_ANNOUNCE, token, |bytes| address.push(bytes, pm::ATTR_ADDR))
}

/// REMOVE: frees an address id and sends RM_ADDR for it.
pub fn encode_remove(token: u32, id: u8) -> Vec<u8> {
    with_token(pm::CMD_REMOVE, token, |bytes| push_attribute(bytes, pm::ATTR_LOC_ID, &[id]))
}

/// A command that changes something of one connection, as others may ask for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Create { token: u32, local: Address, remote: Address },
    Destroy { token: u32, local: Address, remote: Address },
    SetFlags { token: u32, local: Address, remote: Address },
    Announce { token: u32, address: Address },
    Remove { token: u32, id: u8 },
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |address: &Address| SocketAddr::new(address.ip, address.port);
        let of_subflow = |f: &mut fmt::Formatter<'_>, name, token, local, remote| {
            write!(f, "{name} token {token} {} -> {}", end(local), end(remote))
        };
        match self {
            Command::Create { token, local, remote } => of_subflow(f, "SUBFLOW_CREATE", token, local, remote),
            Command::Destroy { token, local, remote } => {
                of_subflow(f, "SUBFLOW_DESTROY", token, local, remote)
            }
            Command::SetFlags { token, local, remote } => of_subflow(f, "SET_FLAGS", token, local, remote),
            Command::Announce { token, address } => {
                write!(f, "ANNOUNCE token {token} {} id {}", end(address), address.id)
            }
            Command::Remove { token, id } => write!(f, "REMOVE token {token} id {id}"),
        }
    }
}

impl Command {
    pub fn token(&self) -> u32 {
        match self {
            Command::Create { token, .. }
            | Command::Destroy { token, .. }
            | Command::SetFlags { token, .. }
            | Command::Announce { token, .. }
            | Command::Remove { token, .. } => *token,
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        match self {
            Command::Create { token, local, remote } => encode_create(*token, local, remote),
            Command::Destroy { token, local, remote } => encode_destroy(*token, local, remote),
            Command::SetFlags { token, local, remote } => encode_set_flags(*token, local, remote),
            Command::Announce { token, address } => encode_announce(*token, address),
            Command::Remove { token, id } => encode_remove(*token, *id),
        }
    }

    /// The command in a message of another program; `None` for any other, and for one that lacks something.
    pub fn decode(payload: &[u8]) -> Option<Command> {
        let body = payload.get(4..)?;
        let token = bytes::u32(find(body, pm::ATTR_TOKEN)?, 0)?;
        let local = || Address::decode(find(body, pm::ATTR_ADDR)?);
        let remote = || Address::decode(find(body, pm::ATTR_ADDR_REMOTE)?);
        Some(match bytes::u8(payload, 0)? {
            pm::CMD_SUBFLOW_CREATE => Command::Create { token, local: local()?, remote: remote()? },
            pm::CMD_SUBFLOW_DESTROY => Command::Destroy { token, local: local()?, remote: remote()? },
            pm::CMD_SET_FLAGS => Command::SetFlags { token, local: local()?, remote: remote()? },
            pm::CMD_ANNOUNCE => Command::Announce { token, address: local()? },
            pm::CMD_REMOVE => Command::Remove { token, id: bytes::u8(find(body, pm::ATTR_LOC_ID)?, 0)? },
            _ => return None,
        })
    }
}

/// GET_ADDR of a connection, as a dump: its local addresses and their ids. No privilege. Kernels before 6.10
/// ignore the token and list the in-kernel endpoints.
pub fn encode_get_addr(token: u32) -> Vec<u8> {
    with_token(pm::CMD_GET_ADDR, token, |_| {})
}

/// One message of that dump.
pub fn decode_get_addr(payload: &[u8]) -> Option<Address> {
    Address::decode(find(payload.get(4..)?, pm::ATTR_ADDR)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_back() {
        for text in ["10.0.2.1:12345", "[fd00::1]:0"] {
            let endpoint: SocketAddr = text.parse().unwrap();
            let address = Address { id: 7, flags: pm::FLAG_BACKUP, interface: 3, ..Address::new(endpoint) };
            let bytes = message(pm::CMD_GET_ADDR, 1, |bytes| address.push(bytes, pm::ATTR_ADDR));
            assert_eq!(decode_get_addr(&bytes), Some(address));
            for length in 0..bytes.len() {
                let _ = decode_get_addr(&bytes[..length]);
            }
        }
    }

    #[test]
    fn commands_of_others_read_back() {
        let address = |text: &str| Address { id: 2, ..Address::new(text.parse().unwrap()) };
        let (token, local, remote) = (9, address("10.0.2.1:1"), address("[fd00::2]:2"));
        let commands = [
            Command::Create { token, local, remote },
            Command::Destroy { token, local, remote },
            Command::SetFlags { token, local, remote },
            Command::Announce { token, address: local },
            Command::Remove { token, id: 7 },
        ];
        for command in commands {
            let bytes = command.encode();
            assert_eq!(Command::decode(&bytes), Some(command));
            assert_eq!(command.token(), token);
            for length in 0..bytes.len() {
                let _ = Command::decode(&bytes[..length]);
            }
        }
        assert_eq!(Command::decode(&encode_get_addr(token)), None);
        assert_eq!(Command::decode(&encode_destroy_nothing()), None);
    }

    #[test]
    fn announce_names_the_address_its_id_and_the_token() {
        let address =
            Address { id: 3, flags: pm::FLAG_SIGNAL, ..Address::new("[fd00::1]:7000".parse().unwrap()) };
        let bytes = encode_announce(9, &address);
        assert_eq!(bytes[..4], [pm::CMD_ANNOUNCE, 1, 0, 0]);
        assert_eq!(find(&bytes[4..], pm::ATTR_TOKEN), Some(&9u32.to_ne_bytes()[..]));
        assert_eq!(find(&bytes[4..], pm::ATTR_ADDR).and_then(Address::decode), Some(address));
    }

    #[test]
    fn set_flags_names_both_ends() {
        let local = Address { flags: pm::FLAG_BACKUP, ..Address::new("10.0.2.1:12345".parse().unwrap()) };
        let remote = Address::new("10.0.2.2:5000".parse().unwrap());
        let bytes = encode_set_flags(9, &local, &remote);
        assert_eq!(bytes[..4], [pm::CMD_SET_FLAGS, 1, 0, 0]);
        assert_eq!(find(&bytes[4..], pm::ATTR_ADDR).and_then(Address::decode), Some(local));
        assert_eq!(find(&bytes[4..], pm::ATTR_ADDR_REMOTE).and_then(Address::decode), Some(remote));
    }

    #[test]
    fn create_names_both_ends_and_the_token() {
        let local = Address { id: 1, ..Address::new("10.0.2.1:0".parse().unwrap()) };
        let remote = Address::new("10.0.2.2:5000".parse().unwrap());
        let bytes = encode_create(9, &local, &remote);
        assert_eq!(bytes[..4], [pm::CMD_SUBFLOW_CREATE, 1, 0, 0]);
        assert_eq!(find(&bytes[4..], pm::ATTR_TOKEN), Some(&9u32.to_ne_bytes()[..]));
        let inner = find(&bytes[4..], pm::ATTR_ADDR_REMOTE).unwrap();
        assert_eq!(Address::decode(inner), Some(remote));
    }
}
