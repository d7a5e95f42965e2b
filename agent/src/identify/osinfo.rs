//! The osinfo-db of the machine: which systems' media have which identifiers. Matches as libosinfo
//! does; reads no file itself. Its data are GPL-2.0-or-later and never part of Isotope: they are
//! read where the distribution has put them.

use std::collections::HashMap;

use isotope_proto::facts::{Candidate, Facts, Source};
use isotope_proto::image::{Os, OsFamily};

use super::fallback::identify_by_name;
use super::pattern::Pattern;
use super::xml::{self, Element, is_at};

/// Media of all systems; the database of 2022 has 2,103.
const MEDIA_MAX: usize = 50_000;
/// The longest pattern that is tried; the database's longest has 120.
const PATTERN_BYTES_MAX: usize = 512;

/// Bytes kept of a system's name, version and so on; the longest of 2022 has 60.
const TEXT_BYTES_MAX: usize = 100;

/// The fields that patterns are for, in the order of [`Medium::patterns`].
const FIELDS: [&str; 4] = ["volume-id", "system-id", "publisher-id", "application-id"];

#[derive(Debug, Default)]
pub(super) struct Osinfo {
    systems: Vec<System>,
    by_id: HashMap<String, usize>,
    media: Vec<Medium>,
    patterns: Vec<Pattern>,
    by_text: HashMap<String, usize>,
}

#[derive(Debug, Default)]
struct System {
    name: String,
    version: String,
    family: String,
    distro: String,
    /// `YYYY-MM-DD`, which sorts as it should.
    released: String,
}

/// What one medium of a system is known by.
#[derive(Debug, Default)]
struct Medium {
    system: usize,
    arch: String,
    /// Of each field, the index of its pattern.
    patterns: [Option<usize>; 4],
    /// 0 for any.
    volume_size_bytes: u64,
}

/// How sure a match is, the surest last: the size fits too, the number of fields, the length of
/// their patterns, the date of release.
type Rank<'a> = (bool, usize, usize, &'a str);

impl Osinfo {
    /// Takes in a file of the database; files that say more of a known system add to it.
    pub(super) fn read(&mut self, text: &str) {
        let (mut system, mut media) = (System::default(), Vec::new());
        let mut fields: [Option<usize>; 4] = [None; 4];
        let mut size = 0;
        xml::walk(text, |path| {
            let Some((last, above)) = path.split_last() else { return };
            if is_at(above, &["libosinfo", "os", "media", "iso"]) {
                if let Some(field) = FIELDS.iter().position(|field| *field == last.name) {
                    fields[field] = self.pattern(last.text());
                } else if last.name == "volume-size" {
                    size = last.text().parse().unwrap_or(0);
                }
            } else if is_at(above, &["libosinfo", "os", "media"]) && last.name == "iso" {
                let arch = above[2].attribute("arch").unwrap_or_default();
                let arch = arch[..arch.floor_char_boundary(TEXT_BYTES_MAX)].to_owned();
                let (patterns, volume_size_bytes) = (std::mem::take(&mut fields), size);
                size = 0;
                // What nothing is asked of would match everything.
                if patterns.iter().any(Option::is_some) {
                    media.push(Medium { system: 0, arch, patterns, volume_size_bytes });
                }
            } else if is_at(above, &["libosinfo", "os"]) {
                system.take(last);
            } else if is_at(path, &["libosinfo", "os"]) {
                let id = last.attribute("id").unwrap_or_default();
                self.add(id, std::mem::take(&mut system), std::mem::take(&mut media));
            }
        });
    }

    fn pattern(&mut self, text: &str) -> Option<usize> {
        if text.is_empty() || text.len() > PATTERN_BYTES_MAX {
            return None;
        }
        if let Some(&known) = self.by_text.get(text) {
            return Some(known);
        }
        self.patterns.push(Pattern::new(text));
        self.by_text.insert(text.to_owned(), self.patterns.len() - 1);
        Some(self.patterns.len() - 1)
    }

    fn add(&mut self, id: &str, system: System, media: Vec<Medium>) {
        let next = self.systems.len();
        let at = *self.by_id.entry(id.to_owned()).or_insert(next);
        match self.systems.get_mut(at) {
            Some(known) => known.update(system),
            None => self.systems.push(system),
        }
        let room = MEDIA_MAX.saturating_sub(self.media.len());
        self.media.extend(media.into_iter().take(room).map(|it| Medium { system: at, ..it }));
    }

    /// The systems that facts fit, the surest first.
    pub(super) fn candidates(&self, facts: &Facts) -> Vec<Candidate> {
        let fields =
            [&*facts.volume_label, &facts.system_id, &facts.publisher_id, &facts.application_id];
        if fields.iter().all(|field| field.is_empty()) {
            return Vec::new();
        }
        // Of the media of one system that fit, the surest.
        let mut best: HashMap<usize, (Rank<'_>, &Medium)> = HashMap::new();
        for medium in &self.media {
            let Some(rank) = self.rank(medium, &fields, facts.volume_size_bytes) else { continue };
            let known = best.entry(medium.system).or_insert((rank, medium));
            if rank > known.0 {
                *known = (rank, medium);
            }
        }
        let mut best: Vec<_> = best.into_values().collect();
        best.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.system.cmp(&b.1.system)));
        let candidate = |(_, medium): (Rank<'_>, &Medium)| {
            self.systems.get(medium.system).map(|system| system.candidate(&medium.arch))
        };
        best.into_iter().filter_map(candidate).collect()
    }

    /// Every pattern there is must match, and a field that is not there matches none.
    fn rank(&self, medium: &Medium, fields: &[&str; 4], size_bytes: u64) -> Option<Rank<'_>> {
        if medium.volume_size_bytes != 0 && medium.volume_size_bytes != size_bytes {
            return None;
        }
        let (mut count, mut length) = (0, 0);
        for (pattern, field) in medium.patterns.iter().zip(fields) {
            let Some(pattern) = pattern.and_then(|at| self.patterns.get(at)) else { continue };
            if field.is_empty() || !pattern.is_match(field) {
                return None;
            }
            count += 1;
            length += pattern.len();
        }
        let released = self.systems.get(medium.system).map_or("", |it| &it.released);
        Some((medium.volume_size_bytes != 0, count, length, released))
    }
}

impl System {
    fn take(&mut self, element: &Element) {
        // Names in other languages have the attribute.
        let is_translated = element.attribute("lang").is_some();
        let field = match &*element.name {
            "name" if !is_translated => &mut self.name,
            "version" => &mut self.version,
            "family" => &mut self.family,
            "distro" => &mut self.distro,
            "release-date" => &mut self.released,
            _ => return,
        };
        let text = element.text();
        text[..text.floor_char_boundary(TEXT_BYTES_MAX)].clone_into(field);
    }

    /// What a later file says counts.
    fn update(&mut self, later: Self) {
        let fields = [
            (&mut self.name, later.name),
            (&mut self.version, later.version),
            (&mut self.family, later.family),
            (&mut self.distro, later.distro),
            (&mut self.released, later.released),
        ];
        for (known, later) in fields {
            if !later.is_empty() {
                *known = later;
            }
        }
    }

    fn candidate(&self, arch: &str) -> Candidate {
        let arch = if arch == "all" { String::new() } else { arch.to_owned() };
        let os = Os { arch, ..self.os() };
        Candidate { name: self.name.clone(), os, source: Source::Osinfo }
    }

    /// In the words of this project, so that one system has one name wherever it was recognised.
    fn os(&self) -> Os {
        let family = match (&*self.family, &*self.distro) {
            (_, "freedos") => OsFamily::Other,
            ("linux", _) | (_, "elementaryos") => OsFamily::Linux,
            ("winnt" | "win9x" | "win16", _) => OsFamily::Windows,
            _ => OsFamily::Other,
        };
        if family == OsFamily::Windows {
            // Its versions are the kernel's: 10.0 is Windows 10 and five servers.
            let named = identify_by_name(&self.name);
            return Os { family, distribution: named.distribution, ..named };
        }
        let distribution = match &*self.distro {
            "archlinux" => "arch",
            "alpinelinux" => "alpine",
            "ol" => "oracle-linux",
            "sle" | "slem" => "sles",
            "alt" => "altlinux",
            "popos" => "pop-os",
            "Manjaro" => "manjaro",
            distro => distro,
        };
        // `9-unknown` is a release after all that the database knows.
        let version = self.version.trim_end_matches("unknown").trim_end_matches('-');
        Os {
            family,
            distribution: distribution.to_owned(),
            version: version.to_owned(),
            arch: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A database in the form of osinfo-db, made up.
    const DATABASE: &str = r#"<libosinfo version="0.0.1">
      <os id="http://a/1"><name>Able 1</name><name xml:lang="de">Fähig 1</name>
        <version>1</version><family>linux</family><distro>able</distro>
        <release-date>2020-01-01</release-date>
        <media arch="x86_64"><variant id="v"/><iso><volume-id>^ABLE_1</volume-id></iso></media>
        <media arch="i686"><iso><volume-id>^ABLE_1</volume-id>
          <volume-size>2048</volume-size></iso></media>
      </os>
      <os id="http://a/2"><name>Able 2</name><version>2</version><family>linux</family>
        <distro>able</distro><release-date>2022-01-01</release-date>
        <media arch="all"><iso><volume-id>ABLE_[12]</volume-id>
          <publisher-id>ABLE &amp; CO</publisher-id></iso></media>
        <media arch="all"><iso><volume-size>7</volume-size></iso></media>
      </os>
      <os id="http://w/10"><name>Microsoft Windows 10</name><version>10.0</version>
        <family>winnt</family><distro>win</distro>
        <media arch="x86_64"><iso><volume-id>^(J_)?CC?COMA_X64</volume-id></iso></media></os>
      <os id="http://w/s"><name>Microsoft Windows Server 2022</name><version>10.0</version>
        <family>winnt</family><distro>win</distro>
        <media arch="x86_64"><iso><volume-id>^SSS_X64</volume-id></iso></media></os>
      <os id="http://o/9"><name>Oracle Linux 9</name><version>9-unknown</version>
        <family>linux</family><distro>ol</distro>
        <media arch="x86_64"><iso><volume-id>OL-9</volume-id><system-id>LINUX</system-id></iso>
        </media></os>
    </libosinfo>"#;

    fn facts(label: &str, system: &str, publisher: &str, size: u64) -> Facts {
        Facts {
            volume_label: label.to_owned(),
            system_id: system.to_owned(),
            publisher_id: publisher.to_owned(),
            volume_size_bytes: size,
            ..Facts::default()
        }
    }

    #[test]
    fn every_pattern_must_match_and_the_surest_comes_first() {
        let mut osinfo = Osinfo::default();
        osinfo.read(DATABASE);
        let check = |facts: &Facts, expected: &[(&str, &str, &str, &str)]| {
            let found = osinfo.candidates(facts);
            let found: Vec<_> = found
                .iter()
                .map(|it| (&*it.name, &*it.os.distribution, &*it.os.version, &*it.os.arch))
                .collect();
            assert_eq!(found, expected, "{facts:?}");
        };
        let able_1 = ("Able 1", "able", "1", "x86_64");
        check(&facts("ABLE_1 x", "", "", 0), &[able_1]);
        check(&facts("xABLE_1", "", "", 0), &[]);
        check(&facts("able_1", "", "", 0), &[]);
        // Two fields say more than one, and a size more than two fields.
        let able_2 = ("Able 2", "able", "2", "");
        check(&facts("ABLE_1", "", "ABLE & CO.", 0), &[able_2, able_1]);
        let sized = ("Able 1", "able", "1", "i686");
        check(&facts("ABLE_1", "", "ABLE & CO.", 2048), &[sized, able_2]);
        check(
            &facts("CCCOMA_X64FRE", "", "", 0),
            &[("Microsoft Windows 10", "windows", "10", "x86_64")],
        );
        check(
            &facts("SSS_X64FREE_EN-US_DV9", "", "", 0),
            &[("Microsoft Windows Server 2022", "windows-server", "2022", "x86_64")],
        );
        check(&facts("OL-9", "LINUX", "", 0), &[("Oracle Linux 9", "oracle-linux", "9", "x86_64")]);
        check(&facts("OL-9", "", "", 0), &[]);
        check(&facts("", "", "", 7), &[]);
    }

    #[test]
    fn a_later_file_adds_to_a_system() {
        let mut osinfo = Osinfo::default();
        osinfo.read(DATABASE);
        let more = r#"<libosinfo><os id="http://a/1"><name>Able One</name>
            <media arch="aarch64"><iso><volume-id>^ABLE_ONE</volume-id></iso></media>"#;
        osinfo.read(more);
        assert_eq!(osinfo.candidates(&facts("ABLE_ONE", "", "", 0)), [], "not ended");
        osinfo.read(&format!("{more}</os></libosinfo>"));
        let found = osinfo.candidates(&facts("ABLE_ONE", "", "", 0));
        let [one] = &found[..] else { panic!("{found:?}") };
        assert_eq!([&*one.name, &one.os.version, &one.os.arch], ["Able One", "1", "aarch64"]);
    }
}
