//! Buffers for frames: of a few sizes, reused, and bounded in total.

/// For a plain frame, for some segments of TCP, and for the largest frame; each with its virtio header.
const SIZES: [usize; 3] = [1 << 11, 1 << 14, 69_888];
/// How much of each size is kept for reuse, bytes.
const KEPT: usize = 4 << 20;

#[derive(Debug)]
pub struct Pool {
    kept: [Vec<Vec<u8>>; SIZES.len()],
    /// Bytes in use, and their limit.
    used: usize,
    most: usize,
    /// Frames for which there was no room.
    pub refused: u64,
}

fn size(length: usize) -> Option<usize> {
    SIZES.iter().position(|size| length <= *size)
}

impl Pool {
    /// A pool of at most this many bytes.
    pub fn new(most: usize) -> Pool {
        Pool { kept: Default::default(), used: 0, most, refused: 0 }
    }

    /// Returns whether there is room for a frame of this length; counts the frame if not.
    pub fn has_room(&mut self, length: usize) -> bool {
        let has_room = size(length).is_some_and(|size| self.used + SIZES[size] <= self.most);
        self.refused += u64::from(!has_room);
        has_room
    }

    /// Copies a frame. Call [`Pool::has_room`] first.
    pub fn copy(&mut self, frame: &[u8]) -> Vec<u8> {
        let Some(size) = size(frame.len()) else { return frame.to_vec() };
        let mut copy = self.kept[size].pop().unwrap_or_else(|| Vec::with_capacity(SIZES[size]));
        self.used += SIZES[size];
        copy.extend_from_slice(frame);
        copy
    }

    /// Takes back a buffer of [`Pool::copy`].
    pub fn give_back(&mut self, mut frame: Vec<u8>) {
        let Some(size) = SIZES.iter().position(|size| frame.capacity() == *size) else { return };
        self.used -= SIZES[size];
        if self.kept[size].len() < KEPT / SIZES[size] {
            frame.clear();
            self.kept[size].push(frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_used_again() {
        let mut pool = Pool::new(2 * SIZES[0]);
        let frames: Vec<_> = (0..2u8)
            .map(|byte| {
                assert!(pool.has_room(1500));
                pool.copy(&[byte; 1500])
            })
            .collect();
        assert!(!pool.has_room(60));
        assert_eq!(pool.refused, 1);
        assert!(frames.iter().zip(0..).all(|(frame, byte)| *frame == [byte; 1500]));
        frames.into_iter().for_each(|frame| pool.give_back(frame));
        assert!(!pool.has_room(SIZES[1]));
        assert!(pool.has_room(60));
        assert_eq!(pool.copy(&[7; 60]), [7; 60]);
    }

    #[test]
    fn a_frame_that_is_too_large_for_any_is_refused() {
        let mut pool = Pool::new(1 << 30);
        assert!(!pool.has_room(SIZES[2] + 1));
        // With a VLAN tag it still fits into what it was given.
        for size in SIZES {
            let mut frame = pool.copy(&vec![1; size - 4]);
            frame.extend([0; 4]);
            assert_eq!(frame.capacity(), size);
        }
    }

    #[test]
    fn not_all_is_kept() {
        let mut pool = Pool::new(1 << 30);
        let frames: Vec<_> = (0..100).map(|_| pool.copy(&[0; 60_000])).collect();
        frames.into_iter().for_each(|frame| pool.give_back(frame));
        assert!(pool.kept[2].len() < 100);
        assert_eq!(pool.used, 0);
    }
}
