//! The programs at the tracepoints, and the maps that they share. Pure.
//!
//! Of the six tracepoints three have no socket among their arguments. Which subflow they are of is found by what the
//! kernel does around them, and checked: mptcp_sendmsg_frag has the mapping of the last segment in the subflow's write
//! queue, get_mapping_status that of the first one in its receive queue, and at ack_update_msk the connection's
//! `snd_una` is what the argument says. The subflows that are looked at for that are, first, those that this processor
//! has just dealt with, then all that are traced.

use crate::bpf::btf::Member;
use crate::bpf::insn::Register::{self, R0, R1, R10, R2, R3, R4, R6, R7, R8, R9};
use crate::bpf::insn::When::{Equal, Greater, NotEqual, NotLess};
use crate::bpf::insn::Width::{U16, U32, U64, U8};
use crate::bpf::insn::{Assembler, Helper, Label, Width};
use crate::bpf::TcpIterator;

use super::layout::Layout;
use super::record::{candidate, data, data_ack, head, kind, retransmitted, subflow};
use super::record::{ACK_COLUMNS, ACK_SIZE};

/// What every program counts, and the next slot that is free: eight bytes each.
pub mod counter {
    /// Records for which the ring had no room.
    pub const LOST: usize = 0;
    /// Data whose subflow could not be told.
    pub const UNKNOWN: usize = 8;
    pub const NEXT_SLOT: usize = 16;
    pub const SIZE: usize = 24;
}

/// Traced subflows that are looked at when it is not known which one sends. The verifier walks every turn of the loop.
pub const SLOTS: u32 = 512;

/// A slot: eight bytes each.
mod slot {
    pub const SOCKET: i16 = 0;
    pub const COOKIE: i16 = 8;
    /// The address of its `mptcp_sock`.
    pub const CONNECTION: i16 = 16;
    /// Of those that a processor has dealt with: whether it is traced.
    pub const TRACED: i16 = 24;
    pub const SIZE: usize = 32;
}
pub const SLOT_SIZE: usize = slot::SIZE;

/// What a processor keeps: eight bytes each, then slots.
mod state {
    use super::slot;

    /// How many candidates it has seen.
    pub const NEXT: i16 = 0;
    /// Where an address becomes a number.
    pub const SCRATCH: i16 = 8;
    /// The subflow whose segment arrived.
    pub const CURRENT: i16 = 16;
    pub const RECENT: i16 = CURRENT + slot::SIZE as i16;
    pub const RECENTS: i16 = 8;
    pub const SIZE: usize = RECENT as usize + RECENTS as usize * slot::SIZE;
}
pub const STATE_SIZE: usize = state::SIZE;

/// The key of what is wanted: the cookie of a network namespace, and a token or 0 for all.
pub const WANTED_SIZE: usize = 16;
/// What is known of a subflow: whether it is traced, and the address of its connection.
pub const KNOWN_SIZE: usize = 16;

/// No record wakes the reader: it comes by itself.
const BPF_RB_NO_WAKEUP: i32 = 1;
/// The extensions of a packet are no longer than this.
const LONGEST_EXTENSIONS: i32 = 1024;
/// As far as `snd_una` moves on between its change and the tracepoint.
const NEAR: i32 = i32::MAX;

/// The descriptors of the maps.
#[derive(Debug, Clone, Copy)]
pub struct Maps {
    pub records: i32,
    pub wanted: i32,
    pub known: i32,
    pub slots: i32,
    pub states: i32,
    pub counters: i32,
}

// The stack.
const COOKIE: i16 = -8;
const CONNECTION: i16 = -16;
const KEY: i16 = -32;
const KEY_TOKEN: i16 = -24;
const VALUE: i16 = -48;
const NUMBER: i16 = -56;
const ARGUMENT: i16 = -64;
const SKB: i16 = -72;
const EXTENSIONS: i16 = -80;
const BYTE: i16 = -88;

fn offset(place: usize) -> i16 {
    // Structures of 8 KiB at most: layout.rs.
    i16::try_from(place).unwrap_or(i16::MAX)
}

fn at(member: Member) -> i16 {
    offset(member.offset())
}

/// One program in the making.
struct Writer<'a> {
    a: Assembler,
    maps: Maps,
    layout: &'a Layout,
    /// The program ends there.
    out: Label,
}

impl<'a> Writer<'a> {
    fn new(maps: Maps, layout: &'a Layout) -> Writer<'a> {
        let mut a = Assembler::new();
        let out = a.label();
        Writer { a, maps, layout, out }
    }

    fn finish(mut self) -> Vec<u8> {
        self.a.place(self.out);
        self.a.set(R0, 0);
        self.a.exit();
        self.a.finish()
    }

    fn load_member(&mut self, to: Register, base: Register, member: Member) {
        let width = match member.size() {
            1 => U8,
            2 => U16,
            4 => U32,
            _ => U64,
        };
        self.a.load(width, to, base, at(member));
    }

    /// Copies from where R3 points to onto the stack.
    fn read_to_stack(&mut self, to: i16, size: i32) {
        self.a.copy(R1, R10);
        self.a.add(R1, to.into());
        self.a.set(R2, size);
        self.a.call(Helper::ProbeReadKernel);
    }

    /// Copies from where R3 points to into the record, R9.
    fn read_to_record(&mut self, to: usize, size: usize) {
        self.a.copy(R1, R9);
        self.a.add(R1, to as i32);
        self.a.set(R2, size as i32);
        self.a.call(Helper::ProbeReadKernel);
    }

    /// R0 = the value of the key on the stack, or 0.
    fn look_up(&mut self, map: i32, key: i16) {
        self.a.load_map(R1, map);
        self.a.copy(R2, R10);
        self.a.add(R2, key.into());
        self.a.call(Helper::MapLookup);
    }

    fn count(&mut self, counter: usize) {
        self.a.load_map_value(R1, self.maps.counters);
        self.a.set(R2, 1);
        self.a.fetch_add(R1, offset(counter), R2);
    }

    /// R9 = a new record with its head; R7 is the cookie. Without room it is counted, and the program ends.
    fn begin_record(&mut self, kind: i32, size: usize) {
        let reserved = self.a.label();
        self.a.load_map(R1, self.maps.records);
        self.a.set(R2, size as i32);
        self.a.set(R3, 0);
        self.a.call(Helper::RingbufReserve);
        self.a.jump_if(R0, NotEqual, 0, reserved);
        self.count(counter::LOST);
        self.a.jump(self.out);
        self.a.place(reserved);
        self.a.copy(R9, R0);
        self.a.set(R1, kind);
        self.a.store(U64, R9, offset(head::KIND), R1);
        self.a.store(U64, R9, offset(head::COOKIE), R7);
        self.a.call(Helper::KtimeGetNs);
        self.a.store(U64, R9, offset(head::TIME_NS), R0);
    }

    fn end_record(&mut self) {
        self.a.copy(R1, R9);
        self.a.set(R2, BPF_RB_NO_WAKEUP);
        self.a.call(Helper::RingbufSubmit);
    }

    /// R9 = what this processor keeps.
    fn load_state(&mut self) {
        self.a.set(R1, 0);
        self.a.store(U32, R10, NUMBER, R1);
        self.look_up(self.maps.states, NUMBER);
        self.a.jump_if(R0, Equal, 0, self.out);
        self.a.copy(R9, R0);
    }

    /// R6 = the `tcp_sock` of the socket in R1. The program ends if it is none, or not a subflow.
    fn load_subflow(&mut self) {
        self.a.call(Helper::SkcToTcpSock);
        self.a.jump_if(R0, Equal, 0, self.out);
        self.a.copy(R6, R0);
        self.load_member(R1, R6, self.layout.tcp.is_mptcp);
        self.a.jump_if(R1, Equal, 0, self.out);
    }

    /// R7 = the cookie of the `tcp_sock` in R6, R8 whether it is traced, and its connection on the stack. The first time
    /// it is looked at what is wanted, and there is a record of it.
    fn recognise(&mut self) {
        let layout = self.layout;
        let (unknown, wanted, keep, done) = (self.a.label(), self.a.label(), self.a.label(), self.a.label());
        self.a.copy(R1, R6);
        self.a.call(Helper::GetSocketCookie);
        self.a.copy(R7, R0);
        self.a.store(U64, R10, COOKIE, R7);
        self.look_up(self.maps.known, COOKIE);
        self.a.jump_if(R0, Equal, 0, unknown);
        self.a.load(U64, R8, R0, 0);
        self.a.load(U64, R1, R0, 8);
        self.a.store(U64, R10, CONNECTION, R1);
        self.a.jump(done);

        self.a.place(unknown);
        self.a.load(U64, R3, R6, at(layout.tcp.context));
        self.a.jump_if(R3, Equal, 0, self.out);
        self.a.add(R3, at(layout.context.connection).into());
        self.read_to_stack(CONNECTION, 8);
        self.a.load(U64, R3, R10, CONNECTION);
        self.a.jump_if(R3, Equal, 0, self.out);
        self.a.set(R1, 0);
        self.a.store(U64, R10, KEY_TOKEN, R1);
        self.a.add(R3, at(layout.msk.token).into());
        self.read_to_stack(KEY_TOKEN, 4);
        self.a.load(U64, R1, R10, KEY_TOKEN);
        self.a.jump_if(R1, Equal, 0, self.out);
        self.a.load(U64, R1, R6, at(layout.tcp.net));
        self.a.load(U64, R1, R1, at(layout.net_cookie));
        self.a.store(U64, R10, KEY, R1);
        self.look_up(self.maps.wanted, KEY);
        self.a.jump_if(R0, NotEqual, 0, wanted);
        self.a.set(R1, 0);
        self.a.store(U64, R10, KEY_TOKEN, R1);
        self.look_up(self.maps.wanted, KEY);
        self.a.jump_if(R0, NotEqual, 0, wanted);
        self.a.set(R8, 0);
        self.a.jump(keep);

        self.a.place(wanted);
        self.a.set(R8, 1);
        self.begin_record(kind::SUBFLOW, subflow::size(layout));
        self.a.load(U64, R1, R10, KEY);
        self.a.store(U64, R9, offset(subflow::NAMESPACE), R1);
        self.a.copy(R3, R6);
        self.read_to_record(subflow::TCP, layout.tcp.size);
        self.a.load(U64, R3, R6, at(layout.tcp.context));
        self.read_to_record(subflow::context(layout), layout.context.size);
        self.a.load(U64, R3, R10, CONNECTION);
        self.read_to_record(subflow::msk(layout), layout.msk.size);
        self.end_record();
        self.a.load_map_value(R1, self.maps.counters);
        self.a.set(R2, 1);
        self.a.fetch_add(R1, offset(counter::NEXT_SLOT), R2);
        self.a.and(R2, SLOTS as i32 - 1);
        self.a.store(U32, R10, NUMBER, R2);
        self.look_up(self.maps.slots, NUMBER);
        self.a.jump_if(R0, Equal, 0, keep);
        self.fill_slot(R0, 0);

        self.a.place(keep);
        self.a.store(U64, R10, VALUE, R8);
        self.a.load(U64, R1, R10, CONNECTION);
        self.a.store(U64, R10, VALUE + 8, R1);
        self.a.load_map(R1, self.maps.known);
        self.a.copy(R2, R10);
        self.a.add(R2, COOKIE.into());
        self.a.copy(R3, R10);
        self.a.add(R3, VALUE.into());
        self.a.set(R4, 0); // BPF_ANY
        self.a.call(Helper::MapUpdate);
        self.a.place(done);
    }

    /// The subflow that was recognised, into the slot at `base + place`.
    fn fill_slot(&mut self, base: Register, place: i16) {
        self.a.store(U64, base, place + slot::SOCKET, R6);
        self.a.store(U64, base, place + slot::COOKIE, R7);
        self.a.load(U64, R1, R10, CONNECTION);
        self.a.store(U64, base, place + slot::CONNECTION, R1);
        self.a.store(U64, base, place + slot::TRACED, R8);
    }

    /// Jumps to `no` unless the mapping at the address in R8 is that of the packet that `queue`, a member of the socket at
    /// the address in R7, leads to. Otherwise that packet's address is on the stack.
    fn compare_mapping(&mut self, queue: Member, no: Label) {
        let skb = &self.layout.skb;
        self.a.copy(R3, R7);
        self.a.add(R3, at(queue).into());
        self.read_to_stack(SKB, 8);
        self.a.load(U64, R3, R10, SKB);
        self.a.add(R3, at(skb.extensions).into());
        self.read_to_stack(EXTENSIONS, 8);
        self.a.load(U64, R3, R10, EXTENSIONS);
        self.a.copy(R1, R8);
        self.a.subtract_register(R1, R3);
        self.a.jump_if(R1, Greater, LONGEST_EXTENSIONS, no);
        self.a.add(R3, skb.mptcp_offset as i32);
        self.read_to_stack(BYTE, 1);
        self.a.load(U8, R1, R10, BYTE);
        self.a.shift_left(R1, 3);
        self.a.load(U64, R2, R10, EXTENSIONS);
        self.a.add_register(R2, R1);
        self.a.jump_if_register(R2, NotEqual, R8, no);
    }

    /// Jumps to `no` unless the socket at the address in R7 has the cookie on the stack.
    fn compare_cookie(&mut self, no: Label) {
        self.a.copy(R3, R7);
        self.a.add(R3, at(self.layout.tcp.cookie).into());
        self.read_to_stack(VALUE, 8);
        self.a.load(U64, R1, R10, VALUE);
        self.a.load(U64, R2, R10, COOKIE);
        self.a.jump_if_register(R1, NotEqual, R2, no);
    }

    /// Jumps to `found` if the slot at `place` of this processor's, R9, is the one, and ends if it is not traced.
    fn try_own(&mut self, place: i16, which: Which, found: Label) {
        let no = self.a.label();
        self.a.load(U64, R7, R9, place + which.address());
        self.a.jump_if(R7, Equal, 0, no);
        self.a.load(U64, R1, R9, place + slot::COOKIE);
        self.a.store(U64, R10, COOKIE, R1);
        self.compare(which, no);
        self.a.load(U64, R1, R9, place + slot::TRACED);
        self.a.jump_if(R1, Equal, 0, self.out);
        self.a.jump(found);
        self.a.place(no);
    }

    /// Jumps to `found` if one of the slots is the one.
    fn try_all(&mut self, which: Which, found: Label) {
        let (top, end) = (self.a.label(), self.a.label());
        self.a.set(R9, 0);
        self.a.place(top);
        self.a.jump_if(R9, NotLess, SLOTS as i32, end);
        self.a.store(U32, R10, NUMBER, R9);
        self.a.add(R9, 1);
        self.look_up(self.maps.slots, NUMBER);
        self.a.jump_if(R0, Equal, 0, end);
        self.a.load(U64, R7, R0, which.address());
        // Slots are filled in order.
        self.a.jump_if(R7, Equal, 0, end);
        self.a.load(U64, R1, R0, slot::COOKIE);
        self.a.store(U64, R10, COOKIE, R1);
        self.compare(which, top);
        self.a.jump(found);
        self.a.place(end);
    }

    fn compare(&mut self, which: Which, no: Label) {
        match which {
            Which::Sender => {
                self.compare_mapping(self.layout.tcp.write_queue_tail, no);
                self.compare_cookie(no);
            }
            Which::Receiver => {
                self.compare_mapping(self.layout.tcp.receive_queue_head, no);
                self.compare_cookie(no);
            }
            Which::Acknowledged => {
                self.a.copy(R3, R7);
                self.a.add(R3, at(self.layout.msk.snd_una).into());
                self.read_to_stack(VALUE, 8);
                self.a.load(U64, R1, R10, VALUE);
                // Another processor may have moved it on meanwhile.
                self.a.subtract_register(R1, R8);
                self.a.jump_if(R1, Greater, NEAR, no);
            }
        }
    }

    /// R8 = the address of the mapping, the argument, which stays in R6.
    fn load_mapping(&mut self) {
        self.a.load(U64, R6, R1, 0);
        self.load_state();
        self.a.store(U64, R9, state::SCRATCH, R6);
        self.a.load(U64, R8, R9, state::SCRATCH);
    }

    fn store_mapping(&mut self) {
        let mapping = &self.layout.mapping;
        self.load_member(R1, R6, mapping.data_seq);
        self.a.store(U64, R9, offset(data::DATA_SEQ), R1);
        self.load_member(R1, R6, mapping.data_len);
        self.a.store(U32, R9, offset(data::LENGTH), R1);
    }
}

/// Which subflow is looked for, and how it is recognised.
#[derive(Debug, Clone, Copy)]
enum Which {
    Sender,
    Receiver,
    /// Any of a connection.
    Acknowledged,
}

impl Which {
    fn address(self) -> i16 {
        match self {
            Which::Sender | Which::Receiver => slot::SOCKET,
            Which::Acknowledged => slot::CONNECTION,
        }
    }
}

/// tcp_probe(sk, skb): a segment has arrived, and is about to be dealt with.
pub fn probe(maps: Maps, layout: &Layout) -> Vec<u8> {
    let mut w = Writer::new(maps, layout);
    w.a.load(U64, R1, R1, 0);
    w.load_subflow();
    w.recognise();
    w.load_state();
    w.fill_slot(R9, state::CURRENT);
    w.a.jump_if(R8, Equal, 0, w.out);
    w.begin_record(kind::ACK, ACK_SIZE);
    let tcp = &layout.tcp;
    let columns: [Member; ACK_COLUMNS.len()] = [
        tcp.snd_una,
        tcp.snd_nxt,
        tcp.rcv_nxt,
        tcp.snd_wnd,
        tcp.snd_cwnd,
        tcp.snd_ssthresh,
        tcp.srtt_us,
        tcp.packets_out,
        tcp.lost_out,
        tcp.retrans_out,
        tcp.total_retrans,
    ];
    for (number, member) in columns.into_iter().enumerate() {
        w.load_member(R1, R6, member);
        w.a.store(U32, R9, offset(head::SIZE + 4 * number), R1);
    }
    w.end_record();
    w.finish()
}

/// tcp_retransmit_skb(sk, skb), since 6.15 with the error.
pub fn retransmit(maps: Maps, layout: &Layout) -> Vec<u8> {
    let mut w = Writer::new(maps, layout);
    if layout.tracepoints.retransmit_tells_error {
        w.a.load(U64, R2, R1, 16);
        // Negative: nothing was sent. Positive: it was, and something behind has dropped it (NET_XMIT_DROP).
        w.a.jump_if(R2, Greater, i32::MAX, w.out);
    }
    w.a.load(U64, R2, R1, 8);
    w.a.store(U64, R10, ARGUMENT, R2);
    w.a.load(U64, R1, R1, 0);
    w.load_subflow();
    w.recognise();
    w.a.jump_if(R8, Equal, 0, w.out);
    w.begin_record(kind::RETRANSMITTED, retransmitted::SIZE);
    w.a.load(U64, R3, R10, ARGUMENT);
    w.a.add(R3, layout.skb.seq as i32);
    w.read_to_record(retransmitted::SEQUENCE, 4);
    w.a.load(U64, R1, R10, ARGUMENT);
    w.load_member(R1, R1, layout.skb.len);
    w.a.store(U32, R9, offset(retransmitted::LENGTH), R1);
    w.end_record();
    w.finish()
}

/// mptcp_subflow_get_send(subflow): the scheduler looks at a candidate.
pub fn get_send(maps: Maps, layout: &Layout) -> Vec<u8> {
    let mut w = Writer::new(maps, layout);
    w.a.load(U64, R1, R1, 0);
    w.a.store(U64, R10, ARGUMENT, R1);
    w.load_member(R1, R1, layout.context.tcp_sock);
    w.load_subflow();
    w.recognise();
    w.load_state();
    w.a.load(U64, R2, R9, state::NEXT);
    w.a.copy(R1, R2);
    w.a.add(R1, 1);
    w.a.store(U64, R9, state::NEXT, R1);
    w.a.and(R2, (state::RECENTS - 1).into());
    w.a.shift_left(R2, slot::SIZE.trailing_zeros() as i32);
    w.a.add_register(R9, R2);
    w.fill_slot(R9, state::RECENT);
    w.a.jump_if(R8, Equal, 0, w.out);
    w.begin_record(kind::CANDIDATE, candidate::SIZE);
    let (tcp, context) = (&layout.tcp, &layout.context);
    for (member, width, to) in [
        (tcp.pacing_rate, U64, candidate::PACING_RATE),
        (tcp.wmem_queued, U32, candidate::WMEM_QUEUED),
        (tcp.snd_wnd, U32, candidate::SND_WND),
        (tcp.snd_cwnd, U32, candidate::SND_CWND),
        (tcp.srtt_us, U32, candidate::SRTT_US),
        (tcp.packets_out, U32, candidate::PACKETS_OUT),
    ] {
        w.load_member(R1, R6, member);
        w.a.store(width, R9, offset(to), R1);
    }
    w.a.load(U64, R6, R10, ARGUMENT);
    let flags: [(Member, Width, usize); 4] = [
        (context.avg_pacing_rate, U64, candidate::AVG_PACING_RATE),
        (context.backup, U8, candidate::BACKUP),
        (context.request_backup, U8, candidate::REQUEST_BACKUP),
        (context.stale, U8, candidate::STALE),
    ];
    for (member, width, to) in flags {
        w.load_member(R1, R6, member);
        w.a.store(width, R9, offset(to), R1);
    }
    w.end_record();
    w.finish()
}

/// For each TCP socket that there is: a subflow that has not been recognised yet.
pub fn existing(maps: Maps, layout: &Layout) -> Vec<u8> {
    let mut w = Writer::new(maps, layout);
    w.a.load(U64, R1, R1, TcpIterator::CONTEXT_SOCKET);
    w.a.jump_if(R1, Equal, 0, w.out);
    w.load_subflow();
    w.recognise();
    w.finish()
}

/// mptcp_sendmsg_frag(mapping): data has been given to a subflow.
pub fn sendmsg_frag(maps: Maps, layout: &Layout) -> Vec<u8> {
    let mut w = Writer::new(maps, layout);
    let found = w.a.label();
    w.load_mapping();
    for number in 0..state::RECENTS {
        w.try_own(state::RECENT + number * slot::SIZE as i16, Which::Sender, found);
    }
    w.try_all(Which::Sender, found);
    w.count(counter::UNKNOWN);
    w.a.jump(w.out);
    w.a.place(found);
    w.a.copy(R8, R7);
    w.a.load(U64, R7, R10, COOKIE);
    w.begin_record(kind::SENT, data::SIZE);
    w.store_mapping();
    w.a.copy(R3, R8);
    w.a.add(R3, at(layout.tcp.write_seq).into());
    w.read_to_record(data::SEQUENCE, 4);
    w.end_record();
    w.finish()
}

/// get_mapping_status(mapping): data is the next in a subflow's receive queue.
pub fn mapping(maps: Maps, layout: &Layout) -> Vec<u8> {
    let mut w = Writer::new(maps, layout);
    let found = w.a.label();
    w.load_mapping();
    w.try_own(state::CURRENT, Which::Receiver, found);
    w.try_all(Which::Receiver, found);
    w.a.jump(w.out);
    w.a.place(found);
    w.a.copy(R8, R7);
    w.a.load(U64, R7, R10, COOKIE);
    w.begin_record(kind::ARRIVED, data::SIZE);
    w.store_mapping();
    w.load_member(R1, R6, layout.mapping.subflow_seq);
    w.a.store(U32, R9, offset(data::SEQUENCE), R1);
    w.load_member(R1, R6, layout.mapping.data_fin);
    w.a.store(U8, R9, offset(data::FLAGS), R1);
    w.a.load(U64, R3, R10, SKB);
    w.a.add(R3, layout.skb.seq as i32);
    w.read_to_record(data::SEGMENT, 4);
    w.a.load(U64, R3, R10, SKB);
    w.a.add(R3, at(layout.skb.len).into());
    w.read_to_record(data::SEGMENT_LENGTH, 4);
    w.a.copy(R3, R8);
    w.a.add(R3, at(layout.tcp.context).into());
    w.read_to_stack(VALUE, 8);
    w.a.load(U64, R3, R10, VALUE);
    w.a.add(R3, at(layout.context.ssn_offset).into());
    w.read_to_record(data::OFFSET, 4);
    w.end_record();
    w.finish()
}

/// ack_update_msk(data_ack, old_snd_una, new_snd_una, ...): a DATA_ACK has arrived.
pub fn ack_update(maps: Maps, layout: &Layout) -> Vec<u8> {
    let mut w = Writer::new(maps, layout);
    let found = w.a.label();
    w.a.load(U64, R2, R1, 8);
    w.a.load(U64, R8, R1, 16);
    // It acknowledges nothing new.
    w.a.jump_if_register(R2, Equal, R8, w.out);
    w.load_state();
    w.try_own(state::CURRENT, Which::Acknowledged, found);
    w.try_all(Which::Acknowledged, found);
    w.a.jump(w.out);
    w.a.place(found);
    w.a.load(U64, R7, R10, COOKIE);
    w.begin_record(kind::DATA_ACK, data_ack::SIZE);
    w.a.store(U64, R9, offset(data_ack::NUMBER), R8);
    w.end_record();
    w.finish()
}
