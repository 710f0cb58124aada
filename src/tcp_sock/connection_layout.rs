//! Where this kernel keeps what `mptcp_info` tells, by its BTF, and `mptcp_info` made from it as mptcp_diag_fill_info()
//! makes it. Pure.

use super::layout::{milliseconds, LARGEST};
use crate::abi::fields::Field;
use crate::abi::mptcp_info::{self, Info};
use crate::abi::uapi;
use crate::abi::uapi::tcp_state;
use crate::bpf::btf::{Btf, BtfError, Member};

/// `enum mptcp_pm_type`: the in-kernel path manager.
const MPTCP_PM_TYPE_KERNEL: u64 = 0;

/// What mptcp_diag_fill_info() copies as it is: the field and the member, with the name that older kernels have for it.
const COPIED: &[(Field, &[&str])] = {
    use mptcp_info::field as f;
    &[
        (f::subflows, &["pm.extra_subflows", "pm.subflows"]),
        (f::add_addr_signal, &["pm.add_addr_signaled"]),
        (f::add_addr_accepted, &["pm.add_addr_accepted"]),
        (f::token, &["token"]),
        (f::write_seq, &["write_seq"]),
        (f::snd_una, &["snd_una"]),
        (f::rcv_nxt, &["ack_seq"]),
        (f::local_addr_used, &["pm.local_addr_used"]),
        (f::csum_enabled, &["csum_enabled"]),
        (f::retransmits, &["sk.icsk_retransmits"]),
        (f::bytes_retrans, &["bytes_retrans"]),
        (f::bytes_sent, &["bytes_sent"]),
        (f::bytes_received, &["bytes_received"]),
        (f::bytes_acked, &["bytes_acked"]),
    ]
};

/// Likewise milliseconds since a moment, which the member has in jiffies.
const SINCE: &[(Field, &str)] = {
    use mptcp_info::field as f;
    &[
        (f::last_data_sent, "last_data_sent"),
        (f::last_data_recv, "last_data_recv"),
        (f::last_ack_recv, "last_ack_recv"),
    ]
};

/// The fields that are limits and endpoints of the namespace's in-kernel path manager, and in no `mptcp_sock`.
pub const OF_NAMESPACE: &[Field] = {
    use mptcp_info::field as f;
    &[f::subflows_max, f::add_addr_signal_max, f::add_addr_accepted_max, f::local_addr_max]
};

/// The layout of one kernel.
#[derive(Debug)]
pub struct ConnectionLayout {
    /// Of a `mptcp_sock`.
    pub socket_size: usize,
    pub token: Member,
    /// The address of the initial subflow's socket.
    pub first: Member,
    /// `skc_state`, of any socket.
    pub state: Member,
    flags: Member,
    can_ack: Member,
    pm_type: Member,
    copied: Vec<(Field, Member)>,
    since: Vec<(Field, Member)>,
    /// How much of `mptcp_info` this kernel has.
    length: usize,
    /// Jiffies a second.
    hz: u64,
}

/// What a `mptcp_sock` says.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionState {
    /// Without the fields of [`OF_NAMESPACE`] and MPTCP_INFO_FLAG_FALLBACK.
    pub info: [u8; mptcp_info::SIZE],
    pub length: usize,
    /// `flags`, whose bits BTF does not name. One is set for good when the connection falls back.
    pub flags: u64,
    pub is_in_kernel: bool,
}

impl ConnectionState {
    pub fn info(&self) -> Info {
        Info::decode(&self.info[..self.length])
    }
}

impl ConnectionLayout {
    pub fn new(btf: &Btf<'_>, hz: u64) -> Result<ConnectionLayout, BtfError> {
        let length = btf.structure("mptcp_info")?.size().min(mptcp_info::SIZE);
        let msk = btf.structure("mptcp_sock")?;
        let any_of = |names: &[&str]| {
            let found = names.iter().find_map(|name| msk.member(name).ok());
            found.ok_or_else(|| BtfError::NoSuchMember("mptcp_sock".into(), names.join(" or ")))
        };
        let is_there = |field: &Field| field.since_size <= length;
        let copied = COPIED.iter().filter(|(field, _)| is_there(field));
        let since = SINCE.iter().filter(|(field, _)| is_there(field));
        if msk.size() > LARGEST {
            return Err(BtfError::Malformed("a socket is larger than any kernel's"));
        }
        Ok(ConnectionLayout {
            socket_size: msk.size(),
            token: msk.member("token")?,
            first: msk.member("first")?,
            state: btf.structure("sock_common")?.member("skc_state")?,
            flags: msk.member("flags")?,
            can_ack: msk.member("can_ack")?,
            pm_type: msk.member("pm.pm_type")?,
            copied: copied
                .map(|(field, names)| Ok((*field, any_of(names)?)))
                .collect::<Result<_, BtfError>>()?,
            since: since
                .map(|(field, name)| Ok((*field, msk.member(name)?)))
                .collect::<Result<_, BtfError>>()?,
            length,
            hz: hz.max(1),
        })
    }

    /// What a copy of a `mptcp_sock` says, whose initial subflow's socket was in the state `first`, 0 for none.
    pub fn state(&self, socket: &[u8], first: u8, jiffies: u32) -> ConnectionState {
        use mptcp_info::field as f;
        let mut info = [0; mptcp_info::SIZE];
        let mut put = |field: &Field, value: u64| field.write(&mut info, value & field.most());
        for (field, member) in &self.copied {
            put(field, member.read(socket));
        }
        for (field, member) in &self.since {
            let since = jiffies.wrapping_sub(member.read(socket) as u32);
            put(field, milliseconds(since.into(), self.hz));
        }
        if self.can_ack.read(socket) != 0 {
            put(&f::flags, uapi::MPTCP_INFO_FLAG_REMOTE_KEY_RECEIVED.into());
        }
        let alive = [tcp_state::ESTABLISHED, tcp_state::SYN_SENT, tcp_state::SYN_RECV, tcp_state::LISTEN];
        let subflows = self.copied.first().map_or(0, |(_, member)| member.read(socket));
        put(&f::subflows_total, subflows + u64::from(alive.contains(&first)));
        ConnectionState {
            info,
            length: self.length,
            flags: self.flags.read(socket),
            is_in_kernel: self.pm_type.read(socket) == MPTCP_PM_TYPE_KERNEL,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::btf;

    /// Every field of `mptcp_info` is either copied or computed, except those of the namespace.
    #[test]
    fn no_field_is_forgotten() {
        let Ok(bytes) = std::fs::read(btf::KERNEL) else { return eprintln!("skipped: no {}", btf::KERNEL) };
        let layout = ConnectionLayout::new(&Btf::parse(&bytes).unwrap(), 250).unwrap();
        let state = layout.state(&vec![1; layout.socket_size], tcp_state::ESTABLISHED, 7);
        let info = state.info();
        let unset: Vec<&str> = mptcp_info::FIELDS
            .iter()
            .filter(|field| field.read(info.bytes()) == Some(0))
            .map(|field| field.name)
            .collect();
        let of_namespace: Vec<&str> = OF_NAMESPACE.iter().map(|field| field.name).collect();
        assert_eq!(unset, of_namespace);
        assert_eq!(info.token(), 0x0101_0101);
        assert!(!state.is_in_kernel);
        assert_eq!(mptcp_info::field::subflows_total.read(info.bytes()).unwrap_or(2), 2);
    }
}
