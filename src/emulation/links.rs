//! The links of a lab: a frame that arrives at one interface of a link is held, and then sent by the other interface.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;

use super::delay::Held;
use super::direction::{Counts, Direction};
use super::frame::{self, Size};
use super::limits::Limits;
use super::pool::Pool;
use super::rings::{Arrival, Rings, MOST_INTERFACES};
use crate::error::{Error, Result};
use crate::sys;
use crate::sys::packet::BATCH;

/// What all links may hold together, bytes.
const MEMORY: usize = 512 << 20;
/// How many frames are received before those that are due are sent.
const FRAMES_AT_ONCE: usize = 128;
/// When to try again if the kernel could not accept frames, nanoseconds.
const AGAIN: u64 = 100_000;

type Frame = Vec<u8>;

/// The limits of both directions, first that from the link's first interface.
pub type Both = [Limits; 2];

/// One end of a link: frames of one direction arrive there, and those of the other are sent.
#[derive(Debug)]
struct End {
    interface: u32,
    /// Whether frames that arrive are emulated, or left to the kernel.
    attached: bool,
    /// The direction of frames that arrive.
    direction: Direction<Frame>,
}

#[derive(Debug)]
struct Link {
    ends: [End; 2],
}

/// A frame that has left its direction and is to be sent.
#[derive(Debug)]
struct Outgoing {
    frame: Frame,
    size: Size,
    interface: u32,
    link: u16,
    end: usize,
}

/// What has happened to the frames of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    pub counts: Counts,
    /// Frames and bytes in the queue.
    pub waiting: (u64, u64),
    /// Frames and bytes in the delay.
    pub flying: (u64, u64),
    /// How late frames left: percentiles and maximum, nanoseconds.
    pub late_p50_ns: u64,
    pub late_p99_ns: u64,
    pub late_max_ns: u64,
}

#[derive(Debug)]
pub struct Links {
    seed: u64,
    rings: Rings,
    pool: Pool,
    links: BTreeMap<u16, Link>,
    /// By interface, the link and which of its ends that is.
    ends: HashMap<u32, (u16, usize)>,
    outgoing: VecDeque<Outgoing>,
    /// How often the kernel could not accept frames.
    blocked: u64,
}

/// The seed of one direction's loss and jitter, mixed by SplitMix64's finalizer.
fn seed(seed: u64, link: u16, end: usize) -> u128 {
    let mix = |value: u64| {
        let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    };
    let which = u64::from(link) << 1 | end as u64;
    let low = mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_add(mix(which)));
    u128::from(mix(low)) << 64 | u128::from(low)
}

impl Links {
    /// For interfaces of the calling thread's network namespace.
    pub fn new(seed: u64) -> Result<Links> {
        let failed = |error: io::Error| match error.raw_os_error() {
            Some(libc::EPERM) => Error::permission(
                "emulating links needs CAP_NET_RAW in the user namespace that owns the network namespace",
            ),
            _ => Error::call("a packet socket", &error),
        };
        Ok(Links {
            seed,
            rings: Rings::new().map_err(failed)?,
            pool: Pool::new(MEMORY),
            links: BTreeMap::new(),
            ends: HashMap::new(),
            outgoing: VecDeque::new(),
            blocked: 0,
        })
    }

    /// Lets go of the sockets.
    pub fn close(self) {
        self.rings.close();
    }

    /// Descriptors that are readable when frames have arrived.
    pub fn descriptors(&self) -> [i32; 2] {
        self.rings.descriptors()
    }

    /// Adds a link between two interfaces of this namespace.
    pub fn add(&mut self, number: u16, interfaces: [u32; 2], limits: Both) -> Result<()> {
        if self.links.contains_key(&number) {
            return Err(Error::value(format!("there is a link {number} already")));
        }
        let [a, b] = interfaces;
        if a == b {
            return Err(Error::value("a link needs two different interfaces"));
        }
        if let Some((interface, (other, _))) = [a, b].iter().find_map(|each| self.ends.get_key_value(each)) {
            return Err(Error::value(format!("interface {interface} belongs to link {other} already")));
        }
        if self.ends.len() + 2 > MOST_INTERFACES {
            return Err(Error::value(format!("there may be at most {} links", MOST_INTERFACES / 2)));
        }
        for interface in interfaces {
            if sys::interface_name(self.descriptors()[0], interface).is_err() {
                let text = format!("there is no interface {interface} in the emulator's network namespace");
                return Err(Error::os(libc::ENODEV, text));
            }
        }
        let now = sys::monotonic_ns();
        let [from_a, from_b] = limits;
        let end = |end: usize, limits| End {
            interface: interfaces[end],
            attached: true,
            direction: Direction::new(limits, seed(self.seed, number, end), now),
        };
        let ends = [end(0, from_a), end(1, from_b)];
        self.links.insert(number, Link { ends });
        self.ends.extend([(a, (number, 0)), (b, (number, 1))]);
        self.listen().inspect_err(|_| self.forget(number))
    }

    /// Changes the limits of a link. Frames that it holds stay.
    pub fn set(&mut self, number: u16, limits: Both) -> Result<()> {
        let link = self.link(number)?;
        let now = sys::monotonic_ns();
        for (end, limits) in link.ends.iter_mut().zip(limits) {
            end.direction.set(limits, now);
        }
        Ok(())
    }

    /// Sets which directions are emulated; the others are left to the kernel.
    pub fn attach(&mut self, number: u16, attached: [bool; 2]) -> Result<()> {
        let before = self.link(number)?.ends.each_ref().map(|end| end.attached);
        self.set_attached(number, attached)?;
        if let Err(error) = self.listen() {
            self.set_attached(number, before)?;
            return Err(error);
        }
        Ok(())
    }

    fn set_attached(&mut self, number: u16, attached: [bool; 2]) -> Result<()> {
        for (end, attached) in self.link(number)?.ends.iter_mut().zip(attached) {
            end.attached = attached;
        }
        Ok(())
    }

    /// Drops what a link holds.
    pub fn cut(&mut self, number: u16) -> Result<()> {
        let now = sys::monotonic_ns();
        let link = self.link(number)?;
        for end in &mut link.ends {
            end.direction.cut(now);
        }
        self.collect();
        Ok(())
    }

    /// Removes a link and drops what it holds.
    pub fn remove(&mut self, number: u16) -> Result<()> {
        self.cut(number)?;
        self.forget(number);
        self.listen()
    }

    fn forget(&mut self, number: u16) {
        self.links.remove(&number);
        self.ends.retain(|_, (link, _)| *link != number);
    }

    /// Returns the statistics of both directions.
    pub fn statistics(&mut self, number: u16) -> Result<[Statistics; 2]> {
        let now = sys::monotonic_ns();
        let of = |end: &mut End| {
            end.direction.advance(now);
            let Direction { counts, lateness, .. } = &end.direction;
            Statistics {
                counts: *counts,
                waiting: end.direction.waiting(),
                flying: end.direction.flying(),
                late_p50_ns: lateness.percentile(50),
                late_p99_ns: lateness.percentile(99),
                late_max_ns: lateness.max(),
            }
        };
        Ok(self.link(number)?.ends.each_mut().map(of))
    }

    /// Returns when the last frame is due that one direction of a link holds; `None` if it holds none.
    pub fn last_due(&mut self, number: u16, from: usize) -> Result<Option<u64>> {
        self.direction(number, from).map(|direction| direction.last_due())
    }

    /// Whether one direction of a link holds no frame that is due until `last`.
    pub fn has_passed(&mut self, number: u16, from: usize, last: u64) -> Result<bool> {
        let direction = self.direction(number, from)?;
        Ok(direction.next().is_none_or(|next| next > last))
    }

    fn direction(&mut self, number: u16, from: usize) -> Result<&Direction<Frame>> {
        let end = self.link(number)?.ends.get(from);
        end.map(|end| &end.direction).ok_or_else(|| Error::value("a direction must be 0 or 1"))
    }

    /// Frames that were lost because the rings were full, frames that were too large or for which no memory was left,
    /// and how often the kernel could not accept frames.
    pub fn troubles(&mut self) -> Result<[u64; 3]> {
        let overruns = self.rings.overruns().map_err(|error| Error::call("PACKET_STATISTICS", &error))?;
        Ok([overruns, self.pool.refused, self.blocked])
    }

    fn link(&mut self, number: u16) -> Result<&mut Link> {
        self.links.get_mut(&number).ok_or_else(|| Error::value(format!("there is no link {number}")))
    }

    /// Receives frames of the attached ends from now on, and of no others.
    fn listen(&mut self) -> Result<()> {
        let ends = self.links.values().flat_map(|link| &link.ends);
        let interfaces: Vec<u32> = ends.filter(|end| end.attached).map(|end| end.interface).collect();
        self.rings.listen(&interfaces).map_err(|error| Error::call("SO_ATTACH_FILTER", &error))
    }

    /// Receives frames. Returns whether there were any, and whether there may be more.
    pub fn receive(&mut self) -> (bool, bool) {
        let Links { rings, pool, links, ends, .. } = self;
        let count = rings.receive(FRAMES_AT_ONCE, |Arrival { at, received }| {
            let Some((number, end)) = ends.get(&received.interface) else { return };
            let Some(Link { ends }) = links.get_mut(number) else { return };
            let direction = &mut ends[*end].direction;
            direction.counts.taken += 1;
            let tag_length = received.vlan_tag.map_or(0, |tag| tag.len());
            pool.refused += u64::from(!received.is_whole);
            if !received.is_whole || !pool.has_room(received.frame.len() + tag_length) {
                direction.counts.refused += u64::from(Size::of(received.frame).segments);
                return;
            }
            let mut make = || {
                let mut frame = pool.copy(received.frame);
                if let Some(tag) = received.vlan_tag {
                    frame::insert_vlan(&mut frame, tag);
                }
                frame
            };
            if frame::is_control(received.frame) {
                direction.arrive_uncounted(at, make());
            } else {
                direction.arrive(at, Size::of(received.frame), &mut make);
            }
        });
        (count > 0, count == FRAMES_AT_ONCE)
    }

    /// Sends frames that are due. Returns whether there were any, and when there is something to do next, which may be
    /// in the past.
    pub fn forward(&mut self) -> (bool, Option<u64>) {
        let mut now = sys::monotonic_ns();
        let mut sent = false;
        let mut next = None;
        let Links { links, outgoing, rings, blocked, .. } = self;
        let mut failed = Vec::new();
        let mut full = false;
        for (number, Link { ends }) in links.iter_mut() {
            let interfaces = [ends[1].interface, ends[0].interface];
            for (end, (from, interface)) in ends.iter_mut().zip(interfaces).enumerate() {
                from.direction.advance(now);
                while let Some(held) = from.direction.depart(now) {
                    let Held { frame, size, .. } = held;
                    sent = true;
                    outgoing.push_back(Outgoing { frame, size, interface, link: *number, end });
                    if outgoing.len() >= BATCH && !full {
                        full = !send(rings, outgoing, &mut self.pool, &mut failed);
                        now = sys::monotonic_ns();
                        from.direction.advance(now);
                    }
                }
                next = [next, from.direction.next()].into_iter().flatten().min();
            }
        }
        while !outgoing.is_empty() && !full {
            full = !send(rings, outgoing, &mut self.pool, &mut failed);
        }
        *blocked += u64::from(full);
        for Outgoing { size, link, end, .. } in failed {
            if let Some(link) = links.get_mut(&link) {
                link.ends[end].direction.failed(size);
            }
        }
        self.collect();
        if full {
            next = [next, Some(now + AGAIN)].into_iter().flatten().min();
        }
        (sent, next)
    }

    /// Returns how long every frame is held at least, whatever link it arrives at.
    pub fn least_held(&self) -> u64 {
        let ends = self.links.values().flat_map(|link| &link.ends).filter(|end| end.attached);
        ends.map(|end| end.direction.least_held()).min().unwrap_or(0)
    }

    /// Returns the memory of dropped frames to the pool.
    fn collect(&mut self) {
        for end in self.links.values_mut().flat_map(|link| &mut link.ends) {
            end.direction.discarded.drain(..).for_each(|frame| self.pool.give_back(frame));
        }
    }
}

/// Sends a batch of frames, and moves one that cannot be sent to `failed`. Returns false if the kernel could not accept
/// frames for now.
fn send(
    rings: &Rings,
    outgoing: &mut VecDeque<Outgoing>,
    pool: &mut Pool,
    failed: &mut Vec<Outgoing>,
) -> bool {
    let batch = outgoing.iter().take(BATCH).map(|each| (each.interface, each.frame.as_slice()));
    let sent = match rings.send(batch) {
        Ok(sent) => sent,
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => return false,
        // The first one cannot be sent: its interface is down or gone, or the receiver's backlog is full.
        Err(_) => {
            let Some(mut first) = outgoing.pop_front() else { return true };
            pool.give_back(std::mem::take(&mut first.frame));
            failed.push(first);
            return true;
        }
    };
    outgoing.drain(..sent).for_each(|each| pool.give_back(each.frame));
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_direction_has_a_seed_of_its_own() {
        let mut seeds: Vec<u128> = (0..4)
            .flat_map(|of_lab| (0..64).flat_map(move |link| [seed(of_lab, link, 0), seed(of_lab, link, 1)]))
            .collect();
        seeds.sort_unstable();
        seeds.dedup();
        assert_eq!(seeds.len(), 4 * 64 * 2);
    }
}
