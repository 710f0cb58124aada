//! The kernel's structures and constants, as bytes: pure functions, no I/O.

pub mod address;
pub mod bytes;
pub mod fields;
pub mod full_info;
pub mod mptcp_info;
pub mod ranges;
pub mod seccomp;
pub mod tcp_info;
pub mod uapi;
