// The mutants: rule, name, the tests that kill it (where, and a filter), and the mistake.
//
// Included by the library, which makes an enum of it, and by the tool that runs them. `Machine` tests are those of the crate vmmu-tests,
// `Unit` tests the library's own, `Loom` tests the library's own under loom.
mutants! {
    // R1: recorded, not recomputed.
    R1 GfnFromPosition Machine "r01::" "a removal takes the frame from the position in the table, not from the record";
    R1 GfnFromGpte Machine "r01::" "a removal reads the guest's entry again to learn which frame it mapped";
    R1 KeepOldRecord Machine "r01::" "a slot that is used again keeps the record of its first mapping";
    R1 KeepReverseMap Machine "r01::a_removal_finds" "a removal by slot leaves the entry in its frame's reverse map";
    R1 NoPresenceBit Machine "r01::" "an installation does not set the presence bit";
    R1 RemoveWithoutLook Machine "r01::" "a removal by slot does not look again under the lock of the frame";
    // R2: guest entries change behind one's back.
    R2 LeafWithoutRecheck Machine "r02::" "a leaf is installed without reading the guest's entry again";
    R2 LinkWithoutRecheck Machine "r02::" "a page is linked without reading the guest's entry again";
    R2 PrefetchWithoutRecheck Machine "r02::" "a neighbour is prefetched without reading its entry again";
    R2 PrefetchBeyondSlot Machine "r02::" "a neighbour is prefetched through the slot at hand, wherever its frame lies";
    R2 WalkReadsTwice Machine "r02::" "a walk remembers one read of an entry and obeys another";
    R2 CopyNotRefreshed Machine "r02::" "the copy of a dense table is not brought up to date";
    R2 DeviceKeepsMapping Machine "r02::" "an access to a device leaves what the slot mapped before";
    // R3: a present entry is never overwritten.
    R3 OverwriteLeaf Machine "r03::" "a leaf is stored over one of another frame";
    R3 OverwriteLink Machine "r03::" "a link is stored over one to another page";
    R3 InstallBeforeFlush Machine "r03::" "a leaf is installed where another's flush is still owed";
    R3 LinkBeforeFlush Machine "r03::" "a link is installed where another's flush is still owed";
    // R4: a child is checked when it is linked, and a role decides a page's content.
    R4 LinkDead Machine "r04::" "a page is linked though it died since it was found";
    R4 LinkUnclean Machine "r04::" "a page is linked though it is not clean";
    R4 FollowAnyLink Machine "r04::" "a link is followed to whatever page it names";
    R4 KeepWrongChild Machine "r04::" "a link stays though the guest's entry leads elsewhere";
    R4 RoleWithoutDirect Machine "r04::" "the page of a split huge page and that of a table share a role";
    R4 RoleWithoutRules Machine "r04::" "pages made under CR0.WP = 0 serve under WP = 1";
    R4 DeadStaysHashed Machine "r04::no_dead_page_is_hashed" "a dead page is found again";
    R4 DeadStaysLinked Machine "r04::" "a dead page keeps its parents";
    // R5: frame records are keyed by gfn, per VM.
    R5 TrackOneSpace Machine "r05::" "only the normal address space honours write tracking";
    R5 RecordsDieWithSlot Machine "r05::" "the records of frames go with their slot";
    R5 LargeOverSlotEdge Machine "r05::" "a large leaf reaches over the edge of its slot";
    R5 RoleWithoutSpace Machine "r05::" "address spaces share their pages";
    R5 UnmapOneSpace Machine "r05::" "nested tables of system-management mode keep frames that were taken back";
    R5 SlotChangeKeepsMappings Machine "r05::" "a slot that is removed or changed stays mapped";
    // R6: nothing writable maps a clean page's gfn, and nothing large its region.
    R6 WriteToTracked Machine "r06::" "a tracked frame is mapped writable";
    R6 WidenToTracked Machine "r06::" "a leaf of a tracked frame gains writing";
    R6 ProtectKeepsWrite Machine "r06::" "a frame becomes tracked, its leaves stay writable";
    R6 ProtectFirstBatch Machine "r06::" "a frame becomes tracked, only its first leaves lose writing";
    R6 ProtectKeepsLarge Machine "r06::" "a frame becomes tracked, a large leaf over it stays";
    R6 LargeOverTable Machine "r06::" "a large leaf is installed over a guest table";
    R6 CountNotLowered Machine "r06::" "the count that forbids large leaves never comes down";
    R6 DeadStaysTracked Machine "r06::" "a frame stays tracked when its pages are gone";
    R6 UnsyncKeepsClean Machine "r06::" "a page that becomes unsync still counts as clean";
    R6 UnsyncOnePage Machine "r06::" "of the pages of a table only one becomes unsync";
    R6 CleanBeforeFlush Machine "r06::" "a page is derived while TLBs may still write its table";
    // R7: a flush owed is a value.
    R7 DropFlush Machine "r07::" "a debt is forgotten";
    R7 RemoveOwesNothing Machine "r07::" "a removal owes no flush";
    R7 NarrowOwesNothing Machine "r07::" "an entry loses rights, and no flush is owed";
    R7 LowerBeforeFlush Machine "r07::" "flush_pending is lowered before the flush";
    R7 PromiseForOwnDebt Machine "r07::" "who promises looks at the own debt only";
    R7 KickWithoutWait Machine "r07::" "a flush does not wait for the processors that it kicked";
    R7 WaitForMode Machine "r07::" "a flush waits for a state instead of a change";
    R7 NoRequest Machine "r07::" "a flush kicks processors without a request";
    R7 RequestUnserved Machine "r07::" "a processor forgets that its flush was requested";
    R7 Cr3KeepsTlb Machine "r07::" "a load of CR3 keeps the TLB";
    R7 InvlpgKeepsTlb Machine "r07::" "INVLPG keeps the TLB";
    // R8: free after flush, after readers, after CR3.
    R8 FreeBeforeFlush Machine "r08::" "a zapped page's table is freed before the flush";
    R8 FreeWithoutGrace Machine "r08::" "a zapped page's table is freed without a grace period";
    R8 GuardsIgnored Machine "r08::" "a grace period ends while a call that began before it runs";
    R8 ReferencesIgnored Machine "r08::" "a root's table is freed while a processor has it loaded";
    R8 ReclaimRoots Machine "r08::" "reclaim takes roots that are loaded";
    R8 ZapKeepsEntries Machine "r08::" "a page dies with its entries in place";
    R8 PruneKeepsLink Machine "r08::" "a nested table is given back with the link to it in place";
    R8 PruneLinks Machine "r08::" "a nested table is given back with tables below it";
    R8 InstallInPruned Loom "a_pruned_table_takes_no_leaf" "a leaf is installed in a nested table that is being given back";
    // R9: rights only narrow.
    R9 RoleWithoutRights Machine "r09::" "two parents with different rights share a page";
    R9 WidenTradesRights Machine "r09::" "a kernel-only writable entry and a user's are merged";
    R9 KeepUser Machine "r09::" "sync leaves a leaf to users that the guest took from them";
    R9 KeepWrite Machine "r09::" "sync leaves a leaf writable that the guest made read-only";
    R9 KeepExecute Machine "r09::" "sync leaves a leaf executable that the guest made NX";
    R9 ReadOnlySlotWritable Machine "r09::" "a read-only slot is mapped writable";
    R9 NestedReadOnlyWritable Machine "r09::" "a read-only slot is mapped writable in nested tables";
    R9 HostRightsIgnored Machine "r09::" "a frame that the host shares is mapped writable";
    R9 PrefetchIgnoresSlot Machine "r09::" "a prefetched leaf is writable in a read-only slot";
    R9 KernelWriteForUser Machine "r09::" "a kernel's write under CR0.WP = 0 lets users write";
    R9 KernelWriteExecutes Machine "r09::" "a kernel's write under CR0.WP = 0 and SMEP lets the kernel execute a user's page";
    // R10: a dirty bit is never lost.
    R10 WritableUnmarked Machine "r10::" "a leaf becomes writable without a mark in the log";
    R10 HarvestKeepsWrite Machine "r10::" "a harvest leaves the frames writable that it takes from the log";
    R10 NestedHarvestKeepsWrite Machine "r10::" "a harvest leaves nested leaves writable";
    R10 HarvestTakesMore Machine "r10::" "a harvest takes the marks of a neighbouring slot";
    R10 WidenBlindly Machine "r10::" "an entry gains rights by a plain store, not by compare-exchange";
    R10 NestedUnmarked Machine "r10::" "a nested leaf becomes writable without a mark in the log";
    // R11: errors leave no trace.
    R11 StoreBeforeRoom Machine "r11::" "an entry is stored before there is room in the reverse map";
    R11 LeakPage Machine "r11::" "a page is lost when no table can be allocated for it";
    R11 BoundIgnored Unit "bookkeeping_stays_small" "reverse maps take memory beyond the bound";
    R11 ListHalf Machine "r11::" "the list of unsync pages takes some pages and refuses the others";
    // R12: the gate.
    R12 GateUncounted Machine "r12::" "a page is not counted by the gate";
    R12 GateClosesEarly Machine "r12::" "the gate closes before the page is emptied and flushed";
    R12 GateNeverCloses Machine "r12::" "the gate stays open when the last page is gone";
    // R13: the guest's accessed and dirty bits are guest memory.
    R13 MarkWhileTakenBack Machine "r13::" "A and D are stored in a frame that is being taken back";
    R13 MarksNotWaitedFor Loom "no_bit_is_stored_in_a_frame_once_it_is_taken_back" "a frame is taken back while A and D are being stored in it";
    R13 MarkReadOnlySlot Machine "r13::" "A and D are stored in read-only memory";
    R13 MarkNotLogged Machine "r13::" "a table's frame is not logged when A and D are stored in it";
    R13 FirstReadWritable Machine "r13::" "a read maps a page writable whose D bit is clear";
    R13 WriteBeforeDirty Machine "r13::" "a neighbour is mapped writable whose D bit is clear";
    R13 RoleWithoutDirty Machine "r13::" "under CR0.WP = 0 a page that splits a dirty huge page serves one that is not dirty";
    R13 PrefetchUnaccessed Machine "r13::" "a neighbour is mapped whose A bit is clear";
    R13 KeepUnaccessed Machine "r13::" "sync keeps an entry whose A bit the guest cleared";
    // The protocol between processors.
    P BusyIgnored Machine "protocol::" "a frame is mapped while it is being taken back";
    P SequenceIgnored Machine "protocol::" "a frame is mapped that was taken back since it was looked up";
    P EndLowersFirst Loom "a_frame_taken_back_is_not_installed" "the end of an invalidation lowers its flag before it raises the sequence";
    P BusyAfterWalk Machine "protocol::" "an invalidation raises its flag after its walk";
    P SnapshotAfterLookup Machine "protocol::" "the snapshot is taken after the look-up";
    P UnmapKeepsLarge Machine "protocol::" "an invalidation leaves large leaves";
    P NestedWithoutCheck Machine "protocol::" "a nested leaf is installed without a look at the sequence";
    P InvlpgOnlyFlushes Machine "protocol::" "INVLPG flushes the TLB and leaves the entry";
    P InvlpgTrusts Machine "protocol::" "INVLPG relies on an empty list of unsync pages without looking";
    P CleanWithoutDerive Machine "protocol::" "a page becomes clean without being compared with its table";
    P CleanThoughUnsynced Machine "protocol::" "a page becomes clean though it became unsync meanwhile";
    P UnlistBeforeClean Machine "protocol::" "a page leaves the list before it is clean";
    P EpochNotRaised Machine "protocol::" "an unsync does not raise the epoch";
    P EpochBeforeList Loom "an_unsync_during_a_root_load_is_not_lost" "an unsync raises the epoch before it lists its pages";
    P EpochThoughUnsync Machine "protocol::" "a root load that left a page unsync claims that the next one has nothing to do";
    P EpochReadLate Machine "protocol::" "a root load takes the epoch after the list";
    P LinkBelowUncleanRoot Machine "protocol::" "a tree is linked below a root that is not as clean as the epoch";
    P KeepFrame Machine "protocol::" "sync keeps a leaf whose frame the guest changed";
    P ReportFirstEntry Machine "protocol::" "of the entries that a write covers the first is looked at";
    P ReportFirstBatch Machine "protocol::" "of a table's many pages a report visits the first few";
    P MeetNobody Unit "a_write_in_flight" "nobody looks at the writes that are announced";
    P ReloadMeetsNobody Unit "a_write_in_flight" "the load of a root at hand does not look at writes in flight";
    P LoadMeetsNobody Unit "a_write_in_flight" "a root load that has work to do leaves writes in flight alone";
    P InvlpgMeetsNobody Unit "a_write_in_flight" "INVLPG does not look at writes in flight";
    P FaultMeetsNobody Unit "a_write_in_flight" "a page fault that the guest sees leaves what a write in flight has changed";
    P LinkMeetsNobody Unit "a_write_in_flight" "a table becomes reachable without what a write in flight has changed";
    P DropUnreported Unit "a_write_in_flight" "a write that was announced is not reported";
    // The same, where only loom reaches in between.
    P AnnounceUnfenced Loom "who_sees_a_write_loads_no_older_root" "no Release between the announcement of a write and the write";
    P MeetUnfenced Loom "who_sees_a_write_loads_no_older_root" "no Acquire between what the guest has read and the look at announcements";
    P WithdrawBeforeReport Loom "who_sees_a_write_loads_no_older_root" "the announcement is taken back before the report";
    P RecheckIgnoresAd Loom "a_reported_write_that_clears_a_and_d_leaves_no_entry" "an entry is installed though the guest has cleared A or D since";
    P RecheckBeforeLock Loom "a_reported_write_leaves_no_stale_entry" "an installation reads the guest's entry again before it takes the table's lock";
    P InstallInDead Loom "nothing_is_installed_in_a_dead_table" "a leaf is installed in a page that died";
    P LinkFromDead Loom "a_dead_parent_links_nothing" "a page that died links another";
    P DieLinked Loom "who_walks_through_a_link_that_is_left_finds_no_older_entry" "a page with many parents dies first and loses them after";
    P TrackUnlooked Loom "a_frame_is_tracked_by_nobody_dead" "who has thinned a frame protects it without a second look at the page";
    P LinkLeaving Unit "a_page_that_leaves" "a page that is losing its parents is linked again";
    P LinkCheckedEarly Loom "a_dead_child_is_not_linked" "a child is checked before its lock is taken";
    P KillInTwoSections Loom "two_zaps_meet" "a page is found alive and ended in two sections";
    P OweAfterExchange Loom "an_unpaid_flush_is_waited_for" "a removal announces its flush after the entry has gone";
    P FillWithoutCheck Loom "a_frame_taken_back_is_not_prefetched" "a neighbour is prefetched without a look at the sequence";
    P FillDead Loom "nothing_is_prefetched_into_a_dead_table" "a neighbour is prefetched into a page that died";
    P SlotChangeUnseen Loom "a_removed_slot_is_not_mapped" "neither the sequence nor the slots' generation tells of a slot that changes";
    P UnmapUnlocked Loom "a_new_subtree_has_no_frame_taken_back" "an invalidation looks into nested tables without their locks";
    P EndUnlocked Loom "a_pruned_table_links_nothing" "a nested table's life ends without its lock";
    P PruneOwesLate Loom "a_frame_taken_back_is_not_left_in_a_pruned_table" "pruning announces its flush after the link has gone";
    P SplitBeforeFlush Loom "a_small_leaf_waits_for_the_flush_of_the_large_one" "small leaves replace a large one whose flush is owed";
    P CollapseBeforeFlush Loom "a_large_leaf_waits_for_the_flush_of_the_small_ones" "a large leaf replaces small ones whose flush is owed";
    P EmptyPassesUnlocked Loom "a_first_entry_agrees_with_a_page_that_becomes_clean" "a page without entries counts as derived, without its lock";
    P TrackInTwoSections Loom "a_table_that_is_tracked_is_mapped_writable_by_nobody" "a frame's leaves lose writing in one section, and it becomes tracked in another";
    P UntrackFirst Loom "who_maps_an_unsync_table_writable_sees_it_listed" "a frame is no longer tracked before its pages are unsync";
    P CleanAtRelaxed Loom "two_root_loads_meet_at_an_unsync_page" "the epoch of a root is stored without Release";
    P CreatorUnfenced Loom "a_write_and_a_new_page_do_not_miss_each_other" "no barrier between the gate's count and the re-read";
    P WriterUnfenced Loom "a_write_and_a_new_page_do_not_miss_each_other" "no barrier between a guest's write and the gate's count";
    P EntryUnfenced Loom "a_flush_during_entry_is_not_missed" "no barrier between the announcement of an entry and the look at requests";
    P RequestUnfenced Loom "a_flush_during_entry_is_not_missed" "no barrier between a request and the look at who is inside";
    P ModeBeforeExits Loom "a_flush_does_not_wait_for_a_guest_that_has_left" "a flush reads the mode before the count of exits";
    P ExitsBeforeMode Loom "a_flush_does_not_wait_for_a_guest_that_has_left" "an exit is counted before the mode tells of it";
    P ExitsRelaxed Loom "a_flush_does_not_wait_for_a_guest_that_has_left" "an exit is counted without Release";
    P ServeInside Loom "a_root_in_use_is_not_freed" "requests are served while the processor counts as inside";
    P GuardUnfenced Loom "a_reader_keeps_what_it_found" "no barrier between the announcement of a call and its first look";
    P SwitchUnguarded Loom "a_previous_root_is_not_taken_for_another_page" "a remembered root is chosen without a guard";
    P BusyTestedEarly Loom "no_bit_is_stored_in_a_frame_once_it_is_taken_back" "A and D are stored after a look at the invalidation from before the announcement";
    P MarkUnfenced Loom "no_bit_is_stored_in_a_frame_once_it_is_taken_back" "no barrier between the announcement of A and D and the look at the invalidation";
    P MarkWaitUnfenced Loom "no_bit_is_stored_in_a_frame_once_it_is_taken_back" "no barrier between the begin of an invalidation and the look at announcements";
    P MarkInTwoSections Loom "a_bit_that_is_set_is_in_a_harvest" "a table's frame is logged in one section, and A and D are stored in another";
    P HarvestWriteFirst Loom "a_write_that_a_fault_allows_is_in_a_harvest" "a harvest takes WRITE in one section, and the marks in another";
    P NarrowBlindly Loom "no_bit_that_the_processor_sets_is_lost" "an entry loses rights by a plain store, not by compare-exchange";
    P AgeBlindly Loom "a_bit_that_the_processor_sets_is_kept_while_its_frame_is_aged" "ageing stores the entry without the accessed bit, not by compare-exchange";
    P AgeUnlocked Loom "a_use_is_told_of_the_frame_that_was_used" "ageing looks at an entry after the lock under which it was found";
}
