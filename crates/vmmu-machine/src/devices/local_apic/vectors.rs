//! A set of interrupt vectors: the shape of IRR, ISR and TMR.

/// The set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Vectors([u32; 8]);

impl Vectors {
    const fn place(vector: u8) -> (usize, u32) {
        (vector as usize / 32, 1 << (vector % 32))
    }
    /// Adds a vector.
    pub(super) const fn insert(&mut self, vector: u8) {
        let (word, bit) = Self::place(vector);
        self.0[word] |= bit;
    }
    /// Takes a vector out.
    pub(super) const fn remove(&mut self, vector: u8) {
        let (word, bit) = Self::place(vector);
        self.0[word] &= !bit;
    }
    /// Tells whether a vector is in the set.
    pub(super) const fn contains(&self, vector: u8) -> bool {
        let (word, bit) = Self::place(vector);
        self.0[word] & bit != 0
    }
    /// Returns the highest vector.
    pub(super) fn highest(&self) -> Option<u8> {
        let word = self.0.iter().rposition(|&word| word != 0)?;
        // At most 7 * 32 + 31.
        Some((word as u32 * 32 + self.0[word].ilog2()) as u8)
    }
    /// Returns 32 vectors, as the registers show them.
    pub(super) fn word(&self, index: usize) -> u32 {
        self.0.get(index).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod a_set_of_vectors {
    use super::Vectors;

    #[test]
    fn knows_its_highest() {
        let mut set = Vectors::default();
        assert_eq!(set.highest(), None);
        for vector in [0, 31, 32, 200, 255] {
            set.insert(vector);
            assert_eq!(set.highest(), Some(vector));
            assert!(set.contains(vector));
        }
        set.remove(255);
        assert_eq!(set.highest(), Some(200));
        assert_eq!((set.word(0), set.word(6)), (0x8000_0001, 1 << 8));
    }
}
