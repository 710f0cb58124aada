//! Commands of `mptcp_pm` for the in-kernel path manager as bytes: the endpoints and the limits of a network namespace.

use crate::abi::bytes;
use crate::abi::uapi::pm;
use crate::netlink::codec::{find, push_attribute, push_nested};
use crate::netlink::pm::codec::{message, Address};

/// The limits of the in-kernel path manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Subflows of a connection beside the initial one, whoever opens them.
    pub subflows: u32,
    /// Addresses of the peer's that are accepted, so that subflows are opened to them.
    pub add_addr_accepted: u32,
}

/// ADD_ADDR. An id of 0 leaves the choice to the kernel. Flags that it does not know are dropped.
pub fn encode_add(endpoint: &Address) -> Vec<u8> {
    message(pm::CMD_ADD_ADDR, pm::VERSION, |bytes| endpoint.push(bytes, pm::ATTR_ADDR))
}

/// DEL_ADDR. The kernel goes by the id; without one it closes initial subflows and keeps the endpoint.
pub fn encode_delete(endpoint: &Address) -> Vec<u8> {
    message(pm::CMD_DEL_ADDR, pm::VERSION, |bytes| endpoint.push(bytes, pm::ATTR_ADDR))
}

/// SET_FLAGS of an endpoint by its id: backup and fullmesh both become what `flags` says.
pub fn encode_set_flags(id: u8, flags: u32) -> Vec<u8> {
    message(pm::CMD_SET_FLAGS, pm::VERSION, |bytes| {
        push_nested(bytes, pm::ATTR_ADDR, |bytes| {
            push_attribute(bytes, pm::ADDR_ID, &[id]);
            push_attribute(bytes, pm::ADDR_FLAGS, &flags.to_ne_bytes());
        });
    })
}

/// FLUSH_ADDRS: removes every endpoint.
pub fn encode_flush() -> Vec<u8> {
    message(pm::CMD_FLUSH_ADDRS, pm::VERSION, |_| {})
}

/// GET_ADDR of the namespace, as a dump. No privilege.
pub fn encode_get_endpoints() -> Vec<u8> {
    message(pm::CMD_GET_ADDR, pm::VERSION, |_| {})
}

/// SET_LIMITS; a limit that is absent stays.
pub fn encode_set_limits(subflows: Option<u32>, add_addr_accepted: Option<u32>) -> Vec<u8> {
    let given = [(pm::ATTR_SUBFLOWS, subflows), (pm::ATTR_RCV_ADD_ADDRS, add_addr_accepted)];
    message(pm::CMD_SET_LIMITS, pm::VERSION, |bytes| {
        for (kind, value) in given.into_iter().filter_map(|(kind, value)| Some((kind, value?))) {
            push_attribute(bytes, kind, &value.to_ne_bytes());
        }
    })
}

/// GET_LIMITS. No privilege.
pub fn encode_get_limits() -> Vec<u8> {
    message(pm::CMD_GET_LIMITS, pm::VERSION, |_| {})
}

/// The reply.
pub fn decode_limits(payload: &[u8]) -> Option<Limits> {
    let body = payload.get(4..)?;
    let read = |kind| bytes::u32(find(body, kind)?, 0);
    Some(Limits { subflows: read(pm::ATTR_SUBFLOWS)?, add_addr_accepted: read(pm::ATTR_RCV_ADD_ADDRS)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::pm::codec::decode_get_addr;

    #[test]
    fn an_endpoint_reads_back() {
        let endpoint = Address {
            id: 9,
            flags: pm::FLAG_SIGNAL | pm::FLAG_LAMINAR,
            interface: 2,
            ..Address::new("[fd00::1]:7000".parse().unwrap())
        };
        for bytes in [encode_add(&endpoint), encode_delete(&endpoint)] {
            assert_eq!(decode_get_addr(&bytes), Some(endpoint));
        }
        assert_eq!(encode_add(&endpoint)[..4], [1, 1, 0, 0]);
        assert_eq!(encode_delete(&endpoint)[..4], [2, 1, 0, 0]);
    }

    #[test]
    fn flags_that_are_taken_away_are_written_too() {
        let bytes = encode_set_flags(3, 0);
        let inner = find(&bytes[4..], pm::ATTR_ADDR).unwrap();
        assert_eq!(find(inner, pm::ADDR_FLAGS), Some(&[0; 4][..]));
        assert_eq!(find(inner, pm::ADDR_ID), Some(&[3][..]));
    }

    #[test]
    fn limits_read_back_and_what_is_cut_does_not() {
        let bytes = encode_set_limits(Some(8), Some(2));
        assert_eq!(decode_limits(&bytes), Some(Limits { subflows: 8, add_addr_accepted: 2 }));
        for length in 0..bytes.len() {
            assert_eq!(decode_limits(&bytes[..length]), None);
        }
        assert_eq!(decode_limits(&encode_set_limits(Some(8), None)), None);
        assert_eq!(encode_set_limits(None, None).len(), 4);
    }

    #[test]
    fn every_flag_has_one_name() {
        let all = pm::FLAGS.iter().fold(0, |all, (_, flag)| {
            assert_eq!(all & flag, 0);
            all | flag
        });
        assert_eq!(all, 63);
    }
}
