//! A scheme as programs: the threads of creators, the guest's write and a destroyer.
//!
//! Key type: [`Setting`] (who takes part).
//!
//! The guest's entry holds [`OLD`] and the write makes it [`NEW`]. A creator walks the guest's tables (reads the entry), counts, hashes its page, and under the
//! page's lock reads the entry again and publishes it if it is unchanged. The write side stores, reads the count, and if that is not zero looks for hashed pages under the
//! frame's lock and, under each page's lock, removes an entry that is out of date. Each creator has a page of its own; the destroyer's page exists from the start.

use crate::machine::{Cell, LockKind, Op, Register, Test, Value};
use crate::program::{Program, Shadow, Thread};
use crate::scheme::{Barrier, Destroy, Heavy, Increment, LookUp, Reread, Scheme, WriteSide};

/// What the guest's entry holds at first.
const OLD: u8 = 1;
/// What the write makes of it.
const NEW: u8 = 2;
/// A heavy barrier has completed since the count left zero.
pub(crate) const ARMED: u8 = 0x80;

const GUEST: Cell = Cell(0);
const WORD: Cell = Cell(1);
const FRAME_LOCK: Cell = Cell(2);
const GATE_LOCK: Cell = Cell(3);
/// Of pages 0 and 1 (the creators') and 2 (the destroyer's): its lock, its place in the hash, its entry.
const PAGE_LOCKS: [Cell; 3] = [Cell(4), Cell(5), Cell(6)];
const HASHED: [Cell; 3] = [Cell(7), Cell(8), Cell(9)];
const ENTRIES: [Cell; 3] = [Cell(10), Cell(11), Cell(12)];
/// The destroyer's page.
const OLD_PAGE: usize = 2;

const NAMES: [(Cell, &str); 13] = [
    (GUEST, "guest entry"),
    (WORD, "word"),
    (FRAME_LOCK, "frame lock"),
    (GATE_LOCK, "gate lock"),
    (PAGE_LOCKS[0], "lock of page 1"),
    (PAGE_LOCKS[1], "lock of page 2"),
    (PAGE_LOCKS[2], "lock of the old page"),
    (HASHED[0], "page 1 hashed"),
    (HASHED[1], "page 2 hashed"),
    (HASHED[2], "old page hashed"),
    (ENTRIES[0], "entry of page 1"),
    (ENTRIES[1], "entry of page 2"),
    (ENTRIES[2], "entry of the old page"),
];

const WALKED: Register = Register(0);
const AGAIN: Register = Register(1);
const COUNT: Register = Register(2);
const SEEN: Register = Register(3);

/// Who takes part beside the guest's write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Setting {
    /// One creator; the count is zero at first (scenario G1).
    Creator,
    /// Two creators (scenario G5).
    Creators,
    /// A page exists and goes while another is made: 1 to 0 to 1, or 1 to 2 to 1 (scenarios G4 and G6).
    Turnover,
    /// The same with two creators.
    CreatorsAndTurnover,
}

impl Setting {
    const fn creators(self) -> u8 {
        match self {
            Self::Creator | Self::Turnover => 1,
            Self::Creators | Self::CreatorsAndTurnover => 2,
        }
    }

    const fn has_old_page(self) -> bool {
        matches!(self, Self::Turnover | Self::CreatorsAndTurnover)
    }

    /// Returns the program of a scheme.
    #[must_use]
    pub fn program(self, scheme: &Scheme) -> Program {
        let creators = self.creators();
        let threads = creators + 1 + u8::from(self.has_old_page());
        let mut program = Program {
            start: vec![(GUEST, OLD)],
            threads: (0..creators)
                .map(|number| creator(scheme, number, threads))
                .collect(),
            guest: GUEST,
            shadows: pages(self)
                .map(|page| Shadow {
                    entry: ENTRIES[page],
                    hashed: HASHED[page],
                })
                .collect(),
            writer: usize::from(creators),
            names: NAMES.to_vec(),
        };
        program.threads.push(writer(scheme, self));
        if self.has_old_page() {
            let armed = if scheme.heavy == Heavy::None {
                0
            } else {
                ARMED
            };
            program.start.extend([
                (WORD, 1 | armed),
                (HASHED[OLD_PAGE], 1),
                (ENTRIES[OLD_PAGE], OLD),
            ]);
            program.threads.push(destroyer(scheme));
        }
        program
    }
}

/// Returns the pages that there may be.
fn pages(setting: Setting) -> impl Iterator<Item = usize> {
    let creators = usize::from(setting.creators());
    (0..3).filter(move |page| *page < creators || *page == OLD_PAGE && setting.has_old_page())
}

/// Locks that are there for other reasons than the gate: see [`LockKind`].
const fn locks(scheme: &Scheme) -> LockKind {
    match scheme.increment {
        Increment::Plain => LockKind::Silent,
        Increment::Atomic | Increment::AtomicLate | Increment::Locked => LockKind::Fencing,
    }
}

fn creator(scheme: &Scheme, number: u8, threads: u8) -> Thread {
    let mut thread = Thread::new(["creator 1", "creator 2"][usize::from(number)]);
    let page = usize::from(number);
    let kind = locks(scheme);
    thread.op(Op::Load(WALKED, GUEST));
    if scheme.reread == Reread::BeforeIncrement {
        thread.op(Op::Load(AGAIN, GUEST));
    }
    if scheme.barrier == Barrier::BeforeIncrement {
        thread.op(Op::Fence);
    }
    if scheme.heavy == Heavy::BeforeIncrement {
        heavy(&mut thread, number, threads);
    }
    let is_late = scheme.increment == Increment::AtomicLate;
    if !is_late {
        enter(scheme, &mut thread, number, threads);
    }
    thread.op(Op::Lock(FRAME_LOCK, kind));
    thread.op(Op::Store(HASHED[page], Value::Constant(1)));
    thread.op(Op::Unlock(FRAME_LOCK));
    if is_late {
        enter(scheme, &mut thread, number, threads);
    }
    thread.op(Op::Lock(PAGE_LOCKS[page], kind));
    if scheme.reread == Reread::AfterIncrement {
        thread.op(Op::Load(AGAIN, GUEST));
    }
    let changed = thread.branch(Test::Differ(WALKED, AGAIN));
    thread.op(Op::Store(ENTRIES[page], Value::Register(AGAIN)));
    thread.land(changed);
    thread.op(Op::Unlock(PAGE_LOCKS[page]));
    thread
}

/// A creator's way through the gate.
fn enter(scheme: &Scheme, thread: &mut Thread, number: u8, threads: u8) {
    count(scheme, thread);
    if scheme.barrier == Barrier::AfterIncrement {
        thread.op(Op::Fence);
    }
    arm(scheme, thread, number, threads);
}

fn count(scheme: &Scheme, thread: &mut Thread) {
    let plain = |thread: &mut Thread| {
        thread.op(Op::Load(COUNT, WORD));
        thread.op(Op::Store(WORD, Value::Sum(COUNT, 1)));
    };
    match scheme.increment {
        Increment::Plain => plain(thread),
        Increment::Atomic | Increment::AtomicLate => thread.op(Op::FetchAdd(COUNT, WORD, 1)),
        Increment::Locked => {
            thread.op(Op::Lock(GATE_LOCK, LockKind::Fencing));
            plain(thread);
            thread.op(Op::Unlock(GATE_LOCK));
        }
    }
}

/// The heavy barrier and the bit that says it has completed.
fn arm(scheme: &Scheme, thread: &mut Thread, own: u8, threads: u8) {
    let set = Op::FetchOr(WORD, ARMED);
    let skip = match scheme.heavy {
        Heavy::None => return,
        Heavy::BeforeIncrement => return thread.op(set),
        Heavy::UntilArmed | Heavy::ArmedTooEarly => thread.branch(Test::NotZero(COUNT, ARMED)),
        Heavy::OnlyFromZero => thread.branch(Test::NotZero(COUNT, 0xff)),
    };
    if scheme.heavy == Heavy::ArmedTooEarly {
        thread.op(set);
        heavy(thread, own, threads);
    } else {
        heavy(thread, own, threads);
        thread.op(set);
    }
    thread.land(skip);
}

fn heavy(thread: &mut Thread, own: u8, threads: u8) {
    let others = (0..threads).filter(|other| *other != own);
    others.for_each(|other| thread.op(Op::Drain(other)));
}

fn writer(scheme: &Scheme, setting: Setting) -> Thread {
    let mut thread = Thread::new("guest write");
    thread.op(Op::Store(GUEST, Value::Constant(NEW)));
    match scheme.write {
        WriteSide::Light | WriteSide::LightUnlessIdle => {}
        WriteSide::Fence => thread.op(Op::Fence),
        WriteSide::Lock => thread.op(Op::Lock(GATE_LOCK, LockKind::Fencing)),
    }
    thread.op(Op::Load(COUNT, WORD));
    if scheme.write == WriteSide::Lock {
        thread.op(Op::Unlock(GATE_LOCK));
    }
    let closed = (scheme.write == WriteSide::LightUnlessIdle).then(|| look_when_idle(&mut thread));
    let no_page = thread.branch(Test::Zero(COUNT, !ARMED));
    for page in pages(setting) {
        report(scheme, &mut thread, page);
    }
    closed.into_iter().for_each(|branch| thread.land(branch));
    thread.land(no_page);
    thread
}

/// If the word is ARMED without a page, the write side fences and reads again, and closes the gate (the library after some patience,
/// here at once). Returns the branch that is taken when the gate is closed.
fn look_when_idle(thread: &mut Thread) -> usize {
    let closed = thread.branch(Test::Zero(COUNT, 0xff));
    let has_pages = thread.branch(Test::NotZero(COUNT, !ARMED));
    thread.op(Op::Fence);
    thread.op(Op::Load(COUNT, WORD));
    thread.op(Op::CompareExchange(WORD, ARMED, 0));
    thread.land(has_pages);
    closed
}

/// The write side's work on one page.
fn report(scheme: &Scheme, thread: &mut Thread, page: usize) {
    let kind = locks(scheme);
    if scheme.look_up == LookUp::Locked {
        thread.op(Op::Lock(FRAME_LOCK, kind));
    }
    thread.op(Op::Load(SEEN, HASHED[page]));
    if scheme.look_up == LookUp::Locked {
        thread.op(Op::Unlock(FRAME_LOCK));
    }
    let absent = thread.branch(Test::Zero(SEEN, 0xff));
    thread.op(Op::Lock(PAGE_LOCKS[page], kind));
    thread.op(Op::Load(SEEN, ENTRIES[page]));
    let fresh = thread.branch(Test::Zero(SEEN, OLD));
    thread.op(Op::Store(ENTRIES[page], Value::Constant(0)));
    thread.land(fresh);
    thread.op(Op::Unlock(PAGE_LOCKS[page]));
    thread.land(absent);
}

fn destroyer(scheme: &Scheme) -> Thread {
    let mut thread = Thread::new("destroyer");
    let kind = locks(scheme);
    let lower = Op::TakeLast {
        cell: WORD,
        beside: ARMED,
    };
    if scheme.destroy == Destroy::CountFirst {
        thread.op(lower);
    }
    thread.op(Op::Lock(FRAME_LOCK, kind));
    thread.op(Op::Store(HASHED[OLD_PAGE], Value::Constant(0)));
    thread.op(Op::Unlock(FRAME_LOCK));
    thread.op(Op::Lock(PAGE_LOCKS[OLD_PAGE], kind));
    thread.op(Op::Store(ENTRIES[OLD_PAGE], Value::Constant(0)));
    thread.op(Op::Unlock(PAGE_LOCKS[OLD_PAGE]));
    match scheme.destroy {
        Destroy::CountFirst => {}
        Destroy::OneStep => lowered(scheme, &mut thread, lower),
        Destroy::KeepsArmed => thread.op(Op::FetchAdd(COUNT, WORD, u8::MAX)),
        Destroy::Lingers => {
            thread.op(Op::FetchAdd(COUNT, WORD, u8::MAX));
            // In the name of another guest write that finds no page.
            thread.op(Op::CompareExchange(WORD, ARMED, 0));
        }
        Destroy::ClearsApart => {
            thread.op(Op::FetchAdd(COUNT, WORD, u8::MAX));
            let not_last = thread.branch(Test::NotZero(COUNT, !ARMED & !1));
            thread.op(Op::FetchAnd(WORD, !ARMED));
            thread.land(not_last);
        }
    }
    thread
}

fn lowered(scheme: &Scheme, thread: &mut Thread, lower: Op) {
    if scheme.increment == Increment::Locked {
        thread.op(Op::Lock(GATE_LOCK, LockKind::Fencing));
        thread.op(Op::Load(COUNT, WORD));
        thread.op(Op::Store(WORD, Value::Sum(COUNT, u8::MAX)));
        thread.op(Op::Unlock(GATE_LOCK));
    } else {
        thread.op(lower);
    }
}
