//! Bounded reads and writes on byte slices in host byte order. What lies outside a slice is `None`, so that a
//! structure of an older, shorter kernel reads as absent fields, never as zeros.

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

pub fn u8(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

pub fn u16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_ne_bytes)
}

pub fn u32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_ne_bytes)
}

pub fn u64(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_ne_bytes)
}

/// Ports travel in network byte order.
pub fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

pub fn ipv4(bytes: &[u8], at: usize) -> Option<std::net::Ipv4Addr> {
    array::<4>(bytes, at).map(Into::into)
}

pub fn ipv6(bytes: &[u8], at: usize) -> Option<std::net::Ipv6Addr> {
    array::<16>(bytes, at).map(Into::into)
}

/// Writes `value` at `at`. The caller owns the buffer and its size, so a write outside it is left out rather
/// than reported: the layouts in [`crate::abi::uapi`] are constants and the tests read every one of them back.
pub fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_past_the_end_is_absent() {
        let bytes = [1, 0, 0, 0, 2];
        assert_eq!(u32(&bytes, 0), Some(u32::from_ne_bytes([1, 0, 0, 0])));
        assert_eq!(u32(&bytes, 2), None);
        assert_eq!(u8(&bytes, 5), None);
        assert_eq!(u64(&bytes, usize::MAX), None);
        assert_eq!(be16(&[0x13, 0x88], 0), Some(5000));
    }

    #[test]
    fn a_write_past_the_end_changes_nothing() {
        let mut bytes = [0u8; 4];
        put(&mut bytes, 2, &[1, 2, 3]);
        assert_eq!(bytes, [0; 4]);
        put(&mut bytes, 2, &[1, 2]);
        assert_eq!(bytes, [0, 0, 1, 2]);
    }
}
