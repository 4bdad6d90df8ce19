//! Walks for reports: every entry on the way, in the guest's tables and in those that the processor walks.
//!
//! Key functions: [`guest`], [`host`].

use core::cell::Cell;

use vmmu_cpu::{Cpu, Format, Hpa, Moment, PagingMode, Physical, Va};
use vmmu_spec::{History, Linear, Progress, Start, Walk};

use super::ground::{self, Ground};
use super::judge::Judge;
use super::mismatch::{GuestStep, HostStep};
use super::past::Past;
use super::view::View;

/// Returns the entries of the guest's walk as they are, down to the one that ends it.
pub(super) fn guest<G: Ground>(judge: &Judge<G>, view: &View, va: Va) -> Vec<GuestStep> {
    let mut steps = Vec::new();
    let Some(controls) = &view.controls else {
        return steps;
    };
    let log = judge.watch.lock();
    let past = Past {
        log: &log,
        ground: &*judge.ground,
        from: view.since(va.get()),
        doubt: Cell::new(false),
    };
    let Start::Walk(mut walk) = Walk::start(controls, view.root(), Linear::new(va.get())) else {
        return steps;
    };
    loop {
        let slot = walk.needs();
        let value = ground::entry(&*judge.ground, slot.at, slot.width);
        let since = past.candidates(slot.at, slot.width);
        steps.push(GuestStep {
            slot,
            value,
            since: since.filter(|c| c.last >= past.from).collect(),
        });
        let Some(value) = value else { break };
        if walk.feed(value) != Progress::More {
            break;
        }
    }
    steps
}

/// Returns the entries of the processor's walk as they are: of the tables that the library made.
pub(super) fn host<M: Physical>(cpu: &Cpu<M>, va: Va, gpa: u64) -> Vec<HostStep> {
    let mut steps = Vec::new();
    let (format, mut table, address) = match (cpu.nested(), cpu.registers().mode()) {
        (Some(nested), _) => (nested.format, nested.root.get(), gpa),
        (None, PagingMode::Off) => return steps,
        (None, PagingMode::Tables(format)) => {
            let cr3 = cpu.registers().cr3.get();
            let root = match format {
                Format::Pae => cr3 & 0xffff_ffe0,
                _ => cr3 & 0x000f_ffff_ffff_f000,
            };
            (format, root, va.get())
        }
    };
    if format == Format::Bits32 {
        return steps;
    }
    for level in (1..=format.top().get()).rev() {
        let index = address >> (12 + 9 * (u32::from(level) - 1)) & 511;
        let at = table + index * 8;
        let Ok(value) = cpu.memory().walk_load(Hpa::new(at), Moment::LATEST) else {
            break;
        };
        steps.push(HostStep { level, at, value });
        let present = if format.is_ept() {
            value & 7
        } else {
            value & 1
        };
        if present == 0 || level <= 3 && value & 0x80 != 0 {
            break;
        }
        table = value & 0x000f_ffff_ffff_f000;
    }
    steps
}
