//! From facts to the operating system: whom to believe, and in which order. Pure; what was read of
//! an image once can be judged again with other databases.

use isotope_proto::facts::{Candidate, Facts, Source};
use isotope_proto::image::{Os, OsFamily};

use super::databases::Databases;
use super::fallback::identify_by_name;
use super::markers;

/// Candidates kept. Labels that several systems share are shared by six at most.
const CANDIDATES_MAX: usize = 8;

/// The likeliest system, and the facts with all candidates, by these databases. A pure function of
/// its arguments: the image is not read again.
#[must_use]
pub fn rematch(mut facts: Facts, name: &str, databases: &Databases) -> (Os, Facts) {
    let mut candidates = databases.candidates(&facts);
    let hints = hints(&facts, name);
    // Media of several systems may have one label; what else is known then chooses among them.
    candidates.sort_by_key(|it| !hints.iter().any(|hint| agree(&it.os, &hint.os)));
    candidates.extend(hints);
    let mut kept: Vec<Candidate> = Vec::new();
    for candidate in candidates {
        if kept.len() < CANDIDATES_MAX && kept.iter().all(|it| it.os != candidate.os) {
            kept.push(candidate);
        }
    }
    let os = kept.first().map_or_else(Os::unknown, |first| refine(&first.os, &kept));
    facts.candidates = kept;
    facts.database = databases.version().to_owned();
    (os, facts)
}

/// What is known without databases, the surest first.
fn hints(facts: &Facts, name: &str) -> Vec<Candidate> {
    let mut hints: Vec<Candidate> = facts.markers.iter().filter_map(markers::candidate).collect();
    hints.extend(facts.appliance.as_ref().and_then(|it| by_description(&it.os)));
    let os = identify_by_name(name);
    if os == Os::unknown() {
        return hints;
    }
    let text = format!("{} {}", os.distribution, os.version).trim().to_owned();
    let by_name = Candidate { name: text, os, source: Source::FileName };
    // A file that is on all Windows tells it from Linux, and nothing more.
    let says_more = |first: &Candidate| {
        first.os.version.is_empty()
            && first.os.family == by_name.os.family
            && !by_name.os.version.is_empty()
    };
    let at = if hints.first().is_some_and(says_more) { 0 } else { hints.len() };
    hints.insert(at, by_name);
    hints
}

/// What an appliance calls its system: `Debian GNU/Linux 11 (64-bit)`, `Ubuntu_64`.
fn by_description(text: &str) -> Option<Candidate> {
    let text = text.to_ascii_lowercase().replace("64-bit", "64bit").replace("_64", " 64bit");
    let mut os = identify_by_name(&text);
    if os.family == OsFamily::Other && os.distribution.is_empty() && text.contains("linux") {
        os.family = OsFamily::Linux;
    }
    let known = os != Os::unknown();
    known.then_some(Candidate { name: text, os, source: Source::Appliance })
}

/// Whether both are the same system, of the same version as far as both tell it.
fn agree(a: &Os, b: &Os) -> bool {
    a.distribution == b.distribution
        && !b.version.is_empty()
        && (is_release_of(&a.version, &b.version) || is_release_of(&b.version, &a.version))
}

/// Whether a version is the other or one of its releases: `9.4` of `9`, but not `10` of `1`.
fn is_release_of(version: &str, of: &str) -> bool {
    version.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// What a candidate leaves open, from others of the same system.
fn refine(os: &Os, candidates: &[Candidate]) -> Os {
    let mut os = os.clone();
    for other in candidates.iter().map(|it| &it.os) {
        if other.distribution != os.distribution {
            continue;
        }
        let fits = os.version.is_empty() || is_release_of(&other.version, &os.version);
        if fits && !other.version.is_empty() {
            os.version.clone_from(&other.version);
        }
        if os.arch.is_empty() {
            os.arch.clone_from(&other.arch);
        }
    }
    os
}

#[cfg(test)]
mod tests {
    use isotope_proto::facts::{Appliance, Marker};

    use super::*;

    fn label(text: &str) -> Facts {
        Facts { volume_label: text.to_owned(), ..Facts::default() }
    }

    fn marker(path: &str, text: &str) -> Facts {
        let marker = Marker { path: path.to_owned(), text: text.to_owned() };
        Facts { markers: vec![marker], ..Facts::default() }
    }

    #[test]
    fn whom_to_believe() {
        let databases = Databases::none();
        let check = |facts: Facts, name: &str, expected: [&str; 3], source: Source| {
            let (os, facts) = rematch(facts, name, &databases);
            let found = [&*os.distribution, &os.version, &os.arch];
            assert_eq!(found, expected, "{name}: {:?}", facts.candidates);
            assert_eq!(facts.candidates[0].source, source, "{name}");
        };
        let server = "SSS_X64FREE_EN-US_DV9";
        check(label(server), "a.iso", ["windows-server", "2025", "x86_64"], Source::OwnTable);
        let windows_2019 = ["windows-server", "2019", "x86_64"];
        check(label(server), "server_2019.iso", windows_2019, Source::OwnTable);
        check(label(server), "win11.iso", ["windows-server", "2025", "x86_64"], Source::OwnTable);
        let pve = ["proxmox-ve", "8.2", ""];
        check(label("PVE"), "proxmox-ve_8.2-1.iso", pve, Source::OwnTable);
        check(
            label("x"),
            "debian-12.5.0-amd64.iso",
            ["debian", "12.5.0", "x86_64"],
            Source::FileName,
        );
        let info = marker(".disk/info", "Debian GNU/Linux 12.5.0 amd64");
        check(info, "ubuntu-24.04.iso", ["debian", "12.5.0", "x86_64"], Source::MarkerFile);
        let wim = marker("sources/install.wim", "");
        check(wim.clone(), "my.iso", ["windows", "", ""], Source::MarkerFile);
        check(wim.clone(), "win2022.iso", ["windows-server", "2022", ""], Source::FileName);
        check(wim, "debian-12.iso", ["windows", "", ""], Source::MarkerFile);
        let ova = |os: &str| Facts {
            appliance: Some(Appliance { os: os.to_owned(), ..Appliance::default() }),
            ..Facts::default()
        };
        let described = "Debian GNU/Linux 11 (64-bit)";
        check(ova(described), "web.ova", ["debian", "11", "x86_64"], Source::Appliance);
        check(ova("Ubuntu_64"), "web.ova", ["ubuntu", "", "x86_64"], Source::Appliance);
    }

    #[test]
    fn the_family_chooses_the_folder() {
        let check = |facts: Facts, expected: OsFamily| {
            assert_eq!(rematch(facts, "a.iso", &Databases::none()).0.family, expected);
        };
        check(label("ESXI-8.0U2-22380479-STANDARD"), OsFamily::Other);
        check(label("14_1_RELEASE_AMD64_CD"), OsFamily::Other);
        check(label("virtio-win-0.1.240"), OsFamily::Windows);
        check(label("PVE"), OsFamily::Linux);
        check(label("nothing known"), OsFamily::Other);
        let described = Appliance { os: "Other Linux".to_owned(), ..Appliance::default() };
        check(Facts { appliance: Some(described), ..Facts::default() }, OsFamily::Linux);
    }

    #[test]
    fn releases_of_a_version() {
        let check = |version, of, expected| assert_eq!(is_release_of(version, of), expected);
        check("9.4", "9", true);
        check("9", "9", true);
        check("10", "1", false);
        check("9", "9.4", false);
    }
}
