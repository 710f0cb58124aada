//! A frame as a TCP segment: link header, IP header, TCP header.

use std::net::{IpAddr, Ipv6Addr};

/// LINKTYPE_*, <https://www.tcpdump.org/linktypes.html>.
mod link {
    pub const NULL: i32 = 0;
    pub const ETHERNET: i32 = 1;
    /// What some systems write for RAW.
    pub const RAW_BSD: i32 = 12;
    pub const RAW_OPENBSD: i32 = 14;
    pub const RAW: i32 = 101;
    pub const LOOP: i32 = 108;
    pub const LINUX_SLL: i32 = 113;
    pub const IPV4: i32 = 228;
    pub const IPV6: i32 = 229;
    pub const LINUX_SLL2: i32 = 276;
}

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// 802.1Q, 802.1ad, and what was used before the latter.
const ETHERTYPE_VLANS: [u16; 3] = [0x8100, 0x88a8, 0x9100];

const TCP: u8 = 6;
/// The longest segment that is believed. The longest that Linux sends (BIG TCP) has 512 KiB.
const LONGEST: usize = 1 << 24;
/// IPv6 extension headers: hop by hop, routing, destination options; fragment.
const EXTENSIONS: [u8; 3] = [0, 43, 60];
const FRAGMENT: u8 = 44;

/// An address and a port. IPv4 is mapped, so that all ends have one form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct End {
    pub address: [u8; 16],
    pub port: u16,
}

impl End {
    /// As text. An IPv6 packet with a mapped IPv4 address does not occur on a wire.
    pub fn ip(&self) -> IpAddr {
        Ipv6Addr::from(self.address).to_canonical()
    }
}

/// TCP flags.
pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// How a Linux cooked capture says which way a packet went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Unknown,
    In,
    Out,
}

#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    pub source: End,
    pub destination: End,
    pub sequence: u32,
    pub acknowledgment: u32,
    pub flags: u8,
    /// As it was sent.
    pub payload_length: u32,
    /// As much as was captured.
    pub payload: &'a [u8],
    pub options: &'a [u8],
    /// Whether a snap length cut the options.
    pub options_cut: bool,
    pub way: Way,
}

/// What a frame is.
#[derive(Debug, Clone, Copy)]
pub enum Kind<'a> {
    Segment(Segment<'a>),
    /// The second or a later fragment, or a part of TCP's header.
    Fragment,
    /// Cut so short that TCP's header is incomplete.
    Cut,
    /// Not TCP over IP.
    Other,
    /// A link type that is not known here.
    UnknownLink,
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Decodes a frame that was `length` bytes long, of which `frame` was captured.
pub fn decode(link_type: i32, frame: &[u8], length: usize) -> Kind<'_> {
    match ip_of(link_type, frame) {
        Ok((at, way)) => {
            let packet = frame.get(at..).unwrap_or_default();
            match packet.first().map(|first| first >> 4) {
                Some(4) => ipv4(packet, length - at, way).unwrap_or(Kind::Cut),
                Some(6) => ipv6(packet, length - at, way).unwrap_or(Kind::Cut),
                Some(_) => Kind::Other,
                None => Kind::Cut,
            }
        }
        Err(kind) => kind,
    }
}

/// Where the IP header begins, and which way the packet went. Its first byte says which IP it is.
fn ip_of(link_type: i32, frame: &[u8]) -> Result<(usize, Way), Kind<'static>> {
    let way = |kind: Option<u16>| match kind {
        Some(4) => Way::Out,
        Some(0) => Way::In,
        _ => Way::Unknown,
    };
    match link_type {
        link::ETHERNET => Ok((ethernet(frame, 12)?, Way::Unknown)),
        link::LINUX_SLL => Ok((ethernet(frame, 14)?, way(be16(frame, 0)))),
        link::LINUX_SLL2 => match be16(frame, 0) {
            Some(ETHERTYPE_IPV4 | ETHERTYPE_IPV6) => {
                Ok((20, way(frame.get(10).map(|kind| u16::from(*kind)))))
            }
            Some(_) => Err(Kind::Other),
            None => Err(Kind::Cut),
        },
        link::RAW | link::RAW_BSD | link::RAW_OPENBSD | link::IPV4 | link::IPV6 => Ok((0, Way::Unknown)),
        link::NULL | link::LOOP => Ok((4, Way::Unknown)),
        _ => Err(Kind::UnknownLink),
    }
}

/// Where IP begins behind an Ethernet type at `at` and tags of VLANs.
fn ethernet(frame: &[u8], mut at: usize) -> Result<usize, Kind<'static>> {
    loop {
        match be16(frame, at) {
            Some(ETHERTYPE_IPV4 | ETHERTYPE_IPV6) => return Ok(at + 2),
            Some(kind) if ETHERTYPE_VLANS.contains(&kind) => at += 4,
            Some(_) => return Err(Kind::Other),
            None => return Err(Kind::Cut),
        }
    }
}

fn mapped(address: &[u8]) -> Option<[u8; 16]> {
    let mut mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0];
    mapped[12..].copy_from_slice(address.get(..4)?);
    Some(mapped)
}

/// `None` if what was captured ends too early. `length` is that of the packet and what is behind it.
fn ipv4(packet: &[u8], length: usize, way: Way) -> Option<Kind<'_>> {
    let header = usize::from(packet.first()? & 15) * 4;
    let total = usize::from(be16(packet, 2)?);
    if *packet.get(9)? != TCP || header < 20 {
        return Some(Kind::Other);
    }
    let fragment = be16(packet, 6)?;
    if fragment & 0x1fff != 0 {
        return Some(Kind::Fragment);
    }
    // 0: a packet of more than 64 KiB, or one that the card was to split.
    let total = if total == 0 { length } else { total.min(length) };
    let (source, destination) = (mapped(packet.get(12..16)?)?, mapped(packet.get(16..20)?)?);
    tcp(packet.get(..total.min(packet.len()))?, header, total, source, destination, way)
}

fn ipv6(packet: &[u8], length: usize, way: Way) -> Option<Kind<'_>> {
    let (mut next, mut at) = (*packet.get(6)?, 40);
    let payload = usize::from(be16(packet, 4)?);
    // 0: a jumbogram, whose length is in an option.
    let total = if payload == 0 { length } else { (40 + payload).min(length) };
    while next != TCP {
        if next == FRAGMENT {
            if be16(packet, at + 2)? & 0xfff8 != 0 {
                return Some(Kind::Fragment);
            }
            (next, at) = (*packet.get(at)?, at + 8);
        } else if EXTENSIONS.contains(&next) {
            (next, at) = (*packet.get(at)?, at + 8 * (1 + usize::from(*packet.get(at + 1)?)));
        } else {
            return Some(Kind::Other);
        }
    }
    let source = packet.get(8..24)?.try_into().ok()?;
    let destination = packet.get(24..40)?.try_into().ok()?;
    tcp(packet.get(..total.min(packet.len()))?, at, total, source, destination, way)
}

/// `total` is where the IP packet ends, as it was sent; `packet` may end earlier.
fn tcp(
    packet: &[u8],
    at: usize,
    total: usize,
    source: [u8; 16],
    destination: [u8; 16],
    way: Way,
) -> Option<Kind<'_>> {
    let header = packet.get(at..at + 20)?;
    let offset = usize::from(header.get(12)? >> 4) * 4;
    let data = at + offset;
    if offset < 20 || data > total || total - data > LONGEST {
        return Some(Kind::Other);
    }
    let options = packet.get(at + 20..data.min(packet.len()))?;
    Some(Kind::Segment(Segment {
        source: End { address: source, port: be16(header, 0)? },
        destination: End { address: destination, port: be16(header, 2)? },
        sequence: be32(header, 4)?,
        acknowledgment: be32(header, 8)?,
        flags: *header.get(13)?,
        payload_length: u32::try_from(total - data).unwrap_or(u32::MAX),
        payload: packet.get(data..).unwrap_or_default(),
        options,
        options_cut: data > packet.len(),
        way,
    }))
}
