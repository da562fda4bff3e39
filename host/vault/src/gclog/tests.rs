//! The log as it is read: from its newest checkpoint, and with what was said since.

use std::sync::Arc;

use object_store::memory::InMemory;

use super::*;
use crate::clock::SystemClock;
use crate::ids::VaultId;
use crate::key::KeyRing;
use crate::store::Store;

fn pack(number: u32) -> PackKey {
    PackKey {
        machine: MachineNumber(1),
        session: SessionNumber(0),
        number,
    }
}

#[tokio::test]
async fn the_log_is_read_from_its_newest_checkpoint() {
    let store = Store::over(Arc::new(InMemory::new()), "");
    let vault = VaultId([1; 16]);
    let ring = KeyRing::unencrypted(vault);
    let records = Records {
        store: &store,
        vault,
        ring: &ring,
        clock: &SystemClock,
    };
    assert!(!read(records).await.unwrap().forbids(&pack(0)));
    let checkpoint = Checkpoint {
        machines: vec![MachineCheckpoint {
            machine: MachineNumber(1),
            name: "web01".to_owned(),
            decided_below: 5,
            live: vec![SessionNumber(3)],
        }],
        condemned: vec![Condemned {
            since: 0,
            packs: vec![PackName(pack(1))],
            waits_for: Vec::new(),
        }],
        quarantined: Vec::new(),
        replaced: Vec::new(),
    };
    let steps = [
        (
            None,
            GcWhat::Condemn {
                packs: vec![PackName(pack(0)), PackName(pack(1))],
                reason: String::new(),
            },
        ),
        (
            None,
            GcWhat::Quarantine {
                packs: vec![PackName(pack(2))],
                partly: Vec::new(),
                chunks_lost: 0,
                reason: "bits".to_owned(),
            },
        ),
        (None, GcWhat::Checkpoint(checkpoint)),
        (
            Some(2),
            GcWhat::Condemn {
                packs: vec![PackName(pack(4))],
                reason: String::new(),
            },
        ),
    ];
    let wanted = [
        [true, true, false, false],
        [true, true, true, false],
        [false, true, false, false],
        [false, true, false, true],
    ];
    for (number, ((checkpoint, what), wanted)) in (0..).zip(steps.into_iter().zip(wanted)) {
        let record = GcRecord {
            at: Timestamp::UNIX_EPOCH,
            checkpoint,
            what,
        };
        records
            .create(ObjectType::GcLog, &object::gclog(number), &record)
            .await
            .unwrap();
        let log = read(records).await.unwrap();
        assert_eq!([0, 1, 2, 4].map(|number| log.forbids(&pack(number))), wanted);
    }
    let log = read(records).await.unwrap();
    assert_eq!(log.machine(MachineNumber(1)).unwrap().decided_below, 5);
}

#[tokio::test]
async fn a_kind_that_is_not_known_stops_a_writer() {
    let store = Store::over(Arc::new(InMemory::new()), "");
    let vault = VaultId([1; 16]);
    let ring = KeyRing::unencrypted(vault);
    let records = Records {
        store: &store,
        vault,
        ring: &ring,
        clock: &SystemClock,
    };
    let record = serde_json::json!({ "at": "2026-01-01T00:00:00Z", "kind": "bless" });
    records
        .create(ObjectType::GcLog, &object::gclog(0), &record)
        .await
        .unwrap();
    assert!(matches!(read(records).await, Err(ReadError::Newer { .. })));
}

#[tokio::test]
async fn writers_that_quarantine_at_once_lose_nothing() {
    let store = Store::over(Arc::new(InMemory::new()), "");
    let vault = VaultId([1; 16]);
    let ring = KeyRing::unencrypted(vault);
    let records = Records {
        store: &store,
        vault,
        ring: &ring,
        clock: &SystemClock,
    };
    let packs: Vec<[PackKey; 2]> = (0..6).map(|number| [pack(number), pack(7)]).collect();
    futures::future::try_join_all(packs.iter().map(|packs| quarantine(records, packs, "test")))
        .await
        .unwrap();
    let log = read(records).await.unwrap();
    assert_eq!(log.end, 6);
    assert!((0..6).chain([7]).all(|number| log.forbids(&pack(number))));
}
