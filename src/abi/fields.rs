//! A kernel structure as a table of named fields, read from as many bytes as this kernel returned.

/// How the bytes of a field become a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    U8,
    U16,
    U32,
    U64,
    /// The low `width` bits of a byte after `shift`.
    Bits {
        shift: u8,
        width: u8,
    },
}

/// One field of a kernel structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// The kernel's name without the structure's prefix.
    pub name: &'static str,
    pub offset: usize,
    pub kind: Kind,
    /// The field is there if the kernel returned at least this many bytes. It is the structure's size in the
    /// first kernel that had the field, since the field's own end may have been padding before.
    pub since_size: usize,
}

impl Field {
    /// The field's value, `None` where the structure of this kernel is too short to have it.
    pub fn read(&self, bytes: &[u8]) -> Option<u64> {
        use crate::abi::bytes;
        if bytes.len() < self.since_size {
            return None;
        }
        match self.kind {
            Kind::U8 => bytes::u8(bytes, self.offset).map(u64::from),
            Kind::U16 => bytes::u16(bytes, self.offset).map(u64::from),
            Kind::U32 => bytes::u32(bytes, self.offset).map(u64::from),
            Kind::U64 => bytes::u64(bytes, self.offset),
            Kind::Bits { shift, width } => {
                bytes::u8(bytes, self.offset).map(|byte| u64::from((byte >> shift) & ((1 << width) - 1)))
            }
        }
    }

    /// The largest value that the field can have.
    pub fn most(&self) -> u64 {
        match self.kind {
            Kind::U8 => u8::MAX.into(),
            Kind::U16 => u16::MAX.into(),
            Kind::U32 => u32::MAX.into(),
            Kind::U64 => u64::MAX,
            Kind::Bits { width, .. } => (1 << width) - 1,
        }
    }

    /// Writes a value into a structure of the newest kernel's size; one that the field cannot have leaves it as it was.
    pub fn write(&self, bytes: &mut [u8], value: u64) {
        use crate::abi::bytes::put;
        if value > self.most() {
            return;
        }
        match self.kind {
            Kind::U8 => put(bytes, self.offset, &[value as u8]),
            Kind::U16 => put(bytes, self.offset, &(value as u16).to_ne_bytes()),
            Kind::U32 => put(bytes, self.offset, &(value as u32).to_ne_bytes()),
            Kind::U64 => put(bytes, self.offset, &value.to_ne_bytes()),
            Kind::Bits { shift, width } => {
                let mask = ((1u8 << width) - 1) << shift;
                let old = crate::abi::bytes::u8(bytes, self.offset).unwrap_or(0);
                put(bytes, self.offset, &[(old & !mask) | ((value as u8) << shift)]);
            }
        }
    }
}

/// Defines `FIELDS` and one constant a field from rows of `since SIZE { name: KIND @ offset, "meaning"; }`.
macro_rules! define_fields {
    ($(since $size:literal { $($name:ident : $kind:expr, $offset:literal, $doc:literal;)* })*) => {
        /// Every field, in the order of the structure's growth.
        pub const FIELDS: &[$crate::abi::fields::Field] = &[$($(
            $crate::abi::fields::Field {
                name: stringify!($name),
                offset: $offset,
                kind: { use $crate::abi::fields::Kind::*; $kind },
                since_size: $size,
            },
        )*)*];

        /// The fields by name.
        #[allow(non_upper_case_globals, reason = "the constants carry the kernel's field names")]
        pub mod field {
            $($(
                #[doc = $doc]
                pub const $name: $crate::abi::fields::Field = $crate::abi::fields::Field {
                    name: stringify!($name),
                    offset: $offset,
                    kind: { use $crate::abi::fields::Kind::*; $kind },
                    since_size: $size,
                };
            )*)*
        }
    };
}
pub(crate) use define_fields;
