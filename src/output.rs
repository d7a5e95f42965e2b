//! What is printed: tables for people, JSON for programs, progress on a terminal. Whatever comes
//! from outside has its control characters escaped.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::time::{Duration, SystemTime};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use isotope_proto::time::Timestamp;
use serde::Serialize;

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Json,
}

impl Format {
    pub(crate) fn of(json: bool) -> Self {
        if json { Self::Json } else { Self::Text }
    }
}

/// One line on stdout. A reader that has gone (`| head`) ends the program quietly.
pub(crate) fn line(text: &str) {
    if let Err(error) = writeln!(std::io::stdout(), "{text}")
        && error.kind() == std::io::ErrorKind::BrokenPipe
    {
        std::process::exit(0);
    }
}

pub(crate) fn json(value: &impl Serialize) {
    line(&serde_json::to_string(value).expect("what we print is JSON"));
}

/// A remark for people, on stderr.
pub(crate) fn note(text: &str) {
    eprintln!("{}", plain(text));
}

pub(crate) fn error(text: &str) {
    eprintln!("isotope: {}", plain(text));
}

/// Without control characters: a file's name must not command a terminal.
pub(crate) fn plain(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        if (c.is_control() && c != '\n') || is_bidi_control(c) {
            let _ = write!(out, "{}", c.escape_default());
        } else {
            out.push(c);
        }
        out
    })
}

/// Marks that reorder what is shown around them: a name could pose as another.
fn is_bidi_control(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Rows under headings, columns as wide as they need; the last one is not padded.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| plain(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).chain([headings[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let render = |cells: &[&str]| {
        let padded: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        line(padded.join("  ").trim_end());
    };
    render(headings);
    for row in &rows {
        render(&row.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

pub(crate) fn bytes(count: u64) -> String {
    HumanBytes(count).to_string()
}

/// How many images, in words.
/// How long a rest will take at a rate, to be put behind its size; nothing if that is not known.
pub(crate) fn time_left(size_bytes: u64, bytes_per_second: u64) -> String {
    if size_bytes == 0 || bytes_per_second == 0 {
        return String::new();
    }
    let left = Duration::from_secs(size_bytes.div_ceil(bytes_per_second));
    format!(", about {} left", humantime::format_duration(left))
}

pub(crate) fn images(count: u64) -> String {
    let noun = if count == 1 { "image" } else { "images" };
    format!("{count} {noun}")
}

/// RFC 3339 in UTC, to the second.
pub(crate) fn time(at: Timestamp) -> String {
    humantime::format_rfc3339_seconds(SystemTime::from(at)).to_string()
}

/// A bar over a number of bytes; nothing when stderr is no terminal.
pub(crate) fn byte_bar(total: u64) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left")
            .expect("a template of ours");
    if std::io::stderr().is_terminal() {
        ProgressBar::new(total).with_style(style)
    } else {
        ProgressBar::hidden()
    }
}

/// A changing line for work whose end is not known; nothing when stderr is no terminal.
pub(crate) fn spinner() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let spinner = ProgressBar::new_spinner();
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_image_is_no_images() {
        assert_eq!([0, 1, 2].map(images), ["0 images", "1 image", "2 images"]);
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(plain("a\u{1b}[31mb\tc"), "a\\u{1b}[31mb\\tc");
        assert_eq!(plain("two\nlines"), "two\nlines");
        assert_eq!(plain("a\u{202e}osi.b"), "a\\u{202e}osi.b");
    }
}
