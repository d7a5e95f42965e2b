//! One range from whichever replica delivers it first: the best is asked, another beside it when it
//! is silent or slow, and all of them again until the caller's deadline. What is known by its hash
//! is checked before it is handed on.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use isotope_proto::channel::Wanted;
use isotope_proto::digest::Blake3;
use isotope_proto::proof;
use isotope_proto::range::ByteRange;
use isotope_proto::refusal::{Reason, Refusal};
use tracing::{debug, warn};

use crate::channel::{Delivered, Fault, Progress};
use crate::error::FsError;
use crate::quick;
use crate::remote::Hosts;
use crate::replicas::Route;

/// A host that sends nothing for so long gets company.
const HEDGE_AFTER: Duration = Duration::from_millis(500);
/// So does one that has not done by then, at less than 1 MiB/s; but only if the next is not known to
/// be slower still.
const SLOW_AFTER: Duration = Duration::from_secs(1);
/// After so long of that also one that is slower still is asked: what was measured may be long over.
const SLOW_ENOUGH: Duration = Duration::from_secs(3);
/// A host that sends nothing for so long has failed: a new connection may fare better, for TCP
/// waits ever longer before it repeats what was lost.
const SILENCE_MAX: Duration = Duration::from_secs(2);
/// How often is looked whether anybody is silent.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Between two rounds over all replicas.
const ROUND_PAUSE: Duration = Duration::from_millis(200);
/// Less than this says nothing of a host's speed.
const MEASURED_BYTES_MIN: u64 = 256 << 10;

/// What is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    pub size_bytes: u64,
    /// None before it was hashed: its bytes cannot be checked then.
    pub blake3: Option<Blake3>,
}

/// A host that is being asked.
struct Attempt<'a> {
    route: &'a Route,
    progress: Arc<Progress>,
    answer: Pin<Box<dyn Future<Output = Result<Bytes, Fault>> + Send + 'a>>,
}

impl Attempt<'_> {
    fn is_silent(&self, most: Duration, now: Instant) -> bool {
        now.saturating_duration_since(self.progress.heard_at()) >= most
    }

    fn took(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.progress.began())
    }

    fn is_slow(&self, now: Instant) -> bool {
        self.took(now) >= SLOW_AFTER
    }
}

/// The first that has an answer, by its place.
async fn first_of(asked: &mut [Attempt<'_>]) -> (usize, Result<Bytes, Fault>) {
    poll_fn(|context| {
        for (place, attempt) in asked.iter_mut().enumerate() {
            if let Poll::Ready(answer) = attempt.answer.as_mut().poll(context) {
                return Poll::Ready((place, answer));
            }
        }
        Poll::Pending
    })
    .await
}

impl Hosts {
    /// A whole range, of at most 1 MiB in whole groups, from the first host that delivers it.
    /// `plan` is asked anew for each round, for hosts come back; rounds go on until the deadline,
    /// unless asking again would not help.
    ///
    /// # Errors
    /// When every replica says that its bytes are others, or sends others; when none delivered in
    /// time.
    pub(crate) async fn fetch_any(
        &self,
        plan: impl Fn() -> (Vec<Route>, Content),
        range: ByteRange,
        deadline: Instant,
    ) -> Result<Bytes, FsError> {
        loop {
            let (round, content) = plan();
            match self.race(&round, content, range, deadline).await {
                Ok(bytes) => return Ok(bytes),
                Err(verdicts) => {
                    if let Some(error) = final_verdict(verdicts) {
                        return Err(error);
                    }
                }
            }
            if Instant::now() + ROUND_PAUSE >= deadline {
                return Err(FsError::Unreachable("no host delivered in time".to_owned()));
            }
            tokio::time::sleep(ROUND_PAUSE).await;
        }
    }

    /// A whole range, of at most 1 MiB, from the first of these hosts that delivers it; each is
    /// asked once.
    ///
    /// # Errors
    /// The last host's refusal.
    pub async fn read(
        &self,
        routes: &[Route],
        content: Content,
        range: ByteRange,
    ) -> Result<Bytes, Refusal> {
        let deadline = Instant::now() + crate::READ_TIMEOUT;
        self.race(routes, content, range, deadline).await.map_err(|mut verdicts| {
            let nobody = || Refusal::new(Reason::Unavailable, "no host is known to hold the image");
            verdicts.pop().unwrap_or_else(nobody)
        })
    }

    /// One round: the next host is asked when those before it have failed, are silent or slow.
    async fn race(
        &self,
        round: &[Route],
        content: Content,
        range: ByteRange,
        deadline: Instant,
    ) -> Result<Bytes, Vec<Refusal>> {
        let mut waiting = round.iter();
        let (mut asked, mut verdicts) = (Vec::new(), Vec::new());
        loop {
            if asked.is_empty() {
                let Some(route) = waiting.next() else { return Err(verdicts) };
                asked.push(self.begin(route, content, range));
            }
            let answered = tokio::time::timeout(LOOK_EVERY, first_of(&mut asked)).await;
            let now = Instant::now();
            match answered {
                Ok((place, answer)) => {
                    let done = asked.swap_remove(place);
                    match answer {
                        Ok(bytes) => {
                            self.note_winner(&done, &asked, now);
                            return Ok(bytes);
                        }
                        Err(fault) => verdicts.push(self.note_fault(done.route, range, fault)),
                    }
                }
                Err(_) if now >= deadline => {
                    // They had their time: the next reader begins with others.
                    self.note_losers(&asked, now);
                    verdicts.extend(asked.iter().map(|it| late(it.route)));
                    return Err(verdicts);
                }
                Err(_) => {
                    for it in asked.extract_if(.., |it| it.is_silent(SILENCE_MAX, now)) {
                        verdicts.push(self.note_fault(it.route, range, silent(it.route)));
                    }
                    if let Some(next) = waiting.as_slice().first()
                        && self.need_company(&asked, next, now)
                    {
                        debug!(
                            address = next.address,
                            "asked beside a host that is silent or slow"
                        );
                        self.tally.hedged();
                        asked.extend(waiting.next().map(|it| self.begin(it, content, range)));
                    }
                }
            }
        }
    }

    fn begin<'a>(&'a self, route: &'a Route, content: Content, range: ByteRange) -> Attempt<'a> {
        let progress = Arc::new(Progress::begin(Instant::now()));
        let answer = Box::pin(self.attempt(route, content, range, Arc::clone(&progress)));
        Attempt { route, progress, answer }
    }

    /// Exactly the bytes of the range from one host, checked where that is possible.
    async fn attempt(
        &self,
        route: &Route,
        content: Content,
        range: ByteRange,
        progress: Arc<Progress>,
    ) -> Result<Bytes, Fault> {
        let (wide, wanted) = wanted(route, content, range);
        let (channels, size_bytes) = (self.channels(), content.size_bytes);
        let delivered = channels.read(&route.address, &wanted, size_bytes, &progress).await?;
        checked(&route.address, content, range, wide, &delivered).map_err(Fault::Said)
    }

    /// A small range from the best host, at once or not at all; it waits for a moment at most. None
    /// as well where that host is not known to be well: then it is not the time for short cuts.
    pub(crate) fn fetch_quickly(
        &self,
        routes: &[Route],
        content: Content,
        range: ByteRange,
    ) -> Option<Bytes> {
        let route = routes.first()?;
        let is_small = range.len() <= quick::RANGE_BYTES_MAX;
        if !is_small || self.with_health(|health| health.bad_since(&route.address).is_some()) {
            return None;
        }
        let (wide, wanted) = wanted(route, content, range);
        let quick = &self.channels().quick;
        let delivered = quick.read(&route.address, &wanted, content.size_bytes)?;
        self.with_health(|health| health.went_on(&route.address, Instant::now()));
        // What is wrong with the bytes is found once more, and dealt with, the long way.
        checked(&route.address, content, range, wide, &delivered).ok()
    }

    fn need_company(&self, asked: &[Attempt<'_>], next: &Route, now: Instant) -> bool {
        let is_slow = |it: &Attempt<'_>| {
            let slower_still = || {
                self.with_health(|health| health.is_slower(&next.address, &it.route.address, now))
            };
            let for_long = it.took(now) >= SLOW_ENOUGH;
            it.is_slow(now) && (for_long || !slower_still())
        };
        asked.iter().all(|it| it.is_silent(HEDGE_AFTER, now) || is_slow(it))
    }

    fn note_winner(&self, winner: &Attempt<'_>, others: &[Attempt<'_>], now: Instant) {
        self.with_health(|health| {
            health.succeeded(&winner.route.address, now);
            if winner.progress.bytes() >= MEASURED_BYTES_MIN {
                health.measured(
                    &winner.route.address,
                    winner.progress.bytes(),
                    winner.took(now),
                    now,
                );
            }
        });
        self.note_losers(others, now);
    }

    /// These were slower, or said nothing at all; of one that has just been asked nobody knows.
    fn note_losers(&self, losers: &[Attempt<'_>], now: Instant) {
        for it in losers {
            if it.is_silent(HEDGE_AFTER, now) {
                self.distrust(&it.route.address, "it is silent");
            } else if it.is_slow(now) {
                self.with_health(|health| {
                    health.measured(&it.route.address, it.progress.bytes(), it.took(now), now);
                });
            }
        }
    }

    fn note_fault(&self, route: &Route, range: ByteRange, fault: Fault) -> Refusal {
        match fault {
            Fault::Host(refusal) => {
                self.distrust(&route.address, &refusal.text);
                refusal
            }
            Fault::Said(refusal) if refusal.reason == Reason::WrongBytes => {
                self.tally.wrong_copy();
                if self.with_health(|health| health.lied(route, Instant::now())) {
                    warn!(image = %route.image, volume = %route.volume, reason = %refusal, "a copy sent wrong bytes; it is passed over and reported");
                    self.report(route, range);
                }
                refusal
            }
            Fault::Said(refusal) => {
                debug!(image = %route.image, reason = %refusal, "replica passed over");
                refusal
            }
        }
    }
}

/// What is asked for to have a range: whole groups where they are to be proved.
fn wanted(route: &Route, content: Content, range: ByteRange) -> (ByteRange, Wanted) {
    let Content { size_bytes, blake3: proved_by } = content;
    let wide = match proved_by {
        Some(_) => proof::widened(range, size_bytes),
        None => range,
    };
    (wide, Wanted { image: route.image, volume: route.volume, range: wide, proved_by })
}

/// The bytes of the range, if what was delivered is what the content has there.
fn checked(
    address: &str,
    content: Content,
    range: ByteRange,
    wide: ByteRange,
    delivered: &Delivered,
) -> Result<Bytes, Refusal> {
    let Delivered { proof, bytes } = delivered;
    if let Some(root) = content.blake3 {
        let verified = proof::verify(&root, content.size_bytes, wide, proof, bytes);
        let text = |wrong| format!("{address}: {wrong}");
        verified.map_err(|wrong| Refusal::new(Reason::WrongBytes, text(wrong)))?;
    }
    let index = |at: u64| usize::try_from(at - wide.start()).unwrap_or(usize::MAX);
    Ok(bytes.slice(index(range.start())..index(range.end())))
}

fn late(route: &Route) -> Refusal {
    Refusal::new(Reason::TimedOut, format!("{} did not deliver in time", route.address))
}

fn silent(route: &Route) -> Fault {
    let text = format!("{} did not answer for {} s", route.address, SILENCE_MAX.as_secs());
    Fault::Host(Refusal::new(Reason::TimedOut, text))
}

/// What a round means when asking again would not help: bytes that every replica has lost or changed
/// do not come back by waiting.
fn final_verdict(verdicts: Vec<Refusal>) -> Option<FsError> {
    let passes =
        |it: &Refusal| matches!(it.reason, Reason::Unavailable | Reason::TimedOut | Reason::Busy);
    if verdicts.is_empty() || verdicts.iter().any(passes) {
        return None;
    }
    let says = |reason| verdicts.iter().any(|it| it.reason == reason);
    let texts = || verdicts.iter().map(|it| it.text.as_str()).collect::<Vec<_>>().join("; ");
    Some(match () {
        () if says(Reason::WrongBytes) => FsError::WrongBytes(texts()),
        () if says(Reason::Replaced) => FsError::Replaced,
        () => FsError::Unreachable(texts()),
    })
}

#[cfg(test)]
mod tests;
