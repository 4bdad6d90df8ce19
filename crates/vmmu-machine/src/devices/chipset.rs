//! The chipset: the devices that share one lock, and the lines between them.
//!
//! Key type: [`Chipset`]. Ports are decoded here; a wide access to devices of one byte goes to its bytes one by one.
//!
//! Invariant: the 8259s' output is what the processors were last told of it, after every method.

use core::sync::atomic::{AtomicU64, Ordering};

use super::clock::{self, Clock};
use super::fw_cfg::{self, FirmwareConfig};
use super::io_apic::IoApic;
use super::keyboard::{self, Keyboard};
use super::pic::{self, Pics, Register, Which};
use super::pit::{self, Pit};
use super::power::{self, Power};
use super::processors::{NEVER, Processors};
use super::reset::{self, ResetControl};
use super::test_device::{self, TestDevice};
use super::{Effect, PlatformConfig, Time, places};

/// System control port B: the speaker's counter, and a bit that shows memory's refresh.
const CONTROL_B: u16 = 0x61;
/// How long the refresh bit stays the same, in nanoseconds.
const REFRESH: u64 = 15_085;

/// The timer's interrupt request.
const TIMER: u8 = 0;
/// PCI's configuration address, taken in 32 bits only. There is no PCI.
const PCI_ADDRESS: u16 = 0xcf8;

/// The devices.
#[derive(Debug)]
pub(super) struct Chipset {
    pics: Pics,
    pit: Pit,
    io_apic: IoApic,
    clock: Clock,
    power: Power,
    keyboard: Keyboard,
    reset: ResetControl,
    fw_cfg: FirmwareConfig,
    test_device: TestDevice,
    /// Requests of the clock and of power management, as their controllers were told.
    told: [bool; 2],
    /// What the processors were told of the 8259s' output.
    external: bool,
    /// The writable bits of port B: the gate's is the timer's.
    control_b: u8,
}

/// The chipset's surroundings during one call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context<'a> {
    pub(super) now: Time,
    pub(super) processors: &'a Processors,
    /// Where the time of the next event is published, or [`NEVER`].
    pub(super) deadline: &'a AtomicU64,
}

impl Chipset {
    pub(super) fn new(config: &PlatformConfig) -> Self {
        let sizes = config
            .ram
            .iter()
            .map(|range| range.end.get().saturating_sub(range.start.get()));
        Self {
            pics: Pics::new(),
            pit: Pit::new(),
            io_apic: IoApic::new(),
            clock: Clock::new(config.epoch, &config.ram),
            power: Power::new(),
            keyboard: Keyboard::new(),
            reset: ResetControl::new(),
            fw_cfg: FirmwareConfig::new(config.cpus.get(), sizes.sum()),
            test_device: TestDevice::default(),
            told: [false; 2],
            external: false,
            control_b: 0,
        }
    }

    /// Publishes what changed: the 8259s' output, and when something is due. Every way in ends here.
    fn settle(&mut self, context: Context<'_>) {
        let lines = [self.clock.line(), self.power.line()];
        for (index, request) in [clock::REQUEST, places::PM_REQUEST].into_iter().enumerate() {
            if self.told[index] != lines[index] {
                self.told[index] = lines[index];
                self.set_lines(context, request, lines[index]);
            }
        }
        let output = self.pics.output();
        if output != self.external {
            self.external = output;
            context.processors.set_external_line(output);
        }
        let events = [
            self.pit.next_event(),
            self.clock.next_event(),
            self.power.next_event(),
        ];
        let next = events.into_iter().flatten().min();
        let next = next.map_or(NEVER, |at| at.0);
        // Relaxed: see `Processors::update`.
        context.deadline.store(next, Ordering::Relaxed);
    }

    /// Sets one of the interrupt requests 0 to 15.
    pub(super) fn set_request(&mut self, context: Context<'_>, request: u8, high: bool) {
        self.set_lines(context, request, high);
        self.settle(context);
    }

    /// Sets an interrupt request at both kinds of controllers.
    fn set_lines(&mut self, context: Context<'_>, request: u8, high: bool) {
        self.pics.set_line(request, high);
        let pin = if request == TIMER {
            places::TIMER_PIN
        } else {
            request
        };
        self.set_pin(context, pin, high);
    }

    fn set_pin(&mut self, context: Context<'_>, pin: u8, high: bool) {
        if let Some(message) = self.io_apic.set_line(pin, high) {
            context.processors.deliver(None, &message);
        }
    }

    /// Does what is due.
    pub(super) fn advance(&mut self, context: Context<'_>) {
        self.fire(context);
        self.settle(context);
    }

    fn fire(&mut self, context: Context<'_>) {
        if self.pit.fire(context.now) {
            self.set_lines(context, TIMER, false);
            self.set_lines(context, TIMER, true);
        }
        self.clock.advance(context.now);
        self.power.advance(context.now);
    }

    /// Answers an acknowledge cycle for the 8259s, if their output is high.
    pub(super) fn acknowledge(&mut self, context: Context<'_>) -> Option<u8> {
        let vector = self.pics.output().then(|| self.pics.acknowledge());
        self.settle(context);
        vector
    }

    /// Reads a port.
    pub(super) fn read(&mut self, context: Context<'_>, port: u16, bytes: usize) -> u32 {
        if let test_device::KEEP..=test_device::LAST = port {
            return self.test_device.read(port, bytes);
        }
        match (port, bytes) {
            (PCI_ADDRESS, 4) => return u32::MAX,
            (places::PM_TIMER, 4) => return power::timer(context.now),
            _ => {}
        }
        let mut value = 0;
        for index in 0..bytes.min(4) as u16 {
            let byte = self.read_byte(context.now, port.wrapping_add(index));
            value |= u32::from(byte) << (8 * index);
        }
        self.settle(context);
        value
    }

    fn read_byte(&mut self, now: Time, port: u16) -> u8 {
        if let Some((which, register)) = pic_at(port) {
            return self.pics.read(which, register);
        }
        match port {
            pit::BASE..=pit::CONTROL => self.pit.read(now, (port - pit::BASE) as u8),
            CONTROL_B => self.read_control_b(now),
            keyboard::DATA => self.keyboard.read(),
            keyboard::COMMAND => self.keyboard.status(),
            clock::DATA => self.clock.read(now),
            reset::CONTROL_A | places::RESET => self.reset.read(port),
            pic::EDGE_LEVEL => self.pics.edge_level(Which::First),
            pic::EDGE_LEVEL_SECOND => self.pics.edge_level(Which::Second),
            fw_cfg::DATA => self.fw_cfg.read(),
            places::PM_EVENT..=power::LAST => self.power.read(now, port),
            _ => 0xff,
        }
    }

    /// Writes a port.
    pub(super) fn write(
        &mut self,
        context: Context<'_>,
        port: u16,
        bytes: usize,
        value: u32,
    ) -> Effect {
        let mut effect = Effect::None;
        match (port, bytes) {
            (test_device::KEEP..=test_device::LAST, _) => {
                return self.test_device.write(port, bytes, value);
            }
            (PCI_ADDRESS, 4) => return Effect::None,
            (fw_cfg::SELECT, 2) => self.fw_cfg.select(value as u16),
            (test_device::LINES..=test_device::LAST_LINE, _) => {
                self.set_test_line(context, (port - test_device::LINES) as u8, value != 0);
            }
            _ => {
                for (index, byte) in (0..).zip(value.to_le_bytes()).take(bytes) {
                    let one = self.write_byte(context, port.wrapping_add(index), byte);
                    if effect == Effect::None {
                        effect = one;
                    }
                }
            }
        }
        self.settle(context);
        effect
    }

    fn write_byte(&mut self, context: Context<'_>, port: u16, value: u8) -> Effect {
        if let Some((which, register)) = pic_at(port) {
            self.pics.write(which, register, value);
            return Effect::None;
        }
        let now = context.now;
        match port {
            pit::BASE..=pit::CONTROL => self.write_pit(context, (port - pit::BASE) as u8, value),
            CONTROL_B => {
                self.control_b = value & 0xe;
                self.pit.set_gate(now, value & 1 != 0);
            }
            keyboard::DATA => return self.keyboard.write(value),
            keyboard::COMMAND => return self.keyboard.command(value),
            clock::SELECT => self.clock.select(value),
            clock::DATA => self.clock.write(now, value),
            reset::CONTROL_A | places::RESET => return self.reset.write(port, value),
            pic::EDGE_LEVEL => self.pics.set_edge_level(Which::First, value),
            pic::EDGE_LEVEL_SECOND => self.pics.set_edge_level(Which::Second, value),
            places::PM_EVENT..=power::LAST => return self.power.write(now, port, value),
            _ => {}
        }
        Effect::None
    }

    /// Writes a port of the timer, after what was due before.
    fn write_pit(&mut self, context: Context<'_>, port: u8, value: u8) {
        self.fire(context);
        self.pit.write(context.now, port, value);
        self.set_lines(context, TIMER, self.pit.timer_line());
    }

    /// Sets a line of the test device: those of the ISA bus reach both kinds of controllers.
    fn set_test_line(&mut self, context: Context<'_>, line: u8, high: bool) {
        if line < 16 {
            self.set_lines(context, line, high);
        } else {
            self.set_pin(context, line, high);
        }
    }

    fn read_control_b(&self, now: Time) -> u8 {
        let refresh = now.0 / REFRESH % 2 == 1;
        self.control_b
            | u8::from(self.pit.gate())
            | u8::from(refresh) << 4
            | u8::from(self.pit.speaker(now)) << 5
    }

    /// Reads a register of the I/O APIC.
    pub(super) fn read_io_apic(&self, offset: u16) -> u32 {
        self.io_apic.read(offset)
    }

    /// Writes a register of the I/O APIC.
    pub(super) fn write_io_apic(&mut self, context: Context<'_>, offset: u16, value: u32) {
        if let Some(message) = self.io_apic.write(offset, value) {
            context.processors.deliver(None, &message);
        }
    }

    /// Tells the I/O APIC that a level-triggered interrupt has ended.
    pub(super) fn end_of_interrupt(&mut self, context: Context<'_>, vector: u8) {
        self.io_apic.end_of_interrupt(vector, |message| {
            context.processors.deliver(None, &message);
        });
    }
}

/// Finds the interrupt controller at a port.
const fn pic_at(port: u16) -> Option<(Which, Register)> {
    let register = if port & 1 == 0 {
        Register::Command
    } else {
        Register::Data
    };
    match port & !1 {
        pic::FIRST => Some((Which::First, register)),
        pic::SECOND => Some((Which::Second, register)),
        _ => None,
    }
}
