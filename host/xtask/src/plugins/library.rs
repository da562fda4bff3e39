//! The standard library for WebAssembly: an installed one, else by rustup, else Debian's newer compiler and its source.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{TARGET, debian};
use crate::command::{self, say};
use crate::workspace::Workspace;

/// How long rustup may take to fetch 20 MB. Where it reaches no server it may also hang; Debian's way costs no more.
const RUSTUP_LIMIT: Duration = Duration::from_secs(60);

/// How the library is to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Auto,
    Installed,
    Rustup,
    Debian,
}

impl FromStr for Way {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "auto" => Self::Auto,
            "installed" => Self::Installed,
            "rustup" => Self::Rustup,
            "debian" => Self::Debian,
            other => bail!("`{other}` is none of auto, installed, rustup, debian"),
        })
    }
}

/// A library that is there.
#[derive(Debug)]
pub enum Library {
    /// The compiler's own, and how it came there.
    Own(&'static str),
    /// Built from source together with the plugins, by Debian's compiler.
    Debian(debian::Toolchain),
}

impl fmt::Display for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(how) => f.write_str(how),
            Self::Debian(toolchain) => write!(
                f,
                "Debian's compiler and library source, rustc-web {}",
                toolchain.version
            ),
        }
    }
}

impl Library {
    pub fn rustc(&self) -> PathBuf {
        match self {
            Self::Own(_) => rustc(),
            Self::Debian(toolchain) => toolchain.rustc.clone(),
        }
    }

    /// Where the library's source lies, if that is not below the compiler's own folder.
    pub fn source(&self) -> Option<PathBuf> {
        match self {
            Self::Own(_) => None,
            Self::Debian(toolchain) => Some(toolchain.source.clone()),
        }
    }

    /// Makes a `cargo build` use it.
    pub fn apply(&self, cargo: &mut Command) {
        if let Self::Debian(toolchain) = self {
            cargo
                .args(["-Z", "build-std=std,panic_abort"])
                .env("RUSTC_BOOTSTRAP", "1")
                .env("RUSTC", &toolchain.rustc)
                .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", &toolchain.linker);
        }
    }
}

/// Gets the library in the first way that works, and remembers what it downloaded.
pub fn get(workspace: &Workspace, way: Way) -> Result<Library> {
    if matches!(way, Way::Auto | Way::Installed) && is_installed()? {
        return Ok(Library::Own("the library that is installed"));
    }
    if way == Way::Installed {
        bail!("no library for {TARGET} is installed\nhint: rustup target add {TARGET}");
    }
    let folder = workspace.made("wasm-toolchain");
    if matches!(way, Way::Auto | Way::Debian)
        && let Some(toolchain) = debian::Toolchain::kept(&folder)
    {
        return Ok(Library::Debian(toolchain));
    }
    let mut tried = String::new();
    if matches!(way, Way::Auto | Way::Rustup) {
        match by_rustup() {
            Ok(()) => return Ok(Library::Own("the library that rustup has just fetched")),
            Err(error) if way == Way::Rustup => return Err(error),
            Err(error) => {
                tried = format!("{error:#}");
                say(
                    "Library",
                    format!("not by rustup: {}", tried.lines().last().unwrap_or_default().trim()),
                );
            }
        }
    }
    let linker = rust_lld()?;
    match debian::fetch(&folder, &linker) {
        Ok(toolchain) => Ok(Library::Debian(toolchain)),
        Err(error) => {
            let tried = if tried.is_empty() {
                tried
            } else {
                format!("\nrustup before that: {tried}")
            };
            bail!(
                "no library for {TARGET} could be had\nby Debian's packages: {error:#}{tried}\n\
                 hint: rustup target add {TARGET}"
            )
        }
    }
}

fn is_installed() -> Result<bool> {
    let text = command::output(Command::new(rustc()).args(["--print", "target-libdir", "--target", TARGET]))?;
    let Ok(entries) = std::fs::read_dir(Path::new(text.trim())) else {
        return Ok(false);
    };
    let names: Vec<_> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let has = |start: &str| {
        names
            .iter()
            .any(|name| name.starts_with(start) && name.ends_with(".rlib"))
    };
    Ok(has("libstd-") && has("libcore-") && has("libpanic_abort-"))
}

fn by_rustup() -> Result<()> {
    let rustup = command::find("rustup").context("rustup is not there")?;
    say(
        "Library",
        format!("rustup target add {TARGET} (for {} s at most)", RUSTUP_LIMIT.as_secs()),
    );
    command::run_within(Command::new(rustup).args(["target", "add", TARGET]), RUSTUP_LIMIT)?;
    // rustup adds to its active toolchain, which is not the compiler in use when `RUSTC` names another.
    if !is_installed()? {
        bail!("rustup has added {TARGET}, but {} does not see it", rustc().display());
    }
    Ok(())
}

/// The linker that every rustup toolchain brings; Debian's compiler has none for WebAssembly.
fn rust_lld() -> Result<PathBuf> {
    let sysroot = command::output(Command::new(rustc()).args(["--print", "sysroot"]))?;
    let host = command::output(Command::new(rustc()).args(["--print", "host-tuple"]))?;
    let own = Path::new(sysroot.trim())
        .join("lib/rustlib")
        .join(host.trim())
        .join("bin/rust-lld");
    let found = Some(own)
        .filter(|path| path.is_file())
        .or_else(|| command::find("wasm-ld"));
    found.context("neither rust-lld nor wasm-ld is there\nhint: apt-get install lld")
}

fn rustc() -> PathBuf {
    std::env::var_os("RUSTC").map_or_else(|| "rustc".into(), PathBuf::from)
}
