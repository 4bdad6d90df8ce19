//! One local APIC in xAPIC mode (Intel SDM vol. 3, chapter 11): registers, priorities, what it accepts and sends.
//!
//! Key type: [`LocalApic`], without locks and without other processors: writes answer with the [`Action`] that reaches
//! beyond it.
//!
//! Invariants:
//! 1. A vector below 16 is never in IRR.
//! 2. TMR tells of each vector in IRR or ISR whether its end is told to the I/O APIC.

mod registers;
mod timer;
mod vector_table;
mod vectors;

pub(super) use registers::Register;

use self::timer::{Mode, Timer};
use self::vector_table::{Entry, VectorTable};
use self::vectors::Vectors;
use super::Time;
use super::message::{Delivery, Destination, Message, Trigger};

/// IA32_APIC_BASE: the bootstrap processor.
pub(super) const BASE_BOOTSTRAP: u64 = 1 << 8;
/// IA32_APIC_BASE: the APIC is enabled.
pub(super) const BASE_ENABLED: u64 = 1 << 11;

/// The spurious-interrupt register's bit that enables the APIC.
const SOFTWARE_ENABLED: u32 = 1 << 8;

/// Bits of the error-status register.
mod error {
    pub(super) const SEND_ILLEGAL: u32 = 1 << 5;
    pub(super) const RECEIVED_ILLEGAL: u32 = 1 << 6;
    pub(super) const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// What a write asks of the rest of the board.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Action {
    /// Nothing.
    None,
    /// Send this.
    Send(Message),
    /// Tell the I/O APIC that a level-triggered interrupt has ended.
    EndOfInterrupt(u8),
}

/// What an acknowledge cycle found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Acknowledged {
    /// Nothing.
    Nothing,
    /// This vector, which is in service now.
    Vector(u8),
    /// The 8259s' output: they know the vector.
    External,
}

/// A local APIC.
#[derive(Clone, Debug)]
pub(super) struct LocalApic {
    id: u8,
    globally_enabled: bool,
    task_priority: u8,
    logical_id: u32,
    destination_format: u32,
    spurious: u32,
    /// Errors since the status register was last written.
    errors: u32,
    /// What the status register shows.
    error_status: u32,
    command: [u32; 2],
    table: VectorTable,
    timer: Timer,
    requested: Vectors,
    in_service: Vectors,
    level_triggered: Vectors,
    /// The level of LINT0, where the 8259s' output is.
    lint0: bool,
}

impl LocalApic {
    /// Makes an APIC in its state after reset.
    pub(super) fn new(id: u8) -> Self {
        Self {
            id,
            globally_enabled: true,
            task_priority: 0,
            logical_id: 0,
            destination_format: u32::MAX,
            spurious: 0xff,
            errors: 0,
            error_status: 0,
            command: [0; 2],
            table: VectorTable::new(),
            timer: Timer::new(),
            requested: Vectors::default(),
            in_service: Vectors::default(),
            level_triggered: Vectors::default(),
            lint0: false,
        }
    }

    /// Does what firmware does on the bootstrap processor: virtual wire mode (MultiProcessor Specification 1.4, section
    /// 3.6.2.2), so that the 8259s' interrupts pass.
    pub(super) fn set_virtual_wire(&mut self) {
        const EXTERNAL: u32 = 7 << 8;
        const NMI: u32 = 4 << 8;
        self.spurious |= SOFTWARE_ENABLED;
        self.table.set(Entry::Lint0, EXTERNAL);
        self.table.set(Entry::Lint1, NMI);
    }

    /// Resets on INIT: all but the identifier and IA32_APIC_BASE (section 11.4.7.3).
    pub(super) fn reset(&mut self) {
        *self = Self {
            globally_enabled: self.globally_enabled,
            lint0: self.lint0,
            ..Self::new(self.id)
        };
    }

    /// Follows the enable bit of IA32_APIC_BASE. What is disabled loses its state (section 11.4.3).
    pub(super) fn set_globally_enabled(&mut self, enabled: bool) {
        if self.globally_enabled && !enabled {
            self.reset();
        }
        self.globally_enabled = enabled;
    }

    fn software_enabled(&self) -> bool {
        self.spurious & SOFTWARE_ENABLED != 0
    }

    /// Tells whether it accepts interrupts.
    pub(super) fn is_enabled(&self) -> bool {
        self.globally_enabled && self.software_enabled()
    }

    /// Tells whether it takes messages at all.
    pub(super) const fn is_globally_enabled(&self) -> bool {
        self.globally_enabled
    }

    /// Returns the task-priority register.
    pub(super) const fn task_priority(&self) -> u8 {
        self.task_priority
    }
    /// Sets the task-priority register.
    pub(super) const fn set_task_priority(&mut self, priority: u8) {
        self.task_priority = priority;
    }

    /// Returns the processor priority (section 11.8.3.1): the task's, or the class of what is in service if that is higher.
    pub(super) fn processor_priority(&self) -> u8 {
        let service = self.in_service.highest().unwrap_or(0);
        if self.task_priority >> 4 >= service >> 4 {
            self.task_priority
        } else {
            service & 0xf0
        }
    }

    /// Returns the vector that would be taken now.
    fn deliverable(&self) -> Option<u8> {
        let vector = self.requested.highest()?;
        (self.is_enabled() && vector >> 4 > self.processor_priority() >> 4).then_some(vector)
    }

    /// Tells whether the 8259s' output reaches the processor: through LINT0, or past an APIC that is disabled.
    fn external(&self) -> bool {
        self.lint0
            && (!self.globally_enabled
                || self.table.unmasked(Entry::Lint0) == Some(Delivery::External))
    }

    /// Tells whether an interrupt can be acknowledged.
    pub(super) fn has_interrupt(&self) -> bool {
        self.external() || self.deliverable().is_some()
    }

    /// Acknowledges an interrupt. An external one comes first: priorities don't hold it back.
    pub(super) fn acknowledge(&mut self) -> Acknowledged {
        if self.external() {
            return Acknowledged::External;
        }
        let Some(vector) = self.deliverable() else {
            return Acknowledged::Nothing;
        };
        self.requested.remove(vector);
        self.in_service.insert(vector);
        Acknowledged::Vector(vector)
    }

    /// Accepts an interrupt.
    pub(super) fn request(&mut self, vector: u8, trigger: Trigger) {
        if !self.is_enabled() {
            return;
        }
        if vector < 16 {
            self.raise_error(error::RECEIVED_ILLEGAL);
            return;
        }
        self.requested.insert(vector);
        match trigger {
            Trigger::Edge => self.level_triggered.remove(vector),
            Trigger::Level => self.level_triggered.insert(vector),
        }
    }

    /// Sets the level of LINT0; tells whether its rise is an NMI.
    #[must_use]
    pub(super) fn set_lint0(&mut self, high: bool) -> bool {
        let rises = high && !self.lint0;
        self.lint0 = high;
        if !rises || !self.globally_enabled {
            return false;
        }
        match self.table.unmasked(Entry::Lint0) {
            Some(Delivery::Fixed) => {
                self.request(self.table.vector(Entry::Lint0), Trigger::Edge);
                false
            }
            Some(Delivery::Nmi) => true,
            _ => false,
        }
    }

    /// Tells whether a message with this destination, from elsewhere, is for this APIC (section 11.6.2).
    pub(super) fn matches(&self, destination: Destination) -> bool {
        match destination {
            Destination::Physical(id) => id == 0xff || id == self.id,
            Destination::Logical(bits) => self.matches_logical(bits),
            Destination::Itself => false,
            Destination::All | Destination::Others => true,
        }
    }

    fn matches_logical(&self, bits: u8) -> bool {
        let own = (self.logical_id >> 24) as u8;
        if self.destination_format >> 28 == 0xf {
            return own & bits != 0;
        }
        // The cluster model: a cluster and a set of its four members.
        let cluster = bits >> 4;
        (cluster == 0xf || cluster == own >> 4) && own & bits & 0xf != 0
    }

    /// Tells when the timer expires.
    pub(super) fn next_event(&self) -> Option<Time> {
        self.timer.expires()
    }

    /// Lets the timer expire if it is time.
    pub(super) fn fire(&mut self, now: Time) {
        if self.timer.fire(now) {
            self.request_local(Entry::Timer);
        }
    }

    fn request_local(&mut self, entry: Entry) {
        if self.table.unmasked(entry).is_some() {
            self.request(self.table.vector(entry), Trigger::Edge);
        }
    }

    fn raise_error(&mut self, bit: u32) {
        let new = self.errors & bit == 0;
        self.errors |= bit;
        // The error interrupt's own vector may be illegal: once is enough.
        if new {
            self.request_local(Entry::Error);
        }
    }

    fn set_spurious(&mut self, value: u32) {
        self.spurious = value & 0x3ff;
        if !self.software_enabled() {
            self.table.mask_all();
        }
    }

    fn set_table(&mut self, entry: Entry, value: u32) {
        self.table.set(entry, value);
        if !self.software_enabled() {
            self.table.mask_all();
        }
        if entry == Entry::Timer {
            self.timer.set_mode(Mode::from_entry(self.table.get(entry)));
        }
    }

    /// Ends the interrupt of the highest priority in service.
    fn end_of_interrupt(&mut self) -> Action {
        let Some(vector) = self.in_service.highest() else {
            return Action::None;
        };
        self.in_service.remove(vector);
        if self.level_triggered.contains(vector) {
            Action::EndOfInterrupt(vector)
        } else {
            Action::None
        }
    }

    /// Sends what the command register says (section 11.6.1).
    fn send(&mut self) -> Action {
        let [low, high] = self.command;
        let delivery = Delivery::from_bits(low >> 8);
        // INIT with a cleared level bit only synchronises arbitration identifiers, which don't exist any more.
        if delivery == Delivery::Init && low & 1 << 14 == 0 {
            return Action::None;
        }
        let vector = low as u8;
        if matches!(delivery, Delivery::Fixed | Delivery::Lowest) && vector < 16 {
            self.raise_error(error::SEND_ILLEGAL);
            return Action::None;
        }
        let field = (high >> 24) as u8;
        let destination = match low >> 18 & 3 {
            0 if low & 1 << 11 == 0 => Destination::Physical(field),
            0 => Destination::Logical(field),
            1 => Destination::Itself,
            2 => Destination::All,
            _ => Destination::Others,
        };
        Action::Send(Message {
            destination,
            delivery,
            // Interrupts between processors are edge-triggered whatever the register says.
            trigger: Trigger::Edge,
            vector,
        })
    }
}

#[cfg(test)]
mod tests;
