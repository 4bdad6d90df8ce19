//! Many bytes of host memory at once, for repeated string instructions.
//!
//! Invariant: aligned words are accessed whole, as [`Memory`]'s first invariant has it; only ranges that are aligned differently are copied otherwise.

use vmmu_cpu::Hpa;

use crate::memory::{FRAME, Memory};

impl Memory {
    /// Copies bytes upwards, neither range crossing a frame: word by word if both are aligned alike. [`Memory::wrote`] is to follow.
    pub fn copy_bytes(&self, from: Hpa, to: Hpa, len: usize) {
        if !(from.get() ^ to.get()).is_multiple_of(8) {
            let mut bytes = [0; FRAME as usize];
            let bytes = &mut bytes[..len.min(FRAME as usize)];
            self.read(from, bytes);
            return self.write(to, bytes);
        }
        let copy = |offset| self.store::<u8>(to.plus(offset), self.load(from.plus(offset)));
        let parts = Parts::of(to, len);
        // Upwards: the ranges may overlap if the destination is below.
        (0..parts.head).for_each(copy);
        for offset in parts.words() {
            self.store::<u64>(to.plus(offset), self.load(from.plus(offset)));
        }
        (parts.tail..parts.len).for_each(copy);
    }

    /// Fills bytes, which must not cross a frame, with those of `pattern` over and over: word by word where it is aligned. [`Memory::wrote`] is to
    /// follow.
    pub fn fill_bytes(&self, at: Hpa, pattern: u64, len: usize) {
        let parts = Parts::of(at, len);
        for offset in (0..parts.head).chain(parts.tail..parts.len) {
            self.store(at.plus(offset), pattern.to_le_bytes()[offset as usize % 8]);
        }
        let turned = pattern.rotate_right(parts.head as u32 * 8);
        for offset in parts.words() {
            self.store(at.plus(offset), turned);
        }
    }
}

/// A range as aligned words, with the bytes before and behind them.
struct Parts {
    head: u64,
    tail: u64,
    len: u64,
}

impl Parts {
    fn of(at: Hpa, len: usize) -> Self {
        let len = len as u64;
        let head = (at.get().wrapping_neg() % 8).min(len);
        let tail = len - (len - head) % 8;
        Self { head, tail, len }
    }

    /// Returns the offsets of words.
    fn words(&self) -> impl Iterator<Item = u64> {
        (self.head..self.tail).step_by(8)
    }
}

#[cfg(test)]
mod bulk_data {
    use super::{FRAME, Memory};
    use vmmu_cpu::Hpa;

    /// Returns two frames, the first of them with bytes that tell their places.
    fn memory() -> Memory {
        let memory = Memory::new(2).expect("two frames");
        for at in 0..FRAME {
            memory.store(Hpa::new(at), (at % 251) as u8);
        }
        memory
    }

    fn bytes<const N: usize>(memory: &Memory, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        memory.read(Hpa::new(at), &mut bytes);
        bytes
    }

    #[test]
    fn is_copied_whatever_its_alignment_and_nothing_beside_it() {
        for from in 0..9 {
            for to in 0..9 {
                for len in 0..40 {
                    let memory = memory();
                    let at = FRAME + 16 + to;
                    memory.copy_bytes(Hpa::new(from), Hpa::new(at), len);
                    let copied: [u8; 40] = bytes(&memory, at);
                    let source: [u8; 40] = bytes(&memory, from);
                    assert_eq!(copied[..len], source[..len]);
                    assert_eq!(copied[len..], [0; 40][len..]);
                    assert_eq!(bytes::<1>(&memory, at - 1), [0]);
                }
            }
        }
    }

    #[test]
    fn moves_down_onto_itself() {
        for distance in 1..20 {
            let memory = memory();
            let before: [u8; 40] = bytes(&memory, 43);
            memory.copy_bytes(Hpa::new(43), Hpa::new(43 - distance), 40);
            assert_eq!(bytes::<40>(&memory, 43 - distance), before);
        }
    }

    #[test]
    fn is_filled_with_a_pattern_that_begins_where_it_begins() {
        for start in 0..9 {
            for len in 0..40 {
                let memory = Memory::new(1).expect("a frame");
                let at = 16 + start;
                memory.fill_bytes(Hpa::new(at), 0x0807_0605_0403_0201, len);
                let filled: [u8; 40] = bytes(&memory, at);
                for (n, byte) in filled.iter().enumerate() {
                    let expected = if n < len { n as u8 % 8 + 1 } else { 0 };
                    assert_eq!(*byte, expected);
                }
                assert_eq!(bytes::<1>(&memory, at - 1), [0]);
            }
        }
    }
}
