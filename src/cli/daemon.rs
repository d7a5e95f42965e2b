//! What the daemons' commands share: stopping, listening safely, naming this host.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use isotope_agent::PoolDir;
use isotope_proto::name::EntryName;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tonic::transport::Uri;
use tracing::{info, warn};

use crate::exit::{INTERRUPTED, Usage};

/// Cancelled by the first SIGINT or SIGTERM; a second one ends the process at once.
pub(super) fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stopping = stop.clone();
    tokio::spawn(async move {
        for ask in ["stopping", "stopping at once"] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            info!("{ask}");
            if stopping.is_cancelled() {
                std::process::exit(INTERRUPTED.into());
            }
            stopping.cancel();
        }
    });
    Ok(stop)
}

/// Plaintext is for loopback; elsewhere it must be asked for.
pub(super) fn check_listen(address: SocketAddr, insecure: bool) -> anyhow::Result<()> {
    if address.ip().is_loopback() {
        return Ok(());
    }
    if !insecure {
        let text = format!(
            "{address} can be reached from other hosts, and connections are not encrypted or \
             authenticated yet; listen on loopback, or say --insecure in a network you trust"
        );
        return Err(Usage(text).into());
    }
    warn!(%address, "listening beyond loopback without encryption: whoever reaches this port can read and change the library");
    Ok(())
}

pub(super) fn uri(url: &str) -> anyhow::Result<Uri> {
    let uri = url.parse::<Uri>().ok().filter(|uri| uri.scheme_str() == Some("http"));
    uri.ok_or_else(|| Usage(format!("{url:?} is no URL like http://HOST:PORT")).into())
}

pub(super) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// `DIR[=NAME]`; the name is the directory's own where none is given.
pub(super) fn parse_pool(text: &str) -> anyhow::Result<PoolDir> {
    let (dir, name) = match text.rsplit_once('=') {
        // A directory's name may hold a '='; a pool's holds no '/'.
        Some((dir, name)) if !name.contains('/') && !PathBuf::from(text).is_dir() => {
            (dir, Some(name.to_owned()))
        }
        _ => (text, None),
    };
    if dir.is_empty() {
        return Err(Usage(format!("--pool {text:?} names no directory")).into());
    }
    // What exists is known by its real path; what does not is reported by the agent.
    let dir = match std::fs::canonicalize(dir) {
        Ok(dir) => dir,
        Err(_) => std::path::absolute(dir).context("finding the current directory")?,
    };
    let own_name = || dir.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    let name = name.or_else(own_name).unwrap_or_default();
    EntryName::parse(&name)
        .map_err(|error| Usage(format!("{name:?} cannot be a pool's name: {error}")))?;
    Ok(PoolDir { dir, name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_are_named_or_take_their_directorys_name() {
        for (text, expected) in [
            ("/data/isos", Some(("/data/isos", "isos"))),
            ("/data/isos=fast", Some(("/data/isos", "fast"))),
            ("/data/a=b/isos", Some(("/data/a=b/isos", "isos"))),
            ("=fast", None),
            ("/data/isos=", None),
            ("/", None),
        ] {
            let parsed = parse_pool(text).ok();
            let parsed = parsed.as_ref().map(|it| (it.dir.to_str().expect("text"), &*it.name));
            assert_eq!(parsed, expected, "{text}");
        }
    }

    #[test]
    fn only_loopback_is_open_by_itself() {
        for (address, insecure, fine) in [
            ("127.0.0.1:0", false, true),
            ("[::1]:7430", false, true),
            ("0.0.0.0:7430", false, false),
            ("10.0.0.1:7430", false, false),
            ("0.0.0.0:7430", true, true),
        ] {
            let address = address.parse().expect("an address");
            assert_eq!(check_listen(address, insecure).is_ok(), fine, "{address}");
        }
    }
}
