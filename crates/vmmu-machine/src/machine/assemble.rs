//! From a description to a machine that is about to run.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use vmmu::host::{MemoryToken, VcpuId};
use vmmu::{AddressSpace, Config, Engine, Mmu, SlotConfig, SlotFlags};
use vmmu_cpu::{Frame, Hostility};

use crate::check::{Judge, Observer};
use crate::clock::Clock;
use crate::cpu::{Behaviour, Dimensions, Kick, Processor, Setup, Sharing};
use crate::devices::{Platform, PlatformConfig, Wake};
use crate::load::{self, Guest, GuestRam, tables};
use crate::machine::run::Assembled;
use crate::machine::start::enter_at;
use crate::machine::{
    AUDIT_EVERY, Error, Machine, Nature, NestedTables, Paging, Ready, SMALLEST_MEMORY,
};
use crate::memory::{FRAME, Memory};
use crate::vmm::cpuid::Shape;
use crate::vmm::guest::{BLOCK, GuestFrames, permute, pieces};
use crate::vmm::host::{MachineHost, Spare};
use crate::vmm::{Parts, Vm};

/// Frames beside the guest's and the tables', for guest frames to move to.
const ROOM: u64 = 4 * BLOCK;

/// Host memory, divided.
struct Divided {
    memory: Arc<Memory>,
    guest: Arc<GuestFrames>,
    spare: Vec<Frame>,
}

/// Tells processors that something waits for them.
struct Waker(Box<[Kick]>);

impl Wake for Waker {
    fn wake(&self, cpu: usize) {
        if let Some(kick) = self.0.get(cpu) {
            kick.wake();
        }
    }
}

impl Machine {
    /// Makes the machine and loads its kernel.
    ///
    /// # Errors
    /// [`Error`].
    pub fn ready(self) -> Result<Ready, Error> {
        let (check, vcpus) = (self.check, u16::from(self.cpus.get()));
        let judge = |guest: &Arc<GuestFrames>| check.then(|| Judge::new(Arc::clone(guest), vcpus));
        Ok(Ready(Box::new(self.assemble(judge)?)))
    }

    pub(crate) fn assemble<O: Observer>(
        mut self,
        observer: impl FnOnce(&Arc<GuestFrames>) -> O,
    ) -> Result<Assembled<O>, Error> {
        if self.memory < SMALLEST_MEMORY {
            return Err(Error::Description("a guest has at least 4 MiB of memory"));
        }
        let cpus = self.cpus.get();
        let shape = Shape::new(self.hidden, self.phys_bits, cpus);
        let config = self.configuration(&shape);
        let Divided {
            memory,
            guest,
            spare,
        } = self.divide(config.max_pages)?;
        let observer = Arc::new(observer(&guest));
        let kicks: Box<[Kick]> = (0..cpus).map(|_| Kick::default()).collect();
        let host = MachineHost {
            memory,
            guest: Arc::clone(&guest),
            spare: Spare::new(spare),
            kicks: kicks.clone(),
            observer,
            gate: self.gate,
        };
        let mmu = Mmu::new(host, config)?;
        for piece in guest.pieces() {
            mmu.add_slot(&SlotConfig {
                space: AddressSpace::Normal,
                base: piece.base,
                frames: piece.frames,
                token: MemoryToken(piece.first),
                flags: SlotFlags::empty(),
            })?;
        }
        let clock = match self.nature {
            Nature::Plain | Nature::Hostile => Clock::host(),
            Nature::Deterministic => Clock::instructions(),
        };
        let entry = self.load(&guest)?;
        let ram = (&*guest).ranges();
        let platform = PlatformConfig {
            cpus: self.cpus,
            ram,
            phys_bits: shape.phys_bits(),
            epoch: self.epoch(),
            serial: core::mem::replace(&mut self.serial, Box::new(std::io::sink())),
            debug: core::mem::replace(&mut self.debug, Box::new(std::io::sink())),
        };
        let vm = Vm::new(Parts {
            mmu,
            platform: Platform::new(platform, Arc::new(Waker(kicks))),
            clock,
            dimensions: dimensions(self.paging),
            tables: self.tables,
            shape,
            deadline: self.timeout.map(|timeout| Instant::now() + timeout),
            audit_every: self.audit.or(self.check.then_some(AUDIT_EVERY)),
        });
        let mut processors: Vec<Processor<O>> = (0..cpus)
            .map(|number| self.processor(number, &vm))
            .collect();
        enter_at(processors[0].state_mut(), entry);
        Ok(Assembled {
            vm: Arc::new(vm),
            processors,
            nature: self.nature,
            seed: self.seed,
            reclaims: self.reclaim,
            placement: self.placement,
        })
    }

    fn configuration(&self, shape: &Shape) -> Config {
        let engine = match self.paging {
            Paging::Shadow => Engine::Shadow,
            Paging::Nested if self.tables == NestedTables::Ept => Engine::Ept,
            Paging::Nested => Engine::Npt,
        };
        let mut config = Config::new(
            engine,
            u16::from(self.cpus.get()),
            self.memory / FRAME,
            shape.model(),
        );
        // The emulator announces what it writes.
        config.foreign_writes = vmmu::ForeignWrites::ReportedFirst;
        if let Some(limit) = self.max_pages {
            config.max_pages = limit;
        }
        config
    }

    /// Divides host memory: guest frames permuted by the seed, the rest for tables and for moves.
    fn divide(&self, tables: u32) -> Result<Divided, Error> {
        let frames = self.memory / FRAME;
        let all = BLOCK + (frames + u64::from(tables) + ROOM).next_multiple_of(BLOCK);
        let memory = Arc::new(Memory::new(all)?);
        let mut rng = fastrand::Rng::with_seed(self.seed);
        let plain = self.nature == Nature::Plain;
        // The first block stays free: an address that was never translated most likely lies there.
        let (places, mut spare) = permute(BLOCK..all, frames, &mut rng, |block| {
            !plain && block % 2 == 0
        });
        if !plain {
            rng.shuffle(&mut spare);
        }
        let guest = GuestFrames::new(Arc::clone(&memory), pieces(self.memory), &places);
        let guest = Arc::new(guest);
        Ok(Divided {
            memory,
            guest,
            spare,
        })
    }

    fn processor<O: Observer>(&self, number: u8, vm: &Vm<O>) -> Processor<O> {
        let behaviour = match self.nature {
            Nature::Plain => Behaviour::Plain,
            Nature::Hostile | Nature::Deterministic => Hostility::default()
                .schedule()
                .map_or(Behaviour::Plain, Behaviour::Hostile),
        };
        let alone = self.cpus.get() == 1 || self.nature == Nature::Deterministic;
        Processor::new(Setup {
            memory: Arc::clone(&vm.memory),
            dimensions: vm.dimensions,
            model: vm.shape.mmu(vm.dimensions),
            behaviour,
            seed: self.seed ^ u64::from(number) << 56,
            features: vm.shape.features(),
            clock: vm.clock.clone(),
            observer: Arc::clone(&vm.observer),
            kick: vm.kicks[usize::from(number)].clone(),
            vcpu: VcpuId(u16::from(number)),
            shared: if alone {
                Sharing::Alone
            } else {
                Sharing::Shared
            },
        })
    }

    fn load(&self, guest: &GuestFrames) -> Result<load::Entry, Error> {
        let mut ram = guest;
        let firmware = tables::write(self.cpus, &mut ram).map_err(load::LoadError::from)?;
        let modules: Vec<&[u8]> = self.modules.iter().map(Vec::as_slice).collect();
        let guest = Guest {
            kernel: &self.kernel,
            modules: &modules,
            command_line: &self.command_line,
            rsdp: Some(firmware.rsdp),
        };
        Ok(load::load(&guest, &mut ram)?)
    }

    /// Returns what the calendar says at the start: the same always where one seed gives one run.
    fn epoch(&self) -> u64 {
        if self.nature == Nature::Deterministic {
            return 1_700_000_000;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(0, |elapsed| elapsed.as_secs())
    }
}

const fn dimensions(paging: Paging) -> Dimensions {
    match paging {
        Paging::Shadow => Dimensions::Shadow,
        Paging::Nested => Dimensions::Nested,
    }
}
