//! The kernel's BTF, the type information that it publishes of itself: ids of functions, and where members of structures
//! lie. Pure and bounded: whatever the bytes, an answer or an error.
//!
//! Format: Documentation/bpf/btf.rst and `linux/btf.h`. A header, a section of types, a section of names. A type has no
//! number written in it: its id is its position, from 1.

use crate::abi::bytes;

/// Where the running kernel's BTF is; readable by everyone.
pub const KERNEL: &str = "/sys/kernel/btf/vmlinux";

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    #[error("malformed BTF: {0}")]
    Malformed(&'static str),
    /// Its size, and so where the next type begins, is unknown.
    #[error("BTF type kind {0} is newer than what is known here")]
    UnknownKind(u32),
    #[error("no function {0}")]
    NoSuchFunction(String),
    #[error("no typedef {0}")]
    NoSuchTypedef(String),
    #[error("no struct {0}")]
    NoSuchStruct(String),
    #[error("struct {0} has no member {1}")]
    NoSuchMember(String, String),
}

const MAGIC: u16 = 0xeb9f;
const TYPE_SIZE: usize = 12; // struct btf_type
const MEMBER_SIZE: usize = 12; // struct btf_member
const ENUM_SIZE: usize = 8; // struct btf_enum
const KIND_INT: u32 = 1;
const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;
/// Types within types, and names for types, deeper than which nothing of a kernel's goes.
const DEEPEST: usize = 32;
/// Members that one search looks at: a kernel's largest structure has some hundreds. Damaged types contain themselves.
const MOST_MEMBERS: usize = 1 << 14;

/// Where a member lies in its structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    bit_offset: u32,
    bits: u32,
}

impl Member {
    /// The offset in bytes.
    pub fn offset(self) -> usize {
        self.bit_offset as usize / 8
    }

    /// The size in bytes; of a bit field, of the bytes that it lies in.
    pub fn size(self) -> usize {
        (self.bit_offset % 8 + self.bits).div_ceil(8) as usize
    }

    /// The value of a bit field from the one byte that it lies in.
    pub fn read_from_byte(self, byte: u8) -> u64 {
        Member { bit_offset: self.bit_offset % 8, ..self }.read(&[byte])
    }

    /// The member's value, unsigned, from the bytes of its structure; 0 where these are too few. A member of more than
    /// eight bytes gives its first.
    #[inline]
    pub fn read(self, structure: &[u8]) -> u64 {
        let size = self.size().min(8);
        let Some(from) = structure.get(self.offset()..).and_then(|rest| rest.get(..size)) else { return 0 };
        let mut word = [0; 8];
        word[..size].copy_from_slice(from);
        // On a big-endian machine bit fields count from the other end: this crate is for little-endian ones.
        let value = u64::from_le_bytes(word) >> (self.bit_offset % 8);
        if self.bits >= 64 {
            value
        } else {
            value & ((1 << self.bits) - 1)
        }
    }
}

/// One `struct btf_type`, with what follows it.
#[derive(Clone, Copy)]
struct Type<'a> {
    name_at: u32,
    kind: u32,
    count: usize,
    /// Offsets of members have the size of a bit field in their upper byte.
    has_bit_fields: bool,
    /// Its size, or the id of the type that it refers to.
    size_or_type: u32,
    tail: &'a [u8],
}

/// The types of a kernel.
pub struct Btf<'a> {
    types: Vec<Type<'a>>,
    names: &'a [u8],
}

impl<'a> Btf<'a> {
    pub fn parse(btf: &'a [u8]) -> Result<Btf<'a>, BtfError> {
        let (mut rest, names) = sections(btf)?;
        let mut types = Vec::new();
        while !rest.is_empty() {
            let field = |at| bytes::u32(rest, at).ok_or(BtfError::Malformed("a type is cut short"));
            let (name_at, info, size_or_type) = (field(0)?, field(4)?, field(8)?);
            let kind = info >> 24 & 0x1f;
            let count = (info & 0xffff) as usize;
            let tail = tail_size(kind, count).ok_or(BtfError::UnknownKind(kind))?;
            let end = TYPE_SIZE + tail;
            let whole = rest.get(..end).ok_or(BtfError::Malformed("a type is cut short"))?;
            let has_bit_fields = info >> 31 != 0;
            types.push(Type {
                name_at,
                kind,
                count,
                has_bit_fields,
                size_or_type,
                tail: &whole[TYPE_SIZE..],
            });
            rest = &rest[end..];
        }
        Ok(Btf { types, names })
    }

    /// The id of the function `name`.
    pub fn function_id(&self, name: &str) -> Result<u32, BtfError> {
        let position = self.position(KIND_FUNC, name);
        position.map(|position| position as u32 + 1).ok_or_else(|| BtfError::NoSuchFunction(name.to_owned()))
    }

    /// The id of the typedef `name`: a tracepoint `x` is named by `btf_trace_x`.
    pub fn typedef_id(&self, name: &str) -> Result<u32, BtfError> {
        let position = self.position(KIND_TYPEDEF, name);
        position.map(|position| position as u32 + 1).ok_or_else(|| BtfError::NoSuchTypedef(name.to_owned()))
    }

    /// The structure `name`.
    pub fn structure(&self, name: &str) -> Result<Structure<'_>, BtfError> {
        let found = self.position(KIND_STRUCT, name).and_then(|position| self.types.get(position));
        match found {
            Some(found) => Ok(Structure { btf: self, name: name.to_owned(), found }),
            None => Err(BtfError::NoSuchStruct(name.to_owned())),
        }
    }

    /// How many arguments the tracepoint of this typedef has. A program has them in its context, eight bytes each.
    pub fn tracepoint_arguments(&self, typedef: u32) -> Option<usize> {
        let pointer = self.resolve(typedef).filter(|found| found.kind == KIND_PTR)?;
        let prototype = self.resolve(pointer.size_or_type).filter(|found| found.kind == KIND_FUNC_PROTO)?;
        // The first one is the tracepoint's own.
        prototype.count.checked_sub(1)
    }

    /// The value of `name` in the enumeration `enumeration`.
    pub fn enumerator(&self, enumeration: &str, name: &str) -> Result<u32, BtfError> {
        let missing = || BtfError::NoSuchMember(enumeration.to_owned(), name.to_owned());
        let position = self.position(KIND_ENUM, enumeration).ok_or_else(missing)?;
        let found = self.types.get(position).ok_or_else(missing)?;
        let entry = |at| Some((bytes::u32(found.tail, at)?, bytes::u32(found.tail, at + 4)?));
        (0..found.count)
            .filter_map(|number| entry(number * ENUM_SIZE))
            .find(|(name_at, _)| self.is_named(*name_at, name))
            .map(|(_, value)| value)
            .ok_or_else(missing)
    }

    fn position(&self, kind: u32, name: &str) -> Option<usize> {
        self.types.iter().position(|each| each.kind == kind && self.is_named(each.name_at, name))
    }

    /// A member of a structure or a union by its name, and its type's id.
    fn find(
        &self,
        inside: &Type<'a>,
        name: &str,
        depth: usize,
        looked_at: &mut usize,
    ) -> Option<(Member, u32)> {
        if name.is_empty() || ![KIND_STRUCT, KIND_UNION].contains(&inside.kind) {
            return None;
        }
        for at in (0..inside.count).map(|number| number * MEMBER_SIZE) {
            *looked_at += 1;
            if *looked_at > MOST_MEMBERS {
                return None;
            }
            let field = |offset| bytes::u32(inside.tail, at + offset);
            let (name_at, id, offset) = (field(0)?, field(4)?, field(8)?);
            let (bit_offset, bits) =
                if inside.has_bit_fields { (offset & 0x00ff_ffff, offset >> 24) } else { (offset, 0) };
            if self.is_named(name_at, name) {
                let bits = if bits == 0 { self.bits(id, DEEPEST)? } else { bits };
                return Some((Member { bit_offset, bits }, id));
            }
            let unnamed = self.is_named(name_at, "") && depth > 0;
            let within = unnamed.then(|| self.resolve(id)).flatten();
            let found = within.and_then(|within| self.find(within, name, depth - 1, looked_at));
            if let Some((member, id)) = found {
                let bit_offset = member.bit_offset.checked_add(bit_offset)?;
                return Some((Member { bit_offset, ..member }, id));
            }
        }
        None
    }

    fn get(&self, id: u32) -> Option<&Type<'a>> {
        self.types.get((id as usize).checked_sub(1)?)
    }

    /// A type without names for it and qualifiers.
    fn resolve(&self, mut id: u32) -> Option<&Type<'a>> {
        for _ in 0..DEEPEST {
            let found = self.get(id)?;
            match found.kind {
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                    id = found.size_or_type
                }
                _ => return Some(found),
            }
        }
        None
    }

    /// The size of a type.
    fn bits(&self, id: u32, depth: usize) -> Option<u32> {
        let found = self.resolve(id)?;
        match found.kind {
            KIND_INT | KIND_STRUCT | KIND_UNION | KIND_ENUM | KIND_ENUM64 => {
                found.size_or_type.checked_mul(8)
            }
            KIND_PTR => Some(usize::BITS),
            KIND_ARRAY if depth > 0 => {
                let each = self.bits(bytes::u32(found.tail, 0)?, depth - 1)?;
                each.checked_mul(bytes::u32(found.tail, 8)?)
            }
            _ => None,
        }
    }

    fn is_named(&self, at: u32, wanted: &str) -> bool {
        self.names
            .get(at as usize..)
            .and_then(|rest| rest.strip_prefix(wanted.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    }
}

/// One structure of a kernel. Finding it takes a walk over all types; its members are near.
pub struct Structure<'a> {
    btf: &'a Btf<'a>,
    name: String,
    found: &'a Type<'a>,
}

impl Structure<'_> {
    /// Bytes.
    pub fn size(&self) -> usize {
        self.found.size_or_type as usize
    }

    /// The member that `path` names: members of members after dots, elements of arrays in brackets. Members of unnamed
    /// structures and unions are found as in C.
    pub fn member(&self, path: &str) -> Result<Member, BtfError> {
        let missing = || BtfError::NoSuchMember(self.name.clone(), path.to_owned());
        let btf = self.btf;
        let mut inside = *self.found;
        let mut found = Member { bit_offset: 0, bits: 0 };
        for step in path.split('.') {
            let (wanted, index) = match step.split_once('[') {
                None => (step, None),
                Some((wanted, index)) => (wanted, index.trim_end_matches(']').parse::<u32>().ok()),
            };
            let (member, mut member_type) = btf.find(&inside, wanted, DEEPEST, &mut 0).ok_or_else(missing)?;
            found = Member {
                bit_offset: found.bit_offset.checked_add(member.bit_offset).ok_or_else(missing)?,
                bits: member.bits,
            };
            if let Some(index) = index {
                let array = btf.resolve(member_type).filter(|array| array.kind == KIND_ARRAY);
                let array = array.ok_or_else(missing)?;
                member_type = bytes::u32(array.tail, 0).ok_or_else(missing)?;
                let bits = btf.bits(member_type, DEEPEST).ok_or_else(missing)?;
                let before = index.checked_mul(bits).and_then(|before| found.bit_offset.checked_add(before));
                found = Member { bit_offset: before.ok_or_else(missing)?, bits };
            }
            // Only the last step may lead to what has no members.
            inside = btf.resolve(member_type).copied().unwrap_or(inside);
        }
        Ok(found)
    }
}

/// The types and the names.
fn sections(btf: &[u8]) -> Result<(&[u8], &[u8]), BtfError> {
    if bytes::u16(btf, 0) != Some(MAGIC) {
        return Err(BtfError::Malformed("no BTF of this machine's byte order"));
    }
    // struct btf_header: magic, version, flags, then the header's length and two sections, each an offset and a length.
    let field = |at| bytes::u32(btf, at).map(|value| value as usize);
    let section = |at| {
        let start = field(4)?.checked_add(field(at)?)?;
        btf.get(start..start.checked_add(field(at + 4)?)?)
    };
    match (section(8), section(16)) {
        (Some(types), Some(names)) => Ok((types, names)),
        _ => Err(BtfError::Malformed("a section is cut short")),
    }
}

/// What follows `struct btf_type`, by kind (`BTF_KIND_*`).
fn tail_size(kind: u32, members: usize) -> Option<usize> {
    Some(match kind {
        1 | 14 | 17 => 4,                // INT, VAR, DECL_TAG
        3 => 12,                         // ARRAY
        4 | 5 | 15 | 19 => 12 * members, // STRUCT, UNION, DATASEC, ENUM64
        6 | 13 => 8 * members,           // ENUM, FUNC_PROTO
        2 | 7..=12 | 16 | 18 => 0,       // PTR, FWD to FUNC, FLOAT, TYPE_TAG
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BTF of the types given, each as its words: the names in them are positions in `names`.
    fn btf(types: &[&[u32]], names: &str) -> Vec<u8> {
        let types: Vec<u8> = types.concat().iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut bytes = Vec::from(MAGIC.to_ne_bytes());
        bytes.extend([1, 0]);
        for word in [24, 0, types.len(), types.len(), names.len()] {
            bytes.extend((word as u32).to_ne_bytes());
        }
        bytes.extend(types);
        bytes.extend(names.bytes());
        bytes
    }

    /// Two functions, and `struct outer { int a; struct { int low:3, high:5; int list[4]; }; struct inner in; }` with
    /// `struct inner { int deep; }`.
    fn example() -> Vec<u8> {
        let names = "\0outer\0inner\0a\0low\0high\0list\0in\0deep\0bpf_iter_tcp_x\0bpf_iter_tcp\0";
        let at = |name: &str| names.find(&format!("\0{name}\0")).unwrap() as u32 + 1;
        let bit_fields = 1 << 31;
        btf(
            &[
                &[0, KIND_INT << 24, 4, 32],
                &[0, KIND_ARRAY << 24, 0, 1, 1, 4],
                &[at("inner"), KIND_STRUCT << 24 | 1, 4, at("deep"), 1, 0],
                &[
                    0,
                    bit_fields | KIND_STRUCT << 24 | 3,
                    20,
                    at("low"),
                    1,
                    3 << 24,
                    at("high"),
                    1,
                    5 << 24 | 3,
                    at("list"),
                    2,
                    32,
                ],
                &[at("outer"), KIND_STRUCT << 24 | 3, 28, at("a"), 1, 0, 0, 4, 32, at("in"), 3, 192],
                &[at("bpf_iter_tcp_x"), KIND_FUNC << 24, 1],
                &[at("bpf_iter_tcp"), KIND_FUNC << 24, 1],
            ],
            names,
        )
    }

    #[test]
    fn an_id_is_a_position() {
        let bytes = example();
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.function_id("bpf_iter_tcp_x"), Ok(6));
        assert_eq!(btf.function_id("bpf_iter_tcp"), Ok(7));
        let missing = btf.function_id("bpf_iter_sctp");
        assert_eq!(missing, Err(BtfError::NoSuchFunction("bpf_iter_sctp".into())));
    }

    #[test]
    fn members_lie_where_c_puts_them() {
        let bytes = example();
        let btf = Btf::parse(&bytes).unwrap();
        let outer = btf.structure("outer").unwrap();
        let place = |path| outer.member(path).map(|member| (member.bit_offset, member.bits));
        assert_eq!(outer.size(), 28);
        assert_eq!(place("a"), Ok((0, 32)));
        assert_eq!(place("low"), Ok((32, 3)));
        assert_eq!(place("high"), Ok((35, 5)));
        assert_eq!(place("list[0]"), Ok((64, 32)));
        assert_eq!(place("list[3]"), Ok((160, 32)));
        assert_eq!(place("list"), Ok((64, 128)));
        assert_eq!(place("in.deep"), Ok((192, 32)));
        for missing in ["b", "in.a", "a.b", "a[0]", "list.a", ""] {
            assert!(matches!(place(missing), Err(BtfError::NoSuchMember(..))), "{missing}");
        }
        assert!(matches!(btf.structure("none").err(), Some(BtfError::NoSuchStruct(_))));
    }

    #[test]
    fn a_member_is_read_from_its_bits() {
        let mut structure = [0; 28];
        structure[4] = 0b1011_0101;
        structure[20..24].copy_from_slice(&0x0102_0304_u32.to_le_bytes());
        let bytes = example();
        let btf = Btf::parse(&bytes).unwrap();
        let outer = btf.structure("outer").unwrap();
        let read = |path| outer.member(path).unwrap().read(&structure);
        assert_eq!((read("low"), read("high"), read("list[3]")), (0b101, 0b10110, 0x0102_0304));
        assert_eq!(outer.member("in.deep").unwrap().read(&structure[..20]), 0);
        let whole = Member { bit_offset: 0, bits: 64 };
        assert_eq!(whole.read(&[0xff; 8]), u64::MAX);
    }

    #[test]
    fn cut_anywhere_it_is_an_error() {
        let whole = example();
        for length in 0..whole.len() {
            assert!(matches!(Btf::parse(&whole[..length]), Err(BtfError::Malformed(_))), "{length}");
        }
    }

    #[test]
    fn any_byte_changed_is_survived() {
        let whole = example();
        for at in 0..whole.len() {
            for value in [0, 1, 4, 5, 0x7f, 0xff] {
                let mut changed = whole.clone();
                changed[at] = value;
                let Ok(btf) = Btf::parse(&changed) else { continue };
                let _ = btf.function_id("bpf_iter_tcp");
                let Ok(outer) = btf.structure("outer") else { continue };
                for path in ["low", "list[3]", "in.deep", "list[4294967295]"] {
                    let _ = outer.member(path).map(|member| member.read(&whole));
                }
            }
        }
    }

    #[test]
    fn a_structure_that_contains_itself_is_not_followed_for_ever() {
        let itself = [0, 1, 0];
        let words = [&[1, KIND_STRUCT << 24 | 8, 8][..], &itself.repeat(8)].concat();
        let bytes = btf(&[&words], "\0outer\0");
        let btf = Btf::parse(&bytes).unwrap();
        assert!(btf.structure("outer").unwrap().member("a").is_err());
    }

    #[test]
    fn a_kind_from_the_future_is_named() {
        let mut bytes = example();
        bytes[24 + 4..24 + 8].copy_from_slice(&(31u32 << 24).to_ne_bytes());
        assert!(matches!(Btf::parse(&bytes), Err(BtfError::UnknownKind(31))));
    }

    #[test]
    fn this_kernel_has_the_tcp_iterator() {
        match std::fs::read(KERNEL) {
            Ok(bytes) => {
                let btf = Btf::parse(&bytes).unwrap();
                assert!(btf.function_id("bpf_iter_tcp").is_ok_and(|id| id > 0));
                // A pointer, in an unnamed structure or not.
                let context = btf.structure("mptcp_subflow_context").unwrap();
                assert!(context.member("tcp_sock").is_ok_and(|member| member.size() == 8));
                let state = btf.typedef_id("btf_trace_inet_sock_set_state").unwrap();
                assert_eq!(btf.tracepoint_arguments(state), Some(3));
                assert_eq!(btf.enumerator("skb_ext_id", "SKB_EXT_BRIDGE_NF"), Ok(0));
                assert!(btf.enumerator("skb_ext_id", "SKB_EXT_NONE").is_err());
            }
            Err(missing) => eprintln!("skipped: {KERNEL}: {missing}"),
        }
    }
}
