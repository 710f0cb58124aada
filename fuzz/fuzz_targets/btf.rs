//! The kernel's BTF. Input: BTF.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mptcp::options::bpf::btf::function_id;

fuzz_target!(|data: &[u8]| {
    for name in ["bpf_iter_tcp", ""] {
        if let Ok(id) = function_id(data, name) {
            // A type has at least 12 bytes, and ids begin at 1.
            assert!(id > 0 && id as usize <= data.len() / 12);
        }
    }
});
