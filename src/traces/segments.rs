//! What segments carry: rows.

use super::connections::{Connections, Seen};
use super::row::{Packet, UNKNOWN};
use super::sequence::Map;
use super::stream::{Data, Sent};
use crate::capture::segment::SYN;

/// As many segments in a row that only the receiver's capture has mean that it is the sender's.
const AHEAD: u8 = 3;
/// Rows of a direction whose acknowledgments are not captured never settle: as many wait.
const MOST_UNSETTLED: usize = 1 << 20;

/// Rows by their numbers from the beginning, of which the first ones may have been taken.
#[derive(Debug, Default)]
pub struct Rows {
    rows: Vec<Packet>,
    taken: usize,
}

impl Rows {
    pub fn push(&mut self, row: Packet) -> usize {
        self.rows.push(row);
        self.taken + self.rows.len() - 1
    }

    pub fn get(&mut self, number: usize) -> Option<&mut Packet> {
        self.rows.get_mut(number.checked_sub(self.taken)?)
    }

    /// Those that were not taken.
    pub fn all(&self) -> &[Packet] {
        &self.rows
    }

    /// Takes those before the first that is not settled, and those that have waited for too long.
    pub fn take(&mut self, is_settled: impl Fn(&Packet) -> bool) -> Vec<Packet> {
        let settled = self.rows.iter().take_while(|row| is_settled(row)).count();
        let count = settled.max(self.rows.len().saturating_sub(MOST_UNSETTLED));
        let rest = self.rows.split_off(count);
        let taken = std::mem::replace(&mut self.rows, rest);
        self.taken += taken.len();
        taken
    }
}

impl Connections {
    pub(super) fn read_data(&mut self, seen: &Seen<'_>) {
        let Seen { subflow, direction, segment, .. } = *seen;
        let Some(followed) = self.subflows.get_mut(subflow) else { return };
        let is_syn = segment.flags & SYN != 0;
        let length = i64::from(segment.payload_length);
        let stream = &mut followed.streams[direction];
        let start = if is_syn { 1 } else { stream.relative(segment.sequence) };
        let end = start + length;
        if is_syn {
            // The data of a SYN has no mapping: it precedes what has one.
            stream.mappings.add(Map { start: 1 - length, end: 1, dsn: -length });
            stream.offset = Some(length);
        }
        stream.lowest = Some(stream.lowest.map_or(start, |lowest| lowest.min(start)));
        let is_mapped = || {
            let offset = stream.offset.unwrap_or(0);
            stream.mappings.part(start - offset, end - offset).1.is_some()
        };
        let has_option = seen.options.mptcp().next().is_some();
        if !has_option && followed.has_mptcp && !segment.options_cut && !is_mapped() {
            let alone = self
                .connections
                .get(followed.connection)
                .is_some_and(|tracked| tracked.row.subflows == 1 && tracked.row.complete);
            if alone {
                self.fall_back(seen, "data without an option");
            }
        }
        if seen.at_sender {
            self.send(seen, start, end);
        } else if seen.at_receiver {
            self.receive(seen, start, end);
        }
    }

    /// A segment at the capture nearest to its sender: rows.
    pub(super) fn send(&mut self, seen: &Seen<'_>, start: i64, end: i64) {
        let Seen { time_ns, capture, subflow, direction, segment, options, .. } = *seen;
        let Some(followed) = self.subflows.get_mut(subflow) else { return };
        let Some(tracked) = self.connections.get_mut(followed.connection) else { return };
        let (row, stream, data) =
            (&mut followed.row, &mut followed.streams[direction], &mut tracked.data[direction]);
        let (rows, near) = (&mut self.rows, followed.near);
        let far = near[0] != near[1];
        stream.highest = stream.highest.max(end);
        stream.ahead = 0;
        row.bytes[direction] += end - start;
        let offset = stream.offset;
        let mut last: Option<(usize, i64)> = None;
        let mut unmapped = 0;
        let mut retransmitted = 0;
        let mut reinjected = 0;
        let mappings = &stream.mappings;
        // Kept from segment to segment: an allocation for each would take as long as the rest.
        let mut sent = std::mem::take(&mut self.sent);
        let is_received = row.received[direction];
        let mut segment_row = |is_new: bool, is_other: bool, from: i64, to: i64, dsn: i64| {
            if let Some((number, end)) = last {
                let previous = rows.get(number);
                if let Some(previous) = previous {
                    let same = previous.retransmitted != is_new && previous.reinjected == is_other;
                    if same && end == from && previous.dsn + i64::from(previous.length) == dsn {
                        previous.length += (to - from) as i32;
                        last = Some((number, to));
                        return;
                    }
                }
            }
            let number = rows.push(Packet {
                time_ns,
                capture: capture as i32,
                token: tracked.row.token,
                subflow: subflow as i32,
                direction: direction as i8,
                dsn,
                length: (to - from) as i32,
                retransmitted: !is_new,
                reinjected: is_other,
                data_acked_ns: UNKNOWN,
                data_delivered_ns: UNKNOWN,
                received_ns: if is_received && !far { time_ns } else { UNKNOWN },
                connection: row.connection,
                sequence: segment.sequence.wrapping_add((from - start) as u32),
            });
            sent.push((number, is_new));
            last = Some((number, to));
        };
        let data_seen = &mut data.seen;
        stream.seen.add(start, end, |is_new, mut from, to| {
            if !is_new {
                retransmitted += to - from;
            }
            while from < to {
                let Some(offset) = offset else {
                    unmapped += to - from;
                    return;
                };
                let (part, dsn) = mappings.part(from - offset, to - offset);
                let part = part + offset;
                match dsn {
                    None => unmapped += part - from,
                    Some(dsn) if !is_new => {
                        data_seen.add(dsn, dsn + (part - from), |_, _, _| ());
                        segment_row(false, false, from, part, dsn);
                    }
                    Some(dsn) => data_seen.add(dsn, dsn + (part - from), |is_first, first, last| {
                        if !is_first {
                            reinjected += last - first;
                        }
                        segment_row(true, !is_first, from + (first - dsn), from + (last - dsn), first);
                    }),
                }
                from = part;
            }
        });
        row.unmapped[direction] += unmapped;
        row.retransmitted[direction] += retransmitted;
        row.reinjected[direction] += reinjected;
        data.reinjected += reinjected;
        for &(number, is_new) in &sent {
            let Some(row) = self.rows.get(number) else { continue };
            let (first, length) = (row.dsn, i64::from(row.length));
            let begin = start + i64::from(row.sequence.wrapping_sub(segment.sequence));
            data.highest = data.highest.max(first + length);
            data.lowest = Some(data.lowest.map_or(first, |lowest| lowest.min(first)));
            data.waiting.add(first + length, number);
            if far {
                let timestamp = options.timestamp;
                stream.send(
                    Sent {
                        start: begin,
                        end: begin + length,
                        row: number,
                        dsn: first,
                        timestamp,
                        arrived: 0,
                    },
                    is_new,
                );
            }
            if far || is_received {
                data.undelivered.add(first + length, number);
            }
            if is_received && !far {
                let next = data.arrive(first, first + length);
                deliver(data, next, time_ns, &mut self.rows);
            } else if let (true, Some(next)) = (far, data.next) {
                deliver(data, next, time_ns, &mut self.rows);
            }
        }
        sent.clear();
        self.sent = sent;
    }

    /// A segment that only the capture nearest to the receiver shows, or shows too.
    pub(super) fn receive(&mut self, seen: &Seen<'_>, start: i64, end: i64) {
        let Seen { time_ns, subflow, direction, options, .. } = *seen;
        let Some(followed) = self.subflows.get_mut(subflow) else { return };
        followed.row.received[direction] = true;
        let stream = &mut followed.streams[direction];
        if !stream.seen.contains(start, end) {
            // The sender's capture lacks it, or it is the receiver's.
            stream.ahead += 1;
            if stream.ahead >= AHEAD {
                stream.ahead = 0;
                followed.near.swap(0, 1);
            }
            self.send(seen, start, end);
        }
        let Some(followed) = self.subflows.get_mut(subflow) else { return };
        let Some(tracked) = self.connections.get_mut(followed.connection) else { return };
        let (stream, data) = (&mut followed.streams[direction], &mut tracked.data[direction]);
        let mut next = data.next;
        let rows = &mut self.rows;
        let mut credit = |sent: &mut Sent| {
            let (first, last) = (start.max(sent.start), end.min(sent.end));
            if first >= last || sent.has_arrived() {
                return false;
            }
            if sent.timestamp.is_some() && options.timestamp.is_some() && sent.timestamp != options.timestamp
            {
                return false;
            }
            sent.arrived += last - first;
            next = Some(data.arrive(sent.dsn + (first - sent.start), sent.dsn + (last - sent.start)));
            if sent.has_arrived() {
                if let Some(row) = rows.get(sent.row) {
                    row.received_ns = time_ns;
                }
            }
            true
        };
        let again = stream.again.iter_mut().rev().any(&mut credit);
        if !again {
            let from = stream.fresh.partition_point(|sent| sent.end <= start);
            for sent in stream.fresh.range_mut(from..) {
                if sent.start >= end {
                    break;
                }
                credit(sent);
            }
        }
        if let Some(next) = next {
            deliver(data, next, time_ns, &mut self.rows);
        }
    }
}

/// Data is in order up to `next` at its receiver.
pub(super) fn deliver(data: &mut Data, next: i64, time_ns: i64, rows: &mut Rows) {
    data.undelivered.reach(next, |row| {
        if let Some(row) = rows.get(row) {
            row.data_delivered_ns = time_ns;
        }
    });
}
