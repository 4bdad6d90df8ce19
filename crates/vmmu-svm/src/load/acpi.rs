//! ACPI tables (ACPI specification 6.5, chapter 5), by which a guest finds its other processors.
//!
//! A guest with one processor gets none: it finds its way without. What the tables name are the devices of QEMU's `pc` machine, which the
//! guest owns; its firmware has put the power-management registers where they are.

use alloc::vec;
use alloc::vec::Vec;
use core::num::NonZeroU8;

use acpi_tables::Aml;
use acpi_tables::aml::{Name, Package, Path, ZERO};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vmmu::addr::Gpa;
use vmmu::host::VcpuId;

use super::{Bytes, Memory};
use crate::arch::apic;
use crate::arch::guest_ram::NoMemory;
use crate::cpus::identifier;
use crate::permission::{PM_CONTROL, RESET};

/// Where the tables lie: systems look for the root pointer from E0000h on (section 5.2.5.1), which the memory map reserves.
const START: Gpa = Gpa::new(0xf_0000);
const OEM: [u8; 6] = *b"VMMU  ";
const OEM_TABLE: [u8; 8] = *b"SVM     ";
const REVISION: u32 = 1;

const PM_EVENT: u16 = 0x600;
const PM_TIMER: u16 = 0x608;
/// The interrupt of power management.
const PM_REQUEST: u8 = 9;
/// What makes the reset register reset.
const RESET_VALUE: u8 = 6;
/// Where the century lies in the clock's memory.
const CENTURY: u8 = 0x32;
const IO_APIC: u32 = 0xfec0_0000;
const IO_APIC_ID: u8 = 0;
/// The timer's pin of the I/O APIC.
const TIMER_PIN: u8 = 2;

/// `IAPC_BOOT_ARCH` (table 5.11): devices on the ISA bus, no VGA, no MSI.
const BOOT_FLAGS: u16 = 1 << 0 | 1 << 2 | 1 << 3;

/// Writes the tables of a machine with `cpus` processors; returns where the root pointer is.
///
/// # Errors
/// [`NoMemory`] if RAM doesn't reach there.
pub fn write(cpus: NonZeroU8, memory: &impl Memory) -> Result<Gpa, NoMemory> {
    memory.write(START, &tables(cpus))?;
    Ok(START)
}

/// Makes all tables; the root pointer comes first.
fn tables(cpus: NonZeroU8) -> Vec<u8> {
    let mut area = Area(vec![0; Rsdp::len()]);
    let facs = area.add(&bytes_of(&FACS::new()));
    let dsdt = area.add(dsdt().as_slice());
    let fadt = area.add(&bytes_of(&fadt(facs, dsdt)));
    let madt = area.add(madt(cpus).as_slice());
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = area.add(&bytes_of(&xsdt));
    let rsdp = bytes_of(&Rsdp::new(OEM, xsdt));
    for (to, from) in area.0.iter_mut().zip(rsdp) {
        *to = from;
    }
    area.0
}

/// Tables one after the other.
struct Area(Vec<u8>);

impl Area {
    /// Adds a table at a multiple of 64, as the FACS needs (section 5.2.10), and returns its address.
    fn add(&mut self, table: &[u8]) -> u64 {
        let at = self.0.len().next_multiple_of(64);
        self.0.resize(at, 0);
        self.0.extend(table);
        START.get() + at as u64
    }
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Makes the fixed table (section 5.2.9). The machine is in ACPI mode from the start: there is no SMI command port.
fn fadt(facs: u64, dsdt: u64) -> FADT {
    let port = |port: u16, bits: u8, size| {
        GAS::new(AddressSpace::SystemIo, bits, 0, size, u64::from(port))
    };
    let mut table = FADTBuilder::new(OEM, OEM_TABLE, REVISION)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup);
    // The tables lie below 4 GiB.
    table.firmware_ctrl = (facs as u32).into();
    table.dsdt = (dsdt as u32).into();
    table.x_dsdt = dsdt.into();
    table.sci_int = u16::from(PM_REQUEST).into();
    table.pm1a_evt_blk = u32::from(PM_EVENT).into();
    table.x_pm1a_evt_blk = port(PM_EVENT, 32, AccessSize::WordAccess);
    table.pm1_evt_len = 4;
    table.pm1a_cnt_blk = u32::from(PM_CONTROL).into();
    table.x_pm1a_cnt_blk = port(PM_CONTROL, 16, AccessSize::WordAccess);
    table.pm1_cnt_len = 2;
    table.pm_tmr_blk = u32::from(PM_TIMER).into();
    table.x_pm_tmr_blk = port(PM_TIMER, 32, AccessSize::DwordAccess);
    table.pm_tmr_len = 4;
    // Latencies above 100 and 1000 microseconds: no C2, no C3.
    table.p_lvl2_lat = 0xfff.into();
    table.p_lvl3_lat = 0xfff.into();
    table.century = CENTURY;
    table.iapc_boot_arch = BOOT_FLAGS.into();
    table.reset_reg = port(RESET, 8, AccessSize::ByteAccess);
    table.reset_value = RESET_VALUE;
    table.finalize()
}

/// Makes the differentiated table: all that it has is how to switch off, by sleep type 0.
fn dsdt() -> Sdt {
    let sleep = Package::new(vec![&ZERO, &ZERO, &ZERO, &ZERO]);
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, REVISION);
    table.append_slice(&bytes_of(&Name::new(Path::new("_S5_"), &sleep)));
    table
}

/// Makes the table of interrupt controllers (section 5.2.12).
fn madt(cpus: NonZeroU8) -> Sdt {
    /// There is a pair of 8259s too.
    const PC_AT_COMPATIBLE: u32 = 1;
    const ENABLED: u32 = 1;
    const ALL_PROCESSORS: u8 = 0xff;
    const ACTIVE_HIGH_LEVEL: u16 = 0b1101;
    let mut body = Bytes::default();
    body.u32(apic::BASE.get() as u32).u32(PC_AT_COMPATIBLE);
    for cpu in 0..cpus.get() {
        // Processor local APIC: its number and its identifier.
        let identifier = identifier(VcpuId(cpu.into()), cpus);
        body.bytes(&[0, 8, cpu, identifier]).u32(ENABLED);
    }
    // I/O APIC, from interrupt 0 on.
    body.bytes(&[1, 12, IO_APIC_ID, 0]).u32(IO_APIC).u32(0);
    // Interrupt source overrides of the ISA bus.
    body.bytes(&[2, 10, 0, 0]).u32(TIMER_PIN.into()).u16(0);
    body.bytes(&[2, 10, 0, PM_REQUEST]).u32(PM_REQUEST.into());
    body.u16(ACTIVE_HIGH_LEVEL);
    // Local APIC NMI: LINT1 everywhere.
    body.bytes(&[4, 6, ALL_PROCESSORS, 0, 0, 1]);
    let mut table = Sdt::new(*b"APIC", 36, 5, OEM, OEM_TABLE, REVISION);
    table.append_slice(body.get());
    table
}

#[cfg(test)]
mod acpi_tables_say {
    use super::*;
    use crate::load::test_memory::TestMemory;

    /// Walks from the root pointer to the tables that the XSDT lists, checking every sum.
    fn table(memory: &TestMemory, signature: &[u8; 4]) -> Vec<u8> {
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, &b| sum.wrapping_add(b));
        let root = memory.bytes(START.get(), 36);
        assert_eq!(&root[..8], b"RSD PTR ");
        assert_eq!((sum(&root[..20]), sum(&root)), (0, 0));
        let at = |address: u64| {
            let length = memory.number(address + 4, 4);
            let table = memory.bytes(address, length as usize);
            assert_eq!(sum(&table), 0);
            table
        };
        let xsdt = at(memory.number(START.get() + 24, 8));
        let address = |i: usize| u64::from_le_bytes(xsdt[i..i + 8].try_into().unwrap());
        let listed = (36..xsdt.len()).step_by(8).map(|i| at(address(i)));
        listed
            .into_iter()
            .find(|table| &table[..4] == signature)
            .unwrap()
    }

    fn written(cpus: u8) -> TestMemory {
        let memory = TestMemory::new(2 << 20);
        write(NonZeroU8::new(cpus).unwrap(), &memory).unwrap();
        memory
    }

    #[test]
    fn which_processors_there_are() {
        let madt = table(&written(16), b"APIC");
        let mut rest = &madt[44..];
        let mut cpus = Vec::new();
        while let [kind, length, ..] = *rest {
            if kind == 0 {
                cpus.push(rest[3]);
            }
            rest = &rest[usize::from(length)..];
        }
        assert_eq!(cpus, (1..=16).collect::<Vec<_>>());
    }

    #[test]
    fn where_power_is_managed() {
        let fadt = table(&written(2), b"FACP");
        assert_eq!(fadt[64..68], 0x604u32.to_le_bytes());
        // Not hardware-reduced: the timer and the 8259s are used.
        assert_eq!(fadt[112 + 2] & 1 << 4, 0);
    }

    #[test]
    fn nothing_where_no_memory_is() {
        assert!(write(NonZeroU8::MIN, &TestMemory::new(0xf_0000)).is_err());
    }
}
