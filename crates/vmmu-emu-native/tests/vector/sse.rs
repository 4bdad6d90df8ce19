//! Vector instructions, compared with the processor's own on random operands: NaNs, denormal numbers and infinities among them, in every rounding mode.

use crate::compare::{Precision, run_all};
use crate::encoding::Template;

/// Moves, logic, integers.
const INTEGERS: &str = "
    - 0f60 m mM punpcklbw_mm
    66 0f60 x xM punpcklbw
    - 0f61 m mM punpcklwd_mm
    66 0f61 x xM punpcklwd
    - 0f62 m mM punpckldq_mm
    66 0f62 x xM punpckldq
    - 0f63 m mM packsswb_mm
    66 0f63 x xM packsswb
    - 0f64 m mM pcmpgtb_mm
    66 0f64 x xM pcmpgtb
    - 0f65 m mM pcmpgtw_mm
    66 0f65 x xM pcmpgtw
    - 0f66 m mM pcmpgtd_mm
    66 0f66 x xM pcmpgtd
    - 0f67 m mM packuswb_mm
    66 0f67 x xM packuswb
    - 0f68 m mM punpckhbw_mm
    66 0f68 x xM punpckhbw
    - 0f69 m mM punpckhwd_mm
    66 0f69 x xM punpckhwd
    - 0f6a m mM punpckhdq_mm
    66 0f6a x xM punpckhdq
    - 0f6b m mM packssdw_mm
    66 0f6b x xM packssdw
    - 0f74 m mM pcmpeqb_mm
    66 0f74 x xM pcmpeqb
    - 0f75 m mM pcmpeqw_mm
    66 0f75 x xM pcmpeqw
    - 0f76 m mM pcmpeqd_mm
    66 0f76 x xM pcmpeqd
    - 0fd1 m mM psrlw_mm
    66 0fd1 x xM psrlw
    - 0fd2 m mM psrld_mm
    66 0fd2 x xM psrld
    - 0fd3 m mM psrlq_mm
    66 0fd3 x xM psrlq
    - 0fd4 m mM paddq_mm
    66 0fd4 x xM paddq
    - 0fd5 m mM pmullw_mm
    66 0fd5 x xM pmullw
    - 0fd8 m mM psubusb_mm
    66 0fd8 x xM psubusb
    - 0fd9 m mM psubusw_mm
    66 0fd9 x xM psubusw
    - 0fda m mM pminub_mm
    66 0fda x xM pminub
    - 0fdb m mM pand_mm
    66 0fdb x xM pand
    - 0fdc m mM paddusb_mm
    66 0fdc x xM paddusb
    - 0fdd m mM paddusw_mm
    66 0fdd x xM paddusw
    - 0fde m mM pmaxub_mm
    66 0fde x xM pmaxub
    - 0fdf m mM pandn_mm
    66 0fdf x xM pandn
    - 0fe0 m mM pavgb_mm
    66 0fe0 x xM pavgb
    - 0fe1 m mM psraw_mm
    66 0fe1 x xM psraw
    - 0fe2 m mM psrad_mm
    66 0fe2 x xM psrad
    - 0fe3 m mM pavgw_mm
    66 0fe3 x xM pavgw
    - 0fe4 m mM pmulhuw_mm
    66 0fe4 x xM pmulhuw
    - 0fe5 m mM pmulhw_mm
    66 0fe5 x xM pmulhw
    - 0fe8 m mM psubsb_mm
    66 0fe8 x xM psubsb
    - 0fe9 m mM psubsw_mm
    66 0fe9 x xM psubsw
    - 0fea m mM pminsw_mm
    66 0fea x xM pminsw
    - 0feb m mM por_mm
    66 0feb x xM por
    - 0fec m mM paddsb_mm
    66 0fec x xM paddsb
    - 0fed m mM paddsw_mm
    66 0fed x xM paddsw
    - 0fee m mM pmaxsw_mm
    66 0fee x xM pmaxsw
    - 0fef m mM pxor_mm
    66 0fef x xM pxor
    - 0ff1 m mM psllw_mm
    66 0ff1 x xM psllw
    - 0ff2 m mM pslld_mm
    66 0ff2 x xM pslld
    - 0ff3 m mM psllq_mm
    66 0ff3 x xM psllq
    - 0ff4 m mM pmuludq_mm
    66 0ff4 x xM pmuludq
    - 0ff5 m mM pmaddwd_mm
    66 0ff5 x xM pmaddwd
    - 0ff6 m mM psadbw_mm
    66 0ff6 x xM psadbw
    - 0ff8 m mM psubb_mm
    66 0ff8 x xM psubb
    - 0ff9 m mM psubw_mm
    66 0ff9 x xM psubw
    - 0ffa m mM psubd_mm
    66 0ffa x xM psubd
    - 0ffb m mM psubq_mm
    66 0ffb x xM psubq
    - 0ffc m mM paddb_mm
    66 0ffc x xM paddb
    - 0ffd m mM paddw_mm
    66 0ffd x xM paddw
    - 0ffe m mM paddd_mm
    66 0ffe x xM paddd
    - 0f3800 m mM pshufb_mm
    66 0f3800 x xM pshufb
    - 0f3804 m mM pmaddubsw_mm
    66 0f3804 x xM pmaddubsw
    - 0f3808 m mM psignb_mm
    66 0f3808 x xM psignb
    - 0f3809 m mM psignw_mm
    66 0f3809 x xM psignw
    - 0f380a m mM psignd_mm
    66 0f380a x xM psignd
    - 0f380b m mM pmulhrsw_mm
    66 0f380b x xM pmulhrsw
    - 0f381c m mM pabsb_mm
    66 0f381c x xM pabsb
    - 0f381d m mM pabsw_mm
    66 0f381d x xM pabsw
    - 0f381e m mM pabsd_mm
    66 0f381e x xM pabsd
    - 0f3a0f m mM i palignr_mm
    66 0f3a0f x xM i palignr
    - 0f3801 m mM phaddw_mm
    66 0f3801 x xM phaddw
    - 0f3802 m mM phaddd_mm
    66 0f3802 x xM phaddd
    - 0f3803 m mM phaddsw_mm
    66 0f3803 x xM phaddsw
    - 0f3805 m mM phsubw_mm
    66 0f3805 x xM phsubw
    - 0f3806 m mM phsubd_mm
    66 0f3806 x xM phsubd
    - 0f3807 m mM phsubsw_mm
    66 0f3807 x xM phsubsw
    66 0f6c x xM punpcklqdq
    66 0f6d x xM punpckhqdq
    66 0f70 x xM i pshufd
    f3 0f70 x xM i pshufhw
    f2 0f70 x xM i pshuflw
    - 0f70 m mM i pshufw
    - 0f71 /2 m i psrlw_imm_mm
    - 0f71 /4 m i psraw_imm_mm
    - 0f71 /6 m i psllw_imm_mm
    - 0f72 /2 m i psrld_imm_mm
    - 0f72 /4 m i psrad_imm_mm
    - 0f72 /6 m i pslld_imm_mm
    - 0f73 /2 m i psrlq_imm_mm
    - 0f73 /6 m i psllq_imm_mm
    66 0f71 /2 x i psrlw_imm
    66 0f71 /4 x i psraw_imm
    66 0f71 /6 x i psllw_imm
    66 0f72 /2 x i psrld_imm
    66 0f72 /4 x i psrad_imm
    66 0f72 /6 x i pslld_imm
    66 0f73 /2 x i psrlq_imm
    66 0f73 /3 x i psrldq
    66 0f73 /6 x i psllq_imm
    66 0f73 /7 x i pslldq
    - 0fc6 x xM i shufps
    66 0fc6 x xM i shufpd
    - 0fc4 m gM i pinsrw_mm
    66 0fc4 x gM i pinsrw
    - 0fc5 g m i pextrw_mm
    66 0fc5 G x i pextrw
    - 0fd7 g m pmovmskb_mm
    66 0fd7 g x pmovmskb
    - 0f50 G x movmskps
    66 0f50 g x movmskpd
    - 0f14 x xM unpcklps
    66 0f14 x xM unpcklpd
    - 0f15 x xM unpckhps
    66 0f15 x xM unpckhpd
    - 0f54 x xM andps
    66 0f54 x xM andpd
    - 0f55 x xM andnps
    66 0f55 x xM andnpd
    - 0f56 x xM orps
    66 0f56 x xM orpd
    - 0f57 x xM xorps
    66 0f57 x xM xorpd
    - 0f10 x xM movups
    66 0f10 x xM movupd
    f3 0f10 x xM movss
    f2 0f10 x xM movsd
    - 0f11 x xM movups_store
    66 0f11 x xM movupd_store
    f3 0f11 x xM movss_store
    f2 0f11 x xM movsd_store
    - 0f12 x xM movlps
    66 0f12 x M movlpd
    f3 0f12 x xM movsldup
    f2 0f12 x xM movddup
    - 0f13 x M movlps_store
    66 0f13 x M movlpd_store
    - 0f16 x xM movhps
    66 0f16 x M movhpd
    f3 0f16 x xM movshdup
    - 0f17 x M movhps_store
    66 0f17 x M movhpd_store
    - 0f28 x xM movaps
    66 0f28 x xM movapd
    - 0f29 x xM movaps_store
    66 0f29 x xM movapd_store
    - 0f2b x M movntps
    66 0f2b x M movntpd
    - 0f6e m gM movd_mm
    66 0f6e x gM movd
    - 0f7e m gM movd_store_mm
    66 0f7e x gM movd_store
    - 0f6f m mM movq_mm
    66 0f6f x xM movdqa
    f3 0f6f x xM movdqu
    - 0f7f m mM movq_store_mm
    66 0f7f x xM movdqa_store
    f3 0f7f x xM movdqu_store
    f3 0f7e x xM movq
    66 0fd6 x xM movq_store
    f3 0fd6 x m movq2dq
    f2 0fd6 m x movdq2q
    - 0fe7 m M movntq
    66 0fe7 x M movntdq
    f2 0ff0 x M lddqu
    - 0fc3 g M movnti
    - 0ff7 m m maskmovq
    66 0ff7 x x maskmovdqu
    - 0f77 . . emms
";

/// Floating-point arithmetic, comparisons, conversions.
const FLOATS: &str = "
    - 0f51 x xM sqrtps
    66 0f51 x xM sqrtpd
    f3 0f51 x xM sqrtss
    f2 0f51 x xM sqrtsd
    - 0f58 x xM addps
    66 0f58 x xM addpd
    f3 0f58 x xM addss
    f2 0f58 x xM addsd
    - 0f59 x xM mulps
    66 0f59 x xM mulpd
    f3 0f59 x xM mulss
    f2 0f59 x xM mulsd
    - 0f5c x xM subps
    66 0f5c x xM subpd
    f3 0f5c x xM subss
    f2 0f5c x xM subsd
    - 0f5d x xM minps
    66 0f5d x xM minpd
    f3 0f5d x xM minss
    f2 0f5d x xM minsd
    - 0f5e x xM divps
    66 0f5e x xM divpd
    f3 0f5e x xM divss
    f2 0f5e x xM divsd
    - 0f5f x xM maxps
    66 0f5f x xM maxpd
    f3 0f5f x xM maxss
    f2 0f5f x xM maxsd
    - 0fc2 x xM i cmpps
    66 0fc2 x xM i cmppd
    f3 0fc2 x xM i cmpss
    f2 0fc2 x xM i cmpsd
    - 0f2e x xM ucomiss
    66 0f2e x xM ucomisd
    - 0f2f x xM comiss
    66 0f2f x xM comisd
    66 0f7c x xM haddpd
    f2 0f7c x xM haddps
    66 0f7d x xM hsubpd
    f2 0f7d x xM hsubps
    66 0fd0 x xM addsubpd
    f2 0fd0 x xM addsubps
    - 0f5a x xM cvtps2pd
    66 0f5a x xM cvtpd2ps
    f3 0f5a x xM cvtss2sd
    f2 0f5a x xM cvtsd2ss
    - 0f5b x xM cvtdq2ps
    66 0f5b x xM cvtps2dq
    f3 0f5b x xM cvttps2dq
    f3 0fe6 x xM cvtdq2pd
    f2 0fe6 x xM cvtpd2dq
    66 0fe6 x xM cvttpd2dq
    - 0f2a x mM cvtpi2ps
    66 0f2a x mM cvtpi2pd
    - 0f2d m xM cvtps2pi
    - 0f2c m xM cvttps2pi
    66 0f2d m xM cvtpd2pi
    66 0f2c m xM cvttpd2pi
    f3 0f2a x gM cvtsi2ss
    f2 0f2a x gM cvtsi2sd
    f3 0f2d g xM cvtss2si
    f3 0f2c g xM cvttss2si
    f2 0f2d g xM cvtsd2si
    f2 0f2c g xM cvttsd2si
    f3 0f2d G xM cvtss2si_64
    f3 0f2c G xM cvttss2si_64
    f2 0f2d G xM cvtsd2si_64
    f2 0f2c G xM cvttsd2si_64
    f3 480f2a x gM cvtsi2ss_64
    f2 480f2a x gM cvtsi2sd_64
";

/// Results that the manuals bound only.
const APPROXIMATIONS: &str = "
    - 0f52 x xM rsqrtps
    f3 0f52 x xM rsqrtss
    - 0f53 x xM rcpps
    f3 0f53 x xM rcpss
";

#[test]
fn integer_vectors_are_what_the_processor_makes_of_them() {
    let templates = Template::parse_all(INTEGERS);
    run_all(&templates, 500, 1, Precision::Exact, |_, _| {});
}

#[test]
fn floating_point_results_and_flags_are_the_processors() {
    let templates = Template::parse_all(FLOATS);
    run_all(&templates, 4000, 2, Precision::Exact, |_, _| {});
}

#[test]
fn approximations_are_within_the_manuals_bounds() {
    let templates = Template::parse_all(APPROXIMATIONS);
    run_all(&templates, 2000, 3, Precision::Approximate, |_, _| {});
}
