//! What is done with each way in each round, in the same order and at the same places. What is read
//! in small pieces is kept, and compared after the clock has been stopped.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::processes;
use crate::way::{Opened, Place, Way};

const PAGE_BYTES: u64 = 4 << 10;
/// Three rounds make more than two thousand.
const RANDOM_READS: usize = 700;
/// Of each of eight readers.
const DEEP_READS: usize = 1000;
const DEPTH: u32 = 8;
const OPENS: usize = 200;
/// Each open of a way with a cache of its own needs another file.
const OPENS_FRESH: usize = 5;
/// Of a CD-ROM.
const SECTOR_BYTES: u64 = 2 << 10;
const SEEKS: u64 = 200;
/// After a seek so many sectors are read in order, at most.
const RUN_SECTORS: u64 = 16;
const READERS: u32 = 4;
/// A way that takes longer for one kind of work is not asked for more of it in this round.
const LIMIT: Duration = Duration::from_secs(3);

/// Numbers that look random, and are the same for each way: xorshift64 (Marsaglia, 2003).
struct Places(u64);

impl Places {
    fn of(round: u64, kind: u64) -> Self {
        Self((round * 16 + kind).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}

/// Small pieces that were read, to be compared.
#[derive(Default)]
struct Pieces(Vec<(u64, Vec<u8>)>);

impl Pieces {
    /// Reads one; the time that it took.
    fn read(&mut self, opened: &mut Opened, at: u64, len: u64) -> io::Result<f64> {
        let mut bytes = vec![0; usize::try_from(len).expect("a small range")];
        let began = Instant::now();
        opened.at(at, &mut bytes)?;
        let took = began.elapsed().as_secs_f64();
        self.0.push((at, bytes));
        Ok(took)
    }

    fn compare(&self, source: &File, name: &str) -> io::Result<()> {
        for (at, bytes) in &self.0 {
            let mut right = vec![0; bytes.len()];
            source.read_exact_at(&mut right, *at)?;
            assert!(right == *bytes, "{name}: other bytes at {at}");
        }
        Ok(())
    }
}

/// Has the server's files in memory, and as much again at hand for whoever reads them. A virtual
/// machine's host takes back what has not been used for some seconds; whoever uses it next waits for
/// it, a second a GiB and more, and that is not to be whose turn it happens to be.
fn warm_up(way: &Way, size_bytes: u64) -> io::Result<()> {
    for number in 0..READERS {
        way.read_at_server(number)?;
    }
    let bytes = usize::try_from(2 * size_bytes).expect("less than the address space");
    std::hint::black_box(vec![1_u8; bytes]);
    Ok(())
}

pub(crate) fn round(way: &mut Way, source: &File, round: u64) -> io::Result<()> {
    let size_bytes = source.metadata()?.len();
    sequential(way, size_bytes)?;
    random(way, source, round)?;
    deep(way, source, round)?;
    opening(way, source)?;
    seeking(way, source, round)?;
    sharing(way, size_bytes)
}

fn sequential(way: &mut Way, size_bytes: u64) -> io::Result<()> {
    let number = way.cold()?;
    warm_up(way, size_bytes)?;
    let (processes, reader) = (way.seconds(), processes::own_seconds());
    let whole = |way: &Way| {
        let began = Instant::now();
        way.open(number)?.whole(size_bytes, |_| Ok(()))?;
        io::Result::Ok(began.elapsed().as_secs_f64())
    };
    let took = whole(way)?;
    let (processes, reader) = (way.seconds() - processes, processes::own_seconds() - reader);
    way.figures.cold.push(took);
    way.figures.processes += processes;
    way.figures.reader += reader;
    way.figures.cold_bytes += size_bytes;
    if !matches!(way.place, Place::Raw(..)) {
        let took = whole(way)?;
        way.figures.warm.push(took);
    }
    Ok(())
}

fn random(way: &mut Way, source: &File, round: u64) -> io::Result<()> {
    let pages = source.metadata()?.len() / PAGE_BYTES;
    let number = way.cold()?;
    let mut opened = way.open(number)?;
    let (mut places, mut seen, mut pieces) =
        (Places::of(round, 0), HashSet::new(), Pieces::default());
    let began = Instant::now();
    while seen.len() < RANDOM_READS && began.elapsed() < LIMIT {
        let page = places.below(pages);
        if seen.insert(page) {
            way.figures.random.push(pieces.read(&mut opened, page * PAGE_BYTES, PAGE_BYTES)?);
        }
    }
    pieces.compare(source, &way.name)
}

fn deep(way: &mut Way, source: &File, round: u64) -> io::Result<()> {
    let pages = source.metadata()?.len() / PAGE_BYTES;
    let number = way.cold()?;
    let began = Instant::now();
    let one = |kind: u64| {
        let mut opened = way.open(number)?;
        let (mut places, mut pieces) = (Places::of(round, kind), Pieces::default());
        while pieces.0.len() < DEEP_READS && began.elapsed() < LIMIT {
            pieces.read(&mut opened, places.below(pages) * PAGE_BYTES, PAGE_BYTES)?;
        }
        io::Result::Ok(pieces)
    };
    let all: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (1..=u64::from(DEPTH)).map(|kind| scope.spawn(move || one(kind))).collect();
        threads.into_iter().map(|it| it.join().expect("a reader")).collect()
    });
    let took = began.elapsed().as_secs_f64();
    let mut count = 0;
    for pieces in all {
        let pieces = pieces?;
        pieces.compare(source, &way.name)?;
        count += pieces.0.len();
    }
    way.figures.deep.push(count as f64 / took);
    Ok(())
}

fn opening(way: &mut Way, source: &File) -> io::Result<()> {
    let opens = match way.place {
        Place::Fresh(_) => OPENS_FRESH,
        Place::Raw(..) | Place::Cold(_) => OPENS,
    };
    let limit = Instant::now() + LIMIT;
    for _ in 0..opens {
        let number = way.cold()?;
        let mut pieces = Pieces::default();
        let began = Instant::now();
        let mut opened = way.open(number)?;
        pieces.read(&mut opened, 0, PAGE_BYTES)?;
        way.figures.first.push(began.elapsed().as_secs_f64());
        drop(opened);
        pieces.compare(source, &way.name)?;
        if Instant::now() > limit {
            break;
        }
    }
    Ok(())
}

/// Files here and there, in the sectors of a CD-ROM.
fn seeking(way: &mut Way, source: &File, round: u64) -> io::Result<()> {
    let sectors = source.metadata()?.len() / SECTOR_BYTES;
    let number = way.cold()?;
    let mut opened = way.open(number)?;
    let (mut places, mut pieces, mut took) = (Places::of(round, 9), Pieces::default(), 0.0);
    let began = Instant::now();
    for _ in 0..SEEKS {
        let (first, run) = (places.below(sectors - RUN_SECTORS), 1 + places.below(RUN_SECTORS));
        for sector in first..first + run {
            took += pieces.read(&mut opened, sector * SECTOR_BYTES, SECTOR_BYTES)?;
        }
        if began.elapsed() > LIMIT {
            break;
        }
    }
    way.figures.seeking.push(took / pieces.0.len() as f64);
    pieces.compare(source, &way.name)
}

/// Four programs, each with an image of its own, of a quarter of the size; all stop when the first is
/// done.
fn sharing(way: &mut Way, size_bytes: u64) -> io::Result<()> {
    let numbers = way.many_cold(READERS)?;
    warm_up(way, size_bytes)?;
    let read: Vec<AtomicU64> = numbers.iter().map(|_| AtomicU64::new(0)).collect();
    let done = AtomicBool::new(false);
    let way_read: &Way = way;
    let began = Instant::now();
    let one = |number: u32, count: &AtomicU64| {
        let result = way_read.open(number)?.whole(size_bytes / u64::from(READERS), |bytes| {
            count.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            match done.load(Ordering::Relaxed) {
                true => Err(io::ErrorKind::Interrupted.into()),
                false => Ok(()),
            }
        });
        done.store(true, Ordering::Relaxed);
        match result {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    };
    let one = &one;
    let results: Vec<io::Result<()>> = std::thread::scope(|scope| {
        let readers = numbers.iter().zip(&read);
        let threads: Vec<_> =
            readers.map(|(number, count)| scope.spawn(move || one(*number, count))).collect();
        threads.into_iter().map(|it| it.join().expect("a reader")).collect()
    });
    let took = began.elapsed().as_secs_f64();
    results.into_iter().collect::<io::Result<()>>()?;
    let counts: Vec<f64> = read.iter().map(|it| it.load(Ordering::Relaxed) as f64).collect();
    let (least, most) =
        counts.iter().fold((f64::MAX, 0.0_f64), |(a, b), it| (a.min(*it), b.max(*it)));
    way.figures.shared.push(counts.iter().sum::<f64>() / took);
    way.figures.fair.push(least / most);
    Ok(())
}
