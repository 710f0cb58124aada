//! From records to rows: those of [`crate::traces`], and what only tracepoints tell. Pure.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::capture::option::Number;
use crate::traces::key::token_and_idsn;
use crate::traces::row::{Connection, Event, Packet, Subflow, Value, UNKNOWN};
use crate::traces::segments::Rows;
use crate::traces::sequence::{expand, Map, Mappings};
use crate::traces::stream::Data;

use super::layout::Layout;
use super::record::{decode, Candidate, Record, ACK_COLUMNS};

/// Segments that wait for their arrival at most, on each subflow.
const IN_FLIGHT: usize = 1 << 16;
/// Candidates that wait for the choice at most: more than one connection has subflows.
const CANDIDATES: usize = 256;

/// What the scheduler saw of a subflow, and whether data was given to it next.
#[derive(Debug, Clone, Copy)]
pub struct Choice {
    pub time_ns: i64,
    pub connection: i32,
    pub subflow: i32,
    pub direction: i8,
    pub chosen: bool,
    pub candidate: Candidate,
}

/// A subflow's sender when a segment arrived, before that was dealt with.
#[derive(Debug, Clone, Copy)]
pub struct Ack {
    pub time_ns: i64,
    pub connection: i32,
    pub subflow: i32,
    pub direction: i8,
    pub columns: [u32; ACK_COLUMNS.len()],
}

/// A mapping that may still grow.
#[derive(Debug, Clone, Copy)]
struct Growing {
    start: i64,
    dsn: i64,
    length: i64,
}

/// One direction of a subflow. Numbers are TCP's, counted from before the first that was seen.
#[derive(Debug, Default)]
struct Way {
    /// Whether its sender is traced, and its receiver.
    sender: bool,
    receiver: bool,
    base: Option<u32>,
    highest: i64,
    mappings: Mappings,
    growing: Option<Growing>,
    /// First transmissions that have not arrived: their ends and their rows.
    flight: VecDeque<(i64, usize)>,
    arrived: Option<i64>,
}

impl Way {
    fn relative(&mut self, sequence: u32) -> i64 {
        let base = *self.base.get_or_insert(sequence.wrapping_sub(1));
        expand(self.highest, sequence.wrapping_sub(base))
    }

    fn absolute(&self, number: i64) -> u32 {
        self.base.unwrap_or(0).wrapping_add(number as u32)
    }
}

#[derive(Debug)]
struct Followed {
    row: Subflow,
    connection: usize,
    ways: [Way; 2],
}

#[derive(Debug, Default)]
struct Tracked {
    row: Connection,
    data: [Data; 2],
    /// The candidates of each side since it last sent something: indices of choices.
    candidates: [Vec<usize>; 2],
    /// Whether the receiver of a direction is traced.
    received: [bool; 2],
}

/// All that is known, and the rows that were not taken yet.
#[derive(Debug)]
pub struct Builder {
    layout: Arc<Layout>,
    /// CLOCK_REALTIME minus CLOCK_MONOTONIC.
    realtime: i64,
    /// By cookie: the subflow, and which of its sides has it.
    local: HashMap<u64, (usize, usize)>,
    by_tokens: HashMap<(u32, u32, u64), usize>,
    by_ends: HashMap<(usize, [SocketAddr; 2]), usize>,
    connections: Vec<Tracked>,
    subflows: Vec<Followed>,
    rows: Rows,
    events: Vec<Event>,
    choices: Vec<Choice>,
    acks: Vec<Ack>,
    /// Whether choices and ACKs are kept.
    keeps: bool,
}

impl Builder {
    pub fn new(layout: Arc<Layout>, realtime: i64, keeps: bool) -> Builder {
        Builder {
            layout,
            realtime,
            local: HashMap::new(),
            by_tokens: HashMap::new(),
            by_ends: HashMap::new(),
            connections: Vec::new(),
            subflows: Vec::new(),
            rows: Rows::default(),
            events: Vec::new(),
            choices: Vec::new(),
            acks: Vec::new(),
            keeps,
        }
    }

    pub fn add(&mut self, record: &[u8]) {
        let layout = Arc::clone(&self.layout);
        let Some((cookie, time, record)) = decode(&layout, record) else { return };
        let time_ns = (time as i64).saturating_add(self.realtime);
        if let Record::Subflow { namespace, tcp, context, msk } = record {
            self.begin(time_ns, cookie, namespace, [tcp, context, msk]);
            return;
        }
        let Some(&(subflow, side)) = self.local.get(&cookie) else { return };
        let Some(followed) = self.subflows.get_mut(subflow) else { return };
        let Some(tracked) = self.connections.get_mut(followed.connection) else { return };
        followed.row.end_ns = followed.row.end_ns.max(time_ns);
        tracked.row.end_ns = tracked.row.end_ns.max(time_ns);
        let connection = followed.row.connection;
        match record {
            Record::Sent { data_seq, length, end } => {
                self.send(time_ns, subflow, side, data_seq, length, end);
            }
            Record::Retransmitted { sequence, length } => {
                self.retransmit(time_ns, subflow, side, sequence, length);
            }
            Record::Arrived { .. } => self.arrive(time_ns, subflow, 1 - side, &record),
            Record::DataAck(number) => {
                let connection = followed.connection;
                self.acknowledge(time_ns, connection, side, number);
            }
            Record::Candidate(candidate) if self.keeps => {
                let waiting = &mut tracked.candidates[side];
                if waiting.len() >= CANDIDATES {
                    waiting.clear();
                }
                waiting.push(self.choices.len());
                let (subflow, direction) = (subflow as i32, side as i8);
                let choice = Choice { time_ns, connection, subflow, direction, chosen: false, candidate };
                self.choices.push(choice);
            }
            Record::Ack(columns) if self.keeps => {
                let (subflow, direction) = (subflow as i32, side as i8);
                self.acks.push(Ack { time_ns, connection, subflow, direction, columns });
            }
            Record::Subflow { .. } | Record::Candidate(_) | Record::Ack(_) => {}
        }
    }

    /// A subflow that is seen for the first time, at one of its sides.
    fn begin(&mut self, time_ns: i64, cookie: u64, namespace: u64, copies: [&[u8]; 3]) {
        if self.local.contains_key(&cookie) {
            return;
        }
        let layout = Arc::clone(&self.layout);
        let (context, msk) = (&layout.context, &layout.msk);
        let [tcp, in_context, in_msk] = copies;
        let Some([local, remote]) = layout.ends(tcp) else { return };
        let side = usize::from(msk.server_side.read(in_msk) != 0);
        let other = 1 - side;
        let keys = [msk.local_key.read(in_msk), msk.remote_key.read(in_msk)];
        let mut tokens = [0; 2];
        let mut idsns = [None; 2];
        for (at, key) in [(side, keys[0]), (other, keys[1])] {
            if key != 0 {
                let (token, idsn) = token_and_idsn(1, key);
                (tokens[at], idsns[at]) = (token, Some(idsn));
            }
        }
        tokens[side] = msk.token.read(in_msk) as u32;
        let is_whole = tokens[other] != 0;
        // With one token alone it may be another's in another namespace.
        let key = (tokens[0], tokens[1], if is_whole { 0 } else { namespace });
        let connection = match self.by_tokens.get(&key) {
            Some(connection) => *connection,
            None => {
                let row = Connection {
                    token: tokens[0],
                    peer_token: tokens[1],
                    version: 1,
                    complete: is_whole,
                    checksum: msk.csum_enabled.read(in_msk) != 0,
                    fallback: !is_whole,
                    start_ns: time_ns,
                    end_ns: time_ns,
                    idsn: idsns.map(|idsn| idsn.unwrap_or(0)),
                    data_fin_ns: [UNKNOWN; 2],
                    ..Connection::default()
                };
                let mut tracked = Tracked { row, ..Tracked::default() };
                for (data, idsn) in tracked.data.iter_mut().zip(idsns) {
                    if let Some(idsn) = idsn {
                        data.begin(idsn);
                    }
                    (data.lowest, data.next) = (None, None);
                }
                self.connections.push(tracked);
                self.by_tokens.insert(key, self.connections.len() - 1);
                self.connections.len() - 1
            }
        };
        let Some(tracked) = self.connections.get_mut(connection) else { return };
        tracked.received[other] = true;
        // What has arrived in order before there was anybody to see it.
        let data = &mut tracked.data[other];
        if data.next.is_none() && data.base_is_known() {
            data.next = data.relative(Number::Long(msk.ack_seq.read(in_msk)));
        }
        let mut ends = [local, remote];
        if side == 1 {
            ends.swap(0, 1);
        }
        let place = (connection, ends);
        let subflow = match self.by_ends.get(&place) {
            Some(subflow) => *subflow,
            None => {
                tracked.row.subflows += 1;
                let is_join = context.is_join.read(in_context) != 0;
                let opened_here = context.request_join.read(in_context) != 0;
                let initiator = if !is_join { 0 } else { usize::from(opened_here == (side == 1)) };
                let row = Subflow {
                    token: tokens[0],
                    initial: !is_join,
                    initiator: initiator as i8,
                    ..Subflow::new(connection, ends.map(|end| end.ip()), ends.map(|end| end.port()), time_ns)
                };
                self.subflows.push(Followed { row, connection, ways: Default::default() });
                self.by_ends.insert(place, self.subflows.len() - 1);
                self.subflows.len() - 1
            }
        };
        let Some(followed) = self.subflows.get_mut(subflow) else { return };
        followed.row.address_id[side] = context.local_id.read(in_context) as u8 as i16;
        followed.row.address_id[other] = context.remote_id.read(in_context) as u8 as i16;
        followed.row.backup[side] |= context.request_backup.read(in_context) != 0;
        followed.row.backup[other] |= context.backup.read(in_context) != 0;
        followed.row.received[other] = true;
        followed.ways[side].sender = true;
        followed.ways[other].receiver = true;
        self.local.insert(cookie, (subflow, side));
    }

    /// A mapping has been given to a subflow, or has grown.
    fn send(&mut self, time_ns: i64, subflow: usize, direction: usize, data_seq: u64, length: u32, end: u32) {
        let Some(followed) = self.subflows.get_mut(subflow) else { return };
        let Some(tracked) = self.connections.get_mut(followed.connection) else { return };
        let (way, data) = (&mut followed.ways[direction], &mut tracked.data[direction]);
        let Some(dsn) = data.relative(Number::Long(data_seq)) else { return };
        let start = way.relative(end.wrapping_sub(length));
        let length = i64::from(length);
        let known = way.growing.filter(|known| known.start == start && known.dsn == dsn);
        let from = known.map_or(0, |known| known.length);
        if from >= length {
            return;
        }
        way.growing = Some(Growing { start, dsn, length });
        way.highest = way.highest.max(start + length);
        way.mappings.add(Map { start, end: start + length, dsn });
        let (row, rows) = (&mut followed.row, &mut self.rows);
        // The row that grows with its mapping.
        let mut last = known.and_then(|_| way.flight.back().map(|(_, row)| *row));
        let mut is_new_data = false;
        data.seen.add(dsn + from, dsn + length, |is_first, first, behind| {
            is_new_data |= is_first;
            let size = behind - first;
            row.bytes[direction] += size;
            if !is_first {
                row.reinjected[direction] += size;
                data.reinjected += size;
            }
            let end = start + (behind - dsn);
            if let Some(number) = last {
                if let Some(grown) = rows.get(number).filter(|grown| grown.reinjected != is_first) {
                    if grown.dsn + i64::from(grown.length) == first {
                        grown.length += size as i32;
                        if let Some(flying) = way.flight.back_mut() {
                            flying.0 = end;
                        }
                        data.waiting.add(behind, number);
                        data.undelivered.add(behind, number);
                        return;
                    }
                }
            }
            row.segments[direction] += 1;
            let number = rows.push(Packet {
                time_ns,
                capture: -1,
                token: tracked.row.token,
                subflow: subflow as i32,
                direction: direction as i8,
                dsn: first,
                length: size as i32,
                retransmitted: false,
                reinjected: !is_first,
                data_acked_ns: UNKNOWN,
                data_delivered_ns: UNKNOWN,
                received_ns: UNKNOWN,
                connection: row.connection,
                sequence: way.absolute(start + (first - dsn)),
            });
            if way.flight.len() >= IN_FLIGHT {
                way.flight.pop_front();
            }
            way.flight.push_back((end, number));
            data.waiting.add(behind, number);
            data.undelivered.add(behind, number);
            last = Some(number);
        });
        data.highest = data.highest.max(dsn + length);
        data.lowest = Some(data.lowest.map_or(dsn, |lowest| lowest.min(dsn)));
        if is_new_data {
            // Of the candidates since the last choice the newest that is this subflow.
            let choices = &mut self.choices;
            for at in tracked.candidates[direction].drain(..).rev() {
                if let Some(choice) = choices.get_mut(at).filter(|choice| choice.subflow == subflow as i32) {
                    choice.chosen = true;
                    break;
                }
            }
        }
    }

    /// TCP has sent a segment again.
    fn retransmit(&mut self, time_ns: i64, subflow: usize, direction: usize, sequence: u32, length: u32) {
        let Some(followed) = self.subflows.get_mut(subflow) else { return };
        let Some(tracked) = self.connections.get_mut(followed.connection) else { return };
        let (way, data) = (&mut followed.ways[direction], &mut tracked.data[direction]);
        let row = &mut followed.row;
        let mut from = way.relative(sequence);
        let end = from + i64::from(length);
        while from < end {
            let (part, dsn) = way.mappings.part(from, end);
            let size = part - from;
            row.retransmitted[direction] += size;
            row.bytes[direction] += size;
            match dsn {
                None => row.unmapped[direction] += size,
                Some(dsn) => {
                    row.segments[direction] += 1;
                    let number = self.rows.push(Packet {
                        time_ns,
                        capture: -1,
                        token: tracked.row.token,
                        subflow: subflow as i32,
                        direction: direction as i8,
                        dsn,
                        length: size as i32,
                        retransmitted: true,
                        reinjected: false,
                        data_acked_ns: UNKNOWN,
                        data_delivered_ns: UNKNOWN,
                        received_ns: UNKNOWN,
                        connection: row.connection,
                        sequence: way.absolute(from),
                    });
                    data.waiting.add(dsn + size, number);
                    data.undelivered.add(dsn + size, number);
                }
            }
            if part <= from {
                return;
            }
            from = part;
        }
    }

    /// A segment is the next in a subflow's receive queue.
    fn arrive(&mut self, time_ns: i64, subflow: usize, direction: usize, record: &Record<'_>) {
        let Record::Arrived { data_seq, mapping, sequence, length, data_fin, mapped } = *record else {
            return;
        };
        let Some(followed) = self.subflows.get_mut(subflow) else { return };
        let Some(tracked) = self.connections.get_mut(followed.connection) else { return };
        let (way, data) = (&mut followed.ways[direction], &mut tracked.data[direction]);
        let Some(dsn) = data.relative(Number::Long(data_seq)) else { return };
        if data_fin && mapped > 0 && data.fin.is_none() {
            let fin = dsn + i64::from(mapped) - 1;
            data.fin = Some((fin, time_ns));
            self.events.push(Event {
                kind: "DATA_FIN",
                time_ns,
                capture: 0,
                connection: followed.connection,
                subflow,
                direction,
                details: vec![("dsn", Value::Signed(fin))],
            });
        }
        let start = way.relative(sequence);
        let first = dsn + i64::from(sequence.wrapping_sub(mapping) as i32);
        let end = start + i64::from(length);
        // The kernel looks at a segment more than once.
        let from = way.arrived.map_or(start, |arrived| start.max(arrived));
        if from >= end {
            return;
        }
        way.arrived = Some(end);
        way.highest = way.highest.max(end);
        let (begin, behind) = (first + (from - start), first + i64::from(length));
        if way.sender {
            while way.flight.front().is_some_and(|(last, _)| *last <= end) {
                if let Some(row) = way.flight.pop_front().and_then(|(_, row)| self.rows.get(row)) {
                    row.received_ns = time_ns;
                }
            }
        } else {
            let (row, rows) = (&mut followed.row, &mut self.rows);
            let sequence = way.absolute(from);
            data.seen.add(begin, behind, |is_first, first, last| {
                let size = last - first;
                row.segments[direction] += 1;
                row.bytes[direction] += size;
                if !is_first {
                    row.reinjected[direction] += size;
                    data.reinjected += size;
                }
                let number = rows.push(Packet {
                    time_ns,
                    capture: -1,
                    token: tracked.row.token,
                    subflow: subflow as i32,
                    direction: direction as i8,
                    dsn: first,
                    length: size as i32,
                    retransmitted: false,
                    reinjected: !is_first,
                    data_acked_ns: UNKNOWN,
                    data_delivered_ns: UNKNOWN,
                    received_ns: time_ns,
                    connection: row.connection,
                    sequence: sequence.wrapping_add((first - begin) as u32),
                });
                data.undelivered.add(last, number);
            });
            data.highest = data.highest.max(behind);
            data.lowest = Some(data.lowest.map_or(begin, |lowest| lowest.min(begin)));
        }
        let next = data.arrive(begin, behind);
        let rows = &mut self.rows;
        data.undelivered.reach(next, |number| {
            if let Some(row) = rows.get(number).filter(|row| row.dsn + i64::from(row.length) <= next) {
                row.data_delivered_ns = time_ns;
            }
        });
    }

    /// A DATA_ACK has arrived at the side that sends this direction.
    fn acknowledge(&mut self, time_ns: i64, connection: usize, direction: usize, number: u64) {
        let Some(tracked) = self.connections.get_mut(connection) else { return };
        let data = &mut tracked.data[direction];
        let Some(number) = data.relative(Number::Long(number)) else { return };
        data.acknowledge(number);
        let rows = &mut self.rows;
        data.waiting.reach(number, |row| {
            let row = rows.get(row).filter(|row| row.dsn + i64::from(row.length) <= number);
            if let Some(row) = row.filter(|row| row.data_acked_ns == UNKNOWN) {
                row.data_acked_ns = time_ns;
            }
        });
        // Without the receiver nobody tells when it arrived.
        if !tracked.received[direction] {
            data.undelivered.reach(number, |_| ());
        }
    }

    /// The rows since the last call that will not change any more, or all that there are.
    pub fn take_packets(&mut self, all: bool) -> Vec<Packet> {
        let subflows = &self.subflows;
        self.rows.take(|row| {
            let followed = usize::try_from(row.subflow).ok().and_then(|subflow| subflows.get(subflow));
            let way = followed.map(|followed| &followed.ways[usize::from(row.direction != 0)]);
            let (sender, receiver) = way.map_or((false, false), |way| (way.sender, way.receiver));
            let acked = row.data_acked_ns != UNKNOWN || !sender;
            all || acked && (row.data_delivered_ns != UNKNOWN || !receiver)
        })
    }

    /// The rows that were not taken, as they are now.
    pub fn packets(&self) -> Vec<Packet> {
        self.rows.all().to_vec()
    }

    pub fn events(&self) -> &[Event] {
        &self.events
    }

    pub fn choices(&self) -> &[Choice] {
        &self.choices
    }

    pub fn acks(&self) -> &[Ack] {
        &self.acks
    }

    /// The connections and subflows as they are known now.
    pub fn tables(&self) -> (Vec<Connection>, Vec<Subflow>) {
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let connections = self.connections.iter().map(|tracked| {
            let data = &tracked.data;
            Connection {
                bytes: [0, 1].map(|side| number(data[side].seen.size())),
                reinjected: [0, 1].map(|side| data[side].reinjected),
                // A DATA_FIN takes a number, too.
                data_acked: [0, 1]
                    .map(|side| data[side].acked.map_or(UNKNOWN, |acked| acked.min(data[side].highest))),
                missing: [0, 1].map(|side| number(data[side].missing())),
                data_fin_ns: [0, 1].map(|side| data[side].fin.map_or(UNKNOWN, |(_, time_ns)| time_ns)),
                ..tracked.row.clone()
            }
        });
        (connections.collect(), self.subflows.iter().map(|followed| followed.row.clone()).collect())
    }
}
