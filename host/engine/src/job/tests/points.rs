//! What stands in points: how disks were compared, and what became of them.

use coffre_vault::ComparedHow;

use super::world::{Manner, World, noise};
use crate::journal::JobOutcome;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_the_provider_names_is_read_the_second_time() {
    let world = World::new().await;
    let first = world.backup().await.unwrap();
    assert_eq!(first.point.disks[1].compared.how, ComparedHow::Full);
    world.disks.lock().get_mut("two").unwrap()[100_000..104_000].fill(7);
    let second = world.backup().await.unwrap();
    let disk = &second.point.disks[1];
    assert_eq!(disk.compared.how, ComparedHow::Tracked, "{:?}", disk.compared);
    assert_eq!(disk.base, Some(first.point.number));
    assert!(disk.changed_bytes <= 8192, "{}", disk.changed_bytes);
    // Where it is, is in the point for whoever draws a picture of it.
    assert_eq!(
        disk.changed_regions.trim_matches('0').len(),
        1,
        "{}",
        disk.changed_regions
    );
    assert_eq!(second.outcome, JobOutcome::Done);
    world.assert_newest_is_now().await;
    // Only the newest point's bases stay with the provider.
    assert_eq!(world.kept.lock().keys().cloned().collect::<Vec<_>>(), [second.job]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tracking_can_be_turned_off() {
    let world = World::with(&format!(
        "{}{}{}tracking = \"off\"\n",
        super::world::POLICY,
        super::world::HOOKS,
        super::world::MACHINE
    ))
    .await;
    world.backup().await.unwrap();
    let second = world.backup().await.unwrap();
    assert_eq!(second.point.disks[0].compared.how, ComparedHow::Scan);
    assert!(
        second.point.disks[0].compared.why.contains("tracking = \"off\""),
        "{:?}",
        second.point.disks[0].compared
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_that_grew_shrank_vanished_or_appeared_are_noted_and_right() {
    let world = World::new().await;
    world.disks.lock().insert("gone".to_owned(), noise(3, 200_000));
    world.backup().await.unwrap();
    {
        let mut disks = world.disks.lock();
        disks.remove("gone");
        disks.insert("new".to_owned(), noise(4, 300_000));
        disks.insert("zeroes".to_owned(), vec![0; 1 << 20]);
        disks.insert("empty".to_owned(), Vec::new());
        disks.get_mut("one").unwrap().extend(noise(5, 500_000));
        disks.get_mut("two").unwrap().truncate(1_000_000);
    }
    let report = world.backup().await.unwrap();
    let mut codes: Vec<(&str, &str)> = report
        .point
        .notes
        .iter()
        .filter_map(|note| Some((note.code.as_str(), note.disk.as_deref()?)))
        .collect();
    codes.sort_unstable();
    let expected = [
        ("disk-appeared", "empty"),
        ("disk-appeared", "new"),
        ("disk-appeared", "zeroes"),
        ("disk-grew", "one"),
        ("disk-shrank", "two"),
        ("disk-vanished", "gone"),
    ];
    assert_eq!(codes, expected);
    world.assert_newest_is_now().await;
    // And the earlier point is as it was.
    let first = world.points().await.remove(0);
    assert!(world.restored(&first, "gone").await == noise(3, 200_000));
    assert!(world.restored(&first, "one").await == noise(1, 600_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_liar_is_caught_in_the_end_and_what_it_hid_is_found() {
    let world = World::new().await;
    // Many segments, so that some of them are sampled.
    world.disks.lock().insert("two".to_owned(), noise(2, 8 << 20));
    world.backup().await.unwrap();
    for byte in world.disks.lock().get_mut("two").unwrap().iter_mut().step_by(4096) {
        *byte ^= 1;
    }
    *world.manner.lock() = Manner::NothingChanged;
    // A hundred runs re-read everything; all blocks lie, so the first that is sampled tells.
    for _ in 0..101 {
        let report = world.backup().await.unwrap();
        if report.notes.iter().any(|note| note.code == "tracking-lied") {
            assert_eq!(report.outcome, JobOutcome::Downgraded);
            assert!(report.point.disks.iter().any(|disk| disk.tracking_lied));
            world.assert_newest_is_now().await;
            return;
        }
    }
    panic!("never caught");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_vault_of_a_machine_keeps_its_own_base() {
    let world = World::new().await;
    let first = world.backup().await.unwrap();
    *world.goes_to.lock() = "w";
    let second = world.backup().await.unwrap();
    let mut kept: Vec<String> = world.kept.lock().keys().cloned().collect();
    kept.sort();
    let mut both = vec![first.job, second.job];
    both.sort();
    assert_eq!(kept, both);

    world.disks.lock().get_mut("two").unwrap()[5000] ^= 1;
    for vault in ["v", "w"] {
        *world.goes_to.lock() = vault;
        let report = world.backup().await.unwrap();
        assert_eq!(report.point.disks[1].compared.how, ComparedHow::Tracked, "{vault}");
        world.assert_newest_is_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_that_the_provider_hands_out_itself_are_read_whole() {
    let world = World::new().await;
    *world.manner.lock() = Manner::Streams;
    world.backup().await.unwrap();
    world.assert_newest_is_now().await;
    world.assert_nothing_is_owed();
}
