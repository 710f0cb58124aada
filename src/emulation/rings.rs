//! Frames of all links, as the kernel hands them over and takes them: one ring for small frames and one for large ones,
//! so that a bounded memory holds many of the first and enough of the second. They serve all links of a namespace.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use super::stamps::Stamps;
use crate::sys;
use crate::sys::packet::{Instruction, Layout, Received, Ring};

/// 4096 frames of up to about 1900 bytes: 8 MiB.
const SMALL: Layout = Layout { block_size: 1 << 18, blocks: 32, frame_size: 1 << 11 };
/// 240 frames of up to 64 KiB and headers: 16 MiB.
const LARGE: Layout = Layout { block_size: 1 << 20, blocks: 16, frame_size: 69_888 };
const LARGEST_SMALL: u32 = 1900;
/// What may be on its way to the interfaces, bytes. It leaves at once unless the system is very busy.
const SEND_BUFFER: i32 = 4 << 20;

/// As many interfaces as a filter has room for.
pub const MOST_INTERFACES: usize = 2000;

/// A frame passes whole.
const PASS: u32 = u32::MAX;

const LOAD_LENGTH: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_LEN) as u16;
const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP_IF_ABOVE: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const INTERFACE: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_IFINDEX) as u32;

const fn instruction(code: u16, value: u32, if_true: u8, if_false: u8) -> Instruction {
    Instruction { code, if_true, if_false, value }
}

/// Passes what comes to these interfaces, of one kind of length.
fn filter(small: bool, interfaces: &[u32]) -> Vec<Instruction> {
    let (if_large, if_small) = if small { (0, 1) } else { (1, 0) };
    let mut filter = vec![
        instruction(LOAD_LENGTH, 0, 0, 0),
        instruction(JUMP_IF_ABOVE, LARGEST_SMALL, if_large, if_small),
        instruction(RETURN, 0, 0, 0),
        instruction(LOAD, INTERFACE, 0, 0),
    ];
    for interface in interfaces {
        filter.push(instruction(JUMP_IF_EQUAL, *interface, 0, 1));
        filter.push(instruction(RETURN, PASS, 0, 0));
    }
    filter.push(instruction(RETURN, 0, 0, 0));
    filter
}

#[derive(Debug)]
pub struct Rings {
    small: Ring,
    large: Ring,
    stamps: Stamps,
    /// Frames that found no room.
    overruns: u64,
}

/// A frame, and when it came by CLOCK_MONOTONIC.
pub struct Arrival<'a> {
    pub at: u64,
    pub received: Received<'a>,
}

impl Rings {
    /// In the network namespace of the calling thread; nothing is received yet.
    pub fn new() -> io::Result<Rings> {
        // At the same time: the kernel takes some milliseconds for each.
        let (small, large) = std::thread::scope(|scope| {
            let large =
                std::thread::Builder::new().spawn_scoped(scope, || Ring::new(LARGE, &filter(false, &[])))?;
            let small = Ring::new(SMALL, &filter(true, &[]))?;
            let large = large.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok::<_, io::Error>((small, large))
        })?;
        small.set_send_buffer(SEND_BUFFER)?;
        let (monotonic, realtime) = sys::clock::both_ns();
        Ok(Rings { small, large, stamps: Stamps::new(monotonic, realtime), overruns: 0 })
    }

    /// Receives what comes to these interfaces from now on.
    pub fn listen(&mut self, interfaces: &[u32]) -> io::Result<()> {
        self.small.set_filter(&filter(true, interfaces))?;
        self.large.set_filter(&filter(false, interfaces))
    }

    pub fn descriptors(&self) -> [RawFd; 2] {
        [self.small.as_raw_fd(), self.large.as_raw_fd()]
    }

    /// Hands over the frames that are there, in order, at most `most`. Returns how many; fewer than `most` if that was
    /// all.
    pub fn receive(&mut self, most: usize, mut take: impl FnMut(Arrival<'_>)) -> usize {
        let (mut now, realtime) = sys::clock::both_ns();
        self.stamps.check(now, realtime);
        for count in 0..most {
            let mut large = self.large.head();
            let small = self.small.head();
            if small.is_some() && large.is_none() {
                // A large frame that came before this small one is visible by now.
                large = self.large.head();
            }
            let mut arrived = |received: &Received<'_>| {
                if self.stamps.is_later(received.stamp_ns, now) {
                    // It came while earlier ones were received.
                    now = sys::monotonic_ns();
                }
                self.stamps.arrival(received.stamp_ns, now)
            };
            let is_small = match (&small, &large) {
                (Some(small), Some(large)) => arrived(small) <= arrived(large),
                (small, _) => small.is_some(),
            };
            let Some(received) = (if is_small { small } else { large }) else {
                self.stamps.emptied();
                return count;
            };
            take(Arrival { at: arrived(&received), received });
            if is_small {
                self.small.release();
            } else {
                self.large.release();
            }
        }
        most
    }

    /// Sends frames, as [`Ring::send`] does.
    pub fn send<'a>(&self, frames: impl Iterator<Item = (u32, &'a [u8])>) -> io::Result<usize> {
        self.small.send(frames)
    }

    /// Closes both at the same time: the kernel takes some milliseconds for each.
    pub fn close(self) {
        let Rings { small, large, .. } = self;
        std::thread::scope(|scope| {
            // If there can be no thread, they are closed one after the other.
            let _ = std::thread::Builder::new().spawn_scoped(scope, || drop(large));
            drop(small);
        });
    }

    /// How many frames found no room since the start.
    pub fn overruns(&mut self) -> io::Result<u64> {
        for ring in [&self.small, &self.large] {
            self.overruns += u64::from(ring.overruns()?);
        }
        Ok(self.overruns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel makes of a filter, for the instructions that ours have.
    fn run(filter: &[Instruction], length: u32, interface: u32) -> u32 {
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let Instruction { code, if_true, if_false, value } = filter[at];
            at += 1;
            match code {
                LOAD_LENGTH => accumulator = length,
                LOAD => accumulator = interface,
                RETURN => return value,
                JUMP_IF_ABOVE => at += usize::from(if accumulator > value { if_true } else { if_false }),
                JUMP_IF_EQUAL => at += usize::from(if accumulator == value { if_true } else { if_false }),
                _ => panic!("{code}"),
            }
        }
    }

    #[test]
    fn a_frame_of_a_wanted_interface_passes_one_filter() {
        let interfaces: Vec<u32> = (10..10 + MOST_INTERFACES as u32).collect();
        let (small, large) = (filter(true, &interfaces), filter(false, &interfaces));
        assert!(small.len() <= 4096);
        for (length, interface) in [(60, 10), (LARGEST_SMALL, 11), (LARGEST_SMALL + 1, 12), (65_549, 2009)] {
            let is_small = length <= LARGEST_SMALL;
            assert_eq!(run(&small, length, interface), if is_small { PASS } else { 0 });
            assert_eq!(run(&large, length, interface), if is_small { 0 } else { PASS });
            assert_eq!((run(&small, length, 9), run(&large, length, 9)), (0, 0));
        }
        assert_eq!(run(&filter(true, &[]), 60, 1), 0);
    }

    #[test]
    fn both_rings_have_whole_frames() {
        for layout in [SMALL, LARGE] {
            assert_eq!(layout.frame_size % 16, 0);
            assert_eq!(layout.block_size % (1 << 16), 0, "a page is up to 64 KiB");
        }
        const { assert!(SMALL.frame_size >= LARGEST_SMALL as usize + 100) };
        const { assert!(LARGE.frame_size >= (1 << 16) + 14 + 100) };
    }
}
