//! One counter of the 8254: its six modes, as functions of the clocks that have gone by.

/// What a counter does (data sheet, "mode definitions").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    /// The output rises when the count is at zero.
    Terminal = 0,
    /// A pulse that an edge of the gate begins.
    Shot = 1,
    /// The output is low for one clock in each period.
    Rate = 2,
    /// The output is high for the first half of each period.
    Square = 3,
    /// The output is low for one clock when the count is at zero.
    Strobe = 4,
    /// The same, begun by an edge of the gate.
    GatedStrobe = 5,
}

impl Mode {
    /// Decodes the control word's three bits, of which the first is void in modes 2 and 3.
    pub(super) const fn from_control(word: u8) -> Self {
        match word >> 1 & 7 {
            0 => Self::Terminal,
            1 => Self::Shot,
            2 | 6 => Self::Rate,
            3 | 7 => Self::Square,
            4 => Self::Strobe,
            _ => Self::GatedStrobe,
        }
    }

    const fn repeats(self) -> bool {
        matches!(self, Self::Rate | Self::Square)
    }
    const fn begins_with_gate(self) -> bool {
        matches!(self, Self::Shot | Self::GatedStrobe)
    }
}

/// Where a counter is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Course {
    /// It waits for a count, or for its gate.
    Waits,
    /// It has counted since this clock.
    Since(u64),
    /// It was stopped after so many clocks.
    Stopped(u64),
}

/// A counter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counter {
    mode: Mode,
    /// It counts in decimal.
    decimal: bool,
    gate: bool,
    /// The initial count, 1 to 65536 (10000 in decimal).
    initial: u64,
    /// Whether there is one since the control word.
    loaded: bool,
    course: Course,
}

impl Counter {
    /// Makes a counter that has no count yet.
    pub(super) const fn new(mode: Mode, gate: bool) -> Self {
        Self {
            mode,
            decimal: false,
            gate,
            initial: 0x1_0000,
            loaded: false,
            course: Course::Waits,
        }
    }

    pub(super) const fn mode(&self) -> Mode {
        self.mode
    }
    pub(super) const fn gate(&self) -> bool {
        self.gate
    }
    pub(super) const fn decimal(&self) -> bool {
        self.decimal
    }
    pub(super) const fn set_decimal(&mut self, decimal: bool) {
        self.decimal = decimal;
    }

    /// Returns how many values the count has.
    const fn modulus(&self) -> u64 {
        if self.decimal { 10_000 } else { 0x1_0000 }
    }

    /// Takes a count over at clock `at`.
    pub(super) fn load(&mut self, at: u64, count: u16) {
        let count = if self.decimal {
            from_decimal(count)
        } else {
            u64::from(count)
        };
        self.initial = if count == 0 { self.modulus() } else { count };
        let first = !core::mem::replace(&mut self.loaded, true);
        // A running period isn't disturbed on the chip; here it begins anew, as after a control word.
        if self.mode.begins_with_gate() {
            if first {
                self.course = Course::Waits;
            }
        } else if self.gate {
            self.course = Course::Since(at);
        } else {
            self.course = Course::Stopped(0);
        }
    }

    /// Stops counting at the first byte of two; the output falls (mode 0).
    pub(super) const fn stop(&mut self) {
        if matches!(self.mode, Mode::Terminal) {
            self.course = Course::Stopped(0);
        }
    }

    /// Sets the gate.
    pub(super) fn set_gate(&mut self, now: u64, open: bool) {
        let rises = open && !self.gate;
        let falls = !open && self.gate;
        self.gate = open;
        if !self.loaded {
            return;
        }
        match self.mode {
            Mode::Terminal | Mode::Strobe => match self.course {
                Course::Since(_) if falls => self.course = Course::Stopped(self.gone(now)),
                Course::Stopped(gone) if rises => {
                    self.course = Course::Since(now.saturating_sub(gone));
                }
                _ => {}
            },
            Mode::Rate | Mode::Square if falls => self.course = Course::Stopped(0),
            Mode::Rate | Mode::Square | Mode::Shot | Mode::GatedStrobe => {
                if rises {
                    self.course = Course::Since(now + 1);
                }
            }
        }
    }

    /// Returns how many clocks it has counted.
    const fn gone(&self, now: u64) -> u64 {
        match self.course {
            Course::Waits => 0,
            Course::Since(start) => now.saturating_sub(start),
            Course::Stopped(gone) => gone,
        }
    }

    /// Returns the count, in its own notation.
    pub(super) fn read(&self, now: u64) -> u16 {
        let gone = self.gone(now);
        let count = match self.mode {
            Mode::Rate => self.initial - gone % self.initial,
            // It counts by two, twice in a period.
            Mode::Square => {
                let (within, half) = (gone % self.initial, self.initial.div_ceil(2));
                (self.initial & !1) - 2 * (within % half).min(self.initial / 2)
            }
            _ => (self.initial + self.modulus() - gone % self.modulus()) % self.modulus(),
        };
        let count = count % self.modulus();
        if self.decimal {
            to_decimal(count)
        } else {
            // Below the modulus.
            count as u16
        }
    }

    /// Returns the output.
    pub(super) fn output(&self, now: u64) -> bool {
        let gone = self.gone(now);
        let runs = !matches!(self.course, Course::Waits);
        match self.mode {
            Mode::Terminal => self.loaded && runs && gone >= self.initial,
            Mode::Shot => !runs || gone >= self.initial,
            // A closed gate has set the count back, where the output of both is high.
            Mode::Rate => !runs || gone % self.initial != self.initial - 1,
            Mode::Square => !runs || gone % self.initial < self.initial.div_ceil(2),
            Mode::Strobe | Mode::GatedStrobe => !runs || gone != self.initial,
        }
    }

    /// Returns the output with low parts of repeated modes left out.
    pub(super) fn idle_output(&self, now: u64) -> bool {
        match self.mode {
            Mode::Terminal | Mode::Shot => self.output(now),
            _ => true,
        }
    }

    /// Returns the first clock after `now` at which the output rises.
    pub(super) fn next_rise(&self, now: u64) -> Option<u64> {
        let Course::Since(start) = self.course else {
            return None;
        };
        if self.mode.repeats() {
            let periods = now.saturating_sub(start) / self.initial + 1;
            return Some(start + periods * self.initial);
        }
        let at = match self.mode {
            Mode::Strobe | Mode::GatedStrobe => start + self.initial + 1,
            _ => start + self.initial,
        };
        (at > now).then_some(at)
    }
}

/// Reads four decimal digits.
fn from_decimal(count: u16) -> u64 {
    (0..4).rev().fold(0, |sum, digit| {
        sum * 10 + u64::from(count >> (4 * digit) & 0xf)
    })
}

/// Writes four decimal digits.
fn to_decimal(mut count: u64) -> u16 {
    let mut digits = 0;
    for digit in 0..4 {
        digits |= ((count % 10) as u16) << (4 * digit);
        count /= 10;
    }
    digits
}

#[cfg(test)]
mod decimal_counts {
    use super::{from_decimal, to_decimal};

    #[test]
    fn are_four_digits() {
        assert_eq!(from_decimal(0x1234), 1234);
        assert_eq!(to_decimal(1234), 0x1234);
        assert_eq!(to_decimal(9999), 0x9999);
        // Not a decimal number; any result will do.
        assert_eq!(from_decimal(0xffff), 16_665);
    }
}
