//! Power management (ACPI specification 6.5, section 4.8.3): the fixed event and control registers, and the timer. The machine
//! is in ACPI mode from the start.
//!
//! Invariant: the timer's status bit tells of carries until [`Power::carries`], which goes on whenever it matters.

use super::{Effect, Time, places};

/// Where the registers end: event, control, timer from [`places::PM_EVENT`] on.
pub(super) const LAST: u16 = places::PM_TIMER + 3;

/// The timer's frequency in hertz.
const FREQUENCY: u128 = 3_579_545;
const SECOND: u128 = 1_000_000_000;
/// The status bit is set each time the highest bit of the 32 changes.
const CARRY: u64 = 1 << 31;

/// Status and enable: the timer's carry. The other events don't exist.
const TIMER: u16 = 1 << 0;
/// Enable bits that systems write and read back: timer, global lock, buttons, clock.
const ENABLES: u16 = 1 << 0 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 10;
/// Control: events are interrupts of the system's, always.
const ACPI_MODE: u16 = 1 << 0;
/// Control: sleep now. It reads as 0.
const SLEEP: u16 = 1 << 13;
const SLEEP_TYPE_SHIFT: u16 = 10;
/// Control bits that are kept: bus-master reload and the sleep type.
const KEPT: u16 = 1 << 1 | 7 << SLEEP_TYPE_SHIFT;

/// The registers.
#[derive(Clone, Debug)]
pub(super) struct Power {
    status: u16,
    enable: u16,
    control: u16,
    /// How often the timer's highest bit had changed when it was last looked at.
    carries: u64,
}

/// Returns how far the timer has counted, with more bits than it has.
fn count(now: Time) -> u64 {
    // Less than the nanoseconds.
    (u128::from(now.0) * FREQUENCY / SECOND) as u64
}

/// Returns the timer's 32 bits.
pub(super) fn timer(now: Time) -> u32 {
    count(now) as u32
}

impl Power {
    pub(super) const fn new() -> Self {
        Self {
            status: 0,
            enable: 0,
            control: ACPI_MODE,
            carries: 0,
        }
    }

    /// Returns the level of the interrupt request.
    pub(super) const fn line(&self) -> bool {
        self.status & self.enable != 0
    }

    /// Tells when the interrupt request may rise, if ever.
    pub(super) fn next_event(&self) -> Option<Time> {
        if self.line() || self.enable & TIMER == 0 {
            return None;
        }
        let ticks = u128::from(self.carries + 1) * u128::from(CARRY);
        u64::try_from((ticks * SECOND).div_ceil(FREQUENCY))
            .ok()
            .map(Time)
    }

    /// Takes notice of what happened until now.
    pub(super) fn advance(&mut self, now: Time) {
        let carries = count(now) / CARRY;
        if carries > self.carries {
            self.carries = carries;
            self.status |= TIMER;
        }
    }

    /// Reads a byte of the registers.
    pub(super) fn read(&mut self, now: Time, port: u16) -> u8 {
        self.advance(now);
        let offset = usize::from(port - places::PM_EVENT);
        let [status, enable] = [self.status, self.enable].map(u16::to_le_bytes);
        match offset {
            0..2 => status[offset],
            2..4 => enable[offset - 2],
            4..6 => self.control.to_le_bytes()[offset - 4],
            8..12 => timer(now).to_le_bytes()[offset - 8],
            _ => 0,
        }
    }

    /// Writes a byte of the registers.
    pub(super) fn write(&mut self, now: Time, port: u16, value: u8) -> Effect {
        self.advance(now);
        let offset = port - places::PM_EVENT;
        let shift = offset % 2 * 8;
        let (bits, others) = (u16::from(value) << shift, !(0xff << shift));
        match offset {
            // Ones clear.
            0..2 => self.status &= !bits,
            2..4 => self.enable = self.enable & others | bits & ENABLES,
            4..6 => {
                self.control = self.control & (others | ACPI_MODE) | bits & KEPT;
                let kind = self.control >> SLEEP_TYPE_SHIFT & 7;
                if bits & SLEEP != 0 && kind == u16::from(places::SLEEP_TYPE_OFF) {
                    return Effect::PowerOff;
                }
            }
            _ => {}
        }
        Effect::None
    }
}

#[cfg(test)]
mod power_management {
    use super::{Effect, Power, Time};

    fn timer(power: &mut Power, now: u64) -> u32 {
        u32::from_le_bytes([0, 1, 2, 3].map(|byte| power.read(Time(now), 0x608 + byte)))
    }

    #[test]
    fn has_a_timer_of_3_579545_mhz() {
        let mut power = Power::new();
        assert_eq!(timer(&mut power, 1_000_000_000), 3_579_545);
        assert_eq!(
            timer(&mut power, 2_000_000_000_000),
            7_159_090_000u64 as u32
        );
    }

    #[test]
    fn switches_off_in_the_sleep_type_of_the_tables() {
        let mut power = Power::new();
        let mut write = |value: u16| {
            let [low, high] = value.to_le_bytes();
            assert_eq!(power.write(Time(0), 0x604, low), Effect::None);
            power.write(Time(0), 0x605, high)
        };
        assert_eq!(write(5 << 10), Effect::None);
        assert_eq!(write(3 << 10 | 1 << 13), Effect::None);
        assert_eq!(write(5 << 10 | 1 << 13), Effect::PowerOff);
        // ACPI mode stays on, and the sleep bit doesn't show.
        assert_eq!(power.read(Time(0), 0x604), 1);
        assert_eq!(power.read(Time(0), 0x605), 5 << 2);
    }

    #[test]
    fn interrupts_when_the_timers_highest_bit_changes() {
        let mut power = Power::new();
        assert_eq!(power.next_event(), None);
        let _ = power.write(Time(0), 0x602, 1);
        let next = power.next_event().unwrap();
        power.advance(Time(next.0 - 1));
        assert!(!power.line());
        power.advance(next);
        assert!(power.line());
        assert_eq!(timer(&mut power, next.0), 1 << 31);
        let _ = power.write(next, 0x600, 1);
        assert!(!power.line());
        let second = power.next_event().unwrap();
        assert!(second.0.abs_diff(2 * next.0) < 1000);
    }
}
