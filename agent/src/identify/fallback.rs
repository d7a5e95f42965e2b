//! The operating system by the file's name: an own table of words, for images whose content says
//! nothing. Does not read the file, and takes a name for a hint: a wrong one costs a wrong label.

use isotope_proto::image::OsFamily::{Linux, Other, Windows};
use isotope_proto::image::{Os, OsFamily};
use isotope_proto::name::EntryName;

/// Consecutive words that name a distribution, its family, and what we call it. A digit may follow
/// the last word directly (`win11`). A longer pattern stands before one that it begins with.
const DISTRIBUTIONS: &[(&[&str], OsFamily, &str)] = &[
    (&["virtio", "win"], Windows, "virtio-win"),
    (&["windows", "server"], Windows, "windows-server"),
    (&["win", "server"], Windows, "windows-server"),
    (&["winserver"], Windows, "windows-server"),
    (&["server", "2016"], Windows, "windows-server"),
    (&["server", "2019"], Windows, "windows-server"),
    (&["server", "2022"], Windows, "windows-server"),
    (&["server", "2025"], Windows, "windows-server"),
    (&["server", "eval"], Windows, "windows-server"),
    (&["cliententerpriseeval"], Windows, "windows"),
    (&["windows"], Windows, "windows"),
    (&["win"], Windows, "windows"),
    (&["ubuntu"], Linux, "ubuntu"),
    (&["kubuntu"], Linux, "ubuntu"),
    (&["lubuntu"], Linux, "ubuntu"),
    (&["xubuntu"], Linux, "ubuntu"),
    (&["debian"], Linux, "debian"),
    (&["fedora"], Linux, "fedora"),
    (&["centos"], Linux, "centos"),
    (&["rhel"], Linux, "rhel"),
    (&["red", "hat"], Linux, "rhel"),
    (&["redhat"], Linux, "rhel"),
    (&["rocky"], Linux, "rocky"),
    (&["almalinux"], Linux, "almalinux"),
    (&["oraclelinux"], Linux, "oracle-linux"),
    (&["oracle", "linux"], Linux, "oracle-linux"),
    (&["opensuse"], Linux, "opensuse"),
    (&["sles"], Linux, "sles"),
    (&["sle"], Linux, "sles"),
    (&["archlinux"], Linux, "arch"),
    (&["arch"], Linux, "arch"),
    (&["manjaro"], Linux, "manjaro"),
    (&["alpine"], Linux, "alpine"),
    (&["gentoo"], Linux, "gentoo"),
    (&["nixos"], Linux, "nixos"),
    (&["linuxmint"], Linux, "linuxmint"),
    (&["mint"], Linux, "linuxmint"),
    (&["kali"], Linux, "kali"),
    (&["proxmox", "ve"], Linux, "proxmox-ve"),
    (&["proxmox", "backup", "server"], Linux, "proxmox-backup-server"),
    (&["proxmox", "mailgateway"], Linux, "proxmox-mail-gateway"),
    (&["proxmox", "mail", "gateway"], Linux, "proxmox-mail-gateway"),
    (&["proxmox"], Linux, "proxmox-ve"),
    (&["talos"], Linux, "talos"),
    (&["flatcar"], Linux, "flatcar"),
    (&["clonezilla"], Linux, "clonezilla"),
    (&["gparted"], Linux, "gparted"),
    (&["systemrescue"], Linux, "systemrescue"),
    (&["xcp", "ng"], Linux, "xcp-ng"),
    (&["vyos"], Linux, "vyos"),
    (&["freebsd"], Other, "freebsd"),
    (&["openbsd"], Other, "openbsd"),
    (&["netbsd"], Other, "netbsd"),
    (&["opnsense"], Other, "opnsense"),
    (&["pfsense"], Other, "pfsense"),
    (&["truenas"], Other, "truenas"),
    (&["vmware", "vmvisor"], Other, "esxi"),
    (&["vmware", "esxi"], Other, "esxi"),
    (&["esxi"], Other, "esxi"),
    (&["vmware"], Other, "vmware"),
    (&["memtest86plus"], Other, "memtest"),
    (&["memtest86"], Other, "memtest"),
    (&["memtest"], Other, "memtest"),
    (&["mt86plus"], Other, "memtest"),
    (&["freedos"], Other, "freedos"),
    (&["ipxe"], Other, "ipxe"),
    (&["grub"], Other, "grub"),
];

/// Consecutive words that name an architecture, and the name `uname -m` has for it.
const ARCHITECTURES: &[(&[&str], &str)] = &[
    (&["x86", "64"], "x86_64"),
    (&["amd64"], "x86_64"),
    (&["x64"], "x86_64"),
    (&["64bit"], "x86_64"), // as Linux Mint and Microsoft's volume licences write it
    (&["arm64"], "aarch64"),
    (&["aarch64"], "aarch64"),
    (&["a64"], "aarch64"), // in labels of Windows
    (&["x86"], "i686"),
    (&["i386"], "i686"),
    (&["i686"], "i686"),
    (&["32bit"], "i686"),
    (&["ppc64le"], "ppc64le"),
    (&["ppc64el"], "ppc64le"), // Debian's name for it
    (&["s390x"], "s390x"),
    (&["riscv64"], "riscv64"),
];

/// Words whose number counts media: `DVD-1`.
const MEDIA: &[&str] = &["cd", "dvd", "disc", "disk"];

/// What the name of a file lets one think is on it. The first distribution named wins, and its
/// version is the first number after it that looks like one.
pub(crate) fn identify_by_name(file_name: &str) -> Os {
    // No file has a longer name, and the time spent on any text stays bounded.
    let name = &file_name[..file_name.floor_char_boundary(EntryName::LEN_MAX)];
    let name = name.to_ascii_lowercase();
    let words = words(&name);
    let arch = tails(&words).find_map(architecture).map_or("", |(arch, _)| arch).to_owned();
    let Some(found) = tails(&words).find_map(distribution) else {
        return Os { arch, ..Os::unknown() };
    };
    let version = version_of_word(found.attached).or_else(|| version_among(found.following));
    let version = version.unwrap_or_default().to_owned();
    let distribution = match found.distribution {
        "windows" if names_a_server(&version) => "windows-server",
        distribution => distribution,
    };
    Os { family: found.family, distribution: distribution.to_owned(), version, arch }
}

/// The name that `uname -m` has for an architecture; that which is given, where it is none of ours.
pub(super) fn architecture_of(text: &str) -> String {
    let lower = text.to_ascii_lowercase().replace("-bit", "bit");
    let found = tails(&words(&lower)).find_map(architecture).map(|(arch, _)| arch);
    found.map_or(lower.clone(), ToOwned::to_owned)
}

/// The Windows whose version is a year are servers, but for Windows 2000.
fn names_a_server(version: &str) -> bool {
    version.parse().is_ok_and(|year: u32| (2003..2100).contains(&year))
}

/// Splits at everything but letters and digits, and keeps the dots inside numbers: `24.04.1` is
/// one word, `1.14.x86_64` three.
fn words(name: &str) -> Vec<&str> {
    let bytes = name.as_bytes();
    let is_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let mut words = Vec::new();
    let mut start = 0;
    for at in 0..=bytes.len() {
        let inside = bytes.get(at).is_some_and(|byte| match byte {
            b'.' => at > start && is_digit(at - 1) && is_digit(at + 1),
            byte => byte.is_ascii_alphanumeric(),
        });
        if !inside {
            words.extend(name.get(start..at).filter(|word| !word.is_empty()));
            start = at + 1;
        }
    }
    words
}

/// The words from each one on.
fn tails<'a, 'n>(words: &'a [&'n str]) -> impl Iterator<Item = &'a [&'n str]> {
    (0..words.len()).map(|at| &words[at..])
}

struct Found<'a, 'n> {
    family: OsFamily,
    distribution: &'static str,
    /// What stands in the same word: `11` of `win11`.
    attached: &'n str,
    following: &'a [&'n str],
}

/// The distribution that these words begin with.
fn distribution<'a, 'n>(words: &'a [&'n str]) -> Option<Found<'a, 'n>> {
    DISTRIBUTIONS.iter().find_map(|&(pattern, family, distribution)| {
        let (last, before) = pattern.split_last()?;
        let words = words.strip_prefix(before)?;
        let (word, following) = words.split_first()?;
        let attached = word.strip_prefix(last)?;
        if last.starts_with(|first: char| first.is_ascii_digit()) {
            // `server 2022`: the last word is the version.
            return (attached.is_empty()).then_some(Found {
                family,
                distribution,
                attached: word,
                following,
            });
        }
        let ends_here = attached.bytes().next().is_none_or(|next| next.is_ascii_digit());
        ends_here.then_some(Found { family, distribution, attached, following })
    })
}

/// The architecture that these words begin with, and the count of words that it takes.
fn architecture(words: &[&str]) -> Option<(&'static str, usize)> {
    ARCHITECTURES.iter().find_map(|&(pattern, arch)| {
        let (last, before) = pattern.split_last()?;
        let suffix = words.strip_prefix(before)?.first()?.strip_prefix(last)?;
        // Microsoft builds are `x64FRE`, its downloads `x64v2`.
        let ends_here = matches!(suffix, "" | "fre")
            || suffix.strip_prefix('v').is_some_and(|number| number.parse::<u8>().is_ok());
        ends_here.then_some((arch, pattern.len()))
    })
}

fn version_among<'n>(mut words: &[&'n str]) -> Option<&'n str> {
    while let Some((word, following)) = words.split_first() {
        let version = version_of_word(word);
        words = match (architecture(words), following.split_first()) {
            (Some((_, count)), _) => &words[count..],
            (None, _) if version.is_some() => return version,
            (None, Some((number, following)))
                if MEDIA.contains(word) && version_of_word(number).is_some() =>
            {
                following
            }
            (None, _) => following,
        };
    }
    None
}

/// The version that a word begins with: `8.0` of `8.0u2`, `9` of `r9`, `1.7.0` of `v1.7.0`.
fn version_of_word(word: &str) -> Option<&str> {
    let word = word.strip_prefix(['r', 'v']).unwrap_or(word);
    let mut end = 0;
    for component in word.split('.') {
        let digits = component.bytes().take_while(u8::is_ascii_digit).count();
        let suffix = &component[digits..];
        // Digits that run into a hexadecimal letter are part of a hash (or of `64bit`).
        if digits == 0 || suffix.starts_with(|next: char| next.is_ascii_hexdigit()) {
            break;
        }
        // A number of its own kind is a year or a date at most; anything longer counts builds.
        let is_date = digits == 8 && (component.starts_with("19") || component.starts_with("20"));
        if end == 0 && digits > 4 && !is_date {
            return None;
        }
        end += usize::from(end > 0) + digits;
        if !suffix.is_empty() {
            break;
        }
    }
    (end > 0).then(|| &word[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_the_wild() {
        let check =
            |name: &str, family: OsFamily, distribution: &str, version: &str, arch: &str| {
                let expected = Os {
                    family,
                    distribution: distribution.to_owned(),
                    version: version.to_owned(),
                    arch: arch.to_owned(),
                };
                assert_eq!(identify_by_name(name), expected, "{name}");
            };
        check("Win11_23H2_English_x64.iso", Windows, "windows", "11", "x86_64");
        check("Win11_24H2_English_Arm64.iso", Windows, "windows", "11", "aarch64");
        check("Win10_22H2_English_x64v1.iso", Windows, "windows", "10", "x86_64");
        check("Win8.1_English_x32.iso", Windows, "windows", "8.1", "");
        check("win10.iso", Windows, "windows", "10", "");
        check("windows 11.iso", Windows, "windows", "11", "");
        check(
            "SW_DVD9_Win_Pro_11_23H2_64BIT_English_Pro_Ent_EDU_N_MLF_X23-59562.ISO",
            Windows,
            "windows",
            "11",
            "x86_64",
        );
        check(
            "en_windows_10_enterprise_ltsc_2019_x64_dvd_74865958.iso",
            Windows,
            "windows",
            "10",
            "x86_64",
        );
        check(
            "en-us_windows_server_2022_updated_july_2023_x64_dvd_541692c3.iso",
            Windows,
            "windows-server",
            "2022",
            "x86_64",
        );
        check(
            "SW_DVD9_Win_Server_STD_CORE_2025_24H2.1_64Bit_English_DC_STD_MLF_X23-81891.ISO",
            Windows,
            "windows-server",
            "2025",
            "x86_64",
        );
        check(
            "17763.3650.221105-1748.rs5_release_svc_refresh_SERVER_EVAL_x64FRE_en-us.iso",
            Windows,
            "windows-server",
            "",
            "x86_64",
        );
        check("server_2019_core.iso", Windows, "windows-server", "2019", "");
        check("win2022.iso", Windows, "windows-server", "2022", "");
        check("virtio-win-0.1.240.iso", Windows, "virtio-win", "0.1.240", "");
        check("ubuntu-24.04.1-live-server-amd64.iso", Linux, "ubuntu", "24.04.1", "x86_64");
        check("kubuntu-22.04.4-desktop-amd64.iso", Linux, "ubuntu", "22.04.4", "x86_64");
        check("debian-12.5.0-amd64-netinst.iso", Linux, "debian", "12.5.0", "x86_64");
        check("debian-12.5.0-ppc64el-DVD-1.iso", Linux, "debian", "12.5.0", "ppc64le");
        check("debian-testing-amd64-DVD-1.iso", Linux, "debian", "", "x86_64");
        check("Fedora-Server-dvd-x86_64-40-1.14.iso", Linux, "fedora", "40", "x86_64");
        check("Fedora-Workstation-Live-42-1.1.aarch64.iso", Linux, "fedora", "42", "aarch64");
        check("CentOS-7-x86_64-DVD-2009.iso", Linux, "centos", "7", "x86_64");
        check("CentOS-Stream-9-latest-x86_64-dvd1.iso", Linux, "centos", "9", "x86_64");
        check("rhel-9.4-s390x-dvd.iso", Linux, "rhel", "9.4", "s390x");
        check("Rocky-9-latest-x86_64-minimal.iso", Linux, "rocky", "9", "x86_64");
        check("AlmaLinux-9.4-aarch64-boot.iso", Linux, "almalinux", "9.4", "aarch64");
        check("OracleLinux-R9-U4-x86_64-dvd.iso", Linux, "oracle-linux", "9", "x86_64");
        check("openSUSE-Leap-15.6-DVD-x86_64-Media.iso", Linux, "opensuse", "15.6", "x86_64");
        check("SLE-15-SP6-Full-x86_64-GM-Media1.iso", Linux, "sles", "15", "x86_64");
        check("archlinux-2024.06.01-x86_64.iso", Linux, "arch", "2024.06.01", "x86_64");
        check("alpine-standard-3.20.0-x86.iso", Linux, "alpine", "3.20.0", "i686");
        check("gentoo-minimal-amd64-20240602T170407Z.iso", Linux, "gentoo", "20240602", "x86_64");
        check(
            "nixos-minimal-24.05.2038.3e1f92ab-x86_64-linux.iso",
            Linux,
            "nixos",
            "24.05.2038",
            "x86_64",
        );
        check("linuxmint-21.3-cinnamon-64bit.iso", Linux, "linuxmint", "21.3", "x86_64");
        check("kali-linux-2024.2-installer-i386.iso", Linux, "kali", "2024.2", "i686");
        check("proxmox-ve_8.2-1.iso", Linux, "proxmox-ve", "8.2", "");
        check("proxmox-backup-server_3.2-1.iso", Linux, "proxmox-backup-server", "3.2", "");
        check("talos-v1.7.0-amd64.iso", Linux, "talos", "1.7.0", "x86_64");
        check("flatcar_production_iso_image.iso", Linux, "flatcar", "", "");
        check("clonezilla-live-3.1.2-22-amd64.iso", Linux, "clonezilla", "3.1.2", "x86_64");
        check("FreeBSD-14.1-RELEASE-riscv64-disc1.iso", Other, "freebsd", "14.1", "riscv64");
        check("NetBSD-10.0-amd64.iso", Other, "netbsd", "10.0", "x86_64");
        check("OPNsense-24.1-dvd-amd64.iso", Other, "opnsense", "24.1", "x86_64");
        check("pfSense-CE-2.7.2-RELEASE-amd64.iso", Other, "pfsense", "2.7.2", "x86_64");
        check("TrueNAS-SCALE-24.04.1.1.iso", Other, "truenas", "24.04.1.1", "");
        check("VMware-VMvisor-Installer-8.0U2-22380479.x86_64.iso", Other, "esxi", "8.0", "x86_64");
        check("memtest86+-7.00.iso", Other, "memtest", "7.00", "");
        check("mt86plus_7.00_64.grub.iso", Other, "memtest", "7.00", "");
        check("FreeDOS-1.3.iso", Other, "freedos", "1.3", "");
        check("ipxe.iso", Other, "ipxe", "", "");
        check("grub-rescue-cdrom.iso", Other, "grub", "", "");
    }

    #[test]
    fn strangers_keep_their_architecture() {
        let check = |name: &str, arch: &str| {
            assert_eq!(identify_by_name(name), Os { arch: arch.to_owned(), ..Os::unknown() });
        };
        check("", "");
        check(".iso", "");
        check("backup.img", "");
        check("rescue-aarch64.iso", "aarch64");
        check("winter-holidays.iso", "");
        check("architecture.iso", "");
        check("twin-server.iso", "");
        check("данные-x86-64.iso", "x86_64");
        check("...-_-...", "");
    }

    #[test]
    fn any_text_is_bounded() {
        let endless = "1.".repeat(1 << 20);
        assert_eq!(identify_by_name(&endless), Os::unknown());
        let os = identify_by_name(&format!("debian-{endless}"));
        assert!(os.version.len() <= EntryName::LEN_MAX);
        // A character across the bound is not cut in two.
        assert_eq!(identify_by_name(&"é".repeat(1 << 10)), Os::unknown());
    }

    #[test]
    fn no_pattern_hides_a_later_one() {
        for (at, (pattern, ..)) in DISTRIBUTIONS.iter().enumerate() {
            let hidden_by = DISTRIBUTIONS[..at].iter().find(|(earlier, ..)| {
                pattern.starts_with(earlier) && pattern.len() > earlier.len()
            });
            assert!(hidden_by.is_none(), "{pattern:?}");
        }
    }
}
