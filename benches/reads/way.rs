//! One way to the same bytes, and what was measured of it.

use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::{Advice, fadvise};

use crate::processes;
use crate::raw::{BUFFER_BYTES, Client, Sending};

/// Where the bytes are.
pub(crate) enum Place {
    Raw(SocketAddr, Sending),
    /// The file's pages are dropped from the kernel's cache to have it cold.
    Cold(PathBuf),
    /// A program that keeps its own cache: each cold read is of another file.
    Fresh(PathBuf),
}

/// What was measured, round by round; times in seconds.
#[derive(Default)]
pub(crate) struct Figures {
    pub(crate) cold: Vec<f64>,
    pub(crate) warm: Vec<f64>,
    /// Processor time of the cold reads: of the processes, and of the reader.
    pub(crate) processes: f64,
    pub(crate) reader: f64,
    pub(crate) cold_bytes: u64,
    /// Each read's.
    pub(crate) random: Vec<f64>,
    /// Reads a second, of eight at once.
    pub(crate) deep: Vec<f64>,
    pub(crate) first: Vec<f64>,
    /// The mean of a round's reads.
    pub(crate) seeking: Vec<f64>,
    /// Bytes a second of all readers together, and what the last had when the first was done.
    pub(crate) shared: Vec<f64>,
    pub(crate) fair: Vec<f64>,
}

pub(crate) struct Way {
    pub(crate) name: String,
    pub(crate) place: Place,
    /// What is served, where it is; none of what is read from a cold disk.
    served: Option<PathBuf>,
    roots: Vec<u32>,
    files_used: u32,
    pub(crate) figures: Figures,
}

/// An image that is open, or a connection.
pub(crate) enum Opened {
    File(File),
    Stream(Client),
}

impl Way {
    pub(crate) fn new(name: &str, place: Place, served: Option<PathBuf>, roots: Vec<u32>) -> Self {
        let (name, figures) = (name.to_owned(), Figures::default());
        Self { name, place, served, roots, files_used: 0, figures }
    }

    /// `NAME:cold|fresh:DIR:SERVED:PID,…`
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let [name, kind, dir, served, pids] = parts[..] else { return None };
        let place = match kind {
            "cold" => Place::Cold(dir.into()),
            "fresh" => Place::Fresh(dir.into()),
            _ => return None,
        };
        let pids: Result<_, _> =
            pids.split(',').filter(|it| !it.is_empty()).map(str::parse).collect();
        let served = (!served.is_empty()).then(|| served.into());
        Some(Self::new(name, place, served, pids.ok()?))
    }

    /// Processor time of its processes so far.
    pub(crate) fn seconds(&self) -> f64 {
        processes::seconds(&self.roots)
    }

    /// Reads an image as the server does, if there is one.
    pub(crate) fn read_at_server(&self, number: u32) -> io::Result<()> {
        if let Some(dir) = &self.served {
            io::copy(&mut File::open(image(dir, number))?, &mut io::sink())?;
        }
        Ok(())
    }

    /// What has to be opened to read cold bytes: nothing of it is in the kernel's cache.
    pub(crate) fn cold(&mut self) -> io::Result<u32> {
        match &self.place {
            Place::Raw(..) => {}
            Place::Cold(dir) => forget(&File::open(image(dir, 0))?)?,
            Place::Fresh(_) => self.files_used += 1,
        }
        Ok(self.files_used)
    }

    /// Some images that are cold, and not those of any other call where that makes a difference.
    pub(crate) fn many_cold(&mut self, count: u32) -> io::Result<Vec<u32>> {
        let first = match &self.place {
            Place::Raw(..) => 0,
            Place::Cold(dir) => {
                for number in 0..count {
                    forget(&File::open(image(dir, number))?)?;
                }
                0
            }
            Place::Fresh(_) => {
                self.files_used += count;
                self.files_used + 1 - count
            }
        };
        Ok((first..first + count).collect())
    }

    pub(crate) fn open(&self, number: u32) -> io::Result<Opened> {
        Ok(match &self.place {
            Place::Raw(address, sending) => Opened::Stream(Client::connect(*address, *sending)?),
            Place::Cold(dir) | Place::Fresh(dir) => Opened::File(File::open(image(dir, number))?),
        })
    }

    /// Reads an image whole, cold, and compares each byte; what is connected at the first read is
    /// connected then.
    pub(crate) fn compare(&mut self, source: &File) -> io::Result<()> {
        let size_bytes = source.metadata()?.len();
        let number = self.cold()?;
        let mut opened = self.open(number)?;
        let (mut at, mut right) = (0, vec![0; BUFFER_BYTES]);
        opened.whole(size_bytes, |bytes| {
            let right = &mut right[..bytes.len()];
            source.read_exact_at(right, at)?;
            assert!(right == bytes, "{}: other bytes within 1 MiB from {at}", self.name);
            at += bytes.len() as u64;
            Ok(())
        })?;
        assert_eq!(at, size_bytes, "{}: another size", self.name);
        Ok(())
    }
}

fn image(dir: &std::path::Path, number: u32) -> PathBuf {
    dir.join(format!("image-{number}.iso"))
}

/// Drops a file's pages from the kernel's cache.
pub(crate) fn forget(file: &File) -> io::Result<()> {
    Ok(fadvise(file, 0, None, Advice::DontNeed)?)
}

impl Opened {
    /// All bytes, in order, as `dd bs=1M` reads.
    pub(crate) fn whole(
        &mut self,
        size_bytes: u64,
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        if let Self::Stream(client) = self {
            client.read(0, u32::try_from(size_bytes).expect("an image below 4 GiB"))?;
        }
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut left = size_bytes;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(BUFFER_BYTES);
            let read = match self {
                Self::File(file) => file.read(&mut buffer[..most])?,
                Self::Stream(client) => client.take(&mut buffer[..most])?,
            };
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            take(&buffer[..read])?;
            left -= read as u64;
        }
        Ok(())
    }

    /// Exactly these bytes.
    pub(crate) fn at(&mut self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        match self {
            Self::File(file) => file.read_exact_at(bytes, at),
            Self::Stream(client) => {
                client.read(at, u32::try_from(bytes.len()).expect("a small range"))?;
                let mut filled = 0;
                while filled < bytes.len() {
                    match client.take(&mut bytes[filled..])? {
                        0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                        read => filled += read,
                    }
                }
                Ok(())
            }
        }
    }
}
