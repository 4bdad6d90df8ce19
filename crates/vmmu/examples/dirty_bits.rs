//! Second step: which frames did the guest write? What live migration asks again and again.
//!
//! `cargo run -p vmmu --example dirty_bits`

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
    let slot = mmu.add_slot(&SlotConfig {
        space: AddressSpace::Normal,
        base: Gfn::new(0),
        frames: GUEST_FRAMES,
        token: MemoryToken(0),
        flags: SlotFlags::LOG_DIRTY,
    })?;
    // Two more pages: 0x6000 and 0x7000 are guest frames 10 and 11.
    for (index, frame) in [(6, 10), (7, 11)] {
        mmu.host().word(4, index).store(frame << 12 | 3, SeqCst);
    }
    let vcpu = mmu.vcpu(VcpuId(0))?;
    vcpu.set_paging(&long_mode(), AddressSpace::Normal)?;
    let touch = |gva, access| -> Result<(), Error> {
        let _entry = vcpu.enter()?;
        vcpu.exited();
        println!(
            "  {access:?} at {gva:#x}: {:?}",
            vcpu.handle_fault(Gva::new(gva), access)?
        );
        Ok(())
    };
    let harvest = || -> Result<(), Error> {
        let mut frames = Vec::new();
        mmu.harvest_dirty(slot, |gfn| frames.push(gfn.get()))?;
        println!("dirty since the last time: guest frames {frames:?}\n");
        Ok(())
    };

    println!("the guest reads one page and writes two");
    touch(0x5000, Access::READ)?;
    touch(0x6000, Access::WRITE)?;
    touch(0x7000, Access::WRITE)?;
    // The guest's own table is among them: its accessed and dirty bits were set.
    harvest()?;
    println!("it does nothing");
    harvest()?;
    println!(
        "it writes one of them again: its shadow entry lost the right to write, so that this is seen"
    );
    touch(0x6000, Access::WRITE)?;
    harvest()
}
