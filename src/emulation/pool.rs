//! Memory of frames that are held: of a few sizes, used again and again, and bounded.

/// Of a plain frame, of what a millisecond of a usual rate carries, and of the largest; each with its virtio header.
const SIZES: [usize; 3] = [1 << 11, 1 << 14, 69_888];
/// What is kept for later at most of each size, bytes.
const KEPT: usize = 4 << 20;

#[derive(Debug)]
pub struct Pool {
    kept: [Vec<Vec<u8>>; SIZES.len()],
    /// What is given out, and may be at most.
    used: usize,
    most: usize,
    /// Frames for which there was none.
    pub refused: u64,
}

fn size(length: usize) -> Option<usize> {
    SIZES.iter().position(|size| length <= *size)
}

impl Pool {
    /// Of at most so many bytes.
    pub fn new(most: usize) -> Pool {
        Pool { kept: Default::default(), used: 0, most, refused: 0 }
    }

    /// Whether a frame of this length can be had. If not it is counted.
    pub fn has_room(&mut self, length: usize) -> bool {
        let has_room = size(length).is_some_and(|size| self.used + SIZES[size] <= self.most);
        self.refused += u64::from(!has_room);
        has_room
    }

    /// A copy of a frame.
    pub fn copy(&mut self, frame: &[u8]) -> Vec<u8> {
        let Some(size) = size(frame.len()) else { return frame.to_vec() };
        let mut copy = self.kept[size].pop().unwrap_or_else(|| Vec::with_capacity(SIZES[size]));
        self.used += SIZES[size];
        copy.extend_from_slice(frame);
        copy
    }

    /// Takes back what `copy` gave.
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
