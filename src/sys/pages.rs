//! The pages of memory that grows.

use std::mem::MaybeUninit;

const PAGE: usize = 4096;

/// Asks for large pages in room that is to be filled (madvise MADV_HUGEPAGE), as far as whole pages lie in it. A
/// kernel that has none leaves all as it is.
pub fn prefer_large<T>(room: &mut [MaybeUninit<T>]) {
    let bytes = room.as_mut_ptr_range();
    let begin = (bytes.start as usize).next_multiple_of(PAGE);
    let end = bytes.end as usize / PAGE * PAGE;
    if begin < end {
        // SAFETY: the range is inside of `room`, and the advice changes no byte of it.
        unsafe { libc::madvise(begin as *mut libc::c_void, end - begin, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_stays() {
        let mut numbers: Vec<u64> = Vec::with_capacity(1 << 20);
        numbers.extend(0..1000);
        prefer_large(numbers.spare_capacity_mut());
        numbers.resize(1 << 20, 7);
        assert!(numbers[..1000].iter().copied().eq(0..1000));
        assert!(numbers[1000..].iter().all(|number| *number == 7));
        prefer_large::<u64>(&mut []);
    }
}
