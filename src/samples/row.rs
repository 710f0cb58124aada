//! The rows: plain memory, which numpy arrays are made of. A field that this kernel lacks is NaN.

use crate::abi::fields::{Field, Kind};
use crate::abi::tcp_info::TcpInfo;
use crate::abi::{mptcp_info, tcp_info};

/// How a field's value lies in a row, in eight bytes whichever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// Every kernel has the field.
    Signed,
    /// Likewise, and the value may take all 64 bits.
    Unsigned,
    /// A float: NaN where this kernel lacks the field.
    Float,
    /// A float: NaN as well while this value of the kernel's says that there is none yet.
    Unknown(u64),
    /// A float: infinity for this value of the kernel's.
    Unlimited(u64),
}

impl Column {
    /// The value's eight bytes.
    #[inline(always)]
    const fn encode(self, value: Option<u64>) -> u64 {
        match (self, value) {
            (Column::Signed | Column::Unsigned, Some(value)) => value,
            // Such a field is in every kernel that has the calls: see `column`.
            (Column::Signed | Column::Unsigned, None) => 0,
            (_, None) => f64::NAN.to_bits(),
            (Column::Float, Some(value)) => (value as f64).to_bits(),
            (Column::Unknown(none), Some(value)) => {
                if value == none {
                    f64::NAN.to_bits()
                } else {
                    (value as f64).to_bits()
                }
            }
            (Column::Unlimited(limit), Some(value)) => {
                if value == limit {
                    f64::INFINITY.to_bits()
                } else {
                    (value as f64).to_bits()
                }
            }
        }
    }
}

/// The size of `tcp_info` in the oldest kernel that has Multipath TCP's getsockopts, 5.16.
const OLDEST_TCP_INFO: usize = 232;
/// Likewise of `mptcp_info`.
const OLDEST_MPTCP_INFO: usize = 48;

const fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() != b.len() {
        return false;
    }
    let mut at = 0;
    while at < a.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// How a field of `tcp_info` lies in a sample.
pub const fn tcp_info_column(field: &Field) -> Column {
    if same(field.name, "snd_ssthresh") {
        Column::Unlimited(0x7fff_ffff)
    } else if same(field.name, "pacing_rate") || same(field.name, "max_pacing_rate") {
        Column::Unlimited(u64::MAX)
    } else if same(field.name, "min_rtt") {
        Column::Unknown(u32::MAX as u64)
    } else if field.since_size > OLDEST_TCP_INFO {
        Column::Float
    } else {
        Column::Signed
    }
}

/// How a field of `mptcp_info` lies in a connection's row.
pub const fn mptcp_info_column(field: &Field) -> Column {
    if field.since_size > OLDEST_MPTCP_INFO {
        Column::Float
    } else if matches!(field.kind, Kind::U64) {
        Column::Unsigned
    } else {
        Column::Signed
    }
}

/// tcpi_state is the first field, and stands in a sample's head.
pub const TCP_INFO: &[Field] = tcp_info::FIELDS.split_at(1).1;

/// `mptcp_info` without the token, which stands in the row's head.
pub const MPTCP_INFO_COUNT: usize = mptcp_info::FIELDS.len() - 1;

/// What is not known.
pub const UNKNOWN: i8 = -1;

/// What a sample has before the kernel's structure.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Head {
    /// CLOCK_MONOTONIC, when the tick's reading began.
    pub time_ns: i64,
    /// From there until this row had been read.
    pub wait_ns: i64,
    pub token: u32,
    /// The kernel's subflow id, -1 if not known.
    pub subflow: i32,
    pub cookie: u64,
    pub state: i16,
    /// -1 if not known.
    pub local_id: i16,
    pub remote_id: i16,
    /// 1 if we asked the peer to use it only when no other is left, -1 if not known.
    pub backup: i8,
    /// 1 for what the kernel said when the socket died.
    pub last: u8,
}

/// One subflow at one moment, as an array has it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub head: Head,
    pub tcp_info: [u64; TCP_INFO.len()],
}

/// The same as it was read: half as large, and all that whoever reads on a clock has time for.
#[derive(Debug, Clone, Copy)]
pub struct RawSample {
    pub head: Head,
    pub tcp_info: TcpInfo,
}

impl RawSample {
    pub fn decode(&self) -> Sample {
        let mut sample = Sample { head: self.head, tcp_info: [0; TCP_INFO.len()] };
        put_tcp_info(&mut sample.tcp_info, self.tcp_info.bytes());
        sample
    }
}

/// One connection at one moment.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct ConnectionRow {
    pub time_ns: i64,
    pub wait_ns: i64,
    pub token: u32,
    pub padding: u32,
    pub mptcp_info: [u64; MPTCP_INFO_COUNT],
}

/// The kernel's structure in room for the newest, and how much of it this kernel has.
struct Reply<'a, const SIZE: usize> {
    bytes: &'a [u8; SIZE],
    length: usize,
}

impl<const SIZE: usize> Reply<'_, SIZE> {
    #[inline(always)]
    fn column(&self, field: &Field, column: Column) -> u64 {
        // The structure's room is known to the compiler, so only the length is compared.
        let value = if self.length < field.since_size { None } else { field.read(self.bytes) };
        column.encode(value)
    }
}

/// Calls `$take!` with each field's constant, so that the compiler sees every offset.
macro_rules! encode_fields {
    ($module:ident, $column:ident, $skip:literal, $reply:ident, $row:ident; $(since $size:literal { $($name:ident : $kind:expr, $offset:literal, $doc:literal;)* })*) => {
        let mut at = 0;
        $($(
            if !const { same(stringify!($name), $skip) } {
                $row[at] = $reply.column(
                    const { &$module::field::$name },
                    const { $column(&$module::field::$name) },
                );
                at += 1;
            }
        )*)*
        let _ = at;
    };
}

/// Writes the fields of a `tcp_info`, as long as this kernel has it.
fn put_tcp_info(row: &mut [u64; TCP_INFO.len()], bytes: &[u8]) {
    match bytes.first_chunk() {
        // The length is known to the compiler too, and nothing is copied.
        Some(all) => encode_tcp_info(row, &Reply { bytes: all, length: tcp_info::SIZE }),
        None => {
            let mut room = [0; tcp_info::SIZE];
            room[..bytes.len()].copy_from_slice(bytes);
            encode_tcp_info(row, &Reply { bytes: &room, length: bytes.len() });
        }
    }
}

#[inline(always)]
fn encode_tcp_info(row: &mut [u64; TCP_INFO.len()], reply: &Reply<{ tcp_info::SIZE }>) {
    macro_rules! rows {
        ($($rows:tt)*) => { encode_fields!(tcp_info, tcp_info_column, "state", reply, row; $($rows)*); };
    }
    tcp_info::tcp_info_fields!(rows);
}

/// Likewise of a `mptcp_info`.
pub fn put_mptcp_info(row: &mut [u64; MPTCP_INFO_COUNT], bytes: &[u8]) {
    let mut room = [0; mptcp_info::SIZE];
    let length = bytes.len().min(room.len());
    room[..length].copy_from_slice(&bytes[..length]);
    let reply = Reply { bytes: &room, length };
    macro_rules! rows {
        ($($rows:tt)*) => { encode_fields!(mptcp_info, mptcp_info_column, "token", reply, row; $($rows)*); };
    }
    mptcp_info::info_fields!(rows);
}

/// One column of an array: its name and how its values lie.
pub type Named = (&'static str, Column);

/// The fields of `tcp_info` in a sample, in order.
pub fn tcp_info_columns() -> impl Iterator<Item = Named> {
    TCP_INFO.iter().map(|field| (field.name, tcp_info_column(field)))
}

/// The fields of `mptcp_info` in a connection's row, in order.
pub fn mptcp_info_columns() -> impl Iterator<Item = Named> {
    mptcp_info::FIELDS
        .iter()
        .filter(|field| field.name != "token")
        .map(|field| (field.name, mptcp_info_column(field)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(bytes: &[u8]) -> impl Fn(&str) -> u64 {
        let mut row = [0; TCP_INFO.len()];
        put_tcp_info(&mut row, bytes);
        move |name| row[tcp_info_columns().position(|(column, _)| column == name).unwrap()]
    }

    #[test]
    fn every_field_lies_where_its_column_says() {
        let bytes: Vec<u8> = (0..tcp_info::SIZE).map(|at| (at % 100) as u8).collect();
        let value = tcp(&bytes);
        for field in TCP_INFO {
            let expected = tcp_info_column(field).encode(field.read(&bytes));
            assert_eq!(value(field.name), expected, "{}", field.name);
        }
        let mut row = [0; MPTCP_INFO_COUNT];
        put_mptcp_info(&mut row, &bytes[..mptcp_info::SIZE]);
        for ((name, column), value) in mptcp_info_columns().zip(row) {
            let field = mptcp_info::FIELDS.iter().find(|field| field.name == name).unwrap();
            assert_eq!(value, column.encode(field.read(&bytes[..mptcp_info::SIZE])), "{name}");
        }
    }

    #[test]
    fn what_an_older_kernel_lacks_is_not_a_number() {
        let value = tcp(&[7; 232]);
        assert!(f64::from_bits(value("rcv_wnd")).is_nan());
        assert_eq!(value("snd_wnd"), 0x0707_0707);
        let longer = tcp(&[7; 240]);
        assert_eq!(f64::from_bits(longer("rcv_wnd")), f64::from(0x0707_0707));
        assert!(f64::from_bits(longer("total_rto")).is_nan());
    }

    #[test]
    fn what_is_unlimited_is_infinite() {
        let mut bytes = [0; tcp_info::SIZE];
        crate::abi::bytes::put(&mut bytes, 76, &0x7fff_ffff_u32.to_ne_bytes());
        crate::abi::bytes::put(&mut bytes, 104, &[255; 8]);
        crate::abi::bytes::put(&mut bytes, 148, &[255; 4]);
        let value = tcp(&bytes);
        assert_eq!(f64::from_bits(value("snd_ssthresh")), f64::INFINITY);
        assert_eq!(f64::from_bits(value("pacing_rate")), f64::INFINITY);
        assert_eq!(f64::from_bits(value("max_pacing_rate")), 0.0);
        assert!(f64::from_bits(value("min_rtt")).is_nan());
    }

    #[test]
    fn rows_have_no_padding_of_their_own() {
        assert_eq!(size_of::<Head>(), 40);
        assert_eq!(size_of::<Sample>(), 40 + 8 * TCP_INFO.len());
        assert_eq!(size_of::<ConnectionRow>(), 24 + 8 * MPTCP_INFO_COUNT);
    }
}
