//! What becomes of points: in every order, by many at once, on a store with bad days, and where a record cannot be read.

use std::sync::Arc;

use futures::future::join_all;

use super::*;
use crate::clock::SystemClock;
use crate::ids::VaultId;
use crate::key::KeyRing;
use crate::store::Store;
use crate::testing::{Fault, FaultStore, Request};

const MACHINE: MachineNumber = MachineNumber(1);
const POINT: SessionNumber = SessionNumber(3);
const ABORTED: SessionNumber = SessionNumber(4);

/// A machine with one point and one aborted session, and nothing around it.
struct Rig {
    faults: Arc<FaultStore>,
    store: Store,
    ring: KeyRing,
}

impl Rig {
    async fn new() -> Self {
        let faults = FaultStore::in_memory();
        let rig = Self {
            store: Store::over(faults.clone(), ""),
            faults,
            ring: KeyRing::unencrypted(VaultId([1; 16])),
        };
        let commit = PointRecord::Commit {
            point: Box::new(rig.point()),
        };
        let abort = PointRecord::Abort {
            reason: String::new(),
            host: String::new(),
            at: Timestamp::UNIX_EPOCH,
        };
        for (number, record) in [(POINT, commit), (ABORTED, abort)] {
            let object = object::point(MACHINE, number);
            rig.records().create(ObjectType::Point, &object, &record).await.unwrap();
        }
        rig
    }

    fn records(&self) -> Records<'_> {
        Records {
            store: &self.store,
            vault: VaultId([1; 16]),
            ring: &self.ring,
            clock: &SystemClock,
        }
    }

    fn point(&self) -> Point {
        Point {
            machine_number: MACHINE,
            number: POINT,
            ..Point::default()
        }
    }

    async fn wish(&self, wish: Wish<'_>) -> Result<FateChange, FateError> {
        change(self.records(), MACHINE, POINT, wish).await
    }

    async fn now(&self) -> FateRegister {
        read(self.records(), MACHINE, POINT).await.unwrap()
    }

    async fn purge(&self, seen: &FateRegister) -> Purge {
        purge(self.records(), MACHINE, POINT, seen).await.unwrap()
    }

    async fn written(&self) -> usize {
        self.faults.names("fates/").await.len()
    }
}

#[tokio::test]
async fn a_forgotten_point_can_be_kept_again_until_it_is_purged() {
    let rig = Rig::new().await;
    assert_eq!(rig.now().await.fate, Fate::Kept);
    assert_eq!(rig.now().await.goes_since(), None);
    for round in 0..2 {
        assert_eq!(rig.wish(Wish::Forget(None)).await.unwrap(), FateChange::Now);
        let forgotten = rig.now().await;
        assert_eq!(
            (forgotten.fate, forgotten.goes_since()),
            (Fate::Forgotten, Some(round * 2))
        );
        assert_eq!(rig.wish(Wish::Undelete).await.unwrap(), FateChange::Now);
        assert_eq!((rig.now().await.fate, rig.now().await.goes_since()), (Fate::Kept, None));
    }
    rig.wish(Wish::Forget(None)).await.unwrap();
    assert_eq!(rig.purge(&rig.now().await).await, Purge::Purged);
    assert_eq!(rig.now().await.fate, Fate::Purged);
    for late in [Wish::Undelete, Wish::Pin(None), Wish::Unpin] {
        assert!(
            matches!(rig.wish(late).await, Err(FateError::Purged(POINT))),
            "{late:?}"
        );
    }
}

#[tokio::test]
async fn the_time_to_undelete_is_counted_by_the_store_from_the_last_forget() {
    /// Ten years ahead.
    #[derive(Debug)]
    struct Wrong;
    impl crate::clock::Clock for Wrong {
        fn now(&self) -> Timestamp {
            Timestamp::now() + jiff::SignedDuration::from_hours(24 * 3650)
        }
    }
    let rig = Rig::new().await;
    let records = Records {
        clock: &Wrong,
        ..rig.records()
    };
    let wish = |wish| change(records, MACHINE, POINT, wish);
    let since = async || {
        let mut point = rig.point();
        tell(records, &mut point).await.unwrap();
        point.forgotten_since
    };
    assert_eq!(since().await, None);
    wish(Wish::Forget(None)).await.unwrap();
    let first = since().await.unwrap();
    assert!(first.duration_since(Timestamp::now()).abs() < jiff::SignedDuration::from_hours(1));
    wish(Wish::Undelete).await.unwrap();
    assert_eq!(since().await, None);
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    wish(Wish::Forget(None)).await.unwrap();
    assert!(since().await.unwrap() > first);
}

#[tokio::test]
async fn nothing_that_is_written_after_a_purge_brings_the_point_back() {
    let rig = Rig::new().await;
    rig.wish(Wish::Forget(None)).await.unwrap();
    rig.purge(&rig.now().await).await;
    // A program that does not look before it writes.
    for (k, fate) in (2..).zip([FateKind::Restore, FateKind::Pin, FateKind::Forget]) {
        let record = FateRecord {
            fate,
            at: Timestamp::UNIX_EPOCH,
            reason: None,
        };
        create(rig.records(), MACHINE, POINT, k, &record).await.unwrap();
        assert_eq!((rig.now().await.fate, rig.now().await.pin), (Fate::Purged, None));
    }
}

#[tokio::test]
async fn asking_twice_writes_once() {
    let rig = Rig::new().await;
    let steps = [
        (Wish::Undelete, 0),
        (Wish::Unpin, 0),
        (Wish::Pin(Some("audit")), 1),
        (Wish::Unpin, 1),
        (Wish::Forget(Some("policy daily")), 1),
        (Wish::Undelete, 1),
    ];
    for (wish, wanted) in steps {
        let before = rig.written().await;
        rig.wish(wish).await.unwrap();
        assert_eq!(rig.wish(wish).await.unwrap(), FateChange::Already, "{wish:?}");
        assert_eq!(rig.written().await - before, wanted, "{wish:?}");
    }
}

#[tokio::test]
async fn a_pinned_point_is_not_forgotten_and_a_forgotten_one_not_pinned() {
    let rig = Rig::new().await;
    rig.wish(Wish::Pin(Some("audit 2026"))).await.unwrap();
    let refused = rig.wish(Wish::Forget(None)).await.unwrap_err();
    assert_eq!(refused.to_string(), "point 3 is pinned: audit 2026");
    // Without a reason the old one stays; with another one, that is what it is pinned for.
    assert_eq!(rig.wish(Wish::Pin(None)).await.unwrap(), FateChange::Already);
    assert_eq!(rig.wish(Wish::Pin(Some("trial"))).await.unwrap(), FateChange::Now);
    assert_eq!(rig.now().await.pin.unwrap().reason.as_deref(), Some("trial"));
    rig.wish(Wish::Unpin).await.unwrap();
    rig.wish(Wish::Forget(None)).await.unwrap();
    assert!(matches!(
        rig.wish(Wish::Pin(None)).await,
        Err(FateError::Forgotten(POINT))
    ));
    assert_eq!(rig.now().await.fate, Fate::Forgotten);
}

#[tokio::test]
async fn a_point_that_was_pinned_although_forgotten_is_not_purged() {
    let rig = Rig::new().await;
    rig.wish(Wish::Forget(None)).await.unwrap();
    let before = rig.now().await;
    let record = FateRecord {
        fate: FateKind::Pin,
        at: Timestamp::UNIX_EPOCH,
        reason: None,
    };
    create(rig.records(), MACHINE, POINT, 1, &record).await.unwrap();
    for seen in [before, rig.now().await] {
        assert_eq!(rig.purge(&seen).await, Purge::Stays);
    }
    // And once unpinned, its time to undelete begins anew.
    rig.wish(Wish::Unpin).await.unwrap();
    assert_eq!(rig.now().await.goes_since(), Some(2));
}

#[tokio::test]
async fn what_is_no_point_has_no_fate() {
    let rig = Rig::new().await;
    let of = |number| change(rig.records(), MACHINE, number, Wish::Forget(None));
    assert!(matches!(of(ABORTED).await, Err(FateError::Aborted(ABORTED))));
    assert!(matches!(of(SessionNumber(9)).await, Err(FateError::NoPoint(_))));
    let long = "x".repeat(REASON_LIMIT_BYTES + 1);
    assert!(matches!(
        rig.wish(Wish::Pin(Some(&long))).await,
        Err(FateError::ReasonTooLong { bytes: 1025 })
    ));
    assert_eq!(rig.written().await, 0);
}

#[tokio::test]
async fn a_damaged_point_can_be_forgotten_and_purged() {
    let rig = Rig::new().await;
    rig.faults.flip(&object::point(MACHINE, POINT), 60).await;
    assert_eq!(rig.wish(Wish::Forget(None)).await.unwrap(), FateChange::Now);
    assert_eq!(rig.purge(&rig.now().await).await, Purge::Purged);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_who_want_the_same_at_once_one_writes() {
    let rig = Rig::new().await;
    for wish in [Wish::Forget(None), Wish::Undelete, Wish::Pin(None), Wish::Unpin] {
        let before = rig.written().await;
        let done = join_all((0..16).map(|_| rig.wish(wish))).await;
        let wrote = done.iter().filter(|done| matches!(done, Ok(FateChange::Now))).count();
        assert!(done.iter().all(Result::is_ok), "{done:?}");
        assert_eq!((wrote, rig.written().await - before), (1, 1), "{wish:?}");
    }
}

#[tokio::test]
async fn of_an_undelete_and_a_purge_at_once_exactly_one_happens() {
    let mut seen = (0, 0);
    for _ in 0..64 {
        let rig = Rig::new().await;
        rig.wish(Wish::Forget(None)).await.unwrap();
        let looked = rig.now().await;
        // Which of the two is first in line alternates.
        let (undeleted, purged) = if seen.0 <= seen.1 {
            tokio::join!(rig.wish(Wish::Undelete), rig.purge(&looked))
        } else {
            let (purged, undeleted) = tokio::join!(rig.purge(&looked), rig.wish(Wish::Undelete));
            (undeleted, purged)
        };
        let end = rig.now().await.fate;
        match (undeleted, purged) {
            (Ok(FateChange::Now), Purge::Stays) => {
                assert_eq!(end, Fate::Kept);
                seen.0 += 1;
            }
            (Err(FateError::Purged(_)), Purge::Purged) => {
                assert_eq!(end, Fate::Purged);
                seen.1 += 1;
            }
            other => panic!("{other:?}, and then {end:?}"),
        }
    }
    assert!(seen.1 > 0, "{seen:?}");
}

#[tokio::test]
async fn a_purge_does_not_take_what_was_undeleted_and_forgotten_anew() {
    let rig = Rig::new().await;
    rig.wish(Wish::Forget(None)).await.unwrap();
    let looked = rig.now().await;
    rig.wish(Wish::Undelete).await.unwrap();
    assert_eq!(rig.purge(&looked).await, Purge::Stays);
    rig.wish(Wish::Forget(None)).await.unwrap();
    // It is forgotten as it was when the cleaner looked, but not for as long.
    assert_eq!(rig.purge(&looked).await, Purge::Stays);
    assert_eq!(rig.now().await.fate, Fate::Forgotten);
    // Two cleaners that looked at the same: both may say that it is purged.
    let looked = rig.now().await;
    let (one, other) = tokio::join!(rig.purge(&looked), rig.purge(&looked));
    assert_eq!((one, other), (Purge::Purged, Purge::Purged));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whatever_many_do_at_once_every_record_follows_from_those_before_it() {
    let rig = Rig::new().await;
    let wishes = [
        Wish::Forget(None),
        Wish::Undelete,
        Wish::Pin(Some("a")),
        Wish::Unpin,
        Wish::Pin(Some("b")),
    ];
    join_all((0..40).map(|turn| rig.wish(wishes[turn % wishes.len()]))).await;
    let mut state = FateRegister::default();
    for k in 0..rig.written().await as u32 {
        let object = object::fate(MACHINE, POINT, k);
        let record: FateRecord = rig.records().get(ObjectType::Fate, &object).await.unwrap().unwrap();
        let sensible = match record.fate {
            FateKind::Forget => state.fate == Fate::Kept && state.pin.is_none(),
            FateKind::Restore => state.fate == Fate::Forgotten,
            FateKind::Pin => {
                state.fate == Fate::Kept && state.pin.as_ref().map(|pin| &pin.reason) != Some(&record.reason)
            }
            FateKind::Unpin => state.pin.is_some(),
            FateKind::Purge | FateKind::Unknown => false,
        };
        assert!(sensible, "{record:?} after {state:?}");
        state.take_in(k, record);
    }
    assert_eq!(state, rig.now().await);
}

#[tokio::test]
async fn a_store_with_bad_days_gets_the_record_once() {
    for fault in [
        Fault::Refuse,
        Fault::LoseAnswer,
        Fault::AlreadyThere,
        Fault::ConflictWithNothingStored,
    ] {
        let rig = Rig::new().await;
        rig.faults.inject(Request::Put, "fates/", fault, 2);
        assert_eq!(
            rig.wish(Wish::Forget(None)).await.unwrap(),
            FateChange::Now,
            "{fault:?}"
        );
        assert_eq!(
            (rig.now().await.fate, rig.written().await),
            (Fate::Forgotten, 1),
            "{fault:?}"
        );
        rig.faults.heal();
        rig.faults.inject(Request::Put, "fates/", fault, 2);
        assert_eq!(rig.purge(&rig.now().await).await, Purge::Purged, "{fault:?}");
        assert_eq!(
            (rig.now().await.fate, rig.written().await),
            (Fate::Purged, 2),
            "{fault:?}"
        );
    }
}

#[tokio::test]
async fn a_store_that_takes_nothing_is_an_error_and_nothing_else() {
    for fault in [Fault::Refuse, Fault::ConflictWithNothingStored] {
        let rig = Rig::new().await;
        rig.faults.inject(Request::Put, "fates/", fault, 1000);
        let error = rig.wish(Wish::Forget(None)).await.unwrap_err();
        assert!(
            matches!(error, FateError::Write(_)) && error.may_help_to_try_again(),
            "{error:?}"
        );
        rig.faults.heal();
        assert_eq!(rig.now().await.fate, Fate::Kept);
    }
}

#[tokio::test]
async fn a_fate_that_cannot_be_read_stops_whoever_would_change_it_and_nobody_who_reads() {
    let of_a_newer_version = serde_json::json!({ "fate": "archive", "at": "2026-01-01T00:00:00Z", "tier": 3 });
    for damaged in [true, false] {
        let rig = Rig::new().await;
        rig.wish(Wish::Forget(None)).await.unwrap();
        let looked = rig.now().await;
        if damaged {
            rig.faults.flip(&object::fate(MACHINE, POINT, 0), 70).await;
        } else {
            let object = object::fate(MACHINE, POINT, 1);
            rig.records()
                .create(ObjectType::Fate, &object, &of_a_newer_version)
                .await
                .unwrap();
            // The purge finds its number taken, by what it does not understand.
            assert!(purge(rig.records(), MACHINE, POINT, &looked).await.is_err());
        }
        let before = rig.written().await;
        for wish in [Wish::Forget(None), Wish::Undelete, Wish::Pin(None), Wish::Unpin] {
            assert!(matches!(rig.wish(wish).await, Err(FateError::Read(_))), "{wish:?}");
        }
        assert!(read(rig.records(), MACHINE, POINT).await.is_err());
        assert_eq!(rig.written().await, before);
        let mut point = rig.point();
        tell(rig.records(), &mut point).await.unwrap();
        assert_eq!(point.fate, Fate::Unknown);
    }
}

#[tokio::test]
async fn a_store_that_cannot_be_asked_is_no_fate_at_all() {
    let rig = Rig::new().await;
    rig.faults.inject(Request::Get, "fates/", Fault::Refuse, 1000);
    let mut point = rig.point();
    assert!(matches!(
        tell(rig.records(), &mut point).await,
        Err(ReadError::Store(_))
    ));
}

#[tokio::test]
async fn a_lost_record_that_makes_a_point_look_forgotten_purges_nothing() {
    let rig = Rig::new().await;
    rig.wish(Wish::Forget(None)).await.unwrap();
    let forgotten = rig.now().await;
    for wish in [Wish::Undelete, Wish::Forget(None), Wish::Undelete] {
        rig.wish(wish).await.unwrap();
    }
    // Of forget, restore, forget, restore the store loses the second.
    rig.faults.lose(&object::fate(MACHINE, POINT, 1)).await;
    assert_eq!(rig.now().await, forgotten);
    let purged = purge(rig.records(), MACHINE, POINT, &forgotten).await;
    assert!(
        matches!(purged, Err(FateError::Read(ReadError::Damaged { .. }))),
        "{purged:?}"
    );
    for wish in [Wish::Undelete, Wish::Forget(None), Wish::Pin(None)] {
        let changed = rig.wish(wish).await;
        assert!(
            matches!(changed, Err(FateError::Read(ReadError::Damaged { .. }))),
            "{changed:?}"
        );
    }
    assert_eq!(rig.written().await, 3);
}
