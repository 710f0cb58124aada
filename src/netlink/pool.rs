//! Channels for requests that may wait for a connection's lock, which its owner may hold for any length of time: each
//! is sent on a channel of its own.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Mutex;

use crate::netlink::Channel;
use crate::sys::lock::lock;

/// How many channels are kept for the next requests.
const KEPT: usize = 2;

/// Opens a socket for one more channel.
pub type Open = Box<dyn Fn() -> io::Result<OwnedFd> + Send + Sync>;

pub struct Pool {
    idle: Mutex<Vec<Channel>>,
    open: Open,
}

impl Pool {
    pub fn new(first: Channel, open: Open) -> Pool {
        Pool { idle: Mutex::new(vec![first]), open }
    }

    /// Runs `request` with a channel of its own. Fails where one more is needed and cannot be opened.
    pub fn with<T>(&self, request: impl FnOnce(&mut Channel) -> T) -> io::Result<T> {
        let idle = lock(&self.idle).pop();
        let mut channel = match idle {
            Some(channel) => channel,
            None => Channel::new((self.open)()?)?,
        };
        let reply = request(&mut channel);
        let mut idle = lock(&self.idle);
        if idle.len() < KEPT {
            idle.push(channel);
        }
        Ok(reply)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("idle", &self.idle).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{self, Wanted};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::Arc;

    #[test]
    fn a_request_that_waits_holds_no_other_up_and_few_channels_are_kept() {
        let open = || {
            let wanted = Wanted::Socket {
                family: libc::AF_NETLINK,
                kind: libc::SOCK_RAW,
                protocol: libc::NETLINK_GENERIC,
            };
            let [socket] = sys::open_here(&[wanted]);
            socket
        };
        let opened = Arc::new(AtomicUsize::new(1));
        let counted = Arc::clone(&opened);
        let first = Channel::new(open().unwrap()).unwrap();
        let pool = Pool::new(
            first,
            Box::new(move || {
                counted.fetch_add(1, Ordering::Relaxed);
                open()
            }),
        );
        let nested = |depth: usize| {
            fn go(pool: &Pool, depth: usize) -> usize {
                if depth == 0 {
                    return 0;
                }
                1 + pool.with(|_| go(pool, depth - 1)).unwrap()
            }
            go(&pool, depth)
        };
        assert_eq!(nested(5), 5);
        assert_eq!(opened.load(Ordering::Relaxed), 5);
        assert_eq!(lock(&pool.idle).len(), KEPT);
        nested(2);
        assert_eq!(opened.load(Ordering::Relaxed), 5, "those that were kept are used");
    }
}
