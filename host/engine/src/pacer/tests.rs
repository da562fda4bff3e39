//! Caps, fair shares and changes of both, on a clock that is moved by hand.

use super::*;
use crate::clock::SystemClock;
use crate::config::Busy;
use crate::schedule::Window;

const MIB: u64 = 1024 * 1024;

fn capped(bytes: Option<u64>, requests: Option<u64>) -> TransferConfig {
    TransferConfig {
        caps: Caps { bytes, requests },
        busy: Vec::new(),
    }
}

fn pacer(bytes: u64) -> Pacer {
    Pacer::new(capped(Some(bytes), None), Arc::new(SystemClock))
}

/// Sends packs for ever, and counts the bytes.
fn sender(share: Arc<dyn Pace>, pack: u64) -> Arc<Mutex<u64>> {
    let sent = Arc::new(Mutex::new(0));
    let count = sent.clone();
    tokio::spawn(async move {
        loop {
            share.admit(pack).await;
            *count.lock() += pack;
            tokio::task::yield_now().await;
        }
    });
    sent
}

async fn seconds(count: u64) {
    tokio::time::sleep(Duration::from_secs(count)).await;
}

#[tokio::test(start_paused = true)]
async fn a_cap_is_kept_and_used() {
    let pacer = pacer(MIB);
    let sent = sender(pacer.share(), 3 * MIB);
    seconds(300).await;
    let sent = *sent.lock();
    assert!(sent <= 300 * MIB, "{sent}");
    assert!(sent >= 290 * MIB, "{sent}");
}

#[tokio::test(start_paused = true)]
async fn jobs_have_equal_shares_whatever_the_size_of_their_packs() {
    let pacer = pacer(10 * MIB);
    let large = [sender(pacer.share(), 32 * MIB), sender(pacer.share(), 32 * MIB)];
    let small = sender(pacer.share(), MIB);
    seconds(600).await;
    let later = sender(pacer.share(), 8 * MIB);
    seconds(600).await;
    let total: u64 = 12_000 * MIB;
    let of = |sent: &Arc<Mutex<u64>>| *sent.lock() as f64 / MIB as f64;
    for sent in large.iter().chain([&small]) {
        let wanted = 10.0 * 600.0 / 3.0 + 10.0 * 600.0 / 4.0;
        assert!((of(sent) - wanted).abs() < 0.05 * wanted, "{} of {wanted}", of(sent));
    }
    // One that comes later gets no more than its share for that.
    assert!((of(&later) - 1500.0).abs() < 100.0, "{}", of(&later));
    let sum: u64 = large.iter().chain([&small, &later]).map(|sent| *sent.lock()).sum();
    assert!(sum <= total && sum as f64 > 0.97 * total as f64, "{sum}");
}

#[tokio::test(start_paused = true)]
async fn a_cap_that_changes_holds_for_what_waits_already() {
    let pacer = pacer(1);
    let sent = sender(pacer.share(), 32 * MIB);
    seconds(10).await;
    assert_eq!(*sent.lock(), 0);
    pacer.reload(capped(Some(8 * MIB), None));
    seconds(100).await;
    let after = *sent.lock();
    assert!((736 * MIB..=800 * MIB).contains(&after), "{after}");
    pacer.reload(capped(Some(0), None));
    seconds(100).await;
    assert!(*sent.lock() <= after + 32 * MIB);
}

#[tokio::test(start_paused = true)]
async fn who_is_let_go_waits_no_more() {
    let pacer = pacer(1);
    let share = pacer.share();
    let waiting = tokio::spawn({
        let share = share.clone();
        async move { share.admit(32 * MIB).await }
    });
    seconds(5).await;
    assert!(!waiting.is_finished());
    share.let_go();
    waiting.await.unwrap();
    // Nor does it hold others up.
    let other = sender(pacer.share(), 1);
    seconds(10).await;
    assert!(*other.lock() >= 8, "{}", other.lock());
}

#[tokio::test(start_paused = true)]
async fn requests_are_counted_whatever_their_size() {
    let pacer = Pacer::new(capped(None, Some(20)), Arc::new(SystemClock));
    let sent = sender(pacer.requests(), 7);
    seconds(10).await;
    let requests = *sent.lock() / 7;
    assert!((180..=200).contains(&requests), "{requests}");
}

#[test]
fn the_first_busy_time_that_holds_says_what_may_go() {
    let config = TransferConfig {
        caps: Caps {
            bytes: Some(100),
            requests: None,
        },
        busy: vec![
            Busy {
                at: Window::parse("12:00-13:00 UTC").unwrap(),
                caps: Caps {
                    bytes: Some(0),
                    requests: None,
                },
            },
            Busy {
                at: Window::parse("mon-fri 08:00-18:00 UTC").unwrap(),
                caps: Caps {
                    bytes: Some(10),
                    requests: Some(5),
                },
            },
        ],
    };
    let bytes = |at: &str| config.caps(at.parse().unwrap()).bytes;
    assert_eq!(bytes("2026-11-25T07:00Z"), Some(100));
    assert_eq!(bytes("2026-11-25T08:00Z"), Some(10));
    assert_eq!(bytes("2026-11-25T12:30Z"), Some(0));
    assert_eq!(bytes("2026-11-28T09:00Z"), Some(100));
}
