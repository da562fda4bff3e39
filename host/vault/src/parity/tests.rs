//! What a parity object mends and what it does not.

use proptest::prelude::*;

use super::file::{BLOCK_BYTES, NotMended, encode, mend};
use super::*;

fn pack(bytes: usize, seed: u8) -> Vec<u8> {
    let mut pack = vec![0; bytes];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut pack);
    pack
}

fn percent(percent: u8) -> Parity {
    Parity::of_percent(percent).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn up_to_its_budget_whatever_is_lost_of_a_pack_and_its_parity_is_mended(
        size in 1usize..400_000,
        share in 1u8..=100,
        seed in any::<u8>(),
        lost in proptest::collection::vec(any::<prop::sample::Index>(), 1..200),
        of_parity in proptest::collection::vec(any::<prop::sample::Index>(), 0..3),
        zeroed in any::<bool>(),
    ) {
        let whole = pack(size, seed);
        let mut parity = encode(&whole, percent(share)).unwrap();
        let blocks = size.div_ceil(BLOCK_BYTES);
        let budget = (blocks * usize::from(share)).div_ceil(100).max(1);
        let mut damaged = whole.clone();
        let mut hit = std::collections::BTreeSet::new();
        for at in lost {
            let block = at.index(blocks);
            hit.insert(block);
            let start = block * BLOCK_BYTES;
            let end = (start + BLOCK_BYTES).min(size);
            if zeroed {
                damaged[start..end].fill(0);
            } else {
                damaged[at.index(end - start) + start] ^= 0x10;
            }
        }
        hit.retain(|block| {
            let range = block * BLOCK_BYTES..((block + 1) * BLOCK_BYTES).min(size);
            damaged[range.clone()] != whole[range]
        });
        let mut hit_parity = std::collections::BTreeSet::new();
        let head = (parity.len() - 4 - budget * BLOCK_BYTES) / 2;
        for at in of_parity {
            let block = at.index(budget);
            hit_parity.insert(block);
            parity[head + block * BLOCK_BYTES + 17] ^= 1;
        }
        // Parity blocks that are damaged twice are whole again.
        let result = mend(&parity, &damaged);
        if hit.is_empty() {
            prop_assert_eq!(result.unwrap_err(), NotMended::NotDamaged);
        } else if hit.len() + hit_parity.len() <= budget {
            let mended = result.unwrap();
            prop_assert_eq!(mended.bytes, whole);
            prop_assert_eq!(mended.ranges.len(), hit.len());
        } else if let Ok(mended) = result {
            prop_assert!(hit.len() <= budget);
            prop_assert_eq!(mended.bytes, whole);
        }
    }

    #[test]
    fn no_bytes_break_a_parity(object in proptest::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(mend(&object, &pack(10_000, 1)).is_err());
    }
}

#[test]
fn a_pack_that_is_cut_short_or_grew_is_mended() {
    let whole = pack(100_000, 7);
    let parity = encode(&whole, percent(20)).unwrap();
    assert_eq!(mend(&parity, &whole[..90_000]).unwrap().bytes, whole);
    let longer = [whole.as_slice(), b"more"].concat();
    assert_eq!(mend(&parity, &longer).unwrap().bytes, whole);
    assert!(matches!(
        mend(&parity, &whole[..50_000]),
        Err(NotMended::TooMuch { .. })
    ));
}

#[test]
fn a_pack_whose_end_was_zeroes_is_mended_where_it_is_cut_off() {
    let mut whole = pack(50_000, 7);
    whole[40_000..].fill(0);
    let parity = encode(&whole, percent(50)).unwrap();
    assert_eq!(mend(&parity, &whole[..41_000]).unwrap().bytes, whole);
}

#[test]
fn either_head_is_enough_and_without_both_nothing_is_mended() {
    let whole = pack(60_000, 3);
    let parity = encode(&whole, percent(10)).unwrap();
    let mut damaged = whole.clone();
    damaged[5] ^= 1;
    let head = (parity.len() - 4 - 2 * BLOCK_BYTES) / 2;
    for at in [0, 9, 30, head - 1] {
        let mut front = parity.clone();
        front[at] ^= 1;
        assert_eq!(mend(&front, &damaged).unwrap().bytes, whole, "{at}");
        let end = front.len() - 4 - head;
        front[end + at] ^= 1;
        assert_eq!(mend(&front, &damaged).unwrap_err(), NotMended::Parity, "{at}");
    }
    for length in [0, 3, head - 1] {
        assert_eq!(mend(&parity[..length], &damaged).unwrap_err(), NotMended::Parity);
    }
}

#[test]
fn the_parity_of_another_pack_mends_nothing() {
    let parity = encode(&pack(60_000, 3), percent(10)).unwrap();
    assert!(matches!(
        mend(&parity, &pack(60_000, 4)),
        Err(NotMended::TooMuch { .. })
    ));
}

#[test]
fn a_share_is_a_percentage() {
    for (text, wanted) in [("10%", 10), ("1%", 1), ("100 %", 100)] {
        assert_eq!(text.parse(), Ok(percent(wanted)), "{text}");
    }
    for text in ["", "%", "10", "0%", "101%", "-3%", "1.5%", "+5%"] {
        assert!(text.parse::<Parity>().is_err(), "{text}");
    }
    assert_eq!(percent(10).to_string(), "10%");
}
