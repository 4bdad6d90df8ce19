//! Where the board's devices are, and which interrupt lines they have: what the tables tell and the decoder knows.

/// The local APICs' registers, after reset.
pub(crate) const LOCAL_APIC: u32 = 0xfee0_0000;
/// The I/O APIC's registers.
pub(crate) const IO_APIC: u32 = 0xfec0_0000;
/// The pin of the I/O APIC that the timer's line, interrupt request 0, is wired to. The other requests have their own number.
pub(crate) const TIMER_PIN: u8 = 2;

/// The first serial port.
pub(crate) const SERIAL: u16 = 0x3f8;

/// ACPI's fixed event registers: status and enable, two bytes each.
pub(crate) const PM_EVENT: u16 = 0x600;
/// ACPI's control register, two bytes.
pub(crate) const PM_CONTROL: u16 = 0x604;
/// ACPI's timer, four bytes.
pub(crate) const PM_TIMER: u16 = 0x608;
/// The interrupt request of ACPI's events: active high, level-triggered.
pub(crate) const PM_REQUEST: u8 = 9;
/// The sleep type that switches off.
pub(crate) const SLEEP_TYPE_OFF: u8 = 5;

/// The chipset's reset register.
pub(crate) const RESET: u16 = 0xcf9;
/// What to write there: a full reset.
pub(crate) const RESET_VALUE: u8 = 6;

/// The byte of CMOS that holds the century.
pub(crate) const CMOS_CENTURY: u8 = 0x32;
