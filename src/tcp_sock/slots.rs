//! Addresses of kernel structures that are kept, each in a slot of a map, and the program that copies what is there.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::program::{self, slot};
use super::{run_failed, LICENSE, PURPOSE};
use crate::error::Result;
use crate::sys;
use crate::sys::bpf::{ProgramKind, SharedArray};

/// Slots at the start: more take a larger map, and the program once more.
const FIRST_SLOTS: u32 = 64;

pub struct Slots {
    program: OwnedFd,
    map: SharedArray,
    /// The cookie or token of what is in each slot, 0 for one that is free.
    identities: Vec<u64>,
    size: usize,
    name: &'static str,
    /// The program for a map.
    instructions: Box<dyn Fn(i32) -> Vec<u8> + Send>,
}

/// What a slot has of the last run beside the copies.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    pub address: u64,
    /// CLOCK_MONOTONIC.
    pub time_ns: u64,
    pub jiffies: u32,
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slots").field("name", &self.name).field("identities", &self.identities).finish()
    }
}

impl Slots {
    /// Of `size` bytes each; `instructions` are those of the program for a map's descriptor, which has the name `name`.
    pub fn new(
        size: usize,
        name: &'static str,
        instructions: impl Fn(i32) -> Vec<u8> + Send + 'static,
    ) -> Result<Slots> {
        let (program, map) = load(FIRST_SLOTS, size, name, &instructions)?;
        Ok(Slots { program, map, identities: Vec::new(), size, name, instructions: Box::new(instructions) })
    }

    /// Keeps what is at `address` as long as it has this cookie or token, until [`Slots::release`].
    pub fn keep(&mut self, address: u64, identity: u64) -> Result<usize> {
        let index = self.free_slot()?;
        self.map.write(index, slot::ADDRESS, &address.to_ne_bytes());
        self.identities[index] = identity;
        Ok(index)
    }

    pub fn release(&mut self, index: usize) {
        if let Some(identity) = self.identities.get_mut(index) {
            *identity = 0;
            self.map.write(index, slot::ADDRESS, &[0; 8]);
        }
    }

    /// Copies everything that is kept.
    pub fn run(&mut self) -> Result<()> {
        for first in (0..self.identities.len() as u32).step_by(program::RUN as usize) {
            let count = (self.identities.len() as u32 - first).min(program::RUN);
            sys::bpf::run_syscall(self.program.as_fd(), &mut [first, count])
                .map_err(|error| run_failed(&error))?;
        }
        Ok(())
    }

    /// Of a slot that the last run copied; `None` if what is meant is not there any more.
    pub fn head(&self, index: usize) -> Option<Head> {
        let identity = self.identities.get(index).copied().filter(|identity| *identity != 0)?;
        let word = |at| {
            let mut bytes = [0; 8];
            self.read(index, at, &mut bytes);
            u64::from_ne_bytes(bytes)
        };
        let is_it = word(slot::IDENTITY_BEFORE) == identity && word(slot::IDENTITY_AFTER) == identity;
        is_it.then(|| Head {
            address: word(slot::ADDRESS),
            time_ns: word(slot::TIME_NS),
            jiffies: word(slot::JIFFIES) as u32,
        })
    }

    pub fn read(&self, index: usize, from: usize, to: &mut [u8]) {
        self.map.read(index, from, to);
    }

    fn free_slot(&mut self) -> Result<usize> {
        if let Some(index) = self.identities.iter().position(|identity| *identity == 0) {
            return Ok(index);
        }
        let count = self.map.count();
        if self.identities.len() == count {
            let (program, mut map) = load(2 * count as u32, self.size, self.name, &self.instructions)?;
            for index in 0..count {
                let mut address = [0; 8];
                self.map.read(index, slot::ADDRESS, &mut address);
                map.write(index, slot::ADDRESS, &address);
            }
            (self.program, self.map) = (program, map);
        }
        self.identities.push(0);
        Ok(self.identities.len() - 1)
    }
}

fn load(
    count: u32,
    size: usize,
    name: &str,
    instructions: impl Fn(i32) -> Vec<u8>,
) -> Result<(OwnedFd, SharedArray)> {
    let map = SharedArray::create(count, size, "mptcp_slots")
        .map_err(|error| PURPOSE.refused("BPF_MAP_CREATE", &error))?;
    let program = PURPOSE.load(ProgramKind::Syscall, &instructions(map.as_raw_fd()), LICENSE, name)?;
    Ok((program, map))
}
