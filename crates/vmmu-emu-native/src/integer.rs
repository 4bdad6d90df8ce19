//! The integer instructions that user code may execute and whose effects stay in registers and memory.

use iced_x86::{Instruction, Mnemonic};

/// Says whether the instruction is one. Left out: far transfers, segment registers, ports, software interrupts, and what asks the system or the clock.
#[must_use]
pub fn is_integer(instruction: &Instruction) -> bool {
    if is_far(instruction) || names_system_register(instruction) {
        return false;
    }
    let code = instruction.code();
    is_listed(instruction.mnemonic())
        || code.is_jcc_short_or_near()
        || code.is_loop()
        || code.is_loopcc()
        || code.is_jcx_short()
        || is_conditional(instruction)
        || is_string(instruction)
}

fn is_far(instruction: &Instruction) -> bool {
    instruction.is_jmp_far()
        || instruction.is_jmp_far_indirect()
        || instruction.is_call_far()
        || instruction.is_call_far_indirect()
}

fn names_system_register(instruction: &Instruction) -> bool {
    (0..instruction.op_count())
        .map(|n| instruction.op_register(n))
        .any(|r| r != iced_x86::Register::None && !r.is_gpr())
}

/// SETcc and CMOVcc, not CMPccXADD.
fn is_conditional(instruction: &Instruction) -> bool {
    instruction.condition_code() != iced_x86::ConditionCode::None && instruction.op_count() <= 2
}

/// Strings, not those of ports.
fn is_string(instruction: &Instruction) -> bool {
    use Mnemonic::{Insb, Insd, Insw, Outsb, Outsd, Outsw};
    instruction.is_string_instruction()
        && !matches!(
            instruction.mnemonic(),
            Insb | Insw | Insd | Outsb | Outsw | Outsd
        )
}

#[rustfmt::skip]
fn is_listed(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Add | M::Adc | M::Sub | M::Sbb | M::Cmp | M::And | M::Or | M::Xor | M::Test | M::Inc | M::Dec | M::Neg | M::Not
            | M::Mov | M::Movzx | M::Movsx | M::Movsxd | M::Movbe | M::Movnti | M::Lea | M::Bswap | M::Xlatb
            | M::Cbw | M::Cwde | M::Cdqe | M::Cwd | M::Cdq | M::Cqo
            | M::Xchg | M::Xadd | M::Cmpxchg | M::Cmpxchg8b | M::Cmpxchg16b
            | M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
            | M::Bt | M::Bts | M::Btr | M::Btc | M::Bsf | M::Bsr | M::Tzcnt | M::Lzcnt | M::Popcnt
            | M::Mul | M::Imul | M::Div | M::Idiv
            | M::Aaa | M::Aas | M::Aam | M::Aad | M::Daa | M::Das | M::Salc
            | M::Push | M::Pop | M::Pusha | M::Pushad | M::Popa | M::Popad | M::Enter | M::Leave
            | M::Pushf | M::Pushfd | M::Pushfq | M::Popf | M::Popfd | M::Popfq
            | M::Jmp | M::Call | M::Ret
            | M::Clc | M::Stc | M::Cmc | M::Cld | M::Std | M::Lahf | M::Sahf | M::Cli | M::Sti
            | M::Nop | M::Pause | M::Endbr32 | M::Endbr64 | M::Lfence | M::Mfence | M::Sfence
            | M::Prefetch | M::Prefetchw | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2 | M::Prefetchnta
            | M::Clflush | M::Clflushopt | M::Ud2
    )
}
