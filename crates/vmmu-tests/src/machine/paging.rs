//! The guest's registers and flushes, and what the hypervisor does for it.

use vmmu::addr::{Gpa, Gva};
use vmmu::paging::{Cr3, PagingState};
use vmmu::{AddressSpace, Engine, Error, TlbFlush, Unprotected};
use vmmu_cpu::{Flush, Va};

use super::Machine;

impl Machine {
    /// Sets a processor's registers, as MOV to CR0 or CR4 and WRMSR do.
    ///
    /// # Errors
    /// What the library refuses.
    pub fn try_set_state(&mut self, cpu: usize, state: PagingState) -> Result<(), Error> {
        self.host.exit(cpu);
        let space = self.cpus[cpu].space;
        self.vcpu(cpu).set_paging(&state, space)?;
        self.cpus[cpu].state = state;
        self.flushed(cpu);
        self.after();
        Ok(())
    }

    /// Sets a processor's registers.
    ///
    /// # Panics
    /// If the library refuses them.
    pub fn set_state(&mut self, cpu: usize, state: PagingState) {
        self.try_set_state(cpu, state).expect("a good state");
    }

    /// Switches a processor to an address space, as entering and leaving system-management mode do.
    pub fn set_space(&mut self, cpu: usize, space: AddressSpace) {
        self.cpus[cpu].space = space;
        self.set_state(cpu, self.cpus[cpu].state);
    }

    /// Executes MOV to CR3.
    ///
    /// # Errors
    /// What the library refuses.
    pub fn try_load_cr3(&mut self, cpu: usize, cr3: u64) -> Result<(), Error> {
        self.host.exit(cpu);
        self.vcpu(cpu).load_cr3(Cr3::new(cr3))?;
        self.cpus[cpu].state.cr3 = Cr3::new(cr3);
        self.flushed(cpu);
        self.after();
        Ok(())
    }

    /// Executes MOV to CR3.
    ///
    /// # Panics
    /// If the library refuses.
    pub fn load_cr3(&mut self, cpu: usize, cr3: u64) {
        self.try_load_cr3(cpu, cr3).expect("a root");
    }

    /// Executes a flush of everything: INVPCID, or a change of CR4.PGE.
    ///
    /// # Panics
    /// If the library refuses.
    pub fn flush(&mut self, cpu: usize) {
        self.host.exit(cpu);
        self.vcpu(cpu).invalidate(TlbFlush::All).expect("a flush");
        if self.engine != Engine::Shadow {
            self.cpus[cpu].cpu.flush(Flush::All);
        }
        self.flushed(cpu);
        self.after();
    }

    /// Executes INVLPG.
    ///
    /// # Panics
    /// If the library refuses.
    pub fn invlpg(&mut self, cpu: usize, va: u64) {
        if self.engine == Engine::Shadow {
            self.host.exit(cpu);
            self.vcpu(cpu)
                .invalidate(TlbFlush::Address(Gva::new(va)))
                .expect("a flush");
        } else {
            self.cpus[cpu].cpu.invlpg(Va::new(va));
        }
        self.flushed_page(cpu, va);
        self.after();
    }

    fn flushed(&mut self, cpu: usize) {
        self.cpus[cpu].flushed = self.log.now();
        self.cpus[cpu].flushed_pages.clear();
        self.cpus[cpu].doubtful.clear();
    }

    pub(crate) fn flushed_page(&mut self, cpu: usize, va: u64) {
        let now = self.log.now();
        self.cpus[cpu].flushed_pages.insert(va >> 12, now);
    }

    /// Zaps the tables that stand for a guest frame.
    ///
    /// # Panics
    /// If the library refuses.
    pub fn unprotect(&mut self, cpu: usize, gfn: u64) -> Unprotected {
        self.host.exit(cpu);
        let gpa = Gpa::new(gfn << 12);
        let done = self.vcpu(cpu).unprotect(gpa, gfn, Gva::new(gfn << 12));
        self.after();
        done.expect("the vCPU is free")
    }
}
