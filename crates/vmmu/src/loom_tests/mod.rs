//! The library's own code under loom: two or three threads, every interleaving of their atomic accesses and locks with at most three
//! preemptions, and every value that a load may return under the C11 memory model.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --profile loom -p vmmu --lib loom -- --nocapture
//! ```
//!
//! Each test prints how many executions it explored. `LOOM_MAX_PREEMPTIONS` raises the bound. A test's doc says which mistakes turn it red: each
//! was made once and seen. Most of them are mutants of the list; run one with `--cfg loom --cfg mutant` and VMMU_MUTANT.
//!
//! | pair | test | proves | executions |
//! |---|---|---|---|
//! | install, reported write (M1) | `install`, `faults` | no stale entry, in table or TLB, when the report returns | 100, 291 |
//! | link, reported write (T13) | `install` | the same of a link | 87 |
//! | install, zap of the table | `install` | a dead table holds nothing and is named by no reverse map | 3,985 |
//! | link, zap of child or parent (T12, T17) | `install` | nobody links the dead, nor do the dead link | 3,310, 3,958 |
//! | zap of parent, zap of child (T17) | `install` | each page dies once | 48,486 |
//! | zap, reported write | `install` | a report that finds no page any more waits for its flush; the gate closes after it | 8,590 |
//! | removal by frame, install in the slot (T15) | `install` | record, reverse maps, dirty log: the right frame each; never two frames in TLBs | 5,256 |
//! | make_clean, unsync (T14) | `clean` | the next root load sees what the guest wrote | 182 |
//! | root load that leaves the page unsync, write | `clean` | the next root load sees it, though nobody faulted | 48 |
//! | root load, unsync (T14) | `clean` | the same for a load that had nothing to do | 475, 281 |
//! | root load, root load | `clean` | neither believes an empty list too early | 1,828, 1,030 |
//! | make_clean, make_clean (T9) | `clean` | no writer is left to a clean page, in two roles or one | 48,493, 8,260 |
//! | make_clean, install in an empty table | `clean` | the first entry agrees with the table | 5,913 |
//! | invalidation, look-up and install (T5) | `invalidation`, `faults` | a frame taken back is not installed | 1,482, 1,147 |
//! | invalidation, unpaid flush (T8) | `invalidation` | no TLB has the frame, whoever removed the entry | 5,235 |
//! | invalidation, direct fault (T11) | `invalidation` | the same in a subtree that is being linked | 522 |
//! | invalidation, accessed bit (D5) | `marking` | nothing is stored in a frame once it is taken back | 115 |
//! | prune, direct fault | `pruning` | no leaf is installed in a table that leaves the tree | 3,416 |
//! | prune, invalidation | `pruning` | no TLB has the frame, whoever removed the entry | 59,516 |
//! | prune, prune | `pruning` | each table is given back once | 1,872 |
//! | root retirement, guest entry (T10) | `entry` | the processor never walks a freed table | 8,424 |
//! | flush, guest entry (T18) | `entry` | no request is missed; the wait ends though the guest is back | 489, 426 |
//! | retirement, reader | `entry` | a call's guard keeps what it found | 3,333 |
//! | gate: create, guest write (G1) | `gate` | one of the two sees the other | 260 |
//! | gate: strategies and wrong proposals (G2) | `strategies` | locked and fenced lose nothing, each proposal something | 5 to 40 |
//! | harvest, removal, write through a TLB (D4) | `dirty` | a write is in a harvest | 39,681 |
//!
//! Sizes under loom: tables of 4 entries, 2 gfn locks, 2 shards of invalidation, chunks of 4 pages, 2 guards besides the vCPU's, 2 tries of a fault;
//! one vCPU with a TLB of one entry, whose kick is immediate unless a test plays the processor itself. The fixture is built before exploration
//! begins, so that what it allocates races with nobody: growth of the pool and of the records is not covered, nor are large leaves,
//! prefetch, the choice of what to reclaim, and slot changes.
//!
//! What the exploration found in the library: a page without entries passed as derived without its table lock, beside an installer that had read
//! the guest's entry and not stored its own (`a_first_entry_agrees_with_a_page_that_becomes_clean`).
mod clean;
mod dirty;
mod entry;
mod faults;
mod gate;
mod host;
mod install;
mod invalidation;
mod marking;
mod pruning;
mod strategies;
mod world;
