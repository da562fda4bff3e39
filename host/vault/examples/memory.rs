//! How much memory a vault's index and what is done with all of it take, for vaults with as many chunks as asked for:
//! `cargo xtask bench memory`.
//!
//! A vault of metadata alone is written into a folder, and then, each in a process of its own whose peak is what the kernel
//! counts (VmHWM): a writer fetches its index from nothing and asks it for chunks, everything is marked, a whole verification
//! of everything but the data runs, and a whole clean-up.

// The output of this program is for the person at the terminal who started it.
#![allow(clippy::print_stdout)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use coffre_vault::testing::synthetic;
use coffre_vault::{
    CleanPlan, Encryption, InitOptions, OpenOptions, Store, StoreConfig, StoreOptions, Vault, VerifyPlan,
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What must hold of every step: this much, and a bit for each chunk.
const LIMIT_BYTES: u64 = 256 << 20;
/// What must hold of the steps that have nothing in memory for each pack: less that bit, the vault with the most chunks takes
/// so many times of what the one with the fewest takes.
const RATIO_LIMIT: f64 = 1.1;
const ASKED: u64 = 250_000;

struct Step {
    name: &'static str,
    /// Its memory must not grow with the vault but for a bit a chunk.
    is_flat: bool,
}

const STEPS: [Step; 4] = [
    Step {
        name: "index",
        is_flat: true,
    },
    Step {
        name: "mark",
        is_flat: true,
    },
    Step {
        name: "verify",
        is_flat: true,
    },
    // Lists all packs, and pieces of the index with the packs in them: about 100 bytes for each pack.
    Step {
        name: "clean",
        is_flat: false,
    },
];

fn main() -> Result<()> {
    coffre_vault::keep_few_heaps();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let text: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match text.as_slice() {
        ["step", step, folder, chunks] => run(step, Path::new(folder), chunks.parse()?),
        [folder, chunks @ ..] => compare(Path::new(folder), chunks),
        [] => Err("usage: memory FOLDER CHUNKS …".into()),
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
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
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        let result = measure(&folder, count);
        fs::remove_dir_all(&folder)?;
        peaks.push((count, result?));
    }
    let mut failed = Vec::new();
    for (at, step) in STEPS.iter().enumerate() {
        let name = step.name;
        for (count, of) in &peaks {
            if of[at] > LIMIT_BYTES + count / 8 {
                failed.push(format!("{name} of {count} chunks takes {:.1} MiB", mib(of[at])));
            }
        }
        let (Some((few, least)), Some((many, most))) = (peaks.first(), peaks.last()) else {
            continue;
        };
        if few == many {
            continue;
        }
        let less_a_bit = |peak: u64, chunks: &u64| peak.saturating_sub(chunks / 8) as f64;
        let ratio = less_a_bit(most[at], many) / less_a_bit(least[at], few);
        println!("{name}: less a bit a chunk, {many} chunks take {ratio:.3} times what {few} take");
        if step.is_flat && ratio > RATIO_LIMIT {
            failed.push(format!("{name} takes {ratio:.3} times the memory"));
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
    for step in ["fill"].into_iter().chain(STEPS.iter().map(|step| step.name)) {
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
            mib(peak),
            mib(peak.saturating_sub(chunks / 8)),
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
        let place = folder.join("vault");
        let store = Store::connect(&StoreConfig {
            url: url::Url::from_directory_path(&place).map_err(|()| "an absolute folder is wanted")?,
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
                synthetic::write_disk(&vault, &place, chunks, &folder.join("commit")).await?;
                fs::remove_dir_all(cache_folder)?;
            }
            "index" => synthetic::claim_some(&vault, chunks, ASKED).await?,
            "mark" => {
                let marked = synthetic::mark_all(&vault).await?;
                // The nodes are chunks, too.
                if marked.live_chunks < chunks || marked.live_chunks != marked.chunks {
                    return Err(format!("{marked:?} of {chunks} chunks").into());
                }
            }
            "verify" => {
                let report = vault.verify(VerifyPlan::default(), &|_| {}).await?;
                if !report.is_sound() || report.chunks < chunks {
                    return Err(format!("{report:?} of {chunks} chunks").into());
                }
            }
            "clean" => {
                let report = vault.clean(&CleanPlan::default(), &|_| {}).await?;
                if report.merged_pieces == 0 || report.condemned.packs > 0 {
                    return Err(format!("{report:?} of {chunks} chunks").into());
                }
            }
            other => return Err(format!("there is no step {other}").into()),
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
