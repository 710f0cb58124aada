//! BPF instructions: named constructors, labels, and their bytes. Pure.
//!
//! Encodings are those of `linux/bpf.h` and `linux/bpf_common.h`. One instruction is eight bytes: operation, two
//! registers, a signed 16-bit offset and a signed 32-bit immediate, in the machine's own byte order.

/// A register. `R0` holds results, `R1` to `R5` arguments (lost at a call), `R6` to `R9` survive calls, `R10` is the
/// frame pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Register {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
}

/// Width of a load or store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Width {
    U32 = 0x00, // BPF_W
    U16 = 0x08, // BPF_H
    U8 = 0x10,  // BPF_B
    U64 = 0x18, // BPF_DW
}

/// When a conditional jump is taken. Comparisons are of 64 bits and unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum When {
    Equal = 0x10,    // BPF_JEQ
    Greater = 0x20,  // BPF_JGT
    NotEqual = 0x50, // BPF_JNE
    NotLess = 0x30,  // BPF_JGE
    Less = 0xa0,     // BPF_JLT
}

/// A kernel helper function, by its number in `enum bpf_func_id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Helper {
    MapLookup = 1,
    MapUpdate = 2,
    KtimeGetNs = 5,
    GetSocketCookie = 46,
    SetSockopt = 49,
    GetSockopt = 57,
    SkRelease = 86,
    SkcLookupTcp = 99,
    ProbeReadKernel = 113,
    Jiffies64 = 118,
    RingbufReserve = 131,
    RingbufSubmit = 132,
    SkcToTcpSock = 137,
}

/// A place in the program, to jump to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

const BPF_LD: u8 = 0x00;
const BPF_LDX: u8 = 0x01;
const BPF_STX: u8 = 0x03;
const BPF_JMP: u8 = 0x05;
const BPF_ALU64: u8 = 0x07;
const BPF_IMM: u8 = 0x00;
const BPF_MEM: u8 = 0x60;
const BPF_ATOMIC: u8 = 0xc0;
const BPF_FETCH: i32 = 0x01;
const BPF_K: u8 = 0x00;
const BPF_X: u8 = 0x08;
const BPF_ADD: u8 = 0x00;
const BPF_SUB: u8 = 0x10;
const BPF_AND: u8 = 0x50;
const BPF_LSH: u8 = 0x60;
const BPF_MOV: u8 = 0xb0;
const BPF_JA: u8 = 0x00;
const BPF_CALL: u8 = 0x80;
const BPF_EXIT: u8 = 0x90;
const BPF_PSEUDO_MAP_FD: u8 = 1;
const BPF_PSEUDO_MAP_VALUE: u8 = 2;

#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    destination: u8,
    source: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    fn bytes(self) -> [u8; 8] {
        // The two registers are bit fields, so their order follows the byte order.
        let registers = if cfg!(target_endian = "little") {
            self.source << 4 | self.destination
        } else {
            self.destination << 4 | self.source
        };
        let mut bytes = [0; 8];
        bytes[0] = self.code;
        bytes[1] = registers;
        bytes[2..4].copy_from_slice(&self.offset.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.immediate.to_ne_bytes());
        bytes
    }
}

/// Collects instructions; [`Assembler::finish`] resolves the labels.
#[derive(Default)]
pub struct Assembler {
    instructions: Vec<Instruction>,
    labels: Vec<Option<usize>>,
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    pub fn new() -> Self {
        Self::default()
    }

    /// A label, to be placed by [`Assembler::place`].
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// The label means the next instruction.
    pub fn place(&mut self, label: Label) {
        self.labels[label.0] = Some(self.instructions.len());
    }

    /// `to = from`
    pub fn copy(&mut self, to: Register, from: Register) {
        self.push(BPF_ALU64 | BPF_MOV | BPF_X, to as u8, from as u8, 0, 0);
    }

    /// `to = value`
    pub fn set(&mut self, to: Register, value: i32) {
        self.push(BPF_ALU64 | BPF_MOV | BPF_K, to as u8, 0, 0, value);
    }

    /// `to += value`
    pub fn add(&mut self, to: Register, value: i32) {
        self.push(BPF_ALU64 | BPF_ADD | BPF_K, to as u8, 0, 0, value);
    }

    /// `to += from`
    pub fn add_register(&mut self, to: Register, from: Register) {
        self.push(BPF_ALU64 | BPF_ADD | BPF_X, to as u8, from as u8, 0, 0);
    }

    /// `to -= from`
    pub fn subtract_register(&mut self, to: Register, from: Register) {
        self.push(BPF_ALU64 | BPF_SUB | BPF_X, to as u8, from as u8, 0, 0);
    }

    /// `to &= value`
    pub fn and(&mut self, to: Register, value: i32) {
        self.push(BPF_ALU64 | BPF_AND | BPF_K, to as u8, 0, 0, value);
    }

    /// `to <<= bits`
    pub fn shift_left(&mut self, to: Register, bits: i32) {
        self.push(BPF_ALU64 | BPF_LSH | BPF_K, to as u8, 0, 0, bits);
    }

    /// `*(u64 *)(base + offset) += from`, as one operation; `from` becomes what was there.
    pub fn fetch_add(&mut self, base: Register, offset: i16, from: Register) {
        let code = BPF_STX | BPF_ATOMIC | Width::U64 as u8;
        self.push(code, base as u8, from as u8, offset, i32::from(BPF_ADD) | BPF_FETCH);
    }

    /// `to = *(width *)(base + offset)`
    pub fn load(&mut self, width: Width, to: Register, base: Register, offset: i16) {
        self.push(BPF_LDX | BPF_MEM | width as u8, to as u8, base as u8, offset, 0);
    }

    /// `*(width *)(base + offset) = from`
    pub fn store(&mut self, width: Width, base: Register, offset: i16, from: Register) {
        self.push(BPF_STX | BPF_MEM | width as u8, base as u8, from as u8, offset, 0);
    }

    /// `to =` the map behind this descriptor
    pub fn load_map(&mut self, to: Register, map: i32) {
        self.push_wide(to, BPF_PSEUDO_MAP_FD, map);
    }

    /// `to =` address of the first value of this array map
    pub fn load_map_value(&mut self, to: Register, map: i32) {
        self.push_wide(to, BPF_PSEUDO_MAP_VALUE, map);
    }

    /// `R0 = helper(R1, R2, R3, R4, R5)`
    pub fn call(&mut self, helper: Helper) {
        self.push(BPF_JMP | BPF_CALL, 0, 0, 0, helper as i32);
    }

    /// Returns `R0`.
    pub fn exit(&mut self) {
        self.push(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
    }

    pub fn jump(&mut self, target: Label) {
        self.jumps.push((self.instructions.len(), target));
        self.push(BPF_JMP | BPF_JA, 0, 0, 0, 0);
    }

    /// Jumps when `left` compares so with `right`, a constant.
    pub fn jump_if(&mut self, left: Register, when: When, right: i32, target: Label) {
        self.jumps.push((self.instructions.len(), target));
        self.push(BPF_JMP | when as u8 | BPF_K, left as u8, 0, 0, right);
    }

    /// Jumps when `left` compares so with `right`, a register.
    pub fn jump_if_register(&mut self, left: Register, when: When, right: Register, target: Label) {
        self.jumps.push((self.instructions.len(), target));
        self.push(BPF_JMP | when as u8 | BPF_X, left as u8, right as u8, 0, 0);
    }

    /// The program's bytes. A label that was never placed, or is too far to reach, becomes a jump out of the program,
    /// which the verifier refuses.
    pub fn finish(mut self) -> Vec<u8> {
        for &(from, label) in &self.jumps {
            let distance = self.labels[label.0].map(|to| to as i64 - (from as i64 + 1));
            let offset = distance.and_then(|distance| i16::try_from(distance).ok());
            self.instructions[from].offset = offset.unwrap_or(i16::MAX);
        }
        self.instructions.into_iter().flat_map(Instruction::bytes).collect()
    }

    fn push(&mut self, code: u8, destination: u8, source: u8, offset: i16, immediate: i32) {
        self.instructions.push(Instruction { code, destination, source, offset, immediate });
    }

    /// The one instruction of sixteen bytes: a 64-bit constant, or what the kernel puts in the place of a map.
    fn push_wide(&mut self, to: Register, pseudo: u8, low: i32) {
        let code = BPF_LD | BPF_IMM | Width::U64 as u8;
        self.push(code, to as u8, pseudo, 0, low);
        self.push(0, 0, 0, 0, 0);
    }
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::Register::*;
    use super::*;

    fn assembled(write: impl FnOnce(&mut Assembler)) -> Vec<u8> {
        let mut assembler = Assembler::new();
        write(&mut assembler);
        assembler.finish()
    }

    #[test]
    fn encodings_are_the_kernels() {
        // Expected bytes as `llvm-mc -triple bpfel -show-encoding` prints them.
        let cases: [(&str, Vec<u8>, [u8; 8]); 14] = [
            ("r6 = r1", assembled(|a| a.copy(R6, R1)), [0xbf, 0x16, 0, 0, 0, 0, 0, 0]),
            ("r0 = 1", assembled(|a| a.set(R0, 1)), [0xb7, 0, 0, 0, 1, 0, 0, 0]),
            ("r1 += r7", assembled(|a| a.add_register(R1, R7)), [0x0f, 0x71, 0, 0, 0, 0, 0, 0]),
            ("r2 += -8", assembled(|a| a.add(R2, -8)), [0x07, 2, 0, 0, 0xf8, 0xff, 0xff, 0xff]),
            (
                "r6 = *(u64 *)(r1 + 8)",
                assembled(|a| a.load(Width::U64, R6, R1, 8)),
                [0x79, 0x16, 8, 0, 0, 0, 0, 0],
            ),
            (
                "r2 = *(u32 *)(r9 + 8)",
                assembled(|a| a.load(Width::U32, R2, R9, 8)),
                [0x61, 0x92, 8, 0, 0, 0, 0, 0],
            ),
            (
                "*(u64 *)(r10 - 8) = r0",
                assembled(|a| a.store(Width::U64, R10, -8, R0)),
                [0x7b, 0x0a, 0xf8, 0xff, 0, 0, 0, 0],
            ),
            (
                "*(u32 *)(r10 - 12) = r7",
                assembled(|a| a.store(Width::U32, R10, -12, R7)),
                [0x63, 0x7a, 0xf4, 0xff, 0, 0, 0, 0],
            ),
            (
                "r1 = *(u8 *)(r6 + 24)",
                assembled(|a| a.load(Width::U8, R1, R6, 24)),
                [0x71, 0x61, 24, 0, 0, 0, 0, 0],
            ),
            ("r1 -= r2", assembled(|a| a.subtract_register(R1, R2)), [0x1f, 0x21, 0, 0, 0, 0, 0, 0]),
            ("r1 <<= 3", assembled(|a| a.shift_left(R1, 3)), [0x67, 1, 0, 0, 3, 0, 0, 0]),
            (
                "r2 = atomic_fetch_add((u64 *)(r1 + 16), r2)",
                assembled(|a| a.fetch_add(R1, 16, R2)),
                [0xdb, 0x21, 16, 0, 1, 0, 0, 0],
            ),
            ("call 49", assembled(|a| a.call(Helper::SetSockopt)), [0x85, 0, 0, 0, 49, 0, 0, 0]),
            ("exit", assembled(|a| a.exit()), [0x95, 0, 0, 0, 0, 0, 0, 0]),
        ];
        for (text, ours, expected) in cases {
            assert_eq!(ours, expected, "{text}");
        }
    }

    #[test]
    fn a_map_takes_two_places() {
        let map = assembled(|a| a.load_map(R1, 5));
        assert_eq!(map, [0x18, 0x11, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let value = assembled(|a| a.load_map_value(R1, 5));
        assert_eq!(value[1], 0x21);
    }

    #[test]
    fn jumps_count_from_the_next_instruction() {
        let bytes = assembled(|a| {
            let (top, end) = (a.label(), a.label());
            a.place(top);
            a.jump_if(R8, When::Equal, 0, end); // 0: over 1, 2, 3 and 4
            a.load_map(R1, 3); // 1 and 2
            a.jump_if_register(R1, When::NotEqual, R2, end); // 3: over 4
            a.jump(top); // 4: back to 0
            a.place(end);
            a.exit();
        });
        assert_eq!(bytes[0..8], [0x15, 8, 4, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[24..32], [0x5d, 0x21, 1, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[32..40], [0x05, 0, 0xfb, 0xff, 0, 0, 0, 0]);
    }

    #[test]
    fn a_label_that_is_nowhere_leads_out_of_the_program() {
        let bytes = assembled(|a| {
            let nowhere = a.label();
            a.jump(nowhere);
        });
        assert_eq!(bytes, [0x05, 0, 0xff, 0x7f, 0, 0, 0, 0]);
    }
}
