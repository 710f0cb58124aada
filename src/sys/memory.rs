//! The memory of a process by address. A wild address is EFAULT here and never a crash.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::FileExt;

fn vector(pointer: *const u8, length: usize) -> libc::iovec {
    libc::iovec { iov_base: pointer.cast_mut().cast(), iov_len: length }
}

/// The error of a transfer, which stops where the memory does.
fn whole(transferred: isize, length: usize) -> io::Result<()> {
    match usize::try_from(transferred) {
        Ok(count) if count == length => Ok(()),
        Ok(_) => Err(io::Error::from_raw_os_error(libc::EFAULT)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Fills `buffer` from a process's memory (process_vm_readv). Of another process it needs ptrace access.
pub fn read(process: i32, address: u64, buffer: &mut [u8]) -> io::Result<()> {
    if buffer.is_empty() {
        return Ok(());
    }
    let local = vector(buffer.as_ptr(), buffer.len());
    let remote = vector(address as *const u8, buffer.len());
    // SAFETY: `local` describes `buffer`, borrowed for writing until the call is over; the kernel checks `remote`.
    whole(
        unsafe { libc::process_vm_readv(process, &raw const local, 1, &raw const remote, 1, 0) },
        buffer.len(),
    )
}

/// Writes into a process's memory (process_vm_writev), as far as it is writable: an error may come after a part.
/// Into our own it writes what our own code, through an address that it was given, would write.
pub fn write(process: i32, address: u64, bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    let local = vector(bytes.as_ptr(), bytes.len());
    let remote = vector(address as *const u8, bytes.len());
    // SAFETY: `local` describes `bytes`, which is only read; the kernel checks `remote`, and that nothing of ours
    // lies there is the promise of who gave the address, as with every getsockopt.
    whole(
        unsafe { libc::process_vm_writev(process, &raw const local, 1, &raw const remote, 1, 0) },
        bytes.len(),
    )
}

/// The memory of a thread of another process, held by descriptors: they stay with that memory when the thread has ended
/// and its id is another's.
#[derive(Debug)]
pub struct Memory {
    mem: File,
    maps: File,
}

impl Memory {
    /// Needs ptrace access to the thread, and its user or CAP_DAC_OVERRIDE.
    pub fn of_thread(thread: i32) -> io::Result<Memory> {
        let open =
            |name| File::options().write(name == "mem").read(true).open(format!("/proc/{thread}/{name}"));
        Ok(Memory { mem: open("mem")?, maps: open("maps")? })
    }

    /// Writes all of it, or nothing and EFAULT where a part is not writable.
    pub fn write(&self, address: u64, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        // By the descriptor the kernel writes into read-only memory too, as a debugger does.
        let end = address.checked_add(bytes.len() as u64);
        if !end.is_some_and(|end| self.is_writable(address, end)) {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        match self.mem.write_at(bytes, address) {
            Ok(count) if count == bytes.len() => Ok(()),
            // The memory has gone with its last thread, or another thread has unmapped it since.
            Ok(_) => Err(io::Error::from_raw_os_error(libc::EFAULT)),
            Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                Err(io::Error::from_raw_os_error(libc::EFAULT))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether its owner could write from `begin` to before `end`, by /proc/TID/maps.
    fn is_writable(&self, mut begin: u64, end: u64) -> bool {
        let mut maps = BufReader::new(FromStart { file: &self.maps, at: 0 });
        let mut line = Vec::new();
        while begin < end {
            line.clear();
            if !matches!(maps.read_until(b'\n', &mut line), Ok(1..)) {
                return false;
            }
            let Some((from, to, writable)) = mapping(&line) else { return false };
            if to <= begin {
                continue;
            }
            if from > begin || !writable {
                return false;
            }
            begin = to;
        }
        true
    }
}

/// Reads a file whose offset is nobody's.
struct FromStart<'a> {
    file: &'a File,
    at: u64,
}

impl io::Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// A line of /proc/PID/maps, "begin-end rwxp ...": the ends, and whether it may be written to.
fn mapping(line: &[u8]) -> Option<(u64, u64, bool)> {
    let mut words = line.split(|byte| *byte == b' ');
    let mut ends = words.next()?.split(|byte| *byte == b'-');
    let mut hex = || u64::from_str_radix(std::str::from_utf8(ends.next()?).ok()?, 16).ok();
    Some((hex()?, hex()?, words.next()?.get(1) == Some(&b'w')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn lines_of_maps() {
        assert_eq!(mapping(b"7f0c-7f0d rw-p 00000000 00:00 0 \n"), Some((0x7f0c, 0x7f0d, true)));
        assert_eq!(
            mapping(b"ffffffffff600000-ffffffffff601000 --xp 0 0 [x]\n"),
            Some((0xffff_ffff_ff60_0000, 0xffff_ffff_ff60_1000, false))
        );
        for wrong in [&b""[..], b"\n", b"7f0c", b"7f0c- rw-p", b"x-y rw-p", b"\xff-1 rw-p"] {
            assert_eq!(mapping(wrong), None);
        }
    }

    #[test]
    fn memory_held_by_a_descriptor_is_written_where_its_owner_could_write() {
        let memory = Memory::of_thread(std::process::id() as i32).unwrap();
        let mut place = vec![0u8; 1 << 16];
        memory.write(place.as_mut_ptr() as u64 + 1, &[1, 2, 3]).unwrap();
        assert_eq!(std::hint::black_box(&place)[..5], [0, 1, 2, 3, 0]);
        static CONSTANT: [u8; 4] = [7; 4];
        for wild in [0, 8, u64::MAX - 1, u64::MAX - 8, 1 << 63, CONSTANT.as_ptr() as u64] {
            assert_eq!(memory.write(wild, &[1, 2]).unwrap_err().raw_os_error(), Some(libc::EFAULT), "{wild}");
        }
        assert_eq!(std::hint::black_box(&CONSTANT), &[7; 4]);
    }

    #[test]
    fn the_memory_of_a_process_that_has_ended_is_no_other_s() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let memory = Memory::of_thread(child.id() as i32).unwrap();
        // An address that the child could write to, as long as it lived.
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", child.id())).unwrap();
        let (begin, ..) =
            maps.lines().filter_map(|line| mapping(line.as_bytes())).find(|found| found.2).unwrap();
        assert!(memory.is_writable(begin, begin + 1));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(memory.write(begin, &[0]).unwrap_err().raw_os_error(), Some(libc::EFAULT));
    }

    #[test]
    fn what_is_written_is_read_and_wild_addresses_are_errors() {
        let us = std::process::id() as i32;
        let mut place = [0u8; 4];
        write(us, place.as_mut_ptr() as u64, &[1, 2, 3, 4]).unwrap();
        let mut copy = [0; 4];
        read(us, place.as_ptr() as u64, &mut copy).unwrap();
        assert_eq!(copy, [1, 2, 3, 4]);
        for wild in [0, 8, u64::MAX - 8] {
            assert_eq!(read(us, wild, &mut copy).unwrap_err().raw_os_error(), Some(libc::EFAULT));
            assert_eq!(write(us, wild, &copy).unwrap_err().raw_os_error(), Some(libc::EFAULT));
        }
        // Memory that may only be read.
        static CONSTANT: [u8; 4] = [7; 4];
        assert_eq!(
            write(us, CONSTANT.as_ptr() as u64, &copy).unwrap_err().raw_os_error(),
            Some(libc::EFAULT)
        );
        read(us, CONSTANT.as_ptr() as u64, &mut copy).unwrap();
        assert_eq!(copy, [7; 4]);
        assert_eq!(read(us, 0, &mut []).map_err(|error| error.raw_os_error()), Ok(()));
    }
}
