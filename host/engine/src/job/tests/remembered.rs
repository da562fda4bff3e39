//! What the book knows after jobs that went well, failed, or died.

use super::world::{Fault, World};
use crate::book::Book;
use crate::job::listed;
use crate::journal::JobOutcome;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_book_knows_points_and_what_became_of_jobs() {
    let world = World::new().await;
    let state = world.state();
    let report = world.backup().await.unwrap();
    let book = Book::open(&state).unwrap();
    let vault = report.vault.clone();
    let numbers = || -> Vec<u32> {
        let points = book.points(&vault, "m").unwrap();
        points.iter().map(|point| point.number).collect()
    };
    assert_eq!(numbers(), [report.point.number.0]);
    let last = || book.last_jobs().unwrap()["m"].clone();
    assert_eq!(
        (last().id, last().outcome),
        (report.job.clone(), Some(JobOutcome::Done))
    );

    world.fault("take", Fault::Fail);
    world.backup().await.unwrap_err();
    assert_eq!(last().outcome, Some(JobOutcome::Failed));
    assert!(last().error.is_some());

    // One that is killed is known as begun, and as what it was once the next has paid for it.
    world.fault("take", Fault::Hang);
    world.killed().await;
    let newest = || listed(&book, &state, None, 1).unwrap().remove(0);
    let died = newest();
    assert_eq!((died.outcome, died.running), (None, false));
    assert!(died.owes);
    let second = world.backup().await.unwrap();
    assert_eq!(book.job(&died.id).unwrap().unwrap().outcome, Some(JobOutcome::Died));
    assert_eq!((newest().id, newest().running), (second.job, false));
    assert_eq!(numbers(), [report.point.number.0, second.point.number.0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_book_is_filled_by_the_next_backup() {
    let world = World::new().await;
    let first = world.backup().await.unwrap();
    std::fs::remove_file(world.state().folder().join("book.sqlite")).unwrap();
    let second = world.backup().await.unwrap();
    let book = Book::open(&world.state()).unwrap();
    let points = book.points(&first.vault, "m").unwrap();
    let numbers: Vec<u32> = points.iter().map(|point| point.number).collect();
    assert_eq!(numbers, [first.point.number.0, second.point.number.0]);
    let jobs: Vec<_> = book.jobs(None, 9).unwrap().into_iter().map(|job| job.id).collect();
    assert!(jobs.contains(&first.job) && jobs.contains(&second.job), "{jobs:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_book_that_cannot_be_written_costs_no_backup() {
    let world = World::new().await;
    std::fs::create_dir_all(world.state().folder().join("book.sqlite")).unwrap();
    let report = world.backup().await.unwrap();
    assert_eq!(report.outcome, JobOutcome::Done);
}
