//! CR0.WP, SMEP, SMAP with EFLAGS.AC, and protection keys.

mod common;

use common::{RWU, VA, simple};
use vmmu_cpu::{
    Access, Asid, Cpu, Cr0, Cr4, Fault, Flush, Kind, Level, PfCode, Pkru, Privilege, Registers,
    World,
};

/// A processor with `leaf` as the flags of the page, and registers changed by `change`.
fn with(leaf: u64, change: impl FnOnce(&mut Registers)) -> Cpu {
    let (_, mut tables, mut cpu) = simple();
    let slot = tables.slot(VA.get(), Level::L1);
    tables.store(slot, common::PAGE | leaf);
    let mut regs = *cpu.registers();
    change(&mut regs);
    cpu.enter(
        &World {
            regs,
            asid: Asid::new(1),
            nested: None,
        },
        Flush::All,
    )
    .expect("no pdptes");
    cpu
}

fn outcome(cpu: &mut Cpu, access: Access) -> Option<PfCode> {
    match cpu.translate(VA, access) {
        Ok(_) => None,
        Err(Fault::Page { code, .. }) => Some(code),
        Err(other) => panic!("unexpected {other}"),
    }
}

#[test]
fn write_protect_binds_supervisors_only_while_it_is_set() {
    let mut cpu = with(5, |_| {});
    assert_eq!(
        outcome(&mut cpu, Access::WRITE),
        Some(PfCode::PRESENT | PfCode::WRITE)
    );
    let mut cpu = with(5, |regs| regs.cr0.remove(Cr0::WP));
    assert_eq!(outcome(&mut cpu, Access::WRITE), None);
    let user = PfCode::PRESENT | PfCode::WRITE | PfCode::USER;
    assert_eq!(outcome(&mut cpu, Access::USER_WRITE), Some(user));
}

#[test]
fn an_entry_cached_without_wp_denies_once_wp_is_set() {
    let mut cpu = with(5, |regs| regs.cr0.remove(Cr0::WP));
    assert_eq!(outcome(&mut cpu, Access::WRITE), None);
    cpu.mov_cr0(Cr0::PE | Cr0::PG | Cr0::WP).expect("no pdptes");
    assert_eq!(
        outcome(&mut cpu, Access::WRITE),
        Some(PfCode::PRESENT | PfCode::WRITE)
    );
}

#[test]
fn smep_stops_supervisor_fetches_from_user_pages_only() {
    let mut cpu = with(RWU, |regs| regs.cr4.insert(Cr4::SMEP));
    assert_eq!(
        outcome(&mut cpu, Access::EXECUTE),
        Some(PfCode::PRESENT | PfCode::FETCH)
    );
    assert_eq!(outcome(&mut cpu, Access::READ), None);
    assert_eq!(outcome(&mut cpu, Access::USER_EXECUTE), None);
    let mut cpu = with(3, |regs| regs.cr4.insert(Cr4::SMEP));
    assert_eq!(outcome(&mut cpu, Access::EXECUTE), None);
}

#[test]
fn smap_stops_supervisor_data_on_user_pages_unless_ac_is_set_and_counts() {
    let mut cpu = with(RWU, |regs| regs.cr4.insert(Cr4::SMAP));
    let with_ac = |kind| Access::new(kind, Privilege::SupervisorAc);
    let implicit = Access::new(Kind::Read, Privilege::Implicit);
    assert_eq!(outcome(&mut cpu, Access::READ), Some(PfCode::PRESENT));
    assert_eq!(
        outcome(&mut cpu, Access::WRITE),
        Some(PfCode::PRESENT | PfCode::WRITE)
    );
    assert_eq!(outcome(&mut cpu, implicit), Some(PfCode::PRESENT));
    assert_eq!(outcome(&mut cpu, with_ac(Kind::Read)), None);
    assert_eq!(outcome(&mut cpu, with_ac(Kind::Write)), None);
    assert_eq!(outcome(&mut cpu, Access::EXECUTE), None);
}

#[test]
fn protection_keys_deny_data_on_user_pages_and_say_so() {
    let key = 5u64 << 59;
    let pk = |bits: u32| {
        move |regs: &mut Registers| {
            regs.cr4.insert(Cr4::PKE);
            regs.pkru = Pkru::new(bits << 10);
        }
    };
    let denied = PfCode::PRESENT | PfCode::PROTECTION_KEY;
    let mut cpu = with(RWU | key, pk(1));
    assert_eq!(outcome(&mut cpu, Access::READ), Some(denied));
    assert_eq!(
        outcome(&mut cpu, Access::USER_READ),
        Some(denied | PfCode::USER)
    );
    assert_eq!(outcome(&mut cpu, Access::USER_EXECUTE), None);
    let mut cpu = with(RWU | key, pk(2));
    assert_eq!(outcome(&mut cpu, Access::USER_READ), None);
    let write = denied | PfCode::WRITE;
    assert_eq!(
        outcome(&mut cpu, Access::USER_WRITE),
        Some(write | PfCode::USER)
    );
    assert_eq!(outcome(&mut cpu, Access::WRITE), Some(write));
    let mut cpu = with(RWU | key, |regs| {
        pk(2)(regs);
        regs.cr0.remove(Cr0::WP);
    });
    assert_eq!(outcome(&mut cpu, Access::WRITE), None);
    let mut cpu = with(3 | key, pk(3));
    assert_eq!(
        outcome(&mut cpu, Access::WRITE),
        None,
        "keys are for user pages"
    );
}

#[test]
fn a_refused_access_sets_neither_the_leafs_accessed_nor_its_dirty_bit() {
    let (_, mut tables, mut cpu) = simple();
    let slot = tables.slot(VA.get(), Level::L1);
    tables.store(slot, common::PAGE | 5);
    assert!(outcome(&mut cpu, Access::USER_WRITE).is_some());
    assert_eq!(tables.entry(VA.get(), Level::L1), common::PAGE | 5);
}
