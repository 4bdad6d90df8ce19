//! Exits of the ports that aren't the guest's.

use super::{Machine, RAX, Stop};
use crate::arch::port::{Port, PortWidth};
use crate::channel::{self, DEBUG_EXIT, End, UART};
use crate::exit::EXITS;
use crate::permission::{CONTROL_A, KEYBOARD, MARK_END, MARK_START, PM_CONTROL, RESET};

/// The command by which the keyboard controller pulses the reset line.
const PULSE_RESET: u32 = 0xfe;

/// The bit of power-management control that puts the machine to sleep.
const SLEEP: u32 = 1 << 13;

/// An access to a port, as EXITINFO1 describes it (AMD APM vol. 2, section 15.10.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PortAccess {
    port: u16,
    width: PortWidth,
    direction: Direction,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    In,
    Out,
}

impl PortAccess {
    /// An access by IN or INS of so many bytes.
    pub(super) const fn input(port: u16, bytes: usize) -> Self {
        Self::new(port, bytes, Direction::In)
    }
    /// An access by OUT or OUTS of so many bytes.
    pub(super) const fn output(port: u16, bytes: usize) -> Self {
        Self::new(port, bytes, Direction::Out)
    }
    const fn new(port: u16, bytes: usize, direction: Direction) -> Self {
        let width = match bytes {
            1 => PortWidth::Byte,
            2 => PortWidth::Word,
            _ => PortWidth::Dword,
        };
        Self {
            port,
            width,
            direction,
        }
    }
    /// Reads the field; `None` for string instructions.
    fn from_info(info: u64) -> Option<Self> {
        let direction = if info & 1 != 0 {
            Direction::In
        } else {
            Direction::Out
        };
        let (port, bytes) = ((info >> 16) as u16, (info >> 4 & 7) as usize);
        (info & 4 == 0).then_some(Self::new(port, bytes, direction))
    }
    const fn mask(self) -> u64 {
        match self.width {
            PortWidth::Byte => 0xff,
            PortWidth::Word => 0xffff,
            PortWidth::Dword => 0xffff_ffff,
        }
    }
    /// Tells whether the access touches `port`.
    const fn covers(self, port: u16) -> bool {
        let bytes = match self.width {
            PortWidth::Byte => 1,
            PortWidth::Word => 2,
            PortWidth::Dword => 4,
        };
        port.wrapping_sub(self.port) < bytes
    }
}

impl Machine {
    /// Answers IN or OUT, and INS or OUTS.
    pub(super) fn io(&mut self) -> Result<(), Stop> {
        let Some(access) = PortAccess::from_info(self.vcpu.vmcb.exit_info1) else {
            return self.serve("string port");
        };
        // EXITINFO2 holds the next instruction's address.
        let length = self.vcpu.vmcb.exit_info2.wrapping_sub(self.vcpu.vmcb.rip) as u8;
        match access.direction {
            Direction::In => {
                let value = u64::from(Self::read_port(access)) & access.mask();
                let old = self.vcpu.get(RAX);
                let kept = if access.width == PortWidth::Dword {
                    0
                } else {
                    old & !access.mask()
                };
                self.vcpu.set(RAX, kept | value);
            }
            Direction::Out => {
                let value = (self.vcpu.get(RAX) & access.mask()) as u32;
                Self::write_port(access, value)?;
            }
        }
        self.vcpu.step_over(length);
        Ok(())
    }

    pub(super) fn read_port(access: PortAccess) -> u32 {
        match access.port {
            // The hypervisor's own devices are absent for the guest.
            port if (UART..UART + 8).contains(&port)
                || (DEBUG_EXIT..DEBUG_EXIT + 4).contains(&port) =>
            {
                u32::MAX
            }
            MARK_START | MARK_END => u32::MAX,
            port => Port(port).read(access.width),
        }
    }

    pub(super) fn write_port(access: PortAccess, value: u32) -> Result<(), Stop> {
        let shutdown = |reason| Err(Stop::End(End::Shutdown(reason)));
        match access.port {
            DEBUG_EXIT if access.width == PortWidth::Dword => Err(Stop::End(End::Exit(value))),
            port if (UART..UART + 8).contains(&port)
                || (DEBUG_EXIT..DEBUG_EXIT + 4).contains(&port) =>
            {
                Ok(())
            }
            MARK_START => {
                // The high byte is the phase, the rest how often its operation is done.
                mark("start", value >> 24);
                Ok(())
            }
            MARK_END => {
                mark("end", value);
                Ok(())
            }
            KEYBOARD if value & 0xff == PULSE_RESET => shutdown("reset by the keyboard controller"),
            CONTROL_A if value & 1 != 0 => shutdown("reset by system control port A"),
            PM_CONTROL if value & SLEEP != 0 => shutdown("power-off by the chipset"),
            _ if access.covers(RESET)
                && access.width != PortWidth::Dword
                && reset_byte(access, value) & 4 != 0 =>
            {
                shutdown("reset by the chipset")
            }
            port => {
                Port(port).write(access.width, value);
                Ok(())
            }
        }
    }
}

/// Returns the byte that an access writes to the reset register.
fn reset_byte(access: PortAccess, value: u32) -> u32 {
    value >> (8 * u32::from(RESET - access.port)) & 0xff
}

/// Tells the command about a mark.
fn mark(at: &str, phase: u32) {
    let total = EXITS.total();
    channel::send("mark", |object| {
        object.number("phase", u64::from(phase))?;
        object.text("at", at)?;
        object.number("exits", total)?;
        object.object("by", |object| EXITS.write(object))?;
        object.number("tsc", channel::elapsed())
    });
}

#[cfg(test)]
mod port_accesses_are_read {
    use super::*;

    #[test]
    fn from_the_exit_information() {
        let access = PortAccess::from_info(0x00f4_0040).unwrap();
        assert_eq!(
            access,
            PortAccess {
                port: 0xf4,
                width: PortWidth::Dword,
                direction: Direction::Out
            }
        );
        assert_eq!(
            PortAccess::from_info(0x0064_0011).unwrap().direction,
            Direction::In
        );
        assert_eq!(PortAccess::from_info(0x0064_0014), None);
    }

    #[test]
    fn a_configuration_address_is_no_reset() {
        let access = PortAccess::from_info(0x0cf8_0020).unwrap();
        assert!(access.covers(RESET));
        assert_eq!(reset_byte(access, 0x0600), 6);
        assert!(!PortAccess::from_info(0x0cf8_0010).unwrap().covers(RESET));
    }
}
