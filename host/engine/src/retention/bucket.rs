//! The rules of a `keep`: points sorted into buckets (a day, a week, or for `last` each point by itself), the newest point of
//! the newest buckets chosen.

use std::collections::BTreeMap;
use std::time::Duration;

use coffre_vault::{Fate, SessionNumber};
use jiff::{SignedDuration, Timestamp, Zoned};

use super::reason::{ForgetReason, KeepReason, Rule};
use super::{Candidate, Rules, latest};
use crate::config::{Keep, shown_duration};

/// A point that takes part in counting.
struct Counted {
    number: SessionNumber,
    taken_at: Zoned,
    good: bool,
}

/// Sorts a bucket among those of its rule; larger is later.
type BucketKey = (i128, u32);

/// The points of one bucket, as far as one of them may stand for all.
#[derive(Default)]
struct Bucket {
    label: String,
    newest_good: Option<(Timestamp, SessionNumber)>,
    newest_lesser: Option<(Timestamp, SessionNumber)>,
    /// A good point here would stay.
    within_reach: bool,
    stays: bool,
}

impl Bucket {
    fn chosen(&self) -> Option<SessionNumber> {
        self.newest_good.or(self.newest_lesser).map(|(_, number)| number)
    }
}

/// One rule with its buckets.
struct Applied {
    rule: Rule,
    buckets: BTreeMap<BucketKey, Bucket>,
    of: BTreeMap<SessionNumber, BucketKey>,
}

impl Applied {
    fn new(points: &[Counted], rule: Rule, limit: u32) -> Self {
        let mut buckets: BTreeMap<BucketKey, Bucket> = BTreeMap::new();
        let mut of = BTreeMap::new();
        for point in points {
            let (key, label) = bucket(rule, point);
            of.insert(point.number, key);
            let bucket = buckets.entry(key).or_default();
            bucket.label = label;
            let newest = if point.good {
                &mut bucket.newest_good
            } else {
                &mut bucket.newest_lesser
            };
            *newest = (*newest).max(Some((point.taken_at.timestamp(), point.number)));
        }
        let (mut all, mut good) = (0, 0);
        for bucket in buckets.values_mut().rev() {
            bucket.within_reach = good < limit;
            // One without a good point must be among the newest of all, or the points of a time when less was asked for would
            // never go.
            let before = if bucket.newest_good.is_some() { good } else { all };
            bucket.stays = before < limit;
            good += u32::from(bucket.newest_good.is_some());
            all += 1;
            if rule == Rule::Last {
                bucket.label = format!("{} of {limit}", before + 1);
            }
        }
        Self { rule, buckets, of }
    }

    fn bucket(&self, number: SessionNumber) -> Option<&Bucket> {
        self.buckets.get(self.of.get(&number)?)
    }
}

/// Where a point belongs, and what people call that.
fn bucket(rule: Rule, point: &Counted) -> (BucketKey, String) {
    let at = &point.taken_at;
    let date = at.date();
    let number = |number: i64| (i128::from(number), 0);
    match rule {
        Rule::Last | Rule::Within => ((at.timestamp().as_nanosecond(), point.number.0), String::new()),
        Rule::Hourly => {
            // By the instant at which its hour began: the hour that comes twice when summer time ends is two.
            let into_hour = i64::from(at.minute()) * 60 + i64::from(at.second());
            let label = at.strftime("%Y-%m-%d %H:00").to_string();
            (number(at.timestamp().as_second() - into_hour), label)
        }
        Rule::Daily => (
            number(i64::from(date.year()) * 1000 + i64::from(date.day_of_year())),
            date.to_string(),
        ),
        Rule::Weekly => {
            // ISO 8601: the last days of December may be of the next year's first week.
            let week = date.iso_week_date();
            let label = format!("{:04}-W{:02}", week.year(), week.week());
            (number(i64::from(week.year()) * 100 + i64::from(week.week())), label)
        }
        Rule::Monthly => (
            number(i64::from(date.year()) * 100 + i64::from(date.month())),
            date.strftime("%Y-%m").to_string(),
        ),
        Rule::Yearly => (number(date.year().into()), date.strftime("%Y").to_string()),
    }
}

/// All rules of a `keep`, applied to the points of a machine.
pub(super) struct Stays {
    /// From the finest to the coarsest.
    applied: Vec<Applied>,
    within: BTreeMap<SessionNumber, KeepReason>,
}

impl Stays {
    pub(super) fn new(points: &[&Candidate], keep: &Keep, rules: &Rules) -> Self {
        // Pinned points stay anyway and use nothing up.
        let counts = |point: &&&Candidate| point.fate == Fate::Kept && point.pinned.is_none();
        let counted = points.iter().filter(counts).filter_map(|point| {
            let taken_at = point.taken_at.filter(|taken_at| *taken_at <= latest(rules.now))?;
            Some(Counted {
                number: point.number,
                taken_at: taken_at.to_zoned(rules.zone.clone()),
                good: point.is_good(rules.accept),
            })
        });
        let counted: Vec<Counted> = counted.collect();
        let limits = [
            (Rule::Last, keep.last),
            (Rule::Hourly, keep.hourly),
            (Rule::Daily, keep.daily),
            (Rule::Weekly, keep.weekly),
            (Rule::Monthly, keep.monthly),
            (Rule::Yearly, keep.yearly),
        ];
        let applied = limits
            .into_iter()
            .filter(|(_, limit)| *limit > 0)
            .map(|(rule, limit)| Applied::new(&counted, rule, limit));
        Self {
            applied: applied.collect(),
            within: within(&counted, keep.within),
        }
    }

    pub(super) fn reasons(&self, number: SessionNumber) -> Vec<KeepReason> {
        let chosen = self.applied.iter().filter_map(|applied| {
            let bucket = applied.bucket(number)?;
            (bucket.stays && bucket.chosen() == Some(number)).then(|| KeepReason::Rule {
                rule: applied.rule,
                bucket: bucket.label.clone(),
            })
        });
        chosen.chain(self.within.get(&number).cloned()).collect()
    }

    /// For a point without a reason to stay.
    pub(super) fn why_not(&self, point: &Candidate, rules: &Rules) -> ForgetReason {
        let buckets: Vec<(Rule, &Bucket)> = (self.applied.iter())
            .filter_map(|applied| Some((applied.rule, applied.bucket(point.number)?)))
            .collect();
        let superseded = buckets
            .iter()
            .filter(|(_, bucket)| bucket.stays)
            .find_map(|(rule, bucket)| {
                Some(ForgetReason::Superseded {
                    by: bucket.chosen().filter(|chosen| *chosen != point.number)?,
                    rule: *rule,
                    bucket: bucket.label.clone(),
                })
            });
        superseded.unwrap_or_else(|| {
            let would_stay = buckets.iter().any(|(_, bucket)| bucket.within_reach);
            match point.is_good(rules.accept) {
                false if would_stay && point.damaged => ForgetReason::Damaged,
                false if would_stay => ForgetReason::Lesser {
                    reached: point.consistency,
                    accept: rules.accept,
                },
                _ => ForgetReason::OutOfReach,
            }
        })
    }
}

/// Counted back from the newest good point and not from now, so that nothing goes because time passes.
fn within(counted: &[Counted], length: Duration) -> BTreeMap<SessionNumber, KeepReason> {
    let newest = |good: bool| {
        let among = counted.iter().filter(|point| point.good || !good);
        among.map(|point| point.taken_at.timestamp()).max()
    };
    let Some(newest) = newest(true).or_else(|| newest(false)).filter(|_| !length.is_zero()) else {
        return BTreeMap::new();
    };
    let length_signed = SignedDuration::try_from(length).unwrap_or(SignedDuration::MAX);
    let oldest = newest.checked_sub(length_signed).unwrap_or(Timestamp::MIN);
    let recent = counted.iter().filter(|point| point.taken_at.timestamp() >= oldest);
    let reason = KeepReason::Rule {
        rule: Rule::Within,
        bucket: shown_duration(length),
    };
    recent.map(|point| (point.number, reason.clone())).collect()
}
