//! What options say: keys, joins, mappings, acknowledgments, events.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::Wanted;
use super::connections::{Connections, Seen};
use super::key::{hmac, token_and_idsn};
use super::row::{Event, Value};
use super::segments::deliver;
use super::sequence::{expand, Map};
use crate::capture::option::{Dss, Join, Mapping, Mptcp};
use crate::capture::segment::{ACK, SYN};

impl Connections {
    pub(super) fn read_options(&mut self, seen: &Seen<'_>) {
        let Seen { subflow, direction, segment, options, .. } = *seen;
        let is_syn = segment.flags & SYN != 0;
        let mut has_mptcp = false;
        for found in options.mptcp() {
            let Some(value) = found.value else { continue };
            has_mptcp = true;
            match value {
                Mptcp::Dss(dss) => self.read_dss(seen, dss),
                Mptcp::Capable { version, checksum, key, peer_key, length, .. } => {
                    self.read_capable(seen, version, checksum, [key, peer_key]);
                    if let (Some(length), true) = (length, segment.payload_length > 0) {
                        let mapping = Map { start: 1, end: 1 + i64::from(length), dsn: 0 };
                        if let Some(followed) = self.subflows.get_mut(subflow) {
                            followed.streams[direction].mappings.add(mapping);
                        }
                    }
                }
                Mptcp::Join(join) => self.read_join(subflow, direction, join),
                Mptcp::Prio { backup, .. } => {
                    if let Some(followed) = self.subflows.get_mut(subflow) {
                        followed.row.backup[direction] = backup;
                    }
                }
                Mptcp::TcpRst { reason, .. } => {
                    if let Some(followed) = self.subflows.get_mut(subflow) {
                        followed.row.reset_reason = i16::from(reason);
                    }
                }
                Mptcp::AddAddr { .. }
                | Mptcp::RemoveAddr { .. }
                | Mptcp::Fail { .. }
                | Mptcp::FastClose { .. } => {}
            }
            if seen.at_sender {
                if let Some((kind, mut details)) = describe(&value) {
                    if let Some(valid) = self.authenticate(seen, &value) {
                        details.push(("hmac_valid", valid.map_or(Value::Unknown, Value::Flag)));
                    }
                    self.tell(seen, kind, details);
                }
            }
        }
        if is_syn && segment.flags & ACK != 0 && !has_mptcp && !segment.options_cut {
            let joined = self.subflows.get(subflow).is_some_and(|followed| !followed.row.initial);
            if !joined {
                self.fall_back(seen, "the handshake");
            }
        }
    }

    pub(super) fn tell(&mut self, seen: &Seen<'_>, kind: &'static str, details: Vec<(&'static str, Value)>) {
        let connection = self.subflows.get(seen.subflow).map_or(0, |followed| followed.connection);
        self.events.push(Event {
            kind,
            time_ns: seen.time_ns,
            capture: seen.capture,
            connection,
            subflow: seen.subflow,
            direction: seen.direction,
            details,
        });
    }

    pub(super) fn read_capable(
        &mut self,
        seen: &Seen<'_>,
        version: u8,
        checksum: bool,
        keys: [Option<u64>; 2],
    ) {
        let is_syn = seen.segment.flags & SYN != 0;
        let Some(followed) = self.subflows.get_mut(seen.subflow) else { return };
        let (number, direction) = (followed.connection, seen.direction);
        let Some(tracked) = self.connections.get_mut(number) else { return };
        // The answer decides about the version. Checksums are used if one side asks for them.
        if is_syn || tracked.row.version < 0 {
            tracked.row.version = version as i8;
        }
        tracked.row.checksum |= checksum;
        for (side, key) in [(direction, keys[0]), (1 - direction, keys[1])] {
            let (Some(key), Some(data)) = (key, tracked.data.get_mut(side)) else { continue };
            if data.key == Some(key) {
                continue;
            }
            let (token, idsn) = token_and_idsn(version, key);
            data.key = Some(key);
            data.token = Some(token);
            data.begin(idsn);
            self.tokens.insert(token, (number, side));
            tracked.row.idsn[side] = idsn;
            if side == 0 {
                tracked.row.token = token;
            } else {
                tracked.row.peer_token = token;
            }
        }
        let complete = tracked.data.iter().all(|data| data.key.is_some());
        tracked.row.complete = complete && followed.row.complete;
    }

    pub(super) fn read_join(&mut self, subflow: usize, direction: usize, join: Join) {
        let Some(followed) = self.subflows.get_mut(subflow) else { return };
        match join {
            Join::Syn { address_id, backup, nonce, .. } | Join::SynAck { address_id, backup, nonce, .. } => {
                followed.row.initial = false;
                followed.nonces[direction] = Some(nonce);
                followed.row.address_id[direction] = i16::from(address_id);
                followed.row.backup[direction] = backup;
            }
            Join::Ack { .. } => {}
        }
    }

    /// Compares the HMAC of an option with what follows from the keys: `None` if the option has none, `Some(None)` if the
    /// keys or the nonces were not captured.
    fn authenticate(&mut self, seen: &Seen<'_>, option: &Mptcp<'_>) -> Option<Option<bool>> {
        let followed = self.subflows.get_mut(seen.subflow)?;
        let tracked = self.connections.get(followed.connection)?;
        let (sender, receiver) = (seen.direction, 1 - seen.direction);
        let keys = tracked.data[sender].key.zip(tracked.data[receiver].key).map(<[u64; 2]>::from);
        let nonces = followed.nonces[sender].zip(followed.nonces[receiver]);
        let nonces = nonces.map(|(own, other)| [own.to_be_bytes(), other.to_be_bytes()].concat());
        let version = u8::try_from(tracked.row.version).unwrap_or(1);
        let expected = |message: Option<Vec<u8>>| Some(hmac(version, keys?, &message?));
        let valid = match *option {
            Mptcp::Join(Join::SynAck { hmac, .. }) => {
                expected(nonces).map(|expected| expected.starts_with(&hmac.to_be_bytes()))
            }
            Mptcp::Join(Join::Ack { hmac }) => expected(nonces).map(|expected| expected.starts_with(&hmac)),
            Mptcp::AddAddr { address_id, address, port, hmac: Some(hmac), .. } => {
                let message = [&[address_id], address, &port.unwrap_or(0).to_be_bytes()].concat();
                expected(Some(message)).map(|expected| expected.ends_with(&hmac.to_be_bytes()))
            }
            _ => return None,
        };
        if let Some(valid) = valid {
            followed.row.hmacs[sender] += 1;
            followed.row.hmac_errors[sender] += i64::from(!valid);
        }
        Some(valid)
    }

    pub(super) fn read_dss(&mut self, seen: &Seen<'_>, dss: Dss) {
        let Seen { time_ns, subflow, direction, segment, .. } = *seen;
        let Some(followed) = self.subflows.get_mut(subflow) else { return };
        let Some(tracked) = self.connections.get_mut(followed.connection) else { return };
        let other = 1 - direction;
        if let Some(ack) = dss.ack {
            let data = &mut tracked.data[other];
            // Without a key, the first acknowledgment would be taken for the beginning.
            if data.base_is_known() {
                if let Some(number) = data.relative(ack) {
                    if seen.at_receiver {
                        data.acknowledge(number);
                        let rows = &mut self.rows;
                        data.waiting.reach(number, |row| {
                            if let Some(row) = rows.get(row) {
                                row.data_acked_ns = time_ns;
                            }
                        });
                    }
                    // Whoever acknowledges data has it, also what its capture lacks.
                    if seen.at_sender
                        && followed.row.received[other]
                        && data.next.is_some_and(|next| next < number)
                    {
                        let next = data.next.unwrap_or(number);
                        let next = data.arrive(next, number.min(data.highest));
                        deliver(data, next, time_ns, &mut self.rows);
                    }
                }
            }
        }
        let Some(mapping) = dss.mapping else { return };
        let Some(number) = tracked.data[direction].relative(mapping.dsn) else { return };
        if mapping.length == 0 {
            let stream = &mut followed.streams[direction];
            let near = stream.relative(segment.sequence) - stream.offset.unwrap_or(0);
            stream.mappings.fall_back_to(expand(near, mapping.subflow), number);
            self.fall_back(seen, "an infinite mapping");
            return;
        }
        let length = i64::from(mapping.length);
        if dss.fin {
            let shown = std::mem::replace(&mut followed.streams[direction].fin_shown, true);
            tracked.data[direction].fin.get_or_insert((number + length - 1, time_ns));
            if !shown && seen.at_sender {
                self.tell(seen, "DATA_FIN", vec![("dsn", Value::Signed(number + length - 1))]);
            }
        }
        let data_length = length - i64::from(dss.fin);
        if data_length > 0 && segment.payload_length > 0 {
            self.map(seen, mapping, number, data_length);
        }
    }

    /// Notes which data the numbers of a subflow are.
    pub(super) fn map(&mut self, seen: &Seen<'_>, mapping: Mapping, dsn: i64, length: i64) {
        let Seen { subflow, direction, segment, .. } = *seen;
        let Some(followed) = self.subflows.get_mut(subflow) else { return };
        let stream = &mut followed.streams[direction];
        let sequence = stream.relative(segment.sequence);
        let offset = match stream.offset {
            Some(offset) => offset,
            None => {
                // Without the SYN: a mapping of just this segment begins where it does.
                if length != i64::from(segment.payload_length) {
                    return;
                }
                *stream.offset.insert(sequence - i64::from(mapping.subflow))
            }
        };
        let start = expand(sequence - offset, mapping.subflow);
        stream.mappings.add(Map { start, end: start + length, dsn });
        let Some(checksum) = mapping.checksum else { return };
        let far = followed.near[0] != followed.near[1];
        if if far { !seen.at_receiver } else { !seen.at_sender } {
            return;
        }
        let whole = segment.payload.len() == segment.payload_length as usize;
        let tracked = self.connections.get(followed.connection);
        if let (Some(absolute), true) =
            (tracked.and_then(|tracked| tracked.data[direction].absolute(dsn)), whole)
        {
            let wanted = Wanted {
                start,
                end: start + length,
                dsn: absolute,
                subflow: mapping.subflow,
                length: mapping.length,
                checksum,
            };
            if let Some(right) = followed.summing[direction].add(wanted, sequence - offset, segment.payload) {
                followed.row.checksums[direction] += 1;
                followed.row.checksum_errors[direction] += i64::from(!right);
            }
        }
    }

    /// From here on the connection is plain TCP.
    pub(super) fn fall_back(&mut self, seen: &Seen<'_>, reason: &'static str) {
        let Some(followed) = self.subflows.get_mut(seen.subflow) else { return };
        for stream in &mut followed.streams {
            stream.mappings.fall_back();
        }
        followed.has_mptcp = false;
        let Some(tracked) = self.connections.get_mut(followed.connection) else { return };
        if !std::mem::replace(&mut tracked.row.fallback, true) {
            self.tell(seen, "FALLBACK", vec![("by", Value::Text(reason))]);
        }
    }
}

/// The event of an option; a DSS has none.
fn describe(option: &Mptcp<'_>) -> Option<(&'static str, Vec<(&'static str, Value)>)> {
    let number = |value: u64| Value::Number(value);
    let small = |value: u8| Value::Number(u64::from(value));
    Some(match *option {
        Mptcp::Capable { version, checksum, deny_join, key, peer_key, .. } => {
            let mut details = vec![
                ("version", small(version)),
                ("checksum", Value::Flag(checksum)),
                ("deny_join_id0", Value::Flag(deny_join)),
            ];
            details.extend(key.map(|key| ("key", number(key))));
            details.extend(peer_key.map(|key| ("peer_key", number(key))));
            ("MP_CAPABLE", details)
        }
        Mptcp::Join(join) => (
            "MP_JOIN",
            match join {
                Join::Syn { address_id, backup, token, nonce } => vec![
                    ("address_id", small(address_id)),
                    ("backup", Value::Flag(backup)),
                    ("token", number(u64::from(token))),
                    ("nonce", number(u64::from(nonce))),
                ],
                Join::SynAck { address_id, backup, hmac, nonce } => vec![
                    ("address_id", small(address_id)),
                    ("backup", Value::Flag(backup)),
                    ("hmac", Value::Bytes(hmac.to_be_bytes().to_vec())),
                    ("nonce", number(u64::from(nonce))),
                ],
                Join::Ack { hmac } => vec![("hmac", Value::Bytes(hmac.to_vec()))],
            },
        ),
        Mptcp::AddAddr { echo, address_id, address, port, hmac } => {
            let ip = match address.len() {
                4 => <[u8; 4]>::try_from(address).map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes))),
                _ => <[u8; 16]>::try_from(address).map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes))),
            };
            let mut details = vec![("address_id", small(address_id)), ("echo", Value::Flag(echo))];
            details.extend(ip.ok().map(|ip| ("address", Value::Address(ip))));
            details.extend(port.map(|port| ("port", number(u64::from(port)))));
            details.extend(hmac.map(|hmac| ("hmac", Value::Bytes(hmac.to_be_bytes().to_vec()))));
            ("ADD_ADDR", details)
        }
        Mptcp::RemoveAddr { address_ids } => {
            ("REMOVE_ADDR", vec![("address_ids", Value::Ids(address_ids.to_vec()))])
        }
        Mptcp::Prio { backup, address_id } => {
            let mut details = vec![("backup", Value::Flag(backup))];
            details.extend(address_id.map(|id| ("address_id", small(id))));
            ("MP_PRIO", details)
        }
        Mptcp::Fail { dsn } => ("MP_FAIL", vec![("dsn", number(dsn))]),
        Mptcp::FastClose { key } => ("MP_FASTCLOSE", vec![("key", number(key))]),
        Mptcp::TcpRst { transient, reason } => {
            ("MP_TCPRST", vec![("reason", small(reason)), ("transient", Value::Flag(transient))])
        }
        Mptcp::Dss(_) => return None,
    })
}
