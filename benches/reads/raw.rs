//! The least that reading over TCP can cost: a thread that sends ranges of one file to whoever asks
//! for them, thirteen bytes a request, and nothing else.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// As much is read into memory and sent at a time.
const PIECE_BYTES: usize = 1 << 20;
/// As `dd bs=1M` reads.
pub(crate) const BUFFER_BYTES: usize = 1 << 20;

/// How the server sends.
#[derive(Clone, Copy)]
pub(crate) enum Sending {
    /// The kernel sends the file by itself.
    File,
    /// It is read into memory first.
    Memory,
}

/// The server, a process of its own so that its processor time can be told.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Server {
    pub(crate) fn start(file: &Path) -> io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("serve")
            .arg(file)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let output = child.stdout.take().expect("it is a pipe");
        BufReader::new(output).read_line(&mut line)?;
        let address = line.trim().parse().map_err(io::Error::other)?;
        Ok(Self { child, address })
    }

    pub(crate) fn pid(&self) -> Vec<u32> {
        vec![self.child.id()]
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves until it is killed; says where.
pub(crate) fn serve(file: &File) -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept()?;
        let file = file.try_clone()?;
        std::thread::spawn(move || answer(&file, stream));
    }
}

/// Until the other side has no more requests.
fn answer(file: &File, mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; PIECE_BYTES];
    let mut request = [0; 13];
    loop {
        stream.read_exact(&mut request)?;
        let [sending, rest @ ..] = request;
        let mut at = u64::from_be_bytes(*rest.first_chunk().expect("12 bytes"));
        let len = u32::from_be_bytes(*rest.last_chunk().expect("12 bytes"));
        let end = at + u64::from(len);
        while at < end {
            let left = usize::try_from(end - at).expect("64 bits");
            if sending == 0 {
                rustix::fs::sendfile(&stream, file, Some(&mut at), left)?;
            } else {
                let piece = &mut buffer[..left.min(PIECE_BYTES)];
                file.read_exact_at(piece, at)?;
                stream.write_all(piece)?;
                at += piece.len() as u64;
            }
        }
    }
}

/// One connection.
pub(crate) struct Client {
    stream: TcpStream,
    sending: Sending,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr, sending: Sending) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, sending })
    }

    /// Asks for a range; `take` gets the bytes as they come.
    pub(crate) fn read(&mut self, at: u64, len: u32) -> io::Result<()> {
        let mut request = [0; 13];
        request[0] = match self.sending {
            Sending::File => 0,
            Sending::Memory => 1,
        };
        request[1..9].copy_from_slice(&at.to_be_bytes());
        request[9..].copy_from_slice(&len.to_be_bytes());
        self.stream.write_all(&request)
    }

    pub(crate) fn take(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }
}
