//! `cargo xtask bench hold`: how long applications wait for Coffre itself, beside their hooks and the snapshot.
//!
//! It runs the end-to-end tests that back up PostgreSQL and MariaDB twenty times under load, with the program as it is
//! shipped and with what is promised as their bound; so it fails where the promise is not kept.

use anyhow::{Context, Result};

use crate::command::{self, say};
use crate::plugins;
use crate::test;
use crate::workspace::Workspace;

pub const PART: &str = "hold";

/// What is promised, at the 95th percentile of twenty: applications do not notice a tenth of a second.
const PROMISED_MS: &str = "100";

pub fn run(workspace: &Workspace) -> Result<()> {
    test::provide()?;
    plugins::build(workspace, plugins::Way::Auto)?;
    say("Building", "coffre and the tests, in release mode");
    command::run(&mut workspace.cargo(&["build", "--release", "-p", "coffre"])).context("build coffre")?;
    let mut measured = workspace.cargo(&["test", "--release", "-p", "coffre-tests", "--test", "end_to_end", "--"]);
    measured.args(["twenty_points", "--test-threads=1", "--nocapture"]);
    measured.env("COFFRE_TEST_HOLD_MS", PROMISED_MS);
    command::run(&mut measured).context("back up databases under load")
}
