//! Names and paths that cannot hold what a file system cannot.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Levels of folders below the root.
pub const FOLDER_DEPTH_MAX: usize = 5;

/// In the root, the folder of the views that a mount makes of the library: nothing else has the name.
pub const VIEWS: &str = ".views";

/// Why a text is no name or path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    #[error("a name cannot be empty")]
    Empty,
    #[error("{0:?} cannot be used as a name")]
    Reserved(String),
    #[error("the name {0:?} contains a slash")]
    Slash(String),
    #[error("the name {0:?} contains a control character")]
    Control(String),
    #[error("the name is not UTF-8")]
    NotUtf8,
    #[error("the name is {0} bytes long; at most {max} are possible", max = EntryName::LEN_MAX)]
    TooLong(usize),
    #[error("{0:?} is not an absolute path of the library; it must begin with '/'")]
    NotAbsolute(String),
    #[error("{0:?} lies deeper than {FOLDER_DEPTH_MAX} folders")]
    TooDeep(String),
}

/// One component of a library path: 1 to 255 bytes of UTF-8, not `.` or `..`, no `/`, no control
/// character. Byte-exact: case and Unicode normal forms stay distinct.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryName(Arc<str>);

impl EntryName {
    /// `NAME_MAX` on Linux: a longer name could be stored but never looked up.
    pub const LEN_MAX: usize = 255;

    pub fn parse(name: &str) -> Result<Self, InvalidName> {
        match name {
            "" => Err(InvalidName::Empty),
            "." | ".." => Err(InvalidName::Reserved(name.to_owned())),
            _ if name.contains('/') => Err(InvalidName::Slash(name.to_owned())),
            _ if name.len() > Self::LEN_MAX => Err(InvalidName::TooLong(name.len())),
            _ if name.chars().any(char::is_control) => Err(InvalidName::Control(name.to_owned())),
            _ => Ok(Self(name.into())),
        }
    }

    /// A name from the kernel or a directory, which promises no encoding.
    pub fn parse_bytes(name: &[u8]) -> Result<Self, InvalidName> {
        Self::parse(std::str::from_utf8(name).map_err(|_| InvalidName::NotUtf8)?)
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name with `addition` put before its extension: `a.iso`, `fast` → `a.fast.iso`.
    /// Shortens the stem where the result would be too long.
    #[must_use]
    pub fn with_addition(&self, addition: &str) -> Self {
        let (stem, extension) = match self.0.rsplit_once('.') {
            Some((stem, _)) if !stem.is_empty() => self.0.split_at(stem.len()),
            _ => (&*self.0, ""),
        };
        let room = Self::LEN_MAX.saturating_sub(extension.len() + addition.len() + 1);
        let stem = &stem[..stem.floor_char_boundary(room)];
        let name = format!("{stem}.{addition}{extension}");
        Self(name[..name.floor_char_boundary(Self::LEN_MAX)].into())
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// Lets a map keyed by names be asked with a `&str`.
impl std::borrow::Borrow<str> for EntryName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// A folder of the library, at most [`FOLDER_DEPTH_MAX`] levels below the root.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FolderPath(Vec<EntryName>);

impl FolderPath {
    pub const ROOT: Self = Self(Vec::new());

    /// Refuses more than [`FOLDER_DEPTH_MAX`] names.
    pub fn from_names(names: Vec<EntryName>) -> Result<Self, InvalidName> {
        if names.len() > FOLDER_DEPTH_MAX {
            return Err(InvalidName::TooDeep(LibraryPath(names).to_string()));
        }
        Ok(Self(names))
    }

    #[must_use]
    pub fn names(&self) -> &[EntryName] {
        &self.0
    }
}

impl FromStr for FolderPath {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::from_names(LibraryPath::from_str(text)?.0)
    }
}

impl fmt::Display for FolderPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_path(&self.0, f)
    }
}

/// Any place in the library: a folder, or an image in one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LibraryPath(Vec<EntryName>);

impl LibraryPath {
    #[must_use]
    pub fn names(&self) -> &[EntryName] {
        &self.0
    }

    /// The folder a path lies in, and its name there; `None` for the root.
    #[must_use]
    pub fn split(&self) -> Option<(FolderPath, EntryName)> {
        let (name, folder) = self.0.split_last()?;
        Some((FolderPath(folder.to_vec()), name.clone()))
    }

    #[must_use]
    pub fn join(&self, name: EntryName) -> Self {
        let mut names = self.0.clone();
        names.push(name);
        Self(names)
    }
}

impl FromStr for LibraryPath {
    type Err = InvalidName;

    /// Empty components are passed over, as the kernel does: `//a/` is `/a`.
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let rest =
            text.strip_prefix('/').ok_or_else(|| InvalidName::NotAbsolute(text.to_owned()))?;
        let names = rest
            .split('/')
            .filter(|name| !name.is_empty())
            .map(EntryName::parse)
            .collect::<Result<Vec<_>, _>>()?;
        if names.len() > FOLDER_DEPTH_MAX + 1 {
            return Err(InvalidName::TooDeep(text.to_owned()));
        }
        Ok(Self(names))
    }
}

impl fmt::Display for LibraryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_path(&self.0, f)
    }
}

fn fmt_path(names: &[EntryName], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if names.is_empty() {
        return f.write_str("/");
    }
    names.iter().try_for_each(|name| write!(f, "/{name}"))
}

/// A file's place in its volume: relative, no empty, `.` or `..` component, no NUL.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumePath(Box<str>);

impl VolumePath {
    pub fn parse(path: &str) -> Result<Self, InvalidName> {
        let bad = |part: &str| matches!(part, "" | "." | "..") || part.contains('\0');
        if path.split('/').any(bad) {
            return Err(InvalidName::Reserved(path.to_owned()));
        }
        Ok(Self(path.into()))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    #[must_use]
    pub fn file_name(&self) -> &str {
        self.0.rsplit_once('/').map_or(&self.0, |(_, name)| name)
    }
}

impl fmt::Display for VolumePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for VolumePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_a_file_system_can_hold() {
        let long = "x".repeat(256);
        for (name, fine) in [
            ("ubuntu.iso", true),
            ("Änderung 7.iso", true),
            ("...", true),
            (&long[..255], true),
            ("", false),
            (".", false),
            ("..", false),
            ("a/b", false),
            ("a\nb", false),
            ("a\u{1b}[31m", false),
            ("a\0", false),
            (&long, false),
        ] {
            assert_eq!(EntryName::parse(name).is_ok(), fine, "{name:?}");
        }
        assert_eq!(EntryName::parse_bytes(b"\xff\xfe"), Err(InvalidName::NotUtf8));
    }

    #[test]
    fn additions_stand_before_the_extension() {
        let long = format!("{}.iso", "ä".repeat(125));
        for (name, addition, expected) in [
            ("a.iso", "fast", "a.fast.iso".to_owned()),
            ("a.b.iso", "2", "a.b.2.iso".to_owned()),
            ("noext", "fast", "noext.fast".to_owned()),
            (".hidden", "fast", ".hidden.fast".to_owned()),
            (&long, "fast", format!("{}.fast.iso", "ä".repeat(123))),
        ] {
            let name = EntryName::parse(name).expect("a name");
            assert_eq!(name.with_addition(addition).as_str(), expected);
        }
    }

    #[test]
    fn paths_are_absolute_and_bounded() {
        for (text, expected) in [
            ("/", Some("/")),
            ("/linux", Some("/linux")),
            ("//linux//x.iso/", Some("/linux/x.iso")),
            ("/1/2/3/4/5/x.iso", Some("/1/2/3/4/5/x.iso")),
            ("/1/2/3/4/5/6/x.iso", None),
            ("linux", None),
            ("/a/../b", None),
        ] {
            let path = LibraryPath::from_str(text).ok().map(|path| path.to_string());
            assert_eq!(path.as_deref(), expected, "{text}");
        }
        assert!(FolderPath::from_str("/1/2/3/4/5").is_ok());
        assert!(FolderPath::from_str("/1/2/3/4/5/6").is_err());
    }

    #[test]
    fn volume_paths_stay_beneath_the_volume() {
        for (path, fine) in [
            ("iso/a.iso", true),
            ("iso/linux/..a.iso", true),
            ("/etc/passwd", false),
            ("iso/../../etc", false),
            ("iso//a", false),
            ("", false),
        ] {
            assert_eq!(VolumePath::parse(path).is_ok(), fine, "{path:?}");
        }
    }
}
