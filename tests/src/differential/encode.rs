//! Instruction words: formats of the unprivileged specification, chapter 2, and the few
//! named instructions that hand-written code needs.

/// `x0`.
pub const ZERO: u32 = 0;
/// Return address.
pub const RA: u32 = 1;
/// `x2`.
pub const SP: u32 = 2;
/// `x3`.
pub const GP: u32 = 3;
/// `x4`.
pub const TP: u32 = 4;
/// `x5`.
pub const T0: u32 = 5;
/// `x6`.
pub const T1: u32 = 6;
/// `x7`.
pub const T2: u32 = 7;
/// `x8`.
pub const S0: u32 = 8;
/// `x10`.
pub const A0: u32 = 10;
/// `x11`.
pub const A1: u32 = 11;
/// `x12`.
pub const A2: u32 = 12;
/// `x28`.
pub const T3: u32 = 28;
/// `x29`.
pub const T4: u32 = 29;
/// `x30`.
pub const T5: u32 = 30;
/// `x31`.
pub const T6: u32 = 31;

/// Numbers of the CSRs that programs name.
pub mod csr {
    #![allow(missing_docs, reason = "named as in the privileged specification")]
    pub const FFLAGS: u32 = 0x001;
    pub const FRM: u32 = 0x002;
    pub const FCSR: u32 = 0x003;
    pub const SSTATUS: u32 = 0x100;
    pub const SIE: u32 = 0x104;
    pub const STVEC: u32 = 0x105;
    pub const SCOUNTEREN: u32 = 0x106;
    pub const SENVCFG: u32 = 0x10a;
    pub const SSCRATCH: u32 = 0x140;
    pub const SEPC: u32 = 0x141;
    pub const SCAUSE: u32 = 0x142;
    pub const STVAL: u32 = 0x143;
    pub const SIP: u32 = 0x144;
    pub const STIMECMP: u32 = 0x14d;
    pub const SATP: u32 = 0x180;
    pub const MSTATUS: u32 = 0x300;
    pub const MISA: u32 = 0x301;
    pub const MEDELEG: u32 = 0x302;
    pub const MIDELEG: u32 = 0x303;
    pub const MIE: u32 = 0x304;
    pub const MTVEC: u32 = 0x305;
    pub const MCOUNTEREN: u32 = 0x306;
    pub const MENVCFG: u32 = 0x30a;
    pub const MCOUNTINHIBIT: u32 = 0x320;
    pub const MSCRATCH: u32 = 0x340;
    pub const MEPC: u32 = 0x341;
    pub const MCAUSE: u32 = 0x342;
    pub const MTVAL: u32 = 0x343;
    pub const MIP: u32 = 0x344;
    pub const PMPCFG0: u32 = 0x3a0;
    pub const PMPADDR0: u32 = 0x3b0;
    pub const MHARTID: u32 = 0xf14;
    pub const MCONFIGPTR: u32 = 0xf15;
    pub const MCYCLE: u32 = 0xb00;
    pub const MINSTRET: u32 = 0xb02;
    pub const CYCLE: u32 = 0xc00;
    pub const TIME: u32 = 0xc01;
    pub const INSTRET: u32 = 0xc02;
}

/// R-type. `base` holds opcode, funct3 and funct7 in place.
pub const fn r(base: u32, rd: u32, rs1: u32, rs2: u32) -> u32 {
    base | rd << 7 | rs1 << 15 | rs2 << 20
}

/// R4-type: the fused multiply-adds.
pub const fn r4(base: u32, rd: u32, rs1: u32, rs2: u32, rs3: u32) -> u32 {
    r(base, rd, rs1, rs2) | rs3 << 27
}

/// I-type. `base` holds opcode and funct3 in place.
pub const fn i(base: u32, rd: u32, rs1: u32, imm: i32) -> u32 {
    base | rd << 7 | rs1 << 15 | (imm as u32) << 20
}

/// S-type.
pub const fn s(base: u32, rs1: u32, rs2: u32, imm: i32) -> u32 {
    let imm = imm as u32;
    base | (imm & 31) << 7 | rs1 << 15 | rs2 << 20 | (imm >> 5) << 25
}

/// B-type.
pub const fn b(base: u32, rs1: u32, rs2: u32, offset: i32) -> u32 {
    let imm = offset as u32;
    let low = (imm >> 1 & 15) << 8 | (imm >> 11 & 1) << 7;
    let high = (imm >> 5 & 63) << 25 | (imm >> 12 & 1) << 31;
    base | low | rs1 << 15 | rs2 << 20 | high
}

/// U-type: `imm` is the value whose upper 20 bits count.
pub const fn u(base: u32, rd: u32, imm: u32) -> u32 {
    base | rd << 7 | imm & 0xffff_f000
}

/// J-type.
pub const fn j(base: u32, rd: u32, offset: i32) -> u32 {
    let imm = offset as u32;
    let low = imm & 0xf_f000 | (imm >> 11 & 1) << 20;
    let high = (imm >> 1 & 0x3ff) << 21 | (imm >> 20 & 1) << 31;
    base | rd << 7 | low | high
}

/// Opcode, funct3 and funct7 of an instruction of the OP major opcodes.
pub const fn op(opcode: u32, funct3: u32, funct7: u32) -> u32 {
    opcode | funct3 << 12 | funct7 << 25
}

/// `addi`.
pub const fn addi(rd: u32, rs1: u32, imm: i32) -> u32 {
    i(0x13, rd, rs1, imm)
}

/// `addiw`.
pub const fn addiw(rd: u32, rs1: u32, imm: i32) -> u32 {
    i(0x1b, rd, rs1, imm)
}

/// `andi`.
pub const fn andi(rd: u32, rs1: u32, imm: i32) -> u32 {
    i(0x7013, rd, rs1, imm)
}

/// `slli`.
pub const fn slli(rd: u32, rs1: u32, shift: u32) -> u32 {
    i(0x1013, rd, rs1, shift as i32)
}

/// `srli`.
pub const fn srli(rd: u32, rs1: u32, shift: u32) -> u32 {
    i(0x5013, rd, rs1, shift as i32)
}

/// `add`.
pub const fn add(rd: u32, rs1: u32, rs2: u32) -> u32 {
    r(0x33, rd, rs1, rs2)
}

/// `lui`.
pub const fn lui(rd: u32, imm: u32) -> u32 {
    u(0x37, rd, imm)
}

/// `auipc`.
pub const fn auipc(rd: u32, imm: u32) -> u32 {
    u(0x17, rd, imm)
}

/// `ld`.
pub const fn ld(rd: u32, rs1: u32, imm: i32) -> u32 {
    i(0x3003, rd, rs1, imm)
}

/// `lw`.
pub const fn lw(rd: u32, rs1: u32, imm: i32) -> u32 {
    i(0x2003, rd, rs1, imm)
}

/// `lhu`.
pub const fn lhu(rd: u32, rs1: u32, imm: i32) -> u32 {
    i(0x5003, rd, rs1, imm)
}

/// `sd`.
pub const fn sd(rs2: u32, rs1: u32, imm: i32) -> u32 {
    s(0x3023, rs1, rs2, imm)
}

/// `sw`.
pub const fn sw(rs2: u32, rs1: u32, imm: i32) -> u32 {
    s(0x2023, rs1, rs2, imm)
}

/// `fld`.
pub const fn fld(rd: u32, rs1: u32, imm: i32) -> u32 {
    i(0x3007, rd, rs1, imm)
}

/// `fsd`.
pub const fn fsd(rs2: u32, rs1: u32, imm: i32) -> u32 {
    s(0x3027, rs1, rs2, imm)
}

/// `jalr`.
pub const fn jalr(rd: u32, rs1: u32, imm: i32) -> u32 {
    i(0x67, rd, rs1, imm)
}

/// `csrrw`.
pub const fn csrrw(rd: u32, csr: u32, rs1: u32) -> u32 {
    i(0x1073, rd, rs1, csr as i32)
}

/// `csrrs`.
pub const fn csrrs(rd: u32, csr: u32, rs1: u32) -> u32 {
    i(0x2073, rd, rs1, csr as i32)
}

/// `csrrc`.
pub const fn csrrc(rd: u32, csr: u32, rs1: u32) -> u32 {
    i(0x3073, rd, rs1, csr as i32)
}

/// `ecall`.
pub const ECALL: u32 = 0x0000_0073;
/// `ebreak`.
pub const EBREAK: u32 = 0x0010_0073;
/// `sret`.
pub const SRET: u32 = 0x1020_0073;
/// `mret`.
pub const MRET: u32 = 0x3020_0073;
/// `wfi`.
pub const WFI: u32 = 0x1050_0073;
/// `fence`.
pub const FENCE: u32 = 0x0ff0_000f;
/// `fence.i`.
pub const FENCE_I: u32 = 0x0000_100f;
/// `sfence.vma x0, x0`.
pub const SFENCE_VMA: u32 = 0x1200_0073;
/// `nop`.
pub const NOP: u32 = 0x0000_0013;
/// `c.nop`.
pub const C_NOP: u16 = 0x0001;
/// `c.jr ra`.
pub const C_RET: u16 = 0x8082;
/// `c.ebreak`.
pub const C_EBREAK: u16 = 0x9002;
