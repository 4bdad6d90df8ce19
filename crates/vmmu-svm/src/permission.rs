//! Which ports and model-specific registers exit: the I/O and MSR permission maps (AMD APM vol. 2, sections 15.10 and 15.11).

use crate::channel::{DEBUG_EXIT, UART};

/// The guest's marks: start and end of a phase.
pub const MARK_START: u16 = 0x5e0;
/// The end of a phase.
pub const MARK_END: u16 = 0x5e4;
/// The keyboard controller's command port; FEh resets.
pub const KEYBOARD: u16 = 0x64;
/// System control port A; bit 0 resets.
pub const CONTROL_A: u16 = 0x92;
/// The chipset's power-management control; bit 13 puts the machine to sleep, and there is no sleep but for good.
pub const PM_CONTROL: u16 = 0x604;
/// The chipset's reset register; bit 2 resets.
pub const RESET: u16 = 0xcf9;

/// The I/O permission map: a set bit makes the port exit.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct PortMap([u8; 3 * 4096]);

impl PortMap {
    /// Makes the map of the ports that aren't the guest's.
    pub fn new() -> Self {
        let mut map = Self([0; 3 * 4096]);
        for port in (UART..UART + 8)
            .chain(DEBUG_EXIT..DEBUG_EXIT + 4)
            .chain([MARK_START, MARK_END, KEYBOARD, CONTROL_A, RESET])
            .chain(PM_CONTROL..PM_CONTROL + 2)
        {
            map.0[usize::from(port / 8)] |= 1 << (port % 8);
        }
        map
    }
}

impl Default for PortMap {
    fn default() -> Self {
        Self::new()
    }
}

/// A model-specific register by its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MsrNumber(pub u32);

impl MsrNumber {
    /// The local APIC's base and enable bits.
    pub const APIC_BASE: Self = Self(0x1b);
    /// Extended features.
    pub const EFER: Self = Self(0xc000_0080);
}

/// Ranges of registers that exit: those that the hypervisor emulates, and SVM's own.
const GUARDED: [core::ops::RangeInclusive<u32>; 3] = [
    0x1b..=0x1b,
    0xc000_0080..=0xc000_0080,
    0xc001_0114..=0xc001_0118,
];

/// The MSR permission map: two bits a register, read and write.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct MsrMap([u8; 2 * 4096]);

impl MsrMap {
    /// Makes the map of the registers that exit.
    pub fn new() -> Self {
        let mut map = Self([0; 2 * 4096]);
        for number in GUARDED.into_iter().flatten() {
            let start = match number >> 16 {
                0xc000 => 0x800,
                0xc001 => 0x1000,
                _ => 0,
            };
            let index = number & 0x1fff;
            map.0[start + index as usize / 4] |= 3 << (index % 4 * 2);
        }
        map
    }
}

impl Default for MsrMap {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod what_exits {
    use super::*;

    #[test]
    fn only_the_ports_that_are_not_the_guests() {
        let map = PortMap::new();
        let exits = |port: u16| map.0[usize::from(port / 8)] & 1 << (port % 8) != 0;
        assert!(
            [
                0x2f8, 0x2ff, 0xf4, 0xf7, 0x5e0, 0x5e4, 0x64, 0x92, 0xcf9, 0x604, 0x605
            ]
            .into_iter()
            .all(exits)
        );
        assert!(
            ![
                0x3f8, 0x20, 0x40, 0x608, 0x70, 0xcf8, 0xcfc, 0xe9, 0x60, 0x300, 0xf8
            ]
            .into_iter()
            .any(exits)
        );
    }

    #[test]
    fn only_the_registers_that_are_guarded() {
        let map = MsrMap::new();
        let bits = map.0.iter().map(|byte| byte.count_ones()).sum::<u32>();
        assert_eq!(bits, 2 * 7);
        assert_eq!(map.0[0x1b / 4], 3 << 6);
        assert_eq!(map.0[0x800 + 0x80 / 4], 3);
    }
}
