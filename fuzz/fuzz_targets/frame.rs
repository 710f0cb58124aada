//! Frames that hosts hand over to a link: the size that the virtio header tells, a VLAN tag, and the way through a
//! direction. Input: a frame with its virtio header.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mptcp::emulation::direction::Direction;
use mptcp::emulation::frame::{insert_vlan, Size, HEADER, VLAN_TAG};
use mptcp::emulation::limits::{Limits, Pace, Wanted};
use mptcp::emulation::pool::Pool;

const TAG: [u8; VLAN_TAG] = [0x81, 0, 0, 7];

fuzz_target!(|data: &[u8]| {
    let size = Size::of(data);
    let length = data.len().saturating_sub(HEADER) as u64;
    assert!(size.segments >= 1);
    // Each further segment repeats headers, which are no longer than the frame.
    assert!(u64::from(size.bytes) >= length);
    assert!(u64::from(size.bytes) <= length * u64::from(size.segments));
    assert!((1..=u64::from(size.bytes).max(1)).contains(&size.packet_bytes()));

    let mut pool = Pool::new(1 << 20);
    if !pool.has_room(data.len() + VLAN_TAG) {
        return;
    }
    let mut frame = pool.copy(data);
    insert_vlan(&mut frame, TAG);
    if data.len() >= HEADER + 12 {
        assert_eq!(frame.len(), data.len() + VLAN_TAG);
        assert_eq!(frame[HEADER..HEADER + 12], data[HEADER..HEADER + 12]);
        assert_eq!(frame[HEADER + 12..HEADER + 12 + VLAN_TAG], TAG);
        assert_eq!(frame[HEADER + 12 + VLAN_TAG..], data[HEADER + 12..]);
    } else {
        assert_eq!(frame, data);
    }

    let limits = Wanted { pace: Some(Pace::Rate(1_000_000)), delay: 1_000, ..Wanted::default() };
    let Ok(limits) = Limits::new(limits) else { return };
    let mut direction = Direction::new(limits, 1, 0);
    direction.arrive(0, size, || frame);
    let due = direction.next().expect("a frame that found the link idle is on its way");
    assert_eq!(due, u64::from(size.bytes) * 8_000 + 1_000);
    direction.advance(due);
    let held = direction.depart(due).expect("it is due");
    assert_eq!((direction.last_due(), direction.waiting(), direction.flying()), (None, (0, 0), (0, 0)));
    assert_eq!(direction.counts.frames, u64::from(size.segments));
    pool.give_back(held.frame);
});
