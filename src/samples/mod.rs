//! What a recording consists of: rows, and where they wait until somebody takes them.

pub mod row;
pub mod store;
