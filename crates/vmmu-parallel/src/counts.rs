//! What a fault of each load costs in locks and atomics, and its accesses one by one: the library counts (feature `count`).
//!
//! Key functions: [`count`], [`traces`], [`holds`].

use std::sync::{Mutex, PoisonError};

use rustc_hash::FxHashMap;
use vmmu::SlotFlags;
use vmmu::count::{Step, record, take};

use crate::Trouble;
use crate::crew::{Meeting, processors, together};
use crate::latency::Large;
use crate::load::{Load, Size};
use crate::report::{Counted, Holds};
use crate::rig::{Locking, Rig, Worker};
use crate::simulate::{Access, Faults};

fn ready(load: Load, size: Size, locking: Locking) -> Result<Rig, Trouble> {
    let rig = Rig::new(load, size)?;
    for worker in 0..size.workers {
        let worker = rig.worker(worker, locking)?;
        worker.warm_up()?;
    }
    for worker in 0..size.workers {
        rig.worker(worker, locking)?.renew(size.workers);
    }
    Ok(rig)
}

/// Counts.
///
/// # Errors
/// [`Trouble`].
pub fn count(load: Load) -> Result<Counted, Trouble> {
    let size = Size {
        workers: 2,
        pages: 4096,
    };
    let rig = ready(load, size, Locking::Own)?;
    let worker = rig.worker(0, Locking::Own)?;
    worker.run(|| {})?;
    worker.renew(1);
    let _ = take();
    worker.run(|| {})?;
    let alone = take();
    let faults = rig.layout().pages() as f64;
    Ok(Counted {
        load,
        locks: alone.locks as f64 / faults,
        updates: alone.updates as f64 / faults,
        fences: alone.fences as f64 / faults,
        contended: contended(&rig)?,
    })
}

/// Returns the contended locks per fault of two threads.
fn contended(rig: &Rig) -> Result<Option<f64>, Trouble> {
    let Ok(cpus) = processors(2) else {
        return Ok(None);
    };
    let workers = [0, 1].map(|worker| rig.worker(worker, Locking::Own));
    let workers = workers.into_iter().collect::<Result<Vec<_>, _>>()?;
    let sum = Mutex::new(0);
    let meeting = Meeting::of(2);
    together(
        &cpus,
        |worker| {
            workers[worker as usize].renew(2);
            let _ = take();
        },
        |worker| {
            workers[worker as usize].run(|| meeting.attend())?;
            *sum.lock().unwrap_or_else(PoisonError::into_inner) += take().contended;
            Ok(())
        },
    )?;
    let sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(Some(sum as f64 / (2 * rig.layout().pages()) as f64))
}

/// Lets `cpus` vCPUs fault in turn, and returns the accesses of each fault of each.
///
/// # Errors
/// [`Trouble`].
pub fn traces(load: Load, cpus: u64, locking: Locking) -> Result<Vec<Faults>, Trouble> {
    let size = Size {
        workers: cpus,
        pages: 512,
    };
    let rig = ready(load, size, locking)?;
    let workers = (0..cpus)
        .map(|worker| rig.worker(worker, locking))
        .collect::<Result<Vec<_>, _>>()?;
    let mut numbers = Numbers::default();
    let mut traces = vec![Faults::new(); workers.len()];
    for worker in &workers {
        let _ = worker.vcpu().enter()?;
    }
    for page in 0..rig.layout().pages() {
        for (worker, trace) in workers.iter().zip(&mut traces) {
            trace.push(numbers.record(worker, page)?);
        }
    }
    for worker in &workers {
        worker.vcpu().exited();
    }
    Ok(traces)
}

/// Numbers for lines, in the order in which they are first seen: addresses differ from run to run.
#[derive(Default)]
struct Numbers(FxHashMap<usize, usize>);

impl Numbers {
    fn record(&mut self, worker: &Worker<'_>, page: u64) -> Result<Vec<Access>, Trouble> {
        let (touched, steps) = record(|| worker.touch_page(page));
        touched?;
        Ok(steps.into_iter().map(|step| self.access(step)).collect())
    }

    fn access(&mut self, step: Step) -> Access {
        let mut number = |line| {
            let next = self.0.len();
            *self.0.entry(line).or_insert(next)
        };
        match step {
            Step::Load(line) => Access::Load(number(line)),
            Step::Store(line) => Access::Store(number(line)),
            Step::Update(line) => Access::Update(number(line)),
            Step::Lock(line) => Access::Lock(number(line)),
            Step::Unlock(line) => Access::Unlock(number(line)),
            _ => Access::Fence,
        }
    }
}

/// Maps very many pages, zaps and protects them, and returns the longest holds of locks.
///
/// # Errors
/// [`Trouble`].
pub fn holds(pages: u64) -> Result<Holds, Trouble> {
    let large = Large::new(pages)?;
    let longest = |work: &dyn Fn() -> Result<(), Trouble>| {
        let _ = take();
        work()?;
        Ok::<_, Trouble>(take().longest)
    };
    let flags = |flags| Ok(large.mmu.set_slot_flags(large.slot, flags)?);
    let map = longest(&|| large.fill())?;
    let zap = longest(&|| {
        large.mmu.zap_all();
        Ok(())
    })?;
    large.fill()?;
    let protect = longest(&|| flags(SlotFlags::LOG_DIRTY))?;
    large.fill()?;
    let harvest = longest(&|| Ok(large.mmu.harvest_dirty(large.slot, |_| {})?))?;
    Ok(Holds {
        pages,
        map,
        zap,
        protect,
        harvest,
    })
}

#[cfg(test)]
mod counted {
    use super::{count, holds, traces};
    use crate::load::Load;
    use crate::rig::Locking;
    use crate::simulate::Access;

    #[test]
    fn a_fault_takes_two_locks_its_table_and_its_frame() {
        let counted = count(Load::Disjoint).unwrap();
        assert!((1.9..2.1).contains(&counted.locks), "{counted:?}");
    }

    #[test]
    fn no_lock_is_held_for_more_than_64_entries() {
        let holds = holds(64 * 512).unwrap();
        for longest in [holds.map, holds.zap, holds.protect, holds.harvest] {
            assert!((1..=64).contains(&longest), "{holds:?}");
        }
    }

    #[test]
    fn recorded_locks_are_left_in_the_fault_that_took_them() {
        for locking in [Locking::Own, Locking::One] {
            for trace in traces(Load::SharedTable, 4, locking).unwrap().concat() {
                let locks = trace.iter().filter(|a| matches!(a, Access::Lock(_)));
                let left = trace.iter().filter(|a| matches!(a, Access::Unlock(_)));
                assert_eq!(locks.count(), left.count());
            }
        }
    }
}
