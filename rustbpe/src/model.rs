//! A vocabulary: the bytes of each id, and which pairs of ids merge, in what order.

use crate::error::BpeError;
use crate::scan::Scanner;

/// No merge, no id.
pub const NONE: u32 = u32::MAX;
/// Ids fit 21 bits, so that a pair and its rank fit one word of memory.
pub const MAX_IDS: usize = (1 << 21) - 1;
const MAX_MERGES: usize = (1 << 22) - 1;

/// A byte-level BPE vocabulary, checked.
pub struct Model {
    /// How text is cut into pieces.
    pub scanner: Scanner,
    /// Whether text is put in NFC first.
    pub is_nfc: bool,
    /// Whether a piece that is in the vocabulary skips the merges.
    pub ignores_merges: bool,
    /// The id of each single byte, or NONE: text loses the bytes the vocabulary lacks.
    pub byte_ids: [u32; 256],
    /// Whether some byte has no id.
    pub lacks_bytes: bool,
    pairs: Pairs,
    first_ranks: Vec<u32>,
    tokens: Tokens,
    whole: Option<WholeWords>,
}

/// What a model is made of.
pub struct Parts<'a> {
    /// How text is cut into pieces.
    pub scanner: Scanner,
    /// Whether text is put in NFC first.
    pub is_nfc: bool,
    /// Whether a piece that is in the vocabulary skips the merges.
    pub ignores_merges: bool,
    /// The id of each single byte, or NONE: text loses the bytes the vocabulary lacks.
    pub byte_ids: &'a [u32],
    /// All tokens' bytes, joined in id order.
    pub token_bytes: &'a [u8],
    /// Where each token starts in `token_bytes`, and one more for the end.
    pub token_offsets: &'a [u64],
    /// 1 for ids that text may become; 0 for holes and special tokens, which only decode.
    pub is_text: &'a [u8],
    /// Triples (left, right, merged) from the first merge to the last.
    pub merges: &'a [[u32; 3]],
}

impl Model {
    /// Checks the parts and builds the tables.
    pub fn new(parts: &Parts<'_>) -> Result<Self, BpeError> {
        let tokens = Tokens::new(parts.token_bytes, parts.token_offsets)?;
        if parts.is_text.len() != tokens.len() {
            return Err(BpeError::new(
                "la tabla de tipos no mide lo mismo que el vocabulario",
            ));
        }
        let byte_ids: [u32; 256] = parts
            .byte_ids
            .try_into()
            .map_err(|_| BpeError::new("hacen falta los identificadores de los 256 bytes"))?;
        for (byte, &id) in byte_ids.iter().enumerate() {
            if id != NONE && tokens.get(id) != Some(&[byte as u8][..]) {
                return Err(BpeError::new(format!(
                    "el identificador {id} no es el byte {byte}"
                )));
            }
        }
        check_merges(parts.merges, &tokens)?;
        let pairs = Pairs::new(parts.merges);
        let first_ranks = (0..1 << 16)
            .map(
                |two: usize| match (byte_ids[two >> 8], byte_ids[two & 255]) {
                    (NONE, _) | (_, NONE) => NONE,
                    (left, right) => pairs.rank(left, right),
                },
            )
            .collect();
        let whole = parts
            .ignores_merges
            .then(|| WholeWords::new(&tokens, parts.is_text));
        Ok(Self {
            scanner: parts.scanner,
            is_nfc: parts.is_nfc,
            ignores_merges: parts.ignores_merges,
            lacks_bytes: byte_ids.contains(&NONE),
            byte_ids,
            pairs,
            first_ranks,
            tokens,
            whole,
        })
    }

    /// Rank of the merge of two ids, or NONE.
    #[inline]
    pub fn rank(&self, left: u32, right: u32) -> u32 {
        self.pairs.rank(left, right)
    }

    /// Rank of the merge of two bytes, or NONE.
    #[inline]
    pub fn byte_rank(&self, left: u8, right: u8) -> u32 {
        self.first_ranks[usize::from(left) << 8 | usize::from(right)]
    }

    /// The id a merge makes.
    #[inline]
    pub fn merged(&self, rank: u32) -> u32 {
        self.pairs.merged[rank as usize]
    }

    /// The id of a whole piece, if this family looks for it before merging.
    #[inline]
    pub fn whole_word(&self, piece: &[u8]) -> Option<u32> {
        self.whole.as_ref()?.get(piece, &self.tokens)
    }

    /// Bytes of an id; None outside the vocabulary.
    pub fn token(&self, id: u32) -> Option<&[u8]> {
        self.tokens.get(id)
    }

    /// Bytes of many ids, joined.
    pub fn decode(&self, ids: &[u32]) -> Result<Vec<u8>, BpeError> {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            let token = self.tokens.get(id).ok_or_else(|| {
                let last = self.tokens.len().saturating_sub(1);
                BpeError::new(format!(
                    "El token {id} no existe: el vocabulario va de 0 a {last}."
                ))
            })?;
            bytes.extend_from_slice(token);
        }
        Ok(bytes)
    }
}

fn check_merges(merges: &[[u32; 3]], tokens: &Tokens) -> Result<(), BpeError> {
    if merges.len() > MAX_MERGES {
        return Err(BpeError::new(format!("hay más de {MAX_MERGES} uniones")));
    }
    for (rank, &[left, right, merged]) in merges.iter().enumerate() {
        let spelt = tokens
            .get(left)
            .zip(tokens.get(right))
            .zip(tokens.get(merged));
        let fits = spelt.is_some_and(|((l, r), m)| {
            l.len() + r.len() == m.len() && m.starts_with(l) && m.ends_with(r) && !l.is_empty()
        });
        if !fits {
            let text = format!("la unión {rank} ({left} + {right} = {merged}) no encaja");
            return Err(BpeError::new(text));
        }
    }
    Ok(())
}

/// Bytes of every id.
struct Tokens {
    bytes: Vec<u8>,
    offsets: Vec<u32>,
}

impl Tokens {
    fn new(bytes: &[u8], offsets: &[u64]) -> Result<Self, BpeError> {
        let is_sorted = offsets.windows(2).all(|pair| pair[0] <= pair[1]);
        let spans = offsets.first() == Some(&0) && offsets.last() == Some(&(bytes.len() as u64));
        if !is_sorted || !spans || bytes.len() > u32::MAX as usize {
            return Err(BpeError::new(
                "la tabla de bytes del vocabulario está mal formada",
            ));
        }
        if offsets.len() - 1 > MAX_IDS {
            return Err(BpeError::new(format!(
                "el vocabulario pasa de {MAX_IDS} tokens"
            )));
        }
        let offsets = offsets.iter().map(|&offset| offset as u32).collect();
        Ok(Self {
            bytes: bytes.to_vec(),
            offsets,
        })
    }

    fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    fn get(&self, id: u32) -> Option<&[u8]> {
        let start = *self.offsets.get(id as usize)? as usize;
        let end = *self.offsets.get(id as usize + 1)? as usize;
        self.bytes.get(start..end)
    }
}

/// Pair of ids -> rank, in one 64-bit word a pair: 21 + 21 bits of ids, 22 of rank.
///
/// Most look-ups find nothing, so the table is less than half full and a miss usually ends at
/// its first slot.
struct Pairs {
    slots: Vec<u64>,
    shift: u32,
    merged: Vec<u32>,
}

const EMPTY: u64 = u64::MAX;

impl Pairs {
    fn new(merges: &[[u32; 3]]) -> Self {
        let bits = usize::BITS - (merges.len() * 2).max(16).leading_zeros();
        let mut table = Self {
            slots: vec![EMPTY; 1 << bits],
            shift: 64 - bits,
            merged: merges.iter().map(|merge| merge[2]).collect(),
        };
        for (rank, &[left, right, _]) in merges.iter().enumerate() {
            table.insert(left, right, rank as u64);
        }
        table
    }

    /// A pair listed twice keeps its last rank, as in `tokenizers`.
    fn insert(&mut self, left: u32, right: u32, rank: u64) {
        let key = Self::key(left, right);
        let mut slot = self.home(key);
        while self.slots[slot] != EMPTY && self.slots[slot] >> 22 != key {
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        self.slots[slot] = key << 22 | rank;
    }

    #[inline]
    fn rank(&self, left: u32, right: u32) -> u32 {
        let key = Self::key(left, right);
        let mut slot = self.home(key);
        loop {
            let found = self.slots[slot];
            if found >> 22 == key {
                return (found & ((1 << 22) - 1)) as u32;
            }
            if found == EMPTY {
                return NONE;
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
    }

    #[inline]
    fn key(left: u32, right: u32) -> u64 {
        u64::from(left) << 21 | u64::from(right)
    }

    #[inline]
    fn home(&self, key: u64) -> usize {
        (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> self.shift) as usize
    }
}

/// Piece of text -> id, for families that try whole pieces before merging.
struct WholeWords {
    slots: Vec<u32>,
    shift: u32,
}

impl WholeWords {
    fn new(tokens: &Tokens, is_text: &[u8]) -> Self {
        let bits = usize::BITS - (tokens.len() * 2).max(16).leading_zeros();
        let mut table = Self {
            slots: vec![NONE; 1 << bits],
            shift: 64 - bits,
        };
        for (id, _) in is_text.iter().enumerate().filter(|(_, &flag)| flag != 0) {
            let word = tokens.get(id as u32).unwrap_or_default();
            let mut slot = (hash_bytes(word) >> table.shift) as usize;
            while table.slots[slot] != NONE {
                slot = (slot + 1) & (table.slots.len() - 1);
            }
            table.slots[slot] = id as u32;
        }
        table
    }

    fn get(&self, piece: &[u8], tokens: &Tokens) -> Option<u32> {
        let mut slot = (hash_bytes(piece) >> self.shift) as usize;
        loop {
            let id = self.slots[slot];
            if id == NONE {
                return None;
            }
            if tokens.get(id) == Some(piece) {
                return Some(id);
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
    }
}

/// A quick hash whose high bits are good.
#[inline]
pub fn hash_bytes(bytes: &[u8]) -> u64 {
    const K: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut hash = (bytes.len() as u64).wrapping_mul(K);
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let word = u64::from_le_bytes(chunk.try_into().unwrap_or([0; 8]));
        hash = (hash ^ word).wrapping_mul(K).rotate_left(29);
    }
    let mut last = [0; 8];
    last[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    hash = (hash ^ u64::from_le_bytes(last)).wrapping_mul(K);
    (hash ^ hash >> 32).wrapping_mul(K)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A vocabulary of the 256 bytes (id = byte) and the given merges, in order.
    pub fn toy(scanner: Scanner, merges: &[(&str, &str)]) -> Model {
        let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        let mut triples = Vec::new();
        for (left, right) in merges {
            let find = |word: &str| tokens.iter().position(|t| t == word.as_bytes());
            let (left_id, right_id) = (find(left).expect("left"), find(right).expect("right"));
            triples.push([left_id as u32, right_id as u32, tokens.len() as u32]);
            tokens.push([left.as_bytes(), right.as_bytes()].concat());
        }
        build(scanner, &tokens, &triples).expect("a sound toy")
    }

    pub fn build(
        scanner: Scanner,
        tokens: &[Vec<u8>],
        merges: &[[u32; 3]],
    ) -> Result<Model, BpeError> {
        let mut offsets = vec![0];
        for token in tokens {
            offsets.push(offsets.last().unwrap_or(&0) + token.len() as u64);
        }
        Model::new(&Parts {
            scanner,
            is_nfc: false,
            ignores_merges: false,
            byte_ids: &(0..256).collect::<Vec<_>>(),
            token_bytes: &tokens.concat(),
            token_offsets: &offsets,
            is_text: &vec![1; tokens.len()],
            merges,
        })
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let bytes: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        let with = |token: &[u8]| [bytes.clone(), vec![token.to_vec()]].concat();
        let cases = [
            (bytes[1..].to_vec(), vec![]),
            (with(b"ab"), vec![[97, 98, 257]]),
            (with(b"ab"), vec![[97, 99, 256]]),
            (with(b"ab"), vec![[97, u32::MAX, 256]]),
            (with(b""), vec![[256, 97, 97]]),
        ];
        for (tokens, merges) in cases {
            assert!(build(Scanner::Gpt2, &tokens, &merges).is_err());
        }
        assert!(build(Scanner::Gpt2, &with(b"ab"), &[[97, 98, 256]]).is_ok());
    }

    #[test]
    fn decodes_and_refuses_foreign_ids() {
        let model = toy(Scanner::Gpt2, &[("a", "b")]);
        assert_eq!(model.decode(&[256, 99]), Ok(b"abc".to_vec()));
        assert!(model.decode(&[257]).is_err());
    }
}
