//! The databases of operating systems that this machine has: where they lie, whether they have
//! changed, and reading them once they are needed. What is in them is others' business.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use isotope_proto::facts::{Candidate, Facts};
use tracing::{debug, info};

use super::osinfo::Osinfo;
use super::own_table::OwnTable;

/// Files of one database; that of 2022 has 936.
const FILES_MAX: usize = 20_000;
/// Bytes of one file; the largest of 2022 has 23 KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Folders within folders: `os/debian.org/debian-11.d/more.xml`.
const DEPTH_MAX: usize = 4;
/// The files are looked at again after so long: somebody may have updated them.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// What is known of media. Cheap to open: the files are read when the first disc asks.
#[derive(Debug)]
pub struct Databases {
    files: Vec<PathBuf>,
    version: String,
    osinfo: OnceLock<Osinfo>,
    own_table: OwnTable,
}

impl Databases {
    /// Our own table alone.
    #[must_use]
    pub fn none() -> Self {
        Self::open(&[])
    }

    /// The database in these directories, of which a later one overrides the files of an earlier
    /// one. What cannot be read is left out.
    #[must_use]
    pub fn open(directories: &[PathBuf]) -> Self {
        let mut files: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
        for directory in directories {
            let mut found = Vec::new();
            collect(&directory.join("os"), DEPTH_MAX, &mut found);
            let below = |path: PathBuf| Some((path.strip_prefix(directory).ok()?.to_owned(), path));
            files.extend(found.into_iter().filter_map(below));
        }
        let mut fingerprint = Fingerprint::default();
        fingerprint.add(OwnTable::text().as_bytes());
        for (below, path) in &files {
            fingerprint.add(below.as_os_str().as_encoded_bytes());
            let Ok(metadata) = fs::metadata(path) else { continue };
            let changed =
                metadata.modified().ok().and_then(|it| it.duration_since(UNIX_EPOCH).ok());
            fingerprint.add(&metadata.len().to_le_bytes());
            fingerprint.add(&changed.map_or(0, |it| it.as_secs()).to_le_bytes());
        }
        let release = directories.first().and_then(|it| read(&it.join("VERSION")));
        let release = release.as_deref().map(str::trim).filter(|_| !files.is_empty());
        let version = match release {
            Some(release) => format!("osinfo-db {release} {:016x}", fingerprint.0),
            None if files.is_empty() => format!("own {:016x}", fingerprint.0),
            None => format!("osinfo-db {:016x}", fingerprint.0),
        };
        Self {
            files: files.into_values().collect(),
            version,
            osinfo: OnceLock::new(),
            own_table: OwnTable::new(),
        }
    }

    /// Those of this machine as they are now, shared by whoever asks.
    pub(crate) fn of_this_machine() -> Arc<Self> {
        static SHARED: Mutex<Option<(Instant, Arc<Databases>)>> = Mutex::new(None);
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((looked, known)) = &*shared
            && looked.elapsed() < LOOK_AGAIN_AFTER
        {
            return Arc::clone(known);
        }
        let found = Self::open(&directories(|name| std::env::var_os(name)));
        let current = match shared.take() {
            Some((_, known)) if known.version == found.version => known,
            _ => {
                info!(version = found.version, files = found.files.len(), "databases of media");
                Arc::new(found)
            }
        };
        *shared = Some((Instant::now(), Arc::clone(&current)));
        current
    }

    /// Another text whenever the databases are others.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The systems that facts fit, the surest first.
    pub(super) fn candidates(&self, facts: &Facts) -> Vec<Candidate> {
        if facts.volume_label.is_empty() && facts.application_id.is_empty() {
            return Vec::new();
        }
        let mut candidates = self.osinfo.get_or_init(|| self.load()).candidates(facts);
        candidates.extend(self.own_table.candidates(facts));
        candidates
    }

    fn load(&self) -> Osinfo {
        let begun = Instant::now();
        let mut osinfo = Osinfo::default();
        for text in self.files.iter().filter_map(|path| read(path)) {
            osinfo.read(&text);
        }
        debug!(files = self.files.len(), took = ?begun.elapsed(), "osinfo-db was read");
        osinfo
    }
}

/// Where libosinfo looks, in its order: what a distribution installed, what this machine's
/// administrator added, what this user added.
#[must_use]
pub fn directories(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let set = |name: &str| variable(name).filter(|it| !it.is_empty()).map(PathBuf::from);
    let user = || {
        let config = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")));
        Some(config?.join("osinfo"))
    };
    let system = set("OSINFO_SYSTEM_DIR").unwrap_or_else(|| "/usr/share/osinfo".into());
    let local = set("OSINFO_LOCAL_DIR").unwrap_or_else(|| "/etc/osinfo".into());
    [Some(system), Some(local), set("OSINFO_USER_DIR").or_else(user)]
        .into_iter()
        .flatten()
        .collect()
}

fn collect(directory: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let is_directory = entry.file_type().is_ok_and(|it| it.is_dir());
        if found.len() >= FILES_MAX {
            return;
        } else if is_directory && depth > 1 {
            collect(&path, depth - 1, found);
        } else if !is_directory && path.extension().is_some_and(|it| it == "xml") {
            found.push(path);
        }
    }
}

/// A file's text, as far as it may be read.
fn read(path: &Path) -> Option<String> {
    let mut text = Vec::new();
    fs::File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// FNV-1a (RFC 9923) of 64 bits: tells versions apart, and is the same on each machine.
struct Fingerprint(u64);

impl Default for Fingerprint {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fingerprint {
    fn add(&mut self, bytes: &[u8]) {
        let step = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        self.0 = bytes.iter().fold(self.0, step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, file: &str, label: &str, name: &str) {
        let path = dir.join("os").join(file);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        let text = format!(
            "<libosinfo><os id='x/{file}'><name>{name}</name><family>linux</family>
             <distro>able</distro><media arch='all'><iso><volume-id>{label}</volume-id></iso>
             </media></os></libosinfo>"
        );
        fs::write(path, text).expect("written");
    }

    #[test]
    fn later_directories_override_files_and_add_others() {
        let (system, local) = (tempfile::tempdir(), tempfile::tempdir());
        let [system, local] = [system, local].map(|it| it.expect("a directory"));
        let directories = [system.path().to_owned(), local.path().to_owned()];
        let names = |databases: &Databases, label: &str| -> Vec<String> {
            let facts = Facts { volume_label: label.to_owned(), ..Facts::default() };
            databases.candidates(&facts).into_iter().map(|it| it.name).collect()
        };
        write(system.path(), "able.org/1.xml", "ABLE", "Able 1");
        let before = Databases::open(&directories);
        assert_eq!(names(&before, "ABLE"), ["Able 1"]);
        assert_eq!(before.version(), Databases::open(&directories).version());
        write(local.path(), "able.org/1.xml", "ABLE", "Able One");
        write(local.path(), "other.org/1.d/2.xml", "OTHER", "Other 2");
        let after = Databases::open(&directories);
        assert_eq!(names(&after, "ABLE"), ["Able One"]);
        assert_eq!(names(&after, "OTHER"), ["Other 2"]);
        assert_ne!(before.version(), after.version());
    }

    #[test]
    fn directories_are_libosinfos() {
        let check = |set: &[(&str, &str)], expected: [&str; 3]| {
            let variable = |name: &str| {
                set.iter().find(|(it, _)| *it == name).map(|(_, value)| OsString::from(value))
            };
            assert_eq!(directories(variable), expected.map(PathBuf::from), "{set:?}");
        };
        let fixed = ["/usr/share/osinfo", "/etc/osinfo"];
        check(&[("HOME", "/home/a")], [fixed[0], fixed[1], "/home/a/.config/osinfo"]);
        let config = [("HOME", "/home/a"), ("XDG_CONFIG_HOME", "/c")];
        check(&config, [fixed[0], fixed[1], "/c/osinfo"]);
        let all =
            [("OSINFO_SYSTEM_DIR", "/s"), ("OSINFO_LOCAL_DIR", "/l"), ("OSINFO_USER_DIR", "/u")];
        check(&all, ["/s", "/l", "/u"]);
        assert_eq!(directories(|_| None).len(), 2);
    }
}
