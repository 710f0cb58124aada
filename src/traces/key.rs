//! What follows from keys: the token, the initial data sequence number, and HMACs.

use hmac::{Hmac, KeyInit, Mac};
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

/// The HMAC that the holder of the first key sends (RFC 8684, sections 3.2 and 3.4.1): by SHA-256, in version 0 by SHA-1.
pub fn hmac(version: u8, keys: [u64; 2], message: &[u8]) -> Vec<u8> {
    let key = (u128::from(keys[0]) << 64 | u128::from(keys[1])).to_be_bytes();
    if version == 0 {
        hmac_by::<Hmac<Sha1>>(&key, message)
    } else {
        hmac_by::<Hmac<Sha256>>(&key, message)
    }
}

fn hmac_by<M: Mac + KeyInit>(key: &[u8], message: &[u8]) -> Vec<u8> {
    // A key of any length will do.
    let Ok(mac) = <M as KeyInit>::new_from_slice(key) else { return Vec::new() };
    mac.chain_update(message).finalize().into_bytes().to_vec()
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

    #[test]
    fn another_implementation_makes_the_same_hmac() {
        // Python's: hmac.digest(keys, bytes(range(1, 9)), "sha256"), and "sha1".
        let keys = [0x0807_0605_0403_0201, 0x100f_0e0d_0c0b_0a09];
        let found = [1, 0].map(|version| hmac(version, keys, &[1, 2, 3, 4, 5, 6, 7, 8]));
        assert_eq!(found[0][..8], [0x4d, 0x5b, 0xf0, 0xed, 0xc1, 0xbb, 0xe6, 0x02]);
        assert_eq!(found[0][28..], [0xab, 0x5a, 0xd4, 0x03]);
        assert_eq!(found[1][..8], [0x81, 0x46, 0x8f, 0x13, 0x6a, 0xfd, 0xb1, 0x61]);
    }
}
