//! First step: a guest's page fault, and the shadow tables that come of it.
//!
//! `cargo run -p vmmu --example map_and_fault`

mod host;

use core::sync::atomic::Ordering::SeqCst;

use host::{GUEST_FRAMES, Machine, cpu, long_mode};
use vmmu::addr::{Gfn, Gva};
use vmmu::host::{MemoryToken, VcpuId};
use vmmu::walk::Access;
use vmmu::{AddressSpace, Config, Engine, Error, Mmu, SlotConfig, SlotFlags};

fn main() -> Result<(), Error> {
    let mmu = Mmu::new(
        Machine::new(),
        Config::new(Engine::Shadow, 1, GUEST_FRAMES, cpu()),
    )?;
    mmu.add_slot(&SlotConfig {
        space: AddressSpace::Normal,
        base: Gfn::new(0),
        frames: GUEST_FRAMES,
        token: MemoryToken(0),
        flags: SlotFlags::empty(),
    })?;
    let vcpu = mmu.vcpu(VcpuId(0))?;
    vcpu.set_paging(&long_mode(), AddressSpace::Normal)?;

    // The guest runs on empty shadow tables, and faults at once.
    let entry = vcpu.enter()?;
    println!(
        "the processor's root is {:#x}; the guest's is 0x1000",
        entry.root.get()
    );
    vcpu.exited();
    let mapped = vcpu.handle_fault(Gva::new(0x5008), Access::WRITE)?;
    println!("a write to 0x5008, which the guest maps: {mapped:?}");
    let absent = vcpu.handle_fault(Gva::new(0x6000), Access::READ)?;
    println!("a read of 0x6000, which it does not map: {absent:?}");

    println!("\nthe walk of 0x5008, side by side:");
    let (mut guest, mut shadow) = (1, entry.root.get() >> 12);
    for (level, index) in [(4, 0), (3, 0), (2, 0), (1, 5)] {
        let load = |table| mmu.host().word(table, index).load(SeqCst);
        let (guest_entry, shadow_entry) = (load(guest), load(shadow));
        println!(
            "  level {level}: the guest's entry {guest_entry:#10x}, the shadow's {shadow_entry:#10x}"
        );
        let frame = |entry: u64| (entry & 0x000f_ffff_ffff_f000) >> 12;
        (guest, shadow) = (frame(guest_entry), frame(shadow_entry));
    }
    println!("both end at frame {shadow}; the guest's leaf has got its accessed and dirty bits");
    Ok(())
}
