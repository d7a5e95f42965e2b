//! Which files of a volume are images: the directory they lie in, and the names that are taken.
//! Real directories are met as they are; it knows names only, not the disk.

use glob::{MatchOptions, Pattern};
use isotope_proto::image::ImageFormat;
use isotope_proto::name::VolumePath;
use serde::{Deserialize, Serialize};

/// Where images lie unless something else is said.
const IMAGE_DIR: &str = "iso";
/// Patterns are compared with every file name there is.
const INCLUDES_MAX: usize = 32;

/// What a volume's marker says of how the directory is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "LayoutFile", into = "LayoutFile")]
pub(crate) struct Layout {
    image_dir: String,
    include: Vec<Pattern>,
    read_only: bool,
}

#[derive(Serialize, Deserialize)]
struct LayoutFile {
    #[serde(default = "default_dir")]
    dir: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    include: Vec<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    read_only: bool,
}

fn default_dir() -> String {
    IMAGE_DIR.to_owned()
}

/// Why a layout cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidLayout {
    #[error("{0:?} is no directory below a pool's own; give one like template/iso")]
    Dir(String),
    #[error("{pattern:?} is no pattern for file names: {reason}")]
    Include { pattern: String, reason: String },
    #[error("at most {INCLUDES_MAX} patterns can be given")]
    Includes,
}

impl Layout {
    /// `dir` is the images' directory below the volume's; of `include`, one must match a file's
    /// name (none: the names of ISO, IMG and OVA files are taken). Nothing is ever written to a
    /// `read_only` volume.
    pub(crate) fn new(
        dir: &str,
        include: &[String],
        read_only: bool,
    ) -> Result<Self, InvalidLayout> {
        let image_dir = dir.trim_end_matches('/').to_owned();
        let is_hidden = image_dir.split('/').any(|part| part.starts_with('.'));
        if is_hidden || VolumePath::parse(&image_dir).is_err() {
            return Err(InvalidLayout::Dir(dir.to_owned()));
        }
        if include.len() > INCLUDES_MAX {
            return Err(InvalidLayout::Includes);
        }
        let pattern = |text: &String| {
            Pattern::new(text).map_err(|error| InvalidLayout::Include {
                pattern: text.clone(),
                reason: error.msg.to_owned(),
            })
        };
        let include = include.iter().map(pattern).collect::<Result<_, _>>()?;
        Ok(Self { image_dir, include, read_only })
    }

    /// The images' directory, below the volume's root.
    pub(crate) fn image_dir(&self) -> &str {
        &self.image_dir
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether a file of that name is taken for an image. Hidden ones are other tools' unfinished
    /// files.
    pub(crate) fn takes(&self, name: &str) -> bool {
        let any_case = MatchOptions { case_sensitive: false, ..MatchOptions::new() };
        let included = || self.include.iter().any(|pattern| pattern.matches_with(name, any_case));
        let is_image = || ImageFormat::of_name(name).is_some();
        !name.starts_with('.') && if self.include.is_empty() { is_image() } else { included() }
    }
}

impl Default for Layout {
    fn default() -> Self {
        Self { image_dir: default_dir(), include: Vec::new(), read_only: false }
    }
}

impl TryFrom<LayoutFile> for Layout {
    type Error = InvalidLayout;
    fn try_from(file: LayoutFile) -> Result<Self, InvalidLayout> {
        Self::new(&file.dir, &file.include, file.read_only)
    }
}

impl From<Layout> for LayoutFile {
    fn from(layout: Layout) -> Self {
        let include = layout.include.iter().map(|pattern| pattern.as_str().to_owned()).collect();
        Self { dir: layout.image_dir, include, read_only: layout.read_only }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_by_extension_or_by_pattern() {
        let texts = |include: &[&str]| include.iter().map(|&it| it.to_owned()).collect::<Vec<_>>();
        for (include, name, taken) in [
            (&[][..], "a.iso", true),
            (&[], "A.IMG", true),
            (&[], "a.qcow2", false),
            (&[], ".a.iso", false),
            (&["*.qcow2", "debian-*"], "a.qcow2", true),
            (&["*.qcow2", "debian-*"], "Debian-12.iso", true),
            (&["*.qcow2", "debian-*"], "a.iso", false),
            (&["*"], ".a.iso", false),
        ] {
            let layout = Layout::new("iso", &texts(include), false).expect("a layout");
            assert_eq!(layout.takes(name), taken, "{include:?} {name}");
        }
    }

    #[test]
    fn a_directory_lies_below_the_volume() {
        for (dir, fine) in [
            ("iso", true),
            ("template/iso/", true),
            ("", false),
            ("/iso", false),
            ("../iso", false),
            (".isotope", false),
            ("a//b", false),
        ] {
            assert_eq!(Layout::new(dir, &[], false).is_ok(), fine, "{dir:?}");
        }
        assert!(Layout::new("iso", &["[".to_owned()], false).is_err());
    }

    #[test]
    fn it_survives_a_marker_and_old_markers_have_none() {
        let layout = Layout::new("template/iso", &["*.iso".to_owned()], true).expect("a layout");
        let text = serde_json::to_string(&layout).expect("encoded");
        assert_eq!(serde_json::from_str::<Layout>(&text).expect("decoded"), layout);
        assert_eq!(serde_json::from_str::<Layout>("{}").expect("decoded"), Layout::default());
        assert!(serde_json::from_str::<Layout>(r#"{"dir":".."}"#).is_err());
    }
}
