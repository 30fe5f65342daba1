//! Pieces already encoded, one cache a thread.
//!
//! A piece of up to 15 bytes is its own key: 16 bytes with the length in the last one. Two entries
//! share a cache line; a new piece takes the second place and moves to the first when it is met
//! again, so words seen once do not push out common ones.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::merge::encode_piece;
use crate::model::{hash_bytes, Model};

/// Longest piece that is its own key.
pub const INLINE_BYTES: usize = 15;
const LINE_BITS: u32 = 16; // 65,536 lines of 64 bytes: 4 MiB a thread
const INLINE_IDS: usize = 5;
const ID_BITS: u32 = 21;
const ID_MASK: u64 = (1 << ID_BITS) - 1;
const COUNT_SHIFT: u32 = 56;
const SPILLED: u64 = 255;
const MAX_SPILL: usize = 1 << 20;
const MAX_LONG_PIECE: usize = 512;
const MAX_LONG_BYTES: usize = 4 << 20;

const KEY_MASKS: [u128; 16] = {
    let mut masks = [0; 16];
    let mut len = 1;
    while len < 16 {
        masks[len] = (1 << (8 * len)) - 1;
        len += 1;
    }
    masks
};

#[derive(Clone, Copy)]
struct Entry {
    key: u128,
    /// Up to five ids of 21 bits, three and two, and their count on top of `high`; or, when the
    /// count is `SPILLED`, where the ids are in `spill` (`low`) and how many (`high`).
    low: u64,
    high: u64,
}

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([Entry; 2]);

/// See the module.
pub struct Cache {
    lines: Vec<Line>,
    spill: Vec<u32>,
    long: HashMap<Box<[u8]>, Box<[u32]>, BuildHasherDefault<BytesHasher>>,
    long_bytes: usize,
    scratch: Vec<u32>,
}

impl Default for Cache {
    fn default() -> Self {
        let empty = Entry {
            key: 0,
            low: 0,
            high: 0,
        };
        Self {
            lines: vec![Line([empty; 2]); 1 << LINE_BITS],
            spill: Vec::new(),
            long: HashMap::default(),
            long_bytes: 0,
            scratch: Vec::new(),
        }
    }
}

/// The key of the first `len` bytes (1 to 15) of a window.
#[inline(always)]
pub fn inline_key(window: u128, len: usize) -> u128 {
    window & KEY_MASKS[len & 15] | (len as u128) << 120
}

/// A hash of a key, good in its high bits.
#[inline(always)]
pub fn hash_key(key: u128) -> u64 {
    let product = (key as u64 ^ 0x9E37_79B9_7F4A_7C15) as u128
        * ((key >> 64) as u64 ^ 0xD6E8_FEB8_6659_FD93) as u128;
    (product as u64 ^ (product >> 64) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

impl Cache {
    /// Writes the ids of a short piece, whose bytes are the first `len` of `window`.
    #[inline(always)]
    pub fn short(&mut self, model: &Model, window: u128, len: usize, out: &mut Sink) {
        let key = inline_key(window, len);
        let at = (hash_key(key) >> (64 - LINE_BITS)) as usize;
        let line = &mut self.lines[at];
        let entry = if line.0[0].key == key {
            line.0[0]
        } else if line.0[1].key == key {
            line.0.swap(0, 1);
            line.0[0]
        } else {
            self.learn(model, key, at)
        };
        let count = entry.high >> COUNT_SHIFT;
        if count == SPILLED {
            let start = entry.low as usize;
            let n = (entry.high & ID_MASK) as usize;
            out.extend(&self.spill[start..start + n]);
            return;
        }
        let room = out.room();
        room[0] = (entry.low & ID_MASK) as u32;
        room[1] = (entry.low >> ID_BITS & ID_MASK) as u32;
        room[2] = (entry.low >> (2 * ID_BITS) & ID_MASK) as u32;
        room[3] = (entry.high & ID_MASK) as u32;
        room[4] = (entry.high >> ID_BITS & ID_MASK) as u32;
        out.len += count as usize;
    }

    #[cold]
    #[inline(never)]
    fn learn(&mut self, model: &Model, key: u128, at: usize) -> Entry {
        let bytes = key.to_le_bytes();
        self.scratch.clear();
        encode_piece(model, &bytes[..usize::from(bytes[15])], &mut self.scratch);
        if self.spill.len() > MAX_SPILL {
            self.forget_short();
        }
        let entry = self.pack(key);
        let line = &mut self.lines[at];
        line.0[usize::from(line.0[0].key != 0)] = entry;
        entry
    }

    fn pack(&mut self, key: u128) -> Entry {
        let ids = &self.scratch;
        if ids.len() > INLINE_IDS {
            let low = self.spill.len() as u64;
            self.spill.extend_from_slice(ids);
            return Entry {
                key,
                low,
                high: SPILLED << COUNT_SHIFT | ids.len() as u64,
            };
        }
        let id = |k: usize| ids.get(k).map_or(0, |&id| u64::from(id));
        Entry {
            key,
            low: id(0) | id(1) << ID_BITS | id(2) << (2 * ID_BITS),
            high: id(3) | id(4) << ID_BITS | (ids.len() as u64) << COUNT_SHIFT,
        }
    }

    fn forget_short(&mut self) {
        self.lines.fill(Line(
            [Entry {
                key: 0,
                low: 0,
                high: 0,
            }; 2],
        ));
        self.spill.clear();
    }

    /// Writes the ids of a piece of more than 15 bytes.
    #[inline(never)]
    pub fn long(&mut self, model: &Model, piece: &[u8], out: &mut Sink) {
        if let Some(ids) = self.long.get(piece) {
            out.extend(ids);
            return;
        }
        self.scratch.clear();
        encode_piece(model, piece, &mut self.scratch);
        out.extend(&self.scratch);
        if piece.len() > MAX_LONG_PIECE {
            self.scratch.shrink_to(MAX_LONG_PIECE);
            return;
        }
        if self.long_bytes > MAX_LONG_BYTES {
            self.long.clear();
            self.long_bytes = 0;
        }
        self.long_bytes += piece.len() + 4 * self.scratch.len() + 64;
        self.long
            .insert(piece.into(), self.scratch.as_slice().into());
    }
}

/// Ids under way: a vector whose tail is writable room.
pub struct Sink {
    ids: Vec<u32>,
    len: usize,
}

impl Sink {
    /// After the ids there are, with room for about `n` more before it grows.
    pub fn onto(mut ids: Vec<u32>, n: usize) -> Self {
        let len = ids.len();
        if len == 0 && ids.capacity() == 0 {
            ids = vec![0; n + INLINE_IDS]; // zero pages: nothing is written yet
        } else {
            ids.resize(len + n + INLINE_IDS, 0);
        }
        Self { ids, len }
    }

    /// How many ids are written.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is written.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline(always)]
    fn room(&mut self) -> &mut [u32; INLINE_IDS] {
        if self.len + INLINE_IDS > self.ids.len() {
            self.grow(INLINE_IDS);
        }
        let room = &mut self.ids[self.len..self.len + INLINE_IDS];
        room.try_into().expect("a slice of that length")
    }

    fn extend(&mut self, ids: &[u32]) {
        if self.len + ids.len() > self.ids.len() {
            self.grow(ids.len());
        }
        self.ids[self.len..self.len + ids.len()].copy_from_slice(ids);
        self.len += ids.len();
    }

    #[cold]
    fn grow(&mut self, by: usize) {
        self.ids.resize(self.ids.len() * 3 / 2 + by, 0);
    }

    /// The ids, without the spare room.
    pub fn into_ids(mut self) -> Vec<u32> {
        self.ids.truncate(self.len);
        self.ids
    }
}

/// `hash_bytes` behind std's trait.
#[derive(Default)]
pub struct BytesHasher(u64);

impl Hasher for BytesHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 ^= hash_bytes(bytes);
    }

    fn write_usize(&mut self, _length: usize) {} // hash_bytes counts it already
}
