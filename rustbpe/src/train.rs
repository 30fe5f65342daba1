//! Learning a vocabulary: count words, then merge the commonest pair again and again.
//!
//! Ties: the pair with the higher count goes first; of two with the same count, the one whose left
//! id is lower, then whose right id is lower. Counts are exact at each step, overlaps included
//! (`aaa` holds the pair (a, a) twice), so the result is the definition's, whatever the threads.
//! A merge that spells a token there already is gives that token's id, and no new one: `ab` + `c`
//! and `a` + `bc` are both `abc`.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::BuildHasherDefault;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::cache::{hash_key, inline_key, BytesHasher, INLINE_BYTES};
use crate::encode::{segments, split, worker_count, Segment};
use crate::error::BpeError;
use crate::model::MAX_IDS;
use crate::nfc;
use crate::scan::{Family, Gpt2, Llama3, Qwen2, Scanner, SmolLm2};
use crate::unicode::load16;

/// Merges between two calls of the progress function.
const PROGRESS_EVERY: usize = 64;

/// Counts words of any amount of text, then learns merges.
pub struct Trainer {
    scanner: Scanner,
    is_nfc: bool,
    counters: Vec<WordCounts>,
}

/// What to learn.
pub struct Goal<'a> {
    /// The id of each single byte: all below 256.
    pub byte_ids: &'a [u32; 256],
    /// How many new tokens; fewer are learnt when no pair is left.
    pub n_tokens: usize,
    /// Pairs seen less often than this are not merged.
    pub min_count: u64,
}

/// One merge: the pair, and how often it occurred when it was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merge {
    /// Left id.
    pub left: u32,
    /// Right id.
    pub right: u32,
    /// Occurrences in the text.
    pub count: u64,
}

impl Trainer {
    /// With nothing counted.
    pub fn new(scanner: Scanner, is_nfc: bool) -> Self {
        Self {
            scanner,
            is_nfc,
            counters: Vec::new(),
        }
    }

    /// Counts the words of some documents, on up to `threads` threads (0: all cores).
    pub fn feed(&mut self, documents: &[&[u8]], threads: usize) {
        let segments = segments(documents);
        let tasks = split(&segments);
        let threads = worker_count(threads).min(tasks.len());
        while self.counters.len() < threads.max(1) {
            self.counters.push(WordCounts::default());
        }
        let (scanner, is_nfc) = (self.scanner, self.is_nfc);
        if threads <= 1 {
            return self.counters[0].add_all(scanner, is_nfc, &segments);
        }
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for counter in &mut self.counters[..threads] {
                let (next, tasks, segments) = (&next, &tasks, &segments);
                scope.spawn(move || {
                    while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                        counter.add_all(scanner, is_nfc, &segments[task.clone()]);
                    }
                });
            }
        });
    }

    /// Every distinct word and its count, in byte order.
    pub fn word_counts(&self) -> Vec<(Vec<u8>, u64)> {
        let mut merged: HashMap<Vec<u8>, u64, BuildHasherDefault<BytesHasher>> = HashMap::default();
        for counter in &self.counters {
            counter.each(|word, count| match merged.get_mut(word) {
                Some(total) => *total += count,
                None => {
                    merged.insert(word.to_vec(), count);
                }
            });
        }
        let mut words: Vec<_> = merged.into_iter().collect();
        words.sort_unstable();
        words
    }

    /// Learns merges; `progress(done, count)` may stop it, and then there is no result.
    pub fn train(
        &self,
        goal: &Goal<'_>,
        progress: &mut dyn FnMut(usize, u64) -> ControlFlow<()>,
    ) -> Result<Option<Vec<Merge>>, BpeError> {
        if goal.n_tokens.saturating_add(256) > MAX_IDS {
            return Err(BpeError::new(format!(
                "el vocabulario pasa de {MAX_IDS} tokens"
            )));
        }
        if goal.byte_ids.iter().any(|&id| id > 255) {
            return Err(BpeError::new(
                "los identificadores de los bytes van de 0 a 255",
            ));
        }
        let mut state = State::new(&self.word_counts(), goal.byte_ids);
        let mut merges = Vec::with_capacity(goal.n_tokens);
        while state.tokens.len() < goal.n_tokens + 256 {
            let Some(merge) = state.merge_next(goal.min_count) else {
                break;
            };
            merges.push(merge);
            let is_due = merges.len().is_multiple_of(PROGRESS_EVERY);
            if is_due && progress(state.tokens.len() - 256, merge.count).is_break() {
                return Ok(None);
            }
        }
        Ok(Some(merges))
    }
}

/// Word -> count. Words of up to 15 bytes are their own key in an open table.
struct WordCounts {
    short: Vec<(u128, u64)>,
    n_short: usize,
    long: HashMap<Box<[u8]>, u64, BuildHasherDefault<BytesHasher>>,
}

impl Default for WordCounts {
    fn default() -> Self {
        Self {
            short: vec![(0, 0); 1 << 14],
            n_short: 0,
            long: HashMap::default(),
        }
    }
}

impl WordCounts {
    fn add_all(&mut self, scanner: Scanner, is_nfc: bool, segments: &[Segment<'_>]) {
        for segment in segments {
            let normal = if is_nfc {
                nfc::normalize(segment.text)
            } else {
                segment.text.into()
            };
            match scanner {
                Scanner::Gpt2 => self.add_text::<Gpt2>(&normal),
                Scanner::SmolLm2 => self.add_text::<SmolLm2>(&normal),
                Scanner::Qwen2 => self.add_text::<Qwen2>(&normal),
                Scanner::Llama3 => self.add_text::<Llama3>(&normal),
            }
        }
    }

    fn add_text<F: Family>(&mut self, text: &[u8]) {
        let mut start = 0;
        while start < text.len() {
            let window = load16(text, start);
            let end = F::piece_end(text, start, window);
            if end - start <= INLINE_BYTES {
                self.add_short(inline_key(window, end - start), 1);
            } else {
                self.add_long(&text[start..end]);
            }
            start = end;
        }
    }

    #[inline]
    fn add_short(&mut self, key: u128, count: u64) {
        let mask = self.short.len() - 1;
        let mut slot = (hash_key(key) >> 32) as usize & mask;
        loop {
            let entry = &mut self.short[slot];
            if entry.0 == key {
                entry.1 += count;
                return;
            }
            if entry.0 == 0 {
                *entry = (key, count);
                self.n_short += 1;
                if self.n_short * 2 > self.short.len() {
                    self.grow();
                }
                return;
            }
            slot = (slot + 1) & mask;
        }
    }

    #[cold]
    fn grow(&mut self) {
        let larger = vec![(0, 0); self.short.len() * 2];
        self.n_short = 0;
        for (key, count) in std::mem::replace(&mut self.short, larger) {
            if key != 0 {
                self.add_short(key, count);
            }
        }
    }

    fn add_long(&mut self, word: &[u8]) {
        if let Some(count) = self.long.get_mut(word) {
            *count += 1;
        } else {
            self.long.insert(word.into(), 1);
        }
    }

    fn each(&self, mut visit: impl FnMut(&[u8], u64)) {
        for &(key, count) in self.short.iter().filter(|entry| entry.0 != 0) {
            let bytes = key.to_le_bytes();
            visit(&bytes[..usize::from(bytes[15])], count);
        }
        for (word, &count) in &self.long {
            visit(word, count);
        }
    }
}

/// A count, its pair and the pair's slot: the highest count first, then the lowest ids.
type Candidate = (u64, Reverse<(u32, u32)>, u32);

/// Words as ids, and how often each pair of neighbours occurs.
struct State {
    words: Vec<Word>,
    ids: Vec<u32>,
    pairs: PairTable,
    counts: Vec<u64>,
    /// Words a pair was seen in when it arose; some may have lost it since.
    places: Vec<Vec<u32>>,
    /// Pairs whose count rose in this step, and the last step each did.
    raised: Vec<u32>,
    raised_at: Vec<u32>,
    step: u32,
    /// A pair whose count rises is queued again, so no entry is too low for its pair: when the top
    /// one is out of date it goes back with its real count.
    heap: BinaryHeap<Candidate>,
    tokens: Vec<Box<[u8]>>,
    ids_of: HashMap<Box<[u8]>, u32, BuildHasherDefault<BytesHasher>>,
}

struct Word {
    start: usize,
    len: u32,
    count: u64,
}

impl State {
    fn new(counted: &[(Vec<u8>, u64)], byte_ids: &[u32; 256]) -> Self {
        let mut state = Self {
            words: Vec::with_capacity(counted.len()),
            ids: Vec::with_capacity(counted.iter().map(|(word, _)| word.len()).sum()),
            pairs: PairTable::default(),
            counts: Vec::new(),
            places: Vec::new(),
            raised: Vec::new(),
            raised_at: Vec::new(),
            step: 1,
            heap: BinaryHeap::new(),
            tokens: vec![Box::default(); 256],
            ids_of: HashMap::default(),
        };
        for (byte, &id) in byte_ids.iter().enumerate() {
            state.tokens[id as usize] = [byte as u8].into();
        }
        for (bytes, count) in counted.iter().filter(|(bytes, _)| bytes.len() > 1) {
            let (start, word) = (state.ids.len(), state.words.len() as u32);
            state
                .ids
                .extend(bytes.iter().map(|&byte| byte_ids[usize::from(byte)]));
            state.words.push(Word {
                start,
                len: bytes.len() as u32,
                count: *count,
            });
            for k in start..state.ids.len() - 1 {
                state.increase(state.ids[k], state.ids[k + 1], word, *count);
            }
        }
        state.queue_raised();
        state
    }

    fn merge_next(&mut self, min_count: u64) -> Option<Merge> {
        let (count, left, right, slot) = loop {
            let (count, Reverse((left, right)), slot) = self.heap.pop()?;
            let real = self.counts[slot as usize];
            if real < min_count.max(1) {
                continue;
            }
            if real == count {
                break (count, left, right, slot);
            }
            self.heap.push((real, Reverse((left, right)), slot));
        };
        let new_id = self.id_of_pair(left, right);
        for word in std::mem::take(&mut self.places[slot as usize]) {
            self.merge_in_word(word, (left, right), new_id);
        }
        self.counts[slot as usize] = 0;
        self.queue_raised();
        Some(Merge { left, right, count })
    }

    /// Rewrites one word from left to right, adjusting the counts around each merge.
    fn merge_in_word(&mut self, index: u32, (left, right): (u32, u32), new_id: u32) {
        let Word { start, len, count } = self.words[index as usize];
        let end = start + len as usize;
        let (mut read, mut write) = (start, start);
        while read < end {
            let is_pair = self.ids[read] == left && read + 1 < end && self.ids[read + 1] == right;
            if !is_pair {
                self.ids[write] = self.ids[read];
                (read, write) = (read + 1, write + 1);
                continue;
            }
            if write > start {
                let before = self.ids[write - 1];
                self.decrease(before, left, count);
                self.increase(before, new_id, index, count);
            }
            if read + 2 < end {
                let after = self.ids[read + 2];
                self.decrease(right, after, count);
                self.increase(new_id, after, index, count);
            }
            self.ids[write] = new_id;
            (read, write) = (read + 2, write + 1);
        }
        self.words[index as usize].len = (write - start) as u32;
    }

    /// The token two ids spell, made if need be.
    fn id_of_pair(&mut self, left: u32, right: u32) -> u32 {
        let halves = [&*self.tokens[left as usize], &*self.tokens[right as usize]];
        let text: Box<[u8]> = halves.concat().into();
        let next = self.tokens.len() as u32;
        let id = *self.ids_of.entry(text.clone()).or_insert(next);
        if id == next {
            self.tokens.push(text);
        }
        id
    }

    fn increase(&mut self, left: u32, right: u32, word: u32, count: u64) {
        let slot = self.pairs.slot(left, right) as usize;
        if slot == self.counts.len() {
            self.counts.push(0);
            self.places.push(Vec::new());
            self.raised_at.push(0);
        }
        self.counts[slot] += count;
        if self.raised_at[slot] != self.step {
            self.raised_at[slot] = self.step;
            self.raised.push(slot as u32);
        }
        if self.places[slot].last() != Some(&word) {
            self.places[slot].push(word);
        }
    }

    fn decrease(&mut self, left: u32, right: u32, count: u64) {
        let slot = self.pairs.slot(left, right) as usize;
        self.counts[slot] -= count;
    }

    /// Queues the pairs whose count rose in this step, which ends.
    fn queue_raised(&mut self) {
        self.step += 1;
        for slot in std::mem::take(&mut self.raised) {
            let (count, pair) = (self.counts[slot as usize], self.pairs.keys[slot as usize]);
            if count > 0 {
                self.heap
                    .push((count, Reverse(((pair >> 32) as u32, pair as u32)), slot));
            }
        }
    }
}

/// Pair of ids -> consecutive numbers, in order of appearance.
struct PairTable {
    slots: Vec<(u64, u32)>,
    keys: Vec<u64>,
}

impl Default for PairTable {
    fn default() -> Self {
        Self {
            slots: vec![(u64::MAX, 0); 1 << 16],
            keys: Vec::new(),
        }
    }
}

impl PairTable {
    fn slot(&mut self, left: u32, right: u32) -> u32 {
        let key = u64::from(left) << 32 | u64::from(right);
        let at = self.find(key);
        if self.slots[at].0 == key {
            return self.slots[at].1;
        }
        let number = self.keys.len() as u32;
        self.slots[at] = (key, number);
        self.keys.push(key);
        if self.keys.len() * 2 > self.slots.len() {
            self.grow();
        }
        number
    }

    fn find(&self, key: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize & mask;
        while self.slots[at].0 != key && self.slots[at].0 != u64::MAX {
            at = (at + 1) & mask;
        }
        at
    }

    #[cold]
    fn grow(&mut self) {
        self.slots = vec![(u64::MAX, 0); self.slots.len() * 2];
        for (number, &key) in self.keys.iter().enumerate() {
            let at = self.find(key);
            self.slots[at] = (key, number as u32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition: count every pair of every word again at each step.
    fn slow(counted: &[(Vec<u8>, u64)], n_tokens: usize, min_count: u64) -> Vec<Merge> {
        let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        let mut words: Vec<(Vec<u32>, u64)> = counted
            .iter()
            .map(|(word, count)| (word.iter().map(|&b| u32::from(b)).collect(), *count))
            .collect();
        let mut merges = Vec::new();
        while tokens.len() < 256 + n_tokens {
            let mut counts = std::collections::BTreeMap::new();
            for (ids, count) in &words {
                for pair in ids.windows(2) {
                    *counts.entry((pair[0], pair[1])).or_insert(0_u64) += count;
                }
            }
            let best = counts
                .into_iter()
                .max_by_key(|&(pair, count)| (count, Reverse(pair)));
            let Some(((left, right), count)) = best.filter(|best| best.1 >= min_count) else {
                break;
            };
            let text = [&*tokens[left as usize], &*tokens[right as usize]].concat();
            let new_id = tokens
                .iter()
                .position(|token| *token == text)
                .unwrap_or(tokens.len()) as u32;
            if new_id as usize == tokens.len() {
                tokens.push(text);
            }
            merges.push(Merge { left, right, count });
            for (ids, _) in &mut words {
                let mut k = 0;
                while k + 1 < ids.len() {
                    if (ids[k], ids[k + 1]) == (left, right) {
                        ids.splice(k..k + 2, [new_id]);
                    }
                    k += 1;
                }
            }
        }
        merges
    }

    fn identity() -> [u32; 256] {
        std::array::from_fn(|byte| byte as u32)
    }

    #[test]
    fn equals_the_definition() {
        let mut state = 11_u64;
        for round in 0..40 {
            let mut text = Vec::new();
            for _ in 0..3000 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                text.push(b"aaaabbc \n\xC3"[(state >> 33) as usize % 10]);
            }
            let mut trainer = Trainer::new(Scanner::Qwen2, false);
            let documents: Vec<&[u8]> = text.chunks(700).collect();
            trainer.feed(&documents, 2);
            let goal = Goal {
                byte_ids: &identity(),
                n_tokens: 120,
                min_count: 1 + round % 3,
            };
            let found = trainer.train(&goal, &mut |_, _| ControlFlow::Continue(()));
            let expected = slow(&trainer.word_counts(), goal.n_tokens, goal.min_count);
            assert_eq!(found, Ok(Some(expected)));
        }
    }

    #[test]
    fn counts_are_exact_on_any_number_of_threads() {
        let texts: Vec<String> = (0..40_000)
            .map(|k| format!("hola {} una-palabra-muy-larga-{} ", k % 9000, k % 700))
            .collect();
        let documents: Vec<&[u8]> = texts.iter().map(String::as_bytes).collect();
        let count = |threads| {
            let mut trainer = Trainer::new(Scanner::Gpt2, false);
            trainer.feed(&documents[..20_000], threads);
            trainer.feed(&documents[20_000..], threads);
            trainer.word_counts()
        };
        let one = count(1);
        assert_eq!(count(3), one);
        let hola = one.iter().find(|(word, _)| word == b"hola");
        assert_eq!(hola.map(|(_, n)| *n), Some(40_000));
    }

    #[test]
    fn progress_may_stop_it() {
        let mut trainer = Trainer::new(Scanner::Gpt2, false);
        let text: Vec<u8> = (0..60_000_u32)
            .map(|k| b'a' + (k * k / 7 % 26) as u8)
            .collect();
        trainer.feed(&text.chunks(9).collect::<Vec<_>>(), 1);
        let goal = Goal {
            byte_ids: &identity(),
            n_tokens: 500,
            min_count: 1,
        };
        assert_eq!(
            trainer.train(&goal, &mut |_, _| ControlFlow::Break(())),
            Ok(None)
        );
    }

    #[test]
    fn nothing_to_learn() {
        let trainer = Trainer::new(Scanner::Gpt2, false);
        let goal = Goal {
            byte_ids: &identity(),
            n_tokens: 5,
            min_count: 1,
        };
        let found = trainer.train(&goal, &mut |_, _| ControlFlow::Continue(()));
        assert_eq!(found, Ok(Some(vec![])));
        let too_many = Goal {
            byte_ids: &identity(),
            n_tokens: MAX_IDS,
            min_count: 1,
        };
        assert!(trainer
            .train(&too_many, &mut |_, _| ControlFlow::Continue(()))
            .is_err());
    }
}
