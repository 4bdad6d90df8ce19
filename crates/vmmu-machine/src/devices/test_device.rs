//! QEMU's pc-testdev, as its tests use it: a port that keeps a value, one that drops a mapping, and one for each interrupt
//! line.

use vmmu::addr::Gpa;

use super::Effect;

/// The port that keeps what is written, of 1, 2 or 4 bytes.
pub(super) const KEEP: u16 = 0xe0;
/// The port at which an address drops a mapping.
pub(super) const DROP: u16 = 0xe4;
/// The last port of both.
pub(super) const LAST: u16 = 0xe7;
/// The first of the interrupt lines' ports.
pub(super) const LINES: u16 = 0x2000;
/// The last: there is one for each pin of the I/O APIC.
pub(super) const LAST_LINE: u16 = LINES + 23;

/// The value that is kept.
#[derive(Clone, Debug, Default)]
pub(super) struct TestDevice {
    kept: [u8; 4],
}

impl TestDevice {
    /// Reads the value from a port on.
    pub(super) fn read(&self, port: u16, bytes: usize) -> u32 {
        let mut read = [0xff; 4];
        let kept = self.kept.iter().skip(usize::from(port - KEEP)).take(bytes);
        for (to, &byte) in read.iter_mut().zip(kept) {
            *to = byte;
        }
        u32::from_le_bytes(read)
    }

    /// Writes a port.
    pub(super) fn write(&mut self, port: u16, bytes: usize, value: u32) -> Effect {
        if port == DROP {
            return Effect::DropMapping(Gpa::new(u64::from(value) & !0xfff));
        }
        let kept = self.kept.iter_mut().skip(usize::from(port - KEEP));
        for (to, byte) in kept.zip(value.to_le_bytes()).take(bytes) {
            *to = byte;
        }
        Effect::None
    }
}

#[cfg(test)]
mod the_test_device {
    use super::{Effect, Gpa, TestDevice};

    #[test]
    fn keeps_values_of_every_width() {
        let mut device = TestDevice::default();
        assert_eq!(device.write(0xe0, 4, 0x1234_5678), Effect::None);
        assert_eq!(device.write(0xe1, 1, 0xab), Effect::None);
        assert_eq!(device.read(0xe0, 4), 0x1234_ab78);
        assert_eq!(device.write(0xe2, 2, 0xcdef), Effect::None);
        assert_eq!(device.read(0xe2, 2) & 0xffff, 0xcdef);
        assert_eq!(device.read(0xe3, 1) & 0xff, 0xcd);
        assert_eq!(device.read(0xe6, 4), 0xffff_ffff);
    }

    #[test]
    fn drops_the_mapping_of_an_address() {
        let effect = TestDevice::default().write(0xe4, 4, 0x1234_5678);
        assert_eq!(effect, Effect::DropMapping(Gpa::new(0x1234_5000)));
    }
}
