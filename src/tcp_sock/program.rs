//! The four programs, and the shape of the memory that they share with us. Pure.
//!
//! `find`, a traffic classifier run on a packet that does not exist, looks one subflow up by its ends and leaves the
//! address of its `struct tcp_sock`. `read`, a syscall program, copies the `tcp_sock` and the `mptcp_subflow_context`
//! of every slot that has an address, by bpf_probe_read_kernel, which takes no lock and survives any address.
//! `read_connections` does the same with `struct mptcp_sock`. `end`, at the tracepoint inet_sock_set_state, copies the
//! `tcp_sock` and the context of every subflow that becomes CLOSE, before the kernel can clear anything.
//!
//! Memory of a `tcp_sock` is only ever used for others (SLAB_TYPESAFE_BY_RCU), and a cookie is never used again: a copy
//! is of the subflow that is meant if the cookie was the same before and after. The same holds for a `mptcp_sock` and its
//! token, which two live connections never share.

use crate::abi::uapi::tcp_state;
use crate::bpf::btf::Member;
use crate::bpf::insn::Register::{R0, R1, R10, R2, R3, R4, R5, R6, R7, R8, R9};
use crate::bpf::insn::When::{Equal, NotEqual, NotLess};
use crate::bpf::insn::Width::{U32, U64};
use crate::bpf::insn::{Assembler, Helper};

use super::connection_layout::ConnectionLayout;
use super::layout::Layout;

/// Slots that one run reads. The verifier walks every turn of the loop, so the time to load grows with it: 22 ms at 256.
pub const RUN: u32 = 64;

/// What `find` is asked and answers: the one value of its map.
pub mod request {
    /// `struct bpf_sock_tuple`: the peer's end first, as in a packet from it.
    pub const TUPLE: usize = 0;
    /// Its length, which tells IPv4 from IPv6. Eight bytes, as the two that follow.
    pub const LENGTH: usize = 40;
    pub const ADDRESS: usize = 48;
    pub const COOKIE: usize = 56;
    pub const SIZE: usize = 64;
    pub const IPV4: usize = 12;
    pub const IPV6: usize = 36;
}

/// What a slot has before the copies. Eight bytes each.
pub mod slot {
    /// Of the `tcp_sock` or `mptcp_sock`; 0 in a slot that is free.
    pub const ADDRESS: usize = 0;
    /// The cookie of a `tcp_sock` or the token of a `mptcp_sock`, before and after the copies.
    pub const IDENTITY_BEFORE: usize = 8;
    pub const IDENTITY_AFTER: usize = 16;
    /// CLOCK_MONOTONIC, when it had been read.
    pub const TIME_NS: usize = 24;
    pub const JIFFIES: usize = 32;
    pub const HEAD: usize = 40;
}

/// Where the `tcp_sock` or `mptcp_sock` lies in a slot.
pub const SOCKET: usize = slot::HEAD;

/// Where the `mptcp_subflow_context` lies in a slot.
pub fn context(layout: &Layout) -> usize {
    (SOCKET + layout.socket_size).next_multiple_of(8)
}

pub fn slot_size(layout: &Layout) -> usize {
    (context(layout) + layout.context_size).next_multiple_of(8)
}

/// Where a connection's slot has the state of its initial subflow.
pub fn first_state(layout: &ConnectionLayout) -> usize {
    (SOCKET + layout.socket_size).next_multiple_of(8)
}

pub fn connection_slot_size(layout: &ConnectionLayout) -> usize {
    first_state(layout) + 8
}

/// What a record of `end` has before the two copies. Eight bytes each.
pub mod ending {
    /// Of the `tcp_sock`.
    pub const ADDRESS: usize = 0;
    pub const COOKIE: usize = 8;
    /// `net_cookie` of its network namespace.
    pub const NAMESPACE: usize = 16;
    /// CLOCK_MONOTONIC.
    pub const TIME_NS: usize = 24;
    pub const JIFFIES: usize = 32;
    /// The state that it leaves.
    pub const STATE: usize = 40;
    pub const HEAD: usize = 48;
}

/// Where the `tcp_sock` lies in a record of `end`.
pub const ENDED_SOCKET: usize = ending::HEAD;

/// Where the `mptcp_subflow_context` lies in a record of `end`.
pub fn ended_context(layout: &Layout) -> usize {
    (ENDED_SOCKET + layout.socket_size).next_multiple_of(8)
}

pub fn ending_size(layout: &Layout) -> usize {
    (ended_context(layout) + layout.context_size).next_multiple_of(8)
}

fn offset(at: usize) -> i16 {
    // Slots are of some thousand bytes: see Layout::new.
    at as i16
}

/// Finds the subflow in `request`, a map of one value.
pub fn find(request: i32, layout: &Layout) -> Vec<u8> {
    let mut a = Assembler::new();
    let (by_ipv6, found, release, end) = (a.label(), a.label(), a.label(), a.label());
    a.copy(R6, R1);
    a.load_map_value(R7, request);
    a.load(U64, R8, R7, offset(request::LENGTH));
    let look_up = |a: &mut Assembler, length: usize| {
        a.copy(R1, R6);
        a.copy(R2, R7);
        a.set(R3, length as i32);
        a.set(R4, -1); // BPF_F_CURRENT_NETNS
        a.set(R5, 0);
        a.call(Helper::SkcLookupTcp);
    };
    a.jump_if(R8, Equal, request::IPV6 as i32, by_ipv6);
    look_up(&mut a, request::IPV4);
    a.jump(found);
    a.place(by_ipv6);
    look_up(&mut a, request::IPV6);
    a.place(found);
    a.jump_if(R0, Equal, 0, end);
    a.copy(R8, R0);
    a.copy(R1, R0);
    a.call(Helper::SkcToTcpSock);
    a.jump_if(R0, Equal, 0, release);
    a.load(U64, R1, R0, offset(layout.cookie.offset()));
    a.store(U64, R7, offset(request::COOKIE), R1);
    a.store(U64, R7, offset(request::ADDRESS), R0);
    a.place(release);
    a.copy(R1, R8);
    a.call(Helper::SkRelease);
    a.place(end);
    a.set(R0, 0);
    a.exit();
    a.finish()
}

/// On the stack: the key of a look-up.
const SLOT_NUMBER: i16 = -4;

/// Copies `size` bytes from where R3 points to `to` in what R6 points to.
fn copy(a: &mut Assembler, to: usize, size: usize) {
    a.copy(R1, R6);
    a.add(R1, to as i32);
    a.set(R2, size as i32);
    a.call(Helper::ProbeReadKernel);
}

/// Fills the slots of `slots` from the one whose number is the first word of the argument, as many as the second says
/// and at most [`RUN`]: `fill` does it for the one that R6 points to. `identity` is a member of the structure whose
/// address the slot has.
fn read_slots(slots: i32, identity: Member, fill: impl FnOnce(&mut Assembler)) -> Vec<u8> {
    let mut a = Assembler::new();
    let (top, next, end) = (a.label(), a.label(), a.label());
    a.load(U32, R9, R1, 0);
    a.load(U32, R8, R1, 4);
    a.set(R7, 0);
    a.place(top);
    a.jump_if(R7, NotLess, RUN as i32, end);
    a.jump_if_register(R7, NotLess, R8, end);
    a.copy(R1, R9);
    a.add_register(R1, R7);
    a.store(U32, R10, SLOT_NUMBER, R1);
    a.load_map(R1, slots);
    a.copy(R2, R10);
    a.add(R2, SLOT_NUMBER.into());
    a.call(Helper::MapLookup);
    a.jump_if(R0, Equal, 0, end);
    a.copy(R6, R0);
    a.load(U64, R3, R6, offset(slot::ADDRESS));
    a.jump_if(R3, Equal, 0, next);
    let identify = |a: &mut Assembler, to: usize| {
        a.load(U64, R3, R6, offset(slot::ADDRESS));
        a.add(R3, identity.offset() as i32);
        copy(a, to, identity.size());
    };
    identify(&mut a, slot::IDENTITY_BEFORE);
    fill(&mut a);
    identify(&mut a, slot::IDENTITY_AFTER);
    a.call(Helper::Jiffies64);
    a.store(U64, R6, offset(slot::JIFFIES), R0);
    a.call(Helper::KtimeGetNs);
    a.store(U64, R6, offset(slot::TIME_NS), R0);
    a.place(next);
    a.add(R7, 1);
    a.jump(top);
    a.place(end);
    a.set(R0, 0);
    a.exit();
    a.finish()
}

/// Reads subflows into `slots`: what is needed of each.
pub fn read(slots: i32, layout: &Layout) -> Vec<u8> {
    read_slots(slots, layout.cookie, |a| {
        for (at, size) in layout.parts() {
            a.load(U64, R3, R6, offset(slot::ADDRESS));
            a.add(R3, at as i32);
            copy(a, SOCKET + at, size);
        }
        a.load(U64, R3, R6, offset(SOCKET + layout.context.offset()));
        copy(a, context(layout), layout.context_size);
    })
}

/// Reads connections into `slots`.
pub fn read_connections(slots: i32, layout: &ConnectionLayout) -> Vec<u8> {
    read_slots(slots, layout.token, |a| {
        a.load(U64, R3, R6, offset(slot::ADDRESS));
        copy(a, SOCKET, layout.socket_size);
        // Without an initial subflow the kernel clears what it cannot copy.
        a.load(U64, R3, R6, offset(SOCKET + layout.first.offset()));
        a.add(R3, layout.state.offset() as i32);
        copy(a, first_state(layout), layout.state.size());
    })
}

/// At the tracepoint inet_sock_set_state: puts a record of each subflow that becomes CLOSE into `records`, a ring buffer.
pub fn end(records: i32, layout: &Layout) -> Vec<u8> {
    let mut a = Assembler::new();
    let end = a.label();
    // The tracepoint's arguments: the socket, its state and its new state.
    a.load(U64, R8, R1, 16);
    a.jump_if(R8, NotEqual, tcp_state::CLOSE.into(), end);
    a.load(U64, R9, R1, 8);
    a.load(U64, R1, R1, 0);
    a.call(Helper::SkcToTcpSock);
    a.jump_if(R0, Equal, 0, end);
    a.copy(R7, R0);
    a.load(U64, R8, R7, offset(layout.context.offset()));
    a.jump_if(R8, Equal, 0, end);
    a.load_map(R1, records);
    a.set(R2, ending_size(layout) as i32);
    a.set(R3, 0);
    a.call(Helper::RingbufReserve);
    a.jump_if(R0, Equal, 0, end);
    a.copy(R6, R0);
    a.store(U64, R6, offset(ending::ADDRESS), R7);
    a.store(U64, R6, offset(ending::STATE), R9);
    a.load(U64, R1, R7, offset(layout.net.offset()));
    a.load(U64, R1, R1, offset(layout.net_cookie.offset()));
    a.store(U64, R6, offset(ending::NAMESPACE), R1);
    // One that was never listed has no cookie yet.
    a.copy(R1, R7);
    a.call(Helper::GetSocketCookie);
    a.store(U64, R6, offset(ending::COOKIE), R0);
    a.copy(R3, R7);
    copy(&mut a, ENDED_SOCKET, layout.socket_size);
    a.copy(R3, R8);
    copy(&mut a, ended_context(layout), layout.context_size);
    a.call(Helper::Jiffies64);
    a.store(U64, R6, offset(ending::JIFFIES), R0);
    a.call(Helper::KtimeGetNs);
    a.store(U64, R6, offset(ending::TIME_NS), R0);
    a.copy(R1, R6);
    a.set(R2, 0);
    a.call(Helper::RingbufSubmit);
    a.place(end);
    a.set(R0, 0);
    a.exit();
    a.finish()
}
