//! The MP table (MultiProcessor Specification 1.4, chapter 4), for systems that don't read ACPI.

use core::num::NonZeroU8;

use vmmu::addr::Gpa;
use vmmu_load::Bytes;

use super::IO_APIC_ID;
use crate::devices::places;

/// The floating pointer's length, in bytes.
const POINTER: u64 = 16;
/// The specification's revision, 1.4.
const REVISION: u8 = 4;
const ISA_BUS: u8 = 0;
const ALL_LOCAL_APICS: u8 = 0xff;
/// The local APICs' version, as their register tells it.
const LOCAL_APIC_VERSION: u8 = 0x14;
/// The I/O APIC's.
const IO_APIC_VERSION: u8 = 0x11;

/// An interrupt's type (table 4-10).
#[derive(Clone, Copy)]
enum Interrupt {
    Vectored = 0,
    NonMaskable = 1,
    External = 3,
}

/// Makes the floating pointer, to lie at `start`, and the configuration table after it.
pub(super) fn table(cpus: NonZeroU8, start: Gpa) -> Vec<u8> {
    let mut pointer = Bytes::default();
    // Below 1 MiB. One unit of 16 bytes; no default configuration; no IMCR: the board starts in virtual wire mode.
    let table = start.wrapping_add(POINTER).get() as u32;
    pointer.bytes(b"_MP_").u32(table).u8(1).u8(REVISION).u8(0);
    pointer.bytes(&[0; 5]);
    let mut bytes = with_sum(pointer.get(), 10);
    bytes.extend(configuration(cpus));
    bytes
}

fn configuration(cpus: NonZeroU8) -> Vec<u8> {
    let (entries, count) = entries(cpus);
    const HEADER: u16 = 44;
    let mut table = Bytes::default();
    table.bytes(b"PCMP");
    // At most 255 processors of 20 bytes: the length fits.
    table.u16(HEADER + entries.get().len() as u16);
    table.u8(REVISION).u8(0).bytes(b"VMMU    ");
    table.bytes(b"SOFTWARE    ").u32(0).u16(0).u16(count);
    table.u32(places::LOCAL_APIC).u16(0).u8(0).u8(0);
    table.bytes(entries.get());
    with_sum(table.get(), 7)
}

/// Returns the entries in the order of their types, and how many there are.
fn entries(cpus: NonZeroU8) -> (Bytes, u16) {
    let mut bytes = Bytes::default();
    for cpu in 0..cpus.get() {
        // Enabled, and the bootstrap processor or not. Family 6; FPU and APIC.
        let flags = 1 | u8::from(cpu == 0) << 1;
        bytes.u8(0).u8(cpu).u8(LOCAL_APIC_VERSION).u8(flags);
        bytes.u32(0x600).u32(1 | 1 << 9).u64(0);
    }
    bytes.u8(1).u8(ISA_BUS).bytes(b"ISA   ");
    bytes.u8(2).u8(IO_APIC_ID).u8(IO_APIC_VERSION).u8(1);
    bytes.u32(places::IO_APIC);
    let mut count = u16::from(cpus.get()) + 2;
    // The requests' lines: the second controller's output is on none.
    for line in (0..16).filter(|&line| line != 2) {
        let pin = if line == 0 { places::TIMER_PIN } else { line };
        let flags = if line == places::PM_REQUEST {
            0b1101
        } else {
            0
        };
        bytes.u8(3).u8(Interrupt::Vectored as u8).u16(flags);
        bytes.u8(ISA_BUS).u8(line).u8(IO_APIC_ID).u8(pin);
        count += 1;
    }
    for (pin, interrupt) in [(0, Interrupt::External), (1, Interrupt::NonMaskable)] {
        bytes.u8(4).u8(interrupt as u8).u16(0);
        bytes.u8(ISA_BUS).u8(0).u8(ALL_LOCAL_APICS).u8(pin);
        count += 1;
    }
    (bytes, count)
}

/// Sets the byte at `at` so that all add up to zero.
fn with_sum(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let sum = bytes.iter().fold(0u8, |sum, &b| sum.wrapping_add(b));
    bytes[at] = bytes[at].wrapping_sub(sum);
    bytes
}

#[cfg(test)]
mod the_mp_table {
    use super::{Gpa, NonZeroU8, table};

    #[test]
    fn adds_up_and_counts_its_entries() {
        for cpus in [1u8, 4, 255] {
            let bytes = table(NonZeroU8::new(cpus).unwrap(), Gpa::new(0xf_1000));
            let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, &b| sum.wrapping_add(b));
            assert_eq!((&bytes[..4], sum(&bytes[..16])), (&b"_MP_"[..], 0));
            assert_eq!(bytes[4..8], 0xf_1010u32.to_le_bytes());
            let table = &bytes[16..];
            let length = usize::from(u16::from_le_bytes([table[4], table[5]]));
            assert_eq!((length, sum(table)), (table.len(), 0));
            let mut at = 44;
            let mut kinds = Vec::new();
            while at < table.len() {
                kinds.push(table[at]);
                at += if table[at] == 0 { 20 } else { 8 };
            }
            assert!(kinds.is_sorted());
            assert_eq!(
                kinds.len(),
                usize::from(u16::from_le_bytes([table[34], table[35]]))
            );
            let found = kinds.iter().filter(|&&kind| kind == 0).count();
            assert_eq!(found, usize::from(cpus));
        }
    }

    #[test]
    fn has_the_timer_on_pin_2() {
        let bytes = table(NonZeroU8::MIN, Gpa::new(0xf_1000));
        let entry = [3, 0, 0, 0, 0, 0, 0, 2];
        assert!(bytes[60..].windows(8).any(|window| window == entry));
    }
}
