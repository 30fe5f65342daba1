//! Documents to ids, on several threads.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::cache::{Cache, Sink, INLINE_BYTES};
use crate::model::Model;
use crate::nfc;
use crate::scan::{safe_cut, Family, Gpt2, Llama3, Qwen2, Scanner, SmolLm2};
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
#[derive(Debug, PartialEq, Eq)]
pub struct Batch {
    /// Ids of all documents.
    pub ids: Vec<u32>,
    /// Where each document starts, and one more for the end.
    pub offsets: Vec<i64>,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            ids: Vec::new(),
            offsets: vec![0],
        }
    }
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
        let mut batch = Batch::default();
        self.encode_onto(documents, threads, &mut batch);
        batch
    }

    /// The same, after what a batch holds already.
    ///
    /// On one thread the ids are written once, in their place. On several each task has a buffer,
    /// copied as soon as its turn comes, so that the buffers never add up to the text.
    pub fn encode_onto(&self, documents: &[&[u8]], threads: usize, batch: &mut Batch) {
        let segments = segments(documents);
        let tasks = split(&segments);
        let threads = worker_count(threads).min(tasks.len());
        if threads <= 1 {
            let mut cache = self.take_cache();
            self.encode_run(&segments, &mut cache, batch);
            self.pool().push(cache);
            return;
        }
        let next = AtomicUsize::new(0);
        let turns = Turns::new(batch);
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let mut cache = self.take_cache();
                    loop {
                        let k = next.fetch_add(1, Ordering::Relaxed);
                        let Some(task) = tasks.get(k) else { break };
                        let mut part = Batch::default();
                        self.encode_run(&segments[task.clone()], &mut cache, &mut part);
                        turns.hand_in(k, part);
                    }
                    self.pool().push(cache);
                });
            }
        });
    }

    fn encode_run(&self, segments: &[Segment<'_>], cache: &mut Cache, batch: &mut Batch) {
        let bytes: usize = segments.iter().map(|segment| segment.text.len()).sum();
        let mut sink = Sink::onto(std::mem::take(&mut batch.ids), bytes * 2 / 7);
        for segment in segments {
            self.encode_into(segment.text, cache, &mut sink);
            if segment.ends_document {
                batch.offsets.push(sink.len() as i64);
            }
        }
        batch.ids = sink.into_ids();
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

/// A document, or a part of one that is cut where it changes nothing.
#[derive(Clone, Copy)]
pub struct Segment<'a> {
    /// UTF-8, more or less.
    pub text: &'a [u8],
    /// Whether the document ends with it.
    pub ends_document: bool,
}

/// The documents in order, those of several tasks cut into segments of about one.
pub fn segments<'a>(documents: &[&'a [u8]]) -> Vec<Segment<'a>> {
    let mut found = Vec::with_capacity(documents.len());
    for &document in documents {
        let mut text = document;
        while text.len() > 2 * TASK_BYTES {
            let Some(at) = safe_cut(text, TASK_BYTES) else {
                break;
            };
            let (head, tail) = text.split_at(at);
            found.push(Segment {
                text: head,
                ends_document: false,
            });
            text = tail;
        }
        found.push(Segment {
            text,
            ends_document: true,
        });
    }
    found
}

/// Runs of consecutive segments of about `TASK_BYTES`.
pub fn split(segments: &[Segment<'_>]) -> Vec<Range<usize>> {
    let mut tasks = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (k, segment) in segments.iter().enumerate() {
        bytes += segment.text.len();
        if bytes >= TASK_BYTES {
            tasks.push(start..k + 1);
            (start, bytes) = (k + 1, 0);
        }
    }
    if start < segments.len() {
        tasks.push(start..segments.len());
    }
    tasks
}

/// A poisoned lock only means that another thread panicked between whole updates.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Parts that come in any order and are joined in theirs.
struct Turns<'a>(Mutex<Waiting<'a>>);

struct Waiting<'a> {
    batch: &'a mut Batch,
    next: usize,
    early: HashMap<usize, Batch>,
}

impl<'a> Turns<'a> {
    fn new(batch: &'a mut Batch) -> Self {
        Self(Mutex::new(Waiting {
            batch,
            next: 0,
            early: HashMap::new(),
        }))
    }

    /// Appends part `k` if all before it are in, and those that waited for it.
    fn hand_in(&self, k: usize, part: Batch) {
        let mut guard = lock(&self.0);
        let waiting = &mut *guard;
        waiting.early.insert(k, part);
        while let Some(part) = waiting.early.remove(&waiting.next) {
            let base = waiting.batch.ids.len() as i64;
            let ends = part.offsets.iter().skip(1).map(|offset| base + offset);
            waiting.batch.offsets.extend(ends);
            waiting.batch.ids.extend_from_slice(&part.ids);
            waiting.next += 1;
        }
    }
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
        assert_eq!(
            encoder(Scanner::Gpt2).encode_batch(&[], 2),
            Batch::default()
        );
    }

    #[test]
    fn one_giant_document_is_shared_out_and_the_same() {
        let words = [
            "hola", " la", " niño", "\n", "--------", ". ", " 12345", "e\u{301}",
        ];
        let mut state = 11;
        let mut giant = Vec::new();
        while giant.len() < 9 * TASK_BYTES {
            giant.extend(words[random(&mut state) % words.len()].bytes());
        }
        let solid = vec![b'a'; 3 * TASK_BYTES]; // nowhere to cut
        let documents: [&[u8]; 4] = [b" hola", &giant, &solid, &giant[..777]];
        assert_eq!(segments(&documents).len(), 3 + 8);
        for code in 0..4 {
            let scanner = Scanner::from_code(code).expect("four scanners");
            let encoder = encoder(scanner);
            let mut cache = Cache::default();
            let mut whole = Batch::default();
            for text in documents {
                let segment = Segment {
                    text,
                    ends_document: true,
                };
                encoder.encode_run(&[segment], &mut cache, &mut whole);
            }
            for threads in [1, 2, 3] {
                assert_eq!(encoder.encode_batch(&documents, threads), whole);
            }
        }
    }

    #[test]
    fn appending_equals_one_call() {
        let encoder = encoder(Scanner::Qwen2);
        let documents: [&[u8]; 4] = [b"hola", b"", b" la hola", b"\xFF"];
        let mut batch = Batch::default();
        encoder.encode_onto(&documents[..1], 1, &mut batch);
        encoder.encode_onto(&documents[1..], 2, &mut batch);
        assert_eq!(batch, encoder.encode_batch(&documents, 1));
    }
}
