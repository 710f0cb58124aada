//! The ranges of integers that callers pass: what can be a port, a token, a process or a descriptor.

use crate::error::{Error, Result};

fn in_range<T: TryFrom<i64>>(name: &str, value: i64, least: i64, most: i64) -> Result<T> {
    let number = T::try_from(value).ok().filter(|_| (least..=most).contains(&value));
    number.ok_or_else(|| Error::value(format!("{name} must be from {least} to {most}, not {value}")))
}

/// A port, where 0 leaves the choice to the kernel or stands for none.
pub fn port(value: i64) -> Result<u16> {
    in_range("port", value, 0, u16::MAX.into())
}

/// The index of an interface in an IPv6 socket address, where 0 is none.
pub fn scope_id(value: i64) -> Result<u32> {
    in_range("scope_id", value, 0, u32::MAX.into())
}

pub fn token(value: i64) -> Result<u32> {
    in_range("token", value, 0, u32::MAX.into())
}

pub fn pid(value: i64) -> Result<i32> {
    in_range("pid", value, 1, i32::MAX.into())
}

pub fn descriptor(value: i64) -> Result<i32> {
    in_range("fd", value, 0, i32::MAX.into())
}

/// An address id of an endpoint; 0 is that of the initial address.
pub fn endpoint_id(value: i64) -> Result<u8> {
    in_range("id", value, 1, u8::MAX.into())
}

/// A port that an endpoint announces.
pub fn port_of_endpoint(value: i64) -> Result<u16> {
    in_range("port", value, 1, u16::MAX.into())
}

/// Limits of the in-kernel path manager, which counts in bytes; the most that it takes is the kernel's to say.
pub fn limit_of_subflows(value: i64) -> Result<u32> {
    in_range("subflows", value, 0, u8::MAX.into())
}

pub fn limit_of_addresses(value: i64) -> Result<u32> {
    in_range("add_addr_accepted", value, 0, u8::MAX.into())
}

/// The length of a buffer for a socket option, where 0 stands for an int. Python's socket.getsockopt takes no more.
pub fn buffer_length(value: i64) -> Result<usize> {
    in_range("buflen", value, 0, 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_a_range_belong_to_it() {
        assert_eq!((port(0), port(65535)), (Ok(0), Ok(u16::MAX)));
        assert_eq!((token(0), token(u32::MAX.into())), (Ok(0), Ok(u32::MAX)));
        assert_eq!((pid(1), descriptor(0)), (Ok(1), Ok(0)));
    }

    #[test]
    fn what_is_outside_is_named_with_its_range() {
        let message = |result: Result<u16>| result.unwrap_err().to_string();
        assert_eq!(message(port(65536)), "port must be from 0 to 65535, not 65536");
        assert_eq!(message(port(-1)), "port must be from 0 to 65535, not -1");
        assert!(token(1 << 32).is_err() && scope_id(-1).is_err() && pid(0).is_err());
        assert!(pid(1 << 31).is_err() && descriptor(-1).is_err());
        assert!(endpoint_id(0).is_err() && endpoint_id(256).is_err() && port_of_endpoint(0).is_err());
    }
}
