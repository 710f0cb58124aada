//! Connections of Multipath TCP followed segment by segment: a row a segment with data, connections, subflows and events.
//!
//! [`connections`] tells which subflow a segment is of, [`signals`] reads its options, [`segments`] makes rows of its data.

pub mod checksum;
pub mod connections;
pub mod interval;
pub mod key;
pub mod row;
pub mod segments;
pub mod sequence;
mod signals;
pub mod stream;

use std::io::Read;

use crate::capture::container::{Capture, Source};
use crate::capture::segment::{self, Kind};
use crate::error::Result;
use connections::Connections;
use row::{Connection, Counts, Event, Packet, Subflow};

/// Files that are read together, in the order of the times of their packets.
pub struct Reader {
    sources: Vec<Source>,
    /// Sources that are to go on to their next packet.
    behind: Vec<usize>,
    captures: Vec<Capture>,
    connections: Connections,
}

impl Reader {
    /// Of files, which are named for messages.
    pub fn new(files: Vec<(String, Box<dyn Read + Send + Sync>)>) -> Reader {
        let sources: Vec<_> = files.into_iter().map(|(name, reader)| Source::new(name, reader)).collect();
        let behind = (0..sources.len()).rev().collect();
        Reader { sources, behind, captures: Vec::new(), connections: Connections::default() }
    }

    /// Reads at most `count` packets; returns whether there may be more. After EINTR it can be called again.
    pub fn read(&mut self, count: usize) -> Result<bool> {
        for _ in 0..count {
            while let Some(source) = self.behind.last().and_then(|at| self.sources.get_mut(*at)) {
                source.advance(&mut self.captures)?;
                self.behind.pop();
            }
            let times = self.sources.iter().enumerate();
            let next = times.filter_map(|(at, source)| Some((source.time_ns()?, at))).min();
            let Some((_, at)) = next else { return Ok(false) };
            let Some((frame, bytes)) = self.sources.get(at).and_then(Source::frame) else { return Ok(false) };
            let counts = &mut self.connections.counts;
            counts.frames += 1;
            match segment::decode(frame.link_type, bytes, frame.length) {
                Kind::Segment(segment) => self.connections.add(frame.time_ns, frame.capture, &segment),
                Kind::Fragment => counts.fragments += 1,
                Kind::Cut => counts.cut += 1,
                Kind::UnknownLink => counts.unknown_link += 1,
                Kind::Other => {}
            }
            self.behind.push(at);
        }
        Ok(true)
    }

    /// The rows since the last call that will not change any more, or all that there are.
    pub fn take_packets(&mut self, all: bool) -> Vec<Packet> {
        self.connections.take_rows(all)
    }

    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.connections.events)
    }

    /// The connections and subflows as they are known now.
    pub fn tables(&self) -> (Vec<Connection>, Vec<Subflow>) {
        self.connections.tables()
    }

    pub fn captures(&self) -> &[Capture] {
        &self.captures
    }

    pub fn counts(&self) -> &Counts {
        &self.connections.counts
    }
}
