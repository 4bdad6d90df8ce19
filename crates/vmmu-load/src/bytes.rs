//! Little-endian structures being put together.

use alloc::vec::Vec;

/// The bytes so far.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Bytes(Vec<u8>);

impl Bytes {
    /// Adds a byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }
    /// Adds a 16-bit number.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }
    /// Adds a 32-bit number.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }
    /// Adds a 64-bit number.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }
    /// Adds bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend(bytes);
        self
    }
    /// Returns the bytes.
    #[must_use]
    pub fn get(&self) -> &[u8] {
        &self.0
    }
}
