//! The table, in Markdown, and what the targets are about.

use crate::way::{Figures, Way};

const MIB: f64 = 1_048_576.0;
const GIB: f64 = MIB * 1024.0;

/// What a way is called that a target is about.
const VERIFIED: &str = "isotope, verified";
const UNVERIFIED: &str = "isotope, unverified";
const NATIVE: &str = "native";
/// Nothing goes over a network there.
const LOCAL: [&str; 2] = [NATIVE, "bindfs"];

/// The value that so much of all are below, by the nearest rank; none of nothing.
fn quantile(values: &[f64], part: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() as f64 * part).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

fn told(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |it| format!("{it:.digits$}"))
}

fn mib_per_s(times: &[f64], size_bytes: u64) -> Option<f64> {
    median(times).map(|it| size_bytes as f64 / it / MIB)
}

fn micros(seconds: Option<f64>) -> Option<f64> {
    seconds.map(|it| it * 1e6)
}

fn cpu(figures: &Figures) -> f64 {
    (figures.processes + figures.reader) / (figures.cold_bytes as f64 / GIB)
}

const HEADS: [&str; 12] = [
    "",
    "cold MiB/s",
    "of raw",
    "warm MiB/s",
    "CPU s/GiB",
    "of it the reader",
    "4k p50 / p99 µs",
    "of raw",
    "QD8 reads/s",
    "open + 4k µs",
    "2k seeking µs",
    "4 readers MiB/s (least/most)",
];

pub(crate) fn print(all: &[Way], size_bytes: u64) {
    let raw: Vec<&Figures> =
        all.iter().filter(|it| it.name.starts_with("raw")).map(|it| &it.figures).collect();
    let best = |value: fn(&Figures) -> Option<f64>| {
        raw.iter().filter_map(|it| value(it)).min_by(f64::total_cmp).expect("raw TCP was measured")
    };
    let (raw_cold, raw_random) = (best(|it| median(&it.cold)), best(|it| median(&it.random)));
    println!("| {} |", HEADS.join(" | "));
    println!("|{}", "---|".repeat(HEADS.len()));
    for way in all {
        let it = &way.figures;
        let random = median(&it.random);
        let cells = [
            way.name.clone(),
            told(mib_per_s(&it.cold, size_bytes), 0),
            told(median(&it.cold).map(|it| raw_cold / it), 2),
            told(mib_per_s(&it.warm, size_bytes), 0),
            told(Some(cpu(it)), 2),
            told(Some(it.reader / (it.cold_bytes as f64 / GIB)), 2),
            format!(
                "{} / {}",
                told(micros(random), 0),
                told(micros(quantile(&it.random, 0.99)), 0)
            ),
            told(random.map(|it| it / raw_random), 2),
            told(median(&it.deep), 0),
            told(micros(median(&it.first)), 0),
            told(micros(median(&it.seeking)), 1),
            format!(
                "{} ({})",
                told(median(&it.shared).map(|it| it / MIB), 0),
                told(median(&it.fair), 2)
            ),
        ];
        println!("| {} |", cells.join(" | "));
    }
    let named = |name: &str| all.iter().find(|it| it.name == name).map(|it| &it.figures);
    if let (Some(verified), Some(unverified)) = (named(VERIFIED), named(UNVERIFIED)) {
        let peers: Vec<&Way> = all
            .iter()
            .filter(|it| !it.name.starts_with("raw") && !it.name.starts_with("isotope"))
            .filter(|it| !LOCAL.contains(&it.name.as_str()))
            .collect();
        targets(verified, unverified, named(NATIVE), &peers, [raw_cold, raw_random]);
    }
}

fn targets(
    verified: &Figures,
    unverified: &Figures,
    native: Option<&Figures>,
    peers: &[&Way],
    [raw_cold, raw_random]: [f64; 2],
) {
    println!("\n| target | asked for | found | |");
    println!("|---|---|---|---|");
    let at_least =
        |what: &str, target: f64, found: f64| verdict(what, "≥", target, found, found >= target);
    let at_most =
        |what: &str, target: f64, found: f64| verdict(what, "≤", target, found, found <= target);
    let of = |values: &[f64]| median(values).expect("it was measured");
    at_least("cold, verified: of raw TCP's speed", 0.5, raw_cold / of(&verified.cold));
    at_least("cold, unverified: of raw TCP's speed", 0.6, raw_cold / of(&unverified.cold));
    let best = |value: fn(&Figures) -> &[f64]| {
        let medians = peers.iter().filter_map(|it| median(value(&it.figures)));
        medians.min_by(f64::total_cmp)
    };
    if let Some(peer) = best(|it| &it.cold) {
        at_least("cold, verified: of the fastest peer's speed", 3.0, peer / of(&verified.cold));
    }
    if let Some(peer) = best(|it| &it.warm) {
        at_least("warm: of the fastest peer's speed", 0.9, peer / of(&verified.warm));
    }
    if let Some(native) = native {
        at_least("warm: of a file's in the page cache", 0.9, of(&native.warm) / of(&verified.warm));
    }
    at_most("4 KiB QD1, verified: of raw TCP's median", 2.0, of(&verified.random) / raw_random);
    if let Some(peer) = best(|it| &it.random) {
        at_most(
            "4 KiB QD1, verified: of the quickest peer's median",
            1.0,
            of(&verified.random) / peer,
        );
    }
    at_least("QD8: of QD1's reads per second", 1.5, of(&verified.deep) * of(&verified.random));
    at_most("open and first 4 KiB, verified: µs", 150.0, of(&verified.first) * 1e6);
    at_least("4 readers: least / most", 0.8, of(&verified.fair));
}

fn verdict(what: &str, sign: &str, target: f64, found: f64, met: bool) {
    let word = match met {
        true => "met".to_owned(),
        false => format!("missed by {:.0} %", (found / target - 1.0).abs() * 100.0),
    };
    println!("| {what} | {sign} {target} | {found:.2} | {word} |");
}
