//! Finding a kernel function's id in BTF, the type information that the kernel publishes of itself. Pure and bounded:
//! whatever the bytes, an id or an error.
//!
//! Format: Documentation/bpf/btf.rst and `linux/btf.h`. A header, a section of types, a section of names. A type has no
//! number written in it: its id is its position, from 1.

use crate::abi::bytes;

/// Where the running kernel's BTF is; readable by everyone.
pub const KERNEL: &str = "/sys/kernel/btf/vmlinux";

/// Why there is no id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    #[error("malformed BTF: {0}")]
    Malformed(&'static str),
    /// Its size, and so where the next type begins, is unknown.
    #[error("BTF type kind {0} is newer than what is known here")]
    UnknownKind(u32),
    #[error("no function {0}")]
    NoSuchFunction(String),
}

const MAGIC: u16 = 0xeb9f;
const TYPE_SIZE: usize = 12; // struct btf_type
const KIND_FUNC: u32 = 12;

/// The id of the function `name`.
pub fn function_id(btf: &[u8], name: &str) -> Result<u32, BtfError> {
    let (types, names) = sections(btf)?;
    let mut rest = types;
    let mut id = 0;
    while !rest.is_empty() {
        id += 1;
        let (name_at, info) = match (bytes::u32(rest, 0), bytes::u32(rest, 4)) {
            (Some(name_at), Some(info)) => (name_at, info),
            _ => return Err(BtfError::Malformed("a type is cut short")),
        };
        let kind = info >> 24 & 0x1f;
        let members = (info & 0xffff) as usize;
        if kind == KIND_FUNC && name_is(names, name_at, name) {
            return Ok(id);
        }
        let tail = tail_size(kind, members).ok_or(BtfError::UnknownKind(kind))?;
        rest = rest.get(TYPE_SIZE + tail..).ok_or(BtfError::Malformed("a type is cut short"))?;
    }
    Err(BtfError::NoSuchFunction(name.to_owned()))
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

fn name_is(names: &[u8], at: u32, wanted: &str) -> bool {
    names
        .get(at as usize..)
        .and_then(|rest| rest.strip_prefix(wanted.as_bytes()))
        .is_some_and(|rest| rest.first() == Some(&0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND_STRUCT: u32 = 4;
    const KIND_INT: u32 = 1;

    /// BTF with an int, a struct of two members and then the functions named.
    fn btf(functions: &[&str]) -> Vec<u8> {
        let mut names = vec![0];
        let mut types = Vec::new();
        let mut add = |words: &[u32]| types.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        add(&[0, KIND_INT << 24, 4, 32]);
        add(&[0, KIND_STRUCT << 24 | 2, 8, 0, 1, 0, 0, 1, 32]);
        for function in functions {
            add(&[names.len() as u32, KIND_FUNC << 24, 1]);
            names.extend(function.as_bytes());
            names.push(0);
        }
        let mut bytes = Vec::from(MAGIC.to_ne_bytes());
        bytes.extend([1, 0]);
        for word in [24, 0, types.len() as u32, types.len() as u32, names.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(types);
        bytes.extend(names);
        bytes
    }

    #[test]
    fn an_id_is_a_position() {
        let btf = btf(&["bpf_iter_udp", "bpf_iter_tcp_x", "bpf_iter_tcp"]);
        assert_eq!(function_id(&btf, "bpf_iter_udp"), Ok(3));
        assert_eq!(function_id(&btf, "bpf_iter_tcp"), Ok(5));
        let missing = function_id(&btf, "bpf_iter_sctp");
        assert_eq!(missing, Err(BtfError::NoSuchFunction("bpf_iter_sctp".into())));
    }

    #[test]
    fn cut_anywhere_it_is_an_error() {
        let whole = btf(&["bpf_iter_tcp"]);
        for length in 0..whole.len() {
            let cut = function_id(&whole[..length], "bpf_iter_tcp");
            assert!(matches!(cut, Err(BtfError::Malformed(_))), "{length}: {cut:?}");
        }
    }

    #[test]
    fn any_byte_changed_is_survived() {
        let whole = btf(&["bpf_iter_tcp"]);
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut changed = whole.clone();
                changed[at] = value;
                let _ = function_id(&changed, "bpf_iter_tcp");
            }
        }
    }

    #[test]
    fn a_kind_from_the_future_is_named() {
        let mut btf = btf(&["bpf_iter_tcp"]);
        btf[24 + 4..24 + 8].copy_from_slice(&(31u32 << 24).to_ne_bytes());
        assert_eq!(function_id(&btf, "bpf_iter_tcp"), Err(BtfError::UnknownKind(31)));
    }

    #[test]
    fn this_kernel_has_the_tcp_iterator() {
        match std::fs::read(KERNEL) {
            Ok(btf) => assert!(function_id(&btf, "bpf_iter_tcp").is_ok_and(|id| id > 0)),
            Err(missing) => eprintln!("skipped: {KERNEL}: {missing}"),
        }
    }
}
