//! Mount options, as mount(8), fstab(5) and the configuration write them: text in, values out. Knows
//! neither users' names nor what a value does to a mount.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// All permission bits of chmod(2) that a mask may hide.
const MASK_MAX: u32 = 0o777;

/// Options that mount(8), systemd or the kernel have for every file system, and that change nothing
/// here: a mount is always `nosuid`, `nodev` and `noatime`, and checks permissions.
const GENERIC: &[&str] = &[
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "nofail",
    "_netdev",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "async",
    "sync",
    "dirsync",
    "silent",
    "loud",
    "default_permissions",
];

/// The same, with anything behind them: for systemd, for people, for umount(8).
const GENERIC_PREFIXES: &[&str] = &["x-", "X-", "comment=", "user=", "helper=", "uhelper="];

/// Whether users other than the one who mounts may see the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    LetIn,
    KeptOut,
}

/// What becomes of the directory beneath the mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Beneath {
    /// It refuses writes from now on (`chattr +i`), where it can be made to.
    #[default]
    Immutable,
    LeftAlone,
}

/// How images are read that lie on this host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Local {
    /// By the kernel from their files, where that can be.
    #[default]
    PassedThrough,
    /// As those of other hosts are, through the mount, which sees each byte.
    Verified,
}

/// A user or group, by number or by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Account {
    Number(u32),
    Name(String),
}

/// How long a mount waits for a catalogue that is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    ForEver,
    AtMost(Duration),
}

/// Less than a second would fail reads on a network that hiccups; nobody waits for longer than that
/// and calls it reading.
const READ_TIMEOUT_SECONDS: std::ops::RangeInclusive<u64> = 1..=300;

/// What the options ask for; what they leave open is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    pub read_only: bool,
    /// Nothing in the mount may be run as a program.
    pub no_exec: bool,
    pub others: Option<Others>,
    pub uid: Option<Account>,
    pub gid: Option<Account>,
    /// Permission bits that files do not show.
    pub file_mask: u32,
    /// Permission bits that folders do not show.
    pub folder_mask: u32,
    /// The URL of the catalogue.
    pub catalog: Option<String>,
    /// The view to show in place of the library's own tree.
    pub view: Option<String>,
    /// The main file of the configuration.
    pub config: Option<PathBuf>,
    pub wait: Option<Wait>,
    pub beneath: Beneath,
    pub local: Local,
    /// Where the mount's numbers are served.
    pub metrics: Option<SocketAddr>,
    /// All hosts together have so long to deliver one read.
    pub read_timeout: Option<Duration>,
}

/// What happens to an option that nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    Refused,
    /// mount(8)'s `-s`.
    PassedOver,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOption {
    #[error("there is no mount option {0:?}; docs/MOUNTING.md has them all")]
    Unknown(String),
    #[error("the mount option {name}={value} makes no sense; it takes {expected}")]
    Value { name: String, value: String, expected: &'static str },
    #[error("the mount option {name} takes no value; it was given {value:?}")]
    NoValue { name: String, value: String },
    #[error("a mount cannot be changed; unmount it (umount DIR) and mount it with other options")]
    Remount,
    #[error("there is no mount option bg; write nofail,timeout=SECONDS instead")]
    Background,
}

impl Options {
    /// Options as `ro,uid=1000`; of those that contradict each other the later one counts.
    ///
    /// # Errors
    /// The first one that is unknown, or whose value cannot be used.
    pub fn parse(text: &str) -> Result<Self, InvalidOption> {
        let mut options = Self::default();
        options.add(text, Unknown::Refused)?;
        Ok(options)
    }

    /// Adds options, which cover those there are.
    ///
    /// # Errors
    /// As [`Options::parse`]; those before the one at fault have been added.
    pub fn add(&mut self, text: &str, unknown: Unknown) -> Result<(), InvalidOption> {
        for option in text.split(',').map(str::trim).filter(|it| !it.is_empty()) {
            match self.add_one(option) {
                Err(InvalidOption::Unknown(_)) if unknown == Unknown::PassedOver => {}
                result => result?,
            }
        }
        Ok(())
    }

    fn add_one(&mut self, option: &str) -> Result<(), InvalidOption> {
        let is_generic = GENERIC.contains(&option)
            || GENERIC_PREFIXES.iter().any(|prefix| option.starts_with(prefix));
        if is_generic {
            return Ok(());
        }
        match option.split_once('=') {
            Some((name, value)) => self.set(name, value),
            None => self.switch(option),
        }
    }

    fn switch(&mut self, name: &str) -> Result<(), InvalidOption> {
        match name {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "exec" => self.no_exec = false,
            "noexec" => self.no_exec = true,
            "allow_other" => self.others = Some(Others::LetIn),
            "noallow_other" => self.others = Some(Others::KeptOut),
            "immutable" => self.beneath = Beneath::Immutable,
            "noimmutable" => self.beneath = Beneath::LeftAlone,
            "verify_local" => self.local = Local::Verified,
            "noverify_local" => self.local = Local::PassedThrough,
            "remount" => return Err(InvalidOption::Remount),
            "bg" => return Err(InvalidOption::Background),
            // It takes a value; without one it says what is expected.
            _ => return self.set(name, ""),
        }
        Ok(())
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), InvalidOption> {
        let invalid = |expected| InvalidOption::Value {
            name: name.to_owned(),
            value: value.to_owned(),
            expected,
        };
        let some = |expected| Some(value).filter(|it| !it.is_empty()).ok_or(invalid(expected));
        let mask = || parse_mask(value).ok_or(invalid("octal digits from 0 to 777"));
        match name {
            "uid" => self.uid = Some(account(some("a user's number or name")?)),
            "gid" => self.gid = Some(account(some("a group's number or name")?)),
            "umask" => (self.file_mask, self.folder_mask) = (mask()?, mask()?),
            "fmask" => self.file_mask = mask()?,
            "dmask" => self.folder_mask = mask()?,
            "catalog" => self.catalog = Some(some("a URL like http://HOST:PORT")?.to_owned()),
            "view" => self.view = Some(some("a view's name")?.to_owned()),
            "config" => {
                let path = PathBuf::from(value);
                // Who mounts at boot is in no directory of note.
                self.config = Some(path).filter(|path| path.is_absolute());
                self.config.as_ref().ok_or(invalid("a file's absolute path"))?;
            }
            "read_timeout" => self.read_timeout = Some(read_timeout(value).map_err(invalid)?),
            "metrics" => {
                let address =
                    value.parse().map_err(|_| invalid("an address like 127.0.0.1:9700"))?;
                self.metrics = Some(address);
            }
            "timeout" => {
                let seconds = value.parse().map_err(|_| invalid("seconds, 0 for no end"))?;
                self.wait = Some(match seconds {
                    0 => Wait::ForEver,
                    _ => Wait::AtMost(Duration::from_secs(seconds)),
                });
            }
            "ro" | "rw" | "exec" | "noexec" | "allow_other" | "noallow_other" | "immutable"
            | "noimmutable" | "verify_local" | "noverify_local" => {
                let (name, value) = (name.to_owned(), value.to_owned());
                return Err(InvalidOption::NoValue { name, value });
            }
            _ => return Err(InvalidOption::Unknown(name.to_owned())),
        }
        Ok(())
    }
}

/// The time that hosts have to deliver one read, from whole seconds.
///
/// # Errors
/// What is expected instead.
pub fn read_timeout(text: &str) -> Result<Duration, &'static str> {
    let seconds = text.parse().ok().filter(|it| READ_TIMEOUT_SECONDS.contains(it));
    seconds.map(Duration::from_secs).ok_or("seconds from 1 to 300")
}

fn account(text: &str) -> Account {
    text.parse().map_or_else(|_| Account::Name(text.to_owned()), Account::Number)
}

fn parse_mask(text: &str) -> Option<u32> {
    // A sign is no digit.
    let digits = text.bytes().all(|it| it.is_ascii_digit());
    u32::from_str_radix(text, 8).ok().filter(|mask| digits && *mask <= MASK_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_the_later_one_counts() {
        let check = |text: &str, expected: Options| {
            assert_eq!(Options::parse(text), Ok(expected), "{text}");
        };
        let none = Options::default;
        check("", none());
        check("defaults, ,rw", none());
        check("ro,noexec", Options { read_only: true, no_exec: true, ..none() });
        check("ro,rw,noexec,exec", none());
        check("uid=1000,uid=0", Options { uid: Some(Account::Number(0)), ..none() });
        let kvm = Account::Name("kvm".to_owned());
        check("gid=kvm", Options { gid: Some(kvm), ..none() });
        check("umask=027", Options { file_mask: 0o27, folder_mask: 0o27, ..none() });
        check("umask=077,fmask=0", Options { folder_mask: 0o77, ..none() });
        check("fmask=0111,umask=022", Options { file_mask: 0o22, folder_mask: 0o22, ..none() });
        check("allow_other,noallow_other", Options { others: Some(Others::KeptOut), ..none() });
        check("noimmutable", Options { beneath: Beneath::LeftAlone, ..none() });
        let metrics = "[::1]:9700".parse().ok();
        check("metrics=[::1]:9700", Options { metrics, ..none() });
        check("verify_local", Options { local: Local::Verified, ..none() });
        check("verify_local,noverify_local", none());
        check("timeout=0", Options { wait: Some(Wait::ForEver), ..none() });
        let five = Wait::AtMost(Duration::from_secs(5));
        check("timeout=5", Options { wait: Some(five), ..none() });
        let read_timeout = Some(Duration::from_secs(3));
        check("read_timeout=3", Options { read_timeout, ..none() });
        check("view=flat", Options { view: Some("flat".to_owned()), ..none() });
        let catalog = Some("http://a:1".to_owned());
        check(
            "catalog=http://a:1,config=/x",
            Options { catalog, config: Some("/x".into()), ..none() },
        );
    }

    #[test]
    fn what_every_file_system_takes_is_taken() {
        let generic = "auto,noauto,user,users,owner,group,nofail,_netdev,x-systemd.automount,\
                       x-gvfs-show,comment=ours,user=me,suid,nosuid,dev,nodev,atime,noatime,\
                       relatime,async,sync";
        assert_eq!(Options::parse(generic), Ok(Options::default()));
    }

    #[test]
    fn a_mistake_is_named() {
        let check = |text: &str, expected: &str| {
            let error = Options::parse(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        };
        check("ro,uidd=1", "no mount option \"uidd\"");
        check("quick", "no mount option \"quick\"");
        check("uid", "uid= makes no sense; it takes a user's number or name");
        check("umask=8", "umask=8 makes no sense; it takes octal");
        check("fmask=+7", "fmask=+7 makes no sense");
        check("dmask=1777", "dmask=1777 makes no sense");
        check("umask=", "umask= makes no sense");
        check("timeout=soon", "it takes seconds");
        check("read_timeout=0", "it takes seconds from 1 to 300");
        check("read_timeout=301", "it takes seconds from 1 to 300");
        check("metrics=localhost", "an address like");
        check("view=", "a view's name");
        check("config=isotope.toml", "a file's absolute path");
        check("ro=1", "ro takes no value");
        check("remount,ro", "cannot be changed");
        check("bg", "nofail,timeout=");
    }

    #[test]
    fn a_sloppy_caller_has_unknown_options_passed_over() {
        let mut options = Options::default();
        options.add("quick,ro", Unknown::PassedOver).expect("passed over");
        assert!(options.read_only);
        assert!(options.add("umask=9", Unknown::PassedOver).is_err());
    }
}
