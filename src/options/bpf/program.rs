//! The iterator program, and the shape of the memory it shares with us. Pure.
//!
//! The kernel runs the program once for every TCP socket of one network namespace, with the socket locked. Two maps carry
//! the work in and the answers out:
//!
//! - `index`, a hash map: a socket's cookie -> the [`Range`] of its requests. One look-up is all that other sockets cost.
//! - `slots`, an array map: the requests ([`Slot`]), one socket's next to each other.
//!
//! `unserved`, an array map with one `u32`, is the number of requests not yet served: at zero the program ends the iteration.

use crate::abi::bytes;
use crate::bpf::insn::Register::{R0, R1, R10, R2, R3, R4, R5, R6, R7, R8, R9};
use crate::bpf::insn::When::{Equal, Greater, Less, NotEqual};
use crate::bpf::insn::Width::{U32, U64};
use crate::bpf::insn::{Assembler, Helper};
use crate::bpf::TcpIterator;

/// Requests that one run can carry.
pub const MAX_REQUESTS: usize = 512;

/// Requests for one socket that one run can carry. The verifier walks every turn of the loop, so the time to load grows with
/// it: 6 ms at 16, 8 ms at 32, 28 ms at 128. There are about 30 options in all.
pub const MAX_PER_SOCKET: usize = 32;

/// The longest option value. TCP_CONGESTION takes 16 bytes, TCP_SAVED_SYN 194 at most, everything else 4.
pub const MAX_VALUE: usize = 256;

/// In [`Slot::result`] before the socket is met. Helpers return 0 or less. A positive number, for the program compares 64 bits
/// after a load that fills the upper half with zeros.
pub const NOT_MET: i32 = 1;

/// Where one socket's requests lie in `slots`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub first: u32,
    pub count: u32,
}

impl Range {
    pub const SIZE: usize = 8;
    const FIRST: i16 = 0;
    const COUNT: i16 = 4;

    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes::put(&mut bytes, Self::FIRST as usize, &self.first.to_ne_bytes());
        bytes::put(&mut bytes, Self::COUNT as usize, &self.count.to_ne_bytes());
        bytes
    }
}

/// One request and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    pub cookie: u64,
    pub level: i32,
    pub name: i32,
    pub set: bool,
    /// Length of the value to set, or of the buffer to fill: 1 to [`MAX_VALUE`].
    pub length: u32,
    /// [`NOT_MET`], or what the helper returned: 0 or a negative errno.
    pub result: i32,
    pub value: [u8; MAX_VALUE],
}

impl Slot {
    pub const SIZE: usize = 32 + MAX_VALUE;
    const COOKIE: i16 = 0;
    const LEVEL: i16 = 8;
    const NAME: i16 = 12;
    const SET: i16 = 16;
    const LENGTH: i16 = 20;
    const RESULT: i16 = 24;
    const VALUE: i16 = 32;

    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        let mut put = |at: i16, field: &[u8]| bytes::put(&mut bytes, at as usize, field);
        put(Self::COOKIE, &self.cookie.to_ne_bytes());
        put(Self::LEVEL, &self.level.to_ne_bytes());
        put(Self::NAME, &self.name.to_ne_bytes());
        put(Self::SET, &u32::from(self.set).to_ne_bytes());
        put(Self::LENGTH, &self.length.to_ne_bytes());
        put(Self::RESULT, &self.result.to_ne_bytes());
        put(Self::VALUE, &self.value);
        bytes
    }

    /// What the program leaves behind: the result and the value.
    pub fn answer(bytes: &[u8; Self::SIZE]) -> (i32, [u8; MAX_VALUE]) {
        let result = std::array::from_fn(|i| bytes[Self::RESULT as usize + i]);
        let value = std::array::from_fn(|i| bytes[Self::VALUE as usize + i]);
        (i32::from_ne_bytes(result), value)
    }
}

/// Descriptors of the maps.
#[derive(Clone, Copy, Debug)]
pub struct Maps {
    pub index: i32,
    pub slots: i32,
    pub unserved: i32,
}

// On the stack: the keys of the two look-ups.
const COOKIE: i16 = -8;
const SLOT_NUMBER: i16 = -12;

/// The program: for the socket met, if `index` knows its cookie, every request of its range.
pub fn program(maps: Maps) -> Vec<u8> {
    let mut a = Assembler::new();
    let next_socket = a.label();
    let next_request = a.label();
    let advance = a.label();
    let set = a.label();
    let served = a.label();

    // R6: the socket. Null on the last call, which announces the end of the iteration.
    a.load(U64, R6, R1, TcpIterator::CONTEXT_SOCKET);
    a.jump_if(R6, Equal, 0, next_socket);

    // Is its cookie one of ours?
    a.copy(R1, R6);
    a.call(Helper::GetSocketCookie);
    a.store(U64, R10, COOKIE, R0);
    a.load_map(R1, maps.index);
    a.copy(R2, R10);
    a.add(R2, COOKIE.into());
    a.call(Helper::MapLookup);
    a.jump_if(R0, Equal, 0, next_socket);

    // R7: the number of its next request. R8: how many are left. The verifier follows both bounds of R8 to see that the loop
    // ends. Older ones (6.1) learn nothing about a number from Equal or NotEqual, so numbers are bounded by Less and Greater.
    a.load(U32, R7, R0, Range::FIRST);
    a.load(U32, R8, R0, Range::COUNT);
    a.jump_if(R8, Greater, MAX_PER_SOCKET as i32, next_socket);

    // A full TCP socket? A closed one keeps its cookie while it is in TIME_WAIT: to us it is gone.
    a.copy(R1, R6);
    a.call(Helper::SkcToTcpSock);
    a.jump_if(R0, Equal, 0, next_socket);

    a.place(next_request);
    a.jump_if(R8, Less, 1, next_socket);

    // R9: the request.
    a.store(U32, R10, SLOT_NUMBER, R7);
    a.load_map(R1, maps.slots);
    a.copy(R2, R10);
    a.add(R2, SLOT_NUMBER.into());
    a.call(Helper::MapLookup);
    a.jump_if(R0, Equal, 0, next_socket);
    a.copy(R9, R0);

    // Never another socket's request, whatever `index` says; and none twice, should the iteration meet a socket again.
    a.load(U64, R1, R9, Slot::COOKIE);
    a.load(U64, R2, R10, COOKIE);
    a.jump_if_register(R1, NotEqual, R2, next_socket);
    a.load(U32, R1, R9, Slot::RESULT);
    a.jump_if(R1, NotEqual, NOT_MET, advance);

    // helper(socket, level, name, value, length); the verifier wants to see 1 <= length <= MAX_VALUE.
    a.load(U32, R5, R9, Slot::LENGTH);
    a.jump_if(R5, Less, 1, advance);
    a.jump_if(R5, Greater, MAX_VALUE as i32, advance);
    a.copy(R1, R6);
    a.load(U32, R2, R9, Slot::LEVEL);
    a.load(U32, R3, R9, Slot::NAME);
    a.copy(R4, R9);
    a.add(R4, Slot::VALUE.into());
    a.load(U32, R0, R9, Slot::SET);
    a.jump_if(R0, NotEqual, 0, set);
    a.call(Helper::GetSockopt);
    a.jump(served);
    a.place(set);
    a.call(Helper::SetSockopt);
    a.place(served);
    a.store(U32, R9, Slot::RESULT, R0);

    // The last one? Then 1, which ends the read with EAGAIN: no need to walk the rest of the sockets.
    a.load_map_value(R1, maps.unserved);
    a.load(U32, R2, R1, 0);
    a.add(R2, -1);
    a.store(U32, R1, 0, R2);
    a.jump_if(R2, NotEqual, 0, advance);
    a.set(R0, 1);
    a.exit();

    a.place(advance);
    a.add(R7, 1);
    a.add(R8, -1);
    a.jump(next_request);

    a.place(next_socket);
    a.set(R0, 0);
    a.exit();
    a.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_keeps_its_answer() {
        let mut value = [0; MAX_VALUE];
        value[..4].copy_from_slice(b"reno");
        let slot = Slot { cookie: 7, level: 6, name: 13, set: true, length: 4, result: -22, value };
        let bytes = slot.to_bytes();
        assert_eq!(bytes[..8], 7u64.to_ne_bytes());
        assert_eq!(bytes[16..20], 1u32.to_ne_bytes());
        assert_eq!(Slot::answer(&bytes), (-22, value));
    }

    #[test]
    fn fields_are_aligned_and_apart() {
        let fields = [
            (Slot::COOKIE, 8),
            (Slot::LEVEL, 4),
            (Slot::NAME, 4),
            (Slot::SET, 4),
            (Slot::LENGTH, 4),
            (Slot::RESULT, 4),
            (Slot::VALUE, MAX_VALUE as i16),
        ];
        for pair in fields.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0);
        }
        assert!(fields.iter().all(|&(at, size)| at % size.min(8) == 0));
        assert_eq!(Slot::VALUE as usize + MAX_VALUE, Slot::SIZE);
    }

    #[test]
    fn only_the_descriptors_differ() {
        let one = program(Maps { index: 3, slots: 4, unserved: 5 });
        let other = program(Maps { index: 9, slots: 8, unserved: 7 });
        assert_eq!(one.len(), other.len());
        assert_eq!(one.len() % 8, 0);
        let differing = one.iter().zip(&other).filter(|(a, b)| a != b).count();
        assert_eq!(differing, 3);
    }
}
