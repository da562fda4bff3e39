//! What stays, by example and as properties that hold for any points and any policy.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn good(number: u32, taken_at: &str) -> Candidate {
    Candidate {
        number: SessionNumber(number),
        taken_at: Some(at(taken_at)),
        consistency: Consistency::Application,
        fate: Fate::Kept,
        pinned: None,
        damaged: false,
    }
}

fn crash(number: u32, taken_at: &str) -> Candidate {
    Candidate {
        consistency: Consistency::Crash,
        ..good(number, taken_at)
    }
}

fn pinned(number: u32, taken_at: &str) -> Candidate {
    Candidate {
        pinned: Some(Some("audit".to_owned())),
        ..good(number, taken_at)
    }
}

fn rules(keep: Keep, zone: &str) -> Rules {
    Rules {
        keep: Some(keep),
        accept: Consistency::FileSystem,
        zone: TimeZone::get(zone).unwrap(),
        now: at("2026-11-23T12:00:00Z"),
    }
}

fn keep() -> Keep {
    Keep::default()
}

/// One line per point.
fn said(points: &[Candidate], rules: &Rules) -> String {
    let lines = decide(points, rules).into_iter().map(|verdict| {
        let what = match verdict.decision {
            Decision::Keep(reasons) => {
                let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
                format!("keep: {}", reasons.join(", "))
            }
            Decision::Forget(reason) => format!("forget: {reason}"),
            Decision::Gone => "gone".to_owned(),
        };
        format!("{}: {what}\n", verdict.point)
    });
    lines.collect()
}

fn forgotten(points: &[Candidate], rules: &Rules) -> Vec<u32> {
    let goes = |verdict: Verdict| matches!(verdict.decision, Decision::Forget(_)).then_some(verdict.point.0);
    decide(points, rules).into_iter().filter_map(goes).collect()
}

#[test]
fn every_rule_says_what_it_keeps_and_why_the_others_go() {
    let points = [
        good(0, "2024-05-01T02:00:00Z"),
        good(1, "2025-12-30T02:00:00Z"),
        good(2, "2026-10-30T02:00:00Z"),
        good(3, "2026-10-31T02:00:00Z"),
        good(4, "2026-11-20T02:00:00Z"),
        good(5, "2026-11-21T02:00:00Z"),
        good(6, "2026-11-22T02:00:00Z"),
        good(7, "2026-11-23T02:00:00Z"),
        good(8, "2026-11-23T09:00:00Z"),
    ];
    let keep = Keep {
        last: 1,
        daily: 2,
        weekly: 2,
        monthly: 2,
        yearly: 2,
        ..keep()
    };
    insta::assert_snapshot!(said(&points, &rules(keep, "UTC")), @r"
    0: forget: older than all that the rules keep
    1: keep: yearly 2025
    2: forget: 3 is the one for monthly 2026-10
    3: keep: monthly 2026-10
    4: forget: 6 is the one for weekly 2026-W47
    5: forget: 6 is the one for weekly 2026-W47
    6: keep: daily 2026-11-22, weekly 2026-W47
    7: forget: 8 is the one for daily 2026-11-23
    8: keep: last 1 of 1, daily 2026-11-23, weekly 2026-W48, monthly 2026-11, yearly 2026, newest good one
    ");
}

#[test]
fn what_no_rule_can_judge_stays_and_says_so() {
    let points = [
        pinned(0, "2020-01-01T00:00:00Z"),
        Candidate {
            taken_at: None,
            ..good(1, "2020-01-01T00:00:00Z")
        },
        good(2, "2036-11-23T00:00:00Z"),
        Candidate {
            fate: Fate::Unknown,
            ..good(3, "2020-01-01T00:00:00Z")
        },
        Candidate {
            fate: Fate::Forgotten,
            ..good(4, "2026-11-21T00:00:00Z")
        },
        good(5, "2026-11-21T00:00:00Z"),
        good(6, "2026-11-22T00:00:00Z"),
        good(7, "2026-11-23T00:00:00Z"),
        crash(8, "2026-11-23T11:00:00Z"),
    ];
    insta::assert_snapshot!(said(&points, &rules(Keep { daily: 2, ..keep() }, "UTC")), @r"
    0: keep: pinned: audit
    1: keep: does not say when it was taken
    2: keep: taken in the future
    3: keep: what became of it cannot be read
    4: gone
    5: forget: older than all that the rules keep
    6: keep: daily 2026-11-22
    7: keep: daily 2026-11-23, newest good one
    8: keep: newest
    ");
}

#[test]
fn without_keep_everything_stays() {
    let points = [good(0, "2020-01-01T00:00:00Z"), good(1, "2026-11-22T00:00:00Z")];
    let rules = Rules {
        keep: None,
        ..rules(keep(), "UTC")
    };
    insta::assert_snapshot!(said(&points, &rules), @r"
    0: keep: no `keep`: all stay
    1: keep: no `keep`: all stay, newest good one
    ");
}

#[test]
fn lesser_points_fill_gaps_and_take_no_good_ones_place() {
    let points = [
        crash(0, "2026-11-10T02:00:00Z"),
        good(1, "2026-11-18T02:00:00Z"),
        good(2, "2026-11-19T02:00:00Z"),
        good(3, "2026-11-20T02:00:00Z"),
        crash(4, "2026-11-20T14:00:00Z"),
        crash(5, "2026-11-21T02:00:00Z"),
        crash(6, "2026-11-22T02:00:00Z"),
        crash(7, "2026-11-23T02:00:00Z"),
    ];
    // Three crash-consistent nights in a row: the two good days stay as they were.
    insta::assert_snapshot!(said(&points, &rules(Keep { daily: 2, ..keep() }, "UTC")), @r"
    0: forget: older than all that the rules keep
    1: forget: older than all that the rules keep
    2: keep: daily 2026-11-19
    3: keep: daily 2026-11-20, newest good one
    4: forget: 3 is the one for daily 2026-11-20
    5: forget: crash is less than the policy accepts (file-system)
    6: keep: daily 2026-11-22
    7: keep: daily 2026-11-23, newest
    ");
    let damaged = Candidate {
        damaged: true,
        ..good(9, "2026-11-20T16:00:00Z")
    };
    let points = [
        good(1, "2026-11-19T02:00:00Z"),
        good(3, "2026-11-20T02:00:00Z"),
        damaged,
    ];
    insta::assert_snapshot!(said(&points, &rules(Keep { last: 1, ..keep() }, "UTC")), @r"
    1: forget: older than all that the rules keep
    3: keep: last 1 of 1, newest good one
    9: keep: last 1 of 1, newest
    ");
}

#[test]
fn pinned_points_use_nothing_up() {
    let points = [
        good(0, "2026-11-20T02:00:00Z"),
        good(1, "2026-11-21T02:00:00Z"),
        pinned(2, "2026-11-22T02:00:00Z"),
        good(3, "2026-11-23T02:00:00Z"),
        pinned(4, "2026-11-23T09:00:00Z"),
    ];
    assert_eq!(forgotten(&points, &rules(Keep { daily: 2, ..keep() }, "UTC")), [0]);
    assert_eq!(forgotten(&points, &rules(Keep { last: 1, ..keep() }, "UTC")), [0, 1]);
}

#[test]
fn points_of_a_time_when_less_was_asked_for_go_as_others_come() {
    let mut points: Vec<Candidate> = (1..=9)
        .map(|day| crash(day, &format!("2026-11-{day:02}T02:00:00Z")))
        .collect();
    let rules = rules(Keep { daily: 3, ..keep() }, "UTC");
    assert_eq!(forgotten(&points, &rules), [1, 2, 3, 4, 5, 6]);
    points.extend((10..=11).map(|day| good(day, &format!("2026-11-{day:02}T02:00:00Z"))));
    assert_eq!(forgotten(&points, &rules), [1, 2, 3, 4, 5, 6, 7, 8]);
    points.push(good(12, "2026-11-12T02:00:00Z"));
    assert_eq!(forgotten(&points, &rules), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
}

#[test]
fn the_passing_of_time_empties_nothing() {
    let points: Vec<Candidate> = (1..=9)
        .map(|day| good(day, &format!("2026-11-{day:02}T02:00:00Z")))
        .collect();
    let keep = Keep {
        daily: 3,
        within: Duration::from_secs(4 * 24 * 3600),
        ..keep()
    };
    let mut rules = rules(keep, "UTC");
    assert_eq!(forgotten(&points, &rules), [1, 2, 3, 4]);
    rules.now = at("2046-01-01T00:00:00Z");
    assert_eq!(forgotten(&points, &rules), [1, 2, 3, 4]);
    // And a clock that is behind finds only points of the future, which all stay.
    rules.now = at("2016-01-01T00:00:00Z");
    assert!(forgotten(&points, &rules).is_empty());
}

#[test]
fn days_weeks_and_years_are_those_of_the_policys_time_zone() {
    // 23:30 UTC is the next day in Paris.
    let points = [good(0, "2026-11-20T23:30:00Z"), good(1, "2026-11-21T22:00:00Z")];
    let daily = Keep { daily: 5, ..keep() };
    assert!(forgotten(&points, &rules(daily, "UTC")).is_empty());
    assert_eq!(forgotten(&points, &rules(daily, "Europe/Paris")), [0]);
    // 2020 has 53 weeks by ISO 8601: the last one ends on the 3rd of January.
    let points = [
        good(0, "2020-12-27T12:00:00Z"),
        good(1, "2020-12-31T12:00:00Z"),
        good(2, "2021-01-03T12:00:00Z"),
        good(3, "2021-01-04T12:00:00Z"),
    ];
    insta::assert_snapshot!(said(&points, &rules(Keep { weekly: 9, ..keep() }, "UTC")), @r"
    0: keep: weekly 2020-W52
    1: forget: 2 is the one for weekly 2020-W53
    2: keep: weekly 2020-W53
    3: keep: weekly 2021-W01, newest good one
    ");
    assert_eq!(forgotten(&points, &rules(Keep { yearly: 9, ..keep() }, "UTC")), [0, 2]);
}

#[test]
fn the_hour_that_comes_twice_is_two_and_the_one_that_is_left_out_is_none() {
    let hourly = Keep { hourly: 9, ..keep() };
    // Paris, the end of summer time: 02:30 comes at 00:30Z and again at 01:30Z.
    let points = [
        good(0, "2026-10-25T00:10:00Z"),
        good(1, "2026-10-25T00:50:00Z"),
        good(2, "2026-10-25T01:50:00Z"),
        good(3, "2026-10-25T02:50:00Z"),
    ];
    assert_eq!(forgotten(&points, &rules(hourly, "Europe/Paris")), [0]);
    // And its beginning: 01:30 is followed by 03:30.
    let points = [good(0, "2026-03-29T00:30:00Z"), good(1, "2026-03-29T01:30:00Z")];
    assert!(forgotten(&points, &rules(hourly, "Europe/Paris")).is_empty());
    // A day of 25 hours is one day.
    let points = [good(0, "2026-10-24T22:10:00Z"), good(1, "2026-10-25T22:50:00Z")];
    assert_eq!(
        forgotten(&points, &rules(Keep { daily: 9, ..keep() }, "Europe/Paris")),
        [0]
    );
    // Newfoundland in 2010: at 00:01 the clock went back to 23:01 of the day before, so that a day came in two pieces.
    let points = [
        good(0, "2010-11-07T02:00:00Z"),
        good(1, "2010-11-07T02:30:30Z"),
        good(2, "2010-11-07T03:00:00Z"),
        good(3, "2010-11-07T12:00:00Z"),
    ];
    assert_eq!(
        forgotten(&points, &rules(Keep { daily: 9, ..keep() }, "America/St_Johns")),
        [0, 1]
    );
}

#[test]
fn the_order_in_which_points_are_given_means_nothing() {
    let mut points: Vec<Candidate> = (1..=9)
        .map(|day| good(day, &format!("2026-11-{day:02}T02:00:00Z")))
        .collect();
    let rules = rules(Keep { daily: 3, ..keep() }, "UTC");
    let verdicts = decide(&points, &rules);
    points.reverse();
    assert_eq!(decide(&points, &rules), verdicts);
}

const ZONES: [&str; 5] = [
    "UTC",
    "Europe/Paris",
    "America/St_Johns",
    "Australia/Lord_Howe",
    "Pacific/Apia",
];

fn any_keep() -> impl Strategy<Value = Keep> {
    (prop::array::uniform6(0_u32..4), 0_u64..100).prop_map(|([last, hourly, daily, weekly, monthly, yearly], hours)| {
        Keep {
            last,
            within: Duration::from_secs(hours.saturating_sub(60) * 3600),
            hourly,
            daily,
            weekly,
            monthly,
            yearly,
        }
    })
}

fn any_rules() -> impl Strategy<Value = Rules> {
    (any_keep(), prop::sample::select(&ZONES[..]), 0..3_u8).prop_map(|(keep, zone, accept)| Rules {
        accept: [Consistency::Crash, Consistency::FileSystem, Consistency::Application][usize::from(accept)],
        ..rules(keep, zone)
    })
}

/// Times from minutes to years apart, most ascending as they are in life, some not, some in the future or absent.
fn any_points() -> impl Strategy<Value = Vec<Candidate>> {
    let step_minutes = prop_oneof![0_i64..90, 0_i64..3000, 0_i64..100_000, -5000_i64..0];
    let fate = prop_oneof![
        8 => Just(Fate::Kept),
        1 => Just(Fate::Forgotten),
        1 => Just(Fate::Purged),
        1 => Just(Fate::Unknown),
    ];
    let one = (
        step_minutes,
        0..3_u8,
        fate,
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.05),
    );
    (prop::collection::vec(one, 0..40), 0_i64..2_000_000).prop_map(|(steps, start_minutes)| {
        let mut minutes = start_minutes;
        let candidates = (0..)
            .zip(steps)
            .map(|(number, (step, worth, fate, pinned, damaged, timeless))| {
                minutes += step;
                let taken_at = at("2022-01-01T00:00:00Z") + SignedDuration::from_mins(minutes);
                Candidate {
                    number: SessionNumber(number),
                    taken_at: (!timeless).then_some(taken_at),
                    consistency: [Consistency::Crash, Consistency::FileSystem, Consistency::Application]
                        [usize::from(worth)],
                    fate,
                    pinned: pinned.then_some(None),
                    damaged,
                }
            });
        candidates.collect()
    })
}

/// The points as they are once the decision is carried out.
fn applied(points: &[Candidate], rules: &Rules) -> Vec<Candidate> {
    let gone = forgotten(points, rules);
    let mut points = points.to_vec();
    for point in &mut points {
        if gone.contains(&point.number.0) {
            point.fate = Fate::Forgotten;
        }
    }
    points
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn carrying_it_out_twice_changes_nothing(points in any_points(), rules in any_rules()) {
        let once = applied(&points, &rules);
        prop_assert_eq!(forgotten(&once, &rules), Vec::<u32>::new());
        prop_assert_eq!(applied(&once, &rules), once);
    }

    #[test]
    fn the_newest_the_newest_good_and_the_pinned_stay(points in any_points(), rules in any_rules()) {
        let gone = forgotten(&points, &rules);
        let kept: Vec<&Candidate> = points.iter().filter(|point| point.fate == Fate::Kept).collect();
        let newest_good = kept.iter().rev().find(|point| point.consistency >= rules.accept && !point.damaged);
        for point in kept.last().into_iter().chain(newest_good) {
            prop_assert!(!gone.contains(&point.number.0));
        }
        for point in &points {
            if gone.contains(&point.number.0) {
                prop_assert!(point.pinned.is_none() && point.fate == Fate::Kept && point.taken_at.is_some());
            }
        }
        prop_assert_eq!(decide(&points, &rules).len(), points.len());
    }

    #[test]
    fn a_newer_point_never_brings_an_older_one_back(
        points in any_points(),
        rules in any_rules(),
        worth in 0..3_u8,
        pinned in any::<bool>(),
        minutes in 0_i64..5000,
    ) {
        let before = forgotten(&points, &rules);
        let newest = points.iter().filter_map(|point| point.taken_at).max().unwrap_or(rules.now);
        let mut more = points.clone();
        more.push(Candidate {
            number: SessionNumber(points.len() as u32),
            taken_at: Some(newest + SignedDuration::from_mins(minutes)),
            consistency: [Consistency::Crash, Consistency::FileSystem, Consistency::Application][usize::from(worth)],
            fate: Fate::Kept,
            pinned: pinned.then_some(None),
            damaged: false,
        });
        let after = forgotten(&more, &rules);
        prop_assert!(before.iter().all(|gone| after.contains(gone)), "{:?} then {:?}", before, after);
    }

    #[test]
    fn the_last_days_are_what_counting_them_by_hand_gives(points in any_points(), days in 1_u32..6) {
        let rules = Rules { accept: Consistency::Crash, ..rules(Keep { daily: days, ..keep() }, "UTC") };
        let points: Vec<Candidate> = points
            .into_iter()
            .map(|point| Candidate { fate: Fate::Kept, pinned: None, damaged: false, ..point })
            .filter(|point| point.taken_at.is_some_and(|taken_at| taken_at <= rules.now))
            .collect();
        let mut newest_first = points.clone();
        newest_first.sort_by_key(|point| std::cmp::Reverse((point.taken_at, point.number)));
        let mut seen = Vec::new();
        let mut wanted: Vec<u32> = points.iter().map(|point| point.number.0).max().into_iter().collect();
        for point in newest_first {
            let day = point.taken_at.unwrap().to_string()[..10].to_owned();
            if !seen.contains(&day) && seen.len() < days as usize {
                wanted.push(point.number.0);
                seen.push(day);
            }
        }
        for point in &points {
            prop_assert_eq!(forgotten(&points, &rules).contains(&point.number.0), !wanted.contains(&point.number.0));
        }
    }
}
