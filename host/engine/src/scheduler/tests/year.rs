//! A simulated year: a fleet under every kind of schedule, in zones that change their clocks, with downtime, kills, outages,
//! slow transfers and windows, from a seed. Afterwards every due time is accounted for.

use std::collections::BTreeMap;

use coffre_vault::SessionNumber;
use jiff::tz::TimeZone;

use super::*;
use crate::config::Keep;
use crate::machine::Consistency;
use crate::retention::{self, Candidate, Decision, Rules};

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn between(&mut self, least: i64, most: i64) -> i64 {
        least + (self.next() % (most - least + 1) as u64) as i64
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.next().is_multiple_of(count)
    }

    fn seconds(&mut self, least: i64, most: i64) -> SignedDuration {
        SignedDuration::from_secs(self.between(least, most))
    }
}

const HOUR: i64 = 3600;
const SNAPSHOTS: usize = 3;
const TRANSFERS: usize = 2;

/// A job that runs, and what will become of it.
#[derive(Clone)]
struct Job {
    due: Timestamp,
    taken_at: Option<Timestamp>,
    /// When the phase that it is in ends; none: it waits to be let go.
    until: Option<Timestamp>,
    transfer: SignedDuration,
    fails_in_snapshot: bool,
    end: Ended,
}

struct World {
    dice: Dice,
    now: Timestamp,
    plans: Vec<Plan>,
    keeps: BTreeMap<String, (Keep, TimeZone)>,
    scheduler: Option<Scheduler>,
    /// What would be on disk.
    turns: BTreeMap<String, Turn>,
    jobs: BTreeMap<String, Job>,
    accounts: Vec<Account>,
    points: BTreeMap<String, Vec<(u32, Timestamp)>>,
    made: u32,
    outage_until: Timestamp,
    starts: u64,
    catch_ups: u64,
    most_points: usize,
}

fn keep(last: u32, daily: u32, weekly: u32, monthly: u32, yearly: u32, within_days: u64) -> Keep {
    Keep {
        last,
        within: Duration::from_secs(within_days * 24 * 3600),
        hourly: 0,
        daily,
        weekly,
        monthly,
        yearly,
    }
}

fn fleet() -> Vec<(Plan, Keep)> {
    let of = |machine: &str, schedule: &str, jitter_minutes: u64, windows: &[&str], keep: Keep| {
        let plan = Plan {
            jitter: Duration::from_secs(jitter_minutes * 60),
            windows: windows.iter().map(|text| Window::parse(text).unwrap()).collect(),
            ..plan(machine, schedule)
        };
        (plan, keep)
    };
    vec![
        of("paris", "daily 02:30 Europe/Paris", 0, &[], keep(3, 7, 4, 12, 3, 0)),
        of(
            "paris-night",
            "daily 20:00 Europe/Paris",
            30,
            &["22:00-06:00 Europe/Paris"],
            keep(0, 7, 4, 6, 0, 2),
        ),
        of(
            "new-york",
            "every 4h America/New_York",
            10,
            &[],
            keep(5, 14, 8, 0, 0, 1),
        ),
        of(
            "window",
            "every 6h 07:00-21:00 Europe/Paris",
            0,
            &["mon-fri 18:00-08:00 Europe/Paris", "sat,sun 00:00-24:00 Europe/Paris"],
            keep(0, 7, 0, 0, 0, 3),
        ),
        of("hourly", "hourly Europe/Paris", 5, &[], keep(24, 7, 0, 0, 0, 0)),
        of(
            "weekly",
            "weekly sunday 02:00 America/New_York",
            0,
            &[],
            keep(0, 0, 4, 12, 0, 0),
        ),
        of(
            "monthly",
            "monthly 31 04:00 Europe/Paris",
            60,
            &[],
            keep(0, 0, 0, 12, 7, 0),
        ),
        of(
            "cron",
            "cron 30 1,2 * * mon-fri Europe/Paris",
            0,
            &[],
            keep(2, 5, 0, 0, 0, 0),
        ),
        of(
            "lord-howe",
            "daily 02:15 Australia/Lord_Howe",
            0,
            &[],
            keep(0, 30, 0, 0, 0, 0),
        ),
    ]
}

impl World {
    fn new(seed: u64, start: Timestamp) -> Self {
        let fleet = fleet();
        let zone = |plan: &Plan| plan.schedule.zone();
        Self {
            dice: Dice(seed),
            now: start,
            keeps: fleet
                .iter()
                .map(|(plan, keep)| (plan.machine.clone(), (*keep, zone(plan))))
                .collect(),
            plans: fleet.into_iter().map(|(plan, _)| plan).collect(),
            scheduler: None,
            turns: BTreeMap::new(),
            jobs: BTreeMap::new(),
            accounts: Vec::new(),
            points: BTreeMap::new(),
            made: 0,
            outage_until: start,
            starts: 0,
            catch_ups: 0,
            most_points: 0,
        }
    }

    fn boot(&mut self) {
        let places = Places::new(SNAPSHOTS, TRANSFERS);
        let scheduler = Scheduler::new(self.plans.clone(), places, &self.turns, &BTreeMap::new(), self.now);
        self.scheduler = Some(scheduler);
    }

    /// The service goes on until something happens to it.
    fn serve(&mut self, until: Timestamp) {
        loop {
            self.end_phases();
            self.tick();
            let scheduler = self.scheduler.as_ref().unwrap();
            let wake = scheduler.next_wake(self.now).unwrap_or(until);
            let phases = self.jobs.values().filter_map(|job| job.until).min().unwrap_or(until);
            let next = wake.min(phases);
            if next >= until {
                self.now = until;
                return;
            }
            assert!(next > self.now, "it would turn on the spot at {next}");
            self.now = next;
        }
    }

    fn tick(&mut self) {
        let scheduler = self.scheduler.as_mut().unwrap();
        let actions = scheduler.tick(self.now);
        self.turns.extend(scheduler.take_changed());
        // Done is done: nothing is left for the same moment.
        assert_eq!(scheduler.tick(self.now), []);
        for action in actions {
            match action {
                Action::Start { machine, due, attempt } => self.start(machine, due, attempt),
                Action::Transfer { machine } => {
                    let plan = self.plans.iter().find(|plan| plan.machine == machine).unwrap();
                    let open = plan.windows.is_empty() || plan.windows.iter().any(|window| window.contains(self.now));
                    assert!(open, "{machine} transfers outside of its window at {}", self.now);
                    let job = self.jobs.get_mut(&machine).unwrap();
                    assert!(job.taken_at.is_some() && job.until.is_none());
                    job.until = Some(self.now + job.transfer);
                }
                Action::Tell(account) => self.accounts.push(account),
            }
        }
        let with_snapshot = |job: &&Job| job.taken_at.is_some() && job.until.is_some();
        assert!(self.jobs.values().filter(with_snapshot).count() <= TRANSFERS);
        assert!(self.jobs.values().filter(|job| job.taken_at.is_none()).count() <= SNAPSHOTS);
    }

    fn start(&mut self, machine: String, due: Timestamp, attempt: u32) {
        assert!(due <= self.now);
        assert_eq!(
            self.turns[&machine].state,
            TurnState::Running,
            "written before it starts"
        );
        assert_eq!(self.turns[&machine].attempts, attempt);
        self.starts += 1;
        let plan = self.plans.iter().find(|plan| plan.machine == machine).unwrap();
        if attempt == 1 && self.now.duration_since(due) > SignedDuration::try_from(plan.jitter).unwrap() {
            self.catch_ups += 1;
        }
        let dice = &mut self.dice;
        let slow = dice.one_in(60);
        let fails = self.now < self.outage_until || dice.one_in(15);
        let end = match fails {
            true => Ended::Failed {
                error: "no answer".to_owned(),
                again: !dice.one_in(10),
            },
            false if dice.one_in(200) => Ended::Cancelled,
            false => Ended::Done,
        };
        let job = Job {
            due,
            taken_at: None,
            until: Some(self.now + dice.seconds(5, 120)),
            transfer: match slow {
                true => dice.seconds(8 * HOUR, 40 * HOUR),
                false => dice.seconds(20, 1500),
            },
            fails_in_snapshot: dice.one_in(2),
            end,
        };
        let before = self.jobs.insert(machine.clone(), job);
        assert!(before.is_none(), "{machine} has two jobs");
    }

    /// Jobs whose phase is over go on or end.
    fn end_phases(&mut self) {
        let over = |job: &Job| job.until.is_some_and(|until| until <= self.now);
        let over: Vec<String> = self
            .jobs
            .iter()
            .filter(|(_, job)| over(job))
            .map(|(name, _)| name.clone())
            .collect();
        for machine in over {
            let job = self.jobs.get_mut(&machine).unwrap();
            let scheduler = self.scheduler.as_mut().unwrap();
            if job.taken_at.is_none() && (job.end == Ended::Done || !job.fails_in_snapshot) {
                job.taken_at = Some(self.now);
                job.until = None;
                scheduler.snapshot_taken(&machine);
                continue;
            }
            let job = self.jobs.remove(&machine).unwrap();
            let account = scheduler.ended(&machine, job.end.clone(), self.now);
            self.turns.extend(scheduler.take_changed());
            if let Some(account) = account {
                assert_eq!(account.first, job.due);
                self.accounts.push(account);
            }
            if job.end == Ended::Done {
                self.made_point(&machine, job.taken_at.unwrap());
            }
        }
    }

    /// Retention, as the policy says it and as a plain model says it.
    fn made_point(&mut self, machine: &str, taken_at: Timestamp) {
        let (keep, zone) = &self.keeps[machine];
        let points = self.points.entry(machine.to_owned()).or_default();
        points.push((self.made, taken_at));
        self.made += 1;
        let candidates: Vec<Candidate> = points
            .iter()
            .map(|(number, taken_at)| Candidate {
                number: SessionNumber(*number),
                taken_at: Some(*taken_at),
                consistency: Consistency::Application,
                fate: coffre_vault::Fate::Kept,
                pinned: None,
                damaged: false,
            })
            .collect();
        let rules = Rules {
            keep: Some(*keep),
            accept: Consistency::Crash,
            zone: zone.clone(),
            now: self.now,
        };
        let stays = |verdict: retention::Verdict| match verdict.decision {
            Decision::Keep(_) => Some(verdict.point.0),
            _ => None,
        };
        let kept: Vec<u32> = retention::decide(&candidates, &rules)
            .into_iter()
            .filter_map(stays)
            .collect();
        assert_eq!(kept, plainly_kept(points, keep, zone), "{machine} at {}", self.now);
        points.retain(|(number, _)| kept.contains(number));
        self.most_points = self.most_points.max(points.len());
    }

    /// The service ends: by a kill, where jobs just vanish, or in order.
    fn fall(&mut self, killed: bool) {
        let mut scheduler = self.scheduler.take().unwrap();
        for (machine, _) in std::mem::take(&mut self.jobs) {
            if !killed {
                assert_eq!(scheduler.ended(&machine, Ended::Stopped, self.now), None);
            }
        }
        if !killed {
            self.turns.extend(scheduler.take_changed());
        }
    }

    fn live(&mut self, end: Timestamp) {
        while self.now < end {
            self.boot();
            let up = match self.dice.one_in(4) {
                true => self.dice.seconds(60, 6 * HOUR),
                false => self.dice.seconds(6 * HOUR, 20 * 24 * HOUR),
            };
            let falls_at = (self.now + up).min(end);
            while self.now < falls_at {
                let next = (self.now + self.dice.seconds(HOUR, 9 * 24 * HOUR)).min(falls_at);
                self.serve(next);
                self.outage_until = self.now + self.dice.seconds(0, 20 * HOUR);
            }
            if self.now >= end {
                return;
            }
            let killed = self.dice.one_in(2);
            self.fall(killed);
            let down = match self.dice.one_in(5) {
                true => self.dice.seconds(12 * HOUR, 12 * 24 * HOUR),
                false => self.dice.seconds(1, 2 * HOUR),
            };
            self.now = (self.now + down).min(end);
        }
    }
}

/// The rules, said as plainly as can be: of every period that has points the newest one, and of those periods so many.
fn plainly_kept(points: &[(u32, Timestamp)], keep: &Keep, zone: &TimeZone) -> Vec<u32> {
    let mut kept: BTreeSet<u32> = points
        .iter()
        .rev()
        .take(keep.last.max(1) as usize)
        .map(|(number, _)| *number)
        .collect();
    let newest = points.iter().map(|(_, taken_at)| *taken_at).max().unwrap();
    if keep.within > Duration::ZERO {
        let within =
            |taken_at: Timestamp| newest.duration_since(taken_at) <= SignedDuration::try_from(keep.within).unwrap();
        kept.extend(
            points
                .iter()
                .filter(|(_, taken_at)| within(*taken_at))
                .map(|(number, _)| *number),
        );
    }
    for (count, period) in [
        (keep.daily, "%Y-%m-%d"),
        (keep.weekly, "%G-%V"),
        (keep.monthly, "%Y-%m"),
        (keep.yearly, "%Y"),
    ] {
        let label = |taken_at: Timestamp| taken_at.to_zoned(zone.clone()).strftime(period).to_string();
        let newest_of: BTreeMap<String, u32> = points.iter().map(|(number, at)| (label(*at), *number)).collect();
        kept.extend(newest_of.values().rev().take(count as usize));
    }
    kept.into_iter().collect()
}

fn year(seed: u64) -> World {
    let (start, end) = (at("2026-01-01T00:00Z"), at("2027-01-01T00:00Z"));
    let mut world = World::new(seed, start);
    world.live(end);
    assert_eq!(world.now, end);
    world
}

#[test]
fn every_due_time_of_a_year_is_accounted_for() {
    for seed in [1, 2] {
        let world = year(seed);
        let (start, end) = (at("2026-01-01T00:00Z"), at("2027-01-01T00:00Z"));
        for plan in &world.plans {
            let next = |due: &Timestamp| plan.schedule.next_after(*due);
            let dues = std::iter::successors(plan.schedule.next_after(start), next).take_while(|due| *due < end);
            let mut dues: Vec<Timestamp> = dues.collect();
            // Those at the very end may still be waiting, running, or not looked at.
            let open = world.turns[&plan.machine].clone();
            let settled = !matches!(open.state, TurnState::Waiting | TurnState::Running);
            dues.retain(|due| *due < open.due || (settled && *due == open.due));
            let mut told = Vec::new();
            for account in world.accounts.iter().filter(|account| account.machine == plan.machine) {
                let of_account =
                    std::iter::successors(Some(account.first), next).take_while(|due| *due <= account.last);
                let of_account: Vec<Timestamp> = of_account.collect();
                assert_eq!(of_account.len() as u64, account.count, "seed {seed}: {account:?}");
                told.extend(of_account);
            }
            told.sort();
            assert_eq!(told, dues, "seed {seed}: {}", plan.machine);
            // The last of them was looked at when it was due, give or take a slow transfer and a downtime.
            assert!(
                end.duration_since(open.due) < SignedDuration::from_hours(24 * 31 + 40 + 12 * 24),
                "{}",
                plan.machine
            );
        }
        let done = world
            .accounts
            .iter()
            .filter(|account| account.fate == Fate::Done)
            .count();
        let total: u64 = world.accounts.iter().map(|account| account.count).sum();
        let with = |fate: fn(&Fate) -> bool| world.accounts.iter().filter(|account| fate(&account.fate)).count();
        // The weather was bad: everything that can happen did.
        assert!(with(|fate| matches!(fate, Fate::Missed)) > 20);
        assert!(with(|fate| matches!(fate, Fate::Overtaken)) > 20);
        assert!(with(|fate| matches!(fate, Fate::Failed(_))) > 20);
        assert!(with(|fate| matches!(fate, Fate::Cancelled)) > 3);
        assert!(world.catch_ups > 20);
        // And still most of what was due while the service ran has its point.
        assert!(done as u64 * 2 > total, "{done} of {total}");
    }
}

#[test]
fn nothing_piles_up_in_a_year_of_bad_weather() {
    for seed in [3, 4] {
        let world = year(seed);
        let total: u64 = world.accounts.iter().map(|account| account.count).sum();
        assert!(
            world.starts < total * 2,
            "{} starts for {total} due times",
            world.starts
        );
        // Nothing grows but what the rules keep: `last`, `within` and one of each period.
        assert!(world.most_points <= 24 + 30 + 8, "{}", world.most_points);
        let scheduler = world.scheduler.as_ref().unwrap();
        assert_eq!(scheduler.machines.len(), world.plans.len());
        assert!(scheduler.queue.len() <= world.plans.len());
        assert!(scheduler.queue.capacity() <= 4 * world.plans.len());
        assert!(scheduler.changed.is_empty());
    }
}
