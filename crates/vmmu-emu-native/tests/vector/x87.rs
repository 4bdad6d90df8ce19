//! x87 instructions, compared with the processor's own on random operands, at every precision, in every rounding mode, with empty and full registers.

use crate::compare::{Precision, run_all};
use crate::encoding::Template;
use crate::operands;

/// Everything but the transcendental functions.
const EXACT: &str = "
    - d8 /0 mM fadd_m32
    - dc /0 mM fadd_m64
    - da /0 M fiadd_m32
    - de /0 M fiadd_m16
    - de /0 m faddp
    - d8 /1 mM fmul_m32
    - dc /1 mM fmul_m64
    - da /1 M fimul_m32
    - de /1 M fimul_m16
    - de /1 m fmulp
    - d8 /2 mM fcom_m32
    - dc /2 mM fcom_m64
    - da /2 M ficom_m32
    - de /2 M ficom_m16
    - d8 /3 mM fcomp_m32
    - dc /3 mM fcomp_m64
    - da /3 M ficomp_m32
    - de /3 M ficomp_m16
    - d8 /4 mM fsub_m32
    - dc /4 mM fsub_m64
    - da /4 M fisub_m32
    - de /4 M fisub_m16
    - de /4 m fsubp
    - d8 /5 mM fsubr_m32
    - dc /5 mM fsubr_m64
    - da /5 M fisubr_m32
    - de /5 M fisubr_m16
    - de /5 m fsubrp
    - d8 /6 mM fdiv_m32
    - dc /6 mM fdiv_m64
    - da /6 M fidiv_m32
    - de /6 M fidiv_m16
    - de /6 m fdivp
    - d8 /7 mM fdivr_m32
    - dc /7 mM fdivr_m64
    - da /7 M fidivr_m32
    - de /7 M fidivr_m16
    - de /7 m fdivrp
    - d9 /0 mM fld_m32
    - d9 /2 M fst_m32
    - d9 /3 M fstp_m32
    - dd /0 M fld_m64
    - dd /2 M fst_m64
    - dd /3 M fstp_m64
    - db /5 M fld_m80
    - db /7 M fstp_m80
    - dd /2 m fst
    - dd /3 m fstp
    - df /0 M fild_m16
    - db /0 M fild_m32
    - df /5 M fild_m64
    - df /2 M fist_m16
    - df /3 M fistp_m16
    - db /2 M fist_m32
    - db /3 M fistp_m32
    - df /7 M fistp_m64
    - df /1 M fisttp_m16
    - db /1 M fisttp_m32
    - dd /1 M fisttp_m64
    - df /4 M fbld
    - df /6 M fbstp
    - d9 /1 m fxch
    - dd /0 m ffree
    - dd /4 m fucom
    - dd /5 m fucomp
    - dae9 . . fucompp
    - ded9 . . fcompp
    - db /5 m fucomi
    - db /6 m fcomi
    - df /5 m fucomip
    - df /6 m fcomip
    - da /0 m fcmovb
    - da /1 m fcmove
    - da /2 m fcmovbe
    - da /3 m fcmovu
    - db /0 m fcmovnb
    - db /1 m fcmovne
    - db /2 m fcmovnbe
    - db /3 m fcmovnu
    - d9d0 . . fnop
    - d9e0 . . fchs
    - d9e1 . . fabs
    - d9e4 . . ftst
    - d9e5 . . fxam
    - d9e8 . . fld1
    - d9e9 . . fldl2t
    - d9ea . . fldl2e
    - d9eb . . fldpi
    - d9ec . . fldlg2
    - d9ed . . fldln2
    - d9ee . . fldz
    - d9f4 . . fxtract
    - d9f5 . . fprem1
    - d9f6 . . fdecstp
    - d9f7 . . fincstp
    - d9f8 . . fprem
    - d9fa . . fsqrt
    - d9fc . . frndint
    - d9fd . . fscale
    - d9 /5 M fldcw
    - d9 /7 M fnstcw
    - dd /7 M fnstsw
    - dfe0 . . fnstsw_ax
    - dbe2 . . fnclex
    - dbe3 . . fninit
    - 9b . . fwait
";

#[test]
#[ignore = "for AMD processors, whose choices in the x87 unit the emulator follows; `cargo xtask unit` runs it there"]
fn results_flags_and_the_stack_are_the_processors() {
    let templates = Template::parse_all(EXACT);
    run_all(&templates, 2500, 4, Precision::Exact, operands::stack);
}

/// The transcendental functions.
const TRANSCENDENTAL: &str = "
    - d9f0 . . f2xm1
    - d9f1 . . fyl2x
    - d9f2 . . fptan
    - d9f3 . . fpatan
    - d9f9 . . fyl2xp1
    - d9fb . . fsincos
    - d9fe . . fsin
    - d9ff . . fcos
";

#[test]
#[ignore = "for AMD processors, whose choices in the x87 unit the emulator follows; `cargo xtask unit` runs it there"]
fn transcendental_functions_are_close_to_the_processors() {
    let templates = Template::parse_all(TRANSCENDENTAL);
    run_all(
        &templates,
        2500,
        6,
        Precision::Transcendental,
        operands::stack,
    );
}
