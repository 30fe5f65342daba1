//! Documents to ids, on several threads.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::cache::{Cache, Sink, INLINE_BYTES};
use crate::model::Model;
use crate::nfc;
use crate::scan::{Family, Gpt2, Llama3, Qwen2, Scanner, SmolLm2};
use crate::unicode::load16;

/// Text a thread takes at a time; small enough to share out, large enough to be worth a lock.
const TASK_BYTES: usize = 1 << 18;

/// A vocabulary and the caches its threads left behind.
pub struct Encoder {
    /// The vocabulary.
    pub model: Model,
    caches: Mutex<Vec<Cache>>,
}

/// Ids of many documents, joined: document k is `ids[offsets[k]..offsets[k + 1]]`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Ids of all documents.
    pub ids: Vec<u32>,
    /// Where each document starts, and one more for the end.
    pub offsets: Vec<i64>,
}

impl Encoder {
    /// Around a vocabulary, with cold caches.
    pub fn new(model: Model) -> Self {
        Self {
            model,
            caches: Mutex::default(),
        }
    }

    /// Encodes documents on up to `threads` threads (0: all cores); the result never depends on it.
    pub fn encode_batch(&self, documents: &[&[u8]], threads: usize) -> Batch {
        let tasks = split(documents);
        let threads = worker_count(threads).min(tasks.len());
        if threads <= 1 {
            let mut cache = self.take_cache();
            let batch = self.encode_run(documents, &mut cache);
            self.pool().push(cache);
            return batch;
        }
        let next = AtomicUsize::new(0);
        let results: Vec<Mutex<Batch>> = tasks.iter().map(|_| Mutex::default()).collect();
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let mut cache = self.take_cache();
                    loop {
                        let k = next.fetch_add(1, Ordering::Relaxed);
                        let Some(task) = tasks.get(k) else { break };
                        *lock(&results[k]) = self.encode_run(&documents[task.clone()], &mut cache);
                    }
                    self.pool().push(cache);
                });
            }
        });
        join(results, documents.len())
    }

    fn encode_run(&self, documents: &[&[u8]], cache: &mut Cache) -> Batch {
        let bytes: usize = documents.iter().map(|text| text.len()).sum();
        let mut sink = Sink::with_capacity(bytes * 2 / 7);
        let mut offsets = Vec::with_capacity(documents.len() + 1);
        offsets.push(0);
        for text in documents {
            self.encode_into(text, cache, &mut sink);
            offsets.push(sink.len() as i64);
        }
        Batch {
            ids: sink.into_ids(),
            offsets,
        }
    }

    fn encode_into(&self, text: &[u8], cache: &mut Cache, sink: &mut Sink) {
        let text = if self.model.is_nfc {
            nfc::normalize(text)
        } else {
            Cow::Borrowed(text)
        };
        match self.model.scanner {
            Scanner::Gpt2 => self.walk::<Gpt2>(&text, cache, sink),
            Scanner::SmolLm2 => self.walk::<SmolLm2>(&text, cache, sink),
            Scanner::Qwen2 => self.walk::<Qwen2>(&text, cache, sink),
            Scanner::Llama3 => self.walk::<Llama3>(&text, cache, sink),
        }
    }

    fn walk<F: Family>(&self, text: &[u8], cache: &mut Cache, sink: &mut Sink) {
        let mut start = 0;
        while start < text.len() {
            let window = load16(text, start);
            let end = F::piece_end(text, start, window);
            if end - start <= INLINE_BYTES {
                cache.short(&self.model, window, end - start, sink);
            } else {
                cache.long(&self.model, &text[start..end], sink);
            }
            start = end;
        }
    }

    fn take_cache(&self) -> Cache {
        let kept = self.pool().pop();
        kept.unwrap_or_default()
    }

    fn pool(&self) -> MutexGuard<'_, Vec<Cache>> {
        lock(&self.caches)
    }
}

/// Threads to use for a wish of `threads`; 0 means all the cores there are.
pub fn worker_count(threads: usize) -> usize {
    if threads > 0 {
        return threads;
    }
    thread::available_parallelism().map_or(1, usize::from)
}

/// Runs of consecutive documents of about `TASK_BYTES`.
pub fn split(documents: &[&[u8]]) -> Vec<Range<usize>> {
    let mut tasks = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (k, text) in documents.iter().enumerate() {
        bytes += text.len();
        if bytes >= TASK_BYTES {
            tasks.push(start..k + 1);
            (start, bytes) = (k + 1, 0);
        }
    }
    if start < documents.len() {
        tasks.push(start..documents.len());
    }
    tasks
}

/// A poisoned lock only means that another thread panicked between whole updates.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn join(results: Vec<Mutex<Batch>>, n_documents: usize) -> Batch {
    let parts: Vec<Batch> = results
        .into_iter()
        .map(|part| part.into_inner().unwrap_or_else(PoisonError::into_inner))
        .collect();
    let mut joined = Batch {
        ids: Vec::with_capacity(parts.iter().map(|part| part.ids.len()).sum()),
        offsets: Vec::with_capacity(n_documents + 1),
    };
    joined.offsets.push(0);
    for part in parts {
        let base = joined.ids.len() as i64;
        joined
            .offsets
            .extend(part.offsets.iter().skip(1).map(|offset| base + offset));
        joined.ids.extend_from_slice(&part.ids);
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::toy;

    fn encoder(scanner: Scanner) -> Encoder {
        let merges = [
            ("l", "a"),
            (" ", "la"),
            ("h", "o"),
            ("ho", "la"),
            (" ", "n"),
            ("-", "-"),
            ("--", "--"),
        ];
        Encoder::new(toy(scanner, &merges))
    }

    fn random(state: &mut u64) -> usize {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (*state >> 33) as usize
    }

    #[test]
    fn any_bytes_come_back_and_threads_change_nothing() {
        let words = [
            "hola",
            " la",
            " niño",
            "\n",
            "\r\n ",
            "--------------------------",
            " 12345",
            "ñ",
            "'s",
        ];
        let mut state = 5;
        for code in 0..4 {
            let encoder = encoder(Scanner::from_code(code).expect("four scanners"));
            let mut documents: Vec<Vec<u8>> = vec![vec![], vec![0xC3], vec![b'a'; 15], vec![0; 16]];
            for _ in 0..300 {
                let mut text = Vec::new();
                for _ in 0..random(&mut state) % 1000 {
                    match random(&mut state) % 8 {
                        0 => text.push(random(&mut state) as u8),
                        _ => text.extend(words[random(&mut state) % words.len()].bytes()),
                    }
                }
                documents.push(text);
            }
            let views: Vec<&[u8]> = documents.iter().map(Vec::as_slice).collect();
            let one = encoder.encode_batch(&views, 1);
            assert_eq!(encoder.encode_batch(&views, 4), one);
            assert_eq!(encoder.encode_batch(&views, 0), one);
            for (k, text) in documents.iter().enumerate() {
                let ids = &one.ids[one.offsets[k] as usize..one.offsets[k + 1] as usize];
                assert_eq!(encoder.model.decode(ids).as_ref(), Ok(text));
            }
        }
    }

    #[test]
    fn caches_do_not_change_ids() {
        let encoder = encoder(Scanner::Llama3);
        let texts: Vec<String> = (0..200_000).map(|k| format!(" hola{k:x}ñ")).collect();
        let views: Vec<&[u8]> = texts.iter().map(String::as_bytes).collect();
        let first = encoder.encode_batch(&views, 1);
        assert_eq!(encoder.encode_batch(&views, 1), first);
        for (k, text) in views.iter().enumerate().step_by(997) {
            let alone = self::encoder(Scanner::Llama3).encode_batch(&[text], 1);
            assert_eq!(
                alone.ids,
                first.ids[first.offsets[k] as usize..first.offsets[k + 1] as usize]
            );
        }
    }

    #[test]
    fn nothing_in_nothing_out() {
        let empty = Batch {
            ids: vec![],
            offsets: vec![0],
        };
        assert_eq!(encoder(Scanner::Gpt2).encode_batch(&[], 2), empty);
    }
}
