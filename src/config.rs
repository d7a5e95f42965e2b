//! What the product is set to: defaults, files and environment in layers, each checked alone, and
//! where each value came from. Knows neither the flags that come after nor what a value is for.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs, io};

use serde::{Deserialize, Serialize};
use toml::de::DeTable;
use toml::{Table, Value};

/// Read where `ISOTOPE_CONFIG` names no other; `conf.d/*.toml` beside it follow.
const MAIN_FILE: &str = "/etc/isotope/isotope.toml";
/// Names the main file, and so is the only variable that is not a setting.
const MAIN_FILE_VARIABLE: &str = "ISOTOPE_CONFIG";
const VARIABLE_PREFIX: &str = "ISOTOPE_";
const STATE_DIR: &str = "/var/lib/isotope";

/// Every key there is, in the order in which they are shown.
const KEYS: &[&str] = &[
    "state",
    "insecure",
    "catalog.listen",
    "catalog.url",
    "catalog.scan_every",
    "agent.listen",
    "agent.advertise",
    "agent.name",
    "agent.pools",
    "agent.hash_mib_per_s",
    "agent.scrub_mib_per_s",
    "agent.scrub_every_days",
    "mount.dir",
    "mount.options",
    "log.filter",
    "log.format",
];

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub(crate) struct Settings {
    /// Where the daemons keep what they must not forget.
    pub(crate) state: PathBuf,
    /// Allows plaintext beyond loopback.
    pub(crate) insecure: bool,
    pub(crate) catalog: CatalogSettings,
    pub(crate) agent: AgentSettings,
    pub(crate) mount: MountSettings,
    pub(crate) log: LogSettings,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub(crate) struct CatalogSettings {
    pub(crate) listen: SocketAddr,
    /// Where agents, mounts and commands reach it.
    pub(crate) url: String,
    /// Between two scans of everything.
    pub(crate) scan_every: Span,
}

/// A length of time, written like `5m` or `1h 30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl Serialize for Span {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(self.0))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let span = humantime::parse_duration(&text).ok().filter(|it| *it >= SPAN_MIN);
        let invalid = || serde::de::Error::custom(format!("{text:?} is no time like \"5m\""));
        span.map(Self).ok_or_else(invalid)
    }
}

/// Whatever is done again and again is not done more often.
const SPAN_MIN: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub(crate) struct AgentSettings {
    pub(crate) listen: SocketAddr,
    /// `HOST:PORT` at which others reach it, where that is not `listen`.
    pub(crate) advertise: Option<String>,
    /// The node's name, where that is not the host's.
    pub(crate) name: Option<String>,
    /// Directories to offer, each `DIR[=NAME]`.
    pub(crate) pools: Vec<String>,
    /// What is read of each disk to hash new files, in MiB per second; 0 for as fast as it goes.
    pub(crate) hash_mib_per_s: u64,
    /// The same for reading again what is known.
    pub(crate) scrub_mib_per_s: u64,
    /// After so many days each file is read again; 0 for never by itself.
    pub(crate) scrub_every_days: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub(crate) struct MountSettings {
    pub(crate) dir: PathBuf,
    /// For every mount of this host, as `-o` takes them.
    #[serde(deserialize_with = "mount_options")]
    pub(crate) options: String,
}

/// Options that can be used; where the configuration lies they cannot say.
fn mount_options<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    match isotope_fs::options::Options::parse(&text) {
        Ok(options) if options.config.is_some() => {
            Err(serde::de::Error::custom("the option config belongs to mount -o alone"))
        }
        Ok(_) => Ok(text),
        Err(error) => Err(serde::de::Error::custom(error)),
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub(crate) struct LogSettings {
    /// Directives as `tracing_subscriber::EnvFilter` reads them.
    pub(crate) filter: String,
    pub(crate) format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    Text,
    Json,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            state: STATE_DIR.into(),
            insecure: false,
            catalog: CatalogSettings::default(),
            agent: AgentSettings::default(),
            mount: MountSettings::default(),
            log: LogSettings::default(),
        }
    }
}

impl Default for CatalogSettings {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 7430).into(),
            url: "http://127.0.0.1:7430".to_owned(),
            scan_every: Span(Duration::from_secs(300)),
        }
    }
}

impl Default for AgentSettings {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 7431).into(),
            advertise: None,
            name: None,
            pools: Vec::new(),
            hash_mib_per_s: 0,
            scrub_mib_per_s: 50,
            scrub_every_days: 30,
        }
    }
}

impl Default for MountSettings {
    fn default() -> Self {
        Self { dir: "/mnt/isos".into(), options: String::new() }
    }
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { filter: "info".to_owned(), format: LogFormat::Text }
    }
}

/// The settings, and where each came from.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) settings: Settings,
    /// Each key (`catalog.listen`), its value as TOML (empty where it is not set and has no
    /// default), and its origin: `default`, `/etc/isotope/isotope.toml:12` or `ISOTOPE_STATE`.
    pub(crate) origins: Vec<(String, String, String)>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read the configuration {path}: {error}", path = .path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{path}:{line}: {message}", path = .path.display())]
    Invalid { path: PathBuf, line: usize, message: String },
    #[error("the environment variable {name}: {message}")]
    InvalidVariable { name: String, message: String },
    #[error("the environment variable {name} is no setting; there are {}", variables())]
    UnknownVariable { name: String },
}

/// Reads the files and the environment of this process. `named` is the main file where somebody
/// named one.
///
/// # Errors
///
/// The first file that cannot be read, or value that cannot be used.
pub(crate) fn load(named: Option<&Path>) -> Result<Loaded, ConfigError> {
    let environment = environment()?;
    if let Some(path) = named {
        return load_from(path, true, &environment);
    }
    let mut named = environment.iter().filter(|(name, _)| name == MAIN_FILE_VARIABLE);
    match named.find(|(_, path)| !path.is_empty()) {
        Some((_, path)) => load_from(Path::new(path), true, &environment),
        None => load_from(Path::new(MAIN_FILE), false, &environment),
    }
}

/// The same with `main` as the main file, which may be missing unless `main_required`.
pub(crate) fn load_from(
    main: &Path,
    main_required: bool,
    environment: &[(String, String)],
) -> Result<Loaded, ConfigError> {
    let mut layers = Layers::default();
    let defaults = Settings { state: default_state(environment), ..Settings::default() };
    let defaults = Table::try_from(&defaults).expect("the defaults are TOML");
    layers.add(&defaults, |_| "default".to_owned());
    match layers.add_file(main) {
        Err(ConfigError::Read { error, .. })
            if error.kind() == io::ErrorKind::NotFound && !main_required => {}
        result => result?,
    }
    for path in drop_ins(main)? {
        layers.add_file(&path)?;
    }
    for (name, value) in environment {
        if name.starts_with(VARIABLE_PREFIX) && name != MAIN_FILE_VARIABLE {
            layers.add_variable(name, value)?;
        }
    }
    Ok(layers.merge())
}

/// The value of each key in the topmost layer that has it, and its origin.
#[derive(Default)]
struct Layers(BTreeMap<&'static str, (Value, String)>);

impl Layers {
    fn add(&mut self, layer: &Table, origin: impl Fn(&str) -> String) {
        for key in KEYS {
            if let Some(value) = lookup(layer, key) {
                self.0.insert(key, (value.clone(), origin(key)));
            }
        }
    }

    fn add_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = fs::read_to_string(path)
            .map_err(|error| ConfigError::Read { path: path.to_owned(), error })?;
        let invalid = |error: toml::de::Error| ConfigError::Invalid {
            path: path.to_owned(),
            line: line_at(&text, error.span().map_or(0, |span| span.start)),
            message: message(&error),
        };
        toml::from_str::<Settings>(&text).map_err(invalid)?;
        let layer = toml::from_str::<Table>(&text).map_err(invalid)?;
        let spans = DeTable::parse(&text).map_err(invalid)?;
        let line_of = |key: &str| line_at(&text, offset_of(spans.get_ref(), key));
        // serde takes an array of values for a section, too.
        let mut sections = KEYS.iter().filter_map(|key| Some(key.split_once('.')?.0));
        let is_array = |section: &&str| layer.get(*section).is_some_and(Value::is_array);
        if let Some(section) = sections.find(is_array) {
            return Err(ConfigError::Invalid {
                path: path.to_owned(),
                line: line_of(section),
                message: format!("`{section}` is an array, expected a table"),
            });
        }
        self.add(&layer, |key| format!("{}:{}", path.display(), line_of(key)));
        Ok(())
    }

    fn add_variable(&mut self, name: &str, text: &str) -> Result<(), ConfigError> {
        let key = KEYS
            .iter()
            .find(|key| variable(key) == name)
            .ok_or_else(|| ConfigError::UnknownVariable { name: name.to_owned() })?;
        let invalid = |message| ConfigError::InvalidVariable { name: name.to_owned(), message };
        // The default shows the type; what has none is text.
        let value = match self.0.get(key) {
            Some((Value::Boolean(_), _)) => match text {
                "true" | "1" => Value::Boolean(true),
                "false" | "0" => Value::Boolean(false),
                _ => return Err(invalid(format!("{text:?} is neither true nor false"))),
            },
            Some((Value::Integer(_), _)) => match text.parse::<i64>() {
                Ok(number) => Value::Integer(number),
                Err(_) => return Err(invalid(format!("{text:?} is no whole number"))),
            },
            Some((Value::Array(_), _)) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Value::Array(items.map(Value::from).collect())
            }
            _ => Value::from(text),
        };
        let mut layer = Table::new();
        insert(&mut layer, key, value);
        let checked: Result<Settings, _> = layer.clone().try_into();
        checked.map_err(|error| invalid(message(&error)))?;
        self.add(&layer, |_| name.to_owned());
        Ok(())
    }

    fn merge(self) -> Loaded {
        let mut merged = Table::new();
        let mut origins = Vec::with_capacity(KEYS.len());
        for key in KEYS {
            let (value, origin) = match self.0.get(key) {
                Some((value, origin)) => (value.to_string(), origin.as_str()),
                None => (String::new(), "default"),
            };
            origins.push((String::from(*key), value, origin.to_owned()));
        }
        for (key, (value, _)) in self.0 {
            insert(&mut merged, key, value);
        }
        let settings = merged.try_into().expect("each layer was checked alone");
        Loaded { settings, origins }
    }
}

/// `conf.d/*.toml` beside the main file, by name.
fn drop_ins(main: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let dir = main.with_file_name("conf.d");
    let list = || -> io::Result<Vec<PathBuf>> {
        fs::read_dir(&dir)?.map(|entry| Ok(entry?.path())).collect()
    };
    let mut paths = match list() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        result => result.map_err(|error| ConfigError::Read { path: dir, error })?,
    };
    // Hidden files are left out: editors keep their own there.
    paths.retain(|path| {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        name.ends_with(b".toml") && !name.starts_with(b".")
    });
    paths.sort();
    Ok(paths)
}

/// Root's state is the system's; anybody else's lies where the XDG Base Directory Specification
/// says, which has relative paths ignored. A service user without a home gets the system's.
fn default_state(environment: &[(String, String)]) -> PathBuf {
    if rustix::process::geteuid().is_root() { STATE_DIR.into() } else { state_of_user(environment) }
}

fn state_of_user(environment: &[(String, String)]) -> PathBuf {
    let absolute = |name: &str| {
        let (_, value) = environment.iter().find(|(known, _)| known == name)?;
        Some(PathBuf::from(value)).filter(|path| path.is_absolute())
    };
    absolute("XDG_STATE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".local/state")))
        .map_or_else(|| STATE_DIR.into(), |state| state.join("isotope"))
}

/// The environment as text. Somebody else's variable may hold anything, ours may not.
fn environment() -> Result<Vec<(String, String)>, ConfigError> {
    let mut environment = Vec::new();
    for (name, value) in env::vars_os() {
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => environment.push((name, value)),
            Err(_) if name.starts_with(VARIABLE_PREFIX) => {
                return Err(ConfigError::InvalidVariable { name, message: "not UTF-8".to_owned() });
            }
            Err(_) => {}
        }
    }
    Ok(environment)
}

/// `catalog.listen` is `ISOTOPE_CATALOG_LISTEN`.
fn variable(key: &str) -> String {
    format!("{VARIABLE_PREFIX}{}", key.to_ascii_uppercase().replace('.', "_"))
}

fn variables() -> String {
    KEYS.iter().map(|key| variable(key)).collect::<Vec<_>>().join(", ")
}

fn lookup<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        Some((section, key)) => table.get(section)?.get(key),
        None => table.get(key),
    }
}

fn insert(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        Some((section, key)) => {
            let section = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            section.as_table_mut().expect("a section is a table").insert(key.to_owned(), value);
        }
        None => _ = table.insert(key.to_owned(), value),
    }
}

/// Where in the text `key` stands.
fn offset_of(table: &DeTable<'_>, key: &str) -> usize {
    let (name, rest) = key.split_once('.').map_or((key, None), |(name, rest)| (name, Some(rest)));
    let Some((span, value)) = table.get_key_value(name) else { return 0 };
    match (rest, value.get_ref().as_table()) {
        (Some(rest), Some(table)) => offset_of(table, rest),
        _ => span.span().start,
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

/// In one line, and in the words of the documentation rather than of the code.
fn message(error: &toml::de::Error) -> String {
    error
        .message()
        .replace("unknown field", "unknown key")
        .replace("invalid socket address syntax", "not an address of the form IP:PORT")
        .replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `/etc/isotope` in a temporary directory.
    struct Etc(tempfile::TempDir);

    impl Etc {
        fn with(files: &[(&str, &str)]) -> Self {
            let dir = tempfile::Builder::new().prefix("isotope-test").tempdir().unwrap();
            for (name, text) in files {
                let path = dir.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            Self(dir)
        }

        fn load(&self, environment: &[(&str, &str)]) -> Result<Loaded, String> {
            let environment: Vec<_> = environment
                .iter()
                .map(|(name, value)| (String::from(*name), String::from(*value)))
                .collect();
            load_from(&self.0.path().join("isotope.toml"), false, &environment)
                .map_err(|error| self.without_dir(&error.to_string()))
        }

        fn without_dir(&self, text: &str) -> String {
            text.replace(&format!("{}/", self.0.path().display()), "")
        }

        fn origin(&self, loaded: &Loaded, key: &str) -> (String, String) {
            let (_, value, origin) = loaded.origins.iter().find(|(name, ..)| name == key).unwrap();
            (value.clone(), self.without_dir(origin))
        }
    }

    #[test]
    fn nothing_set_is_the_defaults() {
        let etc = Etc::with(&[]);
        let environment = [("HOME", "/home/me"), ("PATH", "/bin")];
        let loaded = etc.load(&environment).unwrap();
        let state = loaded.settings.state.clone();
        assert_eq!(loaded.settings, Settings { state, ..Settings::default() });
        let keys: Vec<_> = loaded.origins.iter().map(|(key, ..)| key.as_str()).collect();
        assert_eq!(keys, KEYS);
        assert!(loaded.origins.iter().all(|(_, _, origin)| origin == "default"));
        let check = |key: &str, value: &str| assert_eq!(etc.origin(&loaded, key).0, value);
        check("insecure", "false");
        check("catalog.listen", "\"127.0.0.1:7430\"");
        check("agent.listen", "\"127.0.0.1:7431\"");
        check("agent.name", "");
        check("agent.pools", "[]");
        check("log.format", "\"text\"");
    }

    #[test]
    fn each_layer_covers_the_ones_below() {
        let etc = Etc::with(&[
            (
                "isotope.toml",
                "# ours\ninsecure = true\n\n[catalog]\nlisten = \"[::1]:1\"\nurl = \"http://a:1\"\n\
                 [agent]\npools = [\n  \"/srv/a\",\n  \"/srv/b=fast\",\n]\nname = \"a\"\n",
            ),
            ("conf.d/20-b.toml", "catalog.url = \"http://c:1\"\nlog = { format = \"json\" }\n"),
            ("conf.d/10-a.toml", "[catalog]\nurl = \"http://b:1\"\n[agent]\nname = \"b\"\n"),
            ("conf.d/.hidden.toml", "not = toml = at all"),
            ("conf.d/README", "nor is this"),
        ]);
        let environment = [
            ("ISOTOPE_AGENT_NAME", "c"),
            ("ISOTOPE_CONFIG", "any"),
            ("ISOTOPE_LOG_FILTER", "debug"),
        ];
        let loaded = etc.load(&environment).unwrap();
        let settings = &loaded.settings;
        assert_eq!(settings.catalog.listen, "[::1]:1".parse().unwrap());
        assert_eq!(settings.agent.pools, ["/srv/a", "/srv/b=fast"]);
        assert_eq!(settings.log.format, LogFormat::Json);
        let check = |key: &str, value: &str, origin: &str| {
            let expected = (value.to_owned(), origin.to_owned());
            assert_eq!(etc.origin(&loaded, key), expected, "{key}");
        };
        check("insecure", "true", "isotope.toml:2");
        check("catalog.listen", "\"[::1]:1\"", "isotope.toml:5");
        check("catalog.url", "\"http://c:1\"", "conf.d/20-b.toml:1");
        check("agent.name", "\"c\"", "ISOTOPE_AGENT_NAME");
        check("agent.pools", "[\"/srv/a\", \"/srv/b=fast\"]", "isotope.toml:8");
        check("log.filter", "\"debug\"", "ISOTOPE_LOG_FILTER");
        check("log.format", "\"json\"", "conf.d/20-b.toml:2");
        check("mount.dir", "\"/mnt/isos\"", "default");
    }

    #[test]
    fn a_mistake_is_named_with_its_file_and_line() {
        let check = |text: &str, expected: &str| {
            let error = Etc::with(&[("isotope.toml", text)]).load(&[]).unwrap_err();
            assert_eq!(error, format!("isotope.toml:{expected}"), "{text}");
            let error = Etc::with(&[("conf.d/a.toml", text)]).load(&[]).unwrap_err();
            assert_eq!(error, format!("conf.d/a.toml:{expected}"), "{text}");
        };
        check(
            "[catalog]\nlissten = \"127.0.0.1:1\"\n",
            "2: unknown key `lissten`, expected one of `listen`, `url`, `scan_every`",
        );
        check(
            "\n[katalog]\nlisten = \"127.0.0.1:1\"\n",
            "2: unknown key `katalog`, expected one of \
             `state`, `insecure`, `catalog`, `agent`, `mount`, `log`",
        );
        check("mount.dri = \"/mnt\"\n", "1: unknown key `dri`, expected `dir` or `options`");
        check(
            "[mount]\noptions = \"ro,uidd=1\"\n",
            "2: there is no mount option \"uidd\"; docs/MOUNTING.md has them all",
        );
        check("mount.options = \"config=/x\"\n", "1: the option config belongs to mount -o alone");
        check(
            "# one\n# two\ninsecure = \"yes\"\n",
            "3: invalid type: string \"yes\", expected a boolean",
        );
        check("[agent]\nlisten = \"somewhere\"\n", "2: not an address of the form IP:PORT");
        check("[log]\nformat = \"xml\"\n", "2: unknown variant `xml`, expected `text` or `json`");
        check("catalog = []\n", "1: `catalog` is an array, expected a table");
        check("catalog = 1\n", "1: invalid type: integer `1`, expected a table");
        check("[log]\nfilter = \"a\"\nfilter = \"b\"\n", "3: duplicate key");
        check("[log]\nfilter\n", "2: key with no value, expected `=`");
    }

    #[test]
    fn a_variable_of_no_use_is_named() {
        let check = |name: &str, value: &str, expected: &str| {
            let error = Etc::with(&[]).load(&[(name, value)]).unwrap_err();
            assert!(error.starts_with(&format!("the environment variable {name}")), "{error}");
            assert!(error.contains(expected), "{error}");
        };
        check("ISOTOPE_CATALOG_LISTENS", "", "ISOTOPE_CATALOG_LISTEN, ISOTOPE_CATALOG_URL");
        check("ISOTOPE_", "", "is no setting");
        check("ISOTOPE_INSECURE", "maybe", "\"maybe\" is neither true nor false");
        check("ISOTOPE_AGENT_LISTEN", "7431", "IP:PORT");
        check("ISOTOPE_LOG_FORMAT", "xml", "`text` or `json`");
    }

    #[test]
    fn variables_are_typed_like_their_defaults() {
        let etc = Etc::with(&[]);
        let environment = [
            ("ISOTOPE_STATE", "/srv/state"),
            ("ISOTOPE_INSECURE", "1"),
            ("ISOTOPE_AGENT_ADVERTISE", "node1:7431"),
            ("ISOTOPE_AGENT_POOLS", "/srv/a, /srv/b=fast,"),
        ];
        let settings = etc.load(&environment).unwrap().settings;
        assert_eq!(settings.state, Path::new("/srv/state"));
        assert!(settings.insecure);
        assert_eq!(settings.agent.advertise.as_deref(), Some("node1:7431"));
        assert_eq!(settings.agent.pools, ["/srv/a", "/srv/b=fast"]);
    }

    #[test]
    fn a_file_asked_for_must_exist() {
        let main = Path::new("/nonexistent/isotope.toml");
        let error = load_from(main, true, &[]).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/isotope.toml"), "{error}");
        assert!(load_from(main, false, &[]).is_ok());
    }

    #[test]
    fn the_state_of_a_user_lies_in_the_home() {
        let check = |environment: &[(&str, &str)], expected: &str| {
            let environment: Vec<_> = environment
                .iter()
                .map(|(name, value)| (String::from(*name), String::from(*value)))
                .collect();
            assert_eq!(state_of_user(&environment), Path::new(expected));
        };
        check(&[("HOME", "/home/me")], "/home/me/.local/state/isotope");
        check(&[("HOME", "/home/me"), ("XDG_STATE_HOME", "/state")], "/state/isotope");
        check(
            &[("HOME", "/home/me"), ("XDG_STATE_HOME", "state")],
            "/home/me/.local/state/isotope",
        );
        check(&[], STATE_DIR);
    }

    #[test]
    fn every_key_is_listed() {
        let mut settings = Settings::default();
        settings.agent.advertise = Some(String::new());
        settings.agent.name = Some(String::new());
        let table = Table::try_from(&settings).unwrap();
        let leaves: usize = table.values().map(|v| v.as_table().map_or(1, Table::len)).sum();
        assert_eq!(leaves, KEYS.len());
        assert!(KEYS.iter().all(|key| lookup(&table, key).is_some()));
    }
}
