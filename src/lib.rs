//! Control and measurement of Multipath TCP, subflow by subflow: the core, which knows nothing of Python.
//!
//! Each room uses only those below it: [`supervisor`] and [`enhanced_api`] (calls of other programs and of 2016);
//! [`sampler`] and [`options`] (measuring, and socket options on one subflow); [`connection`] (what is asked of a
//! connection); [`namespace`] (what a process holds and knows of one network namespace); [`events`]; [`netlink`];
//! [`sys`] (the system calls, and the only unsafe); [`abi`] (the kernel's structures as bytes).
#![deny(unsafe_code)]

pub mod abi;
pub mod connection;
pub mod enhanced_api;
pub mod error;
pub mod events;
pub mod namespace;
pub mod netlink;
pub mod options;
pub mod sampler;
pub mod supervisor;
pub mod sys;

#[cfg(feature = "python")]
mod py;
