//! The guest's processors as they see each other: kicks, NMIs, INIT and start-up.
//!
//! Key types: [`Cpus`], [`Summons`]; [`Start`] in `start_up`. Which of the host's processors run the guest's: [`identifier`].
//! Who wants something of another says what, and sends it an NMI, which takes it out of its guest or out of its wait.
//!
//! Invariants:
//! 1. An NMI is sent when summons go from none to some, and only then. Who takes summons waits until their NMI was sent, and lets it in
//!    before the guest runs: an NMI that waits while there are no summons is the guest's own, and so is each beyond one for every time that
//!    there were some. Only a guest's NMI that comes while one of the host's waits already is lost, for the processor keeps one at most.
//! 2. Who waits for a processor that it has kicked may sleep while it is among the waiters: whoever takes it off wakes it.

mod destination;
mod start_up;

use alloc::boxed::Box;
use core::num::NonZeroU8;
use core::sync::atomic::{AtomicU32, Ordering};

use bitflags::bitflags;
pub use start_up::Start;
use start_up::{RUNNING, WAITING};
use vmmu::host::VcpuId;

use crate::arch::apic::{ApicRegister, LocalApic, Signal};
use crate::arch::register;
use crate::pause::{Begun, Pause};

bitflags! {
    /// What one processor wants of another.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Summons: u32 {
        /// That it leaves its guest.
        const KICK = 1 << 0;
        /// That its guest gets an NMI.
        const NMI = 1 << 1;
        /// That it looks at its state.
        const STATE = 1 << 2;
        /// That it ends its wait: whom it has kicked has left its guest.
        const WAKE = 1 << 3;
        /// That it holds still, outside its guest and the library.
        const PAUSE = 1 << 4;
    }
}

/// Returns the local APIC identifier of the host's processor that runs the guest's processor `number` of `count`; both have the same.
///
/// Of several none runs on the host's first. QEMU's emulation (7.2) keeps whether the first is in a guest, on nested tables, and with which GIF in a
/// word that it also writes, without a lock, whenever any processor loads x87 state (FXRSTOR, XRSTOR): an exit or an entry of the first that
/// comes at that moment is undone in part. It is left to wait.
pub const fn identifier(number: VcpuId, count: NonZeroU8) -> u8 {
    number.0 as u8 + if count.get() > 1 { 1 } else { 0 }
}

/// How many rounds a wait spins before it sleeps: a little longer than a kick takes when the processor runs.
const SPIN: u32 = 64;

/// All processors.
#[derive(Debug)]
pub struct Cpus {
    cpus: Box<[Cpu]>,
    /// The local APIC of whoever asks.
    pub apic: LocalApic,
    pause: Pause,
}

#[derive(Debug)]
#[repr(align(64))]
struct Cpu {
    summons: AtomicU32,
    /// How often summons went from none to some and their NMI was sent, and how often this one took some.
    sent: AtomicU32,
    taken: AtomicU32,
    state: AtomicU32,
    /// Who waits until this one has left its guest, one bit each.
    waiters: AtomicU32,
    /// Whom this one has kicked last.
    kicked: AtomicU32,
    /// What the guest wrote to the registers by which logical destinations are told.
    logical: AtomicU32,
    format: AtomicU32,
}

/// How many NMIs were let in, and how many were sent by the host at most.
#[derive(Clone, Copy, Debug)]
struct Nmis {
    all: u32,
    hosts: u32,
}

impl Cpus {
    /// Makes `count` processors, of which the first runs and the others wait for their start-up.
    pub fn new(count: NonZeroU8, apic: LocalApic) -> Self {
        let cpu = |number: u8| Cpu {
            summons: AtomicU32::new(0),
            sent: AtomicU32::new(0),
            taken: AtomicU32::new(0),
            state: AtomicU32::new(if number == 0 { RUNNING } else { WAITING }),
            waiters: AtomicU32::new(0),
            kicked: AtomicU32::new(number.into()),
            logical: AtomicU32::new(0),
            format: AtomicU32::new(u32::MAX),
        };
        Self {
            cpus: (0..count.get()).map(cpu).collect(),
            apic,
            pause: Pause::default(),
        }
    }
    /// Returns their numbers.
    pub fn numbers(&self) -> impl Iterator<Item = VcpuId> + use<> {
        (0..self.cpus.len() as u16).map(VcpuId)
    }
    /// Tells whether there is more than one.
    pub fn are_several(&self) -> bool {
        self.cpus.len() > 1
    }
    fn count(&self) -> NonZeroU8 {
        NonZeroU8::new(self.cpus.len() as u8).unwrap_or(NonZeroU8::MIN)
    }
    /// Returns the identifier of a processor, as [`identifier`] does.
    pub fn identifier(&self, number: VcpuId) -> u8 {
        identifier(number, self.count())
    }
    fn get(&self, number: VcpuId) -> Option<&Cpu> {
        self.cpus.get(usize::from(number.0))
    }

    /// Summons a processor. Also called when it is summoned already: the NMI that is on its way will do.
    pub fn summon(&self, number: VcpuId, summons: Summons) {
        let Some(cpu) = self.get(number) else {
            return;
        };
        // Release: the state stored before. Acquire pairs with `take`, for nothing more than the order of the two.
        if cpu.summons.fetch_or(summons.bits(), Ordering::AcqRel) == 0 {
            self.apic.send(self.identifier(number), Signal::Nmi);
            // Release pairs with `take`: who reads the count finds the NMI waiting.
            cpu.sent.fetch_add(1, Ordering::Release);
        }
    }
    /// Lets the NMIs in that wait for this processor, which one of them has made leave its guest, and takes what they are for. The guest's
    /// own are told as [`Summons::NMI`].
    ///
    /// `let_in` lets in what waits at that moment, and says how many that were.
    pub fn answer_nmi(&self, number: VcpuId, let_in: impl FnMut() -> u32) -> Summons {
        let Some(cpu) = self.get(number) else {
            return Summons::empty();
        };
        // Acquire: no NMI may be let in before.
        let is_own = cpu.summons.load(Ordering::Acquire) == 0;
        let (summons, nmis) = self.settle(cpu, 0, let_in);
        if is_own && nmis.all > 0 || nmis.all > nmis.hosts {
            return summons | Summons::NMI;
        }
        summons
    }
    /// As [`Cpus::answer_nmi`], behind a wait that has let in `count` NMIs as they came.
    pub fn answer_wait(&self, number: VcpuId, count: u32, let_in: impl FnMut() -> u32) -> Summons {
        let Some(cpu) = self.get(number) else {
            return Summons::empty();
        };
        let (summons, nmis) = self.settle(cpu, count, let_in);
        if nmis.all > nmis.hosts {
            return summons | Summons::NMI;
        }
        summons
    }
    /// Takes summons until there are none and all NMIs that were sent for them have been let in.
    fn settle(&self, cpu: &Cpu, count: u32, mut let_in: impl FnMut() -> u32) -> (Summons, Nmis) {
        let mut nmis = Nmis {
            all: count,
            hosts: 0,
        };
        let mut summons = Summons::empty();
        loop {
            nmis.all += let_in();
            let more = self.take(cpu);
            if more.is_empty() {
                return (summons, nmis);
            }
            summons |= more;
            nmis.hosts += 1;
        }
    }
    /// Takes what the others want of this processor, and waits until the NMI for it has been sent.
    fn take(&self, cpu: &Cpu) -> Summons {
        let summons = Summons::from_bits_retain(cpu.summons.swap(0, Ordering::AcqRel));
        self.wake_waiters(cpu);
        if summons.is_empty() {
            return summons;
        }
        let taken = cpu.taken.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        // Others may have been sent meanwhile.
        while (cpu.sent.load(Ordering::Acquire).wrapping_sub(taken) as i32) < 0 {
            core::hint::spin_loop();
        }
        summons
    }

    /// Makes a processor leave its guest.
    pub fn kick(&self, number: VcpuId) {
        let own = self.own();
        if let (Some(cpu), Some(waiter)) = (self.get(number), self.get(own)) {
            waiter.kicked.store(number.0.into(), Ordering::Relaxed);
            // Before the summons: whoever takes them finds the waiter.
            cpu.waiters.fetch_or(1 << own.0, Ordering::AcqRel);
            self.summon(number, Summons::KICK);
        }
    }
    /// Passes the time in a wait for another processor. This one is outside its guest.
    ///
    /// After some rounds it sleeps, if it has kicked one that has not answered: the processor underneath may be another's meanwhile.
    pub fn relax(&self, round: u32) {
        core::hint::spin_loop();
        if round < SPIN {
            return;
        }
        let own = self.own();
        let Some(cpu) = self.get(own) else {
            return;
        };
        self.wake_waiters(cpu);
        let kicked = cpu.kicked.load(Ordering::Relaxed);
        let waits = self
            .get(VcpuId(kicked as u16))
            .is_some_and(|kicked| kicked.waiters.load(Ordering::Acquire) & 1 << own.0 != 0);
        if waits {
            let count = register::wait_for_nmi();
            self.pass_on(own, count, register::let_nmis_in);
        }
    }
    /// Takes the summons of the end of a wait that let in `count` NMIs, and makes those that are not for the wait come again in the guest.
    fn pass_on(&self, own: VcpuId, count: u32, let_in: impl FnMut() -> u32) {
        // A flush that was asked for by a kick is done on the way into the guest.
        let rest = self.answer_wait(own, count, let_in) - Summons::WAKE - Summons::KICK;
        if !rest.is_empty() {
            self.summon(own, rest);
        }
    }
    fn wake_waiters(&self, cpu: &Cpu) {
        if cpu.waiters.load(Ordering::Relaxed) == 0 {
            return;
        }
        let waiters = cpu.waiters.swap(0, Ordering::AcqRel);
        for number in self.numbers().filter(|number| waiters & 1 << number.0 != 0) {
            self.summon(number, Summons::WAKE);
        }
    }
    /// Returns the number of the processor that asks.
    fn own(&self) -> VcpuId {
        let identifier = (self.apic.read(ApicRegister::ID) >> 24) as u16;
        VcpuId(identifier - u16::from(self.identifier(VcpuId(0))))
    }

    /// Calls `act` while all other processors hold still; not at all if another one's time has come.
    pub fn while_others_hold(&self, own: VcpuId, act: impl FnOnce()) {
        let (Some(cpu), Begun::Yes) = (self.get(own), self.pause.begin(own)) else {
            return;
        };
        let others = || self.numbers().filter(|&number| number != own);
        for number in others() {
            self.summon(number, Summons::PAUSE);
        }
        let all = others().fold(0, |all, number| all | 1 << number.0);
        self.pause.wait(all, || self.relax_outside(cpu));
        act();
        self.pause.end();
    }
    /// Holds this processor still if it was summoned for that.
    pub fn hold(&self, own: VcpuId, summons: Summons) {
        if let (Some(cpu), true) = (self.get(own), summons.contains(Summons::PAUSE)) {
            self.pause.hold(own, || self.relax_outside(cpu));
        }
    }
    /// Passes the time outside guest and library: whoever waits for this one goes on.
    fn relax_outside(&self, cpu: &Cpu) {
        core::hint::spin_loop();
        self.wake_waiters(cpu);
    }
}

#[cfg(test)]
mod processors_summon_each_other {
    use super::*;

    pub(super) fn cpus() -> Cpus {
        Cpus::new(NonZeroU8::new(3).unwrap(), LocalApic::on_heap())
    }
    const ZERO: VcpuId = VcpuId(0);
    pub(super) const ONE: VcpuId = VcpuId(1);

    /// What a processor that is made leave its guest by one NMI takes.
    pub(super) fn take(cpus: &Cpus, number: VcpuId) -> Summons {
        let mut waiting = 1;
        cpus.answer_nmi(number, || core::mem::take(&mut waiting))
    }
    /// What there is without an NMI.
    pub(super) fn left(cpus: &Cpus, number: VcpuId) -> Summons {
        cpus.answer_nmi(number, || 0)
    }

    #[test]
    fn with_one_nmi_for_all_that_is_wanted_at_a_time() {
        let cpus = cpus();
        let sent = || {
            let command = cpus.apic.read(ApicRegister::COMMAND);
            cpus.apic.write(ApicRegister::COMMAND, 0);
            command != 0
        };
        cpus.summon(ONE, Summons::KICK);
        assert!(sent());
        cpus.summon(ONE, Summons::NMI);
        assert!(!sent());
        assert_eq!(take(&cpus, ONE), Summons::KICK | Summons::NMI);
        assert_eq!(left(&cpus, ONE), Summons::empty());
        cpus.summon(ONE, Summons::KICK);
        assert!(sent());
    }

    #[test]
    fn and_wake_who_waits_for_their_answer() {
        let cpus = cpus();
        // This test is processor 0, by the identifier in its registers.
        cpus.apic.write(ApicRegister::ID, 1 << 24);
        cpus.kick(ONE);
        assert_eq!(left(&cpus, ZERO), Summons::empty());
        assert_eq!(take(&cpus, ONE), Summons::KICK);
        assert_eq!(take(&cpus, ZERO), Summons::WAKE);
        // What came for the guest while it slept comes again; a device's NMI has no summons.
        cpus.summon(ZERO, Summons::STATE | Summons::WAKE | Summons::KICK);
        cpus.pass_on(ZERO, 1, || 0);
        assert_eq!(take(&cpus, ZERO), Summons::STATE);
        cpus.pass_on(ZERO, 1, || 0);
        assert_eq!(take(&cpus, ZERO), Summons::NMI);
    }

    #[test]
    fn by_the_identifiers_of_the_hosts_of_which_several_leave_out_the_first() {
        let cpus = cpus();
        assert_eq!(identifier(ZERO, NonZeroU8::MIN), 0);
        assert_eq!((cpus.identifier(ZERO), cpus.identifier(ONE)), (1, 2));
        // Whoever asks is known by the identifier that it has.
        cpus.apic.write(ApicRegister::ID, 2 << 24);
        assert_eq!(cpus.own(), ONE);
    }
}

#[cfg(test)]
mod an_nmi_of_a_device {
    extern crate std;
    use super::*;

    const OWN: VcpuId = VcpuId(0);

    fn cpus() -> Cpus {
        Cpus::new(NonZeroU8::new(2).unwrap(), LocalApic::on_heap())
    }

    #[test]
    fn goes_to_the_guest_if_it_comes_alone() {
        let mut waiting = 1;
        let let_in = || core::mem::take(&mut waiting);
        assert_eq!(cpus().answer_nmi(OWN, let_in), Summons::NMI);
        assert_eq!(cpus().answer_wait(OWN, 1, || 0), Summons::NMI);
    }

    #[test]
    fn goes_there_although_a_summons_comes_before_it_is_let_in() {
        // The processor keeps one of the two.
        let cpus = cpus();
        let mut waiting = 1;
        let let_in = || {
            if waiting == 1 {
                cpus.summon(OWN, Summons::KICK);
            }
            core::mem::take(&mut waiting)
        };
        let found = cpus.answer_nmi(OWN, let_in);
        assert_eq!(found, Summons::KICK | Summons::NMI);
        // Nothing of the host's is on its way any more: the next one is the guest's again.
        assert_eq!(cpus.answer_nmi(OWN, || 0), Summons::empty());
    }

    #[test]
    fn goes_there_if_it_comes_while_one_of_the_hosts_is_taken() {
        let cpus = cpus();
        cpus.summon(OWN, Summons::KICK);
        let mut waiting = [2, 0].into_iter();
        let found = cpus.answer_nmi(OWN, || waiting.next().unwrap_or(0));
        assert_eq!(found, Summons::KICK | Summons::NMI);
        // The same behind a wait, which lets NMIs in as they come.
        cpus.summon(OWN, Summons::WAKE);
        let found = cpus.answer_wait(OWN, 1, || core::mem::take(&mut 0));
        assert_eq!(found, Summons::WAKE);
        cpus.summon(OWN, Summons::WAKE);
        let found = cpus.answer_wait(OWN, 2, || 0);
        assert_eq!(found, Summons::WAKE | Summons::NMI);
    }

    #[test]
    fn is_told_from_one_of_the_hosts_that_is_not_sent_yet() {
        // Another processor has said what it wants, and its NMI comes later: it must be waited for, or it would be taken for the guest's.
        let cpus = cpus();
        let cpu = cpus.get(OWN).unwrap();
        cpu.summons
            .fetch_or(Summons::KICK.bits(), Ordering::Relaxed);
        let waiting = AtomicU32::new(1);
        let found = std::thread::scope(|scope| {
            let other = || {
                while cpu.summons.load(Ordering::Acquire) != 0 {
                    core::hint::spin_loop();
                }
                waiting.fetch_add(1, Ordering::Relaxed);
                cpu.sent.fetch_add(1, Ordering::Release);
            };
            scope.spawn(other);
            cpus.answer_nmi(OWN, || waiting.swap(0, Ordering::Relaxed))
        });
        assert_eq!(found, Summons::KICK | Summons::NMI);
        assert_eq!(waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn is_none_when_several_summons_come_at_once() {
        let cpus = cpus();
        cpus.summon(OWN, Summons::KICK);
        let mut waiting = 1;
        let mut rounds = 0;
        let let_in = || {
            rounds += 1;
            if rounds == 2 {
                cpus.summon(OWN, Summons::STATE);
                waiting += 1;
            }
            core::mem::take(&mut waiting)
        };
        let found = cpus.answer_nmi(OWN, let_in);
        assert_eq!(found, Summons::KICK | Summons::STATE);
    }
}
