//! Captures: files in the pcap and pcapng format, link, IP and TCP headers, options, and what is made of them. Input: a
//! file; if its first byte is 0, the rest is two files, of which the first has the length that the next two bytes state.
#![no_main]

use std::io::{Cursor, Read};

use libfuzzer_sys::fuzz_target;
use mptcp::traces::Reader;

type File = (String, Box<dyn Read + Send + Sync>);

fuzz_target!(|data: &[u8]| {
    let file = |bytes: &[u8]| -> File { ("fuzzed".to_owned(), Box::new(Cursor::new(bytes.to_vec()))) };
    let files = match data {
        [0, low, high, rest @ ..] => {
            let first = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
            vec![file(&rest[..first]), file(&rest[first..])]
        }
        _ => vec![file(data)],
    };
    let mut reader = Reader::new(files);
    let mut rows = Vec::new();
    // Only what is not a capture at all is an error.
    let Ok(mut more) = reader.read(16) else { return };
    while more {
        rows.extend(reader.take_packets(false));
        more = reader.read(16).expect("a file in memory can be read");
    }
    rows.extend(reader.take_packets(true));
    let (connections, subflows) = reader.tables();
    for row in &rows {
        assert!(row.length > 0);
        let subflow = &subflows[row.subflow as usize];
        assert_eq!(subflow.connection, row.connection);
        assert!(connections.get(row.connection as usize).is_some());
        assert!(reader.captures().get(row.capture as usize).is_some());
        assert!(!(row.retransmitted && row.reinjected));
    }
    // What is new is in the count of the connection's data once, or in that of what was reinjected.
    for (number, connection) in connections.iter().enumerate() {
        for direction in 0..2 {
            let of = |row: &&mptcp::traces::row::Packet| {
                row.connection as usize == number && row.direction == direction as i8 && !row.retransmitted
            };
            let reinjected: i64 = rows.iter().filter(of).filter(|row| row.reinjected).map(|row| i64::from(row.length)).sum();
            assert_eq!(reinjected, connection.reinjected[direction]);
        }
    }
    for event in reader.take_events() {
        assert!(event.subflow < subflows.len() && event.connection < connections.len());
    }
});
