//! Capture files, pcap and pcapng, as a stream of frames. A file may be a pipe, may end anywhere, and may state any length.

use std::io::Read;

use pcap_parser::nom;
use pcap_parser::{parse_block_be, parse_block_le, parse_pcap_frame, parse_pcap_frame_be, parse_pcap_header};
use pcap_parser::{Block, PcapHeader, PcapNGOption};

use crate::abi::bytes;
use crate::error::{Error, Result};

/// What is read at once.
const BUFFER: usize = 1 << 18;
/// The longest frame or block that is believed. The longest that Linux sends (BIG TCP) has 512 KiB.
const LONGEST: usize = 1 << 26;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const SECTION_ORDER: u32 = 0x1a2b_3c4d;
/// Of the pcap format: microseconds, nanoseconds, and a patched libpcap's with longer headers, in this byte order or the other.
const PCAP_MAGICS: [u32; 3] = [0xa1b2_c3d4, 0xa1b2_3c4d, 0xa1b2_cd34];

/// Where packets were captured: an interface in a file.
#[derive(Debug, Clone, Default)]
pub struct Capture {
    /// The file, as it was named.
    pub path: String,
    /// The interface's name, where the file has it.
    pub interface: Option<String>,
    /// LINKTYPE_*, <https://www.tcpdump.org/linktypes.html>.
    pub link_type: i32,
    /// Frames in the file.
    pub frames: u64,
    /// Frames with less than was sent: a snap length cut them.
    pub cut: u64,
    /// What the capturing program said that it lost.
    pub dropped: Option<u64>,
    /// Why the file could not be read to its end.
    pub damage: Option<String>,
}

/// A frame and where in a [`Source`]'s buffer it is.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    pub time_ns: i64,
    pub capture: usize,
    pub link_type: i32,
    /// As it was sent, of which `size` may be less.
    pub length: usize,
    start: usize,
    size: usize,
}

enum Format {
    Pcap { header: PcapHeader, capture: usize },
    PcapNg { big_endian: bool, interfaces: Vec<Interface> },
}

struct Interface {
    capture: usize,
    link_type: i32,
    snap_length: u32,
    resolution: Resolution,
    offset_ns: i128,
}

#[derive(Clone, Copy)]
enum Resolution {
    Nanoseconds,
    /// Nanoseconds are units * the first / the second.
    Ratio(u128, u128),
}

impl Resolution {
    /// Of the option if_tsresol: a negative power of 10, or of 2 if the highest bit is set.
    fn of(option: u8) -> Resolution {
        let power = u32::from(option & 0x7f);
        match option {
            9 => Resolution::Nanoseconds,
            // Finer ones than these have no room in the 64 bits of a time stamp.
            0..=0x7f => Resolution::Ratio(1_000_000_000, 10u128.pow(power.min(19))),
            _ => Resolution::Ratio(1_000_000_000, 1 << power.min(63)),
        }
    }

    fn nanoseconds(self, units: u64) -> i128 {
        match self {
            Resolution::Nanoseconds => i128::from(units),
            // 64 bits times less than 2^30: no overflow.
            Resolution::Ratio(multiply, divide) => (u128::from(units) * multiply / divide) as i128,
        }
    }
}

/// A file that is read, with the next frame in view.
pub struct Source {
    path: String,
    reader: Box<dyn Read + Send + Sync>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    is_at_end: bool,
    /// `None` until the header is read.
    format: Option<Format>,
    frame: Option<Frame>,
    /// For blocks without a time.
    last_ns: i64,
    damage: Option<String>,
    /// The first of this file's captures.
    first: usize,
}

impl Source {
    /// Nothing is read yet: advance() does that.
    pub fn new(path: String, reader: Box<dyn Read + Send + Sync>) -> Source {
        Source {
            path,
            reader,
            buffer: vec![0; BUFFER],
            start: 0,
            end: 0,
            is_at_end: false,
            format: None,
            frame: None,
            last_ns: 0,
            damage: None,
            first: 0,
        }
    }

    /// Reads the header. Errors are those of reading, or say what the file is instead.
    fn begin(&mut self, captures: &mut Vec<Capture>) -> Result<()> {
        self.require(4)?;
        let Some(magic) = bytes::u32(self.rest(), 0).map(u32::from_le) else {
            let what = if self.rest().is_empty() { "is empty" } else { "is too short to be a capture" };
            return Err(Error::value(format!("{} {what}", self.path)));
        };
        let (format, link_type) = if magic == SECTION_HEADER {
            // An interface without a link type stands for the first one: a file without any is told of, too.
            (Format::PcapNg { big_endian: false, interfaces: Vec::new() }, -1)
        } else {
            if !PCAP_MAGICS.contains(&magic) && !PCAP_MAGICS.contains(&magic.swap_bytes()) {
                return Err(Error::value(format!("{} {}", self.path, instead(self.rest()))));
            }
            self.require(24)?;
            let Ok((rest, header)) = parse_pcap_header(self.rest()) else {
                return Err(Error::value(format!("{} ends within its header", self.path)));
            };
            self.start += self.rest().len() - rest.len();
            // The upper bits tell about a checksum behind each frame.
            let link_type = header.network.0 & 0xffff;
            (Format::Pcap { header, capture: captures.len() }, link_type)
        };
        self.first = captures.len();
        self.format = Some(format);
        captures.push(Capture { path: self.path.clone(), link_type, ..Capture::default() });
        Ok(())
    }

    /// The next frame's time.
    pub fn time_ns(&self) -> Option<i64> {
        self.frame.map(|frame| frame.time_ns)
    }

    /// The next frame and its bytes.
    pub fn frame(&self) -> Option<(Frame, &[u8])> {
        let frame = self.frame?;
        Some((frame, self.buffer.get(frame.start..frame.start + frame.size)?))
    }

    /// Goes on to the frame after the next, or to the first one, if there is one. After an error, EINTR for instance, it
    /// can be called again.
    pub fn advance(&mut self, captures: &mut Vec<Capture>) -> Result<()> {
        if self.format.is_none() {
            self.begin(captures)?;
        }
        self.frame = match self.format {
            Some(Format::Pcap { capture, .. }) => self.pcap(capture)?,
            Some(Format::PcapNg { .. }) => self.pcapng(captures)?,
            None => None,
        };
        if let Some(frame) = self.frame {
            self.last_ns = frame.time_ns;
            if let Some(capture) = captures.get_mut(frame.capture) {
                capture.frames += 1;
                capture.cut += u64::from(frame.size < frame.length);
            }
        } else if let (Some(capture), Some(damage)) = (captures.get_mut(self.first), self.damage.take()) {
            capture.damage = Some(damage);
        }
        Ok(())
    }

    fn rest(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Reads until there are `count` bytes; returns whether there are.
    fn require(&mut self, count: usize) -> Result<bool> {
        while self.end - self.start < count {
            if self.is_at_end {
                return Ok(false);
            }
            if self.start + count > self.buffer.len() {
                self.buffer.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
                if self.end == self.buffer.len() {
                    // By doubling what is really there: a length alone takes no memory.
                    self.buffer.resize(2 * self.end, 0);
                }
            }
            match self.reader.read(&mut self.buffer[self.end..]) {
                Ok(0) => self.is_at_end = true,
                Ok(read) => self.end += read,
                Err(error) => return Err(Error::call(&format!("read {}", self.path), &error)),
            }
        }
        Ok(true)
    }

    /// Ends the file here, and says why. What was read stays.
    fn damaged(&mut self, what: String) -> Option<Frame> {
        self.damage = Some(what);
        (self.start, self.end, self.is_at_end) = (0, 0, true);
        None
    }

    fn truncated(&mut self) -> Option<Frame> {
        let rest = self.rest().len();
        if rest == 0 {
            return None;
        }
        self.damaged(format!("it ends within a packet, {rest} bytes after the last whole one"))
    }

    fn pcap(&mut self, capture: usize) -> Result<Option<Frame>> {
        if !self.require(24)? && self.rest().len() < 16 {
            return Ok(self.truncated());
        }
        let Some(Format::Pcap { header, .. }) = &self.format else { return Ok(None) };
        let (swapped, nanoseconds) = (header.is_bigendian(), header.is_nanosecond_precision());
        let (modified, link_type) = (header.is_modified_format(), header.network.0 & 0xffff);
        let Some(size) = bytes::u32(self.rest(), 8).map(|raw| ordered(raw, swapped) as usize) else {
            return Ok(self.truncated());
        };
        let head = if modified { 24 } else { 16 };
        if size > LONGEST {
            return Ok(self.damaged(format!("a packet claims to have {size} bytes")));
        }
        if !self.require(head + size)? {
            return Ok(self.truncated());
        }
        let parse = if modified {
            pcap_parser::parse_pcap_frame_modified
        } else if swapped {
            parse_pcap_frame_be
        } else {
            parse_pcap_frame
        };
        let Ok((_, block)) = parse(self.rest()) else {
            return Ok(self.damaged("a packet cannot be read".to_owned()));
        };
        let (unit, length) = (if nanoseconds { 1 } else { 1000 }, block.origlen as usize);
        let time_ns = i64::from(block.ts_sec) * 1_000_000_000 + i64::from(block.ts_usec) * unit;
        let start = self.start + head;
        self.start = start + size;
        Ok(Some(Frame { time_ns, capture, link_type, length: length.max(size), start, size }))
    }

    fn pcapng(&mut self, captures: &mut Vec<Capture>) -> Result<Option<Frame>> {
        loop {
            if !self.require(12)? {
                return Ok(self.truncated());
            }
            let Some(Format::PcapNg { big_endian, interfaces }) = &mut self.format else { return Ok(None) };
            let rest = self.buffer.get(self.start..self.end).unwrap_or_default();
            let (Some(kind), Some(length)) = (bytes::u32(rest, 0), bytes::u32(rest, 4)) else {
                return Ok(None);
            };
            if u32::from_le(kind) == SECTION_HEADER {
                let order = bytes::u32(rest, 8).unwrap_or_default();
                *big_endian = u32::from_be(order) == SECTION_ORDER;
                interfaces.clear();
                if !*big_endian && u32::from_le(order) != SECTION_ORDER {
                    return Ok(self.damaged("the header of a section cannot be read".to_owned()));
                }
            }
            let big_endian = *big_endian;
            let length = ordered(length, big_endian) as usize;
            if !(12..=LONGEST).contains(&length) || !length.is_multiple_of(4) {
                return Ok(self.damaged(format!("a block claims to have {length} bytes")));
            }
            if !self.require(length)? {
                return Ok(self.truncated());
            }
            let Some(Format::PcapNg { interfaces, .. }) = &mut self.format else { return Ok(None) };
            let start = self.start;
            let block = self.buffer.get(start..start + length).unwrap_or_default();
            self.start += length;
            let parsed = if big_endian { parse_block_be(block) } else { parse_block_le(block) };
            let block = match parsed {
                Ok((_, block)) => block,
                Err(nom::Err::Incomplete(_) | nom::Err::Error(_) | nom::Err::Failure(_)) => {
                    return Ok(self.damaged("a block cannot be read".to_owned()));
                }
            };
            match block {
                Block::InterfaceDescription(described) => {
                    // pcap-parser takes it for little-endian in any file.
                    let offset = option(&described.options, 14, big_endian).unwrap_or_default() as i64;
                    let name = described.if_name().and_then(|name| Some(name.ok()?.to_owned()));
                    let capture = Capture {
                        path: self.path.clone(),
                        interface: name,
                        link_type: described.linktype.0,
                        ..Capture::default()
                    };
                    interfaces.push(Interface {
                        capture: describe(captures, self.first, capture),
                        link_type: described.linktype.0,
                        snap_length: described.snaplen,
                        resolution: Resolution::of(described.if_tsresol),
                        offset_ns: i128::from(offset) * 1_000_000_000,
                    });
                }
                Block::EnhancedPacket(packet) => {
                    let Some(interface) = interfaces.get(packet.if_id as usize) else {
                        return Ok(
                            self.damaged("a packet names an interface that is not described".to_owned())
                        );
                    };
                    let units = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
                    let time = interface.resolution.nanoseconds(units) + interface.offset_ns;
                    let size = (packet.caplen as usize).min(packet.data.len());
                    return Ok(Some(Frame {
                        time_ns: time.clamp(0, i128::from(i64::MAX)) as i64,
                        capture: interface.capture,
                        link_type: interface.link_type,
                        length: (packet.origlen as usize).max(size),
                        start: start + 28,
                        size,
                    }));
                }
                Block::SimplePacket(packet) => {
                    let Some(interface) = interfaces.first() else {
                        return Ok(self.damaged("a packet comes before the first interface".to_owned()));
                    };
                    let length = packet.origlen as usize;
                    let most =
                        if interface.snap_length == 0 { usize::MAX } else { interface.snap_length as usize };
                    let size = length.min(packet.data.len()).min(most);
                    return Ok(Some(Frame {
                        time_ns: self.last_ns,
                        capture: interface.capture,
                        link_type: interface.link_type,
                        length: length.max(size),
                        start: start + 12,
                        size,
                    }));
                }
                Block::InterfaceStatistics(statistics) => {
                    let capture =
                        interfaces.get(statistics.if_id as usize).map(|interface| interface.capture);
                    let dropped = option(&statistics.options, 5, big_endian);
                    if let (Some(capture), Some(dropped)) =
                        (capture.and_then(|at| captures.get_mut(at)), dropped)
                    {
                        capture.dropped = Some(dropped);
                    }
                }
                _ => {}
            }
        }
    }
}

/// Notes an interface, the file's first in the place that waits for it.
fn describe(captures: &mut Vec<Capture>, first: usize, capture: Capture) -> usize {
    match captures.get_mut(first) {
        Some(place) if place.link_type < 0 => {
            *place = capture;
            first
        }
        _ => {
            captures.push(capture);
            captures.len() - 1
        }
    }
}

/// An option of a block that is a number of 64 bits.
fn option(options: &[PcapNGOption<'_>], code: u16, big_endian: bool) -> Option<u64> {
    let found = options.iter().find(|option| option.code.0 == code)?;
    let raw = found.as_bytes().ok()?.try_into().ok()?;
    Some(if big_endian { u64::from_be_bytes(raw) } else { u64::from_le_bytes(raw) })
}

/// A number of the file's byte order.
fn ordered(raw: u32, big_endian: bool) -> u32 {
    if big_endian {
        u32::from_be(raw)
    } else {
        u32::from_le(raw)
    }
}

/// What a file is that is not a capture, and what to do.
fn instead(head: &[u8]) -> String {
    let compressed = match head {
        [0x1f, 0x8b, ..] => Some(("gzip", "zcat")),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(("zstd", "zstdcat")),
        [0xfd, b'7', b'z', b'X', ..] => Some(("xz", "xzcat")),
        [b'B', b'Z', b'h', ..] => Some(("bzip2", "bzcat")),
        [0x04, 0x22, 0x4d, 0x18, ..] => Some(("lz4", "lz4cat")),
        _ => None,
    };
    match compressed {
        Some((format, program)) => {
            format!("is compressed with {format}: decompress it first, or use {program} FILE | mptcp trace -")
        }
        None => "is not a capture in the pcap or pcapng format".to_owned(),
    }
}
