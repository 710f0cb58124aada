//! From segments to connections, subflows and rows.

use std::collections::HashMap;

use super::checksum::Summing;
use super::row::{Connection, Counts, Event, Packet, Subflow, UNKNOWN};
use super::segments::Rows;
use super::stream::{Data, Stream};
use crate::capture::option::{self, Join, Mptcp, Options};
use crate::capture::segment::{End, Segment, Way, ACK, FIN, RST, SYN};

/// Where a single capture is: a way to an end and back that takes less than this part of the handshake is none.
const NEAR: i64 = 4;
/// A whole handshake in less than this was captured on the host of both ends.
const ONE_HOST_NS: i64 = 1_000_000;
/// A connection as it is followed.
#[derive(Debug, Default)]
pub(super) struct Tracked {
    pub(super) row: Connection,
    pub(super) data: [Data; 2],
    /// Subflows whose ends are not both done.
    pub(super) open: usize,
}

/// A subflow as it is followed.
#[derive(Debug)]
pub(super) struct Followed {
    pub(super) row: Subflow,
    pub(super) ends: [End; 2],
    pub(super) connection: usize,
    pub(super) streams: [Stream; 2],
    /// The capture that shows packets of a side first.
    pub(super) near: [Option<usize>; 2],
    /// Whether a packet was seen that left, and one that arrived, at a Linux cooked capture.
    pub(super) ways: [[bool; 2]; 2],
    pub(super) summing: [Summing; 2],
    /// Of MP_JOIN, by the side that sent it.
    pub(super) nonces: [Option<u32>; 2],
    pub(super) has_mptcp: bool,
}

/// All that is known, and the rows that were not taken yet.
#[derive(Debug, Default)]
pub struct Connections {
    pub(super) ends: HashMap<(End, End), usize>,
    pub(super) recent: Vec<Option<(End, End, usize)>>,
    pub(super) tokens: HashMap<u32, (usize, usize)>,
    pub(super) connections: Vec<Tracked>,
    pub(super) subflows: Vec<Followed>,
    pub rows: Rows,
    /// The rows of the segment that is read, and whether each is a first transmission.
    pub(super) sent: Vec<(usize, bool)>,
    pub events: Vec<Event>,
    pub counts: Counts,
}

/// A segment on its way through.
#[derive(Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) time_ns: i64,
    pub(super) capture: usize,
    pub(super) subflow: usize,
    pub(super) direction: usize,
    pub(super) segment: &'a Segment<'a>,
    pub(super) options: &'a Options<'a>,
    /// Whether this capture is the one nearest to the sender, and to the receiver.
    pub(super) at_sender: bool,
    pub(super) at_receiver: bool,
}

const RECENT: usize = 64;

impl Connections {
    pub fn add(&mut self, time_ns: i64, capture: usize, segment: &Segment<'_>) {
        self.counts.segments += 1;
        let (is_syn, is_ack) = (segment.flags & SYN != 0, segment.flags & ACK != 0);
        let options = option::decode(segment.options, is_syn, is_ack);
        let mut has_mptcp = false;
        for found in options.mptcp() {
            has_mptcp = true;
            match self.counts.options.get_mut(usize::from(found.subtype)) {
                Some(count) => *count += 1,
                None => self.counts.malformed += 1,
            }
            self.counts.malformed += u64::from(found.value.is_none() && found.subtype < 9);
        }
        self.counts.malformed += u64::from(options.is_malformed && !segment.options_cut);
        self.counts.cut += u64::from(segment.options_cut);
        let known = self.find(segment);
        let subflow = match known {
            Some(subflow) if !(is_syn && self.is_another(subflow, segment, is_ack)) => subflow,
            _ if !has_mptcp => {
                if is_syn && known.is_some() {
                    self.forget(segment);
                }
                return;
            }
            _ => self.begin(time_ns, segment, &options),
        };
        let Some(seen) = self.place(time_ns, capture, subflow, segment, &options) else {
            self.counts.duplicates += 1;
            return;
        };
        self.follow(&seen);
    }

    /// The subflow of a segment's four-tuple.
    fn find(&mut self, segment: &Segment<'_>) -> Option<usize> {
        let (source, destination) = (segment.source, segment.destination);
        let pair = if source <= destination { (source, destination) } else { (destination, source) };
        if self.recent.is_empty() {
            self.recent.resize(RECENT, None);
        }
        let slot = usize::from(pair.0.port ^ pair.1.port.rotate_left(3)) % RECENT;
        if let Some(Some((low, high, subflow))) = self.recent.get(slot) {
            if (*low, *high) == pair {
                return Some(*subflow);
            }
        }
        let subflow = *self.ends.get(&pair)?;
        if let Some(place) = self.recent.get_mut(slot) {
            *place = Some((pair.0, pair.1, subflow));
        }
        Some(subflow)
    }

    fn forget(&mut self, segment: &Segment<'_>) {
        let (source, destination) = (segment.source, segment.destination);
        let pair = if source <= destination { (source, destination) } else { (destination, source) };
        self.ends.remove(&pair);
        self.recent.clear();
    }

    /// Whether a SYN begins another connection than the known one of the same four-tuple.
    fn is_another(&self, subflow: usize, segment: &Segment<'_>, is_ack: bool) -> bool {
        let Some(followed) = self.subflows.get(subflow) else { return true };
        let direction = usize::from(segment.source != followed.ends[0]);
        match followed.streams[direction].isn {
            Some(isn) => isn != segment.sequence,
            // The answer to a SYN, or a SYN whose answer was captured first.
            None => !is_ack && followed.row.syn_ns != UNKNOWN,
        }
    }

    /// A new subflow, of a new connection or of one that its token names.
    fn begin(&mut self, time_ns: i64, segment: &Segment<'_>, options: &Options<'_>) -> usize {
        let is_syn = segment.flags & SYN != 0;
        let is_syn_ack = is_syn && segment.flags & ACK != 0;
        let join = options.mptcp().find_map(|found| match found.value {
            Some(Mptcp::Join(join)) => Some(join),
            _ => None,
        });
        let is_capable = options.mptcp().any(|found| matches!(found.value, Some(Mptcp::Capable { .. })));
        // Who opened it: the sender of a SYN, the receiver of its answer, or probably the sender of anything else.
        let opener = if is_syn_ack { segment.destination } else { segment.source };
        let other = if is_syn_ack { segment.source } else { segment.destination };
        let (connection, opener_side) = match join {
            Some(Join::Syn { token, .. }) => match self.tokens.get(&token) {
                Some((connection, side)) => (*connection, 1 - *side),
                None => {
                    let connection = self.new_connection(time_ns);
                    self.tokens.insert(token, (connection, 1));
                    if let Some(tracked) = self.connections.get_mut(connection) {
                        tracked.row.peer_token = token;
                        tracked.data[1].token = Some(token);
                    }
                    (connection, 0)
                }
            },
            _ => (self.new_connection(time_ns), 0),
        };
        let ends = if opener_side == 0 { [opener, other] } else { [other, opener] };
        let number = self.subflows.len();
        let initial = join.is_none() && (is_capable || !is_syn);
        if let Some(tracked) = self.connections.get_mut(connection) {
            tracked.row.subflows += 1;
            tracked.open += 1;
        }
        self.subflows.push(Followed {
            row: Subflow {
                address_id: if is_capable { [0, 0] } else { [-1, -1] },
                initial,
                initiator: opener_side as i8,
                complete: is_syn && !is_syn_ack,
                ..Subflow::new(connection, ends.map(|end| end.ip()), ends.map(|end| end.port), time_ns)
            },
            ends,
            connection,
            streams: Default::default(),
            near: [None, None],
            ways: Default::default(),
            summing: Default::default(),
            nonces: [None; 2],
            has_mptcp: true,
        });
        self.forget(segment);
        let (source, destination) = (segment.source, segment.destination);
        let pair = if source <= destination { (source, destination) } else { (destination, source) };
        self.ends.insert(pair, number);
        number
    }

    fn new_connection(&mut self, time_ns: i64) -> usize {
        let row =
            Connection { version: -1, start_ns: time_ns, data_fin_ns: [UNKNOWN; 2], ..Connection::default() };
        self.connections.push(Tracked { row, ..Tracked::default() });
        self.connections.len() - 1
    }

    /// Which part the capture plays for this packet; `None` if none, because two others are nearer to the ends.
    fn place<'a>(
        &mut self,
        time_ns: i64,
        capture: usize,
        subflow: usize,
        segment: &'a Segment<'a>,
        options: &'a Options<'a>,
    ) -> Option<Seen<'a>> {
        let followed = self.subflows.get_mut(subflow)?;
        let direction = usize::from(segment.source != followed.ends[0]);
        let other = 1 - direction;
        match followed.near[direction] {
            None => followed.near[direction] = Some(capture),
            Some(near) if near == capture => {}
            Some(near) => match followed.near[other] {
                Some(far) if far == capture => {}
                Some(far) if far != near => return None,
                _ => followed.near[other] = Some(capture),
            },
        }
        if segment.way != Way::Unknown {
            let is_in = usize::from(segment.way == Way::In);
            followed.ways[direction][is_in] = true;
            // A packet from the host to itself is captured when it leaves and when it arrives.
            if is_in == 1 && followed.ways[direction][0] {
                return None;
            }
        }
        let at_sender = followed.near[direction] == Some(capture);
        let at_receiver = followed.near[other].is_none_or(|near| near == capture);
        Some(Seen { time_ns, capture, subflow, direction, segment, options, at_sender, at_receiver })
    }

    fn follow(&mut self, seen: &Seen<'_>) {
        let Seen { time_ns, subflow, direction, segment, .. } = *seen;
        let flags = segment.flags;
        let Some(followed) = self.subflows.get_mut(subflow) else { return };
        let row = &mut followed.row;
        row.end_ns = row.end_ns.max(time_ns);
        let connection = followed.connection;
        if let Some(tracked) = self.connections.get_mut(connection) {
            tracked.row.end_ns = tracked.row.end_ns.max(time_ns);
        }
        let side_of_opener = usize::from(row.initiator != 0);
        if flags & SYN != 0 {
            let stream = &mut followed.streams[direction];
            stream.isn = Some(segment.sequence);
            stream.lowest.get_or_insert(1);
            stream.offset.get_or_insert(0);
        }
        // The handshake as the capture nearest to the opener has it.
        if followed.near[side_of_opener].is_none_or(|near| near == seen.capture) {
            let place = match (flags & SYN != 0, flags & ACK != 0) {
                (true, false) => Some(&mut row.syn_ns),
                (true, true) => Some(&mut row.synack_ns),
                (false, true) if direction == side_of_opener && row.synack_ns != UNKNOWN => {
                    Some(&mut row.ack_ns)
                }
                _ => None,
            };
            if let Some(place) = place.filter(|place| **place == UNKNOWN) {
                *place = time_ns;
                if flags & SYN == 0 {
                    self.locate(subflow);
                }
            }
        }
        self.read_options(seen);
        let Some(followed) = self.subflows.get_mut(subflow) else { return };
        if seen.at_sender {
            followed.row.segments[direction] += 1;
        }
        // What the other side sent is acknowledged when its sender sees that.
        if flags & ACK != 0 && seen.at_receiver {
            followed.streams[1 - direction].acknowledge(segment.acknowledgment);
        }
        if segment.payload_length > 0 {
            self.read_data(seen);
        }
        let Some(followed) = self.subflows.get_mut(subflow) else { return };
        if seen.at_sender && flags & FIN != 0 && followed.row.fin_ns[direction] == UNKNOWN {
            followed.row.fin_ns[direction] = time_ns;
        }
        if flags & RST != 0 && followed.row.reset_ns == UNKNOWN {
            followed.row.reset_ns = time_ns;
        }
    }

    /// After a handshake: whether the receiver of a direction is where packets were captured.
    fn locate(&mut self, subflow: usize) {
        let Some(followed) = self.subflows.get_mut(subflow) else { return };
        let opener = usize::from(followed.row.initiator != 0);
        if followed.near[0] != followed.near[1] {
            followed.row.received = [true; 2];
            return;
        }
        let ways = followed.ways;
        if ways.iter().flatten().any(|way| *way) {
            // A direction whose packets only arrive here has its receiver here.
            followed.row.received = ways.map(|way| way[1]);
            return;
        }
        let row = &mut followed.row;
        if row.syn_ns == UNKNOWN {
            return;
        }
        let (there, back) = (row.synack_ns - row.syn_ns, row.ack_ns - row.synack_ns);
        let whole = there + back;
        let is_near = |way: i64| way < whole / NEAR;
        row.received = match (whole < ONE_HOST_NS, is_near(there), is_near(back)) {
            (true, _, _) => [true; 2],
            // At the opened side, which receives what the opener sends.
            (_, true, _) => std::array::from_fn(|direction| direction == opener),
            (_, _, true) => std::array::from_fn(|direction| direction != opener),
            _ => [false; 2],
        };
    }

    /// Rows that will not change any more, or all of them.
    pub fn take_rows(&mut self, all: bool) -> Vec<Packet> {
        let subflows = &self.subflows;
        self.rows.take(|row| {
            let followed = usize::try_from(row.subflow).ok().and_then(|subflow| subflows.get(subflow));
            let direction = usize::from(row.direction != 0);
            let received = followed.is_some_and(|followed| followed.row.received[direction]);
            all || row.data_acked_ns != UNKNOWN && (!received || row.data_delivered_ns != UNKNOWN)
        })
    }

    /// The connections and subflows as they are now.
    pub fn tables(&self) -> (Vec<Connection>, Vec<Subflow>) {
        let connections = self.connections.iter().map(|tracked| {
            let data = &tracked.data;
            let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
            Connection {
                bytes: [0, 1].map(|side| number(data[side].seen.size())),
                reinjected: [0, 1].map(|side| data[side].reinjected),
                data_acked: [0, 1].map(|side| {
                    let fin = data[side].fin.map_or(i64::MAX, |(number, _)| number);
                    data[side].acked.map_or(UNKNOWN, |acked| acked.min(fin))
                }),
                missing: [0, 1].map(|side| number(data[side].missing())),
                data_fin_ns: [0, 1].map(|side| data[side].fin.map_or(UNKNOWN, |(_, time_ns)| time_ns)),
                ..tracked.row.clone()
            }
        });
        let subflows = self.subflows.iter().map(|followed| {
            let capture = |near: Option<usize>| near.map_or(-1, |near| near as i32);
            let token = self.connections.get(followed.connection).map_or(0, |tracked| tracked.row.token);
            let missing = |side: usize| i64::try_from(followed.streams[side].missing()).unwrap_or(i64::MAX);
            Subflow {
                token,
                capture: followed.near.map(capture),
                missing: [missing(0), missing(1)],
                ..followed.row.clone()
            }
        });
        (connections.collect(), subflows.collect())
    }
}
