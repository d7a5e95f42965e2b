//! How fast images are read through a mount over TCP, beside what other programs do with the same
//! bytes on the same machine, and beside a plain TCP connection. It knows directories that have the
//! files `image-N.iso`, all with the bytes of one, and the processes to be charged for each; what is
//! mounted there, and how, is `scripts/bench/reads`' to know, which runs it.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod processes;
mod raw;
mod report;
mod way;
mod work;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use way::{Place, Way};

const USAGE: &str = "usage: reads SOURCE ROUNDS {NAME:cold|fresh:DIR:SERVED:PID,…}…";

fn main() -> io::Result<()> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    // What cargo says to every benchmark.
    arguments.retain(|it| it != "--bench");
    if let [mode, file] = &arguments[..]
        && mode == "serve"
    {
        return raw::serve(&File::open(file)?);
    }
    let [source, rounds, ways @ ..] = &arguments[..] else { panic!("{USAGE}") };
    let (source, rounds) = (PathBuf::from(source), rounds.parse().expect(USAGE));
    let server = raw::Server::start(&source)?;
    let raw = |name, sending| {
        let served = source.parent().map(Path::to_path_buf);
        Way::new(name, Place::Raw(server.address, sending), served, server.pid())
    };
    let mut all = vec![
        raw("raw TCP, sendfile", raw::Sending::File),
        raw("raw TCP, write", raw::Sending::Memory),
    ];
    all.extend(ways.iter().map(|it| Way::parse(it).expect(USAGE)));
    let file = File::open(&source)?;
    for way in &mut all {
        way.compare(&file)?;
    }
    for round in 1..=rounds {
        for way in &mut all {
            eprint!("round {round} of {rounds}: {:<32}\r", way.name);
            work::round(way, &file, round)?;
        }
    }
    report::print(&all, file.metadata()?.len());
    Ok(())
}
