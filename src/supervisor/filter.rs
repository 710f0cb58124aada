//! The classic BPF program that decides which system calls the supervisor hears of. Everything else runs at full speed:
//! of calls that are allowed whatever their arguments, the kernel remembers that and runs no filter.

use crate::abi::uapi::enhanced_api as api;

/// `<linux/audit.h>`: the calls of the machine's own 64-bit interface. Those of its 32-bit one pass by.
#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: Option<u32> = Some(0xc000_003e);
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: Option<u32> = Some(0xc000_00b7);
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const AUDIT_ARCH: Option<u32> = None;

/// `SOCK_TYPE_MASK` of `<linux/net.h>`: the rest of socket()'s type is flags.
pub const SOCK_TYPE_MASK: i32 = 0xf;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

/// The lower half of an argument, all that these calls take of it: an int. Both machines are little-endian.
fn argument(index: u32) -> u32 {
    16 + 8 * index
}

/// An argument, without the bits outside the mask, is one of some values.
struct Condition {
    argument: u32,
    mask: i32,
    values: &'static [i32],
}

/// A call that the supervisor is notified of if all conditions hold.
struct Rule {
    number: libc::c_long,
    conditions: [Condition; 3],
}

const ALL: i32 = -1;
/// Whichever layout an option's number stands for.
const EITHER_LAYOUT: i32 = !api::HEADER;
const ANY_DESCRIPTOR: Condition = Condition { argument: 0, mask: 0, values: &[0] };
const LEVEL: Condition = Condition { argument: 1, mask: ALL, values: &[libc::IPPROTO_TCP] };

const RULES: [Rule; 3] = [
    Rule {
        number: libc::SYS_socket,
        conditions: [
            Condition { argument: 0, mask: ALL, values: &[libc::AF_INET, libc::AF_INET6] },
            Condition { argument: 1, mask: SOCK_TYPE_MASK, values: &[libc::SOCK_STREAM] },
            Condition { argument: 2, mask: ALL, values: &[0, libc::IPPROTO_TCP] },
        ],
    },
    Rule {
        number: libc::SYS_getsockopt,
        conditions: [
            ANY_DESCRIPTOR,
            LEVEL,
            Condition {
                argument: 2,
                mask: EITHER_LAYOUT,
                values: &[
                    api::MPTCP_GET_SUB_IDS,
                    api::MPTCP_CLOSE_SUB_ID,
                    api::MPTCP_GET_SUB_TUPLE,
                    api::MPTCP_OPEN_SUB_TUPLE,
                    api::MPTCP_SUB_GETSOCKOPT,
                ],
            },
        ],
    },
    Rule {
        number: libc::SYS_setsockopt,
        conditions: [
            ANY_DESCRIPTOR,
            LEVEL,
            Condition { argument: 2, mask: EITHER_LAYOUT, values: &[api::MPTCP_SUB_SETSOCKOPT] },
        ],
    },
];

/// The program, or `None` on a machine that it was not written for.
pub fn program() -> Option<Vec<libc::sock_filter>> {
    let mut program = vec![load(ARCH), if_equal(AUDIT_ARCH?, 1, 0), do_return(libc::SECCOMP_RET_ALLOW)];
    for rule in &RULES {
        let conditions = conditions(&rule.conditions);
        program.push(load(NUMBER));
        program.push(if_equal(rule.number as u32, 0, conditions.len() as u8 + 1));
        program.extend(conditions);
        program.push(do_return(libc::SECCOMP_RET_USER_NOTIF));
    }
    program.push(do_return(libc::SECCOMP_RET_ALLOW));
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

#[cfg(test)]
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod tests {
    use super::*;

    /// What the kernel would do: the instructions that the program uses, and no others.
    fn is_caught(arch: u32, number: libc::c_long, arguments: [i32; 3]) -> bool {
        let mut data = [0u8; 64];
        data[0..4].copy_from_slice(&(number as u32).to_ne_bytes());
        data[4..8].copy_from_slice(&arch.to_ne_bytes());
        for (index, value) in arguments.into_iter().enumerate() {
            // The upper half of the register is undefined.
            let register = u64::from(value as u32) | 0xdead_beef << 32;
            data[16 + 8 * index..24 + 8 * index].copy_from_slice(&register.to_ne_bytes());
        }
        let program = program().unwrap();
        let (mut next, mut accumulator) = (0, 0);
        loop {
            let libc::sock_filter { code, jt, jf, k } = program[next];
            next += 1;
            match u32::from(code) {
                0x20 => accumulator = u32::from_ne_bytes(data[k as usize..][..4].try_into().unwrap()),
                0x54 => accumulator &= k,
                0x15 => next += usize::from(if accumulator == k { jt } else { jf }),
                0x05 => next += k as usize,
                0x06 => return k == libc::SECCOMP_RET_USER_NOTIF,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn here(number: libc::c_long, arguments: [i32; 3]) -> bool {
        is_caught(AUDIT_ARCH.unwrap(), number, arguments)
    }

    #[test]
    fn sockets_of_tcp_are_caught_and_no_others() {
        for family in 0..20 {
            for kind in 0..10 {
                for protocol in [0, 1, 6, 17, 132, 262, -1] {
                    let is_tcp = [2, 10].contains(&family) && kind == 1 && [0, 6].contains(&protocol);
                    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
                    assert_eq!(here(libc::SYS_socket, [family, kind, protocol]), is_tcp);
                    assert_eq!(here(libc::SYS_socket, [family, kind | flags, protocol]), is_tcp);
                }
            }
        }
    }

    #[test]
    fn the_six_options_are_caught_and_no_others() {
        for level in [-1, 0, 1, 5, 6, 7, 41, 284] {
            for option in (0..0x300).chain(0x4000..0x4300).chain([-1, i32::MAX, i32::MIN, 66 << 16]) {
                let number = option & !0x4000;
                let get = level == 6 && [66, 67, 68, 69, 71].contains(&number);
                let set = level == 6 && number == 72;
                assert_eq!(here(libc::SYS_getsockopt, [3, level, option]), get, "{level} {option}");
                assert_eq!(here(libc::SYS_setsockopt, [3, level, option]), set, "{level} {option}");
            }
        }
    }

    #[test]
    fn other_calls_and_other_machines_pass() {
        let others = [libc::SYS_read, libc::SYS_connect, libc::SYS_sendto, libc::SYS_socketpair];
        for number in others {
            assert!(!here(number, [2, 1, 6]) && !here(number, [3, 6, 66]));
        }
        let i386 = 0x4000_0003;
        assert!(!is_caught(i386, libc::SYS_socket, [2, 1, 6]));
        assert!(!here(libc::SYS_socket | 0x4000_0000, [2, 1, 6]), "the x32 interface");
    }
}
