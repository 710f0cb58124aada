//! bpf(2). Every descriptor that it makes is close-on-exec, and nothing is pinned: what is made here ends with the
//! process.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// `enum bpf_cmd`
#[derive(Clone, Copy)]
enum Command {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    ProgramLoad = 5,
    LinkCreate = 28,
    IteratorCreate = 33,
}

/// `enum bpf_map_type`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    Hash = 1,
    Array = 2,
}

const BPF_PROG_TYPE_TRACING: u32 = 26;
const BPF_TRACE_ITER: u32 = 28;

const NAME_SIZE: usize = 16; // BPF_OBJ_NAME_LEN

// The parts of `union bpf_attr`, each as long as this crate needs it: the kernel takes what is missing as zero.

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
    inner_map: u32,
    numa_node: u32,
    name: [u8; NAME_SIZE],
}

#[repr(C)]
#[derive(Default)]
struct MapElement {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; NAME_SIZE],
    interface: u32,
    expected_attach_type: u32,
    btf: u32,
    function_info_record_size: u32,
    function_info: u64,
    function_info_count: u32,
    line_info_record_size: u32,
    line_info: u64,
    line_info_count: u32,
    attach_btf_id: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct IteratorCreate {
    link: u32,
    flags: u32,
}

/// The parts of `union bpf_attr`.
///
/// # Safety
///
/// Of the same layout as the command's part of the union, without padding between fields: the kernel reads every byte.
unsafe trait Attribute {}
// SAFETY: laid out after linux/bpf.h, every gap a named field.
unsafe impl Attribute for MapCreate {}
// SAFETY: as above.
unsafe impl Attribute for MapElement {}
// SAFETY: as above.
unsafe impl Attribute for ProgramLoad {}
// SAFETY: as above.
unsafe impl Attribute for LinkCreate {}
// SAFETY: as above.
unsafe impl Attribute for IteratorCreate {}

/// The bare call.
///
/// # Safety
///
/// Every address in `attribute` is of memory as long as the command makes of it, writable where the kernel writes.
unsafe fn bpf<A: Attribute>(command: Command, attribute: &A) -> io::Result<libc::c_long> {
    // SAFETY: the pointer and the size are those of one live value; what it points to is the caller's promise.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_int, std::ptr::from_ref(attribute), size_of::<A>())
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// For the commands that answer with a new descriptor. The kernel makes every one of them close-on-exec.
///
/// # Safety
///
/// As [`bpf`], and the command is one of those.
unsafe fn bpf_descriptor<A: Attribute>(command: Command, attribute: &A) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let descriptor = unsafe { bpf(command, attribute)? };
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as RawFd) })
}

fn name_bytes(name: &str) -> [u8; NAME_SIZE] {
    let mut bytes = [0; NAME_SIZE];
    for (to, from) in bytes[..NAME_SIZE - 1].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    bytes
}

fn number(descriptor: &impl AsRawFd) -> u32 {
    descriptor.as_raw_fd() as u32
}

fn address<T: ?Sized>(value: &T) -> u64 {
    std::ptr::from_ref(value).cast::<()>() as u64
}

/// A map with keys of `KEY` bytes and values of `VALUE` bytes.
#[derive(Debug)]
pub struct Map<const KEY: usize, const VALUE: usize> {
    descriptor: OwnedFd,
}

impl<const KEY: usize, const VALUE: usize> Map<KEY, VALUE> {
    pub fn create(kind: MapKind, entries: u32, name: &str) -> io::Result<Self> {
        let attribute = MapCreate {
            kind: kind as u32,
            key_size: KEY as u32,
            value_size: VALUE as u32,
            entries,
            name: name_bytes(name),
            ..MapCreate::default()
        };
        // SAFETY: the command takes no address and answers with a descriptor.
        let descriptor = unsafe { bpf_descriptor(Command::MapCreate, &attribute)? };
        Ok(Self { descriptor })
    }

    pub fn update(&self, key: &[u8; KEY], value: &[u8; VALUE]) -> io::Result<()> {
        let attribute = MapElement {
            map: number(&self.descriptor),
            key: address(key),
            value: address(value),
            ..MapElement::default()
        };
        // SAFETY: the map was made with these sizes; the kernel reads both.
        unsafe { bpf(Command::MapUpdate, &attribute)? };
        Ok(())
    }

    pub fn lookup(&self, key: &[u8; KEY]) -> io::Result<[u8; VALUE]> {
        let mut value = [0; VALUE];
        let attribute = MapElement {
            map: number(&self.descriptor),
            key: address(key),
            value: std::ptr::from_mut(&mut value).cast::<()>() as u64,
            ..MapElement::default()
        };
        // SAFETY: the map was made with these sizes; the kernel writes the value, which is ours alone.
        unsafe { bpf(Command::MapLookup, &attribute)? };
        Ok(value)
    }

    pub fn delete(&self, key: &[u8; KEY]) -> io::Result<()> {
        let attribute =
            MapElement { map: number(&self.descriptor), key: address(key), ..MapElement::default() };
        // SAFETY: the map was made with this key size; the kernel reads the key.
        unsafe { bpf(Command::MapDelete, &attribute)? };
        Ok(())
    }
}

impl<const KEY: usize, const VALUE: usize> AsRawFd for Map<KEY, VALUE> {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}

/// Loads an iterator program for the kernel function `target`, an id of the kernel's BTF. `log` receives what the verifier
/// says, at a price: leave it empty except to explain a failure.
pub fn load_iterator_program(
    instructions: &[u8],
    target: u32,
    license: &CStr,
    name: &str,
    log: &mut [u8],
) -> io::Result<OwnedFd> {
    let attribute = ProgramLoad {
        kind: BPF_PROG_TYPE_TRACING,
        instruction_count: (instructions.len() / 8) as u32,
        instructions: address(instructions),
        license: license.as_ptr() as u64,
        log_level: u32::from(!log.is_empty()),
        log_size: log.len() as u32,
        log: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
        name: name_bytes(name),
        expected_attach_type: BPF_TRACE_ITER,
        attach_btf_id: target,
        ..ProgramLoad::default()
    };
    // SAFETY: as many whole instructions are read as the slice has, the licence up to its NUL, and the log is written in
    // its own length only; the answer is a descriptor.
    unsafe { bpf_descriptor(Command::ProgramLoad, &attribute) }
}

/// Attaches an iterator program. The link is what iterators are made from.
pub fn create_link(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let attribute =
        LinkCreate { program: number(&program), attach_type: BPF_TRACE_ITER, ..LinkCreate::default() };
    // SAFETY: the command takes no address and answers with a descriptor.
    unsafe { bpf_descriptor(Command::LinkCreate, &attribute) }
}

/// Makes an iterator over the calling thread's network namespace. Reading it runs the program.
pub fn create_iterator(link: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let attribute = IteratorCreate { link: number(&link), ..IteratorCreate::default() };
    // SAFETY: the command takes no address and answers with a descriptor.
    unsafe { bpf_descriptor(Command::IteratorCreate, &attribute) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_lie_where_the_kernel_reads_them() {
        assert_eq!(size_of::<MapCreate>(), 44);
        assert_eq!(std::mem::offset_of!(MapElement, key), 8);
        assert_eq!(size_of::<MapElement>(), 32);
        assert_eq!(std::mem::offset_of!(ProgramLoad, name), 48);
        assert_eq!(std::mem::offset_of!(ProgramLoad, expected_attach_type), 68);
        assert_eq!(std::mem::offset_of!(ProgramLoad, attach_btf_id), 108);
        assert_eq!(size_of::<ProgramLoad>(), 112);
        assert_eq!(size_of::<LinkCreate>(), 16);
        assert_eq!(size_of::<IteratorCreate>(), 8);
    }

    #[test]
    fn a_name_is_cut_and_ends_with_nul() {
        assert_eq!(&name_bytes("mptcp"), b"mptcp\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(&name_bytes("a_name_far_too_long"), b"a_name_far_too_\0");
    }
}
