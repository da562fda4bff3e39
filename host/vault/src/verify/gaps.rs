//! Numbers that are missing in registers.
//!
//! A reader of a dense register takes the first missing number for its end, so a record that the store has lost hides every
//! later one, and nobody who only reads would notice. Listings show what lies beyond the gap. They are hints: what one does
//! not show is looked for before it is called missing.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, TryStreamExt, stream};

use super::Touched;
use super::damage::Findings;
use crate::gclog::GcLog;
use crate::ids::{MachineNumber, SessionNumber, parse_key};
use crate::object;
use crate::read::ReadError;
use crate::register;
use crate::store::StoreError;
use crate::vault::Vault;

const LOOKED_AT_ONCE: usize = 16;
const WHAT: &str = "it is not there, although what came after it is";

/// Numbers by the register that they are in, which is a name without its last part.
type Registers = BTreeMap<String, BTreeSet<u32>>;

/// What listings show, which readers of a register that has a gap would not see.
pub(super) struct Shown {
    /// The highest number of a machine.
    pub(super) last_machine: u32,
    /// Names that must be there and are not.
    lost: Vec<String>,
    points: Registers,
    fates: BTreeSet<String>,
}

impl Shown {
    /// Tells what is lost, and the points that went with it.
    pub(super) fn tell_lost(&self, log: &GcLog, machines: &[(MachineNumber, String)], findings: &mut Findings) {
        for name in &self.lost {
            findings.add(name, WHAT, self.lost_point(name, log, machines));
        }
    }

    /// The point, if the name is one's: what was decided otherwise has no fate, and no checkpoint counts it.
    fn lost_point(&self, name: &str, log: &GcLog, machines: &[(MachineNumber, String)]) -> Option<Touched> {
        let (machine, number) = name.strip_prefix("points/")?.split_once('/')?;
        let (machine, point) = (MachineNumber(parse_key(machine)?), SessionNumber(parse_key(number)?));
        let was_a_point = log.live(machine).contains(&point)
            || self.fates.contains(&format!("fates/{}/{}", machine.key(), point.key()));
        let (_, name) = machines.iter().find(|(known, _)| *known == machine)?;
        was_a_point.then(|| Touched {
            machine: name.clone(),
            point,
            disk: None,
            ranges: Vec::new(),
        })
    }

    /// The points of a machine from `end` on, where a reader of the register has found its end.
    pub(super) fn points_from(&self, machine: MachineNumber, end: u32) -> Vec<SessionNumber> {
        let register = format!("points/{}", machine.key());
        let shown = self.points.get(&register);
        shown
            .into_iter()
            .flat_map(|points| points.range(end..))
            .map(|number| SessionNumber(*number))
            .collect()
    }
}

/// Finds every name that must be there: a later number of its register is listed, the clean-up log knows it as decided, or
/// there is more to it.
pub(super) async fn find_gaps(vault: &Vault, log: &GcLog) -> Result<Shown, ReadError> {
    let machines = listed(vault, "machines").await?.remove("machines").unwrap_or_default();
    let sessions = listed(vault, "sessions").await?;
    let points = listed(vault, "points").await?;
    let mut suspects = Vec::new();
    // A machine is also known by what lies below its number.
    let below = sessions.keys().chain(points.keys());
    let known = below.filter_map(|register| parse_key(register.rsplit('/').next()?));
    let all = machines.iter().copied().chain(known).filter(|number| *number != 0);
    let last = all.max().unwrap_or(0);
    suspects.extend(
        (register::FIRST_MACHINE..=last)
            .filter(|number| !machines.contains(number))
            .map(|number| object::machine(MachineNumber(number))),
    );
    for machine in 0..=last {
        let machine = MachineNumber(machine);
        let of = |registers: &Registers, folder: &str| {
            let register = format!("{folder}/{}", machine.key());
            registers.get(&register).cloned().unwrap_or_default()
        };
        let (sessions, points) = (of(&sessions, "sessions"), of(&points, "points"));
        let end = sessions.iter().chain(&points).max().map_or(0, |last| last + 1);
        let missing = |there: &BTreeSet<u32>, end: u32| -> Vec<SessionNumber> {
            let missing = (0..end).filter(|number| !there.contains(number));
            missing.map(SessionNumber).collect()
        };
        suspects.extend(
            missing(&sessions, end)
                .iter()
                .map(|number| object::session(machine, *number)),
        );
        let decided = missing(&points, log.decided_below(machine));
        suspects.extend(decided.iter().map(|number| object::point(machine, *number)));
    }
    let fates = listed(vault, "fates").await?;
    // Only committed points have fates.
    suspects.extend(fates.keys().filter_map(|register| {
        let (machine, number) = register.strip_prefix("fates/")?.split_once('/')?;
        let there = points.get(&format!("points/{machine}"))?.contains(&parse_key(number)?);
        (!there).then(|| format!("points/{machine}/{number}"))
    }));
    let with_fates = fates.keys().cloned().collect();
    for registers in [fates, listed(vault, "gclog").await?] {
        for (register, numbers) in registers {
            let last = numbers.last().copied().unwrap_or(0);
            let missing = (0..last).filter(|number| !numbers.contains(number));
            suspects.extend(missing.map(|number| format!("{register}/{number:08x}")));
        }
    }
    Ok(Shown {
        last_machine: last,
        lost: lost(vault, suspects).await?,
        points,
        fates: with_fates,
    })
}

async fn listed(vault: &Vault, folder: &str) -> Result<Registers, StoreError> {
    let mut registers = Registers::new();
    for found in vault.inner.store.list(folder).await? {
        if let Some((register, number)) = found.object.rsplit_once('/')
            && let Some(number) = parse_key(number)
        {
            registers.entry(register.to_owned()).or_default().insert(number);
        }
    }
    Ok(registers)
}

/// Those of them that are really not there.
async fn lost(vault: &Vault, names: Vec<String>) -> Result<Vec<String>, StoreError> {
    let looked = stream::iter(names).map(|name| async move {
        let there = vault.inner.store.size(&name).await?.is_some();
        Ok::<_, StoreError>((!there).then_some(name))
    });
    let looked: Vec<Option<String>> = looked.buffered(LOOKED_AT_ONCE).try_collect().await?;
    Ok(looked.into_iter().flatten().collect())
}
