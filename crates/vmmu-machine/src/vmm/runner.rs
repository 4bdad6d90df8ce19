//! One virtual processor: what it waits for, its entries into the guest, and its exits.
//!
//! Key types: [`Runner`], [`Exits`].
//!
//! Invariants:
//! 1. [`vmmu::Vcpu::exited`] follows each run before anything else of the library is called.
//! 2. An event that could not be delivered is injected again, or merged with the exception that its delivery raised, before anything else is.

use std::collections::BTreeMap;

use vmmu::addr::{Gpa, Gva};
use vmmu::host::VcpuId;
use vmmu::paging::PagingState;
use vmmu::walk::Walker;
use vmmu::{AddressSpace, TlbFlush, Vcpu};
use vmmu_cpu::Flush;
use vmmu_emu::system::event::{Event, Merged, merge};
use vmmu_emu::{Exception, Mode, SegmentName, Stop};

use crate::check::{Load, Observer};
use crate::cpu::exit::{Exit, Pause};
use crate::cpu::{Dimensions, Processor};
use crate::devices::{Effect, Signals};
use crate::machine::{Edge, Mark};
use crate::vmm::Vm;
use crate::vmm::emulate::{Emulator, Follow, Trouble};
use crate::vmm::end::End;
use crate::vmm::host::MachineHost;
use crate::vmm::paging::{state_of, world};
use crate::vmm::reclaim::take_back;
use crate::vmm::report;

/// The number of exits after which it looks at the clock, whatever they are.
const LOOK: u32 = 4096;

/// Exits by kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exits(pub [u64; Exit::KINDS]);

impl Default for Exits {
    fn default() -> Self {
        Self([0; Exit::KINDS])
    }
}

impl Exits {
    /// Returns how many there were.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// What a virtual processor does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Activity {
    /// It runs its guest.
    Running,
    /// It sleeps until an interrupt comes.
    Halted,
    /// It waits for a start-up message.
    WaitingForStart,
}

/// One virtual processor.
#[derive(Debug)]
pub struct Runner<'m, O: Observer> {
    pub(super) vm: &'m Vm<O>,
    pub(super) vcpu: Vcpu<'m, MachineHost<O>>,
    /// The processor.
    pub processor: Processor<O>,
    pub(super) walker: Walker,
    /// What it does.
    pub activity: Activity,
    /// How often it left its guest, by cause.
    pub exits: Exits,
    /// How often its guest read each port.
    pub port_reads: BTreeMap<u16, u64>,
    /// The library and the processor are to forget what they cached at the next entry.
    pub(super) flush: bool,
    /// How often it ran its guest.
    turns: u32,
    /// A non-maskable interrupt waits.
    nmi: bool,
    /// How often in a row a write to a guest table came back.
    pub(super) again: u32,
}

/// A vCPU in its guest. It has left when this is dropped, by a panic too: whoever waits for it to leave must not wait for ever.
struct Inside<'m, O: Observer> {
    vm: &'m Vm<O>,
    vcpu: Vcpu<'m, MachineHost<O>>,
}

impl<'m, O: Observer> Inside<'m, O> {
    /// Notes that the guest runs; the library has said that it may.
    fn enter(vm: &'m Vm<O>, vcpu: Vcpu<'m, MachineHost<O>>) -> Self {
        vm.observer.entered(vcpu.id());
        Self { vm, vcpu }
    }
}

impl<O: Observer> Drop for Inside<'_, O> {
    fn drop(&mut self) {
        self.vm.observer.exited(self.vcpu.id());
        self.vcpu.exited();
    }
}

impl<'m, O: Observer> Runner<'m, O> {
    /// Makes it; its processor's registers are set by whoever starts it.
    ///
    /// # Errors
    /// The library's, if it has no such vCPU.
    pub fn new(vm: &'m Vm<O>, number: u16, processor: Processor<O>) -> Result<Self, vmmu::Error> {
        let activity = if number == 0 {
            Activity::Running
        } else {
            Activity::WaitingForStart
        };
        Ok(Self {
            vm,
            vcpu: vm.mmu.vcpu(VcpuId(number))?,
            walker: Walker::new(PagingState::reset(vm.shape.model())),
            processor,
            activity,
            exits: Exits::default(),
            port_reads: BTreeMap::new(),
            flush: true,
            turns: 0,
            nmi: false,
            again: 0,
        })
    }

    /// Returns its number.
    #[must_use]
    pub fn number(&self) -> usize {
        usize::from(self.vcpu.id().0)
    }

    /// Returns what all processors share.
    #[must_use]
    pub const fn vm(&self) -> &'m Vm<O> {
        self.vm
    }

    /// Says whether it sleeps and no interrupt wakes it.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        match self.activity {
            Activity::Running => false,
            Activity::Halted => !self.processor.takes_interrupts(),
            Activity::WaitingForStart => true,
        }
    }

    /// Tells the library what the registers say, before the first entry and after each change.
    pub fn apply(&mut self, load: Load) {
        let state = state_of(self.processor.state(), &self.vm.shape);
        if self.vm.dimensions == Dimensions::Shadow {
            if let Err(error) = self.vcpu.set_paging(&state, AddressSpace::Normal) {
                self.library_failed(error);
            }
        } else {
            self.flush = true;
        }
        self.vm.observer.registers(self.vcpu.id(), &state, load);
    }

    /// Does what is due, and runs the guest for about as many instructions; tells why it left, if it ran.
    pub fn turn(&mut self, budget: u64) -> Option<Exit> {
        let now = self.vm.clock.now();
        self.vm.platform.advance(now);
        self.take_signals();
        self.take_interrupt();
        if self.activity != Activity::Running || self.vm.is_over() {
            return None;
        }
        match self.vcpu.enter() {
            Ok(entry) => {
                let state = state_of(self.processor.state(), &self.vm.shape);
                let world = world(&state, self.vm.dimensions, self.vm.tables, entry.root);
                let flush = entry.flush || core::mem::take(&mut self.flush);
                let flush = if flush { Flush::All } else { Flush::Nothing };
                self.processor.load(&world, flush);
            }
            Err(error) => {
                self.library_failed(error);
                return None;
            }
        }
        let before = self.processor.work().instructions;
        let inside = Inside::enter(self.vm, self.vcpu);
        let exit = self.processor.run(budget);
        drop(inside);
        self.vm
            .clock
            .pass(self.processor.work().instructions - before);
        self.exits.0[exit.kind()] += 1;
        self.turns = self.turns.wrapping_add(1);
        if self.turns.is_multiple_of(LOOK) {
            self.look_at_the_clock();
        }
        self.answer(exit);
        Some(exit)
    }

    /// Serves INIT, start-up messages and NMIs.
    fn take_signals(&mut self) {
        let pending = self.vm.platform.pending(self.number());
        if pending.intersects(crate::devices::Pending::SIGNALS) {
            let Signals { init, startup, nmi } = self.vm.platform.take_signals(self.number());
            if init && self.number() == 0 {
                // It would begin in the firmware, which there is none of (Intel SDM vol. 3, section 9.4.1).
                self.vm.finish(End::Reset);
            } else if init {
                self.processor.reset();
                self.activity = Activity::WaitingForStart;
                self.nmi = false;
                self.apply(Load::Machine);
            }
            if let Some(vector) = startup
                && self.activity == Activity::WaitingForStart
            {
                self.start_at(vector);
            }
            self.nmi |= nmi && self.activity != Activity::WaitingForStart;
        }
        if self.nmi && !self.processor.injects() && !self.processor.state().nmi_blocked {
            self.nmi = false;
            self.activity = Activity::Running;
            self.processor.inject(Event::Nmi);
        }
    }

    /// Starts in real mode at a page (AMD APM vol. 2, section 15.27.8; the start-up message of the local APIC).
    fn start_at(&mut self, vector: u8) {
        let state = self.processor.state_mut();
        let code = &mut state.segments[SegmentName::Cs as usize];
        code.selector = u16::from(vector) << 8;
        code.base = u64::from(vector) << 12;
        state.set_rip(0);
        self.activity = Activity::Running;
        self.apply(Load::Machine);
    }

    /// Injects an interrupt if one waits and the guest takes it; otherwise waits for the guest to take it.
    fn take_interrupt(&mut self) {
        let waits = self
            .vm
            .platform
            .pending(self.number())
            .contains(crate::devices::Pending::INTERRUPT);
        let takes = self.processor.takes_interrupts() && !self.processor.injects();
        if waits && takes && self.activity != Activity::WaitingForStart {
            let now = self.vm.clock.now();
            if let Some(vector) = self.vm.platform.acknowledge(self.number(), now) {
                self.activity = Activity::Running;
                self.processor.inject(Event::Interrupt(vector));
            }
        }
        self.processor.set_window(waits && !takes);
    }

    fn answer(&mut self, exit: Exit) {
        let event = self.processor.take_undelivered();
        self.answer_during(exit, event);
    }

    /// Answers an exit that came while `event` was being delivered, if one was.
    pub(super) fn answer_during(&mut self, exit: Exit, event: Option<Event>) {
        match exit {
            Exit::PageFault { va, code, access } => self.page_fault(va, code, access, event),
            Exit::NestedFault { gpa, code, .. } => self.nested_fault(gpa, code, event),
            Exit::Intercept(_) => match event {
                None => self.emulate(),
                // What is to be done is part of the delivery, as a task switch's load of CR3 is.
                Some(event) => self.emulate_delivery(event),
            },
            Exit::Pause(Pause::Budget | Pause::Kick | Pause::Window) => {
                if let Some(event) = event {
                    self.processor.inject(event);
                }
                self.look_at_the_clock();
            }
            Exit::Unsupported => self.unsupported(),
            Exit::Shutdown => {
                let report = report::crash(self, "the guest ran into a triple fault");
                self.vm.finish(End::TripleFault(report));
            }
            Exit::Violation(violation) => {
                let report = report::crash(self, &violation.to_string());
                let observed = self.vm.observer.report().unwrap_or_default();
                self.vm.finish(End::Broken(format!("{observed}{report}")));
            }
            Exit::Caught => self.caught(),
        }
    }

    /// Ends the run if it takes too long.
    pub fn look_at_the_clock(&self) {
        if self
            .vm
            .deadline
            .is_some_and(|deadline| std::time::Instant::now() > deadline)
        {
            self.vm.finish(End::Timeout);
        }
    }

    /// Executes the instruction at the guest's instruction pointer.
    pub(super) fn emulate(&mut self) {
        let mut emulator = Emulator::new(self);
        let result = emulator.execute();
        let (follow, trouble) = (emulator.follow, emulator.trouble.take());
        match result {
            Ok(trap) => self.emulated(follow, trap),
            Err(stop) => self.emulation_stopped(stop, trouble),
        }
    }

    /// Follows up an emulation that completed.
    pub(super) fn emulated(&mut self, follow: Follow, trap: Option<Exception>) {
        self.processor.count(1);
        self.vm.clock.pass(1);
        self.follow(follow);
        if let Some(exception) = trap {
            self.raise(exception, None);
        }
    }

    /// Answers an emulation that did not complete.
    pub(super) fn emulation_stopped(&mut self, stop: Stop, trouble: Option<Trouble>) {
        match (stop, trouble) {
            (Stop::Exception(exception), _) => self.raise(exception, None),
            (_, Some(Trouble::Library(error))) => self.library_failed(error),
            (_, Some(Trouble::TableMissing(gpa))) => self.table_missing(gpa),
            (_, Some(Trouble::Code(gpa))) => self.refuse(&format!(
                "the guest executes code at {gpa}, where no memory is"
            )),
            (_, Some(Trouble::Caught)) => self.caught(),
            (_, None) => self.unsupported(),
        }
    }

    /// Does what an instruction calls for beyond the state.
    pub(super) fn follow(&mut self, follow: Follow) {
        let shadow = self.vm.dimensions == Dimensions::Shadow;
        match follow {
            Follow::Nothing => {}
            Follow::Root => {
                let state = state_of(self.processor.state(), &self.vm.shape);
                if !shadow {
                    // The processor's own load would have dropped what its TLB holds.
                    self.flush = true;
                } else if let Err(error) = self.vcpu.load_cr3(state.cr3) {
                    self.library_failed(error);
                }
                self.vm.observer.root_loaded(self.vcpu.id(), state.cr3);
            }
            Follow::Paging => self.apply(Load::Control),
            Follow::Page(gva) => self.invalidate(TlbFlush::Address(gva)),
            Follow::All => self.invalidate(TlbFlush::All),
            Follow::Halt => self.activity = Activity::Halted,
            Follow::Effect(effect) => self.carry_out(effect),
        }
    }

    fn invalidate(&mut self, what: TlbFlush) {
        if let Err(error) = self.vcpu.invalidate(what) {
            self.library_failed(error);
        }
        self.vm.observer.flushed(self.vcpu.id(), what);
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::MarkStart(value) => self.mark(Edge::Start, value >> 24, value & 0xff_ffff),
            Effect::MarkEnd(value) => self.mark(Edge::End, value, 0),
            Effect::PowerOff => self.vm.finish(End::PowerOff),
            Effect::Reset => self.vm.finish(End::Reset),
            Effect::DebugExit(value) => self.vm.finish(End::Exit(value)),
            Effect::DropMapping(gpa) => {
                take_back(self.vm, vmmu::addr::Gfn::containing(gpa), 1);
            }
        }
    }

    fn mark(&self, edge: Edge, phase: u32, operations: u32) {
        self.vm.audits.note_mark();
        self.vm.mark(Mark {
            phase: phase as u8,
            edge,
            operations,
            instructions: self.processor.work().instructions,
            exits: self.exits,
            stats: self.vm.mmu.stats(),
        });
    }

    /// Raises an exception in the guest, by itself or while `event` was being delivered.
    pub(super) fn raise(&mut self, exception: Exception, event: Option<Event>) {
        let event = match event {
            None => Event::raised(self.processor.state(), exception),
            Some(first) => match merge(&first, exception) {
                Merged::Exception(exception) => Event::raised(self.processor.state(), exception),
                Merged::Shutdown => {
                    let report = report::crash(self, "the guest ran into a triple fault");
                    self.vm.finish(End::TripleFault(report));
                    return;
                }
            },
        };
        self.processor.inject(event);
    }

    /// Ends the run with the observer's report.
    #[cold]
    pub(super) fn caught(&mut self) {
        let observed = self.vm.observer.report().unwrap_or_default();
        let report = report::crash(self, "the run ends here");
        self.vm.finish(End::Broken(format!("{observed}{report}")));
    }

    #[cold]
    pub(super) fn library_failed(&mut self, error: vmmu::Error) {
        match error {
            vmmu::Error::TableMissing { gpa } => self.table_missing(gpa),
            error => self.refuse(&error.to_string()),
        }
    }

    #[cold]
    pub(super) fn table_missing(&mut self, gpa: Gpa) {
        self.refuse(&format!(
            "a guest page table lies at {gpa}, where nothing is"
        ));
    }

    #[cold]
    pub(super) fn unsupported(&mut self) {
        let mut emulator = Emulator::new(self);
        let text = match emulator.fetch() {
            Ok((bytes, len)) => {
                let bytes: Vec<String> = bytes[..len]
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect();
                format!(
                    "the emulator doesn't know the instruction that begins {}",
                    bytes.join(" ")
                )
            }
            Err(_) => "the emulator doesn't know an instruction, whose bytes are gone".to_owned(),
        };
        self.refuse(&text);
    }

    #[cold]
    pub(super) fn refuse(&mut self, why: &str) {
        let report = report::crash(self, why);
        self.vm.finish(End::Refused(report));
    }

    /// Returns the linear address of the next instruction.
    pub(super) fn instruction_address(&self) -> Gva {
        let state = self.processor.state();
        if Mode::of(state) == Mode::Bits64 {
            Gva::new(state.rip())
        } else {
            let base = state.segment(SegmentName::Cs).base;
            Gva::new(base.wrapping_add(state.rip()) & 0xffff_ffff)
        }
    }
}
