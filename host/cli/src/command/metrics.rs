//! `coffre metrics`: what the service serves, on stdout, for hosts without one.

use std::sync::Arc;

use crate::args::Global;
use crate::exit::Exit;
use crate::output::Output;
use crate::{metrics, wire};

pub async fn run(global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let config = Arc::new(wire::config(global)?);
    let text = metrics::page(config).await?;
    output.document(&serde_json::json!({ "openmetrics": text }))?;
    output.result(text)?;
    Ok(Exit::Done)
}
