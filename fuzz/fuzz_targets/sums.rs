//! Any text as a vendor's checksum file.
#![no_main]

use isotope_agent::identify::sums;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for (name, digest) in sums::parse(text) {
        assert!(!name.is_empty() && text.contains(name));
        assert_eq!(digest.to_string().parse(), Ok(digest));
    }
});
