//! `isotope connect`: the configuration with which a hypervisor finds the library, printed or made.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use isotope_fs::{our_mounts, resolved};
use isotope_proto::name::VIEWS;
use isotope_proto::refusal::{Reason, Refusal};
use serde::Serialize;

use super::Context;
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
    Proxmox(ToArgs),
    Libvirt(ToArgs),
}

/// As a storage of Proxmox VE, or as a storage pool of libvirt
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
}

#[derive(Debug, Serialize)]
struct Step {
    command: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    stdin: String,
}

pub(super) fn cmd_connect(args: &ConnectArgs, context: &Context) -> anyhow::Result<()> {
    let (to, plan): (&ToArgs, fn(&Path, &str) -> Plan) = match &args.to {
        To::Proxmox(to) => (to, proxmox),
        To::Libvirt(to) => (to, libvirt),
    };
    check_name(&to.name)?;
    let dir = resolved(to.dir.as_deref().unwrap_or(&context.settings.mount.dir));
    let plan = plan(&dir, &to.name);
    if to.apply {
        return apply(&plan, &dir);
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

/// Both take letters, digits and a few signs; the rest would have to be escaped, by each otherwise.
fn check_name(name: &str) -> anyhow::Result<()> {
    let safe = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(safe) {
        return Ok(());
    }
    let text =
        format!("{name:?} cannot be its name; letters, digits, '-', '_' and '.' can be in it");
    Err(crate::exit::Usage(text).into())
}

/// A directory storage (`storage.cfg`(5) of Proxmox VE). It counts as offline while nothing is mounted,
/// and no directory is made then; `shared`, for every node is to have the same library mounted there.
fn proxmox(dir: &Path, name: &str) -> Plan {
    let (mount, path) = (dir.display(), dir.join(VIEWS).join("proxmox"));
    let path = path.display();
    let options = [
        ("path", path.to_string()),
        ("content", "iso,import".to_owned()),
        ("is_mountpoint", mount.to_string()),
        ("create-base-path", "0".to_owned()),
        ("create-subdirs", "0".to_owned()),
        ("shared", "1".to_owned()),
    ];
    let mut command = vec!["pvesm".to_owned(), "add".to_owned(), "dir".to_owned(), name.to_owned()];
    let mut configuration = format!("dir: {name}\n");
    for (key, value) in options {
        command.extend([format!("--{key}"), value.clone()]);
        configuration.push_str(&format!("\t{key} {value}\n"));
    }
    Plan {
        commands: vec![Step { command, stdin: String::new() }],
        configuration,
        use_in_a_machine: format!("qm set VMID --ide2 {name}:iso/NAME.iso,media=cdrom"),
    }
}

/// A pool of type `dir` (libvirt's storage pool format). Started by itself with the host's libvirt.
fn libvirt(dir: &Path, name: &str) -> Plan {
    let flat = dir.join(VIEWS).join("flat");
    let flat = escaped(&flat.display().to_string());
    let configuration = format!(
        "<pool type='dir'>\n  <name>{name}</name>\n  <target>\n    <path>{flat}</path>\n  \
         </target>\n</pool>\n"
    );
    let virsh = |words: &[&str]| {
        let words = ["virsh", "--connect", "qemu:///system"].iter().chain(words);
        words.map(|word| (*word).to_owned()).collect()
    };
    let step = |words: &[&str], stdin: String| Step { command: virsh(words), stdin };
    Plan {
        commands: vec![
            step(&["pool-define", "/dev/stdin"], configuration.clone()),
            step(&["pool-start", name], String::new()),
            step(&["pool-autostart", name], String::new()),
        ],
        use_in_a_machine: format!(
            "<disk type='volume' device='cdrom'>\n  <driver name='qemu' type='raw'/>\n  \
             <source pool='{name}' volume='NAME.iso'/>\n  <target dev='sda' bus='sata'/>\n  \
             <readonly/>\n</disk>"
        ),
        configuration,
    }
}

/// As text in XML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

impl Step {
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

fn apply(plan: &Plan, dir: &Path) -> anyhow::Result<()> {
    if !our_mounts().iter().any(|mount| mount == dir) {
        let text = format!(
            "the library is not mounted on {}; mount it first (isotope mount), or name where it is",
            dir.display()
        );
        return Err(Refusal::new(Reason::Unavailable, text).into());
    }
    for Step { command, stdin } in &plan.commands {
        let (program, arguments) = command.split_first().expect("each names a program");
        let spawned = Command::new(program).args(arguments).stdin(Stdio::piped()).spawn();
        let mut child = match spawned {
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
        let status = child.wait().with_context(|| format!("cannot wait for {program}"))?;
        if !status.success() {
            anyhow::bail!("{} failed: {status}", command.join(" "));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_can_be_pasted_into_a_shell() {
        let plan = proxmox(Path::new("/mnt/my isos"), "isotope");
        let shown = plan.commands[0].shown();
        assert!(shown.starts_with("pvesm add dir isotope --path '/mnt/my isos/.views/proxmox' "));
        assert!(plan.configuration.contains("\tis_mountpoint /mnt/my isos\n"));
        let plan = libvirt(Path::new("/mnt/a&b"), "isos");
        assert!(plan.configuration.contains("<path>/mnt/a&amp;b/.views/flat</path>"));
        let shown = plan.commands[0].shown();
        assert!(shown.contains("pool-define /dev/stdin <<'EOF'\n<pool type='dir'>"), "{shown}");
        assert!(shown.ends_with("</pool>\nEOF"));
    }

    #[test]
    fn a_name_that_would_need_escaping_is_refused() {
        for (name, good) in [("isotope", true), ("a-b_c.1", true), ("1a", false), ("a b", false)] {
            assert_eq!(check_name(name).is_ok(), good, "{name}");
        }
    }
}
