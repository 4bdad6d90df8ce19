//! The local APIC's timer (Intel SDM vol. 3, section 11.5.4). Its clock runs at 1 GHz before the divider.

use crate::devices::Time;

/// What the timer does when its count is at zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    /// Stops.
    OneShot,
    /// Starts over.
    Periodic,
    /// Never runs: deadline mode, which CPUID does not offer, and what is reserved.
    Void,
}

impl Mode {
    /// Decodes bits 17 and 18 of the timer's vector-table entry.
    pub(super) const fn from_entry(entry: u32) -> Self {
        match entry >> 17 & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            _ => Self::Void,
        }
    }
}

/// The timer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timer {
    mode: Mode,
    /// The initial-count register.
    initial: u32,
    /// The divide-configuration register.
    divide: u32,
    /// When it counted what, if it counts.
    running: Option<(Time, u32)>,
}

impl Timer {
    pub(super) const fn new() -> Self {
        Self {
            mode: Mode::OneShot,
            initial: 0,
            divide: 0,
            running: None,
        }
    }

    /// Returns the length of a count in nanoseconds: bits 0, 1 and 3 of the divide register, 111b stands for 1.
    const fn count_length(&self) -> u64 {
        let code = self.divide & 3 | self.divide >> 1 & 4;
        1 << ((code + 1) & 7)
    }

    /// Tells when it expires.
    pub(super) fn expires(&self) -> Option<Time> {
        match (self.mode, self.running) {
            (Mode::Void, _) => None,
            (_, Some((from, count))) => {
                let length = u64::from(count) * self.count_length();
                Some(Time(from.0.saturating_add(length)))
            }
            (_, None) => None,
        }
    }

    /// Expires if it is time; tells whether it did. Periods that were missed count once.
    pub(super) fn fire(&mut self, now: Time) -> bool {
        let Some(at) = self.expires().filter(|&at| at <= now) else {
            return false;
        };
        match self.mode {
            Mode::OneShot | Mode::Void => self.running = None,
            Mode::Periodic => {
                // A running timer's initial count is not 0.
                let period = u64::from(self.initial) * self.count_length();
                let missed = now.0.saturating_sub(at.0).checked_div(period);
                let last = at.0 + missed.unwrap_or(0) * period;
                self.running = Some((Time(last), self.initial));
            }
        }
        true
    }

    pub(super) const fn initial(&self) -> u32 {
        self.initial
    }
    /// Writes the initial count, which starts the timer; 0 stops it.
    pub(super) fn set_initial(&mut self, now: Time, count: u32) {
        if self.mode == Mode::Void {
            return;
        }
        self.initial = count;
        self.running = (count != 0).then_some((now, count));
    }

    /// Returns the current count.
    pub(super) fn current(&self, now: Time) -> u32 {
        let Some((from, count)) = self.running.filter(|_| self.mode != Mode::Void) else {
            return 0;
        };
        let gone = now.0.saturating_sub(from.0) / self.count_length();
        match u64::from(count).checked_sub(gone) {
            // Both are at most the 32-bit count.
            Some(left) => left as u32,
            None if self.mode == Mode::Periodic && self.initial != 0 => {
                let over = (gone - u64::from(count)) % u64::from(self.initial);
                self.initial - over as u32
            }
            None => 0,
        }
    }

    pub(super) const fn divide(&self) -> u32 {
        self.divide
    }
    /// Writes the divider; the count goes on from where it is.
    pub(super) fn set_divide(&mut self, now: Time, divide: u32) {
        let count = self.current(now);
        self.divide = divide & 0b1011;
        if self.running.is_some() {
            self.running = (count != 0).then_some((now, count));
        }
    }

    /// Follows the mode in the vector table. A change to or from a mode without a count disarms the timer.
    pub(super) fn set_mode(&mut self, mode: Mode) {
        if (mode == Mode::Void) != (self.mode == Mode::Void) {
            self.running = None;
        }
        self.mode = mode;
    }
}

#[cfg(test)]
mod the_timer {
    use super::{Mode, Time, Timer};

    #[test]
    fn counts_down_once() {
        let mut timer = Timer::new();
        // Divide by 16 (table 11-10 of the figure: 0011b).
        timer.set_divide(Time(0), 0b0011);
        timer.set_initial(Time(100), 10);
        assert_eq!(timer.current(Time(100 + 16 * 4)), 6);
        assert_eq!(timer.expires(), Some(Time(260)));
        assert!(!timer.fire(Time(259)));
        assert!(timer.fire(Time(260)));
        assert_eq!((timer.expires(), timer.current(Time(300))), (None, 0));
    }

    #[test]
    fn divides_by_1_to_128() {
        let lengths = [
            0b1011, 0b0000, 0b0001, 0b0010, 0b0011, 0b1000, 0b1001, 0b1010,
        ];
        for (power, divide) in lengths.into_iter().enumerate() {
            let mut timer = Timer::new();
            timer.set_divide(Time(0), divide);
            timer.set_initial(Time(0), 3);
            assert_eq!(timer.expires(), Some(Time(3 << power)));
        }
    }

    #[test]
    fn keeps_its_grid_when_periods_are_missed() {
        let mut timer = Timer::new();
        timer.set_divide(Time(0), 0b1011);
        timer.set_mode(Mode::Periodic);
        timer.set_initial(Time(0), 1000);
        assert!(timer.fire(Time(3500)));
        assert_eq!(timer.expires(), Some(Time(4000)));
        assert_eq!(timer.current(Time(3600)), 400);
        assert_eq!(timer.current(Time(4100)), 900);
    }

    #[test]
    fn never_expires_in_a_mode_that_is_not_offered() {
        let mut timer = Timer::new();
        timer.set_initial(Time(0), 5);
        timer.set_mode(Mode::from_entry(2 << 17));
        assert_eq!((timer.expires(), timer.current(Time(3))), (None, 0));
        timer.set_initial(Time(3), 5);
        timer.set_mode(Mode::OneShot);
        assert!(!timer.fire(Time(100)));
    }

    #[test]
    fn goes_on_when_the_divider_changes() {
        let mut timer = Timer::new();
        timer.set_divide(Time(0), 0b1011);
        timer.set_initial(Time(0), 100);
        timer.set_divide(Time(40), 0b0000);
        assert_eq!(timer.expires(), Some(Time(40 + 120)));
    }
}
