//! Random bytes and wrong arguments through the C ABI, as a foreign caller would.
//!
//! `ELCHAT_FUZZ_SECONDS=300 cargo test --release --test abi` goes on for minutes.

use std::ffi::{c_void, CStr};
use std::ptr::{null, null_mut};
use std::time::{Duration, Instant};

use elchat_bpe::encode::Encoder;
use elchat_bpe::ffi::*;

/// `ffi::EncoderSpec`, from outside.
#[repr(C)]
struct Spec {
    scanner: u32,
    flags: u32,
    n_tokens: u64,
    n_token_bytes: u64,
    n_merges: u64,
    token_bytes: *const u8,
    token_offsets: *const u64,
    is_text: *const u8,
    byte_ids: *const u32,
    merges: *const [u32; 3],
}

/// `ffi::ArraysView`, from outside.
#[repr(C)]
struct View {
    words: *const u32,
    n_words: u64,
    longs: *const i64,
    n_longs: u64,
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

fn last_error() -> String {
    // SAFETY: the library gives a text that lives until the next call of this thread.
    unsafe { CStr::from_ptr(elchat_bpe_last_error()) }
        .to_string_lossy()
        .into_owned()
}

/// A vocabulary of the bytes and of random merges; `damage` breaks a random number of its arrays.
fn new_encoder(random: &mut Random, damage: bool) -> Result<*mut Encoder, String> {
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    let mut merges = Vec::new();
    for _ in 0..random.below(300) {
        let (left, right) = (random.below(tokens.len()), random.below(tokens.len()));
        merges.push([left as u32, right as u32, tokens.len() as u32]);
        tokens.push([&tokens[left][..], &tokens[right][..]].concat());
    }
    let mut offsets = vec![0_u64];
    for token in &tokens {
        offsets.push(offsets.last().unwrap_or(&0) + token.len() as u64);
    }
    let mut byte_ids: Vec<u32> = (0..256).collect();
    if damage {
        match random.below(4) {
            0 => merges.push([random.below(usize::MAX >> 1) as u32, 1, 2]),
            1 => offsets[random.below(256)] = random.below(1 << 30) as u64,
            2 => byte_ids[random.below(256)] = random.below(1 << 30) as u32,
            _ => offsets.reverse(),
        }
    }
    let bytes = tokens.concat();
    let is_text = vec![1; tokens.len()];
    let spec = Spec {
        scanner: random.below(if damage { 9 } else { 4 }) as u32,
        flags: random.below(4) as u32,
        n_tokens: tokens.len() as u64,
        n_token_bytes: bytes.len() as u64,
        n_merges: merges.len() as u64,
        token_bytes: bytes.as_ptr(),
        token_offsets: offsets.as_ptr(),
        is_text: is_text.as_ptr(),
        byte_ids: byte_ids.as_ptr(),
        merges: merges.as_ptr(),
    };
    let mut encoder = null_mut();
    // SAFETY: the arrays have the lengths the spec declares and outlive the call.
    let status = unsafe { elchat_bpe_encoder_new((&raw const spec).cast(), &mut encoder) };
    if status == OK {
        Ok(encoder)
    } else {
        Err(format!("{status}: {}", last_error()))
    }
}

fn random_text(random: &mut Random) -> Vec<u8> {
    let scraps: [&[u8]; 10] = [
        b"hola",
        b" ",
        b"\n",
        "ñ".as_bytes(),
        b"\xC3",
        b"\xE2\x80",
        "e\u{301}".as_bytes(),
        b"'s",
        b"12",
        b"\xFF",
    ];
    let mut text = Vec::new();
    for _ in 0..random.below(200) {
        match random.below(4) {
            0 => text.push(random.below(256) as u8),
            1 => text.extend(std::iter::repeat_n(
                random.below(256) as u8,
                random.below(60),
            )),
            _ => text.extend_from_slice(scraps[random.below(scraps.len())]),
        }
    }
    text
}

fn round_trip(encoder: *const Encoder, random: &mut Random) {
    let texts: Vec<Vec<u8>> = (0..random.below(6)).map(|_| random_text(random)).collect();
    let pointers: Vec<*const u8> = texts.iter().map(|text| text.as_ptr()).collect();
    let lengths: Vec<u64> = texts.iter().map(|text| text.len() as u64).collect();
    let (n, threads) = (texts.len() as u64, random.below(3) as u64);
    let (mut arrays, mut bytes) = (null_mut(), null_mut());
    let mut view = View {
        words: null(),
        n_words: 0,
        longs: null(),
        n_longs: 0,
    };
    // SAFETY: every array has the length that is declared, and what is handed out is freed once.
    unsafe {
        let (starts, lengths) = (pointers.as_ptr(), lengths.as_ptr());
        let is_nfc = (*encoder).model.is_nfc;
        let cut = random.below(texts.len() + 1); // in one call or in two
        let rest = n - cut as u64;
        assert_eq!(elchat_bpe_arrays_new(&mut arrays), OK);
        for (starts, lengths, n) in [
            (starts, lengths, cut as u64),
            (starts.add(cut), lengths.add(cut), rest),
        ] {
            assert_eq!(
                elchat_bpe_encode_append(encoder, starts, lengths, n, threads, arrays),
                OK
            );
        }
        assert_eq!(elchat_bpe_arrays_view(arrays, (&raw mut view).cast()), OK);
        assert_eq!(view.n_longs, n + 1);
        assert_eq!(
            elchat_bpe_decode(encoder, view.words, view.n_words, &mut bytes),
            OK
        );
        let (mut data, mut size) = (null(), 0);
        assert_eq!(elchat_bpe_bytes_view(bytes, &mut data, &mut size), OK);
        let decoded = std::slice::from_raw_parts(data, size as usize);
        if is_nfc {
            let normal = |text: &Vec<u8>| elchat_bpe::nfc::normalize(text).into_owned();
            assert_eq!(decoded, texts.iter().flat_map(normal).collect::<Vec<u8>>());
        } else {
            assert_eq!(decoded, texts.concat());
        }
        elchat_bpe_bytes_free(bytes);
        elchat_bpe_arrays_free(arrays);
    }
}

#[test]
fn random_vocabularies_and_texts() {
    let seconds = std::env::var("ELCHAT_FUZZ_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(2));
    let mut random = Random(2026);
    while Instant::now() < end {
        let encoder = new_encoder(&mut random, false).expect("a sound vocabulary");
        for _ in 0..20 {
            round_trip(encoder, &mut random);
        }
        // SAFETY: made above, freed once.
        unsafe { elchat_bpe_encoder_free(encoder) };
        match new_encoder(&mut random, true) {
            // SAFETY: made by the call, freed once.
            Ok(encoder) => unsafe { elchat_bpe_encoder_free(encoder) },
            Err(reason) => assert!(reason.starts_with("1: ") && reason.len() > 8, "{reason}"),
        }
    }
}

extern "C" fn stop(_done: u64, _count: u64, _user: *mut c_void) -> i32 {
    1
}

#[test]
fn wrong_arguments_are_refused() {
    // SAFETY: nulls are what is under test; nothing else is passed.
    unsafe {
        assert_eq!(elchat_bpe_encoder_new(null(), null_mut()), BAD_INPUT);
        assert!(last_error().contains("nulo"));
        assert_eq!(
            elchat_bpe_encode_append(null(), null(), null(), 3, 1, null_mut()),
            BAD_INPUT
        );
        assert_eq!(elchat_bpe_arrays_new(null_mut()), BAD_INPUT);
        assert_eq!(elchat_bpe_decode(null(), null(), 1, null_mut()), BAD_INPUT);
        assert_eq!(elchat_bpe_pieces(77, null(), 0, null_mut()), BAD_INPUT);
        assert_eq!(
            elchat_bpe_pieces(0, b"a".as_ptr(), u64::MAX, null_mut()),
            BAD_INPUT
        );
        assert_eq!(elchat_bpe_normalize(null(), 4, null_mut()), BAD_INPUT);
        assert_eq!(elchat_bpe_arrays_view(null(), null_mut()), BAD_INPUT);
        assert_eq!(elchat_bpe_trainer_new(9, 0, null_mut()), BAD_INPUT);
        elchat_bpe_encoder_free(null_mut());
        elchat_bpe_arrays_free(null_mut());
        elchat_bpe_bytes_free(null_mut());
        elchat_bpe_trainer_free(null_mut());
        assert_eq!(elchat_bpe_abi_version(), ABI_VERSION);
    }
}

#[test]
fn training_over_the_abi() {
    let text: Vec<u8> = (0..200_000_u32)
        .map(|k| b'a' + (k.wrapping_mul(k) / 3 % 20) as u8)
        .collect();
    let words: Vec<*const u8> = text.chunks(8).map(<[u8]>::as_ptr).collect();
    let lengths = vec![8_u64; words.len()];
    let byte_ids: Vec<u32> = (0..256).collect();
    let (mut trainer, mut arrays) = (null_mut(), null_mut());
    // SAFETY: every array has the length that is declared, and what is handed out is freed once.
    unsafe {
        assert_eq!(elchat_bpe_trainer_new(0, 0, &mut trainer), OK);
        let n = words.len() as u64;
        assert_eq!(
            elchat_bpe_trainer_feed(trainer, words.as_ptr(), lengths.as_ptr(), n, 2),
            OK
        );
        let ids = byte_ids.as_ptr();
        let stopped =
            elchat_bpe_trainer_train(trainer, ids, 300, 1, Some(stop), null_mut(), &mut arrays);
        assert_eq!(stopped, STOPPED);
        assert_eq!(
            elchat_bpe_trainer_train(trainer, ids, 300, 1, None, null_mut(), &mut arrays),
            OK
        );
        elchat_bpe_arrays_free(arrays);
        elchat_bpe_trainer_free(trainer);
    }
}
