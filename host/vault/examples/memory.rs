//! How much memory the index and the mark take, of vaults with as many chunks as asked for: `cargo xtask bench memory`.
//!
//! A vault of metadata alone is written into a folder (about 50 bytes a chunk), then its index is fetched from nothing and
//! everything is marked, each in a process of its own, whose peak is what the kernel counts (VmHWM).

// The output of this program is for the person at the terminal who started it.
#![allow(clippy::print_stdout)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use coffre_vault::testing::synthetic;
use coffre_vault::{Encryption, InitOptions, OpenOptions, Store, StoreConfig, StoreOptions, Vault};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What must hold: this much, and a bit for each chunk.
const LIMIT_BYTES: u64 = 256 << 20;
const STEPS: [&str; 2] = ["index", "mark"];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let text: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match text.as_slice() {
        ["step", step, folder, chunks] => run(step, Path::new(folder), chunks.parse()?),
        [folder, chunks @ ..] => compare(Path::new(folder), chunks),
        [] => Err("usage: memory FOLDER CHUNKS …".into()),
    }
}

fn compare(folder: &Path, chunks: &[&str]) -> Result<()> {
    let mut peaks: Vec<(u64, Vec<u64>)> = Vec::new();
    println!(
        "{:>12}  {:8} {:>10} {:>12} {:>12}",
        "chunks", "step", "seconds", "peak", "less a bit"
    );
    for text in chunks {
        let count: u64 = text.parse()?;
        let folder = folder.join(text);
        fs::create_dir_all(&folder)?;
        let result = measure(&folder, count);
        fs::remove_dir_all(&folder)?;
        peaks.push((count, result?));
    }
    let mut failed = Vec::new();
    for (at, step) in STEPS.iter().enumerate() {
        for (count, of) in &peaks {
            if of[at] > LIMIT_BYTES + count / 8 {
                failed.push(format!("{step} of {count} chunks takes {} MiB", of[at] >> 20));
            }
        }
        if let (Some((few, least)), Some((many, most))) = (peaks.first(), peaks.last())
            && few < many
        {
            let ratio = most[at] as f64 / least[at] as f64;
            println!("{step}: {many} chunks take {ratio:.3} of the memory that {few} take");
            if ratio > 1.1 {
                failed.push(format!("{step} takes {ratio:.3} of the memory"));
            }
        }
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(failed.join("; ").into())
    }
}

fn measure(folder: &Path, chunks: u64) -> Result<Vec<u64>> {
    let mut peaks = Vec::new();
    for step in ["fill"].into_iter().chain(STEPS) {
        let start = Instant::now();
        let output = Command::new(std::env::current_exe()?)
            .args(["step", step, &folder.display().to_string(), &chunks.to_string()])
            .stderr(std::process::Stdio::inherit())
            .output()?;
        if !output.status.success() {
            return Err(format!("{step} of {chunks} chunks failed").into());
        }
        let peak: u64 = String::from_utf8(output.stdout)?.trim().parse()?;
        println!(
            "{chunks:>12}  {step:8} {:>10.1} {:>8.1} MiB {:>8.1} MiB",
            start.elapsed().as_secs_f64(),
            peak as f64 / f64::from(1 << 20),
            peak.saturating_sub(chunks / 8) as f64 / f64::from(1 << 20),
        );
        if step != "fill" {
            peaks.push(peak);
        }
    }
    Ok(peaks)
}

/// Prints the peak of its own memory, in bytes.
fn run(step: &str, folder: &Path, chunks: u64) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let store = Store::connect(&StoreConfig {
            url: url::Url::from_directory_path(folder.join("vault")).map_err(|()| "an absolute folder is wanted")?,
            options: StoreOptions::default(),
        })?;
        if step == "fill" {
            let options = InitOptions {
                encryption: Encryption::None,
                recovery_key: false,
                host: String::new(),
            };
            Vault::init(store.clone(), options).await?;
        }
        // What the filling process has cached is nothing that the others may find.
        let cache_folder: PathBuf = folder.join(if step == "fill" { "filled" } else { "cache" });
        let options = OpenOptions {
            cache_folder: cache_folder.clone(),
            expect_id: None,
            allow_unencrypted: true,
        };
        let vault = Vault::open(store, None, options).await?;
        match step {
            "fill" => {
                synthetic::write_disk(&vault, chunks, &folder.join("commit")).await?;
                fs::remove_dir_all(cache_folder)?;
            }
            "index" => synthetic::sync_index(&vault).await?,
            _ => {
                let marked = synthetic::mark_all(&vault).await?;
                // The nodes are chunks, too.
                if marked.live_chunks < chunks || marked.live_chunks != marked.chunks {
                    return Err(format!("{marked:?} of {chunks} chunks").into());
                }
            }
        }
        println!("{}", peak_bytes()?);
        Ok(())
    })
}

fn peak_bytes() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .ok_or("the kernel tells no peak")?;
    Ok(kib.trim().parse::<u64>()? * 1024)
}
