//! Writes valid inputs of every target below a folder, and says the targets' names: `seeds FOLDER`.

use std::fs;
use std::path::PathBuf;

use coffre_vault::testing::fuzz::{TARGETS, seeds};

fn main() -> std::io::Result<()> {
    let folder: PathBuf = std::env::args_os().nth(1).unwrap_or_else(|| "corpus".into()).into();
    let config = vec![coffre_engine::config::EXAMPLE.as_bytes().to_vec()];
    let vault = TARGETS.iter().map(|target| (target.name, seeds(target.name)));
    for (name, seeds) in vault.chain([("config", config)]) {
        let folder = folder.join(name);
        fs::create_dir_all(&folder)?;
        for (number, seed) in seeds.iter().enumerate() {
            fs::write(folder.join(format!("seed-{number}")), seed)?;
        }
        println!("{name}");
    }
    Ok(())
}
