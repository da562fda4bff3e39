//! Which regions of a disk changed from point to point: a row per point, newest first, the disk from left to right.

use coffre_engine::book::KnownPoint;
use coffre_engine::transfer::REGIONS;
use maud::{Markup, html};

/// What fits into a glance; older ones are in the points themselves.
const POINTS_SHOWN: usize = 24;
/// Units of the picture for a row, of which the last is a gap.
const ROW: usize = 4;
const SHADES: [(&str, std::ops::RangeInclusive<u32>); 4] =
    [("r1", 1..=3), ("r2", 4..=7), ("r3", 8..=11), ("r4", 12..=15)];

/// None: none of the points says where it changed.
pub fn regions(points: &[KnownPoint], disk: &str) -> Option<Markup> {
    let rows: Vec<&str> = (points.iter().rev())
        .filter_map(|point| point.disks.iter().find(|known| known.id == disk))
        .map(|known| known.changed_regions.as_str())
        .filter(|regions| !regions.is_empty())
        .take(POINTS_SHOWN)
        .collect();
    if rows.is_empty() {
        return None;
    }
    let height = rows.len() * ROW;
    Some(html! {
        svg.regions viewBox=(format!("0 0 {REGIONS} {height}")) preserveAspectRatio="none" style=(format!("height:{}px", rows.len() * 7))
            role="img" aria-label=(format!("changed regions of {disk}")) {
            @for (class, digits) in &SHADES {
                @let path = path(&rows, digits);
                @if !path.is_empty() { path class=(class) d=(path) {} }
            }
        }
    })
}

/// All stretches of one shade, as one path: a rectangle each would be megabytes for a fleet.
fn path(rows: &[&str], digits: &std::ops::RangeInclusive<u32>) -> String {
    let mut path = String::new();
    for (number, row) in rows.iter().enumerate() {
        let here: Vec<bool> = row
            .chars()
            .map(|digit| digit.to_digit(16).is_some_and(|digit| digits.contains(&digit)))
            .collect();
        let mut column = 0;
        for run in here.chunk_by(|one, other| one == other) {
            if run[0] {
                let (wide, tall) = (run.len(), ROW - 1);
                path.push_str(&format!("M{column} {}h{wide}v{tall}h-{wide}z", number * ROW));
            }
            column += run.len();
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_of_one_shade_are_one_rectangle() {
        assert_eq!(path(&["0110", "f001"], &(1..=3)), "M1 0h2v3h-2zM3 4h1v3h-1z");
        assert_eq!(path(&["0110", "f001"], &(12..=15)), "M0 4h1v3h-1z");
    }
}
