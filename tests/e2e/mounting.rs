//! Mounting through mount(8) and fstab: options, exit codes, what is said, and what is left.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use libc::EPERM;
use rustix::process::Signal;

use crate::harness::background::{Background, NOWHERE, USER, as_user, mounted_as};
use crate::harness::programs::limited;
use crate::harness::{World, errno, eventually, text, walk};

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&[&*output.stdout, &*output.stderr].concat()).into_owned()
}

#[test]
fn the_helper_ends_with_the_codes_of_mount() {
    let world = World::new();
    let (_catalog, url) = world.catalog();
    let source = url.trim_start_matches("http://");
    let full = world.make_dir("full");
    fs::write(full.join("file"), "").expect("written");
    let mount = world.mount_point("mnt");
    let background = Background::of(&mount);
    let (full, missing, dir) = (text(&full), world.path("missing"), text(&mount));
    for (args, code, expected) in [
        (&[][..], 1, "<SOURCE>"),
        (&[source, dir, "-x"], 1, "'-x'"),
        (&["--help"], 0, "Exit codes are mount(8)'s"),
        (&[source, dir, "-o", "ro,uidd=1"], 1, "there is no mount option \"uidd\""),
        (&[source, dir, "-o", "uid=no such user"], 1, "this host knows no user \"no such user\""),
        (&[source, dir, "-o", "gid=no such group"], 1, "no group \"no such group\""),
        (&[source, dir, "-o", "fmask=9"], 1, "fmask=9 makes no sense; it takes octal digits"),
        (&[source, dir, "-o", "remount,ro"], 1, "unmount it"),
        (&[source, dir, "-o", "bg"], 1, "nofail,timeout="),
        (&[source, dir, "-o", "view=flatt"], 32, "no view is called flatt"),
        (&[source, dir, "-o", "config=/nonexistent"], 1, "cannot read the configuration"),
        (&[source, dir, "-t", "ext4"], 1, "it is isotope"),
        (&["https://a:1", dir], 1, "is no URL like http://HOST:PORT"),
        (&["no host", dir], 1, "is no URL like http://HOST:PORT"),
        (&[source, text(&missing)], 32, "does not exist; make it with mkdir -p"),
        (&[source, full], 32, "is not empty"),
        (&[source, "/proc"], 32, "type proc"),
        (&[NOWHERE, dir, "-o", "timeout=1"], 32, "could not be reached within 1 s"),
        (&[source, dir, "-f", "-o", "ro"], 0, ""),
    ] {
        let output = world.mount_helper(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", told(&output));
        assert!(told(&output).contains(expected), "{args:?}: {}", told(&output));
        assert_eq!(mounted_as(&mount), None, "{args:?}");
        assert!(background.has_ended(), "{args:?}");
    }
    // And those that mount.
    let sloppy =
        world.mount_helper(&[source, dir, "-svn", "-o", "uidd=1,noexec,nofail,x-gvfs-show"]);
    assert_eq!(sloppy.status.code(), Some(0), "{}", told(&sloppy));
    assert_eq!(told(&sloppy), format!("{source} mounted on {dir}\n"));
    let (shown, kind, options) = mounted_as(&mount).expect("mounted");
    assert_eq!((&*shown, &*kind), (source, "fuse.isotope"));
    let expected = ["rw", "nosuid", "nodev", "noexec", "default_permissions", "allow_other"];
    assert!(expected.iter().all(|it| options.iter().any(|has| has == it)), "{options:?}");
    let again = world.mount_helper(&[source, dir]);
    assert_eq!(again.status.code(), Some(32));
    assert!(told(&again).contains("has an isotope mount on it already"), "{}", told(&again));
}

#[test]
fn an_interrupted_helper_leaves_nothing() {
    let world = World::new();
    let mount = world.mount_point("mnt");
    let background = Background::of(&mount);
    let args = ["mount.isotope", NOWHERE, text(&mount), "-o", "timeout=0"];
    let mut helper = world.spawn("helper.log", world.command(&args));
    // The helper itself, and the mount that waits.
    eventually("it waits for the catalogue", || background.processes().len() == 2);
    helper.signal(Signal::INT);
    assert_eq!(helper.wait(), 8);
    eventually("nothing is left", || background.has_ended());
    assert_eq!(mounted_as(&mount), None);
}

#[test]
fn a_namespace_that_is_named_is_mounted_in() {
    let world = World::new();
    let (_catalog, url) = world.catalog();
    let mount = world.mount_point("mnt");
    let background = Background::of(&mount);
    let mut apart = Command::new("unshare");
    apart.args(["--mount", "sh", "-c", "echo ready && exec sleep 60"]);
    let apart = world.spawn("apart.log", apart);
    apart.wait_for("ready");
    let namespace = apart.id().to_string();
    let output = world.mount_helper(&[&url, text(&mount), "-vN", &namespace]);
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    assert_eq!(mounted_as(&mount), None);
    let seen = fs::read_to_string(format!("/proc/{namespace}/mounts")).expect("its table");
    assert!(seen.contains(&format!(" {} fuse.isotope ", mount.display())), "{seen}");
    // Its own namespace is all that it is mounted in.
    for pid in background.processes() {
        rustix::process::kill_process(pid, Signal::TERM).expect("it lives");
    }
    eventually("it ends", || background.has_ended());
}

#[test]
fn a_killed_mount_is_cleared_by_the_next() {
    let world = World::new();
    let (_catalog, url) = world.catalog();
    let (background, mount) = world.mount_in_background(&url, "mnt", "rw");
    background.kill();
    eventually("it is dead", || background.has_ended());
    assert!(mounted_as(&mount).is_some(), "what it left");
    let again = world.mount_helper(&[&url, text(&mount)]);
    assert_eq!(again.status.code(), Some(0), "{}", told(&again));
    assert_eq!(walk(&mount), ["linux/", "other/", "windows/"]);
}

#[test]
fn options_of_the_configuration_hold_for_every_mount() {
    let world = World::new();
    let (_catalog, url) = world.catalog();
    // In the file, for the variable would cover it.
    let file = world.path("isotope.toml");
    let configured = format!(
        "[catalog]\nurl = \"{url}\"\n[mount]\noptions = \"noimmutable,ro,uid={USER},noallow_other\"\n"
    );
    fs::write(&file, configured).expect("written");
    let path = world.mount_point("mnt");
    let background = Background::of(&path);
    let run = |source: &str, options: &str| {
        let args = ["mount.isotope", source, text(&path), "-o", options];
        let mut command = world.command(&args);
        command.env_remove("ISOTOPE_MOUNT_OPTIONS");
        let output = limited(60, &command).output().expect("the binary runs");
        assert_eq!(output.status.code(), Some(0), "{}", told(&output));
        let line = mounted_as(&path).expect("mounted");
        let meta = fs::metadata(&path).expect("there");
        rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH).expect("unmounted");
        eventually("it ends", || background.has_ended());
        (line, std::os::unix::fs::MetadataExt::uid(&meta))
    };
    let ((source, _, options), uid) = run("none", "x-ours");
    assert_eq!((&*source, uid), ("none", USER));
    let has = |options: &[String], option: &str| options.iter().any(|it| it == option);
    assert!(has(&options, "ro") && !has(&options, "allow_other"), "{options:?}");
    // What is given covers it.
    let ((_, _, options), uid) = run("isotope", "rw,uid=0,allow_other");
    assert!(has(&options, "rw") && has(&options, "allow_other") && uid == 0, "{options:?}");
    // And a file that the options name replaces the usual one.
    let other = world.path("other.toml");
    fs::write(&other, format!("catalog.url = \"{url}\"\nmount.options = \"noimmutable\"\n"))
        .expect("written");
    let ((_, _, options), uid) = run("none", &format!("config={}", text(&other)));
    assert!(has(&options, "rw") && uid == 0, "{options:?}");
}

#[test]
fn no_file_is_made_to_run_as_its_owner() {
    let world = World::new();
    let pool = world.pool("isos", &["a.iso"]);
    let (_up, _, mount) = world.up(&[&pool]);
    let image = mount.join("other/a.iso");
    eventually("the image", || image.is_file());
    let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    assert_eq!(errno(set(&image, 0o4755)), EPERM);
    assert_eq!(errno(set(&image, 0o2755)), EPERM);
    set(&image, 0o755).expect("programs are files, too");
    let folder = mount.join("other");
    set(&folder, 0o2750).expect("a folder's means something else");
    let mode = fs::metadata(&folder).expect("there").permissions().mode();
    assert_eq!(mode & 0o7777, 0o2750);
}

/// Runs a script in a mount namespace of its own, in which mount(8) finds our helpers and users may
/// let others in; what it mounts goes with it.
fn in_own_namespace(world: &World, catalog: &str, script: &str) -> (Option<i32>, String) {
    let prepared = r#"
        set -eu
        dir=$1 isotope=$2 catalog=$3
        mkdir "$dir/sbin" "$dir/work"
        ln -s "$isotope" "$dir/sbin/mount.isotope"
        ln -s "$isotope" "$dir/sbin/mount.fuse.isotope"
        sbin=$(realpath /sbin)
        mount -t overlay none -o "lowerdir=$sbin,upperdir=$dir/sbin,workdir=$dir/work" "$sbin"
        echo user_allow_other > "$dir/fuse.conf"
        mount --bind "$dir/fuse.conf" /etc/fuse.conf
    "#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &format!("{prepared}{script}"), "sh"]);
    command.args([text(world.dir.path()), env!("CARGO_BIN_EXE_isotope"), catalog]);
    for (name, value) in world.command(&[]).get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let output = limited(60, &command).output().expect("unshare runs");
    (output.status.code(), told(&output))
}

#[test]
fn mount_and_fstab_know_the_type() {
    let world = World::new();
    let (_catalog, url) = world.catalog();
    let source = url.trim_start_matches("http://");
    let mount = world.mount_point("mnt");
    let background = Background::of(&mount);
    let (code, said) = in_own_namespace(
        &world,
        source,
        r#"
        show() { findmnt -no SOURCE,FSTYPE "$dir/mnt" && ls "$dir/mnt" && umount "$dir/mnt"; }
        mount -t isotope "$catalog" "$dir/mnt" -o ro,nofail
        findmnt -no OPTIONS "$dir/mnt" | grep -o '^ro'
        show
        mount -t fuse.isotope "$catalog" "$dir/mnt"
        show
        echo "$catalog $dir/mnt isotope _netdev,nofail,uid=nobody,x-systemd.automount 0 0" > "$dir/fstab"
        mount --fstab "$dir/fstab" "$dir/mnt"
        stat -c %U "$dir/mnt"
        # Those that are mounted are passed over.
        mount --fstab "$dir/fstab" --all
        show
        mount -t isotope "$catalog" "$dir/nowhere" || echo "code $?"
        mount -t isotope "$catalog" "$dir/mnt" -o quick || echo "code $?"
        "#,
    );
    let shown = format!("{source} fuse.isotope\nlinux\nother\nwindows\n");
    let begin = format!("ro\n{shown}{shown}nobody\n{shown}code 32\ncode 1\n");
    assert!(said.starts_with(&begin), "{said}");
    let reasons = ["nowhere does not exist", "no mount option \"quick\""];
    assert!(reasons.iter().all(|it| said.contains(it)), "{said}");
    assert_eq!(code, Some(0), "{said}");
    eventually("nothing is left", || background.has_ended());
}

/// The words before a shell's command that have an ordinary user give it.
fn user_prefix() -> String {
    let command = as_user(&Command::new(""));
    let args: Vec<_> = command.get_args().map(|it| it.to_string_lossy()).collect();
    format!("{} {}", command.get_program().to_string_lossy(), args.join(" ").trim_end())
}

#[test]
fn a_line_of_fstab_may_be_for_users() {
    let world = World::new();
    let (_catalog, url) = world.catalog();
    let mount = world.dir_of_user("mnt");
    let background = Background::of(&mount);
    let (code, said) = in_own_namespace(
        &world,
        url.trim_start_matches("http://"),
        &format!(
            r#"
            echo "$catalog $dir/mnt isotope user,noauto 0 0" > "$dir/fstab"
            mount --bind "$dir/fstab" /etc/fstab
            user="{}"
            $user mount "$dir/mnt"
            $user stat -c %u "$dir/mnt/linux"
            findmnt -no OPTIONS "$dir/mnt" | grep -o "noexec\|user_id=[0-9]*"
            $user umount "$dir/mnt"
            "#,
            user_prefix()
        ),
    );
    assert_eq!((code, said), (Some(0), format!("{USER}\nnoexec\nuser_id={USER}\n")));
    eventually("nothing is left", || background.has_ended());
}

#[test]
fn a_user_lets_others_in_where_that_is_allowed() {
    let world = World::new();
    let (_catalog, url) = world.catalog();
    let mount = world.dir_of_user("mnt");
    let background = Background::of(&mount);
    let (code, said) = in_own_namespace(
        &world,
        url.trim_start_matches("http://"),
        &format!(
            r#"
            {} "$isotope" mount.isotope "$catalog" "$dir/mnt" -o allow_other
            findmnt -no OPTIONS "$dir/mnt" | grep -o allow_other
            stat -c %u "$dir/mnt/linux"
            umount "$dir/mnt"
            "#,
            user_prefix()
        ),
    );
    assert_eq!((code, said), (Some(0), format!("allow_other\n{USER}\n")));
    eventually("nothing is left", || background.has_ended());
}
