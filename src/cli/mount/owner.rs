//! Whose the files of a mount are: users and groups by name, as this host knows them.

use std::process::Command;

use anyhow::Context as _;
use isotope_fs::Owner;
use isotope_fs::options::{Account, Options};

use crate::exit::Usage;

/// The owner that the options ask for; this process's own user and group where they do not.
pub(super) fn of(options: &Options) -> anyhow::Result<Owner> {
    let uid = match &options.uid {
        None => rustix::process::getuid().as_raw(),
        Some(account) => number(account, "passwd", "user")?,
    };
    let gid = match &options.gid {
        None => rustix::process::getgid().as_raw(),
        Some(account) => number(account, "group", "group")?,
    };
    let owner = Owner::new((uid, gid), options.file_mask, options.folder_mask);
    Ok(if options.read_only { owner.reading_only() } else { owner })
}

fn number(account: &Account, database: &str, kind: &str) -> anyhow::Result<u32> {
    let name = match account {
        Account::Number(number) => return Ok(*number),
        Account::Name(name) => name,
    };
    // Asks LDAP and the like, too, where the host does.
    let found = Command::new("getent").args([database, "--", name]).output();
    let found = found.context("running getent, to find a user or group by name")?;
    // Both databases: name, password, number.
    let line = String::from_utf8_lossy(&found.stdout).into_owned();
    let number = line.split(':').nth(2).and_then(|number| number.parse().ok());
    number.ok_or_else(|| Usage(format!("this host knows no {kind} {name:?}")).into())
}
