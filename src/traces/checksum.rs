//! The DSS checksum: over the data of a mapping and a pseudo header (RFC 8684, section 3.3).

/// A mapping whose data is summed up, segment by segment.
#[derive(Debug, Default)]
pub struct Summing {
    wanted: Option<Wanted>,
    next: i64,
    sum: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The mapping's first number, and the end of its data, which a DATA_FIN does not lengthen.
    pub start: i64,
    pub end: i64,
    /// As in the pseudo header.
    pub dsn: u64,
    pub subflow: u32,
    pub length: u16,
    pub checksum: u16,
}

impl Summing {
    /// Adds a segment's data, which begins at `start` and has the mapping `wanted`. `Some` when the mapping is complete:
    /// whether the checksum is right. Data that does not follow what came before is not summed up.
    pub fn add(&mut self, wanted: Wanted, start: i64, data: &[u8]) -> Option<bool> {
        if self.wanted != Some(wanted) {
            self.wanted = Some(wanted);
            self.next = wanted.start;
            self.sum = header(wanted);
        }
        if start != self.next {
            return None;
        }
        let room = usize::try_from(wanted.end - start).ok()?;
        let data = data.get(..room.min(data.len()))?;
        let is_odd = (start - wanted.start) % 2 != 0;
        let sum = fold(words(data));
        self.sum += u64::from(if is_odd { sum.swap_bytes() } else { sum });
        self.next = start + i64::try_from(data.len()).ok()?;
        if self.next < wanted.end {
            return None;
        }
        self.wanted = None;
        Some(fold(self.sum) == 0xffff)
    }
}

fn header(wanted: Wanted) -> u64 {
    words(&wanted.dsn.to_be_bytes())
        + words(&wanted.subflow.to_be_bytes())
        + u64::from(wanted.length)
        + u64::from(wanted.checksum)
}

fn words(data: &[u8]) -> u64 {
    let (pairs, rest) = data.as_chunks::<2>();
    let sum: u64 = pairs.iter().map(|pair| u64::from(u16::from_be_bytes(*pair))).sum();
    sum + rest.first().map_or(0, |last| u64::from(*last) << 8)
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(length: u16, checksum: u16) -> Wanted {
        Wanted {
            start: 1,
            end: 1 + i64::from(length),
            dsn: 0x0102_0304_0506_0708,
            subflow: 1,
            length,
            checksum,
        }
    }

    #[test]
    fn data_in_one_segment_or_in_odd_parts() {
        let data = [1, 2, 3, 4, 5];
        let open = header(wanted(5, 0)) + words(&data);
        let right = wanted(5, !fold(open));
        assert_eq!(Summing::default().add(right, 1, &data), Some(true));
        assert_eq!(Summing::default().add(right, 1, &[1, 2, 3, 4, 6]), Some(false));
        let mut summing = Summing::default();
        assert_eq!(summing.add(right, 1, &data[..3]), None);
        assert_eq!(summing.add(right, 2, &data[..3]), None, "it does not follow");
        assert_eq!(summing.add(right, 4, &data[3..]), Some(true));
        assert_eq!(summing.add(right, 4, &data[3..]), None, "the beginning is missing");
    }
}
