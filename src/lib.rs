//! Control and measurement of Multipath TCP, subflow by subflow: the core, which knows nothing of Python.
//!
//! Each module uses only those below it, which `tests/architecture.rs` checks: [`supervisor`] (calls of other programs);
//! [`broker`] (what needs privilege, for programs that have none);
//! [`enhanced_api`] (the socket options of 2016); [`sampler`], [`tracing`] and [`options`] (measuring, each segment by
//! tracepoints, and socket options on one subflow); [`emulation`] (links of a lab; it uses [`sys`] alone);
//! [`connection`] (operations on one connection); [`samples`] (rows of a recording); [`traces`] (connections in
//! captures); [`namespace`] (what a process holds and knows of one network namespace); [`events`]; [`netlink`];
//! [`crew`] (threads that carry commands out); [`capture`] (files of packets); [`sys`] (system calls); [`abi`] (the kernel's structures as bytes). [`error`] is for
//! all. `unsafe` stands in [`sys`] alone; the binding has one exception, the row types of numpy arrays.
#![deny(unsafe_code)]

pub mod abi;
pub mod bpf;
pub mod broker;
pub mod capture;
pub mod connection;
pub mod crew;
pub mod emulation;
pub mod endings;
pub mod enhanced_api;
pub mod error;
pub mod events;
pub mod namespace;
pub mod netlink;
pub mod options;
pub mod sampler;
pub mod samples;
pub mod supervisor;
pub mod sys;
pub mod tcp_sock;
pub mod traces;
pub mod tracing;
pub mod watcher;

#[cfg(feature = "python")]
mod py;
