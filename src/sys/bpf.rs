//! bpf(2). Every descriptor that it makes is close-on-exec, and nothing is pinned: what is made here ends with the
//! process.

use std::cell::Cell;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// `enum bpf_cmd`
#[derive(Clone, Copy)]
enum Command {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    ProgramLoad = 5,
    ProgramTestRun = 10,
    RawTracepointOpen = 17,
    LinkCreate = 28,
    IteratorCreate = 33,
}

/// `enum bpf_map_type`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    Hash = 1,
    Array = 2,
    PerCpuArray = 6,
    LruHash = 9,
    RingBuffer = 27,
}

const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_PROG_TYPE_TRACING: u32 = 26;
const BPF_PROG_TYPE_SYSCALL: u32 = 31;
const BPF_TRACE_RAW_TP: u32 = 23;
const BPF_TRACE_ITER: u32 = 28;
const BPF_RINGBUF_BUSY_BIT: u32 = 1 << 31;
const BPF_RINGBUF_DISCARD_BIT: u32 = 1 << 30;
const BPF_RINGBUF_HDR_SZ: usize = 8;
const BPF_F_SLEEPABLE: u32 = 1 << 4;
const BPF_F_MMAPABLE: u32 = 1 << 10;

/// What a program is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgramKind {
    /// An iterator over what the kernel function `target`, an id of the kernel's BTF, gives.
    Iterator { target: u32 },
    /// The tracepoint of the typedef with this id in the kernel's BTF.
    Tracepoint { typedef: u32 },
    /// A traffic classifier. Here it is only ever run by [`run_classifier`], on a packet that does not exist.
    Classifier,
    /// A program that only [`run_syscall`] runs.
    Syscall,
}

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
struct TestRun {
    program: u32,
    /// The kernel writes here and into `data_out_size`, `duration` and `context_out_size`, hence the cells.
    result: Cell<u32>,
    data_in_size: u32,
    data_out_size: Cell<u32>,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: Cell<u32>,
    context_in_size: u32,
    context_out_size: Cell<u32>,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

#[repr(C)]
#[derive(Default)]
struct RawTracepoint {
    name: u64,
    program: u32,
    padding: u32,
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
unsafe impl Attribute for TestRun {}
// SAFETY: as above.
unsafe impl Attribute for RawTracepoint {}
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

/// An array map that lies in this process's memory too. Its values are multiples of eight bytes.
#[derive(Debug)]
pub struct SharedArray {
    descriptor: OwnedFd,
    memory: NonNull<u8>,
    length: usize,
    value_size: usize,
}

// SAFETY: the mapping is this value's alone, and stays where it is whatever thread uses it.
unsafe impl Send for SharedArray {}

impl SharedArray {
    /// `value_size` is rounded up to a multiple of eight.
    pub fn create(entries: u32, value_size: usize, name: &str) -> io::Result<SharedArray> {
        let value_size = value_size.next_multiple_of(8);
        let attribute = MapCreate {
            kind: MapKind::Array as u32,
            key_size: 4,
            value_size: value_size as u32,
            entries,
            flags: BPF_F_MMAPABLE,
            name: name_bytes(name),
            ..MapCreate::default()
        };
        // SAFETY: the command takes no address and answers with a descriptor.
        let descriptor = unsafe { bpf_descriptor(Command::MapCreate, &attribute)? };
        let length = entries as usize * value_size;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, wherever the kernel puts it; the kernel rounds its length up to whole pages, as the map's.
        let memory = unsafe {
            libc::mmap(std::ptr::null_mut(), length, access, libc::MAP_SHARED, descriptor.as_raw_fd(), 0)
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let Some(memory) = NonNull::new(memory.cast()) else { return Err(io::ErrorKind::OutOfMemory.into()) };
        Ok(SharedArray { descriptor, memory, length, value_size })
    }

    /// How many values there are.
    pub fn count(&self) -> usize {
        self.length / self.value_size
    }

    /// Copies a value from `from` on. Nothing is copied where it would go beyond the value's end.
    ///
    /// A program that runs meanwhile may leave a mixture of what it wrote and what was there: run it in between.
    pub fn read(&self, index: usize, from: usize, to: &mut [u8]) {
        if let Some(at) = self.place(index, from, to.len()) {
            // SAFETY: `place` has checked that as many bytes lie in the mapping. `to` is not part of it.
            unsafe { std::ptr::copy_nonoverlapping(at, to.as_mut_ptr(), to.len()) };
        }
    }

    /// Changes a value from `to` on. Nothing is changed where it would go beyond the value's end.
    pub fn write(&mut self, index: usize, to: usize, from: &[u8]) {
        if let Some(at) = self.place(index, to, from.len()) {
            // SAFETY: as in `read`.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), at, from.len()) };
        }
    }

    fn place(&self, index: usize, offset: usize, length: usize) -> Option<*mut u8> {
        let fits = index < self.count() && offset.checked_add(length)? <= self.value_size;
        // SAFETY: inside of the mapping: the index and the end inside of its value have just been checked.
        fits.then(|| unsafe { self.memory.as_ptr().add(index * self.value_size + offset) })
    }
}

impl AsRawFd for SharedArray {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}

impl Drop for SharedArray {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, of this length, and nothing refers to it any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.length) };
    }
}

/// A ring buffer that programs write records into and one thread reads, in this process's memory.
#[derive(Debug)]
pub struct RingBuffer {
    descriptor: OwnedFd,
    /// One page, which begins with how many bytes were consumed.
    consumer: NonNull<u8>,
    /// One page, which begins with how many bytes were produced, and then the data twice, so that a record at the end
    /// lies in one piece.
    producer: NonNull<u8>,
    page: usize,
    size: usize,
}

// SAFETY: both mappings are this value's alone, and stay where they are whatever thread uses them.
unsafe impl Send for RingBuffer {}

impl RingBuffer {
    /// `size` is rounded up to a power of two and whole pages.
    pub fn create(size: usize, name: &str) -> io::Result<RingBuffer> {
        // SAFETY: takes and returns numbers.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let size = size.max(page).next_power_of_two();
        let attribute = MapCreate {
            kind: MapKind::RingBuffer as u32,
            entries: size as u32,
            name: name_bytes(name),
            ..MapCreate::default()
        };
        // SAFETY: the command takes no address and answers with a descriptor.
        let descriptor = unsafe { bpf_descriptor(Command::MapCreate, &attribute)? };
        let map = |length: usize, access: i32, offset: usize| {
            let (fd, none) = (descriptor.as_raw_fd(), std::ptr::null_mut());
            // SAFETY: a new mapping, wherever the kernel puts it.
            let memory =
                unsafe { libc::mmap(none, length, access, libc::MAP_SHARED, fd, offset as libc::off_t) };
            if memory == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            NonNull::new(memory.cast::<u8>()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
        };
        let consumer = map(page, libc::PROT_READ | libc::PROT_WRITE, 0)?;
        let producer = match map(page + 2 * size, libc::PROT_READ, page) {
            Ok(producer) => producer,
            Err(error) => {
                // SAFETY: the mapping was made above and nothing refers to it.
                unsafe { libc::munmap(consumer.as_ptr().cast(), page) };
                return Err(error);
            }
        };
        Ok(RingBuffer { descriptor, consumer, producer, page, size })
    }

    /// Takes the records that there are, in order.
    pub fn read(&mut self, mut on_record: impl FnMut(&[u8])) {
        // SAFETY: both positions are aligned words at the beginning of mappings that live as long as `self`.
        let (consumed, produced) = unsafe {
            (&*self.consumer.as_ptr().cast::<AtomicU64>(), &*self.producer.as_ptr().cast::<AtomicU64>())
        };
        let mut at = consumed.load(Ordering::Relaxed);
        while at < produced.load(Ordering::Acquire) {
            let offset = self.page + (at as usize & (self.size - 1));
            // SAFETY: the offset is inside of the data's first copy, and every record begins at a multiple of eight.
            let header = unsafe { &*self.producer.as_ptr().add(offset).cast::<AtomicU32>() };
            let header = header.load(Ordering::Acquire);
            if header & BPF_RINGBUF_BUSY_BIT != 0 {
                return;
            }
            let length = (header & !BPF_RINGBUF_DISCARD_BIT) as usize;
            if length > self.size {
                return;
            }
            if header & BPF_RINGBUF_DISCARD_BIT == 0 {
                // SAFETY: a record is no longer than the ring, so it ends inside of the second copy. The kernel does not
                // write there until it is consumed.
                on_record(unsafe {
                    std::slice::from_raw_parts(
                        self.producer.as_ptr().add(offset + BPF_RINGBUF_HDR_SZ),
                        length,
                    )
                });
            }
            at += (BPF_RINGBUF_HDR_SZ + length).next_multiple_of(8) as u64;
            consumed.store(at, Ordering::Release);
        }
    }
}

impl AsRawFd for RingBuffer {
    /// Readable when there are records.
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}

impl Drop for RingBuffer {
    fn drop(&mut self) {
        // SAFETY: the mappings are ours, of these lengths, and nothing refers to them any more.
        unsafe {
            libc::munmap(self.consumer.as_ptr().cast(), self.page);
            libc::munmap(self.producer.as_ptr().cast(), self.page + 2 * self.size);
        }
    }
}

/// Loads a program. `log` receives what the verifier says, at a price: leave it empty except to explain a failure.
pub fn load_program(
    kind: ProgramKind,
    instructions: &[u8],
    license: &CStr,
    name: &str,
    log: &mut [u8],
) -> io::Result<OwnedFd> {
    let (kind, flags, expected_attach_type, attach_btf_id) = match kind {
        ProgramKind::Iterator { target } => (BPF_PROG_TYPE_TRACING, 0, BPF_TRACE_ITER, target),
        ProgramKind::Tracepoint { typedef } => (BPF_PROG_TYPE_TRACING, 0, BPF_TRACE_RAW_TP, typedef),
        ProgramKind::Classifier => (BPF_PROG_TYPE_SCHED_CLS, 0, 0, 0),
        ProgramKind::Syscall => (BPF_PROG_TYPE_SYSCALL, BPF_F_SLEEPABLE, 0, 0),
    };
    let attribute = ProgramLoad {
        kind,
        instruction_count: (instructions.len() / 8) as u32,
        instructions: address(instructions),
        license: license.as_ptr() as u64,
        log_level: u32::from(!log.is_empty()),
        log_size: log.len() as u32,
        log: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
        flags,
        name: name_bytes(name),
        expected_attach_type,
        attach_btf_id,
        ..ProgramLoad::default()
    };
    // SAFETY: as many whole instructions are read as the slice has, the licence up to its NUL, and the log is written in
    // its own length only; the answer is a descriptor.
    unsafe { bpf_descriptor(Command::ProgramLoad, &attribute) }
}

/// Runs a classifier once, in the calling thread's network namespace, on an empty frame at the interface with the index
/// `interface`, or at the loopback interface for 0.
pub fn run_classifier(program: BorrowedFd<'_>, interface: u32) -> io::Result<()> {
    const ETHERTYPE: usize = 12;
    let mut frame = [0_u8; 64];
    frame[ETHERTYPE..ETHERTYPE + 2].copy_from_slice(&(libc::ETH_P_IP as u16).to_be_bytes());
    // struct __sk_buff as far as `ifindex`.
    let mut context = [0_u32; 11];
    context[10] = interface;
    let attribute = TestRun {
        program: number(&program),
        data_in_size: frame.len() as u32,
        data_in: address(&frame),
        repeat: 1,
        context_in_size: size_of_val(&context) as u32,
        context_in: address(&context),
        ..TestRun::default()
    };
    // SAFETY: the kernel reads the frame and the context, each in its own length, and writes into the attribute.
    unsafe { bpf(Command::ProgramTestRun, &attribute) }.map(drop)
}

/// Runs a syscall program once. `context` is its argument, which it may change.
pub fn run_syscall(program: BorrowedFd<'_>, context: &mut [u32]) -> io::Result<()> {
    let attribute = TestRun {
        program: number(&program),
        context_in_size: size_of_val(context) as u32,
        context_in: context.as_mut_ptr() as u64,
        ..TestRun::default()
    };
    // SAFETY: the kernel reads the context and writes it back, in its own length, and writes into the attribute.
    unsafe { bpf(Command::ProgramTestRun, &attribute) }.map(drop)
}

/// Attaches a program to its tracepoint, until the descriptor is closed.
pub fn attach_tracepoint(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let attribute = RawTracepoint { program: number(&program), ..RawTracepoint::default() };
    // SAFETY: the program says by its typedef which tracepoint, so there is no name; the answer is a descriptor.
    unsafe { bpf_descriptor(Command::RawTracepointOpen, &attribute) }
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
        assert_eq!(std::mem::offset_of!(TestRun, context_in), 48);
        assert_eq!(size_of::<TestRun>(), 80);
        assert_eq!(size_of::<RawTracepoint>(), 16);
        assert_eq!(size_of::<LinkCreate>(), 16);
        assert_eq!(size_of::<IteratorCreate>(), 8);
    }

    #[test]
    fn a_shared_array_keeps_what_lies_inside() {
        let Ok(mut array) = SharedArray::create(3, 12, "mptcp_test") else {
            eprintln!("skipped: this process may make no BPF maps");
            return;
        };
        assert_eq!(array.count(), 3);
        array.write(2, 8, &[1, 2, 3, 4, 5, 6, 7, 8]);
        let mut value = [0; 8];
        array.read(2, 8, &mut value);
        assert_eq!(value, [1, 2, 3, 4, 5, 6, 7, 8]);
        let mut untouched = [9; 8];
        array.read(2, 9, &mut untouched);
        array.read(3, 0, &mut untouched);
        array.read(0, usize::MAX, &mut untouched);
        assert_eq!(untouched, [9; 8]);
    }

    #[test]
    fn a_name_is_cut_and_ends_with_nul() {
        assert_eq!(&name_bytes("mptcp"), b"mptcp\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(&name_bytes("a_name_far_too_long"), b"a_name_far_too_\0");
    }
}
