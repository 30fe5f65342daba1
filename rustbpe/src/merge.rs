//! The BPE itself: while two neighbours merge, merge those of lowest rank, leftmost first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::model::{Model, NONE};

/// Pieces up to this many bytes scan an array for the lowest rank; longer ones keep a heap.
const SMALL: usize = 40;

/// Appends the ids of one piece.
pub fn encode_piece(model: &Model, piece: &[u8], out: &mut Vec<u32>) {
    if let Some(id) = model.whole_word(piece) {
        out.push(id);
    } else if model.lacks_bytes && piece.iter().any(|&byte| is_lacking(model, byte)) {
        // As in `tokenizers`: they vanish, and what lay on both sides may merge.
        let known: Vec<u8> = piece
            .iter()
            .copied()
            .filter(|&b| !is_lacking(model, b))
            .collect();
        large(model, &known, out);
    } else if piece.len() <= SMALL {
        small(model, piece, out);
    } else {
        large(model, piece, out);
    }
}

fn is_lacking(model: &Model, byte: u8) -> bool {
    model.byte_ids[usize::from(byte)] == NONE
}

/// Quadratic, but in an array that stays in registers and first-level cache.
fn small(model: &Model, piece: &[u8], out: &mut Vec<u32>) {
    let mut ids = [0_u32; SMALL];
    let mut ranks = [NONE; SMALL];
    let mut len = piece.len();
    for (k, &byte) in piece.iter().enumerate() {
        ids[k] = model.byte_ids[usize::from(byte)];
    }
    for k in 0..len.saturating_sub(1) {
        ranks[k] = model.byte_rank(piece[k], piece[k + 1]);
    }
    while len > 1 {
        let (at, rank) = lowest(&ranks[..len - 1]);
        if rank == NONE {
            break;
        }
        ids[at] = model.merged(rank);
        ids.copy_within(at + 2..len, at + 1);
        ranks.copy_within(at + 1..len - 1, at); // ranks[at] is computed again below
        len -= 1;
        ranks[len - 1] = NONE;
        if at + 1 < len {
            ranks[at] = model.rank(ids[at], ids[at + 1]);
        }
        if at > 0 {
            ranks[at - 1] = model.rank(ids[at - 1], ids[at]);
        }
    }
    out.extend_from_slice(&ids[..len]);
}

fn lowest(ranks: &[u32]) -> (usize, u32) {
    let mut best = (0, NONE);
    for (k, &rank) in ranks.iter().enumerate() {
        if rank < best.1 {
            best = (k, rank);
        }
    }
    best
}

/// Linked list and heap: n log n however long the piece.
///
/// A heap entry is stale when its place no longer has that rank; a rank names one pair, so an
/// entry with the right rank is always valid.
fn large(model: &Model, piece: &[u8], out: &mut Vec<u32>) {
    let n = piece.len();
    let mut ids: Vec<u32> = piece
        .iter()
        .map(|&b| model.byte_ids[usize::from(b)])
        .collect();
    let mut ranks: Vec<u32> = piece
        .windows(2)
        .map(|w| model.byte_rank(w[0], w[1]))
        .collect();
    ranks.push(NONE);
    let mut next: Vec<usize> = (1..=n).collect();
    let mut prev: Vec<usize> = (0..n).map(|k| k.wrapping_sub(1)).collect();
    let mut heap: BinaryHeap<Reverse<(u32, usize)>> = ranks
        .iter()
        .enumerate()
        .filter(|(_, &rank)| rank != NONE)
        .map(|(k, &rank)| Reverse((rank, k)))
        .collect();
    while let Some(Reverse((rank, at))) = heap.pop() {
        if ranks[at] != rank {
            continue;
        }
        let right = next[at];
        ids[at] = model.merged(rank);
        ranks[right] = NONE;
        next[at] = next[right];
        ranks[at] = NONE;
        if next[at] < n {
            prev[next[at]] = at;
            ranks[at] = model.rank(ids[at], ids[next[at]]);
            if ranks[at] != NONE {
                heap.push(Reverse((ranks[at], at)));
            }
        }
        if at > 0 {
            let left = prev[at];
            ranks[left] = model.rank(ids[left], ids[at]);
            if ranks[left] != NONE {
                heap.push(Reverse((ranks[left], left)));
            }
        }
    }
    let mut at = 0;
    while at < n {
        out.push(ids[at]);
        at = next[at];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::toy;
    use crate::scan::Scanner;

    /// The definition, one merge at a time.
    fn slow(model: &Model, piece: &[u8]) -> Vec<u32> {
        let mut ids: Vec<u32> = piece
            .iter()
            .map(|&b| model.byte_ids[usize::from(b)])
            .collect();
        loop {
            let ranked = ids
                .windows(2)
                .enumerate()
                .map(|(k, w)| (model.rank(w[0], w[1]), k));
            match ranked.min() {
                Some((rank, k)) if rank != NONE => {
                    ids.splice(k..k + 2, [model.merged(rank)]);
                }
                _ => return ids,
            }
        }
    }

    #[test]
    fn all_three_ways_agree() {
        let merges = [
            ("b", "c"),
            ("a", "a"),
            ("a", "b"),
            ("aa", "aa"),
            ("c", "a"),
            ("ab", "c"),
            ("a", "bc"),
            ("aaaa", "aaaa"),
            ("ca", "bc"),
            ("abc", "abc"),
            ("aa", "b"),
        ];
        let model = toy(Scanner::Gpt2, &merges);
        let mut state = 3_u64;
        for round in 0..30_000_usize {
            let piece: Vec<u8> = (0..round % 60)
                .map(|_| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    b"aaabc"[(state >> 33) as usize % 5]
                })
                .collect();
            let expected = slow(&model, &piece);
            let mut found = Vec::new();
            large(&model, &piece, &mut found);
            assert_eq!(found, expected);
            if piece.len() <= SMALL {
                found.clear();
                small(&model, &piece, &mut found);
                assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn a_million_equal_characters_take_no_time() {
        let model = toy(Scanner::Gpt2, &[("a", "a"), ("aa", "aa"), ("aaaa", "aaaa")]);
        let start = std::time::Instant::now();
        let mut ids = Vec::new();
        encode_piece(&model, &vec![b'a'; 1_000_003], &mut ids);
        assert_eq!(model.decode(&ids).map(|bytes| bytes.len()), Ok(1_000_003));
        assert!(start.elapsed().as_secs() < 20);
    }
}
