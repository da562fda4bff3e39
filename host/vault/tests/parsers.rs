//! Every parser of the vault is fed garbage, and valid bytes that were changed a little. What a parser promises stands with
//! its target in `coffre_vault::testing::fuzz`; the same targets run under libFuzzer (see `fuzz/README.md`).

use coffre_vault::testing::fuzz::{TARGETS, Target, seeds};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

/// What happens to valid bytes.
#[derive(Clone, Debug)]
enum Change {
    Flip {
        at: Index,
        bit: u8,
    },
    Set {
        at: Index,
        to: u8,
    },
    Truncate {
        to: Index,
    },
    Extend {
        by: Vec<u8>,
    },
    /// A part of them comes again in another place.
    Splice {
        from: Index,
        length: u8,
        to: Index,
    },
    /// Four bytes become a number that is at an edge: lengths and counts are such.
    Number {
        at: Index,
        number: u32,
    },
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let edges = prop_oneof![
        Just(0),
        Just(1),
        Just(u32::MAX),
        Just(1 << 31),
        Just(i32::MAX as u32),
        any::<u32>()
    ];
    let change = prop_oneof![
        4 => (any::<Index>(), 0u8..8).prop_map(|(at, bit)| Change::Flip { at, bit }),
        2 => (any::<Index>(), any::<u8>()).prop_map(|(at, to)| Change::Set { at, to }),
        1 => any::<Index>().prop_map(|to| Change::Truncate { to }),
        1 => proptest::collection::vec(any::<u8>(), 1..20).prop_map(|by| Change::Extend { by }),
        1 => (any::<Index>(), 1u8..60, any::<Index>()).prop_map(|(from, length, to)| Change::Splice { from, length, to }),
        1 => (any::<Index>(), edges).prop_map(|(at, number)| Change::Number { at, number }),
    ];
    proptest::collection::vec(change, 0..4)
}

fn change(bytes: &mut Vec<u8>, change: &Change) {
    if bytes.is_empty() {
        return;
    }
    match change {
        Change::Flip { at, bit } => {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        Change::Set { at, to } => {
            let at = at.index(bytes.len());
            bytes[at] = *to;
        }
        Change::Truncate { to } => bytes.truncate(to.index(bytes.len())),
        Change::Extend { by } => bytes.extend_from_slice(by),
        Change::Splice { from, length, to } => {
            let from = from.index(bytes.len());
            let part = bytes[from..bytes.len().min(from + usize::from(*length))].to_vec();
            let to = to.index(bytes.len());
            bytes.splice(to..to, part);
        }
        Change::Number { at, number } => {
            let at = at.index(bytes.len());
            let end = bytes.len().min(at + 4);
            bytes[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
        }
    }
}

fn run(target: &Target, cases: u32) {
    let seeds = seeds(target.name);
    for seed in &seeds {
        (target.run)(seed);
    }
    let changed = (any::<Index>(), changes()).prop_map(move |(which, changes)| {
        let mut bytes = which.get(&seeds).clone();
        for each in &changes {
            change(&mut bytes, each);
        }
        bytes
    });
    let garbage = proptest::collection::vec(any::<u8>(), 0..300);
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let input = prop_oneof![3 => changed, 1 => garbage];
    let result = TestRunner::new(config).run(&input, |bytes| {
        (target.run)(&bytes);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{}: {error}", target.name);
    }
}

#[test]
fn no_bytes_break_a_parser_or_its_promises() {
    for target in TARGETS {
        run(target, 1000);
    }
}
