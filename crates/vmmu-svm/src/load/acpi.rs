//! ACPI tables, by which a guest finds its other processors.
//!
//! A guest with one processor gets none: it finds its way without. What the tables name are the devices of QEMU's `pc` machine, which the
//! guest owns; its firmware has put the power-management registers where they are.

use core::num::NonZeroU8;

use vmmu::addr::Gpa;
use vmmu::host::VcpuId;
use vmmu_load::acpi::{Board, TimerWidth, tables};
use vmmu_load::{GuestRam, NoMemory};

use crate::arch::apic;
use crate::cpus::identifier;
use crate::permission::{PM_CONTROL, RESET};

/// Where the tables lie: systems look for the root pointer from E0000h on (ACPI 6.5, section 5.2.5.1), which the memory map reserves.
const START: Gpa = Gpa::new(0xf_0000);

/// The machine that the tables tell of.
const BOARD: Board = Board {
    name: *b"SVM     ",
    pm_event: 0x600,
    pm_control: PM_CONTROL,
    pm_timer: 0x608,
    pm_timer_width: TimerWidth::Bits24,
    pm_request: 9,
    sleep_type_off: 0,
    reset: RESET,
    reset_value: 6,
    cmos_century: 0x32,
    local_apic: apic::BASE.get() as u32,
    io_apic: 0xfec0_0000,
    io_apic_id: 0,
    timer_pin: 2,
};

/// Writes the tables of a machine with `cpus` processors; returns where the root pointer is.
///
/// # Errors
/// [`NoMemory`] if RAM doesn't reach there.
pub fn write(cpus: NonZeroU8, ram: &mut impl GuestRam) -> Result<Gpa, NoMemory> {
    let first = identifier(VcpuId(0), cpus);
    ram.write(START, &tables(&BOARD, first..first + cpus.get(), START))?;
    Ok(START)
}

#[cfg(test)]
mod acpi_tables_say {
    use vmmu_load::FlatRam;

    use super::{NonZeroU8, START, write};

    fn written(cpus: u8) -> FlatRam {
        let mut ram = FlatRam::new(2 << 20);
        write(NonZeroU8::new(cpus).unwrap(), &mut ram).unwrap();
        ram
    }

    /// Finds a table by its signature, through the root pointer and the XSDT.
    fn table(ram: &FlatRam, signature: &[u8; 4]) -> u64 {
        let xsdt = ram.number(START.get() + 24, 8);
        let end = xsdt + ram.number(xsdt + 4, 4);
        let mut listed = (xsdt + 36..end).step_by(8).map(|at| ram.number(at, 8));
        listed.find(|&at| ram.bytes(at, 4) == signature).unwrap()
    }

    #[test]
    fn where_power_is_managed() {
        let ram = written(2);
        let fadt = table(&ram, b"FACP");
        assert_eq!(ram.number(fadt + 64, 4), 0x604);
        // Neither hardware-reduced nor with a timer of 32 bits.
        assert_eq!(ram.number(fadt + 112, 4) & (1 << 20 | 1 << 8), 0);
        // Name (_S5, Package (4) { 0, 0, 0, 0 }) (section 20.2).
        let aml = ram.bytes(ram.number(fadt + 140, 8) + 36, 12);
        assert_eq!(aml, b"\x08_S5_\x12\x06\x04\x00\x00\x00\x00");
    }

    #[test]
    fn as_many_processors_as_there_are() {
        for cpus in [2u8, 16] {
            let ram = written(cpus);
            let madt = table(&ram, b"APIC");
            let first = madt + 44;
            let entries = (0..).map(|i| {
                (
                    ram.number(first + 8 * i, 2),
                    ram.number(first + 8 * i + 3, 1),
                )
            });
            let found = entries.take_while(|&(kind, _)| kind == 0x0800);
            // The host's first processor is none of the guest's.
            assert!(found.map(|(_, identifier)| identifier).eq(1..=cpus.into()));
        }
    }

    #[test]
    fn nothing_where_no_memory_is() {
        assert!(write(NonZeroU8::MIN, &mut FlatRam::new(0xf_0000)).is_err());
    }
}
