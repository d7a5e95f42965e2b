//! What a pass finds, whatever happens to it and to the file.

use std::fs::{self, OpenOptions};
use std::io::Cursor;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use bao_tree::io::outboard::{PostOrderMemOutboard, PreOrderMemOutboard};
use bao_tree::io::sync::{decode_ranges, encode_ranges_validated};
use bao_tree::{BaoTree, BlockSize, ChunkNum, ChunkRanges};
use proptest::prelude::*;

use super::*;

const MIB: usize = 1 << 20;
const GROUP: usize = GROUP_BYTES as usize;
/// bao-tree's name for 16 KiB: 2⁴ chunks of 1 KiB.
const BLOCK_SIZE: BlockSize = BlockSize::from_chunk_log(4);

fn bytes(len: usize) -> Vec<u8> {
    (0..len as u64).map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

/// A file on a disk, of which the stamp is known.
struct Sample {
    _dir: tempfile::TempDir,
    path: PathBuf,
    file: File,
    stamp: Stamp,
}

fn sample(bytes: &[u8]) -> Sample {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("sample");
    fs::write(&path, bytes).expect("written");
    let file = File::open(&path).expect("opened");
    let stamp = Seen::of(&file).expect("a stamp").stamp();
    Sample { _dir: dir, path, file, stamp }
}

impl Sample {
    fn writer(&self) -> File {
        OpenOptions::new().write(true).open(&self.path).expect("opened")
    }

    /// Hashes without a stop; the outboard with it.
    fn hash(&self) -> (Outcome, Vec<u8>) {
        let mut outboard = Vec::new();
        let outcome = hash(&self.file, self.stamp, None, &Manner::default(), |step| {
            if let Step::Outboard(bytes) = step {
                outboard.extend_from_slice(bytes);
            }
            Ok(())
        });
        (outcome.expect("read"), outboard)
    }

    fn digest(&self) -> (Digest, Vec<u8>) {
        let (outcome, outboard) = self.hash();
        let Outcome::Done(digest) = outcome else { panic!("{outcome:?}") };
        (digest, outboard)
    }

    fn verify(&self, blake3: [u8; 32], outboard: Option<&[u8]>) -> Verdict {
        // What a test damages must look as if nobody had written to it.
        let stamp = Seen::of(&self.file).expect("a stamp").stamp();
        let expected = Expected { stamp, blake3 };
        let mut outboard = outboard.map(Cursor::new);
        let outboard = outboard.as_mut().map(|outboard| outboard as &mut dyn std::io::Read);
        verify(&self.file, &expected, outboard, &Manner::default(), |_| ()).expect("read")
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn known_vectors() {
    // FIPS 180-4's examples, and the test vectors of BLAKE3 (whose input counts up to 250).
    let counted: Vec<u8> = (0..102_400_u32).map(|n| (n % 251) as u8).collect();
    for (input, sha256, blake3) in [
        (
            &b""[..],
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
        ),
        (
            b"abc",
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
        ),
        (&counted, "", "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085"),
    ] {
        let (digest, _) = sample(input).digest();
        assert_eq!(hex(&digest.blake3), blake3);
        assert!(sha256.is_empty() || hex(&digest.sha256) == sha256);
    }
}

#[test]
fn sizes_around_groups_and_blocks_agree_with_others() {
    for len in [0, 1, GROUP - 1, GROUP, GROUP + 1, MIB - 1, MIB, MIB + 1, 2 * MIB, 5 * MIB + 77_777]
    {
        let bytes = bytes(len);
        let sample = sample(&bytes);
        let (digest, outboard) = sample.digest();
        let theirs = Command::new("sha256sum").arg(&sample.path).output().expect("sha256sum");
        let theirs = String::from_utf8_lossy(&theirs.stdout).into_owned();
        assert!(theirs.starts_with(&hex(&digest.sha256)), "{len}: {theirs}");
        let theirs = PostOrderMemOutboard::create(&bytes, BLOCK_SIZE);
        assert_eq!(digest.blake3, *theirs.root.as_bytes(), "{len}");
        assert_eq!(outboard, theirs.data, "{len}");
        assert_eq!(digest.size_bytes, len as u64);
    }
}

#[test]
fn bao_tree_sends_and_checks_a_range_with_our_outboard() {
    let whole = bytes(3 * MIB + 12_345);
    let (digest, data) = sample(&whole).digest();
    let tree = BaoTree::new(whole.len() as u64, BLOCK_SIZE);
    let ours = PostOrderMemOutboard { root: digest.blake3.into(), tree, data };
    let ranges = ChunkRanges::from(ChunkNum(1_000)..ChunkNum(1_100));
    let mut sent = Vec::new();
    encode_ranges_validated(&whole[..], &ours, &ranges, &mut sent).expect("proven and sent");
    assert!(sent.len() < 150 << 10, "only what was asked for: {}", sent.len());
    let receive = |sent: &[u8]| {
        let mut got = vec![0; whole.len()];
        let data = vec![0; tree.outboard_size() as usize];
        let theirs = PreOrderMemOutboard { root: digest.blake3.into(), tree, data };
        decode_ranges(sent, &ranges, &mut got, theirs).map(|()| got)
    };
    let got = receive(&sent).expect("received and checked");
    assert_eq!(got[1_000 << 10..1_100 << 10], whole[1_000 << 10..1_100 << 10]);
    let last = sent.len() - 1;
    sent[last] ^= 1;
    assert!(receive(&sent).is_err(), "a changed byte is noticed");
}

#[test]
fn a_pass_goes_on_from_each_block() {
    let sample = sample(&bytes(9 * MIB + 4_321));
    let expected = sample.digest();
    let manner = Manner { checkpoint_every: Duration::ZERO, ..Manner::default() };
    let (mut outboard, mut checkpoints) = (Vec::new(), Vec::new());
    let outcome = hash(&sample.file, sample.stamp, None, &manner, |step| {
        match step {
            Step::Outboard(bytes) => outboard.extend_from_slice(bytes),
            Step::Checkpoint(at) => {
                assert_eq!(at.outboard_bytes(), outboard.len() as u64);
                checkpoints.push(serde_json::to_string(at).expect("JSON"));
            }
            Step::Progress(_) => {}
        }
        Ok(())
    });
    assert_eq!(outcome.expect("read"), Outcome::Done(expected.0));
    assert_eq!(checkpoints.len(), 9);
    for (number, json) in checkpoints.iter().enumerate() {
        let from: Checkpoint = serde_json::from_str(json).expect("ours");
        assert_eq!(from.offset(), (number as u64 + 1) << 20);
        outboard.truncate(from.outboard_bytes() as usize);
        let outcome = hash(&sample.file, sample.stamp, Some(&from), &manner, |step| {
            match step {
                Step::Outboard(bytes) => outboard.extend_from_slice(bytes),
                Step::Progress(done) => assert!(done > from.offset(), "nothing is read again"),
                Step::Checkpoint(_) => {}
            }
            Ok(())
        });
        assert_eq!((outcome.expect("read"), &outboard), (Outcome::Done(expected.0), &expected.1));
    }
}

#[test]
fn a_checkpoint_of_another_state_or_a_damaged_one_is_not_gone_on_from() {
    let whole = sample(&bytes(3 * MIB));
    let other = sample(&bytes(3 * MIB));
    let manner = Manner { checkpoint_every: Duration::ZERO, ..Manner::default() };
    let mut last = None;
    hash(&whole.file, whole.stamp, None, &manner, |step| {
        if let Step::Checkpoint(at) = step {
            last = Some(at.clone());
        }
        Ok(())
    })
    .expect("read");
    let good = last.expect("a checkpoint");
    let from = |sample: &Sample, from: &Checkpoint| {
        hash(&sample.file, sample.stamp, Some(from), &manner, |_| Ok(())).expect("read")
    };
    assert!(matches!(from(&whole, &good), Outcome::Done(_)));
    assert_eq!(from(&other, &good), Outcome::Changed);
    let json = serde_json::to_value(&good).expect("JSON");
    for (field, damaged) in [
        ("offset", serde_json::json!(4 * MIB)),
        ("offset", serde_json::json!(MIB)),
        ("offset", serde_json::json!(7)),
        ("sha256", serde_json::json!("00")),
        ("blake3", serde_json::json!("")),
        ("blake3", serde_json::json!("00")),
    ] {
        let mut json = json.clone();
        json[field] = damaged;
        let damaged: Checkpoint = serde_json::from_value(json).expect("its form is right");
        assert_eq!(from(&whole, &damaged), Outcome::Changed, "{field}");
    }
    let mut json = json;
    json["sha256"] = serde_json::json!("no digits");
    assert!(serde_json::from_value::<Checkpoint>(json).is_err());
}

#[test]
fn a_file_that_is_changed_meanwhile_is_noticed() {
    type Change = fn(&Sample);
    for (name, change) in [
        ("cut", (|it| it.writer().set_len(MIB as u64).expect("cut")) as Change),
        ("longer", |it| it.writer().write_all_at(b"more", 4 * MIB as u64).expect("written")),
        ("written behind us, and its time put back", |it| {
            let before = it.file.metadata().and_then(|meta| meta.modified()).expect("a time");
            std::thread::sleep(Duration::from_millis(20));
            it.writer().write_all_at(b"other", 5).expect("written");
            it.writer().set_modified(before).expect("put back");
        }),
    ] {
        let sample = sample(&bytes(4 * MIB));
        let outcome = hash(&sample.file, sample.stamp, None, &Manner::default(), |step| {
            if matches!(step, Step::Progress(done) if done == 2 * MIB as u64) {
                change(&sample);
            }
            Ok(())
        });
        assert_eq!(outcome.expect("read"), Outcome::Changed, "{name}");
        // And it is not what it was expected to be, or is, once it is looked at anew.
        let (outcome, _) = sample.hash();
        let same_stamp = name.ends_with("put back");
        assert_eq!(matches!(outcome, Outcome::Done(_)), same_stamp, "{name}");
    }
}

#[test]
fn a_stop_is_heard_between_blocks_and_leaves_a_checkpoint() {
    let sample = sample(&bytes(5 * MIB));
    let expected = sample.digest();
    let manner = Manner::default();
    let (mut outboard, mut last) = (Vec::new(), None);
    let outcome = hash(&sample.file, sample.stamp, None, &manner, |step| {
        match step {
            Step::Outboard(bytes) => outboard.extend_from_slice(bytes),
            Step::Progress(done) if done == 3 * MIB as u64 => manner.stop.cancel(),
            Step::Progress(done) => assert!(done < 3 * MIB as u64),
            Step::Checkpoint(at) => last = Some(at.clone()),
        }
        Ok(())
    });
    assert_eq!(outcome.expect("read"), Outcome::Stopped);
    let from = last.expect("a checkpoint");
    assert_eq!((from.offset(), from.outboard_bytes()), (3 << 20, outboard.len() as u64));
    let outcome = hash(&sample.file, sample.stamp, Some(&from), &Manner::default(), |step| {
        if let Step::Outboard(bytes) = step {
            outboard.extend_from_slice(bytes);
        }
        Ok(())
    });
    assert_eq!((outcome.expect("read"), outboard), (Outcome::Done(expected.0), expected.1));
}

#[test]
fn a_slow_pace_is_kept_and_a_stop_does_not_wait_for_it() {
    let sample = sample(&bytes(2 * MIB));
    let manner = Manner { pace: Pace::new(Some(10 * MIB as u64)), ..Manner::default() };
    let began = Instant::now();
    let outcome = hash(&sample.file, sample.stamp, None, &manner, |_| Ok(()));
    assert!(matches!(outcome.expect("read"), Outcome::Done(_)));
    assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
    // At this pace a block takes a minute.
    let manner = Manner { pace: Pace::new(Some(MIB as u64 / 60)), ..Manner::default() };
    let (stop, began) = (manner.stop.clone(), Instant::now());
    let stopper = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        stop.cancel();
    });
    let outcome = hash(&sample.file, sample.stamp, None, &manner, |_| Ok(()));
    stopper.join().expect("stopped");
    assert_eq!(outcome.expect("read"), Outcome::Stopped);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[test]
fn errors_say_where() {
    let whole = sample(&bytes(2 * MIB));
    let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
    let failed = hash(&whole.file, whole.stamp, None, &Manner::default(), |step| match step {
        Step::Outboard(_) => Err(full()),
        Step::Progress(_) | Step::Checkpoint(_) => Ok(()),
    });
    assert!(matches!(failed, Err(DigestError::Keep { offset: 0x10_0000, .. })), "{failed:?}");
    // Not open for reading.
    let stamp = whole.stamp;
    let failed = hash(&whole.writer(), stamp, None, &Manner::default(), |_| Ok(()));
    assert!(matches!(failed, Err(DigestError::Read { offset: 0, .. })), "{failed:?}");
}

#[test]
fn rot_is_found_where_it_is() {
    const AT: u64 = GROUP_BYTES;
    let len = 3 * MIB + 5;
    for (spots, first, end, groups) in [
        (&[0_u64][..], 0, AT, 1),
        (&[AT + 3, AT + 4], AT, 2 * AT, 1),
        (&[3 * AT, 4 * AT - 1, 100 * AT], 3 * AT, 101 * AT, 2),
        (&[5 * AT, 4 * AT], 4 * AT, 6 * AT, 2),
        (&[3 << 20], 3 << 20, (3 << 20) + AT, 1),
    ] {
        let sample = sample(&bytes(len));
        let (digest, outboard) = sample.digest();
        assert_eq!(sample.verify(digest.blake3, Some(&outboard)), Verdict::Ok);
        for spot in spots {
            let mut byte = [0];
            sample.file.read_exact_at(&mut byte, *spot).expect("read");
            sample.writer().write_all_at(&[byte[0] ^ 0x10], *spot).expect("written");
        }
        let (now, _) = self::sample(&fs::read(&sample.path).expect("read")).digest();
        let damage = Damage { first_offset: first, end_offset: end, groups };
        let mismatch = |damage| Verdict::Mismatch(Mismatch { blake3: now.blake3, damage });
        assert_eq!(sample.verify(digest.blake3, Some(&outboard)), mismatch(Some(damage)));
        assert_eq!(sample.verify(digest.blake3, None), mismatch(None));
        // An outboard that is damaged itself, cut short, or another's, accuses nobody.
        let mut damaged = outboard.clone();
        damaged[64 * 7 + 3] ^= 1;
        assert_eq!(sample.verify(digest.blake3, Some(&damaged)), mismatch(None));
        assert_eq!(sample.verify(digest.blake3, Some(&outboard[..700])), mismatch(None));
        assert_eq!(sample.verify([9; 32], Some(&outboard)), mismatch(None));
    }
}

#[test]
fn small_files_and_stamps_are_verified_too() {
    for len in [0, 1, GROUP, GROUP + 1] {
        let sample = sample(&bytes(len));
        let (digest, outboard) = sample.digest();
        assert_eq!(sample.verify(digest.blake3, Some(&outboard)), Verdict::Ok, "{len}");
        let stamp = Stamp { mtime_ns: 1, ..sample.stamp };
        let expected = Expected { stamp, blake3: digest.blake3 };
        let verdict = verify(&sample.file, &expected, None, &Manner::default(), |_| ());
        assert_eq!(verdict.expect("looked at"), Verdict::Changed);
    }
    let sample = sample(b"one group");
    let mismatch = Mismatch {
        blake3: sample.digest().0.blake3,
        damage: Some(Damage { first_offset: 0, end_offset: GROUP_BYTES, groups: 1 }),
    };
    assert_eq!(sample.verify([9; 32], Some(&[])), Verdict::Mismatch(mismatch));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_size_agrees_with_bao_tree(len in 0..3_000_000_usize) {
        let bytes = bytes(len);
        let (digest, outboard) = sample(&bytes).digest();
        let theirs = PostOrderMemOutboard::create(&bytes, BLOCK_SIZE);
        prop_assert_eq!(digest.blake3, *theirs.root.as_bytes());
        prop_assert_eq!(outboard, theirs.data);
    }
}
