//! Any bytes, under a name that lets expect an image: identified, in bounded space.
#![no_main]

use std::sync::LazyLock;

use isotope_agent::identify::{Databases, identify_source, rematch};
use isotope_proto::facts::FACTS_BYTES_MAX;
use isotope_proto::wire::encode_facts;
use libfuzzer_sys::fuzz_target;

static DATABASES: LazyLock<Databases> = LazyLock::new(Databases::none);

fuzz_target!(|bytes: &[u8]| {
    // The first byte chooses what is claimed of the others.
    let Some((&claim, bytes)) = bytes.split_first() else { return };
    let name = ["a.iso", "a.img", "a.ova", "debian-12.iso"][usize::from(claim & 3)];
    let size = if claim & 4 == 0 { bytes.len() as u64 } else { u64::MAX >> (claim >> 3) };
    let found = identify_source(&bytes, size, name, &DATABASES);
    assert!(encode_facts(&found.facts).len() <= FACTS_BYTES_MAX);
    let (os, facts) = rematch(found.facts.clone(), name, &DATABASES);
    assert_eq!((os, facts.problem), (found.os, found.facts.problem));
});
