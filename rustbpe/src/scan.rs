//! Pre-tokenizers: where each piece of text ends. Each is a regular expression written by hand.
//!
//! The expressions (`tests/unit/test_rustbpe.py` holds them against the `regex` package and
//! against `tokenizers`):
//!
//! - GPT-2: `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
//! - SmolLM2: every number character is a piece; GPT-2 on what lies between them
//! - Qwen2: `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|
//!   ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
//! - Llama 3: the same with `\p{N}{1,3}`
//!
//! Every alternative is tried at the same place, so a piece depends only on what follows it, and
//! each family is one function from a start to an end.

use crate::unicode::{
    class_at, class_at_with_digits, class_of, decode, latin_letters, load16, INVALID, LETTER,
    NUMBER, OTHER, SPACE, TOPS,
};

/// The families this crate knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scanner {
    /// OpenAI's GPT-2.
    Gpt2,
    /// SmolLM2: digits one by one, then GPT-2.
    SmolLm2,
    /// Qwen2 and Qwen2.5.
    Qwen2,
    /// Llama 3, like cl100k.
    Llama3,
}

impl Scanner {
    /// The scanner a number of the C ABI stands for.
    pub fn from_code(code: u32) -> Option<Self> {
        [Self::Gpt2, Self::SmolLm2, Self::Qwen2, Self::Llama3]
            .get(code as usize)
            .copied()
    }

    /// Ends of all pieces, in order; the last is the length of the text.
    pub fn ends(self, text: &[u8]) -> Vec<usize> {
        match self {
            Self::Gpt2 => ends::<Gpt2>(text),
            Self::SmolLm2 => ends::<SmolLm2>(text),
            Self::Qwen2 => ends::<Qwen2>(text),
            Self::Llama3 => ends::<Llama3>(text),
        }
    }
}

/// A place after `from` where cutting the text changes neither its pieces nor its NFC, in any family.
///
/// Before a space that follows something else: no alternative of any expression goes from a
/// character that is not white space to a space, so a piece ends there whatever lies around. Or
/// after a single line feed between two characters that are not white space: a piece ends there
/// too, with or without it, and one blank is one piece before a word and before an end. Neither
/// character takes part in any composition. `tests::safe_cuts_change_nothing` tries every short text.
pub fn safe_cut(text: &[u8], from: usize) -> Option<usize> {
    (from.max(1)..text.len().saturating_sub(1)).find_map(|k| match text[k] {
        b' ' if !ends_in_space(text, k) => Some(k),
        b'\n' if !ends_in_space(text, k) && class_at(text, k + 1).0 != SPACE => Some(k + 1),
        _ => None,
    })
}

/// Whether what ends before `end` is white space, or no whole character.
fn ends_in_space(text: &[u8], end: usize) -> bool {
    let is_tail = |byte: u8| byte & 0xC0 == 0x80;
    let Some(len) = (1..=end.min(4)).find(|&len| !is_tail(text[end - len])) else {
        return true;
    };
    let (code, found) = decode(text, end - len);
    code == INVALID || found != len || class_of(code) == SPACE
}

fn ends<F: Family>(text: &[u8]) -> Vec<usize> {
    let mut found = Vec::new();
    let mut i = 0;
    while i < text.len() {
        i = F::piece_end(text, i, load16(text, i));
        found.push(i);
    }
    found
}

/// One regular expression.
pub trait Family {
    /// 1 for the ASCII bytes that may open a piece whose rest is letters.
    const OPENS_WORD: [u8; 256];

    /// End of the piece that starts at `i`, by the book.
    fn next(text: &[u8], i: usize) -> usize;

    /// The same; `window` must be `load16(text, i)`.
    ///
    /// Most pieces are a space and up to 14 letters of ASCII or Latin-1: those need no loop and no
    /// branch per character. The rest goes to `next`.
    #[inline(always)]
    fn piece_end(text: &[u8], i: usize, window: u128) -> usize {
        let opens = u32::from(Self::OPENS_WORD[(window & 0xFF) as usize]);
        let others = !(latin_letters(window) | u128::from(opens) << 7) & TOPS;
        let stop = others & others.wrapping_neg(); // the first of them; 0 if there is none
        let len = stop.trailing_zeros() / 8;
        if len > opens && stop & !window != 0 {
            return (i + len as usize).min(text.len());
        }
        Self::next(text, i)
    }
}

/// See the module's expressions.
pub struct Gpt2;
/// See the module's expressions.
pub struct SmolLm2;
/// See the module's expressions.
pub struct Qwen2;
/// See the module's expressions.
pub struct Llama3;

impl Family for Gpt2 {
    const OPENS_WORD: [u8; 256] = only_space();

    #[inline]
    fn next(text: &[u8], i: usize) -> usize {
        gpt2_end::<false>(text, i)
    }
}

impl Family for SmolLm2 {
    const OPENS_WORD: [u8; 256] = only_space();

    #[inline]
    fn next(text: &[u8], i: usize) -> usize {
        gpt2_end::<true>(text, i)
    }
}

impl Family for Qwen2 {
    const OPENS_WORD: [u8; 256] = signs_and_blanks();

    #[inline]
    fn next(text: &[u8], i: usize) -> usize {
        cl100k_end::<1>(text, i)
    }
}

impl Family for Llama3 {
    const OPENS_WORD: [u8; 256] = signs_and_blanks();

    #[inline]
    fn next(text: &[u8], i: usize) -> usize {
        cl100k_end::<3>(text, i)
    }
}

const fn only_space() -> [u8; 256] {
    let mut table = [0; 256];
    table[b' ' as usize] = 1;
    table
}

/// `[^\r\n\p{L}\p{N}]` in ASCII, but for the apostrophe, which may open a contraction.
const fn signs_and_blanks() -> [u8; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 128 {
        let b = byte as u8;
        let opens = !b.is_ascii_alphanumeric() && b != b'\r' && b != b'\n' && b != b'\'';
        table[byte] = opens as u8;
        byte += 1;
    }
    table
}

/// GPT-2, or SmolLM2 when `SINGLE_DIGITS`.
fn gpt2_end<const SINGLE_DIGITS: bool>(text: &[u8], i: usize) -> usize {
    if text[i] == b'\'' {
        if let Some(end) = contraction_end(text, i, false) {
            return end;
        }
    }
    let start = i + usize::from(text[i] == b' ' && i + 1 < text.len());
    let look = if SINGLE_DIGITS {
        class_at_with_digits
    } else {
        class_at
    };
    let (class, len) = look(text, start);
    match class {
        LETTER => letters_end(text, start + len),
        OTHER => class_end(text, start + len, OTHER, look),
        NUMBER if !SINGLE_DIGITS => class_end(text, start + len, NUMBER, look),
        NUMBER if start == i => i + len,
        _ => {
            let blank = blank_run(text, i);
            // With single digits the text is cut before the digit: `(?!\S)` sees an end there.
            let at_cut =
                SINGLE_DIGITS && blank.end < text.len() && look(text, blank.end).0 == NUMBER;
            if at_cut {
                blank.end
            } else {
                leave_one_blank(text, i, &blank)
            }
        }
    }
}

/// Qwen2 (`DIGITS` = 1) and Llama 3 (3).
fn cl100k_end<const DIGITS: usize>(text: &[u8], i: usize) -> usize {
    let byte = text[i];
    if byte == b'\'' {
        if let Some(end) = contraction_end(text, i, true) {
            return end;
        }
    }
    let (class, len) = class_at(text, i);
    match class {
        LETTER => return letters_end(text, i + len),
        NUMBER => return number_end::<DIGITS>(text, i + len),
        _ => {}
    }
    let next = i + len;
    if byte != b'\r' && byte != b'\n' && next < text.len() {
        let (class_after, len_after) = class_at(text, next);
        if class_after == LETTER {
            return letters_end(text, next + len_after);
        }
        if class == OTHER || (byte == b' ' && class_after == OTHER) {
            return newlines_end(text, class_end(text, next, OTHER, class_at));
        }
    } else if class == OTHER {
        return next;
    }
    let blank = blank_run(text, i);
    if blank.after_newline > i {
        return blank.after_newline;
    }
    leave_one_blank(text, i, &blank)
}

/// End of `'s`, `'t`, `'re`, `'ve`, `'m`, `'ll` or `'d` at `i`, in any case if asked.
fn contraction_end(text: &[u8], i: usize, any_case: bool) -> Option<usize> {
    let at = |k: usize| {
        let byte = text.get(i + k).copied().unwrap_or(0);
        if any_case {
            byte.to_ascii_lowercase()
        } else {
            byte
        }
    };
    match (at(1), at(2)) {
        (b's' | b't' | b'm' | b'd', _) => Some(i + 2),
        (b'r' | b'v', b'e') | (b'l', b'l') => Some(i + 3),
        (0xC5, 0xBF) if any_case => Some(i + 3), // ſ folds to s
        _ => None,
    }
}

/// End of the letters from `i` on.
fn letters_end(text: &[u8], mut i: usize) -> usize {
    while i < text.len() {
        let window = load16(text, i);
        let others = !latin_letters(window) & TOPS;
        let is_cut = others == 0 && (window >> 120) as u8 == 0xC3; // byte 15 is half a letter
        i += others.trailing_zeros() as usize / 8 - usize::from(is_cut);
        if i >= text.len() {
            return text.len();
        }
        let (class, len) = class_at(text, i);
        if class != LETTER {
            return i;
        }
        i += len;
    }
    i
}

/// End of the characters of one class from `i` on.
#[inline(always)]
fn class_end(
    text: &[u8],
    mut i: usize,
    class: u8,
    look: impl Fn(&[u8], usize) -> (u8, usize),
) -> usize {
    while i < text.len() {
        let (found, len) = look(text, i);
        if found != class {
            return i;
        }
        i += len;
    }
    i
}

/// End of up to `DIGITS` numbers, the first of which ends at `i`.
fn number_end<const DIGITS: usize>(text: &[u8], mut i: usize) -> usize {
    for _ in 1..DIGITS {
        if i >= text.len() {
            return i;
        }
        let (class, len) = class_at(text, i);
        if class != NUMBER {
            return i;
        }
        i += len;
    }
    i
}

fn newlines_end(text: &[u8], mut i: usize) -> usize {
    while matches!(text.get(i), Some(b'\r' | b'\n')) {
        i += 1;
    }
    i
}

/// A run of white space.
struct Blank {
    end: usize,
    last: usize,
    after_newline: usize,
}

fn blank_run(text: &[u8], start: usize) -> Blank {
    let mut blank = Blank {
        end: start,
        last: start,
        after_newline: start,
    };
    while blank.end < text.len() {
        let (class, len) = class_at(text, blank.end);
        if class != SPACE {
            break;
        }
        blank.last = blank.end;
        blank.end += len;
        if matches!(text[blank.last], b'\r' | b'\n') {
            blank.after_newline = blank.end;
        }
    }
    blank
}

/// `\s+(?!\S)|\s+`: before a word, the last blank stays for it, unless it is the only one.
fn leave_one_blank(text: &[u8], start: usize, blank: &Blank) -> usize {
    if blank.end == text.len() || blank.last == start {
        blank.end
    } else {
        blank.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nfc::normalize;

    fn pieces(scanner: Scanner, text: &str) -> Vec<String> {
        let mut start = 0;
        let cut = |end| {
            let piece = text[start..end].to_owned();
            start = end;
            piece
        };
        scanner.ends(text.as_bytes()).into_iter().map(cut).collect()
    }

    #[test]
    fn worked_examples() {
        let text = "¿Qué  tal?\n\n it's 1998";
        assert_eq!(
            pieces(Scanner::Gpt2, text),
            ["¿", "Qué", " ", " tal", "?", "\n\n", " it", "'s", " 1998"]
        );
        assert_eq!(
            pieces(Scanner::SmolLm2, text),
            ["¿", "Qué", " ", " tal", "?", "\n\n", " it", "'s", " ", "1", "9", "9", "8"]
        );
        assert_eq!(
            pieces(Scanner::Qwen2, text),
            ["¿Qué", " ", " tal", "?\n\n", " it", "'s", " ", "1", "9", "9", "8"]
        );
        assert_eq!(
            pieces(Scanner::Llama3, text),
            ["¿Qué", " ", " tal", "?\n\n", " it", "'s", " ", "199", "8"]
        );
    }

    #[test]
    fn contractions_in_any_case() {
        assert_eq!(
            pieces(Scanner::Qwen2, "I'M I'LL a'ſx"),
            ["I", "'M", " I", "'LL", " a", "'ſ", "x"]
        );
        assert_eq!(pieces(Scanner::Gpt2, "I'M"), ["I", "'", "M"]);
    }

    #[test]
    fn the_short_way_equals_the_long_one() {
        let alphabet = [
            "a", "á", "Z", "ñ", "Ñ", "×", "ª", "ж", " ", "\n", "'", ".", "7", "\u{3000}",
            "e\u{301}",
        ];
        let mut state = 7_u64;
        for _ in 0..20_000 {
            let mut text = String::new();
            for _ in 0..40 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                text.push_str(alphabet[(state >> 33) as usize % alphabet.len()]);
            }
            compare::<Gpt2>(text.as_bytes());
            compare::<SmolLm2>(text.as_bytes());
            compare::<Qwen2>(text.as_bytes());
            compare::<Llama3>(text.as_bytes());
        }
    }

    fn compare<F: Family>(text: &[u8]) {
        let mut i = 0;
        while i < text.len() {
            let end = F::next(text, i);
            assert_eq!(F::piece_end(text, i, load16(text, i)), end);
            i = end;
        }
    }

    #[test]
    fn any_bytes_are_covered() {
        let mut state = 1_u64;
        for _ in 0..20_000 {
            let text: Vec<u8> = (0..40)
                .map(|_| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    (state >> 40) as u8
                })
                .collect();
            for code in 0..4 {
                let ends = Scanner::from_code(code)
                    .map(|s| s.ends(&text))
                    .unwrap_or_default();
                assert_eq!(ends.last(), Some(&text.len()));
                assert!(ends.windows(2).all(|pair| pair[0] < pair[1]));
            }
        }
    }

    /// Every text of up to five of these, and every safe place in it.
    #[test]
    fn safe_cuts_change_nothing() {
        let alphabet = [
            "a", " ", "\n", "\r", "\t", ".", "1", "'", "s", "é", "\u{3000}", "\u{301}", "中",
        ];
        let mut n_cuts = 0;
        for number in 0..alphabet.len().pow(5) {
            let mut text = String::new();
            let mut rest = number;
            for _ in 0..5 {
                text.push_str(alphabet[rest % alphabet.len()]);
                rest /= alphabet.len();
            }
            for frame in [text.clone(), format!(" {text} ")] {
                n_cuts += check_cuts(frame.as_bytes());
            }
        }
        assert!(n_cuts > 150_000, "{n_cuts}");
    }

    #[test]
    fn safe_cuts_in_any_bytes() {
        let bytes = [
            b'a', b' ', b'\n', 0xC3, 0xA9, 0xE2, 0x80, 0x85, 0xFF, 0xC2, 0xF0,
        ];
        for number in 0..bytes.len().pow(5) {
            let text: Vec<u8> = (0..5)
                .scan(number, |rest, _| {
                    let byte = bytes[*rest % bytes.len()];
                    *rest /= bytes.len();
                    Some(byte)
                })
                .collect();
            check_cuts(&text);
        }
    }

    fn check_cuts(text: &[u8]) -> usize {
        let (mut from, mut n_cuts) = (0, 0);
        while let Some(at) = safe_cut(text, from) {
            let (head, tail) = text.split_at(at);
            for code in 0..4 {
                let scanner = Scanner::from_code(code).expect("four scanners");
                let mut joined = scanner.ends(head);
                joined.extend(scanner.ends(tail).into_iter().map(|end| at + end));
                assert_eq!(joined, scanner.ends(text), "{code} {text:?} {at}");
            }
            let normal = [normalize(head), normalize(tail)].concat();
            assert_eq!(normal, &*normalize(text), "{text:?} {at}");
            (from, n_cuts) = (at + 1, n_cuts + 1);
        }
        n_cuts
    }
}
