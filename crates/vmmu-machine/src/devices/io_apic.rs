//! The I/O APIC (82093AA data sheet): 24 pins, each with a redirection entry.
//!
//! Lines are logical: a line that is set asserts its pin, whatever polarity the entry has.
//!
//! Invariant: a pin's remote IRR is set only while its entry is level-triggered.

use super::message::{Delivery, Destination, Message, Trigger};

const PINS: usize = 24;
/// Version 11h: no register for the end of interrupts.
const VERSION: u32 = 0x11;

/// Where the registers are (section 3.1).
const SELECT: u16 = 0x00;
const WINDOW: u16 = 0x10;

/// Indices of registers (section 3.2).
const ID: u8 = 0;
const VERSION_INDEX: u8 = 1;
const ARBITRATION: u8 = 2;
const FIRST_ENTRY: u8 = 0x10;

const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// Bits of an entry that can be written: all but delivery status and remote IRR, and the destination.
const WRITABLE: u64 = 0xff00_0000_0001_afff;

/// The I/O APIC.
#[derive(Clone, Debug)]
pub(super) struct IoApic {
    select: u8,
    id: u32,
    entries: [u64; PINS],
    /// The lines that are set, one bit each.
    lines: u32,
}

impl IoApic {
    /// After reset everything is masked.
    pub(super) const fn new() -> Self {
        Self {
            select: 0,
            id: 0,
            entries: [MASKED; PINS],
            lines: 0,
        }
    }

    /// Reads a register of the page.
    pub(super) fn read(&self, offset: u16) -> u32 {
        match offset {
            SELECT => self.select.into(),
            WINDOW => self.read_selected(),
            _ => 0,
        }
    }

    fn read_selected(&self) -> u32 {
        match self.select {
            ID | ARBITRATION => self.id,
            VERSION_INDEX => VERSION | (PINS as u32 - 1) << 16,
            _ => match self.selected_entry() {
                Some((pin, shift)) => (self.entries[pin] >> shift) as u32,
                None => 0,
            },
        }
    }

    /// Returns which entry is selected, and where in it the selected half begins.
    fn selected_entry(&self) -> Option<(usize, u32)> {
        let index = self.select.checked_sub(FIRST_ENTRY)?;
        let pin = usize::from(index / 2);
        (pin < PINS).then_some((pin, u32::from(index & 1) * 32))
    }

    /// Writes a register of the page; may answer with a message to send.
    #[must_use]
    pub(super) fn write(&mut self, offset: u16, value: u32) -> Option<Message> {
        match (offset, self.select) {
            (SELECT, _) => self.select = value as u8,
            (WINDOW, ID) => self.id = value & 0x0f00_0000,
            (WINDOW, _) => {
                let (pin, shift) = self.selected_entry()?;
                let kept = self.entries[pin] & !(0xffff_ffff << shift);
                return self.write_entry(pin, kept | u64::from(value) << shift);
            }
            _ => {}
        }
        None
    }

    fn write_entry(&mut self, pin: usize, value: u64) -> Option<Message> {
        let mut remote = self.entries[pin] & REMOTE_IRR;
        // Systems rely on this to end an interrupt of which the end was not told.
        if value & LEVEL == 0 {
            remote = 0;
        }
        self.entries[pin] = value & WRITABLE | remote;
        self.level(pin)
    }

    /// Sets a line; may answer with a message to send.
    #[must_use]
    pub(super) fn set_line(&mut self, pin: u8, high: bool) -> Option<Message> {
        let bit = 1 << pin;
        let rises = high && self.lines & bit == 0;
        self.lines = if high {
            self.lines | bit
        } else {
            self.lines & !bit
        };
        let pin = usize::from(pin);
        if self.entries[pin] & LEVEL != 0 {
            return self.level(pin);
        }
        // An edge on a masked pin is lost (section 3.2.4, bit 16).
        (rises && self.entries[pin] & MASKED == 0).then(|| self.message(pin))
    }

    /// Requests a level-triggered interrupt if the line is set and none is on its way.
    fn level(&mut self, pin: usize) -> Option<Message> {
        let entry = self.entries[pin];
        let asserted = self.lines & 1 << pin != 0;
        if !asserted || entry & LEVEL == 0 || entry & (MASKED | REMOTE_IRR) != 0 {
            return None;
        }
        self.entries[pin] |= REMOTE_IRR;
        Some(self.message(pin))
    }

    /// Hears of an interrupt's end: every pin that waits for it may request again.
    pub(super) fn end_of_interrupt(&mut self, vector: u8, mut send: impl FnMut(Message)) {
        for pin in 0..PINS {
            if self.entries[pin] & REMOTE_IRR != 0 && self.entries[pin] as u8 == vector {
                self.entries[pin] &= !REMOTE_IRR;
                if let Some(message) = self.level(pin) {
                    send(message);
                }
            }
        }
    }

    fn message(&self, pin: usize) -> Message {
        let entry = self.entries[pin];
        let (low, field) = (entry as u32, (entry >> 56) as u8);
        Message {
            destination: if low & 1 << 11 == 0 {
                Destination::Physical(field)
            } else {
                Destination::Logical(field)
            },
            delivery: Delivery::from_bits(low >> 8),
            trigger: Trigger::from_register(low),
            vector: low as u8,
        }
    }
}

#[cfg(test)]
mod the_io_apic {
    use super::{Delivery, Destination, IoApic, Message, Trigger};

    fn set(apic: &mut IoApic, index: u8, value: u32) -> Option<Message> {
        assert_eq!(apic.write(0, index.into()), None);
        apic.write(0x10, value)
    }
    fn get(apic: &mut IoApic, index: u8) -> u32 {
        assert_eq!(apic.write(0, index.into()), None);
        apic.read(0x10)
    }

    #[test]
    fn sends_an_edge_once() {
        let mut apic = IoApic::new();
        set(&mut apic, 0x15, 0x0300_0000);
        set(&mut apic, 0x14, 0x0930);
        let message = Message {
            destination: Destination::Logical(3),
            delivery: Delivery::Lowest,
            trigger: Trigger::Edge,
            vector: 0x30,
        };
        assert_eq!(apic.set_line(2, true), Some(message));
        assert_eq!(apic.set_line(2, true), None);
        assert_eq!(apic.set_line(2, false), None);
        assert_eq!(apic.set_line(2, true), Some(message));
    }

    #[test]
    fn loses_an_edge_on_a_masked_pin_but_not_a_level() {
        let mut apic = IoApic::new();
        assert_eq!(apic.set_line(1, true), None);
        assert_eq!(set(&mut apic, 0x12, 0x0031), None);
        assert_eq!(apic.set_line(3, true), None);
        let sent = set(&mut apic, 0x16, 0x8033).unwrap();
        assert_eq!((sent.vector, sent.trigger), (0x33, Trigger::Level));
    }

    #[test]
    fn sends_a_level_again_when_the_last_one_has_ended() {
        let mut apic = IoApic::new();
        set(&mut apic, 0x16, 0x8033);
        assert!(apic.set_line(3, true).is_some());
        assert_eq!(get(&mut apic, 0x16), 0xc033);
        assert_eq!(apic.set_line(3, false), None);
        assert_eq!(apic.set_line(3, true), None);
        let mut sent = 0;
        apic.end_of_interrupt(0x34, |_| sent += 1);
        assert_eq!(sent, 0);
        apic.end_of_interrupt(0x33, |message| {
            assert_eq!(message.vector, 0x33);
            sent += 1;
        });
        assert_eq!(sent, 1);
        assert_eq!(apic.set_line(3, false), None);
        apic.end_of_interrupt(0x33, |_| sent += 1);
        assert_eq!((sent, get(&mut apic, 0x16)), (1, 0x8033));
    }

    #[test]
    fn forgets_a_level_when_its_entry_becomes_edge_triggered() {
        let mut apic = IoApic::new();
        set(&mut apic, 0x16, 0x8033);
        assert!(apic.set_line(3, true).is_some());
        assert_eq!(set(&mut apic, 0x16, 0x1_0033), None);
        assert!(set(&mut apic, 0x16, 0x8033).is_some());
    }

    #[test]
    fn tells_how_many_pins_it_has_and_keeps_its_identifier() {
        let mut apic = IoApic::new();
        assert_eq!(get(&mut apic, 1), 0x17_0011);
        set(&mut apic, 0, 0xffff_ffff);
        assert_eq!(get(&mut apic, 0), 0x0f00_0000);
        for index in [0x40, 0x80, 0xff] {
            assert_eq!(set(&mut apic, index, u32::MAX), None);
            assert_eq!(get(&mut apic, index), 0);
        }
    }
}
