//! The same bytes over HTTP/1.1, fetched by curl and booted by iPXE: from agents, and by way of the
//! catalogue.

mod requests;
mod signed;

use std::fs;
use std::process::Command;

use crate::harness::programs::limited;
use crate::harness::{Part, World, eventually, text, write_image};

/// No request of these tests takes so long unless it hangs.
const REQUEST_S: u64 = 30;

/// A catalogue and an agent with images that are found and hashed.
struct Served {
    world: World,
    url: String,
    agent: String,
    catalog: Part,
    part: Part,
}

impl Served {
    fn with(images: &[(&str, &[u8])]) -> Self {
        let world = World::new();
        let pool = world.pool("isos", &[]);
        for (name, bytes) in images {
            write_image(&pool, name, bytes);
        }
        let (catalog, url) = world.catalog();
        let part = world.agent("host", &url, &[&pool]);
        hashed(&world, &url, 1);
        let agent = address(&world, &url, "host");
        Self { world, url, agent, catalog, part }
    }

    fn id(&self, path: &str) -> String {
        id(&self.world, &self.url, path)
    }

    /// At the agent.
    fn content(&self, path: &str) -> String {
        format!("{}/content/{}", self.agent, self.id(path))
    }

    fn get(&self, args: &[&str]) -> Reply {
        get(&self.world, args)
    }
}

/// Waits until everything on so many volumes is found and hashed.
fn hashed(world: &World, url: &str, volumes: u64) {
    eventually("everything is hashed", || {
        let scan = world.json(url, &["scan", "--wait", "hashed"]);
        scan["volumes_scanned"].as_u64() == Some(volumes)
    });
}

/// The URL of a node's agent.
fn address(world: &World, url: &str, node: &str) -> String {
    let listed = world.run(&["--server", url, "--json", "node", "ls"]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let mut nodes = listed.lines().filter_map(|it| serde_json::from_str(it).ok());
    let node = nodes.find(|it: &serde_json::Value| it["name"] == node).expect("a node");
    format!("http://{}", node["address"].as_str().expect("an address"))
}

fn id(world: &World, url: &str, path: &str) -> String {
    let info = world.json(url, &["info", path]);
    info["id"].as_str().unwrap_or_else(|| panic!("no image at {path}: {info}")).to_owned()
}

/// curl, within its time; no proxy of the machine's comes between.
fn curl(args: &[&str]) -> Command {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--noproxy", "*"]).args(args);
    limited(REQUEST_S, &command)
}

/// What a server said in the end.
#[derive(Debug)]
struct Reply {
    status: u16,
    /// Names in small letters; of the last answer, if there were several.
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(it, _)| it == name);
        found.map(|(_, value)| value.as_str())
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Refused, with a sentence that has these words in it.
    #[track_caller]
    fn refuses(&self, status: u16, words: &str) {
        assert!(self.status == status && self.text().contains(words), "{self:?}");
        assert_eq!(self.header("content-type"), Some("text/plain; charset=utf-8"));
        assert_eq!(self.header("cache-control"), Some("no-store"));
    }
}

/// Fetches what curl is told to, and it must come to an end.
#[track_caller]
fn get(world: &World, args: &[&str]) -> Reply {
    let (head, body) = (world.path("head"), world.path("body"));
    // A HEAD writes no body.
    let _ = fs::remove_file(&body);
    let mut all = vec!["-D", text(&head), "-o", text(&body), "-w", "%{http_code}"];
    all.extend(args);
    let output = curl(&all).output().expect("curl is installed");
    assert!(output.status.success(), "{args:?}: {output:?}");
    let head = fs::read_to_string(&head).expect("headers");
    let last = head.trim_end().rsplit("\r\n\r\n").next().unwrap_or_default();
    let headers = last.lines().filter_map(|line| line.split_once(':'));
    Reply {
        status: String::from_utf8_lossy(&output.stdout).parse().expect("a status"),
        headers: headers.map(|(k, v)| (k.to_lowercase(), v.trim().to_owned())).collect(),
        body: fs::read(&body).unwrap_or_default(),
    }
}

/// A library path as a URL has it: all but letters and digits escaped, component by component.
fn escaped(path: &str) -> String {
    let escape = |byte: u8| match byte {
        b'/' | b'.' => char::from(byte).to_string(),
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    path.bytes().map(escape).collect()
}
