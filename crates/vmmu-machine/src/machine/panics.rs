//! Tests: a thread that panics inside its guest keeps nobody waiting.

use core::num::NonZeroU8;
use core::time::Duration;

use vmmu::TlbFlush;
use vmmu::addr::Gfn;
use vmmu::host::VcpuId;
use vmmu::paging::{Cr3, PagingState};
use vmmu_cpu::{Cpu, Fault, Frame, Hpa, Physical};

use crate::check::{Caught, Emulated, Epoch, Load, Observer, Refused, Time, Used};
use crate::machine::run::Run;
use crate::machine::{End, Machine};

/// Panics as soon as the second processor translates anything, which it does inside its guest.
#[derive(Debug)]
struct Panics;

impl Observer for Panics {
    fn watches(&self) -> bool {
        true
    }
    fn now(&self) -> Time {
        Time::START
    }
    fn epoch(&self, _: VcpuId) -> Epoch {
        Epoch(0)
    }
    fn renewed(&self, _: VcpuId, _: Epoch) {}
    fn is_watched(&self, _: Frame) -> bool {
        false
    }
    fn store<T>(&self, _: Hpa, _: usize, store: impl FnOnce() -> T) -> T {
        store()
    }
    fn entered(&self, _: VcpuId) {}
    fn exited(&self, _: VcpuId) {}
    fn registers(&self, _: VcpuId, _: &PagingState, _: Load) {}
    fn root_loaded(&self, _: VcpuId, _: Cr3) {}
    fn flushed(&self, _: VcpuId, _: TlbFlush) {}
    fn remapped(&self, _: Gfn, _: u64) {}
    fn used<M: Physical>(&self, vcpu: VcpuId, _: &Cpu<M>, _: &Used<'_>) -> Result<(), Caught> {
        assert_eq!(vcpu.0, 0, "on purpose");
        Ok(())
    }
    fn refused(&self, _: VcpuId, _: &Refused) -> Result<(), Caught> {
        Ok(())
    }
    fn emulated(&self, _: VcpuId, _: &Emulated) -> Result<(), Caught> {
        Ok(())
    }
    fn violated<M: Physical>(&self, _: VcpuId, _: &Cpu<M>, _: Fault) -> Caught {
        Caught
    }
}

/// Starts the second processor, then has the host drop a mapping again and again, which waits for every processor that is inside.
const STARTS_THE_SECOND: [u8; 41] = [
    0xc7, 0x05, 0x10, 0x03, 0xe0, 0xfe, 0, 0, 0,
    1, // mov dword [fee00310h], 1 << 24: to the second
    0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe, 0, 0x45, 0, 0, // mov dword [fee00300h], INIT
    0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe, 8, 0x46, 0,
    0, // mov dword [fee00300h], start at 8000h
    0xb8, 0x00, 0x00, 0x10, 0x00, // mov eax, 100000h
    0xe7, 0xe4, // again: out 0xe4, eax
    0xf3, 0x90, // pause
    0xeb, 0xfa, // jmp again
];

#[test]
fn inside_its_guest_ends_the_run_with_a_report() {
    let machine = Machine::new(crate::guests::multiboot(&STARTS_THE_SECOND))
        .memory(4 << 20)
        .cpus(NonZeroU8::new(2).expect("two"))
        .timeout(Duration::from_secs(60));
    let assembled = machine.assemble(|_| Panics).expect("a machine");
    let record = Box::new(assembled).run();
    let End::Broken(report) = record.end else {
        panic!("{:?}", record.end);
    };
    assert!(report.starts_with("the thread of processor 1 panicked: "));
    assert!(report.contains("on purpose") && report.contains("cpu 1, rip 0x0"));
}
