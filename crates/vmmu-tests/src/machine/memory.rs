//! Guest memory: slots, words that are stored seen and unseen, frames that the host takes back.

use vmmu::addr::{Gfn, Gpa};
use vmmu::host::MemoryToken;
use vmmu::{AddressSpace, Engine, SlotConfig, SlotFlags, SlotId};
use vmmu_cpu::Hpa;
use vmmu_spec::{Memory, Physical, Width};

use super::{Machine, Slot};

impl Machine {
    /// Adds memory: `frames` guest frames from `base` on, backed by the host frames from `first` on.
    ///
    /// # Panics
    /// If the library refuses the slot.
    pub fn add_slot(&mut self, base: u64, frames: u64, first: u64, flags: SlotFlags) -> SlotId {
        self.add_slot_in(AddressSpace::Normal, base, frames, first, flags)
    }

    /// Adds memory to an address space.
    ///
    /// # Panics
    /// If the library refuses the slot.
    pub fn add_slot_in(
        &mut self,
        space: AddressSpace,
        base: u64,
        frames: u64,
        first: u64,
        flags: SlotFlags,
    ) -> SlotId {
        let config = SlotConfig {
            space,
            base: Gfn::new(base),
            frames,
            token: MemoryToken(first),
            flags,
        };
        let id = self.mmu.add_slot(&config).expect("a good slot");
        self.slots.push(Slot { id, config });
        self.backing.add(base..base + frames);
        self.after();
        id
    }

    /// Says whether two slots show the same host memory.
    #[must_use]
    pub fn has_aliases(&self) -> bool {
        self.slots.iter().enumerate().any(|(i, a)| {
            self.slots[..i].iter().any(|b| {
                let (a, b) = (&a.config, &b.config);
                a.token.0 < b.token.0 + b.frames && b.token.0 < a.token.0 + a.frames
            })
        })
    }

    /// Removes a slot.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn remove_slot(&mut self, id: SlotId) {
        self.slots.retain(|slot| slot.id != id);
        self.mmu.remove_slot(id).expect("a slot of the machine");
        self.after();
    }

    /// Changes a slot's flags.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn set_slot_flags(&mut self, id: SlotId, flags: SlotFlags) {
        for slot in self.slots.iter_mut().filter(|slot| slot.id == id) {
            slot.config.flags = flags;
        }
        self.mmu
            .set_slot_flags(id, flags)
            .expect("a slot of the machine");
        self.after();
    }

    /// Returns the slot of a guest frame.
    #[must_use]
    pub fn slot_of(&self, space: AddressSpace, gfn: u64) -> Option<&Slot> {
        self.slots.iter().find(|slot| {
            slot.config.space == space
                && gfn.wrapping_sub(slot.config.base.get()) < slot.config.frames
        })
    }

    /// Returns the host address of a guest-physical one.
    #[must_use]
    pub fn hpa(&self, space: AddressSpace, gpa: u64) -> Option<Hpa> {
        let gfn = gpa >> 12;
        let slot = self.slot_of(space, gfn)?;
        let frame = gfn - slot.config.base.get();
        let frame = self.host.frame_of(slot.config.token, frame);
        Some(Hpa::new((frame << 12) + (gpa & 0xfff)))
    }

    /// Returns a guest frame's slot's token and its number in the slot.
    fn place(&self, space: AddressSpace, gfn: u64) -> Option<(MemoryToken, u64)> {
        let slot = self.slot_of(space, gfn)?;
        Some((slot.config.token, gfn - slot.config.base.get()))
    }

    /// Returns every guest-physical address that a host address backs now.
    #[must_use]
    pub fn gpas(&self, hpa: Hpa) -> Vec<u64> {
        let frame = hpa.get() >> 12;
        let mut found = Vec::new();
        for slot in &self.slots {
            let token = slot.config.token;
            let near = frame.wrapping_sub(token.0);
            let moved = self.host.moved_to(token, frame);
            let direct = (near < slot.config.frames && self.host.frame_of(token, near) == frame)
                .then_some(near);
            for number in moved.into_iter().chain(direct) {
                if number < slot.config.frames {
                    let gpa = ((slot.config.base.get() + number) << 12) + (hpa.get() & 0xfff);
                    if !found.contains(&gpa) {
                        found.push(gpa);
                    }
                }
            }
        }
        found
    }

    /// Reads a word of guest memory.
    ///
    /// # Panics
    /// If there is no memory.
    #[must_use]
    pub fn peek(&self, gpa: u64) -> u64 {
        let hpa = self.hpa(AddressSpace::Normal, gpa).expect("guest memory");
        self.host.memory.load(hpa)
    }

    /// Stores a word in guest memory and tells the log, but not the library: for what nobody has translated through yet.
    ///
    /// # Panics
    /// If there is no memory.
    pub fn poke(&mut self, gpa: u64, value: u64) {
        let hpa = self.hpa(AddressSpace::Normal, gpa).expect("guest memory");
        self.host.memory.store(hpa, value);
        self.note(hpa, value);
    }

    /// Stores a word behind everybody's back: what the table says is promised for nobody until [`Machine::report`].
    ///
    /// # Panics
    /// If there is no memory.
    pub fn poke_unseen(&mut self, gpa: u64, value: u64) {
        let hpa = self.hpa(AddressSpace::Normal, gpa).expect("guest memory");
        self.host.memory.store(hpa, value);
        if self.engine != Engine::Shadow {
            // Nested tables do not depend on it.
            self.note(hpa, value);
            return;
        }
        for gpa in self.gpas(hpa) {
            self.tainted.insert(gpa >> 12);
        }
    }

    /// Reports a whole frame as written.
    pub fn report(&mut self, gfn: u64) {
        if let Some(hpa) = self.hpa(AddressSpace::Normal, gfn << 12) {
            for gpa in self.gpas(hpa) {
                self.mmu.guest_wrote(Gpa::new(gpa), 4096);
                if self.tainted.remove(&(gpa >> 12)) {
                    for processor in &mut self.cpus {
                        processor.doubtful.insert(gpa >> 12);
                    }
                }
                self.refresh(gpa);
            }
        }
        self.after();
    }

    /// Brings the log of a frame up to what memory holds.
    fn refresh(&mut self, gpa: u64) {
        for at in (gpa..gpa + 4096).step_by(8) {
            let value = self.peek(at);
            if self.log.read(Physical::new(at), Width::Eight) != Some(value) {
                self.log.write(Physical::new(at), Width::Eight, value);
            }
        }
    }

    /// Stores a word as an emulated instruction or a device does, and reports it.
    pub fn emulated_write(&mut self, gpa: u64, value: u64) {
        self.poke(gpa & !7, value);
        self.mmu.guest_wrote(Gpa::new(gpa & !7), 8);
        self.after();
    }

    /// Puts a store to a host address into the log, for every guest frame that shows it.
    pub(crate) fn note(&mut self, hpa: Hpa, value: u64) {
        for gpa in self.gpas(hpa) {
            self.log.write(Physical::new(gpa), Width::Eight, value);
        }
    }

    /// Moves what the library's walker stored into the log, and returns it.
    pub(crate) fn drain(&mut self) -> Vec<(u64, u64)> {
        let writes = self.host.take_gpte_writes();
        for (gpa, value) in &writes {
            if let Some(hpa) = self.hpa(AddressSpace::Normal, *gpa) {
                self.note(hpa, *value);
            }
        }
        writes
    }

    /// Lets the host take frames back, giving the guest other ones with the same content.
    pub fn take_back(&mut self, gfn: u64, frames: u64) {
        let invalidation = self.mmu.invalidate_begin(Gfn::new(gfn), frames);
        // Frames that others show too have to be taken from those too.
        let mut others = Vec::new();
        for at in gfn..gfn + frames {
            let Some(slot) = self.slot_of(AddressSpace::Normal, at).copied() else {
                continue;
            };
            let hpa = self.hpa(AddressSpace::Normal, at << 12).expect("a slot");
            let mut shown = vec![(slot.config.token, at - slot.config.base.get())];
            for gpa in self.gpas(hpa) {
                if gpa >> 12 != at {
                    others.push(self.mmu.invalidate_begin(Gfn::new(gpa >> 12), 1));
                    shown.extend(self.place(AddressSpace::Normal, gpa >> 12));
                }
            }
            self.host.move_frame(&shown);
        }
        drop(others);
        drop(invalidation);
        self.after();
    }
}
