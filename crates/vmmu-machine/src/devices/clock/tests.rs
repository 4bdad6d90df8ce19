//! The clock and its memory.

use super::{Clock, Gpa, Time};

/// 2023-11-14 22:13:20, a Tuesday.
const EPOCH: u64 = 1_700_000_000;
const SECOND: u64 = 1_000_000_000;

fn clock() -> Clock {
    let range = |start, end| Gpa::new(start)..Gpa::new(end);
    Clock::new(EPOCH, &[range(0, 3 << 30), range(4 << 30, 5 << 30)])
}

fn get(clock: &mut Clock, now: u64, at: u8) -> u8 {
    clock.select(at | 0x80);
    clock.read(Time(now))
}
fn put(clock: &mut Clock, now: u64, at: u8, value: u8) {
    clock.select(at);
    clock.write(Time(now), value);
}
fn date(clock: &mut Clock, now: u64) -> [u8; 8] {
    [0x32, 9, 8, 7, 6, 4, 2, 0].map(|at| get(clock, now, at))
}

mod the_date {
    use super::*;

    #[test]
    fn is_the_epoch_and_the_time_since() {
        let mut clock = clock();
        assert_eq!(
            date(&mut clock, 0),
            [0x20, 0x23, 0x11, 0x14, 3, 0x22, 0x13, 0x20]
        );
        let later = date(&mut clock, 7000 * SECOND);
        assert_eq!(later, [0x20, 0x23, 0x11, 0x15, 4, 0x00, 0x10, 0x00]);
    }

    #[test]
    fn is_shown_in_the_notation_that_register_b_asks_for() {
        let mut clock = clock();
        put(&mut clock, 0, 11, 0x04);
        assert_eq!(date(&mut clock, 0), [20, 23, 11, 14, 3, 0x80 | 10, 13, 20]);
        put(&mut clock, 0, 11, 0x00);
        assert_eq!(get(&mut clock, 0, 4), 0x90);
        assert_eq!(get(&mut clock, 3 * 3600 * SECOND, 4), 0x01);
        assert_eq!(get(&mut clock, 2 * 3600 * SECOND, 4), 0x12);
    }

    #[test]
    fn stands_still_while_it_is_set() {
        let mut clock = clock();
        put(&mut clock, 0, 11, 0x82);
        // Through a date that doesn't exist: 31 February.
        for (at, value) in [(7, 0x31), (8, 0x02), (7, 0x28), (9, 0x99), (0x32, 0x19)] {
            put(&mut clock, 0, at, value);
        }
        put(&mut clock, 0, 4, 0x23);
        put(&mut clock, 0, 2, 0x59);
        put(&mut clock, 0, 0, 0x59);
        let set = [0x19, 0x99, 0x02, 0x28, 1, 0x23, 0x59, 0x59];
        assert_eq!(date(&mut clock, 5 * SECOND), set);
        put(&mut clock, 5 * SECOND, 11, 0x02);
        assert_eq!(date(&mut clock, 5 * SECOND), set);
        let next = date(&mut clock, 6 * SECOND);
        assert_eq!(next, [0x19, 0x99, 0x03, 0x01, 2, 0x00, 0x00, 0x00]);
    }

    #[test]
    fn is_announced_before_it_changes() {
        let mut clock = clock();
        let updating = |clock: &mut Clock, now| get(clock, now, 10) & 0x80 != 0;
        assert!(!updating(&mut clock, SECOND - 2_300_000));
        assert!(updating(&mut clock, SECOND - 1));
        assert!(!updating(&mut clock, SECOND));
        put(&mut clock, 0, 11, 0x82);
        assert!(!updating(&mut clock, SECOND - 1));
    }

    #[test]
    fn survives_any_bytes() {
        let mut random = fastrand::Rng::with_seed(146_818);
        let mut clock = clock();
        for step in 0..100_000 {
            let now = step * 50_000_000;
            put(&mut clock, now, random.u8(..), random.u8(..));
            let _ = get(&mut clock, now, random.u8(..));
            clock.advance(Time(now));
            assert!(clock.next_event().is_none_or(|next| next.0 > now));
        }
    }
}

mod interrupts {
    use super::*;

    #[test]
    fn at_the_end_of_an_update() {
        let mut clock = clock();
        assert_eq!(clock.next_event(), None);
        put(&mut clock, SECOND / 2, 11, 0x12);
        assert_eq!(clock.next_event(), Some(Time(SECOND)));
        clock.advance(Time(SECOND));
        assert!(clock.line());
        assert_eq!(clock.next_event(), None);
        assert_eq!(get(&mut clock, SECOND, 12), 0x80 | 0x40 | 0x10);
        assert!(!clock.line());
        assert_eq!(clock.next_event(), Some(Time(2 * SECOND)));
    }

    #[test]
    fn at_the_alarm() {
        let mut clock = clock();
        // 22:14:xx, ten seconds past.
        for (at, value) in [(1, 0x10), (3, 0x14), (5, 0xff)] {
            put(&mut clock, 0, at, value);
        }
        put(&mut clock, 0, 11, 0x22);
        let mut rose = None;
        while rose.is_none() {
            let next = clock.next_event().unwrap();
            clock.advance(next);
            rose = clock.line().then_some(next);
        }
        assert_eq!(rose, Some(Time(50 * SECOND)));
        assert_eq!(get(&mut clock, 50 * SECOND, 12) & 0xa0, 0xa0);
    }

    #[test]
    fn at_the_chosen_rate() {
        let mut clock = clock();
        put(&mut clock, 0, 11, 0x42);
        let mut rises = 0;
        while let Some(next) = clock.next_event().filter(|next| next.0 <= SECOND) {
            clock.advance(next);
            assert_eq!(get(&mut clock, next.0, 12) & 0xc0, 0xc0);
            rises += 1;
        }
        assert_eq!(rises, 1024);
        for (rate, rises) in [(0xf, 2), (3, 8192), (1, 256)] {
            put(&mut clock, 0, 10, 0x20 | rate);
            let period = clock.period().unwrap();
            assert_eq!(clock.periods(Time(SECOND), period), rises);
        }
        put(&mut clock, 0, 10, 0x20);
        assert_eq!(clock.next_event(), None);
    }

    #[test]
    fn do_not_come_while_the_date_is_set() {
        let mut clock = clock();
        put(&mut clock, 0, 11, 0x92);
        assert_eq!(get(&mut clock, 0, 11), 0x82);
        clock.advance(Time(3 * SECOND));
        assert_eq!(get(&mut clock, 3 * SECOND, 12) & 0x10, 0);
    }

    #[test]
    fn are_told_even_if_nobody_wants_them() {
        let mut clock = clock();
        assert_eq!(get(&mut clock, 2 * SECOND, 12), 0x50);
        assert_eq!(get(&mut clock, 2 * SECOND, 12), 0x00);
    }
}

mod memory {
    use super::*;

    #[test]
    fn tells_how_much_there_is() {
        let mut clock = clock();
        let mut word =
            |at: u8| u16::from_le_bytes([get(&mut clock, 0, at), get(&mut clock, 0, at + 1)]);
        assert_eq!(word(0x15), 640);
        assert_eq!((word(0x17), word(0x30)), (0xffff, 0xffff));
        assert_eq!(word(0x34), (3 << 14) - 256);
        assert_eq!((word(0x5b), word(0x5d)), (1 << 14, 0));
        let sum: u16 = (0x10..0x2e)
            .map(|at| u16::from(get(&mut clock, 0, at)))
            .sum();
        assert_eq!(
            [get(&mut clock, 0, 0x2e), get(&mut clock, 0, 0x2f)],
            sum.to_be_bytes()
        );
    }

    #[test]
    fn keeps_the_shutdown_status() {
        let mut clock = clock();
        put(&mut clock, 0, 0xf, 0x0a);
        assert_eq!(get(&mut clock, 0, 0xf), 0x0a);
        assert_eq!(get(&mut clock, 0, 13), 0x80);
    }
}
