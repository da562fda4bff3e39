//! What one seed stands for: how many hosts, how bad the weather, how long anything takes.

use std::time::Duration;

use coffre_vault::LeftOut;
use coffre_vault::testing::{Dice, Weather};
use jiff::SignedDuration;

use crate::disk::Places;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
/// One seed in so many.
const CROWDED: u64 = 4;

#[derive(Clone, Debug)]
pub struct Plan {
    pub dice: Dice,
    pub weather: Weather,
    /// Of the hosts' clocks.
    pub skews: Vec<SignedDuration>,
    pub store_skew: SignedDuration,
    /// Whether clocks jump while programs run.
    pub clocks_jump: bool,
    /// Two hosts that back up one machine, against all advice.
    pub shared_machine: bool,
    /// Some writers stop for hours or days before their commit.
    pub writers_stall: bool,
    /// Some programs give up, or are taken for dead and go on later.
    pub writers_give_up: bool,
    pub backups: u64,
    pub cleaners: u64,
    /// Of each cleaner; and then some more, days apart, as long as somebody writes.
    pub cleans: u64,
    pub fates: u64,
    pub restores: u64,
    /// Between two things that somebody does.
    pub longest_rest: Duration,
    /// Between two clean-ups of one cleaner.
    pub longest_clean_rest: Duration,
    /// How often a request of a clean-up stalls: it has many more of them than anybody else.
    pub clean_stall: u64,
    /// Between two chunks.
    pub longest_pause: Duration,
    pub longest_deadline: Duration,
    pub minimum_age: Duration,
    pub undelete_for: Duration,
    /// Numbers of blocks that all machines may have.
    pub shared_blocks: u64,
    pub places: Places,
    /// Each machine forgets all older points when it has a new one.
    pub keeps_newest_only: bool,
    /// A rule of the protocol that is left out, to see that the simulation notices.
    pub left_out: Option<LeftOut>,
}

impl Plan {
    pub fn of_seed(seed: u64, left_out: Option<LeftOut>) -> Self {
        let all = Dice::new(seed);
        let mut dice = all.of("plan");
        let hosts = dice.within(2..4);
        let weather = Weather {
            takes_time: true,
            trouble: *dice.pick(&[0, 0, 1000, 300, 100, 40]),
            lying_lists: *dice.pick(&[0, 20, 6, 2]),
            stall: *dice.pick(&[0, 1000, 300, 100]),
            longest_stall: *dice.pick(&[HOUR, 12 * HOUR, 3 * DAY]),
            death: *dice.pick(&[0, 300, 100, 40]),
        };
        let skews = (0..hosts).map(|_| skew(&mut dice)).collect();
        let longest_rest = *dice.pick(&[30 * Duration::from_secs(1), 5 * MINUTE, 2 * HOUR, DAY]);
        let mut plan = Self {
            weather,
            clean_stall: weather.stall,
            longest_rest,
            longest_clean_rest: longest_rest,
            skews,
            store_skew: match dice.within(0..3) {
                0 => SignedDuration::ZERO,
                _ => SignedDuration::from_secs(dice.within(0..20 * 3600) as i64 - 10 * 3600),
            },
            clocks_jump: dice.once_in(4),
            shared_machine: dice.once_in(6),
            writers_stall: dice.once_in(2),
            writers_give_up: true,
            backups: dice.within(2..7),
            cleaners: dice.within(1..4),
            cleans: dice.within(3..10),
            fates: dice.within(2..10),
            restores: dice.within(1..5),
            longest_pause: *dice.pick(&[
                Duration::from_millis(20),
                10 * Duration::from_secs(1),
                10 * MINUTE,
                6 * HOUR,
            ]),
            longest_deadline: *dice.pick(&[MINUTE, HOUR, DAY]),
            minimum_age: *dice.pick(&[Duration::ZERO, MINUTE, HOUR, 72 * HOUR]),
            undelete_for: *dice.pick(&[Duration::ZERO, MINUTE, HOUR, 14 * DAY]),
            shared_blocks: dice.within(2..16),
            places: Places::Many,
            keeps_newest_only: false,
            left_out,
            dice: all.clone(),
        };
        // From dice of its own, so that the others stay as they are.
        let mut dice = all.of("crowd");
        if dice.once_in(CROWDED) {
            plan.crowd(&mut dice);
        }
        plan
    }

    /// Everybody writes the same few blocks over and over, forgets soon and cleans up at once, so that what nothing needs is
    /// wanted again; and requests stall for about as long as anything takes, so that what must not come between two steps
    /// has every chance to.
    fn crowd(&mut self, dice: &mut Dice) {
        let (rest, stall) = *dice.pick(&[(MINUTE, 10 * MINUTE), (10 * MINUTE, 2 * HOUR), (2 * HOUR, 12 * HOUR)]);
        self.weather = Weather {
            stall: *dice.pick(&[60, 15]),
            longest_stall: stall,
            trouble: *dice.pick(&[0, 0, 300]),
            lying_lists: *dice.pick(&[0, 0, 20]),
            death: *dice.pick(&[0, 0, 300]),
            ..self.weather
        };
        self.skews.iter_mut().for_each(|skew| *skew = SignedDuration::ZERO);
        self.clocks_jump = false;
        self.clean_stall = *dice.pick(&[0, 200]);
        self.longest_rest = rest;
        self.longest_clean_rest = rest / 4;
        self.longest_pause = *dice.pick(&[rest / 100, rest / 5]);
        self.longest_deadline = *dice.pick(&[MINUTE, DAY, DAY]);
        self.writers_stall = dice.within(0..3) > 0;
        self.minimum_age = Duration::ZERO;
        self.undelete_for = Duration::ZERO;
        self.places = Places::Few;
        self.shared_blocks = dice.within(3..9);
        self.keeps_newest_only = true;
        self.backups = dice.within(5..10);
        self.cleans = dice.within(15..40);
    }

    /// The vault's.
    pub fn key(&self) -> [u8; 32] {
        let mut dice = self.dice.of("key");
        let mut key = [0; 32];
        key.chunks_exact_mut(8)
            .for_each(|part| part.copy_from_slice(&dice.number().to_le_bytes()));
        key
    }

    /// Longer than anything that was sent by somebody who is dead can still be on its way.
    pub fn until_all_has_arrived(&self) -> Duration {
        self.weather.longest_stall + HOUR
    }
}

/// Most clocks are about right, some are hours off, and now and then one is in another decade.
pub fn skew(dice: &mut Dice) -> SignedDuration {
    let most_seconds = match dice.within(0..10) {
        0..5 => 5,
        5..9 => 20 * 3600,
        _ => 10 * 365 * 86_400,
    };
    SignedDuration::from_secs(dice.within(0..2 * most_seconds + 1) as i64 - most_seconds as i64)
}
