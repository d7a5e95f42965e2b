//! `isotope connect`: the configuration with which a hypervisor finds the library, printed or made.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use isotope_fs::{our_mounts, resolved};
use isotope_proto::name::VIEWS;
use isotope_proto::refusal::{Reason, Refusal};
use serde::Serialize;

use super::Context;
use crate::exit::Usage;
use crate::output::{self, Format};

/// What the storage or pool is called unless told otherwise.
const NAME: &str = "isotope";

/// Show a hypervisor the library
///
/// Prints what to run or to write; --apply does it.
#[derive(Debug, Args)]
pub(super) struct ConnectArgs {
    #[command(subcommand)]
    to: To,
}

#[derive(Debug, Subcommand)]
enum To {
    Proxmox(ProxmoxArgs),
    Libvirt(LibvirtArgs),
}

/// As a storage of Proxmox VE
///
/// Run it on one node, with the library mounted on the same directory of each: a cluster's nodes share
/// their storages' configuration. To be run again after the mount has moved or the content changed.
#[derive(Debug, Args)]
struct ProxmoxArgs {
    #[command(flatten)]
    to: ToArgs,
    /// What it is to hold; before Proxmox VE 8.3 there is no import
    #[arg(long, value_name = "TYPES", default_value = "iso,import")]
    content: String,
}

/// As a storage pool of libvirt
///
/// A pool of that name which is there already, on the same directory, is started and left as it is.
#[derive(Debug, Args)]
struct LibvirtArgs {
    #[command(flatten)]
    to: ToArgs,
    /// The libvirt to tell, as virsh takes it
    #[arg(long, value_name = "URI", default_value = "qemu:///system")]
    connect: String,
}

#[derive(Debug, Args)]
struct ToArgs {
    /// Where the library is mounted [default: mount.dir of the configuration]
    dir: Option<PathBuf>,
    /// What it is to be called there
    #[arg(long, default_value = NAME)]
    name: String,
    /// Run it here and now
    #[arg(long)]
    apply: bool,
}

/// What has to be run; each command with what it reads.
#[derive(Debug, Serialize)]
struct Plan {
    commands: Vec<Step>,
    /// What they make, as it stands in the hypervisor's files.
    configuration: String,
    /// How a machine then names an image.
    use_in_a_machine: String,
    #[serde(skip)]
    known: Known,
}

/// What to do where the hypervisor has one of that name.
#[derive(Debug)]
struct Known {
    /// Shows it, and fails where there is none.
    show: Step,
    /// What is shown of one that is on our directory, white space aside.
    here: String,
    /// Run for such a one, in the place of the commands that make it.
    instead: Vec<Step>,
}

#[derive(Debug, Clone, Serialize)]
struct Step {
    command: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    stdin: String,
    /// Where this succeeds there is nothing to do.
    #[serde(skip)]
    unless: Option<Vec<String>>,
}

pub(super) fn cmd_connect(args: &ConnectArgs, context: &Context) -> anyhow::Result<()> {
    let at = |to: &ToArgs| resolved(to.dir.as_deref().unwrap_or(&context.settings.mount.dir));
    let (to, plan) = match &args.to {
        To::Proxmox(args) => (&args.to, proxmox(&at(&args.to), &args.to.name, &args.content)?),
        To::Libvirt(args) => (&args.to, libvirt(&at(&args.to), &args.to.name, &args.connect)?),
    };
    if to.apply {
        return apply(&plan, &at(to));
    }
    let dir = at(to);
    if !our_mounts().contains(&dir) {
        output::note(&format!("note: the library is not mounted on {} here now", dir.display()));
    }
    match context.format {
        Format::Json => output::json(&plan),
        Format::Text => {
            output::line("# run (or let --apply run)");
            plan.commands.iter().for_each(|step| output::line(&step.shown()));
            output::line(&format!("\n# which makes\n{}", plan.configuration.trim_end()));
            output::line(&format!("\n# in a machine\n{}", plan.use_in_a_machine));
        }
    }
    Ok(())
}

/// Both take letters, digits and a few signs, Proxmox VE two characters at least; the rest would have
/// to be escaped, by each otherwise.
fn check_name(name: &str) -> anyhow::Result<()> {
    let safe = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic());
    let ends = name.len() > 1 && name.ends_with(|c: char| c.is_ascii_alphanumeric());
    if begins && ends && name.chars().all(safe) {
        return Ok(());
    }
    let text = format!(
        "{name:?} cannot be its name; that begins with a letter, goes on with letters, digits, '-', \
         '_' and '.', and ends with a letter or digit"
    );
    Err(Usage(text).into())
}

/// The directory of a view, as text.
fn view(dir: &Path, name: &str) -> anyhow::Result<String> {
    let path = dir.join(VIEWS).join(name).into_os_string();
    let text = path.into_string().ok().filter(|text| !text.chars().any(char::is_control));
    text.ok_or_else(|| Usage(format!("{} is no path to write down", dir.display())).into())
}

/// A directory storage (`storage.cfg`(5) of Proxmox VE, from 8.0 on). It counts as offline while
/// nothing is mounted, and no directory is made then; `shared`, for every node is to have the same
/// library mounted there.
fn proxmox(dir: &Path, name: &str, content: &str) -> anyhow::Result<Plan> {
    check_name(name)?;
    if !content.chars().all(|c| c.is_ascii_lowercase() || c == ',') || content.is_empty() {
        return Err(Usage(format!("{content:?} is no list of content types, as iso,import")).into());
    }
    let path = view(dir, "proxmox")?;
    // What PVE::Storage::DirPlugin takes for a path.
    if !path.chars().all(|c| c.is_ascii_alphanumeric() || "-/_.@".contains(c)) {
        let text = format!(
            "Proxmox VE takes no storage on {}: mount the library on a directory whose path has \
             letters, digits and -_.@ alone",
            dir.display()
        );
        return Err(Usage(text).into());
    }
    let options = [
        ("content", content.to_owned()),
        ("is_mountpoint", dir.display().to_string()),
        ("create-base-path", "0".to_owned()),
        ("create-subdirs", "0".to_owned()),
        ("shared", "1".to_owned()),
    ];
    let (mut add, mut set) =
        (Step::new(&["pvesm", "add", "dir", name]), Step::new(&["pvesm", "set", name]));
    add.command.extend(["--path".to_owned(), path.clone()]);
    let mut configuration = format!("dir: {name}\n\tpath {path}\n");
    for (key, value) in options {
        for step in [&mut add, &mut set] {
            step.command.extend([format!("--{key}"), value.clone()]);
        }
        configuration.push_str(&format!("\t{key} {value}\n"));
    }
    let show = ["pvesh", "get", &format!("/storage/{name}"), "--output-format", "json"];
    Ok(Plan {
        commands: vec![add],
        configuration,
        use_in_a_machine: format!("qm set VMID --ide2 {name}:iso/NAME.iso,media=cdrom"),
        known: Known {
            show: Step::new(&show),
            here: format!("\"path\":{}", serde_json::to_string(&path)?),
            instead: vec![set],
        },
    })
}

/// A pool of type `dir` (libvirt's storage pool format). Started by itself with the host's libvirt.
fn libvirt(dir: &Path, name: &str, uri: &str) -> anyhow::Result<Plan> {
    check_name(name)?;
    let flat = escaped(&view(dir, "flat")?);
    let configuration = format!(
        "<pool type='dir'>\n  <name>{name}</name>\n  <target>\n    <path>{flat}</path>\n  \
         </target>\n</pool>\n"
    );
    let virsh = |words: &[&str]| {
        let words: Vec<&str> = ["virsh", "--connect", uri].iter().chain(words).copied().collect();
        Step::new(&words)
    };
    let define = Step { stdin: configuration.clone(), ..virsh(&["pool-define", "/dev/stdin"]) };
    let (start, autostart) = (virsh(&["pool-start", name]), virsh(&["pool-autostart", name]));
    // One that is active cannot be started; one that is not cannot be refreshed.
    let started = Step { unless: Some(virsh(&["pool-refresh", name]).command), ..start.clone() };
    Ok(Plan {
        commands: vec![define, start, autostart.clone()],
        use_in_a_machine: format!(
            "<disk type='volume' device='cdrom'>\n  <driver name='qemu' type='raw'/>\n  \
             <source pool='{name}' volume='NAME.iso'/>\n  <target dev='sda' bus='sata'/>\n  \
             <readonly/>\n</disk>"
        ),
        configuration,
        known: Known {
            show: virsh(&["pool-dumpxml", name]),
            here: format!("<path>{flat}</path>"),
            instead: vec![started, autostart],
        },
    })
}

/// As text in XML, the way libvirt writes it.
fn escaped(text: &str) -> String {
    let signs = [('&', "&amp;"), ('<', "&lt;"), ('>', "&gt;"), ('"', "&quot;"), ('\'', "&apos;")];
    signs.iter().fold(text.to_owned(), |text, (sign, entity)| text.replace(*sign, entity))
}

impl Step {
    fn new(words: &[&str]) -> Self {
        let command = words.iter().map(|it| (*it).to_owned()).collect();
        Self { command, stdin: String::new(), unless: None }
    }

    /// As one would type it.
    fn shown(&self) -> String {
        let safe = |c: char| c.is_ascii_alphanumeric() || "-_./:,=".contains(c);
        let word = |word: &String| match word.chars().all(safe) {
            true => word.clone(),
            false => format!("'{}'", word.replace('\'', r"'\''")),
        };
        let command = self.command.iter().map(word).collect::<Vec<_>>().join(" ");
        match self.stdin.trim_end() {
            "" => command,
            stdin => format!("{command} <<'EOF'\n{stdin}\nEOF"),
        }
    }
}

/// Runs the plan: makes the storage or pool, or sees that the one that is there is as it should be.
fn apply(plan: &Plan, dir: &Path) -> anyhow::Result<()> {
    if !our_mounts().iter().any(|mount| mount == dir) {
        let text = format!(
            "the library is not mounted on {}; mount it first (isotope mount), or name where it is",
            dir.display()
        );
        return Err(Refusal::new(Reason::Unavailable, text).into());
    }
    let known = &plan.known;
    let shown = run(&known.show.command, "", Shown::Never)?;
    let steps = if shown.status.success() {
        let packed = |text: &str| text.split_whitespace().collect::<String>();
        let text = String::from_utf8_lossy(&shown.stdout);
        if !packed(&text).contains(&packed(&known.here)) {
            let text = "there is one of that name already, on another directory; choose another --name, \
                        or remove that one";
            return Err(Refusal::new(Reason::Exists, text.to_owned()).into());
        }
        &known.instead
    } else {
        &plan.commands
    };
    for Step { command, stdin, unless } in steps {
        if let Some(unless) = unless
            && run(unless, "", Shown::Never)?.status.success()
        {
            continue;
        }
        let status = run(command, stdin, Shown::Always)?.status;
        if !status.success() {
            anyhow::bail!("{} failed: {status}", command.join(" "));
        }
    }
    Ok(())
}

/// Whether what a program prints is for the user.
#[derive(Clone, Copy)]
enum Shown {
    Always,
    Never,
}

/// Runs a program to its end; its output is kept unless it is shown.
fn run(command: &[String], stdin: &str, shown: Shown) -> anyhow::Result<Output> {
    let (program, arguments) = command.split_first().expect("each names a program");
    let output = || match shown {
        Shown::Always => Stdio::inherit(),
        Shown::Never => Stdio::piped(),
    };
    let mut words = Command::new(program);
    words.args(arguments).stdin(Stdio::piped()).stdout(output()).stderr(output());
    let mut child = match words.spawn() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let text = format!("{program} is not on this host; run this on one that has it");
            return Err(Refusal::new(Reason::NotFound, text).into());
        }
        spawned => spawned.with_context(|| format!("cannot run {program}"))?,
    };
    if let Some(mut input) = child.stdin.take() {
        // One that does not read it says itself what is wrong.
        let _ = input.write_all(stdin.as_bytes());
    }
    child.wait_with_output().with_context(|| format!("cannot wait for {program}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_can_be_pasted_into_a_shell() {
        let plan = proxmox(Path::new("/mnt/isos"), "isotope", "iso").expect("a plan");
        let shown = plan.commands[0].shown();
        assert!(shown.starts_with("pvesm add dir isotope --path /mnt/isos/.views/proxmox "));
        assert!(plan.configuration.contains("\tis_mountpoint /mnt/isos\n"));
        let plan = libvirt(Path::new("/mnt/a&b"), "isos", "qemu+ssh://h/system?x=1");
        let plan = plan.expect("a plan");
        assert!(plan.configuration.contains("<path>/mnt/a&amp;b/.views/flat</path>"));
        let shown = plan.commands[0].shown();
        let words =
            "virsh --connect 'qemu+ssh://h/system?x=1' pool-define /dev/stdin <<'EOF'\n<pool";
        assert!(shown.starts_with(words), "{shown}");
        assert!(shown.ends_with("</pool>\nEOF"));
    }

    #[test]
    fn what_would_need_escaping_is_refused() {
        for (name, good) in [
            ("isotope", true),
            ("a-b_c.1", true),
            ("1a", false),
            ("a b", false),
            ("a", false),
            ("a-", false),
        ] {
            assert_eq!(check_name(name).is_ok(), good, "{name}");
        }
        for (dir, to_proxmox, to_libvirt) in [
            ("/mnt/a-b_c.1@2", true, true),
            ("/mnt/my isos", false, true),
            ("/mnt/a\nb", false, false),
        ] {
            let dir = Path::new(dir);
            assert_eq!(proxmox(dir, "isos", "iso").is_ok(), to_proxmox, "{dir:?}");
            assert_eq!(libvirt(dir, "isos", "qemu:///system").is_ok(), to_libvirt, "{dir:?}");
        }
        for content in ["", "iso --disable"] {
            assert!(proxmox(Path::new("/mnt"), "isos", content).is_err(), "{content}");
        }
    }
}
