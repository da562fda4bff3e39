//! Due times on nights when clocks are changed, and what holds of every schedule.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::*;

fn schedule(text: &str) -> Schedule {
    Schedule::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The due times after `from`, as the clock of the schedule's zone shows them.
fn due(text: &str, from: &str, count: usize) -> Vec<String> {
    let schedule = schedule(text);
    let mut at: Timestamp = from.parse().unwrap();
    let next = std::iter::from_fn(|| {
        at = schedule.next_after(at)?;
        let shown = at.to_zoned(schedule.zone());
        Some(shown.strftime("%a %F %H:%M%:z").to_string())
    });
    next.take(count).collect()
}

#[test]
fn what_a_clock_skips_is_due_when_it_is_put_forward() {
    // 02:00 to 03:00 is skipped on 2026-03-29.
    insta::assert_debug_snapshot!(due("daily 02:30 Europe/Paris", "2026-03-27T12:00Z", 3), @r#"
    [
        "Sat 2026-03-28 02:30+01:00",
        "Sun 2026-03-29 03:00+02:00",
        "Mon 2026-03-30 02:30+02:00",
    ]
    "#);
    // Once, though 02:00, 02:30 and 03:00 all fall together.
    insta::assert_debug_snapshot!(due("every 30m 01:30-03:30 Europe/Paris", "2026-03-28T23:00Z", 3), @r#"
    [
        "Sun 2026-03-29 01:30+01:00",
        "Sun 2026-03-29 03:00+02:00",
        "Sun 2026-03-29 03:30+02:00",
    ]
    "#);
}

#[test]
fn what_a_clock_shows_twice_is_due_once() {
    // 02:00 to 03:00 is shown twice on 2026-10-25.
    insta::assert_debug_snapshot!(due("daily 02:30 Europe/Paris", "2026-10-24T12:00Z", 2), @r#"
    [
        "Sun 2026-10-25 02:30+02:00",
        "Mon 2026-10-26 02:30+01:00",
    ]
    "#);
    insta::assert_debug_snapshot!(due("cron 30 2 * * * Europe/Paris", "2026-10-24T12:00Z", 2), @r#"
    [
        "Sun 2026-10-25 02:30+02:00",
        "Mon 2026-10-26 02:30+01:00",
    ]
    "#);
    insta::assert_debug_snapshot!(due("every 4h 02:00-22:00 Europe/Paris", "2026-10-24T20:30Z", 2), @r#"
    [
        "Sun 2026-10-25 02:00+02:00",
        "Sun 2026-10-25 06:00+01:00",
    ]
    "#);
}

#[test]
fn what_is_due_every_hour_leaves_no_gap_when_clocks_are_put_back() {
    for often in [
        "hourly Europe/Paris",
        "every 1h Europe/Paris",
        "cron 0 * * * * Europe/Paris",
    ] {
        assert_eq!(
            due(often, "2026-10-24T23:30Z", 3),
            [
                "Sun 2026-10-25 02:00+02:00",
                "Sun 2026-10-25 02:00+01:00",
                "Sun 2026-10-25 03:00+01:00"
            ],
            "{often}"
        );
    }
    // A quarter is shown twice at once, not one after the other.
    insta::assert_debug_snapshot!(due("every 30m Europe/Paris", "2026-10-25T00:15Z", 4), @r#"
    [
        "Sun 2026-10-25 02:30+02:00",
        "Sun 2026-10-25 02:00+01:00",
        "Sun 2026-10-25 02:30+01:00",
        "Sun 2026-10-25 03:00+01:00",
    ]
    "#);
}

#[test]
fn a_whole_day_can_be_skipped() {
    // Samoa went from 2011-12-29 straight to the 31st.
    insta::assert_debug_snapshot!(due("daily 20:00 Pacific/Apia", "2011-12-29T12:00Z", 3), @r#"
    [
        "Thu 2011-12-29 20:00-10:00",
        "Sat 2011-12-31 00:00+14:00",
        "Sat 2011-12-31 20:00+14:00",
    ]
    "#);
}

#[test]
fn the_days_of_a_month_that_is_shorter_end_with_it() {
    insta::assert_debug_snapshot!(due("monthly 31 04:00 UTC", "2028-01-31T12:00Z", 3), @r#"
    [
        "Tue 2028-02-29 04:00+00:00",
        "Fri 2028-03-31 04:00+00:00",
        "Sun 2028-04-30 04:00+00:00",
    ]
    "#);
}

#[test]
fn a_window_can_reach_into_the_next_day() {
    insta::assert_debug_snapshot!(due("every 4h 20:00-06:00 UTC", "2026-05-01T12:00Z", 4), @r#"
    [
        "Fri 2026-05-01 20:00+00:00",
        "Sat 2026-05-02 00:00+00:00",
        "Sat 2026-05-02 04:00+00:00",
        "Sat 2026-05-02 20:00+00:00",
    ]
    "#);
}

#[test]
fn the_forms_that_are_shown_are_read() {
    for (text, first) in [
        ("hourly UTC", "Thu 2026-01-01 13:00+00:00"),
        ("every 4h UTC", "Thu 2026-01-01 16:00+00:00"),
        ("every 24h 03:00-05:00 UTC", "Fri 2026-01-02 03:00+00:00"),
        ("daily UTC", "Fri 2026-01-02 00:00+00:00"),
        ("daily 02:00 UTC", "Fri 2026-01-02 02:00+00:00"),
        ("daily 14:00 UTC", "Thu 2026-01-01 14:00+00:00"),
        ("weekly sunday 03:00 UTC", "Sun 2026-01-04 03:00+00:00"),
        ("weekly thursday UTC", "Thu 2026-01-08 00:00+00:00"),
        ("monthly 1 04:00 UTC", "Sun 2026-02-01 04:00+00:00"),
        ("cron 30 2 * * mon-fri UTC", "Fri 2026-01-02 02:30+00:00"),
        ("cron * * * * * UTC", "Thu 2026-01-01 12:01+00:00"),
        ("cron 0 3 L * * UTC", "Sat 2026-01-31 03:00+00:00"),
    ] {
        assert_eq!(due(text, "2026-01-01T12:00Z", 1), [first], "{text}");
    }
    assert_eq!(schedule("never").next_after(Timestamp::UNIX_EPOCH), None);
    assert_eq!(schedule("never").last_until(Timestamp::UNIX_EPOCH), None);
}

#[test]
fn what_is_wrong_with_a_schedule_is_said() {
    let said = [
        "",
        "dayly 02:00",
        "daily 2am",
        "daily 24:00",
        "daily +2:00",
        "daily 02:00 Mars/Olympus",
        "daily 02:00 UTC now",
        "never UTC",
        "weekly",
        "weekly 03:00",
        "weekly sonday",
        "monthly 0 03:00",
        "every",
        "every often",
        "every 1s",
        "every 90s",
        "every 2d",
        "every 4h 08:00",
        "every 4h 08:00-08:00",
        "cron 0 2 * *",
        "cron 0 25 * * *",
        "cron 0 0 30 2 *",
        "cron 0 0 1 1 * 2030",
    ]
    .map(|text| match Schedule::parse(text) {
        Ok(_) => panic!("{text} was read"),
        Err(error) => format!("{text:?}: {error}"),
    });
    insta::assert_debug_snapshot!(said);
}

#[test]
fn the_zone_of_a_schedule_is_the_one_that_it_names() {
    for (text, wanted) in [
        ("daily 02:00 Europe/Paris", Some("Europe/Paris")),
        ("weekly sunday 03:00 UTC", Some("UTC")),
        ("monthly 1 04:00 America/St_Johns", Some("America/St_Johns")),
        ("daily Europe/Paris", Some("Europe/Paris")),
        ("daily 02:00", None),
        ("hourly", None),
    ] {
        let schedule = schedule(text);
        assert_eq!(schedule.named_zone().and_then(TimeZone::iana_name), wanted, "{text}");
    }
}

/// Schedules of every kind, in zones that change their clocks by an hour, by half an hour, at midnight, and not at all.
fn any_schedule() -> impl Strategy<Value = Schedule> {
    let time = (0..24_u32, 0..60_u32).prop_map(|(hours, minutes)| format!("{hours:02}:{minutes:02}"));
    let zone = proptest::sample::select(vec![
        "Europe/Paris",
        "America/New_York",
        "America/Santiago",
        "Australia/Lord_Howe",
        "Africa/Casablanca",
        "Asia/Beirut",
        "Pacific/Apia",
        "UTC",
    ]);
    let words = prop_oneof![
        Just("hourly".to_owned()),
        time.clone().prop_map(|time| format!("daily {time}")),
        (0..7_usize, time.clone()).prop_map(|(day, time)| {
            let days = [
                "monday",
                "tuesday",
                "wednesday",
                "thursday",
                "friday",
                "saturday",
                "sunday",
            ];
            format!("weekly {} {time}", days[day])
        }),
        (1..=31_u32, time.clone()).prop_map(|(day, time)| format!("monthly {day} {time}")),
        (5..=1440_u32).prop_map(|minutes| format!("every {minutes}m")),
        (5..=1440_u32, time.clone(), time)
            .prop_filter("a window that is not empty", |(_, from, to)| from != to)
            .prop_map(|(minutes, from, to)| format!("every {minutes}m {from}-{to}")),
        (0..60_u32, 0..24_u32).prop_map(|(minute, hour)| format!("cron {minute} {hour} * * *")),
        (1..30_u32).prop_map(|step| format!("cron */{step} * * * *")),
        (0..60_u32, 1..12_u32).prop_map(|(minute, step)| format!("cron {minute} */{step} * * *")),
        (0..60_u32, 0..24_u32, 0..7_u32).prop_map(|(minute, hour, day)| format!("cron {minute} {hour} 1,15 * {day}")),
    ];
    (words, zone).prop_map(|(words, zone)| schedule(&format!("{words} {zone}")))
}

/// Anywhere from 2009 to 2037, and often within hours of a change of some clock.
fn any_instant() -> impl Strategy<Value = Timestamp> {
    let anywhere = (1_230_000_000_i64..2_140_000_000).prop_map(|second| Timestamp::from_second(second).unwrap());
    let changes = [
        "2026-03-29T01:00Z",
        "2026-10-25T01:00Z",
        "2026-11-01T06:00Z",
        "2026-04-05T03:00Z",
        "2026-04-04T15:00Z",
        "2026-10-03T15:30Z",
        "2011-12-30T10:00Z",
        "2026-03-28T22:00Z",
    ];
    let near = (proptest::sample::select(changes.to_vec()), -100_000_i64..100_000).prop_map(|(change, seconds)| {
        let change: Timestamp = change.parse().unwrap();
        change + SignedDuration::from_secs(seconds)
    });
    prop_oneof![anywhere, near]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_next_due_time_is_later_and_is_the_last_one_then(schedule in any_schedule(), at in any_instant()) {
        let mut at = at;
        for _ in 0..4 {
            let next = schedule.next_after(at).expect("a next one");
            prop_assert!(next > at);
            prop_assert_eq!(schedule.last_until(next), Some(next));
            // Nothing is due between the two.
            let last = schedule.last_until(at);
            prop_assert!(last.is_some_and(|last| last <= at));
            let before = next - SignedDuration::from_nanos(1);
            prop_assert_eq!(schedule.last_until(before), last);
            prop_assert_eq!(schedule.next_after(before), Some(next));
            if let Some(last) = last {
                prop_assert_eq!(schedule.next_after(last), Some(next));
            }
            at = next;
        }
    }

    /// Every day has its backup: no daily due time is skipped by a clock, and none is due twice.
    #[test]
    fn every_day_that_a_clock_shows_has_its_due_time(minute in 0..1440_u32, at in any_instant()) {
        let text = format!("daily {:02}:{:02} Europe/Paris", minute / 60, minute % 60);
        let schedule = schedule(&text);
        let zone = schedule.zone();
        let first = schedule.next_after(at).unwrap();
        let second = schedule.next_after(first).unwrap();
        prop_assert_eq!(zone.to_datetime(first).date().tomorrow().unwrap(), zone.to_datetime(second).date());
    }

    #[test]
    fn no_text_breaks_the_reader(text in "(daily|weekly|monthly|every|cron|hourly|) ?.{0,24}") {
        if let Ok(schedule) = Schedule::parse(&text) {
            let at = Timestamp::UNIX_EPOCH;
            prop_assert!(schedule.next_after(at).is_none_or(|next| next > at));
        }
    }
}
