//! The keyboard controller (Intel 8042 as a PC has it), without a keyboard: what systems use to reset and to find out that
//! there is none. Its lines to interrupts and to address line 20 don't exist; A20 is always open.

use super::Effect;

/// Its two ports.
pub(super) const DATA: u16 = 0x60;
pub(super) const COMMAND: u16 = 0x64;

/// Status: a byte waits to be read.
const OUTPUT_FULL: u8 = 1 << 0;
/// Status: the self-test has passed.
const SYSTEM: u8 = 1 << 2;
/// Status: the last write was a command.
const WAS_COMMAND: u8 = 1 << 3;
/// Status: not locked.
const UNLOCKED: u8 = 1 << 4;

/// Output port: not in reset; A20 open.
const OUTPUT_PORT: u8 = 0b11;

/// What the next byte at the data port is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expects {
    /// For the keyboard, which isn't there.
    Nothing,
    Configuration,
    OutputPort,
    /// A byte that comes back, as if from keyboard or mouse.
    Echo,
    /// A byte for the mouse, which isn't there.
    Discarded,
}

/// The controller.
#[derive(Clone, Debug)]
pub(super) struct Keyboard {
    configuration: u8,
    output: Option<u8>,
    expects: Expects,
    was_command: bool,
}

impl Keyboard {
    /// Makes a controller as firmware leaves it: tested, both devices disabled.
    pub(super) const fn new() -> Self {
        Self {
            configuration: 0x34,
            output: None,
            expects: Expects::Nothing,
            was_command: false,
        }
    }

    /// Reads the status.
    pub(super) fn status(&self) -> u8 {
        let full = self.output.map_or(0, |_| OUTPUT_FULL);
        let command = if self.was_command { WAS_COMMAND } else { 0 };
        SYSTEM | UNLOCKED | full | command
    }

    /// Reads what waits, or 0.
    pub(super) fn read(&mut self) -> u8 {
        self.output.take().unwrap_or(0)
    }

    /// Writes the data port.
    pub(super) fn write(&mut self, value: u8) -> Effect {
        self.was_command = false;
        match core::mem::replace(&mut self.expects, Expects::Nothing) {
            Expects::Configuration => self.configuration = value,
            Expects::OutputPort if value & 1 == 0 => return Effect::Reset,
            Expects::Echo => self.output = Some(value),
            Expects::OutputPort | Expects::Nothing | Expects::Discarded => {}
        }
        Effect::None
    }

    /// Writes a command.
    pub(super) fn command(&mut self, value: u8) -> Effect {
        self.was_command = true;
        self.expects = Expects::Nothing;
        match value {
            0x20 => self.output = Some(self.configuration),
            0x60 => self.expects = Expects::Configuration,
            // Self-test: passed.
            0xaa => self.output = Some(0x55),
            // Tests of the two devices' lines: clock line stuck low at the mouse, so there is none; the keyboard's are good.
            0xa9 => self.output = Some(0x01),
            0xab => self.output = Some(0x00),
            0xa7 => self.configuration |= 0x20,
            0xa8 => self.configuration &= !0x20,
            0xad => self.configuration |= 0x10,
            0xae => self.configuration &= !0x10,
            0xd0 => self.output = Some(OUTPUT_PORT),
            0xd1 => self.expects = Expects::OutputPort,
            0xd2 | 0xd3 => self.expects = Expects::Echo,
            0xd4 => self.expects = Expects::Discarded,
            // Pulses the output port's low lines for which a bit is clear: line 0 is reset.
            0xf0..=0xff if value & 1 == 0 => return Effect::Reset,
            _ => {}
        }
        Effect::None
    }
}

#[cfg(test)]
mod the_keyboard_controller {
    use super::{Effect, Keyboard};

    #[test]
    fn resets_when_it_is_told_to() {
        assert_eq!(Keyboard::new().command(0xfe), Effect::Reset);
        assert_eq!(Keyboard::new().command(0xff), Effect::None);
        let mut keyboard = Keyboard::new();
        assert_eq!(keyboard.command(0xd1), Effect::None);
        assert_eq!(keyboard.write(0xdf), Effect::None);
        let _ = keyboard.command(0xd1);
        assert_eq!(keyboard.write(0x02), Effect::Reset);
    }

    #[test]
    fn passes_its_self_test() {
        let mut keyboard = Keyboard::new();
        assert_eq!(keyboard.status() & 1, 0);
        let _ = keyboard.command(0xaa);
        assert_eq!(keyboard.status() & 0b1001, 0b1001);
        assert_eq!(keyboard.read(), 0x55);
        assert_eq!(keyboard.status() & 1, 0);
    }

    #[test]
    fn keeps_its_configuration_and_shows_a20_open() {
        let mut keyboard = Keyboard::new();
        let _ = keyboard.command(0x60);
        let _ = keyboard.write(0x47);
        let _ = keyboard.command(0x20);
        assert_eq!(keyboard.read(), 0x47);
        let _ = keyboard.command(0xd0);
        assert_eq!(keyboard.read() & 3, 3);
    }

    #[test]
    fn has_no_keyboard_that_answers() {
        let mut keyboard = Keyboard::new();
        // Reset the keyboard, then the mouse.
        assert_eq!(keyboard.write(0xff), Effect::None);
        let _ = keyboard.command(0xd4);
        assert_eq!(keyboard.write(0xff), Effect::None);
        assert_eq!((keyboard.status() & 1, keyboard.read()), (0, 0));
    }
}
