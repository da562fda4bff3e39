//! `cargo xtask test`: gets what the tests need, starts the servers, runs every test, stops the servers.

mod server;
mod tools;

use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::command::{self, say};
use crate::machine::{self, need};
use crate::plugins;
use crate::workspace::Workspace;
use server::Servers;

/// `test [FILTER] [cargo test's own options]`.
pub fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    provide()?;
    plugins::build(workspace, plugins::Way::Auto)?;
    // The end-to-end tests start the program itself. Built in one go with the tests, so that its dependencies have the
    // same features as theirs and nothing is compiled twice.
    say("Building", "coffre and the tests");
    command::run(&mut workspace.cargo(&["build", "--workspace", "--bins", "--tests"]))
        .context("build coffre and the tests")?;

    if arguments.is_empty() {
        // The plugins' own tests are of code that is the same on every target, so they run on this one.
        let mut plugins = workspace.cargo(&["test", "--workspace", "--locked", "--quiet"]);
        plugins.current_dir(workspace.root.join("plugins"));
        plugins.env("CARGO_TARGET_DIR", workspace.made("plugins-host"));
        command::run(&mut plugins).context("test the plugins")?;
    }

    let servers = Servers::start(workspace)?;
    let mut cargo = workspace.cargo(&["test"]);
    let picks = |argument: &String| matches!(argument.as_str(), "-p" | "--package" | "--workspace");
    if !arguments.iter().take_while(|argument| *argument != "--").any(picks) {
        cargo.arg("--workspace");
    }
    if arguments.is_empty() {
        // One failure shall not hide the next.
        cargo.arg("--no-fail-fast");
    }
    cargo.args(arguments).envs(servers.environment());
    say("Testing", command::line(&cargo));
    let outcome = command::run(&mut cargo);
    if outcome.is_err() {
        say(
            "Servers",
            format!("their own words lie in {}", servers.folder().display()),
        );
    }
    servers.stop()?;
    outcome
}

/// `servers [COMMAND…]`: runs a command with the servers up, or shows how to reach them until it is stopped.
pub fn servers(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    provide()?;
    let servers = Servers::start(workspace)?;
    let Some((program, rest)) = arguments.split_first() else {
        for (name, value) in servers.environment() {
            println!("export {name}={value}");
        }
        say("Servers", "up until Ctrl-C");
        while servers.all_run() {
            thread::sleep(Duration::from_secs(1));
        }
        bail!("a server has ended; its words lie in {}", servers.folder().display());
    };
    let outcome = command::run(Command::new(program).args(rest).envs(servers.environment()));
    servers.stop()?;
    outcome
}

/// What tests and servers use of the machine, beside Rust.
pub fn provide() -> Result<()> {
    machine::provide(&[
        need("mkfs.xfs", "xfsprogs"),
        need("mkfs.btrfs", "btrfs-progs"),
        need("mke2fs", "e2fsprogs"),
        need("debugfs", "e2fsprogs"),
        // A disk that fails to order: nbdkit's error filter, served as a file.
        need("nbdkit", "nbdkit"),
        need("qemu-nbd", "qemu-utils"),
        need("qemu-storage-daemon", "qemu-utils"),
        need("nbdfuse", "libnbd-bin"),
        need("fusermount3", "fuse3"),
        need("openssl", "openssl"),
        need("setpriv", "util-linux"),
        need("mount", "mount"),
        need("losetup", "mount"),
        // What the scripts that ship are for. Tests start servers of their own.
        need("pg_ctlcluster", "postgresql"),
        need("mariadbd", "mariadb-server"),
        need("redis-server", "redis-server"),
        need("redis-cli", "redis-tools"),
        need("sqlite3", "sqlite3"),
        // Hooks in a machine: tests start both on this host, below folders of their own.
        need("qemu-ga", "qemu-guest-agent"),
        need("sshd", "openssh-server"),
        need("ssh", "openssh-client"),
        // The report is looked at in a real browser, `status --watch` at a terminal.
        need("chromium-headless-shell", "chromium-headless-shell"),
        need("script", "bsdutils"),
        // The package and its manual pages.
        need("dpkg-deb", "dpkg"),
        need("objdump", "binutils"),
        need("groff", "groff-base"),
    ])?;
    machine::provide_python()
}
