//! The registers' addresses (Intel SDM vol. 3, table 11-1), reading and writing.

use super::vector_table::Entry;
use super::{Action, LocalApic, Time, error};

/// Version 14h, with six entries in the vector table and no suppression of broadcasts.
const VERSION: u32 = 0x14 | 5 << 16;

/// A register, by its offset in the page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Register(u16);

impl Register {
    pub(crate) const ID: Self = Self(0x20);
    pub(crate) const VERSION: Self = Self(0x30);
    pub(crate) const TASK_PRIORITY: Self = Self(0x80);
    pub(crate) const ARBITRATION_PRIORITY: Self = Self(0x90);
    pub(crate) const PROCESSOR_PRIORITY: Self = Self(0xa0);
    pub(crate) const END_OF_INTERRUPT: Self = Self(0xb0);
    pub(crate) const REMOTE_READ: Self = Self(0xc0);
    pub(crate) const LOGICAL_ID: Self = Self(0xd0);
    pub(crate) const DESTINATION_FORMAT: Self = Self(0xe0);
    pub(crate) const SPURIOUS: Self = Self(0xf0);
    pub(crate) const IN_SERVICE: Self = Self(0x100);
    pub(crate) const TRIGGER_MODE: Self = Self(0x180);
    pub(crate) const REQUESTED: Self = Self(0x200);
    pub(crate) const ERROR_STATUS: Self = Self(0x280);
    pub(crate) const COMMAND_LOW: Self = Self(0x300);
    pub(crate) const COMMAND_HIGH: Self = Self(0x310);
    pub(crate) const TIMER: Self = Self(0x320);
    pub(crate) const THERMAL: Self = Self(0x330);
    pub(crate) const PERFORMANCE: Self = Self(0x340);
    pub(crate) const LINT0: Self = Self(0x350);
    pub(crate) const LINT1: Self = Self(0x360);
    pub(crate) const ERROR: Self = Self(0x370);
    pub(crate) const INITIAL_COUNT: Self = Self(0x380);
    pub(crate) const CURRENT_COUNT: Self = Self(0x390);
    pub(crate) const DIVIDE: Self = Self(0x3e0);
}

impl Register {
    /// Makes a register from an offset in the page: they are 16 bytes apart.
    pub(crate) const fn at(offset: u16) -> Self {
        Self(offset & 0xff0)
    }

    const fn entry(self) -> Option<Entry> {
        Some(match self {
            Self::TIMER => Entry::Timer,
            Self::THERMAL => Entry::Thermal,
            Self::PERFORMANCE => Entry::Performance,
            Self::LINT0 => Entry::Lint0,
            Self::LINT1 => Entry::Lint1,
            Self::ERROR => Entry::Error,
            _ => return None,
        })
    }

    /// Returns which of eight registers this is, if it is one of those from `first` on.
    fn index(self, first: Self) -> Option<usize> {
        let index = usize::from(self.0.checked_sub(first.0)? / 16);
        (index < 8).then_some(index)
    }
}

impl LocalApic {
    /// Reads a register.
    pub(crate) fn read(&mut self, now: Time, register: Register) -> u32 {
        if let Some(entry) = register.entry() {
            return self.table.get(entry);
        }
        for (first, set) in [
            (Register::IN_SERVICE, &self.in_service),
            (Register::TRIGGER_MODE, &self.level_triggered),
            (Register::REQUESTED, &self.requested),
        ] {
            if let Some(index) = register.index(first) {
                return set.word(index);
            }
        }
        match register {
            Register::ID => u32::from(self.id) << 24,
            Register::VERSION => VERSION,
            Register::TASK_PRIORITY => self.task_priority.into(),
            Register::ARBITRATION_PRIORITY | Register::PROCESSOR_PRIORITY => {
                self.processor_priority().into()
            }
            Register::END_OF_INTERRUPT | Register::REMOTE_READ => 0,
            Register::LOGICAL_ID => self.logical_id,
            Register::DESTINATION_FORMAT => self.destination_format,
            Register::SPURIOUS => self.spurious,
            Register::ERROR_STATUS => self.error_status,
            Register::COMMAND_LOW => self.command[0],
            Register::COMMAND_HIGH => self.command[1],
            Register::INITIAL_COUNT => self.timer.initial(),
            Register::CURRENT_COUNT => self.timer.current(now),
            Register::DIVIDE => self.timer.divide(),
            _ => {
                self.raise_error(error::ILLEGAL_REGISTER);
                0
            }
        }
    }

    /// Writes a register.
    pub(crate) fn write(&mut self, now: Time, register: Register, value: u32) -> Action {
        if let Some(entry) = register.entry() {
            self.set_table(entry, value);
            return Action::None;
        }
        match register {
            Register::TASK_PRIORITY => self.task_priority = value as u8,
            Register::END_OF_INTERRUPT => return self.end_of_interrupt(),
            Register::LOGICAL_ID => self.logical_id = value & 0xff00_0000,
            // Bits 0 to 27 read as ones.
            Register::DESTINATION_FORMAT => self.destination_format = value | 0x0fff_ffff,
            Register::SPURIOUS => self.set_spurious(value),
            // A write of any value shows what came since the last one (section 11.5.3).
            Register::ERROR_STATUS => self.error_status = core::mem::take(&mut self.errors),
            Register::COMMAND_LOW => {
                // Messages are delivered at once: the status bit never shows.
                self.command[0] = value & 0x000c_cfff;
                return self.send();
            }
            Register::COMMAND_HIGH => self.command[1] = value & 0xff00_0000,
            Register::INITIAL_COUNT => self.timer.set_initial(now, value),
            Register::DIVIDE => self.timer.set_divide(now, value),
            // Read-only ones.
            Register::ID | Register::VERSION | Register::CURRENT_COUNT => {}
            Register::ARBITRATION_PRIORITY
            | Register::PROCESSOR_PRIORITY
            | Register::REMOTE_READ => {}
            _ if [
                Register::IN_SERVICE,
                Register::TRIGGER_MODE,
                Register::REQUESTED,
            ]
            .iter()
            .any(|&first| register.index(first).is_some()) => {}
            _ => self.raise_error(error::ILLEGAL_REGISTER),
        }
        Action::None
    }
}
