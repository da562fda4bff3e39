//! `cargo xtask`: builds the plugins, sets up what the tests need, and runs quickstart, the tests and the benchmark.
//!
//! It links nothing of Coffre itself, so that it builds in seconds and can start while everything else still has to.

// The output of this program is for the person at the terminal who started it.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod command;
mod deb;
mod fuzz;
mod machine;
mod plugins;
mod quickstart;
mod soak;
mod test;
mod workspace;

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::workspace::Workspace;

const HELP: &str = "\
usage: cargo xtask COMMAND

  plugins [--library WAY]   build plugins/ into target/plugins/*.wasm; WAY is how the WebAssembly library is had:
                            auto (default), installed, rustup or debian
  quickstart                build everything, then back up and restore two sample disks in target/quickstart
  test [FILTER …]           start the servers that tests need (S3, S3 over TLS, Azure Blob), run every test, stop them
  bench [PART …] [--folder DIR]
                            measure Coffre beside restic and rustic; parts: limit, restic, rustic, coffre, reflink;
                            and, only if named: memory (5 and 50 million chunks), sessions (1,000 and 100,000), hold (how
                            long databases wait for Coffre itself; fails over 100 ms), fleet (a configuration of 1,000 machines: start-up,
                            memory, status; fails over 200 ms)
  deb [--debug] [--folder DIR]
                            a Debian package in target/deb: programs, plugins, units, completions, manual pages, examples
  soak [--minutes M] [--seed S] [--seeds N]
                            simulate the vault under faults, crashes and races (30 minutes, unless M or N says otherwise)
                            and stop at the first seed that loses something
  fuzz [TARGET …] [--seconds N]
                            libFuzzer over every parser, or some, a minute each or so long (see host/vault/fuzz)
  servers [COMMAND …]       run a command with those servers up, or keep them up until Ctrl-C
";

fn main() -> ExitCode {
    match dispatch(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: Vec<String>) -> Result<()> {
    let Some((name, rest)) = arguments.split_first() else {
        print!("{HELP}");
        return Ok(());
    };
    match name.as_str() {
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(())
        }
        "plugins" => plugins::run(&Workspace::find()?, rest),
        "quickstart" => quickstart::run(&Workspace::find()?, rest),
        "fuzz" => fuzz::run(&Workspace::find()?, rest),
        "bench" => bench::run(&Workspace::find()?, rest),
        "deb" => deb::run(&Workspace::find()?, rest),
        "soak" => soak::run(&Workspace::find()?, rest),
        "test" => test::run(&Workspace::find()?, rest),
        "servers" => test::servers(&Workspace::find()?, rest),
        other => bail!("there is no command `{other}`\n{HELP}"),
    }
}
