//! Packet sockets (packet(7)): frames of every interface of a network namespace, received by a ring of memory shared
//! with the kernel (PACKET_RX_RING, TPACKET_V2), and sent many at a time. A frame has a virtio header in front of it
//! (PACKET_VNET_HDR), as it has where it is received.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{check, getsockopt, setsockopt, setsockopt_i32};

const TPACKET_V2: i32 = 1;
const VIRTIO_HEADER: usize = 10;
const SECOND: u64 = 1_000_000_000;
/// How many frames one call sends.
pub const BATCH: usize = 32;

/// The size of a ring and of its parts.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// A multiple of the page size.
    pub block_size: usize,
    pub blocks: usize,
    /// Room for one frame and 80 bytes; a multiple of 16, at most a block.
    pub frame_size: usize,
}

/// An instruction of a classic BPF program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    pub code: u16,
    pub if_true: u8,
    pub if_false: u8,
    pub value: u32,
}

/// A frame in a ring.
#[derive(Debug)]
pub struct Received<'a> {
    /// With its virtio header.
    pub frame: &'a [u8],
    /// The index of the interface at which it arrived.
    pub interface: u32,
    /// When, by CLOCK_REALTIME.
    pub stamp_ns: u64,
    /// The tag that the kernel has taken out of the frame.
    pub vlan_tag: Option<[u8; 4]>,
    /// Whether the ring had room for all of it.
    pub is_whole: bool,
}

fn packet_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // Without a protocol it receives nothing until it is bound.
    // SAFETY: no pointers; the descriptor is new and ours.
    let socket = unsafe { OwnedFd::from_raw_fd(check(libc::socket(libc::AF_PACKET, kind, 0))?) };
    setsockopt_i32(socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
    Ok(socket)
}

fn address(protocol: u16, interface: u32) -> libc::sockaddr_ll {
    // SAFETY: sockaddr_ll is plain data for which all zeros are valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = interface as i32;
    address
}

/// Receives what arrives at the interfaces of one network namespace, that of the thread that created it, and sends.
#[derive(Debug)]
pub struct Ring {
    socket: OwnedFd,
    memory: NonNull<u8>,
    layout: Layout,
    frames_per_block: usize,
    next: usize,
}

// SAFETY: the memory is this ring's alone, and the kernel's, which does not care what thread looks at it.
unsafe impl Send for Ring {}

impl Ring {
    /// Receives what `filter` returns more than 0 for. Needs CAP_NET_RAW in the user namespace that owns the network
    /// namespace.
    pub fn new(layout: Layout, filter: &[Instruction]) -> io::Result<Ring> {
        let socket = packet_socket()?;
        let fd = socket.as_raw_fd();
        setsockopt_i32(fd, libc::SOL_PACKET, libc::PACKET_VERSION, TPACKET_V2)?;
        setsockopt_i32(fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
        let frames_per_block = layout.block_size / layout.frame_size;
        let numbers = [layout.block_size, layout.blocks, layout.frame_size, frames_per_block * layout.blocks];
        // struct tpacket_req
        let request: Vec<u8> = numbers.iter().flat_map(|number| (*number as u32).to_ne_bytes()).collect();
        setsockopt(fd, libc::SOL_PACKET, libc::PACKET_RX_RING, &request)?;
        let size = layout.block_size * layout.blocks;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, wherever the kernel puts it.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), size, access, libc::MAP_SHARED, fd, 0) };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let Some(memory) = NonNull::new(memory.cast()) else { return Err(io::ErrorKind::OutOfMemory.into()) };
        let ring = Ring { socket, memory, layout, frames_per_block, next: 0 };
        ring.set_filter(filter)?;
        let all = address(libc::ETH_P_ALL as u16, 0);
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the pointer and the length describe `all`, which outlives the call.
        check(unsafe { libc::bind(fd, (&raw const all).cast(), length) })?;
        Ok(ring)
    }

    /// Replaces the filter, atomically.
    pub fn set_filter(&self, filter: &[Instruction]) -> io::Result<()> {
        let mut program: Vec<libc::sock_filter> = filter
            .iter()
            .map(|each| libc::sock_filter {
                code: each.code,
                jt: each.if_true,
                jf: each.if_false,
                k: each.value,
            })
            .collect();
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        let length = size_of_val(&program) as libc::socklen_t;
        let option = libc::SO_ATTACH_FILTER;
        // SAFETY: the pointer and the length describe `program`, which points to as many instructions as it says; all
        // outlive the call.
        check(unsafe {
            let fd = self.socket.as_raw_fd();
            libc::setsockopt(fd, libc::SOL_SOCKET, option, (&raw const program).cast(), length)
        })
        .map(drop)
    }

    /// How many frames found no room since this was last asked (PACKET_STATISTICS).
    pub fn overruns(&self) -> io::Result<u32> {
        let mut statistics = [0; 8];
        getsockopt(self.socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_STATISTICS, &mut statistics)?;
        let [_, _, _, _, dropped @ ..] = statistics;
        Ok(u32::from_ne_bytes(dropped))
    }

    fn slot(&self) -> NonNull<u8> {
        let (block, frame) = (self.next / self.frames_per_block, self.next % self.frames_per_block);
        // SAFETY: `next` counts frames that the ring has, so this is inside of the mapping.
        unsafe { self.memory.add(block * self.layout.block_size + frame * self.layout.frame_size) }
    }

    fn status(&self) -> &AtomicU32 {
        // SAFETY: the first member of a frame's header, aligned as the frame is, which the kernel writes at once as
        // well.
        unsafe { AtomicU32::from_ptr(self.slot().as_ptr().cast()) }
    }

    /// The oldest frame, if there is one.
    pub fn head(&self) -> Option<Received<'_>> {
        let status = self.status().load(Ordering::Acquire);
        if status & libc::TP_STATUS_USER == 0 {
            return None;
        }
        let slot = self.slot();
        // SAFETY: a frame that is the user's begins with this header, followed by an address; the kernel writes to
        // neither until the status says that it may.
        let (header, address) = unsafe {
            let address = slot.add(size_of::<libc::tpacket2_hdr>().next_multiple_of(libc::TPACKET_ALIGNMENT));
            (slot.cast::<libc::tpacket2_hdr>().read(), address.cast::<libc::sockaddr_ll>().read())
        };
        let start = usize::from(header.tp_mac).saturating_sub(VIRTIO_HEADER);
        let length = VIRTIO_HEADER + header.tp_snaplen as usize;
        let fits = start + length <= self.layout.frame_size;
        // SAFETY: inside of the frame, which nobody writes to until `release`, for which the borrow has to end.
        let frame =
            unsafe { std::slice::from_raw_parts(slot.add(start).as_ptr(), if fits { length } else { 0 }) };
        let vlan_tag = (status & libc::TP_STATUS_VLAN_VALID != 0).then(|| {
            let known = status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
            let protocol = if known { header.tp_vlan_tpid } else { libc::ETH_P_8021Q as u16 };
            let ([a, b], [c, d]) = (protocol.to_be_bytes(), header.tp_vlan_tci.to_be_bytes());
            [a, b, c, d]
        });
        Some(Received {
            frame,
            interface: address.sll_ifindex as u32,
            stamp_ns: u64::from(header.tp_sec) * SECOND + u64::from(header.tp_nsec),
            vlan_tag,
            is_whole: fits && header.tp_snaplen == header.tp_len,
        })
    }

    /// Gives the place of the oldest frame back to the kernel. Only after `head` has given one.
    pub fn release(&mut self) {
        self.status().store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.next = (self.next + 1) % (self.frames_per_block * self.layout.blocks);
    }

    /// Sets how many bytes may be on their way to the interfaces; fewer where the system limits it (net.core.wmem_max).
    pub fn set_send_buffer(&self, size: i32) -> io::Result<()> {
        let set = |option| setsockopt_i32(self.socket.as_raw_fd(), libc::SOL_SOCKET, option, size);
        set(libc::SO_SNDBUFFORCE).or_else(|_| set(libc::SO_SNDBUF))
    }

    /// Sends frames, each with its virtio header, by the interfaces with these indexes; at most [`BATCH`]. Returns how
    /// many have been sent, or the error of the first one.
    pub fn send<'a>(&self, frames: impl Iterator<Item = (u32, &'a [u8])>) -> io::Result<usize> {
        let mut addresses = [const { MaybeUninit::<libc::sockaddr_ll>::uninit() }; BATCH];
        let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
        // SAFETY: mmsghdr is plain data for which all zeros are valid.
        let mut messages: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
        let mut count = 0;
        for ((interface, frame), ((message, vector), place)) in
            frames.zip(messages.iter_mut().zip(&mut vectors).zip(&mut addresses))
        {
            *vector = libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() };
            let header = &mut message.msg_hdr;
            header.msg_name = std::ptr::from_mut(place.write(address(0, interface))).cast();
            header.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            header.msg_iov = vector;
            header.msg_iovlen = 1;
            count += 1;
        }
        if count == 0 {
            return Ok(0);
        }
        // SAFETY: each of the first `count` messages points to an address and to a vector of one frame, all of which
        // outlive the call, and the kernel only reads the frames.
        let sent = unsafe { libc::sendmmsg(self.socket.as_raw_fd(), messages.as_mut_ptr(), count, 0) };
        check(sent).map(|sent| sent as usize)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, of this size, and nobody has a reference into it.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.layout.block_size * self.layout.blocks) };
    }
}

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
