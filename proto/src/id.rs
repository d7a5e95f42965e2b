//! Identities. An id says what it names, so that a pool's cannot be passed for a volume's.

use std::fmt;
use std::str::FromStr;

use uuid::{NoContext, Uuid};

use crate::time::Timestamp;

/// Text or bytes that are no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an id: {0:?}; an id looks like 0190a3c4-7d1e-7c3a-9f53-2b8e6a1d4c5f")]
pub struct InvalidId(String);

macro_rules! uuid_ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// A new id (UUIDv7), sorting after those minted at an earlier `now`.
            #[must_use]
            pub fn mint(now: Timestamp) -> Self {
                let (seconds, nanos) = now.since_epoch();
                Self(Uuid::new_v7(uuid::Timestamp::from_unix(NoContext, seconds, nanos)))
            }

            #[must_use]
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Uuid::parse_str(text).map(Self).map_err(|_| InvalidId(text.to_owned()))
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = InvalidId;
            fn try_from(bytes: &[u8]) -> Result<Self, InvalidId> {
                Uuid::from_slice(bytes).map(Self).map_err(|_| InvalidId(format!("{bytes:02x?}")))
            }
        }

        impl From<$name> for Vec<u8> {
            fn from(id: $name) -> Self {
                id.0.as_bytes().to_vec()
            }
        }
    )*};
}

uuid_ids! {
    /// A host running an agent.
    NodeId;
    /// A named place for images.
    PoolId;
    /// One physical directory belonging to a pool, known by its marker.
    VolumeId;
    /// An immutable content with a name, metadata and one inode number.
    ImageId;
    /// Immutable bytes; images that are found equal share one.
    ContentId;
    /// One intended change; asked for twice, it is made once.
    RequestId;
    /// One file being written.
    UploadId;
    /// One life of one mount.
    SessionId;
    /// One life of a catalogue: a restore or rebuild begins another.
    Incarnation;
    /// One run of one scan.
    ScanId;
    /// One start of an agent.
    BootId;
    /// One time of an agent as the keeper of a volume.
    LeaseId;
}

macro_rules! counter_ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

counter_ids! {
    /// An inode number: bound to one folder or one content, never reused.
    Ino;
    /// An entry's id, never reused: readdir cookie and page token.
    EntryId;
    /// A position in the change feed, one step per committed change.
    Revision;
}

impl Ino {
    /// The root folder; FUSE fixes it at 1.
    pub const ROOT: Self = Self(1);
}

impl Revision {
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}
