//! Writes, truncations, allocations and reads in any order within one open file, against a file
//! held in memory; and fio, which checks what it wrote.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};

use crate::harness::same_bytes;
use crate::library::Library;

const SIZE_MAX: usize = 2 << 20;
const WRITE_MAX: usize = 200_000;

/// xorshift64*: the same numbers from the same seed, on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        usize::try_from(number).expect("32 bits") % end
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.below(256).to_le_bytes()[0]).collect()
    }
}

/// Where a file system goes wrong: at the borders of pages and requests, and anywhere.
fn place(random: &mut Random, end: usize) -> usize {
    let at = random.below(end);
    match random.below(4) {
        0 => at / 4096 * 4096,
        1 => (at / 131_072 * 131_072).saturating_sub(1),
        _ => at,
    }
}

/// Makes, writes and closes a file; its name, and what it holds.
fn one_file(folder: &Path, seed: u64, steps: usize) -> (String, Vec<u8>) {
    let mut random = Random(seed);
    let name = format!("{seed}.img");
    let path = folder.join(&name);
    let file = File::options().create_new(true).read(true).write(true).open(&path).expect("made");
    let mut model: Vec<u8> = Vec::new();
    for step in 0..steps {
        let at = place(&mut random, SIZE_MAX);
        let len = 1 + random.below(WRITE_MAX);
        let what = random.below(20);
        let done = match what {
            0..=9 => {
                let bytes = random.bytes(len);
                if model.len() < at + len {
                    model.resize(at + len, 0);
                }
                model[at..at + len].copy_from_slice(&bytes);
                file.write_all_at(&bytes, at as u64)
            }
            10 | 11 => {
                model.resize(at, 0);
                file.set_len(at as u64)
            }
            12 => {
                if model.len() < at + len {
                    model.resize(at + len, 0);
                }
                fallocate(&file, FallocateFlags::empty(), at as u64, len as u64).map_err(Into::into)
            }
            13 => file.sync_all(),
            _ => {
                let mut found = vec![0xa5; len];
                let mut got = 0;
                // Short only at the end.
                let read = loop {
                    match file.read_at(&mut found[got..], (at + got) as u64) {
                        Ok(0) => break Ok(()),
                        Ok(more) => got += more,
                        Err(error) => break Err(error),
                    }
                };
                let end = model.len().min(at + len);
                let expected = model.get(at..end).unwrap_or_default();
                assert!(found[..got] == *expected, "seed {seed}, step {step}: {len} at {at}");
                read
            }
        };
        done.unwrap_or_else(|error| panic!("seed {seed}, step {step}, {what}: {error}"));
        let size = file.metadata().expect("attributes").len();
        assert_eq!(size, model.len() as u64, "seed {seed}, step {step}, {what}");
    }
    let mut found = vec![0; model.len()];
    file.read_exact_at(&mut found, 0).expect("read back");
    same_bytes(&found, &model);
    (name, model)
}

#[test]
fn one_open_file_is_what_a_file_in_memory_is() {
    let library = Library::new();
    for seed in [1, 0x5eed, 0xdead_beef, 7_777_777] {
        let (name, bytes) = one_file(&library.mount, seed, 120);
        library.stores(&name, &bytes);
    }
    // Short ones find what happens first.
    for seed in 100..112 {
        let (name, bytes) = one_file(&library.mount, seed, 8);
        library.stores(&name, &bytes);
    }
}

#[test]
fn several_open_files_do_not_mix() {
    let library = Library::new();
    let folder = &library.mount;
    let files = std::thread::scope(|scope| {
        let writers = [11, 12, 13].map(|seed| scope.spawn(move || one_file(folder, seed, 40)));
        writers.map(|it| it.join().expect("it ends"))
    });
    for (name, bytes) in files {
        library.stores(&name, &bytes);
    }
    assert_eq!(library.images(), 3);
}

/// fio opens its file anew to verify it at the end; what it verifies before is what it still writes.
#[test]
fn fio_reads_what_it_wrote() {
    let library = Library::new();
    let fio = "timeout 60 fio --output=$D/fio.log --verify=crc32c --size=4m";
    let write = "--create_on_open=1 --fallocate=none --thread --verify_state_save=0 --do_verify=1";
    for (name, options) in [
        ("random.img", "--rw=randwrite --bs=64k --verify_backlog=8 --ioengine=psync"),
        ("deep.img", "--rw=randwrite --bs=16k --ioengine=libaio --iodepth=16"),
        ("direct.img", "--rw=randwrite --bs=16k --ioengine=libaio --iodepth=16 --direct=1"),
        ("vector.img", "--rw=write --bs=60k --verify_backlog=4 --ioengine=pvsync --fsync=16"),
    ] {
        library.shell(&format!("{fio} --name=w --filename=$M/{name} {write} {options}"));
        library.stores(name, &std::fs::read(library.mount.join(name)).expect("read"));
        let read = options.replace("randwrite", "randread").replace("=write", "=read");
        library.shell(&format!("{fio} --name=w --filename=$N/{name} --readonly {read}"));
    }
    library.shell(&format!(
        "{fio} --name=many --directory=$M {write} --numjobs=4 --nrfiles=4 --rw=write --bs=16k \
         --file_service_type=sequential"
    ));
    assert_eq!(library.images(), 4 + 16);
}
