//! Prints what an access costs, from a cache and by a walk.

use std::sync::Arc;
use std::time::Instant;

use vmmu_cpu::{
    Access, Asid, Cpu, Flush, Hostility, Hpa, Model, PhysMemory, Policy, Registers, Va, World,
};

const PAGES: u64 = 512;
const ROUNDS: u64 = 2_000;

fn main() -> Result<(), vmmu_cpu::Fault> {
    let mem = Arc::new(PhysMemory::new(4096));
    for table in 1..4 {
        mem.store(Hpa::new(table << 12), (table + 1) << 12 | 0x7);
    }
    for page in 0..PAGES {
        mem.store(Hpa::new(0x4000 + page * 8), (1024 + page) << 12 | 0x7);
    }
    let world = World {
        regs: Registers::long4(Hpa::new(0x1000)),
        asid: Asid::new(1),
        nested: None,
    };
    for (name, policy) in [
        ("keep", Some(Policy::KEEP)),
        ("random", Some(Policy::RANDOM)),
        ("none", Some(Policy::NONE)),
        ("hostile", None),
    ] {
        let mut cpu = Cpu::new(
            mem.clone(),
            Model::STRICT,
            policy.unwrap_or(Policy::KEEP),
            1,
        );
        if policy.is_none() {
            cpu.set_schedule(Hostility::default().schedule().expect("it has phases"));
        }
        cpu.enter(&world, Flush::All)?;
        let start = Instant::now();
        for _ in 0..ROUNDS {
            for page in 0..PAGES {
                cpu.translate(Va::new(page << 12), Access::WRITE)?;
            }
        }
        let nanos = start.elapsed().as_nanos() / u128::from(PAGES * ROUNDS);
        println!("{name}: {nanos} ns an access, {:?}", cpu.counters());
    }
    Ok(())
}
