//! The monitor: the guest's own code that starts each program, takes its exceptions and writes records.
//!
//! Key function: [`Monitor::long`]. Everything a record has stands in [`crate::record`].
//!
//! Invariants
//! 1. Exceptions of a program come on the monitor's own stack, through the interrupt stack table: whatever the program did to its own, they are recorded.
//! 2. An exception of the monitor itself is recorded as one of the program, and ends it: its address is not the program's.

use iced_x86::IcedError;
use iced_x86::code_asm::registers::gpr8::al;
use iced_x86::code_asm::registers::gpr16::{ax, dx};
use iced_x86::code_asm::registers::gpr32::{eax, ecx, edx};
use iced_x86::code_asm::registers::gpr64::{
    r8, r9, r10, r11, r12, r13, r14, r15, rax, rbp, rbx, rcx, rdi, rdx, rsi, rsp,
};
use iced_x86::code_asm::registers::{cr, dr, segment};
use iced_x86::code_asm::{AsmRegister64, CodeAssembler, dword_ptr, ptr, qword_ptr, word_ptr};

use crate::layout::{
    ALIAS, CODE, COUNT, CURRENT, CURSOR, DATA, DEMAND, DUMPED, END_VECTOR, EVENTS, EXIT_PORT, GDT,
    HANDLERS, MONITOR, MONITOR_STACK, MONITOR_VIEW, MOST_EVENTS, PAGE, PRISTINE, PROGRAM, PROGRAMS,
    RECORD_WORDS, ROM, TABLES, TABLES_END, WINDOW_END, WINDOW_TABLE,
};
use crate::program::word;
use crate::record;
use crate::world::{Handlers, selector};

/// Control registers as the monitor has them.
const CR0: u32 = 0x8001_0033;
const CR4: u32 = 0x0620;
/// Operands of LGDT and LIDT.
const GDTR: u64 = CURRENT + 0x40;
const IDTR: u64 = CURRENT + 0x50;
/// Where the second part, 64-bit code, begins.
const LONG: u64 = MONITOR + 0x100;
/// How many vectors the monitor takes.
const VECTORS: usize = 48;

/// General registers in the order of their numbers, without RSP.
const REGISTERS: [AsmRegister64; 15] = [
    rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15,
];

/// Model-specific registers that a record has.
pub(crate) const RECORDED_MSRS: [u32; 13] = [
    0xc000_0080,
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0100,
    0xc000_0101,
    0xc000_0102,
    0x174,
    0x175,
    0x176,
    0x277,
    0xc000_0103,
];

/// The monitor's parts.
#[derive(Debug)]
pub(crate) struct Monitor {
    /// The ROM, which ends at 4 GiB.
    pub(crate) rom: Vec<u8>,
    /// Code at [`MONITOR`].
    pub(crate) code: Vec<u8>,
    /// Code at [`HANDLERS`].
    pub(crate) handler_code: Vec<u8>,
    /// Where that is.
    pub(crate) handlers: Handlers,
    /// Entries for exceptions.
    pub(crate) stubs: [u64; VECTORS],
}

impl Monitor {
    /// Assembles it. `global` and `interrupts` are the limits of the descriptor tables.
    pub(crate) fn long() -> Result<Self, IcedError> {
        let mut code = enter_long()?;
        code.resize((LONG - MONITOR) as usize, 0xcc);
        let mut stubs = [0; VECTORS];
        code.extend(run(&mut stubs)?);
        let (handler_code, handlers) = handlers()?;
        Ok(Self {
            rom: rom(),
            code,
            handler_code,
            handlers,
            stubs,
        })
    }
}

/// Returns the operand of LGDT and where it lies, and of LIDT.
pub(crate) fn table_operands(global_limit: u64) -> [(u64, u64, u64); 2] {
    [(GDTR, global_limit, GDT), (IDTR, 0x3ff, crate::layout::IDT)]
}

/// The first instructions, in real mode: on to 32-bit code.
fn rom() -> Vec<u8> {
    const START: usize = 0xff00;
    const OPERAND: usize = 0xff80;
    let mut rom = vec![0xf4; ROM as usize];
    // cli; lgdt cs:[OPERAND]; mov eax, cr0; or al, 1; mov cr0, eax; jmp far
    let mut code = vec![0xfa, 0x2e, 0x66, 0x0f, 0x01, 0x16];
    code.extend((OPERAND as u16).to_le_bytes());
    code.extend([0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, 0x66, 0xea]);
    code.extend((MONITOR as u32).to_le_bytes());
    code.extend(selector::KERNEL_CODE_32.to_le_bytes());
    rom[START..START + code.len()].copy_from_slice(&code);
    rom[OPERAND..OPERAND + 2].copy_from_slice(&0xfffu16.to_le_bytes());
    rom[OPERAND + 2..OPERAND + 6].copy_from_slice(&(GDT as u32).to_le_bytes());
    // jmp START
    rom[0xfff0..0xfff3].copy_from_slice(&[0xe9, 0x0d, 0xff]);
    rom
}

/// From 32-bit code without paging to 64-bit code; interrupts of devices are masked.
fn enter_long() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(32)?;
    a.mov(eax, u32::from(selector::KERNEL_DATA))?;
    for name in [segment::ds, segment::es, segment::ss] {
        a.mov(name, eax)?;
    }
    a.mov(eax, 0xffu32)?;
    a.out(0x21u32, al)?;
    a.out(0xa1u32, al)?;
    a.mov(eax, CR4)?;
    a.mov(cr::cr4, eax)?;
    a.mov(eax, TABLES as u32)?;
    a.mov(cr::cr3, eax)?;
    a.mov(ecx, 0xc000_0080u32)?;
    a.xor(edx, edx)?;
    a.mov(eax, 0xd01u32)?;
    a.wrmsr()?;
    a.mov(eax, CR0)?;
    a.mov(cr::cr0, eax)?;
    let mut code = a.assemble(MONITOR)?;
    code.push(0xea);
    code.extend((LONG as u32).to_le_bytes());
    code.extend(selector::KERNEL_CODE.to_le_bytes());
    Ok(code)
}

/// Returns an absolute address as an operand.
fn at(address: u64) -> iced_x86::code_asm::AsmMemoryOperand {
    qword_ptr(address)
}

/// Copies words; RSI and RDI are left behind them.
fn copy(a: &mut CodeAssembler, bytes: u64) -> Result<(), IcedError> {
    a.mov(ecx, (bytes / 8) as u32)?;
    a.rep().movsq()
}

/// The 64-bit part: one program after the other.
fn run(stubs: &mut [u64; VECTORS]) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut next = a.create_label();
    let mut finish = a.create_label();
    let mut common = a.create_label();
    let mut end = a.create_label();
    a.set_label(&mut next)?;
    a.mov(rax, at(CURRENT))?;
    a.cmp(rax, at(COUNT))?;
    a.jae(finish)?;
    prepare_control(&mut a)?;
    prepare_memory(&mut a)?;
    prepare_registers(&mut a)?;
    a.set_label(&mut common)?;
    record(&mut a)?;
    decide(&mut a, end)?;
    a.set_label(&mut end)?;
    dump(&mut a)?;
    a.jmp(next)?;
    a.set_label(&mut finish)?;
    a.mov(dx, u32::from(EXIT_PORT))?;
    a.xor(eax, eax)?;
    a.out(dx, eax)?;
    let mut forever = a.create_label();
    a.set_label(&mut forever)?;
    a.hlt()?;
    a.jmp(forever)?;
    let mut labels = Vec::new();
    for vector in 0..VECTORS as u32 {
        let mut label = a.create_label();
        a.set_label(&mut label)?;
        labels.push(label);
        if !matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30) {
            a.push(0i32)?;
        }
        a.push(vector as i32)?;
        a.jmp(common)?;
    }
    let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let done = a.assemble_options(LONG, options)?;
    for (stub, label) in stubs.iter_mut().zip(&labels) {
        *stub = done.label_ip(label)?;
    }
    Ok(done.inner.code_buffer)
}

/// Gives the processor back what a program may have taken.
fn prepare_control(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(ecx, CR4)?;
    a.mov(cr::cr4, rcx)?;
    a.mov(ecx, CR0)?;
    a.mov(cr::cr0, rcx)?;
    a.xor(ecx, ecx)?;
    a.mov(cr::cr8, rcx)?;
    a.mov(cr::cr2, rcx)?;
    for name in [dr::dr0, dr::dr1, dr::dr2, dr::dr3] {
        a.mov(name, rcx)?;
    }
    a.mov(ecx, 0x400u32)?;
    a.mov(dr::dr7, rcx)?;
    a.mov(ecx, 0xffff_0ff0u32)?;
    a.mov(dr::dr6, rcx)?;
    a.lgdt(ptr(GDTR))?;
    a.lidt(ptr(IDTR))?;
    a.cld()
}

/// Makes the window anew, with program number RAX; RBX is the program then.
fn prepare_memory(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.imul_3(rbx, rax, PROGRAM as i32)?;
    a.add(rbx, PROGRAMS as i32)?;
    for (from, to) in [(GDT, TABLES_END), (HANDLERS, WINDOW_END)] {
        a.mov(rsi, PRISTINE + from)?;
        a.mov(rdi, MONITOR_VIEW + from)?;
        copy(a, to - from)?;
    }
    a.lea(rsi, ptr(rbx + PAGE as i32))?;
    for to in [CODE, DATA] {
        a.mov(rdi, MONITOR_VIEW + to)?;
        copy(a, PAGE)?;
    }
    a.mov(rax, TABLES)?;
    a.mov(cr::cr3, rax)?;
    a.mov(eax, u32::from(selector::LDT))?;
    a.lldt(ax)?;
    a.mov(eax, u32::from(selector::TASK))?;
    a.ltr(ax)?;
    a.mov(dword_ptr(EVENTS), 0u32)
}

/// Writes a model-specific register from RAX.
fn write_msr(a: &mut CodeAssembler, number: u32) -> Result<(), IcedError> {
    a.mov(ecx, number)?;
    a.mov(rdx, rax)?;
    a.shr(rdx, 32u32)?;
    a.wrmsr()
}

/// Loads the registers of program RBX and goes there.
fn prepare_registers(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let field = |n: usize| qword_ptr(rbx + 8 * n as i32);
    let segments = [segment::ds, segment::es, segment::fs, segment::gs];
    for (n, name) in segments.into_iter().enumerate() {
        a.mov(name, word_ptr(rbx + 8 * (word::DS + n) as i32))?;
    }
    for (n, number) in RECORDED_MSRS.into_iter().enumerate() {
        a.mov(rax, field(word::MSRS + n))?;
        write_msr(a, number)?;
    }
    a.mov(rsp, MONITOR_STACK)?;
    for n in [word::SS, word::RSP, word::FLAGS, word::CS, word::RIP] {
        a.push(field(n))?;
    }
    a.mov(rax, field(word::CR0))?;
    a.mov(cr::cr0, rax)?;
    a.mov(rax, field(word::CR4))?;
    a.mov(cr::cr4, rax)?;
    for (n, register) in REGISTERS.into_iter().enumerate() {
        if register != rbx {
            // RSP has number 4.
            a.mov(register, field(if n < 4 { n } else { n + 1 }))?;
        }
    }
    a.mov(rbx, field(3))?;
    a.iretq()
}

/// Writes a record of the exception whose vector and frame are on the stack.
fn record(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for register in REGISTERS.into_iter().rev() {
        a.push(register)?;
    }
    a.cld()?;
    a.mov(rdi, at(CURSOR))?;
    a.mov(rsi, rsp)?;
    copy(a, 8 * record::FRAME_WORDS as u64)?;
    a.mov(rax, at(CURRENT))?;
    a.stosq()?;
    for name in [cr::cr2, cr::cr0, cr::cr3, cr::cr4] {
        a.mov(rax, name)?;
        a.stosq()?;
    }
    for name in [dr::dr6, dr::dr7] {
        a.mov(rax, name)?;
        a.stosq()?;
    }
    a.mov(rax, cr::cr8)?;
    a.stosq()?;
    for name in [segment::ds, segment::es, segment::fs, segment::gs] {
        a.xor(eax, eax)?;
        a.mov(ax, name)?;
        a.stosq()?;
    }
    a.xor(eax, eax)?;
    a.str(ax)?;
    a.stosq()?;
    a.xor(eax, eax)?;
    a.sldt(ax)?;
    a.stosq()?;
    for number in RECORDED_MSRS {
        a.mov(ecx, number)?;
        a.rdmsr()?;
        a.shl(rdx, 32u32)?;
        a.or(rax, rdx)?;
        a.stosq()?;
    }
    a.sgdt(ptr(rdi))?;
    a.sidt(ptr(rdi + 16))?;
    a.mov(rdi, at(CURSOR))?;
    a.mov(
        qword_ptr(rdi + 8 * record::MARK as i32),
        record::EXCEPTION as i32,
    )?;
    a.add(rdi, 8 * RECORD_WORDS as i32)?;
    a.mov(at(CURSOR), rdi)
}

/// Decides whether the program goes on, and where.
fn decide(a: &mut CodeAssembler, end: iced_x86::code_asm::CodeLabel) -> Result<(), IcedError> {
    let frame = |n: usize| qword_ptr(rsp + 8 * n as i32);
    let mut resume = a.create_label();
    let mut skip = a.create_label();
    let mut no_page_fault = a.create_label();
    let mut no_debug = a.create_label();
    a.mov(rax, frame(record::VECTOR))?;
    a.cmp(eax, u32::from(END_VECTOR))?;
    a.je(end)?;
    a.inc(at(EVENTS))?;
    a.cmp(at(EVENTS), MOST_EVENTS as i32)?;
    a.jae(end)?;
    a.mov(rdx, frame(record::RIP))?;
    a.mov(rcx, rdx)?;
    a.and(rcx, !(ALIAS as i32))?;
    a.sub(rcx, CODE as i32)?;
    a.cmp(rcx, PAGE as i32)?;
    a.jae(end)?;
    a.cmp(eax, 14u32)?;
    a.jne(no_page_fault)?;
    supply(a, skip)?;
    a.jmp(resume)?;
    a.set_label(&mut no_page_fault)?;
    a.cmp(eax, 1u32)?;
    a.jne(no_debug)?;
    a.mov(ecx, 0xffff_0ff0u32)?;
    a.mov(dr::dr6, rcx)?;
    // RF, so that an instruction breakpoint is passed.
    a.or(dword_ptr(rsp + 8 * record::FLAGS as i32), 0x1_0000u32)?;
    a.jmp(resume)?;
    a.set_label(&mut no_debug)?;
    a.cmp(eax, 3u32)?;
    a.je(resume)?;
    a.cmp(eax, 4u32)?;
    a.je(resume)?;
    a.set_label(&mut skip)?;
    a.or(rdx, 63i32)?;
    a.inc(rdx)?;
    a.test(edx, 0xfffu32)?;
    a.je(end)?;
    a.mov(frame(record::RIP), rdx)?;
    // Undefined flags must not go on.
    a.and(dword_ptr(rsp + 8 * record::FLAGS as i32), !0x8d5u32)?;
    a.set_label(&mut resume)?;
    for register in REGISTERS {
        a.pop(register)?;
    }
    a.add(rsp, 16i32)?;
    a.iretq()
}

/// Makes the page present that is so on demand, if it is that.
fn supply(a: &mut CodeAssembler, skip: iced_x86::code_asm::CodeLabel) -> Result<(), IcedError> {
    a.mov(rcx, cr::cr2)?;
    a.and(rcx, !(ALIAS as i32))?;
    a.shr(rcx, 12u32)?;
    a.cmp(rcx, (DEMAND / PAGE) as i32)?;
    a.jne(skip)?;
    for page in [DEMAND, DEMAND + ALIAS] {
        let entry = MONITOR_VIEW + WINDOW_TABLE + page / PAGE * 8;
        a.bts(at(entry), 0u32)?;
        if page == DEMAND {
            a.jc(skip)?;
        }
        a.invlpg(ptr(page))?;
    }
    Ok(())
}

/// Copies the window behind the records; on to the next program.
fn dump(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rdi, at(CURSOR))?;
    a.mov(qword_ptr(rdi + 8 * record::MARK as i32), record::END as i32)?;
    a.add(rdi, 8 * RECORD_WORDS as i32)?;
    for page in DUMPED {
        a.mov(rsi, MONITOR_VIEW + page)?;
        copy(a, PAGE)?;
    }
    a.mov(at(CURSOR), rdi)?;
    a.inc(at(CURRENT))
}

/// The programs' own handlers: they note their stack pointer, so that its alignment is compared.
fn handlers() -> Result<(Vec<u8>, Handlers), IcedError> {
    let base = HANDLERS + ALIAS;
    let note = ALIAS + DATA + PAGE + 0xff0;
    let mut a = CodeAssembler::new(64)?;
    let mut labels = [(); 4].map(|()| a.create_label());
    for (n, label) in labels.iter_mut().enumerate() {
        a.set_label(label)?;
        a.mov(at(note), rsp)?;
        match n {
            0 => a.iretq()?,
            1 => a.retf()?,
            2 => a.sysretq()?,
            _ => a.sysret()?,
        }
    }
    let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let done = a.assemble_options(base, options)?;
    let handlers = Handlers {
        interrupt: done.label_ip(&labels[0])?,
        far_return: done.label_ip(&labels[1])?,
        system_call: done.label_ip(&labels[2])?,
        system_call_32: done.label_ip(&labels[3])?,
    };
    Ok((done.inner.code_buffer, handlers))
}
