//! The CMOS clock (Motorola MC146818A data sheet) and the configuration that a PC keeps in its memory.
//!
//! Key type: [`Clock`]. The date is the epoch plus the board's time; [`calendar::Date`] takes it apart.
//!
//! Invariant: the flags in register C tell what happened until [`Clock::seen`], which goes on whenever they matter.

mod calendar;

use core::ops::Range;

use vmmu::addr::Gpa;

use self::calendar::Date;
use super::{Time, places};

/// The port that selects a byte; the byte is at the next.
pub(super) const SELECT: u16 = 0x70;
pub(super) const DATA: u16 = 0x71;
/// The interrupt request.
pub(super) const REQUEST: u8 = 8;

const SECOND: u64 = 1_000_000_000;
/// How long before each second the update-in-progress bit is set: 244 microseconds, and the update's 1984.
const UPDATE: u64 = 2_228_000;

/// Bytes of the clock's memory.
mod byte {
    pub(super) const SECONDS: u8 = 0;
    pub(super) const SECONDS_ALARM: u8 = 1;
    pub(super) const MINUTES: u8 = 2;
    pub(super) const MINUTES_ALARM: u8 = 3;
    pub(super) const HOURS: u8 = 4;
    pub(super) const HOURS_ALARM: u8 = 5;
    pub(super) const WEEKDAY: u8 = 6;
    pub(super) const DAY: u8 = 7;
    pub(super) const MONTH: u8 = 8;
    pub(super) const YEAR: u8 = 9;
    pub(super) const A: u8 = 10;
    pub(super) const B: u8 = 11;
    pub(super) const C: u8 = 12;
    pub(super) const D: u8 = 13;
}

/// Register A: an update is in progress.
const UPDATING: u8 = 0x80;
/// Register B: the date stands still and is being set.
const SET: u8 = 0x80;
/// Register B: numbers are binary, not decimal.
const BINARY: u8 = 0x04;
/// Register B: hours go to 24.
const HOURS_24: u8 = 0x02;
/// Registers B and C: the periodic interrupt, the alarm, the end of an update.
const PERIODIC: u8 = 0x40;
const ALARM: u8 = 0x20;
const UPDATED: u8 = 0x10;
const CAUSES: u8 = PERIODIC | ALARM | UPDATED;
/// Register C: the request is high.
const REQUESTED: u8 = 0x80;
/// Register D: time and memory are valid.
const VALID: u8 = 0x80;
/// The hour's bit for the afternoon.
const AFTERNOON: u8 = 0x80;
/// Alarm bytes from here on match everything.
const ANY: u8 = 0xc0;

/// The clock.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    selected: u8,
    memory: [u8; 128],
    control_a: u8,
    control_b: u8,
    flags: u8,
    /// The moment of [`Time`] 0, in seconds since 1970.
    epoch: i64,
    /// The date while it is being set.
    held: Option<Date>,
    seen: Time,
}

impl Clock {
    /// Makes a clock that shows `epoch`, in seconds since 1970, at [`Time`] 0.
    pub(super) fn new(epoch: u64, ram: &[Range<Gpa>]) -> Self {
        let mut memory = [0; 128];
        write_configuration(&mut memory, ram);
        Self {
            selected: 0,
            memory,
            // A 32768 Hz crystal and a periodic rate of 1024 Hz.
            control_a: 0x26,
            control_b: HOURS_24,
            flags: 0,
            // Thirty thousand years: more than the century's two digits can tell.
            epoch: epoch.min(1 << 40) as i64,
            held: None,
            seen: Time(0),
        }
    }

    /// Returns the level of the interrupt request.
    pub(super) const fn line(&self) -> bool {
        self.flags & self.control_b & CAUSES != 0
    }

    /// Tells when the interrupt request may rise, if ever.
    pub(super) fn next_event(&self) -> Option<Time> {
        // It is high already: nothing happens until register C is read.
        if self.line() {
            return None;
        }
        let after = |period: u64| (self.seen.0 / period + 1).saturating_mul(period);
        let periodic = self
            .period()
            .filter(|_| self.control_b & PERIODIC != 0)
            .map(|period| Time(self.nth_period(self.periods(self.seen, period) + 1, period)));
        let second = (self.control_b & (ALARM | UPDATED) != 0).then(|| Time(after(SECOND)));
        [periodic, second].into_iter().flatten().min()
    }

    /// Takes notice of what happened until now.
    pub(super) fn advance(&mut self, now: Time) {
        let now = now.max(self.seen);
        let before = core::mem::replace(&mut self.seen, now);
        if let Some(period) = self.period()
            && self.periods(before, period) != self.periods(now, period)
        {
            self.flags |= PERIODIC;
        }
        let (from, to) = (before.0 / SECOND, now.0 / SECOND);
        if self.held.is_some() || from >= to {
            return;
        }
        self.flags |= UPDATED;
        // After a day all times of day have been.
        let from = from.max(to.saturating_sub(86_400));
        if (from + 1..=to).any(|second| self.alarms_at(second)) {
            self.flags |= ALARM;
        }
    }

    /// Returns the periodic interrupt's period in clocks of the crystal (table 5 of the data sheet).
    const fn period(&self) -> Option<u64> {
        match self.control_a & 0xf {
            0 => None,
            // The two fastest rates are the same as 8 and 9.
            rate @ 1..=2 => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    /// Returns how many periods had gone by.
    fn periods(&self, at: Time, period: u64) -> u64 {
        // Less than the nanoseconds.
        (u128::from(at.0) * 32_768 / u128::from(SECOND)) as u64 / period
    }

    /// Returns when the given number of periods will have gone by.
    fn nth_period(&self, number: u64, period: u64) -> u64 {
        let clocks = u128::from(number) * u128::from(period);
        let at = (clocks * u128::from(SECOND)).div_ceil(32_768);
        u64::try_from(at).unwrap_or(u64::MAX)
    }

    fn alarms_at(&self, second: u64) -> bool {
        let date = Date::from_seconds(self.epoch + second as i64);
        [
            (byte::SECONDS_ALARM, self.number(date.second)),
            (byte::MINUTES_ALARM, self.number(date.minute)),
            (byte::HOURS_ALARM, self.hour(date.hour)),
        ]
        .into_iter()
        .all(|(at, value)| {
            let alarm = self.memory[usize::from(at)];
            alarm >= ANY || alarm == value
        })
    }

    fn date(&self, now: Time) -> Date {
        self.held
            // Centuries of nanoseconds fit.
            .unwrap_or_else(|| Date::from_seconds(self.epoch + (now.0 / SECOND) as i64))
    }

    /// Selects a byte; the top bit masks NMIs on a PC, of which there are none.
    pub(super) const fn select(&mut self, value: u8) {
        self.selected = value & 0x7f;
    }

    /// Reads the selected byte.
    pub(super) fn read(&mut self, now: Time) -> u8 {
        let date = self.date(now);
        match self.selected {
            byte::SECONDS => self.number(date.second),
            byte::MINUTES => self.number(date.minute),
            byte::HOURS => self.hour(date.hour),
            byte::WEEKDAY => self.number(date.weekday()),
            byte::DAY => self.number(date.day),
            byte::MONTH => self.number(date.month),
            byte::YEAR => self.number(date.year.rem_euclid(100)),
            places::CMOS_CENTURY => self.number(date.year / 100 % 100),
            byte::A => {
                let updating = self.held.is_none() && now.0 % SECOND >= SECOND - UPDATE;
                self.control_a | if updating { UPDATING } else { 0 }
            }
            byte::B => self.control_b,
            byte::C => self.take_flags(now),
            byte::D => VALID,
            other => self.memory[usize::from(other)],
        }
    }

    /// Reads register C, which clears it and lowers the request.
    fn take_flags(&mut self, now: Time) -> u8 {
        self.advance(now);
        let requested = if self.line() { REQUESTED } else { 0 };
        core::mem::take(&mut self.flags) | requested
    }

    /// Writes the selected byte.
    pub(super) fn write(&mut self, now: Time, value: u8) {
        match self.selected {
            byte::A => {
                self.advance(now);
                self.control_a = value & !UPDATING;
            }
            byte::B => self.write_b(now, value),
            byte::C | byte::D => {}
            selected => {
                let mut date = self.date(now);
                if !self.write_date(&mut date, selected, value) {
                    self.memory[usize::from(selected)] = value;
                } else if self.held.is_some() {
                    self.held = Some(date);
                } else {
                    self.set_date(now, date);
                }
            }
        }
    }

    fn write_b(&mut self, now: Time, value: u8) {
        self.advance(now);
        let date = self.date(now);
        match (value & SET != 0, self.held) {
            (true, None) => self.held = Some(date),
            (false, Some(date)) => {
                self.held = None;
                self.set_date(now, date);
            }
            _ => {}
        }
        // Setting the date disables the interrupt at the end of an update.
        let disabled = if value & SET != 0 { UPDATED } else { 0 };
        self.control_b = value & !disabled;
    }

    fn set_date(&mut self, now: Time, date: Date) {
        self.epoch = date.seconds() - (now.0 / SECOND) as i64;
    }

    /// Changes a field of a date; tells whether the byte is one.
    fn write_date(&self, date: &mut Date, selected: u8, value: u8) -> bool {
        let number = self.read_number(value);
        match selected {
            byte::SECONDS => date.second = number,
            byte::MINUTES => date.minute = number,
            byte::HOURS => date.hour = self.read_hour(value),
            // It follows from the date.
            byte::WEEKDAY => {}
            byte::DAY => date.day = number,
            byte::MONTH => date.month = number,
            byte::YEAR => date.year = date.year / 100 * 100 + number,
            places::CMOS_CENTURY => date.year = number * 100 + date.year.rem_euclid(100),
            _ => return false,
        }
        true
    }

    /// Writes a number of two digits as register B says.
    const fn number(&self, value: i64) -> u8 {
        // At most 99.
        let value = value as u8;
        if self.control_b & BINARY != 0 {
            value
        } else {
            (value / 10) << 4 | (value % 10)
        }
    }
    fn read_number(&self, value: u8) -> i64 {
        if self.control_b & BINARY != 0 {
            value.into()
        } else {
            i64::from(value >> 4) * 10 + i64::from(value & 0xf)
        }
    }
    const fn hour(&self, hour: i64) -> u8 {
        if self.control_b & HOURS_24 != 0 {
            return self.number(hour);
        }
        let half = self.number((hour + 11) % 12 + 1);
        if hour < 12 { half } else { half | AFTERNOON }
    }
    fn read_hour(&self, value: u8) -> i64 {
        if self.control_b & HOURS_24 != 0 {
            return self.read_number(value);
        }
        let half = self.read_number(value & !AFTERNOON) % 12;
        half + if value & AFTERNOON != 0 { 12 } else { 0 }
    }
}

/// Writes what firmware keeps there: how much memory there is, in the units of three generations.
fn write_configuration(memory: &mut [u8; 128], ram: &[Range<Gpa>]) {
    /// Returns how much RAM lies between two addresses.
    fn between(ram: &[Range<Gpa>], start: u64, end: u64) -> u64 {
        ram.iter()
            .map(|range| {
                let (low, high) = (range.start.get().max(start), range.end.get().min(end));
                high.saturating_sub(low)
            })
            .sum()
    }
    let mut put = |at: usize, value: u64, bytes: usize| {
        memory[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
    };
    let base = between(ram, 0, 640 << 10) >> 10;
    let above_1_mib = (between(ram, 1 << 20, 1 << 32) >> 10).min(0xffff);
    let above_16_mib = (between(ram, 16 << 20, 1 << 32) >> 16).min(0xffff);
    let above_4_gib = (between(ram, 1 << 32, u64::MAX) >> 16).min(0xff_ffff);
    // A coprocessor is installed.
    put(0x14, 0x02, 1);
    put(0x15, base, 2);
    put(0x17, above_1_mib, 2);
    put(0x30, above_1_mib, 2);
    put(0x34, above_16_mib, 2);
    put(0x5b, above_4_gib, 3);
    // The sum of what comes before, high byte first.
    let sum: u16 = memory[0x10..0x2e].iter().map(|&byte| u16::from(byte)).sum();
    memory[0x2e..0x30].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests;
