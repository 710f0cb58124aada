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

/// The size of one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Of all its segments, each with its own headers, Ethernet included.
    pub bytes: u32,
    pub segments: u32,
}

impl Size {
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

    proptest! {
        #[test]
        fn any_bytes_have_a_size(mut frame in prop::collection::vec(any::<u8>(), 0..200)) {
            let size = Size::of(&frame);
            prop_assert!(size.segments >= 1);
            prop_assert!(size.packet_bytes() >= 1);
            insert_vlan(&mut frame, [0; 4]);
        }
    }
}
