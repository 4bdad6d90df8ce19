//! The local vector table: what each source of the APIC's own does (Intel SDM vol. 3, section 11.5.1).

use crate::devices::message::Delivery;

/// A source, in the order of the registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Entry {
    Timer,
    Thermal,
    Performance,
    Lint0,
    Lint1,
    Error,
}

const MASKED: u32 = 1 << 16;

/// The table.
#[derive(Clone, Copy, Debug)]
pub(super) struct VectorTable([u32; 6]);

impl VectorTable {
    /// After reset everything is masked.
    pub(super) const fn new() -> Self {
        Self([MASKED; 6])
    }

    pub(super) const fn get(&self, entry: Entry) -> u32 {
        self.0[entry as usize]
    }

    /// Writes an entry: those bits that its source has.
    pub(super) const fn set(&mut self, entry: Entry, value: u32) {
        let bits = match entry {
            Entry::Timer => 0x7_00ff,
            Entry::Thermal | Entry::Performance => 0x1_07ff,
            Entry::Lint0 | Entry::Lint1 => 0x1_a7ff,
            Entry::Error => 0x1_00ff,
        };
        self.0[entry as usize] = value & bits;
    }

    pub(super) fn mask_all(&mut self) {
        for entry in &mut self.0 {
            *entry |= MASKED;
        }
    }

    pub(super) const fn vector(&self, entry: Entry) -> u8 {
        self.get(entry) as u8
    }

    /// Returns what an unmasked entry delivers; timer and error have no field for it and are fixed.
    pub(super) const fn unmasked(&self, entry: Entry) -> Option<Delivery> {
        let value = self.get(entry);
        if value & MASKED != 0 {
            return None;
        }
        Some(match entry {
            Entry::Timer | Entry::Error => Delivery::Fixed,
            _ => Delivery::from_bits(value >> 8),
        })
    }
}
