//! What the machine has to offer beside Rust: Debian's packages, installed when that may be done, named when not.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::command::{self, say};

/// A program and the Debian package that brings it.
#[derive(Debug, Clone, Copy)]
pub struct Need {
    pub program: &'static str,
    pub package: &'static str,
}

pub const fn need(program: &'static str, package: &'static str) -> Need {
    Need { program, package }
}

/// Makes sure that all programs are there. As root on Debian they are installed; anybody else is told the one command.
pub fn provide(needs: &[Need]) -> Result<()> {
    let missing = missing(needs);
    if missing.is_empty() {
        return Ok(());
    }
    let by_hand = format!("apt-get install -y {}", missing.join(" "));
    if !is_root() || command::find("apt-get").is_none() {
        bail!("{} not there\nhint: as root, {by_hand}", names(&missing));
    }
    say("Installing", missing.join(" "));
    if install(&missing).is_err() {
        // The lists may be old, or empty as in a container image.
        command::output(apt().args(["-q", "update"])).context("apt-get update")?;
        install(&missing).with_context(|| format!("install what is missing\nhint: {by_hand}"))?;
    }
    let still = self::missing(needs);
    if !still.is_empty() {
        bail!("{} still not there after {by_hand}", names(&still));
    }
    Ok(())
}

/// Python can run and yet lack the part that makes virtual environments, which Debian packs apart.
pub fn provide_python() -> Result<()> {
    provide(&[need("python3", "python3")])?;
    let can = || {
        let mut ask = Command::new("python3");
        ask.args(["-c", "import venv, ensurepip"])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        ask.status().is_ok_and(|status| status.success())
    };
    if can() {
        return Ok(());
    }
    if !is_root() || command::find("apt-get").is_none() {
        bail!("python3 cannot make virtual environments\nhint: as root, apt-get install -y python3-venv");
    }
    say("Installing", "python3-venv");
    if install(&["python3-venv"]).is_err() {
        command::output(apt().args(["-q", "update"])).context("apt-get update")?;
        install(&["python3-venv"])?;
    }
    if !can() {
        bail!("python3 cannot make virtual environments, even with python3-venv installed");
    }
    Ok(())
}

pub fn is_root() -> bool {
    command::output(Command::new("id").arg("-u")).is_ok_and(|text| text.trim() == "0")
}

fn missing(needs: &[Need]) -> Vec<&'static str> {
    let mut packages: Vec<_> = needs
        .iter()
        .filter(|need| command::find(need.program).is_none())
        .map(|need| need.package)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

fn names(packages: &[&str]) -> String {
    let verb = if packages.len() == 1 { "is" } else { "are" };
    format!("{} {verb}", packages.join(", "))
}

fn install(packages: &[&str]) -> Result<()> {
    let _none = NoServices::for_now()?;
    command::output(
        apt()
            .args(["-q", "install", "-y", "--no-install-recommends"])
            .args(packages),
    )
    .map(drop)
}

/// While packages are installed, none of their services is started: tests start servers of their own, and the machine's
/// owner asked for none. The way that Debian has for this is a program whose answer 101 is no (invoke-rc.d(8)); where the
/// machine has one already, it is its owner's word and stays.
struct NoServices;

const SERVICES_POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    fn for_now() -> Result<Option<Self>> {
        let mut new = fs::OpenOptions::new();
        let file = new.write(true).create_new(true).mode(0o755).open(SERVICES_POLICY);
        match file {
            Ok(mut file) => {
                let ours = Self;
                file.write_all(b"#!/bin/sh\nexit 101\n")
                    .with_context(|| format!("write {SERVICES_POLICY}"))?;
                Ok(Some(ours))
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(error).with_context(|| format!("write {SERVICES_POLICY}")),
        }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        let _ = fs::remove_file(SERVICES_POLICY);
    }
}

fn apt() -> Command {
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    apt
}
