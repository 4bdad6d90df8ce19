//! The pair of 8259A interrupt controllers (8259A data sheet), with the edge/level registers of a PC chipset.
//!
//! Key type: [`Pics`]: sixteen lines in, one out.
//!
//! Invariant: request 2 of the first controller is the second's output, always.

use super::places;

/// Where the controllers are: two ports each.
pub(super) const FIRST: u16 = 0x20;
pub(super) const SECOND: u16 = 0xa0;
/// The edge/level registers, one byte for each controller.
pub(super) const EDGE_LEVEL: u16 = 0x4d0;
pub(super) const EDGE_LEVEL_SECOND: u16 = 0x4d1;

/// The first controller's request that the second is at.
const CASCADE: u8 = 2;

/// A controller's registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Register {
    /// A0 = 0.
    Command,
    /// A0 = 1.
    Data,
}

/// Which of the two registers the command port reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shown {
    Requests,
    InService,
}

/// Which initialisation word the data port takes next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expects {
    Mask,
    Base,
    Cascade,
    Mode,
}

/// One 8259A.
#[derive(Clone, Debug)]
struct Pic {
    /// The levels of its lines.
    lines: u8,
    /// Which lines are level-triggered.
    level: u8,
    requests: u8,
    mask: u8,
    in_service: u8,
    base: u8,
    /// The request of the lowest priority.
    lowest: u8,
    shown: Shown,
    expects: Expects,
    /// Initialisation words 3 and 4 are part of the sequence.
    alone: bool,
    has_mode: bool,
    polled: bool,
    auto_end: bool,
    rotates_at_auto_end: bool,
    special_mask: bool,
    special_nesting: bool,
}

impl Pic {
    /// Makes a controller as firmware leaves it: everything masked.
    const fn new(base: u8) -> Self {
        Self {
            lines: 0,
            level: 0,
            requests: 0,
            mask: 0xff,
            in_service: 0,
            base,
            lowest: 7,
            shown: Shown::Requests,
            expects: Expects::Mask,
            alone: false,
            has_mode: false,
            polled: false,
            auto_end: false,
            rotates_at_auto_end: false,
            special_mask: false,
            special_nesting: false,
        }
    }

    /// Sets a line. A request goes away with its line, level-triggered or not (the note on figure 9 of the data sheet).
    fn set_line(&mut self, line: u8, high: bool) {
        let bit = 1 << line;
        let was_high = self.lines & bit != 0;
        if high {
            self.lines |= bit;
            if !was_high || self.level & bit != 0 {
                self.requests |= bit;
            }
        } else {
            self.lines &= !bit;
            self.requests &= !bit;
        }
    }

    /// Returns how many places a request is below the highest priority.
    const fn rank(&self, request: u8) -> u8 {
        request.wrapping_sub(self.lowest + 1) & 7
    }

    /// Returns the request of the highest priority in a set.
    fn first(&self, set: u8) -> Option<u8> {
        let rotated = set.rotate_right(u32::from(self.lowest + 1) & 7);
        // At most 7.
        (rotated != 0).then(|| (rotated.trailing_zeros() as u8 + self.lowest + 1) & 7)
    }

    /// Returns the request that the output stands for.
    fn output(&self) -> Option<u8> {
        let request = self.first(self.requests & !self.mask)?;
        let mut holding = self.in_service;
        if self.special_mask {
            holding &= !self.mask;
        }
        // In special fully nested mode the second controller may interrupt itself.
        if self.special_nesting && request == CASCADE {
            holding &= !(1 << CASCADE);
        }
        let held = self
            .first(holding)
            .is_some_and(|holder| self.rank(holder) <= self.rank(request));
        (!held).then_some(request)
    }

    /// Takes the request that the output stands for.
    fn acknowledge(&mut self) -> Option<u8> {
        let request = self.output()?;
        let bit = 1 << request;
        if self.level & bit == 0 {
            self.requests &= !bit;
        }
        if self.auto_end {
            if self.rotates_at_auto_end {
                self.lowest = request;
            }
        } else {
            self.in_service |= bit;
        }
        Some(request)
    }

    fn read(&mut self, register: Register) -> u8 {
        if core::mem::take(&mut self.polled) {
            return self.acknowledge().map_or(0, |request| 0x80 | request);
        }
        match (register, self.shown) {
            (Register::Data, _) => self.mask,
            (Register::Command, Shown::Requests) => self.requests,
            (Register::Command, Shown::InService) => self.in_service,
        }
    }

    fn write(&mut self, register: Register, value: u8) {
        match register {
            Register::Data => self.write_data(value),
            Register::Command if value & 0x10 != 0 => self.initialise(value),
            Register::Command if value & 0x08 != 0 => self.write_operation_3(value),
            Register::Command => self.write_operation_2(value),
        }
    }

    /// Begins the initialisation sequence: ICW1.
    fn initialise(&mut self, value: u8) {
        *self = Self {
            lines: self.lines,
            level: self.level,
            // Edges have to come again.
            requests: self.lines & self.level,
            mask: 0,
            expects: Expects::Base,
            alone: value & 2 != 0,
            has_mode: value & 1 != 0,
            ..Self::new(self.base)
        };
    }

    fn write_data(&mut self, value: u8) {
        let after_cascade = if self.has_mode {
            Expects::Mode
        } else {
            Expects::Mask
        };
        self.expects = match self.expects {
            Expects::Mask => {
                self.mask = value;
                Expects::Mask
            }
            Expects::Base => {
                self.base = value & 0xf8;
                if self.alone {
                    after_cascade
                } else {
                    Expects::Cascade
                }
            }
            // How the two are wired is known.
            Expects::Cascade => after_cascade,
            Expects::Mode => {
                self.auto_end = value & 0x02 != 0;
                self.special_nesting = value & 0x10 != 0;
                Expects::Mask
            }
        };
    }

    /// OCW2: the end of interrupts, and rotation.
    fn write_operation_2(&mut self, value: u8) {
        let (specific, request) = (value & 0x40 != 0, value & 7);
        let (rotate, end) = (value & 0x80 != 0, value & 0x20 != 0);
        match (rotate, specific, end) {
            (_, _, true) => {
                let mut holding = self.in_service;
                if self.special_mask {
                    holding &= !self.mask;
                }
                let ended = if specific {
                    Some(request)
                } else {
                    self.first(holding)
                };
                if let Some(request) = ended {
                    self.in_service &= !(1 << request);
                    if rotate {
                        self.lowest = request;
                    }
                }
            }
            (true, true, false) => self.lowest = request,
            (rotate, false, false) => self.rotates_at_auto_end = rotate,
            (false, true, false) => {}
        }
    }

    /// OCW3: special mask mode, polling, which register is shown.
    fn write_operation_3(&mut self, value: u8) {
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
        if value & 0x04 != 0 {
            self.polled = true;
        } else if value & 0x02 != 0 {
            self.shown = if value & 1 == 0 {
                Shown::Requests
            } else {
                Shown::InService
            };
        }
    }
}

/// One of the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Which {
    First,
    Second,
}

/// Both controllers.
#[derive(Clone, Debug)]
pub(super) struct Pics {
    first: Pic,
    second: Pic,
}

impl Pics {
    /// Makes the pair, with the vectors that firmware gives it and ACPI's request level-triggered.
    pub(super) const fn new() -> Self {
        let mut pics = Self {
            first: Pic::new(0x08),
            second: Pic::new(0x70),
        };
        pics.second.level = 1 << (places::PM_REQUEST & 7);
        pics
    }

    /// Tells whether the output is high.
    pub(super) fn output(&self) -> bool {
        self.first.output().is_some()
    }

    /// Sets one of lines 0 to 15; line 2 is not to be had.
    pub(super) fn set_line(&mut self, line: u8, high: bool) {
        match line {
            CASCADE => {}
            0..8 => self.first.set_line(line, high),
            _ => self.second.set_line(line & 7, high),
        }
        self.cascade();
    }

    fn cascade(&mut self) {
        // The output falls at each acknowledge cycle, so what it stands for next is an edge again.
        let high = self.second.output().is_some();
        self.first.set_line(CASCADE, false);
        self.first.set_line(CASCADE, high);
    }

    /// Answers an acknowledge cycle with a vector. A request that went away in between is request 7, without a trace in the
    /// in-service register ("spurious").
    pub(super) fn acknowledge(&mut self) -> u8 {
        let vector = match self.first.acknowledge() {
            Some(CASCADE) => self.second.base | self.second.acknowledge().unwrap_or(7),
            request => self.first.base | request.unwrap_or(7),
        };
        self.cascade();
        vector
    }

    /// Reads a register.
    pub(super) fn read(&mut self, which: Which, register: Register) -> u8 {
        let value = self.pic(which).read(register);
        self.cascade();
        value
    }

    /// Writes a register.
    pub(super) fn write(&mut self, which: Which, register: Register, value: u8) {
        self.pic(which).write(register, value);
        self.cascade();
    }

    const fn pic(&mut self, which: Which) -> &mut Pic {
        match which {
            Which::First => &mut self.first,
            Which::Second => &mut self.second,
        }
    }

    /// Reads an edge/level register: a set bit is a level-triggered line.
    pub(super) const fn edge_level(&mut self, which: Which) -> u8 {
        self.pic(which).level
    }

    /// Writes an edge/level register. Timer, keyboard, cascade, clock and coprocessor stay edge-triggered.
    pub(super) fn set_edge_level(&mut self, which: Which, value: u8) {
        let usable = match which {
            Which::First => 0xf8,
            Which::Second => 0xde,
        };
        let pic = self.pic(which);
        pic.level = value & usable;
        pic.requests |= pic.lines & pic.level;
        self.cascade();
    }
}

#[cfg(test)]
mod tests;
