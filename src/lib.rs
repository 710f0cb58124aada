//! Control and measurement of Multipath TCP, subflow by subflow: the core, which knows nothing of Python.
//!
//! Data flows one way: [`enhanced_api`] (the calls of 2016) uses [`connection`], [`by_token`], [`open`] and
//! [`announce`] (what a caller asks for), which use [`namespace`] (the netlink sockets of one network namespace) and
//! [`shared`] (what this process knows of a connection), which use the marshalling ([`info`], [`tcp_info`],
//! [`subflow`], [`diag`], [`pm`], [`event`], [`route`]: pure functions over bytes), which uses [`wire`], [`address`]
//! and [`uapi`]. Only [`sys`] talks to the kernel.
#![deny(unsafe_code)]

pub mod address;
pub mod address_ids;
pub mod announce;
pub mod bpf;
pub mod by_token;
pub mod connection;
pub mod diag;
pub mod enhanced_api;
pub mod error;
pub mod event;
pub mod events;
pub mod fields;
pub mod info;
pub mod links;
pub mod lock;
pub mod namespace;
pub mod netlink;
pub mod open;
pub mod picture;
pub mod pm;
pub mod pm_socket;
pub mod reader;
pub mod route;
pub mod sampler;
pub mod shared;
pub mod socket_option;
pub mod sub_ids;
pub mod subflow;
pub mod subflow_options;
pub mod subscription;
pub mod supervisor;
pub mod sys;
pub mod sysctls;
pub mod tcp_info;
pub mod uapi;
pub mod wire;

#[cfg(feature = "python")]
mod py;
