//! What an instruction is, apart from its operands: one name for the interpreter, which has a
//! handler for each, and for the translator.

use super::op::Handler;
use super::{atomic, branch, entry, float, integer, memory, stops, system};

macro_rules! kinds {
    ($($kind:ident = $handler:path;)*) => {
        /// An instruction without its operands; named as its handler.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub(super) enum Kind {
            $($kind,)*
        }

        impl Kind {
            /// The function that executes it.
            pub fn handler(self) -> Handler {
                match self {
                    $(Kind::$kind => $handler,)*
                }
            }
        }
    };
}

kinds! {
Auipc = integer::auipc;
    LoadImmediate = integer::load_immediate;
    Nothing = integer::nothing;
    Copy = integer::copy;
    Addi = integer::addi;
    Slti = integer::slti;
    Sltiu = integer::sltiu;
    Xori = integer::xori;
    Ori = integer::ori;
    Andi = integer::andi;
    Slli = integer::slli;
    Bseti = integer::bseti;
    Bclri = integer::bclri;
    Binvi = integer::binvi;
    Clz = integer::clz;
    Ctz = integer::ctz;
    Cpop = integer::cpop;
    SextB = integer::sext_b;
    SextH = integer::sext_h;
    Srli = integer::srli;
    Srai = integer::srai;
    Bexti = integer::bexti;
    Rori = integer::rori;
    OrcB = integer::orc_b;
    Rev8 = integer::rev8;
    Addiw = integer::addiw;
    Slliw = integer::slliw;
    SlliUw = integer::slli_uw;
    Clzw = integer::clzw;
    Ctzw = integer::ctzw;
    Cpopw = integer::cpopw;
    Srliw = integer::srliw;
    Sraiw = integer::sraiw;
    Roriw = integer::roriw;
    Add = integer::add;
    Sll = integer::sll;
    Slt = integer::slt;
    Sltu = integer::sltu;
    Xor = integer::xor;
    Srl = integer::srl;
    Or = integer::or;
    And = integer::and;
    Sub = integer::sub;
    Sra = integer::sra;
    Mul = integer::mul;
    Mulh = integer::mulh;
    Mulhsu = integer::mulhsu;
    Mulhu = integer::mulhu;
    Div = integer::div;
    Divu = integer::divu;
    Rem = integer::rem;
    Remu = integer::remu;
    Sh1add = integer::sh1add;
    Sh2add = integer::sh2add;
    Sh3add = integer::sh3add;
    Xnor = integer::xnor;
    Orn = integer::orn;
    Andn = integer::andn;
    Min = integer::min;
    Minu = integer::minu;
    Max = integer::max;
    Maxu = integer::maxu;
    Rol = integer::rol;
    Ror = integer::ror;
    Bclr = integer::bclr;
    Bext = integer::bext;
    Binv = integer::binv;
    Bset = integer::bset;
    CzeroEqz = integer::czero_eqz;
    CzeroNez = integer::czero_nez;
    Addw = integer::addw;
    Sllw = integer::sllw;
    Srlw = integer::srlw;
    Subw = integer::subw;
    Sraw = integer::sraw;
    Mulw = integer::mulw;
    Divw = integer::divw;
    Divuw = integer::divuw;
    Remw = integer::remw;
    Remuw = integer::remuw;
    AddUw = integer::add_uw;
    ZextH = integer::zext_h;
    Sh1addUw = integer::sh1add_uw;
    Sh2addUw = integer::sh2add_uw;
    Sh3addUw = integer::sh3add_uw;
    Rolw = integer::rolw;
    Rorw = integer::rorw;
    Jalr = branch::jalr;
    Jal = branch::jal;
    Beq = branch::beq;
    Bne = branch::bne;
    Blt = branch::blt;
    Bge = branch::bge;
    Bltu = branch::bltu;
    Bgeu = branch::bgeu;
    Lb = memory::lb;
    Lh = memory::lh;
    Lw = memory::lw;
    Ld = memory::ld;
    Lbu = memory::lbu;
    Lhu = memory::lhu;
    Lwu = memory::lwu;
    Flw = memory::flw;
    Fld = memory::fld;
    Sb = memory::sb;
    Sh = memory::sh;
    Sw = memory::sw;
    Sd = memory::sd;
    Fsw = memory::fsw;
    Fsd = memory::fsd;
    LoadReserved = atomic::load_reserved;
    StoreConditional = atomic::store_conditional;
    AmoaddW = atomic::amoadd_w;
    AmoaddD = atomic::amoadd_d;
    AmoswapW = atomic::amoswap_w;
    AmoswapD = atomic::amoswap_d;
    AmoxorW = atomic::amoxor_w;
    AmoxorD = atomic::amoxor_d;
    AmoorW = atomic::amoor_w;
    AmoorD = atomic::amoor_d;
    AmoandW = atomic::amoand_w;
    AmoandD = atomic::amoand_d;
    AmominW = atomic::amomin_w;
    AmominD = atomic::amomin_d;
    AmomaxW = atomic::amomax_w;
    AmomaxD = atomic::amomax_d;
    AmominuW = atomic::amominu_w;
    AmominuD = atomic::amominu_d;
    AmomaxuW = atomic::amomaxu_w;
    AmomaxuD = atomic::amomaxu_d;
    FmaddS = float::fmadd_s;
    FmaddD = float::fmadd_d;
    FmsubS = float::fmsub_s;
    FmsubD = float::fmsub_d;
    FnmsubS = float::fnmsub_s;
    FnmsubD = float::fnmsub_d;
    FnmaddS = float::fnmadd_s;
    FnmaddD = float::fnmadd_d;
    FaddS = float::fadd_s;
    FaddD = float::fadd_d;
    FsubS = float::fsub_s;
    FsubD = float::fsub_d;
    FmulS = float::fmul_s;
    FmulD = float::fmul_d;
    FdivS = float::fdiv_s;
    FdivD = float::fdiv_d;
    FsqrtS = float::fsqrt_s;
    FsqrtD = float::fsqrt_d;
    FsgnjS = float::fsgnj_s;
    FsgnjD = float::fsgnj_d;
    FsgnjnS = float::fsgnjn_s;
    FsgnjnD = float::fsgnjn_d;
    FsgnjxS = float::fsgnjx_s;
    FsgnjxD = float::fsgnjx_d;
    FminS = float::fmin_s;
    FminD = float::fmin_d;
    FmaxS = float::fmax_s;
    FmaxD = float::fmax_d;
    FcvtSD = float::fcvt_s_d;
    FcvtDS = float::fcvt_d_s;
    FleS = float::fle_s;
    FleD = float::fle_d;
    FltS = float::flt_s;
    FltD = float::flt_d;
    FeqS = float::feq_s;
    FeqD = float::feq_d;
    FcvtWS = float::fcvt_w_s;
    FcvtWD = float::fcvt_w_d;
    FcvtWuS = float::fcvt_wu_s;
    FcvtWuD = float::fcvt_wu_d;
    FcvtLS = float::fcvt_l_s;
    FcvtLD = float::fcvt_l_d;
    FcvtLuS = float::fcvt_lu_s;
    FcvtLuD = float::fcvt_lu_d;
    FcvtSW = float::fcvt_s_w;
    FcvtDW = float::fcvt_d_w;
    FcvtSWu = float::fcvt_s_wu;
    FcvtDWu = float::fcvt_d_wu;
    FcvtSL = float::fcvt_s_l;
    FcvtDL = float::fcvt_d_l;
    FcvtSLu = float::fcvt_s_lu;
    FcvtDLu = float::fcvt_d_lu;
    FmvXW = float::fmv_x_w;
    FmvXD = float::fmv_x_d;
    FclassS = float::fclass_s;
    FclassD = float::fclass_d;
    FmvWX = float::fmv_w_x;
    FmvDX = float::fmv_d_x;
    Illegal = system::illegal;
    CboMaintain = system::cbo_maintain;
    CboZero = system::cbo_zero;
    Csr = system::csr;
    Ecall = system::ecall;
    Ebreak = system::ebreak;
    Sret = system::sret;
    Mret = system::mret;
    Wfi = system::wfi;
    SfenceVma = system::sfence_vma;
    Pause = system::pause;
    Guard = stops::guard;
    Enter = entry::enter;
}

impl Kind {
    /// Whether ops of this kind have a link behind them.
    pub fn has_link(self) -> bool {
        use Kind::*;
        matches!(self, Beq | Bne | Blt | Bge | Bltu | Bgeu | Jal | Jalr)
    }

    /// Whether such an op ends its block.
    pub fn ends_block(self) -> bool {
        matches!(self, Kind::Jal | Kind::Jalr | Kind::Illegal | Kind::Ebreak)
    }

    /// The function that executes a jump or branch to another page.
    pub fn far_handler(self) -> Handler {
        match self {
            Kind::Beq => branch::beq_far,
            Kind::Bne => branch::bne_far,
            Kind::Blt => branch::blt_far,
            Kind::Bge => branch::bge_far,
            Kind::Bltu => branch::bltu_far,
            Kind::Bgeu => branch::bgeu_far,
            Kind::Jal => branch::jal_far,
            other => unreachable!("{other:?} has no target of its own"),
        }
    }
}
