//! Which points of which machines are meant: by policy, by number, or all of a machine that is not backed up any more.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use coffre_engine::Consistency;
use coffre_engine::config::{Config, PolicyConfig};
use coffre_engine::retention::{self, Candidate, Decision, Newest, Rules};
use coffre_vault::{Fate, Point, SessionNumber};
use jiff::Timestamp;
use serde::{Serialize, Serializer};

use crate::args::{ForgetArgs, Target};
use crate::exit::Complaint;

/// What of one machine is to be forgotten.
pub struct Choice {
    pub machine: String,
    pub how: How,
}

pub enum How {
    /// The policy's name where the machine names one.
    Policy(Option<String>, Box<PolicyConfig>),
    /// `accept` says which is the newest good one, which stays.
    Points {
        numbers: Vec<SessionNumber>,
        accept: Consistency,
    },
    Retire {
        /// Its next backup makes a new point.
        still_configured: bool,
    },
}

impl How {
    pub fn policy(&self) -> Option<String> {
        match self {
            Self::Policy(name, _) => name.clone(),
            Self::Points { .. } | Self::Retire { .. } => None,
        }
    }
}

/// What stands after the machine's name, before the table.
impl fmt::Display for How {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy(None, _) => out.write_str(", which has no policy:"),
            Self::Policy(Some(name), _) => write!(out, " by policy {name}:"),
            Self::Points { .. } => out.write_str(":"),
            Self::Retire {
                still_configured: false,
            } => out.write_str(", all points:"),
            Self::Retire { still_configured: true } => {
                out.write_str(", all points (it is still in the configuration: its next backup makes a new one):")
            }
        }
    }
}

/// The machines and points that were named, or those that --all and --policy mean.
pub fn choose(config: &Config, args: &ForgetArgs) -> anyhow::Result<Vec<Choice>> {
    let by_policy = |name: &str| -> anyhow::Result<Choice> {
        let machine = config.machine(name).map_err(|unknown| {
            let hint = format!(
                "{}`{name}@POINT` and --retire forget points of a machine that the configuration does not have",
                unknown.hint.as_ref().map(|hint| format!("{hint} ")).unwrap_or_default()
            );
            Complaint::usage(unknown.to_string(), hint)
        })?;
        Ok(Choice {
            machine: name.to_owned(),
            how: How::Policy(machine.policy.clone(), Box::new(config.policy_of(machine))),
        })
    };
    if args.all || args.policy.is_some() {
        if let Some(policy) = &args.policy {
            config.policy(policy)?;
        }
        let meant = config
            .machines
            .values()
            .filter(|machine| args.all || machine.policy == args.policy);
        let choices = meant
            .map(|machine| by_policy(&machine.name))
            .collect::<Result<Vec<_>, _>>()?;
        if choices.is_empty() {
            let hint = "the configuration's [machine.NAME] tables say which policy they are under";
            return Err(Complaint::usage("no machine is meant", hint).into());
        }
        return Ok(choices);
    }
    if args.targets.is_empty() {
        let hint = "name machines or points, as in `coffre forget web01 --dry-run`, or say --all or --policy POLICY";
        return Err(Complaint::usage("which machine?", hint).into());
    }
    let choices = named(&args.targets)?.into_iter().map(|(machine, numbers)| {
        if args.retire {
            let Some(number) = numbers.first() else {
                let still_configured = config.machine(&machine).is_ok();
                let how = How::Retire { still_configured };
                return Ok(Choice { machine, how });
            };
            let hint = format!("`coffre forget {machine} --retire` forgets all of its points");
            return Err(Complaint::usage(
                format!("--retire means machines, not points such as {machine}@{number}"),
                hint,
            )
            .into());
        }
        if numbers.is_empty() {
            return by_policy(&machine);
        }
        let known = config.machine(&machine).ok();
        // Of a machine that nobody knows any more, every point is as good as another.
        let accept = known.map_or(Consistency::Crash, |machine| config.policy_of(machine).accept);
        let how = How::Points { numbers, accept };
        Ok(Choice { machine, how })
    });
    choices.collect()
}

/// The numbers that were named of each machine; none: the machine itself was.
fn named(targets: &[Target]) -> anyhow::Result<BTreeMap<String, Vec<SessionNumber>>> {
    let mut named: BTreeMap<String, Vec<SessionNumber>> = BTreeMap::new();
    for target in targets {
        let before = named.get(&target.machine);
        if before.is_some_and(|before| before.is_empty() != target.point.is_none()) {
            let text = format!("{0} and single points of {0} at once", target.machine);
            let hint = "name the machine to let its policy decide, or its points";
            return Err(Complaint::usage(text, hint).into());
        }
        let numbers = named.entry(target.machine.clone()).or_default();
        if let Some(number) = target.point.map(SessionNumber)
            && !numbers.contains(&number)
        {
            numbers.push(number);
        }
    }
    Ok(named)
}

/// What is to become of a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Chosen {
    Keep,
    Forget,
    /// Before.
    Forgotten,
}

impl fmt::Display for Chosen {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Keep => "keep",
            Self::Forget => "forget",
            Self::Forgotten => "forgotten",
        })
    }
}

/// A point and its reasons.
#[derive(Debug, Serialize)]
pub struct Row {
    pub point: u32,
    pub taken_at: Option<Timestamp>,
    #[serde(serialize_with = "unknown_is_null")]
    pub consistency: String,
    pub decision: Chosen,
    pub reasons: Vec<Reason>,
}

#[derive(Debug, Serialize)]
pub struct Reason {
    pub code: String,
    pub text: String,
}

fn unknown_is_null<S: Serializer>(value: &str, serializer: S) -> Result<S::Ok, S::Error> {
    (!value.is_empty()).then_some(value).serialize(serializer)
}

impl Row {
    fn new(point: &Point, decision: Chosen, reasons: Vec<Reason>) -> Self {
        Self {
            point: point.number.0,
            taken_at: point.taken_at,
            consistency: point.consistency.reached.to_string(),
            decision,
            reasons,
        }
    }

    /// A point of which nothing is known but that it is to go.
    pub fn unreadable(number: SessionNumber) -> Self {
        Self {
            point: number.0,
            taken_at: None,
            consistency: String::new(),
            decision: Chosen::Forget,
            reasons: vec![reason("named", "named; its record is damaged")],
        }
    }

    /// It stays, since somebody pinned it.
    pub fn pinned(&mut self, why: Option<String>) {
        let pinned = retention::KeepReason::Pinned(why);
        self.decision = Chosen::Keep;
        self.reasons = vec![reason(&pinned.code(), &pinned.to_string())];
    }
}

fn reason(code: &str, text: &str) -> Reason {
    Reason {
        code: code.to_owned(),
        text: text.to_owned(),
    }
}

impl Choice {
    /// What is to become of the machine's points, as far as this choice is about them. Purged ones are left out. What must
    /// not go is an error, and then nothing goes.
    ///
    /// `damaged` are the points that do not restore whole, as far as that is known.
    pub fn rows(
        &self,
        points: &[Point],
        damaged: &BTreeSet<SessionNumber>,
        now: Timestamp,
    ) -> Result<Vec<Row>, Complaint> {
        let points = points.iter().filter(|point| point.fate != Fate::Purged);
        match &self.how {
            How::Policy(_, policy) => {
                let points: Vec<&Point> = points.collect();
                Ok(by_policy(&points, damaged, &Rules::of(policy, now)))
            }
            How::Points { numbers, accept } => {
                let candidates: Vec<Candidate> = points.clone().map(|point| candidate(point, damaged)).collect();
                let stays = Newest::of(&candidates, *accept).indispensable();
                let named = points.filter(|point| numbers.contains(&point.number));
                named
                    .map(|point| {
                        if stays == Some(point.number) {
                            return Err(self.newest_stays(point));
                        }
                        self.row(point, "named")
                    })
                    .collect()
            }
            How::Retire { .. } => points.map(|point| self.row(point, "retired")).collect(),
        }
    }

    /// The numbers that were named and are not among these points.
    pub fn missing(&self, points: &[Point]) -> Vec<SessionNumber> {
        let How::Points { numbers, .. } = &self.how else {
            return Vec::new();
        };
        let known = |number: &&SessionNumber| points.iter().any(|point| point.number == **number);
        numbers.iter().filter(|number| !known(number)).copied().collect()
    }

    /// What the vault remembers of why a point went.
    pub fn recorded(&self, row: &Row) -> String {
        let why = row.reasons.first().map_or("", |reason| reason.text.as_str());
        match self.how.policy() {
            Some(policy) => format!("policy {policy}: {why}"),
            None => why.to_owned(),
        }
    }

    fn row(&self, point: &Point, code: &str) -> Result<Row, Complaint> {
        if let (Fate::Kept, Some(pin)) = (point.fate, &point.pin) {
            let name = format!("{}@{}", self.machine, point.number);
            let why = pin.reason.as_ref().map(|reason| format!(": {reason}"));
            let text = format!("{name} is pinned{}", why.unwrap_or_default());
            return Err(Complaint::usage(
                text,
                format!("nothing was forgotten; `coffre unpin {name}` lets it go"),
            ));
        }
        let decision = match point.fate {
            Fate::Kept | Fate::Unknown => Chosen::Forget,
            Fate::Forgotten | Fate::Purged => Chosen::Forgotten,
        };
        let reasons = match decision {
            Chosen::Forget => vec![reason(code, code)],
            Chosen::Keep | Chosen::Forgotten => Vec::new(),
        };
        Ok(Row::new(point, decision, reasons))
    }

    fn newest_stays(&self, point: &Point) -> Complaint {
        let machine = &self.machine;
        let text = format!(
            "{machine}@{} is the newest good recovery point of {machine}, so it stays",
            point.number
        );
        let hint = format!(
            "nothing was forgotten; after another backup this one can go, and `coffre forget {machine} --retire` \
             forgets all points of a machine that is not backed up any more"
        );
        Complaint::usage(text, hint)
    }
}

fn candidate(point: &Point, damaged: &BTreeSet<SessionNumber>) -> Candidate {
    Candidate {
        damaged: damaged.contains(&point.number),
        ..Candidate::of(point)
    }
}

fn by_policy(points: &[&Point], damaged: &BTreeSet<SessionNumber>, rules: &Rules) -> Vec<Row> {
    let candidates: Vec<Candidate> = points.iter().map(|point| candidate(point, damaged)).collect();
    let decisions: BTreeMap<SessionNumber, Decision> = retention::decide(&candidates, rules)
        .into_iter()
        .map(|verdict| (verdict.point, verdict.decision))
        .collect();
    let rows = points.iter().map(|point| {
        let (decision, reasons) = match decisions.get(&point.number) {
            Some(Decision::Keep(reasons)) => {
                let reasons = reasons.iter().map(|why| reason(&why.code(), &why.to_string()));
                let but = damaged
                    .contains(&point.number)
                    .then(|| reason("damaged", "although it is damaged"));
                (Chosen::Keep, reasons.chain(but).collect())
            }
            Some(Decision::Forget(why)) => (Chosen::Forget, vec![reason(why.code(), &why.to_string())]),
            Some(Decision::Gone) | None => (Chosen::Forgotten, Vec::new()),
        };
        Row::new(point, decision, reasons)
    });
    rows.collect()
}
