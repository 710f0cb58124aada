//! Route look-ups by rtnetlink: which source address the kernel would use. No privilege. [`codec`] has the bytes.

pub mod codec;

use std::net::IpAddr;

use crate::abi::uapi::rtnetlink;
pub use crate::netlink::route::codec::Route;
use crate::netlink::route::codec::{decode, encode};
use crate::netlink::{Channel, Failure};

/// Looks a route up; `interface` 0 is any. Fails as connect() would, with ENETUNREACH for example.
pub fn look_up(channel: &mut Channel, destination: IpAddr, interface: u32) -> Result<Route, Failure> {
    let reply = channel.request(rtnetlink::RTM_GETROUTE, &encode(destination, interface))?;
    decode(&reply).ok_or(Failure { errno: libc::EBADMSG, text: None })
}
