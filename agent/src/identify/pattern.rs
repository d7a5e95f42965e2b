//! Patterns of others, thousands of them, of which each image matches a few. A pattern is compiled
//! once a text has the letters that it cannot do without; most never are.

use std::sync::OnceLock;

use regex::bytes::{Regex, RegexBuilder};

/// Memory of one compiled pattern. The largest of osinfo-db takes a tenth.
const COMPILED_BYTES_MAX: usize = 1 << 20;

/// An unanchored, case-sensitive search.
#[derive(Debug)]
pub(super) struct Pattern {
    text: String,
    /// Letters that every match contains.
    literal: String,
    /// None inside: it does not compile, and so matches nothing.
    compiled: OnceLock<Option<Regex>>,
}

impl Pattern {
    pub(super) fn new(text: &str) -> Self {
        Self { text: text.to_owned(), literal: literal(text), compiled: OnceLock::new() }
    }

    /// A longer pattern says more.
    pub(super) fn len(&self) -> usize {
        self.text.len()
    }

    pub(super) fn is_match(&self, text: &str) -> bool {
        self.regex(text).is_some_and(|regex| regex.is_match(text.as_bytes()))
    }

    /// The text of a named group, if the pattern matches.
    pub(super) fn capture<'t>(&self, text: &'t str, group: &str) -> Option<&'t str> {
        let found = self.regex(text)?.captures(text.as_bytes())?.name(group)?;
        text.get(found.range())
    }

    fn regex(&self, text: &str) -> Option<&Regex> {
        if !text.contains(&self.literal) {
            return None;
        }
        let compile = || {
            // Bytes and not letters: the tables of Unicode are of no use for volume labels.
            let mut builder = RegexBuilder::new(&self.text);
            builder
                .unicode(false)
                .size_limit(COMPILED_BYTES_MAX)
                .dfa_size_limit(COMPILED_BYTES_MAX);
            builder.build().ok()
        };
        self.compiled.get_or_init(compile).as_ref()
    }
}

/// The longest run of letters that stands in a pattern outside of every group, class and choice;
/// empty where there is none. It may be shorter than it could be, but never wrong.
fn literal(pattern: &str) -> String {
    let (mut best, mut run) = (String::new(), String::new());
    let mut depth = 0_usize;
    let mut letters = pattern.chars().peekable();
    let mut end = |run: &mut String| {
        if run.len() > best.len() {
            best.clone_from(run);
        }
        run.clear();
    };
    while let Some(letter) = letters.next() {
        match letter {
            '|' if depth == 0 => return String::new(),
            '[' => {
                end(&mut run);
                // A bracket right behind the opening one, or behind `[^`, is one of the class.
                letters.next_if_eq(&'^');
                letters.next_if_eq(&']');
                while let Some(inside) = letters.next() {
                    match inside {
                        '\\' => drop(letters.next()),
                        // A class within a class: seldom, and not worth more.
                        '[' => return String::new(),
                        ']' => break,
                        _ => {}
                    }
                }
            }
            '(' => {
                end(&mut run);
                depth += 1;
                // Flags may change the meaning of all that follows; a name does not.
                if letters.next_if_eq(&'?').is_some() && !matches!(letters.peek(), Some(':' | '<'))
                {
                    return String::new();
                }
            }
            ')' => depth = depth.saturating_sub(1),
            _ if depth > 0 => {
                if letter == '\\' {
                    letters.next();
                }
            }
            // What may be missing, or be there several times, ends the run before it.
            '?' | '*' | '{' | '+' => {
                if letter != '+' {
                    run.pop();
                }
                end(&mut run);
                if letter == '{' {
                    letters.by_ref().find(|&it| it == '}');
                }
            }
            '\\' => match letters.next() {
                Some(escaped) if escaped.is_ascii_punctuation() => run.push(escaped),
                // `\d` and its kind; those with arguments are not followed.
                Some('d' | 'w' | 's' | 'b') => end(&mut run),
                _ => return String::new(),
            },
            '.' | '^' | '$' => end(&mut run),
            _ => run.push(letter),
        }
    }
    end(&mut run);
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_that_a_match_needs() {
        let check = |pattern: &str, expected: &str| assert_eq!(literal(pattern), expected);
        check("Debian 11.5.0 amd64 n", "Debian 11");
        check(r"Debian 11\.5\.0", "Debian 11.5.0");
        check("^(J_)?(CCSN?A|C?CCOMA)_X64FREE?_", "_X64FRE");
        check("a|b", "");
        check("(?i)abc", "");
        check("(a|b)cd", "cd");
        check("(?<v>[0-9]+)cd(?:e)", "cd");
        check("ab*c", "a");
        check("ab{2,3}cde", "cde");
        check("ab+c", "ab");
        check("[]x]yz[^]a]b", "yz");
        check(r"[\]]yz", "yz");
        check("[[:alpha:]]yz", "");
        check(r"\d+ab(\)c)d", "ab");
        check(r"\x41BC", "");
        check("", "");
    }

    #[test]
    fn a_pattern_is_searched_for() {
        let check = |pattern: &str, text: &str, expected| {
            assert_eq!(Pattern::new(pattern).is_match(text), expected, "{pattern} in {text}");
        };
        check("Debian 11", "xDebian 11.5.0 amd64 nEXTRA", true);
        check("Debian 11", "debian 11", false);
        check("^(a|b)c$", "bc", true);
        check("a(?!b)", "ac", false);
        check("(", "(", false);
        check("", "anything", true);
        check("(((a{99}){99}){99}){99}", "a", false);
        assert_eq!(Pattern::new("v(?<v>[0-9]+)").capture("v12", "v"), Some("12"));
    }
}
