//! The pair of controllers.

use super::{Pics, Register, Which};

/// The usual sequence: vectors from 20h and 28h on, everything unmasked.
fn pics() -> Pics {
    let mut pics = Pics::new();
    for (which, base, cascade) in [(Which::First, 0x20, 4), (Which::Second, 0x28, 2)] {
        pics.write(which, Register::Command, 0x11);
        for word in [base, cascade, 1, 0] {
            pics.write(which, Register::Data, word);
        }
    }
    pics
}

fn pulse(pics: &mut Pics, line: u8) {
    pics.set_line(line, false);
    pics.set_line(line, true);
}

fn end(pics: &mut Pics, which: Which) {
    pics.write(which, Register::Command, 0x20);
}

mod requests {
    use super::*;

    #[test]
    fn of_a_higher_priority_interrupt_those_of_a_lower() {
        let mut pics = pics();
        pulse(&mut pics, 4);
        assert_eq!(pics.acknowledge(), 0x24);
        pulse(&mut pics, 6);
        assert!(!pics.output());
        pulse(&mut pics, 1);
        assert_eq!(pics.acknowledge(), 0x21);
        end(&mut pics, Which::First);
        assert!(!pics.output());
        end(&mut pics, Which::First);
        assert_eq!(pics.acknowledge(), 0x26);
    }

    #[test]
    fn of_the_second_controller_pass_the_first() {
        let mut pics = pics();
        pulse(&mut pics, 12);
        assert_eq!(pics.acknowledge(), 0x2c);
        pulse(&mut pics, 8);
        // Without special nesting the first controller holds it back until its own end.
        assert!(!pics.output());
        end(&mut pics, Which::First);
        assert_eq!(pics.acknowledge(), 0x28);
        end(&mut pics, Which::Second);
        end(&mut pics, Which::Second);
        end(&mut pics, Which::First);
        assert!(!pics.output());
    }

    #[test]
    fn by_an_edge_are_taken_once_and_by_a_level_while_it_lasts() {
        let mut pics = pics();
        pics.set_line(5, true);
        assert_eq!(pics.acknowledge(), 0x25);
        end(&mut pics, Which::First);
        assert!(!pics.output());
        pics.set_edge_level(Which::First, 1 << 3);
        pics.set_line(3, true);
        assert_eq!(pics.acknowledge(), 0x23);
        end(&mut pics, Which::First);
        assert_eq!(pics.acknowledge(), 0x23);
        pics.set_line(3, false);
        end(&mut pics, Which::First);
        assert!(!pics.output());
    }

    #[test]
    fn that_went_away_are_spurious() {
        let mut pics = pics();
        pulse(&mut pics, 3);
        pics.set_line(3, false);
        assert_eq!(pics.acknowledge(), 0x27);
        pics.write(Which::First, Register::Command, 0x0b);
        assert_eq!(pics.read(Which::First, Register::Command), 0);
    }

    #[test]
    fn are_masked_and_remembered() {
        let mut pics = pics();
        pics.write(Which::First, Register::Data, 0x10);
        assert_eq!(pics.read(Which::First, Register::Data), 0x10);
        pulse(&mut pics, 4);
        assert!(!pics.output());
        pics.write(Which::First, Register::Command, 0x0a);
        assert_eq!(pics.read(Which::First, Register::Command), 0x10);
        pics.write(Which::First, Register::Data, 0);
        assert_eq!(pics.acknowledge(), 0x24);
    }
}

mod modes {
    use super::*;

    #[test]
    fn automatic_end() {
        let mut pics = Pics::new();
        pics.write(Which::First, Register::Command, 0x11);
        for word in [0x20, 4, 3, 0] {
            pics.write(Which::First, Register::Data, word);
        }
        // Rotate at the automatic end.
        pics.write(Which::First, Register::Command, 0x80);
        pulse(&mut pics, 0);
        pulse(&mut pics, 1);
        assert_eq!(pics.acknowledge(), 0x20);
        pulse(&mut pics, 0);
        assert_eq!(pics.acknowledge(), 0x21);
        assert_eq!(pics.acknowledge(), 0x20);
    }

    #[test]
    fn special_mask() {
        let mut pics = pics();
        pulse(&mut pics, 3);
        assert_eq!(pics.acknowledge(), 0x23);
        pulse(&mut pics, 6);
        assert!(!pics.output());
        pics.write(Which::First, Register::Data, 1 << 3);
        pics.write(Which::First, Register::Command, 0x68);
        assert_eq!(pics.acknowledge(), 0x26);
        pics.write(Which::First, Register::Command, 0x48);
        pulse(&mut pics, 5);
        assert!(!pics.output());
    }

    #[test]
    fn special_nesting() {
        let mut pics = Pics::new();
        for (which, base, mode) in [(Which::First, 0x20, 0x11), (Which::Second, 0x28, 0x01)] {
            pics.write(which, Register::Command, 0x11);
            for word in [base, 0, mode, 0] {
                pics.write(which, Register::Data, word);
            }
        }
        pulse(&mut pics, 12);
        assert_eq!(pics.acknowledge(), 0x2c);
        pulse(&mut pics, 8);
        assert_eq!(pics.acknowledge(), 0x28);
    }

    #[test]
    fn polling() {
        let mut pics = pics();
        pics.write(Which::First, Register::Command, 0x0c);
        assert_eq!(pics.read(Which::First, Register::Command), 0);
        pulse(&mut pics, 4);
        pics.write(Which::First, Register::Command, 0x0c);
        assert_eq!(pics.read(Which::First, Register::Command), 0x84);
        pics.write(Which::First, Register::Command, 0x0b);
        assert_eq!(pics.read(Which::First, Register::Command), 0x10);
    }

    #[test]
    fn rotation() {
        let mut pics = pics();
        // Set priority: 4 is the lowest, so 5 is the highest.
        pics.write(Which::First, Register::Command, 0xc4);
        pulse(&mut pics, 1);
        pulse(&mut pics, 6);
        assert_eq!(pics.acknowledge(), 0x26);
        // Rotate at a specific end.
        pics.write(Which::First, Register::Command, 0xe6);
        pulse(&mut pics, 6);
        assert_eq!(pics.acknowledge(), 0x21);
    }

    #[test]
    fn specific_end() {
        let mut pics = pics();
        pulse(&mut pics, 5);
        pulse(&mut pics, 3);
        assert_eq!(pics.acknowledge(), 0x23);
        pulse(&mut pics, 1);
        assert_eq!(pics.acknowledge(), 0x21);
        pics.write(Which::First, Register::Command, 0x63);
        pics.write(Which::First, Register::Command, 0x0b);
        assert_eq!(pics.read(Which::First, Register::Command), 0x02);
    }
}

#[test]
fn initialisation_without_its_fourth_word_ends_after_the_third() {
    let mut pics = pics();
    pics.write(Which::First, Register::Command, 0x10);
    for word in [0x40, 4, 0xaa] {
        pics.write(Which::First, Register::Data, word);
    }
    assert_eq!(pics.read(Which::First, Register::Data), 0xaa);
}

/// The edges that came before have to come again.
#[test]
fn initialisation_forgets_edges_and_sees_levels() {
    let mut pics = pics();
    pics.set_edge_level(Which::First, 1 << 5);
    pics.set_line(4, true);
    pics.set_line(5, true);
    pics.write(Which::First, Register::Command, 0x11);
    assert_eq!(pics.read(Which::First, Register::Command), 1 << 5);
}

#[test]
fn edge_level_registers_keep_the_fixed_lines() {
    let mut pics = Pics::new();
    assert_eq!(pics.edge_level(Which::Second), 0x02);
    pics.set_edge_level(Which::First, 0xff);
    pics.set_edge_level(Which::Second, 0xff);
    assert_eq!(pics.edge_level(Which::First), 0xf8);
    assert_eq!(pics.edge_level(Which::Second), 0xde);
}
