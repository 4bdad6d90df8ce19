//! Guests of a few instructions, in both paging modes and all natures.

mod common;

use core::num::{NonZeroU8, NonZeroU64};
use core::time::Duration;

use common::{CODE, long_mode, multiboot};
use vmmu_machine::machine::{End, Machine, Nature, NestedTables, Paging, Record};

const NATURES: [Nature; 3] = [Nature::Plain, Nature::Hostile, Nature::Deterministic];

fn run(code: &[u8], paging: Paging, nature: Nature) -> Record {
    Machine::new(multiboot(code))
        .memory(4 << 20)
        .paging(paging)
        .nature(nature)
        .audit(NonZeroU64::MIN)
        .timeout(Duration::from_secs(60))
        .run()
        .expect("a machine")
}

/// On extended page tables.
fn run_on_ept(code: &[u8], nature: Nature) -> Record {
    Machine::new(multiboot(code))
        .memory(4 << 20)
        .paging(Paging::Nested)
        .nested_tables(NestedTables::Ept)
        .nature(nature)
        .check()
        .reclaim()
        .timeout(Duration::from_secs(60))
        .run()
        .expect("a machine")
}

fn everywhere(code: &[u8], check: impl Fn(&Record)) {
    for paging in [Paging::Shadow, Paging::Nested] {
        for nature in NATURES {
            println!("{paging:?} {nature:?}");
            check(&run(code, paging, nature));
        }
    }
    for nature in NATURES {
        println!("extended page tables, {nature:?}");
        check(&run_on_ept(code, nature));
    }
}

#[test]
fn a_guest_without_paging_ends_with_its_own_value() {
    // mov eax, 42; out 0xf4, eax
    everywhere(&[0xb8, 42, 0, 0, 0, 0xe7, 0xf4], |record| {
        assert_eq!(record.end, End::Exit(42))
    });
}

#[test]
fn init_to_the_bootstrap_processor_is_a_reset() {
    let code = [
        0xc7, 0x05, 0x10, 0x03, 0xe0, 0xfe, 0, 0, 0, 0, // mov dword [fee00310h], 0: to itself
        0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe, 0, 0x45, 0, 0, // mov dword [fee00300h], INIT
        0xeb, 0xfe, // jmp here
    ];
    everywhere(&code, |record| assert_eq!(record.end, End::Reset));
}

#[test]
fn cr8_reads_what_was_written_to_the_local_apic() {
    let code = [
        0xc7, 0x04, 0x25, 0x18, 0x20, 0, 0, 0x83, 0, 0, 0xc0, // mov dword [2018h], c0000083h
        0xbb, 0x80, 0x00, 0xe0, 0xfe, // mov ebx, fee00080h
        0xc7, 0x03, 0x5f, 0, 0, 0, // mov dword [rbx], 5fh
        0x44, 0x0f, 0x20, 0xc0, // mov rax, cr8
        0xe7, 0xf4, // out 0xf4, eax
    ];
    everywhere(&long_mode(&code), |record| {
        assert_eq!(record.end, End::Exit(5))
    });
}

/// Two pages of a guest that uses them all the time; nothing else of its memory is in use but its code and tables.
#[test]
fn frames_in_use_are_found_when_they_are_aged() {
    let code = [
        0xb9, 0x00, 0x1b, 0x1b, 0x00, // mov ecx, 1776384
        0x01, 0x0c, 0x25, 0x00, 0x50, 0, 0, // again: add [5000h], ecx
        0xff, 0xc9, // dec ecx
        0x75, 0xf5, // jnz again
        0x31, 0xc0, // xor eax, eax
        0xe7, 0xf4, // out 0xf4, eax
    ];
    let formats = [
        (Paging::Shadow, NestedTables::Npt),
        (Paging::Nested, NestedTables::Npt),
        (Paging::Nested, NestedTables::Ept),
    ];
    for (paging, tables) in formats {
        let record = Machine::new(multiboot(&long_mode(&code)))
            .memory(4 << 20)
            .paging(paging)
            .nested_tables(tables)
            .nature(Nature::Deterministic)
            .check()
            .reclaim()
            .timeout(Duration::from_secs(60))
            .run()
            .expect("a machine");
        assert_eq!(record.end, End::Exit(0), "{paging:?} {tables:?}");
        assert!(record.frames_used > 0, "{paging:?} {tables:?}");
        assert!(record.frames_moved > 0);
    }
}

#[test]
fn the_time_stamp_counter_is_ahead_by_what_was_added() {
    let code = [
        0xb9, 0x3b, 0, 0, 0, // mov ecx, TSC_ADJUST
        0x31, 0xc0, // xor eax, eax
        0xba, 5, 0, 0, 0, // mov edx, 5
        0x0f, 0x30, // wrmsr
        0x0f, 0x31, // rdtsc
        0x89, 0xd3, // mov ebx, edx
        0xb9, 0x10, 0, 0, 0, // mov ecx, TSC
        0x0f, 0x32, // rdmsr
        0xc1, 0xe3, 8, // shl ebx, 8
        0x09, 0xda, // or edx, ebx
        0xb9, 0x3b, 0, 0, 0, // mov ecx, TSC_ADJUST
        0x89, 0xd3, // mov ebx, edx
        0x0f, 0x32, // rdmsr
        0xc1, 0xe2, 16, // shl edx, 16
        0x89, 0xd0, // mov eax, edx
        0x09, 0xd8, // or eax, ebx
        0xe7, 0xf4, // out 0xf4, eax
    ];
    everywhere(&code, |record| {
        assert_eq!(record.end, End::Exit(0x05_0505));
    });
}

#[test]
fn a_64_bit_guest_computes_stores_and_ends() {
    let code = [
        0x31, 0xc0, // xor eax, eax
        0xb9, 100, 0, 0, 0, // mov ecx, 100
        0x01, 0xc8, // add eax, ecx
        0xff, 0xc9, // dec ecx
        0x75, 0xfa, // jnz back
        0x48, 0x89, 0x04, 0x25, 0x00, 0x50, 0x00, 0x00, // mov [5000h], rax
        0x31, 0xc0, // xor eax, eax
        0x8b, 0x04, 0x25, 0x00, 0x50, 0x00, 0x00, // mov eax, [5000h]
        0xe7, 0xf4, // out 0xf4, eax
    ];
    everywhere(&long_mode(&code), |record| {
        assert_eq!(record.end, End::Exit(5050));
        assert!(record.instructions > 300);
    });
}

#[test]
fn code_that_the_guest_changes_is_executed_as_changed() {
    let code = [
        0xbb, 3, 0, 0, 0, // mov ebx, 3
        0xb8, 1, 0, 0, 0, // again: mov eax, 1 (the immediate changes)
        0xfe, 0x05, 0xf6, 0xff, 0xff, 0xff, // inc byte [rip - 10]: that immediate
        0xff, 0xcb, // dec ebx
        0x75, 0xf1, // jnz again
        0xe7, 0xf4, // out 0xf4, eax
    ];
    everywhere(&long_mode(&code), |record| {
        assert_eq!(record.end, End::Exit(3))
    });
}

#[test]
fn a_page_that_the_host_takes_back_keeps_its_content() {
    let code = [
        0xc7, 0x04, 0x25, 0x00, 0x50, 0x00, 0x00, 42, 0, 0, 0, // mov dword [5000h], 42
        0xb8, 0x00, 0x50, 0x00, 0x00, // mov eax, 5000h
        0xe7, 0xe4, // out 0xe4, eax: the host drops its mapping
        0x8b, 0x04, 0x25, 0x00, 0x50, 0x00, 0x00, // mov eax, [5000h]
        0xe7, 0xf4, // out 0xf4, eax
    ];
    everywhere(&long_mode(&code), |record| {
        assert_eq!(record.end, End::Exit(42))
    });
}

#[test]
fn a_guest_table_that_the_guest_writes_is_followed() {
    let code = [
        0xa1, 0x00, 0x00, 0x20, 0x00, 0, 0, 0,
        0, // mov eax, [200000h]: nothing is mapped there, but soon
        0xe7, 0xf4,
    ];
    // A second large page: mov dword [3008h], 83h maps 2 MiB at 200000h to 0; mov dword [0], 7 is seen there.
    let mut first = vec![0xc7, 0x04, 0x25, 0x00, 0x00, 0x00, 0x00, 7, 0, 0, 0];
    first.extend([0xc7, 0x04, 0x25, 0x08, 0x30, 0x00, 0x00, 0x83, 0, 0, 0]);
    first.extend(code);
    everywhere(&long_mode(&first), |record| {
        assert_eq!(record.end, End::Exit(7))
    });
}

#[test]
fn a_handler_that_faults_for_ever_does_not_keep_a_machine_from_ending() {
    // lidt of a table at 4000h, whose every gate leads to 200000h, where nothing is; then ud2. The stack has the space: it is reset by IST 1.
    let mut code = Vec::new();
    for vector in 0..15_u32 {
        let gate = [0x0008_0000_u32, 0x0020_8e01, 0, 0];
        for (i, word) in (0..).zip(gate) {
            code.extend([0xc7, 0x04, 0x25]); // mov dword [4000h + 16 * vector + 4 * i], word
            code.extend((0x4000 + 16 * vector + 4 * i).to_le_bytes());
            code.extend(word.to_le_bytes());
        }
    }
    // A task state at 6000h with IST 1 at 6024h; it is in the table at 7000h as selector 8 of a table that LTR reads.
    for (at, word) in [
        (0x6024_u32, 0x9000_u32),
        (0x6028, 0),
        (0x7000, 0),
        (0x7004, 0),
        (0x7008, 0x0000_ffff),
        (0x700c, 0x00af_9b00),
        (0x7010, 0x6000_0067),
        (0x7014, 0x0000_8900),
        (0x7018, 0),
        (0x701c, 0),
        (0x7100, 0x7000_001f),
        (0x7104, 0),
        (0x7108, 0),
        (0x7200, 0x4000_00ff),
        (0x7204, 0),
        (0x7208, 0),
    ] {
        code.extend([0xc7, 0x04, 0x25]);
        code.extend(at.to_le_bytes());
        code.extend(word.to_le_bytes());
    }
    code.extend([0x0f, 0x01, 0x14, 0x25, 0x00, 0x71, 0x00, 0x00]); // lgdt [7100h]
    code.extend([0x66, 0xb8, 0x10, 0x00, 0x0f, 0x00, 0xd8]); // mov ax, 10h; ltr ax
    code.extend([0x0f, 0x01, 0x1c, 0x25, 0x00, 0x72, 0x00, 0x00]); // lidt [7200h]
    code.extend([0x0f, 0x0b]); // ud2
    for paging in [Paging::Shadow, Paging::Nested] {
        let machine = Machine::new(multiboot(&long_mode(&code)))
            .memory(4 << 20)
            .paging(paging)
            .timeout(Duration::from_millis(200));
        let end = machine.run().expect("a machine").end;
        assert_eq!(end, End::Timeout, "{paging:?}");
    }
}

#[test]
fn a_triple_fault_is_reported_with_the_way_there() {
    // ud2, with no interrupt table.
    everywhere(&long_mode(&[0x0f, 0x0b]), |record| match &record.end {
        End::TripleFault(report) => assert!(report.contains("0f 0b"), "{report}"),
        end => panic!("{end:?}"),
    });
}

#[test]
fn a_guest_that_sleeps_for_good_is_told_from_one_that_runs() {
    // cli; hlt
    everywhere(&[0xfa, 0xf4], |record| assert_eq!(record.end, End::Halted));
    let spin = Machine::new(multiboot(&[0xeb, 0xfe]))
        .memory(4 << 20)
        .timeout(Duration::from_millis(50));
    assert_eq!(spin.run().expect("a machine").end, End::Timeout);
}

/// Starts every other processor in real mode at 8000h, where each counts itself at 6000h, and ends with the count when it is `others`.
fn start_others(others: u8) -> Vec<u8> {
    // xor ax, ax; mov ds, ax; lock inc word [6000h]; cli; hlt
    const STARTED: [u8; 12] = [
        0x31, 0xc0, 0x8e, 0xd8, 0xf0, 0xff, 0x06, 0x00, 0x60, 0xfa, 0xf4, 0x90,
    ];
    let mut code = Vec::new();
    for (at, word) in (0x8000_u32..).step_by(4).zip(STARTED.chunks(4)) {
        code.extend([0xc7, 0x05]); // mov dword [at], word
        code.extend(at.to_le_bytes());
        code.extend(word);
    }
    for command in [0x000c_4500_u32, 0x000c_4608] {
        code.extend([0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe]); // mov dword [fee00300h]: INIT, then start at 8000h
        code.extend(command.to_le_bytes());
    }
    code.extend([0x0f, 0xb7, 0x05, 0x00, 0x60, 0x00, 0x00]); // movzx eax, word [6000h]
    code.extend([0x3c, others, 0x75, 0xf5]); // cmp al, others; jne back
    code.extend([0xe7, 0xf4]); // out 0xf4, eax
    code
}

#[test]
fn other_processors_start_when_they_are_told_to() {
    for paging in [Paging::Shadow, Paging::Nested] {
        for nature in NATURES {
            println!("{paging:?} {nature:?}");
            let machine = Machine::new(multiboot(&start_others(3)))
                .memory(4 << 20)
                .paging(paging)
                .nature(nature)
                .cpus(NonZeroU8::new(4).expect("four"))
                .reclaim()
                .timeout(Duration::from_secs(60));
            let record = machine.run().expect("a machine");
            assert_eq!(record.end, End::Exit(3));
            assert!(record.work.iter().all(|work| work.instructions > 0));
        }
    }
}

#[test]
fn a_guest_that_sleeps_with_interrupts_on_is_woken_by_the_timer() {
    const HANDLER: u32 = 8 << 16 | CODE & 0xffff;
    let mut code = vec![0xbc, 0x00, 0x70, 0, 0]; // mov esp, 7000h
    let mut store = |at: u32, value: u32| {
        code.extend([0xc7, 0x05]); // mov dword [at], value
        code.extend(at.to_le_bytes());
        code.extend(value.to_le_bytes());
    };
    // A code segment at 8; a gate for vector 20h; the limits and bases of both tables.
    for (at, value) in [
        (0x4f08, 0x0000_ffff),
        (0x4f0c, 0x00cf_9a00),
        (0x5100, HANDLER + 138),
        (0x5104, CODE & 0xffff_0000 | 0x8e00),
        (0x4fe0, 15 << 16),
        (0x4fe4, 0x4f00),
        (0x4fe8, 0x107 << 16),
        (0x4fec, 0x5000),
    ] {
        store(at, value);
    }
    code.extend([0x0f, 0x01, 0x15, 0xe2, 0x4f, 0, 0]); // lgdt [4fe2h]
    code.extend([0x0f, 0x01, 0x1d, 0xea, 0x4f, 0, 0]); // lidt [4feah]
    // The first 8259: vectors from 20h on, only the timer. The timer: every 3.4 ms.
    for (port, value) in [
        (0x20, 0x11),
        (0x21, 0x20),
        (0x21, 0x04),
        (0x21, 0x01),
        (0x21, 0xfe),
        (0x43, 0x34),
        (0x40, 0x00),
        (0x40, 0x10),
    ] {
        code.extend([0xb0, value, 0xe6, port]); // mov al, value; out port, al
    }
    code.extend([0xfb, 0xf4, 0xeb, 0xfd]); // sti; back: hlt; jmp back
    code.extend([0x90; 3]);
    assert_eq!(code.len(), 138);
    code.extend([0xb8, 7, 0, 0, 0, 0xe7, 0xf4]); // mov eax, 7; out 0xf4, eax
    everywhere(&code, |record| {
        assert_eq!(record.end, End::Exit(7));
    });
}

#[test]
fn one_seed_gives_one_run() {
    let code = long_mode(&[0x0f, 0x31, 0xe7, 0xf4]); // rdtsc; out 0xf4, eax
    let first = run(&code, Paging::Shadow, Nature::Deterministic);
    let second = run(&code, Paging::Shadow, Nature::Deterministic);
    assert_eq!(first.end, second.end);
    assert_eq!(first.instructions, second.instructions);
    assert_eq!(first.mmu, second.mmu);
}
