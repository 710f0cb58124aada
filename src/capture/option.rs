//! TCP options: those of Multipath TCP (RFC 8684, and RFC 6824 as far as it is the same), and the time stamp.

/// MPTCP's option kind, and the names of its subtypes.
const MPTCP: u8 = 30;
const TIMESTAMPS: u8 = 8;

pub const SUBTYPES: [&str; 9] = [
    "MP_CAPABLE",
    "MP_JOIN",
    "DSS",
    "ADD_ADDR",
    "REMOVE_ADDR",
    "MP_PRIO",
    "MP_FAIL",
    "MP_FASTCLOSE",
    "MP_TCPRST",
];

/// A number of which only the lower half may have been sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    Short(u32),
    Long(u64),
}

/// Which data the bytes of a subflow are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    pub dsn: Number,
    /// Relative to the subflow's initial sequence number.
    pub subflow: u32,
    /// 0: everything that follows.
    pub length: u16,
    pub checksum: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dss {
    pub ack: Option<Number>,
    pub mapping: Option<Mapping>,
    pub fin: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Join {
    Syn { address_id: u8, backup: bool, token: u32, nonce: u32 },
    SynAck { address_id: u8, backup: bool, hmac: u64, nonce: u32 },
    Ack { hmac: [u8; 20] },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mptcp<'a> {
    Capable {
        version: u8,
        checksum: bool,
        /// The flag C: no subflow to this address and port.
        deny_join: bool,
        /// The sender's key and the receiver's.
        key: Option<u64>,
        peer_key: Option<u64>,
        /// Of the data that comes with it.
        length: Option<u16>,
        data_checksum: Option<u16>,
    },
    Join(Join),
    Dss(Dss),
    AddAddr {
        echo: bool,
        address_id: u8,
        /// 4 or 16 bytes.
        address: &'a [u8],
        port: Option<u16>,
        /// The last 8 bytes of it, in version 1 and unless it is an echo.
        hmac: Option<u64>,
    },
    RemoveAddr {
        address_ids: &'a [u8],
    },
    Prio {
        backup: bool,
        address_id: Option<u8>,
    },
    Fail {
        dsn: u64,
    },
    FastClose {
        key: u64,
    },
    TcpRst {
        transient: bool,
        reason: u8,
    },
}

/// An option of MPTCP: its subtype and what it says, `None` if it is malformed or of an unknown subtype.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found<'a> {
    pub subtype: u8,
    pub value: Option<Mptcp<'a>>,
}

/// What of a segment's options matters here.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options<'a> {
    mptcp: [Option<Found<'a>>; MOST],
    pub timestamp: Option<u32>,
    /// An option was longer than the header.
    pub is_malformed: bool,
}

/// 40 bytes hold no more: the shortest one has 3.
const MOST: usize = 13;

impl<'a> Options<'a> {
    pub fn mptcp(&self) -> impl Iterator<Item = &Found<'a>> {
        self.mptcp.iter().map_while(Option::as_ref)
    }
}

/// Decodes the options of a segment. The form of MP_JOIN depends on its flags SYN and ACK.
pub fn decode(mut options: &[u8], is_syn: bool, is_ack: bool) -> Options<'_> {
    let (mut found, mut count) = (Options::default(), 0);
    while let [kind, rest @ ..] = options {
        match kind {
            0 => break,
            1 => {
                options = rest;
                continue;
            }
            _ => {}
        }
        let length = rest.first().map_or(0, |length| usize::from(*length));
        let Some(option) = options.get(..length).filter(|option| option.len() >= 2) else {
            found.is_malformed = true;
            break;
        };
        match *kind {
            TIMESTAMPS => found.timestamp = be32(option, 2),
            MPTCP => {
                let subtype = option.get(2).map_or(u8::MAX, |byte| byte >> 4);
                if let Some(place) = found.mptcp.get_mut(count) {
                    *place = Some(Found { subtype, value: mptcp(subtype, option, is_syn, is_ack) });
                    count += 1;
                }
            }
            _ => {}
        }
        options = options.get(length..).unwrap_or_default();
    }
    found
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn mptcp(subtype: u8, option: &[u8], is_syn: bool, is_ack: bool) -> Option<Mptcp<'_>> {
    let (first, second) = (*option.get(2)?, option.get(3).copied());
    let length = option.len();
    match subtype {
        0 => {
            let flags = second?;
            let (key, peer_key) = match length {
                4 => (None, None),
                12 => (be64(option, 4), None),
                20 | 22 | 24 => (be64(option, 4), be64(option, 12)),
                _ => return None,
            };
            Some(Mptcp::Capable {
                version: first & 15,
                checksum: flags & 0x80 != 0,
                deny_join: flags & 0x20 != 0,
                key,
                peer_key,
                length: be16(option, 20),
                data_checksum: be16(option, 22),
            })
        }
        1 => {
            let (backup, address_id) = (first & 1 != 0, second?);
            Some(Mptcp::Join(match (length, is_syn, is_ack) {
                (12, true, false) => {
                    Join::Syn { address_id, backup, token: be32(option, 4)?, nonce: be32(option, 8)? }
                }
                (16, true, true) => {
                    Join::SynAck { address_id, backup, hmac: be64(option, 4)?, nonce: be32(option, 12)? }
                }
                (24, false, _) => Join::Ack { hmac: option.get(4..24)?.try_into().ok()? },
                _ => return None,
            }))
        }
        2 => dss(option, second?),
        3 => add_addr(option, first),
        4 => {
            let address_ids = option.get(3..).filter(|ids| !ids.is_empty())?;
            Some(Mptcp::RemoveAddr { address_ids })
        }
        5 => match length {
            3 | 4 => Some(Mptcp::Prio { backup: first & 1 != 0, address_id: second }),
            _ => None,
        },
        6 if length == 12 => Some(Mptcp::Fail { dsn: be64(option, 4)? }),
        7 if length == 12 => Some(Mptcp::FastClose { key: be64(option, 4)? }),
        8 if length == 4 => Some(Mptcp::TcpRst { transient: first & 1 != 0, reason: second? }),
        _ => None,
    }
}

fn dss(option: &[u8], flags: u8) -> Option<Mptcp<'_>> {
    let mut at = 4;
    let mut number = |is_long: bool| {
        let number = if is_long { Number::Long(be64(option, at)?) } else { Number::Short(be32(option, at)?) };
        at += if is_long { 8 } else { 4 };
        Some(number)
    };
    let ack = if flags & 1 != 0 { Some(number(flags & 2 != 0)?) } else { None };
    let dsn = if flags & 4 != 0 { Some(number(flags & 8 != 0)?) } else { None };
    let mapping = match dsn {
        Some(dsn) => {
            let (subflow, length) = (be32(option, at)?, be16(option, at + 4)?);
            at += 6;
            let checksum = match option.len() - at {
                0 => None,
                2 => be16(option, at),
                _ => return None,
            };
            Some(Mapping { dsn, subflow, length, checksum })
        }
        None if option.len() == at => None,
        None => return None,
    };
    Some(Mptcp::Dss(Dss { ack, mapping, fin: flags & 16 != 0 && mapping.is_some() }))
}

/// The address's size follows from the option's length: version 1 has an HMAC of 8 bytes unless it is an echo, version 0
/// has none and says in place of the echo flag which IP it is.
fn add_addr(option: &[u8], first: u8) -> Option<Mptcp<'_>> {
    let (flags, address_id) = (first & 15, *option.get(3)?);
    let (echo, size, port) = match (flags, option.len()) {
        (4, 8) => (false, 4, false),
        (4, 10) => (false, 4, true),
        (6, 20) => (false, 16, false),
        (6, 22) => (false, 16, true),
        (1, 8) => (true, 4, false),
        (1, 10) => (true, 4, true),
        (1, 20) => (true, 16, false),
        (1, 22) => (true, 16, true),
        (0, 16) => (false, 4, false),
        (0, 18) => (false, 4, true),
        (0, 28) => (false, 16, false),
        (0, 30) => (false, 16, true),
        _ => return None,
    };
    let port = if port { Some(be16(option, 4 + size)?) } else { None };
    let hmac = if flags == 0 { Some(be64(option, option.len() - 8)?) } else { None };
    Some(Mptcp::AddAddr { echo, address_id, address: option.get(4..4 + size)?, port, hmac })
}
