//! Logs, set up once. They go to stderr, for stdout is for answers; or to the system's log, of a
//! process that nobody watches.

use std::io::{self, IsTerminal, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{LogFormat, LogSettings};

/// Where journald or syslogd takes messages.
const SYSTEM_LOG: &str = "/dev/log";
/// Of messages, `daemon` (RFC 5424 §6.2.1).
const FACILITY: u8 = 3;

/// Where logs go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sink {
    Stderr,
    /// Where the machine has no such log, what is said is lost.
    System,
}

pub(crate) fn init(settings: &LogSettings, sink: Sink) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&settings.filter)
        .with_context(|| format!("log.filter {:?} cannot be understood", settings.filter))?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter);
    if sink == Sink::System {
        std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
        let to = SystemLog::at(Path::new(SYSTEM_LOG));
        let logs = logs.with_writer(to).with_ansi(false).with_target(false);
        match settings.format {
            LogFormat::Json => logs.json().init(),
            // The log has the time and the level of its own.
            LogFormat::Text => logs.without_time().with_level(false).init(),
        }
        return Ok(());
    }
    let logs = logs.with_writer(io::stderr);
    match settings.format {
        LogFormat::Json => logs.json().init(),
        LogFormat::Text => {
            logs.with_ansi(io::stderr().is_terminal()).with_target(false).init();
        }
    }
    Ok(())
}

/// The system's log, in the form of syslog(3). A message that it does not take is lost: a log that
/// restarts must hold up nobody.
struct SystemLog {
    path: PathBuf,
    socket: Option<UnixDatagram>,
}

impl SystemLog {
    fn at(path: &Path) -> Self {
        let socket = UnixDatagram::unbound().ok().filter(|it| it.set_nonblocking(true).is_ok());
        Self { path: path.to_owned(), socket }
    }
}

/// One message.
struct Message<'a> {
    log: &'a SystemLog,
    severity: u8,
}

impl Write for Message<'_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        if let Some(socket) = &self.log.socket {
            let priority = FACILITY * 8 + self.severity;
            let mut message = format!("<{priority}>isotope[{}]: ", std::process::id()).into_bytes();
            message.extend_from_slice(text.trim_ascii_end());
            let _ = socket.send_to(&message, &self.log.path);
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for SystemLog {
    type Writer = Message<'a>;

    fn make_writer(&'a self) -> Message<'a> {
        Message { log: self, severity: severity(Level::INFO) }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Message<'a> {
        Message { log: self, severity: severity(*meta.level()) }
    }
}

/// As RFC 5424 §6.2.1 numbers them.
fn severity(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_reach_the_systems_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = SystemLog::at(&path);
        let warning = || Message { log: &log, severity: severity(Level::WARN) };
        // Nobody listens yet, and nobody is held up.
        warning().write_all(b"lost\n").unwrap();
        let listener = UnixDatagram::bind(&path).unwrap();
        warning().write_all(b"the disk is full\n").unwrap();
        let mut message = [0; 100];
        let len = listener.recv(&mut message).unwrap();
        let expected = format!("<28>isotope[{}]: the disk is full", std::process::id());
        assert_eq!(String::from_utf8_lossy(&message[..len]), expected);
    }
}
