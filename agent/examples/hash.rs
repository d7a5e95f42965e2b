//! One pass over a file, timed, for `scripts/bench/hash`: `hash [--verify] FILE`.

use std::fs::File;
use std::time::Instant;

use isotope_agent::digest::{Expected, Manner, Outcome, Step, Verdict, hash, verify};
use isotope_proto::image::Stamp;

fn main() -> std::process::ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let verifies = args.first().is_some_and(|arg| arg == "--verify");
    args.drain(..usize::from(verifies));
    let [path] = &args[..] else { panic!("give one file") };
    let file = File::open(path).expect("a file that can be read");
    let stamp = stamp(&file);
    let began = Instant::now();
    let done = if verifies {
        let expected = Expected { stamp, blake3: [0; 32] };
        let verdict = verify(&file, &expected, None, &Manner::default(), |_| ());
        matches!(verdict.expect("read"), Verdict::Mismatch(_))
    } else {
        let mut outboard = Vec::new();
        let outcome = hash(&file, stamp, None, &Manner::default(), |step| {
            if let Step::Outboard(bytes) = step {
                outboard.extend_from_slice(bytes);
            }
            Ok(())
        });
        matches!(outcome.expect("read"), Outcome::Done(_))
    };
    let seconds = began.elapsed().as_secs_f64();
    #[allow(clippy::print_stdout, reason = "a program for the command line")]
    {
        println!("{seconds:.3}");
    }
    if done { std::process::ExitCode::SUCCESS } else { std::process::ExitCode::FAILURE }
}

fn stamp(file: &File) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    let meta = file.metadata().expect("its stamp");
    let mtime_ns = meta.mtime() * 1_000_000_000 + meta.mtime_nsec();
    Stamp { inode: meta.ino(), size_bytes: meta.size(), mtime_ns }
}
