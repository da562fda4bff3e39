//! How often what goes wrong on one program's way to the store.

use std::time::Duration;

use super::{Dice, Request};
use crate::testing::Fault;

/// Clients of real stores try reads several times by themselves, so few failures of reads are seen.
const READS_ARE_TRIED: u64 = 8;

/// Each number `n` means once in `n` requests, and 0 means never.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Whether requests take time at all.
    pub takes_time: bool,
    /// A request fails, before or after its act.
    pub trouble: u64,
    /// A listing is stale or cut short.
    pub lying_lists: u64,
    /// A request takes minutes or hours.
    pub stall: u64,
    /// The longest of them.
    pub longest_stall: Duration,
    /// The program dies, before, during or after a request.
    pub death: u64,
}

impl Weather {
    /// Nothing goes wrong and nothing takes time.
    pub const CALM: Self = Self {
        takes_time: false,
        trouble: 0,
        lying_lists: 0,
        stall: 0,
        longest_stall: Duration::ZERO,
        death: 0,
    };
    /// Nothing goes wrong.
    pub const FAIR: Self = Self {
        takes_time: true,
        ..Self::CALM
    };
}

/// How much of a listing is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    All,
    /// As it was some time ago.
    AsOf(Duration),
    /// Only the first of so many parts of 256.
    First(u64),
    /// One in so many is left out.
    AllBut(u64),
}

/// When a program dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Death {
    /// The request never leaves.
    Before,
    /// The request is on its way and will arrive.
    During,
    /// The answer has come, and nobody has seen it yet.
    After,
}

/// What one request meets.
#[derive(Clone, Debug)]
pub(super) struct Fortune {
    pub(super) before: Duration,
    /// From the program to the store.
    pub(super) way: Duration,
    pub(super) after: Duration,
    pub(super) fault: Option<Fault>,
    pub(super) shown: Shown,
    pub(super) death: Option<Death>,
    pub(super) dice: Dice,
}

impl Fortune {
    pub(super) fn draw(mut dice: Dice, request: Request, object: &str, weather: &Weather) -> Self {
        let (quick, slow) = (Duration::from_millis(3), Duration::from_millis(3000));
        let mut fortune = Self {
            before: Duration::ZERO,
            way: Duration::ZERO,
            after: Duration::ZERO,
            fault: None,
            shown: Shown::All,
            death: None,
            dice: dice.of("what is shown"),
        };
        if !weather.takes_time {
            return fortune;
        }
        fortune.before = dice.duration(quick, slow);
        fortune.way = dice.duration(quick, slow);
        fortune.after = dice.duration(quick, slow);
        if dice.once_in(weather.stall) {
            let stalled = dice.duration(Duration::from_secs(60), weather.longest_stall);
            *dice_of_three(&mut dice, &mut fortune) += stalled;
        }
        let trouble = match request {
            Request::Put | Request::Overwrite | Request::Multipart | Request::Copy | Request::Delete => weather.trouble,
            Request::Get | Request::Head | Request::List => weather.trouble * READS_ARE_TRIED,
        };
        if dice.once_in(trouble) {
            fortune.fault = Some(fault(&mut dice, request));
        }
        // Without a key slot a program does not even start, which shows nothing.
        if request == Request::List && !object.starts_with("keys") && dice.once_in(weather.lying_lists) {
            fortune.shown = match dice.within(0..3) {
                0 => Shown::AsOf(dice.duration(Duration::from_secs(1), Duration::from_secs(6 * 3600))),
                1 => Shown::First(dice.within(0..256)),
                _ => Shown::AllBut(dice.within(1..6)),
            };
        }
        if dice.once_in(weather.death) {
            fortune.death = Some(*dice.pick(&[Death::Before, Death::During, Death::After]));
        }
        fortune
    }
}

fn dice_of_three<'a>(dice: &mut Dice, fortune: &'a mut Fortune) -> &'a mut Duration {
    match dice.within(0..3) {
        0 => &mut fortune.before,
        1 => &mut fortune.way,
        _ => &mut fortune.after,
    }
}

/// Faults that this kind of request can meet. A read says what is there or that it cannot, never that nothing is there.
fn fault(dice: &mut Dice, request: Request) -> Fault {
    match request {
        Request::Put | Request::Overwrite | Request::Multipart | Request::Copy => *dice.pick(&[
            Fault::Refuse,
            Fault::LoseAnswer,
            Fault::LoseAnswer,
            Fault::AlreadyThere,
            Fault::ConflictWithNothingStored,
        ]),
        Request::Delete => *dice.pick(&[Fault::Refuse, Fault::LoseAnswer]),
        Request::Get | Request::Head | Request::List => Fault::Refuse,
    }
}
