//! The guard by itself, for the tests of this crate; what ships is `coffre-guard` of the package `coffre`.

use std::process::ExitCode;

fn main() -> ExitCode {
    coffre_guard::program::main(std::env::args_os())
}
