//! What follows from a key: the token and the initial data sequence number.

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// By SHA-256 in version 1 (RFC 8684, section 3.2), by SHA-1 in version 0 (RFC 6824).
pub fn token_and_idsn(version: u8, key: u64) -> (u32, u64) {
    let bytes = key.to_be_bytes();
    if version == 0 {
        first_and_last(&Sha1::digest(bytes))
    } else {
        first_and_last(&Sha256::digest(bytes))
    }
}

fn first_and_last(digest: &[u8]) -> (u32, u64) {
    let first = digest.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
    (first, digest.last_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_makes_the_same() {
        // From the kernel's own test of its hash, net/mptcp/crypto_test.c: SHA-256 of this key begins so.
        let (token, _) = token_and_idsn(1, 0x0706_0504_0302_0100);
        let digest = Sha256::digest([7, 6, 5, 4, 3, 2, 1, 0]);
        assert_eq!(token.to_be_bytes(), digest[..4]);
    }
}
