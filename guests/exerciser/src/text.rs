//! A string of bounded length: reasons for a failure, written without an allocator.

use core::fmt;

/// Bytes a [`Text`] holds; what is longer is cut.
pub const CAPACITY: usize = 160;

/// Up to [`CAPACITY`] bytes of UTF-8.
#[derive(Clone, Copy)]
pub struct Text {
    bytes: [u8; CAPACITY],
    used: usize,
}

impl Text {
    /// The empty text.
    pub const fn new() -> Self {
        Self {
            bytes: [0; CAPACITY],
            used: 0,
        }
    }

    /// The text that `arguments` describe, cut where it exceeds [`CAPACITY`].
    pub fn from_fmt(arguments: fmt::Arguments<'_>) -> Self {
        let mut text = Self::new();
        // An error here only says that the text was cut.
        let _ = fmt::write(&mut text, arguments);
        text
    }

    /// What has been written.
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(self.bytes.get(..self.used).unwrap_or(&[])).unwrap_or("?")
    }
}

impl Default for Text {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        for character in piece.chars() {
            let mut encoded = [0; 4];
            let encoded = character.encode_utf8(&mut encoded).as_bytes();
            let Some(room) = self.bytes.get_mut(self.used..self.used + encoded.len()) else {
                return Err(fmt::Error);
            };
            room.copy_from_slice(encoded);
            self.used += encoded.len();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_and_cuts_at_a_character() {
        assert_eq!(
            Text::from_fmt(format_args!("{}-{:x}", 7, 255)).as_str(),
            "7-ff"
        );
        let long = "ä".repeat(CAPACITY);
        let text = Text::from_fmt(format_args!("{long}"));
        assert_eq!(text.as_str().len(), CAPACITY);
        let odd = Text::from_fmt(format_args!("a{long}"));
        assert_eq!(odd.as_str().len(), CAPACITY - 1);
    }
}
