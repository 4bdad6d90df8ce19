//! T2, T3, T8 to T11, T13, T15 to T17: two CPUs at once, as schedules (rules R3, R7, R8, and the lock protocol).
//!
//! What the second CPU does runs inside the first one's call, where that waits or looks a frame up; see [`vmmu_tests::stage`].

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use vmmu::addr::{Gfn, Gpa, Gva, Level};
use vmmu::{Engine, FaultOutcome, SlotFlags, TlbFlush};
use vmmu_cpu::Hpa;
use vmmu_tests::convert;
use vmmu_tests::guest::{
    A, PAGE, PS, ROOT, TABLE, USER_READ, USER_WRITE, WRITE, entry, slot, window,
};
use vmmu_tests::host::{Host, HostState};
use vmmu_tests::machine::{Audits, Machine, Seen};
use vmmu_tests::stage::{
    HOST, after_look_up, during_kick, end, frame, guest, map_more, setup, shadow, va,
};

/// What runs in between: the library, the embedder, and that it ran.
struct Between {
    mmu: Arc<vmmu::Mmu<Host>>,
    host: Arc<HostState>,
    ran: Arc<AtomicBool>,
}

impl Between {
    fn new(machine: &Machine) -> Self {
        Self {
            mmu: machine.mmu.clone(),
            host: machine.host.clone(),
            ran: Arc::new(AtomicBool::new(false)),
        }
    }

    fn fault(&self, cpu: u16, va: u64, access: vmmu_spec::Access) -> FaultOutcome {
        self.host.exit(usize::from(cpu));
        let vcpu = self.mmu.vcpu(vmmu::host::VcpuId(cpu)).expect("a vCPU");
        let done = vcpu.handle_fault(Gva::new(va), convert::access(access));
        done.expect("the fault is served")
    }

    /// CPU 1 may hold what was removed: nobody may have promised anything while it is inside.
    fn assert_outside(&self) {
        assert!(
            !self.host.is_inside(1),
            "a promise was made while a TLB could break it"
        );
        self.ran.store(true, Ordering::SeqCst);
    }
}

#[test]
fn t2_protecting_a_table_flushes_though_logging_took_the_write_bit_before() {
    let mut machine = guest(&setup(Engine::Shadow, 2), SlotFlags::LOG_DIRTY);
    // Frame 101 is a page for CPU 1, and about to be a table for CPU 0.
    machine.poke(slot(ROOT + 2, 1), entry(101, TABLE));
    machine.poke(slot(101, 1), entry(105, PAGE));
    let _ = machine.access(0, va(0, 0), USER_READ);
    assert_eq!(machine.access(1, va(0, 1), USER_WRITE), frame(101));
    let between = Between::new(&machine);
    let ran = between.ran.clone();
    during_kick(&machine, move || {
        // The harvest has taken the bit and not flushed yet.
        assert_eq!(between.fault(0, va(1, 1), USER_READ), FaultOutcome::Resume);
        between.assert_outside();
    });
    let id = machine.slots[0].id;
    machine.mmu.harvest_dirty(id, |_| ()).expect("a log");
    end(&machine, &ran);
    assert_eq!(machine.access(0, va(1, 1), USER_READ), frame(105));
}

#[test]
fn t3_a_zap_in_steps_shows_the_flush_that_it_owes() {
    let mut machine = shadow(2);
    map_more(&mut machine, 1, 40, 200, 4);
    for upper in 0..2 {
        let _ = machine.access(1, va(upper, 1), USER_WRITE);
    }
    let between = Between::new(&machine);
    let ran = between.ran.clone();
    during_kick(&machine, move || {
        drop(between.mmu.invalidate_begin(Gfn::new(201), 1));
        between.assert_outside();
    });
    assert!(machine.mmu.zap_all() > 0);
    end(&machine, &ran);
    machine.audit();
    assert_eq!(machine.access(1, va(1, 1), USER_READ), frame(201));
}

#[test]
fn t8_taking_a_frame_back_waits_for_a_flush_that_another_cpu_owes() {
    let mut machine = shadow(2);
    assert_eq!(machine.access(1, va(0, 1), USER_WRITE), frame(101));
    let between = Between::new(&machine);
    let ran = between.ran.clone();
    during_kick(&machine, move || {
        // The report has removed the mapping; this finds none, and CPU 1 has it still.
        let taken = between.mmu.invalidate_begin(Gfn::new(101), 1);
        between.assert_outside();
        drop(taken);
    });
    machine.emulated_write(slot(ROOT + 3, 1), entry(102, PAGE));
    end(&machine, &ran);
    assert_eq!(machine.access(1, va(0, 1), USER_READ), frame(102));
}

#[test]
fn t9_a_page_of_another_role_is_not_used_before_the_flush_that_the_first_owes() {
    let mut machine = shadow(3);
    // Frame 101 is a table with two roles; CPU 1 writes it.
    machine.poke(slot(101, 1), entry(105, PAGE));
    machine.poke(slot(ROOT + 2, 1), entry(101, TABLE | A));
    machine.poke(slot(ROOT + 2, 2), entry(101, TABLE & !2 | A));
    for cpu in [0, 2] {
        let _ = machine.access(cpu, va(0, 0), USER_READ);
    }
    assert_eq!(machine.access(1, va(0, 1), USER_WRITE), frame(101));
    let between = Between::new(&machine);
    let ran = between.ran.clone();
    during_kick(&machine, move || {
        // The first role's page has taken W; CPU 1 can still write.
        assert_eq!(between.fault(2, va(2, 1), USER_READ), FaultOutcome::Resume);
        between.assert_outside();
    });
    assert_eq!(machine.access(0, va(1, 1), USER_READ), frame(105));
    end(&machine, &ran);
    assert_eq!(machine.access(2, va(2, 1), USER_READ), frame(105));
    let seen = machine.write(1, va(0, 1) + 8, entry(106, PAGE), USER_WRITE);
    assert!(matches!(seen, Seen::Memory(_) | Seen::Emulated(_)));
    for cpu in [0, 2] {
        machine.flush(cpu);
        assert_eq!(
            machine.access(cpu, va(1 + cpu as u64 / 2, 1), USER_READ),
            frame(106)
        );
    }
}

#[test]
fn t10_a_root_that_dies_under_a_cpu_is_not_freed_before_the_cpu_has_left_it() {
    let mut machine = shadow(2);
    for round in 0..6 {
        let _ = machine.access(1, va(0, 1), USER_WRITE);
        assert!(machine.host.is_inside(1));
        assert!(machine.mmu.zap_frame(Gfn::new(ROOT)) > 0);
        assert!(!machine.host.is_inside(1), "it was taken out");
        // Frames freed are poisoned and reused at once: a walk of the old root would be a violation.
        map_more(&mut machine, 1, 40 + round, 200, 4);
        machine.report(ROOT + 2);
        let _ = machine.access(0, va(1, 1), USER_READ);
        assert_eq!(machine.access(1, va(0, 1), USER_READ), frame(101));
    }
}

#[test]
fn t11_a_frame_taken_back_between_look_up_and_install_is_not_mapped() {
    for engine in [Engine::Shadow, Engine::Npt, Engine::Ept] {
        let mut machine = guest(&setup(engine, 1), SlotFlags::empty());
        machine.host.limit_size(Some(Level::L1));
        // The region's records and the tables are there: the next look-up is the one of frame 101, and what it found is installed at once.
        let _ = machine.access(0, va(0, 0), USER_READ);
        let between = Between::new(&machine);
        let (ran, token) = (between.ran.clone(), machine.slots[0].config.token);
        let armed = Arc::new(AtomicBool::new(false));
        let hook_armed = armed.clone();
        after_look_up(&machine, move || {
            let taken = between.mmu.invalidate_begin(Gfn::new(101), 1);
            between.host.move_frame(&[(token, 101)]);
            drop(taken);
            hook_armed.store(true, Ordering::SeqCst);
            between.ran.store(true, Ordering::SeqCst);
        });
        let seen = machine.access(0, va(0, 1), USER_WRITE);
        end(&machine, &ran);
        assert!(armed.load(Ordering::SeqCst));
        assert!(
            matches!(seen, Seen::Memory(hpa) if hpa.get() >> 12 < HOST),
            "{engine:?} {seen:x?}"
        );
    }
}

/// The same for what a prefetch looks up: nothing foreign is mapped, whichever look-up it was.
#[test]
fn t5_a_frame_taken_back_during_a_prefetch_is_not_mapped() {
    let mut setup = setup(Engine::Shadow, 1);
    setup.config.prefetch = 64;
    let mut machine = guest(&setup, SlotFlags::empty());
    for skip in 0..8 {
        let between = Between::new(&machine);
        let token = machine.slots[0].config.token;
        let count = core::sync::atomic::AtomicU64::new(0);
        let looked_up = move |_| {
            if count.fetch_add(1, Ordering::SeqCst) == skip {
                let taken = between.mmu.invalidate_begin(Gfn::new(100 + skip), 1);
                between.host.move_frame(&[(token, 100 + skip)]);
                drop(taken);
            }
        };
        machine.host.set_hooks(vmmu_tests::host::Hooks {
            looked_up: Some(Arc::new(looked_up)),
            ..Default::default()
        });
        machine.mmu.zap_all();
        for i in 0..8 {
            let seen = machine.access(0, va(0, i), USER_READ);
            assert!(matches!(seen, Seen::Memory(_)), "{seen:?}");
        }
        machine.host.set_hooks(Default::default());
    }
}

/// A reported write completes between the walk and the install, at a leaf and at a link.
#[test]
fn t13_a_write_reported_between_walk_and_install_is_seen() {
    for at_link in [false, true] {
        let mut machine = shadow(2);
        map_more(&mut machine, 1, 40, 200, 4);
        map_more(&mut machine, 2, 41, 300, 4);
        machine.poke(slot(ROOT + 2, 3), entry(40, TABLE));
        let _ = machine.access(0, va(0, 0), USER_READ);
        // The table's page is there: what the look-up found is installed at once, or the page linked.
        let upper = if at_link { 3 } else { 1 };
        let _ = machine.access(0, va(upper, 0), USER_READ);
        let (at, new) = if at_link {
            (slot(ROOT + 2, 1), entry(41, TABLE | A))
        } else {
            (slot(40, 1), entry(301, PAGE))
        };
        let between = Between::new(&machine);
        let ran = between.ran.clone();
        let hpa = machine.hpa(vmmu::AddressSpace::Normal, at).expect("memory");
        after_look_up(&machine, move || {
            between.host.memory.store(hpa, new);
            between.mmu.guest_wrote(Gpa::new(at), 8);
            between.ran.store(true, Ordering::SeqCst);
        });
        machine.audits = Audits::OnDemand;
        machine.host.exit(0);
        let access = convert::access(USER_READ);
        let _ = machine.vcpu(0).handle_fault(Gva::new(va(1, 1)), access);
        end(&machine, &ran);
        machine.poke(at, new);
        machine.audit();
        assert_eq!(
            machine.access(0, va(1, 1), USER_READ),
            frame(301),
            "link {at_link}"
        );
    }
}

/// INVLPG on another CPU completes in between, with the table unsync: nobody reports the write.
#[test]
fn t13_an_invlpg_between_walk_and_install_is_obeyed() {
    let mut machine = shadow(2);
    // The table is unsync, and known to both.
    let _ = machine.access(0, va(0, 0), USER_READ);
    let _ = machine.access(1, va(0, 0), USER_READ);
    let _ = machine.write(1, window(slot(ROOT + 3, 30)), 0, WRITE);
    let between = Between::new(&machine);
    let ran = between.ran.clone();
    let at = slot(ROOT + 3, 1);
    let hpa = machine.hpa(vmmu::AddressSpace::Normal, at).expect("memory");
    after_look_up(&machine, move || {
        between.host.exit(1);
        between.host.memory.store(hpa, entry(107, PAGE));
        let other = between.mmu.vcpu(vmmu::host::VcpuId(1)).expect("a vCPU");
        let flush = TlbFlush::Address(Gva::new(va(0, 1)));
        other.invalidate(flush).expect("a flush");
        between.ran.store(true, Ordering::SeqCst);
    });
    machine.host.exit(0);
    let access = convert::access(USER_READ);
    let _ = machine.vcpu(0).handle_fault(Gva::new(va(0, 1)), access);
    end(&machine, &ran);
    machine.poke(at, entry(107, PAGE));
    assert_eq!(machine.access(1, va(0, 1), USER_READ), frame(107));
}

#[test]
fn t15_a_slot_used_anew_during_a_removal_has_the_right_records() {
    let mut machine = guest(&setup(Engine::Shadow, 2), SlotFlags::LOG_DIRTY);
    assert_eq!(machine.access(1, va(0, 1), USER_WRITE), frame(101));
    let _ = machine.access(0, va(0, 0), USER_READ);
    let at = slot(ROOT + 3, 1);
    let hpa = machine.hpa(vmmu::AddressSpace::Normal, at).expect("memory");
    let between = Between::new(&machine);
    let ran = between.ran.clone();
    during_kick(&machine, move || {
        // Frame 101 is gone from the slot and not flushed; now the guest maps frame 600 there, far from it, and writes.
        between.host.memory.store(hpa, entry(600, PAGE));
        between.mmu.guest_wrote(Gpa::new(at), 8);
        // Installed after a flush of its own, or not yet.
        let outcome = between.fault(0, va(0, 1), USER_WRITE);
        assert!(matches!(
            outcome,
            FaultOutcome::Resume | FaultOutcome::Retry
        ));
        between.assert_outside();
    });
    machine.audits = Audits::OnDemand;
    let taken = machine.mmu.invalidate_begin(Gfn::new(101), 1);
    drop(taken);
    end(&machine, &ran);
    machine.poke(at, entry(600, PAGE));
    machine.audit();
    machine.audits = Audits::EachStep;
    for cpu in 0..2 {
        machine.flush(cpu);
        assert_eq!(machine.access(cpu, va(0, 1), USER_WRITE), frame(600));
    }
    let mut log = Vec::new();
    let id = machine.slots[0].id;
    machine
        .mmu
        .harvest_dirty(id, |gfn| log.push(gfn.get()))
        .expect("a log");
    assert!(log.contains(&101) && log.contains(&600), "{log:x?}");
    machine.mmu.zap_frame(Gfn::new(ROOT + 3));
    machine.audit();
    assert_eq!(machine.access(0, va(0, 1), USER_WRITE), frame(600));
}

/// Both sizes: a large page gives way to small ones and comes back, while CPU 1 has the other size in its TLB.
#[test]
fn t16_no_cpu_holds_two_sizes_of_one_address() {
    let mut machine = shadow(3);
    machine.poke(slot(ROOT + 2, 1), entry(512, PAGE | PS));
    machine.poke(slot(600, 1), entry(105, PAGE));
    machine.poke(slot(ROOT + 2, 2), entry(600, TABLE));
    for cpu in [0, 2] {
        let _ = machine.access(cpu, va(0, 0), USER_READ);
    }
    assert_eq!(machine.access(1, va(1, 3), USER_WRITE), frame(515));
    let between = Between::new(&machine);
    let ran = between.ran.clone();
    during_kick(&machine, move || {
        // A table in the large page: it is removed, and not flushed yet.
        let outcome = between.fault(2, va(1, 9), USER_WRITE);
        assert!(matches!(
            outcome,
            FaultOutcome::Resume | FaultOutcome::Retry
        ));
        between.assert_outside();
    });
    assert_eq!(machine.access(0, va(2, 1), USER_READ), frame(105));
    end(&machine, &ran);
    for cpu in 0..3 {
        assert_eq!(machine.access(cpu, va(1, 3), USER_WRITE), frame(515));
        assert_eq!(machine.access(cpu, va(1, 9), USER_WRITE), frame(521));
    }
    // And back: the table is no table any more.
    machine.emulated_write(slot(ROOT + 2, 2), 0);
    machine.mmu.zap_frame(Gfn::new(600));
    machine.mmu.zap_frame(Gfn::new(ROOT + 2));
    for cpu in 0..3 {
        let _ = machine.access(cpu, va(1, 40 + cpu as u64), USER_WRITE);
        let _ = machine.access(cpu, va(1, 3), USER_WRITE);
        assert_eq!(machine.cpus[cpu].cpu.conflicts(), []);
    }
}

#[test]
fn t17_two_cpus_zap_one_page_and_a_parent_with_its_child() {
    for (first, second) in [
        (ROOT + 3, ROOT + 3),
        (ROOT + 2, ROOT + 3),
        (ROOT + 3, ROOT + 2),
    ] {
        let mut machine = shadow(2);
        let _ = machine.access(0, va(0, 0), USER_READ);
        assert_eq!(machine.access(1, va(0, 1), USER_WRITE), frame(101));
        let between = Between::new(&machine);
        let ran = between.ran.clone();
        during_kick(&machine, move || {
            let zapped = between.mmu.zap_frame(Gfn::new(second));
            assert_eq!(zapped, u32::from(first != second), "each page dies once");
            between.ran.store(true, Ordering::SeqCst);
        });
        assert_eq!(machine.mmu.zap_frame(Gfn::new(first)), 1);
        end(&machine, &ran);
        machine.audit();
        assert_eq!(machine.access(1, va(0, 1), USER_WRITE), frame(101));
    }
    let _ = Hpa::new(0);
}

/// T18's half that the public interface shows: a request made while a CPU is outside is served at its entry.
#[test]
fn t18_a_cpu_outside_counts_as_flushed_and_flushes_when_it_enters() {
    let mut machine = shadow(2);
    assert_eq!(machine.access(1, va(0, 1), USER_READ), frame(101));
    machine.host.exit(1);
    let _ = machine.host.take_kicks();
    machine.take_back(101, 1);
    assert_eq!(machine.host.take_kicks(), [], "nobody is inside");
    let entry = machine.vcpu(1).enter().expect("a root");
    assert!(entry.flush);
    machine.vcpu(1).exited();
    let entry = machine.vcpu(1).enter().expect("a root");
    assert!(!entry.flush, "once is enough");
    machine.vcpu(1).exited();
    machine.flush(1);
    let seen = machine.access(1, va(0, 1), USER_READ);
    assert!(matches!(seen, Seen::Memory(hpa) if hpa.get() >> 12 < HOST));
}
