//! Endpoints: `struct sockaddr` bytes to and from [`SocketAddr`], and what a user writes as a host and a port.
//! Byte order is dealt with here and nowhere else.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use crate::abi::{bytes, ranges};
use crate::error::{Error, Result};

/// Decodes a `sockaddr_in` or `sockaddr_in6`; `None` for another family or too few bytes.
pub fn decode_sockaddr(bytes: &[u8]) -> Option<SocketAddr> {
    let port = bytes::be16(bytes, 2)?;
    match i32::from(bytes::u16(bytes, 0)?) {
        libc::AF_INET => Some(SocketAddr::V4(SocketAddrV4::new(bytes::ipv4(bytes, 4)?, port))),
        libc::AF_INET6 => Some(SocketAddr::V6(SocketAddrV6::new(
            bytes::ipv6(bytes, 8)?,
            port,
            u32::from_be(bytes::u32(bytes, 4)?),
            bytes::u32(bytes, 24)?,
        ))),
        _ => None,
    }
}

/// Sizes of `struct sockaddr_in` and `struct sockaddr_in6`.
pub const SOCKADDR_IN: usize = size_of::<libc::sockaddr_in>();
pub const SOCKADDR_IN6: usize = size_of::<libc::sockaddr_in6>();

/// A `sockaddr_in` or `sockaddr_in6`, as long as its structure.
pub fn encode_sockaddr(address: SocketAddr) -> Vec<u8> {
    let mut bytes = vec![0; if address.is_ipv4() { SOCKADDR_IN } else { SOCKADDR_IN6 }];
    bytes::put(&mut bytes, 0, &u16::from(family(address.ip())).to_ne_bytes());
    bytes::put(&mut bytes, 2, &address.port().to_be_bytes());
    match address {
        SocketAddr::V4(v4) => bytes::put(&mut bytes, 4, &v4.ip().octets()),
        SocketAddr::V6(v6) => {
            bytes::put(&mut bytes, 4, &v6.flowinfo().to_be_bytes());
            bytes::put(&mut bytes, 8, &v6.ip().octets());
            bytes::put(&mut bytes, 24, &v6.scope_id().to_ne_bytes());
        }
    }
    bytes
}

/// AF_INET or AF_INET6.
pub fn family(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

/// fe80::/10: such an address means something only together with an interface.
pub fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.segments()[0] & 0xffc0 == 0xfe80)
}

/// The address with its interface, where it is a link-local one that came without.
pub fn with_scope(address: SocketAddr, interface: u32) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) if v6.scope_id() == 0 && is_link_local(address.ip()) => {
            SocketAddr::V6(SocketAddrV6::new(*v6.ip(), v6.port(), v6.flowinfo(), interface))
        }
        other => other,
    }
}

/// The interface that an IPv6 address names after `%`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    Index(u32),
    Name(String),
}

/// A host and a port as a user gives them. Names are not resolved: a subflow has one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub ip: IpAddr,
    pub port: u16,
    pub scope: Option<Scope>,
}

impl Endpoint {
    /// Parses an IP address literal, `%interface` allowed after an IPv6 one.
    pub fn parse(host: &str, port: u16) -> Result<Endpoint> {
        let (literal, scope) = match host.split_once('%') {
            None => (host, None),
            Some((literal, scope)) if !scope.is_empty() => {
                (literal, Some(scope.parse().map_or_else(|_| Scope::Name(scope.to_owned()), Scope::Index)))
            }
            Some(_) => return Err(Error::value(format!("{host:?} must name an interface after '%'"))),
        };
        let ip: IpAddr = literal.parse().map_err(|_| {
            Error::value(format!("{host:?} must be an IPv4 or IPv6 address: host names are not resolved"))
        })?;
        if scope.is_some() && !matches!(ip, IpAddr::V6(_)) {
            return Err(Error::value(format!(
                "{host:?}: only an IPv6 address can have an interface after '%'"
            )));
        }
        Ok(Endpoint { ip, port, scope })
    }

    /// As the socket APIs give an end: a literal, where '' is any address, a port, and the index of an interface or 0,
    /// which is for an address that names none itself.
    pub fn of_parts(host: &str, port: i64, scope_id: i64) -> Result<Endpoint> {
        let (port, scope_id) = (ranges::port(port)?, ranges::scope_id(scope_id)?);
        let mut endpoint = Endpoint::parse(if host.is_empty() { "0.0.0.0" } else { host }, port)?;
        if endpoint.scope.is_none() && scope_id != 0 && endpoint.ip.is_ipv6() {
            endpoint.scope = Some(Scope::Index(scope_id));
        }
        Ok(endpoint)
    }

    /// Without an interface that is known by its name only.
    pub fn socket_address(&self) -> SocketAddr {
        match (self.ip, &self.scope) {
            (IpAddr::V6(ip), Some(Scope::Index(index))) => SocketAddrV6::new(ip, self.port, 0, *index).into(),
            _ => SocketAddr::new(self.ip, self.port),
        }
    }

    pub fn is_unspecified(&self) -> bool {
        self.ip.is_unspecified()
    }
}

/// The same end, as an IPv4 one where it is IPv4-mapped. An IPv6 end keeps its scope.
pub fn unmapped(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(v4) => SocketAddr::V4(SocketAddrV4::new(v4, address.port())),
        IpAddr::V6(_) => address,
    }
}

/// The same end, without flow and interface.
pub fn without_scope(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port())
}

/// IPv4 as IPv6 sockets see it: `::ffff:a.b.c.d`.
pub fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockaddrs_decode_by_their_own_family() {
        let mut v4 = [0u8; 128];
        v4[..8].copy_from_slice(&[2, 0, 0x13, 0x88, 10, 0, 1, 2]);
        assert_eq!(decode_sockaddr(&v4), Some("10.0.1.2:5000".parse().unwrap()));
        let mut v6 = [0u8; 128];
        v6[0] = 10;
        v6[2..4].copy_from_slice(&[0x13, 0x88]);
        v6[8] = 0xfe;
        v6[9] = 0x80;
        v6[23] = 1;
        v6[24] = 3;
        assert_eq!(decode_sockaddr(&v6).unwrap().to_string(), "[fe80::1%3]:5000");
        assert_eq!(encode_sockaddr(decode_sockaddr(&v6).unwrap()), v6[..SOCKADDR_IN6]);
        assert_eq!(encode_sockaddr(decode_sockaddr(&v4).unwrap()), v4[..SOCKADDR_IN]);
        assert_eq!(decode_sockaddr(&v6[..20]), None);
        assert_eq!(decode_sockaddr(&[0; 128]), None);
        assert_eq!(decode_sockaddr(&[]), None);
    }

    #[test]
    fn literals_parse_and_names_do_not() {
        assert_eq!(Endpoint::parse("10.0.1.2", 1).unwrap().ip.to_string(), "10.0.1.2");
        assert_eq!(Endpoint::parse("fe80::1%4", 1).unwrap().scope, Some(Scope::Index(4)));
        assert_eq!(Endpoint::parse("fe80::1%eth0", 1).unwrap().scope, Some(Scope::Name("eth0".into())));
        for bad in ["", "localhost", "10.0.1", "10.0.1.2%eth0", "fe80::1%", "1.2.3.4:80", "[::1]"] {
            assert!(matches!(Endpoint::parse(bad, 1), Err(Error::Value { .. })), "{bad}");
        }
    }

    #[test]
    fn parts_make_an_endpoint() {
        let of =
            |host, port, scope| Endpoint::of_parts(host, port, scope).unwrap().socket_address().to_string();
        assert_eq!(of("", 5, 0), "0.0.0.0:5");
        assert_eq!(of("fe80::1", 5, 3), "[fe80::1%3]:5");
        assert_eq!(of("fe80::1%2", 5, 3), "[fe80::1%2]:5");
        for (host, port, scope) in [("::1", -1, 0), ("::1", 65536, 0), ("::1", 1, -1), ("::1", 1, 1 << 32)] {
            assert!(
                matches!(Endpoint::of_parts(host, port, scope), Err(Error::Value { .. })),
                "{port} {scope}"
            );
        }
    }

    #[test]
    fn only_link_local_addresses_take_a_scope() {
        let with = |text: &str| with_scope(text.parse().unwrap(), 7).to_string();
        assert_eq!(with("[fe80::1]:1"), "[fe80::1%7]:1");
        assert_eq!(with("[fe80::1%2]:1"), "[fe80::1%2]:1");
        assert_eq!(with("[fd00::1]:1"), "[fd00::1]:1");
        assert_eq!(with("10.0.0.1:1"), "10.0.0.1:1");
    }
}
