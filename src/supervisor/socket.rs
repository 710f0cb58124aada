//! socket(): creates a Multipath TCP socket where the program asked for a TCP one.

use std::os::fd::AsFd;

use super::caller::Caller;
use super::filter::SOCK_TYPE_MASK;
use super::{Outcome, Supervisor};
use crate::namespace::path_manager::create_socket;
use crate::sys::seccomp::Notification;

/// If anything fails, the kernel creates the socket that was asked for.
pub fn serve(supervisor: &Supervisor, caller: &Caller<'_>, call: &Notification) -> Outcome {
    let [family, kind, ..] = call.arguments.map(|argument| argument as i32);
    let known = SOCK_TYPE_MASK | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    if kind & !known != 0 || !caller.shares_network() || caller.is_program(&supervisor.settings.except) {
        return Outcome::Pass;
    }
    let kept = kind & !libc::SOCK_CLOEXEC;
    let (path_manager, owner) = (supervisor.path_manager, Some(caller.owner));
    let Ok(socket) = create_socket(family, kept, libc::IPPROTO_MPTCP, path_manager, owner) else {
        return Outcome::Pass;
    };
    let close_on_exec = kind & libc::SOCK_CLOEXEC != 0;
    match supervisor.listener.give(call.id, socket.as_fd(), close_on_exec) {
        Ok(()) => Outcome::Answered,
        // The caller has as many descriptors as it may, or was killed.
        Err(error) => Outcome::Fail(error.raw_os_error().unwrap_or(libc::EMFILE)),
    }
}
