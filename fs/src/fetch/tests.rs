//! Ranges from scripted agents: whatever some of them do, what comes back is the image's bytes or
//! an error, and whoever misbehaved is not asked first again.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use isotope_proto::channel::{self, GREETING, Head, REQUEST_BYTES, Request};
use isotope_proto::id::{ImageId, VolumeId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::remote::WrongCopy;

/// One group: its hash alone proves it.
const SMALL: u64 = 9_000;
const LARGE: u64 = 1 << 20;
/// Long after everything should have been noticed.
const SOON: Duration = Duration::from_secs(8);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Good,
    /// Takes the request, and says nothing.
    Silent,
    Lying,
    Refusing(Reason),
    /// Ends in the middle of the bytes.
    BreakingOff,
    /// 64 KiB every 200 ms.
    Slow,
    /// A byte every 50 ms.
    Trickling,
    /// Breaks off each so manieth request.
    Failing(usize),
}

/// An agent that behaves in some manner; that may change while it runs.
struct Agent {
    address: String,
    asked: Arc<AtomicUsize>,
    recovered: Arc<AtomicBool>,
}

fn byte_at(offset: u64) -> u8 {
    (offset % 249) as u8
}

fn bytes_of(range: ByteRange) -> Vec<u8> {
    (range.start()..range.end()).map(byte_at).collect()
}

impl Agent {
    async fn new(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("an address").to_string();
        let (asked, recovered) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let agent = Self { address, asked: Arc::clone(&asked), recovered: Arc::clone(&recovered) };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (asked, recovered) = (Arc::clone(&asked), Arc::clone(&recovered));
                // Whoever asked may hang up at any time.
                tokio::spawn(async move { drop(serve(stream, manner, &asked, &recovered).await) });
            }
        });
        agent
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

async fn serve(
    mut stream: TcpStream,
    manner: Manner,
    asked: &AtomicUsize,
    recovered: &AtomicBool,
) -> std::io::Result<()> {
    let mut greeting = [0; GREETING.len()];
    stream.read_exact(&mut greeting).await?;
    assert_eq!(greeting, GREETING);
    loop {
        let mut frame = [0; REQUEST_BYTES];
        stream.read_exact(&mut frame).await?;
        let manner = if recovered.load(Ordering::SeqCst) { Manner::Good } else { manner };
        let Request::Read(wanted) = Request::decode(&frame).expect("a request") else {
            if manner == Manner::Silent {
                std::future::pending::<()>().await;
            }
            stream.write_all(&Head::Bytes { proof_bytes: 0, bytes: 0 }.encode()).await?;
            continue;
        };
        let calls = asked.fetch_add(1, Ordering::SeqCst) + 1;
        let head = Head::Bytes { proof_bytes: 0, bytes: wanted.range.len() }.encode();
        let mut bytes = bytes_of(wanted.range);
        match manner {
            Manner::Silent => std::future::pending::<()>().await,
            Manner::Refusing(reason) => {
                let refusal = Refusal::new(reason, "it does not want to");
                stream.write_all(&channel::refused(&refusal)).await?;
                continue;
            }
            Manner::Failing(every) if calls.is_multiple_of(every) => return Ok(()),
            Manner::BreakingOff => bytes.truncate(bytes.len() / 2),
            Manner::Lying => bytes[0] ^= 1,
            Manner::Good | Manner::Slow | Manner::Trickling | Manner::Failing(_) => {}
        }
        stream.write_all(&head).await?;
        let (piece_bytes, pause_ms) = match manner {
            Manner::Slow => (64 << 10, 200),
            Manner::Trickling => (1, 50),
            _ => (64 << 10, 0),
        };
        for piece in bytes.chunks(piece_bytes) {
            stream.write_all(piece).await?;
            if pause_ms > 0 {
                tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            }
        }
        if manner == Manner::BreakingOff {
            return Ok(());
        }
    }
}

/// A mount's view of some agents.
struct World {
    hosts: Hosts,
    agents: Vec<Agent>,
    wrong: tokio::sync::mpsc::Receiver<WrongCopy>,
}

impl World {
    async fn of(manners: &[Manner]) -> Self {
        let mut agents = Vec::new();
        for manner in manners {
            agents.push(Agent::new(*manner).await);
        }
        let (hosts, wrong) = Hosts::reporting(crate::tally::Tally::default());
        Self { hosts, agents, wrong }
    }

    /// In the order in which they are to be asked, but for those that failed.
    fn routes(&self) -> Vec<Route> {
        let route = |agent: &Agent| Route {
            image: ImageId::from_bytes([1; 16]),
            volume: VolumeId::from_bytes([2; 16]),
            address: agent.address.clone(),
        };
        let mut routes: Vec<Route> = self.agents.iter().map(route).collect();
        let now = Instant::now();
        self.hosts.with_health(|health| {
            routes.sort_by_key(|it| {
                let lied = health.has_lied(&it.address, it.image, now);
                let bad = health.bad_since(&it.address).is_some();
                (lied, bad, health.slowness(&it.address, now))
            });
        });
        routes
    }

    async fn fetch(&self, size_bytes: u64) -> Result<Bytes, FsError> {
        let range = ByteRange::clamped(0, size_bytes, size_bytes);
        let hash = || Blake3::from_bytes(*blake3::hash(&bytes_of(range)).as_bytes());
        let content = Content { size_bytes, blake3: (size_bytes == SMALL).then(hash) };
        let deadline = Instant::now() + SOON;
        let fetched = self.hosts.fetch_any(|| (self.routes(), content), range, deadline).await;
        if let Ok(bytes) = &fetched {
            assert!(*bytes == bytes_of(range), "others' bytes");
        }
        fetched
    }

    fn asked(&self) -> Vec<usize> {
        self.agents.iter().map(Agent::asked).collect()
    }
}

#[tokio::test]
async fn the_first_that_is_well_is_asked_alone() {
    let world = World::of(&[Manner::Good, Manner::Good]).await;
    for _ in 0..3 {
        assert!(world.fetch(SMALL).await.is_ok());
    }
    assert_eq!(world.asked(), [3, 0]);
}

#[tokio::test]
async fn a_host_that_fails_in_any_way_is_passed_over() {
    for (manner, size_bytes, asked_again) in [
        (Manner::Silent, SMALL, false),
        (Manner::BreakingOff, LARGE, false),
        (Manner::Refusing(Reason::Unavailable), SMALL, true),
        (Manner::Refusing(Reason::NotFound), SMALL, true),
        (Manner::Refusing(Reason::Replaced), SMALL, true),
        (Manner::Refusing(Reason::Storage), SMALL, true),
    ] {
        let world = World::of(&[manner, Manner::Good]).await;
        assert!(world.fetch(size_bytes).await.is_ok(), "{manner:?}");
        let first = world.asked();
        assert!(world.fetch(size_bytes).await.is_ok(), "{manner:?}");
        assert_eq!(world.asked()[0] > first[0], asked_again, "{manner:?}: each read asks it");
    }
}

#[tokio::test]
async fn a_copy_with_wrong_bytes_is_passed_over_and_reported() {
    let mut world = World::of(&[Manner::Lying, Manner::Good]).await;
    for _ in 0..3 {
        assert!(world.fetch(SMALL).await.is_ok());
    }
    assert_eq!(world.asked(), [1, 3]);
    let told = world.wrong.try_recv().expect("reported");
    assert_eq!((told.address, told.range.len()), (world.agents[0].address.clone(), SMALL));
    assert!(world.wrong.try_recv().is_err(), "once");
}

#[tokio::test]
async fn where_no_copy_is_right_the_reader_hears_at_once_why() {
    for (manners, expected) in [
        (&[Manner::Lying, Manner::Lying][..], "wrong bytes"),
        (&[Manner::Lying, Manner::Refusing(Reason::Replaced)], "wrong bytes"),
        (&[Manner::Refusing(Reason::Replaced), Manner::Refusing(Reason::NotFound)], "changed"),
        (&[Manner::Refusing(Reason::NotFound)], "no host with the bytes"),
    ] {
        let world = World::of(manners).await;
        let error = world.fetch(SMALL).await.expect_err("no copy is right").to_string();
        assert!(error.contains(expected), "{manners:?}: {error}");
    }
}

#[tokio::test]
async fn a_slow_host_gets_company_and_is_asked_last_afterwards() {
    let world = World::of(&[Manner::Slow, Manner::Good]).await;
    assert!(world.fetch(LARGE).await.is_ok());
    assert_eq!(world.asked(), [1, 1]);
    assert!(world.fetch(LARGE).await.is_ok());
    assert_eq!(world.asked(), [1, 2]);
    // Alone it is slow, and delivers.
    let world = World::of(&[Manner::Slow]).await;
    assert!(world.fetch(LARGE).await.is_ok());
}

#[tokio::test]
async fn what_was_asked_a_moment_ago_is_not_slow() {
    // The second is asked beside the first, which then delivers at once.
    let world = World::of(&[Manner::Slow, Manner::Slow]).await;
    assert!(world.fetch(LARGE).await.is_ok());
    let now = Instant::now();
    let speed = |n: usize| {
        let address = &world.agents[n].address;
        world.hosts.with_health(|health| health.speed(address, now))
    };
    assert!(speed(0).is_some());
    assert!(speed(1).is_none_or(|speed| speed > 50_000), "{:?}", speed(1));
}

#[tokio::test]
async fn whoever_had_all_the_time_is_not_asked_first_again() {
    let world = World::of(&[Manner::Trickling, Manner::Good]).await;
    // It alone is known, and takes all the time there is.
    let first = world.routes().remove(0);
    let range = ByteRange::clamped(0, LARGE, LARGE);
    let content = Content { size_bytes: LARGE, blake3: None };
    let deadline = Instant::now() + Duration::from_secs(3);
    let fetch = world.hosts.fetch_any(|| (vec![first.clone()], content), range, deadline);
    assert!(matches!(fetch.await, Err(FsError::Unreachable(_))));
    assert!(world.fetch(LARGE).await.is_ok());
    assert_eq!(world.asked(), [1, 1]);
}

#[tokio::test]
async fn a_host_that_comes_back_is_noticed_without_a_reader() {
    let world = World::of(&[Manner::Silent, Manner::Good]).await;
    assert!(world.fetch(SMALL).await.is_ok());
    let first = world.agents[0].address.clone();
    assert!(world.hosts.with_health(|health| health.bad_since(&first).is_some()));
    world.agents[0].recovered.store(true, Ordering::SeqCst);
    let deadline = Instant::now() + SOON;
    while world.hosts.with_health(|health| health.bad_since(&first).is_some()) {
        assert!(Instant::now() < deadline, "it was not noticed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let before = world.asked()[0];
    assert!(world.fetch(SMALL).await.is_ok());
    assert_eq!(world.asked()[0], before + 1);
}

#[tokio::test]
async fn a_host_that_was_the_only_one_is_asked_until_it_answers() {
    let world = World::of(&[Manner::Refusing(Reason::Unavailable)]).await;
    let recovered = Arc::clone(&world.agents[0].recovered);
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        recovered.store(true, Ordering::SeqCst);
    });
    assert!(world.fetch(SMALL).await.is_ok());
}

#[tokio::test]
async fn whatever_call_fails_every_read_is_whole() {
    for every in [2, 3, 7] {
        let world = World::of(&[Manner::Failing(every), Manner::Failing(every)]).await;
        for _ in 0..20 {
            assert!(world.fetch(SMALL).await.is_ok(), "every {every}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_range_is_read_at_once_from_a_host_that_is_known_and_well() {
    let range = ByteRange::clamped(0, SMALL, SMALL);
    let hash = Blake3::from_bytes(*blake3::hash(&bytes_of(range)).as_bytes());
    let content = Content { size_bytes: SMALL, blake3: Some(hash) };
    for (manner, expected) in [
        (Manner::Good, true),
        (Manner::Silent, false),
        (Manner::Lying, false),
        (Manner::Refusing(Reason::NotFound), false),
        (Manner::BreakingOff, false),
        (Manner::Trickling, false),
    ] {
        let world = World::of(&[manner]).await;
        let quickly = || {
            let found = world.hosts.fetch_quickly(&world.routes(), content, range);
            assert!(found.as_ref().is_none_or(|bytes| *bytes == bytes_of(range)), "{manner:?}");
            found.is_some()
        };
        assert!(!quickly(), "nobody knows yet where it is");
        let ping = world.hosts.channels().ping(&world.agents[0].address);
        drop(tokio::time::timeout(Duration::from_secs(1), ping).await);
        for _ in 0..2 {
            let began = Instant::now();
            assert_eq!(quickly(), expected, "{manner:?}");
            assert!(began.elapsed() < Duration::from_secs(3), "{manner:?}: no moment");
        }
        world.hosts.distrust(&world.agents[0].address, "a test");
        assert!(!quickly(), "{manner:?}: it is not well");
    }
}
