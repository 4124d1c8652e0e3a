//! Text of bounded length, for the panic handler and other places that must not allocate.

use core::fmt;

/// UTF-8 text of at most `N` bytes; what does not fit is cut off at a character's boundary.
#[derive(Clone, Copy, Debug)]
pub struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
    cut: bool,
}

impl<const N: usize> Text<N> {
    /// No text.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            bytes: [0; N],
            len: 0,
            cut: false,
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let used = self.bytes.get(..self.len).unwrap_or(&[]);
        core::str::from_utf8(used).unwrap_or("")
    }

    /// Whether something was cut off.
    #[must_use]
    pub const fn is_cut(&self) -> bool {
        self.cut
    }
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> fmt::Write for Text<N> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        if self.cut {
            return Ok(());
        }
        let mut take = s.len().min(N.saturating_sub(self.len));
        while !s.is_char_boundary(take) {
            take -= 1;
        }
        let to = self.bytes.get_mut(self.len..self.len + take);
        if let (Some(to), Some(from)) = (to, s.as_bytes().get(..take)) {
            to.copy_from_slice(from);
            self.len += take;
        }
        self.cut = take < s.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::fmt::Write;

    #[test]
    fn cut_at_a_character() {
        let mut text = Text::<5>::new();
        text.write_str("ab")
            .and_then(|()| text.write_str("cdé"))
            .unwrap();
        assert_eq!(text.as_str(), "abcd");
        assert!(text.is_cut());
        text.write_str("x").unwrap();
        assert_eq!(text.as_str(), "abcd");
        let mut full = Text::<4>::new();
        full.write_str("éé").unwrap();
        assert_eq!((full.as_str(), full.is_cut()), ("éé", false));
    }
}
