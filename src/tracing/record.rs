//! What the programs write into the ring buffer, and its decoding. Pure.

use crate::abi::bytes;

use super::layout::Layout;

/// What a record begins with. Eight bytes each.
pub mod head {
    pub const KIND: usize = 0;
    /// CLOCK_MONOTONIC.
    pub const TIME_NS: usize = 8;
    /// Of the subflow.
    pub const COOKIE: usize = 16;
    pub const SIZE: usize = 24;
}

/// Kinds of records.
pub mod kind {
    pub const SUBFLOW: i32 = 1;
    pub const SENT: i32 = 2;
    pub const RETRANSMITTED: i32 = 3;
    pub const CANDIDATE: i32 = 4;
    pub const ACK: i32 = 5;
    pub const DATA_ACK: i32 = 6;
    pub const ARRIVED: i32 = 7;
}

/// A subflow, when it is seen for the first time: three structures as the kernel has them.
pub mod subflow {
    use super::{head, Layout};

    pub const NAMESPACE: usize = head::SIZE;
    pub const TCP: usize = NAMESPACE + 8;

    pub fn context(layout: &Layout) -> usize {
        (TCP + layout.tcp.size).next_multiple_of(8)
    }

    pub fn msk(layout: &Layout) -> usize {
        (context(layout) + layout.context.size).next_multiple_of(8)
    }

    pub fn size(layout: &Layout) -> usize {
        (msk(layout) + layout.msk.size).next_multiple_of(8)
    }
}

/// Data given to a subflow, or arrived on one.
pub mod data {
    use super::head;

    pub const DATA_SEQ: usize = head::SIZE;
    /// The length of the mapping; what follows has four bytes each, too.
    pub const LENGTH: usize = 32;
    /// Sent: TCP's number behind the last byte. Arrived: the mapping's, counted from the subflow's first byte.
    pub const SEQUENCE: usize = 36;
    /// Of what has arrived: TCP's number of its first byte, its length, and the byte of the mapping that has DATA_FIN.
    pub const SEGMENT: usize = 40;
    pub const SEGMENT_LENGTH: usize = 44;
    pub const FLAGS: usize = 48;
    /// What TCP's numbers begin with, to which the mapping's are added.
    pub const OFFSET: usize = 52;
    pub const SIZE: usize = 56;
}

/// A retransmission: its first number and its length, four bytes each.
pub mod retransmitted {
    use super::head;

    pub const SEQUENCE: usize = head::SIZE;
    pub const LENGTH: usize = 28;
    pub const SIZE: usize = 32;
}

/// How far the data is acknowledged.
pub mod data_ack {
    use super::head;

    pub const NUMBER: usize = head::SIZE;
    pub const SIZE: usize = 32;
}

/// The columns of an ACK, four bytes each.
pub const ACK_COLUMNS: [&str; 11] = [
    "snd_una",
    "snd_nxt",
    "rcv_nxt",
    "snd_wnd",
    "snd_cwnd",
    "snd_ssthresh",
    "srtt_us",
    "packets_out",
    "lost_out",
    "retrans_out",
    "total_retrans",
];
pub const SRTT_US: usize = 6;
pub const ACK_SIZE: usize = (head::SIZE + 4 * ACK_COLUMNS.len()).next_multiple_of(8);

/// A subflow that the scheduler looks at.
pub mod candidate {
    use super::head;

    /// Eight bytes each.
    pub const AVG_PACING_RATE: usize = head::SIZE;
    pub const PACING_RATE: usize = 32;
    /// Four bytes each.
    pub const WMEM_QUEUED: usize = 40;
    pub const SND_WND: usize = 44;
    pub const SND_CWND: usize = 48;
    pub const SRTT_US: usize = 52;
    pub const PACKETS_OUT: usize = 56;
    /// The bytes that have these bits.
    pub const BACKUP: usize = 60;
    pub const REQUEST_BACKUP: usize = 61;
    pub const STALE: usize = 62;
    pub const SIZE: usize = 64;
}

/// A record, whose cookie and time are beside it.
#[derive(Debug)]
pub enum Record<'a> {
    Subflow { namespace: u64, tcp: &'a [u8], context: &'a [u8], msk: &'a [u8] },
    Sent { data_seq: u64, length: u32, end: u32 },
    Retransmitted { sequence: u32, length: u32 },
    Candidate(Candidate),
    Ack([u32; ACK_COLUMNS.len()]),
    DataAck(u64),
    Arrived { data_seq: u64, mapping: u32, sequence: u32, length: u32, data_fin: bool, mapped: u32 },
}

/// What the scheduler sees of a subflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    pub avg_pacing_rate: u64,
    pub pacing_rate: u64,
    pub wmem_queued: u32,
    pub snd_wnd: u32,
    pub snd_cwnd: u32,
    pub srtt_us: u32,
    pub packets_out: u32,
    pub backup: bool,
    pub stale: bool,
}

/// The cookie, the time and the rest of a record; `None` if it is none of ours.
pub fn decode<'a>(layout: &Layout, record: &'a [u8]) -> Option<(u64, u64, Record<'a>)> {
    let (word, half) = (|at| bytes::u64(record, at), |at| bytes::u32(record, at));
    let flag = |member: crate::bpf::btf::Member, at: usize| {
        record.get(at).is_some_and(|byte| member.read_from_byte(*byte) != 0)
    };
    let part = |at: usize, size: usize| record.get(at..at.checked_add(size)?);
    let found = match i32::try_from(word(head::KIND)?).ok()? {
        kind::SUBFLOW => Record::Subflow {
            namespace: word(subflow::NAMESPACE)?,
            tcp: part(subflow::TCP, layout.tcp.size)?,
            context: part(subflow::context(layout), layout.context.size)?,
            msk: part(subflow::msk(layout), layout.msk.size)?,
        },
        kind::SENT => Record::Sent {
            data_seq: word(data::DATA_SEQ)?,
            length: half(data::LENGTH)?,
            end: half(data::SEQUENCE)?,
        },
        kind::RETRANSMITTED => Record::Retransmitted {
            sequence: half(retransmitted::SEQUENCE)?,
            length: half(retransmitted::LENGTH)?,
        },
        kind::CANDIDATE => Record::Candidate(Candidate {
            avg_pacing_rate: word(candidate::AVG_PACING_RATE)?,
            pacing_rate: word(candidate::PACING_RATE)?,
            wmem_queued: half(candidate::WMEM_QUEUED)?,
            snd_wnd: half(candidate::SND_WND)?,
            snd_cwnd: half(candidate::SND_CWND)?,
            // The kernel has it in eighths.
            srtt_us: half(candidate::SRTT_US)? >> 3,
            packets_out: half(candidate::PACKETS_OUT)?,
            backup: flag(layout.context.backup, candidate::BACKUP)
                || flag(layout.context.request_backup, candidate::REQUEST_BACKUP),
            stale: flag(layout.context.stale, candidate::STALE),
        }),
        kind::ACK => {
            let mut columns = [0; ACK_COLUMNS.len()];
            for (number, column) in columns.iter_mut().enumerate() {
                *column = half(head::SIZE + 4 * number)?;
            }
            columns[SRTT_US] >>= 3;
            Record::Ack(columns)
        }
        kind::DATA_ACK => Record::DataAck(word(data_ack::NUMBER)?),
        kind::ARRIVED => Record::Arrived {
            data_seq: word(data::DATA_SEQ)?,
            mapping: half(data::OFFSET)?.wrapping_add(half(data::SEQUENCE)?),
            sequence: half(data::SEGMENT)?,
            length: half(data::SEGMENT_LENGTH)?,
            data_fin: flag(layout.mapping.data_fin, data::FLAGS),
            mapped: half(data::LENGTH)?,
        },
        _ => return None,
    };
    Some((word(head::COOKIE)?, word(head::TIME_NS)?, found))
}
