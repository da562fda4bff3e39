//! What a point is worth, and why: the rules, with nothing around them.
//!
//! `application` needs a hook that brought its application to rest, or a provider that did (VSS); and every pre hook, the
//! snapshot and every post hook must have succeeded in time. Otherwise a point is worth what the provider alone gives:
//! `file-system` (frozen all the while, by the provider or by us, or the machine is off) or `crash`. A hook with `on-failure = "warn"` changes
//! nothing when it fails.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::OnFailure;
use crate::machine::Consistency;

/// What happened while the snapshot was taken.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// What the provider says of its snapshot, and how it knows.
    pub provider: Consistency,
    pub provider_reason: &'a str,
    pub hooks: &'a [HookFacts<'a>],
    /// From the first pre to the last post.
    pub held: Duration,
    pub hold_at_most: Duration,
    /// The hold was over before the snapshot was there.
    pub snapshot_late: bool,
    pub freeze: FreezeFact<'a>,
}

/// Whether we froze the machine's file systems ourselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FreezeFact<'a> {
    #[default]
    NotAsked,
    /// From before the snapshot until it was there; what was frozen.
    Held(&'a [PathBuf]),
    /// Not all the while; why, as a clause.
    Not(&'a str),
}

impl Facts<'_> {
    /// What the snapshot is worth without hooks, and why.
    fn without_hooks(&self) -> (Consistency, String) {
        match self.freeze {
            FreezeFact::Held(what) if self.provider < Consistency::FileSystem => (
                Consistency::FileSystem,
                format!("{} frozen until the snapshot was there", listed(what)),
            ),
            FreezeFact::Not(why) => (self.provider, format!("{why}; {}", self.provider_reason)),
            FreezeFact::Held(_) | FreezeFact::NotAsked => (self.provider, self.provider_reason.to_owned()),
        }
    }
}

fn listed(mounts: &[PathBuf]) -> String {
    let mounts: Vec<String> = mounts.iter().map(|mount| mount.display().to_string()).collect();
    mounts.join(", ")
}

/// What one hook did.
#[derive(Clone, Debug)]
pub struct HookFacts<'a> {
    pub name: &'a str,
    pub on_failure: OnFailure,
    /// Its `pre` declared that the application is at rest.
    pub at_rest: bool,
    pub pre_failed: bool,
    /// What its `pre` held open was gone before the snapshot was there.
    pub lost: bool,
    pub post_failed: bool,
}

/// What the point is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub reached: Consistency,
    pub reason: String,
}

pub fn decide(facts: &Facts<'_>) -> Decision {
    let below_application = |why: String| {
        let (reached, reason) = facts.without_hooks();
        Decision {
            reached: reached.min(Consistency::FileSystem),
            reason: format!("{why}; without hooks: {reason}"),
        }
    };
    let counted = facts.hooks.iter().filter(|hook| hook.on_failure != OnFailure::Warn);
    for hook in counted {
        if hook.pre_failed {
            return below_application(format!("pre of hook {} failed", hook.name));
        }
        if hook.lost {
            return below_application(format!(
                "hook {} lost what it held before the snapshot was there",
                hook.name
            ));
        }
        if hook.post_failed {
            return below_application(format!("post of hook {} failed", hook.name));
        }
    }
    if !facts.hooks.is_empty() && facts.snapshot_late {
        return below_application(format!(
            "the snapshot was not there within {} s",
            facts.hold_at_most.as_secs_f64()
        ));
    }
    if !facts.hooks.is_empty() && facts.held > facts.hold_at_most {
        return below_application(format!(
            "applications were held for {:.1} s, longer than {} s",
            facts.held.as_secs_f64(),
            facts.hold_at_most.as_secs_f64()
        ));
    }
    let at_rest = |hook: &&HookFacts<'_>| hook.at_rest && !hook.pre_failed && !hook.lost;
    let resting: Vec<&str> = facts.hooks.iter().filter(at_rest).map(|hook| hook.name).collect();
    if !resting.is_empty() {
        return Decision {
            reached: Consistency::Application,
            reason: format!("brought to rest by {}", resting.join(", ")),
        };
    }
    let (reached, reason) = facts.without_hooks();
    Decision { reached, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Consistency::{Application, Crash, FileSystem};
    use OnFailure::{Downgrade, Warn};

    fn hook(on_failure: OnFailure, at_rest: bool, pre_failed: bool, post_failed: bool) -> HookFacts<'static> {
        HookFacts {
            name: "db",
            on_failure,
            at_rest,
            pre_failed,
            lost: false,
            post_failed,
        }
    }

    #[test]
    fn the_rules() {
        let fine = hook(Downgrade, true, false, false);
        let no_word = hook(Downgrade, false, false, false);
        let pre_failed = hook(Downgrade, false, true, false);
        let post_failed = hook(Downgrade, true, false, true);
        let warned = hook(Warn, false, true, false);
        let warned_post = hook(Warn, true, false, true);
        let lost = HookFacts {
            lost: true,
            ..fine.clone()
        };
        let warned_lost = HookFacts {
            on_failure: Warn,
            ..lost.clone()
        };
        type Row<'a> = (Consistency, &'a [&'a HookFacts<'a>], u64, bool, Consistency, &'a str);
        let table: &[Row<'_>] = &[
            (Crash, &[], 0, false, Crash, "in use"),
            (FileSystem, &[], 0, false, FileSystem, "in use"),
            (Application, &[], 0, false, Application, "in use"),
            (Crash, &[&fine], 1, false, Application, "brought to rest by db"),
            (FileSystem, &[&fine], 60, false, Application, "brought to rest by db"),
            (Crash, &[&no_word], 1, false, Crash, "in use"),
            (Application, &[&no_word], 1, false, Application, "in use"),
            (
                Crash,
                &[&fine, &pre_failed],
                1,
                false,
                Crash,
                "pre of hook db failed; without hooks: in use",
            ),
            (
                Crash,
                &[&post_failed],
                1,
                false,
                Crash,
                "post of hook db failed; without hooks: in use",
            ),
            (
                Application,
                &[&pre_failed],
                1,
                false,
                FileSystem,
                "pre of hook db failed; without hooks: in use",
            ),
            (Crash, &[&fine, &warned], 1, false, Application, "brought to rest by db"),
            (Crash, &[&warned], 1, false, Crash, "in use"),
            (
                Crash,
                &[&fine, &lost],
                1,
                false,
                Crash,
                "hook db lost what it held before the snapshot was there; without hooks: in use",
            ),
            (Crash, &[&warned_lost], 1, false, Crash, "in use"),
            // The application was at rest when the snapshot was taken; what came after is only warned of.
            (Crash, &[&warned_post], 1, false, Application, "brought to rest by db"),
            (
                FileSystem,
                &[&fine],
                61,
                false,
                FileSystem,
                "applications were held for 61.0 s, longer than 60 s; without hooks: in use",
            ),
            (
                Crash,
                &[&fine],
                60,
                true,
                Crash,
                "the snapshot was not there within 60 s; without hooks: in use",
            ),
        ];
        for (number, (provider, hooks, held_s, snapshot_late, reached, reason)) in table.iter().enumerate() {
            let hooks: Vec<HookFacts<'_>> = hooks.iter().map(|hook| (*hook).clone()).collect();
            let decision = decide(&Facts {
                provider: *provider,
                provider_reason: "in use",
                hooks: &hooks,
                held: Duration::from_secs(*held_s),
                hold_at_most: Duration::from_secs(60),
                snapshot_late: *snapshot_late,
                freeze: FreezeFact::NotAsked,
            });
            assert_eq!(
                (decision.reached, decision.reason.as_str()),
                (*reached, *reason),
                "row {number}"
            );
        }
    }

    #[test]
    fn a_freeze_that_held_lifts_what_the_provider_gives_and_one_that_did_not_is_told() {
        use Consistency::*;
        let failed = HookFacts {
            name: "db",
            on_failure: OnFailure::Downgrade,
            at_rest: false,
            pre_failed: true,
            lost: false,
            post_failed: false,
        };
        let srv = [PathBuf::from("/srv")];
        let held = FreezeFact::Held(&srv);
        let not = FreezeFact::Not("/srv was thawed too early");
        let table = [
            (
                Crash,
                held,
                None,
                FileSystem,
                "/srv frozen until the snapshot was there",
            ),
            (FileSystem, held, None, FileSystem, "off"),
            (Application, held, None, Application, "off"),
            (Crash, not, None, Crash, "/srv was thawed too early; off"),
            (
                Crash,
                held,
                Some(&failed),
                FileSystem,
                "pre of hook db failed; without hooks: /srv frozen until the snapshot was there",
            ),
            (
                Application,
                held,
                Some(&failed),
                FileSystem,
                "pre of hook db failed; without hooks: off",
            ),
        ];
        for (provider, freeze, hook, reached, reason) in table {
            let hooks: Vec<HookFacts<'_>> = hook.into_iter().cloned().collect();
            let decision = decide(&Facts {
                provider,
                provider_reason: "off",
                hooks: &hooks,
                held: Duration::ZERO,
                hold_at_most: Duration::from_secs(60),
                snapshot_late: false,
                freeze,
            });
            assert_eq!((decision.reached, decision.reason.as_str()), (reached, reason));
        }
    }
}
