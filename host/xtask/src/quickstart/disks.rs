//! The sample disks: an ext4 file system each, filled and changed without mounting it, so without root.
//!
//! `mke2fs -d` fills a new file system from a folder, `debugfs -w` changes files in it, and the pages of a database are
//! written where `debugfs` says that they lie in the image, as a database in a running machine would.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;

/// The images' file names, which are the disks' ids with an ending.
pub const NAMES: [&str; 2] = ["data.img", "system.img"];

const BLOCK_BYTES: u64 = 4096;
/// 96 MiB of table, of which a day changes few pages.
const TABLE_PAGES: u64 = 24_576;
const CHANGED_PAGES: u64 = 40;
/// What does not compress, like photos.
const PHOTO_BYTES: u64 = 8 << 20;
const PHOTOS: u64 = 6;

/// Makes both images in `images`; `content` is a folder to work in.
pub fn make(checkout: &Path, images: &Path, content: &Path) -> Result<()> {
    let (system, data) = (content.join("system"), content.join("data"));
    fs::create_dir_all(system.join("etc")).context("make the content's folder")?;
    fs::create_dir_all(system.join("usr/src")).context("make the content's folder")?;
    fs::create_dir_all(data.join("db")).context("make the content's folder")?;
    fs::create_dir_all(data.join("photos")).context("make the content's folder")?;

    fs::write(system.join("etc/hostname"), "shop\n").context("write a file")?;
    fs::write(system.join("etc/motd"), "The first day.\n").context("write a file")?;
    // Programs and sources: what is at hand in every checkout.
    // By this name it is there even if a build has replaced it meanwhile.
    fs::copy("/proc/self/exe", system.join("usr/program")).context("copy a program")?;
    for folder in ["host", "wit", "docs", "scripts"] {
        let from = checkout.join(folder);
        command::run(Command::new("cp").arg("-r").arg(from).arg(system.join("usr/src")))?;
    }
    write_table(&data.join("db/orders.tab"))?;
    for photo in 0..PHOTOS {
        let mut file = BufWriter::new(File::create(data.join(format!("photos/{photo}.jpg"))).context("write a photo")?);
        let mut noise = Noise(photo + 1);
        for _ in 0..PHOTO_BYTES / 8 {
            file.write_all(&noise.next().to_le_bytes()).context("write a photo")?;
        }
        file.flush().context("write a photo")?;
    }
    file_system(&system, &images.join("system.img"), "512M")?;
    file_system(&data, &images.join("data.img"), "1G")
}

/// A day of work: a changed and a new file on one disk; changed rows and a deleted photo on the other.
pub fn change(images: &Path, content: &Path) -> Result<()> {
    let (motd, report) = (content.join("motd"), content.join("report.txt"));
    fs::write(&motd, "The second day.\n").context("write a file")?;
    fs::write(&report, "Sold: 40 things.\n".repeat(4000)).context("write a file")?;
    let system = images.join("system.img");
    debugfs(&system, "rm /etc/motd")?;
    debugfs(&system, &format!("write {} /etc/motd", quoted(&motd)?))?;
    debugfs(&system, &format!("write {} /usr/report.txt", quoted(&report)?))?;

    let data = images.join("data.img");
    let image = File::options()
        .write(true)
        .open(&data)
        .with_context(|| format!("open {}", data.display()))?;
    let mut noise = Noise(77);
    for _ in 0..CHANGED_PAGES {
        let page = noise.next() % TABLE_PAGES;
        let answer = debugfs(&data, &format!("bmap /db/orders.tab {page}"))?;
        let block: u64 = answer
            .trim()
            .parse()
            .with_context(|| format!("debugfs answers `{}`", answer.trim()))?;
        image
            .write_all_at(row(&mut noise).as_bytes(), block * BLOCK_BYTES)
            .context("change a row")?;
    }
    image.sync_all().with_context(|| format!("write {}", data.display()))?;
    debugfs(&data, "rm /photos/3.jpg").map(drop)
}

/// How much of the images differs, in blocks of 4 KiB.
pub fn difference_bytes(before: &Path, after: &Path) -> Result<u64> {
    let mut blocks = 0;
    for name in NAMES {
        walk(&before.join(name), &after.join(name), |_, old, new| {
            let pairs = old.chunks(BLOCK_BYTES as usize).zip(new.chunks(BLOCK_BYTES as usize));
            blocks += pairs.filter(|(old, new)| old != new).count() as u64;
            Ok(())
        })?;
    }
    Ok(blocks * BLOCK_BYTES)
}

/// Compares all images byte for byte.
pub fn compare(original: &Path, restored: &Path) -> Result<()> {
    NAMES
        .iter()
        .try_for_each(|name| same_bytes(&original.join(name), &restored.join(name)))
}

/// Compares two files byte for byte; the error says where they part.
pub fn same_bytes(original: &Path, restored: &Path) -> Result<()> {
    walk(original, restored, |offset, old, new| {
        if old != new {
            let at = offset + old.iter().zip(new).take_while(|(old, new)| old == new).count() as u64;
            bail!(
                "{} differs from {} at byte {at}",
                restored.display(),
                original.display()
            );
        }
        Ok(())
    })
}

/// Shows two files of the same size to `look`, piece by piece.
fn walk(one: &Path, other: &Path, mut look: impl FnMut(u64, &[u8], &[u8]) -> Result<()>) -> Result<()> {
    let open = |path: &Path| File::open(path).with_context(|| format!("open {}", path.display()));
    let (mut first, mut second) = (open(one)?, open(other)?);
    let size = |file: &File| file.metadata().map(|metadata| metadata.len()).context("read a size");
    let (size_bytes, other_bytes) = (size(&first)?, size(&second)?);
    if size_bytes != other_bytes {
        bail!(
            "{} has {size_bytes} bytes and {} has {other_bytes}",
            one.display(),
            other.display()
        );
    }
    let (mut old, mut new) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut offset = 0;
    while offset < size_bytes {
        let length = (size_bytes - offset).min(1 << 20) as usize;
        first
            .read_exact(&mut old[..length])
            .with_context(|| format!("read {}", one.display()))?;
        second
            .read_exact(&mut new[..length])
            .with_context(|| format!("read {}", other.display()))?;
        look(offset, &old[..length], &new[..length])?;
        offset += length as u64;
    }
    Ok(())
}

fn write_table(path: &Path) -> Result<()> {
    let mut file = BufWriter::new(File::create(path).with_context(|| format!("make {}", path.display()))?);
    let mut noise = Noise(4711);
    let mut left = TABLE_PAGES * BLOCK_BYTES;
    while left > 0 {
        let row = row(&mut noise);
        let take = left.min(row.len() as u64);
        file.write_all(&row.as_bytes()[..take as usize])
            .with_context(|| format!("write {}", path.display()))?;
        left -= take;
    }
    file.flush().with_context(|| format!("write {}", path.display()))
}

fn row(noise: &mut Noise) -> String {
    let (order, price) = (noise.next(), noise.next() % 100_000);
    format!(
        "{order:016x};customer {:05};{price:>7};delivered;paid\n",
        order % 50_000
    )
}

fn file_system(from: &Path, image: &Path, size: &str) -> Result<()> {
    let mke2fs = command::find("mke2fs").context("mke2fs is not there")?;
    let mut make = Command::new(mke2fs);
    make.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-d"])
        .arg(from)
        .arg(image)
        .arg(size);
    command::output(&mut make).map(drop)
}

/// Runs one request. debugfs ends with 0 whatever happened, so its complaints are read.
fn debugfs(image: &Path, request: &str) -> Result<String> {
    let program = command::find("debugfs").context("debugfs is not there")?;
    let mut ask = Command::new(program);
    ask.args(["-w", "-R", request]).arg(image);
    let output = ask.output().with_context(|| format!("start {}", command::line(&ask)))?;
    let said = String::from_utf8_lossy(&output.stderr);
    // The first line is its version.
    let complaint = said
        .lines()
        .find(|line| !line.starts_with("debugfs ") && !line.trim().is_empty());
    match complaint {
        Some(complaint) => bail!("{}: {complaint}", command::line(&ask)),
        None => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
    }
}

fn quoted(path: &Path) -> Result<String> {
    let text = path
        .to_str()
        .filter(|text| !text.contains('"'))
        .context("a path that debugfs can take")?;
    Ok(format!("\"{text}\""))
}

/// A sequence that is the same on every machine (SplitMix64, by Steele, Lea and Flood).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_changes_little_and_leaves_both_file_systems_whole() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let (before, after) = (folder.path().join("before"), folder.path().join("after"));
        let content = folder.path().join("content");
        fs::create_dir(&before)?;
        fs::create_dir(&after)?;
        make(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."), &before, &content)?;
        for name in NAMES {
            command::run(
                Command::new("cp")
                    .arg("--sparse=always")
                    .arg(before.join(name))
                    .arg(after.join(name)),
            )?;
        }
        compare(&before, &after)?;
        change(&after, &content)?;

        let changed_bytes = difference_bytes(&before, &after)?;
        assert!(
            (CHANGED_PAGES * BLOCK_BYTES..2 << 20).contains(&changed_bytes),
            "{changed_bytes} bytes differ"
        );
        assert!(compare(&before, &after).is_err());
        let e2fsck = command::find("e2fsck").context("e2fsck is not there")?;
        for name in NAMES {
            command::output(Command::new(&e2fsck).args(["-f", "-n"]).arg(after.join(name)))?;
        }
        Ok(())
    }
}
