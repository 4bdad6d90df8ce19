//! A local APIC alone.

use super::{
    Acknowledged, Action, Delivery, Destination, LocalApic, Message, Register, Time, Trigger,
};

const NOW: Time = Time(0);

fn enabled() -> LocalApic {
    let mut apic = LocalApic::new(3);
    let _ = apic.write(NOW, Register::SPURIOUS, 0x1ff);
    apic
}

fn put(apic: &mut LocalApic, register: Register, value: u32) -> Action {
    apic.write(NOW, register, value)
}

mod priorities {
    use super::*;

    /// Section 11.8.3.1: only a higher class interrupts, and within a class the end of the one lets the other pass.
    #[test]
    fn hold_back_what_is_not_of_a_higher_class() {
        let mut apic = enabled();
        apic.request(0x41, Trigger::Edge);
        assert_eq!(apic.acknowledge(), Acknowledged::Vector(0x41));
        apic.request(0x4f, Trigger::Edge);
        assert_eq!(apic.acknowledge(), Acknowledged::Nothing);
        apic.request(0x50, Trigger::Edge);
        assert_eq!(apic.acknowledge(), Acknowledged::Vector(0x50));
        assert_eq!(apic.read(NOW, Register::PROCESSOR_PRIORITY), 0x50);
        put(&mut apic, Register::END_OF_INTERRUPT, 0);
        assert!(!apic.has_interrupt());
        put(&mut apic, Register::END_OF_INTERRUPT, 0);
        assert_eq!(apic.acknowledge(), Acknowledged::Vector(0x4f));
    }

    #[test]
    fn of_the_task_hold_back_its_class_and_below() {
        let mut apic = enabled();
        apic.request(0x35, Trigger::Edge);
        put(&mut apic, Register::TASK_PRIORITY, 0x30);
        assert!(!apic.has_interrupt());
        assert_eq!(apic.read(NOW, Register::PROCESSOR_PRIORITY), 0x30);
        put(&mut apic, Register::TASK_PRIORITY, 0x2f);
        assert!(apic.has_interrupt());
    }
}

mod interrupts {
    use super::*;

    /// Section 11.8.5: only the end of a level-triggered interrupt is told.
    #[test]
    fn end_with_a_word_to_the_io_apic_if_level_triggered() {
        let mut apic = enabled();
        for (trigger, told) in [
            (Trigger::Level, Action::EndOfInterrupt(0x60)),
            (Trigger::Edge, Action::None),
        ] {
            apic.request(0x60, trigger);
            assert_eq!(apic.acknowledge(), Acknowledged::Vector(0x60));
            assert_eq!(put(&mut apic, Register::END_OF_INTERRUPT, 0), told);
        }
        assert_eq!(put(&mut apic, Register::END_OF_INTERRUPT, 0), Action::None);
    }

    #[test]
    fn are_shown_by_the_registers() {
        let mut apic = enabled();
        apic.request(0x61, Trigger::Level);
        assert_eq!(apic.read(NOW, Register::at(0x230)), 2);
        assert_eq!(apic.read(NOW, Register::at(0x1b0)), 2);
        let _ = apic.acknowledge();
        assert_eq!(apic.read(NOW, Register::at(0x230)), 0);
        assert_eq!(apic.read(NOW, Register::at(0x130)), 2);
    }

    /// Section 11.4.7.2: software-disabled, it accepts none, and the vector table is masked.
    #[test]
    fn are_not_accepted_by_a_disabled_apic() {
        let mut apic = LocalApic::new(0);
        apic.request(0x60, Trigger::Edge);
        put(&mut apic, Register::TIMER, 0x40);
        assert_eq!(apic.read(NOW, Register::TIMER), 0x1_0040);
        put(&mut apic, Register::SPURIOUS, 0x1ff);
        assert!(!apic.has_interrupt());
        put(&mut apic, Register::TIMER, 0x40);
        assert_eq!(apic.read(NOW, Register::TIMER), 0x40);
        put(&mut apic, Register::SPURIOUS, 0xff);
        assert_eq!(apic.read(NOW, Register::TIMER), 0x1_0040);
    }

    #[test]
    fn of_the_timer_come_when_it_expires() {
        let mut apic = enabled();
        put(&mut apic, Register::TIMER, 0x2_0040);
        put(&mut apic, Register::DIVIDE, 0b1011);
        put(&mut apic, Register::INITIAL_COUNT, 100);
        assert_eq!(apic.next_event(), Some(Time(100)));
        apic.fire(Time(100));
        assert_eq!(apic.acknowledge(), Acknowledged::Vector(0x40));
        assert_eq!(apic.next_event(), Some(Time(200)));
    }

    #[test]
    fn of_a_masked_timer_never_come() {
        let mut apic = enabled();
        put(&mut apic, Register::TIMER, 0x1_0040);
        put(&mut apic, Register::INITIAL_COUNT, 100);
        apic.fire(Time(1000));
        assert!(!apic.has_interrupt());
    }
}

mod the_external_line {
    use super::*;

    #[test]
    fn passes_in_virtual_wire_mode_whatever_the_priority() {
        let mut apic = LocalApic::new(0);
        apic.set_virtual_wire();
        apic.set_task_priority(0xff);
        assert!(!apic.set_lint0(true));
        assert_eq!(apic.acknowledge(), Acknowledged::External);
        assert!(!apic.set_lint0(false));
        assert!(!apic.has_interrupt());
    }

    #[test]
    fn is_masked_after_reset_and_passes_an_apic_that_is_off() {
        let mut apic = LocalApic::new(0);
        assert!(!apic.set_lint0(true));
        assert!(!apic.has_interrupt());
        apic.set_globally_enabled(false);
        assert!(apic.has_interrupt());
    }

    #[test]
    fn can_be_a_fixed_interrupt_or_an_nmi() {
        let mut apic = enabled();
        put(&mut apic, Register::LINT0, 0x55);
        assert!(!apic.set_lint0(true));
        assert_eq!(apic.acknowledge(), Acknowledged::Vector(0x55));
        put(&mut apic, Register::LINT0, 0x400);
        assert!(!apic.set_lint0(false));
        assert!(apic.set_lint0(true));
    }
}

mod commands {
    use super::*;

    fn message(destination: Destination, delivery: Delivery, vector: u8) -> Action {
        Action::Send(Message {
            destination,
            delivery,
            trigger: Trigger::Edge,
            vector,
        })
    }

    /// Figure 11-12.
    #[test]
    fn are_decoded() {
        let mut apic = enabled();
        put(&mut apic, Register::COMMAND_HIGH, 0x0500_0000);
        for (low, expected) in [
            (
                0x0_0041,
                message(Destination::Physical(5), Delivery::Fixed, 0x41),
            ),
            (
                0x0_0941,
                message(Destination::Logical(5), Delivery::Lowest, 0x41),
            ),
            (
                0x4_0041,
                message(Destination::Itself, Delivery::Fixed, 0x41),
            ),
            (0x8_0400, message(Destination::All, Delivery::Nmi, 0)),
            (0xc_4500, message(Destination::Others, Delivery::Init, 0)),
            (
                0xc_469a,
                message(Destination::Others, Delivery::Startup, 0x9a),
            ),
            (0xc_8500, Action::None),
        ] {
            assert_eq!(
                put(&mut apic, Register::COMMAND_LOW, low),
                expected,
                "{low:#x}"
            );
            assert_eq!(apic.read(NOW, Register::COMMAND_LOW) & 1 << 12, 0);
        }
    }

    #[test]
    fn reach_logical_destinations() {
        let mut apic = enabled();
        put(&mut apic, Register::LOGICAL_ID, 0x2400_0000);
        let matches = |apic: &LocalApic, bits| apic.matches(Destination::Logical(bits));
        assert!(matches(&apic, 0x04) && matches(&apic, 0xff) && !matches(&apic, 0x03));
        put(&mut apic, Register::DESTINATION_FORMAT, 0x0fff_ffff);
        assert!(matches(&apic, 0x24) && matches(&apic, 0xf4) && matches(&apic, 0x2f));
        assert!(!matches(&apic, 0x14) && !matches(&apic, 0x23));
        assert!(apic.matches(Destination::Physical(3)));
        assert!(apic.matches(Destination::Physical(0xff)));
        assert!(!apic.matches(Destination::Physical(4)));
    }
}

mod errors {
    use super::*;

    /// Section 11.5.3: the register shows them after a write.
    #[test]
    fn are_shown_after_a_write_and_raise_an_interrupt() {
        let mut apic = enabled();
        put(&mut apic, Register::ERROR, 0x77);
        assert_eq!(put(&mut apic, Register::COMMAND_LOW, 0x5), Action::None);
        assert_eq!(apic.acknowledge(), Acknowledged::Vector(0x77));
        assert_eq!(apic.read(NOW, Register::ERROR_STATUS), 0);
        put(&mut apic, Register::ERROR_STATUS, 0);
        assert_eq!(apic.read(NOW, Register::ERROR_STATUS), 1 << 5);
        put(&mut apic, Register::ERROR_STATUS, 0);
        assert_eq!(apic.read(NOW, Register::ERROR_STATUS), 0);
    }

    #[test]
    fn of_an_illegal_vector_or_register_are_counted_once() {
        let mut apic = enabled();
        // Even the error interrupt's own vector is illegal.
        put(&mut apic, Register::ERROR, 0x0);
        apic.request(0x0f, Trigger::Edge);
        assert_eq!(apic.read(NOW, Register::at(0x40)), 0);
        put(&mut apic, Register::ERROR_STATUS, 0);
        assert_eq!(apic.read(NOW, Register::ERROR_STATUS), 1 << 6 | 1 << 7);
    }
}

#[test]
fn init_resets_all_but_the_identifier() {
    let mut apic = enabled();
    apic.request(0x60, Trigger::Edge);
    put(&mut apic, Register::TASK_PRIORITY, 0x20);
    apic.reset();
    assert_eq!(apic.read(NOW, Register::ID), 3 << 24);
    assert_eq!(apic.read(NOW, Register::SPURIOUS), 0xff);
    assert_eq!(apic.read(NOW, Register::TASK_PRIORITY), 0);
    assert_eq!(apic.read(NOW, Register::at(0x230)), 0);
    assert!(apic.is_globally_enabled());
}
