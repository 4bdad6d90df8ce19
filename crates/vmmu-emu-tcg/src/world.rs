//! What programs of long mode find: descriptors, gates, task states, page tables.
//!
//! Key function: [`World::long`]. The tables hold what a kernel would have, and much that it would not: every kind of unusable descriptor.

use crate::layout::{
    ALIAS, CODE, DEMAND, END_VECTOR, GDT, HANDLERS, IDT, INNER_STACK, LDT, MONITOR, MONITOR_STACK,
    NO_EXECUTE, OTHER_TASK, PAGE, READ_ONLY, STACK, SUPERVISOR, TABLES, TABLES_END, TASK,
    WINDOW_END, WINDOW_TABLE,
};

/// Selectors that the monitor and the programs begin with.
pub(crate) mod selector {
    pub(crate) const KERNEL_CODE: u16 = 0x08;
    pub(crate) const KERNEL_DATA: u16 = 0x10;
    pub(crate) const USER_CODE_32: u16 = 0x1b;
    pub(crate) const USER_DATA: u16 = 0x23;
    pub(crate) const USER_CODE: u16 = 0x2b;
    pub(crate) const TASK: u16 = 0x30;
    pub(crate) const LDT: u16 = 0x40;
    pub(crate) const KERNEL_CODE_32: u16 = 0x50;
}

/// The attributes of descriptors, bits 40 to 55: type, S, DPL, P, and bits 52 to 55.
const DESCRIPTORS: [(u64, u64, u64); 37] = [
    // Base, limit, attributes.
    (0, 0, 0),
    (0, 0xf_ffff, 0xa09b),
    (0, 0xf_ffff, 0xc093),
    (0, 0xf_ffff, 0xc0fb),
    (0, 0xf_ffff, 0xc0f3),
    (0, 0xf_ffff, 0xa0fb),
    (TASK, 0x67 + 0x20, 0x0089),
    (0, 0, 0),
    (LDT, 0x2f, 0x0082),
    (0, 0, 0),
    (0, 0xf_ffff, 0xc09b),
    // 16-bit code of level 3.
    (0, 0xf_ffff, 0x80fb),
    // Conforming code of level 0.
    (0, 0xf_ffff, 0xa09f),
    // Data that can't be written.
    (0, 0xf_ffff, 0xc0f1),
    // Data that grows down.
    (0, 0x5, 0xc0f7),
    // Absent data and code.
    (0, 0xf_ffff, 0xc073),
    (0, 0xf_ffff, 0xa07b),
    // Code that can't be read.
    (0, 0xf_ffff, 0xa0f9),
    // Data with a base and a small limit.
    (0x1000, 0x1_4fff, 0x40f3),
    // Code that claims to be 64-bit and 32-bit.
    (0, 0xf_ffff, 0xe0fb),
    // Three call gates, made below.
    (0, 0, 0),
    (0, 0, 0),
    (0, 0, 0),
    (0, 0, 0),
    (0, 0, 0),
    (0, 0, 0),
    // A second task state.
    (OTHER_TASK, 0x67, 0x0089),
    (0, 0, 0),
    // Data and code of level 1.
    (0, 0xf_ffff, 0xc0b3),
    (0, 0xf_ffff, 0xa0bb),
    // Not accessed yet: data, 64-bit code, 32-bit code; and the same of level 0.
    (0, 0xf_ffff, 0xc0f2),
    (0, 0xf_ffff, 0xa0fa),
    (0, 0xf_ffff, 0xc0fa),
    (0, 0xf_ffff, 0xc092),
    (0, 0xf_ffff, 0xa09a),
    // An absent task state.
    (OTHER_TASK, 0x67, 0x0009),
    (0, 0, 0),
];

/// The global table's size in bytes.
pub(crate) const GDT_BYTES: u64 = DESCRIPTORS.len() as u64 * 8;

/// Makes a descriptor; the attributes are bits 40 to 55.
pub(crate) const fn descriptor(base: u64, limit: u64, attributes: u64) -> u64 {
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | attributes << 40
        | (limit >> 16 & 0xf) << 48
        | (base >> 24 & 0xff) << 56
}

/// Makes a gate; `kind` has the type, the level and the present bit, `low` what lies below them.
pub(crate) const fn gate(selector: u16, target: u64, kind: u64, low: u64) -> u64 {
    target & 0xffff
        | (selector as u64) << 16
        | low << 32
        | kind << 40
        | (target >> 16 & 0xffff) << 48
}

/// Memory below [`TABLES_END`] and the rest of the window, as a program finds it.
#[derive(Debug)]
pub(crate) struct World {
    bytes: Vec<u8>,
}

impl World {
    /// Makes that of long mode. `stubs` are the monitor's entries for exceptions, by vector.
    pub(crate) fn long(stubs: &[u64; 48], handlers: &Handlers) -> Self {
        let mut world = Self {
            bytes: vec![0; WINDOW_END as usize],
        };
        world.descriptors(handlers);
        world.interrupts(stubs, handlers);
        world.tasks();
        world.tables();
        world
    }

    /// Returns the bytes, from address 0 on.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Puts code into the window.
    pub(crate) fn put_bytes(&mut self, at: u64, bytes: &[u8]) {
        let at = at as usize;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn put(&mut self, at: u64, value: u64) {
        self.put_bytes(at, &value.to_le_bytes());
    }

    fn descriptors(&mut self, handlers: &Handlers) {
        for (n, (base, limit, attributes)) in (0..).zip(DESCRIPTORS) {
            self.put(GDT + 8 * n, descriptor(base, limit, attributes));
        }
        let call = |kind, code| gate(code, handlers.far_return, kind, 0);
        // One for everybody, one to absent code, one for level 0.
        self.put(GDT + 0xa0, call(0xec, selector::KERNEL_CODE));
        self.put(GDT + 0xb0, call(0xec, 0x80));
        self.put(GDT + 0xc0, call(0x8c, selector::KERNEL_CODE));
        for (n, index) in (0..).zip([0, 4, 5, 2, 30, 3]) {
            let (base, limit, attributes) = DESCRIPTORS[index];
            self.put(LDT + 8 * n, descriptor(base, limit, attributes));
        }
    }

    /// Exceptions go to the monitor, on its own stack; vectors 0x30 to 0x3f are the programs'.
    fn interrupts(&mut self, stubs: &[u64; 48], handlers: &Handlers) {
        for (n, stub) in (0..).zip(*stubs) {
            let open = matches!(n, 3 | 4) || n == u64::from(END_VECTOR);
            let kind = if open { 0xee } else { 0x8e };
            self.put(IDT + 16 * n, gate(selector::KERNEL_CODE, stub, kind, 1));
        }
        // Interrupt and trap gates for all; for level 0; absent; bad types and targets; to conforming code; with a stack of the table; to level 1.
        let gates = [
            (selector::KERNEL_CODE, 0xee, 0),
            (selector::KERNEL_CODE, 0xef, 0),
            (selector::KERNEL_CODE, 0x8e, 0),
            (selector::KERNEL_CODE, 0x6e, 0),
            (selector::KERNEL_CODE, 0xe5, 0),
            (0, 0xee, 0),
            (selector::KERNEL_DATA, 0xee, 0),
            (0x80, 0xee, 0),
            (selector::KERNEL_CODE_32, 0xee, 0),
            (0x60, 0xee, 0),
            (selector::KERNEL_CODE, 0xee, 2),
            (0xe8, 0xee, 0),
            (0x108, 0xee, 0),
            (0x7f8, 0xee, 0),
            (selector::USER_CODE, 0xee, 0),
            (0x110, 0xef, 0),
        ];
        for (n, (code, kind, stack)) in (0x30..).zip(gates) {
            self.put(IDT + 16 * n, gate(code, handlers.interrupt, kind, stack));
        }
    }

    fn tasks(&mut self) {
        for task in [TASK, OTHER_TASK] {
            for level in 0..3 {
                let stack = INNER_STACK + ALIAS + 0x400 * (level + 1);
                self.put(task + 4 + 8 * level, stack - 8 * level);
            }
            self.put(task + 0x24, MONITOR_STACK);
            self.put(task + 0x2c, INNER_STACK + ALIAS + 0xff8);
            // The I/O bitmap: ports 0 to 255 but every third.
            self.put(task + 0x60, 0x68 << 48);
            for n in 0..4 {
                self.put(task + 0x68 + 8 * n, 0x9249_2492_4924_9249);
            }
        }
    }

    /// The window by pages of 4 KiB, the rest of 256 MiB for the monitor, and the first 2 MiB once more.
    fn tables(&mut self) {
        const TABLE: u64 = 0x67;
        const LARGE: u64 = 0xe3;
        self.put(TABLES, (TABLES + PAGE) | TABLE);
        self.put(TABLES + PAGE, (TABLES + 2 * PAGE) | TABLE);
        self.put(TABLES + PAGE + 8, (TABLES + 4 * PAGE) | TABLE);
        self.put(TABLES + 4 * PAGE, LARGE);
        self.put(TABLES + 2 * PAGE, WINDOW_TABLE | TABLE);
        for n in 1..128 {
            self.put(TABLES + 2 * PAGE + 8 * n, n << 21 | LARGE);
        }
        for page in (0..WINDOW_END).step_by(PAGE as usize) {
            let entry = WINDOW_TABLE + page / PAGE * 8;
            let rights = rights(page);
            self.put(entry, page | rights);
            if page >= CODE {
                let entry = WINDOW_TABLE + (page + ALIAS) / PAGE * 8;
                self.put(entry, page | rights & !4);
            }
        }
    }
}

/// Returns the flags of a page's entry: accessed and dirty only where the monitor or every program uses it.
const fn rights(page: u64) -> u64 {
    const NX: u64 = 1 << 63;
    match page {
        0 => 0,
        CODE => 0x65,
        HANDLERS => 0x61,
        READ_ONLY => 0x05,
        DEMAND => 0x06,
        SUPERVISOR => 0x03,
        NO_EXECUTE => 0x07 | NX,
        STACK => 0x07,
        INNER_STACK => 0x03,
        1..CODE => 0x63,
        _ => 0x07,
    }
}

/// Where the programs' own handlers lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handlers {
    /// Ends with IRET.
    pub(crate) interrupt: u64,
    /// Ends with a far RET.
    pub(crate) far_return: u64,
    /// Ends with SYSRET, to 64-bit code and to compatibility mode.
    pub(crate) system_call: u64,
    pub(crate) system_call_32: u64,
}

const _: () = assert!(MONITOR > WINDOW_END + ALIAS);
const _: () = assert!(TABLES + 5 * PAGE <= TABLES_END);
