//! The size that a frame would have on a wire. A host may hand over many TCP segments as one frame, which only a
//! network card would cut up; the virtio header in front of the frame (PACKET_VNET_HDR) describes them.

/// `struct virtio_net_hdr` of `<linux/virtio_net.h>`, in the machine's byte order.
pub const HEADER: usize = 10;

const FLAGS: usize = 0;
const NEEDS_CSUM: u8 = 1;
const GSO_TYPE: usize = 1;
const GSO_NONE: u8 = 0;
const GSO_UDP_L4: u8 = 5;
/// A flag among the types.
const GSO_ECN: u8 = 0x80;
const HDR_LEN: usize = 2;
const GSO_SIZE: usize = 4;
const CSUM_START: usize = 6;

const ETHERNET: u64 = 14;
const ADDRESSES: usize = 12;
/// The header's length in 32-bit words, in the upper half of this byte.
const TCP_DATA_OFFSET: usize = 12;
const UDP_HEADER: usize = 8;
pub const VLAN_TAG: usize = 4;

const ETHERTYPE: usize = 12;
const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV4_PROTOCOL: usize = 9;
const IGMP: u8 = 2;
const IPV6: u16 = 0x86dd;
const IPV6_NEXT_HEADER: usize = 6;
const IPV6_HEADER: usize = 40;
const HOP_BY_HOP: u8 = 0;
const ICMPV6: u8 = 58;

/// Whether a frame that has a virtio header is one by which hosts find each other and tell of their multicast groups:
/// ARP, IGMP, and ICMPv6 of multicast listener discovery (RFC 2710, RFC 3810) and neighbour discovery (RFC 4861).
/// Kernels send them by themselves, at random moments.
pub fn is_control(frame: &[u8]) -> bool {
    let Some(frame) = frame.get(HEADER..) else { return false };
    let byte = |offset: usize| frame.get(offset).copied();
    let (Some(high), Some(low)) = (byte(ETHERTYPE), byte(ETHERTYPE + 1)) else { return false };
    let packet = ETHERNET as usize;
    match u16::from_be_bytes([high, low]) {
        ARP => true,
        IPV4 => byte(packet + IPV4_PROTOCOL) == Some(IGMP),
        IPV6 => {
            let mut next = byte(packet + IPV6_NEXT_HEADER);
            let mut payload = packet + IPV6_HEADER;
            if next == Some(HOP_BY_HOP) {
                // A report has the router alert option. The length does not count the first eight bytes.
                next = byte(payload);
                payload += 8 + 8 * usize::from(byte(payload + 1).unwrap_or(0));
            }
            next == Some(ICMPV6) && matches!(byte(payload), Some(130..=137 | 143))
        }
        _ => false,
    }
}

/// The size of one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Of all its segments, each with its own headers, Ethernet included.
    pub bytes: u32,
    pub segments: u32,
}

impl Size {
    /// Of a frame that is not counted.
    pub const NOTHING: Size = Size { bytes: 0, segments: 0 };

    /// Without the Ethernet headers.
    pub fn packet_bytes(self) -> u64 {
        u64::from(self.bytes).saturating_sub(ETHERNET * u64::from(self.segments)).max(1)
    }

    /// The size of a frame that has a virtio header.
    pub fn of(frame: &[u8]) -> Size {
        let length = frame.len().saturating_sub(HEADER);
        let single = Size { bytes: length as u32, segments: 1 };
        let (Some(gso_size), Some(headers)) = (u16_at(frame, GSO_SIZE), headers(frame)) else {
            return single;
        };
        let payload = length.saturating_sub(headers);
        if gso_size == 0 || payload <= gso_size {
            return single;
        }
        let segments = payload.div_ceil(gso_size);
        Size { bytes: (length + (segments - 1) * headers) as u32, segments: segments as u32 }
    }
}

fn u16_at(frame: &[u8], offset: usize) -> Option<usize> {
    let bytes = frame.get(offset..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*bytes).into())
}

/// How many bytes of headers each segment has; `None` for a frame that is one segment.
fn headers(frame: &[u8]) -> Option<usize> {
    let kind = frame.get(GSO_TYPE)? & !GSO_ECN;
    if kind == GSO_NONE {
        return None;
    }
    if frame.get(FLAGS)? & NEEDS_CSUM == 0 {
        // How much the kernel keeps in one piece: only a hint, which may include payload.
        return u16_at(frame, HDR_LEN);
    }
    let transport = u16_at(frame, CSUM_START)?;
    let length = match kind {
        GSO_UDP_L4 => UDP_HEADER,
        _ => usize::from(frame.get(HEADER + transport + TCP_DATA_OFFSET)? >> 4) * 4,
    };
    Some(transport + length)
}

/// Puts a VLAN tag, which the kernel keeps apart, back into a frame that has a virtio header.
pub fn insert_vlan(frame: &mut Vec<u8>, tag: [u8; VLAN_TAG]) {
    let place = HEADER + ADDRESSES;
    if frame.len() < place {
        return;
    }
    frame.splice(place..place, tag);
    let fields: &[usize] = if frame[FLAGS] & NEEDS_CSUM == 0 { &[HDR_LEN] } else { &[HDR_LEN, CSUM_START] };
    for field in fields {
        if let Some(value) = u16_at(frame, *field).filter(|value| *value > 0) {
            let moved = (value + VLAN_TAG) as u16;
            frame[*field..field + 2].copy_from_slice(&moved.to_ne_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A frame of TCP over IPv4 with timestamps: 14 + 20 + 32 bytes of headers.
    fn tcp(payload: usize, gso_size: u16, hdr_len: u16) -> Vec<u8> {
        let mut frame = vec![0; HEADER + 66 + payload];
        frame[FLAGS] = NEEDS_CSUM;
        frame[GSO_TYPE] = if gso_size > 0 { 1 } else { GSO_NONE };
        frame[HDR_LEN..HDR_LEN + 2].copy_from_slice(&hdr_len.to_ne_bytes());
        frame[GSO_SIZE..GSO_SIZE + 2].copy_from_slice(&gso_size.to_ne_bytes());
        frame[CSUM_START..CSUM_START + 2].copy_from_slice(&34u16.to_ne_bytes());
        frame[HEADER + 34 + TCP_DATA_OFFSET] = 8 << 4;
        frame
    }

    #[test]
    fn each_segment_has_headers_of_its_own() {
        assert_eq!(Size::of(&tcp(1448, 0, 66)), Size { bytes: 1514, segments: 1 });
        assert_eq!(Size::of(&tcp(1448, 1448, 66)), Size { bytes: 1514, segments: 1 });
        assert_eq!(Size::of(&tcp(1449, 1448, 66)), Size { bytes: 1514 + 67, segments: 2 });
        assert_eq!(Size::of(&tcp(10 * 1448, 1448, 66)), Size { bytes: 10 * 1514, segments: 10 });
        // The hint covers payload that the kernel has copied together.
        assert_eq!(Size::of(&tcp(10 * 1448, 1448, 1000)), Size { bytes: 10 * 1514, segments: 10 });
    }

    #[test]
    fn datagrams_of_udp_segmentation_count_each() {
        let mut frame = vec![0; HEADER + 42 + 3 * 1000];
        frame[FLAGS] = NEEDS_CSUM;
        frame[GSO_TYPE] = GSO_UDP_L4;
        frame[GSO_SIZE..GSO_SIZE + 2].copy_from_slice(&1000u16.to_ne_bytes());
        frame[CSUM_START..CSUM_START + 2].copy_from_slice(&34u16.to_ne_bytes());
        assert_eq!(Size::of(&frame), Size { bytes: 3 * 1042, segments: 3 });
    }

    #[test]
    fn a_vlan_tag_moves_what_is_behind_it() {
        let mut frame = tcp(10, 0, 66);
        let behind = frame[HEADER + ADDRESSES..].to_vec();
        insert_vlan(&mut frame, [0x81, 0, 0, 7]);
        assert_eq!(frame[HEADER + ADDRESSES..][..4], [0x81, 0, 0, 7]);
        assert_eq!(frame[HEADER + ADDRESSES + 4..], behind);
        assert_eq!((u16_at(&frame, HDR_LEN), u16_at(&frame, CSUM_START)), (Some(70), Some(38)));
    }

    /// An Ethernet frame of this type with a virtio header.
    fn packet(ethertype: u16, packet: &[u8]) -> Vec<u8> {
        [&[0; HEADER + ADDRESSES], ethertype.to_be_bytes().as_slice(), packet].concat()
    }

    /// An IPv6 packet.
    fn ipv6(next_header: u8, payload: &[u8]) -> Vec<u8> {
        let mut header = [0; IPV6_HEADER];
        header[IPV6_NEXT_HEADER] = next_header;
        packet(IPV6, &[&header, payload].concat())
    }

    #[test]
    fn frames_by_which_hosts_find_each_other_are_known() {
        let ipv4 = |protocol| {
            let mut header = [0; 20];
            header[IPV4_PROTOCOL] = protocol;
            packet(IPV4, &header)
        };
        assert!(is_control(&packet(ARP, &[0; 28])));
        assert!(is_control(&ipv4(IGMP)));
        // A report as Linux sends it: router alert, and two bytes of padding.
        assert!(is_control(&ipv6(HOP_BY_HOP, &[ICMPV6, 0, 5, 2, 0, 0, 1, 0, 143, 0])));
        assert!((130..=137).all(|kind| is_control(&ipv6(ICMPV6, &[kind, 0]))));
        // What programs send: TCP, UDP, echo requests and replies; and errors that answer it.
        for protocol in [1, 6, 17] {
            assert!(!is_control(&ipv4(protocol)) && !is_control(&ipv6(protocol, &[135, 0])));
        }
        assert!([1, 2, 3, 4, 128, 129].iter().all(|kind| !is_control(&ipv6(ICMPV6, &[*kind, 0]))));
        assert!(!is_control(&ipv6(HOP_BY_HOP, &[17, 0, 5, 2, 0, 0, 1, 0, 143, 0])));
        assert!(!is_control(&[]) && !is_control(&ipv6(ICMPV6, &[])) && !is_control(&ipv6(HOP_BY_HOP, &[58])));
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_size(mut frame in prop::collection::vec(any::<u8>(), 0..200)) {
            let size = Size::of(&frame);
            is_control(&frame);
            prop_assert!(size.segments >= 1);
            prop_assert!(size.packet_bytes() >= 1);
            insert_vlan(&mut frame, [0; 4]);
        }
    }
}
