//! What gdb is told of a hart's registers.

use std::fmt::Write;

use gdbstub_arch::riscv::reg::id::RiscvRegId;
use machine::RiscvMachine;
use machine::registers::{CSRS, FLOAT_CSRS, FLOAT_NAMES, INTEGER_NAMES};

/// gdb's numbers: integer registers from 0, then pc, floating-point registers, CSRs.
const PC_NUMBER: u32 = 32;
const FLOAT_FIRST: u32 = 33;
const CSR_FIRST: u32 = 65;
const PRIVILEGE_NUMBER: u32 = 4161;

/// The target description: which registers there are.
pub fn target_description() -> String {
    let mut text = String::from(
        "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\">\
         <target version=\"1.0\"><architecture>riscv:rv64</architecture>",
    );
    let mut feature = |name: &str, registers: &mut dyn Iterator<Item = (&str, u32, u32, &str)>| {
        _ = write!(text, "<feature name=\"org.gnu.gdb.riscv.{name}\">");
        for (name, number, bits, kind) in registers {
            _ = write!(text, "<reg name=\"{name}\" bitsize=\"{bits}\" regnum=\"{number}\" type=\"{kind}\"/>");
        }
        text.push_str("</feature>");
    };
    let kind = |name: &str| match name {
        "ra" => "code_ptr",
        "sp" | "gp" | "tp" | "fp" => "data_ptr",
        _ => "int",
    };
    let integers = (0..).zip(INTEGER_NAMES).map(|(number, name)| (name, number, 64, kind(name)));
    feature("cpu", &mut integers.chain([("pc", PC_NUMBER, 64, "code_ptr")]));
    let floats = (FLOAT_FIRST..).zip(FLOAT_NAMES).map(|(number, name)| (name, number, 64, "ieee_double"));
    let csr = |(name, number): (&'static str, u16)| (name, CSR_FIRST + u32::from(number), 64, "int");
    feature("fpu", &mut floats.chain(FLOAT_CSRS.into_iter().map(csr)));
    feature("csr", &mut CSRS.into_iter().map(csr));
    feature("virtual", &mut [("priv", PRIVILEGE_NUMBER, 8, "int")].into_iter());
    text.push_str("</target>");
    text
}

/// What a register of a hart holds; `None` where there is none.
pub fn read(machine: &RiscvMachine, hart: usize, register: RiscvRegId<u64>) -> Option<u64> {
    let state = machine.hart(hart)?;
    match register {
        RiscvRegId::Gpr(number) => Some(state.register(usize::from(number))),
        RiscvRegId::Pc => Some(state.pc()),
        RiscvRegId::Fpr(number) => state.state().f.get(usize::from(number)).copied(),
        RiscvRegId::Csr(number) => machine.csr(hart, number),
        RiscvRegId::Priv => Some(state.privilege() as u64),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gdbstub::arch::RegId;

    #[test]
    fn every_described_register_has_the_number_that_gdb_will_ask_for() {
        let text = target_description();
        let mut count = 0;
        for part in text.split("<reg name=\"").skip(1) {
            let name = part.split('"').next().unwrap();
            let number: usize =
                part.split("regnum=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap();
            let (id, _) = RiscvRegId::<u64>::from_raw_id(number).expect("a register");
            let fits = match id {
                RiscvRegId::Gpr(number) => INTEGER_NAMES[usize::from(number)] == name,
                RiscvRegId::Fpr(number) => FLOAT_NAMES[usize::from(number)] == name,
                RiscvRegId::Csr(number) => CSRS.iter().chain(&FLOAT_CSRS).any(|csr| *csr == (name, number)),
                RiscvRegId::Pc => name == "pc",
                RiscvRegId::Priv => name == "priv",
                _ => false,
            };
            assert!(fits, "{name} is {number}");
            count += 1;
        }
        assert_eq!(count, 32 + 1 + 32 + FLOAT_CSRS.len() + CSRS.len() + 1);
    }
}
