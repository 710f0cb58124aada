//! How subflows end, as inet_diag tells it: by notifications without a token, of any TCP socket of the namespace. Which of
//! them were subflows, and of which connection, was said by an event or by a reading.

mod begun;
mod ended;
mod notices;

pub use begun::{Beginning, Begun};
pub use ended::{Destroyed, Ended};
pub use notices::Notices;
