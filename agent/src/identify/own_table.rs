//! Our own table of media, by their volume labels: what was released since the osinfo-db of a
//! distribution was made, and what that leaves out. Pure.

use isotope_proto::facts::{Candidate, Facts, Source};
use isotope_proto::image::OsFamily::{Linux, Other, Windows};
use isotope_proto::image::{Os, OsFamily};

use super::fallback::architecture_of;
use super::pattern::Pattern;

/// Pattern, family, distribution, name.
type Row = (&'static str, OsFamily, &'static str, &'static str);

/// Pattern of the label, family, what we call the distribution, and its name for people. A pattern
/// may name groups `v`, the version, and `a`, the architecture; without `v` the version is the one
/// in the name. All that match are candidates, in this order.
const LABELS: &[Row] = &[
    (r"^Debian (?<v>[0-9.]+) (?<a>[a-z0-9-]+)", Linux, "debian", "Debian"),
    (r"^d-live (?<v>[0-9.]+) [a-z]+ (?<a>[a-z0-9-]+)", Linux, "debian", "Debian live"),
    (r"^Debian [a-z]+ (?<a>[a-z0-9-]+)", Linux, "debian", "Debian"),
    (r"[Uu]buntu[A-Za-z-]* (?<v>[0-9.]+)( LTS)? (?<a>[a-z0-9]+)", Linux, "ubuntu", "Ubuntu"),
    (r"^Fedora-[A-Za-z]+-(dvd|ostree)-(?<a>[a-z0-9_]+)-(?<v>[0-9]+)", Linux, "fedora", "Fedora"),
    (r"^Fedora-[A-Za-z-]+-Live-(?<v>[0-9]+)", Linux, "fedora", "Fedora live"),
    (
        r"^RHEL-(?<v>[0-9]+[-.][0-9]+)[-.0-9]* ?.*(?<a>x86_64|aarch64|ppc64le|s390x)",
        Linux,
        "rhel",
        "Red Hat Enterprise Linux",
    ),
    (r"^Rocky-(?<v>[0-9]+-[0-9]+)-(?<a>[a-z0-9_]+)", Linux, "rocky", "Rocky Linux"),
    (r"^AlmaLinux-(?<v>[0-9]+-[0-9]+)-(?<a>[a-z0-9_]+)", Linux, "almalinux", "AlmaLinux"),
    (r"^CentOS-Stream-(?<v>[0-9]+)-(BaseOS-)?(?<a>[a-z0-9_]+)", Linux, "centos", "CentOS Stream"),
    (r"^CentOS[- ](?<v>[0-9]+)[- ](BaseOS-)?(?<a>[a-z0-9_]+)", Linux, "centos", "CentOS"),
    (r"^OL-(?<v>[0-9]+[-.][0-9]+).*(?<a>x86_64|aarch64)", Linux, "oracle-linux", "Oracle Linux"),
    (
        r"^openSUSE-Leap-(?<v>[0-9.]+)-[A-Z]+-(?<a>x86_64|aarch64|ppc64le)",
        Linux,
        "opensuse",
        "openSUSE Leap",
    ),
    (
        r"^openSUSE-Tumbleweed-[A-Z]+-(?<a>x86_64|aarch64|ppc64le|i586)",
        Linux,
        "opensuse",
        "openSUSE Tumbleweed",
    ),
    (
        r"^SLE[SD]?-?(?<v>[0-9]+(-SP[0-9])?)-[A-Za-z-]+-(?<a>x86_64|aarch64|ppc64le|s390x)",
        Linux,
        "sles",
        "SUSE Linux Enterprise",
    ),
    (r"^ARCH_(?<v>[0-9]{6})", Linux, "arch", "Arch Linux"),
    (r"^alpine-[a-z]+ v?(?<v>[0-9.]+) (?<a>[a-z0-9_]+)", Linux, "alpine", "Alpine Linux"),
    (
        r"^nixos-([a-z0-9]+-)?(?<v>[0-9]{2}\.[0-9]{2})[^-]*-(?<a>[a-z0-9_]+)",
        Linux,
        "nixos",
        "NixOS",
    ),
    (r"^Linux Mint (?<v>[0-9.]+) .*(?<a>64-bit|32-bit)", Linux, "linuxmint", "Linux Mint"),
    (r"^Kali Linux (?<a>[a-z0-9]+)", Linux, "kali", "Kali Linux"),
    (r"^Kali Live", Linux, "kali", "Kali Linux live"),
    (r"^MANJARO", Linux, "manjaro", "Manjaro"),
    (r"^Gentoo[- ](?<a>[a-z0-9]+)", Linux, "gentoo", "Gentoo"),
    (r"^PVE$", Linux, "proxmox-ve", "Proxmox VE"),
    (r"^PBS$", Linux, "proxmox-backup-server", "Proxmox Backup Server"),
    (r"^PMG$", Linux, "proxmox-mail-gateway", "Proxmox Mail Gateway"),
    (r"^XCP-ng (?<v>[0-9.]+)", Linux, "xcp-ng", "XCP-ng"),
    (r"^VyOS", Linux, "vyos", "VyOS"),
    (r"^TALOS", Linux, "talos", "Talos"),
    (r"^GParted-live", Linux, "gparted", "GParted Live"),
    (r"^[Cc]lonezilla", Linux, "clonezilla", "Clonezilla"),
    (r"^RESCUE[0-9]{3,4}$", Linux, "systemrescue", "SystemRescue"),
    // Of the four servers that share a label, the newest is the likeliest; so of the two clients.
    (r"^SSS_(?<a>X64)FREE?[VO]?_", Windows, "windows-server", "Windows Server 2025"),
    (r"^SSS_(?<a>X64)FREE?[VO]?_", Windows, "windows-server", "Windows Server 2022"),
    (r"^SSS_(?<a>X64)FREE?[VO]?_", Windows, "windows-server", "Windows Server 2019"),
    (r"^SSS_(?<a>X64)FREE?[VO]?_", Windows, "windows-server", "Windows Server 2016"),
    (r"^(J_)?C[A-Z]{2,5}_(?<a>X64|A64)FREE?[VO]?_", Windows, "windows", "Windows 11"),
    (r"^(J_)?C[A-Z]{2,5}_(?<a>X64|X86|A64)FREE?[VO]?_", Windows, "windows", "Windows 10"),
    (r"^ESD-ISO", Windows, "windows", "Windows 11"),
    (r"^ESD-ISO", Windows, "windows", "Windows 10"),
    (r"^virtio-win-(?<v>[0-9.]+)", Windows, "virtio-win", "VirtIO drivers for Windows"),
    (r"^HBCD_PE", Windows, "windows", "Hiren's BootCD PE"),
    (r"^ESXI-(?<v>[0-9]+\.[0-9]+(\.[0-9]+)?)", Other, "esxi", "VMware ESXi"),
    (
        r"^(?<v>[0-9]+_[0-9]+)_(RELEASE|STABLE|CURRENT|RC[0-9]|BETA[0-9])_(?<a>[A-Z0-9]+)_",
        Other,
        "freebsd",
        "FreeBSD",
    ),
    (r"^OpenBSD[/_ ](?<a>[a-z0-9]+)[_ ]+(?<v>[0-9]+\.[0-9]+)", Other, "openbsd", "OpenBSD"),
    (r"^N(et|ET)BSD", Other, "netbsd", "NetBSD"),
    (r"^T(rue|RUE)NAS(-[A-Z]+)?-(?<v>[0-9]+(\.[0-9]+)*)", Other, "truenas", "TrueNAS"),
    (r"^T(rue|RUE)NAS(-[A-Z]+)?$", Other, "truenas", "TrueNAS"),
    (r"^OPN[Ss](ense|ENSE)", Other, "opnsense", "OPNsense"),
    (r"^(pf|PF)S(ense|ENSE)", Other, "pfsense", "pfSense"),
    (r"^iPXE$", Other, "ipxe", "iPXE"),
    (r"^GRUB", Other, "grub", "GRUB"),
    (r"^(MT86|MEMTEST|Memtest)", Other, "memtest", "Memtest86+"),
    (r"^(FreeDOS|FD1[0-9])", Other, "freedos", "FreeDOS"),
];

/// The same by the application identifier, where makers leave the label to a tool's default.
const APPLICATIONS: &[Row] = &[("OPEN SOURCE NETWORK BOOT FIRMWARE", Other, "ipxe", "iPXE")];

/// The table, its patterns ready to be compiled.
#[derive(Debug)]
pub(super) struct OwnTable {
    labels: Vec<Pattern>,
    applications: Vec<Pattern>,
}

impl OwnTable {
    pub(super) fn new() -> Self {
        let patterns = |rows: &[Row]| rows.iter().map(|(text, ..)| Pattern::new(text)).collect();
        Self { labels: patterns(LABELS), applications: patterns(APPLICATIONS) }
    }

    /// Another text for another table.
    pub(super) fn text() -> String {
        format!("{LABELS:?}{APPLICATIONS:?}")
    }

    /// The systems that facts fit.
    pub(super) fn candidates(&self, facts: &Facts) -> Vec<Candidate> {
        let labels = LABELS.iter().zip(&self.labels);
        let by_label = labels.filter_map(|(row, it)| candidate(row, it, &facts.volume_label));
        let applications = APPLICATIONS.iter().zip(&self.applications);
        let by_application =
            applications.filter_map(|(row, it)| candidate(row, it, &facts.application_id));
        by_label.chain(by_application).collect()
    }
}

fn candidate(row: &Row, pattern: &Pattern, text: &str) -> Option<Candidate> {
    let &(_, family, distribution, name) = row;
    if !pattern.is_match(text) {
        return None;
    }
    let found = |group| pattern.capture(text, group).unwrap_or_default();
    // `9-4` and `14_1` for want of dots, and `15-SP6`.
    let version = found("v").replace("-SP", ".").replace(['-', '_'], ".");
    let in_name = || name.rsplit(' ').next().filter(|it| it.parse::<u16>().is_ok());
    let (version, name) = match (&*version, in_name()) {
        ("", Some(version)) => (version.to_owned(), name.to_owned()),
        ("", None) => (version, name.to_owned()),
        (known, _) => (known.to_owned(), format!("{name} {known}")),
    };
    let arch = architecture_of(found("a"));
    let os = Os { family, distribution: distribution.to_owned(), version, arch };
    Some(Candidate { name, os, source: Source::OwnTable })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_current_media() {
        let table = OwnTable::new();
        let check = |label: &str, family: OsFamily, expected: [&str; 4]| {
            let facts = Facts { volume_label: label.to_owned(), ..Facts::default() };
            let found = table.candidates(&facts);
            let first = found.first().unwrap_or_else(|| panic!("{label}"));
            let Os { distribution, version, arch, .. } = &first.os;
            assert_eq!([&*first.name, distribution, version, arch], expected, "{label}");
            assert_eq!(first.os.family, family, "{label}");
        };
        check("Debian 12.5.0 amd64 n", Linux, ["Debian 12.5.0", "debian", "12.5.0", "x86_64"]);
        check("Debian 13.0.0 arm64 1", Linux, ["Debian 13.0.0", "debian", "13.0.0", "aarch64"]);
        check("Debian testing amd64 n", Linux, ["Debian", "debian", "", "x86_64"]);
        check(
            "d-live 12.5.0 gn amd64",
            Linux,
            ["Debian live 12.5.0", "debian", "12.5.0", "x86_64"],
        );
        check(
            "Ubuntu-Server 24.04 LTS amd64",
            Linux,
            ["Ubuntu 24.04", "ubuntu", "24.04", "x86_64"],
        );
        check("Kubuntu 24.10 amd64", Linux, ["Ubuntu 24.10", "ubuntu", "24.10", "x86_64"]);
        check("Fedora-S-dvd-x86_64-40", Linux, ["Fedora 40", "fedora", "40", "x86_64"]);
        check("Fedora-WS-Live-42", Linux, ["Fedora live 42", "fedora", "42", ""]);
        check(
            "RHEL-9-4-0-BaseOS-x86_64",
            Linux,
            ["Red Hat Enterprise Linux 9.4", "rhel", "9.4", "x86_64"],
        );
        check("Rocky-9-4-x86_64-dvd", Linux, ["Rocky Linux 9.4", "rocky", "9.4", "x86_64"]);
        check("AlmaLinux-9-4-aarch64-dvd", Linux, ["AlmaLinux 9.4", "almalinux", "9.4", "aarch64"]);
        check("CentOS-Stream-9-BaseOS-x86_64", Linux, ["CentOS Stream 9", "centos", "9", "x86_64"]);
        check("CentOS 7 x86_64", Linux, ["CentOS 7", "centos", "7", "x86_64"]);
        check(
            "OL-9-4-0-BaseOS-x86_64",
            Linux,
            ["Oracle Linux 9.4", "oracle-linux", "9.4", "x86_64"],
        );
        check(
            "openSUSE-Leap-15.6-DVD-x86_64-Bu",
            Linux,
            ["openSUSE Leap 15.6", "opensuse", "15.6", "x86_64"],
        );
        check(
            "openSUSE-Tumbleweed-DVD-x86_64-S",
            Linux,
            ["openSUSE Tumbleweed", "opensuse", "", "x86_64"],
        );
        check(
            "SLE-15-SP6-Full-x86_64-GM-Media1",
            Linux,
            ["SUSE Linux Enterprise 15.6", "sles", "15.6", "x86_64"],
        );
        check("ARCH_202406", Linux, ["Arch Linux 202406", "arch", "202406", ""]);
        check(
            "alpine-virt 3.20.0 x86_64",
            Linux,
            ["Alpine Linux 3.20.0", "alpine", "3.20.0", "x86_64"],
        );
        check("nixos-minimal-24.05-x86_64", Linux, ["NixOS 24.05", "nixos", "24.05", "x86_64"]);
        check(
            "Linux Mint 21.3 Cinnamon 64-bit",
            Linux,
            ["Linux Mint 21.3", "linuxmint", "21.3", "x86_64"],
        );
        check("PVE", Linux, ["Proxmox VE", "proxmox-ve", "", ""]);
        check("PBS", Linux, ["Proxmox Backup Server", "proxmox-backup-server", "", ""]);
        check("RESCUE1102", Linux, ["SystemRescue", "systemrescue", "", ""]);
        check(
            "SSS_X64FREE_EN-US_DV9",
            Windows,
            ["Windows Server 2025", "windows-server", "2025", "x86_64"],
        );
        check("CCCOMA_X64FRE_EN-US_DV9", Windows, ["Windows 11", "windows", "11", "x86_64"]);
        check("CCCOMA_A64FRE_EN-US_DV9", Windows, ["Windows 11", "windows", "11", "aarch64"]);
        check("CCCOMA_X86FRE_EN-US_DV9", Windows, ["Windows 10", "windows", "10", "i686"]);
        check(
            "virtio-win-0.1.240",
            Windows,
            ["VirtIO drivers for Windows 0.1.240", "virtio-win", "0.1.240", ""],
        );
        check("ESXI-8.0U2-22380479-STANDARD", Other, ["VMware ESXi 8.0", "esxi", "8.0", ""]);
        check("14_1_RELEASE_AMD64_CD", Other, ["FreeBSD 14.1", "freebsd", "14.1", "x86_64"]);
        check("OpenBSD/amd64   7.5 Install CD", Other, ["OpenBSD 7.5", "openbsd", "7.5", "x86_64"]);
        check("NETBSD_100", Other, ["NetBSD", "netbsd", "", ""]);
        check("TRUENAS", Other, ["TrueNAS", "truenas", "", ""]);
        check("TrueNAS-SCALE-24.04.1", Other, ["TrueNAS 24.04.1", "truenas", "24.04.1", ""]);
        check("OPNSENSE_INSTALL", Other, ["OPNsense", "opnsense", "", ""]);
        check("pfSense", Other, ["pfSense", "pfsense", "", ""]);
        check("MT86PLUS_64", Other, ["Memtest86+", "memtest", "", ""]);
    }

    #[test]
    fn every_pattern_compiles_and_strangers_match_none() {
        for (label, ..) in LABELS.iter().chain(APPLICATIONS) {
            regex::bytes::Regex::new(label).unwrap_or_else(|error| panic!("{label}: {error}"));
        }
        let table = OwnTable::new();
        for label in ["", "ISOIMAGE", "CDROM", "my backups", "cidata", "NEW", "COMPANY_X64"] {
            let facts = Facts { volume_label: label.to_owned(), ..Facts::default() };
            assert_eq!(table.candidates(&facts), [], "{label}");
        }
    }
}
