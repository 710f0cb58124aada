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
