//! The C ABI. Every function returns a status; `elchat_bpe_last_error` says what went wrong.
//!
//! Rules: nothing unwinds across it; what the library hands out the library frees; handles come
//! from a `_new` function and go to the matching `_free` once. `python/elchat_bpe/library.py` is
//! the other side: change both and `ABI_VERSION` together.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{c_char, c_void, CString};
use std::ops::ControlFlow;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr;

use crate::encode::{Batch, Encoder};
use crate::error::BpeError;
use crate::model::{Model, Parts};
use crate::nfc;
use crate::scan::Scanner;
use crate::train::{Goal, Trainer};

/// Raised by one whenever a signature, a struct or a meaning changes.
pub const ABI_VERSION: u32 = 2;

/// All went well.
pub const OK: i32 = 0;
/// The arguments are wrong; the last error says which.
pub const BAD_INPUT: i32 = 1;
/// A bug of this library.
pub const PANIC: i32 = 2;
/// The progress function asked to stop.
pub const STOPPED: i32 = 3;

const FLAG_NFC: u32 = 1;
const FLAG_IGNORE_MERGES: u32 = 2;

/// What `elchat_bpe_encoder_new` takes; see `model::Parts`.
#[repr(C)]
pub struct EncoderSpec {
    scanner: u32,
    flags: u32,
    n_tokens: u64,
    n_token_bytes: u64,
    n_merges: u64,
    token_bytes: *const u8,
    /// `n_tokens + 1` of them.
    token_offsets: *const u64,
    /// `n_tokens` of them.
    is_text: *const u8,
    /// 256 of them.
    byte_ids: *const u32,
    /// `n_merges` triples.
    merges: *const [u32; 3],
}

/// Two arrays the library owns.
pub struct Arrays {
    words: Vec<u32>,
    longs: Vec<i64>,
}

impl From<Batch> for Arrays {
    fn from(batch: Batch) -> Self {
        Self {
            words: batch.ids,
            longs: batch.offsets,
        }
    }
}

/// Where the arrays are, until `elchat_bpe_arrays_free`.
#[repr(C)]
pub struct ArraysView {
    words: *const u32,
    n_words: u64,
    longs: *const i64,
    n_longs: u64,
}

/// `progress(done, count, user)`: anything but 0 stops the training.
pub type Progress = extern "C" fn(u64, u64, *mut c_void) -> i32;

enum Failure {
    Bad(BpeError),
    Stopped,
}

impl From<BpeError> for Failure {
    fn from(error: BpeError) -> Self {
        Self::Bad(error)
    }
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// `ABI_VERSION`.
#[no_mangle]
pub extern "C" fn elchat_bpe_abi_version() -> u32 {
    ABI_VERSION
}

/// The last failure of this thread, in UTF-8; valid until its next call.
#[no_mangle]
pub extern "C" fn elchat_bpe_last_error() -> *const c_char {
    LAST_ERROR.with(|text| text.borrow().as_ptr())
}

/// Checks a vocabulary and builds an encoder.
///
/// # Safety
/// `spec` and its pointers are valid for the lengths it declares; `out` is writable.
#[no_mangle]
pub unsafe extern "C" fn elchat_bpe_encoder_new(
    spec: *const EncoderSpec,
    out: *mut *mut Encoder,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise; null is refused.
        let spec = unsafe { spec.as_ref() }.ok_or_else(null)?;
        // SAFETY: the caller's promise about the lengths in the spec.
        let parts = unsafe {
            Parts {
                scanner: scanner(spec.scanner)?,
                is_nfc: spec.flags & FLAG_NFC != 0,
                ignores_merges: spec.flags & FLAG_IGNORE_MERGES != 0,
                byte_ids: slice(spec.byte_ids, 256)?,
                token_bytes: slice(spec.token_bytes, spec.n_token_bytes)?,
                token_offsets: slice(spec.token_offsets, spec.n_tokens.saturating_add(1))?,
                is_text: slice(spec.is_text, spec.n_tokens)?,
                merges: slice(spec.merges, spec.n_merges)?,
            }
        };
        let encoder = Encoder::new(Model::new(&parts)?);
        // SAFETY: the caller's promise about `out`.
        unsafe { give(encoder, out) }
    })
}

/// Frees an encoder; null is nothing.
///
/// # Safety
/// `encoder` came from `elchat_bpe_encoder_new` and no call is using it.
#[no_mangle]
pub unsafe extern "C" fn elchat_bpe_encoder_free(encoder: *mut Encoder) {
    // SAFETY: the caller's promise.
    unsafe { free(encoder) }
}

/// Arrays for `elchat_bpe_encode_append`: no ids, and one offset, 0.
///
/// # Safety
/// `out` is writable.
#[no_mangle]
pub unsafe extern "C" fn elchat_bpe_arrays_new(out: *mut *mut Arrays) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { give(Batch::default().into(), out) }
    })
}

/// Encodes `n` texts and appends them to arrays: words are ids, longs where each text ends.
///
/// The caller goes through a long text in pieces, so that its UTF-8 never is in memory whole.
/// Threads may share an encoder, not arrays.
///
/// # Safety
/// `encoder` is alive; `texts` and `lengths` have `n` elements, each text its length; `arrays`
/// came from `elchat_bpe_arrays_new`, and nobody else uses them now.
#[no_mangle]
pub unsafe extern "C" fn elchat_bpe_encode_append(
    encoder: *const Encoder,
    texts: *const *const u8,
    lengths: *const u64,
    n: u64,
    threads: u64,
    arrays: *mut Arrays,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promises; null is refused.
        let (encoder, documents, arrays) = unsafe {
            (
                encoder.as_ref().ok_or_else(null)?,
                documents(texts, lengths, n)?,
                arrays.as_mut().ok_or_else(null)?,
            )
        };
        let mut batch = Batch {
            ids: std::mem::take(&mut arrays.words),
            offsets: std::mem::take(&mut arrays.longs),
        };
        encoder.encode_onto(&documents, thread_count(threads), &mut batch);
        *arrays = batch.into();
        Ok(())
    })
}

/// Bytes of `n` ids, as one text.
///
/// # Safety
/// `encoder` is alive; `ids` has `n` elements; `out` is writable.
#[no_mangle]
pub unsafe extern "C" fn elchat_bpe_decode(
    encoder: *const Encoder,
    ids: *const u32,
    n: u64,
    out: *mut *mut Vec<u8>,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promises; null is refused.
        let (encoder, ids) = unsafe { (encoder.as_ref().ok_or_else(null)?, slice(ids, n)?) };
        let bytes = encoder.model.decode(ids)?;
        // SAFETY: the caller's promise about `out`.
        unsafe { give(bytes, out) }
    })
}

/// Ends of the pieces of a text, in longs.
///
/// # Safety
/// `text` has `n` bytes; `out` is writable.
#[no_mangle]
pub unsafe extern "C" fn elchat_bpe_pieces(
    scanner_code: u32,
    text: *const u8,
    n: u64,
    out: *mut *mut Arrays,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let text = unsafe { slice(text, n)? };
        let ends = scanner(scanner_code)?.ends(text);
        let longs = ends.into_iter().map(|end| end as i64).collect();
        // SAFETY: the caller's promise about `out`.
        unsafe {
            give(
                Arrays {
                    words: Vec::new(),
                    longs,
                },
                out,
            )
        }
    })
}

/// A text in NFC.
///
/// # Safety
/// `text` has `n` bytes; `out` is writable.
#[no_mangle]
pub unsafe extern "C" fn elchat_bpe_normalize(
    text: *const u8,
    n: u64,
    out: *mut *mut Vec<u8>,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise.
        let text = unsafe { slice(text, n)? };
        // SAFETY: the caller's promise about `out`.
        unsafe { give(nfc::normalize(text).into_owned(), out) }
    })
}

/// Where the arrays are.
///
/// # Safety
/// `arrays` is alive; `view` is writable.
#[no_mangle]
pub unsafe extern "C" fn elchat_bpe_arrays_view(
    arrays: *const Arrays,
    view: *mut ArraysView,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promises; null is refused.
        let (arrays, view) = unsafe {
            (
                arrays.as_ref().ok_or_else(null)?,
                view.as_mut().ok_or_else(null)?,
            )
        };
        *view = ArraysView {
            words: arrays.words.as_ptr(),
            n_words: arrays.words.len() as u64,
            longs: arrays.longs.as_ptr(),
            n_longs: arrays.longs.len() as u64,
        };
        Ok(())
    })
}

/// Frees arrays; null is nothing.
///
/// # Safety
/// `arrays` came from this library and nothing looks at them any more.
#[no_mangle]
pub unsafe extern "C" fn elchat_bpe_arrays_free(arrays: *mut Arrays) {
    // SAFETY: the caller's promise.
    unsafe { free(arrays) }
}

/// Where bytes are, and how many.
///
/// # Safety
/// `bytes` is alive; `data` and `n` are writable.
#[no_mangle]
pub unsafe extern "C" fn elchat_bpe_bytes_view(
    bytes: *const Vec<u8>,
    data: *mut *const u8,
    n: *mut u64,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promises; null is refused.
        let (bytes, data, n) = unsafe {
            (
                bytes.as_ref().ok_or_else(null)?,
                data.as_mut().ok_or_else(null)?,
                n.as_mut().ok_or_else(null)?,
            )
        };
        (*data, *n) = (bytes.as_ptr(), bytes.len() as u64);
        Ok(())
    })
}

/// Frees bytes; null is nothing.
///
/// # Safety
/// `bytes` came from this library and nothing looks at them any more.
#[no_mangle]
pub unsafe extern "C" fn elchat_bpe_bytes_free(bytes: *mut Vec<u8>) {
    // SAFETY: the caller's promise.
    unsafe { free(bytes) }
}

/// An empty trainer.
///
/// # Safety
/// `out` is writable.
#[no_mangle]
pub unsafe extern "C" fn elchat_bpe_trainer_new(
    scanner_code: u32,
    flags: u32,
    out: *mut *mut Trainer,
) -> i32 {
    guard(|| {
        let trainer = Trainer::new(scanner(scanner_code)?, flags & FLAG_NFC != 0);
        // SAFETY: the caller's promise about `out`.
        unsafe { give(trainer, out) }
    })
}

/// Counts the words of `n` texts.
///
/// # Safety
/// `trainer` is alive and used by nobody else; `texts` and `lengths` have `n` elements.
#[no_mangle]
pub unsafe extern "C" fn elchat_bpe_trainer_feed(
    trainer: *mut Trainer,
    texts: *const *const u8,
    lengths: *const u64,
    n: u64,
    threads: u64,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promises; null is refused.
        let (trainer, documents) = unsafe {
            (
                trainer.as_mut().ok_or_else(null)?,
                documents(texts, lengths, n)?,
            )
        };
        trainer.feed(&documents, thread_count(threads));
        Ok(())
    })
}

/// Learns `n_tokens` tokens: words are (left, right) pairs of ids, longs their counts.
///
/// # Safety
/// `trainer` is alive; `byte_ids` has 256 elements; `progress` takes `user`; `out` is writable.
#[no_mangle]
pub unsafe extern "C" fn elchat_bpe_trainer_train(
    trainer: *const Trainer,
    byte_ids: *const u32,
    n_tokens: u64,
    min_count: u64,
    progress: Option<Progress>,
    user: *mut c_void,
    out: *mut *mut Arrays,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promises; null is refused.
        let (trainer, byte_ids) =
            unsafe { (trainer.as_ref().ok_or_else(null)?, slice(byte_ids, 256)?) };
        let byte_ids = byte_ids.try_into().map_err(|_| null())?;
        let n_tokens = usize::try_from(n_tokens).unwrap_or(usize::MAX);
        let mut report = |done: usize, count: u64| match progress {
            Some(call) if call(done as u64, count, user) != 0 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        };
        let goal = Goal {
            byte_ids,
            n_tokens,
            min_count,
        };
        let merges = trainer.train(&goal, &mut report)?.ok_or(Failure::Stopped)?;
        let arrays = Arrays {
            words: merges
                .iter()
                .flat_map(|merge| [merge.left, merge.right])
                .collect(),
            longs: merges.iter().map(|merge| merge.count as i64).collect(),
        };
        // SAFETY: the caller's promise about `out`.
        unsafe { give(arrays, out) }
    })
}

/// Frees a trainer; null is nothing.
///
/// # Safety
/// `trainer` came from `elchat_bpe_trainer_new` and no call is using it.
#[no_mangle]
pub unsafe extern "C" fn elchat_bpe_trainer_free(trainer: *mut Trainer) {
    // SAFETY: the caller's promise.
    unsafe { free(trainer) }
}

/// Runs a call: failures and panics become a status and a text.
fn guard(call: impl FnOnce() -> Result<(), Failure>) -> i32 {
    let (status, text) = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(())) => return OK,
        Ok(Err(Failure::Bad(error))) => (BAD_INPUT, error.0),
        Ok(Err(Failure::Stopped)) => (STOPPED, "parado".to_owned()),
        Err(payload) => (PANIC, panic_text(&*payload)),
    };
    let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
    LAST_ERROR.with(|last| *last.borrow_mut() = text);
    status
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("sin detalles");
    format!("error interno de rustbpe: {text}")
}

fn null() -> BpeError {
    BpeError::new("falta un argumento (puntero nulo)")
}

fn scanner(code: u32) -> Result<Scanner, BpeError> {
    Scanner::from_code(code).ok_or_else(|| BpeError::new(format!("no hay un escáner {code}")))
}

fn thread_count(threads: u64) -> usize {
    threads.min(256) as usize
}

/// # Safety
/// Unless null, `data` is valid for `n` elements as long as the call lasts.
unsafe fn slice<'a, T>(data: *const T, n: u64) -> Result<&'a [T], BpeError> {
    if n == 0 {
        return Ok(&[]);
    }
    let bytes = usize::try_from(n)
        .ok()
        .and_then(|n| n.checked_mul(size_of::<T>()));
    if data.is_null() || !data.is_aligned() {
        return Err(null());
    }
    if bytes.is_none_or(|bytes| bytes > isize::MAX as usize) {
        return Err(BpeError::new(format!("una longitud imposible: {n}")));
    }
    // SAFETY: not null, aligned, of a possible size, and valid by the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(data, n as usize) })
}

/// # Safety
/// `texts` and `lengths` have `n` elements, and each text has its length.
unsafe fn documents<'a>(
    texts: *const *const u8,
    lengths: *const u64,
    n: u64,
) -> Result<Vec<&'a [u8]>, BpeError> {
    // SAFETY: the caller's promise.
    let (texts, lengths) = unsafe { (slice(texts, n)?, slice(lengths, n)?) };
    // SAFETY: the caller's promise.
    texts
        .iter()
        .zip(lengths)
        .map(|(&text, &length)| unsafe { slice(text, length) })
        .collect()
}

/// # Safety
/// Unless null, `out` is writable.
unsafe fn give<T>(value: T, out: *mut *mut T) -> Result<(), Failure> {
    if out.is_null() {
        return Err(null().into());
    }
    // SAFETY: not null, and writable by the caller's promise.
    unsafe { ptr::write(out, Box::into_raw(Box::new(value))) };
    Ok(())
}

/// # Safety
/// Unless null, `value` came from `give` and is not used again.
unsafe fn free<T>(value: *mut T) {
    if !value.is_null() {
        // SAFETY: the caller's promise.
        drop(unsafe { Box::from_raw(value) });
    }
}
