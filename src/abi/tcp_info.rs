//! `struct tcp_info` of `<linux/tcp.h>`: what the kernel knows of one subflow.

use crate::abi::fields::Field;
use crate::abi::uapi::tcp_state;

/// Size of the structure in the newest kernel known here (6.18). Its last four bytes are left out: they are
/// two u16 in 6.18 and a bit field in 7.0, at the same size.
pub const SIZE: usize = 280;

/// The rows of the structure, for whoever needs one piece of code a field.
macro_rules! tcp_info_fields {
    ($apply:path) => {
        $apply! {
            since 232 {
                state: U8, 0, "TCP state: 1 is ESTABLISHED, 2 SYN_SENT (<net/tcp_states.h>).";
                ca_state: U8, 1, "Congestion state: 0 open, 1 disorder, 2 CWR, 3 recovery, 4 loss.";
                retransmits: U8, 2, "Consecutive retransmission timeouts.";
                probes: U8, 3, "Unanswered window or keepalive probes.";
                backoff: U8, 4, "Exponent of the retransmission timer's back-off.";
                options: U8, 5, "TCPI_OPT_*: 1 timestamps, 2 SACK, 4 window scale, 8 ECN, 16 ECN seen, 32 SYN data.";
                snd_wscale: Bits { shift: 0, width: 4 }, 6, "Window scale of the peer, a power of two.";
                rcv_wscale: Bits { shift: 4, width: 4 }, 6, "Window scale of this side, a power of two.";
                delivery_rate_app_limited: Bits { shift: 0, width: 1 }, 7, "1 if delivery_rate was limited by the application.";
                fastopen_client_fail: Bits { shift: 1, width: 2 }, 7, "Why TCP Fast Open failed; 0 if it did not.";
                rto: U32, 8, "Retransmission timeout, microseconds.";
                ato: U32, 12, "Delayed acknowledgement timeout, microseconds.";
                snd_mss: U32, 16, "Sending maximum segment size, bytes.";
                rcv_mss: U32, 20, "Maximum segment size seen from the peer, bytes.";
                unacked: U32, 24, "Segments sent and not yet acknowledged.";
                sacked: U32, 28, "Segments selectively acknowledged.";
                lost: U32, 32, "Segments considered lost.";
                retrans: U32, 36, "Segments retransmitted and not yet acknowledged.";
                fackets: U32, 40, "Unused by the kernel.";
                last_data_sent: U32, 44, "Milliseconds since data was last sent.";
                last_ack_sent: U32, 48, "Unused by the kernel.";
                last_data_recv: U32, 52, "Milliseconds since data was last received.";
                last_ack_recv: U32, 56, "Milliseconds since an acknowledgement was last received.";
                pmtu: U32, 60, "Path MTU, bytes.";
                rcv_ssthresh: U32, 64, "Current receive window clamp, bytes.";
                rtt: U32, 68, "Smoothed round-trip time, microseconds.";
                rttvar: U32, 72, "Mean deviation of the round-trip time, microseconds.";
                snd_ssthresh: U32, 76, "Slow start threshold, segments; 2147483647 while there is none yet.";
                snd_cwnd: U32, 80, "Congestion window, segments.";
                advmss: U32, 84, "Maximum segment size announced to the peer, bytes.";
                reordering: U32, 88, "Reordering allowed before a loss is assumed, segments.";
                rcv_rtt: U32, 92, "Round-trip time estimated as a receiver, microseconds; 0 if unknown.";
                rcv_space: U32, 96, "Bytes that the application read in the last receive round trip.";
                total_retrans: U32, 100, "Segments retransmitted since the start.";
                pacing_rate: U64, 104, "Pacing rate, bytes per second; all bits set if unlimited.";
                max_pacing_rate: U64, 112, "Limit of the pacing rate, bytes per second; all bits set if there is none.";
                bytes_acked: U64, 120, "Bytes acknowledged, the SYN counted as one.";
                bytes_received: U64, 128, "Bytes received in order.";
                segs_out: U32, 136, "Segments sent, retransmissions and pure acknowledgements included.";
                segs_in: U32, 140, "Segments received, pure acknowledgements included.";
                notsent_bytes: U32, 144, "Bytes in the send queue not yet sent.";
                min_rtt: U32, 148, "Smallest recent round-trip time, microseconds; all bits set if there is none.";
                data_segs_in: U32, 152, "Segments with data received.";
                data_segs_out: U32, 156, "Segments with data sent.";
                delivery_rate: U64, 160, "Most recent delivery rate, bytes per second.";
                busy_time: U64, 168, "Time with data to send, microseconds.";
                rwnd_limited: U64, 176, "Time limited by the receive window, microseconds.";
                sndbuf_limited: U64, 184, "Time limited by the send buffer, microseconds.";
                delivered: U32, 192, "Segments delivered, retransmissions included.";
                delivered_ce: U32, 196, "Segments delivered with the ECN mark.";
                bytes_sent: U64, 200, "Bytes of data sent, retransmissions included.";
                bytes_retrans: U64, 208, "Bytes of data retransmitted.";
                dsack_dups: U32, 216, "Duplicates reported by D-SACK.";
                reord_seen: U32, 220, "Reordering events that were detected.";
                rcv_ooopack: U32, 224, "Segments received out of order.";
                snd_wnd: U32, 228, "Peer's receive window, bytes.";
            }
            since 240 {
                rcv_wnd: U32, 232, "Receive window of this side, bytes. Linux 6.2.";
                rehash: U32, 236, "Changes of the flow hash after PLB or a timeout. Linux 6.2.";
            }
            since 248 {
                total_rto: U16, 240, "Number of retransmission timeouts. Linux 6.7.";
                total_rto_recoveries: U16, 242, "Number of recoveries from retransmission timeouts. Linux 6.7.";
                total_rto_time: U32, 244, "Time spent in such recoveries, milliseconds. Linux 6.7.";
            }
            since 280 {
                received_ce: U32, 248, "Segments received with the ECN mark CE. Linux 6.18.";
                delivered_e1_bytes: U32, 252, "Bytes delivered with ECT(1), by Accurate ECN. Linux 6.18.";
                delivered_e0_bytes: U32, 256, "Bytes delivered with ECT(0), by Accurate ECN. Linux 6.18.";
                delivered_ce_bytes: U32, 260, "Bytes delivered with CE, by Accurate ECN. Linux 6.18.";
                received_e1_bytes: U32, 264, "Bytes received with ECT(1). Linux 6.18.";
                received_e0_bytes: U32, 268, "Bytes received with ECT(0). Linux 6.18.";
                received_ce_bytes: U32, 272, "Bytes received with CE. Linux 6.18.";
            }
        }
    };
}
pub(crate) use tcp_info_fields;

tcp_info_fields!(crate::abi::fields::define_fields);

/// One `struct tcp_info`, as long as the kernel made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpInfo {
    bytes: [u8; SIZE],
    length: usize,
}

impl TcpInfo {
    /// Takes the bytes that the kernel returned; what a newer kernel appends is left out.
    pub fn decode(reply: &[u8]) -> TcpInfo {
        let mut bytes = [0; SIZE];
        let length = reply.len().min(SIZE);
        bytes[..length].copy_from_slice(&reply[..length]);
        TcpInfo { bytes, length }
    }

    /// A structure of the newest kernel's size with these fields, as tests make them. The others are 0, but for the state,
    /// which is ESTABLISHED.
    pub fn of(values: impl IntoIterator<Item = (&'static Field, u64)>) -> TcpInfo {
        let mut bytes = [0; SIZE];
        field::state.write(&mut bytes, tcp_state::ESTABLISHED.into());
        values.into_iter().for_each(|(field, value)| field.write(&mut bytes, value));
        TcpInfo { bytes, length: SIZE }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// tcpi_state.
    pub fn state(&self) -> u8 {
        self.bytes[0]
    }

    /// tcpi_state by its name in `<net/tcp_states.h>`, without the prefix.
    pub fn state_name(&self) -> &'static str {
        tcp_state::name(self.state())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_inside_the_structure_and_do_not_overlap() {
        use crate::abi::fields::Kind;
        let mut end = 0;
        for f in FIELDS {
            let width = match f.kind {
                Kind::U8 | Kind::Bits { .. } => 1,
                Kind::U16 => 2,
                Kind::U32 => 4,
                Kind::U64 => 8,
            };
            assert!(f.offset >= end || matches!(f.kind, Kind::Bits { .. }), "{}", f.name);
            end = f.offset + width;
            assert!(end <= f.since_size, "{}", f.name);
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for written in FIELDS {
            let info = TcpInfo::of([(written, written.most())]);
            assert_eq!(written.read(info.bytes()), Some(written.most()), "{}", written.name);
            let others = FIELDS.iter().filter(|other| other.name != written.name && other.name != "state");
            others.for_each(|other| assert_eq!(other.read(info.bytes()), Some(0), "{}", other.name));
        }
        assert_eq!(TcpInfo::of([]).state_name(), "ESTABLISHED");
    }

    #[test]
    fn bit_fields_share_a_byte() {
        let mut bytes = [0u8; SIZE];
        bytes[6] = 0x97;
        bytes[7] = 0x05;
        let info = TcpInfo::decode(&bytes);
        assert_eq!(field::snd_wscale.read(info.bytes()), Some(7));
        assert_eq!(field::rcv_wscale.read(info.bytes()), Some(9));
        assert_eq!(field::delivery_rate_app_limited.read(info.bytes()), Some(1));
        assert_eq!(field::fastopen_client_fail.read(info.bytes()), Some(2));
    }

    #[test]
    fn an_unknown_state_has_a_name() {
        assert_eq!(TcpInfo::decode(&[1]).state_name(), "ESTABLISHED");
        assert_eq!(TcpInfo::decode(&[200]).state_name(), "UNKNOWN");
    }
}
