//! Classic BPF programs over `struct seccomp_data`: which system calls, with which arguments.

/// `<linux/audit.h>`: the calls of the machine's own 64-bit interface.
#[cfg(target_arch = "x86_64")]
pub const AUDIT_ARCH: Option<u32> = Some(0xc000_003e);
#[cfg(target_arch = "aarch64")]
pub const AUDIT_ARCH: Option<u32> = Some(0xc000_00b7);
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub const AUDIT_ARCH: Option<u32> = None;

/// Every bit of an argument that is an int.
pub const ALL: i32 = -1;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

/// The lower half of an argument, all that these calls take of it: an int. Both machines are little-endian.
fn argument(index: u32) -> u32 {
    16 + 8 * index
}

/// An argument, without the bits outside the mask, is one of some values.
#[derive(Debug)]
pub struct Condition {
    pub argument: u32,
    pub mask: i32,
    pub values: &'static [i32],
}

/// A call that a program is about if all conditions hold.
#[derive(Debug)]
pub struct Rule {
    pub number: libc::c_long,
    pub conditions: &'static [Condition],
}

/// The program, or `None` on a machine that these were not written for. A call that a rule fits gets the action, a value of
/// SECCOMP_RET, of the first such rule's group; any other gets `other`; one that was made by another interface than the
/// machine's own 64-bit one gets `foreign`.
pub fn program(groups: &[(&[Rule], u32)], other: u32, foreign: u32) -> Option<Vec<libc::sock_filter>> {
    let mut program = vec![load(ARCH), if_equal(AUDIT_ARCH?, 1, 0), do_return(foreign)];
    for (rules, action) in groups {
        for rule in *rules {
            let conditions = conditions(rule.conditions);
            program.push(load(NUMBER));
            program.push(if_equal(rule.number as u32, 0, conditions.len() as u8 + 1));
            program.extend(conditions);
            program.push(do_return(*action));
        }
    }
    program.push(do_return(other));
    Some(program)
}

/// A program that lets every call pass.
pub fn pass_all() -> [libc::sock_filter; 1] {
    [do_return(libc::SECCOMP_RET_ALLOW)]
}

/// Skips the instruction that follows them if one does not hold.
fn conditions(conditions: &[Condition]) -> Vec<libc::sock_filter> {
    // From the last to the first, because a jump leads forward and counts what it skips.
    let mut program: Vec<libc::sock_filter> = Vec::new();
    for condition in conditions.iter().rev() {
        let mut block = vec![load(argument(condition.argument)), and(condition.mask as u32)];
        let values = condition.values.iter().zip((1..=condition.values.len() as u8).rev());
        block.extend(values.map(|(value, to_the_end)| if_equal(*value as u32, to_the_end, 0)));
        block.push(jump(program.len() as u32 + 1));
        program.splice(0..0, block);
    }
    program
}

fn instruction(code: u32, if_true: u8, if_false: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: if_true, jf: if_false, k }
}

fn load(offset: u32) -> libc::sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset)
}

fn and(mask: u32) -> libc::sock_filter {
    instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, mask)
}

fn if_equal(value: u32, skip_if_true: u8, skip_if_false: u8) -> libc::sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, skip_if_true, skip_if_false, value)
}

fn jump(skip: u32) -> libc::sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JA, 0, 0, skip)
}

fn do_return(action: u32) -> libc::sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, action)
}

/// What the kernel would return for a call: the instructions that these programs use, and no others.
#[cfg(test)]
pub fn run(program: &[libc::sock_filter], arch: u32, number: libc::c_long, arguments: &[i32]) -> u32 {
    let mut data = [0u8; 64];
    data[0..4].copy_from_slice(&(number as u32).to_ne_bytes());
    data[4..8].copy_from_slice(&arch.to_ne_bytes());
    for (index, value) in arguments.iter().enumerate() {
        // The upper half of the register is undefined.
        let register = u64::from(*value as u32) | 0xdead_beef << 32;
        data[16 + 8 * index..24 + 8 * index].copy_from_slice(&register.to_ne_bytes());
    }
    let (mut next, mut accumulator) = (0, 0);
    loop {
        let libc::sock_filter { code, jt, jf, k } = program[next];
        next += 1;
        match u32::from(code) {
            0x20 => accumulator = u32::from_ne_bytes(data[k as usize..][..4].try_into().unwrap()),
            0x54 => accumulator &= k,
            0x15 => next += usize::from(if accumulator == k { jt } else { jf }),
            0x05 => next += k as usize,
            0x06 => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}
