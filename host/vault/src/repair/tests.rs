//! Indexes that are lost or damaged, and what a repair makes of the packs.

use super::*;
use crate::clean::CleanPlan;
use crate::verify::ReadData;
use crate::verify::tests::{DATA_PACK, Rig};

const PIECE: &str = "index/00000001/00000000/00000000";

async fn repair(rig: &Rig, host: &str) -> RepairReport {
    rig.host(host).await.repair_index("test", &|_| {}).await.unwrap()
}

async fn maintenance_is_decided(rig: &Rig) -> bool {
    let sessions = rig.store.names("sessions/00000000").await.len();
    rig.store.names("points/00000000").await.len() == sessions
}

#[tokio::test]
async fn with_no_index_left_everything_is_found_again() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    let mut points = Vec::new();
    for byte in 0..3 {
        points.push(rig.back_up(&vault, [byte, 100 + byte]).await);
    }
    for piece in rig.store.names("index").await {
        rig.store.lose(&piece).await;
    }
    assert!(!rig.verify("b", true).await.is_sound());
    // A listing is a hint: what it leaves out, the points count.
    rig.store.hide("packs/00000001/00000001");
    let report = repair(&rig, "b").await;
    assert_eq!((report.packs, report.packs_listed, report.pieces_written), (6, 6, 1));
    rig.store.heal();
    for host in ["a", "new"] {
        assert!(rig.verify(host, true).await.is_sound(), "{host}");
        let chunks = rig.host(host).await.chunks();
        for point in &points {
            let definition = chunks.read(&point.attachments[0].chunks[0]).await.unwrap();
            assert_eq!(definition, b"<domain/>".as_slice());
        }
    }
    let again = repair(&rig, "c").await;
    assert_eq!((again.packs_listed, again.pieces_written), (0, 0));
    assert!(maintenance_is_decided(&rig).await);
    // Backups go on upon it.
    rig.back_up(&rig.host("d").await, [1, 200]).await;
    assert!(rig.verify("d", true).await.is_sound());
}

#[tokio::test]
async fn a_damaged_piece_is_superseded_and_missed_by_nobody() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    rig.back_up(&vault, [1, 2]).await;
    rig.back_up(&vault, [3, 4]).await;
    rig.store.flip(PIECE, 70).await;
    let report = repair(&rig, "b").await;
    assert_eq!(report.packs_listed, 2);
    assert_eq!(report.damaged_pieces[0].0, PIECE);
    assert!(rig.verify("new", true).await.is_sound());
    assert_eq!(repair(&rig, "b").await.pieces_written, 0);
    assert_eq!(rig.store.names("index/00000001").await.len(), 2, "nothing is deleted");
    // A clean-up takes it away unread.
    let cleaned = rig.host("b").await.clean(&CleanPlan::default(), &|_| {}).await.unwrap();
    assert_eq!((cleaned.deleted_pieces, cleaned.deleted.packs), (1, 0));
    assert!(!rig.store.names("index/00000001").await.contains(&PIECE.to_owned()));
    assert!(rig.verify("newer", true).await.is_sound());
}

#[tokio::test]
async fn a_damaged_piece_that_nothing_is_missed_of_is_superseded_too() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    rig.back_up(&vault, [1, 2]).await;
    for piece in rig.store.names("index").await {
        rig.store.lose(&piece).await;
    }
    repair(&rig, "b").await;
    rig.store.replace(PIECE, &b"rubbish"[..]).await;
    assert!(!rig.verify("c", false).await.is_sound());
    let report = repair(&rig, "b").await;
    assert_eq!((report.packs_listed, report.pieces_written), (0, 1));
    assert!(rig.verify("c", true).await.is_sound());
}

#[tokio::test]
async fn a_pack_that_does_not_say_what_it_holds_is_named_and_quarantined() {
    let rig = Rig::new().await;
    let vault = rig.host("a").await;
    rig.back_up(&vault, [1, 2]).await;
    let length = rig.store.bytes(DATA_PACK).await.len();
    rig.store.flip(DATA_PACK, length - 40).await;
    rig.store.lose(PIECE).await;
    let report = repair(&rig, "b").await;
    assert_eq!(report.packs_listed, 1);
    assert_eq!(report.damaged_packs[0].0, DATA_PACK);
    let log = gclog::read(vault.inner.records()).await.unwrap();
    assert_eq!(log.quarantined_packs().len(), 1);
    let damage = rig.verify_as("c", ReadData::All, true).await.damage;
    assert!(
        damage.iter().any(|damage| damage.object.starts_with("chunk ")),
        "{damage:?}"
    );
}

#[tokio::test]
async fn a_repair_that_breaks_off_leaves_nothing_that_others_wait_for() {
    let rig = Rig::new().await;
    rig.back_up(&rig.host("a").await, [1, 2]).await;
    rig.store.lose(PIECE).await;
    let host = rig.host("b").await;
    rig.store.inject(
        crate::testing::Request::Put,
        "index/00000000",
        crate::testing::Fault::Refuse,
        usize::MAX,
    );
    host.repair_index("test", &|_| {}).await.unwrap_err();
    rig.store.heal();
    assert!(maintenance_is_decided(&rig).await);
    assert_eq!(repair(&rig, "b").await.packs_listed, 2);
}
