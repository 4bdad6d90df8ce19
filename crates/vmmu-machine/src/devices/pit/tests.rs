//! The three counters.

use super::{Pit, Time, ticks, time_of};

/// Time 0 of these tests is a whole second, so that clocks are easy to name.
const START: u64 = 1_193_182;

fn at(clock: u64) -> Time {
    time_of(START + clock)
}

fn program(pit: &mut Pit, channel: u8, mode: u8, count: u16) {
    pit.write(at(0), 3, channel << 6 | 0x30 | mode << 1);
    let [low, high] = count.to_le_bytes();
    pit.write(at(0), channel, low);
    pit.write(at(0), channel, high);
}

fn count(pit: &mut Pit, channel: u8, clock: u64) -> u16 {
    let low = pit.read(at(clock), channel);
    u16::from_le_bytes([low, pit.read(at(clock), channel)])
}

#[test]
fn clocks_and_times_agree() {
    for clock in [0, 1, 2, 1_193_181, 1_193_182, 10_000_000_019] {
        assert_eq!(ticks(time_of(clock)), clock);
    }
    assert_eq!(time_of(1_193_182), Time(1_000_000_000));
}

mod the_timer_interrupt {
    use super::*;

    #[test]
    fn comes_18_times_a_second_after_reset() {
        let mut pit = Pit::new();
        let mut rises = 0;
        while let Some(next) = pit.next_event().filter(|next| next.0 < 10_000_000_000) {
            assert!(pit.fire(next));
            rises += 1;
        }
        assert_eq!(rises, 182);
    }

    #[test]
    fn comes_periodically_in_modes_2_and_3() {
        for mode in [2, 3] {
            let mut pit = Pit::new();
            program(&mut pit, 0, mode, 1000);
            assert!(pit.timer_line());
            assert!(!pit.fire(at(1000)));
            assert_eq!(pit.next_event(), Some(at(1001)));
            assert!(pit.fire(at(1001)));
            assert!(!pit.fire(at(1001)));
            // Late by more than two periods: one interrupt, then the old grid.
            assert!(pit.fire(at(4500)));
            assert_eq!(pit.next_event(), Some(at(5001)));
        }
    }

    /// Mode 0: N + 1 clocks after the count is written.
    #[test]
    fn comes_once_in_mode_0() {
        let mut pit = Pit::new();
        program(&mut pit, 0, 0, 500);
        assert!(!pit.timer_line());
        assert!(!pit.fire(at(500)));
        assert!(pit.fire(at(501)));
        assert!(pit.timer_line());
        assert_eq!(pit.next_event(), None);
        pit.write(at(600), 0, 10);
        assert!(!pit.timer_line());
    }

    #[test]
    fn comes_after_the_strobe_of_mode_4() {
        let mut pit = Pit::new();
        program(&mut pit, 0, 4, 500);
        assert!(pit.timer_line());
        assert_eq!(pit.next_event(), Some(at(502)));
        assert!(pit.fire(at(502)));
        assert_eq!(pit.next_event(), None);
    }
}

mod counts {
    use super::*;

    #[test]
    fn go_down() {
        let mut pit = Pit::new();
        program(&mut pit, 0, 2, 1000);
        assert_eq!(count(&mut pit, 0, 1), 1000);
        assert_eq!(count(&mut pit, 0, 101), 900);
        assert_eq!(count(&mut pit, 0, 1000), 1);
        assert_eq!(count(&mut pit, 0, 1001), 1000);
        program(&mut pit, 0, 3, 1000);
        assert_eq!(count(&mut pit, 0, 101), 800);
        assert_eq!(count(&mut pit, 0, 601), 800);
        program(&mut pit, 1, 0, 10);
        assert_eq!(count(&mut pit, 1, 12), 0xffff);
    }

    #[test]
    fn go_down_in_decimal() {
        let mut pit = Pit::new();
        pit.write(at(0), 3, 0x35);
        pit.write(at(0), 0, 0x00);
        pit.write(at(0), 0, 0x10);
        assert_eq!(count(&mut pit, 0, 2), 0x0999);
    }

    #[test]
    fn are_latched_until_read() {
        let mut pit = Pit::new();
        program(&mut pit, 0, 2, 1000);
        pit.write(at(101), 3, 0x00);
        pit.write(at(102), 3, 0x00);
        assert_eq!(count(&mut pit, 0, 500), 900);
        assert_eq!(count(&mut pit, 0, 501), 500);
    }

    #[test]
    fn can_be_of_one_byte() {
        let mut pit = Pit::new();
        pit.write(at(0), 3, 0x14);
        pit.write(at(0), 0, 100);
        assert_eq!(pit.read(at(11), 0), 90);
        assert_eq!(pit.read(at(21), 0), 80);
        pit.write(at(0), 3, 0x24);
        pit.write(at(0), 0, 0x12);
        assert_eq!(pit.read(at(2), 0), 0x11);
    }

    /// The read-back command: status, then count.
    #[test]
    fn are_read_back_with_the_status() {
        let mut pit = Pit::new();
        program(&mut pit, 2, 3, 1000);
        pit.write(at(0), 3, 0xb6);
        pit.write(at(0), 3, 0xe8);
        // Output high, null count, both bytes, mode 3.
        assert_eq!(pit.read(at(1), 2), 0xf6);
        program(&mut pit, 0, 2, 1000);
        pit.write(at(101), 3, 0xc2);
        assert_eq!(pit.read(at(300), 0), 0xb4);
        assert_eq!(count(&mut pit, 0, 400), 900);
    }
}

mod counter_2 {
    use super::*;

    /// How systems calibrate: gate open, mode 0, wait for the output.
    #[test]
    fn raises_its_output_after_its_count() {
        let mut pit = Pit::new();
        pit.set_gate(at(0), true);
        program(&mut pit, 2, 0, 1000);
        assert!(!pit.speaker(at(1000)));
        assert!(pit.speaker(at(1001)));
    }

    #[test]
    fn is_stopped_by_its_gate() {
        let mut pit = Pit::new();
        program(&mut pit, 2, 0, 1000);
        assert!(!pit.gate() && !pit.speaker(at(5000)));
        pit.set_gate(at(5000), true);
        pit.set_gate(at(5400), false);
        assert!(!pit.speaker(at(9000)));
        assert_eq!(count(&mut pit, 2, 9000), 600);
        pit.set_gate(at(9000), true);
        assert!(!pit.speaker(at(9599)) && pit.speaker(at(9600)));
    }

    #[test]
    fn makes_a_square_wave_and_a_rate() {
        let mut pit = Pit::new();
        pit.set_gate(at(0), true);
        program(&mut pit, 2, 3, 5);
        let wave = |pit: &Pit| {
            (1..11)
                .map(|n| pit.speaker(at(n)).into())
                .collect::<Vec<u8>>()
        };
        assert_eq!(wave(&pit), [1, 1, 1, 0, 0, 1, 1, 1, 0, 0]);
        program(&mut pit, 2, 2, 5);
        assert_eq!(wave(&pit), [1, 1, 1, 1, 0, 1, 1, 1, 1, 0]);
        pit.set_gate(at(20), false);
        assert!((20..30).all(|n| pit.speaker(at(n))));
    }

    #[test]
    fn is_begun_by_its_gate_in_modes_1_and_5() {
        let mut pit = Pit::new();
        program(&mut pit, 2, 1, 10);
        assert!(pit.speaker(at(100)));
        pit.set_gate(at(100), true);
        assert!(!pit.speaker(at(102)) && !pit.speaker(at(110)) && pit.speaker(at(111)));
        pit.set_gate(at(200), false);
        program(&mut pit, 2, 5, 10);
        pit.set_gate(at(200), true);
        assert!(pit.speaker(at(210)) && !pit.speaker(at(211)) && pit.speaker(at(212)));
    }
}

#[test]
fn any_program_is_survived() {
    let mut random = fastrand::Rng::with_seed(8254);
    let mut pit = Pit::new();
    for clock in 0..200_000 {
        let now = at(clock * 3);
        match random.u8(..5) {
            0 => pit.set_gate(now, random.bool()),
            1 => {
                pit.read(now, random.u8(..4));
            }
            2 => {
                let _ = (pit.fire(now), pit.speaker(now), pit.next_event());
            }
            _ => pit.write(now, random.u8(..4), random.u8(..)),
        }
        let _ = pit.fire(now);
        assert!(pit.next_event().is_none_or(|next| next > now));
    }
}
