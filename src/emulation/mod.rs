//! Links that behave like a network: frames are taken from one end of a link, held, and sent from the other.
//!
//! In each direction a frame passes, in this order: a queue with a limit ([`queue`], [`codel`]), a rate or a
//! packet-delivery trace ([`pace`], [`trace`]), loss ([`loss`]), delay and jitter ([`delay`]). These are pure functions
//! of explicit times ([`direction`]), which come from the kernel's stamp of each frame ([`stamps`]): if the thread
//! ([`emulator`]) sends one frame late, the next is not late because of it.

pub mod codel;
pub mod delay;
pub mod direction;
pub mod emulator;
pub mod frame;
pub mod lateness;
pub mod limits;
pub mod links;
pub mod loss;
pub mod pace;
pub mod pool;
pub mod queue;
pub mod rings;
pub mod stamps;
pub mod trace;
