//! Which processors a logical destination names.

use core::sync::atomic::Ordering;

use vmmu::host::VcpuId;

use super::Cpus;

impl Cpus {
    /// Notes a write to the register of this processor's logical destination.
    pub fn set_logical(&self, number: VcpuId, value: u32) {
        if let Some(cpu) = self.get(number) {
            cpu.logical.store(value, Ordering::Relaxed);
        }
    }
    /// Notes a write to the register of its format.
    pub fn set_format(&self, number: VcpuId, value: u32) {
        if let Some(cpu) = self.get(number) {
            cpu.format.store(value, Ordering::Relaxed);
        }
    }
    /// Tells whether a logical destination names a processor (AMD APM vol. 2, section 16.6.1).
    pub fn is_logical(&self, number: VcpuId, destination: u8) -> bool {
        const FLAT: u32 = 0xf;
        self.get(number).is_some_and(|cpu| {
            let logical = (cpu.logical.load(Ordering::Relaxed) >> 24) as u8;
            if destination == u8::MAX || cpu.format.load(Ordering::Relaxed) >> 28 == FLAT {
                return destination & logical != 0;
            }
            destination >> 4 == logical >> 4 && destination & logical & 0xf != 0
        })
    }
}

#[cfg(test)]
mod processors_are_found {
    use super::super::processors_summon_each_other::cpus;
    use super::*;

    #[test]
    fn by_their_logical_destinations() {
        let cpus = cpus();
        for number in cpus.numbers() {
            cpus.set_logical(number, 1 << (24 + number.0));
        }
        let named = |destination| {
            let is_named = |number: &VcpuId| cpus.is_logical(*number, destination);
            cpus.numbers().filter(is_named).map(|n| n.0).sum::<u16>()
        };
        assert_eq!((named(2), named(0xff), named(0x10)), (1, 3, 0));
        for number in cpus.numbers() {
            cpus.set_format(number, 0x0fff_ffff);
            cpus.set_logical(number, u32::from(0x10u16 | 1 << number.0) << 24);
        }
        assert_eq!((named(0x12), named(0x17), named(0x27)), (1, 3, 0));
    }
}
