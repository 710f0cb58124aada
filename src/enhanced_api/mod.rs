//! The enhanced socket API of 2016: six options by which a program lists, reads, opens and closes the subflows of its
//! connection and reaches the socket options of one. [`codec`] has the bytes, [`crate::namespace::sub_ids`] the numbers of
//! subflows, and [`serve`] does what a call asks for, whoever made it.

pub mod codec;
pub mod serve;

pub use serve::{serve_get, serve_set, Caller, Reply, ThisProcess};

use crate::abi::uapi::enhanced_api as uapi;

/// How the structures lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// The authors' kernel.
    Kernel,
    /// draft-hesmans-mptcp-socket-00.
    Draft,
    /// Our own header.
    Header,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    GetSubIds,
    CloseSubId,
    GetSubTuple,
    OpenSubTuple,
    SubGetsockopt,
    SubSetsockopt,
}

/// One of the six options, in one layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    pub name: Name,
    pub layout: Layout,
}

impl Call {
    /// The call that an option's number means: those of 2016 in the layout that the user chose, our header's in its own.
    pub fn of(optname: i32, chosen: Layout) -> Option<Call> {
        let (number, layout) = match optname.checked_sub(uapi::HEADER) {
            Some(number) if number > 0 => (number, Layout::Header),
            _ => (optname, chosen),
        };
        let name = match number {
            uapi::MPTCP_GET_SUB_IDS => Name::GetSubIds,
            uapi::MPTCP_CLOSE_SUB_ID => Name::CloseSubId,
            uapi::MPTCP_GET_SUB_TUPLE => Name::GetSubTuple,
            uapi::MPTCP_OPEN_SUB_TUPLE => Name::OpenSubTuple,
            uapi::MPTCP_SUB_GETSOCKOPT => Name::SubGetsockopt,
            uapi::MPTCP_SUB_SETSOCKOPT => Name::SubSetsockopt,
            _ => return None,
        };
        Some(Call { name, layout })
    }

    /// How many bytes at the start of the caller's buffer the call reads at most.
    pub fn input_size(self) -> usize {
        match self.name {
            Name::GetSubIds => 0,
            Name::GetSubTuple => 1,
            Name::CloseSubId => codec::close_sub_id_size(self.layout),
            Name::OpenSubTuple => codec::sub_tuple_size(self.layout, false),
            Name::SubGetsockopt | Name::SubSetsockopt => uapi::SOCKOPT_SIZE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_means_one_option_in_one_layout() {
        for chosen in [Layout::Kernel, Layout::Draft] {
            assert_eq!(Call::of(66, chosen), Some(Call { name: Name::GetSubIds, layout: chosen }));
            assert_eq!(
                Call::of(0x4000 + 69, chosen),
                Some(Call { name: Name::OpenSubTuple, layout: Layout::Header })
            );
            for other in [0, -1, 65, 70, 73, 0x4000, 0x4000 + 70, 0x8000 + 66, i32::MIN, i32::MAX] {
                assert_eq!(Call::of(other, chosen), None, "{other}");
            }
        }
        assert_eq!(Call::of(66, Layout::Kernel).unwrap().input_size(), 0);
        assert_eq!(Call::of(69, Layout::Kernel).unwrap().input_size(), 57);
    }
}
