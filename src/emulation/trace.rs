//! mahimahi's packet-delivery traces: a line for each opportunity to deliver 1500 bytes, in milliseconds from the
//! start. The time of the last line is the period after which the trace begins again.

use crate::error::{Error, Result};

/// What an opportunity carries, as in mahimahi: one IP packet of full size. Ethernet headers are not counted.
pub const OPPORTUNITY_BYTES: u64 = 1500;

const MILLISECOND: u64 = 1_000_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// Milliseconds from the start, in order; at least one, and the last is above 0.
    times: Vec<u32>,
}

impl Trace {
    /// Reads the text of a trace. The error names the line.
    pub fn parse(text: &[u8]) -> Result<Trace> {
        let mut lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
        // A newline ends the last line rather than beginning one more.
        if lines.last().is_some_and(|last| last.is_empty()) {
            lines.pop();
        }
        let mut times = Vec::with_capacity(lines.len());
        for (number, line) in (1..).zip(lines) {
            let time = parse_time(line)
                .map_err(|problem| Error::value(format!("line {number} of the trace {problem}")))?;
            if let Some(before) = times.last().filter(|before| **before > time) {
                return Err(Error::value(format!(
                    "line {number} of the trace has {time} after {before}: times must not decrease"
                )));
            }
            times.push(time);
        }
        match times.last() {
            None => Err(Error::value("the trace is empty: it must have one time in milliseconds a line")),
            Some(0) => Err(Error::value(
                "the last time of the trace is 0: it is the trace's period and must be above 0",
            )),
            Some(_) => Ok(Trace { times }),
        }
    }

    pub fn opportunities(&self) -> u64 {
        self.times.len() as u64
    }

    /// The time after which the trace begins again, milliseconds.
    pub fn period_ms(&self) -> u64 {
        self.times.last().copied().unwrap_or(1).into()
    }

    /// The average, in bits a second of IP packets.
    pub fn rate(&self) -> f64 {
        (self.opportunities() * OPPORTUNITY_BYTES * 8) as f64 / (self.period_ms() as f64 / 1e3)
    }

    /// Returns the time of an opportunity, nanoseconds from the start. `index` counts through repetitions.
    pub fn time(&self, index: u64) -> u64 {
        let count = self.opportunities();
        let within = self.times.get((index % count) as usize).copied().unwrap_or(0);
        (index / count * self.period_ms() + u64::from(within)) * MILLISECOND
    }

    /// Returns the first opportunity at `time` or later.
    pub fn first_from(&self, time: u64) -> u64 {
        let period = self.period_ms() * MILLISECOND;
        let in_repetition = |repetition: u64, within: u64| {
            let before = self.times.partition_point(|each| u64::from(*each) * MILLISECOND < within);
            repetition * self.opportunities() + before as u64
        };
        match (time / period, time % period) {
            // The end of one repetition is the start of the next.
            (repetition @ 1.., 0) => in_repetition(repetition - 1, period),
            (repetition, within) => in_repetition(repetition, within),
        }
    }
}

fn parse_time(line: &[u8]) -> std::result::Result<u32, String> {
    let Some(text) = std::str::from_utf8(line).ok().filter(|text| !text.contains('\0')) else {
        return Err("is not text".to_owned());
    };
    let text = text.trim_ascii();
    if let Ok(time) = text.parse::<u32>() {
        if text.starts_with('+') {
            return Err("has a sign: it must be a whole number of milliseconds".to_owned());
        }
        return Ok(time);
    }
    let shown: String = text.chars().take(40).flat_map(char::escape_debug).collect();
    Err(match text.parse::<i128>() {
        Ok(number) if number < 0 => format!("has {shown}: times must not be negative"),
        Ok(_) => format!("has {shown}: times must be below 4294967296 ms"),
        Err(_) if text.is_empty() => "is empty: it must be a whole number of milliseconds".to_owned(),
        Err(_) => format!("has \"{shown}\": it must be a whole number of milliseconds"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refusal(text: &[u8]) -> String {
        Trace::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn what_is_not_a_trace_is_refused_with_its_line() {
        assert!(refusal(b"").contains("is empty"));
        assert!(refusal(b"\n").contains("line 1 of the trace is empty"));
        assert!(refusal(b"1\n\n2\n").contains("line 2 of the trace is empty"));
        assert!(refusal(b"5\n3\n").contains("line 2 of the trace has 3 after 5"));
        assert!(refusal(b"1\n-7\n").contains("line 2 of the trace has -7"));
        assert!(refusal(b"1\n2.5\n").contains("line 2 of the trace has \"2.5\""));
        assert!(refusal(b"1\n+2\n").contains("has a sign"));
        assert!(refusal(b"1\n2\n\x7fELF\x01\x00\xff\n").contains("line 3 of the trace is not text"));
        assert!(refusal(b"4294967296\n").contains("below 4294967296"));
        assert!(refusal(b"0\n0\n").contains("period"));
        let long = refusal("ü".repeat(1000).as_bytes());
        assert!(long.len() < 200, "{long}");
    }

    #[test]
    fn lines_may_end_as_on_windows_and_the_last_one_not_at_all() {
        let times = vec![0, 3, 3, 7];
        for text in ["0\n3\n3\n7\n", "0\r\n3\r\n3\r\n7\r\n", " 0\n3\n3 \n7"] {
            assert_eq!(Trace::parse(text.as_bytes()).unwrap(), Trace { times: times.clone() });
        }
    }

    #[test]
    fn a_trace_begins_again_after_its_last_time() {
        let trace = Trace::parse(b"2\n5\n5\n10\n").unwrap();
        assert_eq!(trace.rate(), 4.0 * 12_000.0 / 0.010);
        let ms: Vec<u64> = (0..9).map(|index| trace.time(index) / MILLISECOND).collect();
        assert_eq!(ms, [2, 5, 5, 10, 12, 15, 15, 20, 22]);
        assert_eq!(trace.first_from(0), 0);
        assert_eq!(trace.first_from(2 * MILLISECOND), 0);
        assert_eq!(trace.first_from(2 * MILLISECOND + 1), 1);
        assert_eq!(trace.first_from(10 * MILLISECOND), 3);
        assert_eq!(trace.first_from(10 * MILLISECOND + 1), 4);
        assert_eq!(trace.first_from(20 * MILLISECOND), 7);
        assert_eq!(trace.first_from(21 * MILLISECOND), 8);
    }

    proptest! {
        #[test]
        fn bytes_are_a_trace_or_a_value_error(text: Vec<u8>) {
            if let Err(error) = Trace::parse(&text) {
                let is_value = matches!(error, Error::Value { .. });
                prop_assert!(is_value);
            }
        }

        #[test]
        fn the_first_opportunity_from_a_time_is_the_first(
            mut times in prop::collection::vec(0u32..50, 1..20),
            time in 0u64..500 * MILLISECOND,
        ) {
            times.sort_unstable();
            *times.last_mut().unwrap() += 1;
            let trace = Trace { times };
            let first = trace.first_from(time);
            prop_assert!(trace.time(first) >= time);
            prop_assert!(first == 0 || trace.time(first - 1) < time);
        }
    }
}
