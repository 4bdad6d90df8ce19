//! What a firmware leaves in memory: ACPI tables and an MP table, in the area below 1 MiB that the memory map reserves.
//!
//! Key types: [`Firmware`], where they are. `vmmu-load` and `mp` make the bytes.
//!
//! Invariant: every address that a table names is one of `devices/places.rs`.

mod mp;

use core::num::NonZeroU8;
use core::ops::Range;

use vmmu::addr::Gpa;
use vmmu_load::acpi::{self, Board, TimerWidth};

use super::{GuestRam, NoMemory};
use crate::devices::places;

/// Where the tables begin. Systems look for both signatures from E0000h or F0000h on (ACPI 6.5, section 5.2.5.1;
/// MultiProcessor Specification 1.4, section 4).
const START: u64 = 0xf_0000;
const END: u64 = 0x10_0000;

/// The I/O APIC's identifier, which software may change.
const IO_APIC_ID: u8 = 0;

/// The machine that the tables tell of.
const BOARD: Board = Board {
    name: *b"SOFTWARE",
    pm_event: places::PM_EVENT,
    pm_control: places::PM_CONTROL,
    pm_timer: places::PM_TIMER,
    pm_timer_width: TimerWidth::Bits32,
    pm_request: places::PM_REQUEST,
    sleep_type_off: places::SLEEP_TYPE_OFF,
    reset: places::RESET,
    reset_value: places::RESET_VALUE,
    cmos_century: places::CMOS_CENTURY,
    local_apic: places::LOCAL_APIC,
    io_apic: places::IO_APIC,
    io_apic_id: IO_APIC_ID,
    timer_pin: places::TIMER_PIN,
};

/// Where the firmware's tables are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Firmware {
    /// ACPI's root pointer.
    pub rsdp: Gpa,
    /// What they occupy: to be reserved. It lies between 640 KiB and 1 MiB, which the memory map reserves.
    pub tables: Range<Gpa>,
}

/// Writes the tables for a machine of `cpus` processors.
///
/// # Errors
/// [`NoMemory`] if RAM doesn't reach to 1 MiB.
pub fn write(cpus: NonZeroU8, ram: &mut impl GuestRam) -> Result<Firmware, NoMemory> {
    let start = Gpa::new(START);
    ram.zero(start, END - START)?;
    let acpi = acpi::tables(&BOARD, 0..cpus.get(), start);
    ram.write(start, &acpi)?;
    let mp_at = start.wrapping_add((acpi.len() as u64).next_multiple_of(16));
    let mp = mp::table(cpus, mp_at);
    ram.write(mp_at, &mp)?;
    Ok(Firmware {
        rsdp: start,
        tables: start..mp_at.wrapping_add(mp.len() as u64),
    })
}

#[cfg(test)]
mod the_tables {
    use vmmu_load::FlatRam;

    use super::{END, Firmware, NonZeroU8, write};

    #[test]
    fn fit_below_1_mib_for_any_number_of_processors() {
        for cpus in [1, 2, 255] {
            let mut ram = FlatRam::new(2 << 20);
            let Firmware { rsdp, tables } = write(NonZeroU8::new(cpus).unwrap(), &mut ram).unwrap();
            assert_eq!(ram.bytes(rsdp.get(), 8), b"RSD PTR ");
            assert!(tables.end.get() <= END);
            let mp = (tables.start.get()..END)
                .step_by(16)
                .find(|&at| ram.bytes(at, 4) == b"_MP_");
            assert!(mp.is_some());
        }
    }

    #[test]
    fn need_a_megabyte_of_ram() {
        assert!(write(NonZeroU8::MIN, &mut FlatRam::new(0xf_8000)).is_err());
    }
}
