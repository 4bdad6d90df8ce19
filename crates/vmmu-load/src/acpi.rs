//! ACPI tables (ACPI specification 6.5, chapter 5), put together by acpi_tables: root pointer, XSDT, FADT, FACS, DSDT, MADT.
//!
//! Key types: [`Board`], which machine they tell of; [`tables`] makes the bytes.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use acpi_tables::Aml;
use acpi_tables::aml::{Name, Package, Path, ZERO};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vmmu::addr::Gpa;

use crate::Bytes;

const OEM: [u8; 6] = *b"VMMU  ";
const REVISION: u32 = 1;

/// `IAPC_BOOT_ARCH` (table 5.11): devices on the ISA bus, no VGA, no MSI. That there is a keyboard controller is not said: it
/// has no keyboard.
const BOOT_FLAGS: u16 = 1 << 0 | 1 << 2 | 1 << 3;

/// Where the devices of a machine like a PC are, and how they are wired.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Board {
    /// The machine's name, in every table.
    pub name: [u8; 8],
    /// The port of the fixed event registers: status and enable, two bytes each.
    pub pm_event: u16,
    /// The port of the control register, two bytes.
    pub pm_control: u16,
    /// The port of the timer, four bytes.
    pub pm_timer: u16,
    /// How far the timer counts.
    pub pm_timer_width: TimerWidth,
    /// The interrupt request of ACPI's events: active high, level-triggered.
    pub pm_request: u8,
    /// The sleep type that switches off.
    pub sleep_type_off: u8,
    /// The port of the reset register, one byte.
    pub reset: u16,
    /// What to write there.
    pub reset_value: u8,
    /// The byte of CMOS that holds the century.
    pub cmos_century: u8,
    /// The local APICs' registers.
    pub local_apic: u32,
    /// The I/O APIC's registers.
    pub io_apic: u32,
    /// The I/O APIC's identifier.
    pub io_apic_id: u8,
    /// The pin of the I/O APIC that the timer's request, 0, is wired to. The other requests have their own number.
    pub timer_pin: u8,
}

/// How many bits ACPI's timer has (section 4.8.3.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimerWidth {
    /// It wraps after 24 bits.
    Bits24,
    /// It wraps after 32 bits.
    Bits32,
}

/// Makes all tables of a board whose processors have local APICs with these `identifiers`, to lie from `start` on, below 4 GiB; the root pointer comes
/// first.
#[must_use]
pub fn tables(board: &Board, identifiers: Range<u8>, start: Gpa) -> Vec<u8> {
    let mut area = Area {
        start: start.get(),
        bytes: vec![0; Rsdp::len()],
    };
    let facs = area.add(&bytes_of(&FACS::new()));
    let dsdt = area.add(board.dsdt().as_slice());
    let fadt = area.add(&bytes_of(&board.fadt(facs, dsdt)));
    let madt = area.add(board.madt(identifiers).as_slice());
    let mut xsdt = XSDT::new(OEM, board.name, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = area.add(&bytes_of(&xsdt));
    let rsdp = bytes_of(&Rsdp::new(OEM, xsdt));
    area.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    area.bytes
}

/// Tables one after the other.
struct Area {
    start: u64,
    bytes: Vec<u8>,
}

impl Area {
    /// Adds a table at a multiple of 64, as the FACS needs (section 5.2.10), and returns its address.
    fn add(&mut self, table: &[u8]) -> u64 {
        let at = self.bytes.len().next_multiple_of(64);
        self.bytes.resize(at, 0);
        self.bytes.extend(table);
        self.start + at as u64
    }
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

impl Board {
    /// Makes the fixed table (section 5.2.9). The machine is in ACPI mode from the start: there is no SMI command port.
    fn fadt(&self, facs: u64, dsdt: u64) -> FADT {
        let port = |port: u16, bits: u8, size| {
            GAS::new(AddressSpace::SystemIo, bits, 0, size, u64::from(port))
        };
        let mut table = FADTBuilder::new(OEM, self.name, REVISION)
            .flag(Flags::Wbinvd)
            .flag(Flags::ProcC1)
            .flag(Flags::PwrButton)
            .flag(Flags::SlpButton)
            .flag(Flags::ResetRegSup);
        if self.pm_timer_width == TimerWidth::Bits32 {
            table = table.flag(Flags::TmrValExt);
        }
        // The area lies below 4 GiB.
        table.firmware_ctrl = (facs as u32).into();
        table.dsdt = (dsdt as u32).into();
        table.x_dsdt = dsdt.into();
        table.sci_int = u16::from(self.pm_request).into();
        table.pm1a_evt_blk = u32::from(self.pm_event).into();
        table.x_pm1a_evt_blk = port(self.pm_event, 32, AccessSize::WordAccess);
        table.pm1_evt_len = 4;
        table.pm1a_cnt_blk = u32::from(self.pm_control).into();
        table.x_pm1a_cnt_blk = port(self.pm_control, 16, AccessSize::WordAccess);
        table.pm1_cnt_len = 2;
        table.pm_tmr_blk = u32::from(self.pm_timer).into();
        table.x_pm_tmr_blk = port(self.pm_timer, 32, AccessSize::DwordAccess);
        table.pm_tmr_len = 4;
        // Latencies above 100 and 1000 microseconds: no C2, no C3.
        table.p_lvl2_lat = 0xfff.into();
        table.p_lvl3_lat = 0xfff.into();
        table.century = self.cmos_century;
        table.iapc_boot_arch = BOOT_FLAGS.into();
        table.reset_reg = port(self.reset, 8, AccessSize::ByteAccess);
        table.reset_value = self.reset_value;
        table.finalize()
    }

    /// Makes the differentiated table: all that it has is how to switch off.
    fn dsdt(&self) -> Sdt {
        let off = self.sleep_type_off;
        let sleep = Package::new(vec![&off, &off, &ZERO, &ZERO]);
        let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, self.name, REVISION);
        table.append_slice(&bytes_of(&Name::new(Path::new("_S5_"), &sleep)));
        table
    }

    /// Makes the table of interrupt controllers (section 5.2.12).
    fn madt(&self, identifiers: Range<u8>) -> Sdt {
        /// There is a pair of 8259s too.
        const PC_AT_COMPATIBLE: u32 = 1;
        const ENABLED: u32 = 1;
        const ALL_PROCESSORS: u8 = 0xff;
        const ACTIVE_HIGH_LEVEL: u16 = 0b1101;
        let mut body = Bytes::default();
        body.u32(self.local_apic).u32(PC_AT_COMPATIBLE);
        for (identifier, number) in identifiers.zip(0..) {
            // Processor local APIC.
            body.u8(0).u8(8).u8(number).u8(identifier).u32(ENABLED);
        }
        // I/O APIC, from interrupt 0 on.
        body.u8(1).u8(12).u8(self.io_apic_id).u8(0);
        body.u32(self.io_apic).u32(0);
        // Interrupt source overrides of the ISA bus.
        body.u8(2).u8(10).u8(0).u8(0);
        body.u32(self.timer_pin.into()).u16(0);
        body.u8(2).u8(10).u8(0).u8(self.pm_request);
        body.u32(self.pm_request.into()).u16(ACTIVE_HIGH_LEVEL);
        // Local APIC NMI: LINT1 everywhere.
        body.u8(4).u8(6).u8(ALL_PROCESSORS).u16(0).u8(1);
        let mut table = Sdt::new(*b"APIC", 36, 5, OEM, self.name, REVISION);
        table.append_slice(body.get());
        table
    }
}

#[cfg(test)]
mod acpi_tables_say {
    use super::{Board, Gpa, TimerWidth, Vec, tables};

    const START: u64 = 0xf_0000;

    const BOARD: Board = Board {
        name: *b"TEST    ",
        pm_event: 0x600,
        pm_control: 0x604,
        pm_timer: 0x608,
        pm_timer_width: TimerWidth::Bits32,
        pm_request: 9,
        sleep_type_off: 5,
        reset: 0xcf9,
        reset_value: 6,
        cmos_century: 0x32,
        local_apic: 0xfee0_0000,
        io_apic: 0xfec0_0000,
        io_apic_id: 0,
        timer_pin: 2,
    };

    fn number(bytes: &[u8], at: usize, width: usize) -> u64 {
        let field = &bytes[at..at + width];
        field.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b))
    }

    /// Walks from the root pointer to the tables that the XSDT lists, checking every sum.
    fn table<'a>(area: &'a [u8], signature: &[u8; 4]) -> &'a [u8] {
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, &b| sum.wrapping_add(b));
        assert_eq!(&area[..8], b"RSD PTR ");
        assert_eq!((sum(&area[..20]), sum(&area[..36]), area[15]), (0, 0, 2));
        let at = |address: u64| {
            let table = &area[(address - START) as usize..];
            let table = &table[..number(table, 4, 4) as usize];
            assert!(sum(table) == 0 || &table[..4] == b"FACS");
            table
        };
        let xsdt = at(number(area, 24, 8));
        let listed = (36..xsdt.len()).step_by(8).map(|i| at(number(xsdt, i, 8)));
        let fadt = listed.clone().find(|table| &table[..4] == b"FACP").unwrap();
        let mut all = listed.chain([at(number(fadt, 140, 8)), at(number(fadt, 36, 4))]);
        all.find(|table| &table[..4] == signature).unwrap()
    }

    fn area(cpus: u8) -> Vec<u8> {
        tables(&BOARD, 3..3 + cpus, Gpa::new(START))
    }

    #[test]
    fn where_power_is_managed() {
        let area = area(2);
        let fadt = table(&area, b"FACP");
        assert_eq!(number(fadt, 56, 4), 0x600);
        assert_eq!(number(fadt, 64, 4), 0x604);
        assert_eq!(number(fadt, 76, 4), 0x608);
        // The reset register's address and value.
        assert_eq!((number(fadt, 120, 8), number(fadt, 128, 1)), (0xcf9, 6));
        // Not hardware-reduced; a timer of 32 bits.
        assert_eq!(number(fadt, 112, 4) & (1 << 20 | 1 << 8), 1 << 8);
        assert_eq!(table(&area, b"FACS").len(), 64);
    }

    #[test]
    fn how_to_switch_off() {
        let area = area(1);
        let aml = &table(&area, b"DSDT")[36..];
        // Name (_S5, Package (4) { 5, 5, 0, 0 }) (section 20.2).
        assert_eq!(aml, b"\x08_S5_\x12\x08\x04\x0a\x05\x0a\x05\x00\x00");
    }

    #[test]
    fn which_processors_and_interrupt_controllers_there_are() {
        let area = area(3);
        let madt = table(&area, b"APIC");
        assert_eq!(number(madt, 36, 4), 0xfee0_0000);
        let mut at = 44;
        let mut found = Vec::new();
        while at < madt.len() {
            let length = usize::from(madt[at + 1]);
            found.push(&madt[at..at + length]);
            at += length;
        }
        let cpus: Vec<u8> = found.iter().filter(|e| e[0] == 0).map(|e| e[3]).collect();
        assert_eq!(cpus, [3, 4, 5]);
        let io_apic = found.iter().find(|e| e[0] == 1).unwrap();
        assert_eq!(number(io_apic, 4, 4), 0xfec0_0000);
        let timer = found.iter().find(|e| e[0] == 2 && e[3] == 0).unwrap();
        assert_eq!(number(timer, 4, 4), 2);
    }
}
