#![deny(unsafe_code)]

#[cfg(feature = "python")]
mod py;
