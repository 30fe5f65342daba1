//! Byte-level BPE for elchat: encode, decode and train.
//!
//! Reading order: `scan` cuts text into pieces (a hand-written scanner per family, no regex
//! engine), `model` holds a vocabulary, `merge` applies its merges to one piece, `cache` remembers
//! pieces, `encode` walks documents on several threads, `train` learns merges, `ffi` is the C ABI
//! that `python/elchat_bpe` calls. Nothing here knows of Python or of `tokenizer.json`.
//!
//! Text is `&[u8]`, not `&str`: a byte-level vocabulary spells any bytes, so every function is
//! total. Bytes that are not UTF-8 count as symbols, one by one, and decode back to themselves.

#![deny(unsafe_code)]

pub mod cache;
pub mod encode;
pub mod error;
#[allow(unsafe_code)]
pub mod ffi;
pub mod merge;
pub mod model;
pub mod nfc;
pub mod scan;
mod tables;
pub mod train;
pub mod unicode;
