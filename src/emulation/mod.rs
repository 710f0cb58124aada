//! Links that behave like a network: frames are taken from one end of a link, held, and sent on from the other.
//!
//! Each direction of a link passes a frame through these, in this order: a queue with a limit ([`queue`], [`codel`]), a
//! rate or a packet-delivery trace ([`pace`], [`trace`]), loss ([`loss`]), delay and jitter ([`delay`]). All of that is
//! pure: it works on explicit times ([`direction`]), which come from the kernel's stamp of each frame ([`stamps`]). So
//! a thread that runs late ([`emulator`]) sends a frame late, and the next one no later for it.

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
