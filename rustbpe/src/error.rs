//! What can be wrong with the input, as a Spanish sentence for the user.

use std::fmt;

/// A refused vocabulary, id or argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BpeError(pub String);

impl BpeError {
    /// Builds an error from anything printable.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for BpeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BpeError {}
