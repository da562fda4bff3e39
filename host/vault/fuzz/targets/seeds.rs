//! Writes valid inputs of every target below a folder, and says the targets' names: `seeds FOLDER`.

use std::fs;
use std::path::PathBuf;

use coffre_vault::testing::fuzz::{TARGETS, seeds};

const MANIFEST: &str = r#"{"name":"image","version":"1.2.3","world":"snapshot-provider","contract":"0.1.0",
"summary":"Disks that are files.","asks":[{"kind":"disk-read","value":"${settings.images}/**","why":"to read the disks"},
{"kind":"process","value":[["/usr/bin/qemu-img","create","{size}"]],"why":"to make them"}]}"#;

fn main() -> std::io::Result<()> {
    let folder: PathBuf = std::env::args_os().nth(1).unwrap_or_else(|| "corpus".into()).into();
    let texts = [
        ("config", coffre_engine::config::EXAMPLE),
        ("manifest", MANIFEST),
    ];
    let texts = texts.map(|(name, text)| (name, vec![text.as_bytes().to_vec()]));
    let vault = TARGETS.iter().map(|target| (target.name, seeds(target.name)));
    for (name, seeds) in vault.chain(texts) {
        let folder = folder.join(name);
        fs::create_dir_all(&folder)?;
        for (number, seed) in seeds.iter().enumerate() {
            fs::write(folder.join(format!("seed-{number}")), seed)?;
        }
        println!("{name}");
    }
    Ok(())
}
