//! `mount.isotope`: what mount(8) runs for `mount -t isotope` and for lines of fstab(5). It starts
//! `isotope mount` in the background and returns when that mount answers, or says why it does not.
//! It decides nothing about the mount itself.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use clap::Parser;
use isotope_fs::options::{Options, Unknown, Wait};
use isotope_fs::resolved;
use rustix::process::{Pid, Signal};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::config::{self, Settings};
use crate::exit::{self, MountCode, Usage};
use crate::output;

/// Where a catalogue listens unless told otherwise.
const PORT: u16 = 7430;
/// Waiting for a catalogue that is away, where the options say nothing. systemd gives a mount 90 s,
/// and a boot should not wait long for what may not come.
pub(super) const WAIT: Duration = Duration::from_secs(30);
/// What else there is to do until it has mounted: take the whole tree from the catalogue.
const START_MAX: Duration = Duration::from_secs(30);
/// A mount that has just come up answers from memory.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// A daemon that is told to stop has unmounted by then.
const STOP_MAX: Duration = Duration::from_secs(5);
/// What a daemon that fails has to say fits in here.
const REASON_BYTES_MAX: u64 = 16 << 10;
/// `f_type` of statfs(2) for FUSE (`linux/magic.h`).
const FUSE_SUPER_MAGIC: i64 = 0x6573_5546;
/// What mount(8) calls us: its rule is `mount.TYPE`.
const NAMES: [&str; 2] = ["mount.isotope", "mount.fuse.isotope"];

/// Mount the library on a directory, as mount(8) does
///
/// Returns when the mount answers. docs/MOUNTING.md has the options and a line of fstab.
#[derive(Debug, Parser)]
#[command(name = "mount.isotope", version, max_term_width = 100)]
#[command(after_help = "Exit codes are mount(8)'s: 0 mounted, 1 usage or permissions, \
                        2 system error, 4 a bug, 8 interrupted, 32 not mounted")]
struct HelperArgs {
    /// HOST:PORT or http://HOST:PORT of the catalogue; none or isotope for the configured one
    source: String,
    /// An empty directory
    dir: PathBuf,
    /// Mount options, as ro,uid=1000
    #[arg(short, value_name = "OPTIONS")]
    options: Vec<String>,
    /// Pass over options that nobody knows
    #[arg(short)]
    sloppy: bool,
    /// Check everything that can be checked, and mount nothing
    #[arg(short)]
    fake: bool,
    /// Taken and without meaning: there is no mtab
    #[arg(short)]
    no_mtab: bool,
    /// Say that it is mounted
    #[arg(short)]
    verbose: bool,
    /// Mount in the mount namespace of a process, or in that of a file (nsenter(1))
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// isotope or fuse.isotope
    #[arg(short = 't', value_name = "TYPE")]
    kind: Option<String>,
}

/// The arguments of a mount helper, where this process was called as one: by its own name, or as
/// `isotope mount.isotope`.
pub(crate) fn called_as_one(args: &[OsString]) -> Option<Vec<OsString>> {
    let is_ours = |name: &OsString| {
        let name = Path::new(name).file_name();
        name.is_some_and(|name| NAMES.iter().any(|ours| name == *ours))
    };
    match args {
        [own, ..] if is_ours(own) => Some(args.to_vec()),
        [_, command, ..] if NAMES.iter().any(|ours| command == *ours) => Some(args[1..].to_vec()),
        _ => None,
    }
}

/// The whole life of the helper.
pub(crate) fn run(args: Vec<OsString>) -> ExitCode {
    let code = std::panic::catch_unwind(|| match HelperArgs::try_parse_from(args) {
        Ok(args) => mount(&args).unwrap_or_else(|error| {
            say(&format!("{error:#}"));
            exit::mount_code(Some(exit::code(&error).into()))
        }),
        Err(error) => {
            // Nobody may be left to read it.
            let _ = error.print();
            if error.use_stderr() { MountCode::Usage } else { MountCode::Done }
        }
    });
    ExitCode::from(code.unwrap_or(MountCode::Bug) as u8)
}

fn say(reason: &str) {
    output::note(&format!("mount.isotope: {}", reason.trim_end()));
}

fn mount(args: &HelperArgs) -> anyhow::Result<MountCode> {
    if let Some(namespace) = &args.namespace {
        return Err(enter(namespace, args)?);
    }
    if let Some(kind) =
        args.kind.as_ref().filter(|it| !["isotope", "fuse.isotope"].contains(&&***it))
    {
        return Err(Usage(format!("{kind:?} is not our type; it is isotope")).into());
    }
    let unknown = if args.sloppy { Unknown::PassedOver } else { Unknown::Refused };
    let mut own = Options::default();
    for text in &args.options {
        own.add(text, unknown).map_err(|error| Usage(error.to_string()))?;
    }
    let settings = config::load(own.config.as_deref())?.settings;
    let wait = own.wait.or(super::options(&settings).wait).unwrap_or(Wait::AtMost(WAIT));
    let dir = resolved(&args.dir);
    let command = daemon(args, &own, &dir, &settings)?;
    if args.fake {
        return Ok(MountCode::Done);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(start(command, &dir, wait))?;
    // Threads that wait for the daemon end with this process.
    runtime.shutdown_background();
    if code == MountCode::Done && args.verbose {
        output::line(&format!("{} mounted on {}", args.source, dir.display()));
    }
    Ok(code)
}

/// Becomes the same command in another mount namespace; returns only if that fails.
fn enter(namespace: &str, args: &HelperArgs) -> anyhow::Result<anyhow::Error> {
    let path = match namespace.parse::<u32>() {
        Ok(pid) => format!("/proc/{pid}/ns/mnt"),
        Err(_) => namespace.to_owned(),
    };
    let mut command = Command::new("nsenter");
    command.arg(format!("--mount={path}")).arg("--").arg(std::env::current_exe()?);
    command.arg(NAMES[0]);
    for (given, flag) in [(args.sloppy, "-s"), (args.fake, "-f"), (args.verbose, "-v")] {
        command.args(given.then_some(flag));
    }
    for options in &args.options {
        command.args(["-o", options]);
    }
    command.args(args.kind.iter().flat_map(|kind| ["-t", kind]));
    let error = command.arg("--").arg(&args.source).arg(&args.dir).exec();
    Ok(anyhow::Error::new(error).context("running nsenter, to mount in another namespace"))
}

/// The catalogue that a source names; `None` for the configured one.
fn catalog(source: &str) -> Option<String> {
    match source {
        "none" | "isotope" => None,
        _ if source.contains("://") => Some(source.to_owned()),
        // As findmnt shows a mount without a source of its own.
        _ => {
            let address = source.strip_prefix("isotope:").unwrap_or(source);
            // Nobody serves a catalogue on HTTP's own port.
            let port = if address.contains(':') { String::new() } else { format!(":{PORT}") };
            Some(format!("http://{address}{port}"))
        }
    }
}

/// `isotope mount`, with all that this process was given.
fn daemon(
    args: &HelperArgs,
    own: &Options,
    dir: &Path,
    settings: &Settings,
) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--system-log", "mount", "--background", "--source", &args.source]);
    let configured = || own.catalog.clone().or_else(|| super::options(settings).catalog);
    let catalog = catalog(&args.source).or_else(configured);
    let catalog = catalog.unwrap_or_else(|| settings.catalog.url.clone());
    super::daemon::uri(&catalog)?;
    command.args(["--catalog", &catalog]);
    if args.sloppy {
        command.arg("--sloppy");
    }
    for options in &args.options {
        command.args(["-o", options]);
    }
    command.arg("--").arg(dir);
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

/// What comes first of a daemon that was started.
enum Event {
    /// It has mounted.
    Mounted,
    /// It has ended, with its exit code and its last words.
    Ended(Option<i32>, String),
    Interrupted,
    TooLate,
}

async fn start(mut command: Command, dir: &Path, wait: Wait) -> anyhow::Result<MountCode> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let Ok(mut child) = command.spawn() else {
        say("cannot start isotope mount: the system is out of processes or memory");
        return Ok(MountCode::System);
    };
    let pid = Pid::from_child(&child);
    let stdout = child.stdout.take().expect("piped");
    let said = spawn_blocking(move || BufReader::new(stdout).lines().next());
    let mut ended = spawn_blocking(move || ending(child));
    let time = async {
        match wait {
            Wait::ForEver => std::future::pending().await,
            Wait::AtMost(wait) => sleep(wait + START_MAX).await,
        }
    };
    let event = tokio::select! {
        Ok(Some(Ok(_))) = said => Event::Mounted,
        end = &mut ended => { let (code, words) = end?; Event::Ended(code, words) }
        _ = interrupt.recv() => Event::Interrupted,
        _ = terminate.recv() => Event::Interrupted,
        () = time => Event::TooLate,
    };
    let code = match event {
        Event::Mounted if answers(dir).await => return Ok(MountCode::Done),
        Event::Mounted => {
            say(&format!("{} is mounted and does not answer; it is taken down", dir.display()));
            MountCode::Failed
        }
        Event::Ended(code, words) => {
            let words = words.strip_prefix("isotope: ").unwrap_or(&words);
            say(if words.is_empty() { "the mount ended without a word" } else { words });
            return Ok(exit::mount_code(code));
        }
        Event::Interrupted => MountCode::Interrupted,
        Event::TooLate => {
            say("isotope mount came to nothing in its time; its log has more");
            MountCode::Failed
        }
    };
    // It may have ended just now.
    let _ = rustix::process::kill_process(pid, Signal::TERM);
    if timeout(STOP_MAX, ended).await.is_err() {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
    Ok(code)
}

/// Waits for the daemon's end: its exit code, and what it said.
fn ending(mut child: Child) -> (Option<i32>, String) {
    let mut words = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        // Cut off in the middle of a word it has said that much.
        let _ = stderr.take(REASON_BYTES_MAX).read_to_end(&mut words);
    }
    let code = child.wait().ok().and_then(|status| status.code());
    (code, String::from_utf8_lossy(&words).into_owned())
}

async fn answers(dir: &Path) -> bool {
    let dir = dir.to_owned();
    let asked = spawn_blocking(move || rustix::fs::statfs(&dir));
    let is_fuse = |it: rustix::fs::StatFs| it.f_type == FUSE_SUPER_MAGIC;
    matches!(timeout(ANSWER_MAX, asked).await, Ok(Ok(Ok(found))) if is_fuse(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_an_address_or_the_configured_one() {
        for (source, expected) in [
            ("none", None),
            ("isotope", None),
            ("10.0.0.1:7430", Some("http://10.0.0.1:7430")),
            ("isotope:10.0.0.1:7430", Some("http://10.0.0.1:7430")),
            ("host-a", Some("http://host-a:7430")),
            ("host-a:80", Some("http://host-a:80")),
            ("http://isos:7430", Some("http://isos:7430")),
            ("https://isos:7430", Some("https://isos:7430")),
        ] {
            assert_eq!(catalog(source).as_deref(), expected, "{source}");
        }
    }

    #[test]
    fn a_helper_is_known_by_its_name() {
        let check = |args: &[&str], expected: Option<&[&str]>| {
            let args: Vec<OsString> = args.iter().map(OsString::from).collect();
            let expected = expected.map(|it| it.iter().map(OsString::from).collect::<Vec<_>>());
            assert_eq!(called_as_one(&args), expected, "{args:?}");
        };
        check(&["/sbin/mount.isotope", "a"], Some(&["/sbin/mount.isotope", "a"]));
        check(&["mount.fuse.isotope"], Some(&["mount.fuse.isotope"]));
        check(&["/usr/bin/isotope", "mount.isotope", "a"], Some(&["mount.isotope", "a"]));
        check(&["isotope", "mount", "mount.isotope"], None);
        check(&["isotope"], None);
        check(&[], None);
    }

    #[test]
    fn flags_come_in_any_order_as_mount_gives_them() {
        let parse = |args: &[&str]| HelperArgs::try_parse_from(args);
        let args = parse(&["m", "none", "/mnt", "-sfnv", "-o", "rw,noexec", "-t", "isotope"]);
        let args = args.expect("understood");
        assert!(args.sloppy && args.fake && args.no_mtab && args.verbose);
        assert_eq!(
            (&*args.options, args.kind.as_deref()),
            (&["rw,noexec".to_owned()][..], Some("isotope"))
        );
        assert!(parse(&["m", "none"]).is_err());
        assert!(parse(&["m", "none", "/mnt", "-x"]).is_err());
    }
}
