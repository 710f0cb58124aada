//! Capabilities of the calling thread.

use std::io;

use super::check;

const VERSION_3: u32 = 0x2008_0522; // _LINUX_CAPABILITY_VERSION_3

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`, of which there are two: for the lower and the upper 32 capabilities.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

fn get() -> io::Result<[Data; 2]> {
    let header = Header { version: VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: the kernel reads the header and writes the two structures that its version has.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) } as libc::c_int)?;
    Ok(data)
}

fn set(data: &[Data; 2]) -> libc::c_long {
    let header = Header { version: VERSION_3, pid: 0 };
    // SAFETY: the kernel reads the header and the two structures that its version has.
    unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }
}

/// Drops every capability for good; 0, or -1 and errno. A system call and nothing else.
pub fn drop_all() -> libc::c_long {
    set(&[Data::default(); 2])
}

/// Runs `step` with no effective capabilities but those of `allowed`, on the calling thread alone.
pub fn limited_to<T>(allowed: u64, step: impl FnOnce() -> T) -> io::Result<T> {
    let before = get()?;
    let mut limited = before;
    limited[0].effective &= allowed as u32;
    limited[1].effective &= (allowed >> 32) as u32;
    /// Puts them back, after a panic too. What is permitted was not touched, so it cannot fail.
    struct Restore([Data; 2]);
    impl Drop for Restore {
        fn drop(&mut self) {
            set(&self.0);
        }
    }
    let restore = Restore(before);
    check(set(&limited) as libc::c_int)?;
    let result = step();
    drop(restore);
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_come_back() {
        let effective = || {
            let data = get().unwrap();
            u64::from(data[0].effective) | u64::from(data[1].effective) << 32
        };
        let before = effective();
        assert_eq!(limited_to(0, effective).unwrap(), 0);
        assert_eq!(effective(), before);
        let one = before & before.wrapping_neg();
        assert_eq!(limited_to(one, effective).unwrap(), one);
        let panicked = std::panic::catch_unwind(|| limited_to(0, || panic!("in the test")));
        assert!(panicked.is_err());
        assert_eq!(effective(), before);
    }
}
