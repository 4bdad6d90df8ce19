//! The board as its processors see it.

use core::num::NonZeroU8;
use std::io::Write;
use std::sync::{Arc, Mutex};

use vmmu::addr::Gpa;
use vmmu::paging::PhysBits;

use super::{Effect, Platform, PlatformConfig, ReservedBits, Time, Wake};
use crate::devices::Signals;

/// Who was woken, in order.
#[derive(Default)]
struct Woken(Mutex<Vec<usize>>);

impl Wake for Woken {
    fn wake(&self, cpu: usize) {
        self.0.lock().unwrap().push(cpu);
    }
}

/// An output that tests can read.
#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Board {
    platform: Platform,
    woken: Arc<Woken>,
    serial: Output,
    debug: Output,
}

const NOW: Time = Time(1000);

impl Board {
    fn new(cpus: u8) -> Self {
        let (woken, serial, debug) = (
            Arc::<Woken>::default(),
            Output::default(),
            Output::default(),
        );
        let config = PlatformConfig {
            cpus: NonZeroU8::new(cpus).unwrap(),
            ram: vec![Gpa::new(0)..Gpa::new(64 << 20)],
            phys_bits: PhysBits::new(40).unwrap(),
            epoch: 1_700_000_000,
            serial: Box::new(serial.clone()),
            debug: Box::new(debug.clone()),
        };
        Self {
            platform: Platform::new(config, woken.clone()),
            woken,
            serial,
            debug,
        }
    }
    fn woken(&self) -> Vec<usize> {
        core::mem::take(&mut self.woken.0.lock().unwrap())
    }
    fn outb(&self, port: u16, value: u8) -> Effect {
        self.platform.port_write(NOW, port, 1, value.into())
    }
    fn inb(&self, port: u16) -> u32 {
        self.platform.port_read(NOW, port, 1)
    }
    fn apic(&self, cpu: usize, register: u64, value: u32) {
        let at = Gpa::new(0xfee0_0000 + register);
        let effect = self.platform.mmio_write(cpu, NOW, at, 4, value.into());
        assert_eq!(effect, Effect::None);
    }
    fn io_apic(&self, index: u8, value: u32) {
        for (offset, value) in [(0, index.into()), (0x10, value)] {
            let at = Gpa::new(0xfec0_0000 + offset);
            let effect = self.platform.mmio_write(0, NOW, at, 4, value.into());
            assert_eq!(effect, Effect::None);
        }
    }
    /// Gives the 8259s vectors from 20h on, everything unmasked.
    fn set_up_pics(&self) {
        for (port, words) in [(0x20, [0x20, 4, 1, 0]), (0xa0, [0x28, 2, 1, 0])] {
            assert_eq!(self.outb(port, 0x11), Effect::None);
            for word in words {
                assert_eq!(self.outb(port + 1, word), Effect::None);
            }
        }
    }
    fn acknowledge(&self, cpu: usize) -> Option<u8> {
        self.platform.acknowledge(cpu, NOW)
    }
}

mod interrupts_of_the_8259s {
    use super::*;

    #[test]
    fn reach_the_bootstrap_processor_without_any_apic_being_set_up() {
        let board = Board::new(2);
        board.set_up_pics();
        assert!(!board.platform.has_pending(0));
        let next = board.platform.next_event().unwrap();
        board.platform.advance(next);
        assert_eq!(board.woken(), [0]);
        assert!(board.platform.has_pending(0) && !board.platform.has_pending(1));
        assert_eq!(board.acknowledge(0), Some(0x20));
        assert!(!board.platform.has_pending(0));
        assert_eq!(board.acknowledge(0), None);
    }

    #[test]
    fn of_the_timer_come_again_and_again() {
        let board = Board::new(1);
        board.set_up_pics();
        for _ in 0..3 {
            let next = board.platform.next_event().unwrap();
            board.platform.advance(next);
            assert_eq!(board.acknowledge(0), Some(0x20));
            assert_eq!(board.outb(0x20, 0x20), Effect::None);
        }
    }

    #[test]
    fn come_from_the_serial_port_when_there_is_input() {
        let board = Board::new(1);
        board.set_up_pics();
        let _ = board.outb(0x3f9, 1);
        board.platform.serial_input(NOW, b"k");
        assert_eq!(board.acknowledge(0), Some(0x24));
        let _ = board.outb(0x20, 0x20);
        assert_eq!(board.inb(0x3fa), 0x04);
        assert_eq!(board.inb(0x3f8), u32::from(b'k'));
        assert_eq!(board.acknowledge(0), None);
        board.platform.serial_input(NOW, b"l");
        assert_eq!(board.acknowledge(0), Some(0x24));
    }
}

mod interrupts_of_the_io_apic {
    use super::*;

    #[test]
    fn of_the_timer_come_by_pin_2() {
        let board = Board::new(2);
        board.apic(1, 0xf0, 0x1ff);
        board.io_apic(0x15, 1 << 24);
        board.io_apic(0x14, 0x30);
        let next = board.platform.next_event().unwrap();
        board.platform.advance(next);
        assert_eq!(board.woken(), [1]);
        assert_eq!(board.acknowledge(1), Some(0x30));
    }

    #[test]
    fn by_a_level_come_again_after_their_end() {
        let board = Board::new(1);
        board.io_apic(0x18, 0x8034);
        let _ = board.outb(0x3f9, 2);
        assert_eq!(board.acknowledge(0), Some(0x34));
        board.apic(0, 0xb0, 0);
        assert_eq!(board.acknowledge(0), Some(0x34));
        // Reading why lowers the line.
        assert_eq!(board.inb(0x3fa), 0x02);
        board.apic(0, 0xb0, 0);
        assert_eq!(board.acknowledge(0), None);
    }
}

mod messages_between_processors {
    use super::*;

    #[test]
    fn start_the_others() {
        let board = Board::new(3);
        board.apic(0, 0x300, 0xc_4500);
        board.apic(0, 0x300, 0xc_4608);
        assert_eq!(board.woken(), [1, 2, 1, 2]);
        let signals = Signals {
            init: true,
            startup: Some(8),
            nmi: false,
        };
        assert_eq!(board.platform.take_signals(1), signals);
        assert_eq!(board.platform.take_signals(2), signals);
        assert_eq!(board.platform.take_signals(0), Signals::default());
        assert!(!board.platform.has_pending(1));
    }

    #[test]
    fn reset_the_local_apic_too() {
        let board = Board::new(2);
        board.apic(1, 0xf0, 0x1ff);
        board.apic(0, 0x310, 1 << 24);
        board.apic(0, 0x300, 0x45);
        board.apic(0, 0x300, 0x4500);
        assert_eq!(board.acknowledge(1), None);
        let spurious = Gpa::new(0xfee0_00f0);
        assert_eq!(board.platform.mmio_read(1, NOW, spurious, 4), 0xff);
    }

    #[test]
    fn interrupt_one_all_or_the_sender() {
        let board = Board::new(3);
        for cpu in 0..3 {
            board.apic(cpu, 0xf0, 0x1ff);
        }
        board.apic(1, 0x310, 2 << 24);
        board.apic(1, 0x300, 0x41);
        board.apic(1, 0x300, 0x8_0042);
        board.apic(1, 0x300, 0x4_0043);
        board.apic(1, 0x300, 0xc_0044);
        let taken = |cpu| {
            let mut vectors = Vec::new();
            while let Some(vector) = board.acknowledge(cpu) {
                vectors.push(vector);
                board.apic(cpu, 0xb0, 0);
            }
            vectors
        };
        assert_eq!(taken(0), [0x44, 0x42]);
        assert_eq!(taken(1), [0x43, 0x42]);
        assert_eq!(taken(2), [0x44, 0x42, 0x41]);
    }

    #[test]
    fn of_the_lowest_priority_go_to_whoever_has_it() {
        let board = Board::new(3);
        for cpu in 0..3 {
            board.apic(cpu, 0xf0, 0x1ff);
            board.apic(cpu, 0xd0, 1 << (24 + cpu));
        }
        board.platform.set_task_priority(0, 5);
        board.platform.set_task_priority(1, 3);
        board.apic(0, 0x310, 0x0700_0000);
        board.apic(0, 0x300, 0x0961);
        assert_eq!(board.acknowledge(2), Some(0x61));
        board.apic(0, 0x310, 0x0300_0000);
        board.apic(0, 0x300, 0x0961);
        assert_eq!(
            (board.acknowledge(0), board.acknowledge(1)),
            (None, Some(0x61))
        );
    }

    #[test]
    fn that_are_nmis_are_signals() {
        let board = Board::new(2);
        board.apic(0, 0x310, 1 << 24);
        board.apic(0, 0x300, 0x400);
        assert!(board.platform.take_signals(1).nmi);
    }
}

mod the_local_apic {
    use super::*;

    #[test]
    fn is_where_its_base_says_and_each_processors_own() {
        let board = Board::new(2);
        let id = |cpu, at| board.platform.mmio_read(cpu, NOW, Gpa::new(at), 4);
        assert_eq!((id(0, 0xfee0_0020), id(1, 0xfee0_0020)), (0, 1 << 24));
        board.platform.set_apic_base(1, 0xfed0_0800).unwrap();
        assert_eq!(
            (id(1, 0xfed0_0020), id(1, 0xfee0_0020)),
            (1 << 24, 0xffff_ffff)
        );
        assert_eq!(board.platform.apic_base(0), 0xfee0_0900);
        // x2APIC mode, a reserved bit, an address that is too wide.
        for value in [0xfee0_0c00, 0xfee0_0801, 1 << 40 | 0x800] {
            let refused = board.platform.set_apic_base(0, value);
            assert_eq!(refused, Err(ReservedBits(value)));
        }
        board.platform.set_apic_base(0, 0xfee0_0000).unwrap();
        assert_eq!(id(0, 0xfee0_0020), 0xffff_ffff);
        assert_eq!(board.platform.apic_base(0), 0xfee0_0100);
    }

    #[test]
    fn wakes_its_processor_when_the_timer_expires() {
        let board = Board::new(2);
        board.apic(1, 0xf0, 0x1ff);
        board.apic(1, 0x320, 0x50);
        board.apic(1, 0x3e0, 0b1011);
        board.apic(1, 0x380, 500);
        assert_eq!(board.platform.next_event(), Some(Time(1500)));
        board.platform.advance(Time(1499));
        assert!(board.woken().is_empty());
        board.platform.advance(Time(1500));
        assert_eq!((board.woken(), board.acknowledge(1)), (vec![1], Some(0x50)));
    }

    #[test]
    fn holds_back_what_the_task_priority_forbids() {
        let board = Board::new(1);
        board.apic(0, 0x300, 0x4_0045);
        assert!(board.platform.has_pending(0));
        board.platform.set_task_priority(0, 4);
        assert_eq!(board.platform.task_priority(0), 4);
        assert!(!board.platform.has_pending(0));
        board.platform.set_task_priority(0, 3);
        assert_eq!(board.acknowledge(0), Some(0x45));
    }
}

mod ports {
    use super::*;

    #[test]
    fn without_a_device_read_as_ones() {
        let board = Board::new(1);
        for (bytes, ones) in [(1, 0xff), (2, 0xffff), (4, 0xffff_ffff)] {
            for port in [0x2f8, 0xcfc, 0x80, 0xffff] {
                assert_eq!(
                    board.platform.port_read(NOW, port, bytes),
                    ones,
                    "{port:#x}"
                );
            }
            let nowhere = Gpa::new(0xfd00_0000);
            let read = board.platform.mmio_read(0, NOW, nowhere, bytes);
            assert_eq!(read, u64::from(ones));
        }
        assert_eq!(
            board.platform.mmio_read(0, NOW, Gpa::new(1 << 39), 8),
            u64::MAX
        );
    }

    #[test]
    fn of_the_consoles_reach_their_outputs() {
        let board = Board::new(1);
        for byte in *b"hi" {
            assert_eq!(board.outb(0xe9, byte), Effect::None);
            assert_eq!(board.outb(0x3f8, byte - 32), Effect::None);
        }
        assert_eq!(*board.debug.0.lock().unwrap(), *b"hi");
        assert_eq!(*board.serial.0.lock().unwrap(), *b"HI");
        assert_eq!(board.inb(0xe9), 0xe9);
    }

    #[test]
    fn end_the_run_with_a_value_of_32_bits() {
        let board = Board::new(1);
        assert_eq!(board.outb(0xf4, 7), Effect::None);
        let effect = board.platform.port_write(NOW, 0xf4, 4, 0x1234_5678);
        assert_eq!(effect, Effect::DebugExit(0x1234_5678));
    }

    #[test]
    fn of_one_byte_take_wide_accesses_apart() {
        let board = Board::new(1);
        // Counter 2's control word and the gate are three ports apart from the counter.
        let _ = board.platform.port_write(NOW, 0x61, 1, 1);
        let _ = board.platform.port_write(NOW, 0x42, 2, 0x9012);
        let _ = board.platform.port_write(NOW, 0x42, 1, 0x34);
        let count = board.platform.port_read(Time(NOW.0 + 10_000), 0x42, 1);
        assert!((0x20..0x34).contains(&count), "{count:#x}");
    }

    #[test]
    fn show_the_speakers_output() {
        let board = Board::new(1);
        let _ = board.outb(0x43, 0xb0);
        let _ = board.outb(0x61, 1);
        for byte in [100, 0] {
            let _ = board.outb(0x42, byte);
        }
        assert_eq!(board.inb(0x61) & 0x21, 0x01);
        let later = board.platform.port_read(Time(NOW.0 + 90_000), 0x61, 1);
        assert_eq!(later & 0x21, 0x21);
    }
}

mod ends {
    use super::*;

    #[test]
    fn come_from_every_register_that_has_one() {
        let board = Board::new(1);
        assert_eq!(board.outb(0x64, 0xfe), Effect::Reset);
        assert_eq!(board.outb(0x92, 1), Effect::Reset);
        assert_eq!(board.outb(0xcf9, 6), Effect::Reset);
        let control = 5 << 10 | 1 << 13;
        let effect = board.platform.port_write(NOW, 0x604, 2, control);
        assert_eq!(effect, Effect::PowerOff);
    }

    #[test]
    fn do_not_come_from_a_pci_address() {
        let board = Board::new(1);
        let effect = board.platform.port_write(NOW, 0xcf8, 4, 0x8000_0600);
        assert_eq!(effect, Effect::None);
        assert_eq!(board.inb(0xcf9), 0);
    }
}

mod the_test_device {
    use super::*;

    #[test]
    fn raises_and_lowers_lines_of_both_controllers() {
        let board = Board::new(1);
        board.set_up_pics();
        let _ = board.outb(0x2005, 1);
        assert_eq!(board.acknowledge(0), Some(0x25));
        board.io_apic(0x10 + 2 * 20, 0x8050);
        let _ = board.outb(0x2014, 1);
        assert_eq!(board.acknowledge(0), Some(0x50));
        let _ = board.outb(0x2014, 0);
        board.apic(0, 0xb0, 0);
        assert_eq!(board.acknowledge(0), None);
    }

    #[test]
    fn tells_the_machine_of_mappings_and_marks() {
        let board = Board::new(1);
        let write = |port, value| board.platform.port_write(NOW, port, 4, value);
        let dropped = Effect::DropMapping(Gpa::new(0x5000));
        assert_eq!(write(0xe4, 0x5123), dropped);
        assert_eq!(write(0xe0, 1 << 24), Effect::None);
        assert_eq!(write(0x5e0, 1 << 24), Effect::MarkStart(1 << 24));
        assert_eq!(write(0x5e4, 1), Effect::MarkEnd(1));
        assert_eq!(board.platform.port_read(NOW, 0xe0, 4), 1 << 24);
    }
}

mod the_clock {
    use super::*;

    #[test]
    fn interrupts_by_request_8() {
        let board = Board::new(1);
        board.set_up_pics();
        let _ = board.outb(0x21, 0xfb);
        let _ = board.outb(0x70, 11);
        let _ = board.outb(0x71, 0x12);
        // The timer comes earlier, and is masked.
        while !board.platform.has_pending(0) {
            let next = board.platform.next_event().unwrap();
            assert!(next.0 <= 1_000_000_000);
            board.platform.advance(next);
        }
        assert_eq!(board.acknowledge(0), Some(0x28));
    }
}

mod the_firmware_configuration {
    use super::*;

    #[test]
    fn is_selected_by_words_and_read_by_bytes() {
        let board = Board::new(3);
        let _ = board.platform.port_write(NOW, 0x510, 2, 0x0005);
        assert_eq!((board.inb(0x511), board.inb(0x511)), (3, 0));
        let _ = board.platform.port_write(NOW, 0x510, 2, 0x0003);
        let ram = [0; 4].map(|_| board.inb(0x511));
        assert_eq!(ram, [0, 0, 0, 4]);
    }
}

mod power_management {
    use super::*;

    #[test]
    fn has_its_timer_in_32_bits() {
        let board = Board::new(1);
        let second = Time(1_000_000_000);
        assert_eq!(board.platform.port_read(second, 0x608, 4), 3_579_545);
    }

    #[test]
    fn interrupts_by_request_9_while_its_status_is_set() {
        let board = Board::new(1);
        board.io_apic(0x10 + 2 * 9, 0x8039);
        let _ = board.platform.port_write(NOW, 0x602, 2, 1);
        let carry = Time((1u64 << 31) * 1_000_000_000 / 3_579_545 + 1);
        board.platform.advance(carry);
        assert_eq!(board.acknowledge(0), Some(0x39));
        board.apic(0, 0xb0, 0);
        assert_eq!(board.acknowledge(0), Some(0x39));
        let _ = board.platform.port_write(carry, 0x600, 2, 1);
        board.apic(0, 0xb0, 0);
        assert_eq!(board.acknowledge(0), None);
    }
}

/// Two processors at once do anything anywhere: nothing panics, and no order of locks is wrong.
#[test]
fn any_access_is_survived() {
    let board = Board::new(2);
    let run = |cpu: usize| {
        let mut random = fastrand::Rng::with_seed(cpu as u64);
        for step in 0..100_000 {
            let now = Time(step * 20_000);
            let bytes = [1, 2, 4][random.usize(..3)];
            let port = match random.u8(..4) {
                0 => random.u16(..),
                1 => random.u16(0x20..0x100),
                2 => random.u16(0x3f8..0x620),
                _ => [0x20, 0x21, 0xa0, 0xa1, 0x43, 0x70, 0x71, 0x602][random.usize(..8)],
            };
            let page = [0xfee0_0000, 0xfec0_0000][random.usize(..2)];
            let at = Gpa::new(page + random.u64(..0x40) * 16);
            let platform = &board.platform;
            match random.u8(..10) {
                0..2 => drop(platform.port_read(now, port, bytes)),
                2..4 => {
                    let _ = platform.port_write(now, port, bytes, random.u32(..));
                }
                4 => drop(platform.mmio_read(cpu, now, at, 4)),
                5..7 => {
                    let _ = platform.mmio_write(cpu, now, at, 4, random.u64(..0x1_0000));
                }
                7 => platform.serial_input(now, b"x"),
                8 => platform.set_task_priority(cpu, random.u8(..16)),
                _ => platform.advance(now),
            }
            if platform.has_pending(cpu) {
                let _ = (platform.take_signals(cpu), platform.acknowledge(cpu, now));
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| run(0));
        scope.spawn(|| run(1));
    });
}
