//! Frames that wait for the rate. A full queue drops what arrives; with CoDel, it also drops what has waited too long.

use std::collections::VecDeque;

use super::codel::{Codel, Head};
use super::frame::Size;
use super::limits::QueueLimit;

/// A frame that waits.
#[derive(Debug)]
pub struct Waiting<F> {
    pub frame: F,
    pub size: Size,
    pub arrived: u64,
}

#[derive(Debug)]
pub struct Queue<F> {
    frames: VecDeque<Waiting<F>>,
    /// The sum of all that wait, as on the wire.
    pub bytes: u64,
    pub packets: u64,
    /// The size of the largest frame so far.
    largest: u64,
    codel: Option<Codel>,
}

impl<F> Default for Queue<F> {
    fn default() -> Queue<F> {
        Queue { frames: VecDeque::new(), bytes: 0, packets: 0, largest: 0, codel: None }
    }
}

impl<F> Queue<F> {
    pub fn set_codel(&mut self, on: bool) {
        if on != self.codel.is_some() {
            self.codel = on.then(Codel::default);
        }
    }

    pub fn head(&self) -> Option<&Waiting<F>> {
        self.frames.front()
    }

    /// Returns whether there is room for a frame.
    pub fn has_room(&self, limit: QueueLimit, size: Size) -> bool {
        match limit {
            QueueLimit::Bytes(limit) => self.bytes + u64::from(size.bytes) <= limit,
            QueueLimit::Packets(limit) => self.packets + u64::from(size.segments) <= limit,
        }
    }

    pub fn push(&mut self, frame: F, size: Size, arrived: u64) {
        self.bytes += u64::from(size.bytes);
        self.packets += u64::from(size.segments);
        self.largest = self.largest.max(size.bytes.into());
        self.frames.push_back(Waiting { frame, size, arrived });
    }

    /// Takes the next frame to send at `now`. `drop` is called with those that CoDel drops.
    pub fn pop(&mut self, now: u64, drop: impl FnMut(Waiting<F>)) -> Option<Waiting<F>> {
        let Queue { frames, bytes, packets, largest, codel } = self;
        let mut take = || {
            let waiting = frames.pop_front()?;
            *bytes -= u64::from(waiting.size.bytes);
            *packets -= u64::from(waiting.size.segments);
            let head = Head { arrived: waiting.arrived, behind: *bytes, largest: *largest };
            Some((waiting, head))
        };
        match codel {
            Some(codel) => codel.dequeue(now, take, drop),
            None => take().map(|(waiting, _)| waiting),
        }
    }

    /// Takes all frames.
    pub fn drain(&mut self) -> impl Iterator<Item = Waiting<F>> + '_ {
        (self.bytes, self.packets) = (0, 0);
        self.frames.drain(..)
    }
}
