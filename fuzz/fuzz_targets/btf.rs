//! The kernel's BTF. Input: BTF.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mptcp::bpf::btf::Btf;

fuzz_target!(|data: &[u8]| {
    let Ok(btf) = Btf::parse(data) else { return };
    if let Ok(id) = btf.function_id("bpf_iter_tcp") {
        // A type has at least 12 bytes, and ids begin at 1.
        assert!(id > 0 && id as usize <= data.len() / 12);
    }
    let Ok(outer) = btf.structure("outer") else { return };
    let _ = outer.size();
    for path in ["a", "icsk_ack.ato", "list[3]", "s[0].v"] {
        if let Ok(member) = outer.member(path) {
            let _ = (member.offset(), member.size(), member.read(data));
        }
    }
});
