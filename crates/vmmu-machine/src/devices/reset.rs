//! The two registers by which chipsets reset: system control port A and the reset register. A reset is the rise of a bit.

use super::{Effect, places};

/// System control port A.
pub(super) const CONTROL_A: u16 = 0x92;
/// Its bits: fast reset; A20, which is always open.
const FAST_RESET: u8 = 1 << 0;
const A20: u8 = 1 << 1;
/// The reset register's bit that resets the processors.
const RESET_CPU: u8 = 1 << 2;

/// Both registers.
#[derive(Clone, Debug)]
pub(super) struct ResetControl {
    control_a: u8,
    reset: u8,
}

impl ResetControl {
    pub(super) const fn new() -> Self {
        Self {
            control_a: A20,
            reset: 0,
        }
    }

    /// Reads one of the two.
    pub(super) const fn read(&self, port: u16) -> u8 {
        match port {
            places::RESET => self.reset,
            _ => self.control_a | A20,
        }
    }

    /// Writes one of the two.
    pub(super) const fn write(&mut self, port: u16, value: u8) -> Effect {
        let (register, bit) = match port {
            places::RESET => (&mut self.reset, RESET_CPU),
            _ => (&mut self.control_a, FAST_RESET),
        };
        let rises = value & !*register & bit != 0;
        *register = value;
        if rises { Effect::Reset } else { Effect::None }
    }
}

#[cfg(test)]
mod a_rising_bit_resets {
    use super::{CONTROL_A, Effect, ResetControl, places};

    #[test]
    fn at_both_ports() {
        for (port, quiet, loud) in [(CONTROL_A, 0x02, 0x03), (places::RESET, 0x02, 0x06)] {
            let mut control = ResetControl::new();
            assert_eq!(control.write(port, quiet), Effect::None);
            assert_eq!(control.read(port), 0x02);
            assert_eq!(control.write(port, loud), Effect::Reset);
            assert_eq!(control.write(port, loud), Effect::None);
        }
    }
}
