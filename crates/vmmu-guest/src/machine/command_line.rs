//! What the loader said on the guest's command line.

/// The command line, as the entry code copied it: zero-terminated, cut off after 255 bytes.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct CommandLine([u8; Self::CAPACITY]);

impl CommandLine {
    /// Bytes that there is room for, the terminating zero included.
    pub const CAPACITY: usize = 256;

    /// The text; empty if it isn't UTF-8.
    #[must_use]
    pub fn text(&self) -> &str {
        let bytes = self.0.split(|byte| *byte == 0).next().unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or_default()
    }

    /// The value of the option `name`: what follows `name=` in a word.
    #[must_use]
    pub fn option(&self, name: &str) -> Option<&str> {
        self.text()
            .split_ascii_whitespace()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }

    /// The number that the option `name` has, decimal, or hexadecimal with 0x.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        let text = self.option(name)?;
        text.strip_prefix("0x")
            .map_or_else(|| text.parse(), |digits| u64::from_str_radix(digits, 16))
            .ok()
    }
}
