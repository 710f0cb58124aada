//! Whether the peer has accepted a subflow, which is the fourth ACK of its handshake (RFC 8684, section 3.2). No event
//! reports it, so whoever waits for it looks: [`crate::connection::open`] for one subflow that it opened,
//! [`crate::watcher`] for those of all connections of a namespace.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::abi::tcp_info::TcpInfo;
use crate::abi::uapi::tcp_state;
use crate::error::Result;
use crate::namespace::Namespace;
use crate::netlink::diag::{self, Entry, Tuple};
use crate::sys::lock::lock;

/// Subflows by the tokens of their connections and their four-tuples, in one system call for many; `None` for one that is
/// closed, or bound to an interface that the tuple does not name.
pub fn look(namespace: &Namespace, asked: &[(u32, Tuple)]) -> Result<Vec<Option<(Entry, TcpInfo)>>> {
    let tuples: Vec<Tuple> = asked.iter().map(|(_, tuple)| *tuple).collect();
    let found = diag::look_up_with_info(&mut lock(&namespace.diag), &tuples).map_err(diag::failed)?;
    Ok(asked
        .iter()
        .zip(found)
        .map(|((token, _), found)| found.filter(|(entry, _)| is_of(*token, entry)))
        .collect())
}

/// The same of one subflow, without its `tcp_info`.
pub fn look_at(namespace: &Namespace, token: u32, tuple: &Tuple) -> Result<Option<Entry>> {
    let found =
        diag::look_up(&mut lock(&namespace.diag), std::slice::from_ref(tuple)).map_err(diag::failed)?;
    Ok(found.into_iter().flatten().find(|entry| is_of(token, entry)))
}

fn is_of(token: u32, entry: &Entry) -> bool {
    entry.state != tcp_state::CLOSE && entry.subflow.is_some_and(|subflow| subflow.token == token)
}

/// How long to wait before the next look, if no event comes, when so much time has passed: an eighth of it, so that the
/// delay added to any handshake stays a small part of it.
pub fn pause(elapsed: Duration, limits: RangeInclusive<Duration>) -> Duration {
    (elapsed / 8).clamp(*limits.start(), *limits.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_with_the_time_that_has_passed() {
        let limits = || Duration::from_millis(1)..=Duration::from_millis(50);
        assert_eq!(pause(Duration::ZERO, limits()), Duration::from_millis(1));
        assert_eq!(pause(Duration::from_millis(80), limits()), Duration::from_millis(10));
        assert_eq!(pause(Duration::from_secs(9), limits()), Duration::from_millis(50));
    }
}
