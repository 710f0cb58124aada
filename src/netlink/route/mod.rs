//! Route look-ups by rtnetlink: which source address and which interface the kernel would use. No privilege. [`codec`] has the bytes.

pub mod codec;

use std::net::IpAddr;

use crate::abi::uapi::rtnetlink;
pub use crate::netlink::route::codec::Route;
use crate::netlink::route::codec::{decode, encode};
use crate::netlink::{Channel, Failure};

/// Looks a route up; `interface` 0 is any. Fails as connect() would, with ENETUNREACH for example.
pub fn look_up(channel: &mut Channel, destination: IpAddr, interface: u32) -> Result<Route, Failure> {
    ask(channel, &encode(destination, None, interface))
}

/// Looks up the route of what is sent from a local address.
pub fn look_up_from(channel: &mut Channel, source: IpAddr, destination: IpAddr) -> Result<Route, Failure> {
    ask(channel, &encode(destination, Some(source), 0))
}

fn ask(channel: &mut Channel, request: &[u8]) -> Result<Route, Failure> {
    let reply = channel.request(rtnetlink::RTM_GETROUTE, request)?;
    decode(&reply).ok_or(Failure { errno: libc::EBADMSG, text: None })
}
