//! Captured packets: [`container`] reads files, [`segment`] and [`option`] decode what is in a frame. Only bytes come in
//! here, and none of them is trusted.

pub mod container;
pub mod option;
pub mod segment;
