//! The memory of a process by address. A wild address is EFAULT here and never a crash.

use std::io;

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

#[cfg(test)]
mod tests {
    use super::*;

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
