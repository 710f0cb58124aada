//! What a reader makes of captures: rows of packets, of connections and of subflows, and events.

use std::net::IpAddr;

/// "Not known" in columns of times.
pub const UNKNOWN: i64 = -1;

/// A segment with data, or the part of one that was sent before, or that was not.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Packet {
    pub time_ns: i64,
    pub capture: i32,
    pub token: u32,
    pub subflow: i32,
    pub direction: i8,
    pub dsn: i64,
    pub length: i32,
    pub retransmitted: bool,
    pub reinjected: bool,
    pub data_acked_ns: i64,
    pub data_delivered_ns: i64,
    pub received_ns: i64,
    pub connection: i32,
    pub sequence: u32,
}

/// A connection. Arrays are by direction: 0 goes from the connecting side.
#[derive(Debug, Clone, Default)]
pub struct Connection {
    pub token: u32,
    pub peer_token: u32,
    pub version: i8,
    pub complete: bool,
    pub checksum: bool,
    pub fallback: bool,
    pub start_ns: i64,
    pub end_ns: i64,
    pub subflows: i32,
    pub idsn: [u64; 2],
    pub bytes: [i64; 2],
    pub reinjected: [i64; 2],
    pub data_acked: [i64; 2],
    pub missing: [i64; 2],
    pub data_fin_ns: [i64; 2],
}

/// A subflow. Arrays are by direction, ends by side: 0 is the connecting side.
#[derive(Debug, Clone)]
pub struct Subflow {
    pub connection: i32,
    pub token: u32,
    pub address: [IpAddr; 2],
    pub port: [u16; 2],
    pub address_id: [i16; 2],
    pub initial: bool,
    pub initiator: i8,
    pub complete: bool,
    pub backup: [bool; 2],
    pub syn_ns: i64,
    pub synack_ns: i64,
    pub ack_ns: i64,
    pub end_ns: i64,
    pub fin_ns: [i64; 2],
    pub reset_ns: i64,
    pub reset_reason: i16,
    /// Where the packets of each direction were captured, nearest to their sender.
    pub capture: [i32; 2],
    /// Whether the receiver of each direction was captured, too.
    pub received: [bool; 2],
    pub segments: [i64; 2],
    pub bytes: [i64; 2],
    pub retransmitted: [i64; 2],
    pub reinjected: [i64; 2],
    pub unmapped: [i64; 2],
    pub missing: [i64; 2],
    pub checksums: [i64; 2],
    pub checksum_errors: [i64; 2],
    pub hmacs: [i64; 2],
    pub hmac_errors: [i64; 2],
}

impl Subflow {
    /// One of which nothing has been counted yet. Its ends are by side.
    pub fn new(connection: usize, address: [IpAddr; 2], port: [u16; 2], time_ns: i64) -> Subflow {
        Subflow {
            connection: i32::try_from(connection).unwrap_or(i32::MAX),
            token: 0,
            address,
            port,
            address_id: [-1; 2],
            initial: false,
            initiator: 0,
            complete: false,
            backup: [false; 2],
            syn_ns: UNKNOWN,
            synack_ns: UNKNOWN,
            ack_ns: UNKNOWN,
            end_ns: time_ns,
            fin_ns: [UNKNOWN; 2],
            reset_ns: UNKNOWN,
            reset_reason: -1,
            capture: [-1; 2],
            received: [false; 2],
            segments: [0; 2],
            bytes: [0; 2],
            retransmitted: [0; 2],
            reinjected: [0; 2],
            unmapped: [0; 2],
            missing: [0; 2],
            checksums: [0; 2],
            checksum_errors: [0; 2],
            hmacs: [0; 2],
            hmac_errors: [0; 2],
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Number(u64),
    Signed(i64),
    Flag(bool),
    Address(IpAddr),
    Bytes(Vec<u8>),
    Ids(Vec<u8>),
    Text(&'static str),
    Unknown,
}

/// An option of Multipath TCP that says more than which data a segment has, or what follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub kind: &'static str,
    pub time_ns: i64,
    pub capture: usize,
    pub connection: usize,
    pub subflow: usize,
    pub direction: usize,
    pub details: Vec<(&'static str, Value)>,
}

/// What was in the captures, whether it is of Multipath TCP or not.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    pub frames: u64,
    /// TCP segments, of any connection.
    pub segments: u64,
    pub fragments: u64,
    /// Frames whose headers were cut by a snap length, and segments whose options were.
    pub cut: u64,
    pub unknown_link: u64,
    /// Segments of Multipath TCP seen again at a place that tells nothing new.
    pub duplicates: u64,
    /// Options by subtype, and malformed or unknown ones.
    pub options: [u64; 9],
    pub malformed: u64,
}
