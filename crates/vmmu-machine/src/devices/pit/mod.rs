//! The 8254 programmable interval timer (Intel 8254 data sheet): three counters at 1.193182 MHz. Counter 0 is the timer
//! interrupt, counter 2 the speaker, which systems use to calibrate other clocks.
//!
//! Key type: [`Pit`]. [`counter::Counter`] knows one counter's modes; here is how it is programmed and read.
//!
//! Invariant: [`Pit::timer_line`] is counter 0's output as of the last call, but for the low part of periodic modes, of which
//! only the rise at its end is shown: it falls just before that.

mod counter;

use self::counter::{Counter, Mode};
use super::Time;

/// Where the counters are; the control word is at the port after them.
pub(super) const BASE: u16 = 0x40;
pub(super) const CONTROL: u16 = BASE + 3;

/// The frequency of the counters' clock, in hertz.
const FREQUENCY: u128 = 1_193_182;
const SECOND: u128 = 1_000_000_000;

/// Returns how many clocks have gone by.
fn ticks(now: Time) -> u64 {
    // Less than what it is made from.
    (u128::from(now.0) * FREQUENCY / SECOND) as u64
}

/// Returns when a number of clocks will have gone by.
fn time_of(ticks: u64) -> Time {
    let nanoseconds = (u128::from(ticks) * SECOND).div_ceil(FREQUENCY);
    Time(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

/// Which bytes of a count are read and written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Access {
    Low,
    High,
    /// The low byte, then the high one.
    Both,
}

/// What the next reads get instead of the running count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Latched {
    status: Option<u8>,
    count: Option<u16>,
}

/// A counter with its read and write logic.
#[derive(Clone, Copy, Debug)]
struct Channel {
    counter: Counter,
    access: Access,
    /// The low byte of a count of which the high byte is still to come.
    written: Option<u8>,
    /// The high byte is read next.
    reads_high: bool,
    latched: Latched,
    /// No count has been written since the control word.
    null: bool,
}

/// The three counters.
#[derive(Clone, Debug)]
pub(super) struct Pit {
    channels: [Channel; 3],
    timer_line: bool,
    /// When counter 0's output next rises.
    rises: Option<Time>,
}

impl Pit {
    /// Makes the timer as firmware leaves it: counter 0 in mode 3 with the longest period, 18.2 interrupts a second.
    pub(super) fn new() -> Self {
        let channel = |gate, mode| Channel {
            counter: Counter::new(mode, gate),
            access: Access::Both,
            written: None,
            reads_high: false,
            latched: Latched::default(),
            null: true,
        };
        let mut pit = Self {
            channels: [
                channel(true, Mode::Square),
                channel(true, Mode::Rate),
                channel(false, Mode::Terminal),
            ],
            timer_line: true,
            rises: None,
        };
        pit.load(Time(0), 0, 0);
        pit
    }

    /// Returns counter 0's output, which is interrupt request 0.
    pub(super) const fn timer_line(&self) -> bool {
        self.timer_line
    }

    /// Returns when counter 0's output next rises.
    pub(super) const fn next_event(&self) -> Option<Time> {
        self.rises
    }

    /// Lets counter 0's output rise if it is time; tells whether it did. Rises that were missed count once.
    #[must_use]
    pub(super) fn fire(&mut self, now: Time) -> bool {
        if self.rises.is_none_or(|at| at > now) {
            return false;
        }
        self.timer_line = true;
        self.set_next_rise(ticks(now));
        true
    }

    /// Reads a counter's port.
    pub(super) fn read(&mut self, now: Time, port: u8) -> u8 {
        let Some(channel) = self.channels.get_mut(usize::from(port)) else {
            // The control word can't be read.
            return 0xff;
        };
        if let Some(status) = channel.latched.status.take() {
            return status;
        }
        let live = || channel.counter.read(ticks(now));
        let [low, high] = channel.latched.count.unwrap_or_else(live).to_le_bytes();
        let (byte, last) = match channel.access {
            Access::Low => (low, true),
            Access::High => (high, true),
            Access::Both => {
                channel.reads_high = !channel.reads_high;
                if channel.reads_high {
                    (low, false)
                } else {
                    (high, true)
                }
            }
        };
        if last {
            channel.latched.count = None;
        }
        byte
    }

    /// Writes a counter's port, or the control word at the port after them.
    pub(super) fn write(&mut self, now: Time, port: u8, value: u8) {
        let Some(channel) = self.channels.get_mut(usize::from(port)) else {
            return self.control(now, value);
        };
        let count = match (channel.access, channel.written.take()) {
            (Access::Low, _) => u16::from(value),
            (Access::High, _) => u16::from(value) << 8,
            (Access::Both, Some(low)) => u16::from_le_bytes([low, value]),
            (Access::Both, None) => {
                channel.written = Some(value);
                // In mode 0 the first byte stops the count.
                channel.counter.stop();
                return self.follow(now, port);
            }
        };
        self.load(now, port, count);
    }

    fn load(&mut self, now: Time, port: u8, count: u16) {
        let channel = &mut self.channels[usize::from(port)];
        channel.null = false;
        // The count is taken over at the next clock.
        channel.counter.load(ticks(now) + 1, count);
        self.follow(now, port);
    }

    /// Writes the control word.
    fn control(&mut self, now: Time, value: u8) {
        let selected = value >> 6;
        if selected == 3 {
            return self.read_back(now, value);
        }
        let channel = &mut self.channels[usize::from(selected)];
        let access = match value >> 4 & 3 {
            0 => {
                let count = channel.counter.read(ticks(now));
                channel.latched.count.get_or_insert(count);
                return;
            }
            1 => Access::Low,
            2 => Access::High,
            _ => Access::Both,
        };
        *channel = Channel {
            counter: Counter::new(Mode::from_control(value), channel.counter.gate()),
            access,
            written: None,
            reads_high: false,
            latched: Latched::default(),
            null: true,
        };
        channel.counter.set_decimal(value & 1 != 0);
        self.follow(now, selected);
    }

    /// The read-back command: latches count and status of the chosen counters; clear bits choose what.
    fn read_back(&mut self, now: Time, value: u8) {
        let now = ticks(now);
        for (number, channel) in self.channels.iter_mut().enumerate() {
            if value & 2 << number == 0 {
                continue;
            }
            if value & 0x20 == 0 {
                let count = channel.counter.read(now);
                channel.latched.count.get_or_insert(count);
            }
            if value & 0x10 == 0 {
                let status = channel.status(now);
                channel.latched.status.get_or_insert(status);
            }
        }
    }

    /// Takes over what counter 0's output does from now on.
    fn follow(&mut self, now: Time, port: u8) {
        if port == 0 {
            let now = ticks(now);
            self.timer_line = self.channels[0].counter.idle_output(now);
            self.set_next_rise(now);
        }
    }

    fn set_next_rise(&mut self, now: u64) {
        self.rises = self.channels[0].counter.next_rise(now).map(time_of);
    }

    /// Sets counter 2's gate.
    pub(super) fn set_gate(&mut self, now: Time, open: bool) {
        self.channels[2].counter.set_gate(ticks(now), open);
    }
    /// Returns counter 2's gate.
    pub(super) const fn gate(&self) -> bool {
        self.channels[2].counter.gate()
    }
    /// Returns counter 2's output.
    pub(super) fn speaker(&self, now: Time) -> bool {
        self.channels[2].counter.output(ticks(now))
    }
}

impl Channel {
    fn status(&self, now: u64) -> u8 {
        let access = match self.access {
            Access::Low => 1,
            Access::High => 2,
            Access::Both => 3,
        };
        u8::from(self.counter.output(now)) << 7
            | u8::from(self.null) << 6
            | access << 4
            | (self.counter.mode() as u8) << 1
            | u8::from(self.counter.decimal())
    }
}

#[cfg(test)]
mod tests;
