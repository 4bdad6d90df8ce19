//! The library's own code under loom: two or three threads, every interleaving of their atomic accesses and locks with at most three
//! preemptions, and every value that a load may return under the C11 memory model.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --profile loom -p vmmu --lib loom -- --nocapture
//! ```
//!
//! Each test prints how many executions it explored. `LOOM_MAX_PREEMPTIONS` raises the bound. A test's doc says which mistakes turn it red: each
//! was made once and seen. Most of them are mutants of the list; run one with `--cfg loom --cfg mutant` and VMMU_MUTANT. docs/concurrency.md says which test holds
//! which order of the protocol.
//!
//! | pair | test | proves | executions |
//! |---|---|---|---|
//! | install, reported write (M1) | `install`, `faults` | no stale entry, in table or TLB, when the report returns | 100, 279 |
//! | link, reported write (T13) | `install` | the same of a link | 87 |
//! | fill, reported write (T13) | `fill` | the same of a neighbour that is prefetched | 207 |
//! | install or fill, zap of the table | `install`, `fill` | a dead table holds nothing and is named by no reverse map | 3,985, 1,557 |
//! | link, zap of child or parent (T12, T17) | `install` | nobody links the dead, nor do the dead link | 3,480, 3,958 |
//! | zap of parent, zap of child (T17) | `install` | each page dies once | 50,008 |
//! | zap, reported write | `install` | a report that finds no page any more waits for its flush; the gate closes after it | 8,892 |
//! | removal by frame, install in the slot (T15) | `install` | record, reverse maps, dirty log: the right frame each; never two frames in TLBs | 5,506 |
//! | removal by frame, link in the slot (T16) | `sizes` | never two sizes of one address in TLBs | 1,233 |
//! | make_clean, unsync (T14) | `clean` | the next root load sees what the guest wrote | 156 |
//! | root load that leaves the page unsync, write | `clean` | the next root load sees it, though nobody faulted | 22 |
//! | root load, unsync (T14) | `clean` | the same for a load that had nothing to do | 1,003, 2,486 |
//! | root load, root load | `clean` | neither believes an empty list too early | 1,892, 838 |
//! | make_clean, make_clean (T9) | `clean` | no writer is left to a clean page, in two roles or one | 56,564, 5,744 |
//! | make_clean, install in an empty table | `clean` | the first entry agrees with the table | 3,617 |
//! | make_clean, map its table writable | `tracking` | no entry and no TLB can write a clean page's table | 42 |
//! | unsync, map its table writable (T14) | `tracking` | who may write it finds it listed | 8 |
//! | unsync, link above (T14) | `tracking` | a tree shows what was written before it was reachable | 6 |
//! | invalidation, look-up and install (T5) | `invalidation`, `faults`, `fill` | a frame taken back is not installed, nor prefetched | 1,482, 1,147, 828 |
//! | invalidation, unpaid flush (T8) | `invalidation` | no TLB has the frame, whoever removed the entry | 5,454 |
//! | invalidation, direct fault (T11) | `invalidation` | the same in a subtree that is being linked | 522 |
//! | invalidation, accessed bit (D5) | `marking` | nothing is stored in a frame once it is taken back | 115 |
//! | slot change, look-up and install (L4) | `slots` | nothing maps what the slot has no longer | 3,648, 6,914 |
//! | prune, direct fault | `pruning` | no leaf is installed, and no table linked, in a table that leaves the tree | 2,954, 840 |
//! | prune, invalidation | `pruning` | no TLB has the frame, whoever removed the entry | 60,476 |
//! | prune, prune | `pruning` | each table is given back once | 1,872 |
//! | split, split (T16) | `sizes` | never two sizes of one address in TLBs, direct engine | 11,442 |
//! | split, invalidation | `sizes` | a frame taken back is mapped in neither size | 19,988 |
//! | collapse, prune (T16) | `sizes` | as for a split | 7,631 |
//! | root retirement, guest entry (T10) | `entry` | the processor never walks a freed table | 6,462 |
//! | retirement, walk of a processor | `entry` | the same of a table below the root | 20 |
//! | previous root, zap (T10) | `roots` | a remembered root is not another page by now | 1,903 |
//! | flush, guest entry and exit (T18) | `entry` | no request is missed; the wait ends though the guest is back, or stays outside | 522, 426, 30 |
//! | retirement, reader | `entry` | a call's guard keeps what it found | 2,740 |
//! | gate: create, guest write (G1) | `gate` | one of the two sees the other | 260 |
//! | write in flight, root load or INVLPG of who has seen it | `writing` | no entry is older than what was seen | 78, 78 |
//! | gate: strategies and wrong proposals (G2) | `strategies` | locked and fenced lose nothing, each proposal something | 5 to 40 |
//! | harvest, removal, write through a TLB (D4) | `dirty` | a write is in a harvest | 40,483 |
//! | harvest, write fault (R10) | `marks` | the same of a write that a fault allows | 272 |
//! | processor sets A or D, any change (D1) | `marks` | the bit is in the entry, the write in a harvest | 16 to 53 |
//! | zap in sections, unseen write and root load (5a) | `sections` | no link that is left leads to an older entry | 239 |
//! | zap in sections, the same | `sections` | a page with two parents dies once, and who returns finds it dead | 6,126 |
//! | thin and track, zap | `sections` | nobody dead tracks a frame | 7,070 |
//! | thin and track, map writable | `sections` | nobody may write a clean page's table | 175 |
//! | age, write fault or walk of a processor | `ageing` | the dirty bit is in the entry, the use is told or still to be told | 19, 7 |
//! | age, invalidation and another install (T15) | `ageing` | a use is told of the frame that was used | 48 |
//! | A in a guest table, harvest (D5) | `marks` | a bit is in a harvest | 63 |
//!
//! Sizes under loom: tables of 4 entries, 2 gfn locks, 2 shards of invalidation, chunks of 4 pages, 2 guards besides the vCPU's, 2 tries of a fault;
//! one vCPU with a TLB of one entry, whose kick is immediate unless a test plays the processor itself. The fixture is built before exploration
//! begins, so that what it allocates races with nobody: growth of the pool and of the records is not covered, nor is the choice of what to reclaim.
//!
//! What loom does not see, so that a test here is shown to work by a mutant, not by its count of executions:
//!
//! - Of two stores to one place that nothing orders, either may be the last; a load shows both only while loom explores. After `stop_exploring` only
//!   what locks, joins or exchanges have ordered is looked at.
//! - Of an entry loom remembers the last access alone: a load of one thread is not seen to race with another's exchange if that one has loaded the
//!   entry since. A test of who only loads lets it exchange something.
//! - With a bound on preemptions, which interleavings are tried depends on which thread runs first: who is to be overtaken is not the one that is spawned.
//!
//! What the exploration found in the library: a page without entries passed as derived without its table lock, beside an installer that had read
//! the guest's entry and not stored its own (`a_first_entry_agrees_with_a_page_that_becomes_clean`).
mod ageing;
mod clean;
mod dirty;
mod entry;
mod faults;
mod fill;
mod gate;
mod host;
mod install;
mod invalidation;
mod marking;
mod marks;
mod pruning;
mod roots;
mod sections;
mod sizes;
mod slots;
mod strategies;
mod tracking;
mod world;
mod writing;
