//! Control and status registers.

use serde::{Deserialize, Serialize};

use super::Hart;
use super::mmu::is_satp_supported;
use super::pmp::{PMP_ENTRIES, Pmp};
use crate::bus::Bus;

/// A privilege mode, numbered as in `mstatus.MPP`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum Privilege {
    /// U-mode.
    User = 0,
    /// S-mode.
    Supervisor = 1,
    /// M-mode.
    Machine = 3,
}

impl Privilege {
    /// Mode 2 does not exist; `mstatus.MPP` never holds it.
    pub(super) fn from_bits(bits: u64) -> Privilege {
        match bits & 3 {
            0 => Privilege::User,
            1 => Privilege::Supervisor,
            _ => Privilege::Machine,
        }
    }
}

pub(super) const STATUS_SIE: u64 = 1 << 1;
pub(super) const STATUS_MIE: u64 = 1 << 3;
pub(super) const STATUS_SPIE: u64 = 1 << 5;
pub(super) const STATUS_MPIE: u64 = 1 << 7;
pub(super) const STATUS_SPP: u64 = 1 << 8;
pub(super) const STATUS_MPP_SHIFT: u32 = 11;
pub(super) const STATUS_MPP: u64 = 3 << STATUS_MPP_SHIFT;
pub(super) const STATUS_FS: u64 = 3 << 13;
pub(super) const STATUS_MPRV: u64 = 1 << 17;
pub(super) const STATUS_SUM: u64 = 1 << 18;
pub(super) const STATUS_MXR: u64 = 1 << 19;
pub(super) const STATUS_TVM: u64 = 1 << 20;
pub(super) const STATUS_TW: u64 = 1 << 21;
pub(super) const STATUS_TSR: u64 = 1 << 22;
/// UXL and SXL: 64 bits, and nothing else.
const STATUS_XLEN: u64 = STATUS_SUPERVISOR_XLEN | 2 << 34;
/// Of these, UXL, which is all that `sstatus` has.
pub(super) const STATUS_SUPERVISOR_XLEN: u64 = 2 << 32;
pub(super) const STATUS_SD: u64 = 1 << 63;
pub(super) const STATUS_SUPERVISOR_WRITABLE: u64 =
    STATUS_SIE | STATUS_SPIE | STATUS_SPP | STATUS_FS | STATUS_SUM | STATUS_MXR;
const STATUS_SUPERVISOR_READABLE: u64 = STATUS_SUPERVISOR_WRITABLE | 3 << 32 | STATUS_SD;
const STATUS_WRITABLE: u64 = STATUS_SUPERVISOR_WRITABLE
    | STATUS_MIE
    | STATUS_MPIE
    | STATUS_MPP
    | STATUS_MPRV
    | STATUS_TVM
    | STATUS_TW
    | STATUS_TSR;

/// Supervisor software interrupt, in `mip`.
pub const MIP_SSIP: u64 = 1 << 1;
/// Supervisor timer interrupt, in `mip`.
pub const MIP_STIP: u64 = 1 << 5;
/// Supervisor external interrupt, in `mip`.
pub const MIP_SEIP: u64 = 1 << 9;
const MIP_SUPERVISOR: u64 = MIP_SSIP | MIP_STIP | MIP_SEIP;
const MIP_ALL: u64 = MIP_SUPERVISOR | 1 << 3 | 1 << 7 | 1 << 11;

/// The exceptions that can be delegated: all but `ecall` from M-mode.
const EXCEPTIONS_DELEGABLE: u64 = 0xb3ff;
/// What firmware delegates: all but `ecall` from S-mode, which is the SBI.
const EXCEPTIONS_FIRMWARE: u64 = EXCEPTIONS_DELEGABLE & !(1 << 9);
/// CY, TM, IR.
const COUNTERS: u64 = 7;
const COUNTER_TIME: u64 = 1 << 1;

const ENVCFG_FIOM: u64 = 1 << 0;
/// `cbo.inval`: 01 makes it a flush, 11 lets it be.
pub(super) const ENVCFG_CBIE: u64 = 3 << 4;
/// `cbo.clean` and `cbo.flush`.
pub(super) const ENVCFG_CBCFE: u64 = 1 << 6;
/// `cbo.zero`.
pub(super) const ENVCFG_CBZE: u64 = 1 << 7;
const SENVCFG_WRITABLE: u64 = ENVCFG_FIOM | ENVCFG_CBIE | ENVCFG_CBCFE | ENVCFG_CBZE;
/// The hart updates accessed and dirty bits.
pub(super) const MENVCFG_ADUE: u64 = 1 << 61;
/// `stimecmp` works.
const MENVCFG_STCE: u64 = 1 << 63;
const MENVCFG_WRITABLE: u64 = SENVCFG_WRITABLE | MENVCFG_ADUE | MENVCFG_STCE;

/// RV64 IMAFDC with S and U.
const MISA_VALUE: u64 = 2 << 62 | 1 << 0 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 8 | 1 << 12 | 1 << 18 | 1 << 20;
pub(super) const CAUSE_WRITABLE: u64 = 1 << 63 | 0x3f;

/// The state behind the CSRs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named as in the privileged specification")]
pub struct Csrs {
    /// Without SD, UXL and SXL, which follow from the rest.
    pub mstatus: u64,
    pub medeleg: u64,
    pub mideleg: u64,
    pub mie: u64,
    /// The bits of `mip` that software sets: SSIP, STIP, SEIP.
    pub mip_software: u64,
    pub mtvec: u64,
    pub mscratch: u64,
    pub mepc: u64,
    pub mcause: u64,
    pub mtval: u64,
    pub mcounteren: u64,
    pub mcountinhibit: u64,
    pub menvcfg: u64,
    /// What `mcycle` reads more than icount; while inhibited, its value.
    pub cycle_offset: u64,
    /// What `minstret` reads more than icount; while inhibited, its value.
    pub instret_offset: u64,
    pub stvec: u64,
    pub sscratch: u64,
    pub sepc: u64,
    pub scause: u64,
    pub stval: u64,
    pub scounteren: u64,
    pub senvcfg: u64,
    pub satp: u64,
    pub stimecmp: u64,
    pub fflags: u8,
    pub frm: u8,
    pub pmp: Pmp,
}

/// The CSR does not exist or may not be accessed in this way.
#[derive(Debug)]
pub(super) struct IllegalAccess;

impl Csrs {
    /// After reset.
    pub fn reset() -> Csrs {
        Csrs {
            mstatus: 0,
            medeleg: 0,
            mideleg: 0,
            mie: 0,
            mip_software: 0,
            mtvec: 0,
            mscratch: 0,
            mepc: 0,
            mcause: 0,
            mtval: 0,
            mcounteren: 0,
            mcountinhibit: 0,
            menvcfg: MENVCFG_ADUE,
            cycle_offset: 0,
            instret_offset: 0,
            stvec: 0,
            sscratch: 0,
            sepc: 0,
            scause: 0,
            stval: 0,
            scounteren: 0,
            senvcfg: 0,
            satp: 0,
            stimecmp: u64::MAX,
            fflags: 0,
            frm: 0,
            pmp: Pmp::default(),
        }
    }

    /// As firmware leaves them to a kernel in S-mode.
    pub fn after_firmware() -> Csrs {
        Csrs {
            medeleg: EXCEPTIONS_FIRMWARE,
            mideleg: MIP_SUPERVISOR,
            mcounteren: COUNTERS,
            scounteren: COUNTERS,
            menvcfg: MENVCFG_WRITABLE & !ENVCFG_FIOM,
            pmp: Pmp::open(),
            ..Csrs::reset()
        }
    }

    /// The privilege under which data is accessed: MPRV lends that of MPP.
    pub(super) fn data_privilege(&self, privilege: Privilege) -> Privilege {
        if privilege == Privilege::Machine && self.mstatus & STATUS_MPRV != 0 {
            Privilege::from_bits(self.mstatus >> STATUS_MPP_SHIFT)
        } else {
            privilege
        }
    }

    fn mstatus_readable(&self) -> u64 {
        let dirty = if self.mstatus & STATUS_FS == STATUS_FS { STATUS_SD } else { 0 };
        self.mstatus | STATUS_XLEN | dirty
    }

    /// Whether `stimecmp` drives STIP.
    pub(super) fn has_timer(&self) -> bool {
        self.menvcfg & MENVCFG_STCE != 0
    }
}

pub(super) mod number {
    pub const FFLAGS: u16 = 0x001;
    pub const FRM: u16 = 0x002;
    pub const FCSR: u16 = 0x003;
    pub const SSTATUS: u16 = 0x100;
    pub const SIE: u16 = 0x104;
    pub const STVEC: u16 = 0x105;
    pub const SCOUNTEREN: u16 = 0x106;
    pub const SENVCFG: u16 = 0x10a;
    pub const SSCRATCH: u16 = 0x140;
    pub const SEPC: u16 = 0x141;
    pub const SCAUSE: u16 = 0x142;
    pub const STVAL: u16 = 0x143;
    pub const SIP: u16 = 0x144;
    pub const STIMECMP: u16 = 0x14d;
    pub const SATP: u16 = 0x180;
    pub const MSTATUS: u16 = 0x300;
    pub const MISA: u16 = 0x301;
    pub const MEDELEG: u16 = 0x302;
    pub const MIDELEG: u16 = 0x303;
    pub const MIE: u16 = 0x304;
    pub const MTVEC: u16 = 0x305;
    pub const MCOUNTEREN: u16 = 0x306;
    pub const MENVCFG: u16 = 0x30a;
    pub const MCOUNTINHIBIT: u16 = 0x320;
    pub const MHPMEVENT_FIRST: u16 = 0x323;
    pub const MHPMEVENT_LAST: u16 = 0x33f;
    pub const MSCRATCH: u16 = 0x340;
    pub const MEPC: u16 = 0x341;
    pub const MCAUSE: u16 = 0x342;
    pub const MTVAL: u16 = 0x343;
    pub const MIP: u16 = 0x344;
    pub const PMPCFG_FIRST: u16 = 0x3a0;
    pub const PMPCFG_LAST: u16 = 0x3ae;
    pub const PMPADDR_FIRST: u16 = 0x3b0;
    pub const PMPADDR_LAST: u16 = 0x3ef;
    pub const TSELECT: u16 = 0x7a0;
    pub const TDATA1: u16 = 0x7a1;
    pub const TDATA3: u16 = 0x7a3;
    pub const TINFO: u16 = 0x7a4;
    pub const MCYCLE: u16 = 0xb00;
    pub const MINSTRET: u16 = 0xb02;
    pub const MHPMCOUNTER_FIRST: u16 = 0xb03;
    pub const MHPMCOUNTER_LAST: u16 = 0xb1f;
    pub const CYCLE: u16 = 0xc00;
    pub const TIME: u16 = 0xc01;
    pub const INSTRET: u16 = 0xc02;
    pub const MVENDORID: u16 = 0xf11;
    pub const MARCHID: u16 = 0xf12;
    pub const MIMPID: u16 = 0xf13;
    pub const MHARTID: u16 = 0xf14;
    pub const MCONFIGPTR: u16 = 0xf15;
}
use number::*;

/// `tselect` can select trigger 0 only, which is of type 0: there is none.
const TINFO_NO_TRIGGER: u64 = 1 << 0;
/// Bits 0 and 2 of `mcountinhibit`.
const INHIBIT_CYCLE: u64 = 1 << 0;
const INHIBIT_INSTRET: u64 = 1 << 2;

impl Hart {
    /// Reads a CSR. `icount` is that before the instruction.
    pub(super) fn read_csr(
        &mut self,
        bus: &mut dyn Bus,
        icount: u64,
        csr: u16,
    ) -> Result<u64, IllegalAccess> {
        self.check_csr(csr)?;
        self.csr(bus, icount, csr).ok_or(IllegalAccess)
    }

    /// What a CSR holds, whatever the present mode may read; `None` where there is none.
    /// `icount` is that before the instruction.
    pub fn csr(&self, bus: &dyn Bus, icount: u64, csr: u16) -> Option<u64> {
        let csrs = &self.csrs;
        Some(match csr {
            FFLAGS => u64::from(csrs.fflags),
            FRM => u64::from(csrs.frm),
            FCSR => u64::from(csrs.frm) << 5 | u64::from(csrs.fflags),
            CYCLE | MCYCLE => self.counter(icount, INHIBIT_CYCLE, csrs.cycle_offset),
            INSTRET | MINSTRET => self.counter(icount, INHIBIT_INSTRET, csrs.instret_offset),
            TIME => bus.time(icount),
            SSTATUS => csrs.mstatus_readable() & STATUS_SUPERVISOR_READABLE,
            SIE => csrs.mie & csrs.mideleg & MIP_SUPERVISOR,
            STVEC => csrs.stvec,
            SCOUNTEREN => csrs.scounteren,
            SENVCFG => csrs.senvcfg,
            SSCRATCH => csrs.sscratch,
            SEPC => csrs.sepc,
            SCAUSE => csrs.scause,
            STVAL => csrs.stval,
            SIP => self.pending(bus, icount) & csrs.mideleg & MIP_SUPERVISOR,
            STIMECMP => csrs.stimecmp,
            SATP => csrs.satp,
            MSTATUS => csrs.mstatus_readable(),
            MISA => MISA_VALUE,
            MEDELEG => csrs.medeleg,
            MIDELEG => csrs.mideleg,
            MIE => csrs.mie,
            MTVEC => csrs.mtvec,
            MCOUNTEREN => csrs.mcounteren,
            MENVCFG => csrs.menvcfg,
            MCOUNTINHIBIT => csrs.mcountinhibit,
            TSELECT | TDATA1..=TDATA3 => 0,
            TINFO => TINFO_NO_TRIGGER,
            MSCRATCH => csrs.mscratch,
            MEPC => csrs.mepc,
            MCAUSE => csrs.mcause,
            MTVAL => csrs.mtval,
            MIP => self.pending(bus, icount),
            PMPCFG_FIRST..=PMPCFG_LAST => {
                pmp_config_index(csr).ok()?.map_or(0, |first| csrs.pmp.config(first))
            }
            PMPADDR_FIRST..=PMPADDR_LAST => pmp_address_index(csr).map_or(0, |at| csrs.pmp.address(at)),
            MHPMEVENT_FIRST..=MHPMEVENT_LAST | MHPMCOUNTER_FIRST..=MHPMCOUNTER_LAST => 0,
            MVENDORID | MARCHID | MIMPID | MCONFIGPTR => 0,
            MHARTID => self.id as u64,
            _ => return None,
        })
    }

    /// What `csrrs` and `csrrc` change: what was read, without interrupts that devices drive.
    pub(super) fn csr_modified_from(&self, csr: u16, read: u64) -> u64 {
        match csr {
            MIP | SIP => self.csrs.mip_software,
            _ => read,
        }
    }

    /// Writes a CSR. `icount` is that before the instruction. Where interrupts become enabled, the caller
    /// sees to it that those which are pending are looked at.
    pub(super) fn write_csr(&mut self, icount: u64, csr: u16, value: u64) -> Result<(), IllegalAccess> {
        self.check_csr(csr)?;
        let read_only = csr >> 10 == 3;
        if read_only {
            return Err(IllegalAccess);
        }
        let csrs = &mut self.csrs;
        match csr {
            FFLAGS | FRM | FCSR => self.write_float_csr(csr, value),
            SSTATUS => self.write_status(value, STATUS_SUPERVISOR_WRITABLE),
            MSTATUS => self.write_status(value, STATUS_WRITABLE),
            SIE => self.write_mie(value, self.csrs.mideleg & MIP_SUPERVISOR),
            MIE => self.write_mie(value, MIP_ALL),
            SIP => self.write_mip(value, self.csrs.mideleg & MIP_SSIP),
            MIP if csrs.has_timer() => self.write_mip(value, MIP_SSIP | MIP_SEIP),
            MIP => self.write_mip(value, MIP_SUPERVISOR),
            STVEC => csrs.stvec = legal_vector(value),
            MTVEC => csrs.mtvec = legal_vector(value),
            SCOUNTEREN => csrs.scounteren = value & COUNTERS,
            MCOUNTEREN => csrs.mcounteren = value & COUNTERS,
            SENVCFG => csrs.senvcfg = value & SENVCFG_WRITABLE,
            MENVCFG => {
                csrs.menvcfg = value & MENVCFG_WRITABLE;
                self.drop_translations();
                self.timer_changed();
            }
            SSCRATCH => csrs.sscratch = value,
            MSCRATCH => csrs.mscratch = value,
            SEPC => csrs.sepc = value & !1,
            MEPC => csrs.mepc = value & !1,
            SCAUSE => csrs.scause = value & CAUSE_WRITABLE,
            MCAUSE => csrs.mcause = value & CAUSE_WRITABLE,
            STVAL => csrs.stval = value,
            MTVAL => csrs.mtval = value,
            STIMECMP => {
                csrs.stimecmp = value;
                self.timer_changed();
            }
            SATP => self.write_satp(value),
            MISA => {}
            MEDELEG => csrs.medeleg = value & EXCEPTIONS_DELEGABLE,
            MIDELEG => {
                csrs.mideleg = value & MIP_SUPERVISOR;
                self.interrupts_changed();
            }
            MCOUNTINHIBIT => self.write_inhibit(icount, value),
            TSELECT..=TINFO => {}
            PMPCFG_FIRST..=PMPCFG_LAST => {
                if let Some(first) = pmp_config_index(csr)? {
                    csrs.pmp.set_config(first, value);
                    self.drop_translations();
                }
            }
            PMPADDR_FIRST..=PMPADDR_LAST => {
                if let Some(entry) = pmp_address_index(csr) {
                    csrs.pmp.set_address(entry, value);
                    self.drop_translations();
                }
            }
            MCYCLE => self.csrs.cycle_offset = self.offset_for(icount, INHIBIT_CYCLE, value),
            MINSTRET => self.csrs.instret_offset = self.offset_for(icount, INHIBIT_INSTRET, value),
            MHPMEVENT_FIRST..=MHPMEVENT_LAST | MHPMCOUNTER_FIRST..=MHPMCOUNTER_LAST => {}
            _ => return Err(IllegalAccess),
        }
        Ok(())
    }

    /// Whether the present mode may access a CSR at all.
    fn check_csr(&self, csr: u16) -> Result<(), IllegalAccess> {
        let needed = u64::from(csr >> 8 & 3);
        if (self.privilege as u64) < needed {
            return Err(IllegalAccess);
        }
        let csrs = &self.csrs;
        let allowed = match csr {
            FFLAGS | FRM | FCSR => csrs.mstatus & STATUS_FS != 0,
            SATP => self.privilege == Privilege::Machine || csrs.mstatus & STATUS_TVM == 0,
            CYCLE..=INSTRET => {
                let bit = 1 << (csr - CYCLE);
                (self.privilege == Privilege::Machine || csrs.mcounteren & bit != 0)
                    && (self.privilege != Privilege::User || csrs.scounteren & bit != 0)
            }
            STIMECMP => {
                self.privilege == Privilege::Machine
                    || csrs.has_timer() && csrs.mcounteren & COUNTER_TIME != 0
            }
            TSELECT..=TINFO => self.options.semantics.has_trigger_csrs(),
            _ => true,
        };
        if allowed { Ok(()) } else { Err(IllegalAccess) }
    }

    fn write_float_csr(&mut self, csr: u16, value: u64) {
        match csr {
            FFLAGS => self.csrs.fflags = value as u8 & 0x1f,
            FRM => self.csrs.frm = value as u8 & 7,
            _ => {
                self.csrs.fflags = value as u8 & 0x1f;
                self.csrs.frm = (value >> 5) as u8 & 7;
            }
        }
        self.csrs.mstatus |= STATUS_FS;
    }

    fn write_status(&mut self, value: u64, writable: u64) {
        let before = self.csrs.mstatus;
        let mut status = before & !writable | value & writable;
        if status & STATUS_MPP == 2 << STATUS_MPP_SHIFT {
            status = status & !STATUS_MPP | before & STATUS_MPP;
        }
        self.csrs.mstatus = status;
        let changed = before ^ status;
        if changed & STATUS_MXR != 0 {
            self.drop_translations();
        }
        if changed & (STATUS_SUM | STATUS_MPRV | STATUS_MPP) != 0 {
            self.select_regime();
        }
        if changed & status & (STATUS_SIE | STATUS_MIE) != 0 {
            self.check_interrupts = true;
        }
    }

    fn write_mie(&mut self, value: u64, writable: u64) {
        let before = self.csrs.mie;
        self.csrs.mie = before & !writable | value & writable;
        self.interrupts_changed();
        self.timer_written |= (before ^ self.csrs.mie) & MIP_STIP != 0;
    }

    fn write_mip(&mut self, value: u64, writable: u64) {
        self.csrs.mip_software = self.csrs.mip_software & !writable | value & writable;
        self.interrupts_changed();
    }

    fn write_satp(&mut self, value: u64) {
        if is_satp_supported(value, self.options.semantics) && value != self.csrs.satp {
            self.csrs.satp = value;
            // Followed before the next instruction, by `Hart::change_space`.
            self.attention = true;
        }
    }

    fn counter(&self, icount: u64, inhibit: u64, offset: u64) -> u64 {
        if self.csrs.mcountinhibit & inhibit != 0 { offset } else { icount.wrapping_add(offset) }
    }

    /// The offset that makes a counter read `value` after this instruction.
    fn offset_for(&self, icount: u64, inhibit: u64, value: u64) -> u64 {
        if self.csrs.mcountinhibit & inhibit != 0 { value } else { value.wrapping_sub(icount + 1) }
    }

    fn write_inhibit(&mut self, icount: u64, value: u64) {
        let cycle = self.counter(icount, INHIBIT_CYCLE, self.csrs.cycle_offset);
        let instret = self.counter(icount, INHIBIT_INSTRET, self.csrs.instret_offset);
        self.csrs.mcountinhibit = value & (INHIBIT_CYCLE | INHIBIT_INSTRET);
        let running = |inhibit| self.csrs.mcountinhibit & inhibit == 0;
        let (counts_cycles, counts_instret) = (running(INHIBIT_CYCLE), running(INHIBIT_INSTRET));
        self.csrs.cycle_offset = if counts_cycles { cycle.wrapping_sub(icount) } else { cycle };
        self.csrs.instret_offset = if counts_instret { instret.wrapping_sub(icount) } else { instret };
    }

    /// Has interrupts looked at before the next instruction.
    fn interrupts_changed(&mut self) {
        self.check_interrupts = true;
        self.attention = true;
    }

    /// Has the board told that [`Hart::timer_deadline`] changed.
    fn timer_changed(&mut self) {
        self.interrupts_changed();
        self.timer_written = true;
    }

    /// `mip`.
    pub(super) fn pending(&self, bus: &dyn Bus, icount: u64) -> u64 {
        let mut pending = self.csrs.mip_software | bus.interrupt_lines(self.id) & MIP_ALL;
        if self.csrs.has_timer() {
            pending &= !MIP_STIP;
            if bus.time(icount) >= self.csrs.stimecmp {
                pending |= MIP_STIP;
            }
        }
        pending
    }
}

/// Direct and vectored modes exist; others become direct.
fn legal_vector(value: u64) -> u64 {
    if value & 3 > 1 { value & !3 } else { value }
}

/// First entry that a `pmpcfg` register holds; odd ones do not exist on RV64.
fn pmp_config_index(csr: u16) -> Result<Option<usize>, IllegalAccess> {
    let first = usize::from(csr - PMPCFG_FIRST) * 4;
    if first.is_multiple_of(8) { Ok((first < PMP_ENTRIES).then_some(first)) } else { Err(IllegalAccess) }
}

fn pmp_address_index(csr: u16) -> Option<usize> {
    Some(usize::from(csr - PMPADDR_FIRST)).filter(|&entry| entry < PMP_ENTRIES)
}
