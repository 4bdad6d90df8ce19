//! Faults proceed in parallel: what blocks one thread in the embedder does not block another, and a fault takes few locks.
//!
//! Each test names the break of the library that it was seen to catch.
#![forbid(unsafe_code)]

#[path = "mutants/stage.rs"]
#[allow(dead_code, reason = "what tests begin with is shared")]
mod stage;

use core::time::Duration;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use vmmu::addr::Gfn;
use vmmu::host::{BackedFrame, VcpuId};
use vmmu::walk::AccessKind;
use vmmu::{Engine, Event, FaultOutcome, SlotFlags};
use vmmu_tests::guest::{A, PAGE, READ, TABLE, entry, slot};
use vmmu_tests::host::Hooks;
use vmmu_tests::machine::Machine;

use stage::{DIRECTORY, LEAVES, Other, at, audit, guest, quiet, start};

/// How long anything may take that must not wait: far more than it needs.
const LIMIT: Duration = Duration::from_secs(30);

/// A place where a thread stops once, and says so, until it is let go.
struct Stop {
    reached: Mutex<Sender<()>>,
    released: Mutex<Option<Receiver<()>>>,
}

impl Stop {
    fn new() -> (Arc<Self>, Receiver<()>, Sender<()>) {
        let (reached, is_there) = channel();
        let (release, released) = channel();
        let stop = Self {
            reached: Mutex::new(reached),
            released: Mutex::new(Some(released)),
        };
        (Arc::new(stop), is_there, release)
    }

    fn here(&self) {
        let released = self.released.lock().expect("a lock").take();
        if let Some(released) = released {
            self.reached
                .lock()
                .expect("a lock")
                .send(())
                .expect("the test runs");
            // An error means that the test is over.
            let _ = released.recv();
        }
    }
}

/// Makes eight branches with eight pages each for the thread that must not wait, outside the 2 MiB whose frame is taken back.
fn more_branches(machine: &mut Machine) {
    for i in 0..8 {
        machine.poke(slot(DIRECTORY, 10 + i), entry(700 + i, TABLE | A));
        for page in 1..9 {
            machine.poke(slot(700 + i, page), entry(1100 + 8 * i + page, PAGE));
        }
    }
}

/// While vCPU 0 is blocked in the embedder's look-up, and a flush of another thread waits for vCPU 1, which does not leave its guest, vCPU 2
/// creates, links and fills pages elsewhere.
///
/// Caught: a lock of the whole VM held over a fault, and one held over a flush.
#[test]
fn a_fault_goes_on_beside_a_blocked_look_up_and_a_waiting_flush() {
    let mut machine = guest(3);
    more_branches(&mut machine);
    machine.poke(slot(LEAVES, 2), entry(102, PAGE));
    // vCPU 1 has a page of its own in its TLB, and stays in its guest.
    let _ = machine.access(1, at(0, 1), READ);
    for cpu in [0, 2] {
        machine.host.exit(cpu);
    }
    let (look_up, looks_up, found) = Stop::new();
    let (kick, is_kicked, left) = Stop::new();
    let outside = Other::of(&machine);
    machine.host.set_hooks(Hooks {
        look_up: Some(Arc::new(move |frame: BackedFrame| {
            if frame.gfn == Gfn::new(102) {
                look_up.here();
            }
        })),
        kick: Some(Arc::new(move |vcpu: VcpuId| {
            kick.here();
            outside.exit(vcpu.0);
        })),
        ..Hooks::default()
    });

    let other = Other::of(&machine);
    let first = thread::spawn(move || other.fault(0, at(0, 2), AccessKind::Read));
    looks_up.recv_timeout(LIMIT).expect("the look-up began");
    let other = Other::of(&machine);
    let second = thread::spawn(move || drop(other.mmu.invalidate_begin(Gfn::new(100), 1)));
    is_kicked
        .recv_timeout(LIMIT)
        .expect("the flush kicked vCPU 1");

    let before = machine.mmu.stats();
    let other = Other::of(&machine);
    let (done, is_done) = channel();
    let third = thread::spawn(move || {
        for i in 0..8 {
            for page in 1..9 {
                let outcome = other.fault(2, at(10 + i, page), AccessKind::Write);
                assert_eq!(outcome, FaultOutcome::Resume);
            }
        }
        done.send(()).expect("the test runs");
    });
    let went_on = is_done.recv_timeout(LIMIT);
    let after = machine.mmu.stats();
    let waited = (first.is_finished(), second.is_finished());
    drop((found, left));
    went_on.expect("the third thread does not wait for the others");
    assert_eq!(waited, (false, false), "the others were not blocked");
    assert!(after.get(Event::Create) >= before.get(Event::Create) + 8);
    third.join().expect("faults that were served");
    let _ = first.join().expect("a fault that was served");
    second.join().expect("the frame was taken back");
    machine.host.set_hooks(Hooks::default());
    audit(&machine);
}

/// A fault on pages that are there takes one table lock and one gfn lock, and none of the whole VM.
///
/// Caught: one more gfn lock, and one more VM-wide lock.
#[test]
fn a_fault_on_existing_pages_takes_one_table_lock_and_one_gfn_lock() {
    let (mut machine, _) = start(&quiet(Engine::Shadow, 1), SlotFlags::empty());
    more_branches(&mut machine);
    let other = Other::of(&machine);
    // The first faults make the pages, the records, and room in them.
    for page in 1..3 {
        let _ = machine.access(0, at(10, page), READ);
    }
    machine.host.exit(0);
    for page in 3..9 {
        let before = machine.mmu.stats();
        let outcome = other.fault(0, at(10, page), AccessKind::Write);
        assert_eq!(outcome, FaultOutcome::Resume);
        let after = machine.mmu.stats();
        let taken = [Event::LockTable, Event::LockGfn, Event::LockLeaf]
            .map(|event| after.get(event) - before.get(event));
        assert_eq!(taken, [1, 1, 0], "table, gfn and VM-wide locks");
    }
}
