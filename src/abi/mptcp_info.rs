//! `struct mptcp_info` of `<linux/mptcp.h>`: what MPTCP_INFO and the end of MPTCP_FULL_INFO return.

/// Size of the structure in the newest kernel known here (6.10 to 6.18).
pub const SIZE: usize = 96;

/// The rows of the structure, for whoever needs one piece of code a field.
macro_rules! info_fields {
    ($apply:path) => {
        $apply! {
            since 48 {
                subflows: U8, 0, "Additional subflows: the initial one is not counted. Wraps at 256.";
                add_addr_signal: U8, 1, "ADD_ADDR options sent.";
                add_addr_accepted: U8, 2, "ADD_ADDR options accepted.";
                subflows_max: U8, 3, "Limit of additional subflows of the in-kernel path manager.";
                add_addr_signal_max: U8, 4, "Endpoints with the signal flag.";
                add_addr_accepted_max: U8, 5, "Limit of accepted ADD_ADDR of the in-kernel path manager.";
                flags: U32, 8, "MPTCP_INFO_FLAG_FALLBACK (1), MPTCP_INFO_FLAG_REMOTE_KEY_RECEIVED (2).";
                token: U32, 12, "The connection's token on this host.";
                write_seq: U64, 16, "Data sequence number of the next byte that the application writes.";
                snd_una: U64, 24, "First data sequence number not yet acknowledged by the peer.";
                rcv_nxt: U64, 32, "Next data sequence number expected from the peer.";
                local_addr_used: U8, 40, "Local addresses in use.";
                local_addr_max: U8, 41, "Endpoints with the subflow flag.";
                csum_enabled: U8, 42, "1 if the DSS checksum is in use.";
            }
            since 80 {
                retransmits: U32, 44, "Retransmission timeouts of the connection. Linux 6.5.";
                bytes_retrans: U64, 48, "Bytes retransmitted by the connection. Linux 6.5.";
                bytes_sent: U64, 56, "Bytes sent, retransmissions not included. Linux 6.5.";
                bytes_received: U64, 64, "Bytes received, each counted once. Linux 6.5.";
                bytes_acked: U64, 72, "Bytes acknowledged by the peer. Linux 6.5.";
            }
            since 88 {
                subflows_total: U8, 80, "Subflows that there are, the initial one included while it lives. Wraps at 256. Linux 6.8.";
            }
            since 96 {
                last_data_sent: U32, 84, "Milliseconds since data was last sent. Linux 6.10.";
                last_data_recv: U32, 88, "Milliseconds since data was last received. Linux 6.10.";
                last_ack_recv: U32, 92, "Milliseconds since an acknowledgement was last received. Linux 6.10.";
            }
        }
    };
}
pub(crate) use info_fields;

info_fields!(crate::abi::fields::define_fields);

/// One `struct mptcp_info`, as long as the kernel made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    bytes: [u8; SIZE],
    length: usize,
}

impl Info {
    /// Takes the bytes that the kernel returned; what a newer kernel appends is left out.
    pub fn decode(reply: &[u8]) -> Info {
        let mut bytes = [0; SIZE];
        let length = reply.len().min(SIZE);
        bytes[..length].copy_from_slice(&reply[..length]);
        Info { bytes, length }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// The connection's token; 0 while there is none.
    pub fn token(&self) -> u32 {
        field::token.read(self.bytes()).unwrap_or(0) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shorter_structure_has_no_later_fields() {
        let bytes = [7u8; SIZE];
        let old = Info::decode(&bytes[..48]);
        assert_eq!(field::token.read(old.bytes()), Some(0x0707_0707));
        assert_eq!(field::retransmits.read(old.bytes()), None, "offset 44 was padding before 6.5");
        let middle = Info::decode(&bytes[..88]);
        assert_eq!(field::subflows_total.read(middle.bytes()), Some(7));
        assert_eq!(field::last_data_sent.read(middle.bytes()), None, "offset 84 was padding before 6.10");
        assert!(FIELDS.iter().all(|f| f.read(&bytes).is_some()));
        assert!(FIELDS.iter().all(|f| f.read(&[]).is_none()));
    }

    #[test]
    fn a_longer_structure_is_cut() {
        assert_eq!(Info::decode(&[1; 200]).bytes().len(), SIZE);
    }
}
