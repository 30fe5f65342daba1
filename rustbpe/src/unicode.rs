//! Character classes of the regular expressions: `\p{L}`, `\p{N}`, `\s`, and everything else.

use crate::tables::{CLASS_BLOCKS, CLASS_INDEX, EXTRA_DIGITS};

/// Neither letter, number nor white space.
pub const OTHER: u8 = 0;
/// `\p{L}`
pub const LETTER: u8 = 1;
/// `\p{N}`
pub const NUMBER: u8 = 2;
/// `\s`
pub const SPACE: u8 = 3;

/// What `decode` gives for a byte that does not begin a valid character.
pub const INVALID: u32 = u32::MAX;

/// Classes of the 128 ASCII characters; the upper half is never read.
const ASCII: [u8; 256] = {
    let mut table = [OTHER; 256];
    let mut byte = 0;
    while byte < 128 {
        let b = byte as u8;
        table[byte] = if b.is_ascii_alphabetic() {
            LETTER
        } else if b.is_ascii_digit() {
            NUMBER
        } else if matches!(b, b' ' | 9..=13) {
            SPACE
        } else {
            OTHER
        };
        byte += 1;
    }
    table
};

/// Class and length in bytes of the character at `i`, which must be inside the text.
#[inline(always)]
pub fn class_at(text: &[u8], i: usize) -> (u8, usize) {
    let byte = text[i];
    if byte < 0x80 {
        return (ASCII[byte as usize], 1);
    }
    let (code, len) = decode(text, i);
    (class_of(code), len)
}

/// The same for SmolLM2, whose `Digits` step follows a newer Unicode than its regular expression.
#[inline(always)]
pub fn class_at_with_digits(text: &[u8], i: usize) -> (u8, usize) {
    let (class, len) = class_at(text, i);
    if class == OTHER && len > 1 && EXTRA_DIGITS.binary_search(&decode(text, i).0).is_ok() {
        return (NUMBER, len);
    }
    (class, len)
}

/// Class of a code point; `INVALID` and unassigned ones are `OTHER`.
#[inline]
pub fn class_of(code: u32) -> u8 {
    let Some(&block) = CLASS_INDEX.get((code >> 7) as usize) else {
        return OTHER;
    };
    let word = CLASS_BLOCKS[block as usize][((code >> 5) & 3) as usize];
    ((word >> ((code & 31) * 2)) & 3) as u8
}

/// Code point and length of the character at `i`, or `(INVALID, 1)`.
///
/// Lenient on purpose: surrogates and overlong forms decode to some number, which is `OTHER`.
#[inline]
pub fn decode(text: &[u8], i: usize) -> (u32, usize) {
    let tail = |k: usize| match text.get(i + k) {
        Some(&b) if b & 0xC0 == 0x80 => Some(u32::from(b & 0x3F)),
        _ => None,
    };
    let lead = u32::from(text[i]);
    let found = match lead {
        0..=0x7F => Some((lead, 1)),
        0xC2..=0xDF => tail(1).map(|a| ((lead & 0x1F) << 6 | a, 2)),
        0xE0..=0xEF => tail(1)
            .zip(tail(2))
            .map(|(a, b)| ((lead & 0x0F) << 12 | a << 6 | b, 3)),
        0xF0..=0xF4 => tail(1)
            .zip(tail(2))
            .zip(tail(3))
            .map(|((a, b), c)| ((lead & 0x07) << 18 | a << 12 | b << 6 | c, 4)),
        _ => None,
    };
    found.unwrap_or((INVALID, 1))
}

/// Sixteen bytes from `i` on, zeros past the end.
#[inline(always)]
pub fn load16(text: &[u8], i: usize) -> u128 {
    match text.get(i..i + 16) {
        Some(bytes) => u128::from_le_bytes(bytes.try_into().unwrap_or([0; 16])),
        None => load_tail(text, i),
    }
}

#[cold]
fn load_tail(text: &[u8], i: usize) -> u128 {
    let mut padded = [0; 16];
    let tail = &text[i.min(text.len())..];
    padded[..tail.len()].copy_from_slice(tail);
    u128::from_le_bytes(padded)
}

/// Bit 7 of every byte: where the masks below keep their answers.
pub const TOPS: u128 = spread(0x80);

/// Which of sixteen bytes belong to letters of ASCII or of U+00C0..U+00FF, in bit 7 of each.
///
/// That is all of Spanish but ª and º; whoever meets another byte >= 0x80 must look it up. A 0xC3
/// in byte 15 counts as a letter: its other half is out of sight. Plain integer arithmetic on all
/// bytes at once: no byte's sum passes 0xFF, so nothing carries into the next.
#[inline(always)]
pub fn latin_letters(x: u128) -> u128 {
    let lower = (x & !TOPS) | spread(0x20);
    let from_a = lower + spread(0x80 - b'a');
    let past_z = lower + spread(0x80 - b'z' - 1);
    let ascii = from_a & !past_z & !x & TOPS;
    let first = equal(x, 0xC3);
    let second = first << 8;
    let sign = second & equal(x | spread(0x20), 0xB7); // × is C3 97 and ÷ is C3 B7
    (ascii | first | second) & !(sign | sign >> 8)
}

/// Bit 7 of the bytes that equal `byte`.
#[inline(always)]
fn equal(x: u128, byte: u8) -> u128 {
    let difference = x ^ spread(byte);
    !(((difference & !TOPS) + !TOPS) | difference) & TOPS
}

const fn spread(byte: u8) -> u128 {
    u128::from_le_bytes([byte; 16])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slow_latin_letters(x: u128) -> u128 {
        let bytes = x.to_le_bytes();
        let mut flags = [0_u8; 16];
        for (k, &byte) in bytes.iter().enumerate() {
            let next = bytes.get(k + 1).copied().unwrap_or(0);
            let is_sign = |byte: u8| byte == 0x97 || byte == 0xB7;
            let is_second = k > 0 && bytes[k - 1] == 0xC3 && !is_sign(byte);
            if byte.is_ascii_alphabetic() || (byte == 0xC3 && !is_sign(next)) || is_second {
                flags[k] = 0x80;
            }
        }
        u128::from_le_bytes(flags)
    }

    #[test]
    fn masks_equal_their_definition() {
        let interesting = [
            0, 0x20, b'@', b'A', b'Z', b'[', b'`', b'a', b'z', b'{', 0x7F, 0x80, 0x97, 0xB7, 0xC2,
            0xC3, 0xC4, 0xFF,
        ];
        let mut state: u64 = 1;
        for round in 0..200_000 {
            let bytes: [u8; 16] = std::array::from_fn(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let draw = (state >> 33) as usize;
                if round % 2 == 0 {
                    draw as u8
                } else {
                    interesting[draw % interesting.len()]
                }
            });
            let x = u128::from_le_bytes(bytes);
            // Two 0xC3 in a row are not UTF-8: what they give only has to be harmless.
            if !bytes.windows(2).any(|pair| pair == [0xC3, 0xC3]) {
                assert_eq!(latin_letters(x), slow_latin_letters(x), "{bytes:x?}");
            }
        }
    }

    #[test]
    fn latin_letters_agree_with_the_table() {
        for code in 0x20..0x100_u32 {
            let mut buffer = [0; 4];
            let text = char::from_u32(code).map(|c| c.encode_utf8(&mut buffer).as_bytes());
            let text = text.unwrap_or_default();
            let others = !latin_letters(load16(text, 0)) & TOPS;
            let is_latin = class_of(code) == LETTER && !matches!(code, 0xAA | 0xB5 | 0xBA);
            assert_eq!(
                others.trailing_zeros() as usize / 8 >= text.len(),
                is_latin,
                "{code:x}"
            );
        }
    }

    #[test]
    fn decode_equals_std_on_valid_text() {
        for code in 0..=0x10_FFFF_u32 {
            let Some(c) = char::from_u32(code) else {
                continue;
            };
            let mut buffer = [0; 4];
            let text = c.encode_utf8(&mut buffer).as_bytes();
            assert_eq!(decode(text, 0), (code, text.len()));
        }
    }

    #[test]
    fn decode_survives_any_bytes() {
        for bytes in [
            &[0xC3][..],
            &[0xE2, 0x80],
            &[0xF0, 0x9F, 0x98],
            &[0xFF],
            &[0x80, 0x80],
        ] {
            assert_eq!(decode(bytes, 0), (INVALID, 1));
        }
        assert_eq!(class_at(&[0xFF], 0), (OTHER, 1));
    }
}
