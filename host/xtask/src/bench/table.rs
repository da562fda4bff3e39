//! The results as a table that a person reads: seconds, megabytes, and how many times as fast.

use super::{Measured, Outcome, Results};

/// Lines of text: limits, one line per program, then the ratios.
pub fn render(results: &Results) -> String {
    let mut lines = vec![format!(
        "{}; {} used on an 8 GiB disk; cold cache, local vault",
        results.machine,
        mib(results.disk_bytes)
    )];
    if !results.limits.is_empty() {
        lines.push(String::new());
        lines.push(format!(
            "{:<40} {:>8} {:>8} {:>8} {:>10}",
            "the machine's limit", "wall s", "CPU s", "peak MiB", "stored MiB"
        ));
        for limit in &results.limits {
            let Measured {
                wall_s,
                cpu_s,
                peak_mib,
            } = limit.measured;
            let stored = mib(limit.stored_bytes);
            lines.push(format!(
                "{:<40} {wall_s:>8.1} {cpu_s:>8.1} {peak_mib:>8.0} {stored:>10}",
                limit.what
            ));
        }
    }
    if results.outcomes.is_empty() {
        return lines.join("\n");
    }
    lines.push(String::new());
    lines.push(format!(
        "{:<16} {:>14} {:>14} {:>14} {:>9} {:>11} {:>9}",
        "wall s (CPU s)", "first", "second", "restore", "peak MiB", "stored MiB", "+ second"
    ));
    for outcome in &results.outcomes {
        lines.push(row(outcome));
    }
    lines.extend(ratios(results));
    lines.join("\n")
}

fn row(outcome: &Outcome) -> String {
    let time = |measured: &Measured| format!("{:.1} ({:.1})", measured.wall_s, measured.cpu_s);
    format!(
        "{:<16} {:>14} {:>14} {:>14} {:>9.0} {:>11} {:>9}",
        outcome.name,
        time(&outcome.first),
        time(&outcome.second),
        time(&outcome.restore),
        peak(outcome),
        mib(outcome.stored_bytes),
        mib(outcome.second_stored_bytes),
    )
}

/// Coffre against the best of the others in each column; nothing to say when either side did not run.
fn ratios(results: &Results) -> Vec<String> {
    let (ours, others): (Vec<&Outcome>, Vec<&Outcome>) = results
        .outcomes
        .iter()
        .partition(|outcome| outcome.name.starts_with("coffre"));
    if ours.is_empty() || others.is_empty() {
        return Vec::new();
    }
    let least = |of: &dyn Fn(&Outcome) -> f64| others.iter().map(|outcome| of(outcome)).fold(f64::INFINITY, f64::min);
    let mut lines = vec![
        String::new(),
        "times as fast as the faster of the others, and stored beside the smaller:".to_owned(),
    ];
    for outcome in ours {
        let times = |of: &dyn Fn(&Outcome) -> f64| least(of) / of(outcome);
        let stored = |of: &dyn Fn(&Outcome) -> f64| 100.0 * (of(outcome) / least(of) - 1.0);
        lines.push(format!(
            "{:<16} {:>13.1}x {:>13.1}x {:>13.1}x {:>9} {:>+10.1}% {:>+8.0}%",
            outcome.name,
            times(&|outcome| outcome.first.wall_s),
            times(&|outcome| outcome.second.wall_s),
            times(&|outcome| outcome.restore.wall_s),
            "",
            stored(&|outcome| outcome.stored_bytes as f64),
            stored(&|outcome| outcome.second_stored_bytes as f64),
        ));
    }
    lines
}

fn peak(outcome: &Outcome) -> f64 {
    outcome
        .first
        .peak_mib
        .max(outcome.second.peak_mib)
        .max(outcome.restore.peak_mib)
}

fn mib(bytes: u64) -> String {
    format!("{:.0}", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(name: &str, seconds: f64, stored_mib: u64) -> Outcome {
        let measured = Measured {
            wall_s: seconds,
            cpu_s: seconds * 1.5,
            peak_mib: seconds,
        };
        Outcome {
            name: name.to_owned(),
            version: String::new(),
            first: measured,
            second: Measured {
                wall_s: seconds / 2.0,
                ..measured
            },
            restore: measured,
            stored_bytes: stored_mib << 20,
            second_stored_bytes: stored_mib << 18,
        }
    }

    #[test]
    fn ratios_are_taken_against_the_best_of_the_others() {
        let outcomes = vec![
            outcome("restic", 50.0, 1000),
            outcome("rustic", 40.0, 1100),
            outcome("coffre", 10.0, 1050),
        ];
        let text = render(&Results {
            outcomes,
            ..Results::default()
        });
        let last = text.lines().last().unwrap_or_default();
        assert!(last.contains("4.0x") && last.contains("+5.0%"), "{text}");
    }

    #[test]
    fn one_program_alone_has_no_ratios() {
        let text = render(&Results {
            outcomes: vec![outcome("coffre", 10.0, 1050)],
            ..Results::default()
        });
        assert!(!text.contains("times as fast"), "{text}");
    }
}
