//! Unicode NFC, for vocabularies that ask for it (Qwen2.5).
//!
//! Source: Unicode Standard Annex 15. The tables are those of the Unicode version that
//! `tokenizers` normalises with, which is older than the one of its regular expressions.

use std::borrow::Cow;

use crate::tables::{
    COMBINING, COMPOSED, DECOMPOSED_CHARS, DECOMPOSED_KEYS, DECOMPOSED_STARTS, SUSPECT_BLOCKS,
    SUSPECT_INDEX,
};
use crate::unicode::{decode, INVALID};

const HANGUL: u32 = 0xAC00;
const LEADS: u32 = 0x1100;
const VOWELS: u32 = 0x1161;
const TRAILS: u32 = 0x11A7;
const N_VOWELS: u32 = 21;
const N_TRAILS: u32 = 28;
const N_HANGUL: u32 = 11_172;

/// The text in NFC; borrowed when it already is, which a scan of its bytes usually tells.
///
/// Bytes that are not UTF-8 stay as they are, and nothing composes across them.
pub fn normalize(text: &[u8]) -> Cow<'_, [u8]> {
    // Characters below U+0300 are in NFC and combine with nothing before them.
    if !text.iter().fold(false, |seen, &byte| seen | (byte >= 0xCC)) || !has_suspect(text) {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut run = Vec::new();
    let mut i = 0;
    while i < text.len() {
        let (code, len) = decode(text, i);
        if code == INVALID || char::from_u32(code).is_none() {
            flush(&mut run, &mut out);
            out.extend_from_slice(&text[i..i + len]);
        } else {
            decompose(code, &mut run);
        }
        i += len;
    }
    flush(&mut run, &mut out);
    Cow::Owned(out)
}

fn has_suspect(text: &[u8]) -> bool {
    let mut i = 0;
    while i < text.len() {
        if text[i] < 0xCC {
            i += 1;
            continue;
        }
        let (code, len) = decode(text, i);
        if is_suspect(code) {
            return true;
        }
        i += len;
    }
    false
}

/// Whether NFC could change this character, or join it to an earlier one.
fn is_suspect(code: u32) -> bool {
    let Some(&block) = SUSPECT_INDEX.get((code >> 7) as usize) else {
        return false;
    };
    SUSPECT_BLOCKS[block as usize][((code >> 6) & 1) as usize] >> (code & 63) & 1 == 1
}

fn decompose(code: u32, run: &mut Vec<u32>) {
    let syllable = code.wrapping_sub(HANGUL);
    if syllable < N_HANGUL {
        run.push(LEADS + syllable / (N_VOWELS * N_TRAILS));
        run.push(VOWELS + syllable / N_TRAILS % N_VOWELS);
        if !syllable.is_multiple_of(N_TRAILS) {
            run.push(TRAILS + syllable % N_TRAILS);
        }
        return;
    }
    match DECOMPOSED_KEYS.binary_search(&code) {
        Ok(k) => {
            let (start, end) = (DECOMPOSED_STARTS[k], DECOMPOSED_STARTS[k + 1]);
            run.extend_from_slice(&DECOMPOSED_CHARS[start as usize..end as usize]);
        }
        Err(_) => run.push(code),
    }
}

/// Canonical combining class.
fn combining(code: u32) -> u8 {
    let after = COMBINING.partition_point(|range| range.0 <= code);
    match after.checked_sub(1).map(|k| COMBINING[k]) {
        Some((_, last, class)) if code <= last => class,
        _ => 0,
    }
}

/// Orders the marks of a decomposed run, composes it and writes it out.
fn flush(run: &mut Vec<u32>, out: &mut Vec<u8>) {
    let mut codes: Vec<(u8, u32)> = run.drain(..).map(|code| (combining(code), code)).collect();
    for marks in codes.split_mut(|(class, _)| *class == 0) {
        marks.sort_by_key(|(class, _)| *class); // stable
    }
    for code in compose(&codes) {
        let mut buffer = [0; 4];
        let c = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
        out.extend_from_slice(c.encode_utf8(&mut buffer).as_bytes());
    }
}

fn compose(codes: &[(u8, u32)]) -> Vec<u32> {
    let mut out: Vec<u32> = Vec::with_capacity(codes.len());
    let mut starter = None;
    let mut last_class = 0;
    for &(class, code) in codes {
        let is_adjacent = starter.is_some_and(|k| k + 1 == out.len());
        if let Some(k) = starter.filter(|_| is_adjacent || last_class < class) {
            if let Some(joined) = pair(out[k], code) {
                out[k] = joined;
                continue;
            }
        }
        if class == 0 {
            starter = Some(out.len());
        }
        last_class = class;
        out.push(code);
    }
    out
}

/// The primary composite of two characters.
fn pair(left: u32, right: u32) -> Option<u32> {
    let (lead, vowel) = (left.wrapping_sub(LEADS), right.wrapping_sub(VOWELS));
    if lead < 19 && vowel < N_VOWELS {
        return Some(HANGUL + (lead * N_VOWELS + vowel) * N_TRAILS);
    }
    let (syllable, trail) = (left.wrapping_sub(HANGUL), right.wrapping_sub(TRAILS));
    if syllable < N_HANGUL && syllable.is_multiple_of(N_TRAILS) && (1..N_TRAILS).contains(&trail) {
        return Some(left + trail);
    }
    let key = u64::from(left) << 32 | u64::from(right);
    let k = COMPOSED.binary_search_by_key(&key, |entry| entry.0).ok()?;
    Some(COMPOSED[k].1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nfc(text: &str) -> String {
        String::from_utf8(normalize(text.as_bytes()).into_owned()).expect("UTF-8")
    }

    #[test]
    fn worked_examples() {
        assert_eq!(nfc("man\u{303}ana"), "ma\u{f1}ana");
        assert_eq!(nfc("a\u{323}\u{302}"), "\u{1ead}");
        assert_eq!(nfc("a\u{302}\u{323}"), "\u{1ead}"); // marks are put in order first
        assert_eq!(nfc("\u{1112}\u{1161}\u{11ab}"), "\u{d55c}");
        assert_eq!(nfc("\u{958}"), "\u{915}\u{93c}"); // excluded from composition: it grows
        assert_eq!(nfc("e\u{5b0}\u{301}"), "\u{e9}\u{5b0}");
        assert_eq!(nfc("\u{301}e"), "\u{301}e");
    }

    #[test]
    fn what_is_in_nfc_is_borrowed() {
        for text in ["", "mañana", "中文 русский ελληνικά", "👩\u{200d}👧"] {
            assert!(
                matches!(normalize(text.as_bytes()), Cow::Borrowed(_)),
                "{text}"
            );
        }
    }

    #[test]
    fn other_bytes_stay() {
        assert_eq!(
            &*normalize(b"n\xCC\x83\xFFn\xCC\x83"),
            "\u{f1}"
                .as_bytes()
                .iter()
                .copied()
                .chain([0xFF])
                .chain("\u{f1}".bytes())
                .collect::<Vec<u8>>()
        );
        assert_eq!(&*normalize(b"n\xFF\xCC\x83"), b"n\xFF\xCC\x83");
    }
}
