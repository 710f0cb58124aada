//! Packet-delivery traces in mahimahi's format, as users give them to a link. Input: the text of a trace.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use mptcp::emulation::frame::Size;
use mptcp::emulation::limits::Pace;
use mptcp::emulation::pace::Transmitter;
use mptcp::emulation::trace::Trace;
use mptcp::error::Error;

const MILLISECOND: u64 = 1_000_000;

fuzz_target!(|data: &[u8]| {
    let trace = match Trace::parse(data) {
        Ok(trace) => trace,
        Err(Error::Value { message, .. }) => {
            assert!(message.len() < 400 && !message.contains(char::is_control), "{message:?}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    assert!(trace.opportunities() > 0 && trace.period_ms() > 0);
    assert!(trace.rate() > 0.0);
    // Through three repetitions, time does not go backwards, and the search finds the first of each time.
    let count = trace.opportunities().min(100);
    for first in [0, trace.opportunities() - 1, 3 * trace.opportunities() - 1] {
        for index in first..first + count {
            let time = trace.time(index);
            assert!(time <= trace.time(index + 1));
            let found = trace.first_from(time);
            assert!(found <= index && trace.time(found) == time);
        }
    }
    // Frames of any size leave in order, and each after it started.
    let mut transmitter = Transmitter::new(&Pace::Trace(Arc::new(trace)), MILLISECOND);
    let mut before = 0;
    for (number, bytes) in (0..).zip(data.iter().take(100)) {
        let size = Size { bytes: 42 + 256 * u32::from(*bytes), segments: 1 + u32::from(*bytes) / 6 };
        let start = transmitter.start(number * MILLISECOND / 2);
        let finish = transmitter.finish(start, size);
        assert!(before <= start && start <= finish);
        assert_eq!(transmitter.take(start, size), finish);
        before = finish;
    }
});
