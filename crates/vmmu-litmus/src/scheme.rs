//! Strategies and mistakes as data: what a creator, a guest write and a destroyer do, point by point.
//!
//! Key type: [`Scheme`].

/// How the count is raised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Increment {
    /// By a load and a store, and the MMU's locks nearby empty no store buffer: what a C program's `count++` promises.
    Plain,
    /// By a locked instruction, among locks as x86 has them.
    Atomic,
    /// By a locked instruction after the page is hashed and write-protected, still before the entry is read again.
    AtomicLate,
    /// By a load and a store while a lock is held that the write side takes too.
    Locked,
}

/// Where a creator's full barrier stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Barrier {
    /// There is none.
    None,
    /// Before the count is raised.
    BeforeIncrement,
    /// Between raising the count and reading the guest's entry again.
    AfterIncrement,
}

/// When a creator reads the guest's entry for the last time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reread {
    /// After it has counted.
    AfterIncrement,
    /// Before.
    BeforeIncrement,
}

/// What a creator does about a heavy barrier.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heavy {
    /// It knows none.
    None,
    /// Unless the word says ARMED it issues one, then says ARMED.
    UntilArmed,
    /// The same, but a creator that finds the count above zero relies on the one before it.
    OnlyFromZero,
    /// The same as [`Heavy::UntilArmed`], but ARMED is said first.
    ArmedTooEarly,
    /// It issues one before it counts, then counts and says ARMED.
    BeforeIncrement,
}

/// What the write side does between its store and reading the count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteSide {
    /// Nothing, or what binds the compiler alone. Under x86-TSO a write barrier with a read barrier is no more.
    Light,
    /// Nothing at first. If it then finds no page but ARMED, a full barrier, and it reads once more.
    LightUnlessIdle,
    /// A full barrier.
    Fence,
    /// It takes the lock under which the count is raised.
    Lock,
}

/// How the write side looks for pages once the count is not zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LookUp {
    /// Under the frame's lock.
    Locked,
    /// At the hash first, without the lock.
    Unlocked,
}

/// How a destroyer lowers the count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Destroy {
    /// After the entries are gone, in one step that clears ARMED with the last page.
    OneStep,
    /// ARMED stays when the last page goes, for good.
    KeepsArmed,
    /// ARMED stays when the last page goes; later writes that find no page clear it, by one compare-exchange of the whole word.
    Lingers,
    /// ARMED is cleared by a step of its own.
    ClearsApart,
    /// The count drops before the page is unhashed and emptied.
    CountFirst,
}

/// An answer to the question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scheme {
    /// How the count is raised.
    pub increment: Increment,
    /// A creator's full barrier.
    pub barrier: Barrier,
    /// A creator's last look at the guest's entry.
    pub reread: Reread,
    /// A creator's heavy barrier.
    pub heavy: Heavy,
    /// The write side.
    pub write: WriteSide,
    /// The write side's look at the hash.
    pub look_up: LookUp,
    /// The destroyer.
    pub destroy: Destroy,
}

impl Scheme {
    /// Both sides a full barrier.
    pub const FENCED: Self = Self {
        increment: Increment::Atomic,
        barrier: Barrier::AfterIncrement,
        reread: Reread::AfterIncrement,
        heavy: Heavy::None,
        write: WriteSide::Fence,
        look_up: LookUp::Locked,
        destroy: Destroy::OneStep,
    };
    /// The opening of the gate pays a heavy barrier, a write none; ARMED goes with the last page.
    pub const ABRUPT: Self = Self {
        heavy: Heavy::UntilArmed,
        write: WriteSide::Light,
        ..Self::FENCED
    };
    /// The same, but ARMED outlives the last page for a while, in which writes fence: what the library does.
    pub const ASYMMETRIC: Self = Self {
        write: WriteSide::LightUnlessIdle,
        destroy: Destroy::Lingers,
        ..Self::ABRUPT
    };
    /// Both sides take a lock.
    pub const LOCKED: Self = Self {
        increment: Increment::Locked,
        barrier: Barrier::None,
        write: WriteSide::Lock,
        ..Self::FENCED
    };

    /// The same with a plain increment.
    #[must_use]
    pub const fn plain(self) -> Self {
        Self {
            increment: Increment::Plain,
            ..self
        }
    }
}
