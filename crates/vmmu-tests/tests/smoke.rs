//! The machine itself: one fault of each engine, and that the judge can say no.

use vmmu::{Engine, SlotFlags};
use vmmu_spec::ErrorCode;
use vmmu_tests::guest::{PAGE, READ, ROOT, USER_READ, USER_WRITE, entry, long4, map_tree, slot};
use vmmu_tests::machine::{Audits, Machine, Seen, Setup};

fn machine(engine: Engine) -> Machine {
    let mut machine = Machine::new(&Setup::new(engine, 1));
    machine.add_slot(0, 1024, 0x4000, SlotFlags::empty());
    map_tree(&mut machine);
    machine.poke(slot(ROOT + 3, 1), entry(100, PAGE));
    machine.set_state(0, long4(ROOT));
    machine
}

#[test]
fn a_page_is_mapped_and_written_under_each_engine() {
    for engine in [Engine::Shadow, Engine::Npt, Engine::Ept] {
        let mut machine = machine(engine);
        let seen = machine.write(0, 0x1008, 7, USER_WRITE);
        assert!(matches!(seen, Seen::Memory(_)), "{engine:?}: {seen:?}");
        assert_eq!(machine.peek(100 << 12 | 8), 7);
        let none = machine.access(0, 0x2000, READ);
        assert_eq!(none, Seen::PageFault(ErrorCode::empty()), "{engine:?}");
    }
}

#[test]
#[should_panic(expected = "allowed")]
fn a_translation_that_was_flushed_is_refused_by_the_judge() {
    let mut machine = machine(Engine::Shadow);
    // The auditor would notice first.
    machine.audits = Audits::OnDemand;
    let _ = machine.access(0, 0x1000, USER_READ);
    // Nobody tells the library: it goes on with what it knows, and the judge has to notice.
    machine.poke(slot(ROOT + 3, 1), entry(101, PAGE));
    machine.flush(0);
    let _ = machine.access(0, 0x1000, USER_READ);
}
