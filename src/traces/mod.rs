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
    captures: Vec<Capture>,
    connections: Connections,
}

impl Reader {
    /// Opens the files, which are named for messages.
    pub fn open(files: Vec<(String, Box<dyn Read + Send + Sync>)>) -> Result<Reader> {
        let mut captures = Vec::new();
        let sources = files
            .into_iter()
            .map(|(name, reader)| Source::open(name, reader, &mut captures))
            .collect::<Result<Vec<_>>>()?;
        Ok(Reader { sources, captures, connections: Connections::default() })
    }

    /// Reads at most `count` packets; returns whether there may be more.
    pub fn read(&mut self, count: usize) -> Result<bool> {
        for _ in 0..count {
            let times = self.sources.iter().enumerate();
            let next = times.filter_map(|(at, source)| Some((source.time_ns()?, at))).min();
            let Some(source) = next.and_then(|(_, at)| self.sources.get_mut(at)) else { return Ok(false) };
            if let Some((frame, bytes)) = source.frame() {
                let counts = &mut self.connections.counts;
                counts.frames += 1;
                match segment::decode(frame.link_type, bytes, frame.length) {
                    Kind::Segment(segment) => self.connections.add(frame.time_ns, frame.capture, &segment),
                    Kind::Fragment => counts.fragments += 1,
                    Kind::Cut => counts.cut += 1,
                    Kind::UnknownLink => counts.unknown_link += 1,
                    Kind::Other => {}
                }
            }
            source.advance(&mut self.captures)?;
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
