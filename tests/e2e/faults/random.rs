//! kill -9 at any moment, while several writers store, replace, move and delete.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::cluster::{Cluster, Shell, Victim};
use super::ledger::{Ledger, Step, Told};
use crate::harness::World;

const WRITERS: u64 = 3;
/// Each writer's names; few, so that they are replaced often.
const NAMES: u64 = 5;

/// Kills of one run; more of them by hand, with the variable set.
fn rounds() -> u32 {
    std::env::var("ISOTOPE_TEST_KILLS").ok().and_then(|it| it.parse().ok()).unwrap_or(5)
}

/// Ends the writers even when the test fails: they would be waited for.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// xorshift64: any full-period generator will do.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// What a writer does: any step with names of its own.
fn any_step(writer: u64, count: u64, dice: &mut Dice) -> Step {
    let mut name = || format!("{writer}-{}.iso", dice.below(NAMES));
    let (one, other) = (name(), name());
    match dice.below(6) {
        0 => Step::Delete { name: one },
        1 if one != other => Step::Move { from: one, to: other },
        _ => Step::Store { name: one, seed: format!("{writer}-{count}") },
    }
}

/// What a writer does in a storm of renames.
fn any_rename(writer: u64, count: u64, dice: &mut Dice) -> Step {
    let mut name = || format!("{writer}-{}.iso", dice.below(NAMES));
    let (one, other) = (name(), name());
    if count < NAMES {
        return Step::Store {
            name: format!("{writer}-{count}.iso"),
            seed: format!("{writer}-{count}"),
        };
    }
    if one == other {
        return Step::Store { name: one, seed: format!("{writer}-{count}") };
    }
    Step::Move { from: one, to: other }
}

fn survives(victim: Victim, any: impl Fn(u64, u64, &mut Dice) -> Step + Sync) {
    let world = World::new();
    let mut cluster = Cluster::start(&world);
    let shell = cluster.shell(victim);
    let ledger = Mutex::new(Ledger::default());
    for round in 0..rounds() {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for writer in 0..WRITERS {
                let (any, ledger, stop, shell) = (&any, &ledger, &stop, Shell::new(&world, &shell));
                scope.spawn(move || {
                    let mut dice = Dice(0x9e37_79b9 + writer + u64::from(round) * 131);
                    for count in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        let step = any(writer, u64::from(round) * 1000 + count, &mut dice);
                        let told = shell.make(&step);
                        // Writers' names are their own, so their steps do not depend on an order.
                        ledger.lock().expect("the ledger").note(&step, told);
                        if told != Told::Done {
                            thread::sleep(Duration::from_millis(20));
                        }
                    }
                });
            }
            let _stop_writers = OnDrop(&stop);
            // At another point of what is under way each time.
            thread::sleep(Duration::from_millis(300 + 137 * u64::from(round % 7)));
            cluster.restart(victim, None);
            thread::sleep(Duration::from_millis(300));
        });
        ledger.lock().expect("the ledger").found(cluster.contents());
    }
    cluster.check_pool();
    let ledger = ledger.into_inner().expect("the ledger");
    let enough = usize::try_from(rounds()).expect("few");
    assert!(ledger.done >= enough, "there was something to check: {ledger:?}");
}

#[test]
fn storing_survives_kills_of_the_catalogue() {
    survives(Victim::Catalog, any_step);
}

#[test]
fn storing_survives_kills_of_the_agent() {
    survives(Victim::Agent, any_step);
}

#[test]
fn storing_survives_kills_of_the_mount() {
    survives(Victim::Mount, any_step);
}

#[test]
fn a_storm_of_renames_survives_kills_of_the_catalogue() {
    survives(Victim::Catalog, any_rename);
}
