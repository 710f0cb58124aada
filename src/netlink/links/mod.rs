//! Links and addresses by rtnetlink: a dump of them. No privilege. [`codec`] has the bytes.

pub mod codec;

use crate::abi::uapi::rtnetlink;
use crate::netlink::links::codec::decode;
pub use crate::netlink::links::codec::LinkChange;
use crate::netlink::{Channel, Failure};

/// Every link, and then every address.
pub fn dump(channel: &mut Channel, mut on_change: impl FnMut(LinkChange)) -> Result<(), Failure> {
    let asked = [
        (rtnetlink::RTM_GETLINK, rtnetlink::RTM_NEWLINK, rtnetlink::IFINFOMSG_SIZE),
        (rtnetlink::RTM_GETADDR, rtnetlink::RTM_NEWADDR, rtnetlink::IFADDRMSG_SIZE),
    ];
    for (request, reply, size) in asked {
        channel.dump(request, &vec![0; size], |payload| {
            if let Some(change) = decode(reply, payload) {
                on_change(change);
            }
        })?;
    }
    Ok(())
}
