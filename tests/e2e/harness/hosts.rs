//! Hosts of their own: each a network namespace with an address, a cable to a switch that is a
//! namespace too, and if need be a wrong clock. Packets get lost where a test says so, silently.
//!
//! A namespace is kept by a mount on a file in the test's directory, not by a name: it goes with
//! that mount, its links with it, and nothing of one test can be in the way of another. Processes
//! enter the network namespace alone, so what they mount is seen by the test.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::programs::{done, limited};
use super::{Part, World, text};

/// Each host has an address of its own, so the ports can be the same.
const CATALOG_PORT: u16 = 7430;
const AGENT_PORT: u16 = 7431;
/// No command takes so long unless it hangs.
const COMMAND_SECONDS: u64 = 90;

/// A switch, and what is plugged into it.
pub(crate) struct Network<'w> {
    world: &'w World,
    switch: PathBuf,
    hosts: Cell<u8>,
}

/// One host of a network.
pub(crate) struct Host<'w> {
    world: &'w World,
    name: String,
    namespace: PathBuf,
    address: String,
    /// How far its clock is off, as libfaketime reads it.
    clock: Option<&'static str>,
}

impl<'w> Network<'w> {
    pub(crate) fn new(world: &'w World) -> Self {
        let switch = namespace(world, "switch");
        ip(&switch, "link add name switch type bridge");
        ip(&switch, "link set switch up");
        Self { world, switch, hosts: Cell::new(0) }
    }

    /// A new host, plugged in.
    pub(crate) fn host(&self, name: &str) -> Host<'w> {
        let number = self.hosts.get() + 1;
        self.hosts.set(number);
        let (namespace, address) = (namespace(self.world, name), format!("10.0.0.{number}"));
        // Both ends are made where they belong: the machine itself sees no link of ours.
        let ends = format!("link add name port{number} type veth peer name eth0 netns");
        ip(&self.switch, &format!("{ends} {}", text(&namespace)));
        ip(&self.switch, &format!("link set port{number} master switch up"));
        ip(&namespace, "link set lo up");
        ip(&namespace, &format!("address add {address}/24 dev eth0"));
        ip(&namespace, "link set eth0 up");
        Host { world: self.world, name: name.to_owned(), namespace, address, clock: None }
    }

    /// A new host whose clock is off by that much, as `+1d` or `-1h`.
    pub(crate) fn host_with_clock(&self, name: &str, clock: &'static str) -> Host<'w> {
        Host { clock: Some(clock), ..self.host(name) }
    }
}

fn namespace(world: &World, name: &str) -> PathBuf {
    let path = world.make_dir("hosts").join(name);
    File::create_new(&path).expect("a host's name is used once");
    world.unmount_in_the_end(&path);
    let unshare = format!("--net={}", text(&path));
    done(Command::new("unshare").args([&unshare, "--", "true"]));
    path
}

fn inside(namespace: &Path) -> Command {
    let mut nsenter = Command::new("nsenter");
    nsenter.arg(format!("--net={}", text(namespace))).arg("--").stdin(Stdio::null());
    nsenter
}

fn ip(namespace: &Path, args: &str) {
    done(inside(namespace).arg("ip").args(args.split(' ')));
}

impl Host<'_> {
    /// The same command, on this host.
    fn enter(&self, command: &Command) -> Command {
        let mut entered = inside(&self.namespace);
        entered.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => entered.env(name, value),
                None => entered.env_remove(name),
            };
        }
        entered
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.world.command(args);
        // All hosts of a test have the machine's own name otherwise.
        command.env("ISOTOPE_AGENT_NAME", &self.name);
        if let Some(clock) = self.clock {
            command.env("LD_PRELOAD", libfaketime()).env("FAKETIME", clock);
            // Clocks are set wrong; they do not run wrong, and disks have right ones.
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("NO_FAKE_STAT", "1");
        }
        self.enter(&command)
    }

    /// Runs a command of Isotope to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        limited(COMMAND_SECONDS, &self.command(args)).output().expect("the binary runs")
    }

    /// The JSON that a command prints; null if it failed.
    pub(crate) fn json(&self, url: &str, args: &[&str]) -> serde_json::Value {
        let mut all = vec!["--server", url, "--json"];
        all.extend(args);
        serde_json::from_slice(&self.run(&all).stdout).unwrap_or_default()
    }

    pub(crate) fn start(&self, log: &str, args: &[&str]) -> Part {
        self.world.spawn(log, self.command(args))
    }

    /// The catalogue, the same one each time, and its URL.
    pub(crate) fn catalog(&self) -> (Part, String) {
        let listen = format!("{}:{CATALOG_PORT}", self.address);
        let state = self.world.path("catalog");
        let args = ["serve", "catalog", "--listen", &listen, "--state", text(&state), "--insecure"];
        let part = self.start("catalog.log", &args);
        let url = part.wait_for("catalogue");
        (part, url)
    }

    /// This host's agent, the same one each time.
    pub(crate) fn agent(&self, url: &str, pools: &[&Path]) -> Part {
        self.agent_named(&self.name, url, pools)
    }

    /// An agent that may have been another host's before: its state goes with its name.
    pub(crate) fn agent_named(&self, name: &str, url: &str, pools: &[&Path]) -> Part {
        let listen = format!("{}:{AGENT_PORT}", self.address);
        let state = self.world.path(&format!("agent-{name}"));
        let mut args = vec!["serve", "agent", "--catalog", url, "--listen", &listen, "--insecure"];
        args.extend(["--name", name, "--state", text(&state)]);
        for pool in pools {
            args.extend(["--pool", text(pool)]);
        }
        let part = self.start(&format!("agent-{name}.log"), &args);
        part.wait_for("agent");
        part
    }

    /// A mount on the directory `NAME.mnt`, once it is mounted.
    pub(crate) fn mount(&self, url: &str) -> (Part, PathBuf) {
        self.mount_with(url, &[])
    }

    pub(crate) fn mount_with(&self, url: &str, args: &[&str]) -> (Part, PathBuf) {
        let path = self.world.mount_point(&format!("{}.mnt", self.name));
        let log = format!("mount-{}.log", self.name);
        let args = [&["mount", text(&path), "--catalog", url], args].concat();
        let part = self.start(&log, &args);
        part.wait_for("mounted");
        (part, path)
    }

    /// From now on every packet from and to this host is lost, and nobody is told.
    pub(crate) fn cut_off(&self) {
        self.lose("iifname eth0", "oifname eth0");
    }

    /// From now on every packet between the two is lost, and nobody is told.
    pub(crate) fn cut_off_from(&self, other: &Host<'_>) {
        let other = &other.address;
        self.lose(&format!("ip saddr {other}"), &format!("ip daddr {other}"));
    }

    /// From now on so many packets of a hundred are lost, whichever.
    pub(crate) fn lose_some(&self, percent: u32) {
        let some = format!("numgen random mod 100 < {percent}");
        self.lose(&format!("iifname eth0 {some}"), &format!("oifname eth0 {some}"));
    }

    /// From now on what this host sends goes out at a modem's pace.
    pub(crate) fn slow_down(&self) {
        let tbf = "tc qdisc add dev eth0 root tbf rate 2mbit burst 32kb latency 200ms";
        done(inside(&self.namespace).args(tbf.split(' ')));
    }

    pub(crate) fn speed_up(&self) {
        done(inside(&self.namespace).args("tc qdisc del dev eth0 root".split(' ')));
    }

    fn lose(&self, coming: &str, going: &str) {
        let rules = format!(
            "table inet loss {{
                chain coming {{ type filter hook input priority 0; {coming} drop; }}
                chain going {{ type filter hook output priority 0; {going} drop; }}
            }}\n"
        );
        let mut nft = inside(&self.namespace);
        let nft = nft.args(["nft", "-f", "-"]).stdin(Stdio::piped()).spawn();
        let mut nft = nft.expect("nft runs");
        let mut input = nft.stdin.take().expect("piped");
        input.write_all(rules.as_bytes()).expect("nft takes the rules");
        drop(input);
        assert!(nft.wait().expect("nft ends").success(), "nft: {rules}");
    }

    /// No packet is lost any more.
    pub(crate) fn reconnect(&self) {
        done(inside(&self.namespace).args(["nft", "delete", "table", "inet", "loss"]));
    }
}

/// Debian keeps it with its architecture's libraries, others elsewhere.
fn libfaketime() -> PathBuf {
    let below = |dir: &str| fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = ["/usr/lib", "/usr/local/lib"].into_iter().flat_map(|dir| {
        let nested = below(dir).map(|entry| entry.path());
        [PathBuf::from(dir)].into_iter().chain(nested).collect::<Vec<_>>()
    });
    let mut found = dirs.map(|dir| dir.join("faketime/libfaketimeMT.so.1"));
    found.find(|path| path.exists()).expect("libfaketime is installed")
}
